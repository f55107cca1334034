/**
 * What the store and a selection cost beside models and scorers: `node bench/store.mjs [prompts] [sources] [letters]`.
 * Every source gives five answers of about so many letters to every prompt at once, a function scores them at once, and
 * quadruples are selected, as JSONL and as Parquet. Each stage is a process of its own: rows (answers) per
 * second, and its peak memory, which must not grow with the number of prompts: a tenth of them is run for comparison.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promptIdOf } from '../dist/fuse/prompts.js';
import { selectRows } from '../dist/fuse/quadruples.js';
import { sampleModel } from '../dist/fuse/sample.js';
import { functionScorer, scoreModel } from '../dist/fuse/score.js';
import { Store } from '../dist/fuse/store.js';

const SAMPLES = 5;
const TARGET = 'target';
const TEXT = Array.from({ length: 20000 }, (_, i) => `word${(i * 7919) % 4999}`).join(' ');

function* prompts(count) {
  for (let i = 0; i < count; i++) {
    const messages = [
      { role: 'user', content: `Question ${i}: ${TEXT.slice((i * 31) % 9000, ((i * 31) % 9000) + 300)}` },
    ];
    yield { promptId: promptIdOf(messages), messages };
  }
}

/** Answers at once; half to twice as many letters as `letters`. */
const sampler = (name, letters) => ({
  name,
  concurrency: 8,
  depends: { model: name },
  async sample({ seeds }) {
    const samples = seeds.map((seed) => {
      const start = seed % 100000;
      const text = TEXT.slice(start, start + letters * (0.5 + (seed % 1009) / 1009));
      return { text: `${seed} ${text}`, finish_reason: 'stop', seed };
    });
    return { samples, promptTokens: 80, completionTokens: SAMPLES * (letters >> 2) };
  },
});

const STAGES = {
  async sample(directory, count, sources, letters) {
    const store = await Store.create(directory, prompts(count));
    for (const name of [...sources, TARGET]) await sampleModel(store, sampler(name, letters), { n: SAMPLES, seed: 42 });
    return count * SAMPLES * (sources.length + 1);
  },
  async score(directory, count, sources) {
    const store = Store.open(directory);
    const scorer = functionScorer('length', ({ response }) => (response.length * 2654435761) % 1000003);
    for (const name of [...sources, TARGET]) await scoreModel(store, name, scorer);
    return count * SAMPLES * (sources.length + 1);
  },
  select: (directory, count, sources) => select(directory, count, sources, 'jsonl'),
  selectParquet: (directory, count, sources) => select(directory, count, sources, 'parquet'),
};

async function select(directory, count, sources, format) {
  const rule = { rank: 1, sourceRejected: true, seed: 42, heldOut: 0.02, sftRatio: 1 / 3, rowSchema: 'authors' };
  const store = Store.open(directory);
  selectRows(store, { ...rule, sources, target: TARGET, scorer: 'length', format, directory: join(directory, format) });
  return count * SAMPLES * (sources.length + 1);
}

if (process.argv[2] === '--stage') {
  const [stage, directory, count, sources, letters] = process.argv.slice(3);
  const names = Array.from({ length: Number(sources) }, (_, i) => `source${i}`);
  const began = performance.now();
  const rows = await STAGES[stage](directory, Number(count), names, Number(letters));
  const seconds = (performance.now() - began) / 1000;
  const { maxRSS } = process.resourceUsage();
  console.log(JSON.stringify({ stage, rows, seconds, rowsPerSecond: rows / seconds, peakMegabytes: maxRSS / 1024 }));
} else {
  const [count = '60000', sources = '10', letters = '1000'] = process.argv.slice(2);
  for (const size of [String(Math.ceil(Number(count) / 10)), count]) {
    const directory = mkdtempSync(join(tmpdir(), 'wrpo-store-'));
    try {
      for (const stage of Object.keys(STAGES)) {
        const args = [fileURLToPath(import.meta.url), '--stage', stage, directory, size, sources, letters];
        const { rows, seconds, rowsPerSecond, peakMegabytes } = JSON.parse(execFileSync(process.execPath, args));
        const numbers = `${rows} answers in ${seconds.toFixed(1)} s, ${Math.round(rowsPerSecond)}/s, ${Math.round(peakMegabytes)} MB`;
        console.log(`${size} prompts × ${sources} sources, ${stage}: ${numbers}`);
      }
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  }
}
