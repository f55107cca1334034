/** What a directory of a training run or of a fusion has to tell, as data; what is not there is left out. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { parse } from 'yaml';
import { type Content, type Role, readPreferences } from '../data/preferences.js';
import { fault } from '../data/rows.js';
import { readSource } from '../data/source.js';
import { readRun, type Table, tablesOf } from '../evaluate/tables.js';
import { type ComparisonRow, readComparison } from '../fuse/comparison.js';
import { linesOf } from '../fuse/lines.js';
import type { StageRecord } from '../fuse/stages.js';
import type { Metrics } from '../train/metrics.js';

/** A training run's log. */
export interface RunCurves {
  name: string;
  lossType: string;
  /** Lines of the training itself, and of evaluations. */
  lines: Metrics[];
  evaluations: Metrics[];
}

/** What the quadruples are like. */
export interface Quadruples {
  count: number;
  /** Mean scores, where they are known, and mean lengths in characters (of token ids: in tokens). */
  roles: { role: Role; score?: number; length: number }[];
  unit: 'characters' | 'tokens';
  /** Differences of scores, row by row. */
  gaps: { name: string; values: number[] }[];
}

/** Mean log-probs of a token, of each response of each role. */
export interface Likelihood {
  model: string;
  roles: { role: Role; values: number[] }[];
}

/** A held-out prompt with what the models answered. */
export interface Example {
  prompt: string;
  answers: { model: string; text: string; reward?: number }[];
}

export interface ReportData {
  directory: string;
  name: string;
  isFusion: boolean;
  runs: RunCurves[];
  results: ComparisonRow[];
  scorer?: string;
  /** Percentages of the prompts whose y_ws is a source's. */
  shares: { source: string; share: number }[];
  selection?: { rows: Record<string, number>; dropped: Record<string, number> };
  quadruples?: Quadruples;
  likelihoods: Likelihood[];
  examples: Example[];
  stages: StageRecord[];
  tables: Table[];
}

const MOST_EXAMPLES = 12;
const MOST_ROWS = 20_000;
const ROLES: readonly Role[] = ['source_chosen', 'target_chosen', 'rejected', 'source_rejected'];

/** Throws ERR_DATA when the directory is no run's and no fusion's, or something in it is damaged (named). */
export async function readReport(directory: string): Promise<ReportData> {
  const at = (...parts: string[]) => join(directory, ...parts);
  const isFusion = existsSync(at('stages'));
  const runs = isFusion
    ? [...curvesOf(at('sft'), 'sft'), ...below(at('train')).flatMap((name) => curvesOf(at('train', name), name))]
    : curvesOf(directory, basename(resolve(directory)));
  if (!isFusion && runs.length === 0) {
    throw fault(directory, 'is no run and no fusion: there is no metrics.jsonl and no stages');
  }
  const comparison = existsSync(at('evaluation', 'results.json')) ? readComparison(at('evaluation')) : [];
  const selection =
    readSelection(at('selected', 'selection.yaml')) ?? readSelection(at('selected-sft', 'selection.yaml'));
  return {
    ...{ directory, name: basename(resolve(directory)), isFusion, runs, results: comparison },
    scorer: comparison.length > 0 ? read(at('evaluation', 'results.json')).scorer : undefined,
    shares: Object.entries(selection?.shares ?? {}).map(([source, share]) => ({ source, share })),
    selection: selection && { rows: selection.rows, dropped: selection.dropped },
    quadruples: await readQuadruples(at('selected'), selection?.scores ?? {}),
    likelihoods: readLikelihoods(at('evaluation', 'logps.jsonl')),
    examples: readExamples(at('evaluation', 'answers.jsonl')),
    stages: below(at('stages'))
      .filter((name) => name.endsWith('.json') && name !== 'hashes.json')
      .map((name) => read(at('stages', name)) as StageRecord)
      .sort((a, b) => (a.started < b.started ? -1 : 1)),
    tables: benchmarksOf(directory, isFusion),
  };
}

const below = (directory: string): string[] => (existsSync(directory) ? readdirSync(directory).sort() : []);

/** Of JSON or YAML. */
// biome-ignore lint/suspicious/noExplicitAny: each caller knows what it reads
function read(path: string): any {
  try {
    return parse(readFileSync(path, 'utf8'));
  } catch (cause) {
    throw fault(path, `cannot be read: ${(cause as Error).message.split('\n')[0]}`, cause);
  }
}

/** Lines of JSON; the last may be half-written, of a run that goes on. */
function readLines<T>(path: string, most = Number.POSITIVE_INFINITY): T[] {
  const rows: T[] = [];
  if (!existsSync(path)) return rows;
  for (const { line } of linesOf(path)) {
    if (rows.length === most) break;
    try {
      rows.push(JSON.parse(line.toString()));
    } catch (cause) {
      if (line.at(-1) === 10) throw fault(`${path} line ${rows.length + 1}`, 'is no JSON object', cause);
    }
  }
  return rows;
}

