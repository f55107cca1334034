/** One seed of the miniature: the paper's steps, then every method from the same samples, then the held-out prompts. */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { WrpoError } from 'wrpo';
import { MiniatureRun, modelDir, PREFERENCE, SFT, SOURCES, weightsOf } from './fusion.mjs';
import { SELECTIONS } from './methods.mjs';
import { answers, mean } from './task.mjs';

/** A source must not win more of the prompts, or the others would hardly be there. */
const LARGEST_SHARE = 60;

/**
 * @typedef {import('./task.mjs').Answer} Answer
 * @typedef {object} SeedOptions
 * @property {number} seed
 * @property {import('./methods.mjs').Method[]} methods
 * @property {import('./task.mjs').Sample[]} test
 * @property {number} [count] prompts of the fusion
 * @property {(line: string) => void} say
 */

/**
 * Answers to the test prompts by name of model or method. What is on disk is not done again.
 * @param {string} directory @param {SeedOptions} options
 * @returns {Promise<Record<string, Answer[]>>}
 */
export async function runSeed(directory, { seed, methods, test, count, say }) {
  const run = await MiniatureRun.open(directory, seed, { count, say });
  /** @type {Record<string, Answer[]>} */
  const results = {};
  const evaluate = async (name, dir) => {
    const path = join(directory, 'answers', `${fileName(name)}.json`);
    results[name] = await remembered(path, `${weightsOf(dir)} ${test.length}`, () => answers(dir, test));
    say(`${name}: mean reward ${mean(results[name].map(({ reward }) => reward)).toFixed(3)} on held-out prompts`);
  };

  for (const name of SOURCES) await run.sample(name, modelDir(name));
  const tuning = run.select('selected-sft');
  const shares = Object.entries(tuning.shares);
  say(`y_ws comes from ${shares.map(([name, share]) => `${name} ${share.toFixed(1)} %`).join(', ')}`);
  const [most, share] = shares.reduce((a, b) => (b[1] > a[1] ? b : a));
  if (share > LARGEST_SHARE)
    throw new WrpoError('ERR_DATA', `${most} wins ${share.toFixed(1)} % of the prompts: no fusion of several`);

  const sft = { model: modelDir('target'), rows: join(tuning.directory, 'sft.jsonl'), args: SFT };
  const starts = { target: modelDir('target'), 'target-sft': await run.train('sft', sft) };
  for (const name of ['target', ...SOURCES]) await evaluate(name === 'target' ? 'Target' : name, modelDir(name));
  await evaluate('Target-SFT', starts['target-sft']);

  const sampled = new Set();
  for (const { name, start = 'target-sft', rows = 'all', args } of methods) {
    if (!sampled.has(start)) await run.sample(start, starts[start], { onlyPreferences: true });
    sampled.add(start);
    const { directory: selected } = run.select(`selected/${fileName(`${start} ${rows}`)}`, {
      ...{ target: start, ...SELECTIONS[rows] },
    });
    const job = { model: starts[start], rows: join(selected, 'train.jsonl'), args: { ...PREFERENCE, ...args } };
    if (args.lossType === 'sft') job.args.beta = undefined;
    await evaluate(name, await run.train(`train/${fileName(name)}`, job));
  }
  return results;
}

const fileName = (/** @type {string} */ name) => name.replace(/[^A-Za-z0-9.+]+/g, '-').replace(/-$/, '');

/**
 * What was made of something before, if it was of the same.
 * @template T @param {string} path @param {string} of @param {() => Promise<T>} make @returns {Promise<T>}
 */
async function remembered(path, of, make) {
  const before = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : undefined;
  if (before?.of === of) return before.value;
  const value = await make();
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.tmp`, JSON.stringify({ of, value }));
  renameSync(`${path}.tmp`, path);
  return value;
}
