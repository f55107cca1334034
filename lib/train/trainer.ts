/** The training loop: batches, accumulate, step, log, save. */
import { EventEmitter } from 'node:events';
import { dirname, join, resolve } from 'node:path';
import { makeDirectory, writeFileAtomic } from '../data/files.js';
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import { AdamW } from './adamw.js';
import { evaluates, refuseLossKeys, resolveArgs, type TrainingArgs, type TrainingArgsInput } from './args.js';
import { loadBest, locateBest, looksForBest, noteBest } from './best.js';
import {
  listCheckpoints,
  pruneCheckpoints,
  readCheckpoint,
  recoverCheckpoints,
  saveCheckpoint,
  type TrainerState,
} from './checkpoint.js';
import { evaluateSplit } from './evaluate.js';
import { explainOutOfMemory } from './gpu-memory.js';
import { RunLog } from './log.js';
import { MetricMeans, type Metrics, Rate } from './metrics.js';
import type { Terms } from './objective.js';
import { type DataOptions, fillReference, type Prepared, prepare, type Split } from './prepare.js';
import { progressBar } from './progress.js';
import { resumeKey } from './resume.js';
import { describeRun, VERSION } from './run.js';
import { alphaAt, epochOrder, intervalOf, stepsPerEpoch, totalSteps } from './schedule.js';
import { takeStep } from './step.js';
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

