/** `fuse`: the paper's method from prompts to models, a stage after the other, each done once. */
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { stringify } from 'yaml';
import { makeDirectory, writeFileAtomic } from '../data/files.js';
import { WrpoError } from '../errors.js';
import { resolveArgs, type TrainingArgs, type TrainingArgsInput } from '../train/args.js';
import { listCheckpoints } from '../train/checkpoint.js';
import { snake } from '../train/compat.js';
import type { Metrics } from '../train/metrics.js';
import { locate } from '../train/prepare.js';
import { Trainer } from '../train/trainer.js';
import { type Compared, type ComparisonRow, compareModels, type HeldOut, readComparison } from './comparison.js';
import {
  type FusionConfig,
  type FusionInput,
  isEndpoint,
  isImport,
  local,
  type RunInput,
  resolveFusion,
  type SourceConfig,
} from './config.js';
import { Hashes, modelFiles } from './hashes.js';
import { lock } from './lock.js';
import { writeLogProbs } from './log-probs.js';
import { sampleModels } from './models.js';
import { readPrompts } from './prompts.js';
import { type Selection, selectRows } from './quadruples.js';
import { decidingScorer, ruleOf } from './rule.js';
import { openAnswers, type Scorer, scoreModel } from './score.js';
import { scorerOf } from './scorers.js';
import { splitPrompts } from './split.js';
import { type Inputs, type Stage, type StageRecord, Stages } from './stages.js';
import { Store } from './store.js';

export interface FuseOptions {
  /** Beside those of the configuration; see `functionScorer`. */
  scorers?: readonly Scorer[];
  /** Does this stage and all that follow from it again. What was sampled and scored is moved to `superseded`. */
  from?: string;
  /** Does nothing but these stages. */
  only?: readonly string[];
  /** Stops what goes on, leaving it so that it can be gone on with; rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Takes lines of words. */
  say?: (line: string) => void;
  /** How far a stage is, in prompts or answers. */
  onProgress?: (progress: { stage: string; done: number; total: number }) => void;
  /** A line of a training run's log. */
  onLog?: (stage: string, line: Metrics) => void;
}

export interface FuseResult {
  directory: string;
  stages: StageRecord[];
  /** Of the last stage, if it is done. */
  results?: ComparisonRow[];
}

/**
 * Fuses models into one, in `outputDir`. A stage is passed over when nothing that it depends on has changed. Throws
 * ERR_CONFIG on what cannot be meant, ERR_CHECKPOINT naming what changed since a stage was done, and what stages throw:
 * whatever is finished stays, and the same call goes on from there.
 */
export function fuse(config: FusionInput, options: FuseOptions = {}): Promise<FuseResult> {
  const where = (...path: PropertyKey[]) => ['config', ...path].map(String).join('.');
  return runFusion(resolveFusion(config as Record<string, unknown>, where), options);
}

/** The same, of a configuration that is checked. */
export async function runFusion(config: FusionConfig, options: FuseOptions = {}): Promise<FuseResult> {
  const { from, only, say = () => {}, signal = new AbortController().signal } = options;
  const stages = stagesOf(config, options);
  const asked = only?.map((name) => stages.named(name, '--only').name);
  const again = from === undefined ? new Set<string>() : stages.from(from);
  makeDirectory(config.outputDir);
  const unlock = lock(join(config.outputDir, 'fuse.lock'), config.outputDir);
  try {
    writeFileAtomic(join(config.outputDir, 'config.yaml'), stringify(toFile(config)));
    stages.forget(again);
    for (const stage of stages.stages) {
      signal.throwIfAborted();
      if (asked && !asked.includes(stage.name)) continue;
      const state = await stages.stateOf(stage);
      if (state === 'done') say(`${stage.name}: done before`);
      else {
        say(`${stage.name}${state === 'changed' ? ': again, since what it is made from has changed' : ''}`);
        await stages.do(stage, signal);
      }
    }
  } finally {
    unlock();
  }
  const records = stages.stages.flatMap(({ name }) => stages.record(name) ?? []);
  const evaluated = records.some(({ stage }) => stage === 'evaluate');
  return {
    ...{ directory: config.outputDir, stages: records },
    ...(evaluated && { results: readComparison(join(config.outputDir, 'evaluation')) }),
  };
}

