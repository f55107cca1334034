/** Which evaluation of a run is the best so far, as transformers decides it. */
import { WrpoError } from '../errors.js';
import type { TrainingArgs } from './args.js';
import { checkpointDirectory, type TrainerState } from './checkpoint.js';
import type { Metrics } from './metrics.js';

/** Whether a run looks for its best evaluation. */
export const looksForBest = ({ loadBestModelAtEnd, saveStrategy, metricForBestModel }: TrainingArgs): boolean =>
  loadBestModelAtEnd || saveStrategy === 'best' || metricForBestModel !== undefined;

/**
 * Notes in `state` when an evaluation of its step is better than all before, and says whether it is; a NaN never is. Throws
 * ERR_CONFIG when there is no such metric.
 */
export function noteBest(state: TrainerState, evaluation: Metrics, args: TrainingArgs): boolean {
  const { metricForBestModel = 'loss', outputDir } = args;
  const { greaterIsBetter = !metricForBestModel.endsWith('loss') } = args;
  const name = metricForBestModel.startsWith('eval_') ? metricForBestModel : `eval_${metricForBestModel}`;
  const value = evaluation[name];
  if (value === undefined) {
    const names = Object.keys(evaluation).join(', ');
    throw new WrpoError('ERR_CONFIG', `metric_for_best_model "${metricForBestModel}": an evaluation has ${names}`);
  }
  const { best_metric: before } = state;
  const better = before === undefined ? !Number.isNaN(value) : greaterIsBetter ? value > before : value < before;
  if (!better) return false;
  state.best_metric = value;
  state.best_global_step = state.global_step;
  state.best_model_checkpoint = checkpointDirectory(outputDir, state.global_step);
  return true;
}
