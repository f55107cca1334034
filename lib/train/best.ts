/** Which evaluation of a run is the best so far, as transformers decides it. */
import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import type { TrainingArgs } from './args.js';
import { checkpointDirectory, type TrainerState, verifyCheckpoint } from './checkpoint.js';
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

/** Finds the best checkpoint of a run that goes on from `from`: continued elsewhere, it may have been left behind. */
export function locateBest(state: TrainerState, from: string, runDir: string, say: (line: string) => void): void {
  const { best_global_step: step } = state;
  if (step === undefined) return;
  const places = [runDir, dirname(from)].map((dir) => checkpointDirectory(dir, step));
  state.best_model_checkpoint = places.find((dir) => existsSync(dir));
  if (state.best_model_checkpoint !== undefined) return;
  say(`checkpoint-${step}, the best so far, is not there any more: the best is looked for from here on`);
  state.best_metric = undefined;
  state.best_global_step = undefined;
}

/** Makes the weights of the best evaluation the model's, unless they are. Throws ERR_CHECKPOINT when they are damaged. */
export async function loadBest(model: Model, state: TrainerState, say: (line: string) => void): Promise<void> {
  const { best_model_checkpoint: dir, best_metric, best_global_step } = state;
  if (dir === undefined || best_global_step === state.global_step) return;
  await verifyCheckpoint(dir);
  await model.loadWeights(dir);
  say(`the best evaluation (${best_metric}) was after step ${best_global_step}: its model is the result`);
}
