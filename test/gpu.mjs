/**
 * `npm run test:gpu` and `npm run bench:gpu`: builds the CUDA kernels and their check with nvcc alone, which needs neither
 * libtorch nor the network, and runs it. Exits 1, saying why, where there is no nvcc or no GPU.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const mode = process.argv[2] ?? 'test';
const nvcc = [
  process.env.CUDACXX,
  process.env.CUDA_HOME && `${process.env.CUDA_HOME}/bin/nvcc`,
  '/usr/local/cuda/bin/nvcc',
]
  .filter(Boolean)
  .find(existsSync);

const kernels = readdirSync(join(root, 'native/kernels')).filter((name) => name.endsWith('.cu'));
const check = join(root, 'build/gpu_check');
mkdirSync(join(root, 'build'), { recursive: true });
run(nvcc ?? 'nvcc', [
  ...['-std=c++17', '-O3', '-o', check, '-I', join(root, 'native')],
  ...['-gencode', 'arch=compute_80,code=sm_80', '-gencode', 'arch=compute_90,code=[sm_90,compute_90]'],
  ...[join(root, 'native/check/gpu.cpp'), ...kernels.map((name) => join(root, 'native/kernels', name))],
]);
run(check, [mode]);

function run(command, args) {
  const { error, status } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error)
    process.stderr.write(`${command} could not be run (${error.code}): install the CUDA toolkit, or set CUDACXX\n`);
  if (error || status !== 0) process.exit(1);
}
