/** A disk that is full at any write, and one that cannot be written: nothing that was complete is lost. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeEach, expect, it } from 'vitest';
import type { TrainingArgsInput } from '../../lib/train/args.ts';
import { listCheckpoints, verifyCheckpoint } from '../../lib/train/checkpoint.ts';
import { Trainer, type TrainOptions } from '../../lib/train/trainer.ts';
import { failure, leftovers, metricsOf, POLICY, scratchDirectory, tokenRows, weightsOf } from '../training.ts';

const path = scratchDirectory('disk');
const rows = tokenRows(12, 61);
const held = tokenRows(4, 62);
const ARGS = {
  ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 1, learningRate: 1e-3, beta: 0.1, evalSteps: 2 },
  ...{ loggingSteps: 1, saveSteps: 2, saveTotalLimit: 2, reportTo: 'tensorboard', disableTqdm: true },
} satisfies Partial<TrainingArgsInput>;

async function train(outputDir: string, how: TrainOptions = {}) {
  await using trainer = new Trainer({
    ...{ model: POLICY, trainDataset: rows, evalDataset: held },
    args: { ...ARGS, outputDir },
  });
  return await trainer.train(how);
}

/** A file system of its own, in memory. */
const disk = path('disk');
const options = (...words: string[]) => execFileSync('mount', ['-o', `remount,${words.join()}`, disk]);
mkdirSync(disk);
execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=16m', 'wrpo-test', disk]);
afterAll(() => execFileSync('umount', [disk]));
beforeEach(() => {
  for (const name of readdirSync(disk)) rmSync(join(disk, name), { recursive: true });
});
const free = () => {
  const { bavail, bsize } = statfsSync(disk);
  return bavail * bsize;
};

it('full at every write', async () => {
  const straight = path('straight');
  await train(straight);
  const dir = join(disk, 'run');
  const before = free();
  await train(dir);
  const needed = before - free();
  rmSync(dir, { recursive: true });

  const ballast = join(disk, 'ballast');
  const written = new Set<string>();
  let tried = 0;
  // Pages are what a tmpfs gives out; one more each time at first, where the small files are, then larger steps.
  for (let left = 4096; left < needed + 65536; left += left < 128 * 1024 ? 4096 : 32 * 1024) {
    rmSync(dir, { recursive: true, force: true });
    rmSync(ballast, { force: true });
    writeFileSync(ballast, Buffer.alloc(free() - left));
    let full = false;
    try {
      await train(dir);
    } catch (error) {
      full = true;
      const { message, code } = await failure(() => Promise.reject(error));
      expect(code, message).toBe('ERR_CHECKPOINT');
      expect(message).toMatch(/^cannot write .*: no space left on (the )?device$/i);
      written.add(message.replace(/^cannot write .*disk\//, '').replace(/:.*|\d+/g, ''));
    }
    tried++;
    for (const checkpoint of existsSync(dir) ? listCheckpoints(dir) : []) await verifyCheckpoint(checkpoint);
    rmSync(ballast);
    if (!full) continue;
    await train(dir, { resumeFromCheckpoint: true });
    expect(weightsOf(dir).equals(weightsOf(straight)), `with ${left} bytes`).toBe(true);
    expect(metricsOf(dir)).toEqual(metricsOf(straight));
    expect(leftovers(dir)).toEqual([]);
  }
  console.log(`${tried} sizes of a disk; the write that failed was of ${[...written].join(', ')}`);
  expect(tried).toBeGreaterThan(30);
  expect(written.size).toBeGreaterThan(4);
}, 600_000);

it('that fills up under the only checkpoint: it stays', async () => {
  const dir = join(disk, 'only');
  const controller = new AbortController();
  await using trainer = new Trainer({
    ...{
      model: POLICY,
      trainDataset: rows,
      args: { ...ARGS, evalSteps: undefined, saveTotalLimit: 1, outputDir: dir },
    },
    callbacks: {
      save: () => !existsSync(join(disk, 'ballast')) && writeFileSync(join(disk, 'ballast'), Buffer.alloc(free())),
    },
  });
  const error = await failure(() => trainer.train({ signal: controller.signal }));
  expect(error.message).toMatch(/no space left on (the )?device$/i);
  const [checkpoint, ...more] = listCheckpoints(dir);
  expect(more).toEqual([]);
  await verifyCheckpoint(checkpoint!);
  rmSync(join(disk, 'ballast'));
});

it('read-only: one sentence, whether there was a run or not', async () => {
  const dir = join(disk, 'read-only');
  await train(dir);
  mkdirSync(join(dir, 'checkpoint-9.tmp'));
  const before = readdirSync(dir).map((name) => [name, name.endsWith('safetensors') && readFileSync(join(dir, name))]);
  options('ro');
  try {
    for (const where of [dir, join(disk, 'another')]) {
      for (const resumeFromCheckpoint of [true, false]) {
        const { code, message } = await failure(() => train(where, { resumeFromCheckpoint }));
        expect(code, message).toBe('ERR_CHECKPOINT');
        expect(message).toMatch(/^cannot write .*: EROFS: read-only file system/);
      }
    }
  } finally {
    options('rw');
  }
  expect(readdirSync(dir).map((name) => [name, name.endsWith('safetensors') && readFileSync(join(dir, name))])).toEqual(
    before,
  );
});
