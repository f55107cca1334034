/**
 * What the public evaluation tools compute of judgments, each with its formula and source. Sums run in the tools' own
 * order, so that rounding is theirs as far as it can be.
 */
import type { Matrix } from 'ml-matrix';
import { mlMatrix } from '../packages.js';

export const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

/** Standard deviation with n - 1 in the denominator; 0 of a single value. */
export function deviation(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const centre = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1));
}

/** With n in the denominator, as numpy's `std`. */
export const populationDeviation = (values: readonly number[]): number =>
  deviation(values) * Math.sqrt((values.length - 1) / values.length);

/** Of the mean: deviation / sqrt(n). */
export const standardError = (values: readonly number[]): number => deviation(values) / Math.sqrt(values.length);

export const sigmoid = (z: number): number => 1 / (1 + Math.exp(-z));

/** log(1 + e^z) without overflow. */
const softplus = (z: number): number => (z > 0 ? z + Math.log1p(Math.exp(-z)) : Math.log1p(Math.exp(z)));

/** The value below which the share `q` of sorted values lies, interpolated linearly as numpy's `percentile`. */
export function quantile(sorted: readonly number[], q: number): number {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  const below = sorted[low]!;
  return below + (at - low) * ((sorted[Math.ceil(at)] ?? below) - below);
}

// ---- AlpacaEval

/** Of a leaderboard row. */
export interface WinRate {
  win_rate: number;
  standard_error: number;
  n_wins: number;
  n_wins_base: number;
  n_draws: number;
  n_total: number;
  discrete_win_rate: number;
}

/**
 * Raw win rate of preferences in [1, 2] (1: the baseline, 2: the model, 1.5 or 0: a draw; null: not judged, left out), in
 * percent. With y = preference - 1: win_rate = 100 mean(y), standard_error = 100 sd(y)/sqrt(n); for the discrete rate
 * draws count a half and all others round. Source: alpaca_eval 0.6, metrics/winrate.py.
 */
export function winRate(preferences: readonly (number | null)[]): WinRate {
  const known = preferences.filter((preference) => preference !== null);
  const isDraw = (preference: number) => preference === 0 || preference === 1.5;
  const values = known.map((preference) => (preference === 0 ? 0.5 : preference - 1));
  const draws = known.filter(isDraw).length;
  const won = values.filter((value, i) => !isDraw(known[i]!) && value > 0.5).length;
  return {
    win_rate: 100 * mean(values),
    standard_error: 100 * standardError(values),
    n_wins: won,
    n_wins_base: values.length - won - draws,
    n_draws: draws,
    n_total: values.length,
    discrete_win_rate: (100 * (won + draws / 2)) / values.length,
  };
}

/** Rows of a logistic regression with soft targets: weight s, features x, target y in [0, 1]. */
export interface SoftRow {
  weight: number;
  features: readonly number[];
  target: number;
}

const dot = (a: readonly number[], b: readonly number[]): number => a.reduce((sum, value, i) => sum + value * b[i]!, 0);

/** Σ s [y log(1 + e^-z) + (1 - y) log(1 + e^z)] with z = w·x. */
const logLoss = (rows: readonly SoftRow[], w: readonly number[]): number =>
  rows.reduce((sum, { weight, features, target }) => {
    const z = dot(features, w);
    return sum + weight * (target * softplus(-z) + (1 - target) * softplus(z));
  }, 0);

/** The gradient and the Hessian of `logLoss`. */
function derivatives(rows: readonly SoftRow[], w: readonly number[]): { gradient: number[]; hessian: Matrix } {
  const gradient = w.map(() => 0);
  const hessian = mlMatrix().Matrix.zeros(w.length, w.length);
  for (const { weight, features, target } of rows) {
    const p = sigmoid(dot(features, w));
    for (const [j, x] of features.entries()) {
      gradient[j]! += weight * (p - target) * x;
      for (const [k, other] of features.entries()) {
        hessian.set(j, k, hessian.get(j, k) + weight * p * (1 - p) * x * other);
      }
    }
  }
  return { gradient, hessian };
}

/**
 * The w that minimises |w|_1 + C · logLoss(w): what scikit-learn's liblinear approaches to its tolerance, here to rounding.
 * Newton steps whose quadratic model, penalty included, is minimised a coordinate at a time (Yuan, Ho and Lin, 2012).
 */
export function fitLasso(rows: readonly SoftRow[], c: number): number[] {
  let w = rows[0]!.features.map(() => 0);
  const norm = (values: readonly number[]) => values.reduce((sum, value) => sum + Math.abs(value), 0);
  const objective = (values: readonly number[]) => norm(values) + c * logLoss(rows, values);
  for (let iteration = 0; iteration < 100; iteration++) {
    const { gradient, hessian } = derivatives(rows, w);
    const step = w.map(() => 0);
    for (let sweep = 0; sweep < 1000; sweep++) {
      let moved = 0;
      for (let j = 0; j < w.length; j++) {
        const curvature = c * hessian.get(j, j) + 1e-12;
        const slope = c * (gradient[j]! + dot(hessian.getRow(j), step));
        const free = w[j]! + step[j]! - slope / curvature;
        const target = Math.sign(free) * Math.max(0, Math.abs(free) - 1 / curvature);
        moved = Math.max(moved, Math.abs(target - w[j]! - step[j]!));
        step[j] = target - w[j]!;
      }
      if (moved < 1e-13) break;
    }
    const before = objective(w);
    let scale = 1;
    let next = w.map((value, j) => value + step[j]!);
    while (objective(next) > before && scale > 1e-10) {
      scale /= 2;
      next = w.map((value, j) => value + scale * step[j]!);
    }
    const change = Math.max(...next.map((value, j) => Math.abs(value - w[j]!)));
    w = next;
    if (change < 1e-11) break;
  }
  return w;
}

