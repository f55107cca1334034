/**
 * `npm run sanitize [-- test files]`: builds the native half with AddressSanitizer and UndefinedBehaviorSanitizer in a
 * directory of its own and runs the kernel checks and the tests with it, or these files alone. A finding ends the process
 * that had it, so its test fails. Needs GCC.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { requireLibtorch } from '../dist/native/load.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);
const files = process.argv.slice(2);
const preload = ['libasan.so', 'libubsan.so'].map((name) => {
  const path = spawnSync('gcc', [`-print-file-name=${name}`], { encoding: 'utf8' }).stdout?.trim() ?? '';
  return existsSync(path) ? path : fail(`sanitize: needs gcc with its ${name} (Debian: apt install gcc)`);
});

const home = join(root, 'build/address');
const out = join(home, 'build/Release');
const cmakeJs = join(dirname(require.resolve('cmake-js/package.json')), 'bin/cmake-js');
const options = ['-d', root, '-O', join(home, 'cmake'), `--CDWRPO_OUT=${out}`];
options.push(`--CDTORCH_DIR=${requireLibtorch().dir}`, '--CDWRPO_SANITIZE=address,undefined', '--CDWRPO_CUDA=off');
run(process.execPath, [cmakeJs, 'configure', ...options]);
run('cmake', ['--build', join(home, 'cmake'), '--parallel', process.env.JOBS ?? '2']);

const env = {
  ...process.env,
  OMP_WAIT_POLICY: 'passive',
  // Node keeps what it has until it ends, and tests ask for more memory than there is.
  ASAN_OPTIONS: 'detect_leaks=0:allocator_may_return_null=1',
  UBSAN_OPTIONS: 'print_stacktrace=1',
};
if (files.length === 0) for (const what of ['test', 'grad']) run(join(out, 'kernel_check'), [what], env);
const vitest = join(dirname(require.resolve('vitest/package.json')), 'vitest.mjs');
run(process.execPath, [vitest, 'run', ...files], { ...env, WRPO_PREBUILD: home, LD_PRELOAD: preload.join(' ') });

function run(command, args, env = process.env) {
  const { status, signal } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env });
  if (status !== 0) fail(`sanitize: ${basename(command)} ${basename(args[0])} ended with ${signal ?? status}`);
}

function fail(sentence) {
  process.stderr.write(`${sentence}\n`);
  process.exit(1);
}
