/** The paper's tables and figures out of finished runs: what was trained how, and what it gained. */
import { WrpoError } from '../errors.js';
import { type GlmWeights, pairwisePreferences } from './alpaca-eval.js';
import { increase, summariseLogProbs, weightedMargin } from './analyses.js';
import { type Cell, measured, type Table } from './cells.js';
import { reportedMetric } from './harness-results.js';
import type { Finished, FinishedFusion, FinishedRun } from './runs.js';
import { mean, standardError } from './statistics.js';
import { TASKS } from './tasks.js';

/** Weights of AlpacaEval's regression by model, of a saved weights file. */
export type SavedWeights = ReadonlyMap<string, GlmWeights>;

/** All tables that there is something for. Throws ERR_DATA for runs whose AlpacaEval was not fitted to the same instructions. */
export function tablesOf({ runs, fusions }: Finished, saved: SavedWeights = new Map()): Table[] {
  return [
    benchmarks(runs),
    leaderboard(runs),
    ablations(runs),
    objectives(runs),
    pairwise(runs, saved),
    pairs(runs),
    margins(runs),
    times(runs),
    responses(fusions),
    logProbs(runs, fusions),
    comparisons(fusions),
  ].filter(({ rows }) => rows.length > 0);
}

const lcOf = ({ results: { alpaca_eval: alpaca } }: FinishedRun): Cell =>
  measured(alpaca?.length_controlled_winrate, 1, { stderr: alpaca?.lc_standard_error as number | undefined });

