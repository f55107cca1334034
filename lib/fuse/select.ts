/**
 * Which answers of a prompt become y_ws, y_ls, y_wt and y_l. Ties go to the first, in the order of sources and samples, as
 * with numpy's argmax and argmin.
 */
import type { Sample } from './store.js';

/** A model's answers to a prompt, with their scores; null where one has none. */
export interface ScoredSamples {
  model: string;
  scores: readonly (number | null)[];
}

/** One answer among those of a prompt. */
export interface Pick {
  model: string;
  index: number;
  score: number;
}

export interface SourcePicks {
  /** Sources by their best answer, the best first; those without a score are not among them. */
  ranking: string[];
  /** The best answer (y_ws) of each, in the order of `ranking`. */
  best: Pick[];
  /** The worst answer (y_ls) of each, in the order of `ranking`. */
  worst: Pick[];
}

/** The best and worst answers of every source to a prompt. */
export function rankSources(sources: readonly ScoredSamples[]): SourcePicks {
  const scored = sources.flatMap(({ model, scores }) => {
    const ends = extremes(scores);
    return ends ? [{ model, ...ends }] : [];
  });
  scored.sort((a, b) => b.best.score - a.best.score); // stable: of equals the first stays the first
  return {
    ranking: scored.map(({ model }) => model),
    best: scored.map(({ model, best }) => ({ model, ...best })),
    worst: scored.map(({ model, worst }) => ({ model, ...worst })),
  };
}

interface Extreme {
  index: number;
  score: number;
}

/** The first largest and the first smallest score, if there is any. */
export function extremes(scores: readonly (number | null)[]): { best: Extreme; worst: Extreme } | undefined {
  let best: Extreme | undefined;
  let worst: Extreme | undefined;
  for (const [index, score] of scores.entries()) {
    if (score === null) continue;
    if (!best || score > best.score) best = { index, score };
    if (!worst || score < worst.score) worst = { index, score };
  }
  return best && worst && { best, worst };
}

/** Why a prompt gives no row. */
export type Reason =
  | 'no source answer'
  | 'no second source'
  | 'no target answer'
  | 'target answers all alike'
  | 'target scores all equal'
  | 'source answers all alike';

export interface TargetPicks {
  /** y_wt. */
  best: Extreme;
  /** y_l. */
  worst: Extreme;
}

/** y_wt and y_l, or why a prompt teaches nothing; with `keepTies` it may teach y_ws, though y_wt is no better than y_l. */
export function pickTarget(
  samples: readonly Sample[],
  scores: readonly (number | null)[],
  { keepTies = false } = {},
): TargetPicks | Reason {
  const ends = extremes(scores);
  if (!ends) return 'no target answer';
  if (keepTies) return ends;
  const { best, worst } = ends;
  if (samples[best.index]!.text === samples[worst.index]!.text && best.index !== worst.index) {
    return 'target answers all alike';
  }
  if (best.score > worst.score) return ends;
  return samples.every(({ text }) => text === samples[0]!.text)
    ? 'target answers all alike'
    : 'target scores all equal';
}
