/** The run file of a fusion: which models are asked what, who scores, what is selected. Keys may be in snake_case. */

import type { input, output } from 'zod';
import { z } from 'zod';
import { nearest } from '../edit-distance.js';
import { WrpoError } from '../errors.js';
import { readKeys, resolveArgs, type TrainingArgsInput } from '../train/args.js';
import { camel, snake } from '../train/compat.js';

export const count = z.number().int().positive();
const positive = z.number().positive();
const share = z.number().min(0).max(1);
/** Goes into paths. */
export const name = z
  .string()
  .regex(/^[A-Za-z0-9][\w.-]*$/, 'expected letters, digits, ".", "-" and "_", since files are named after it');

export const server = {
  name,
  /** Of an OpenAI-compatible server, such as `http://localhost:8000/v1`. */
  baseUrl: z
    .url({ protocol: /^https?$/, error: 'expected an address such as http://localhost:8000/v1' })
    .refine(
      (url) => new URL(url).username === '',
      'a key does not belong into the address: name its variable with api_key_env',
    ),
  /** As the server calls it. */
  model: z.string(),
  /** The environment variable that holds the key. */
  apiKeyEnv: z.string().optional(),
  /** Requests at a time. */
  concurrency: count.default(16),
  /** Seconds. */
  timeout: positive.default(600),
  maxRetries: z.number().int().min(0).default(8),
  /** Seconds before the first retry; doubles up to a minute. */
  retryDelay: positive.default(1),
};
/** Settings of sampling, of a run and of each model over it. */
const sampling = {
  n: count,
  temperature: z.number().min(0),
  topP: positive.max(1),
  maxTokens: count,
};
/** Dollars for a million tokens. */
export const prices = z.strictObject({ input: z.number().min(0), output: z.number().min(0) });
export const extraBody = z.record(z.string(), z.unknown());

export const endpoint = z.strictObject({
  ...server,
  ...z.object(sampling).partial().shape,
  /** Samples asked for in one request, where the server gives several. */
  samplesPerRequest: count.default(1),
  /** What goes into every request beside, such as top_k; null takes a key out. */
  extraBody: extraBody.optional(),
  prices: prices.optional(),
});

export const local = z.strictObject({
  name,
  /** A model directory, or a hub id. */
  model: z.string(),
  dtype: z.enum(['float32', 'bfloat16', 'float64']).default('float32'),
  /** Sequences that are continued at a time. */
  concurrency: count.default(64),
  ...z.object(sampling).partial().shape,
  topK: z.number().int().min(0).default(0),
  minP: share.default(0),
  repetitionPenalty: positive.default(1),
});

const paths = z.union([z.string(), z.array(z.string()).min(1)]);
const imported = z.strictObject({
  name,
  /** A file, directory or data set that holds answers, and maybe scores. */
  import: z.string(),
  split: z.string().optional(),
  config: z.string().optional(),
  revision: z.string().optional(),
  /** Where in a row they are, as `column` or `column.key.0`. Default: by what columns there are. */
  columns: z
    .strictObject({
      prompt: z.string().optional(),
      promptId: z.string().optional(),
      responses: paths,
      scores: paths.optional(),
    })
    .optional(),
  /** The scorer as whose its scores are kept. */
  scorer: name.optional(),
});

const scorer = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('armorm'),
    name,
    /** A model directory. */
    model: z.string(),
    dtype: z.enum(['float32', 'bfloat16', 'float64']).default('float32'),
  }),
  z.strictObject({
    kind: z.literal('http'),
    ...server,
    /** Which of vLLM's: `/pooling` or `/classify`. */
    api: z.enum(['pooling', 'classify']).default('pooling'),
    /** Which number of the answer is the score. */
    output: z.number().int().min(0).default(0),
    /** A directory whose chat template renders the conversations here; otherwise the server does. */
    tokenizer: z.string().optional(),
    /** Conversations a request, with `tokenizer`. */
    batch: count.default(32),
  }),
  z.strictObject({
    kind: z.literal('judge'),
    ...server,
    /** A file with {prompt}, {response}, {min} and {max}. */
    template: z.string().optional(),
    scale: z.tuple([z.number(), z.number()]).default([1, 10]),
    maxTokens: count.default(1024),
    temperature: z.number().min(0).default(0),
    topP: positive.max(1).default(1),
    extraBody: extraBody.optional(),
    /** How often an answer without a rating is asked for again, with another seed. */
    attempts: count.default(3),
  }),
]);

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
  /** Names of sources or groups that y_ws is taken from. Default: all. */
  subset: z.array(z.string()).min(1).optional(),
  groups: z.record(z.string(), z.array(z.string()).min(1)).default({}),
  /** 1: the best answer of the best source for a prompt; 2: that of the second best source. */
  rank: z.union([z.literal(1), z.literal(2)], 'expected 1 or 2').default(1),
  /** Adds y_ls, the worst answer of the source that gave y_ws. */
  sourceRejected: z.boolean().default(false),
  /** Keeps prompts whose target's, or source's, answers are no better than each other: the rest can still be learnt. */
  keepTies: z.boolean().default(false),
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
  /** Keys of `wrpo train`, for each run over the same rows by its name. */
  train: z.record(name, run).default({}),
  /** How the results are compared on held-out prompts; false: not at all. */
  evaluate: z.union([evaluation, z.literal(false)]).default(evaluation.parse({})),
});

