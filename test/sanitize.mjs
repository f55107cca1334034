/**
 * `npm run sanitize [-- test files]`: builds the native half with ThreadSanitizer and has two threads of it busy at once
 * (races.mjs); then with AddressSanitizer and UndefinedBehaviorSanitizer, and runs the kernel checks and the tests with it;
 * with test files, these alone. Each build has a directory of its own. A finding ends the process that had it, so its test
 * fails. Needs GCC.
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

if (files.length === 0) findRaces();
const home = build('address', 'address,undefined');
const env = {
  ...process.env,
  OMP_WAIT_POLICY: 'passive',
  // Node keeps what it has until it ends, and tests ask for more memory than there is.
  ASAN_OPTIONS: 'detect_leaks=0:allocator_may_return_null=1',
  UBSAN_OPTIONS: 'print_stacktrace=1',
};
if (files.length === 0) {
  for (const what of ['test', 'grad']) run(join(home, 'build/Release/kernel_check'), [what], env);
}
const vitest = join(dirname(require.resolve('vitest/package.json')), 'vitest.mjs');
const LD_PRELOAD = ['libasan.so', 'libubsan.so'].map(library).join(' ');
// Processes start in five times the time, and what they compute takes ten.
const patience = ['--testTimeout=1800000', '--hookTimeout=1800000'];
// It brings a core of its own, without them.
const other = ['--exclude', 'test/81.emulated-gpu.test.ts'];
run(process.execPath, [vitest, 'run', ...patience, ...other, ...files], { ...env, WRPO_PREBUILD: home, LD_PRELOAD });

/** Builds it with these sanitizers; returns the directory that WRPO_PREBUILD takes. */
function build(name, sanitizers, ...targets) {
  const home = join(root, 'build', name);
  const cmake = join(home, 'cmake');
  const cmakeJs = join(dirname(require.resolve('cmake-js/package.json')), 'bin/cmake-js');
  const options = ['-d', root, '-O', cmake, `--CDWRPO_OUT=${join(home, 'build/Release')}`];
  options.push(`--CDTORCH_DIR=${requireLibtorch().dir}`, `--CDWRPO_SANITIZE=${sanitizers}`, '--CDWRPO_CUDA=off');
  run(process.execPath, [cmakeJs, 'configure', ...options]);
  const chosen = targets.length > 0 ? ['--target', ...targets] : [];
  run('cmake', ['--build', cmake, '--parallel', process.env.JOBS ?? '2', ...chosen]);
  return home;
}

/**
 * Neither Node nor libtorch nor OpenMP is built with ThreadSanitizer, which sees their locks but not their atomics: what
 * counts is an access that the addon itself makes. Of OpenMP it sees nothing, so there is one thread.
 */
function findRaces() {
  const env = {
    ...process.env,
    ...{ WRPO_PREBUILD: build('thread', 'thread', 'wrpo', 'wrpo_core'), LD_PRELOAD: library('libtsan.so') },
    ...{ OMP_NUM_THREADS: '1', TSAN_OPTIONS: 'report_signal_unsafe=0:exitcode=0' },
  };
  // It needs addresses where they always are.
  const args = ['-R', process.execPath, join(root, 'test/races.mjs')];
  const { status, signal, stdout, stderr } = spawnSync('setarch', args, {
    ...{ cwd: root, encoding: 'utf8', env, maxBuffer: 2 ** 30 },
  });
  if (status !== 0) fail(`${stderr}\nsanitize: races.mjs ended with ${signal ?? status}`);
  const reports = stderr.split(/^=+$/m).filter((text) => text.includes('WARNING: ThreadSanitizer'));
  const own = reports.filter((text) => {
    const accesses = text.split(/^ {2}(?=\S)/m).filter((part) => /^(Previous )?(atomic )?(read|write) of/i.test(part));
    return accesses.some((part) => /^ +#\d+ (?!.*libtsan).*$/m.exec(part)?.[0].includes('libwrpo_core'));
  });
  if (own.length > 0) fail(`${own.join('\n')}\nsanitize: ${own.length} races`);
  process.stdout.write(`${stdout}no race of the native half (${reports.length} reports of Node and libtorch)\n`);
}

function library(name) {
  const path = spawnSync('gcc', [`-print-file-name=${name}`], { encoding: 'utf8' }).stdout?.trim() ?? '';
  return existsSync(path) ? path : fail(`sanitize: needs gcc with its ${name} (Debian: apt install gcc)`);
}

function run(command, args, env = process.env) {
  const { status, signal } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env });
  if (status !== 0) fail(`sanitize: ${basename(command)} ${basename(args[0])} ended with ${signal ?? status}`);
}

function fail(sentence) {
  process.stderr.write(`${sentence}\n`);
  process.exit(1);
}
