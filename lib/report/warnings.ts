/** What in a fusion's data and results should make a person look, in words: pure functions. A run's log has its own in `train/warnings.ts`. */
import { mean } from '../evaluate/statistics.js';
import type { ComparisonRow } from '../fuse/comparison.js';
import type { Selection } from '../fuse/quadruples.js';
import type { OfRoles, Quadruple } from './read.js';

/** Rows from which on means are worth a sentence. */
const ENOUGH = 20;

/** What the preferences are learnt from. */
export function dataWarnings(quadruples: readonly Quadruple[], selection?: Selection): string[] {
  const rules = quadruples.length < ENOUGH ? [] : [lengthBias, sourcesWorse, nothingToLearn];
  const found = rules.map((rule) => rule(quadruples));
  return [...found, selection && oneSource(selection), selection && manyDropped(selection)].filter(
    (text) => text !== undefined,
  );
}

/** The paper's own worry: a reward model that likes length teaches length. */
function lengthBias(quadruples: readonly Quadruple[]): string | undefined {
  const [ws, wt, l] = (['source_chosen', 'target_chosen', 'rejected'] as const).map((role) =>
    mean(quadruples.map(({ lengths }) => lengths[role])),
  );
  const longer = [
    ws! > 1.3 * l! && `y_ws (${show(ws!)} characters on average)`,
    wt! > 1.3 * l! && `y_wt (${show(wt!)})`,
  ].filter(Boolean);
  if (longer.length === 0) return undefined;
  return `Length bias: ${longer.join(' and ')} ${longer.length > 1 ? 'are' : 'is'} much longer than y_l (${show(l!)}), so a model can win by length alone; look at length-controlled win rates.`;
}

function sourcesWorse(quadruples: readonly Quadruple[]): string | undefined {
  const worse = shareOf(quadruples, ({ source_chosen, target_chosen }) => source_chosen < target_chosen);
  const [ws, wt] = (['source_chosen', 'target_chosen'] as const).map((role) =>
    mean(quadruples.map(({ scores }) => scores[role])),
  );
  if (!(ws! < wt! || worse > 50)) return undefined;
  return `y_ws is worse than y_wt in ${show(worse)} % of the quadruples (mean score ${show(ws!)} against ${show(wt!)}): these sources have little to teach this target; take stronger ones or a lower alpha.`;
}

function nothingToLearn(quadruples: readonly Quadruple[]): string | undefined {
  const tied = shareOf(quadruples, ({ target_chosen, rejected }) => target_chosen <= rejected);
  if (tied < 25) return undefined;
  return `In ${show(tied)} % of the quadruples y_wt scores no better than y_l: on-policy there is nothing to learn from them; raise temperature or n.`;
}

function oneSource({ shares }: Selection): string | undefined {
  const [name, share] = Object.entries(shares).reduce(([a, x], [b, y]) => (y > x ? [b, y] : [a, x]), ['', 0]);
  if (Object.keys(shares).length < 2 || share < 80) return undefined;
  return `${name} gives y_ws for ${show(share)} % of the prompts: this is nearly a distillation of one model.`;
}

function manyDropped({ dropped, prompts }: Selection): string | undefined {
  const all = Object.values(prompts).reduce((sum, count) => sum + count, 0);
  const lost = Object.values(dropped).reduce((sum, count) => sum + count, 0);
  if (!(lost > 0.2 * all)) return undefined;
  const reasons = Object.entries(dropped).map(([reason, count]) => `${reason}: ${count}`);
  return `${show((100 * lost) / all)} % of the prompts gave no row (${reasons.join(', ')}).`;
}

/** What came out; the first row is the target's, `runs` are the names of those that learnt preferences. */
export function resultWarnings(rows: readonly ComparisonRow[], runs: readonly string[]): string[] {
  const [target] = rows;
  if (!target) return [];
  const tuned = rows.find(({ name }) => name === 'target-sft');
  return rows
    .filter(({ name }) => runs.includes(name))
    .flatMap((row) => {
      const { name, win_rate, win_rate_stderr, mean_length } = row;
      const words: string[] = [];
      if (win_rate + 2 * (win_rate_stderr ?? 0) < 0.5) {
        words.push(`${name} is worse than the target: it wins ${show(100 * win_rate)} % of the prompts.`);
      } else if (
        tuned &&
        row.reward + 2 * Math.hypot(row.reward_stderr ?? 0, tuned.reward_stderr ?? 0) < tuned.reward
      ) {
        words.push(
          `${name} has less reward (${show(row.reward)}) than Target-SFT, from which it started (${show(tuned.reward)}).`,
        );
      }
      if (win_rate > 0.5 && mean_length > 1.5 * target.mean_length) {
        words.push(
          `Length bias: ${name} answers with ${show(mean_length)} characters on average, the target with ${show(target.mean_length)}; some of what it wins may be length.`,
        );
      }
      return words;
    });
}

const shareOf = (quadruples: readonly Quadruple[], holds: (scores: OfRoles) => boolean): number =>
  100 * mean(quadruples.map(({ scores }) => Number(holds(scores))));
const show = (value: number) => String(Number(value.toPrecision(3)));
