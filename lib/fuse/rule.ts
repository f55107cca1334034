/** What is selected, by what a run file says: whose answers, whose scores. */
import { WrpoError } from '../errors.js';
import type { FusionConfig } from './config.js';
import type { SelectOptions } from './quadruples.js';

/** How rows are selected; `scorer` decides where the run file names none, and `target` gives y_wt and y_l. */
export function ruleOf(
  config: FusionConfig,
  target: string | undefined,
  scorer = decidingScorer(config),
): SelectOptions {
  const { rank, sourceRejected, heldOut, keepTies, sftRatio, rowSchema, format, seed } = config;
  return {
    ...{ sources: subsetOf(config), target, scorer, seed, rank, sourceRejected },
    ...{ heldOut, keepTies, sftRatio, rowSchema, format },
  };
}

/** The sources that are meant, in the order of the run file, in which ties are decided. */
function subsetOf({ sources, subset, groups }: FusionConfig): string[] {
  const names = sources.map(({ name }) => name);
  if (subset === undefined) return names;
  const meant = new Set(subset.flatMap((one) => groups[one] ?? [one]));
  return names.filter((name) => meant.has(name));
}

/** The one that is named, or the only one. Throws ERR_CONFIG when there are several, or none. */
export function decidingScorer({ scorer, scorers, sources, targets }: FusionConfig, given: string[] = []): string {
  if (scorer !== undefined) return scorer;
  const imported = [...sources, ...targets].flatMap((one) => ('import' in one ? [one.scorer ?? 'imported'] : []));
  const own = [...scorers.map(({ name }) => name), ...given];
  const names = [...new Set(own.length > 0 ? own : imported)];
  if (names.length === 1) return names[0]!;
  const there = names.length === 0 ? 'the run file has no scorers' : `there is ${names.join(', ')}`;
  throw new WrpoError('ERR_CONFIG', `name whose scores decide with "scorer": ${there}`);
}
