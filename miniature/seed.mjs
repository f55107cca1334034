/** One seed of the miniature: the paper's steps, then every method from the same samples, then the held-out prompts. */
import { cpSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { functionScorer, fuse, WrpoError } from 'wrpo';
import { fusionOf, SOURCES, slug } from './fusion.mjs';
import { fusionPrompts, mean, rewardOf } from './task.mjs';

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
  mkdirSync(directory, { recursive: true });
  const samples = fusionPrompts(seed, count);
  const prompts = promptFile(join(directory, 'asked.jsonl'), samples);
  const heldOut = promptFile(join(directory, 'held-out.jsonl'), test);
  const scorers = [functionScorer('gold', rewardOf([...samples, ...test]))];
  const of = (/** @type {string} */ start) => methods.filter((method) => (method.start ?? 'target-sft') === start);
  const run = { outputDir: directory, seed, prompts, heldOut, fineTunes: true };
  await fuse(fusionOf(of('target-sft'), run), { scorers, say });
  requireSeveral(join(directory, 'selected', 'train.jsonl'));
  const results = answersIn(directory, { Target: 'target', 'Target-SFT': 'target-sft' }, of('target-sft'));

  if (of('target').length > 0) {
    // The sources have answered already.
    const outputDir = join(directory, 'from-target');
    mkdirSync(outputDir, { recursive: true });
    for (const part of ['prompts.jsonl', ...SOURCES.flatMap(shardsOf)]) {
      if (!existsSync(join(outputDir, part))) cpSync(join(directory, part), join(outputDir, part));
    }
    await fuse(fusionOf(of('target'), { ...run, outputDir, fineTunes: false }), { scorers, say });
    Object.assign(results, answersIn(outputDir, {}, of('target')));
  }
  for (const [name, answers] of Object.entries(results)) {
    say(`${name}: mean reward ${mean(answers.map(({ reward }) => reward)).toFixed(3)} on held-out prompts`);
  }
  return results;
}

/** @param {string} quadruples */
function requireSeveral(quadruples) {
  const rows = readFileSync(quadruples, 'utf8').trimEnd().split('\n');
  const wins = rows.map((row) => JSON.parse(row).meta.source_model);
  for (const source of SOURCES) {
    const share = (100 * wins.filter((name) => name === source).length) / wins.length;
    if (share > LARGEST_SHARE)
      throw new WrpoError('ERR_DATA', `${source} wins ${share.toFixed(1)} % of the prompts: no fusion of several`);
  }
}

const shardsOf = (/** @type {string} */ name) =>
  ['samples', 'scores/gold'].flatMap((kind) => ['json', 'jsonl'].map((ending) => `${kind}/${name}.${ending}`));

/** @param {string} path @param {import('./task.mjs').Sample[]} samples */
function promptFile(path, samples) {
  const text = samples.map(({ prompt }) => `${JSON.stringify({ prompt })}\n`).join('');
  if (existsSync(path) && readFileSync(path, 'utf8') === text) return path;
  writeFileSync(`${path}.tmp`, text);
  renameSync(`${path}.tmp`, path);
  return path;
}

/**
 * What a fusion's models answered to the held-out prompts, in their order.
 * @param {string} directory @param {Record<string, string>} others models by what the tables call them
 * @param {import('./methods.mjs').Method[]} methods
 * @returns {Record<string, Answer[]>}
 */
function answersIn(directory, others, methods) {
  const lines = readFileSync(join(directory, 'evaluation/answers.jsonl'), 'utf8').trimEnd().split('\n');
  const rows = lines.map((line) => JSON.parse(line).answers);
  const { Target, ...rest } = others;
  const names = [
    ...(Target ? [['Target', Target], ...SOURCES.map((name) => [name, name])] : []),
    ...Object.entries(rest),
    ...methods.map(({ name }) => [name, slug(name)]),
  ];
  return Object.fromEntries(names.map(([name, key]) => [name, rows.map((row) => row[key])]));
}