/** The stages of a configuration, in their order. Throws ERR_CONFIG when it says too little for them. */
export function stagesOf(config: FusionConfig, options: FuseOptions = {}): Stages {
  const { say = () => {}, onProgress, onLog } = options;
  const { outputDir, sources, sft, train } = config;
  const hashes = new Hashes(join(outputDir, 'stages', 'hashes.json'));
  const scorers = namedScorers(config, options.scorers ?? []);
  const scorer = decidingScorer(
    config,
    (options.scorers ?? []).map(({ name }) => name),
  );
  const path = (...parts: string[]) => join(outputDir, ...parts);
  const target = requireKeys(config);
  /** Where preferences are learnt from, and what it is asked as. */
  const start = sft === undefined ? target : path('sft');
  const asked = targetOf(config, start);
  const openStore = async () => Store.open(outputDir);

  const counting = (stage: string) => {
    const at = { stage, done: 0, total: 0 };
    const tell = () => onProgress?.({ ...at });
    return {
      expect(count: number) {
        at.total += count;
        tell();
      },
      add(count: number) {
        at.done += count;
        tell();
      },
    };
  };

  const sampling = (
    stage: string,
    models: SourceConfig[],
    rest: Pick<Stage, 'reads' | 'after' | 'settings'>,
  ): Stage => ({
    name: stage,
    ...rest,
    async run(signal) {
      const news = counting(stage);
      const chosen = models.map((source) => ({ source, isTarget: !sources.includes(source) }));
      const open = stage === 'sample-sources' ? () => Store.create(outputDir, promptsOf(config, say)) : openStore;
      await sampleModels(open, config, chosen, {
        ...{ signal, say, onOpen: news.expect, onPrompt: () => news.add(1) },
        onModel({ name }, { prompts, samples, failed, cut }) {
          const less = [failed > 0 && `${failed} prompts failed`, cut > 0 && `${cut} samples cut`].filter(Boolean);
          say(`${name}: ${[`${samples} samples of ${prompts} prompts`, ...less].join(', ')}`);
        },
      });
      const files = models.map(({ name }) => `samples/${name}.jsonl`);
      return stage === 'sample-sources' ? ['prompts.jsonl', ...files] : files;
    },
    forget: () => {
      for (const { name } of models) setAside(outputDir, join('samples', name));
      if (stage === 'sample-sources') setAside(outputDir, 'prompts');
    },
  });

  const scoring = (stage: string, models: SourceConfig[], reads: string[]): Stage => ({
    name: stage,
    reads,
    settings: () => Object.assign({}, ...[...scorers.values()].map(({ settings }) => settings)),
    async run(signal) {
      const news = counting(stage);
      const store = await openStore();
      for (const [name, { open }] of scorers) {
        const scorer = await open(say);
        let lowest = Number.POSITIVE_INFINITY;
        let highest = Number.NEGATIVE_INFINITY;
        let scores = 0;
        try {
          for (const model of models) {
            news.expect(openAnswers(store, model.name, name).answers);
            const totals = await scoreModel(store, model.name, scorer, { signal, onScored: news.add });
            lowest = Math.min(lowest, totals.lowest ?? lowest);
            highest = Math.max(highest, totals.highest ?? highest);
            scores += totals.scores;
            const failed = totals.failed > 0 ? `, ${totals.failed} without` : '';
            say(`${model.name}: ${totals.scores} scores by ${name}, mean ${totals.mean.toFixed(4)}${failed}`);
          }
        } finally {
          await scorer.close?.();
        }
        if (scores > 1 && lowest === highest) {
          const what = `${name}: all ${scores} scores of ${models.map((one) => one.name).join(', ')} are ${lowest}`;
          throw new WrpoError('ERR_DATA', `${what}; a reward that is constant tells no answer from another`);
        }
      }
      return [...scorers.keys()].flatMap((name) => models.map((model) => `scores/${name}/${model.name}.jsonl`));
    },
    forget: () => {
      for (const name of scorers.keys()) {
        for (const model of models) setAside(outputDir, join('scores', name, model.name));
      }
    },
  });

  const selecting = (stage: string, directory: string, targetName: string | undefined, reads: string[]): Stage => ({
    name: stage,
    reads,
    isView: true,
    settings: () => flat(ruleOf(config, targetName, scorer) as unknown as Record<string, unknown>),
    async run() {
      const news = counting(stage);
      const store = await openStore();
      news.expect(store.order.ids.length);
      const rule = ruleOf(config, targetName, scorer);
      const selection = selectRows(store, { ...rule, directory: path(directory), onPrompt: () => news.add(1) });
      const part = targetName === undefined ? 'sft' : 'train';
      requireRows(selection, part, path(directory));
      say(describeSelection(selection, part));
      return readdirSync(path(directory)).map((name) => `${directory}/${name}`);
    },
    forget: () => rmSync(path(directory), { recursive: true, force: true }),
  });

  const trainerOf = (directory: string, model: string, input: RunInput, data: string, evalData?: string) =>
    new Trainer({
      ...{ model, trainDataset: data, evalDataset: evalData, referenceDir: path('reference') },
      args: { seed: config.seed, ...input, outputDir: path(directory) } as TrainingArgsInput,
    });
  const rowsOf = (directory: string, part: string) => path(directory, `${part}.${config.format}`);
  const preferenceTrainer = (name: string) => {
    const held = rowsOf('selected', 'test');
    const data = rowsOf('selected', 'train');
    return trainerOf(`train/${name}`, start, train[name]!, data, existsSync(held) ? held : undefined);
  };

  const training = (
    stage: string,
    directory: string,
    input: RunInput,
    makeTrainer: () => Trainer,
    rest: Pick<Stage, 'reads' | 'after'> & { weights?: () => Promise<Inputs> },
  ): Stage => ({
    ...{ name: stage, reads: rest.reads, after: rest.after },
    settings: async () => ({ ...trainingSettings(config, input), ...(await rest.weights?.()) }),
    async run(signal) {
      const trainer = makeTrainer();
      trainer.on('log', (line) => onLog?.(stage, line));
      try {
        const resumes = listCheckpoints(path(directory)).length > 0;
        const { globalStep, trainingLoss } = await trainer.train({ resumeFromCheckpoint: resumes, signal });
        say(`${stage}: ${globalStep} steps, loss ${trainingLoss.toFixed(4)}`);
      } finally {
        await trainer.close();
      }
      // Where none were asked for, they are of a run that was stopped.
      if (input.saveStrategy === undefined && input.saveSteps === undefined) {
        for (const checkpoint of listCheckpoints(path(directory))) rmSync(checkpoint, { recursive: true, force: true });
      }
      return modelFiles(path(directory)).map((name) => `${directory}/${name}`);
    },
    forget: () => rmSync(path(directory), { recursive: true, force: true }),
  });

  const weightsOfTarget = async () => ({ 'model weights': await hashes.ofModel(await locate(target, { say })) });
  const learnsFrom = sft === undefined ? [] : ['sft'];
  const runs = Object.keys(train);
  const ofStart = sft === undefined ? weightsOfTarget : undefined;

  const list: Stage[] = [
    // 1. Every source answers every prompt, and the best answer is y_ws.
    sampling('sample-sources', sources, { reads: [], settings: () => samplingSettings(config, sources, hashes, say) }),
    scoring('score-sources', sources, ['sample-sources']),
  ];
  // 2. The target is fine-tuned on y_ws of a part of the prompts: Target-SFT, which is the reference as well.
  if (sft !== undefined) {
    list.push(
      selecting('select-sft', 'selected-sft', undefined, ['sample-sources', 'score-sources']),
      training('sft', 'sft', sft, () => trainerOf('sft', target, sft, rowsOf('selected-sft', 'sft')), {
        reads: ['select-sft'],
        weights: weightsOfTarget,
      }),
    );
  }
  // 3. It answers the other prompts: of its answers the best is y_wt and the worst y_l.
  list.push(
    sampling('sample-target', [asked], {
      ...{ reads: learnsFrom, after: ['sample-sources'] },
      settings: async () => ({ ...(await samplingSettings(config, [asked], hashes, say)), ...(await ofStart?.()) }),
    }),
    scoring('score-target', [asked], ['sample-target']),
    selecting('select', 'selected', asked.name, ['sample-sources', 'score-sources', 'sample-target', 'score-target']),
  );
  // 4. Preferences are learnt from the quadruples, by each objective that is asked for.
  list.push({
    name: 'reference',
    reads: ['select', ...learnsFrom],
    isView: true,
    settings: async () => ({ runs: JSON.stringify(train), ...(await ofStart?.()) }),
    async run(signal) {
      mkdirSync(path('reference'), { recursive: true });
      for (const name of runs) {
        const trainer = preferenceTrainer(name);
        try {
          await trainer.computeReference({ signal });
        } finally {
          await trainer.close();
        }
      }
      return readdirSync(path('reference')).map((name) => `reference/${name}`);
    },
    forget: () => rmSync(path('reference'), { recursive: true, force: true }),
  });
  for (const name of runs) {
    list.push(
      training(`train/${name}`, `train/${name}`, train[name]!, () => preferenceTrainer(name), {
        reads: ['select', ...learnsFrom],
        after: ['reference'],
        weights: ofStart,
      }),
    );
  }
  const { evaluate } = config;
  const heldOut = evaluate === false ? undefined : heldOutOf(config, evaluate);
  if (heldOut) {
    const compared: Compared[] = [
      { name: 'target', source: localModel('target', target) },
      ...sources
        .filter((source) => !isImport(source) && !isEndpoint(source))
        .map((source) => ({ name: source.name, source })),
      ...(sft === undefined ? [] : [{ name: 'target-sft', source: localModel('target-sft', start) }]),
      ...runs.map((name) => ({ name, source: localModel(name, path('train', name)) })),
    ];
    list.push({
      name: 'evaluate',
      reads: ['select', ...learnsFrom, ...runs.map((name) => `train/${name}`)],
      isView: true,
      settings: async () => ({
        ...flat({ evaluate }),
        ...(evaluate !== false && evaluate.prompts && { 'evaluate.prompts': await hashes.of(evaluate.prompts) }),
        ...(await weightsOfTarget()),
        ...(await samplingSettings(config, sources, hashes, say)),
        ...scorers.get(scorer)!.settings,
      }),
      async run(signal) {
        const news = counting('evaluate');
        const options = { signal, say, onOpen: news.expect, onPrompt: () => news.add(1) };
        const directory = path('evaluation');
        const open = await scorers.get(scorer)!.open(say);
        try {
          await compareModels(directory, compared, heldOut, open, config, hashes, options);
        } finally {
          await open.close?.();
        }
        const models = compared.filter(({ name }) => !sources.some((source) => source.name === name));
        await writeLogProbs(join(directory, 'logps.jsonl'), rowsOf('selected', 'train'), models, {
          ...{ args: argsOf(config, Object.values(train).find((one) => one.lossType !== 'sft') ?? {}), signal, say },
        });
        return ['results.json', 'answers.jsonl', 'logps.jsonl'].map((name) => `evaluation/${name}`);
      },
      forget: () => rmSync(path('evaluation'), { recursive: true, force: true }),
    });
  }
  return new Stages(outputDir, list, hashes);
}

