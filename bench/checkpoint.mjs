/**
 * What checkpoints cost: `node bench/checkpoint.mjs [tiny|small] [pairs] [steps]`. One JSON line each: writing one and going
 * on from one, in seconds and megabytes of state a second, beside a plain file of as many bytes in the same directory, the
 * memory that writing takes, and how long a row that is asked for meanwhile waits; then tokens a second of runs that save every fourth step beside those of runs that do not,
 * alternating.
 */
import {
  fsyncSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AdamW, Model, packRows, Trainer } from '../dist/index.js';
import { readCheckpoint, saveCheckpoint } from '../dist/train/checkpoint.js';

const SHAPES = { tiny: [256, 6, 8, 4, 688, 8192], small: [768, 12, 12, 4, 2048, 32000] };
const PAIR = ['chosen', 'rejected'];
const [shape = 'small', pairs = '3', steps = '17'] = process.argv.slice(2);
const [hidden, layers, heads, kvHeads, feedForward, vocabulary] = SHAPES[shape];
const directory = mkdtempSync(join(tmpdir(), 'wrpo-checkpoint-'));
const create = () =>
  Model.create({
    ...{ model_type: 'llama', vocab_size: vocabulary, hidden_size: hidden, num_hidden_layers: layers },
    ...{ num_attention_heads: heads, num_key_value_heads: kvHeads, intermediate_size: feedForward },
    ...{ max_position_embeddings: 1024, rms_norm_eps: 1e-5 },
  });
const show = (value) =>
  console.log(JSON.stringify(value, (_, one) => (typeof one === 'number' ? Number(one.toPrecision(4)) : one)));
const memory = (name) =>
  Number(new RegExp(`${name}:\\s+(\\d+)`).exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
async function timed(act) {
  const began = performance.now();
  await act();
  return (performance.now() - began) / 1000;
}

async function writeAndResume() {
  const model = await create();
  const optimizer = new AdamW(model, { learningRate: 1e-5 });
  const contents = { model, optimizer, state: { global_step: 1 }, resume: {}, wrpo: '', lossSum: 0, pending: {} };
  const two = Int32Array.of(1, 2);
  const row = packRows([{ where: '', prompt: two, responses: { chosen: two, rejected: two } }], PAIR);
  await model.logProbs(row);
  let dir = await saveCheckpoint(directory, contents);
  writeFileSync('/proc/self/clear_refs', '5'); // the peak begins anew
  const before = memory('VmRSS');
  let wait;
  const write = await timed(async () => {
    const writing = saveCheckpoint(directory, contents);
    wait = await timed(() => model.logProbs(row));
    dir = await writing;
  });
  const more = memory('VmHWM') - before;
  const bytes = readdirSync(dir).reduce((sum, name) => sum + statSync(join(dir, name)).size, 0);
  const resume = await timed(async () => {
    await readCheckpoint(dir, {});
    await model.loadWeights(dir);
    await optimizer.load(dir, 1);
  });
  await optimizer.close();
  await model.close();
  // The disk itself, the same bytes.
  const plain = join(directory, 'plain');
  const part = Buffer.alloc(1 << 20, 'x');
  const plainWrite = await timed(() => {
    const file = openSync(plain, 'w');
    for (let left = bytes; left > 0; left -= part.length) writeSync(file, part, 0, Math.min(left, part.length));
    fsyncSync(file);
  });
  rmSync(plain);
  rmSync(dir, { recursive: true });
  const speed = (seconds) => bytes / 1e6 / seconds;
  show({
    ...{ shape, state_mb: bytes / 1e6, write_s: write, write_mb_per_s: speed(write), memory_mb: more / 1e6 },
    wait_s: wait,
    ...{ resume_s: resume, resume_mb_per_s: speed(resume), plain_write_s: plainWrite, times_plain: write / plainWrite },
  });
}

const ids = (length, seed) => Array.from({ length }, (_, i) => (i * 31 + seed * 17) % vocabulary);
const rows = Array.from({ length: 32 }, (_, i) => ({
  ...{ prompt: ids(100, i), source_chosen: ids(120, i + 1), target_chosen: ids(120, i + 2), rejected: ids(120, i + 3) },
}));
/** Tokens a second of all steps but the first, the writing of the last checkpoint included. */
async function train(saveSteps) {
  const outputDir = join(directory, 'run');
  const model = await create();
  const args = {
    ...{ outputDir, maxSteps: Number(steps), perDeviceTrainBatchSize: 4, gradientAccumulationSteps: 1, saveSteps },
    ...{ saveStrategy: saveSteps ? 'steps' : 'no', saveTotalLimit: 2, disableTqdm: true, loggingSteps: 1000 },
  };
  const trainer = new Trainer({ model, trainDataset: rows, args });
  let began = 0;
  let tokens = 0;
  for await (const step of trainer.steps()) {
    if (began === 0) began = performance.now();
    else tokens += step.tokens;
  }
  const seconds = (performance.now() - began) / 1000;
  await trainer.close();
  await model.close();
  rmSync(outputDir, { recursive: true });
  return tokens / seconds;
}

try {
  await writeAndResume();
  for (let i = 0; i < Number(pairs); i++) {
    const without = await train(undefined);
    const saving = await train(4);
    show({ shape, tokens_per_s: without, saving_every_4: saving, overhead_percent: 100 * (without / saving - 1) });
  }
} finally {
  rmSync(directory, { recursive: true, force: true });
}
