/**
 * The native harnesses, of the core that would be loaded: every kernel against a copy of the same bytes, or whole steps
 * with random weights, on a GPU with a CUDA libtorch and a driver, else on the CPU. One JSON line a number.
 *
 * node bench/native.mjs kernels [op] | step [shape …]
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { info } from '../dist/index.js';
import { requireLibtorch } from '../dist/native/load.js';

const [what, ...rest] = process.argv.slice(2);
const { variant } = requireLibtorch();
const tool = (name) =>
  join(fileURLToPath(new URL('../build/Release', import.meta.url)), variant === 'cpu' ? name : `${name}_${variant}`);
const run = (name, ...args) => {
  const { status, error } = spawnSync(tool(name), ['perf', ...args], { stdio: ['ignore', 'inherit', 'inherit'] });
  if (error) process.stderr.write(`${tool(name)}: ${error.message}: run \`npm run build\`\n`);
  if (status !== 0) process.exitCode = 1;
};

const gpu = info().gpu !== undefined;
const SHAPES = gpu ? ['llama-3.2-1b', 'llama-3.2-3b', 'llama-3-8b'] : ['tiny', 'small'];
if (what === 'kernels') run('kernel_check', ...rest);
else if (what === 'step') {
  for (const shape of rest.length > 0 ? rest : SHAPES) run('step_check', shape, gpu ? '8192' : '1500');
} else {
  process.stderr.write('usage: node bench/native.mjs kernels [op] | step [shape …]\n');
  process.exitCode = 2;
}
