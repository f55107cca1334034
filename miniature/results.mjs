/** What came out: a row a model, a difference a finding, each with its standard error; as words, JSON and a page. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { FINDINGS } from './methods.mjs';
import { mean, standardError, wins } from './task.mjs';

/**
 * @typedef {Record<string, import('./task.mjs').Answer[]>} Results of one seed, by name
 * @typedef {object} Row
 * @property {string} name
 * @property {number} reward mean over prompts, then over seeds
 * @property {number} reward_stderr
 * @property {number} accuracy share of answers that are right
 * @property {number} win_rate against Target, ties 1/2
 * @property {number} win_rate_stderr
 * @property {number} n held-out prompts
 * @property {number} seeds
 */

/** Over seeds or, where there is one, over prompts. @param {number[][]} seeds values of each prompt, seed by seed */
function estimate(seeds) {
  const stderr = seeds.length > 1 ? standardError(seeds.map(mean)) : standardError(seeds[0]);
  return { mean: mean(seeds.map(mean)), stderr };
}

const rewards = (answers) => answers.map(({ reward }) => reward);

/** Each row over the seeds that have it. @param {Results[]} all @returns {Row[]} */
export function rowsOf(all) {
  return [...new Set(all.flatMap(Object.keys))].map((name) => {
    const seeds = all.filter((seed) => name in seed);
    const reward = estimate(seeds.map((seed) => rewards(seed[name])));
    const won = estimate(seeds.map((seed) => wins(seed[name], seed.Target)));
    const accuracy = mean(seeds.map((seed) => mean(rewards(seed[name]).map((value) => Number(value > 0.9)))));
    return {
      ...{ name, reward: reward.mean, reward_stderr: reward.stderr, accuracy },
      ...{ win_rate: won.mean, win_rate_stderr: won.stderr, n: seeds[0][name].length, seeds: seeds.length },
    };
  });
}

/**
 * Paired differences of the first to the second over the seeds that have both, and in how many the sign is the finding's.
 * @param {Results[]} all
 */
export function differencesOf(all) {
  return FINDINGS.flatMap(([where, finding, better, worse]) => {
    const seeds = all.filter((seed) => better in seed && worse in seed);
    if (seeds.length === 0) return [];
    const pair = (seed) => rewards(seed[better]).map((value, i) => value - seed[worse][i].reward);
    const won = (seed) => {
      const others = wins(seed[worse], seed.Target);
      return wins(seed[better], seed.Target).map((value, i) => value - others[i]);
    };
    const reward = estimate(seeds.map(pair));
    const winRate = estimate(seeds.map(won));
    const shows = seeds.filter((seed) => mean(pair(seed)) > 0).length;
    return [
      {
        ...{ where, finding, better, worse, reward: reward.mean, reward_stderr: reward.stderr },
        ...{ win_rate: winRate.mean, win_rate_stderr: winRate.stderr, seeds_with_sign: shows, seeds: seeds.length },
        verdict: verdictOf(reward, shows, seeds.length),
      },
    ];
  });
}

/** Two-sided 5 % quantiles of Student's t, by degrees of freedom from 1. */
const T = [12.71, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26];

function verdictOf({ mean, stderr }, shows, seeds) {
  const limit = seeds > 1 ? (T[seeds - 2] ?? 2.2) : 1.96;
  if (Math.abs(mean) <= limit * stderr) return 'not distinguishable';
  if (mean > 0) return 'shows';
  return shows === 0 ? 'the opposite shows' : 'does not show';
}

const plus = (value) => `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(3)}`;

/** @param {Row[]} rows */
export function tableOfRows(rows) {
  const head = ['model', 'reward', 'right', 'win rate against Target', 'seeds'];
  const body = rows.map((row) => [
    row.name,
    `${row.reward.toFixed(3)} ± ${row.reward_stderr.toFixed(3)}`,
    `${(100 * row.accuracy).toFixed(1)} %`,
    row.name === 'Target' ? '' : `${row.win_rate.toFixed(3)} ± ${row.win_rate_stderr.toFixed(3)}`,
    String(row.seeds),
  ]);
  return { head, body };
}

/** @param {ReturnType<typeof differencesOf>} differences */
export function tableOfDifferences(differences) {
  const head = ['', 'finding', 'reward', 'win rate', 'seeds', 'verdict'];
  const body = differences.map((one) => [
    one.where,
    one.finding,
    `${plus(one.reward)} ± ${one.reward_stderr.toFixed(3)}`,
    `${plus(one.win_rate)} ± ${one.win_rate_stderr.toFixed(3)}`,
    `${one.seeds_with_sign}/${one.seeds}`,
    one.verdict,
  ]);
  return { head, body };
}

/** What went against the method, in words. @param {ReturnType<typeof differencesOf>} differences */
export function against(differences) {
  const opposite = differences.filter(({ verdict }) => verdict === 'the opposite shows');
  if (opposite.length === 0) return 'Nothing went against the method.';
  const found = opposite.map(({ finding, reward }) => `“${finding}” (${plus(reward)} in mean reward)`);
  return `Against the method, the opposite of what follows shows here: ${found.join('; ')}.`;
}

/** For a terminal. */
export function asText({ head, body }) {
  const widths = head.map((_, i) => Math.max(...[head, ...body].map((line) => line[i].length)));
  return [head, ...body]
    .map((line) => `  ${line.map((cell, i) => cell.padEnd(widths[i])).join('  ')}`.trimEnd())
    .join('\n');
}

const asMarkdown = ({ head, body }) =>
  [head, head.map(() => '---'), ...body].map((line) => `| ${line.join(' | ')} |`).join('\n');

/** `results.json`, and `results.md` for the README. @param {string} directory @param {{ rows: Row[], differences: any[] }} summary */
export function writeResults(directory, summary) {
  writeFileSync(join(directory, 'results.json'), `${JSON.stringify(summary, null, 2)}\n`);
  const tables = [tableOfRows(summary.rows), tableOfDifferences(summary.differences)];
  writeFileSync(join(directory, 'results.md'), `${tables.map(asMarkdown).join('\n\n')}\n`);
}

/** What the report says beside the fusion of the first seed. */
export function sectionsOf({ rows, differences, seeds }, prompts) {
  const errors = seeds.length > 1 ? `over the seeds ${seeds.join(', ')}` : `over prompts (one seed, ${seeds[0]})`;
  const of = ({ head, body }) => ({ head, rows: body });
  return [
    {
      title: 'Table 2 in miniature',
      text: `Greedy answers to ${prompts} held-out prompts; mean ± standard error ${errors}. The win rate is against Target, ties counting half. One fixed set of checkpoints, made so that the mechanism the paper describes is there: this compares preference objectives and is no evidence about real models.`,
      table: of(tableOfRows(rows)),
    },
    {
      title: 'Findings of the paper, whatever their sign',
      text: `${against(differences)} Paired differences of mean reward and of win rate; “seeds” is in how many the reward has the finding's sign. A verdict other than “not distinguishable” has p < 0.05 in mean reward by Student's t over the seeds (of one seed: over prompts), uncorrected for the number of lines.`,
      table: of(tableOfDifferences(differences)),
    },
  ];
}
