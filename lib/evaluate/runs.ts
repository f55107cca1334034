/** Finished runs, fusions and evaluations, as their directories hold them: what tables are made of. */
import { existsSync, readdirSync } from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { fault, readFault, readTextFile } from '../data/rows.js';
import { WrpoError } from '../errors.js';
import type { ComparisonRow } from '../fuse/comparison.js';
import { yaml } from '../packages.js';
import { DIFFICULTY, type GlmWeights, weightsIn } from './alpaca-eval.js';
import { type LogProbRow, readLogProbRow } from './analyses.js';
import { numberIn, readCsv } from './csv.js';

type Values = Record<string, unknown>;

/** A training run, or a model that was only evaluated. */
export interface FinishedRun {
  name: string;
  /** `config.yaml`. */
  config?: Values;
  /** The last values of its log: of training and of evaluation. */
  metrics: Record<string, number>;
  /** `results.json` of evaluations, by benchmark; of MT-Bench's comparisons by `mt_bench_pairs`. */
  results: Record<string, Values>;
  /** What AlpacaEval's regression found, with the difficulties that it was fitted to. */
  lengthControl?: { weights: GlmWeights; difficulty: readonly number[] };
  /** Under the run's model. */
  logProbs: LogProbRow[];
  /** Above it: the fusion, or a folder. */
  parent: string;
  /** Of a fusion's run: the rows that it learnt from, and whose weights it began with. */
  selection?: FinishedSelection;
  start?: 'target' | 'target-sft';
}

/** `selection.yaml`: rows to train on. */
export interface FinishedSelection {
  /** Its directory in the fusion. */
  name: string;
  sources: readonly string[];
  heldOutRows: number;
  /** Percent of prompts whose y_ws is a source's own. */
  shares: Readonly<Record<string, number>>;
  /** Means by role. */
  scores: Readonly<Record<string, number>>;
}

export interface FinishedFusion {
  name: string;
  selections: FinishedSelection[];
  /** On held-out prompts, by the fusion's own scorer. */
  comparison?: { scorer: string; rows: readonly ComparisonRow[] };
  /** Under its models. */
  logProbs: LogProbRow[];
}

export interface Finished {
  runs: FinishedRun[];
  fusions: FinishedFusion[];
}

/** A run's directory, a fusion's, or one that only holds others, with the files that are its own. */
interface Place {
  kind: 'run' | 'fusion' | 'folder';
  directory: string;
  above?: Place;
  files: string[];
}

/** So far below its place a file is looked for. */
const DEPTH = 3;
const FILES = ['results.json', 'selection.yaml', 'logps.jsonl'];

/**
 * All runs, fusions and evaluations in directories and below them. An evaluation below a run is the run's; any other in a
 * fusion is that of the run with the model's name, or of a model that has no run. Throws ERR_DATA for a directory that holds
 * nothing of all this, a damaged file, and two evaluations of one model by one benchmark; with `onFault`, it is told and the
 * rest read.
 */
export function readFinished(
  directories: readonly string[],
  onFault: (error: WrpoError) => void = (error) => {
    throw error;
  },
): Finished {
  const attempt = (work: () => void) => {
    try {
      work();
    } catch (error) {
      if (!(error instanceof WrpoError)) throw error;
      onFault(error);
    }
  };
  const all: Finished = { runs: [], fusions: [] };
  for (const directory of directories) {
    if (!existsSync(directory)) throw fault(directory, 'no such directory');
    const places = placesIn(directory);
    const fusions = new Map<Place, FinishedFusion>();
    const runs = new Map<Place, FinishedRun>();
    for (const place of places) if (place.kind === 'fusion') attempt(() => fusions.set(place, readFusion(place)));
    for (const place of places) {
      const fusion = place.above && fusions.get(place.above);
      if (place.kind === 'run') attempt(() => runs.set(place, readRun(place, fusion)));
    }
    const own: FinishedRun[] = [...runs.values()];
    for (const place of places) {
      const runOf = (name: string) => {
        const parent = place.kind === 'fusion' ? place.directory : dirname(resolve(place.directory));
        const run = runs.get(place) ?? own.find((one) => one.name === name) ?? emptyRun(name, parent);
        if (!own.includes(run)) own.push(run);
        return run;
      };
      for (const path of place.files) {
        attempt(() => {
          const name = nameOf(place.directory);
          if (place.kind === 'folder' && basename(path) === 'logps.jsonl') {
            runOf(name).logProbs.push(...logProbsIn(path, name));
          }
          if (basename(path) !== 'results.json') return;
          const values = read(path) as Values;
          if (typeof values.benchmark !== 'string') return; // a comparison, or another program's
          addEvaluation(runOf(place.kind === 'fusion' ? String(values.model) : name), values, path, place);
        });
      }
    }
    all.runs.push(...own);
    all.fusions.push(...fusions.values());
    if (own.length + fusions.size > 0) continue;
    attempt(() => {
      const what = 'holds no config.yaml of a run, no results.json of an evaluation and no selection.yaml';
      throw fault(directory, what);
    });
  }
  const names = all.runs.map(({ name }) => name);
  for (const run of all.runs) {
    if (names.filter((name) => name === run.name).length > 1) run.name = `${run.parent}/${run.name}`;
  }
  return all;
}

