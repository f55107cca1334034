/** What families differ in besides their arithmetic, which test/50 holds against transformers: files, windows, refusals. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import { readModelConfig } from '../lib/model/config.ts';
import { FAMILIES } from '../lib/model/families.ts';
import { Model } from '../lib/model/model.ts';
import {
  expectSentence,
  expectWithin,
  joinFile,
  maxAbsDifference,
  PREFERENCE_ROLES,
  quadruple,
  randomOf,
  splitFile,
  tinyModel,
} from './support.ts';
import { FIXTURES, scratchDirectory } from './training.ts';

const scratch = scratchDirectory('families');
const STORED = ['llama', 'mistral', 'qwen2', 'qwen3', 'phi3', 'gemma2', 'gemma3', 'internlm2'];
const policyOf = (family: string) => join(FIXTURES, family, 'policy');
const json = (path: string) => JSON.parse(readFileSync(path, 'utf8'));

describe('a checkpoint is saved as it was loaded', () => {
  it.each(STORED)('%s: the same names, shapes and bits, and config.json', async (family) => {
    const model = await Model.load(policyOf(family));
    const directory = scratch(`saved-${family}`);
    await model.save(directory);
    await model.close();
    const [before, after] = [policyOf(family), directory].map((dir) => splitFile(join(dir, 'model.safetensors')));
    const tensors = ({ header, data }: typeof before) =>
      Object.entries(header)
        .filter(([name]) => name !== '__metadata__')
        .map(
          ([name, { shape, data_offsets: range }]) => [name, shape, data.subarray(...range).toString('hex')] as const,
        )
        .sort(([a], [b]) => (a < b ? -1 : 1));
    expect(tensors(after!)).toEqual(tensors(before!));
    expect(json(join(directory, 'config.json'))).toMatchObject(json(join(policyOf(family), 'config.json')));
  });

  it('every family that is supported has a fixture', () => {
    const loaded = STORED.map((family) => readModelConfig(policyOf(family)).family);
    expect(new Set(loaded)).toEqual(new Set(Object.keys(FAMILIES)));
  });
});

describe('windows', () => {
  const rows = () => {
    const random = randomOf(3);
    return [quadruple(random, 9, [5, 8, 3]), quadruple(random, 2, [11, 1, 4])];
  };
  const logProbs = async (config: object, dtype: 'float32' | 'float64' | 'bfloat16' = 'float64') => {
    const model = await tinyModel(config, { dtype });
    const { sums } = await model.logProbs(packRows(rows(), PREFERENCE_ROLES));
    await model.close();
    return sums;
  };

  it('as long as the longest sequence changes nothing, one shorter does', async () => {
    const [none, longer, fitting, shorter] = await Promise.all(
      [null, 1000, 17, 15].map((window) => logProbs({ model_type: 'mistral', sliding_window: window })),
    );
    expect(longer).toEqual(none);
    expectWithin(maxAbsDifference(fitting!, none!), 1e-12);
    expect(maxAbsDifference(shorter!, none!)).toBeGreaterThan(1e-4);
  });

  it('reach in bfloat16 and float32 as in float64', async () => {
    const config = { model_type: 'gemma2', hidden_activation: 'gelu_pytorch_tanh', sliding_window: 4, head_dim: 8 };
    const [exact, single, half] = await Promise.all(
      (['float64', 'float32', 'bfloat16'] as const).map((dtype) => logProbs(config, dtype)),
    );
    expectWithin(maxAbsDifference(single!, exact!), 1e-4);
    const without = await logProbs({ ...config, sliding_window: 100 });
    const moved = maxAbsDifference(without, exact!);
    expect(moved).toBeGreaterThan(1);
    expectWithin(maxAbsDifference(half!, exact!), moved / 4);
  });
});

describe('rotation by length', () => {
  const config = { max_position_embeddings: 10, rope_scaling: { type: 'dynamic', factor: 2 } };

  it('is that of each sequence, whatever it is packed with', async () => {
    const random = randomOf(8);
    const rows = [quadruple(random, 6, [3, 9, 4]), quadruple(random, 2, [5, 30, 3])];
    const model = await tinyModel(config, { dtype: 'float64' });
    expect(model.longestShared).toBe(10);
    const pack = (some: typeof rows) => packRows(some, PREFERENCE_ROLES, { longestShared: model.longestShared });
    const together = await model.logProbs(pack(rows));
    const alone = [];
    for (const row of rows) {
      for (const role of PREFERENCE_ROLES) {
        const one = { ...row, responses: { completion: row.responses[role]! } };
        alone.push(...(await model.logProbs(packRows([one], ['completion'], { sharePrompt: false }))).sums);
      }
    }
    expectWithin(maxAbsDifference(together.sums, alone), 1e-12);
    await model.close();
  });

  it('cannot be shared by responses on both sides of the limit: one sentence', async () => {
    const model = await tinyModel(config);
    const rows = [quadruple(randomOf(8), 6, [3, 9, 4])];
    const act = () => model.logProbs(packRows(rows, PREFERENCE_ROLES));
    await expectSentence(act, 'ERR_DATA', 'prompt 0', 'sharePrompt: false');
    await model.close();
  });
});

describe('refused before any weight is read', () => {
  const broken = (family: string, changes: object) => {
    const directory = scratch();
    mkdirSync(directory);
    copyFileSync(join(policyOf(family), 'model.safetensors'), join(directory, 'model.safetensors'));
    const config = { ...json(join(policyOf(family), 'config.json')), ...changes };
    writeFileSync(join(directory, 'config.json'), JSON.stringify(config));
    return directory;
  };

  it.each([
    ['a window of zero', 'mistral', { sliding_window: 0 }, ['"sliding_window"', 'positive whole number', 'found 0']],
    ['a window that is text', 'gemma2', { sliding_window: 'wide' }, ['"sliding_window"', 'found "wide"']],
    ['DeepSeek-V2', 'llama', { model_type: 'deepseek_v2' }, ['deepseek_v2', 'server', 'sample']],
    ['an unknown family', 'llama', { model_type: 'gpt2' }, ['gpt2', 'supported', 'internlm2']],
    ['no family', 'llama', { model_type: null }, ['model_type']],
    ['a family named like a method', 'llama', { model_type: 'toString' }, ['toString', 'supported']],
    ['biases that are not computed', 'llama', { attention_bias: true }, ['"attention_bias"', 'true', 'expected false']],
    ['another activation', 'gemma2', { hidden_activation: 'gelu' }, ['"hidden_activation"', 'gelu_pytorch_tanh']],
    ['an unknown attention', 'gemma2', { layer_types: ['chunked', 'full_attention', 'full_attention'] }, ['chunked']],
    ['too few layer types', 'gemma2', { layer_types: ['full_attention'] }, ['"layer_types"', '3 layers']],
    ['a cap below zero', 'gemma2', { attn_logit_softcapping: -1 }, ['"attn_logit_softcapping"', 'found -1']],
    [
      'factors of another length',
      'phi3_longrope',
      { rope_parameters: { rope_type: 'longrope', short_factor: [1], long_factor: [1] } },
      ['"short_factor"', 'positive numbers'],
    ],
    ['an unknown rotation', 'llama', { rope_parameters: { rope_type: 'spiral' } }, ['spiral', '"yarn"']],
  ] as const)('%s', async (_, family, changes, parts) => {
    await expectSentence(() => Model.load(broken(family, changes)), 'ERR_MODEL', 'config.json', ...parts);
  });

  it.each([
    ['a vocabulary larger than the embedding', { vocab_size: 5000 }, ['embed_tokens', '5000']],
    ['a tensor too many', { tie_word_embeddings: true, model_type: 'llama' }, ['q_proj.bias', 'does not describe']],
    ['a tensor too few', { model_type: 'qwen3' }, ['q_norm.weight|q_proj.bias']],
  ])('%s', async (_, changes, parts) => {
    const patterns = parts.map((part) => new RegExp(part));
    await expectSentence(() => Model.load(broken('qwen2', changes)), 'ERR_MODEL', ...patterns);
  });

  it('a fused projection of other sizes', async () => {
    const directory = broken('internlm2', {});
    const file = join(directory, 'model.safetensors');
    const { header, data } = splitFile(file);
    const name = 'model.layers.0.attention.wqkv.weight';
    header[name]!.shape = header[name]!.shape.toReversed();
    joinFile(file, header, data);
    await expectSentence(() => Model.load(directory), 'ERR_MODEL', name, 'config.json asks for');
  });
});