/** How a run began, and the rows that it learnt from: `selected`, or another selection of its fusion. */
const originOf = ({ start, selection }: FinishedRun): string[] => [
  ...[start ?? '', selection?.name.replace(/^selections\//, '') ?? '', String(selection?.sources.length ?? '')],
];
const ORIGIN = ['begins with', 'selection', 'sources'];

/** Tables 2, 4 and 9, and the last rows of Table 10: benchmarks, with standard errors or intervals. */
function benchmarks(runs: readonly FinishedRun[]): Table {
  const evaluated = runs.filter(({ results }) => Object.keys(results).length > 0);
  const rows = evaluated.map((run): Cell[] => {
    const { alpaca_eval: alpaca, arena_hard: arena, mt_bench: mt, open_llm_leaderboard: leaderboard } = run.results;
    return [
      ...[run.name, ...originOf(run), lcOf(run)],
      measured(alpaca?.win_rate, 1, { stderr: alpaca?.standard_error as number | undefined }),
      measured(alpaca?.avg_length, 0),
      measured(arena?.score, 1, { interval: [Number(arena?.lower), Number(arena?.upper)] }),
      measured(arena?.style_controlled, 1),
      ...[mt?.first_turn, mt?.second_turn, mt?.average].map((value) => measured(value, 2)),
      measured(leaderboard?.average, 2),
    ];
  });
  const scores = ['LC', 'WR', 'length', 'Arena-Hard', 'style-controlled', 'MT T1', 'MT T2', 'MT', 'Open LLM'];
  return { title: 'Benchmarks (Tables 2, 4, 9 and 10)', columns: ['run', ...ORIGIN, ...scores], rows };
}

/** The six tasks, in percent. */
function leaderboard(runs: readonly FinishedRun[]): Table {
  const tasks = Object.entries(TASKS);
  const rows = runs.flatMap(({ name, results: { open_llm_leaderboard: found } }): Cell[][] => {
    if (!found) return [];
    const results = found.results as Record<string, Record<string, number> | undefined>;
    const cells = tasks.map(([name, task]) => {
      const metric = reportedMetric(task);
      const percent = (key: string) => 100 * (results[name]?.[key] ?? Number.NaN);
      return measured(percent(metric), 2, { stderr: percent(metric.replace(',', '_stderr,')) });
    });
    return [[name, ...cells, measured(found.average, 2)]];
  });
  return { title: 'Open LLM Leaderboard', columns: ['run', ...tasks.map(([task]) => task), 'average'], rows };
}

/** Which of y_ws and y_wt a run's objective leaves out, if it is one of Fig. 4's. */
function leftOut(run: FinishedRun): 'y_ws' | 'y_wt' | 'nothing' | undefined {
  const { loss_type, alpha, is_dynamic, chosen } = run.config ?? {};
  if (isDpo(run)) return chosen === 'source' ? 'y_wt' : 'y_ws';
  if (loss_type !== 'wrpo') return undefined;
  if (is_dynamic === false && alpha === 0) return 'y_ws';
  return is_dynamic === false && alpha === 1 ? 'y_wt' : 'nothing';
}

/** Fig. 4: what LC loses without y_ws or y_wt, against the first WRPO run that begins with the same model and rows. */
function ablations(runs: readonly FinishedRun[]): Table {
  const rows = runs.flatMap((run): Cell[][] => {
    const without = leftOut(run);
    const isComparable = (one: FinishedRun) => one.start === run.start && one.selection?.name === run.selection?.name;
    const full = runs.find((one) => leftOut(one) === 'nothing' && isComparable(one));
    const [own, whole] = [run, full].map((one) => one?.results.alpaca_eval?.length_controlled_winrate);
    if (without === undefined || typeof own !== 'number' || typeof whole !== 'number') return [];
    return [[run.name, run.start ?? '', without, lcOf(run), run === full ? '' : measured(own - whole, 1)]];
  });
  const isTold = rows.some((row) => row[2] !== 'nothing');
  return {
    title: 'Ablations (Fig. 4)',
    columns: ['run', 'begins with', 'without', 'LC', 'change'],
    rows: isTold ? rows : [],
  };
}

/** Figs. 5 and 6: alpha, static or rising, against LC and hybrid-policy accuracy on held-out prompts. */
function objectives(runs: readonly FinishedRun[]): Table {
  const rows = runs.flatMap((run): Cell[][] => {
    const { name, config, metrics, selection } = run;
    if (!config) return [];
    const { loss_type = '', beta, alpha, is_dynamic: rises } = config;
    const mode = alpha === undefined ? '' : rises === false ? 'static' : 'dynamic';
    const accuracy = metrics['eval_rewards/source_accuracies'];
    const count = selection?.heldOutRows ?? 0;
    // Of a share among so many rows.
    const stderr =
      accuracy !== undefined && count > 1 ? 100 * Math.sqrt((accuracy * (1 - accuracy)) / (count - 1)) : undefined;
    const loss = `${loss_type}${config.chosen === 'source' ? ' on y_ws' : ''}`;
    const setting = [loss, beta, alpha].map((value) => String(value ?? ''));
    return [[name, ...setting, mode, lcOf(run), measured(100 * accuracy!, 1, { stderr })]];
  });
  const columns = ['run', 'loss', 'beta', 'alpha', 'mode', 'LC', 'hybrid accuracy'];
  return { title: 'Objectives (Figs. 5 and 6)', columns, rows };
}

/** Length-controlled win rates of the runs over each other, and over models whose weights are saved. */
function pairwise(runs: readonly FinishedRun[], saved: SavedWeights): Table {
  const fitted = runs.flatMap(({ name, lengthControl }) => (lengthControl ? [{ name, ...lengthControl }] : []));
  const rows = fitted.flatMap(({ name, weights, difficulty }, i): Cell[][] => {
    const others: [string, GlmWeights][] = fitted.slice(i + 1).map((other) => {
      const differs = difficulty.some((value, k) => Math.abs(value - (other.difficulty[k] ?? Number.NaN)) > 1e-9);
      if (!differs && difficulty.length === other.difficulty.length) return [other.name, other.weights];
      throw new WrpoError('ERR_DATA', `${name} and ${other.name} were fitted to other difficulties of instructions`);
    });
    return [...others, ...saved].map(([other, theirs]): Cell[] => {
      const preferences = pairwisePreferences(difficulty, weights, theirs);
      return [name, other, measured(100 * mean(preferences), 1, { stderr: 100 * standardError(preferences) })];
    });
  });
  return { title: 'AlpacaEval, model against model', columns: ['run', 'against', 'LC'], rows };
}

/** MT-Bench, two models compared. */
function pairs(runs: readonly FinishedRun[]): Table {
  const rows = runs.flatMap(({ name, results: { mt_bench_pairs: result } }): Cell[][] => {
    if (!result) return [];
    const counts = [result.win, result.loss, result.tie].map((count) => measured(count, 0));
    return [[name, String(result.against), ...counts, measured(100 * Number(result.win_rate_adjusted), 1)]];
  });
  return {
    title: 'MT-Bench, model against model',
    columns: ['run', 'against', 'wins', 'losses', 'ties', 'win rate'],
    rows,
  };
}

/** Fig. 3: where rewards and margins ended. */
function margins(runs: readonly FinishedRun[]): Table {
  const rows = runs.flatMap(({ name, metrics }): Cell[][] => {
    const [ws, wt, l] = ['source_chosen', 'target_chosen', 'rejected'].map((role) => metrics[`rewards/${role}`]);
    if (ws === undefined || wt === undefined || l === undefined) return [];
    const weighted = metrics.cur_alpha === undefined ? undefined : weightedMargin(metrics.cur_alpha, ws - l, wt - l);
    return [[name, ...[ws, wt, l, ws - l, wt - l, weighted].map((value) => measured(value, 4))]];
  });
  const columns = ['run', 'r(y_ws)', 'r(y_wt)', 'r(y_l)', 'hybrid margin', 'on-policy margin', 'weighted margin'];
  return { title: 'Rewards at the end of training (Fig. 3)', columns, rows };
}

/** Table 8: minutes of training, against the first DPO run of as many sources. */
function times(runs: readonly FinishedRun[]): Table {
  const timed = runs.filter(({ metrics }) => metrics.train_runtime !== undefined);
  const countOf = ({ selection }: FinishedRun) => selection?.sources.length;
  const rows = timed.map((run): Cell[] => {
    const { loss_type } = run.config ?? {};
    const dpo = timed.find((one) => isDpo(one) && countOf(one) === countOf(run));
    const seconds = run.metrics.train_runtime!;
    const more = dpo && loss_type !== 'sft' ? measured(increase(dpo.metrics.train_runtime!, seconds), 2) : '';
    return [run.name, String(countOf(run) ?? ''), measured(seconds / 60, 1), more];
  });
  return { title: 'Training time (Table 8)', columns: ['run', 'sources', 'minutes', '% above DPO'], rows };
}

const isDpo = ({ config }: FinishedRun): boolean => config?.loss_type === 'sigmoid' || config?.loss_type === 'dpo';

/** Table 1: from which source the best response came, and Table 10's mean scores. */
function responses(fusions: readonly FinishedFusion[]): Table {
  const rows = fusions.flatMap(({ name, selections }) =>
    selections.flatMap(({ name: selection, shares, scores }): Cell[][] => [
      ...Object.entries(shares).map(([source, share]) => [
        name,
        selection,
        `share of ${source}, %`,
        measured(share, 2),
      ]),
      ...Object.entries(scores).map(([role, score]) => [name, selection, `mean score of ${role}`, measured(score, 4)]),
    ]),
  );
  return { title: 'Responses (Tables 1 and 10)', columns: ['fusion', 'selection', 'what', 'value'], rows };
}

/** Fig. 1: log-probs per token of y_ws, y_wt and y_l under each model, how far the first lies from the last, and LC. */
function logProbs(runs: readonly FinishedRun[], fusions: readonly FinishedFusion[]): Table {
  const groups = [
    ...fusions.map(({ name, logProbs: rows }) => ({ within: name, rows })),
    { within: '', rows: runs.flatMap((run) => run.logProbs) },
  ];
  const rows = groups.flatMap(({ within, rows: all }) =>
    summariseLogProbs(all).map(({ model, rows: count, means, difference, wasserstein }): Cell[] => {
      const shown = [means.source_chosen, means.target_chosen, means.rejected, difference];
      const run = runs.find(({ name }) => name === model || name === `${within}/${model}`);
      return [
        ...[model, measured(count, 0), ...shown.map((one) => measured(one.mean, 3, { stderr: one.stderr }))],
        ...[measured(wasserstein, 3), run ? lcOf(run) : ''],
      ];
    }),
  );
  const columns = ['model', 'rows', 'y_ws', 'y_wt', 'y_l', 'y_ws − y_l', 'distance', 'LC'];
  return { title: 'Log-probs per token (Fig. 1)', columns, rows };
}

/** What a fusion's own scorer says of its models' answers to held-out prompts. */
function comparisons(fusions: readonly FinishedFusion[]): Table {
  const percent = (value: number | null) => (value === null ? undefined : 100 * value);
  const rows = fusions.flatMap(({ comparison }) =>
    (comparison?.rows ?? []).map((row): Cell[] => [
      ...[row.name, comparison!.scorer, measured(row.reward, 3, { stderr: row.reward_stderr ?? undefined })],
      measured(percent(row.win_rate), 1, { stderr: percent(row.win_rate_stderr) }),
      ...[measured(row.mean_length, 0), measured(row.n, 0)],
    ]),
  );
  const columns = ['model', 'scorer', 'reward', 'wins over the target, %', 'length', 'prompts'];
  return { title: 'Held-out prompts, by reward', columns, rows };
}
