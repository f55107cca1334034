import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packRows, withContests } from '../lib/data/pack.ts';
import { parseModelConfig, readModelConfig } from '../lib/model/config.ts';
import { Model } from '../lib/model/model.ts';
import type { Batch, Dtype, TensorData } from '../lib/native/addon.ts';
import { Tensor } from '../lib/native/surface.ts';
import { AdamW } from '../lib/train/adamw.ts';
import { parameterCount } from '../lib/train/memory-plan.ts';
import { contestsOf, formOf, type Objective } from '../lib/train/objective.ts';
import { Trainer } from '../lib/train/trainer.ts';
import {
  batchOf,
  bfloat16ToNumber,
  copies,
  expectSentence,
  gradientsOf,
  joinFile,
  LLAMA,
  numberToBfloat16,
  PREFERENCE_ROLES,
  problemOf,
  quadruple,
  randomOf,
  randomRow,
  readValues,
  splitFile,
  TINY,
  tinyModel,
} from './support.ts';
import { filesBelow, readJson, scratchDirectory, script, tokenRows } from './training.ts';

const scratch = scratchDirectory('model');
let made = 0;
const fresh = () => scratch(String(made++));
const WRPO: Objective = { lossType: 'wrpo', beta: 0.1, alpha: 0.3 };
const rowsOf = (seed = 1) => [quadruple(randomOf(seed), 6, [4, 7, 5]), quadruple(randomOf(seed + 1), 1, [3, 1, 2])];

