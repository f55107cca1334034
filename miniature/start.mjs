/**
 * The paper in miniature. `npm start` fuses three tiny source models into a target with one seed and prints Table 2;
 * `npm run miniature -- --full` adds the ablations, over five seeds. What is done already is not done again there.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { writeReport } from 'wrpo';
import { MAIN, STUDY } from './methods.mjs';
import {
  against,
  asText,
  differencesOf,
  rowsOf,
  sectionsOf,
  tableOfDifferences,
  tableOfRows,
  writeResults,
} from './results.mjs';
import { runSeed } from './seed.mjs';
import { SEEDS, testPrompts } from './task.mjs';

const say = (line = '') => process.stdout.write(`${line}\n`);
const fail = (/** @type {number} */ status, /** @type {string} */ message) => {
  process.stderr.write(`${message}\n`);
  process.exit(status);
};

const options = readOptions();
try {
  await main(options);
} catch (error) {
  if (error.name !== 'WrpoError') throw error;
  fail(1, error.message);
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        full: { type: 'boolean', default: false },
        output: { type: 'string' },
        prompts: { type: 'string', default: '3072' },
        test: { type: 'string', default: '1200' },
      },
    });
    const { full, output = join('runs', full ? 'miniature-full' : 'miniature') } = values;
    const count = (/** @type {'prompts' | 'test'} */ name) => {
      const value = Number(values[name]);
      if (Number.isInteger(value) && value > 0) return value;
      throw new Error(`--${name}: expected a number of prompts, found "${values[name]}"`);
    };
    return { full, output, count: count('prompts'), test: testPrompts(count('test')) };
  } catch (error) {
    return fail(2, error.message);
  }
}

async function main({ full, output, count, test }) {
  const began = performance.now();
  const elapsed = () => Math.round((performance.now() - began) / 1000);
  const seeds = full ? SEEDS : SEEDS.slice(0, 1);
  mkdirSync(output, { recursive: true });
  say('Three sources (srcA: letters, srcB: numbers, srcC: formats) and a target that has all skills and a bad habit.');

  const results = [];
  for (const seed of seeds) {
    const directory = join(output, `seed-${seed}`);
    if (!full) rmSync(directory, { recursive: true, force: true });
    const tell = (line) => say(`${String(elapsed()).padStart(4)} s  ${full ? `seed ${seed}: ` : ''}${line}`);
    results.push(await runSeed(directory, { seed, methods: full ? STUDY : MAIN, test, count, say: tell }));
  }

  const summary = { rows: rowsOf(results), differences: differencesOf(results), seeds, seconds: elapsed() };
  writeResults(output, summary);
  const page = join(output, 'report.html');
  await writeReport(join(output, `seed-${seeds[0]}`), {
    ...{ file: page, sections: sectionsOf(summary, test.length) },
  });
  const errors = seeds.length > 1 ? `over ${seeds.length} seeds` : 'over prompts (one seed)';
  say(`\nOn ${test.length} held-out prompts, greedy; mean ± standard error ${errors}:\n`);
  say(asText(tableOfRows(summary.rows)));
  say('\nPaired differences, whatever their sign:\n');
  say(asText(tableOfDifferences(summary.differences)));
  say(`\n${against(summary.differences)}`);
  say('One fixed set of checkpoints, made so that the mechanism is there: no evidence about real models.');
  say(`\nDone in ${summary.seconds} s. Look at ${page} (numbers: ${join(output, 'results.json')}).`);
}