const nameOf = (directory: string): string => basename(resolve(directory));

/** `parent`: as a directory. */
const emptyRun = (name: string, parent: string): FinishedRun => ({
  ...{ name, parent: nameOf(parent), metrics: {}, results: {}, logProbs: [] },
});

function placesIn(directory: string): Place[] {
  const places: Place[] = [];
  const visit = (folder: string, above: Place | undefined, depth: number) => {
    const kind = existsSync(join(folder, 'stages'))
      ? 'fusion'
      : existsSync(join(folder, 'config.yaml'))
        ? 'run'
        : 'folder';
    const isOwn = kind !== 'folder' || above === undefined;
    const place: Place = isOwn ? { kind, directory: folder, above, files: [] } : above;
    if (isOwn) places.push(place);
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (!entry.isDirectory()) {
        if (FILES.includes(entry.name)) place.files.push(path);
      } else if ((isOwn || depth < DEPTH) && !entry.name.startsWith('checkpoint-')) {
        visit(path, place, isOwn ? 1 : depth + 1);
      }
    }
  };
  visit(directory, undefined, 0);
  // A selection alone, without stages, is a fusion too.
  for (const place of places) {
    if (place.kind === 'folder' && place.files.some((path) => basename(path) === 'selection.yaml'))
      place.kind = 'fusion';
  }
  return places;
}

function readFusion({ directory, files }: Place): FinishedFusion {
  const fusion: FinishedFusion = { name: nameOf(directory), selections: [], logProbs: [] };
  for (const path of files) {
    if (basename(path) === 'selection.yaml') {
      fusion.selections.push(selectionIn(read(path) as Values, relative(directory, dirname(path))));
    } else if (basename(path) === 'logps.jsonl') fusion.logProbs.push(...logProbsIn(path, fusion.name));
    else {
      const { benchmark, scorer = '', rows } = read(path) as Values;
      if (benchmark === undefined && Array.isArray(rows)) fusion.comparison = { scorer: String(scorer), rows };
    }
  }
  return fusion;
}

function selectionIn(file: Values, name: string): FinishedSelection {
  const { rule, selection = file } = file as { rule?: { sources?: string[] }; selection?: Values };
  const { shares, scores, rows } = selection as Record<string, Record<string, number> | undefined>;
  return {
    ...{ name, shares: shares ?? {}, scores: scores ?? {}, heldOutRows: rows?.test ?? 0 },
    sources: rule?.sources ?? Object.keys(shares ?? {}),
  };
}

function readRun({ directory, files, above }: Place, fusion: FinishedFusion | undefined): FinishedRun {
  const folder = nameOf(directory);
  const parent = above && fusion ? above.directory : dirname(resolve(directory));
  const run = emptyRun(fusion && folder === 'sft' ? 'target-sft' : folder, parent);
  run.config = read(join(directory, 'config.yaml')) as Values;
  const state = join(directory, 'trainer_state.json');
  if (existsSync(state)) {
    const { log_history: history = [] } = read(state) as { log_history?: Record<string, number>[] };
    for (const line of history) Object.assign(run.metrics, line);
  }
  for (const path of files) if (basename(path) === 'logps.jsonl') run.logProbs.push(...logProbsIn(path, run.name));
  const record = above && join(above.directory, 'stages', `train-${folder}.json`);
  if (fusion && record && existsSync(record)) {
    const inputs = Object.keys((read(record) as { inputs?: object }).inputs ?? {});
    run.start = inputs.some((name) => name.startsWith('sft/')) ? 'target-sft' : 'target';
    run.selection = fusion.selections.find(({ name }) => inputs.some((input) => dirname(input) === name));
  }
  return run;
}

function addEvaluation(run: FinishedRun, values: Values, path: string, { directory }: Place): void {
  const kind = values.benchmark === 'mt_bench' && 'against' in values ? 'mt_bench_pairs' : String(values.benchmark);
  if (run.results[kind]) {
    const what = `holds two evaluations by ${values.benchmark} of "${run.name}", one of them in ${dirname(path)}`;
    throw fault(directory, `${what}; name their directories`);
  }
  run.results[kind] = values;
  if (kind !== 'alpaca_eval') return;
  const [weights, difficulty] = ['weights.csv', DIFFICULTY].map((file) => join(dirname(path), file));
  if (!existsSync(weights!) || !existsSync(difficulty!)) return;
  const own = readCsv(weights!).find((row) => row[''] === values.model);
  if (!own) return;
  run.lengthControl = {
    weights: weightsIn(own, weights!),
    difficulty: readCsv(difficulty!).map((row) => numberIn(row, 'instruction_difficulty', difficulty!)),
  };
}

const logProbsIn = (path: string, model: string): LogProbRow[] =>
  readTextFile(path)
    .split('\n')
    .flatMap((line, i) => (line.trim() === '' ? [] : [readLogProbRow(line, `${path} line ${i + 1}`, model)]));

function read(path: string): unknown {
  const text = readTextFile(path);
  try {
    return yaml().parse(text, { logLevel: 'error' }) ?? {}; // JSON is YAML
  } catch (cause) {
    throw readFault(path, cause);
  }
}