/** The target's directory or hub id. Throws ERR_CONFIG when something is missing that no stage can do without. */
function requireKeys({ modelNameOrPath, sources, train }: FusionConfig): string {
  const missing = (what: string): never => {
    throw new WrpoError('ERR_CONFIG', `a fusion needs ${what}`);
  };
  if (sources.length === 0) missing('sources: models that answer its prompts');
  if (Object.keys(train).length === 0) missing('train: at least one run, such as wrpo: {loss_type: wrpo}');
  return modelNameOrPath ?? missing('model_name_or_path: the model that is fused into');
}

const localModel = (name: string, model: string): SourceConfig => local.parse({ name, model });

/** What is asked for y_wt and y_l: the target of the configuration or, where there is none, the model itself. */
function targetOf({ target, targets, sft }: FusionConfig, start: string): SourceConfig {
  const named = targets.find(({ name }) => name === target) ?? targets[0];
  if (target === undefined && targets.length > 1) {
    const names = targets.map(({ name }) => name).join(', ');
    throw new WrpoError('ERR_CONFIG', `name whose answers y_wt and y_l are with "target": there is ${names}`);
  }
  return named ?? localModel(sft === undefined ? 'target' : 'target-sft', start);
}

interface NamedScorer {
  settings: Inputs;
  open(say: (line: string) => void): Promise<Scorer>;
}

