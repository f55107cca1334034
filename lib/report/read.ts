/** What a directory holds that a report can tell: a training run, or a fusion with its runs. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { parse } from 'yaml';
import { type output, z } from 'zod';
import { readJsonl } from '../data/jsonl.js';
import { type Content, toPreferenceRow } from '../data/preferences.js';
import { fault, readFault } from '../data/rows.js';
import { readSource } from '../data/source.js';
import type { WrpoError } from '../errors.js';
import type { LogProbRow } from '../evaluate/analyses.js';
import type { ComparisonRow } from '../fuse/comparison.js';
import type { Selection } from '../fuse/quadruples.js';
import type { StageRecord } from '../fuse/stages.js';
import type { Metrics } from '../train/metrics.js';

export interface TrainingRun {
  name: string;
  /** `config.yaml`, with its keys as they are there. */
  config: Record<string, unknown>;
  /** The lines of `metrics.jsonl`. */
  lines: Metrics[];
  /** Steps that it was to take, once that is written. */
  maxSteps?: number;
  /** Whether its model is there. */
  isFinished: boolean;
}

export const QUADRUPLE_ROLES = ['source_chosen', 'target_chosen', 'rejected'] as const;
export type QuadrupleRole = (typeof QUADRUPLE_ROLES)[number];

/** A number for each response of a quadruple. */
export type OfRoles = Record<QuadrupleRole, number>;

export interface Quadruple {
  scores: OfRoles;
  /** In characters. */
  lengths: OfRoles;
}

export interface AnsweredPrompt {
  prompt: Content;
  answers: Record<string, { text: string; reward: number | null }>;
}

export interface Fusion {
  /** In the order in which they were begun. */
  stages: StageRecord[];
  selection?: Selection;
  quadruples: Quadruple[];
  results?: { scorer?: string; rows: ComparisonRow[] };
  answers: AnsweredPrompt[];
  logProbs: LogProbRow[];
}

export interface Directory {
  path: string;
  name: string;
  /** The run that the directory is, or those of its fusion that learn preferences. */
  runs: TrainingRun[];
  /** Target-SFT of a fusion. */
  tuning?: TrainingRun;
  fusion?: Fusion;
}

const number = z.number();
const counts = z.record(z.string(), number);
const ofRoles = z.object({ source_chosen: number, target_chosen: number, rejected: number });
const OBJECT = z.record(z.string(), z.unknown());
/** JSON has null for what is no number. */
const METRICS = z
  .record(z.string(), number.nullable())
  .transform((line) => Object.fromEntries(Object.entries(line).filter(([, value]) => value !== null)) as Metrics);
const STATE = z.object({ max_steps: number.optional() });
const STAGE = z.object({ stage: z.string(), started: z.string(), seconds: number, peak_rss_bytes: number });
const SELECTION = z.object({
  selection: z.object({ rows: counts, prompts: counts, dropped: counts, shares: counts, scores: counts }),
});
const RESULTS = z.object({
  scorer: z.string().optional(),
  rows: z.array(
    z.object({
      ...{ name: z.string(), reward: number.nullable(), reward_stderr: number.nullable(), n: number },
      ...{ win_rate: number.nullable(), win_rate_stderr: number.nullable(), mean_length: number.nullable() },
    }),
  ),
});
const MESSAGES = z.array(z.object({ role: z.string(), content: z.string() }));
const ANSWERED = z.object({
  prompt: z.union([z.string(), MESSAGES]),
  answers: z.record(z.string(), z.object({ text: z.string(), reward: number.nullable() })),
});
const LOG_PROBS = ofRoles.extend({ model: z.string(), lengths: ofRoles });

/** More would not show in a histogram. */
const MOST_QUADRUPLES = 10_000;

/** Throws ERR_DATA when there is neither a run nor a fusion, or when a file is damaged. */
export async function readDirectory(path: string): Promise<Directory> {
  const name = basename(resolve(path));
  if (!existsSync(path)) throw fault(path, 'no such directory');
  if (!statSync(path).isDirectory())
    throw fault(path, 'is a file: a report is made of the directory of a run or a fusion');
  if (existsSync(join(path, 'metrics.jsonl'))) return { path, name, runs: [await readRun(path, name)] };
  if (!existsSync(join(path, 'stages'))) {
    throw fault(path, 'holds no metrics.jsonl of a training run and no stages of a fusion');
  }
  const stages = readStages(join(path, 'stages'));
  const order = (run: string) => stages.findIndex(({ stage }) => stage === `train/${run}`) >>> 0; // what is not done is last
  const names = directoriesIn(join(path, 'train')).sort((a, b) => order(a) - order(b));
  const runs = names.filter((run) => existsSync(join(path, 'train', run, 'metrics.jsonl')));
  const tuning = join(path, 'sft');
  const selection = join(path, 'selected', 'selection.yaml');
  const results = join(path, 'evaluation', 'results.json');
  return {
    path,
    name,
    runs: await Promise.all(runs.map((run) => readRun(join(path, 'train', run), run))),
    ...(existsSync(join(tuning, 'metrics.jsonl')) && { tuning: await readRun(tuning, 'target-sft') }),
    fusion: {
      stages,
      ...(existsSync(selection) && { selection: readAs(SELECTION, selection).selection as Selection }),
      quadruples: await readQuadruples(join(path, 'selected')),
      ...(existsSync(results) && { results: resultsIn(results) }),
      answers: await readLines(ANSWERED, join(path, 'evaluation', 'answers.jsonl')),
      logProbs: await readLines(LOG_PROBS, join(path, 'evaluation', 'logps.jsonl')),
    },
  };
}

