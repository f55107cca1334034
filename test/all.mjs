/**
 * `npm test`, after set-up: formatting and lint, C++ formatting, the native kernel checks, then every vitest file.
 * Prints one closing line; exits 1 when anything failed.
 */
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const failures = [];
let steps = 0;

function step(name, body) {
  steps++;
  process.stdout.write(`\n== ${name}\n`);
  if (!body()) failures.push(name);
}

function run(command, args) {
  return (
    spawnSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, OMP_WAIT_POLICY: 'passive' } })
      .status === 0
  );
}

const bin = (name, script) => join(dirname(createRequire(import.meta.url).resolve(`${name}/package.json`)), script);

// Its package.json is not exported.
const knip = join(root, 'node_modules/knip/bin/knip.js');

step('biome', () => run(process.execPath, [bin('@biomejs/biome', 'bin/biome'), 'check', '--error-on-warnings']));
step('clang-format', () => run(process.execPath, ['test/clang-format.mjs']));
step(
  'knip',
  () =>
    run(process.execPath, [knip]) && run(process.execPath, [knip, '--production', '--include', 'files,exports,types']),
);
step('kernel check', () => run('build/Release/kernel_check', ['test']) && run('build/Release/kernel_check', ['grad']));
step(
  'kernels and steps of a GPU, on an emulated one',
  () =>
    run('cmake', ['--build', 'build/cmake', '--target', 'emulated', '--parallel', String(availableParallelism())]) &&
    run('build/Release/gpu_check_emulated', ['test']) &&
    run('build/Release/step_check_emulated', ['test', 'tiny']),
);
step('vitest', () => run(process.execPath, [bin('vitest', 'vitest.mjs'), 'run', ...process.argv.slice(2)]));

process.stdout.write(`\n${steps - failures.length} passed, ${failures.length} failed\n`);
if (failures.length > 0) {
  process.stdout.write(`failed: ${failures.join(', ')}\n`);
  process.exitCode = 1;
}
