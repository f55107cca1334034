/** What the tests of training, resuming, the engine and the command line share: processes, rows, files. */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect } from 'vitest';
import { WrpoError, type WrpoErrorCode } from '../lib/errors.ts';
import type { TrainingArgsInput } from '../lib/train/args.ts';
import { Trainer, type TrainerOptions, type TrainOptions } from '../lib/train/trainer.ts';

export const ROOT = fileURLToPath(new URL('..', import.meta.url));
export const FIXTURES = join(ROOT, 'test', 'fixtures');
/** A Llama of two layers with a vocabulary of 199. */
export const POLICY = join(FIXTURES, 'llama', 'policy');
/** Another, of the same shape. */
export const REFERENCE = join(FIXTURES, 'llama', 'ref');
export const TRACE = join(FIXTURES, 'trace_llama');
export const MAIN = join(ROOT, 'dist', 'cli', 'main.js');
const VOCABULARY = 199;

/** A directory of the test file's own, removed when it is done. */
export function scratchDirectory(name: string): (...parts: string[]) => string {
  const dir = mkdtempSync(join(tmpdir(), `wrpo-${name}-`));
  afterAll(() => rmSync(dir, { recursive: true, force: true }));
  return (...parts) => join(dir, ...parts);
}

export interface Finished {
  status: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** A started process, with what it has said so far. */
export class Child {
  stdout = '';
  stderr = '';
  readonly process: ChildProcess;
  readonly done: Promise<Finished>;

  constructor(args: string[], options: SpawnOptions = {}) {
    const env = { ...process.env, NO_COLOR: '1', ...options.env };
    this.process = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options, env });
    for (const name of ['stdout', 'stderr'] as const) {
      this.process[name]?.setEncoding('utf8').on('data', (text) => {
        this[name] += text;
      });
    }
    this.done = new Promise((resolve, reject) => {
      this.process.on('error', reject).on('close', (status, signal) => {
        resolve({ status, signal, stdout: this.stdout, stderr: this.stderr });
      });
    });
  }

  get running(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<Finished> {
    this.process.kill(signal);
    return this.done;
  }

  /** Waits, looking every millisecond, until `condition` holds; false if the process ended first. */
  async until(condition: () => boolean): Promise<boolean> {
    for (;;) {
      if (condition()) return true;
      if (!this.running) return false;
      await sleep(1);
    }
  }
}

export const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Starts the command. */
export function start(args: string[], options: SpawnOptions = {}): Child {
  return new Child([MAIN, ...args], options);
}

/** Runs the command to its end. */
export function wrpo(args: string[], options: SpawnOptions = {}): Promise<Finished> {
  return start(args, options).done;
}

/** The command must succeed. */
export async function succeed(args: string[], options: SpawnOptions = {}): Promise<Finished> {
  const result = await wrpo(args, options);
  expect(result, result.stderr).toMatchObject({ status: 0, signal: null });
  return result;
}

/** The command must fail with this exit code and one sentence, without a stack trace; returns the sentence. */
export async function fail(args: string[], status: number, options: SpawnOptions = {}): Promise<string> {
  const result = await wrpo(args, options);
  return sentence(result, status);
}

export function sentence(result: Finished, status: number): string {
  expect(result, result.stderr).toMatchObject({ status, signal: null });
  const words = result.stderr.split('\n').filter((line) => /^(wrpo|error): /.test(line));
  expect(words, result.stderr).toHaveLength(1);
  expect(result.stderr).not.toMatch(/^\s+at |unexpected error|node:internal|\.js:\d+/m);
  return words[0]!;
}

/** For such scripts, which take functions of `wrpo` by name: rows, packed with their contests, and a pass over them. */
export const SCRIPT_BATCHES = `const ids = (n, seed) => Int32Array.from({ length: n }, (_, i) => (i * 31 + seed * 17 + 3) % 190);
const roles = ['source_chosen', 'target_chosen', 'rejected'];
const rowsOf = (count, length) => Array.from({ length: count }, (_, i) => ({ where: 'row ' + i, prompt: ids(length, i),
  responses: Object.fromEntries(roles.map((role, k) => [role, ids(length, i + k + 1)])) }));
const objective = { lossType: 'wrpo', beta: 0.1, alpha: 0.3 };
const batchOf = (count, length) => ({
  ...withContests(packRows(rowsOf(count, length), roles), contestsOf(objective)), reference: new Float64Array(3 * count) });
const accumulate = (model, batch) => model.accumulate(batch, { objective: formOf(objective), normalizer: 4 });
`;

/** Runs a module that imports the built package as `wrpo`; it says what it found as JSON on standard output. */
export async function script<T>(
  file: string,
  source: string,
  { flags = [], args = [], ...options }: SpawnOptions & { flags?: string[]; args?: string[] } = {},
): Promise<Finished & { value: T; seconds: number }> {
  writeFileSync(file, `import * as wrpo from ${JSON.stringify(join(ROOT, 'dist', 'index.js'))};\n${source}`);
  const began = performance.now();
  const result = await new Child([...flags, file, ...args], options).done;
  const seconds = (performance.now() - began) / 1000;
  const last = result.stdout.trim().split('\n').at(-1) ?? '';
  const value = last === '' ? undefined : JSON.parse(last);
  return { ...result, value, seconds };
}

