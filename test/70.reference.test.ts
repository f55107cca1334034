/** The reference column: computed once, continued where it was cut, refused when it belongs to something else. */
import { existsSync, readFileSync, statSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { packRows, splitMicrobatches } from '../lib/data/pack.ts';
import { type Role, toPreferenceRow } from '../lib/data/preferences.ts';
import { Model } from '../lib/model/model.ts';
import { type EncodedRow, encodeRows } from '../lib/text/encode.ts';
import { hashRows, type ReferenceColumn, type ReferenceKey, referenceColumn } from '../lib/train/reference.ts';
import { Trainer } from '../lib/train/trainer.ts';
import {
  expectFailure,
  filesBelow,
  leftovers,
  POLICY,
  poisonedPolicy,
  readJsonLines,
  scratchDirectory,
  tokenRows,
  weightsOf,
} from './training.ts';

const path = scratchDirectory('reference');
const ROLES: Role[] = ['source_chosen', 'target_chosen', 'rejected'];
const LIMIT = 150;

let model: Model;
let rows: EncodedRow[];
/** Rows that the engine was asked for. */
let computed = 0;

async function encode(count: number, seed: number): Promise<EncodedRow[]> {
  const read = tokenRows(count, seed).map((row, i) => toPreferenceRow(row, `row ${i + 1}`));
  return (await encodeRows(read, { roles: ROLES, maxLength: 512, vocabSize: model.config.vocabSize })).rows;
}

beforeAll(async () => {
  model = await Model.load(POLICY);
  rows = await encode(23, 31);
  const logProbs = model.logProbs.bind(model);
  model.logProbs = (batch, options) => {
    computed += batch.groupOffsets.length - 1;
    return logProbs(batch, options);
  };
});
beforeEach(() => {
  computed = 0;
});
afterAll(() => model.close());

const keyOf = async (changes: Partial<ReferenceKey> = {}): Promise<ReferenceKey> => ({
  ...{ 'model weights': await model.fingerprint(), 'token ids': hashRows(rows, ROLES) },
  ...{ roles: ROLES.join(), dtype: 'float32', ...changes },
});

async function column(file: string, options: { signal?: AbortSignal; onProgress?: (done: number) => void } = {}) {
  const fixed = { file, key: await keyOf(), model, rows, roles: ROLES, microbatchTokens: LIMIT, sharePrompt: true };
  return referenceColumn({ ...fixed, ...options });
}

describe('the column', () => {
  const whole = path('whole.jsonl');
  let expected: ReferenceColumn;
  let bytes: Buffer;
  let parts: number[];

  beforeAll(async () => {
    expected = await column(whole);
    bytes = readFileSync(whole);
    parts = splitMicrobatches(rows, ROLES, LIMIT).map((part) => part.length);
  });

  it('has a line a row, with what the model says of it', async () => {
    const [head, ...lines] = readJsonLines<Record<string, unknown>>(whole);
    expect(head).toEqual({ reference: await keyOf() });
    expect(lines).toEqual(expected);
    expect(lines).toHaveLength(rows.length);
    expect(parts.length).toBeGreaterThan(5);
    const { sums } = await model.logProbs(packRows(rows, ROLES, { sharePrompt: false }));
    for (const [i, row] of expected.entries()) {
      for (const [k, role] of ROLES.entries()) expect(row[role]).toBeCloseTo(sums[3 * i + k]!, 3);
    }
  });

  it('is read, not computed, the second time', async () => {
    const past = new Date(Date.now() - 3_600_000);
    utimesSync(whole, past, past);
    const before = statSync(whole);
    expect(await column(whole)).toEqual(expected);
    expect(computed).toBe(0);
    expect(statSync(whole)).toMatchObject({ mtimeMs: before.mtimeMs, ino: before.ino });
    expect(readFileSync(whole).equals(bytes)).toBe(true);
  });

  it('goes on after a cut, anywhere, to the same bytes', async () => {
    const ends = [...bytes.entries()].filter(([, byte]) => byte === 10).map(([at]) => at + 1);
    const boundaries = parts.map((_, i) => parts.slice(0, i + 1).reduce((a, b) => a + b));
    for (const [size, complete] of [
      [ends[0]!, 0], // the header only
      [ends[0]! + 1, 0],
      [ends[7]! + 25, 7], // within a line
      [ends[7]!, 7], // between two
      [ends[8]! - 1, 7], // before a line's end
      [ends[boundaries[2]!]!, boundaries[2]!], // between two micro-batches
      [bytes.length - 1, rows.length - 1],
    ] as const) {
      const file = path(`cut at ${size}.jsonl`);
      writeFileSync(file, bytes);
      truncateSync(file, size);
      computed = 0;
      expect(await column(file)).toEqual(expected);
      expect(readFileSync(file).equals(bytes), `cut at ${size}`).toBe(true);
      // Whole micro-batches are kept, and no more is computed than what follows them.
      const kept = Math.max(0, ...boundaries.filter((end) => end <= complete));
      expect(computed).toBe(rows.length - kept);
    }
    expect(leftovers(dirname(whole))).toEqual([]);
  });

  it('stops where it is told to, and goes on from there', async () => {
    const file = path('stopped.jsonl');
    const controller = new AbortController();
    const progress: number[] = [];
    const onProgress = (done: number) => {
      progress.push(done);
      if (progress.length === 3) controller.abort();
    };
    await expect(column(file, { signal: controller.signal, onProgress })).rejects.toMatchObject({ name: 'AbortError' });
    const done = parts[0]! + parts[1]! + parts[2]!;
    expect(progress.at(-1)).toBe(done);
    expect(readJsonLines(file)).toHaveLength(1 + done);
    computed = 0;
    expect(await column(file)).toEqual(expected);
    expect(computed).toBe(rows.length - done);
    expect(readFileSync(file).equals(bytes)).toBe(true);
  });

  it.each([
    ['model weights', { 'model weights': '0123456789abcdef' }],
    ['token ids', { 'token ids': 'f00d' }],
    ['dtype', { dtype: 'bfloat16' }],
    ['roles', { roles: 'target_chosen,rejected' }],
  ] as const)('made from other %s is refused, by name', async (name, changes) => {
    const fixed = { model, rows, roles: ROLES, microbatchTokens: LIMIT, sharePrompt: true };
    const key = await keyOf(changes);
    await expectFailure(
      () => referenceColumn({ file: whole, key, ...fixed }),
      'ERR_CHECKPOINT',
      new RegExp(`whole\\.jsonl was computed from other ${name}: delete it`),
    );
    expect(readFileSync(whole).equals(bytes)).toBe(true);
  });

  it('that is no column at all is refused', async () => {
    for (const [name, text] of Object.entries({ empty: '', words: 'hello\n', json: '{"loss":1}\n', list: '[]\n' })) {
      const file = path(`${name}.jsonl`);
      writeFileSync(file, text);
      await expectFailure(() => column(file), 'ERR_CHECKPOINT', new RegExp(`${name}\\.jsonl`));
      expect(readFileSync(file, 'utf8')).toBe(text);
    }
    const file = path('broken line.jsonl');
    const lines = bytes.toString().split('\n');
    lines[3] = '{"source_chosen": -1';
    writeFileSync(file, lines.join('\n'));
    await expectFailure(() => column(file), 'ERR_CHECKPOINT', /broken line\.jsonl is not a reference file/);
  });

  it('hashes every id, and where each sequence ends', async () => {
    const hash = (changes: Partial<EncodedRow>) => hashRows([{ ...rows[0]!, ...changes }, ...rows.slice(1)], ROLES);
    const { prompt, responses } = rows[0]!;
    const moved = {
      prompt: prompt.slice(0, -1),
      responses: { ...responses, source_chosen: Int32Array.of(prompt.at(-1)!, ...responses.source_chosen!) },
    };
    const swapped = {
      responses: { ...responses, source_chosen: responses.rejected, rejected: responses.source_chosen },
    };
    const hashes = [{}, { prompt: prompt.with(0, 7) }, moved, swapped].map(hash);
    expect(new Set(hashes).size).toBe(4);
    expect(hashes[0]).toBe(hashRows(rows, ROLES));
    expect(hash({ where: 'elsewhere' })).toBe(hashes[0]);
  });
});

describe('in a run', () => {
  const data = tokenRows(12, 41);
  const held = tokenRows(5, 42);
  const args = {
    ...{ perDeviceTrainBatchSize: 4, gradientAccumulationSteps: 1, disableTqdm: true },
    microbatchTokens: 90,
  };
  const run = async (outputDir: string, changes = {}, options = {}) => {
    const events: { rows: number }[] = [];
    await using trainer = new Trainer({
      ...{ model: POLICY, trainDataset: data, evalDataset: held },
      args: { ...args, ...changes, outputDir },
      ...options,
    });
    trainer.on('reference', (event) => events.push(event));
    await trainer.train();
    return events;
  };

  const dir = path('run');
  let first: { rows: number }[];
  beforeAll(async () => {
    first = await run(dir);
  });

  it('is computed once for both splits, and serves every later run', async () => {
    expect(first).toEqual([{ rows: 17, seconds: expect.any(Number) }]);
    const files = ['reference-train.jsonl', 'reference-eval.jsonl'].map((name) => join(dir, name));
    expect(files.map((file) => readJsonLines(file).length)).toEqual([13, 6]);
    const before = files.map((file) => [statSync(file).mtimeMs, readFileSync(file, 'utf8')]);
    const weights = weightsOf(dir);
    await run(dir);
    // The number of steps, the loss and the learning rate do not change what the reference says.
    await run(dir, { numTrainEpochs: 2, learningRate: 1e-4, beta: 0.5 });
    expect(files.map((file) => [statSync(file).mtimeMs, readFileSync(file, 'utf8')])).toEqual(before);
    await run(dir);
    expect(weightsOf(dir).equals(weights)).toBe(true);
  });

  it('cut in the middle, it is the same again', async () => {
    const file = path('run', 'reference-train.jsonl');
    const bytes = readFileSync(file);
    truncateSync(file, Math.floor(bytes.length / 2));
    await run(path('run'));
    expect(readFileSync(file).equals(bytes)).toBe(true);
  });

  it.each([
    ['model weights', {}, { model: () => poisonedPolicy(path('other'), 198, 0.25) }, /other model weights/],
    ['token ids', {}, { trainDataset: () => tokenRows(12, 43) }, /other token ids/],
    ['token ids', { maxLength: 20 }, {}, /other token ids/],
    ['dtype', { dtype: 'float64' }, {}, /other .*dtype/],
    ['roles', { lossType: 'sigmoid' }, {}, /other .*roles/],
  ] as const)('with other %s the run is refused', async (_, changes, options, message) => {
    const before = filesBelow(path('run'));
    const weights = weightsOf(path('run'));
    const given = Object.fromEntries(Object.entries(options).map(([key, value]) => [key, value()]));
    await expectFailure(() => run(path('run'), changes, given), 'ERR_CHECKPOINT', message);
    expect(filesBelow(path('run'))).toEqual(before);
    expect(weightsOf(path('run')).equals(weights)).toBe(true);
  });

  it('fine-tuning and a resident reference leave none', async () => {
    for (const [name, changes, options] of [
      ['sft', { lossType: 'sft' }, {}],
      ['resident', {}, { refModel: POLICY }],
    ] as const) {
      expect(await run(path(name), changes, options)).toEqual([]);
      expect(existsSync(path(name, 'reference-train.jsonl'))).toBe(false);
    }
  });
});
