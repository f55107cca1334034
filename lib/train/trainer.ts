/** The training loop: batches, accumulate, step, log, save. */
import { EventEmitter } from 'node:events';
import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { appendLines, writeError, writeFileAtomic } from '../data/files.js';
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import { AdamW } from './adamw.js';
import { evaluates, refuseLossKeys, resolveArgs, type TrainingArgs, type TrainingArgsInput } from './args.js';
import { looksForBest, noteBest } from './best.js';
import {
  type Checkpoint,
  listCheckpoints,
  pruneCheckpoints,
  readCheckpoint,
  recoverCheckpoints,
  saveCheckpoint,
  type TrainerState,
  verifyCheckpoint,
} from './checkpoint.js';
import { evaluateSplit } from './evaluate.js';
import { MetricMeans, type Metrics, Rate } from './metrics.js';
import type { Terms } from './objective.js';
import { type DataOptions, fillReference, type Prepared, prepare, type Split } from './prepare.js';
import { progressBar } from './progress.js';
import { resumeKey } from './resume.js';
import { describeRun, VERSION } from './run.js';
import { alphaAt, epochOrder, intervalOf, stepsPerEpoch, totalSteps } from './schedule.js';
import { accumulateBatch, naming } from './step.js';

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
    // The step of the latest checkpoint in `outputDir`.
    let saved: number | undefined;
    const save = async () => {
      const dir = await saveCheckpoint(args.outputDir, {
        ...{ model, tokenizer: run.tokenizer, optimizer, state, resume, lossSum },
        ...{ wrpo: VERSION, pending: means.toJSON() },
      });
      saved = state.global_step;
      pruneCheckpoints(dir, args.saveTotalLimit, state.best_model_checkpoint);
      this.emit('save', dir);
    };

    if (checkpoint) {
      await model.loadWeights(checkpoint.dir);
      await optimizer.load(checkpoint.dir, checkpoint.step);
      ({ state, lossSum } = checkpoint);
      means.restore(checkpoint.pending);
      this.#last = state.log_history.at(-1) ?? {};
      if (resolve(dirname(checkpoint.dir)) === resolve(args.outputDir)) saved = checkpoint.step;
      this.#forgetMissingBest(state, checkpoint);
    }
    this.#rewindMetrics(state);

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
      this.#log(state, metrics);
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
        const step = state.global_step;
        const terms = this.#termsAt(run, step, total);
        const indices = this.#batchIndices(rows.length, globalBatch, epochSteps, step);
        const { examples, tokens } = await accumulateBatch(run, indices, terms, args, step, signal);
        const update = await naming(
          optimizer.step(),
          step,
          indices.map((i) => rows[i]!),
        );
        state.global_step++;
        state.epoch = state.global_step / epochSteps;

        // Only now: a step that is stopped half-way is taken again as a whole.
        const stepMeans = new MetricMeans();
        for (const example of examples) for (const to of [stepMeans, means]) to.add(example, terms);
        rate.add(tokens);
        const now: Metrics = { grad_norm: update.gradNorm, learning_rate: update.learningRate };
        if (run.usesAlpha) now.cur_alpha = this.#alpha;
        const metrics: Metrics = { ...stepMeans.means(), ...now };
        lossSum += metrics.loss!;
        bar.update(state.global_step, { ...metrics, tokens_per_second: rate.perSecond() });

        if (due(args.loggingSteps) || state.global_step === total) {
          const cost = { tokens_per_second: rate.perSecond(), peak_memory_bytes: model.memory().peak };
          this.#log(state, { ...means.means(), ...now, ...cost });
          means.reset();
          rate.reset();
        }
        await rate.without(evaluateAndSave);
        const result = { step: state.global_step, totalSteps: total, tokens, metrics };
        this.emit('step', result);
        yield result;
      }
      this.#alpha = args.alpha;
      if (run.eval && (await evaluate(run.eval))) {
        if (saved !== total) await save();
        // The one that was the best before may go.
        else pruneCheckpoints(state.best_model_checkpoint!, args.saveTotalLimit, state.best_model_checkpoint);
      }
    } catch (error) {
      if (signal?.aborted && error === signal.reason && state.global_step > 0 && saved !== state.global_step)
        await save();
      throw error;
    } finally {
      bar.stop();
      await optimizer.close();
    }
    if (args.loadBestModelAtEnd) await this.#loadBest(model, state);
    this.#last = { ...this.#last, train_loss: lossSum / total };
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
      try {
        mkdirSync(this.args.outputDir, { recursive: true });
      } catch (cause) {
        throw writeError(this.args.outputDir, cause);
      }
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

  /** Makes the best evaluation's weights the model's, unless they are. */
  async #loadBest(model: Model, state: TrainerState): Promise<void> {
    const { best_model_checkpoint: dir, best_metric, best_global_step } = state;
    if (dir === undefined || best_global_step === state.global_step) return;
    await verifyCheckpoint(dir);
    await model.loadWeights(dir);
    say(`the best evaluation (${best_metric}) was after step ${best_global_step}: its model is the result`);
  }

  /** Of a checkpoint that is continued in another place, the best one may have stayed behind. */
  #forgetMissingBest(state: TrainerState, { dir }: Checkpoint): void {
    if (state.best_global_step === undefined) return;
    const name = `checkpoint-${state.best_global_step}`;
    const found = [this.args.outputDir, dirname(dir)]
      .map((where) => join(where, name))
      .find((best) => existsSync(best));
    if (found === undefined) {
      say(`${name}, the best so far, is not there any more: the best is looked for from here on`);
      state.best_metric = undefined;
      state.best_global_step = undefined;
    }
    state.best_model_checkpoint = found;
  }

  #log(state: TrainerState, values: Metrics): void {
    const line = { step: state.global_step, epoch: round(state.epoch, 6), ...values };
    state.log_history.push(line);
    appendLines(join(this.args.outputDir, 'metrics.jsonl'), [JSON.stringify(line)]);
    this.#last = line;
    this.emit('log', line);
  }

  /** Makes the log what it was at the step a run goes on from: a killed run may have logged further. */
  #rewindMetrics({ log_history }: TrainerState): void {
    const lines = log_history.map((line) => `${JSON.stringify(line)}\n`);
    writeFileAtomic(join(this.args.outputDir, 'metrics.jsonl'), lines.join(''));
  }
}

const say = (line: string) => process.stderr.write(`${line}\n`);
const round = (value: number, digits: number) => Number(value.toFixed(digits));
