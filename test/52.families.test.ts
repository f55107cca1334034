/** What families differ in besides their arithmetic, which test/50 holds against transformers: files, windows, refusals. */
import { copyFileSync, cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import { parseModelConfig, readModelConfig } from '../lib/model/config.ts';
import { FAMILIES } from '../lib/model/families.ts';
import { Model } from '../lib/model/model.ts';
import type { ComputeDtype } from '../lib/native/addon.ts';
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
    const [old, saved] = [policyOf(family), directory].map((dir) => readFileSync(join(dir, 'config.json'), 'utf8'));
    expect(JSON.parse(saved!)).toMatchObject(JSON.parse(old!));
    // transformers takes no 50 for a cap of 50.0, and no 2.0 for two layers.
    const numbers = (text: string) => text.match(/"\w+": -?\d+(\.0)?(?=,?$)/gm)!.sort();
    expect(numbers(saved!)).toEqual(numbers(old!));
  });

  it('with what belongs to it: how to generate, and code that transformers lacks', async () => {
    const [from, to] = [scratch('with-code'), scratch('with-code-saved')];
    cpSync(policyOf('internlm2'), from, { recursive: true });
    const config = { ...json(join(from, 'config.json')), auto_map: { AutoConfig: 'own_code.Config', Auto: ['a/b.C'] } };
    writeFileSync(join(from, 'config.json'), JSON.stringify(config));
    writeFileSync(join(from, 'own_code.py'), 'class Config: pass\n');
    writeFileSync(join(from, 'generation_config.json'), '{"eos_token_id": [2, 7]}\n');
    const model = await Model.load(from);
    await model.save(to);
    await model.close();
    for (const name of ['own_code.py', 'generation_config.json']) {
      expect(readFileSync(join(to, name), 'utf8')).toBe(readFileSync(join(from, name), 'utf8'));
    }
    expect(json(join(to, 'config.json')).auto_map).toEqual(config.auto_map);
  });

  it('every family that is supported has a fixture', () => {
    const loaded = STORED.map((family) => readModelConfig(policyOf(family)).family);
    expect(new Set(loaded)).toEqual(new Set(Object.keys(FAMILIES)));
  });
});

describe('what a config.json means by what it does not say, as in transformers', () => {
  const parse = (family: string, changes: Record<string, unknown>) => {
    const config = { ...json(join(policyOf(family), 'config.json')), ...changes };
    return parseModelConfig(JSON.parse(JSON.stringify(config)));
  };

  it('Gemma 2 has caps and Mistral a window, unless they are null', () => {
    const caps = { attn_logit_softcapping: undefined, final_logit_softcapping: undefined };
    expect(parse('gemma2', caps)).toMatchObject({ attentionSoftcap: 50, finalSoftcap: 30 });
    expect(parse('gemma2', { ...caps, final_logit_softcapping: null })).toMatchObject({ finalSoftcap: 0 });
    expect([...parse('mistral', { sliding_window: undefined }).windows]).toEqual([4096, 4096]);
    expect([...parse('mistral', { sliding_window: null }).windows]).toEqual([0, 0]);
  });

  it('a factor of longrope outweighs the ratio of the contexts', () => {
    const factors = { short_factor: Array(8).fill(1), long_factor: Array(8).fill(2) };
    const rope = { rope_type: 'longrope', ...factors, original_max_position_embeddings: 8 };
    const of = (more: object) =>
      parse('phi3_longrope', { max_position_embeddings: 64, rope_parameters: { ...rope, ...more } }).rope;
    const attention = (factor: number) => Math.sqrt(1 + Math.log(factor) / Math.log(8));
    expect(of({}).attentionFactor).toBeCloseTo(attention(8), 14);
    expect(of({ factor: 3 }).attentionFactor).toBeCloseTo(attention(3), 14);
    expect(of({ rope_type: 'yarn' }).type).toBe('longrope');
  });
});

describe('windows', () => {
  const rows = () => {
    const random = randomOf(3);
    return [quadruple(random, 9, [5, 8, 3]), quadruple(random, 2, [11, 1, 4])];
  };
  const logProbs = async (config: object) => {
    const model = await tinyModel(config, { dtype: 'float64' });
    const { sums } = await model.logProbs(packRows(rows(), PREFERENCE_ROLES));
    await model.close();
    return sums;
  };

  it('as long as the longest sequence changes nothing, one shorter does', async () => {
    const results = [];
    for (const window of [null, 1000, 17, 15]) {
      results.push(await logProbs({ model_type: 'mistral', sliding_window: window }));
    }
    const [none, longer, fitting, shorter] = results;
    expect(longer).toEqual(none);
    expectWithin(maxAbsDifference(fitting!, none!), 1e-12);
    expect(maxAbsDifference(shorter!, none!)).toBeGreaterThan(1e-4);
  });

  it('and caps reach in bfloat16 and float32 as in float64', async () => {
    const random = randomOf(4);
    const long = [quadruple(random, 20, [15, 8, 23], 199)];
    const wide = scratch('gemma2-wide');
    mkdirSync(wide);
    copyFileSync(join(policyOf('gemma2'), 'model.safetensors'), join(wide, 'model.safetensors'));
    const config = { ...json(join(policyOf('gemma2'), 'config.json')), sliding_window: 100 };
    writeFileSync(join(wide, 'config.json'), JSON.stringify(config));
    const of = async (directory: string, dtype: ComputeDtype) => {
      const model = await Model.load(directory, { dtype });
      const { perToken } = await model.logProbs(packRows(long, PREFERENCE_ROLES), { perToken: true });
      await model.close();
      return perToken!;
    };
    const exact = await of(policyOf('gemma2'), 'float64');
    const meanDistance = (other: Float64Array) =>
      other.reduce((sum, value, i) => sum + Math.abs(value - exact[i]!), 0) / exact.length;
    expectWithin(meanDistance(await of(policyOf('gemma2'), 'float32')), 5e-6);
    expectWithin(meanDistance(await of(policyOf('gemma2'), 'bfloat16')), meanDistance(await of(wide, 'float64')) / 5);
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
  let next = 0;
  const broken = (family: string, changes: object) => {
    const directory = scratch(`broken-${next++}`);
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
    ['a vocabulary larger than the embedding', 'qwen2', { vocab_size: 5000 }, ['embed_tokens', '[5000,64]']],
    ['a tensor too many', 'qwen2', { model_type: 'llama' }, ['_proj.bias', 'does not describe']],
    ['a tensor too few', 'mistral', { model_type: 'qwen2' }, ['lacks', 'q_proj.bias']],
  ] as const)('%s', async (_, family, changes, parts) => {
    await expectSentence(() => Model.load(broken(family, changes)), 'ERR_MODEL', ...parts);
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