setFlagsFromString('--expose-gc');
const gc: () => void = runInNewContext('gc');
/** Collects, and lets finalizers run. */
async function collect(): Promise<void> {
  for (let i = 0; i < 3; i++) {
    gc();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** What every file of a directory holds. */
const snapshot = (dir: string) =>
  Object.fromEntries(
    filesBelow(dir).map((name) => [
      name,
      createHash('sha256')
        .update(readFileSync(join(dir, name)))
        .digest('hex'),
    ]),
  );

describe('directories that are no model', () => {
  const source = scratch('source');
  const weights = 'model.safetensors';

  beforeAll(async () => {
    await using model = await tinyModel();
    await model.save(source);
  });

  /** A copy of a good model with something done to it. */
  function broken(change: (dir: string) => void): string {
    const dir = fresh();
    cpSync(source, dir, { recursive: true });
    change(dir);
    return dir;
  }
  const withConfig = (change: Record<string, unknown>) =>
    broken((dir) =>
      writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...readJson(join(dir, 'config.json')), ...change })),
    );
  const withHeader = (change: (header: ReturnType<typeof splitFile>['header']) => void) =>
    broken((dir) => {
      const { header, data } = splitFile(join(dir, weights));
      change(header);
      joinFile(join(dir, weights), header, data);
    });
  const expectRefused = (dir: string, ...parts: (string | RegExp)[]) =>
    expectSentence(() => Model.load(dir), 'ERR_MODEL', ...parts);

  it('the good one loads', async () => {
    await (await Model.load(source)).close();
  });

  describe('weights', () => {
    const cut = (bytes: number) =>
      broken((dir) => writeFileSync(join(dir, weights), readFileSync(join(source, weights)).subarray(0, bytes)));
    const size = () => readFileSync(join(source, weights)).length;
    const headerEnd = () => 8 + Number(readFileSync(join(source, weights)).readBigUInt64LE());

    it.each([
      ['empty', () => 0, /0 bytes/],
      ['cut in the header length', () => 5, /5 bytes/],
      ['cut behind the header length', () => 8, /of 8 bytes/],
      ['cut in the header', () => 100, /header should take \d+ of 100 bytes/],
      ['cut behind the header', headerEnd, /model\.embed_tokens\.weight should end at byte/],
      ['cut in the data', () => size() - 1, /lm_head\.weight should end at byte \d+ of \d+/],
    ])('%s', async (_, bytes, message) => {
      const dir = cut(bytes());
      await expectRefused(dir, join(dir, weights), message);
    });

    it.each([
      ['a header that is not JSON', '{"model.norm.weight": ', undefined, /header is not JSON/],
      ['a header that is no object', 'null', undefined, /not a valid safetensors file/],
      ['a header that is a list', '[1]', undefined, /not a valid safetensors file/],
      ['an entry without offsets', '{"x":{"dtype":"F32","shape":[1]}}', undefined, /entry of x lacks/],
      ['an entry that is null', '{"x":null}', undefined, /entry of x lacks/],
      [
        'a shape of fractions',
        '{"x":{"dtype":"F32","shape":[0.5],"data_offsets":[0,2]}}',
        undefined,
        /entry of x lacks/,
      ],
      ['offsets before the data', '{"x":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', undefined, /x should/],
      [
        'offsets that disagree with the shape',
        '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        undefined,
        /x is F32 \[2\] but has 4 bytes/,
      ],
      ['a header of 2^63 bytes', '{}', 2n ** 63n, /header should take 9223372036854775808 of \d+ bytes/],
      ['a header longer than the file', '{}', 4000n, /header should take 4000 of \d+ bytes/],
    ])('%s', async (_, header, length, message) => {
      const dir = broken((dir) => joinFile(join(dir, weights), header, Buffer.alloc(64), length));
      await expectRefused(dir, join(dir, weights), message);
    });

    it('garbage', async () => {
      const random = randomOf(3);
      const garbage = Buffer.from(Array.from({ length: 5000 }, () => Math.floor(256 * random())));
      const dir = broken((dir) => writeFileSync(join(dir, weights), garbage));
      await expectRefused(dir, join(dir, weights), /truncated or corrupt|not a valid safetensors file/);
    });

    it('a directory', async () => {
      const dir = broken((dir) => {
        rmSync(join(dir, weights));
        mkdirSync(join(dir, weights));
      });
      await expectRefused(dir, join(dir, weights), /cannot be read|not a valid/);
    });

    it('no file', async () => {
      const dir = broken((dir) => rmSync(join(dir, weights)));
      await expectRefused(dir, join(dir, weights), /cannot be read/);
    });

    it('another shape than the config asks for', async () => {
      const dir = withConfig({ vocab_size: 62 });
      await expectRefused(dir, join(dir, weights), 'model.embed_tokens.weight', '[61,20]', '[62,20]');
      const narrow = withConfig({ intermediate_size: 30 });
      await expectRefused(narrow, join(narrow, weights), 'gate_proj.weight', '[36,20]', '[30,20]');
    });

    it('a missing tensor', async () => {
      const dir = withHeader((header) => delete header['model.layers.1.mlp.up_proj.weight']);
      await expectRefused(dir, `${dir} lacks model.layers.1.mlp.up_proj.weight`);
      const deeper = withConfig({ num_hidden_layers: 3 });
      await expectRefused(deeper, `${deeper} lacks model.layers.2.input_layernorm.weight`);
    });

    it('a tensor too many', async () => {
      const dir = withHeader((header) => {
        header['model.layers.0.self_attn.q_proj.bias'] = { dtype: 'F32', shape: [0], data_offsets: [0, 0] };
      });
      await expectRefused(dir, dir, 'model.layers.0.self_attn.q_proj.bias', 'config.json does not describe');
      const shallow = withConfig({ num_hidden_layers: 1 });
      await expectRefused(shallow, shallow, 'model.layers.1.');
    });

    it('but rotary tables and the head of tied embeddings may be there', async () => {
      const dir = withHeader((header) => {
        header['model.layers.0.self_attn.rotary_emb.inv_freq'] = { dtype: 'F32', shape: [0], data_offsets: [0, 0] };
      });
      await (await Model.load(dir)).close();
      const tied = withConfig({ tie_word_embeddings: true });
      await (await Model.load(tied)).close();
    });

    it.each(['I32', 'F8_E4M3', 'toString'])('dtype %s', async (dtype) => {
      const dir = withHeader((header) => {
        header['model.norm.weight']!.dtype = dtype;
      });
      await expectRefused(dir, join(dir, weights), 'model.norm.weight', dtype);
    });
  });

  describe('config.json', () => {
    it.each<[key: string, change: Record<string, unknown>, ...parts: (string | RegExp)[]]>([
      ['model_type', { model_type: 'gpt2' }, 'model family "gpt2" is not supported', 'llama'],
      ['model_type', { model_type: undefined }, 'model family'],
      ['hidden_act', { hidden_act: 'gelu' }, '"hidden_act": "gelu"', '"silu"'],
      ['attention_bias', { attention_bias: true }, '"attention_bias"', 'not supported'],
      ['mlp_bias', { mlp_bias: true }, '"mlp_bias"', 'not supported'],
      ['vocab_size', { vocab_size: 0 }, '"vocab_size" must be a positive whole number, found 0'],
      ['hidden_size', { hidden_size: '20' }, '"hidden_size"', 'found "20"'],
      ['num_hidden_layers', { num_hidden_layers: 1.5 }, '"num_hidden_layers"', 'found 1.5'],
      ['num_hidden_layers', { num_hidden_layers: null }, '"num_hidden_layers"', 'found null'],
      ['intermediate_size', { intermediate_size: -36 }, '"intermediate_size"', 'found -36'],
      ['num_attention_heads', { num_attention_heads: [4] }, '"num_attention_heads"', 'found [4]'],
      [
        'num_key_value_heads',
        { num_key_value_heads: 3 },
        '"num_attention_heads" must be a multiple of "num_key_value_heads"',
      ],
      ['num_key_value_heads', { num_key_value_heads: 0 }, '"num_key_value_heads"', 'found 0'],
      ['head_dim', { head_dim: 5 }, '"head_dim" must be even'],
      [
        'head_dim',
        { head_dim: null, num_attention_heads: 6 },
        '"hidden_size" must be a multiple of "num_attention_heads"',
      ],
      ['max_position_embeddings', { max_position_embeddings: '2k' }, '"max_position_embeddings"', 'found "2k"'],
      ['rms_norm_eps', { rms_norm_eps: '1e-5' }, '"rms_norm_eps" must be a positive number', 'found "1e-5"'],
      ['rms_norm_eps', { rms_norm_eps: -1 }, '"rms_norm_eps"', 'found -1'],
      ['rope_theta', { rope_theta: 0 }, '"rope_theta"', 'found 0'],
      ['rope type', { rope_scaling: { type: 'spiral', factor: 2 } }, 'rope type "spiral"', '"linear"'],
      ['rope factor', { rope_scaling: { type: 'dynamic' } }, '"factor" must be a positive number'],
      ['rope type', { rope_scaling: { rope_type: 3 } }, 'rope type 3'],
      ['rope_scaling', { rope_scaling: 'llama3' }, '"rope_scaling" must be an object', 'found "llama3"'],
      ['rope_parameters', { rope_parameters: [] }, '"rope_parameters" must be an object'],
      ['rope factor', { rope_scaling: { type: 'linear' } }, '"factor" must be a positive number'],
      ['rope factor', { rope_scaling: { type: 'linear', factor: 'two' } }, '"factor"', 'found "two"'],
      [
        'low_freq_factor',
        { rope_scaling: { rope_type: 'llama3', factor: 8, high_freq_factor: 4 } },
        '"low_freq_factor"',
      ],
    ])('%s: %j', async (_, change, ...parts) => {
      const dir = withConfig(change);
      await expectRefused(dir, join(dir, 'config.json'), ...parts);
    });

    it('not JSON', async () => {
      const dir = broken((dir) => writeFileSync(join(dir, 'config.json'), '{"model_type": llama}'));
      await expectRefused(dir, join(dir, 'config.json'), 'not valid JSON');
    });

    it.each(['[]', 'null', '"llama"', '7'])('%s', async (text) => {
      const dir = broken((dir) => writeFileSync(join(dir, 'config.json'), text));
      await expectRefused(dir, join(dir, 'config.json'), 'must hold a JSON object');
    });

    it('no file, no directory', async () => {
      const dir = broken((dir) => rmSync(join(dir, 'config.json')));
      await expectRefused(dir, join(dir, 'config.json'), 'no model in');
      const nowhere = scratch('nowhere');
      await expectRefused(nowhere, `no model in ${nowhere}`);
    });
  });

  describe('shards', () => {
    const index = 'model.safetensors.index.json';
    const sharded = scratch('sharded');

    beforeAll(async () => {
      await using model = await Model.load(source);
      await model.save(sharded, { maxShardBytes: 8000 });
    });

    /** A copy of a good sharded model with its weight map changed. */
    const withMap = (change: (map: Record<string, unknown>) => unknown) => {
      const dir = fresh();
      cpSync(sharded, dir, { recursive: true });
      const content = readJson(join(dir, index));
      const map = change(content.weight_map) ?? content.weight_map;
      writeFileSync(join(dir, index), JSON.stringify({ ...content, weight_map: map }));
      return dir;
    };

    it('the good one loads', async () => {
      await (await Model.load(sharded)).close();
    });

    it('a shard that is missing', async () => {
      const dir = withMap((map) => {
        map['model.norm.weight'] = 'model-00009-of-00009.safetensors';
      });
      await expectRefused(dir, join(dir, 'model-00009-of-00009.safetensors'), 'cannot be read');
    });

    it('a tensor that its shard does not hold', async () => {
      const dir = withMap((map) => {
        map['model.layers.7.mlp.up_proj.weight'] = map['model.norm.weight'];
      });
      await expectRefused(
        dir,
        join(dir, index),
        'model.layers.7.mlp.up_proj.weight',
        /model-\d{5}-of-\d{5}\.safetensors/,
      );
    });

    it.each(['../source/model.safetensors', '/etc/passwd', '..', '.', 'shards/one.safetensors', ''])(
      'a shard outside the directory: %j',
      async (name) => {
        const dir = withMap((map) => {
          map['model.norm.weight'] = name;
        });
        await expectRefused(dir, join(dir, index), 'outside its directory', name);
      },
    );

    it.each([7, null, ['a']])('a shard named %j', async (name) => {
      const dir = withMap((map) => {
        map['model.norm.weight'] = name;
      });
      await expectRefused(dir, join(dir, index), 'model.norm.weight');
    });

    it('a shard that is truncated', async () => {
      const dir = withMap(() => undefined);
      const shard = readdirSync(dir).find((name) => name.startsWith('model-00002'))!;
      writeFileSync(join(dir, shard), readFileSync(join(dir, shard)).subarray(0, -4));
      await expectRefused(dir, join(dir, shard), 'truncated or corrupt');
    });

    it.each(['{', '{}', '{"weight_map":null}', '{"weight_map":7}', 'null'])('an index of %s', async (text) => {
      const dir = withMap(() => undefined);
      writeFileSync(join(dir, index), text);
      await expectRefused(dir, join(dir, index), 'not a valid index');
    });
  });

  it('frozen keeps its weights alone, computes the same and is not trained', async () => {
    const dir = fresh();
    await using trained = await Model.create({ ...TINY, vocab_size: 5000 }, { dtype: 'bfloat16' });
    await trained.save(dir);
    await collect();
    const { current } = trained.memory();
    await using frozen = await Model.load(dir, { dtype: 'bfloat16', frozen: true });
    const held = frozen.memory().current - current;
    expect(held / (2 * parameterCount(frozen.config))).toBeCloseTo(1, 1);
    const problem = await problemOf(trained, rowsOf(), WRPO, randomOf(3));
    const batch = batchOf(problem);
    expect(await frozen.logProbs(batch)).toEqual(await trained.logProbs(batch));

    const accumulate = () => frozen.accumulate(batch, { objective: formOf(WRPO), normalizer: 2 });
    const optimizer = () => new AdamW(frozen, { learningRate: 1 });
    for (const act of [accumulate, optimizer, () => frozen.gradients()]) {
      await expectSentence(
        act,
        'ERR_CONFIG',
        /^the model was loaded frozen.*load it without `frozen`, or add adapters/,
      );
    }
    const trainer = new Trainer({ model: frozen, trainDataset: tokenRows(2, 1), args: { outputDir: fresh() } });
    await expectSentence(() => trainer.train(), 'ERR_CONFIG', /^the model was loaded frozen: .*use_peft/);
    await frozen.addAdapters({ r: 2 });
    await accumulate();
    await frozen.mergeAdapters();
    expect(frozen.frozen).toBe(false);
    await accumulate();
  });

  it('leaves nothing allocated behind', async () => {
    await using model = await tinyModel();
    await collect();
    const { current } = model.memory();
    const dir = withConfig({ vocab_size: 62 });
    for (let i = 0; i < 5; i++) await expectRefused(dir, 'model.embed_tokens.weight');
    await collect();
    expect(model.memory().current).toBe(current);
  });
});

