/** Training arguments: TRL's names in camelCase; files and the command line may spell them in snake_case. */
import { createRequire } from 'node:module';
import type { output, input as ZodInput } from 'zod';
import { WrpoError } from '../errors.js';

function buildSchema({ z }: typeof import('zod')) {
  const positive = z.number().positive();
  const count = z.number().int().positive();
  const fraction = z.number().min(0).max(1);
  return z.object({
    /** A model directory in Hugging Face layout. */
    modelNameOrPath: z.string().optional(),
    /** The frozen reference, held in memory; without it the initial policy's log-probs are computed once and cached. */
    refModelNameOrPath: z.string().optional(),
    datasetName: z.string().optional(),
    evalDatasetName: z.string().optional(),
    outputDir: z.string(),

    lossType: z.enum(['wrpo', 'sigmoid', 'sft']).default('wrpo'),
    beta: positive.default(0.01),
    /** The weight of the source's response; reached at the end of training when `isDynamic`. */
    alpha: fraction.default(0.1),
    isDynamic: z.boolean().default(true),
    labelSmoothing: z.number().min(0).max(0.5).default(0),

    learningRate: z.number().min(0).default(3e-7),
    lrSchedulerType: z.enum(['cosine', 'linear', 'constant']).default('cosine'),
    warmupRatio: fraction.default(0.1),
    /** Overrides `warmupRatio`. */
    warmupSteps: z.number().int().min(0).optional(),
    weightDecay: z.number().min(0).default(0),
    adamBeta1: fraction.default(0.9),
    adamBeta2: fraction.default(0.999),
    adamEpsilon: positive.default(1e-8),
    maxGradNorm: z.number().min(0).default(1),

    /** These two only define the global batch; how rows are packed does not change the result. */
    perDeviceTrainBatchSize: count.default(2),
    gradientAccumulationSteps: count.default(8),
    numTrainEpochs: positive.default(1),
    /** Overrides `numTrainEpochs` when positive. */
    maxSteps: z.number().int().default(-1),
    /** Tokens packed into one forward and backward: more is faster and takes more memory. */
    microbatchTokens: count.default(2048),
    /** Computes each prompt once for all its responses; the result is the same without. */
    sharePrompt: z.boolean().default(true),

    maxLength: count.default(2048),
    /** Rows with a longer prompt are dropped; with `templateMode: authors`, what is kept of a prompt that is too long. */
    maxPromptLength: count.optional(),
    /** How text becomes tokens: `default` as the chat template has it, `authors` as the paper's own script does it. */
    templateMode: z.enum(['default', 'authors']).default('default'),
    /** Which end of a prompt that is too long is kept, with `templateMode: authors`. */
    truncationMode: z.enum(['keep_end', 'keep_start']).default('keep_end'),
    /** `sft`: the loss on the response alone, or on all tokens. */
    completionOnlyLoss: z.boolean().default(true),
    /** `sft`: `wrapped` with `packing` joins all texts and cuts them into blocks of `maxLength`; else rows stay whole. */
    packing: z.boolean().default(false),
    packingStrategy: z.enum(['bfd', 'wrapped']).default('bfd'),
    dtype: z.enum(['float32', 'bfloat16', 'float64']).default('float32'),
    shuffle: z.boolean().default(true),
    seed: z.number().int().default(42),

    loggingSteps: count.default(5),
    /** Evaluate every so many steps; by default only at the end. */
    evalSteps: count.optional(),
    /** Checkpoint every so many steps; by default none but the final model. */
    saveSteps: count.optional(),
    saveTotalLimit: count.optional(),
    saveDtype: z.enum(['float32', 'bfloat16']).default('float32'),
    disableTqdm: z.boolean().default(false),
  });
}

type Schema = ReturnType<typeof buildSchema>;

/** Everything with its default filled in. */
export type TrainingArgs = output<Schema>;
/** What a caller writes. */
export type TrainingArgsInput = ZodInput<Schema>;

// Loaded at the first use: zod takes longer to import than everything else together.
let loaded: Schema | undefined;
function schema(): Schema {
  loaded ??= buildSchema(createRequire(import.meta.url)('zod') as typeof import('zod'));
  return loaded;
}

const snake = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const camel = (key: string) => key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());

/** The same under camelCase keys. Throws ERR_CONFIG on an unknown one, with the nearest name. */
export function camelKeys(input: Record<string, unknown>, where: string): Record<string, unknown> {
  const keys = Object.keys(schema().shape);
  const values: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(input)) {
    const name = camel(key);
    if (!keys.includes(name)) {
      const near = keys
        .map((known) => ({ known, distance: editDistance(name, known) }))
        .sort((a, b) => a.distance - b.distance)[0]!;
      const hint =
        near.distance <= Math.max(2, name.length / 3)
          ? `; did you mean "${key === name ? near.known : snake(near.known)}"?`
          : '';
      throw new WrpoError('ERR_CONFIG', `${where}: unknown key "${key}"${hint}`);
    }
    values[name] = value;
  }
  return values;
}

/**
 * Checks arguments and fills in defaults. `where` names their source in errors.
 * Throws ERR_CONFIG: an unknown key with the nearest name, a bad value with its key and what was expected.
 */
export function resolveArgs(input: Record<string, unknown>, where = 'args'): TrainingArgs {
  const given = Object.entries(camelKeys(input, where)).filter(([, value]) => value !== undefined && value !== null);
  const values = Object.fromEntries(given);
  const result = schema().safeParse(values);
  if (result.success) return result.data;
  const issue = result.error.issues[0]!;
  const key = String(issue.path[0]);
  throw new WrpoError(
    'ERR_CONFIG',
    `${where}: "${snake(key)}": ${issue.message} (found ${JSON.stringify(values[key]) ?? 'nothing'})`,
  );
}

/** Resolved arguments as a run file would spell them. */
export function toRunFile(args: TrainingArgs): Record<string, unknown> {
  return Object.fromEntries(Object.entries(args).map(([key, value]) => [snake(key), value]));
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + Number(a[i - 1] !== b[j - 1]));
    }
    row = next;
  }
  return row[b.length]!;
}
