/** The training loop: batches, accumulate, step, log, save. */
import { EventEmitter } from 'node:events';
import { join } from 'node:path';
import { makeDirectory, writeFileAtomic } from '../data/files.js';
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import { AdamW } from './adamw.js';
import { evaluates, refuseLossKeys, resolveArgs, type TrainingArgs, type TrainingArgsInput } from './args.js';
import { loadBest, locateBest, looksForBest, noteBest } from './best.js';
import { pruneCheckpoints, type TrainerState } from './checkpoint.js';
import { evaluateSplit } from './evaluate.js';
import { RunLog } from './log.js';
import type { Metrics } from './metrics.js';
import type { Terms } from './objective.js';
import { type DataOptions, fillReference, type Prepared, prepare, type Split } from './prepare.js';
import { type Progress, progressBar } from './progress.js';
import { openCheckpoint, resumeKey } from './resume.js';
import { describeRun } from './run.js';
import { describePeak, explainOutOfMemory } from './run-memory.js';
import { Saver } from './saver.js';
import { alphaAt, batchIndices, isDue, type Plan, planOf } from './schedule.js';
import { takeStep } from './step.js';
import { Tally } from './tally.js';
import type { Warning } from './warnings.js';

export interface TrainerOptions extends DataOptions {
  args: TrainingArgsInput;
  callbacks?: Partial<{ [E in keyof TrainerEvents]: (...args: TrainerEvents[E]) => void }>;
}

export interface TrainerEvents {
  /** A line of metrics.jsonl. */
  log: [Metrics];
  step: [StepResult];
  evaluate: [Metrics];
  /** The reference log-probs are there: computed, or (in hardly any time) read from an earlier run's file. */
  reference: [{ rows: number; seconds: number }];
  /** Something in the log that a person should look at, when it begins. */
  warning: [Warning];
  /** The directory of a checkpoint or of the final model. */
  save: [string];
}

export interface StepResult {
  /** Completed steps, this one included. */
  step: number;
  totalSteps: number;
  /** Real tokens of its batch, as if prompts were not shared. */
  tokens: number;
  /** Of this step's batch alone. */
  metrics: Metrics;
}

export interface TrainResult {
  globalStep: number;
  /** Mean over all steps. */
  trainingLoss: number;
  /** The last evaluation, or without one the last log. */
  metrics: Metrics;
}

export interface TrainOptions {
  /** A checkpoint directory, or `true`: the run's latest, and from the start when there is none. */
  resumeFromCheckpoint?: string | boolean;
  /**
   * Stops after the micro-batch in hand, of training, evaluation or the reference pass, leaving a checkpoint of the last
   * completed step; rejects with the signal's reason.
   */
  signal?: AbortSignal;
}

/** A run under way. */
interface Course {
  run: Prepared;
  plan: Plan;
  optimizer: AdamW;
  state: TrainerState;
  tally: Tally;
  log: RunLog;
  saver: Saver;
  bar: Progress;
  signal?: AbortSignal;
  /** When the data and models were there. */
  began: number;
}

export class Trainer extends EventEmitter<TrainerEvents> {
  readonly args: TrainingArgs;
  readonly #options: TrainerOptions;
  #prepared?: Promise<Prepared>;
  #alpha: number;
  #step = 0;
  #last: Metrics = {};

  /** Throws ERR_CONFIG on arguments that cannot be meant. */
  constructor(options: TrainerOptions) {
    super();
    if (options.objective) refuseLossKeys(options.args);
    this.args = resolveArgs(options.args as Record<string, unknown>, 'args', say);
    this.#alpha = alphaAt(0, 1, this.args.alpha, this.args.isDynamic);
    this.#options = evaluates(this.args) ? options : { ...options, evalDataset: undefined };
    for (const [event, callback] of Object.entries(options.callbacks ?? {})) {
      this.on(event as keyof TrainerEvents, callback as () => void);
    }
  }

  /** Trains to the end, saves the model in `outputDir`, and evaluates when there is an evaluation set. */
  async train(options: TrainOptions = {}): Promise<TrainResult> {
    for await (const _ of this.steps(options));
    return { globalStep: this.#step, trainingLoss: this.#last.train_loss!, metrics: this.#last };
  }

  /** The same run, a step at a time. */
  async *steps(options: TrainOptions = {}): AsyncGenerator<StepResult, void> {
    try {
      yield* this.#steps(options);
    } catch (error) {
      throw await this.#explained(error);
    }
  }

  async *#steps(options: TrainOptions): AsyncGenerator<StepResult, void> {
    const course = await this.#begin(options);
    const { plan, state, saver } = course;
    try {
      // A run that was stopped in an evaluation has its checkpoint from before it.
      if (state.global_step > 0) await this.#evaluateAndSave(course);
      while (state.global_step < plan.total) {
        saver.throwIfFailed();
        const result = await this.#takeStep(course);
        this.emit('step', result);
        yield result;
      }
      await this.#evaluateAtEnd(course);
      await saver.written();
    } catch (error) {
      if (options.signal?.aborted && error === options.signal.reason) {
        if (state.global_step > 0) await saver.save();
        await saver.written();
      }
      throw error;
    } finally {
      course.bar.stop();
      await saver.written().catch(() => {});
      await course.optimizer.close();
    }
    await this.#finish(course);
  }