/** The scorers of the configuration and those given in the program, or the only one of them that is to decide. */
function namedScorers(config: FusionConfig, given: readonly Scorer[]): Map<string, NamedScorer> {
  const all = new Map<string, NamedScorer>();
  for (const one of config.scorers) {
    const settings = flat({ [one.name]: without(one, SERVER_TUNING) });
    all.set(one.name, { settings, open: (say) => scorerOf(one, config, say) });
  }
  for (const scorer of given) {
    const open = async () => ({ ...scorer, close: undefined }); // it is the caller's to close
    all.set(scorer.name, { settings: flat({ [scorer.name]: scorer.depends }), open });
  }
  const { scorer } = config;
  const only = scorer === undefined ? undefined : all.get(scorer);
  if (only) return new Map([[scorer!, only]]);
  if (scorer === undefined) return all;
  throw new WrpoError('ERR_CONFIG', `there is no scorer "${scorer}"; there is ${[...all.keys()].join(', ') || 'none'}`);
}

/** How a server is talked to, which changes nothing in what it says. */
const SERVER_TUNING = [
  'concurrency',
  'timeout',
  'maxRetries',
  'retryDelay',
  'apiKeyEnv',
  'prices',
  'samplesPerRequest',
];
/** What of training's arguments changes no result. */
const WATCHING = [
  'loggingSteps',
  'disableTqdm',
  'saveStrategy',
  'saveSteps',
  'saveTotalLimit',
  'reportTo',
  'outputDir',
];

