/** What both peer benchmarks run: the Python peer (bench_peer.py) and this package (run.mjs), each in a process of its own. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const here = (name) => fileURLToPath(new URL(name, import.meta.url));

/** Calls of the peer with one preset, as fast as it can be made to run: passive OpenMP waiting and a tuned allocator. */
export function pythonPeer({ python, preset, device = 'cpu', threads }) {
  const env = {
    ...process.env,
    OMP_WAIT_POLICY: 'passive',
    OMP_NUM_THREADS: threads,
    GLIBC_TUNABLES:
      'glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=4294967295:glibc.malloc.top_pad=268435456',
    PYTHONDONTWRITEBYTECODE: '1',
    // One GPU, the one this package takes: with more, transformers would split batches over them.
    CUDA_VISIBLE_DEVICES: (process.env.CUDA_VISIBLE_DEVICES ?? '0').split(',')[0],
  };
  const script = [here('bench_peer.py'), '--preset', preset, '--device', device, '--threads', threads];
  return (...args) => lastLine(python, [...script, ...args], env);
}

/** A run of this package; `args` are training arguments that differ from those of run.mjs. */
export function ownRun({ data, model, mode, dtype, out, threads }, args = {}) {
  const run = [here('run.mjs'), data, model, mode, dtype, out, JSON.stringify(args)];
  return lastLine(process.execPath, run, { ...process.env, OMP_NUM_THREADS: threads });
}

/** The Python of the peers: WRPO_PEER_PYTHON, on a GPU the active one, else one that is set up here once. */
export function peerPython(device) {
  if (process.env.WRPO_PEER_PYTHON) return process.env.WRPO_PEER_PYTHON;
  if (device === 'cuda') return 'python3';
  if (!existsSync(here('../../.peer/complete'))) installPeer();
  return here('../../.peer/bin/python');
}

function installPeer() {
  console.error('installing the peer (torch, transformers, trl) into .peer …');
  execFileSync('python3', ['-m', 'venv', here('../../.peer')], { stdio: 'inherit' });
  const packages = ['torch==2.13.0+cpu', 'trl==1.13.0', 'transformers<6', 'accelerate', 'datasets'];
  const index = ['--extra-index-url', 'https://download.pytorch.org/whl/cpu'];
  execFileSync(here('../../.peer/bin/pip'), ['install', '-q', ...index, ...packages], { stdio: 'inherit' });
  writeFileSync(here('../../.peer/complete'), '');
}

/** What a command's last line holds as JSON; undefined where it printed nothing. */
export function lastLine(command, args, env = process.env) {
  const result = spawnSync(command, args, {
    env,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  if (result.error) fail(`${command} could not be run: ${result.error.message}`);
  if (result.status !== 0) fail(`${command} ${args.join(' ')} failed:\n${result.stderr.slice(-2000)}`);
  const line = result.stdout.trim().split('\n').at(-1);
  return line ? JSON.parse(line) : undefined;
}

export function print(figures) {
  console.log(JSON.stringify(figures));
}

export function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}

export function summary(list, worst) {
  const sorted = [...list].sort((a, b) => a - b);
  const digits = (x) => Number(x.toFixed(3));
  return {
    median: digits(sorted[sorted.length >> 1]),
    worst: digits(worst === 'min' ? sorted[0] : sorted.at(-1)),
    spread: digits(sorted.at(-1) - sorted[0]),
  };
}
