/**
 * `npm run fuzz [-- executions]`: fuzzes what the native half reads (native/fuzz) with libFuzzer under AddressSanitizer and
 * UndefinedBehaviorSanitizer, from the corpora in test/fuzz, so many times each; says how much of each reader was reached,
 * and adds to a corpus what reached more. Then the property tests of the TypeScript readers (fast-check), as `npm run
 * torture` has them. Fails on a finding, whose input is left in build/fuzz, and below 90 % of a reader's lines.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { requireLibtorch } from '../dist/native/load.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);
const [executions = '1000000'] = process.argv.slice(2);
if (!/^\d+$/.test(executions)) fail(`fuzz: "${executions}": expected a number of executions`);
/** What is fuzzed: which part of the executions, since whole models take longer, and whose coverage counts. */
const FUZZERS = {
  tensor_file: { share: 1, sources: ['native/io/tensor_file.cpp'] },
  batch: { share: 1, sources: ['native/model/batch.cpp'] },
  sampler: { share: 1, sources: ['native/model/sampler.cpp'] },
  model: { share: 0.01, sources: [] },
  generator: { share: 0.01, sources: ['native/model/generator.cpp', 'native/model/kv_cache.cpp'] },
};
const LEAST = 90;
// One thread: a team for a handful of numbers only waits for itself.
const ENV = {
  ...process.env,
  OMP_NUM_THREADS: '1',
  UBSAN_OPTIONS: 'print_stacktrace=1',
  LLVM_PROFILE_FILE: '/dev/null',
};

const version = findClang();
const out = join(root, 'build/fuzz');
const cmake = join(out, 'cmake');
build();
let low = 0;
let total = 0;
for (const [name, { share, sources }] of Object.entries(FUZZERS)) {
  total += fuzz(name, Math.ceil(share * Number(executions)));
  for (const [source, percent] of coverage(name, sources)) {
    console.log(`${name}: ${percent.toFixed(1)} % of the lines of ${source}`);
    if (!(percent >= LEAST)) low++;
  }
}
console.log(`${total} executions of native readers without a finding`);
if (low > 0) fail(`fuzz: ${low} sources with less than ${LEAST} % of their lines reached`);
const vitest = join(dirname(require.resolve('vitest/package.json')), 'vitest.mjs');
const properties = ['test/24.hostile.test.ts', 'test/24.replies.test.ts'];
const { stdout } = run(process.execPath, [vitest, 'run', ...properties], {
  env: { ...process.env, TORTURE: '1' },
  stdio: ['ignore', 'pipe', 'inherit'],
});
const counts = [...stdout.matchAll(/(\d+) executions of properties/g)].map(([, count]) => Number(count));
console.log(`${counts.reduce((sum, count) => sum + count)} executions of TypeScript readers without a finding`);

/** The newest Clang that can fuzz and has llvm-cov beside it, as the suffix of its programs. */
function findClang() {
  const works = (suffix) => {
    const flags = ['-fsanitize=fuzzer,address,undefined', '-x', 'c++', '-', '-o', '/dev/null'];
    const source = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }';
    const compiles = spawnSync(`clang++${suffix}`, flags, { input: source }).status === 0;
    return compiles && ['llvm-cov', 'llvm-profdata'].every((tool) => !spawnSync(tool + suffix, ['--help']).error);
  };
  const suffixes = ['', ...Array.from({ length: 12 }, (_, i) => `-${25 - i}`)];
  const needs = 'fuzz: needs Clang with libFuzzer, the sanitizers and llvm-cov';
  return suffixes.find(works) ?? fail(`${needs} (Debian: apt install clang-16 libclang-rt-16-dev llvm-16)`);
}

function build() {
  const cmakeJs = join(dirname(require.resolve('cmake-js/package.json')), 'bin/cmake-js');
  const options = ['-d', root, '-O', cmake, `--CDWRPO_OUT=${out}`, `--CDTORCH_DIR=${requireLibtorch().dir}`];
  options.push('--CDWRPO_FUZZ=ON', '--CDWRPO_CUDA=off');
  options.push(`--CDCMAKE_C_COMPILER=clang${version}`, `--CDCMAKE_CXX_COMPILER=clang++${version}`);
  run(process.execPath, [cmakeJs, 'configure', ...options], { stdio: ['ignore', 'ignore', 'inherit'] });
  const targets = Object.keys(FUZZERS).map((name) => `fuzz_${name}`);
  run('cmake', ['--build', cmake, '--parallel', process.env.JOBS ?? '2', '--target', ...targets]);
}

/** Fuzzes, and keeps the inputs that reach more than the corpus did; returns the number of executions. */
function fuzz(name, runs) {
  const corpus = join(root, 'test/fuzz', name);
  const found = mkdtempSync(join(tmpdir(), 'wrpo-fuzz-'));
  mkdirSync(corpus, { recursive: true });
  const options = [`-runs=${runs}`, '-max_len=512', '-print_final_stats=1', `-artifact_prefix=${out}/${name}-`];
  const { stderr } = run(join(out, `fuzz_${name}`), [...options, '-verbosity=1', found, corpus], {
    stdio: ['ignore', 'inherit', 'pipe'],
    env: ENV,
  });
  const count = Number(/number_of_executed_units: (\d+)/.exec(stderr)?.[1]);
  const before = readdirSync(corpus).length;
  run(join(out, `fuzz_${name}`), ['-merge=1', corpus, found], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: ENV,
  });
  rmSync(found, { recursive: true });
  console.log(`${name}: ${count} executions; ${readdirSync(corpus).length - before} inputs new in the corpus`);
  return count;
}

/** The part of the lines of each source that the corpus reaches. */
function coverage(name, sources) {
  if (sources.length === 0) return [];
  const [raw, data] = ['raw', 'data'].map((kind) => join(out, `${name}.prof${kind}`));
  const program = join(out, `fuzz_${name}`);
  run(program, ['-runs=0', join(root, 'test/fuzz', name)], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...ENV, LLVM_PROFILE_FILE: raw },
  });
  run(`llvm-profdata${version}`, ['merge', raw, '-o', data]);
  const files = sources.map((source) => join(root, source));
  const { stdout } = run(
    `llvm-cov${version}`,
    ['export', '-summary-only', program, `-instr-profile=${data}`, ...files],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  return JSON.parse(stdout).data[0].files.map((file) => [basename(file.filename), file.summary.lines.percent]);
}

function run(command, args, options) {
  const result = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    encoding: 'utf8',
    maxBuffer: 2 ** 30,
    ...options,
  });
  if (result.status === 0) return result;
  for (const said of [result.stdout, result.stderr]) {
    process.stderr.write(said?.split('\n').slice(-60).join('\n') ?? '');
  }
  return fail(`fuzz: ${basename(command)} ended with ${result.error?.code ?? result.signal ?? result.status}`);
}

function fail(sentence) {
  process.stderr.write(`${sentence}\n`);
  process.exit(1);
}