describe('configurations', () => {
  const v4 = { ...TINY, rope_theta: 5000, rope_scaling: { type: 'linear', factor: 2 } };

  it('in the spellings of transformers 4 and 5', () => {
    const v5 = { ...TINY, rope_parameters: { rope_type: 'linear', rope_theta: 5000, factor: 2 } };
    const { huggingFace: _, ...four } = parseModelConfig(v4);
    const { huggingFace: __, ...five } = parseModelConfig(v5);
    expect(five).toEqual(four);
    expect(four.rope).toMatchObject({ type: 'linear', theta: 5000, factor: 2 });
  });

  it('defaults are those of transformers', () => {
    const { model_type, vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads } = TINY;
    const least = { model_type, vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads };
    expect(parseModelConfig({ ...least, hidden_size: 24, rope_scaling: null, head_dim: null })).toMatchObject({
      kvHeads: 4,
      headDim: 6,
      maxPositions: 2048,
      rmsNormEps: 1e-6,
      initializerRange: 0.02,
      tieWordEmbeddings: false,
      rope: { type: 'default', theta: 10000, factor: 1 },
    });
  });

  it('both spellings give the same log-probs, bit for bit', async () => {
    const batch = packRows(
      [quadruple(randomOf(1), 30, [40, 9, 50], 199), quadruple(randomOf(2), 3, [4, 5, 6], 199)],
      PREFERENCE_ROLES,
    );
    const results: Float64Array[] = [];
    for (const spelling of ['config.json', 'config.v4.json']) {
      const dir = fresh();
      mkdirSync(dir);
      copyFileSync(join(LLAMA, 'policy', spelling), join(dir, 'config.json'));
      copyFileSync(join(LLAMA, 'policy', 'model.safetensors'), join(dir, 'model.safetensors'));
      await using model = await Model.load(dir);
      results.push((await model.logProbs(batch, { perToken: true })).perToken!);
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[0]!.length).toBe(40 + 9 + 50 + 4 + 5 + 6);
  });

  it('a device or dtype that does not exist', async () => {
    await expectSentence(() => Model.create(TINY, { device: 'cuda' }), 'ERR_DEVICE', '"cuda"');
    for (const dtype of ['int8', 'float16', 'int32']) {
      await expectSentence(() => Model.create(TINY, { dtype: dtype as 'float32' }), 'ERR_CONFIG', 'float32, float64');
    }
  });
});

