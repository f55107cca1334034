/** What the tests of the model's arithmetic and files share: fixtures, small random models, random rows, comparisons. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { type PackedBatch, packRows, withContests } from '../lib/data/pack.ts';
import type { Role } from '../lib/data/preferences.ts';
import type { WrpoErrorCode } from '../lib/errors.ts';
import { Model, type ModelOptions } from '../lib/model/model.ts';
import type { Accumulated, Tensor } from '../lib/native/addon.ts';
import type { EncodedRow } from '../lib/text/encode.ts';
import { contestsOf, formOf, type Objective, preferenceLoss, rolesOf, termsOf } from '../lib/train/objective.ts';
import { FIXTURES, failure, randomOf } from './training.ts';

export type Random = () => number;
export { randomOf };

export const LLAMA = join(FIXTURES, 'llama');
/** The fixtures of families, each with what transformers makes of it (fixtures/README.md). */
export const PARITY_FIXTURES = [
  ...['llama', 'mistral', 'qwen2', 'qwen3', 'phi3', 'gemma2'],
  ...['gemma3', 'yi', 'llama_yarn', 'llama_dynamic', 'phi3_longrope', 'internlm2'],
];
export const PREFERENCE_ROLES: Role[] = ['source_chosen', 'target_chosen', 'rejected'];

// ---- safetensors files, read and written without the code under test

interface Header {
  [name: string]: { dtype: string; shape: number[]; data_offsets: [number, number] };
}

export function splitFile(path: string): { header: Header; data: Buffer } {
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE());
  return { header: JSON.parse(bytes.toString('utf8', 8, 8 + length)), data: bytes.subarray(8 + length) };
}

/** `header` may be any text, and its length a lie. */
export function joinFile(path: string, header: Header | string, data: Buffer, length?: bigint): void {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(length ?? BigInt(text.length));
  writeFileSync(path, Buffer.concat([size, text, data]));
}

/** The values of a file's tensors. */
export function readValues(path: string): Map<string, { shape: number[]; values: Float64Array }> {
  const { header, data } = splitFile(path);
  const tensors = new Map<string, { shape: number[]; values: Float64Array }>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const raw = Uint8Array.from(data.subarray(...entry.data_offsets)).buffer;
    const values = {
      F32: () => Float64Array.from(new Float32Array(raw)),
      F64: () => new Float64Array(raw),
      I32: () => Float64Array.from(new Int32Array(raw)),
      BF16: () => Float64Array.from(new Uint16Array(raw), bfloat16ToNumber),
    }[entry.dtype];
    if (!values) throw new Error(`${name} is ${entry.dtype}`);
    tensors.set(name, { shape: entry.shape, values: values() });
  }
  return tensors;
}

