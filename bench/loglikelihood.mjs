/**
 * The log-likelihoods of the Open LLM Leaderboard's tasks against lm-evaluation-harness with transformers
 * (bench_loglikelihood.py): the same model, the same texts, tokenising included, alternating, the model loaded in both.
 * Prints the seconds of each task and round, and the ratio of all: median and range.
 *
 * node bench/loglikelihood.mjs [--rounds 3] [--rows 24] [--batch 16] [--threads 2] [--model DIR]
 *   WRPO_HARNESS_PYTHON: a Python with lm_eval and transformers (default: python3)
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const { values } = parseArgs({
  options: {
    model: { type: 'string', default: here('../test/fixtures/evaluate/lm_eval/model') },
    rounds: { type: 'string', default: '3' },
    rows: { type: 'string', default: '24' },
    batch: { type: 'string', default: '16' },
    threads: { type: 'string', default: '2' },
  },
});
process.env.OMP_NUM_THREADS = values.threads; // before libtorch is loaded
const { Model, Tokenizer } = await import('../dist/index.js');
const { encodeRequests, logLikelihoods } = await import('../dist/evaluate/loglikelihood.js');
const { preambles, TASKS } = await import('../dist/evaluate/tasks.js');

const DATA = here('../test/fixtures/evaluate/lm_eval');
const scratch = mkdtempSync(join(tmpdir(), 'wrpo-loglikelihood-'));
const tasks = Object.fromEntries(
  Object.entries(TASKS).flatMap(([name, task]) => (task.kind === 'generation' ? [] : [[name, requestsOf(name, task)]])),
);
const requests = join(scratch, 'requests.json');
const pairs = Object.entries(tasks).map(([name, all]) => [name, all.map((one) => [one.context, one.continuation])]);
writeFileSync(requests, JSON.stringify(Object.fromEntries(pairs)));

const model = await Model.load(values.model);
const tokenizer = await Tokenizer.load(values.model);
const args = ['--model', values.model, '--requests', requests, '--batch', values.batch, '--threads', values.threads];
const python = process.env.WRPO_HARNESS_PYTHON ?? 'python3';
const child = spawn(python, [here('bench_loglikelihood.py'), ...args], { stdio: ['pipe', 'pipe', 'ignore'] });
const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
const nextLine = async () => {
  for (;;) {
    const { value, done } = await lines.next();
    if (done) throw new Error(`${python} bench_loglikelihood.py ended`);
    if (value === 'ready' || value.startsWith('{')) return value;
  }
};
try {
  await nextLine();
  await ours(); // warms up
  const ratios = [];
  for (let round = 0; round < Number(values.rounds); round++) {
    const mine = await ours();
    child.stdin.write('\n');
    const theirs = JSON.parse(await nextLine());
    const apart = Math.max(...mine.sums.map((value, i) => Math.abs(value - theirs.sums[i])));
    const total = (seconds) => Object.values(seconds).reduce((a, b) => a + b, 0);
    ratios.push(total(theirs.seconds) / total(mine.seconds));
    for (const name of Object.keys(tasks)) {
      const [a, b] = [mine.seconds[name], theirs.seconds[name]];
      console.log(
        `${name} ${tasks[name].length} requests: ${a.toFixed(2)} s, harness ${b.toFixed(2)} s, ${(b / a).toFixed(2)} times`,
      );
    }
    console.log(`round ${round + 1}: ${ratios.at(-1).toFixed(2)} times; sums at most ${apart.toExponential(1)} apart`);
  }
  ratios.sort((a, b) => a - b);
  console.log(
    `all: ${ratios[ratios.length >> 1].toFixed(2)} times (${ratios[0].toFixed(2)} to ${ratios.at(-1).toFixed(2)})`,
  );
} finally {
  child.kill();
  await model.close();
  rmSync(scratch, { recursive: true });
}

async function ours() {
  const seconds = {};
  let sums;
  for (const [name, all] of Object.entries(tasks)) {
    const began = performance.now();
    const sequences = await encodeRequests(all, tokenizer, model.config.maxPositions);
    const found = await logLikelihoods(model, sequences, { microbatchTokens: 4096 });
    seconds[name] = (performance.now() - began) / 1000;
    sums ??= found;
  }
  return { seconds, sums };
}

function requestsOf(name, task) {
  const texts = { truthfulqaPrompt: readFileSync(join(DATA, 'truthfulqa_prompt.txt'), 'utf8') };
  const read = (split) =>
    readFileSync(join(DATA, 'data', name, `${split}.jsonl`), 'utf8')
      .trim()
      .split('\n')
      .map((line, i) => task.read(JSON.parse(line), `${name} ${i + 1}`, texts));
  const docs = read(task.split).slice(0, Number(values.rows));
  const before = preambles(task, docs, task.shotSplit ? read(task.shotSplit) : []);
  return docs.flatMap((doc, i) =>
    doc.continuations.map((continuation, k) => {
      return { context: before[i] + doc.contexts[k], continuation: ` ${continuation}`, where: `${name} ${i + 1}` };
    }),
  );
}
