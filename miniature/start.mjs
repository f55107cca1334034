/**
 * The paper in miniature. `npm start` fuses three tiny source models into a target with one seed and prints Table 2;
 * `npm run miniature -- --full` adds the ablations, over five seeds. What is done already is not done again.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { MAIN, STUDY } from './methods.mjs';
import { writePage } from './page.mjs';
import { against, asText, differencesOf, rowsOf, tableOfDifferences, tableOfRows, writeResults } from './results.mjs';
import { runSeed } from './seed.mjs';
import { SEEDS, testPrompts } from './task.mjs';

const { values } = parseArgs({
  options: {
    full: { type: 'boolean', default: false },
    output: { type: 'string' },
    prompts: { type: 'string', default: '3072' },
    test: { type: 'string', default: '1200' },
  },
});
const { full } = values;
const seeds = full ? SEEDS : SEEDS.slice(0, 1);
const output = values.output ?? join('runs', full ? 'miniature-full' : 'miniature');
const say = (line = '') => process.stdout.write(`${line}\n`);
const began = performance.now();

if (!full) for (const seed of seeds) rmSync(join(output, `seed-${seed}`), { recursive: true, force: true });
mkdirSync(output, { recursive: true });
say(
  'Three sources (letters: srcA, numbers: srcB, formats: srcC) are fused into a target that has all skills and a bad habit.',
);
const options = { methods: full ? STUDY : MAIN, test: testPrompts(Number(values.test)), count: Number(values.prompts) };
const results = [];
for (const seed of seeds) {
  const time = () => `${((performance.now() - began) / 1000).toFixed(0).padStart(4)} s  `;
  const tell = (line) => say(`${time()}${full ? `seed ${seed}: ` : ''}${line}`);
  results.push(await runSeed(join(output, `seed-${seed}`), { ...options, seed, say: tell }));
}

const summary = {
  rows: rowsOf(results),
  differences: differencesOf(results),
  seeds,
  seconds: Math.round((performance.now() - began) / 1000),
};
writeResults(output, summary);
const page = join(output, 'report.html');
writePage(page, summary);
const errors = seeds.length > 1 ? `over ${seeds.length} seeds` : 'over prompts (one seed)';
say(`\nOn ${options.test.length} held-out prompts, greedy; mean ± standard error ${errors}:\n`);
say(asText(tableOfRows(summary.rows)));
say('\nPaired differences, whatever their sign:\n');
say(asText(tableOfDifferences(summary.differences)));
say(`\n${against(summary.differences)}`);
say('One fixed set of checkpoints, made so that the mechanism is there: no evidence about real models.');
say(`\nDone in ${summary.seconds} s. Look at ${page} (numbers: ${join(output, 'results.json')}).`);