const without = (value: object, keys: readonly string[]): Record<string, unknown> =>
  Object.fromEntries(Object.entries(value).filter(([key]) => !keys.includes(key)));

/** Values by the path that leads to them, as a run file spells it. */
function flat(value: Record<string, unknown>, prefix = ''): Inputs {
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, one]) => {
      const name = `${prefix}${snake(key)}`;
      if (one === undefined) return [];
      if (typeof one === 'object' && one !== null && !Array.isArray(one)) {
        return Object.entries(flat(one as Record<string, unknown>, `${name}.`));
      }
      return [[name, Array.isArray(one) ? JSON.stringify(one) : (one as string)]];
    }),
  );
}

/** What samples of these models depend on. */
async function samplingSettings(
  config: FusionConfig,
  models: readonly SourceConfig[],
  hashes: Hashes,
  say: (line: string) => void,
): Promise<Inputs> {
  const { prompts, promptsSplit, promptsConfig, promptsRevision, seed, n, temperature, topP, maxTokens } = config;
  const of = prompts === undefined ? undefined : ((await hashes.of(prompts)) ?? prompts);
  const settings = flat({
    prompts: of,
    promptsSplit,
    promptsConfig,
    promptsRevision,
    seed,
    n,
    temperature,
    topP,
    maxTokens,
  });
  for (const model of models) {
    Object.assign(settings, flat({ [model.name]: without(model, SERVER_TUNING) }));
    if (isImport(model)) settings[`${model.name}.import`] = (await hashes.of(model.import)) ?? model.import;
    // Of what is trained here the stage says more, and it may not be there yet.
    else if (!isEndpoint(model) && relative(config.outputDir, model.model).startsWith('..')) {
      settings[`${model.name} weights`] = await hashes.ofModel(await locate(model.model, { say }));
    }
  }
  return settings;
}

const argsOf = (config: FusionConfig, input: RunInput): TrainingArgs =>
  resolveArgs({ seed: config.seed, ...input, outputDir: '.' }, 'config');

/** What a run's result depends on beside its data and its model. */
const trainingSettings = (config: FusionConfig, input: RunInput): Inputs =>
  flat(without(argsOf(config, input), WATCHING));

function promptsOf(config: FusionConfig, say: (line: string) => void) {
  const { prompts, promptsSplit: split, promptsConfig, promptsRevision: revision, outputDir } = config;
  if (prompts === undefined) return Store.open(outputDir).prompts();
  return readPrompts(prompts, { split, config: promptsConfig, revision, say });
}

/** What models are compared on, if there is anything. */
function heldOutOf(config: FusionConfig, evaluate: Exclude<FusionConfig['evaluate'], false>): HeldOut | undefined {
  const { prompts, split, temperature, maxTokens = config.maxTokens } = evaluate;
  const settings = { temperature, maxTokens };
  if (prompts !== undefined) return { ...settings, prompts: (say) => readPrompts(prompts, { split, say }) };
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
  const endings = ['.json', '.jsonl', '.jsonl.part'].filter((ending) => existsSync(join(directory, shard + ending)));
  if (endings.length === 0) return;
  let to: string;
  let number = 1;
  do to = join(directory, 'superseded', String(number++), shard);
  while (existsSync(`${to}.json`));
  mkdirSync(join(to, '..'), { recursive: true });
  for (const ending of endings) renameSync(join(directory, shard + ending), to + ending);
}

/** As a run file that would do the same. */
function toFile(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(toFile);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).filter(([, one]) => one !== undefined);
  return Object.fromEntries(entries.map(([key, one]) => [snake(key), toFile(one)]));
}
