/** The curves of training runs, as charts for `page/charts.js`. */
import type { Metrics } from '../train/metrics.js';
import type { TrainingRun } from './read.js';

export interface Series {
  name: string;
  /** Of the page's palette, 0 to 7. */
  colour: number;
  /** Of its ways to dash a line, 0 (none) to 3. */
  dash?: number;
  /** By rising x. */
  points: [number, number][];
}

export interface Chart {
  title: string;
  /** What to look for. */
  note?: string;
  /** Labels of the axes, with their units. */
  x: string;
  y: string;
  series: Series[];
  isHistogram?: boolean;
  xRange?: [number, number];
  yRange?: [number, number];
  level?: { value: number; name: string };
}

/** One colour a role, everywhere. */
export const ROLE_COLOURS = { source_chosen: 0, target_chosen: 2, rejected: 1, source_rejected: 3 } as const;
export const ROLE_NAMES = {
  source_chosen: 'y_ws',
  target_chosen: 'y_wt',
  rejected: 'y_l',
  source_rejected: 'y_ls',
} as const;
const INK = 7;
const PALETTE = 7;

type Value = (line: Metrics) => number | undefined;
interface Curve {
  name: string;
  colour: number;
  dash?: number;
  value: Value;
}

const metric =
  (name: string): Value =>
  (line) =>
    line[name];
/** Of Eq. 9's two rejected responses, the target's own has its name to itself. */
const rejected: Value = (line) => line['rewards/target_rejected'] ?? line['rewards/rejected'];
const over =
  (role: string): Value =>
  (line) => {
    const [chosen, low] = [line[`rewards/${role}`], rejected(line)];
    return chosen === undefined || low === undefined ? undefined : chosen - low;
  };

const roleCurves = (prefix: string): Curve[] =>
  (Object.keys(ROLE_COLOURS) as (keyof typeof ROLE_COLOURS)[]).map((role) => ({
    name: ROLE_NAMES[role],
    colour: ROLE_COLOURS[role],
    value: role === 'rejected' && prefix === 'rewards' ? rejected : metric(`${prefix}/${role}`),
  }));

interface Panel extends Omit<Chart, 'series' | 'x'> {
  curves: Curve[];
}

const training = (name: string): Curve[] => [
  { name: 'training', colour: 0, value: metric(name) },
  { name: 'held out', colour: 1, dash: 1, value: metric(`eval_${name}`) },
];

/** The paper's Fig. 3. */
const MARGINS: Panel = {
  title: 'Reward margins over training',
  note: 'Fig. 3: hybrid r(y_ws) − r(y_l), on-policy r(y_wt) − r(y_l), and the total that the loss sees.',
  y: 'reward margin',
  curves: [
    { name: 'on-policy', colour: ROLE_COLOURS.target_chosen, value: over('target_chosen') },
    { name: 'hybrid', colour: ROLE_COLOURS.source_chosen, value: over('source_chosen') },
    { name: 'total', colour: INK, dash: 1, value: metric('rewards/margins') },
  ],
};

const LOSS = 'loss, nats';
/** IPO's loss is a square of what is in nats elsewhere. */
const labelOf = (y: string, lossType: unknown): string =>
  y === LOSS && /ipo/.test(String(lossType)) ? 'loss, nats²' : y;

const ONE_RUN: Panel[] = [
  { title: 'Loss', y: LOSS, curves: training('loss') },
  MARGINS,
  {
    title: 'Accuracies',
    note: 'How often a chosen response has more reward than y_l.',
    y: 'share of examples',
    yRange: [0, 1],
    level: { value: 0.5, name: 'chance' },
    curves: [
      { name: 'total', colour: INK, value: metric('rewards/accuracies') },
      { name: 'hybrid (y_ws)', colour: ROLE_COLOURS.source_chosen, value: metric('rewards/source_accuracies') },
      { name: 'on-policy (y_wt)', colour: ROLE_COLOURS.target_chosen, value: metric('rewards/target_accuracies') },
      { name: 'total, held out', colour: INK, dash: 1, value: metric('eval_rewards/accuracies') },
    ],
  },
  { title: 'Rewards', note: 'β log(π / π_ref), mean an example.', y: 'reward', curves: roleCurves('rewards') },
  {
    title: 'Log-probs of the responses',
    note: 'Summed over a response, mean an example. Chosen responses should not fall far.',
    y: 'log-prob, nats',
    curves: [...roleCurves('logps'), { name: 'completion', colour: 0, value: metric('logps/completion') }],
  },
  {
    title: 'Alpha',
    note: 'The weight of the sources.',
    y: 'α',
    curves: [{ name: 'alpha', colour: 0, value: metric('cur_alpha') }],
  },
  {
    title: 'Learning rate',
    y: 'learning rate',
    curves: [{ name: 'learning rate', colour: 0, value: metric('learning_rate') }],
  },
  {
    title: 'Gradient norm',
    note: 'Before clipping.',
    y: 'L2 norm',
    curves: [{ name: 'gradient norm', colour: 0, value: metric('grad_norm') }],
  },
  { title: 'Speed', y: 'tokens / s', curves: [{ name: 'speed', colour: 0, value: metric('tokens_per_second') }] },
];