  /** Everything before the first step: data, model and reference, and what a checkpoint holds. */
  async #begin({ resumeFromCheckpoint, signal }: TrainOptions): Promise<Course> {
    const { args } = this;
    const { objective } = this.#options;
    signal?.throwIfAborted();
    const run = await this.#prepare();
    const began = performance.now();
    signal?.throwIfAborted();
    if (looksForBest(args) && !run.eval)
      throw new WrpoError('ERR_CONFIG', 'to find the best model, there must be evaluation data');
    const plan = planOf(run.train.rows.length, args);

    // Before the long work, and before anything of an earlier run is overwritten.
    const resume = resumeKey(run, args, objective, plan.total);
    const checkpoint = await openCheckpoint(resumeFromCheckpoint, args, resume, say);
    const inputs = { 'model weights': run.fingerprint, 'training data': run.train.hash };
    await describeRun(args, objective !== undefined, inputs);
    // With the initial weights: those of a checkpoint come after it.
    await this.#fillReference(run, signal);

    const optimizer = optimizerOf(run.model, args, plan.total);
    const fresh: TrainerState = { global_step: 0, max_steps: plan.total, epoch: 0, log_history: [] };
    const state = checkpoint?.state ?? fresh;
    if (checkpoint) {
      await run.model.loadWeights(checkpoint.dir);
      await optimizer.load(checkpoint.dir, checkpoint.step - (state.skipped_steps ?? 0));
      this.#last = state.log_history.at(-1) ?? {};
      this.#termsAt(run, Math.max(0, checkpoint.step - 1), plan.total);
      locateBest(state, checkpoint.dir, args.outputDir, say);
    }
    const log = new RunLog(args, state);
    const tally = new Tally(args, checkpoint);
    const saver = new Saver(args, { run, optimizer, state, tally, resume }, checkpoint, (dir) =>
      this.emit('save', dir),
    );
    const bar = progressBar('training', plan.total, !args.disableTqdm);
    return { run, plan, optimizer, state, tally, log, saver, bar, signal, began };
  }

  /** A step and what follows it: log, evaluation, checkpoint. */
  async #takeStep(course: Course): Promise<StepResult> {
    const { args } = this;
    const { run, plan, optimizer, state, tally, log, bar, signal } = course;
    const { global_step: before } = state;
    const terms = this.#termsAt(run, before, plan.total);
    const indices = batchIndices(plan, before, args);
    const taken = await takeStep(run, optimizer, indices, terms, args, before, signal);

    // Only now: a step that is stopped half-way is taken again as a whole.
    const step = before + 1;
    state.global_step = step;
    state.epoch = step / plan.epochSteps;
    const metrics = tally.add(taken, terms, state, run.usesAlpha ? this.#alpha : undefined);
    bar.update(step, { ...metrics, tokens_per_second: tally.rate.perSecond() });
    if (isDue(args.loggingSteps, step) || step === plan.total) {
      this.#note(log.add(state, { ...tally.interval(), peak_memory_bytes: run.model.memory().peak }));
    }
    await tally.rate.without(() => this.#evaluateAndSave(course));
    return { step, totalSteps: plan.total, tokens: 'tokens' in taken ? taken.tokens : 0, metrics };
  }

  /** What is due after a step. */
  async #evaluateAndSave(course: Course): Promise<void> {
    const { plan, state, saver } = course;
    const { global_step: step } = state;
    const best = isDue(plan.evalEvery, step) && step < plan.total && (await this.#evaluateStep(course));
    if (best || isDue(plan.saveEvery, step)) await saver.save();
  }

  /** With the final alpha. */
  async #evaluateAtEnd(course: Course): Promise<void> {
    const { args } = this;
    this.#alpha = args.alpha;
    if (!(await this.#evaluateStep(course))) return;
    await course.saver.save();
    await course.saver.written();
    // What was the best before may go.
    const { best_model_checkpoint: best } = course.state;
    pruneCheckpoints(best!, args.saveTotalLimit, best);
  }

  /** Evaluates, where there are data and the checkpoint does not hold that already; whether it is the best so far. */
  async #evaluateStep({ run, state, log, signal }: Course): Promise<boolean> {
    const last = state.log_history.at(-1);
    if (!run.eval || (last?.step === state.global_step && 'eval_loss' in last)) return false;
    const metrics = await this.#evaluate(run, run.eval, signal);
    this.#note(log.add(state, metrics));
    return looksForBest(this.args) && noteBest(state, metrics, this.args);
  }

  /** The final model and the run's last words. */
  async #finish({ run, state, tally, began }: Course): Promise<void> {
    const { args } = this;
    const words = describePeak(run.memory, run.model);
    if (words !== undefined) say(words);
    if (args.loadBestModelAtEnd) await loadBest(run.model, state, say);
    const train_loss = tally.trainLoss(state);
    this.#last = { ...this.#last, train_loss };
    this.#step = state.global_step;
    await this.saveModel();
    // As transformers has it: of this process, with the reference pass, evaluations and checkpoints.
    const train_runtime = (performance.now() - began) / 1000;
    state.log_history.push({ step: state.global_step, epoch: state.epoch, train_runtime, train_loss });
    writeFileAtomic(join(args.outputDir, 'trainer_state.json'), `${JSON.stringify(state, null, 1)}\n`);
  }

  /** The reference log-probs of all rows, computed now rather than when training begins, and kept. */
  async computeReference({ signal }: Pick<TrainOptions, 'signal'> = {}): Promise<void> {
    try {
      await this.#fillReference(await this.#prepare(), signal);
    } catch (error) {
      throw await this.#explained(error);
    }
  }

  /** Metrics on the evaluation set (`eval_…`), with the final alpha and, beside it, the current one. */
  async evaluate(): Promise<Metrics> {
    try {
      const run = await this.#prepare();
      if (!run.eval) throw new WrpoError('ERR_CONFIG', 'evaluate() needs an evalDataset');
      await this.#fillReference(run);
      return await this.#evaluate(run, run.eval);
    } catch (error) {
      throw await this.#explained(error);
    }
  }

  /**
   * Saves the policy, with its tokenizer, in Hugging Face layout; of one with adapters these alone, in PEFT's. Default
   * directory: `outputDir`.
   */
  async saveModel(dir = this.args.outputDir): Promise<void> {
    const { model, tokenizer } = await this.#prepare();
    await model.save(dir, { dtype: model.dtype === 'float64' ? 'float64' : this.args.saveDtype });
    await tokenizer?.saveTo(dir);
    this.emit('save', dir);
  }

  /** The policy. */
  async model(): Promise<Model> {
    return (await this.#prepare()).model;
  }

  /** Frees the models that this trainer loaded itself. */
  async close(): Promise<void> {
    const run = await this.#prepared?.catch(() => undefined);
    if (run && typeof this.#options.model === 'string') await run.model.close();
    if (run?.refModel && run.refModel !== this.#options.refModel) await run.refModel.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Loads and encodes everything, once. */
  #prepare(): Promise<Prepared> {
    this.#prepared ??= (async () => {
      const run = await prepare(this.#options, this.args, say);
      makeDirectory(this.args.outputDir);
      return run;
    })();
    return this.#prepared;
  }

  /** The error, which may be that memory was not enough, in the run's own words. */
  async #explained(error: unknown): Promise<unknown> {
    return explainOutOfMemory(error, this.args, await this.#prepared?.catch(() => undefined));
  }

  async #fillReference(run: Prepared, signal?: AbortSignal): Promise<void> {
    const began = performance.now();
    const rows = await fillReference(run, this.args, { shared: this.#options.referenceDir, signal });
    if (rows > 0) this.emit('reference', { rows, seconds: (performance.now() - began) / 1000 });
  }

  #termsAt(run: Prepared, step: number, total: number): Terms {
    this.#alpha = alphaAt(step, total, this.args.alpha, this.args.isDynamic);
    return run.termsAt(this.#alpha);
  }

  async #evaluate(run: Prepared, split: Split, signal?: AbortSignal): Promise<Metrics> {
    const metrics = await evaluateSplit(run, split, this.args, this.#alpha, signal);
    this.emit('evaluate', metrics);
    return metrics;
  }

  #note({ line, warnings }: ReturnType<RunLog['add']>): void {
    this.#last = line;
    this.emit('log', line);
    for (const warning of warnings) {
      say(`warning: step ${warning.step}: ${warning.message}`);
      this.emit('warning', warning);
    }
  }
}

const optimizerOf = (model: Model, args: TrainingArgs, totalSteps: number): AdamW =>
  new AdamW(model, {
    learningRate: args.learningRate,
    schedule: args.lrSchedulerType,
    warmupSteps: args.warmupSteps ?? Math.ceil(args.warmupRatio * totalSteps),
    totalSteps,
    betas: [args.adamBeta1, args.adamBeta2],
    eps: args.adamEpsilon,
    weightDecay: args.weightDecay,
    maxGradNorm: args.maxGradNorm,
  });

const say = (line: string) => process.stderr.write(`${line}\n`);