describe('batches', () => {
  let model: Model;
  let good: Batch;

  beforeAll(async () => {
    model = await tinyModel();
    good = withContests(packRows(rowsOf(), PREFERENCE_ROLES), contestsOf(WRPO));
  });
  afterAll(() => model.close());

  const objective = formOf(WRPO);
  const run = (batch: Batch) => model.accumulate(batch, { objective, normalizer: 2 });
  const replaced = <T extends Int32Array | Float64Array>(values: T, index: number, value: number): T => {
    const copy = values.slice() as T;
    copy[index < 0 ? copy.length + index : index] = value;
    return copy;
  };

  type Change = (batch: Batch) => Partial<Batch>;
  it.each<[string, Change, ...(string | RegExp)[]]>([
    [
      'a token beyond the vocabulary',
      (b) => ({ tokens: replaced(b.tokens, 2, 61) }),
      'token id 61',
      'position 2',
      '61 tokens',
    ],
    ['a negative token', (b) => ({ tokens: replaced(b.tokens, 0, -1) }), 'token id -1', 'position 0'],
    ['a target beyond the vocabulary', (b) => ({ targets: replaced(b.targets, 1, 400) }), 'target id 400', '61 tokens'],
    ['a target below -1', (b) => ({ targets: replaced(b.targets, 1, -2) }), 'target id -2'],
    ['a negative position', (b) => ({ positions: replaced(b.positions, 3, -5) }), 'position -5'],
    ['a huge position', (b) => ({ positions: replaced(b.positions, 3, 2 ** 30) }), 'position 1073741824'],
    ['too few tokens', (b) => ({ tokens: b.tokens.subarray(1) }), /tokens has \d+ entries/],
    ['too few positions', (b) => ({ positions: b.positions.subarray(1) }), 'positions and tokens'],
    ['too few targets', (b) => ({ targets: b.targets.subarray(1) }), 'responseOffsets must rise from 0 to'],
    [
      'response offsets that fall',
      (b) => ({ responseOffsets: replaced(b.responseOffsets, 1, 12) }),
      'responseOffsets must rise',
    ],
    [
      'response offsets not from 0',
      (b) => ({ responseOffsets: replaced(b.responseOffsets, 0, 1) }),
      'responseOffsets must rise',
    ],
    [
      'a negative response offset',
      (b) => ({ responseOffsets: replaced(b.responseOffsets, 1, -1) }),
      'responseOffsets must rise',
    ],
    [
      'prompt offsets that fall',
      (b) => ({ promptOffsets: replaced(b.promptOffsets, 1, 99) }),
      'promptOffsets must rise',
    ],
    [
      'prompt offsets beyond the tokens',
      (b) => ({ promptOffsets: replaced(b.promptOffsets, -1, 1000) }),
      /tokens has \d+ entries/,
    ],
    [
      'group offsets beyond the responses',
      (b) => ({ groupOffsets: replaced(b.groupOffsets, -1, 7) }),
      'groupOffsets must rise from 0 to 6',
    ],
    ['a prompt without group', () => ({ groupOffsets: Int32Array.of(0, 6) }), 'groupOffsets and promptOffsets'],
    ['no response offsets', () => ({ responseOffsets: new Int32Array() }), 'promptOffsets and responseOffsets'],
    ['no tokens', () => ({ tokens: undefined }), 'at least one token'],
    ['tokens of another type', (b) => ({ tokens: [...b.tokens] as unknown as Int32Array }), 'Int32Array for tokens'],
    [
      'references of another type',
      () => ({ reference: new Float32Array(6) as unknown as Float64Array }),
      'Float64Array for reference',
    ],
    ['too few references', () => ({ reference: new Float64Array(5) }), 'expected 6, received 5'],
    [
      "a contest naming another prompt's response",
      (b) => ({ contestResponses: replaced(b.contestResponses!, 0, 4) }),
      'contest of prompt 0 names response 4',
      "another prompt's",
    ],
    [
      'a contest naming no response',
      (b) => ({ contestResponses: replaced(b.contestResponses!, -1, 6) }),
      'contest of prompt 1 names response 6',
    ],
    [
      'a contest naming a negative response',
      (b) => ({ contestResponses: replaced(b.contestResponses!, 0, -1) }),
      'names response -1',
    ],
    [
      'too few coefficients',
      (b) => ({ contestCoefficients: b.contestCoefficients!.subarray(1) }),
      'contestCoefficients and contestResponses',
    ],
    [
      'too few weights',
      (b) => ({ contestWeights: b.contestWeights!.subarray(1) }),
      /contestGroups must rise|contestOffsets/,
    ],
    [
      'contest offsets that fall',
      (b) => ({ contestOffsets: replaced(b.contestOffsets!, 1, 9) }),
      'contestOffsets must rise',
    ],
    ['contest offsets too short', (b) => ({ contestOffsets: b.contestOffsets!.subarray(1) }), 'contestOffsets'],
    [
      'contest groups that fall',
      (b) => ({ contestGroups: replaced(b.contestGroups!, 1, 5) }),
      'contestGroups must rise',
    ],
    ['no contests', () => ({ contestGroups: undefined }), 'needs contests'],
    [
      'a response that predicts nothing',
      (b) => ({ targets: b.targets.map((target, i) => (i < 4 ? -1 : target)) }),
      'response 0',
      'predicts no token',
    ],
  ])('%s', async (_, change, ...parts) => {
    const before = await model.fingerprint();
    const bad = { ...good, ...change(good) };
    const code = parts.some((part) => String(part).includes('Array for')) ? 'ERR_CONFIG' : 'ERR_DATA';
    await expectSentence(() => run(bad), code, ...parts);
    expect(await model.fingerprint()).toBe(before);
    expect((await run(good)).counts).toEqual(Int32Array.of(4, 7, 5, 3, 1, 2));
  });

  it('nothing at all', async () => {
    await expectSentence(() => model.logProbs(undefined as unknown as Batch), 'ERR_CONFIG', 'expected a packed batch');
    await expectSentence(() => model.logProbs({} as unknown as Batch), 'ERR_DATA', 'at least one token');
    const empty = packRows([], PREFERENCE_ROLES);
    await expectSentence(() => model.logProbs(empty), 'ERR_DATA', 'at least one token');
  });

  it('prompts without responses, and responses without tokens, count nothing', async () => {
    const tokens = Int32Array.of(1, 2, 3, 4, 5);
    const positions = Int32Array.of(0, 1, 2, 3, 4);
    const bare = { tokens, positions, targets: new Int32Array(), promptOffsets: Int32Array.of(0, 3, 5) };
    const none = { ...bare, responseOffsets: Int32Array.of(0), groupOffsets: Int32Array.of(0, 0, 0) };
    expect(await model.logProbs(none)).toEqual({ sums: new Float64Array(), counts: new Int32Array() });
    const one = { tokens, positions, targets: Int32Array.of(7, 8), promptOffsets: Int32Array.of(0, 3) };
    const offsets = { responseOffsets: Int32Array.of(0, 0, 2, 2), groupOffsets: Int32Array.of(0, 3) };
    const { sums, counts } = await model.logProbs({ ...one, ...offsets });
    const alone = { responseOffsets: Int32Array.of(0, 2), groupOffsets: Int32Array.of(0, 1) };
    expect([...counts]).toEqual([0, 2, 0]);
    expect([...sums]).toEqual([0, (await model.logProbs({ ...one, ...alone })).sums[0], 0]);
  });

  it('an objective that is none', async () => {
    const normalizer = 1;
    const other = { ...objective, form: 'hinge' as 'ipo' };
    await expectSentence(() => model.accumulate(good, { objective: other, normalizer }), 'ERR_CONFIG', '"hinge"');
    await expectSentence(() => model.accumulate(good, { objective, normalizer: 0 }), 'ERR_CONFIG', 'normalizer');
    const { beta: _, ...rest } = objective;
    await expectSentence(
      () => model.accumulate(good, { objective: rest as typeof objective, normalizer }),
      'ERR_CONFIG',
      'number for beta',
    );
  });

  it('a loss that is not finite', async () => {
    await expectSentence(
      () => run({ ...good, reference: new Float64Array(6).fill(Number.NaN) }),
      'ERR_NON_FINITE',
      'nan',
    );
    await model.zeroGradients();
  });

  it('rows that cannot be packed', async () => {
    const random = randomOf(1);
    const pack = (prompt: number, lengths: object) => () =>
      packRows([{ ...randomRow(random, prompt, lengths), where: 'rows.jsonl line 3' }], ['target_chosen', 'rejected']);
    const both = { target_chosen: 3, rejected: 2 };
    await expectSentence(pack(0, both), 'ERR_DATA', 'rows.jsonl line 3', 'prompt');
    await expectSentence(pack(4, { ...both, rejected: 0 }), 'ERR_DATA', 'rows.jsonl line 3', 'rejected');
    await expectSentence(pack(4, { target_chosen: 3 }), 'ERR_DATA', 'rows.jsonl line 3', 'rejected');
  });
});

