/** Metrics on held-out rows. */
import { splitMicrobatches } from '../data/pack.js';
import type { Role } from '../data/preferences.js';
import type { TrainingArgs } from './args.js';
import { countResponseTokens, type Example, MetricMeans, type Metrics } from './metrics.js';
import { type Objective, objectiveOf, preferenceLoss } from './objective.js';
import { type Prepared, referenceOf, type Split } from './prepare.js';
import { progressBar } from './progress.js';
import { logProbsOf } from './reference.js';

/**
 * `eval_…` metrics with the final alpha, so that they can be compared over time; `eval_loss_current_alpha` beside them.
 */
export async function evaluateSplit(
  run: Prepared,
  split: Split,
  args: TrainingArgs,
  currentAlpha: number,
): Promise<Metrics> {
  const bar = progressBar('evaluation', split.rows.length, !args.disableTqdm);
  const final = { objective: objectiveOf(args, args.alpha), means: new MetricMeans() };
  const current = { objective: objectiveOf(args, currentAlpha), means: new MetricMeans() };
  let done = 0;
  try {
    for (const part of splitMicrobatches(split.rows, run.roles, args.microbatchTokens)) {
      const indices = part.map((_, i) => done + i);
      const reference = await referenceOf(run, split, part, indices, args.sharePrompt);
      const logps = await logProbsOf(run.model, part, run.roles, args.sharePrompt);
      for (const [i, row] of part.entries()) {
        const example = { tokens: countResponseTokens(row, run.roles), logps: logps[i]!, reference: reference[i]! };
        for (const { objective, means } of [final, current]) {
          means.add({ ...example, loss: lossOf(example, objective) }, objective);
        }
      }
      done += part.length;
      bar.update(done, {});
    }
  } finally {
    bar.stop();
  }
  const metrics: Metrics = {};
  for (const [name, value] of Object.entries(final.means.means())) metrics[`eval_${name}`] = value;
  if (args.lossType === 'wrpo') metrics.eval_loss_current_alpha = current.means.means().loss!;
  return metrics;
}

function lossOf({ logps, reference }: Omit<Example, 'loss'>, objective: Objective): number {
  const columns = (values: Partial<Record<Role, number>>) =>
    Object.fromEntries(Object.entries(values).map(([role, value]) => [role, [value]]));
  return preferenceLoss({ policy: columns(logps), reference: columns(reference) }, objective).loss;
}
