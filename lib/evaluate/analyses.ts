/** The paper's analyses of rewards, log-probs and times, as numbers. */
import { deviation, mean, wasserstein } from './statistics.js';

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