/** What several runs are compared in; one curve a run. */
const SEVERAL_RUNS: (Omit<Panel, 'curves'> & { metric: string })[] = [
  { title: 'Loss', y: LOSS, metric: 'loss' },
  { title: 'Loss on held-out quadruples', y: LOSS, metric: 'eval_loss' },
  {
    title: 'Reward margin',
    note: 'Of the chosen side over the rejected one.',
    y: 'reward margin',
    metric: 'rewards/margins',
  },
  {
    ...{
      title: 'Accuracy',
      note: 'How often the chosen side has more reward than the rejected one.',
      y: 'share of examples',
    },
    ...{ metric: 'rewards/accuracies', level: { value: 0.5, name: 'chance' } },
  },
  {
    ...{ title: 'Hybrid-policy accuracy', note: 'How often y_ws has more reward than y_l.', y: 'share of examples' },
    ...{ metric: 'rewards/source_accuracies', level: { value: 0.5, name: 'chance' } },
  },
  {
    ...{
      title: 'Log-prob of the chosen responses',
      note: 'Summed over a response, mean an example.',
      y: 'log-prob, nats',
    },
    metric: 'logps/chosen',
  },
  { title: 'Alpha', note: 'The weight of the sources.', y: 'α', metric: 'cur_alpha' },
  { title: 'Learning rate', y: 'learning rate', metric: 'learning_rate' },
  { title: 'Gradient norm', note: 'Before clipping.', y: 'L2 norm', metric: 'grad_norm' },
];

/** All of one run. */
export const curvesOfRun = (run: TrainingRun): Chart[] => ONE_RUN.flatMap((panel) => chartOf(panel, run));

/** Runs beside each other; losses only of one objective, since those of others are of another kind. */
export function curvesOfRuns(runs: readonly TrainingRun[]): Chart[] {
  const styled = runs.map((run, i) => ({ run, colour: i % PALETTE, dash: Math.floor(i / PALETTE) % 4 }));
  const losses = [...new Set(runs.map(({ config }) => String(config.loss_type)))];
  return SEVERAL_RUNS.flatMap(({ metric: name, ...panel }) => {
    const groups = name.endsWith('loss') && losses.length > 1 ? losses : [undefined];
    return groups.flatMap((loss) => {
      const own = styled.filter(({ run }) => loss === undefined || String(run.config.loss_type) === loss);
      const series = own.map(({ run, ...style }) => ({
        name: run.name,
        ...style,
        points: pointsOf(run.lines, metric(name)),
      }));
      const some = series.filter(({ points }) => points.length > 0);
      const title = loss === undefined ? panel.title : `${panel.title} (${loss})`;
      return some.length > 0
        ? [{ ...panel, title, x: 'step', y: labelOf(panel.y, loss ?? losses[0]), series: some }]
        : [];
    });
  });
}

/** Fig. 3 of each run that has y_ws and y_wt. */
export function marginsOfRuns(runs: readonly TrainingRun[]): Chart[] {
  const both = runs.filter(({ lines }) =>
    [MARGINS.curves[0]!, MARGINS.curves[1]!].every(({ value }) => lines.some(value)),
  );
  return both.flatMap((run) => chartOf({ ...MARGINS, title: run.name, note: undefined }, run));
}

function chartOf({ curves, ...panel }: Panel, { lines, config }: TrainingRun): Chart[] {
  const series = curves.map(({ value, ...curve }) => ({ ...curve, points: pointsOf(lines, value) }));
  const some = series.filter(({ points }) => points.length > 0);
  return some.length > 0 ? [{ ...panel, x: 'step', y: labelOf(panel.y, config.loss_type), series: some }] : [];
}

/** More than a screen can show. */
const MOST_POINTS = 800;

/** A curve's points; of a long one the lowest and the highest of each stretch, so that no spike is lost. */
export function pointsOf(lines: readonly Metrics[], value: Value): [number, number][] {
  const points = lines.flatMap((line): [number, number][] => {
    const y = value(line);
    return y === undefined || y === null || !Number.isFinite(y) ? [] : [[line.step ?? 0, rounded(y)]];
  });
  if (points.length <= MOST_POINTS) return points;
  const stretches = MOST_POINTS / 2;
  return Array.from({ length: stretches }, (_, i) => {
    const at = (part: number) => Math.round((part * points.length) / stretches);
    const part = points.slice(at(i), at(i + 1));
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    return low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low];
  }).flat();
}

/** Digits that a reader can see. */
export const rounded = (value: number): number => Number(value.toPrecision(5));