async function readRun(directory: string, name: string): Promise<TrainingRun> {
  const config = join(directory, 'config.yaml');
  const state = join(directory, 'trainer_state.json');
  const lines = await readLines(METRICS, join(directory, 'metrics.jsonl'));
  return {
    ...{ name, lines },
    config: existsSync(config) ? readAs(OBJECT, config) : {},
    ...(existsSync(state) && { maxSteps: readAs(STATE, state).max_steps }),
    isFinished: existsSync(state),
  };
}

function readStages(directory: string): StageRecord[] {
  const files = readdirSync(directory).filter((file) => file.endsWith('.json') && file !== 'hashes.json');
  const records = files.map((file) => readAs(STAGE, join(directory, file)) as StageRecord);
  return records.sort((a, b) => a.started.localeCompare(b.started));
}

/** The first rows that preferences are learnt from; none before they are selected. */
async function readQuadruples(directory: string): Promise<Quadruple[]> {
  const file = ['train.jsonl', 'train.parquet'].map((name) => join(directory, name)).find(existsSync);
  const quadruples: Quadruple[] = [];
  if (file === undefined) return quadruples;
  const onFault = (error: WrpoError) => {
    throw error;
  };
  for await (const { value, where } of readSource(file, { onFault }, (columns) => columns)) {
    if (quadruples.length === MOST_QUADRUPLES) break;
    const { responses } = toPreferenceRow(value, where);
    const { meta } = value as { meta?: unknown };
    if (!meta) return [];
    const scores = checked(ofRoles, meta, where);
    const eachRole = (of: (role: QuadrupleRole) => number) =>
      Object.fromEntries(QUADRUPLE_ROLES.map((role) => [role, of(role)])) as OfRoles;
    quadruples.push({
      scores,
      lengths: eachRole((role) => [...wordsOf(responses[role] ?? '')].length),
    });
  }
  return quadruples;
}

/** The text of a prompt or response. */
export const wordsOf = (content: Content): string =>
  typeof content === 'string'
    ? content
    : content
        .map((one) => (typeof one === 'number' ? one : one.content))
        .join(typeof content[0] === 'number' ? ' ' : '\n');

/** Of answers that no prompt has scores for there is nothing to tell. */
function resultsIn(path: string): Fusion['results'] {
  const { scorer, rows } = readAs(RESULTS, path);
  return { scorer, rows: rows.filter(({ reward }) => reward !== null) as ComparisonRow[] };
}

/** Whole lines of a file; none of one that is not there. The last may be half-written. */
async function readLines<T extends z.ZodType>(type: T, path: string): Promise<output<T>[]> {
  const lines: output<T>[] = [];
  if (!existsSync(path)) return lines;
  let damaged: WrpoError | undefined;
  const onFault = (error: WrpoError) => {
    damaged ??= error;
  };
  for await (const { value, where } of readJsonl(path, path, onFault)) {
    if (damaged) throw damaged;
    lines.push(checked(type, value, where));
  }
  return lines;
}

/** A file of YAML or JSON. */
function readAs<T extends z.ZodType>(type: T, path: string): output<T> {
  let value: unknown;
  try {
    value = parse(readFileSync(path, 'utf8'), { logLevel: 'error' });
  } catch (cause) {
    throw readFault(path, cause);
  }
  return checked(type, value, path);
}

function checked<T extends z.ZodType>(type: T, value: unknown, where: string): output<T> {
  const { success, data, error } = type.safeParse(value);
  if (success) return data;
  const { path, message } = error.issues[0]!;
  throw fault(where, `is not as wrpo wrote it: ${[...path.map(String), message].join(': ')}`);
}

const directoriesIn = (path: string): string[] =>
  existsSync(path) ? readdirSync(path).filter((name) => statSync(join(path, name)).isDirectory()) : [];
