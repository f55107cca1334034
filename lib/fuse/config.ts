/** The run file of a fusion: which models are asked what, who scores, what is selected. Keys may be in snake_case. */

import type { input, output } from 'zod';
import { z } from 'zod';
import { WrpoError } from '../errors.js';
import { readKeys, resolveArgs, type TrainingArgsInput } from '../train/args.js';
import { snake } from '../train/compat.js';
import {
  check,
  count,
  endpoint,
  imported,
  keysInCamelCase,
  local,
  name,
  type SourceConfig,
  type SourceInput,
  sampling,
  scorer,
  share,
  type Where,
} from './schema.js';

const fraction = z.preprocess((value) => {
  const [, a, b] = /^(\d+)\/(\d+)$/.exec(String(value)) ?? [];
  return b === undefined ? value : Number(a) / Number(b);
}, share);

const evaluation = z.strictObject({
  /** Any data set with a column `prompt`, of which nothing is trained on. Default: the prompts that are held out. */
  prompts: z.string().optional(),
  split: z.string().optional(),
  /** The longest answer. Default: that of sampling. */
  maxTokens: count.optional(),
  /** 0 takes the likeliest token. */
  temperature: z.number().min(0).default(0),
});

/** What is taken where: keys of a selection that another over the same samples may have otherwise. */
const view = {
  /** Names of sources or groups that y_ws is taken from. Default: all. */
  subset: z.array(z.string()).min(1).optional(),
  /** 1: the best answer of the best source for a prompt; 2: that of the second best source. Default 1. */
  rank: z.union([z.literal(1), z.literal(2)], 'expected 1 or 2').optional(),
  /** Adds y_ls, the worst answer of the source that gave y_ws. */
  sourceRejected: z.boolean().optional(),
  /** Keeps prompts whose target's, or source's, answers are no better than each other: the rest can still be learnt. */
  keepTies: z.boolean().optional(),
};
const selection = z.strictObject(view);

/** The keys of a training run, checked by itself. */
const run = z.record(z.string(), z.unknown());

const schema = z.strictObject({
  /** The store. */
  outputDir: z.string(),
  /** Any data set with a column `prompt`. */
  prompts: z.string().optional(),
  promptsSplit: z.string().optional(),
  promptsConfig: z.string().optional(),
  promptsRevision: z.string().optional(),
  seed: z.number().int().default(42),
  n: sampling.n.default(5),
  temperature: sampling.temperature.default(0.8),
  topP: sampling.topP.default(0.95),
  maxTokens: sampling.maxTokens.default(4096),
  sources: z.array(z.unknown()).default([]),
  /** The model to be trained, before or after fine-tuning; asked only what preferences are learnt from. */
  targets: z.array(z.unknown()).default([]),
  scorers: z.array(scorer).default([]),

  /** Whose y_wt and y_l are taken, where there are several. */
  target: z.string().optional(),
  /** Whose scores decide, where there are several. */
  scorer: z.string().optional(),
  groups: z.record(z.string(), z.array(z.string()).min(1)).default({}),
  ...view,
  /** The share of prompts, those held out aside, that fine-tuning gets. Default: a third; of a fusion without `sft` none. */
  sftRatio: fraction.optional(),
  /** The share of prompts that are held out or, from 1 on, their number. */
  heldOut: z.number().min(0).default(0.02),
  rowSchema: z.enum(['authors', 'flat']).default('authors'),
  format: z.enum(['jsonl', 'parquet']).default('jsonl'),
  /** Default: `selected` in the store. */
  selectionDir: z.string().optional(),

  /** The model that is fused into: a directory, or a hub id. What follows is for `wrpo fuse` alone. */
  modelNameOrPath: z.string().optional(),
  /** Keys of `wrpo sft`; without them the model itself is sampled, and preferences are learnt from there. */
  sft: run.optional(),
  /** Keys of `wrpo train`, for each run by its name; `selection` names the rows that it learns from. */
  train: z.record(name, run).default({}),
  /** Further selections from the same samples, each with keys over those of the first. */
  selections: z.record(name, z.unknown()).default({}),
  /** How the results are compared on held-out prompts; false: not at all. */
  evaluate: z.union([evaluation, z.literal(false)]).default(evaluation.parse({})),
});

export type FusionConfig = Omit<output<typeof schema>, 'sources' | 'targets' | 'sftRatio' | 'sft' | 'train'> & {
  sources: SourceConfig[];
  targets: SourceConfig[];
  sftRatio: number;
  sft?: RunInput;
  train: Record<string, RunInput>;
  selections: Record<string, output<typeof selection>>;
};
/** Training arguments but for those that a fusion gives. */
export type RunInput = Partial<Omit<TrainingArgsInput, (typeof OWN)[number]>> & {
  /** One of `selections`; default: the first. */
  selection?: string;
};
/** What a caller writes. */
export type FusionInput = Omit<input<typeof schema>, 'sources' | 'targets' | 'sft' | 'train' | 'selections'> & {
  sources?: SourceInput[];
  targets?: SourceInput[];
  sft?: RunInput;
  train?: Record<string, RunInput>;
  selections?: Record<string, input<typeof selection>>;
};

/** What a fusion gives its runs. */
const OWN = ['modelNameOrPath', 'modelRevision', 'datasetName', 'evalDatasetName', 'outputDir'] as const;

