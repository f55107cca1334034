/** Which curves a report draws, and what of a log goes into them. */
import type { Metrics } from '../train/metrics.js';
import type { RunCurves } from './read.js';

/** One chart: lines over steps, missing values null. */
export interface Chart {
  title: string;
  /** What it says, in a few words. */
  words?: string;
  steps: number[];
  /** `run` numbers the runs of a report, and so their colours. */
  lines: { name: string; run: number; values: (number | null)[]; dashed?: boolean }[];
}

const SINGLE: [metric: string, title: string, words: string][] = [
  ['loss', 'Loss', 'of the objective'],
  ['rewards/accuracies', 'Accuracy', 'how often the chosen responses win; 0.5 is chance'],
  ['rewards/margins', 'Reward margin', 'what the objective sees: chosen less rejected'],
  ['logps/chosen', 'Log-prob of chosen responses', 'nats, summed over a response'],
  ['logps/rejected', 'Log-prob of rejected responses', 'nats, summed over a response'],
  ['cur_alpha', 'Alpha', 'the weight of y_ws'],
  ['learning_rate', 'Learning rate', ''],
  ['grad_norm', 'Gradient norm', 'before clipping'],
  ['tokens_per_second', 'Tokens a second', 'real tokens, as if prompts were not shared'],
];

/** Charts of single metrics, a line a run, with evaluations as dashed lines. */
export function chartsOf(runs: readonly RunCurves[]): Chart[] {
  return SINGLE.flatMap(([metric, title, words]) => {
    const lines = runs.flatMap(({ name, lines, evaluations }, run) => [
      { name, run, points: pointsOf(lines, metric), dashed: false },
      { name: `${name}, held out`, run, points: pointsOf(evaluations, `eval_${metric}`), dashed: true },
    ]);
    return chartOf(
      title,
      words,
      lines.filter(({ points, dashed }) => points.size > Number(dashed)),
    );
  });
}

/** The paper's Fig. 3 for each run that has both chosen responses: margins on the policy's own, the hybrid's, and weighted. */
export function marginChartsOf(runs: readonly RunCurves[]): Chart[] {
  return runs.flatMap(({ name, lines }) => {
    const difference = (role: string) => {
      const [mine, rejected] = [pointsOf(lines, `rewards/${role}`), pointsOf(lines, 'rewards/rejected')];
      return new Map(
        [...mine].flatMap(([step, value]) => (rejected.has(step) ? [[step, value - rejected.get(step)!]] : [])),
      );
    };
    const hybrid = difference('source_chosen');
    if (hybrid.size === 0 || difference('target_chosen').size === 0) return [];
    return chartOf(name, '', [
      { name: 'on-policy: r(y_wt) − r(y_l)', run: 0, points: difference('target_chosen') },
      { name: 'hybrid: r(y_ws) − r(y_l)', run: 1, points: hybrid },
      { name: 'weighted by alpha', run: 2, points: pointsOf(lines, 'rewards/margins') },
    ]);
  });
}

type Points = Map<number, number>;

const pointsOf = (lines: readonly Metrics[], metric: string): Points =>
  new Map(lines.flatMap((line) => (typeof line[metric] === 'number' ? [[line.step!, line[metric]]] : [])));

function chartOf(
  title: string,
  words: string,
  lines: { name: string; run: number; points: Points; dashed?: boolean }[],
): Chart[] {
  const steps = [...new Set(lines.flatMap(({ points }) => [...points.keys()]))].sort((a, b) => a - b);
  if (steps.length === 0) return [];
  return [
    {
      ...{ title, words, steps },
      lines: lines.map(({ name, run, points, dashed }) => ({
        ...{ name, run, values: steps.map((step) => points.get(step) ?? null) },
        ...(dashed && { dashed }),
      })),
    },
  ];
}
