/** What evaluations share: answers, judgments, files. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { writeFileAtomic } from '../data/files.js';
import { fault, readTextFile } from '../data/rows.js';
import { readSource } from '../data/source.js';
import { WrpoError } from '../errors.js';
import { answersOf } from './answers.js';
import type { EvaluationConfig, LeaderboardConfig } from './config.js';
import { readCsv, writeCsv } from './csv.js';
import { estimate, type JudgedRow, judge, type Question, type Reader } from './judge.js';

export interface RunOptions {
  retryFailed?: boolean;
  /** Only says what judging would take. */
  dryRun?: boolean;
  signal?: AbortSignal;
  say: (line: string) => void;
  /** Told how many questions are to be judged, and of every judgment. */
  onOpen?: (questions: number) => void;
  onJudged?: () => void;
}

/** What `results.json` holds, beside the numbers of the benchmark. */
export interface Results {
  benchmark: EvaluationConfig['benchmark'];
  model: string;
  [key: string]: unknown;
}

/** Any evaluation but that of the leaderboard, whose results need a model of this process. */
export type JudgedConfig = Exclude<EvaluationConfig, LeaderboardConfig>;

/** What is judged. */
export interface Work<V> {
  /** All that the file of judgments may ever hold. */
  questions: Question[];
  /** Those that are asked. */
  asked: Question[];
  reader: Reader<V>;
  settings: { max_tokens: number; [key: string]: unknown };
}

export async function judgments<V>(
  config: JudgedConfig,
  options: RunOptions,
  work: Work<V> & { promptHash: string },
): Promise<Map<string, JudgedRow<V>>> {
  if (!config.judge) throw lacking(config, 'judge');
  const { dryRun: _, say, ...rest } = options;
  const { questions, asked, ...how } = work;
  const ids = new Set(asked.map(({ id }) => id));
  const path = join(config.outputDir, 'judgments.jsonl');
  const accept = (id: string) => ids.has(id);
  const judged = await judge(questions, {
    accept,
    ...how,
    ...rest,
    judge: config.judge,
    path,
    maxCost: config.maxCost,
  });
  const failed = [...judged.values()].filter(({ failure }) => failure !== undefined);
  if (failed.length > 0) {
    say(
      `${failed.length} of ${judged.size} questions have no judgment (--retry-failed asks them again): ${failed[0]!.failure}`,
    );
  }
  return judged;
}

export function planned(
  config: JudgedConfig,
  model: string,
  work: { asked: Question[]; settings: { max_tokens: number } } | undefined,
): Results {
  const what = { benchmark: config.benchmark, model };
  if (!work) return { ...what, requests: 0 };
  if (!config.judge) throw lacking(config, 'judge');
  return { ...what, ...estimate(work.asked, { settings: work.settings, judge: config.judge }) };
}

export function answers(
  config: JudgedConfig,
  options: RunOptions,
  prompts: Parameters<typeof answersOf>[0],
  directory: string,
  settings: { temperature: number; topP: number; maxTokens: number },
): Promise<string[]> {
  if (options.dryRun)
    throw new WrpoError(
      'ERR_CONFIG',
      'a dry run tells what judging takes, and there are no answers yet: run without it, or name their file',
    );
  const { retryFailed, signal, say } = options;
  return answersOf(prompts, join(config.outputDir, directory), {
    model: config.model!,
    settings,
    seed: config.seed,
    retryFailed,
    signal,
    say,
  });
}

export const lacking = ({ benchmark }: JudgedConfig, what: string) =>
  new WrpoError('ERR_CONFIG', `${benchmark} needs ${what} in the run file`);

export const stampsOf = ({ judge: name, prompt_sha256, date }: JudgedRow<unknown>) => ({
  judge_model: name,
  prompt_sha256,
  date,
});

export const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');

export function readText(path: string): { text: string; hash: string } {
  const text = readTextFile(path);
  return { text, hash: sha256(text) };
}

/** All rows of a file. */
export async function rowsOf<T>(
  path: string,
  read: (value: unknown, where: string) => T = (value) => value as T,
): Promise<T[]> {
  const rows: T[] = [];
  const onFault = (error: unknown): never => {
    throw error;
  };
  for await (const { value, where } of readSource(path, { onFault }, (columns) => columns))
    rows.push(read(value ?? {}, where));
  return rows;
}

/** Answers by question, of one model. Throws ERR_DATA naming the first question without one, or two models. */
export function byId<A extends { id: string | number; model: string }>(
  rows: readonly A[],
  questions: readonly { id: string | number }[],
  file: string,
): Map<A['id'], A> {
  const models = [...new Set(rows.map(({ model }) => model))];
  if (models.length > 1) throw fault(file, `expected the answers of one model, found ${models.join(', ')}`);
  const found = new Map(rows.map((row) => [row.id as A['id'], row]));
  const missing = questions.filter(({ id }) => !found.has(id as A['id']));
  if (missing.length === 0) return found;
  throw fault(
    file,
    `no answer to ${missing.length} of ${questions.length} questions, of which the first is ${missing[0]!.id}`,
  );
}

export function writeJson(path: string, value: unknown): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileAtomic(path, `${JSON.stringify(value, null, 2)}\n`);
}

export function writeJsonLines(path: string, rows: readonly object[]): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileAtomic(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
}

/** Puts a model's row into a table whose first column, without a name, holds models; its earlier row goes. */
export function addToTable(path: string, model: string, columns: readonly string[], row: object): void {
  const others = existsSync(path) ? readCsv(path).filter((one) => one[''] !== model) : [];
  writeCsv(path, ['', ...columns], [...others, { '': model, ...row }]);
}
