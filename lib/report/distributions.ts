/** How scores, lengths and log-probs of a fusion's responses are distributed, as charts for `page/charts.js`. */
import { type LogProbRow, perToken } from '../evaluate/analyses.js';
import { quantile } from '../evaluate/statistics.js';
import { type Chart, ROLE_COLOURS, ROLE_NAMES, rounded, type Series } from './curves.js';
import { QUADRUPLE_ROLES, type Quadruple } from './read.js';

const BINS = 30;
/** Of the values on either side, what lies beyond the axis and is counted in its last bin. */
const BEYOND = 0.005;

/** Quadruples' scores, what separates them, and lengths. */
export function quadrupleCharts(quadruples: readonly Quadruple[]): Chart[] {
  if (quadruples.length === 0) return [];
  const gap = (a: 'source_chosen' | 'target_chosen', b: 'target_chosen' | 'rejected') =>
    quadruples.map(({ scores }) => scores[a] - scores[b]);
  const ofRoles = (values: (one: Quadruple) => Quadruple['scores']) =>
    QUADRUPLE_ROLES.map((role) => ({
      ...{ name: ROLE_NAMES[role], colour: ROLE_COLOURS[role], values: quadruples.map((one) => values(one)[role]) },
    }));
  return [
    histogram(
      'Scores by role',
      'score',
      ofRoles(({ scores }) => scores),
    ),
    histogram('Score gaps', 'difference of scores', [
      { name: 'y_ws − y_wt', colour: ROLE_COLOURS.source_chosen, values: gap('source_chosen', 'target_chosen') },
      { name: 'y_wt − y_l', colour: ROLE_COLOURS.target_chosen, values: gap('target_chosen', 'rejected') },
    ]),
    histogram(
      'Lengths by role',
      'length, characters',
      ofRoles(({ lengths }) => lengths),
    ),
  ];
}

/** The paper's Fig. 1, for each model: log-probs per token of y_ws, y_wt and y_l, on one scale. */
export function logProbCharts(rows: readonly LogProbRow[]): Chart[] {
  const range = rangeOf(rows.flatMap((row) => QUADRUPLE_ROLES.map((role) => perToken(row, role))));
  return modelsOf(rows).map(([model, own]) => {
    const samples = QUADRUPLE_ROLES.map((role) => ({
      ...{ name: ROLE_NAMES[role], colour: ROLE_COLOURS[role], values: own.map((row) => perToken(row, role)) },
    }));
    return histogram(model, 'log-prob per token, nats', samples, range);
  });
}

/** The rows of each model, in the order in which they come. */
function modelsOf(rows: readonly LogProbRow[]): [string, LogProbRow[]][] {
  const models = new Map<string, LogProbRow[]>();
  for (const row of rows) {
    const own = models.get(row.model);
    if (own) own.push(row);
    else models.set(row.model, [row]);
  }
  return [...models];
}

interface Sample {
  name: string;
  colour: number;
  values: readonly number[];
}

/** Shares of samples in equal bins of one range. */
export function histogram(title: string, x: string, samples: readonly Sample[], range?: [number, number]): Chart {
  const { low, width, count } = binsOf(
    samples.flatMap(({ values }) => values),
    range,
  );
  const edges = Array.from({ length: count + 1 }, (_, i) => rounded(low + i * width));
  const series = samples.map(({ values, ...sample }): Series => {
    const counts = new Array<number>(count).fill(0);
    for (const value of values) counts[Math.min(count - 1, Math.max(0, Math.floor((value - low) / width)))]! += 1;
    const heights = [...counts, counts.at(-1)!]; // the last edge ends the last bin
    return { ...sample, points: edges.map((edge, i) => [edge, rounded((100 * heights[i]!) / values.length)]) };
  });
  return { title, x, y: 'share of responses, %', series, isHistogram: true };
}

/** Equal bins; of whole numbers each holds equally many, or a comb would show that is not there. */
function binsOf(values: readonly number[], range = rangeOf(values)): { low: number; width: number; count: number } {
  const [low, high] = range;
  if (!values.every(Number.isInteger)) return { low, width: (high - low) / BINS, count: BINS };
  const from = Math.floor(low);
  const width = Math.ceil((Math.floor(high) + 1 - from) / BINS);
  return { low: from, width, count: Math.ceil((Math.floor(high) + 1 - from) / width) };
}

/** What a histogram shows: all but the outermost values. */
function rangeOf(values: readonly number[]): [number, number] {
  const sorted = [...values].sort((a, b) => a - b);
  const [low, high] = [quantile(sorted, BEYOND), quantile(sorted, 1 - BEYOND)];
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}