/** The error that `act` must end in. */
export async function failure(act: () => unknown): Promise<WrpoError> {
  try {
    await act();
  } catch (error) {
    expect(error).toBeInstanceOf(WrpoError);
    return error as WrpoError;
  }
  throw new Error('expected a WrpoError');
}

export async function expectFailure(act: () => unknown, code: WrpoErrorCode, message: RegExp): Promise<void> {
  const error = await failure(act);
  expect(error.message).toMatch(message);
  expect(error.code).toBe(code);
}

/** Uniform numbers in [0, 1), the same for the same seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface Row {
  prompt: number[];
  source_chosen: number[];
  target_chosen: number[];
  rejected: number[];
}

/** Rows of random ids, below `vocabulary`. */
export function tokenRows(count: number, seed: number, { longest = 24, vocabulary = VOCABULARY - 1 } = {}): Row[] {
  const random = randomOf(seed);
  const ids = () =>
    Array.from({ length: 2 + Math.floor(random() * (longest - 2)) }, () => Math.floor(random() * vocabulary));
  return Array.from({ length: count }, () => ({
    prompt: ids(),
    source_chosen: ids(),
    target_chosen: ids(),
    rejected: ids(),
  }));
}

/** Trains the tiny policy on the same rows and with the same arguments, over which each test's own go. */
export const trainingOn =
  (trainDataset: Row[], evalDataset: Row[], defaults: Partial<TrainingArgsInput>) =>
  async (
    outputDir: string,
    args: Partial<TrainingArgsInput> = {},
    how: TrainOptions = {},
    options: Partial<TrainerOptions> = {},
  ) => {
    await using trainer = new Trainer({
      ...{ model: POLICY, trainDataset, evalDataset },
      args: { ...defaults, ...args, outputDir },
      ...options,
    });
    return await trainer.train(how);
  };

export function writeRows(path: string, rows: readonly unknown[]): string {
  writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  return path;
}

export function readJsonLines<T = Record<string, number>>(path: string): T[] {
  return readFileSync(path, 'utf8')
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));
}

export const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8'));

/** A run file; values as YAML, which takes JSON. */
export function writeRunFile(path: string, keys: Record<string, unknown>): string {
  writeFileSync(
    path,
    Object.entries(keys)
      .map(([key, value]) => `${key}: ${JSON.stringify(value)}\n`)
      .join(''),
  );
  return path;
}

/** The lines of `metrics.jsonl` without what no two processes share. */
export function metricsOf(runDir: string): Record<string, number>[] {
  return readJsonLines(join(runDir, 'metrics.jsonl')).map(
    ({ tokens_per_second: _, peak_memory_bytes: __, ...rest }) => rest,
  );
}

export const weightsOf = (dir: string) => readFileSync(join(dir, 'model.safetensors'));

/** The tensors of a safetensors file, read without the code under test. */
export function readTensors(path: string): Map<string, Float32Array> {
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + length)) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, Float32Array>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const [begin, end] = entry.data_offsets.map((offset) => 8 + length + offset) as [number, number];
    const raw = Uint8Array.from(bytes.subarray(begin, end)).buffer;
    if (entry.dtype === 'F32') tensors.set(name, new Float32Array(raw));
    else if (entry.dtype === 'BF16') {
      const words = Uint32Array.from(new Uint16Array(raw), (half) => half << 16);
      tensors.set(name, new Float32Array(words.buffer));
    } else throw new Error(`${name} is ${entry.dtype}`);
  }
  return tensors;
}

/** A copy of the policy whose embedding of one token is `value` throughout. */
export function poisonedPolicy(dir: string, token: number, value: number): string {
  cpSync(POLICY, dir, { recursive: true });
  const file = join(dir, 'model.safetensors');
  const bytes = readFileSync(file);
  const length = Number(bytes.readBigUInt64LE());
  const entry = JSON.parse(bytes.toString('utf8', 8, 8 + length))['model.embed_tokens.weight'];
  const [rows, width] = entry.shape as [number, number];
  expect(token).toBeLessThan(rows);
  const begin = 8 + length + entry.data_offsets[0] + token * width * 4;
  for (let i = 0; i < width; i++) bytes.writeFloatLE(value, begin + i * 4);
  writeFileSync(file, bytes);
  return dir;
}

/** Every path below `dir`, relative to it. */
export function filesBelow(dir: string): string[] {
  return existsSync(dir) ? (readdirSync(dir, { recursive: true }) as string[]).sort() : [];
}

export const leftovers = (dir: string) => filesBelow(dir).filter((name) => /\.tmp$/.test(name));
