/**
 * AlpacaEval 2: one question an instruction, which of two answers is better, from the log-probs of the judge's one token;
 * raw and length-controlled win rates (Dubois et al., 2024). Files are those of the package alpaca_eval 0.6.
 */
import { createHash } from 'node:crypto';
import type { Message } from '../data/preferences.js';
import { fault } from '../data/rows.js';
import { WrpoError } from '../errors.js';
import { numberIn, type Table } from './csv.js';
import { type Choice, type JudgedRow, type Question, readOnce } from './judge.js';
import { PythonRandom } from './python-random.js';
import {
  type ChosenFit,
  deviation,
  FOLDS,
  fitCrossValidated,
  mean,
  type SoftRow,
  sigmoid,
  standardError,
  type WinRate,
  winRate,
} from './statistics.js';

/** Of `evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt`. */
export const OFFICIAL_PROMPT = '784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62';
/** What the judge is asked with beside its prompt, as `weighted_alpaca_eval_gpt4_turbo` is. */
export const JUDGE_SETTINGS = { max_tokens: 1, temperature: 1, logprobs: true, top_logprobs: 5 };

/** A row of an outputs file. */
export interface Output {
  instruction: string;
  output: string;
  generator: string;
  dataset?: string;
}

/** An instruction with the baseline's and the model's answer. */
export interface Pair {
  instruction: string;
  dataset: string;
  output_1: string;
  generator_1: string;
  output_2: string;
  generator_2: string;
}

/** A row of an annotations file. `preference` is null where the judge said nothing that counts. */
export interface Annotation extends Pair {
  annotator: string;
  preference: number | null;
  raw_completion: unknown;
  [stamp: string]: unknown;
}

/**
 * The model's answers beside the baseline's, in the baseline's order, on which the difficulties of instructions depend.
 * Throws ERR_DATA for instructions that the model has not answered, several generators, or one name for both.
 */
export function pairOutputs(reference: readonly Output[], model: readonly Output[], file: string): Pair[] {
  const generators = [...new Set(model.map(({ generator }) => generator))];
  const [name] = generators;
  if (generators.length !== 1) {
    throw fault(file, `expected the outputs of one generator, found ${generators.join(', ') || 'none'}`);
  }
  if (reference.some(({ generator }) => generator === name)) {
    throw fault(file, `model and baseline have the same generator name "${name}"; give the model another`);
  }
  const byInstruction = new Map(model.map((row) => [row.instruction, row]));
  const missing = reference.filter(({ instruction }) => !byInstruction.has(instruction));
  if (missing.length > 0) {
    const first = JSON.stringify(missing[0]!.instruction.slice(0, 60));
    throw fault(
      file,
      `no output for ${missing.length} of ${reference.length} instructions, of which the first is ${first}`,
    );
  }
  return reference.map(({ instruction, output, generator, dataset = '' }) => ({
    ...{ instruction, dataset, output_1: output, generator_1: generator },
    ...{ output_2: byInstruction.get(instruction)!.output, generator_2: name! },
  }));
}

/** Whether the judge sees the model's answer first, drawn as PairwiseAnnotator (seed 0) draws it. */
export const isSwitched = (instruction: string): boolean =>
  new PythonRandom(`is_switched_outputs${instruction}0`).random() >= 0.5;

/** A ChatML text as turns. Throws ERR_DATA when it has none, or lacks a placeholder. */
export function parsePrompt(text: string, file: string): Message[] {
  const turns = [...text.matchAll(/<\|im_start\|>(\w+)\n([\s\S]*?)<\|im_end\|>/g)];
  if (turns.length === 0) throw fault(file, 'expected turns between <|im_start|> and <|im_end|>');
  for (const key of ['instruction', 'output_1', 'output_2']) {
    if (!text.includes(`{${key}}`)) throw fault(file, `expected the placeholder {${key}}`);
  }
  return turns.map(([, role, content]) => ({ role: role!, content: content!.trim() }));
}

/** The question whether `pair`'s second answer is better. */
export function questionOf(pair: Pair, prompt: readonly Message[]): Question {
  const [first, second] = isSwitched(pair.instruction)
    ? [pair.output_2, pair.output_1]
    : [pair.output_1, pair.output_2];
  const values: Record<string, string> = { instruction: pair.instruction, output_1: first, output_2: second };
  const fill = (text: string) => text.replace(/\{(instruction|output_1|output_2)\}/g, (_, key: string) => values[key]!);
  const id = createHash('sha256')
    .update(JSON.stringify([pair.instruction, pair.output_1, pair.output_2]))
    .digest('hex');
  return { id, messages: prompt.map(({ role, content }) => ({ role, content: fill(content) })) };
}

