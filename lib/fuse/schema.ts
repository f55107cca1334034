/** What run files say of models, servers and scorers, and how they are checked. Keys may be in snake_case. */

import type { input, output } from 'zod';
import { z } from 'zod';
import { nearest } from '../edit-distance.js';
import { WrpoError } from '../errors.js';
import { camel, snake } from '../train/compat.js';

export const count = z.number().int().positive();
const positive = z.number().positive();
export const share = z.number().min(0).max(1);
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
export const sampling = {
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
export const imported = z.strictObject({
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

export const scorer = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('armorm'),
    name,
    /** A model directory. */
    model: z.string(),
    dtype: z.enum(['float32', 'bfloat16', 'float64']).default('float32'),
    /** Of a GPU bfloat16. */
    device: z.enum(['cpu', 'cuda', 'auto']).default('cpu'),
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

export type EndpointConfig = output<typeof endpoint>;
export type ImportConfig = output<typeof imported>;
export type LocalConfig = output<typeof local>;
export type SourceConfig = EndpointConfig | LocalConfig | ImportConfig;
export type ScorerConfig = output<typeof scorer>;
/** What a caller writes of a model. */
export type SourceInput = input<typeof endpoint> | input<typeof local> | input<typeof imported>;

export const isImport = (source: SourceConfig): source is ImportConfig => 'import' in source;
/** A model that is run in this process. */
export const isLocal = (source: SourceConfig): source is LocalConfig => !isImport(source) && !isEndpoint(source);
export const isEndpoint = (source: SourceConfig): source is EndpointConfig => 'baseUrl' in source;

/** Where something stands, for errors. */
export type Where = (...path: PropertyKey[]) => string;

// These hold keys of the user's own.
const OPAQUE = /^(extra_?[bB]ody|groups|sft|train|selections)$/;

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
