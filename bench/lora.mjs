/**
 * LoRA against full fine-tuning by WRPO: the same weights and rows, alternating, every run in a fresh process. Prints
 * a JSON line a run and, for each kind of adapters, the ratio of real tokens per second and of peak memory to those of
 * full fine-tuning (median, and the range over the rounds). The reference is computed before the first step, by both in
 * the same way, and not counted.
 *
 * node bench/lora.mjs [--preset tiny|small] [--dtype float32|bfloat16] [--rounds 5] [--rows N] [--threads 2]
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Model, Trainer } from '../dist/index.js';

// The shapes of bench_peer.py: hidden, layers, heads, heads for keys, feed-forward, vocabulary; and how many rows.
const PRESETS = { tiny: [256, 6, 8, 4, 688, 32000, 32], small: [768, 12, 12, 4, 2048, 32000, 16] };
const KINDS = {
  full: {},
  'lora q_proj v_proj': { usePeft: true },
  'lora all-linear': { usePeft: true, loraTargetModules: 'all-linear' },
};

if (process.argv[2] === '--run') await run(...process.argv.slice(3));
else await compareAll();

/** One run, in a process of its own; prints what it took. */
async function run(kind, model, trainDataset, dtype, outputDir) {
  const args = {
    ...{ outputDir, dtype, lossType: 'wrpo', learningRate: 1e-5, shuffle: false, disableTqdm: true, maxLength: 4096 },
    ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 4, loggingSteps: 1, ...KINDS[kind] },
  };
  const trainer = new Trainer({ model, trainDataset, args });
  const policy = await trainer.model();
  let previous;
  let tokens = 0;
  let seconds = 0;
  for await (const step of trainer.steps()) {
    const now = performance.now();
    // The first step warms up; the loading before it is not its memory.
    if (previous !== undefined) {
      tokens += step.tokens;
      seconds += (now - previous) / 1000;
    } else policy.memory({ resetPeak: true });
    previous = performance.now();
  }
  print({
    tokens_per_s: round(tokens / seconds, 1),
    peak_tensor_mb: round(policy.memory().peak / 2 ** 20, 1),
    peak_rss_mb: round(process.resourceUsage().maxRSS / 1024, 1),
  });
}

async function compareAll() {
  const { values } = parseArgs({
    options: {
      preset: { type: 'string' },
      dtype: { type: 'string', default: 'float32' },
      rounds: { type: 'string', default: '5' },
      rows: { type: 'string' },
      threads: { type: 'string', default: '2' },
    },
  });
  for (const preset of values.preset ? [values.preset] : Object.keys(PRESETS)) {
    const scratch = mkdtempSync(join(tmpdir(), 'wrpo-lora-'));
    try {
      await compare(preset, values, scratch);
    } finally {
      rmSync(scratch, { recursive: true, force: true });
    }
  }
}

async function compare(preset, { dtype, rounds, rows, threads }, scratch) {
  const [hidden, layers, heads, kvHeads, feedForward, vocabulary, usual] = PRESETS[preset];
  const [model, data] = [join(scratch, 'model'), join(scratch, 'rows.jsonl')];
  const made = await Model.create({
    ...{ model_type: 'llama', hidden_size: hidden, num_hidden_layers: layers, num_attention_heads: heads },
    ...{ num_key_value_heads: kvHeads, intermediate_size: feedForward, vocab_size: vocabulary },
    ...{ max_position_embeddings: 4096, rope_theta: 500000, tie_word_embeddings: false },
  });
  await made.save(model);
  await made.close();
  writeFileSync(data, randomRows(Number(rows ?? usual), vocabulary));

  const env = { ...process.env, OMP_NUM_THREADS: threads };
  const self = fileURLToPath(import.meta.url);
  const found = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, []]));
  for (let i = 0; i < Number(rounds); i++) {
    for (const kind of Object.keys(KINDS)) {
      const args = [self, '--run', kind, model, data, dtype, join(scratch, 'run')];
      const { status, stdout, stderr } = spawnSync(process.execPath, args, { env, encoding: 'utf8' });
      if (status !== 0) throw new Error(`${kind} failed:\n${stderr.slice(-2000)}`);
      const figures = JSON.parse(stdout.trim().split('\n').at(-1));
      found[kind].push(figures);
      print({ round: i, preset, dtype, kind, ...figures });
      rmSync(join(scratch, 'run'), { recursive: true });
    }
  }
  for (const [kind, figures] of Object.entries(found).slice(1)) {
    const ratio = (key) => summary(figures.map((one, i) => one[key] / found.full[i][key]));
    print({
      ...{ preset, dtype, kind, speed_ratio: ratio('tokens_per_s') },
      ...{ tensor_memory_ratio: ratio('peak_tensor_mb'), rss_ratio: ratio('peak_rss_mb') },
    });
  }
}

/** Rows whose lengths are distributed as those of bench_peer.py. */
function randomRows(count, vocabulary) {
  let state = 1;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  const ids = (median, sigma, most) => {
    const length = Math.min(most, Math.max(16, Math.round(median * Math.exp(sigma * normal()))));
    return Array.from({ length }, () => 3 + Math.floor(uniform() * (vocabulary - 3)));
  };
  return Array.from({ length: count }, () => {
    const prompt = ids(120, 0.8, 1024);
    const [source_chosen, target_chosen, rejected] = [0, 1, 2].map(() => ids(250, 0.6, 2048 - prompt.length));
    return `${JSON.stringify({ prompt, source_chosen, target_chosen, rejected })}\n`;
  }).join('');
}

function summary(list) {
  const sorted = [...list].sort((a, b) => a - b);
  return { median: round(sorted[sorted.length >> 1], 3), range: [sorted[0], sorted.at(-1)].map((x) => round(x, 3)) };
}

function round(value, digits) {
  return Number(value.toFixed(digits));
}

function print(figures) {
  console.log(JSON.stringify(figures));
}
