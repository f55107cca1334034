/** What `npm start` runs, cut down to seconds, and the arithmetic of its tables. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { FINDINGS, MAIN, STUDY } from '../miniature/methods.mjs';
import { against, differencesOf, rowsOf, tableOfDifferences } from '../miniature/results.mjs';
import { standardError } from '../miniature/task.mjs';
import { readJson, scratchDirectory } from './training.ts';

const path = scratchDirectory('miniature');
const root = fileURLToPath(new URL('..', import.meta.url));
const answers = (...rewards: number[]) => rewards.map((reward) => ({ text: '', reward }));

it('goes through all steps and says where to look', () => {
  const output = path('small');
  const args = ['miniature/start.mjs', '--prompts', '96', '--test', '24', '--output', output];
  const run = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
  // What the trainer says of DPO on quadruples, and nothing else.
  expect(run.stderr.replaceAll(/^loss_type sigmoid takes .*\n/gm, '')).toBe('');
  expect(run.status).toBe(0);
  expect(run.stdout.trimEnd().split('\n').at(-1)).toContain(join(output, 'report.html'));
  const { rows, seeds, seconds } = readJson(join(output, 'results.json'));
  expect(rows.map(({ name }: { name: string }) => name)).toEqual([
    ...['Target', 'srcA', 'srcB', 'srcC', 'Target-SFT', 'SFT-DPO', 'SFT-WRPO'],
    ...['SFT-hybrid', 'static alpha 0.5', 'more SFT on all y_ws'],
  ]);
  for (const row of rows) {
    expect(row.n).toBe(24);
    expect(row.reward).toBeGreaterThan(0);
    expect(row.reward_stderr).toBeGreaterThan(0);
    // The run's lines name each model with what is in its row.
    expect(run.stdout).toContain(`${row.name}: mean reward ${row.reward.toFixed(3)} on held-out prompts`);
  }
  expect(rows[0].win_rate).toBe(0.5);
  expect([seeds, Number.isInteger(seconds)]).toEqual([[21], true]);
  const page = readFileSync(join(output, 'report.html'), 'utf8');
  for (const { name } of rows) expect(page).toContain(`>${name}</th>`);

  const quadruples = readFileSync(join(output, 'seed-21/selected/train.jsonl'), 'utf8').trimEnd();
  expect(quadruples.split('\n')).toHaveLength(64);
  expect(existsSync(join(output, 'seed-21/train/SFT-WRPO/model.safetensors'))).toBe(true);
});

it.each([
  [['--prompts', 'many'], '--prompts: expected a number of prompts, found "many"'],
  [['--seeds', '3'], "Unknown option '--seeds'"],
])('refuses %j in one sentence', (args, sentence) => {
  const run = spawnSync(process.execPath, ['miniature/start.mjs', ...args], { cwd: root, encoding: 'utf8' });
  expect(run.stderr).toContain(sentence);
  expect(run.stderr.trimEnd()).not.toContain('\n');
  expect(run.status).toBe(2);
});

it('takes standard errors over seeds, and over prompts where there is one seed', () => {
  const seed = (target: number[], tuned: number[]) => ({ Target: answers(...target), 'Target-SFT': answers(...tuned) });
  const first = seed([0, 0.5, 1], [0.5, 0.5, 0]);
  const second = seed([0, 0, 0.5], [1, 1, 1]);
  const [, one] = rowsOf([first]);
  expect(one!.reward_stderr).toBeCloseTo(standardError([0.5, 0.5, 0])!, 12);
  expect([one!.win_rate, one!.n, one!.seeds]).toEqual([0.5, 3, 1]);
  const [, two] = rowsOf([first, second]);
  expect(two!.reward).toBeCloseTo(2 / 3, 12);
  expect(two!.reward_stderr).toBeCloseTo(1 / 3, 12); // of 1/3 and 1
  const [difference] = differencesOf([first, second]);
  expect(difference!.reward).toBeCloseTo((-1 / 6 + 5 / 6) / 2, 12);
  expect([difference!.seeds_with_sign, difference!.verdict]).toEqual([1, 'not distinguishable']);
});

it('calls the sign of a difference by its name', () => {
  const verdict = (better: number[][], worse: number[][]) => {
    const seeds = better.map((mine, i) => ({ Target: answers(...worse[i]!), 'Target-SFT': answers(...mine) }));
    return differencesOf(seeds)[0]!.verdict;
  };
  const high = [[0.5], [0.6], [0.55]];
  const low = [[0.1], [0.21], [0.14]];
  expect(verdict(high, low)).toBe('shows');
  expect(verdict(low, high)).toBe('the opposite shows');
  const lost = differencesOf([{ Target: answers(0.5, 1), 'Target-SFT': answers(0, 0.75) }]);
  expect(tableOfDifferences(lost).body).toEqual([
    ['Table 2', 'Target-SFT beats Target', '−0.375 ± 0.125', '−0.500 ± 0.000', '0/1', 'the opposite shows'],
  ]);
  expect(against(lost)).toContain('“Target-SFT beats Target” (−0.375 in mean reward)');
  expect(against([])).toBe('Nothing went against the method.');
});

it('compares methods that there are', () => {
  const names = new Set(['Target', 'Target-SFT', ...STUDY.map(({ name }) => name)]);
  expect(names.size).toBe(2 + STUDY.length);
  for (const [, , better, worse] of FINDINGS) for (const name of [better!, worse!]) expect(names).toContain(name);
  expect(STUDY.slice(0, MAIN.length)).toEqual(MAIN);
});