/**
 * Of the judge's first token: 2 - p(m)/(p(m) + p(M)) where `m` names the first answer and `M` the second, a token that is
 * not among the likeliest having no share; null when neither is.
 */
export function parsePreference(top: readonly { token: string; logprob: number }[]): number | null {
  const share = (name: string) => {
    const found = top.find(({ token }) => token === name);
    return found ? Math.exp(found.logprob) : 0;
  };
  const first = share('m');
  const second = share('M');
  return first + second > 0 ? 2 - first / (first + second) : null;
}

/** Up to rounding, log-probs are negative. */
const isTop = (top: unknown): top is { token: string; logprob: number }[] =>
  Array.isArray(top) && top.every((one) => typeof one?.token === 'string' && one.logprob < 1);

/** For `judge`. A choice without log-probs is no answer. */
export const readPreference = readOnce((choice: Choice) => {
  const top: unknown = choice.logprobs?.content?.[0]?.top_logprobs;
  return isTop(top) ? { verdict: parsePreference(top) } : undefined;
}, 'log-probs (logprobs.content[0].top_logprobs)');

/** A pair with what the judge said of it. */
export function annotationOf(pair: Pair, row: JudgedRow<number> | undefined, annotator: string): Annotation {
  // As the public tool: equal answers are a draw, and nobody is asked.
  if (!row) return { ...pair, annotator, preference: 1.5, raw_completion: null };
  const { verdict, completions, prompt_id: _, ...stamps } = row;
  const preference = verdict !== null && isSwitched(pair.instruction) ? 3 - verdict : verdict;
  return { ...pair, annotator, preference, raw_completion: completions[0] ?? null, ...stamps };
}

// ---- length control

/** What `df_gamed.csv` and `instruction_difficulty.csv` of the data set tatsu-lab/alpaca_eval hold. */
export interface GlmData {
  /** Of each instruction, in the order of the evaluation set. */
  difficulty: readonly number[];
  gamed: readonly { preference: number; stdDeltaLength: number; difficulty: number }[];
}

/**
 * Throws ERR_DATA when there is not one difficulty for each of `count` instructions in order: they are attached by
 * position, so that a shortened or reordered file would be silently wrong.
 */
export function readGlmData(gamedTable: Table | undefined, difficultyTable: Table | undefined, count: number): GlmData {
  const gamed = gamedTable?.map((row, i) => {
    const where = `the gamed file row ${i + 1}`;
    const number = (column: string) => numberIn(row, column, where);
    return {
      index: number('index'),
      ...{ preference: number('preference'), stdDeltaLength: number('std_delta_len') },
      difficulty: number('instruction_difficulty'),
    };
  });
  const own = new Map<number, number>();
  for (const { index, difficulty } of gamed ?? []) if (!own.has(index)) own.set(index, difficulty);
  const difficulty =
    difficultyTable?.map((row, i) => {
      const where = `the difficulty file row ${i + 1}`;
      const index = row[''] ?? row.index;
      if (index !== undefined && Number(index) !== i) {
        throw fault(where, `expected index ${i}, found ${index}: the file is reordered or shortened`);
      }
      const value = numberIn(row, 'instruction_difficulty', where);
      const other = own.get(i);
      if (other === undefined || Math.abs(other - value) < 1e-6) return value;
      throw fault(where, `${value} is not the gamed file's ${other} of index ${i}: one of them is reordered`);
    }) ?? Array.from({ length: own.size }, (_, i) => own.get(i) ?? Number.NaN);
  if (difficulty.length !== count || difficulty.some(Number.isNaN)) {
    const what = difficultyTable ? 'the difficulty file' : 'the gamed file';
    throw fault(what, `expected one difficulty for each of ${count} instructions in order, found ${difficulty.length}`);
  }
  return { difficulty, gamed: gamed ?? [] };
}

/** `length_controlled_v1`; `noreg` without the gamed rows, `minimal` without these and the difficulties. */
export type GlmVariant = 'length_controlled_v1' | 'length_controlled_noreg' | 'length_controlled_minimal';

export const FEATURES = [
  'np.tanh(std_delta_len)',
  'instruction_difficulty',
  'not_gamed_baseline.astype(float)',
] as const;

export interface LengthControlled {
  variant: GlmVariant;
  length_controlled_winrate: number;
  lc_standard_error: number;
  fit: ChosenFit;
  /** Of each row, with the lengths set equal. */
  preferences: number[];
}

/** An annotation as the regression sees it: lengths in characters, and which of the instructions it is of. */
export interface LengthRow {
  preference: number | null;
  lengths: readonly [baseline: number, model: number];
  index: number;
}

