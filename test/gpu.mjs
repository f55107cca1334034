/**
 * `npm run test:gpu` and `npm run bench:gpu`, on a bare machine with a GPU and without a network: builds the CUDA kernels
 * and their check with nvcc alone, and, with CMake and the CUDA torch of the active Python (or WRPO_LIBTORCH), the engine
 * itself, whose step is held against the CPU's; a benchmark goes on with other trainers where the package is built and
 * Python has trl. Exits 1, saying why, where nvcc, the engine's torch or the GPU is missing or a check fails.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const mode = process.argv[2] ?? 'test';
const python = process.env.WRPO_PEER_PYTHON ?? 'python3';
const torch = process.env.WRPO_LIBTORCH || packageDirectory('python3', 'torch');

const kernels = buildKernels();
const step = existsSync(join(torch, 'lib/libtorch_cuda.so')) ? buildEngine() : undefined;
run(kernels, [mode]);
if (!step) fail('the engine was not checked: neither WRPO_LIBTORCH nor the active Python has a CUDA torch');
if (mode === 'test') run(step, ['test']);
else {
  for (const shape of ['llama-3.2-1b', 'llama-3.2-3b', 'llama-3-8b']) run(step, ['perf', shape, '8192']);
  comparePeers();
}

function buildKernels() {
  const nvcc = [
    process.env.CUDACXX,
    process.env.CUDA_HOME && `${process.env.CUDA_HOME}/bin/nvcc`,
    '/usr/local/cuda/bin/nvcc',
  ]
    .filter(Boolean)
    .find(existsSync);
  const sources = readdirSync(join(root, 'native/kernels')).filter((name) => name.endsWith('.cu'));
  const check = join(root, 'build/gpu_check');
  mkdirSync(join(root, 'build'), { recursive: true });
  run(nvcc ?? 'nvcc', [
    ...['-std=c++17', '-O3', '-o', check, '-I', join(root, 'native')],
    ...['-gencode', 'arch=compute_80,code=sm_80', '-gencode', 'arch=compute_90,code=[sm_90,compute_90]'],
    ...[join(root, 'native/check/gpu.cpp'), ...sources.map((name) => join(root, 'native/kernels', name))],
  ]);
  return check;
}

function buildEngine() {
  const build = join(root, 'build/cmake_gpu');
  run('cmake', ['-S', root, '-B', build, `-DTORCH_DIR=${torch}`, '-DWRPO_CUDA=on', `-DWRPO_OUT=${build}`]);
  run('cmake', ['--build', build, '--target', 'step_check', '--parallel', String(availableParallelism())]);
  return join(build, readdirSync(build).find((name) => /^step_check_cu\w*$/.test(name)) ?? 'step_check');
}

function comparePeers() {
  const missing = !existsSync(join(root, 'dist/index.js'))
    ? 'the package is not built (`npm run build`, which needs npm)'
    : !packageDirectory(python, 'trl') && `${python} has no trl`;
  if (missing) process.stdout.write(`other trainers were not compared: ${missing}\n`);
  else run(process.execPath, [join(root, 'bench/peer.mjs'), '--device', 'cuda']);
}

/** Empty where there is none. */
function packageDirectory(interpreter, name) {
  const find = `from importlib.util import find_spec as f; print(f('${name}').submodule_search_locations[0])`;
  return spawnSync(interpreter, ['-c', find], { encoding: 'utf8' }).stdout?.trim() ?? '';
}

function run(command, args) {
  const { error, status } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error) fail(`${command} could not be run (${error.code}): install it (nvcc: the CUDA toolkit, or set CUDACXX)`);
  if (status !== 0) process.exit(1);
}

function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}