/**
 * Checks what a run file and the command line say and fills in defaults. Throws ERR_CONFIG naming the place: an unknown
 * key with the nearest name, a bad value, two models of one name.
 */
export function resolveFusion(input: Record<string, unknown>, where: Where): FusionConfig {
  const { sources, targets, sft, train, selections, sftRatio, ...rest } = check(
    schema,
    keysInCamelCase(input),
    where,
    [],
  );
  const models = (list: unknown[], key: string) =>
    list.map((one, i): SourceConfig => {
      const isObject = typeof one === 'object' && one !== null;
      if (isObject && 'import' in one) return check(imported, one, where, [key, i]);
      if (isObject && 'baseUrl' in one) return check(endpoint, one, where, [key, i]);
      if (isObject && 'model' in one) return check(local, one, where, [key, i]);
      const what =
        'expected a model with base_url (an OpenAI-compatible server), model (a directory, to be run here) or import (answers that are there)';
      throw new WrpoError('ERR_CONFIG', `${where(key, i)}: ${key}: ${what}`);
    });
  const config = {
    ...{ ...rest, sources: models(sources, 'sources'), targets: models(targets, 'targets') },
    sftRatio: sftRatio ?? (rest.modelNameOrPath !== undefined && sft === undefined ? 0 : 1 / 3),
    ...(sft && { sft: runOf(sft, ['sft'], where) }),
    train: Object.fromEntries(Object.entries(train).map(([key, one]) => [key, runOf(one, ['train', key], where)])),
    selections: Object.fromEntries(
      Object.entries(selections).map(([key, one]) => {
        return [key, check(selection, keysInCamelCase(one), where, ['selections', key])];
      }),
    ),
  };
  requireNames(config, where);
  return config;
}

/** The keys of a training run, as they were given. Throws ERR_CONFIG on what training would refuse, or a fusion gives. */
function runOf(given: Record<string, unknown>, at: PropertyKey[], where: Where): RunInput {
  const place = (key?: string) => where(...at, ...(key === undefined ? [] : [key]));
  const { selection, ...keys } = given;
  const values = readKeys(keys, place, () => {});
  const stray = OWN.find((key) => key in values);
  if (stray !== undefined) {
    throw new WrpoError(
      'ERR_CONFIG',
      `${place(stray)}: "${snake(stray)}" is not for a run of a fusion, which gives it`,
    );
  }
  const isTuning = at[0] === 'sft';
  if (isTuning && values.lossType !== undefined && values.lossType !== 'sft') {
    throw new WrpoError(
      'ERR_CONFIG',
      `${place('lossType')}: fine-tuning has loss_type "sft" (found "${values.lossType}")`,
    );
  }
  const all = isTuning ? { learningRate: 7e-6, ...values, lossType: 'sft' } : values;
  resolveArgs({ ...all, outputDir: '.' }, place);
  return { ...all, ...(selection !== undefined && { selection }) } as RunInput;
}

function requireNames(config: FusionConfig, where: Where): void {
  const refuse = (path: PropertyKey[], what: string): never => {
    throw new WrpoError('ERR_CONFIG', `${where(...path)}: ${what}`);
  };
  const seen = new Set<string>();
  for (const key of ['sources', 'targets', 'scorers'] as const) {
    if (key === 'scorers') seen.clear();
    for (const [i, { name }] of config[key].entries()) {
      // Files are named after them, and some file systems do not tell case.
      const taken = seen.has(name.toLowerCase());
      const kind = key === 'scorers' ? 'scorers' : 'models';
      if (taken) refuse([key, i, 'name'], `two ${kind} have the name "${name}"; each needs one of its own`);
      seen.add(name.toLowerCase());
    }
  }
  const sources = config.sources.map(({ name }) => name);
  const known = (given: string, names: string[], path: PropertyKey[], what: string) => {
    if (!names.includes(given)) refuse(path, `there is no ${what} "${given}"; there is ${names.join(', ') || 'none'}`);
  };
  for (const [group, members] of Object.entries(config.groups)) {
    for (const [i, member] of members.entries()) known(member, sources, ['groups', group, i], 'source');
  }
  const views = Object.entries(config.selections).map(([key, { subset }]) => [['selections', key], subset] as const);
  for (const [at, subset] of [[[], config.subset] as const, ...views]) {
    for (const [i, one] of (subset ?? []).entries()) {
      known(one, [...sources, ...Object.keys(config.groups)], [...at, 'subset', i], 'source or group');
    }
  }
  const models = [...config.sources, ...config.targets].map(({ name }) => name);
  const reserved = config.modelNameOrPath === undefined ? [] : ['target', 'target-sft'];
  const clash = sources.findIndex((one) => reserved.includes(one));
  if (clash >= 0) refuse(['sources', clash, 'name'], `"${sources[clash]}" is the name of the model that is fused into`);
  for (const [key, { selection }] of Object.entries(config.train)) {
    if ([...models, ...reserved].includes(key))
      refuse(['train', key], `a model has the name "${key}"; runs need others`);
    if (selection !== undefined)
      known(selection, Object.keys(config.selections), ['train', key, 'selection'], 'selection');
  }
  if (config.target !== undefined)
    known(
      config.target,
      config.targets.map(({ name }) => name),
      ['target'],
      'target',
    );
}