/** numpy.logspace(-4, 4, 10). */
export const STRENGTHS: readonly number[] = Array.from({ length: 10 }, (_, i) => 10 ** (-4 + (8 * i) / 9));
/** Of the cross-validation; fewer rows cannot be fitted. */
export const FOLDS = 5;

export interface ChosenFit {
  weights: number[];
  c: number;
  /** Of every C, the mean over the folds. */
  scores: number[];
}

/**
 * `fitLasso` with the C of `STRENGTHS` that predicts left-out rows best, the first of equals: five folds, row r of n in
 * fold (n - 1 - r) mod 5 (scikit-learn's GroupKFold of groups of equal size); a fold's score is the mean over its rows of
 * s · [y log p + (1 - y) log(1 - p)], with p no nearer to 0 or 1 than 1e-15.
 */
export function fitCrossValidated(rows: readonly SoftRow[]): ChosenFit {
  const foldOf = (r: number) => (rows.length - 1 - r) % FOLDS;
  const scores = STRENGTHS.map((c) => {
    const folds = Array.from({ length: FOLDS }, (_, fold) => {
      const w = fitLasso(
        rows.filter((_, r) => foldOf(r) !== fold),
        c,
      );
      const left = rows.filter((_, r) => foldOf(r) === fold);
      return mean(
        left.map(({ weight, features, target }) => {
          const p = Math.min(1 - 1e-15, Math.max(1e-15, sigmoid(dot(features, w))));
          return weight * (target * Math.log(p) + (1 - target) * Math.log(1 - p));
        }),
      );
    });
    return mean(folds);
  });
  const best = scores.indexOf(Math.max(...scores));
  return { weights: fitLasso(rows, STRENGTHS[best]!), c: STRENGTHS[best]!, scores };
}

// ---- Arena-Hard

/** Battles with a baseline, by weight. */
export interface Battles {
  wins: number;
  ties: number;
  total: number;
}

/**
 * The maximum-likelihood Bradley–Terry win rate against a baseline that is all a model meets: (wins + ties/2)/n, in [0, 1].
 * The public tool reaches it by logistic regression (show_result.py) to its tolerance.
 */
export const bradleyTerry = ({ wins, ties, total }: Battles): number => (wins + ties / 2) / total;

/** The rating with the baseline at 1000: 1000 + 400 log10(p/(1-p)); infinite for a model that wins or loses all. */
export const eloOf = (rate: number): number => 1000 + 400 * Math.log10(rate / (1 - rate));

/** What `statistic` gives of `rounds` resamples of the items, of the same number and with replacement, sorted. */
export function bootstrap<T>(
  items: readonly T[],
  rounds: number,
  below: (bound: number) => number,
  statistic: (items: readonly T[]) => number,
): number[] {
  const values = Array.from({ length: rounds }, () =>
    statistic(Array.from({ length: items.length }, () => items[below(items.length)]!)),
  );
  return values.sort((a, b) => a - b);
}

/**
 * The w that minimises |w|²/2 + C · logLoss(w), scikit-learn's default logistic regression without an intercept: Newton's
 * method with halved steps.
 */
export function fitRidge(rows: readonly SoftRow[], c = 1): number[] {
  let w = rows[0]!.features.map(() => 0);
  const objective = (values: readonly number[]) => dot(values, values) / 2 + c * logLoss(rows, values);
  for (let iteration = 0; iteration < 100; iteration++) {
    const { gradient, hessian } = derivatives(rows, w);
    const slope = gradient.map((value, j) => c * value + w[j]!);
    const { Matrix, solve } = mlMatrix();
    const curvature = Matrix.add(Matrix.mul(hessian, c), Matrix.eye(w.length));
    const step = solve(curvature, Matrix.columnVector(slope)).to1DArray();
    const before = objective(w);
    let scale = 1;
    let next = w.map((value, j) => value - step[j]!);
    while (objective(next) > before && scale > 1e-10) {
      scale /= 2;
      next = w.map((value, j) => value - scale * step[j]!);
    }
    const change = Math.max(...next.map((value, j) => Math.abs(value - w[j]!)));
    w = next;
    if (change < 1e-11) break;
  }
  return w;
}

// ---- lm-evaluation-harness

/**
 * The mean of groups weighted by their sizes, and its standard error from theirs:
 * sqrt(Σ (n_i - 1) n_i se_i² / (N - k) / N). Source: lm_eval/api/metrics.py, `pooled_sample_stderr`.
 */
export function pooled(groups: readonly { value: number; stderr: number; size: number }[]): {
  value: number;
  stderr: number;
} {
  const total = groups.reduce((sum, { size }) => sum + size, 0);
  const variance = groups.reduce((sum, { stderr, size }) => sum + (size - 1) * size * stderr ** 2, 0);
  return {
    value: groups.reduce((sum, { value, size }) => sum + value * size, 0) / total,
    stderr: Math.sqrt(variance / (total - groups.length) / total),
  };
}

// ---- the paper's analyses

/** The area between the distributions of two samples: 1-Wasserstein distance. */
export function wasserstein(a: readonly number[], b: readonly number[]): number {
  const left = [...a].sort((x, y) => x - y);
  const right = [...b].sort((x, y) => x - y);
  const all = [...left, ...right].sort((x, y) => x - y);
  let distance = 0;
  let i = 0;
  let j = 0;
  for (let k = 0; k + 1 < all.length; k++) {
    while (i < left.length && left[i]! <= all[k]!) i++;
    while (j < right.length && right[j]! <= all[k]!) j++;
    distance += Math.abs(i / left.length - j / right.length) * (all[k + 1]! - all[k]!);
  }
  return distance;
}
