/** The paper's analyses of rewards, log-probs and times, as numbers. */
import { fault } from '../data/rows.js';
import { deviation, mean, standardError, wasserstein } from './statistics.js';

/** The margin that WRPO trains (Fig. 3): alpha of the hybrid one and 1 - alpha of the on-policy one. */
export const weightedMargin = (alpha: number, hybrid: number, onPolicy: number): number =>
  alpha * hybrid + (1 - alpha) * onPolicy;

/** By how many percent something takes longer (Table 8). */
export const increase = (before: number, after: number): number => (100 * (after - before)) / before;

/**
 * Two samples of log-probs per token under one model (Fig. 1): y_ws and y_l. The paper shows histograms; these numbers are
 * our summary of them.
 */
export function compareSamples(a: readonly number[], b: readonly number[]) {
  return {
    means: [mean(a), mean(b)],
    deviations: [deviation(a), deviation(b)],
    difference: mean(a) - mean(b),
    wasserstein: wasserstein(a, b),
  };
}

interface OfResponses {
  source_chosen: number;
  target_chosen: number;
  rejected: number;
}

/** Sums of log-probs of a quadruple's responses under a model, and their numbers of tokens. */
export interface LogProbRow extends OfResponses {
  model: string;
  lengths: OfResponses;
}

const ROLES = ['source_chosen', 'target_chosen', 'rejected'] as const;

/** A line of `logps.jsonl`; one without a model is of `model`. Throws ERR_DATA naming the line. */
export function readLogProbRow(line: string, where: string, model: string): LogProbRow {
  let row: Partial<LogProbRow> | null;
  try {
    row = JSON.parse(line) as typeof row;
  } catch (cause) {
    throw fault(where, 'expected one JSON object on the line', cause);
  }
  const hasAll = (values: object | undefined | null) =>
    ROLES.every((role) => typeof (values as Record<string, unknown> | undefined)?.[role] === 'number');
  if (hasAll(row) && hasAll(row!.lengths)) return { ...(row as LogProbRow), model: row!.model ?? model };
  throw fault(where, `expected the numbers ${ROLES.join(', ')}, and of each in lengths`);
}

/** A quantity's mean over quadruples, and its standard error. */
export interface MeanOf {
  mean: number;
  stderr: number;
}

const meanOf = (values: readonly number[]): MeanOf => ({ mean: mean(values), stderr: standardError(values) });

export interface LogProbSummary {
  model: string;
  rows: number;
  /** Log-probs per token. */
  means: Record<keyof OfResponses, MeanOf>;
  /** y_ws - y_l of the same quadruple. */
  difference: MeanOf;
  /** Between the distributions of y_ws and of y_l. */
  wasserstein: number;
}

export const perToken = (row: LogProbRow, role: keyof OfResponses): number => row[role] / row.lengths[role];

/** Fig. 1 in numbers, of each model in the order in which they come. */
export function summariseLogProbs(rows: readonly LogProbRow[]): LogProbSummary[] {
  return [...new Set(rows.map(({ model }) => model))].map((model) => {
    const own = rows.filter((row) => row.model === model);
    const [ws, wt, l] = ROLES.map((role) => own.map((row) => perToken(row, role))) as [number[], number[], number[]];
    return {
      ...{ model, rows: own.length },
      means: { source_chosen: meanOf(ws), target_chosen: meanOf(wt), rejected: meanOf(l) },
      difference: meanOf(ws.map((value, i) => value - l[i]!)),
      wasserstein: compareSamples(ws, l).wasserstein,
    };
  });
}
