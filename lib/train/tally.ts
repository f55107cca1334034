/** What a run counts: sums for its next log, the losses of all its steps, its speed, and the steps it skipped. */
import { WrpoError } from '../errors.js';
import type { TrainingArgs } from './args.js';
import type { Checkpoint, TrainerState } from './checkpoint.js';
import { MetricMeans, type Metrics, Rate } from './metrics.js';
import type { Terms } from './objective.js';
import type { Step } from './step.js';

/** More steps in a row that are not finite are no accident. */
const MOST_SKIPPED = 10;

export class Tally {
  readonly rate = new Rate();
  readonly #args: TrainingArgs;
  readonly #interval = new MetricMeans();
  #lossSum = 0;
  #skippedInARow = 0;
  /** Of the last step, and no means. */
  #now: Metrics = {};

  /** Goes on with what `checkpoint` had counted. */
  constructor(args: TrainingArgs, checkpoint?: Checkpoint) {
    this.#args = args;
    if (!checkpoint) return;
    this.#lossSum = checkpoint.lossSum;
    this.#interval.restore(checkpoint.pending);
  }

  /** For a checkpoint. */
  sums(): Pick<Checkpoint, 'lossSum' | 'pending'> {
    return { lossSum: this.#lossSum, pending: this.#interval.toJSON() };
  }

  /**
   * Counts a completed step, or notes in `state` that it was skipped; returns the metrics of its batch alone. `curAlpha`
   * is undefined where the objective has none. Throws the step's own error when it is the last of too many in a row.
   */
  add(taken: Step | WrpoError, terms: Terms, state: TrainerState, curAlpha?: number): Metrics {
    const batch = new MetricMeans();
    this.#now = {};
    if (taken instanceof WrpoError) {
      if (++this.#skippedInARow === MOST_SKIPPED) throw taken;
      process.stderr.write(`${taken.message.replace(/^stopped at/, 'skipped')}\n`);
      state.skipped_steps = (state.skipped_steps ?? 0) + 1;
    } else {
      this.#skippedInARow = 0;
      for (const example of taken.examples) for (const to of [batch, this.#interval]) to.add(example, terms);
      this.rate.add(taken.tokens);
      Object.assign(this.#now, { grad_norm: taken.gradNorm, learning_rate: taken.learningRate });
    }
    if (this.#args.nonFinite === 'skip') this.#now.skipped_steps = state.skipped_steps ?? 0;
    if (curAlpha !== undefined) this.#now.cur_alpha = curAlpha;
    const metrics = { ...batch.means(), ...this.#now };
    this.#lossSum += metrics.loss ?? 0;
    return metrics;
  }

  /** The metrics since the last time this was asked. */
  interval(): Metrics {
    const metrics = { ...this.#interval.means(), ...this.#now, tokens_per_second: this.rate.perSecond() };
    this.#interval.reset();
    this.rate.reset();
    return metrics;
  }

  /** Mean over all steps that were updates. */
  trainLoss({ global_step, skipped_steps = 0 }: TrainerState): number {
    return this.#lossSum / (global_step - skipped_steps);
  }
}