const word = new DataView(new ArrayBuffer(4));
export function bfloat16ToNumber(bits: number): number {
  word.setUint32(0, bits << 16);
  return word.getFloat32(0);
}
/** To the nearest, ties to even. */
export function numberToBfloat16(value: number): number {
  word.setFloat32(0, value);
  const bits = word.getUint32(0);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

// ---- models and rows

/** Sizes that are no multiple of a vector's, so that every kernel meets its remainder. */
export const TINY = {
  model_type: 'llama',
  vocab_size: 61,
  hidden_size: 20,
  intermediate_size: 36,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 6,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  initializer_range: 0.25,
};

const GEMMA = {
  hidden_activation: 'gelu_pytorch_tanh',
  query_pre_attn_scalar: 5,
  sliding_window: 4,
};
/** Every branch of the decoder, as changes of TINY; windows and limits are met by sequences of 6 to 13 tokens. */
export const FAMILY_CONFIGS = {
  mistral: { model_type: 'mistral', sliding_window: 5 },
  'a window of two': { model_type: 'mistral', sliding_window: 2 },
  qwen2: { model_type: 'qwen2', use_sliding_window: true, sliding_window: 6, max_window_layers: 1 },
  qwen3: { model_type: 'qwen3' },
  phi3: { model_type: 'phi3', partial_rotary_factor: 0.67 },
  gemma2: { ...GEMMA, model_type: 'gemma2', attn_logit_softcapping: 2, final_logit_softcapping: 3 },
  'gemma2, untied': { ...GEMMA, model_type: 'gemma2', tie_word_embeddings: false, final_logit_softcapping: 3 },
  gemma3: {
    ...GEMMA,
    model_type: 'gemma3_text',
    sliding_window_pattern: 2,
    rope_scaling: { type: 'linear', factor: 3 },
  },
  internlm2: { model_type: 'internlm2', rope_scaling: { type: 'dynamic', factor: 2 } },
  yarn: { rope_scaling: { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 8 } },
};

/** A random model in which every feature counts: weights large enough to move the logits, norms away from one, biases from zero. */
export async function tinyModel(config: object = {}, options: ModelOptions & { seed?: number } = {}): Promise<Model> {
  const model = await Model.create({ ...TINY, ...config }, options);
  const random = randomOf((options.seed ?? 42) + 1);
  for (const [name, tensor] of model.parameters({ master: true })) {
    const bias = name.endsWith('.bias');
    if (!bias && !name.includes('norm')) continue;
    const values = tensor.view() as Float32Array;
    for (let i = 0; i < values.length; i++) values[i] = bias ? random() - 0.5 : 0.5 + random();
  }
  await model.syncWork();
  return model;
}

export function randomIds(random: Random, length: number, vocabulary = TINY.vocab_size): Int32Array {
  return Int32Array.from({ length }, () => Math.floor(random() * vocabulary));
}

/** A row with a prompt and one response of each role, of the given lengths. */
export function randomRow(
  random: Random,
  prompt: number,
  lengths: Partial<Record<Role, number>>,
  vocabulary?: number,
): EncodedRow {
  return {
    where: 'row',
    prompt: randomIds(random, prompt, vocabulary),
    responses: Object.fromEntries(
      Object.entries(lengths).map(([role, length]) => [role, randomIds(random, length, vocabulary)]),
    ),
  };
}

/** A row of the three roles of WRPO. */
export function quadruple(random: Random, prompt: number, [ws, wt, l]: readonly number[], vocabulary?: number) {
  return randomRow(random, prompt, { source_chosen: ws!, target_chosen: wt!, rejected: l! }, vocabulary);
}

// ---- losses and gradients

/** Rows with what a step on them needs. `reference` holds one log-prob for every response, rows in order. */
export interface Problem {
  rows: EncodedRow[];
  objective: Objective;
  reference: Float64Array;
  normalizer: number;
}

/** The problem as a trainer poses it: the mean over rows, or over predicted tokens for fine-tuning. */
export async function problemOf(
  model: Model,
  rows: EncodedRow[],
  objective: Objective,
  random: Random,
): Promise<Problem> {
  const roles = rolesOf(objective);
  const { sums, counts } = await model.logProbs(packRows(rows, roles));
  return {
    rows,
    objective,
    // Near the policy's, so that no contest is decided and every gradient counts.
    reference: sums.map((sum) => sum + 8 * (random() - 0.5)),
    normalizer: objective.lossType === 'sft' ? counts.reduce((total, count) => total + count, 0) : rows.length,
  };
}

/** The batch of the rows `indices` of a problem. */
export function batchOf(
  { rows, objective, reference }: Problem,
  indices: readonly number[] = rows.map((_, i) => i),
  options?: { sharePrompt?: boolean; longestShared?: number },
): PackedBatch {
  const roles = rolesOf(objective);
  const packed = packRows(
    indices.map((i) => rows[i]!),
    roles,
    options,
  );
  const batch = withContests(packed, contestsOf(objective));
  if (!termsOf(objective).reference) return batch;
  const own = indices.flatMap((i) => roles.map((_, k) => reference[i * roles.length + k]!));
  return { ...batch, reference: Float64Array.from(own) };
}

/** The loss from the model's log-probs alone, without `accumulate`. */
export async function lossOf(model: Model, problem: Problem): Promise<number> {
  const { rows, objective, reference, normalizer } = problem;
  const roles = rolesOf(objective);
  const { sums } = await model.logProbs(batchOf(problem));
  const columns = (values: Float64Array) =>
    Object.fromEntries(roles.map((role, k) => [role, rows.map((_, i) => values[i * roles.length + k]!)]));
  const { losses } = preferenceLoss({ policy: columns(sums), reference: columns(reference) }, objective);
  return losses.reduce((total, loss) => total + loss, 0) / normalizer;
}

export interface Gradients {
  loss: number;
  gradients: Map<string, Float64Array>;
}

/** Loss and gradients of a problem, its rows dealt into micro-batches. */
export async function gradientsOf(
  model: Model,
  problem: Problem,
  { parts, sharePrompt }: { parts?: number[][]; sharePrompt?: boolean } = {},
): Promise<Gradients> {
  await model.zeroGradients();
  let loss = 0;
  for (const part of parts ?? [problem.rows.map((_, i) => i)]) {
    loss += (await accumulate(model, batchOf(problem, part, { sharePrompt }), problem)).loss;
  }
  return { loss, gradients: copies(model.gradients()) };
}

export function accumulate(model: Model, batch: PackedBatch, { objective, normalizer }: Problem): Promise<Accumulated> {
  return model.accumulate(batch, { objective: formOf(objective), normalizer });
}

export function copies(tensors: Map<string, Tensor>): Map<string, Float64Array> {
  return new Map([...tensors].map(([name, tensor]) => [name, Float64Array.from(tensor.view() as Float32Array)]));
}

/** |a - b| / |b| over all entries of all tensors. */
export function relativeL2(a: Map<string, Float64Array>, b: Map<string, Float64Array>): number {
  expect([...a.keys()]).toEqual([...b.keys()]);
  let difference = 0;
  let norm = 0;
  for (const [name, values] of b) {
    const others = a.get(name)!;
    expect(others.length).toBe(values.length);
    for (let i = 0; i < values.length; i++) {
      difference += (others[i]! - values[i]!) ** 2;
      norm += values[i]! ** 2;
    }
  }
  return Math.sqrt(difference / norm);
}

export function maxAbsDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i]! - b[i]!);
    if (!(difference <= worst)) worst = difference; // a NaN stays
  }
  return worst;
}

/** `value` must be a number no larger than `limit`. */
export function expectWithin(value: number, limit: number, what = ''): void {
  expect(value, what).toBeLessThanOrEqual(limit);
}

/** The error must be one sentence of this code that matches every one of `parts`. */
export async function expectSentence(
  act: () => unknown,
  code: WrpoErrorCode,
  ...parts: (string | RegExp)[]
): Promise<void> {
  const { message, code: actual } = await failure(act);
  expect(message).not.toMatch(/\n|\s+at .*:\d+:\d+|Exception raised|undefined|\[object/);
  for (const part of parts) {
    if (typeof part === 'string') expect(message).toContain(part);
    else expect(message).toMatch(part);
  }
  expect(actual, message).toBe(code);
}
