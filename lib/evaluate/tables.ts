/** The paper's tables and figures out of finished runs, as rows: what was trained how, what it gained. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { fault } from '../data/rows.js';
import { yaml } from '../packages.js';
import { increase, weightedMargin } from './analyses.js';

type Values = Record<string, unknown>;

/** A directory with what was found in it and below. */
export interface FinishedRun {
  name: string;
  /** `config.yaml` of a training run. */
  config?: Values;
  /** The last values of its log: of training and of evaluation. */
  metrics: Record<string, number>;
  /** `results.json` of evaluations, by benchmark. */
  results: Record<string, Values>;
  /** `selection.yaml` of a fusion. */
  selection?: Values;
}

/** A table of texts; the first column names the run. */
export interface Table {
  title: string;
  columns: string[];
  rows: string[][];
}

/** Evaluations lie in a run's own directory or below it. */
const DEPTH = 3;

/** Throws ERR_DATA when a directory holds nothing that a run or an evaluation leaves, or two evaluations of one kind. */
export function readRun(directory: string): FinishedRun {
  const run: FinishedRun = { name: basename(resolve(directory)), metrics: {}, results: {} };
  const config = join(directory, 'config.yaml');
  if (existsSync(config)) run.config = read(config) as Values;
  const state = join(directory, 'trainer_state.json');
  if (existsSync(state)) {
    const { log_history: history = [] } = read(state) as { log_history?: Record<string, number>[] };
    for (const line of history) Object.assign(run.metrics, line);
  }
  const visit = (folder: string, depth: number) => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.isDirectory() && depth < DEPTH && !entry.name.startsWith('checkpoint-')) visit(path, depth + 1);
      if (entry.name === 'selection.yaml') run.selection = read(path) as Values;
      if (entry.name !== 'results.json') continue;
      const results = read(path) as Values;
      const benchmark = String(results.benchmark);
      if (run.results[benchmark])
        throw fault(directory, `holds two evaluations by ${benchmark}; name their directories`);
      run.results[benchmark] = results;
    }
  };
  if (!existsSync(directory)) throw fault(directory, 'no such directory');
  visit(directory, 0);
  if (run.config || run.selection || Object.keys(run.results).length > 0) return run;
  throw fault(directory, 'holds no config.yaml of a run, no results.json of an evaluation and no selection.yaml');
}

function read(path: string): unknown {
  try {
    return yaml().parse(readFileSync(path, 'utf8')); // JSON is YAML
  } catch (cause) {
    throw fault(path, `cannot be read: ${(cause as Error).message.split('\n')[0]}`, cause);
  }
}

const number = (value: unknown, digits: number): string =>
  typeof value === 'number' && Number.isFinite(value) ? value.toFixed(digits) : '';

/** `value ± error`, the error where there is one. */
const withError = (value: unknown, error: unknown, digits = 1): string => {
  const said = number(value, digits);
  return said !== '' && typeof error === 'number' ? `${said} ± ${error.toFixed(digits)}` : said;
};

/** All tables that the runs have something for. */
export function tablesOf(runs: readonly FinishedRun[]): Table[] {
  return [benchmarks(runs), objectives(runs), margins(runs), times(runs), sources(runs)].filter(
    ({ rows }) => rows.length > 0,
  );
}

/** Tables 2, 4, 9 and 10, Fig. 4: benchmarks, with standard errors or intervals. */
function benchmarks(runs: readonly FinishedRun[]): Table {
  const rows = runs
    .filter(({ results }) => Object.keys(results).length > 0)
    .map(({ name, results }) => {
      const { alpaca_eval: alpaca, arena_hard: arena, mt_bench: mt, open_llm_leaderboard: leaderboard } = results;
      const interval = arena ? ` (${number(arena.lower, 1)} to ${number(arena.upper, 1)})` : '';
      return [
        name,
        withError(alpaca?.length_controlled_winrate, alpaca?.lc_standard_error),
        withError(alpaca?.win_rate, alpaca?.standard_error),
        number(alpaca?.avg_length, 0),
        `${number(arena?.score, 1)}${interval}`,
        ...[mt?.first_turn, mt?.second_turn, mt?.average].map((value) => number(value, 2)),
        number(leaderboard?.average, 2),
      ];
    });
  const columns = ['run', 'LC', 'WR', 'length', 'Arena-Hard', 'MT T1', 'MT T2', 'MT', 'Open LLM'];
  return { title: 'Benchmarks (Tables 2, 4, 9, 10; Fig. 4)', columns, rows };
}

