/** What a run says while it runs: warnings, TensorBoard's files, steps that were skipped. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Model } from '../lib/model/model.ts';
import type { TrainingArgsInput } from '../lib/train/args.ts';
import type { Metrics } from '../lib/train/metrics.ts';
import { crc32c, EventFile } from '../lib/train/tensorboard.ts';
import { Trainer, type TrainerOptions, type TrainOptions } from '../lib/train/trainer.ts';
import { allWarnings, newWarnings } from '../lib/train/warnings.ts';
import {
  expectFailure,
  metricsOf,
  POLICY,
  poisonedPolicy,
  readJson,
  readJsonLines,
  scratchDirectory,
  tokenRows,
  weightsOf,
} from './training.ts';

const path = scratchDirectory('watching');

describe('warnings', () => {
  /** A log of `count` lines; each value a number or a function of the line's index. */
  const log = (count: number, values: Record<string, number | ((i: number) => number)>): Metrics[] =>
    Array.from({ length: count }, (_, i) => ({
      step: 5 * (i + 1),
      ...Object.fromEntries(Object.entries(values).map(([name, v]) => [name, typeof v === 'number' ? v : v(i)])),
    }));
  const names = (lines: Metrics[]) => allWarnings(lines).map(({ name, step }) => `${name} ${step}`);

  const healthy = {
    loss: (i: number) => 0.69 - 0.01 * i + 0.02 * (i % 3),
    grad_norm: (i: number) => 2 + (i % 4),
    'logps/chosen': (i: number) => -100 + 0.2 * i,
    'rewards/margins': (i: number) => 0.02 * i,
    'rewards/chosen': (i: number) => 0.005 * i,
    'rewards/rejected': (i: number) => -0.015 * i,
    'rewards/accuracies': (i: number) => Math.min(0.9, 0.5 + 0.02 * i),
  };

  it('a run that goes well has none', () => {
    expect(names(log(40, healthy))).toEqual([]);
  });

  it.each([
    [
      'loss_spike 60',
      { loss: (i: number) => (i === 11 ? 1.4 : 0.69 + 0.01 * (i % 3)) },
      /jumped to 1\.4 from about 0\.7/,
    ],
    ['gradient_norm_jump 60', { grad_norm: (i: number) => (i === 11 ? 31 : 3) }, /jumped to 31 from about 3/],
    [
      'chosen_collapse 65',
      { 'logps/chosen': (i: number) => (i < 11 ? -100 : -200) },
      /mean log-prob fell from -100 to -167/,
    ],
    [
      'margins_by_falling 35',
      { 'rewards/chosen': (i: number) => -0.01 * Math.max(0, i - 4), 'rewards/rejected': (i: number) => -0.03 * i },
      /only because the rejected responses fall faster/,
    ],
    ['accuracy_at_chance 100', { 'rewards/accuracies': (i: number) => 0.5 + 0.02 * (i % 2) }, /51 % of the time/],
  ] as const)('%s', (expected, values, message) => {
    const lines = log(30, { ...healthy, ...values });
    expect(names(lines)).toEqual([expected]);
    expect(allWarnings(lines)[0]!.message).toMatch(message);
  });

  it('each is told when it begins, and a line of an evaluation begins none', () => {
    const lines = log(30, { ...healthy, 'rewards/accuracies': 0.5 }).flatMap((line) => [
      line,
      { step: line.step!, eval_loss: 0.7 },
    ]);
    const told = lines.flatMap((_, i) => newWarnings(lines.slice(0, i + 1)).map(({ step }) => [i, step]));
    expect(told).toEqual([[38, 100]]);
    expect(allWarnings(lines)).toHaveLength(1);
  });

  it('nothing in a log makes them throw or speak of NaN', () => {
    const value = fc.oneof(fc.double(), fc.constant(Number.NaN), fc.integer({ min: -3, max: 3 }));
    const line = fc.dictionary(fc.constantFrom(...Object.keys(healthy), 'eval_loss'), value);
    fc.assert(
      fc.property(fc.array(line, { maxLength: 45 }), (lines) => {
        for (const { message } of allWarnings(lines)) expect(message).not.toMatch(/NaN|undefined/);
      }),
      { numRuns: 200 },
    );
  });
});

// ---- an event file read without the code under test

interface Field {
  number: number;
  value: number | bigint | Buffer;
}

