/** Metrics on held-out rows. */
import { splitMicrobatches } from '../data/pack.js';
import type { TrainingArgs } from './args.js';
import { logProbsOfRow, MetricMeans, type Metrics } from './metrics.js';
import { lossOf } from './objective.js';
import { type Prepared, referenceOf, type Split } from './prepare.js';
import { progressBar } from './progress.js';
import { logProbsOf } from './reference.js';

/**
 * `eval_…` metrics with the final alpha, so that they can be compared over time; `eval_loss_current_alpha` beside them.
 * Throws the signal's reason, after the micro-batch in hand, once it is aborted.
 */
export async function evaluateSplit(
  run: Prepared,
  split: Split,
  args: TrainingArgs,
  currentAlpha: number,
  signal?: AbortSignal,
): Promise<Metrics> {
  const bar = progressBar('evaluation', split.rows.length, !args.disableTqdm);
  const final = { terms: run.termsAt(args.alpha), means: new MetricMeans() };
  const current = { terms: run.termsAt(currentAlpha), means: new MetricMeans() };
  let done = 0;
  try {
    for (const part of splitMicrobatches(split.rows, run.roles, args.microbatchTokens)) {
      signal?.throwIfAborted();
      const indices = part.map((_, i) => done + i);
      const reference = await referenceOf(run, split, part, indices, args.sharePrompt);
      const logps = await logProbsOf(run.model, part, run.roles, args.sharePrompt);
      for (const [i, row] of part.entries()) {
        const example = logProbsOfRow(row, run.roles, logps[i]!, reference[i]!);
        for (const { terms, means } of [final, current]) {
          means.add({ ...example, loss: lossOf(terms, example).loss }, terms);
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
  if (run.usesAlpha) metrics.eval_loss_current_alpha = current.means.means().loss!;
  return metrics;
}