/** Figs. 5 and 6: alpha, static or rising, against LC and hybrid-policy accuracy on held-out prompts. */
function objectives(runs: readonly FinishedRun[]): Table {
  const rows = runs.flatMap(({ name, config, metrics, results: { alpaca_eval: alpaca } }) => {
    if (!config) return [];
    const accuracy = metrics['eval_rewards/source_accuracies'];
    const { loss_type = '', beta, alpha, is_dynamic: rises } = config;
    const mode = alpha === undefined ? '' : rises === false ? 'static' : 'dynamic';
    const cells = [name, String(loss_type), String(beta ?? ''), String(alpha ?? ''), mode];
    const lc = withError(alpaca?.length_controlled_winrate, alpaca?.lc_standard_error);
    return [[...cells, lc, accuracy === undefined ? '' : number(100 * accuracy, 1)]];
  });
  const columns = ['run', 'loss', 'beta', 'alpha', 'mode', 'LC', 'hybrid accuracy'];
  return { title: 'Objectives (Figs. 5 and 6)', columns, rows };
}

/** Fig. 3: where rewards and margins ended. */
function margins(runs: readonly FinishedRun[]): Table {
  const rows = runs.flatMap(({ name, metrics }) => {
    const [ws, wt, l] = ['source_chosen', 'target_chosen', 'rejected'].map((role) => metrics[`rewards/${role}`]);
    if (ws === undefined || wt === undefined || l === undefined) return [];
    const weighted = metrics.cur_alpha === undefined ? undefined : weightedMargin(metrics.cur_alpha, ws - l, wt - l);
    return [[name, ...[ws, wt, l, ws - l, wt - l, weighted].map((value) => number(value, 4))]];
  });
  const columns = ['run', 'r(y_ws)', 'r(y_wt)', 'r(y_l)', 'hybrid margin', 'on-policy margin', 'weighted margin'];
  return { title: 'Rewards at the end of training (Fig. 3)', columns, rows };
}

/** Table 8: minutes of training, against the first DPO run. */
function times(runs: readonly FinishedRun[]): Table {
  const timed = runs.filter(({ metrics }) => metrics.train_runtime !== undefined);
  const dpo = timed.find(({ config }) => config?.loss_type === 'sigmoid' || config?.loss_type === 'dpo');
  const rows = timed.map(({ name, metrics: { train_runtime: seconds } }) => {
    const more = dpo ? number(increase(dpo.metrics.train_runtime!, seconds!), 2) : '';
    return [name, number(seconds! / 60, 1), more];
  });
  return { title: 'Training time (Table 8)', columns: ['run', 'minutes', '% above DPO'], rows };
}

/** Table 1: from which source the best response came, and Table 10's mean scores. */
function sources(runs: readonly FinishedRun[]): Table {
  const rows = runs.flatMap(({ name, selection }) => {
    const pairs = (key: string) => Object.entries((selection?.[key] ?? {}) as Record<string, number>);
    return [
      ...pairs('shares').map(([source, share]) => [name, `share of ${source}, %`, number(share, 2)]),
      ...pairs('scores').map(([role, score]) => [name, `mean score of ${role}`, number(score, 4)]),
    ];
  });
  return { title: 'Responses (Tables 1 and 10)', columns: ['fusion', 'what', 'value'], rows };
}
