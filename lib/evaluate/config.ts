/** The run file of an evaluation: what is measured, of which model, by which judge. Keys may be in snake_case. */
import { type output, z } from 'zod';
import { WrpoError } from '../errors.js';
import {
  check,
  count,
  endpoint,
  extraBody,
  keysInCamelCase,
  local,
  name,
  prices,
  server,
  type Where,
} from '../fuse/schema.js';

const common = {
  /** Judgments, the tool's own files and results.json. */
  outputDir: z.string(),
  /** Only so many questions, the first. */
  limit: count.optional(),
};

const judged = {
  ...common,
  judge: z
    .strictObject({
      ...server,
      name: name.default('judge'),
      prices: prices.optional(),
      extraBody: extraBody.optional(),
    })
    .optional(),
  /** Dollars that judging may cost, over all runs into `output_dir`. */
  maxCost: z.number().positive().optional(),
  /** Who answers, where there are no answers yet: as a source of a fusion. */
  model: z.unknown().optional(),
  seed: z.number().int().default(42),
};

const SCHEMAS = {
  alpaca_eval: z.strictObject({
    benchmark: z.literal('alpaca_eval'),
    ...judged,
    /** The model's outputs, and the baseline's, in whose order instructions stand. */
    outputs: z.string().optional(),
    referenceOutputs: z.string().optional(),
    /** `alpaca_eval_clf.txt` of the installed package. */
    prompt: z.string().optional(),
    /** Annotations that are there already. */
    annotations: z.string().optional(),
    annotator: z.string().default('weighted_alpaca_eval_gpt4_turbo'),
    /** `df_gamed.csv` and `instruction_difficulty.csv` of the data set tatsu-lab/alpaca_eval. */
    gamed: z.string().optional(),
    difficulty: z.string().optional(),
    /** Gets the model's row. Default: `leaderboard.csv` in `output_dir`. */
    leaderboard: z.string().optional(),
  }),
  arena_hard: z.strictObject({
    benchmark: z.literal('arena_hard'),
    ...judged,
    questions: z.string(),
    baselineAnswers: z.string(),
    answers: z.string().optional(),
    /** The judge's configuration (YAML with system_prompt and prompt_template). */
    judgeConfig: z.string(),
    rules: z.enum(['v0.1', 'v2']).default('v0.1'),
  }),
  mt_bench: z.strictObject({
    benchmark: z.literal('mt_bench'),
    ...judged,
    questions: z.string(),
    answers: z.string().optional(),
    /** Answers of another model to compare with, in pairs. */
    against: z.string().optional(),
    judgePrompts: z.string(),
    /** Answers to the questions of math, reasoning and coding. */
    references: z.string().optional(),
  }),
  open_llm_leaderboard: z.strictObject({
    benchmark: z.literal('open_llm_leaderboard'),
    ...common,
    /** A model directory. */
    model: z.string(),
    dtype: z.enum(['float32', 'bfloat16', 'float64']).default('float32'),
    /** By task the directory, file or hub id of its data set. */
    data: z.record(z.string(), z.string()),
    /** Default: those of `data`. */
    tasks: z.array(z.string()).min(1).optional(),
    /** `truthfulqa_mc1.yaml` of lm-evaluation-harness, or a text file with the six questions and answers of its prompt. */
    truthfulqaPrompt: z.string().optional(),
    /** Tokens that go through the model at a time. */
    microbatchTokens: count.default(4096),
    /** The longest context with its continuation, in tokens. Default: the model's. */
    maxLength: count.optional(),
  }),
};

const modelOf = (value: unknown, where: Where) =>
  check((value as object | undefined) && 'baseUrl' in (value as object) ? endpoint : local, value, where, ['model']);

export type AnsweringModel = output<typeof endpoint> | output<typeof local>;
type Judged<T extends { model?: unknown }> = Omit<T, 'model'> & { model?: AnsweringModel };
export type AlpacaConfig = Judged<output<typeof SCHEMAS.alpaca_eval>>;
export type ArenaConfig = Judged<output<typeof SCHEMAS.arena_hard>>;
export type MtConfig = Judged<output<typeof SCHEMAS.mt_bench>>;
export type LeaderboardConfig = output<typeof SCHEMAS.open_llm_leaderboard>;
export type EvaluationConfig = AlpacaConfig | ArenaConfig | MtConfig | LeaderboardConfig;

/** Checks a run file and fills in defaults. Throws ERR_CONFIG naming the place of what is wrong. */
export function resolveEvaluation(input: Record<string, unknown>, where: Where): EvaluationConfig {
  const { data, ...rest } = input;
  // Names of tasks are no keys of ours.
  const values = { ...(keysInCamelCase(rest) as Record<string, unknown>), ...(data !== undefined && { data }) };
  const benchmark = String((values as { benchmark?: unknown }).benchmark);
  if (!(benchmark in SCHEMAS)) {
    const known = Object.keys(SCHEMAS).join(', ');
    throw new WrpoError('ERR_CONFIG', `${where('benchmark')}: "benchmark": expected ${known} (found ${benchmark})`);
  }
  const config = check(
    SCHEMAS[benchmark as keyof typeof SCHEMAS] as z.ZodObject,
    values,
    where,
    [],
  ) as EvaluationConfig;
  if (config.benchmark === 'open_llm_leaderboard' || config.model === undefined) return config;
  return { ...config, model: modelOf(config.model, where) };
}
