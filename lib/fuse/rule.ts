/** What is selected, by what a run file says: whose answers, whose scores. */
import { WrpoError } from '../errors.js';
import type { FusionConfig } from './config.js';
import type { SelectOptions } from './quadruples.js';

/**
 * How rows are selected: the first selection, or the one that is named; `target` gives y_wt and y_l, and `scorer` decides
 * where the run file does not say whose scores.
 */
export function ruleOf(
  config: FusionConfig,
  { target, selection, scorer = decidingScorer(config) }: { target?: string; selection?: string; scorer?: string },
): SelectOptions {
  const view = { ...config, ...(selection !== undefined && config.selections[selection]) };
  const { heldOut, sftRatio, rowSchema, format, seed } = config;
  const { rank = 1, sourceRejected = false, keepTies = false } = view;
  return {
    ...{ sources: subsetOf(view), target, scorer, seed, rank, sourceRejected, keepTies },
    ...{ heldOut, sftRatio, rowSchema, format },
  };
}

/** The sources that are meant, in the order of the run file, in which ties are decided. */
function subsetOf({ sources, subset, groups }: FusionConfig): string[] {
  const names = sources.map(({ name }) => name);
  if (subset === undefined) return names;
  const meant = new Set(subset.flatMap((one) => groups[one] ?? [one]));
  return names.filter((name) => meant.has(name));
}

/**
 * The scorer that is named, or the only one there is, those that are given in a program among them. Throws ERR_CONFIG when
 * there are several, or none.
 */
export function decidingScorer(
  { scorer, scorers, sources, targets }: FusionConfig,
  given: readonly string[] = [],
): string {
  if (scorer !== undefined) return scorer;
  const imported = [...sources, ...targets].flatMap((one) => ('import' in one ? [one.scorer ?? 'imported'] : []));
  const own = [...scorers.map(({ name }) => name), ...given];
  const names = [...new Set(own.length > 0 ? own : imported)];
  if (names.length === 1) return names[0]!;
  const there = names.length === 0 ? 'the run file has no scorers' : `there is ${names.join(', ')}`;
  throw new WrpoError('ERR_CONFIG', `name whose scores decide with "scorer": ${there}`);
}
