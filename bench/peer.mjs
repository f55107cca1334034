/**
 * `npm run bench:peer`: this package and a Python peer (bench_peer.py) train the same token ids from the same weights,
 * alternating, every run in a fresh process; the ratio of real tokens per second and of peak memory is printed as median,
 * worst and spread, one JSON line a comparison. The peer runs as fast as it can be made to: passive OpenMP waiting and a
 * tuned allocator. Without options: every comparison of SUITE.
 *
 * node bench/peer.mjs [--preset nano|tiny|small] [--mode wrpo|trl-dpo] [--flat] [--dtype float32|bfloat16] [--rounds 5]
 *   [--rows N]
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    preset: { type: 'string' },
    mode: { type: 'string', default: 'wrpo' },
    flat: { type: 'boolean', default: false },
    dtype: { type: 'string', default: 'float32' },
    rounds: { type: 'string', default: '5' },
    rows: { type: 'string' },
    threads: { type: 'string', default: '2' },
  },
});
const ROWS = { nano: 96, tiny: 32, small: 16 };
const SUITE = [
  { preset: 'nano', mode: 'wrpo' },
  { preset: 'tiny', mode: 'wrpo' },
  { preset: 'small', mode: 'wrpo' },
  { preset: 'nano', mode: 'trl-dpo' },
  { preset: 'tiny', mode: 'trl-dpo' },
  { preset: 'small', mode: 'trl-dpo' },
  { preset: 'tiny', mode: 'trl-dpo', flat: true },
  { preset: 'tiny', mode: 'wrpo', dtype: 'bfloat16' },
];
const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const python = process.env.WRPO_PEER_PYTHON ?? here('../.peer/bin/python');
if (!process.env.WRPO_PEER_PYTHON && !existsSync(here('../.peer/complete'))) installPeer();

const tuned = {
  ...process.env,
  OMP_WAIT_POLICY: 'passive',
  OMP_NUM_THREADS: values.threads,
  GLIBC_TUNABLES:
    'glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=4294967295:glibc.malloc.top_pad=268435456',
};
const ours = { ...process.env, OMP_NUM_THREADS: values.threads };

for (const one of values.preset ? [values] : SUITE) {
  const scratch = mkdtempSync(join(tmpdir(), 'wrpo-peer-'));
  try {
    compare({ flat: false, dtype: values.dtype, rows: values.rows ?? ROWS[one.preset], ...one }, scratch);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

function compare({ preset, mode, flat, dtype, rows }, scratch) {
  const data = join(scratch, 'rows.jsonl');
  const one = join(scratch, 'one.jsonl');
  const model = join(scratch, 'model');
  mkdirSync(model);
  const script = (...args) => [here('bench_peer.py'), '--preset', preset, '--threads', values.threads, ...args];
  const peer = (...args) => lastLine(python, script(...args), tuned);
  execFileSync(python, script('--make-data', data, '--rows', String(rows), ...(flat ? ['--flat'] : [])));
  // The first run writes the weights; with rows for one step it is cheap, and not counted.
  execFileSync(python, script('--make-data', one, '--rows', '8', '--max-length', '64'));
  peer('--data', one, '--mode', 'wrpo', '--dtype', dtype, '--save-model', model);

  const ratios = { speed: [], memory: [] };
  const settings = ['--data', data, '--mode', mode, '--dtype', dtype, '--model', model, '--tmp', join(scratch, 'trl')];
  for (let round = 0; round < Number(values.rounds); round++) {
    const theirs = peer(...settings, ...(mode === 'trl-dpo' ? ['--precompute'] : []));
    const run = [here('peer_run.mjs'), data, model, mode, dtype, join(scratch, `run${round}`)];
    const mine = lastLine(process.execPath, run, ours);
    ratios.speed.push(mine.tokens_per_s / theirs.tokens_per_s);
    ratios.memory.push(mine.peak_rss_mb / theirs.peak_rss_mb);
    const drift = Math.max(...mine.losses.map((loss, i) => Math.abs(loss - theirs.losses[i])));
    print({
      ...{ round, preset, mode, dtype, wrpo: mine.tokens_per_s, peer: theirs.tokens_per_s },
      ...{ wrpo_rss_mb: mine.peak_rss_mb, peer_rss_mb: theirs.peak_rss_mb },
      ...(mode === 'wrpo' && { loss_drift: drift }), // TRL takes the rows in another order
    });
  }
  print({
    ...{ preset, mode, flat, dtype, rows: Number(rows) },
    ...{ speed_ratio: summary(ratios.speed, 'min'), memory_ratio: summary(ratios.memory, 'max') },
  });
}

function print(figures) {
  console.log(JSON.stringify(figures));
}

function summary(list, worst) {
  const sorted = [...list].sort((a, b) => a - b);
  const digits = (x) => Number(x.toFixed(3));
  return {
    median: digits(sorted[sorted.length >> 1]),
    worst: digits(worst === 'min' ? sorted[0] : sorted.at(-1)),
    spread: digits(sorted.at(-1) - sorted[0]),
  };
}

function lastLine(command, args, env) {
  const result = spawnSync(command, args, {
    env,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  if (result.status !== 0) throw new Error(`${command} ${args.join(' ')} failed:\n${result.stderr.slice(-2000)}`);
  return JSON.parse(result.stdout.trim().split('\n').at(-1));
}

function installPeer() {
  console.error('installing the peer (torch, transformers, trl) into .peer …');
  execFileSync('python3', ['-m', 'venv', here('../.peer')], { stdio: 'inherit' });
  const packages = ['torch==2.13.0+cpu', 'trl==1.13.0', 'transformers<6', 'accelerate', 'datasets'];
  const index = ['--extra-index-url', 'https://download.pytorch.org/whl/cpu'];
  execFileSync(here('../.peer/bin/pip'), ['install', '-q', ...index, ...packages], { stdio: 'inherit' });
  writeFileSync(here('../.peer/complete'), '');
}
