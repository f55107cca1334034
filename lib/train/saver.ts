/** Writes a run's checkpoints while its steps go on, one at a time. */
import { dirname, resolve } from 'node:path';
import type { AdamW } from './adamw.js';
import type { TrainingArgs } from './args.js';
import { type Checkpoint, pruneCheckpoints, type ResumeKey, saveCheckpoint, type TrainerState } from './checkpoint.js';
import type { Prepared } from './prepare.js';
import { VERSION } from './run.js';
import type { Tally } from './tally.js';

/** What a checkpoint is made of. */
interface Contents {
  run: Prepared;
  optimizer: AdamW;
  state: TrainerState;
  tally: Tally;
  resume: ResumeKey;
}

export class Saver {
  readonly #args: TrainingArgs;
  readonly #contents: Contents;
  readonly #onSaved: (dir: string) => void;
  /** The step of the latest checkpoint in `outputDir`. */
  #saved?: number;
  #writing?: Promise<void>;
  #failure: unknown;

  /** `from` is the checkpoint that the run goes on from; `onSaved` is told of each that is complete. */
  constructor(args: TrainingArgs, contents: Contents, from: Checkpoint | undefined, onSaved: (dir: string) => void) {
    this.#args = args;
    this.#contents = contents;
    this.#onSaved = onSaved;
    if (from && resolve(dirname(from.dir)) === resolve(args.outputDir)) this.#saved = from.step;
  }

  /** Begins to write the checkpoint of the state's step, unless it is there, once the one before it is written. */
  async save(): Promise<void> {
    const { run, optimizer, state, tally, resume } = this.#contents;
    if (this.#saved === state.global_step) return;
    await this.#writing;
    this.#saved = state.global_step;
    const { best_model_checkpoint: best } = state;
    const { model, tokenizer } = run;
    const contents = { model, tokenizer, optimizer, state, resume, wrpo: VERSION, ...tally.sums() };
    this.#writing = saveCheckpoint(this.#args.outputDir, contents).then((dir) => {
      pruneCheckpoints(dir, this.#args.saveTotalLimit, best);
      this.#onSaved(dir);
    });
    this.#writing.catch((error) => {
      this.#failure = error;
    });
  }

  /** Throws what the writing of a checkpoint failed with meanwhile. */
  throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Waits for the checkpoint that is being written; throws what that failed with. */
  async written(): Promise<void> {
    await this.#writing;
  }
}