describe('a model', () => {
  it('is refused once closed', async () => {
    const model = await tinyModel();
    const optimizer = new AdamW(model, { learningRate: 1e-3 });
    const batch = packRows(rowsOf(), PREFERENCE_ROLES);
    const queued = model.logProbs(batch);
    const closed = model.close();
    // What was queued before still ends well.
    expect((await queued).sums.length).toBe(6);
    await closed;
    for (const act of [
      () => model.logProbs(batch),
      () => model.parameters(),
      () => model.gradients(),
      () => model.zeroGradients(),
      () => model.syncWork(),
      () => model.fingerprint(),
      () => model.save(fresh()),
      () => new AdamW(model, { learningRate: 1 }),
    ]) {
      await expectSentence(act, 'ERR_CLOSED', 'the model was closed');
    }
    await model.close();
    await optimizer.close();
    await expectSentence(() => optimizer.step(), 'ERR_CLOSED', 'optimizer was closed');
  });

  it('gives its memory back', async () => {
    await using other = await tinyModel();
    await collect();
    const { current } = other.memory();
    const model = await tinyModel({ vocab_size: 1000 });
    const random = randomOf(1);
    await gradientsOf(model, await problemOf(model, rowsOf(), WRPO, random));
    expect(other.memory().current).toBeGreaterThan(current + 100_000);
    await model.close();
    await collect();
    expect(other.memory().current).toBe(current);
  });

  it('shows no parameters while calls are queued', async () => {
    await using model = await tinyModel();
    const queued = model.logProbs(packRows(rowsOf(), PREFERENCE_ROLES));
    await expectSentence(() => model.parameters(), 'ERR_CLOSED', 'parameters()', 'queued');
    await expectSentence(() => model.gradients(), 'ERR_CLOSED', 'gradients()', 'queued');
    await queued;
    expect(model.parameters().size).toBe(21);
  });

  it('loads and saves while others compute', async () => {
    await using model = await tinyModel();
    const [first, second] = [fresh(), fresh()];
    const busy = model.logProbs(packRows(rowsOf(), PREFERENCE_ROLES));
    await Promise.all([busy, model.save(first), model.save(second, { maxShardBytes: 4000 })]);
    const models = await Promise.all([Model.load(first), Model.load(second)]);
    const prints = await Promise.all([model, ...models].map((each) => each.fingerprint()));
    expect(new Set(prints).size).toBe(1);
    await Promise.all(models.map((each) => each.close()));
  });

  it('starts from the same weights for the same seed', async () => {
    const print = async (seed?: number) => {
      await using model = await Model.create(TINY, { seed });
      return model.fingerprint();
    };
    expect(await print()).toBe(await print(42));
    expect(await print(1)).not.toBe(await print(2));
    await using model = await Model.create(TINY);
    for (const [name, values] of copies(model.parameters())) {
      if (name.includes('norm')) expect(values.every((value) => value === 1)).toBe(true);
      else {
        const deviation = Math.hypot(...values) / Math.sqrt(values.length);
        expect(Math.abs(deviation / TINY.initializer_range - 1)).toBeLessThan(4 / Math.sqrt(2 * values.length));
      }
    }
  });

  it('keeps bfloat16 as rounded float32', async () => {
    await using model = await tinyModel({}, { dtype: 'bfloat16' });
    const masters = model.parameters({ master: true });
    for (const [name, tensor] of model.parameters()) {
      expect(tensor.dtype).toBe('bfloat16');
      const master = masters.get(name)!;
      expect(master.dtype).toBe('float32');
      const rounded = Uint16Array.from(master.view() as Float32Array, numberToBfloat16);
      expect(tensor.toHost()).toEqual(rounded);
    }
    // Written by hand, then rounded again.
    (masters.get('model.norm.weight')!.view() as Float32Array)[3] = 0.1;
    await model.syncWork();
    expect((model.parameters().get('model.norm.weight')!.view() as Uint16Array)[3]).toBe(numberToBfloat16(0.1));
    expect([...model.gradients().values()].every(({ dtype }) => dtype === 'float32')).toBe(true);
  });
});

