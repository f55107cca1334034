/** The work of a fusion's stages: each kind of stage is a call of what samples, scores, selects, trains or compares. */
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { WrpoError } from '../errors.js';
import type { TrainingArgsInput } from '../train/args.js';
import { listCheckpoints } from '../train/checkpoint.js';
import { Trainer } from '../train/trainer.js';
import { type Compared, compareModels, type HeldOut } from './comparison.js';
import type { FusionConfig, RunInput } from './config.js';
import type { FuseOptions } from './fuse.js';
import { Hashes, modelFiles } from './hashes.js';
import { writeLogProbs } from './log-probs.js';
import { promptsOf, sampleModels } from './models.js';
import { readPrompts } from './prompts.js';
import { type Selection, selectRows } from './quadruples.js';
import { decidingScorer, ruleOf } from './rule.js';
import { isLocal, type LocalConfig, local, type SourceConfig } from './schema.js';
import { openAnswers, type Scorer, scoreModel } from './score.js';
import { scorerOf } from './scorers.js';
import { argsOf, flat, samplingSettings, settingsOf, trainingSettings } from './settings.js';
import { shardFiles } from './shard.js';
import { splitPrompts } from './split.js';
import type { Inputs, Stage } from './stages.js';
import { Store } from './store.js';

/** What a stage comes after; see `Stage`. */
type Order = Pick<Stage, 'reads' | 'after'>;

interface NamedScorer {
  settings: Inputs;
  open(): Promise<Scorer>;
}

export class Work {
  readonly hashes: Hashes;
  /** The model that is fused into, as a directory or a hub id. */
  readonly target: string;
  /** Where preferences are learnt from, and the reference: Target-SFT, or the target. */
  readonly start: string;
  /** What is asked for y_wt and y_l. */
  readonly asked: SourceConfig;
  readonly #scorers: Map<string, NamedScorer>;
  readonly #deciding: string;
  readonly #say: (line: string) => void;