function fields(bytes: Buffer): Field[] {
  const out: Field[] = [];
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at++]!;
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  const take = (length: number) => {
    at += length;
    return bytes.subarray(at - length, at);
  };
  while (at < bytes.length) {
    const key = Number(varint());
    const number = key >> 3;
    if ((key & 7) === 0) out.push({ number, value: varint() });
    else if ((key & 7) === 1) out.push({ number, value: take(8).readDoubleLE() });
    else if ((key & 7) === 5) out.push({ number, value: take(4).readFloatLE() });
    else {
      out.push({ number, value: take(Number(varint())) });
    }
  }
  return out;
}

/** Bit by bit. */
function crcOf(bytes: Buffer): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return ~crc >>> 0;
}

function events(file: string): { step: number; time: number; values: Record<string, number>; other: number[] }[] {
  const bytes = readFileSync(file);
  const out = [];
  const unmasked = (masked: number) => {
    const rotated = (masked - 0xa282ead8) >>> 0;
    return ((rotated >>> 17) | (rotated << 15)) >>> 0;
  };
  for (let at = 0; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at));
    expect(unmasked(bytes.readUInt32LE(at + 8))).toBe(crcOf(bytes.subarray(at, at + 8)));
    const data = bytes.subarray(at + 12, at + 12 + length);
    expect(unmasked(bytes.readUInt32LE(at + 12 + length))).toBe(crcOf(data));
    at += 16 + length;
    const all = fields(data);
    const one = (number: number) => all.find((field) => field.number === number)?.value;
    const summary = one(5) as Buffer | undefined;
    const values = Object.fromEntries(
      (summary ? fields(summary) : []).map(({ value }) => {
        const [tag, scalar] = fields(value as Buffer);
        return [String(tag!.value), scalar!.value as number];
      }),
    );
    const other = all.map(({ number }) => number).filter((number) => number > 2 && number !== 5);
    out.push({ step: Number(one(2)), time: one(1) as number, values, other });
  }
  return out;
}

describe('TensorBoard', () => {
  it('CRC-32C is the one of RFC 3720', () => {
    expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
    expect(crc32c(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
    expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i))).toBe(0x46dd794e);
    expect(crc32c(Buffer.from('123456789'))).toBe(0xe3069283);
  });

  it('steps beyond 32 bits, long names and any number', () => {
    const file = new EventFile(path('board'), 7, 1_700_000_000_500);
    file.add({ step: 2 ** 40, loss: -0, ['é'.repeat(200)]: 1e30, nothing: Number.NaN }, 1_700_000_001_250);
    const [version, start, line] = events(file.path);
    expect(version).toMatchObject({ step: 0, time: 1_700_000_000.5, other: [3] });
    expect(start).toMatchObject({ step: 7, other: [7] });
    expect(line).toMatchObject({ step: 2 ** 40, time: 1_700_000_001.25, other: [] });
    expect(line!.values).toEqual({ loss: -0, ['é'.repeat(200)]: Math.fround(1e30), nothing: Number.NaN });
  });
});

// ---- runs

const rows = tokenRows(8, 41);
const ARGS = {
  ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 1, learningRate: 1e-3, beta: 0.1, shuffle: false },
  ...{ loggingSteps: 1, microbatchTokens: 1, disableTqdm: true },
} satisfies Partial<TrainingArgsInput>;

async function train(
  outputDir: string,
  args: Partial<TrainingArgsInput>,
  how: TrainOptions = {},
  options: Partial<TrainerOptions> = {},
) {
  await using trainer = new Trainer({
    ...{ model: POLICY, trainDataset: rows, args: { ...ARGS, ...args, outputDir } },
    ...options,
  });
  return await trainer.train(how);
}

describe('a run', () => {
  it('writes event files only when asked, with the log in them; one that goes on takes back what it takes again', async () => {
    const dir = path('reported');
    const boards = () => readdirSync(join(dir, 'tensorboard')).map((name) => join(dir, 'tensorboard', name));
    await train(dir, { reportTo: 'none' });
    expect(existsSync(join(dir, 'tensorboard'))).toBe(false);
    await train(dir, { reportTo: ['tensorboard'], saveSteps: 3 });
    expect(boards()).toHaveLength(1);
    const lines = readJsonLines(join(dir, 'metrics.jsonl'));
    const told = events(boards()[0]!).slice(2);
    expect(told.map(({ step, values }) => ({ step, ...values }))).toEqual(
      lines.map(({ step, ...values }) => ({
        step,
        ...Object.fromEntries(Object.entries(values).map(([name, value]) => [name, Math.fround(value)])),
      })),
    );
    await train(path('continued'), { reportTo: 'all' }, { resumeFromCheckpoint: join(dir, 'checkpoint-3') });
    const [board] = readdirSync(path('continued', 'tensorboard'));
    const continued = events(path('continued', 'tensorboard', board!));
    expect(continued.map(({ step }) => step)).toEqual([0, 4, 4]);
  });

  it('tells its warnings to a callback', async () => {
    const told: string[] = [];
    // A learning rate that ruins the model.
    const callbacks = { warning: ({ name }: { name: string }) => told.push(name) };
    await train(
      path('ruined'),
      { learningRate: 0.3, warmupRatio: 0, numTrainEpochs: 8, maxGradNorm: 0 },
      {},
      { callbacks },
    );
    expect(told).toContain('chosen_collapse');
  });
});