export type EndpointConfig = output<typeof endpoint>;
export type ImportConfig = output<typeof imported>;
export type LocalConfig = output<typeof local>;
export type SourceConfig = EndpointConfig | LocalConfig | ImportConfig;
export type ScorerConfig = output<typeof scorer>;
export type FusionConfig = Omit<output<typeof schema>, 'sources' | 'targets' | 'sftRatio' | 'sft' | 'train'> & {
  sources: SourceConfig[];
  targets: SourceConfig[];
  sftRatio: number;
  sft?: RunInput;
  train: Record<string, RunInput>;
};
/** Training arguments but for those that a fusion gives. */
export type RunInput = Partial<Omit<TrainingArgsInput, (typeof OWN)[number]>>;
type SourceInput = input<typeof endpoint> | input<typeof local> | input<typeof imported>;
/** What a caller writes. */
export type FusionInput = Omit<input<typeof schema>, 'sources' | 'targets' | 'sft' | 'train'> & {
  sources?: SourceInput[];
  targets?: SourceInput[];
  sft?: RunInput;
  train?: Record<string, RunInput>;
};

/** What a fusion gives its runs. */
const OWN = ['modelNameOrPath', 'modelRevision', 'datasetName', 'evalDatasetName', 'outputDir'] as const;

export const isImport = (source: SourceConfig): source is ImportConfig => 'import' in source;
export const isEndpoint = (source: SourceConfig): source is EndpointConfig => 'baseUrl' in source;

/** Where something stands, for errors. */
export type Where = (...path: PropertyKey[]) => string;

/**
 * Checks what a run file and the command line say and fills in defaults. Throws ERR_CONFIG naming the place: an unknown
 * key with the nearest name, a bad value, two models of one name.
 */
export function resolveFusion(input: Record<string, unknown>, where: Where): FusionConfig {
  const { sources, targets, sft, train, sftRatio, ...rest } = check(schema, keysInCamelCase(input), where, []);
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
  };
  requireNames(config, where);
  return config;
}

/** The keys of a training run, as they were given. Throws ERR_CONFIG on what training would refuse, or a fusion gives. */
function runOf(given: Record<string, unknown>, at: PropertyKey[], where: Where): RunInput {
  const place = (key?: string) => where(...at, ...(key === undefined ? [] : [key]));
  const values = readKeys(given, place, () => {});
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
  return all as RunInput;
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
  for (const [i, one] of (config.subset ?? []).entries()) {
    known(one, [...sources, ...Object.keys(config.groups)], ['subset', i], 'source or group');
  }
  if (config.target !== undefined)
    known(
      config.target,
      config.targets.map(({ name }) => name),
      ['target'],
      'target',
    );
}

// These hold keys of the user's own.
const OPAQUE = /^(extra_?[bB]ody|groups|sft|train)$/;

export function keysInCamelCase(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(keysInCamelCase);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).filter(([, one]) => one !== undefined && one !== null);
  return Object.fromEntries(entries.map(([key, one]) => [camel(key), OPAQUE.test(key) ? one : keysInCamelCase(one)]));
}

const SCORER_KEYS = scorer.options.flatMap(({ shape }) => Object.keys(shape));

export function check<T extends z.ZodObject>(type: T, value: unknown, where: Where, at: PropertyKey[]): output<T> {
  const result = type.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0]!;
  const path = [...at, ...issue.path];
  const spell = (key: PropertyKey) => (typeof key === 'string' ? snake(key) : String(key));
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!;
    const known = [...Object.keys(type.shape), ...SCORER_KEYS];
    const near = known.find((one) => one.startsWith(key)) ?? nearest(key, known);
    const hint = near === undefined ? '' : `; did you mean "${snake(near)}"?`;
    throw new WrpoError('ERR_CONFIG', `${where(...path, key)}: unknown key "${spell(key)}"${hint}`);
  }
  const found = issue.path.reduce<unknown>((one, key) => (one as Record<PropertyKey, unknown>)?.[key], value);
  // An address may hold a password, which it should not.
  const what = found === undefined ? 'nothing' : JSON.stringify(found).replace(/\/\/[^/@"]*@/g, '//***@');
  const short = what.length > 80 ? `${what.slice(0, 79)}…` : what;
  throw new WrpoError(
    'ERR_CONFIG',
    `${where(...path)}: "${path.map(spell).join('.')}": ${issue.message} (found ${short})`,
  );
}
