/** What a run writes down of its metrics: `metrics.jsonl`, TensorBoard's files where they are wanted, and warnings. */
import { join } from 'node:path';
import { appendLines, writeFileAtomic } from '../data/files.js';
import { reportsToTensorboard, type TrainingArgs } from './args.js';
import type { TrainerState } from './checkpoint.js';
import type { Metrics } from './metrics.js';
import { EventFile } from './tensorboard.js';
import { newWarnings, type Warning } from './warnings.js';

export class RunLog {
  readonly #file: string;
  readonly #events?: EventFile;

  /** Makes the log what it was at the step a run goes on from: a killed run may have logged further. */
  constructor(args: TrainingArgs, { global_step, log_history }: TrainerState) {
    this.#file = join(args.outputDir, 'metrics.jsonl');
    writeFileAtomic(this.#file, log_history.map((line) => `${JSON.stringify(line)}\n`).join(''));
    if (reportsToTensorboard(args)) this.#events = new EventFile(join(args.outputDir, 'tensorboard'), global_step + 1);
  }

  /** Adds a line at a run's step, to the files and to the state; says what it warns of. */
  add(state: TrainerState, values: Metrics): { line: Metrics; warnings: Warning[] } {
    const line = { step: state.global_step, epoch: Number(state.epoch.toFixed(6)), ...values };
    state.log_history.push(line);
    appendLines(this.#file, [JSON.stringify(line)]);
    this.#events?.add(line);
    return { line, warnings: newWarnings(state.log_history) };
  }
}
