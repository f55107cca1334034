/**
 * `npm run sanitize [-- address|thread [vitest arguments]]`: builds the native half with AddressSanitizer and
 * UndefinedBehaviorSanitizer, or with ThreadSanitizer, in a directory of its own under build/, and runs the kernel checks
 * and tests with it. A finding ends the process that had it, so its test fails. Needs GCC.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { requireLibtorch } from '../dist/native/load.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);
const KINDS = {
  address: { flags: 'address,undefined', libraries: ['libasan.so', 'libubsan.so'] },
  thread: { flags: 'thread', libraries: ['libtsan.so'] },
};

const [kind = 'address', ...files] = process.argv.slice(2);
const { flags, libraries } = KINDS[kind] ?? fail(`sanitize: "${kind}": expected ${Object.keys(KINDS).join(' or ')}`);
const preload = libraries.map((name) => {
  const path = spawnSync('gcc', [`-print-file-name=${name}`], { encoding: 'utf8' }).stdout?.trim() ?? '';
  return existsSync(path)
    ? path
    : fail(`sanitize: gcc has no ${name}: install gcc and its sanitizers (Debian: apt install gcc)`);
});

const home = join(root, 'build', kind);
const out = join(home, 'build/Release');
const cmakeJs = join(dirname(require.resolve('cmake-js/package.json')), 'bin/cmake-js');
const options = [
  '-d',
  root,
  '-O',
  join(home, 'cmake'),
  `--CDWRPO_OUT=${out}`,
  `--CDTORCH_DIR=${requireLibtorch().dir}`,
];
options.push(`--CDWRPO_SANITIZE=${flags}`, '--CDWRPO_CUDA=off');
run(process.execPath, [cmakeJs, 'configure', ...options]);
run('cmake', ['--build', join(home, 'cmake'), '--parallel', process.env.JOBS ?? '2']);

const found = { halt_on_error: 1, exitcode: 66 };
const settings = (more) =>
  Object.entries({ ...found, ...more })
    .map(([key, value]) => `${key}=${value}`)
    .join(':');
const env = {
  ...process.env,
  OMP_WAIT_POLICY: 'passive',
  // Node keeps what it has until it ends; and tests ask for more memory than there is.
  ASAN_OPTIONS: settings({ detect_leaks: 0, allocator_may_return_null: 1 }),
  UBSAN_OPTIONS: settings({ print_stacktrace: 1 }),
  TSAN_OPTIONS: settings({ suppressions: join(root, 'test/thread-sanitizer.txt'), ignore_noninstrumented_modules: 1 }),
};
const check = join(out, 'kernel_check');
if (files.length === 0) for (const what of ['test', 'grad']) run(check, [what], env);
const vitest = join(dirname(require.resolve('vitest/package.json')), 'vitest.mjs');
run(process.execPath, [vitest, 'run', ...files], { ...env, WRPO_PREBUILD: home, LD_PRELOAD: preload.join(' ') });

function run(command, args, env = process.env) {
  const { status, signal } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env });
  if (status !== 0) fail(`sanitize: ${[command, ...args.slice(0, 2)].join(' ')} ended with ${signal ?? status}`);
}

function fail(sentence) {
  process.stderr.write(`${sentence}\n`);
  process.exit(1);
}
