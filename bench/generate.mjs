/**
 * Generation against transformers' generate (bench_generate.py): 64 prompts × 5 samples, temperature 0.8, top-p 0.95, the
 * same weights and prompts, alternating, every run in a fresh process. `--ends long`: every sample has max-tokens tokens;
 * `--ends early`: samples end by chance, each token with the probability 2 / max-tokens. Prints a JSON line a run, and
 * the ratio of new tokens per second and of peak memory: median and range over the rounds. Without --preset: all of SUITE.
 *
 * node bench/generate.mjs [--preset tiny|small] [--ends long|early] [--dtype float32|bfloat16] [--rounds 3]
 *   [--prompts 64] [--samples 5] [--max-tokens 128] [--peer-batch 16] [--threads 2]
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Model } from '../dist/index.js';

// As in bench_peer.py: hidden, layers, heads, heads for keys, feed-forward, vocabulary.
const PRESETS = { tiny: [256, 6, 8, 4, 688, 32000], small: [768, 12, 12, 4, 2048, 32000] };
const SUITE = Object.keys(PRESETS).flatMap((preset) => ['long', 'early'].map((ends) => ({ preset, ends })));
const here = (name) => fileURLToPath(new URL(name, import.meta.url));

if (process.argv[2] === '--run') await run(...process.argv.slice(3));
else await compareAll();

/** One run of ours, in a process of its own. */
async function run(directory, file, samples, maxTokens, dtype) {
  const { prompts, stop } = JSON.parse(readFileSync(file, 'utf8'));
  const model = await Model.load(directory, { dtype });
  const options = { temperature: 0.8, topP: 0.95, maxTokens: Number(maxTokens), stopIds: stop };
  const seeds = (i) => Array.from({ length: Number(samples) }, (_, k) => 1000 * i + k);
  const generate = async (asked, options) => {
    let tokens = 0;
    for await (const { samples } of model.generate(asked, options)) {
      for (const { ids } of samples) tokens += ids.length;
    }
    return tokens;
  };
  await generate([{ ids: prompts[0], seeds: seeds(0) }], { ...options, maxTokens: 4 }); // warms up
  const began = performance.now();
  const tokens = await generate(
    prompts.map((ids, i) => ({ ids, seeds: seeds(i) })),
    options,
  );
  const seconds = (performance.now() - began) / 1000;
  print({
    tokens,
    seconds: round(seconds, 2),
    tokens_per_s: round(tokens / seconds, 1),
    peak_rss_mb: round(process.resourceUsage().maxRSS / 1024, 1),
  });
}

async function compareAll() {
  const { values } = parseArgs({
    options: {
      preset: { type: 'string' },
      ends: { type: 'string', default: 'long' },
      dtype: { type: 'string', default: 'float32' },
      rounds: { type: 'string', default: '3' },
      prompts: { type: 'string', default: '64' },
      samples: { type: 'string', default: '5' },
      'max-tokens': { type: 'string', default: '128' },
      'peer-batch': { type: 'string', default: '16' },
      threads: { type: 'string', default: '2' },
    },
  });
  for (const one of values.preset ? [values] : SUITE) {
    const scratch = mkdtempSync(join(tmpdir(), 'wrpo-generate-'));
    try {
      await compare({ ...values, ...one }, scratch);
    } finally {
      rmSync(scratch, { recursive: true, force: true });
    }
  }
}

async function compare(options, scratch) {
  const { preset, ends, dtype, rounds, prompts, samples, threads } = options;
  const maxTokens = options['max-tokens'];
  const [hidden, layers, heads, kvHeads, feedForward, vocabulary] = PRESETS[preset];
  const [model, file] = [join(scratch, 'model'), join(scratch, 'prompts.json')];
  const made = await Model.create({
    ...{ model_type: 'llama', hidden_size: hidden, num_hidden_layers: layers, num_attention_heads: heads },
    ...{ num_key_value_heads: kvHeads, intermediate_size: feedForward, vocab_size: vocabulary },
    ...{ max_position_embeddings: 4096, rope_theta: 500000, tie_word_embeddings: false },
  });
  await made.save(model);
  await made.close();
  const data = randomPrompts(Number(prompts), vocabulary);
  // Random weights draw every token about as often.
  const stops = ends === 'early' ? Math.round((2 * vocabulary) / Number(maxTokens)) : 0;
  writeFileSync(file, JSON.stringify({ prompts: data, stop: Array.from({ length: stops }, (_, i) => 3 + i) }));

  const python = process.env.WRPO_PEER_PYTHON ?? here('../.peer/bin/python');
  if (!existsSync(python)) throw new Error('no peer: set WRPO_PEER_PYTHON, or run bench/peer.mjs, which installs one');
  const tuned = {
    ...process.env,
    ...{ OMP_WAIT_POLICY: 'passive', OMP_NUM_THREADS: threads },
    GLIBC_TUNABLES:
      'glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=4294967295:glibc.malloc.top_pad=268435456',
  };
  const peer = ['--model', model, '--prompts', file, '--samples', samples, '--max-tokens', maxTokens, '--dtype', dtype];
  const own = [here('generate.mjs'), '--run', model, file, samples, maxTokens, dtype];
  const ratios = { speed: [], memory: [] };
  for (let i = 0; i < Number(rounds); i++) {
    const settings = [...peer, '--batch', options['peer-batch'], '--threads', threads];
    const theirs = lastLine(python, [here('bench_generate.py'), ...settings], tuned);
    const mine = lastLine(process.execPath, own, { ...process.env, OMP_NUM_THREADS: threads });
    print({ round: i, preset, ends, dtype, wrpo: mine, peer: theirs });
    ratios.speed.push(mine.tokens_per_s / theirs.tokens_per_s);
    ratios.memory.push(mine.peak_rss_mb / theirs.peak_rss_mb);
  }
  const [speed_ratio, memory_ratio] = [ratios.speed, ratios.memory].map(summary);
  print({ preset, ends, dtype, prompts, samples, max_tokens: maxTokens, speed_ratio, memory_ratio });
}

/** Lengths are distributed as those of bench_peer.py's prompts. */
function randomPrompts(count, vocabulary) {
  let state = 1;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return Array.from({ length: count }, () => {
    const length = Math.min(1024, Math.max(16, Math.round(120 * Math.exp(0.8 * normal()))));
    return Array.from({ length }, () => 3 + Math.floor(uniform() * (vocabulary - 3)));
  });
}

function lastLine(command, args, env) {
  const { status, stdout, stderr } = spawnSync(command, args, { env, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed:\n${stderr.slice(-2000)}`);
  return JSON.parse(stdout.trim().split('\n').at(-1));
}

function summary(list) {
  const sorted = [...list].sort((a, b) => a - b);
  return {
    median: round(sorted[(sorted.length - 1) >> 1], 3),
    range: [sorted[0], sorted.at(-1)].map((x) => round(x, 3)),
  };
}

function round(value, digits) {
  return Number(value.toFixed(digits));
}

function print(figures) {
  console.log(JSON.stringify(figures));
}
