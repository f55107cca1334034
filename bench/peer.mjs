/**
 * `npm run bench:peer`: this package and a Python peer (bench_peer.py) train the same token ids from the same weights,
 * alternating, every run in a fresh process; the ratio of real tokens per second and of peak memory is printed as median,
 * worst and spread. The peer runs as fast as it can be made to: passive OpenMP waiting and a tuned allocator.
 *
 * node bench/peer.mjs [--preset nano|tiny|small] [--mode wrpo|trl-dpo] [--flat] [--rounds 5] [--rows 48]
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    preset: { type: 'string', default: 'tiny' },
    mode: { type: 'string', default: 'wrpo' },
    flat: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '5' },
    rows: { type: 'string', default: '48' },
    threads: { type: 'string', default: '2' },
  },
});
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
const scratch = mkdtempSync(join(tmpdir(), 'wrpo-peer-'));
const data = join(scratch, 'rows.jsonl');
const model = join(scratch, 'model');
mkdirSync(model);
const flat = values.flat ? ['--flat'] : [];
const peer = (...args) =>
  lastLine(python, [here('bench_peer.py'), '--preset', values.preset, '--threads', values.threads, ...args], tuned);

try {
  execFileSync(python, [
    here('bench_peer.py'),
    '--make-data',
    data,
    '--preset',
    values.preset,
    '--rows',
    values.rows,
    ...flat,
  ]);
  // The first run writes the weights; with rows for one step it is cheap, and not counted.
  const one = join(scratch, 'one.jsonl');
  execFileSync(python, [
    here('bench_peer.py'),
    '--make-data',
    one,
    '--preset',
    values.preset,
    '--rows',
    '8',
    '--max-length',
    '64',
  ]);
  peer('--data', one, '--mode', 'wrpo', '--save-model', model);

  const ratios = { speed: [], memory: [] };
  const precompute = values.mode === 'trl-dpo' ? ['--precompute'] : [];
  for (let round = 0; round < Number(values.rounds); round++) {
    const theirs = peer(
      '--data',
      data,
      '--mode',
      values.mode,
      '--model',
      model,
      ...precompute,
      '--tmp',
      join(scratch, 'trl'),
    );
    const mine = lastLine(
      process.execPath,
      [here('peer_run.mjs'), data, model, values.mode, join(scratch, `run${round}`)],
      ours,
    );
    ratios.speed.push(mine.tokens_per_s / theirs.tokens_per_s);
    ratios.memory.push(mine.peak_rss_mb / theirs.peak_rss_mb);
    const drift = Math.max(...mine.losses.map((loss, i) => Math.abs(loss - theirs.losses[i])));
    console.log(
      JSON.stringify({
        round,
        preset: values.preset,
        mode: values.mode,
        wrpo: mine.tokens_per_s,
        peer: theirs.tokens_per_s,
        wrpo_rss_mb: mine.peak_rss_mb,
        peer_rss_mb: theirs.peak_rss_mb,
        ...(values.mode === 'wrpo' && { loss_drift: drift }),
      }),
    );
  }
  console.log(
    JSON.stringify({
      preset: values.preset,
      mode: values.mode,
      flat: values.flat,
      speed_ratio: summary(ratios.speed, 'min'),
      memory_ratio: summary(ratios.memory, 'max'),
    }),
  );
} finally {
  rmSync(scratch, { recursive: true, force: true });
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