/**
 * The win rate at equal lengths, in percent: a logistic regression of the preference on x1 = tanh((len_1 - len_2)/sd), x2 =
 * the instruction's difficulty and x3 = 1 for the model's rows, in which rows of two gamed baselines (x3 = 0, weight
 * 0.2/2 each) hold the length's slope in place; predicted with x1 = 0. Source: alpaca_eval, metrics/glm_winrate.py.
 */
export function lengthControlled(
  rows: readonly LengthRow[],
  data: GlmData | undefined,
  variant: GlmVariant = 'length_controlled_v1',
): LengthControlled {
  const isMinimal = variant === 'length_controlled_minimal';
  if (!isMinimal && !data) throw new WrpoError('ERR_CONFIG', `${variant} needs the difficulties of instructions`);
  const differences = rows.map(({ lengths: [first, second] }) => first - second);
  const sd = deviation(differences);
  if (!(sd > 0)) throw new WrpoError('ERR_DATA', 'length control needs answers of different lengths');
  const judged = rows.filter(({ preference }) => preference !== null).length;
  if (judged < FOLDS) throw new WrpoError('ERR_DATA', `length control needs ${FOLDS} judged rows, found ${judged}`);
  const features = (x1: number, x2: number, x3: number) => (isMinimal ? [x1, x3] : [x1, x2, x3]);
  const difficulty = (index: number) => (isMinimal ? 0 : data!.difficulty[index]!);
  const gamed =
    variant === 'length_controlled_v1'
      ? data!.gamed.map(
          (row): SoftRow => ({
            weight: 0.2 / 2,
            features: features(Math.tanh(row.stdDeltaLength), row.difficulty, 0),
            target: row.preference,
          }),
        )
      : [];
  const own = rows.flatMap(({ preference, index }, i): SoftRow[] => {
    if (preference === null) return [];
    const x = features(Math.tanh(differences[i]! / sd), difficulty(index), 1);
    return [{ weight: 1, features: x, target: (preference === 0 ? 1.5 : preference) - 1 }];
  });
  const fit = fitCrossValidated([...gamed, ...own]);
  const preferences = rows.map(({ index }) => {
    const x = features(0, difficulty(index), 1);
    return sigmoid(x.reduce((sum, value, j) => sum + value * fit.weights[j]!, 0));
  });
  return {
    variant,
    length_controlled_winrate: 100 * mean(preferences),
    lc_standard_error: 100 * standardError(preferences),
    fit,
    preferences,
  };
}

/** Weights of a GLM by feature, a row of a saved weights file. */
export type GlmWeights = Record<(typeof FEATURES)[number], number>;

/** Of a row of a saved weights file. Throws ERR_DATA naming the file. */
export const weightsIn = (row: Record<string, string>, file: string): GlmWeights =>
  Object.fromEntries(FEATURES.map((name) => [name, numberIn(row, name, `${file}, "${row['']}"`)])) as GlmWeights;

/** In an evaluation's directory, beside `weights.csv`. */
export const DIFFICULTY = 'instruction_difficulty.csv';

/** A model's length-controlled preference over any other (by default the baseline, all zeros), of each instruction. */
export function pairwisePreferences(
  difficulty: readonly number[],
  model: GlmWeights,
  other?: GlmWeights,
): readonly number[] {
  const [, slope, bias] = FEATURES.map((name) => model[name] - (other?.[name] ?? 0)) as [number, number, number];
  return difficulty.map((value) => sigmoid(bias + slope * value));
}

/** The mean of `pairwisePreferences`: a length-controlled win rate, in percent. */
export const pairwiseRate = (difficulty: readonly number[], model: GlmWeights, other?: GlmWeights): number =>
  100 * mean(pairwisePreferences(difficulty, model, other));

/** Whether length control changed a rate by so much that its fit may have failed. */
export const isExtremeChange = (rate: number, controlled: number): boolean =>
  controlled < Math.min(rate * 0.75, rate - 10) || controlled > Math.max(rate + (100 - rate) / 4, rate + 10);

/** A row of `leaderboard.csv`. */
export interface LeaderboardRow extends WinRate {
  avg_length: number;
  length_controlled_winrate?: number;
  lc_standard_error?: number;
}

export const LEADERBOARD_COLUMNS = [
  ...['win_rate', 'standard_error', 'n_wins', 'n_wins_base', 'n_draws', 'n_total', 'discrete_win_rate', 'mode'],
  ...['avg_length', 'length_controlled_winrate', 'lc_standard_error'],
];

/** Characters as Python counts them: code points. */
export const lengthOf = (text: string): number => {
  let count = 0;
  for (const _ of text) count++;
  return count;
};

/** What annotations come to, length control aside. */
export function summarise(annotations: readonly Annotation[]): LeaderboardRow {
  const average = Math.trunc(mean(annotations.map(({ output_2 }) => lengthOf(output_2))));
  return { ...winRate(annotations.map(({ preference }) => preference)), avg_length: average };
}