  /** Throws ERR_CONFIG when something is missing that no stage can do without. */
  constructor(
    readonly config: FusionConfig,
    readonly options: FuseOptions,
  ) {
    const { modelNameOrPath, outputDir, sources, sft, train } = config;
    const missing = (what: string): never => {
      throw new WrpoError('ERR_CONFIG', `a fusion needs ${what}`);
    };
    if (sources.length === 0) missing('sources: models that answer its prompts');
    if (Object.keys(train).length === 0) missing('train: at least one run, such as wrpo: {loss_type: wrpo}');
    this.target = modelNameOrPath ?? missing('model_name_or_path: the model that is fused into');
    this.start = sft === undefined ? this.target : join(outputDir, 'sft');
    this.asked = askedOf(config, this.start);
    this.hashes = new Hashes(join(outputDir, 'stages', 'hashes.json'));
    this.#say = options.say ?? (() => {});
    this.#scorers = this.#namedScorers();
    this.#deciding = decidingScorer(
      config,
      (options.scorers ?? []).map(({ name }) => name),
    );
  }

  /** Answers of these models, into the store. */
  sampling(name: string, models: readonly SourceConfig[], order: Order): Stage {
    const { config, hashes } = this;
    const { outputDir, sources } = config;
    const ofSources = models.every((model) => sources.includes(model));
    return {
      ...{ name, ...order },
      settings: async () => ({
        ...(await samplingSettings(config, models, hashes, this.#say)),
        ...(ofSources ? {} : await this.#weightsOfStart()),
      }),
      run: async (signal) => {
        const open = ofSources ? () => Store.create(outputDir, promptsOf(config, this.#say)) : this.#openStore;
        const chosen = models.map((source) => ({ source, isTarget: !ofSources }));
        const progress = this.#counter(name);
        await sampleModels(open, config, chosen, {
          ...{ signal, say: this.#say, onOpen: progress.expect, onPrompt: () => progress.add(1) },
          onModel: ({ name: model }, { prompts, samples, failed, cut }) => {
            const less = [failed > 0 && `${failed} prompts failed`, cut > 0 && `${cut} samples cut`].filter(Boolean);
            this.#say(`${model}: ${[`${samples} samples of ${prompts} prompts`, ...less].join(', ')}`);
          },
        });
        const files = models.map((model) => `samples/${model.name}.jsonl`);
        return ofSources ? ['prompts.jsonl', ...files] : files;
      },
      forget: () => {
        for (const model of models) setAside(outputDir, join('samples', model.name));
        if (ofSources) setAside(outputDir, 'prompts');
      },
    };
  }

  /** Scores of their answers. */
  scoring(name: string, models: readonly SourceConfig[], order: Order): Stage {
    const scorers = [...this.#scorers.keys()];
    return {
      ...{ name, ...order },
      settings: () => Object.assign({}, ...[...this.#scorers.values()].map(({ settings }) => settings)),
      run: async (signal) => {
        const store = await this.#openStore();
        const progress = this.#counter(name);
        for (const scorer of scorers) {
          await this.#withScorer(scorer, (open) => this.#score(store, models, open, progress, signal));
        }
        return scorers.flatMap((scorer) => models.map((model) => `scores/${scorer}/${model.name}.jsonl`));
      },
      forget: () => {
        for (const scorer of scorers) {
          for (const model of models) setAside(this.config.outputDir, join('scores', scorer, model.name));
        }
      },
    };
  }

  /** Rows to train on: of y_ws alone, or with y_wt and y_l of the target. */
  selecting(name: string, order: Order, { directory, selection, isTuning = false }: Selecting): Stage {
    const path = this.path(directory);
    const rule = ruleOf(this.config, {
      ...{ target: isTuning ? undefined : this.asked.name, selection, scorer: this.#deciding },
    });
    return {
      ...{ name, ...order, isView: true, settings: () => flat(rule) },
      run: async () => {
        const store = await this.#openStore();
        const progress = this.#counter(name);
        progress.expect(store.order.ids.length);
        const selected = selectRows(store, { ...rule, directory: path, onPrompt: () => progress.add(1) });
        const part = isTuning ? 'sft' : 'train';
        requireRows(selected, part, path);
        this.#say(describeSelection(selected, part));
        const isRows = (file: string) => /\.(jsonl|parquet)$/.test(file);
        return readdirSync(path)
          .filter(isRows)
          .map((file) => `${directory}/${file}`);
      },
      forget: () => rmSync(path, { recursive: true, force: true }),
    };
  }

  /** Target-SFT. */
  tuning(name: string, order: Order, input: RunInput): Stage {
    const makeTrainer = () => this.#trainer('sft', this.target, input, this.#rows('selected-sft', 'sft'));
    return this.#training(name, order, 'sft', input, makeTrainer, () => this.#weightsOfTarget());
  }

  /** One run that learns preferences. */
  learning(run: string, order: Order): Stage {
    const input = this.config.train[run]!;
    const makeTrainer = () => this.#preferenceTrainer(run);
    return this.#training(`train/${run}`, order, `train/${run}`, input, makeTrainer, () => this.#weightsOfStart());
  }

  /** The log-probs of all runs' rows under the model that they start from. */
  reference(name: string, order: Order): Stage {
    const { train } = this.config;
    const path = this.path('reference');
    return {
      ...{ name, ...order, isView: true },
      settings: async () => ({ runs: JSON.stringify(train), ...(await this.#weightsOfStart()) }),
      run: async (signal) => {
        mkdirSync(path, { recursive: true });
        for (const run of Object.keys(train)) {
          const trainer = this.#preferenceTrainer(run);
          try {
            await trainer.computeReference({ signal });
          } finally {
            await trainer.close();
          }
        }
        return readdirSync(path).map((file) => `reference/${file}`);
      },
      forget: () => rmSync(path, { recursive: true, force: true }),
    };
  }

  /** What the models answer to held-out prompts; absent where there are none. */
  comparing(name: string, order: Order): Stage | undefined {
    const { config, hashes } = this;
    const { evaluate, sft, sources, train } = config;
    if (evaluate === false) return undefined;
    const heldOut = this.#heldOut(evaluate);
    if (!heldOut) return undefined;
    const { settings } = this.#scorers.get(this.#deciding)!;
    const ours: Compared[] = [
      { name: 'target', source: localModel('target', this.target) },
      ...(sft === undefined ? [] : [{ name: 'target-sft', source: localModel('target-sft', this.start) }]),
      ...Object.keys(train).map((run) => ({ name: run, source: localModel(run, this.path('train', run)) })),
    ];
    // Servers may be long gone.
    const runHere = sources.filter(isLocal);
    const [target, ...others] = ours;
    const compared = [target!, ...runHere.map((source) => ({ name: source.name, source })), ...others];
    return {
      ...{ name, ...order, isView: true },
      settings: async () => ({
        ...flat({
          evaluate: {
            ...evaluate,
            prompts: evaluate.prompts && ((await hashes.of(evaluate.prompts)) ?? evaluate.prompts),
          },
        }),
        ...(await samplingSettings(config, runHere, hashes, this.#say)),
        ...(await this.#weightsOfTarget()),
        ...{ ...settings, scorer: this.#deciding },
      }),
      run: async (signal) => {
        const directory = this.path('evaluation');
        const progress = this.#counter(name);
        const options = { signal, say: this.#say, onOpen: progress.expect, onPrompt: () => progress.add(1) };
        await this.#withScorer(this.#deciding, (scorer) =>
          compareModels(directory, compared, heldOut, scorer, config, hashes, options),
        );
        const args = argsOf(config, Object.values(train).find(({ lossType }) => lossType !== 'sft') ?? {});
        const data = this.#rows('selected', 'train');
        await writeLogProbs(join(directory, 'logps.jsonl'), data, ours, { args, signal, say: this.#say });
        return ['results.json', 'answers.jsonl', 'logps.jsonl'].map((file) => `evaluation/${file}`);
      },
      forget: () => rmSync(this.path('evaluation'), { recursive: true, force: true }),
    };
  }

  path(...parts: string[]): string {
    return join(this.config.outputDir, ...parts);
  }

  readonly #openStore = async () => Store.open(this.config.outputDir);

  async #score(
    store: Store,
    models: readonly SourceConfig[],
    scorer: Scorer,
    progress: Counter,
    signal: AbortSignal,
  ): Promise<void> {
    const all: number[] = [];
    let count = 0;
    for (const { name } of models) {
      progress.expect(openAnswers(store, name, scorer.name).answers);
      const totals = await scoreModel(store, name, scorer, { signal, onScored: progress.add });
      const failed = totals.failed > 0 ? `, ${totals.failed} without` : '';
      this.#say(`${name}: ${totals.scores} scores by ${scorer.name}, mean ${totals.mean.toFixed(4)}${failed}`);
      count += totals.scores;
      all.push(...[totals.lowest ?? [], totals.highest ?? []].flat());
    }
    if (count > 1 && Math.min(...all) === Math.max(...all)) {
      const names = models.map(({ name }) => name).join(', ');
      const what = `${scorer.name}: all ${count} scores of ${names} are ${all[0]}`;
      throw new WrpoError('ERR_DATA', `${what}; a constant reward tells no answer from another`);
    }
  }

  #training(
    name: string,
    order: Order,
    directory: string,
    input: RunInput,
    makeTrainer: () => Trainer,
    weights: () => Promise<Inputs>,
  ): Stage {
    const path = this.path(directory);
    return {
      ...{ name, ...order },
      settings: async () => ({ ...trainingSettings(this.config, input), ...(await weights()) }),
      run: async (signal) => {
        const trainer = makeTrainer();
        trainer.on('log', (line) => this.options.onLog?.(name, line));
        try {
          const resumeFromCheckpoint = listCheckpoints(path).length > 0;
          const { globalStep, trainingLoss } = await trainer.train({ resumeFromCheckpoint, signal });
          this.#say(`${name}: ${globalStep} steps, loss ${trainingLoss.toFixed(4)}`);
        } finally {
          await trainer.close();
        }
        // Where none were asked for, they are of a run that was stopped.
        if (input.saveStrategy === undefined && input.saveSteps === undefined) {
          for (const checkpoint of listCheckpoints(path)) rmSync(checkpoint, { recursive: true, force: true });
        }
        return modelFiles(path).map((file) => `${directory}/${file}`);
      },
      forget: () => rmSync(path, { recursive: true, force: true }),
    };
  }

  #preferenceTrainer(run: string): Trainer {
    const { selection, ...input } = this.config.train[run]!;
    const directory = selectedDirectory(selection);
    const held = this.#rows(directory, 'test');
    const evalData = existsSync(held) ? held : undefined;
    return this.#trainer(`train/${run}`, this.start, input, this.#rows(directory, 'train'), evalData);
  }

  #trainer(directory: string, model: string, input: RunInput, trainDataset: string, evalDataset?: string): Trainer {
    const args = { seed: this.config.seed, ...input, outputDir: this.path(directory) } as TrainingArgsInput;
    return new Trainer({ model, trainDataset, evalDataset, referenceDir: this.path('reference'), args });
  }

  #rows(directory: string, part: string): string {
    return this.path(directory, `${part}.${this.config.format}`);
  }

  async #weightsOfTarget(): Promise<Inputs> {
    return { 'model weights': await this.hashes.ofModel(this.target, this.#say) };
  }

  /** Those of Target-SFT are among the files of its stage. */
  async #weightsOfStart(): Promise<Inputs> {
    return this.config.sft === undefined ? this.#weightsOfTarget() : {};
  }

  #heldOut(evaluate: Exclude<FusionConfig['evaluate'], false>): HeldOut | undefined {
    const { config } = this;
    const { prompts, split, temperature, maxTokens = config.maxTokens } = evaluate;
    const settings = { temperature, maxTokens };
    if (prompts !== undefined) return { ...settings, prompts: () => readPrompts(prompts, { split, say: this.#say }) };
    if (config.heldOut === 0) return undefined;
    return {
      ...settings,
      *prompts() {
        const store = Store.open(config.outputDir);
        const parts = splitPrompts(store.order.ids, config);
        let index = 0;
        for (const prompt of store.prompts()) if (parts[index++] === 'test') yield prompt;
      },
    };
  }

  /** One that was given in the program stays open. */
  async #withScorer<T>(name: string, use: (scorer: Scorer) => Promise<T>): Promise<T> {
    const scorer = await this.#scorers.get(name)!.open();
    try {
      return await use(scorer);
    } finally {
      if (!this.options.scorers?.includes(scorer)) await scorer.close?.();
    }
  }

  /** The scorers of the run file and those given in the program, or of these the one that is to decide. */
  #namedScorers(): Map<string, NamedScorer> {
    const { config } = this;
    const all = new Map<string, NamedScorer>();
    for (const one of config.scorers) {
      all.set(one.name, { settings: settingsOf(one), open: () => scorerOf(one, config, this.#say) });
    }
    for (const scorer of this.options.scorers ?? []) {
      all.set(scorer.name, { settings: flat(scorer.depends, `${scorer.name}.`), open: async () => scorer });
    }
    const { scorer: named } = config;
    if (named === undefined) return all;
    const only = all.get(named);
    if (only) return new Map([[named, only]]);
    const there = [...all.keys()].join(', ') || 'none';
    throw new WrpoError('ERR_CONFIG', `there is no scorer "${named}"; there is ${there}`);
  }

  #counter(stage: string): Counter {
    const { onProgress } = this.options;
    const at = { stage, done: 0, total: 0 };
    return {
      expect(count) {
        at.total += count;
        onProgress?.({ ...at });
      },
      add(count) {
        at.done += count;
        onProgress?.({ ...at });
      },
    };
  }
}

interface Counter {
  expect(count: number): void;
  add(count: number): void;
}

interface Selecting {
  directory: string;
  /** One of the run file's `selections`; default: the first. */
  selection?: string;
  isTuning?: boolean;
}

/** Where a selection's rows are. */
export const selectedDirectory = (selection?: string): string =>
  selection === undefined ? 'selected' : `selections/${selection}`;

const localModel = (name: string, model: string): LocalConfig => local.parse({ name, model });

/** The target of the run file or, where there is none, the model that preferences are learnt from. */
function askedOf({ target, targets, sft }: FusionConfig, start: string): SourceConfig {
  if (target === undefined && targets.length > 1) {
    const names = targets.map(({ name }) => name).join(', ');
    throw new WrpoError('ERR_CONFIG', `name whose answers y_wt and y_l are with "target": there is ${names}`);
  }
  const named = targets.find(({ name }) => name === (target ?? name));
  return named ?? localModel(sft === undefined ? 'target' : 'target-sft', start);
}

function requireRows({ rows, dropped }: Selection, part: 'sft' | 'train', directory: string): void {
  if (rows[part] > 0) return;
  const reasons = Object.entries(dropped).map(([reason, count]) => `${count} × ${reason}`);
  const why = reasons.length > 0 ? reasons.join(', ') : 'no prompts fall to it';
  throw new WrpoError('ERR_DATA', `${directory}: there is nothing to train on: ${why}`);
}

function describeSelection({ rows, dropped, shares }: Selection, part: 'sft' | 'train'): string {
  const from = Object.entries(shares).map(([name, share]) => `${name} ${share.toFixed(1)} %`);
  const lost = Object.entries(dropped).map(([reason, count]) => `${count} without a row (${reason})`);
  return [`${rows[part]} rows, y_ws from ${from.join(', ')}`, ...lost].join('; ');
}

/** Moves a shard to `superseded`: it was paid for. */
function setAside(directory: string, shard: string): void {
  const names = shardFiles(`${shard}.jsonl`);
  const are = (place: string) => names.filter((name) => existsSync(join(place, name)));
  const found = are(directory);
  if (found.length === 0) return;
  const place = (number: number) => join(directory, 'superseded', String(number));
  let number = 1;
  while (are(place(number)).length > 0) number++;
  mkdirSync(dirname(join(place(number), shard)), { recursive: true });
  for (const name of found) renameSync(join(directory, name), join(place(number), name));
}