/** More steps in a row that are not finite are no accident. */
const MOST_SKIPPED = 10;

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
  async *steps({ resumeFromCheckpoint, signal }: TrainOptions = {}): AsyncGenerator<StepResult, void> {
    const { args } = this;
    signal?.throwIfAborted();
    const run = await this.#prepare();
    signal?.throwIfAborted();
    const { model } = run;
    const { rows } = run.train;
    const globalBatch = args.perDeviceTrainBatchSize * args.gradientAccumulationSteps;
    const epochSteps = stepsPerEpoch(rows.length, args);
    const total = totalSteps(epochSteps, args.numTrainEpochs, args.maxSteps);
    const wantsBest = looksForBest(args);
    if (wantsBest && !run.eval)
      throw new WrpoError('ERR_CONFIG', 'to find the best model, there must be evaluation data');

    // Before the long work, and before anything of an earlier run is overwritten.
    const resume = resumeKey(run, args, this.#options.objective, total);
    recoverCheckpoints(args.outputDir);
    const from =
      resumeFromCheckpoint === true ? listCheckpoints(args.outputDir).at(-1) : resumeFromCheckpoint || undefined;
    const checkpoint = from === undefined ? undefined : await readCheckpoint(from, resume);
    if (checkpoint) say(`going on from ${checkpoint.dir}, after step ${checkpoint.step} of ${total}`);
    else if (resumeFromCheckpoint === true) say(`no checkpoint in ${args.outputDir}: starting at step 0`);
    await describeRun(args, this.#options.objective !== undefined, {
      'model weights': run.fingerprint,
      'training data': run.train.hash,
    });
    // With the initial weights: those of a checkpoint come after it.
    await this.#fillReference(run, signal);

    const optimizer = new AdamW(model, {
      learningRate: args.learningRate,
      schedule: args.lrSchedulerType,
      warmupSteps: args.warmupSteps ?? Math.ceil(args.warmupRatio * total),
      totalSteps: total,
      betas: [args.adamBeta1, args.adamBeta2],
      eps: args.adamEpsilon,
      weightDecay: args.weightDecay,
      maxGradNorm: args.maxGradNorm,
    });
    const means = new MetricMeans();
    let state: TrainerState = { global_step: 0, max_steps: total, epoch: 0, log_history: [] };
    let lossSum = 0;
    let skippedInARow = 0;
    // The step of the latest checkpoint in `outputDir`, and its writing, which goes on while steps are taken.
    let saved: number | undefined;
    let writing: Promise<void> | undefined;
    let failure: unknown;
    const save = async () => {
      await writing;
      saved = state.global_step;
      const { best_model_checkpoint: best } = state;
      const checkpoint = saveCheckpoint(args.outputDir, {
        ...{ model, tokenizer: run.tokenizer, optimizer, state, resume, lossSum },
        ...{ wrpo: VERSION, pending: means.toJSON() },
      });
      writing = checkpoint.then((dir) => {
        pruneCheckpoints(dir, args.saveTotalLimit, best);
        this.emit('save', dir);
      });
      writing.catch((error) => {
        failure = error;
      });
    };

    if (checkpoint) {
      await model.loadWeights(checkpoint.dir);
      await optimizer.load(checkpoint.dir, checkpoint.step - (checkpoint.state.skipped_steps ?? 0));
      ({ state, lossSum } = checkpoint);
      means.restore(checkpoint.pending);
      this.#last = state.log_history.at(-1) ?? {};
      if (resolve(dirname(checkpoint.dir)) === resolve(args.outputDir)) saved = checkpoint.step;
      locateBest(state, checkpoint.dir, args.outputDir, say);
    }
    const log = new RunLog(args, state);

    const bar = progressBar('training', total, !args.disableTqdm);
    const rate = new Rate();
    const evalEvery = intervalOf(args.evalStrategy, args.evalSteps, {
      usual: args.loggingSteps,
      stepsPerEpoch: epochSteps,
      total,
    });
    const saveEvery = intervalOf(args.saveStrategy, args.saveSteps, { usual: 500, stepsPerEpoch: epochSteps, total });
    const due = (every: number | undefined) =>
      every !== undefined && state.global_step > 0 && state.global_step % every === 0;
    /** Evaluates, where this step's checkpoint does not hold that already; whether it is the best so far. */
    const evaluate = async (split: Split): Promise<boolean> => {
      const last = state.log_history.at(-1);
      if (last?.step === state.global_step && 'eval_loss' in last) return false;
      const metrics = await this.#evaluate(run, split, signal);
      this.#note(log.add(state, metrics));
      return wantsBest && noteBest(state, metrics, args);
    };
    const evaluateAndSave = async () => {
      const best = run.eval && due(evalEvery) && state.global_step < total && (await evaluate(run.eval));
      if ((best || due(saveEvery)) && saved !== state.global_step) await save();
    };
    try {
      if (checkpoint) {
        // A run that was stopped in an evaluation has its checkpoint from before it.
        this.#termsAt(run, Math.max(0, state.global_step - 1), total);
        await evaluateAndSave();
      }
      while (state.global_step < total) {
        if (failure !== undefined) throw failure;
        const step = state.global_step;
        const terms = this.#termsAt(run, step, total);
        const indices = this.#batchIndices(rows.length, globalBatch, epochSteps, step);
        const taken = await takeStep(run, optimizer, indices, terms, args, step, signal).catch((error: unknown) => {
          throw explainOutOfMemory(error, model, args);
        });
        state.global_step++;
        state.epoch = state.global_step / epochSteps;

        // Only now: a step that is stopped half-way is taken again as a whole.
        const stepMeans = new MetricMeans();
        const now: Metrics = {};
        if (taken instanceof WrpoError) {
          if (++skippedInARow === MOST_SKIPPED) throw taken;
          say(taken.message.replace(/^stopped at/, 'skipped'));
          state.skipped_steps = (state.skipped_steps ?? 0) + 1;
        } else {
          skippedInARow = 0;
          for (const example of taken.examples) for (const to of [stepMeans, means]) to.add(example, terms);
          rate.add(taken.tokens);
          Object.assign(now, { grad_norm: taken.gradNorm, learning_rate: taken.learningRate });
        }
        if (args.nonFinite === 'skip') now.skipped_steps = state.skipped_steps ?? 0;
        if (run.usesAlpha) now.cur_alpha = this.#alpha;
        const metrics: Metrics = { ...stepMeans.means(), ...now };
        lossSum += metrics.loss ?? 0;
        bar.update(state.global_step, { ...metrics, tokens_per_second: rate.perSecond() });

        if (due(args.loggingSteps) || state.global_step === total) {
          const cost = { tokens_per_second: rate.perSecond(), peak_memory_bytes: model.memory().peak };
          this.#note(log.add(state, { ...means.means(), ...now, ...cost }));
          means.reset();
          rate.reset();
        }
        await rate.without(evaluateAndSave);
        const result = {
          step: state.global_step,
          totalSteps: total,
          tokens: 'tokens' in taken ? taken.tokens : 0,
          metrics,
        };
        this.emit('step', result);
        yield result;
      }
      this.#alpha = args.alpha;
      if (run.eval && (await evaluate(run.eval))) {
        if (saved !== total) await save();
        await writing;
        // What was the best before may go.
        pruneCheckpoints(state.best_model_checkpoint!, args.saveTotalLimit, state.best_model_checkpoint);
      }
      await writing;
    } catch (error) {
      if (signal?.aborted && error === signal.reason) {
        if (state.global_step > 0 && saved !== state.global_step) await save();
        await writing;
      }
      throw error;
    } finally {
      bar.stop();
      await writing?.catch(() => {});
      await optimizer.close();
    }
    if (args.loadBestModelAtEnd) await loadBest(model, state, say);
    this.#last = { ...this.#last, train_loss: lossSum / (total - (state.skipped_steps ?? 0)) };
    this.#step = state.global_step;
    await this.saveModel();
    writeFileAtomic(join(args.outputDir, 'trainer_state.json'), `${JSON.stringify(state, null, 1)}\n`);
  }

  /** Metrics on the evaluation set (`eval_…`), with the final alpha and, beside it, the current one. */
  async evaluate(): Promise<Metrics> {
    const run = await this.#prepare();
    if (!run.eval) throw new WrpoError('ERR_CONFIG', 'evaluate() needs an evalDataset');
    await this.#fillReference(run);
    return this.#evaluate(run, run.eval);
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

  async #fillReference(run: Prepared, signal?: AbortSignal): Promise<void> {
    const began = performance.now();
    const rows = await fillReference(run, this.args, signal);
    if (rows > 0) this.emit('reference', { rows, seconds: (performance.now() - began) / 1000 });
  }

  #termsAt(run: Prepared, step: number, total: number): Terms {
    this.#alpha = alphaAt(step, total, this.args.alpha, this.args.isDynamic);
    return run.termsAt(this.#alpha);
  }

  /** Which rows make up a step's global batch. */
  #batchIndices(rows: number, globalBatch: number, epochSteps: number, step: number): number[] {
    const order = epochOrder(rows, this.args.shuffle, this.args.seed, Math.floor(step / epochSteps));
    const start = (step % epochSteps) * globalBatch;
    return [...order.subarray(start, start + globalBatch)];
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

const say = (line: string) => process.stderr.write(`${line}\n`);