/** One run, if there is one. */
export function curvesOf(directory: string, name: string): RunCurves[] {
  const file = join(directory, 'metrics.jsonl');
  if (!existsSync(file)) return [];
  const all = readLines<Metrics>(file);
  const config = existsSync(join(directory, 'config.yaml')) ? read(join(directory, 'config.yaml')) : {};
  return [
    {
      ...{ name, lossType: String(config.loss_type ?? ''), lines: all.filter((line) => 'loss' in line) },
      evaluations: all.filter((line) => 'eval_loss' in line),
    },
  ];
}

interface SelectionFile {
  rows: Record<string, number>;
  dropped: Record<string, number>;
  shares: Record<string, number>;
  scores: Record<string, number>;
}

const readSelection = (path: string): SelectionFile | undefined =>
  existsSync(path) ? read(path).selection : undefined;

async function readQuadruples(directory: string, means: Record<string, number>): Promise<Quadruples | undefined> {
  const file = ['jsonl', 'parquet']
    .map((ending) => join(directory, `train.${ending}`))
    .find((path) => existsSync(path));
  if (file === undefined) return undefined;
  const lengths = new Map<Role, number[]>();
  let count = 0;
  let unit: Quadruples['unit'] = 'characters';
  for await (const { responses } of readPreferences(file)) {
    for (const role of ROLES) {
      const response = responses[role];
      if (response === undefined) continue;
      if (typeof response !== 'string' && typeof response[0] === 'number') unit = 'tokens';
      lengths.set(role, [...(lengths.get(role) ?? []), lengthOf(response)]);
    }
    if (++count === MOST_ROWS) break;
  }
  const gaps: [string, Role, Role][] = [
    ['y_ws − y_wt', 'source_chosen', 'target_chosen'],
    ['y_wt − y_l', 'target_chosen', 'rejected'],
  ];
  const scores = await scoresIn(file);
  return {
    ...{ count, unit },
    roles: [...lengths].map(([role, values]) => ({ role, score: means[role], length: mean(values) })),
    gaps: gaps
      .map(([name, a, b]) => ({ name, values: scores.flatMap((row) => gapOf(row[a], row[b])) }))
      .filter(({ values }) => values.length > 0),
  };
}

const gapOf = (a: number | undefined, b: number | undefined) => (a === undefined || b === undefined ? [] : [a - b]);

/** The scores that rows carry beside their texts. */
async function scoresIn(file: string): Promise<Partial<Record<Role, number>>[]> {
  const scores: Partial<Record<Role, number>>[] = [];
  const onFault = (error: unknown) => {
    throw error;
  };
  const choose = (columns: readonly string[]) => columns.filter((column) => column === 'meta');
  for await (const { value } of readSource(file, { onFault }, choose)) {
    const meta = (value as { meta?: Partial<Record<Role, number>> }).meta;
    if (meta) scores.push(meta);
    if (scores.length === MOST_ROWS) break;
  }
  return scores;
}

function lengthOf(content: Content): number {
  if (typeof content === 'string') return [...content].length;
  if (typeof content[0] === 'number') return content.length;
  return (content as { content: string }[]).reduce((sum, turn) => sum + [...turn.content].length, 0);
}

function readLikelihoods(path: string): Likelihood[] {
  type Line = { model: string; lengths: Partial<Record<Role, number>> } & Partial<Record<Role, number>>;
  const byModel = new Map<string, Line[]>();
  for (const line of readLines<Line>(path)) byModel.set(line.model, [...(byModel.get(line.model) ?? []), line]);
  return [...byModel].map(([model, lines]) => ({
    model,
    roles: ROLES.flatMap((role) => {
      const values = lines.flatMap((line) => (line[role] === undefined ? [] : [line[role] / line.lengths[role]!]));
      return values.length > 0 ? [{ role, values }] : [];
    }),
  }));
}

function readExamples(path: string): Example[] {
  type Line = {
    prompt: { role: string; content: string }[];
    answers: Record<string, { text: string; reward: number | null }>;
  };
  return readLines<Line>(path, MOST_EXAMPLES).map(({ prompt, answers }) => ({
    prompt: prompt.map(({ role, content }) => (role === 'user' ? content : `${role}: ${content}`)).join('\n\n'),
    answers: Object.entries(answers).map(([model, { text, reward }]) => ({ model, text, reward: reward ?? undefined })),
  }));
}

/** What benchmarks found of the run, or of each run of a fusion. */
function benchmarksOf(directory: string, isFusion: boolean): Table[] {
  const directories = isFusion
    ? below(join(directory, 'train')).map((name) => join(directory, 'train', name))
    : [directory];
  const runs = directories.filter((dir) => existsSync(join(dir, 'metrics.jsonl'))).map(readRun);
  return tablesOf(runs).filter(({ title }) => /^(Benchmarks|Objectives|Training time)/.test(title));
}

export const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;