describe('saving', () => {
  const batch = packRows(rowsOf(), PREFERENCE_ROLES);
  const logps = async (model: Model) => (await model.logProbs(batch, { perToken: true })).perToken!;

  describe.each([
    ['tied embeddings', { tie_word_embeddings: true }],
    ['a head of its own', {}],
  ])('%s', (_, config) => {
    it.each([
      ['float32', 'float32', undefined],
      ['float32', 'float32', 3000],
      ['float64', 'float64', undefined],
      ['bfloat16', 'float32', 5000],
      ['bfloat16', 'bfloat16', undefined],
      ['bfloat16', 'bfloat16', 3000],
    ] as const)('a %s model as %s, shards of %s', async (dtype, storedAs, maxShardBytes) => {
      const dir = fresh();
      await using model = await tinyModel(config, { dtype });
      await model.save(dir, { dtype: storedAs, maxShardBytes });

      const files = readdirSync(dir).sort();
      const shards = files.filter((name) => name.endsWith('.safetensors'));
      if (maxShardBytes === undefined) expect(files).toEqual(['config.json', 'model.safetensors']);
      else {
        expect(shards.length).toBeGreaterThan(2);
        const names = shards.map((_, i) => `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`);
        expect(files).toEqual(['config.json', ...names, 'model.safetensors.index.json']);
        const { metadata, weight_map } = readJson(join(dir, 'model.safetensors.index.json'));
        const held = names.flatMap((name) => [...readValues(join(dir, name)).keys()].map((tensor) => [tensor, name]));
        expect(weight_map).toEqual(Object.fromEntries(held));
        const bytes = names.map((name) => splitFile(join(dir, name)).data.length);
        expect(metadata.total_size).toBe(bytes.reduce((a, b) => a + b));
        // Only a tensor larger than the limit makes a larger shard, and then alone.
        for (const [i, name] of names.entries()) {
          expect(bytes[i]! <= maxShardBytes || readValues(join(dir, name)).size === 1).toBe(true);
        }
      }
      const names = shards.flatMap((name) => [...readValues(join(dir, name)).keys()]);
      expect(names.sort()).toEqual([...model.parameters().keys()].sort());
      expect(names.includes('lm_head.weight')).toBe(!('tie_word_embeddings' in config));
      expect(readJson(join(dir, 'config.json'))).toMatchObject({ ...TINY, ...config, dtype: storedAs });

      await using again = await Model.load(dir, { dtype });
      expect(await logps(again)).toEqual(await logps(model));
      if (dtype !== 'bfloat16' || storedAs === 'float32')
        expect(await again.fingerprint()).toBe(await model.fingerprint());
    });
  });

  const number = (n: number) => String(n).padStart(5, '0');

  it('bfloat16 rounds to the nearest, and loads into float32 exactly', async () => {
    const dir = fresh();
    await using model = await tinyModel();
    await model.save(dir, { dtype: 'bfloat16' });
    const saved = readValues(join(dir, 'model.safetensors'));
    await using again = await Model.load(dir);
    const loaded = copies(again.parameters());
    for (const [name, values] of copies(model.parameters())) {
      const rounded = values.map((value) => bfloat16ToNumber(numberToBfloat16(value)));
      expect(saved.get(name)!.values).toEqual(rounded);
      expect(loaded.get(name)).toEqual(rounded);
    }
  });

  it('tensors that lie unaligned in their file load too', async () => {
    const dir = fresh();
    await using model = await tinyModel();
    await model.save(dir);
    const file = join(dir, 'model.safetensors');
    const { header, data } = splitFile(file);
    joinFile(file, `${JSON.stringify(header)} `.padEnd((JSON.stringify(header).length | 1) + 2), data);
    expect((readFileSync(file).length - data.length) % 4).not.toBe(0);
    await using again = await Model.load(dir);
    expect(await again.fingerprint()).toBe(await model.fingerprint());
  });

  it('removes the shards of the model that was there', async () => {
    const dir = fresh();
    await using model = await tinyModel();
    await model.save(dir, { maxShardBytes: 1 });
    expect(readdirSync(dir).length).toBe(21 + 2);
    writeFileSync(join(dir, 'tokenizer.json'), '{}');
    for (const maxShardBytes of [6000, undefined, 10000]) {
      await model.save(dir, { maxShardBytes });
      const shards = readdirSync(dir).filter((name) => name.endsWith('.safetensors'));
      const count = shards.length;
      if (count > 1) for (const shard of shards) expect(shard).toContain(`-of-${number(count)}.`);
      expect(existsSync(join(dir, 'model.safetensors.index.json'))).toBe(count > 1);
      await using again = await Model.load(dir);
      expect(await again.fingerprint()).toBe(await model.fingerprint());
    }
    expect(existsSync(join(dir, 'tokenizer.json'))).toBe(true);
  });

  it('keeps what it does not understand of the config, in its spelling', async () => {
    const dir = fresh();
    mkdirSync(dir);
    copyFileSync(join(LLAMA, 'policy', 'config.v4.json'), join(dir, 'config.json'));
    copyFileSync(join(LLAMA, 'policy', 'model.safetensors'), join(dir, 'model.safetensors'));
    const to = fresh();
    await using model = await Model.load(dir);
    await model.save(to, { dtype: 'bfloat16' });
    expect(readJson(join(to, 'config.json'))).toEqual({
      ...readJson(join(LLAMA, 'policy', 'config.v4.json')),
      torch_dtype: 'bfloat16',
    });
    const { huggingFace: _, ...before } = readModelConfig(dir);
    const { huggingFace: __, ...after } = readModelConfig(to);
    expect(after).toEqual(before);
  });

  it('is written a tensor at a time: what is converted takes memory for one', async () => {
    await using model = await tinyModel({ vocab_size: 700, num_hidden_layers: 4 });
    const largest = Math.max(...[...model.parameters().values()].map(({ shape }) => shape.reduce((a, b) => a * b)));
    const optimizer = new AdamW(model, { learningRate: 1e-3 });
    const dir = fresh();
    const taken = async (save: () => Promise<void>) => {
      const { current } = model.memory({ resetPeak: true });
      await save();
      return model.memory().peak - current;
    };
    expect(await taken(() => model.save(dir))).toBe(0);
    expect(await taken(() => optimizer.save(dir))).toBe(0);
    expect(await taken(() => model.save(dir, { dtype: 'bfloat16' }))).toBe(2 * largest);
    await optimizer.close();
  });

  it('says where it cannot write', async () => {
    await using model = await tinyModel();
    const file = scratch('a file');
    writeFileSync(file, '');
    await expectSentence(() => model.save(file), 'ERR_CHECKPOINT', file);
    await expectSentence(() => model.save(join(file, 'below')), 'ERR_CHECKPOINT', join(file, 'below'));
    await expectSentence(() => model.save(fresh(), { dtype: 'int8' as 'float32' }), 'ERR_CONFIG', 'int8');
  });

  // The model that is there takes 24 KB, the one that is to replace it 100 KB.
  const SMALL = { vocab_size: 40, num_hidden_layers: 1 };
  const LARGE = { vocab_size: 700 };

  async function expectUntouched(dir: string, before: Record<string, string>, small: Model): Promise<void> {
    expect(snapshot(dir)).toEqual(before);
    await using again = await Model.load(dir);
    expect(await again.fingerprint()).toBe(await small.fingerprint());
  }

  it.each([undefined, 20_000])('on a full disk leaves what was there, shards of %s', async (maxShardBytes) => {
    await using small = await tinyModel(SMALL);
    await using large = await tinyModel(LARGE);
    const disk = fresh();
    mkdirSync(disk);
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk]).status === 0;
    if (!mounted) return expectLimited(disk, small, maxShardBytes);
    try {
      const dir = join(disk, 'model');
      await small.save(dir);
      const before = snapshot(dir);
      await expectSentence(() => large.save(dir, { maxShardBytes }), 'ERR_CHECKPOINT', dir, /no space left/i);
      await expectUntouched(dir, before, small);
      await expectSentence(() => large.save(join(disk, 'new'), { maxShardBytes }), 'ERR_CHECKPOINT', /no space left/i);
      expect(filesBelow(join(disk, 'new'))).toEqual([]);
    } finally {
      spawnSync('umount', [disk]);
    }
  });

  it.each([undefined, 9000])(
    'whatever a full disk cuts off leaves what was there, shards of %s',
    async (maxShardBytes) => {
      const disk = fresh();
      mkdirSync(disk);
      // A config.json of two pages, of which the first may fit and the second not.
      const config = { ...SMALL, comment: '-'.repeat(5000) };
      await using model = await tinyModel(config);
      await using other = await tinyModel(config, { seed: 5 });
      const [page, pages] = [4096, 32];
      if (spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${page * pages}`, 'tmpfs', disk]).status !== 0) {
        return expectLimited(disk, model, maxShardBytes);
      }
      try {
        const dir = join(disk, 'model');
        await model.save(dir, { maxShardBytes });
        const before = snapshot(dir);
        const { bsize, blocks, bfree } = statfsSync(disk);
        expect([bsize, blocks]).toEqual([page, pages]);
        const needed = blocks - bfree;
        for (let free = 0; free < needed; free++) {
          writeFileSync(join(disk, 'filler'), Buffer.alloc(page * (pages - needed - free)));
          expect(statfsSync(disk).bfree).toBe(free);
          await expectSentence(() => other.save(dir, { maxShardBytes }), 'ERR_CHECKPOINT', dir, /no space left/i);
          await expectUntouched(dir, before, model);
        }
        writeFileSync(join(disk, 'filler'), Buffer.alloc(page * (pages - 2 * needed)));
        await other.save(dir, { maxShardBytes });
        expect(Object.keys(snapshot(dir))).toEqual(Object.keys(before));
        await using again = await Model.load(dir);
        expect(await again.fingerprint()).toBe(await other.fingerprint());
      } finally {
        spawnSync('umount', [disk]);
      }
    },
  );

  it('beyond the largest file allowed leaves what was there', async () => {
    await using small = await tinyModel(SMALL);
    const dir = fresh();
    mkdirSync(dir);
    await expectLimited(dir, small, undefined);
  });

  /** The same in a process that may write no file of more than 40 KB, which needs no privileges. */
  async function expectLimited(parent: string, small: Model, maxShardBytes: number | undefined): Promise<void> {
    const dir = join(parent, 'limited');
    await small.save(dir);
    const before = snapshot(dir);
    const file = join(parent, 'limited.mjs');
    const { status } = await script(file, 'console.log(1)');
    expect(status).toBe(0);
    const source = `
      const { Model } = wrpo;
      const model = await Model.create(${JSON.stringify({ ...TINY, ...LARGE })});
      const failure = await model.save(${JSON.stringify(dir)}, ${JSON.stringify({ maxShardBytes })}).catch((error) => error);
      console.log(JSON.stringify({ name: failure?.name, code: failure?.code, message: failure?.message }));`;
    writeFileSync(file, `${readFileSync(file, 'utf8').split('\n')[0]}\n${source}`);
    const { stdout, stderr } = spawnSync('bash', ['-c', 'ulimit -f 40; exec "$0" "$1"', process.execPath, file], {
      encoding: 'utf8',
    });
    expect(stdout, stderr).not.toBe('');
    const failure = JSON.parse(stdout);
    expect(failure).toMatchObject({ name: 'WrpoError', code: 'ERR_CHECKPOINT' });
    expect(failure.message).toContain(dir);
    expect(failure.message).toMatch(/file too large/i);
    await expectUntouched(dir, before, small);
  }
});

describe('Tensor', () => {
  const arrays: [Dtype, TensorData][] = [
    ['float32', Float32Array.of(1.5, -2, 3)],
    ['float64', Float64Array.of(Math.PI, -2, 3)],
    ['int32', Int32Array.of(1, -2, 2 ** 31 - 1)],
    ['int64', BigInt64Array.of(1n, -2n, 2n ** 62n)],
    ['uint8', Uint8Array.of(1, 2, 255)],
    ['bfloat16', Uint16Array.of(0x3f80, 0xc000, 1)],
    ['float16', Uint16Array.of(0x3c00, 0xc000, 1)],
  ];

  it.each(arrays)('of %s', (dtype, data) => {
    const tensor = Tensor.from(data, [3, 1], { dtype });
    expect([tensor.shape, tensor.dtype, tensor.device]).toEqual([[3, 1], dtype, 'cpu']);
    expect(tensor.view()).toEqual(data);
    expect(tensor.toHost()).toEqual(data);
    // A copy, at both ends.
    data[0] = data[1]!;
    expect(tensor.view()[0]).not.toBe(data[0]);
    const host = tensor.toHost();
    host[2] = host[1]!;
    expect(tensor.view()[2]).not.toBe(host[2]);
    expect(tensor.to('cpu')).toBe(tensor);
    expect(Tensor.empty([2, 3], { dtype }).view()).toHaveLength(6);
  });

  it('views its own memory, the same for every view', () => {
    const tensor = Tensor.empty([4, 2]);
    const [a, b] = [tensor.view() as Float32Array, tensor.view() as Float32Array];
    expect(b).not.toBe(a);
    expect(b.buffer).toBe(a.buffer);
    a.fill(7);
    a[3] = 0.5;
    expect([...b]).toEqual([7, 7, 7, 0.5, 7, 7, 7, 7]);
    expect([...(tensor.toHost() as Float32Array)]).toEqual([...b]);
  });

  it('shows all parameters of a model in one buffer', async () => {
    await using model = await tinyModel();
    const buffers = new Set([...model.parameters().values()].map((tensor) => tensor.view().buffer));
    expect(buffers.size).toBe(1);
    const [first] = model.parameters().values();
    (first!.view() as Float32Array)[0] = 123;
    const [again] = model.parameters({ master: true }).values();
    expect((again!.view() as Float32Array)[0]).toBe(123);
  });

  it('may be empty, or have no dimensions', () => {
    expect(Tensor.empty([0, 3]).view()).toHaveLength(0);
    expect(Tensor.from(new Float32Array(), [0]).toHost()).toHaveLength(0);
    expect(Tensor.from(Float32Array.of(5), []).shape).toEqual([]);
  });

  it('takes the part of a buffer that a typed array shows', () => {
    const all = Float32Array.of(1, 2, 3, 4);
    expect([...(Tensor.from(all.subarray(1, 3), [2]).view() as Float32Array)]).toEqual([2, 3]);
  });

  it('disposed, lets go of its memory but for the views there are', async () => {
    await using model = await tinyModel();
    const bytes = 1 << 20;
    await collect();
    const { current } = model.memory();
    const [seen, unseen] = [Tensor.empty([bytes / 4]), Tensor.empty([bytes / 4])];
    const view = seen.view() as Float32Array;
    view.fill(3);
    expect(model.memory().current).toBe(current + 2 * bytes);
    unseen.dispose();
    seen.dispose();
    expect(model.memory().current).toBe(current + bytes);
    await collect();
    expect(view[bytes / 4 - 1]).toBe(3);
    const refusal = expect.objectContaining({
      name: 'WrpoError',
      code: 'ERR_CLOSED',
      message: 'this Tensor was disposed',
    });
    for (const act of [() => seen.view(), () => seen.toHost(), () => seen.shape, () => seen.dtype]) {
      expect(act).toThrow(refusal);
    }
    seen.dispose();
  });

  it('is collected with its views', async () => {
    await using model = await tinyModel();
    await collect();
    const { current } = model.memory();
    const use = () => {
      const tensor = Tensor.empty([1 << 18]);
      return tensor.view().length + Tensor.empty([1 << 18]).shape.length;
    };
    for (let i = 0; i < 5; i++) use();
    expect(model.memory().current).toBeGreaterThan(current);
    await collect();
    expect(model.memory().current).toBe(current);
  });

  it('a view outlives its tensor and its model', async () => {
    const model = await tinyModel();
    const view = model.parameters().get('model.norm.weight')!.view() as Float32Array;
    const before = [...view];
    await model.close();
    await collect();
    expect([...view]).toEqual(before);
  });

  it('many tensors nobody keeps do not fill the memory', async () => {
    await using model = await tinyModel();
    await collect();
    const { current } = model.memory({ resetPeak: true });
    for (let i = 0; i < 400; i++) {
      Tensor.empty([1 << 20]); // 4 MB, never touched
      if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(model.memory().peak - current).toBeLessThan(1 << 30);
  });

  it('refuses what it cannot be', async () => {
    const cases: [() => unknown, 'ERR_CONFIG' | 'ERR_DEVICE' | 'ERR_OUT_OF_MEMORY', string | RegExp][] = [
      [() => Tensor.from(Float32Array.of(1, 2), [3]), 'ERR_CONFIG', 'the shape holds 3 values, the array has 2'],
      [() => Tensor.from(Uint16Array.of(1), [1]), 'ERR_CONFIG', 'Uint16Array with dtype "bfloat16"'],
      [() => Tensor.from(Float32Array.of(1), [1], { dtype: 'int32' }), 'ERR_CONFIG', 'dtype int32 does not match'],
      [() => Tensor.from([1, 2] as unknown as Float32Array, [2]), 'ERR_CONFIG', 'expected a typed array'],
      [() => Tensor.from(new Uint32Array(1) as unknown as Float32Array, [1]), 'ERR_CONFIG', 'expected a Float32Array'],
      [() => Tensor.empty([2, -1]), 'ERR_CONFIG', 'shape must be an array of whole numbers'],
      [() => Tensor.empty([0.5]), 'ERR_CONFIG', 'shape must be'],
      [() => Tensor.empty(3 as unknown as number[]), 'ERR_CONFIG', 'shape must be'],
      [() => Tensor.empty([2], { dtype: 'complex' as Dtype }), 'ERR_CONFIG', '"complex"'],
      [() => Tensor.empty([2], { device: 'cuda' }), 'ERR_DEVICE', '"cuda"'],
      [() => Tensor.empty([2 ** 50]), 'ERR_OUT_OF_MEMORY', /memory/],
    ];
    for (const [act, code, message] of cases) await expectSentence(act, code, message);
    expect(() => Tensor.empty([2]).to('cuda' as 'cpu')).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }));
  });
});