describe('non_finite: skip', () => {
  const POISON = 198; // beyond the ids of tokenRows
  const poisoned = tokenRows(12, 42).map((row, i) =>
    i === 4 || i === 9 ? { ...row, source_chosen: [POISON, 3] } : row,
  );
  const model = () => poisonedPolicy(path(`poisoned ${++copies}`), POISON, Number.NaN);
  let copies = 0;
  const sft = { lossType: 'sft', beta: undefined, nonFinite: 'skip' } as const;

  it('leaves the step out, and nothing but it', async () => {
    const dir = path('skipped');
    const before: string[] = [];
    await using trainer = new Trainer({
      ...{ model: model(), trainDataset: poisoned, args: { ...ARGS, ...sft, outputDir: dir } },
    });
    for await (const { step, metrics } of trainer.steps()) {
      before.push(await (await trainer.model()).fingerprint());
      const none = step === 3 || step === 5;
      expect('loss' in metrics).toBe(!none);
      expect(metrics.skipped_steps).toBe(step < 3 ? 0 : step < 5 ? 1 : 2);
    }
    // Steps 3 and 5 have the rows 4 and 9, counted from 0; the first learning rate is 0.
    expect(before.map((hash, i) => i > 0 && hash === before[i - 1])).toEqual([false, false, true, false, true, false]);
    expect(readJson(join(dir, 'trainer_state.json'))).toMatchObject({ global_step: 6, skipped_steps: 2 });
    for (const line of metricsOf(dir)) for (const value of Object.values(line)) expect(value).not.toBeNaN();
    await using saved = await Model.load(dir);
    expect(saved.dtype).toBe('float32');
  });

  it('and a run that goes on does the same', async () => {
    const straight = path('skipped straight');
    await train(straight, { ...sft, saveSteps: 1 }, {}, { model: model(), trainDataset: poisoned });
    for (const step of [3, 4]) {
      const dir = path(`skipped from ${step}`);
      const from = join(straight, `checkpoint-${step}`);
      await train(dir, sft, { resumeFromCheckpoint: from }, { model: model(), trainDataset: poisoned });
      expect(weightsOf(dir).equals(weightsOf(straight))).toBe(true);
      expect(metricsOf(dir)).toEqual(metricsOf(straight));
    }
  });

  it('weights that are not finite stop the run all the same, as they were', async () => {
    const all = tokenRows(40, 43).map((row) => ({ ...row, prompt: [POISON, ...row.prompt] }));
    await expectFailure(
      () => train(path('all'), sft, {}, { model: model(), trainDataset: all }),
      'ERR_NON_FINITE',
      /stopped at step 10, before its update/,
    );
  });

  it('a gradient that is not finite is as bad as a loss', async () => {
    await using good = await Model.load(POLICY);
    const enqueue = good.enqueue.bind(good);
    let calls = 0;
    good.enqueue = async (...args) => {
      const result = await enqueue(...args);
      if (++calls === 3)
        for (const gradient of good.gradients().values()) (gradient.view() as Float32Array)[0] = Number.NaN;
      return result;
    };
    const dir = path('gradient');
    await train(dir, { ...sft, microbatchTokens: 2048 }, {}, { model: good });
    const lines = metricsOf(dir);
    expect(lines.map((line) => 'grad_norm' in line)).toEqual([true, true, false, true]);
    calls = 0;
    await expectFailure(
      () => train(path('gradient stops'), { ...sft, nonFinite: 'stop', microbatchTokens: 2048 }, {}, { model: good }),
      'ERR_NON_FINITE',
      /stopped at step 3, before its update: the gradient norm is nan/i,
    );
  });
});
