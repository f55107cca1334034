/** Layers that are computed again in backward: the same bits, in the memory that was forecast. */
import { afterEach, describe, expect, it } from 'vitest';
import { parseModelConfig } from '../lib/model/config.ts';
import { Model, type ModelOptions } from '../lib/model/model.ts';
import type { AccumulateOptions, ComputeDtype } from '../lib/native/addon.ts';
import { AdamW } from '../lib/train/adamw.ts';
import { resolveArgs } from '../lib/train/args.ts';
import { forecast, parameterCount } from '../lib/train/memory-plan.ts';
import { formOf, type Objective } from '../lib/train/objective.ts';
import { describePeak, describePlan, planRun } from '../lib/train/run-memory.ts';
import { Trainer } from '../lib/train/trainer.ts';
import {
  batchOf,
  copies,
  expectSentence,
  FAMILY_CONFIGS,
  PREFERENCE_ROLES,
  type Problem,
  problemOf,
  quadruple,
  randomOf,
  tinyModel,
} from './support.ts';
import { readJsonLines, scratchDirectory, tokenRows, trainingOn } from './training.ts';

const WRPO: Objective = { lossType: 'wrpo', beta: 0.1, alpha: 0.3 };
const LAYERS = 4;
const rowsOf = (random: () => number) => [quadruple(random, 7, [5, 6, 4]), quadruple(random, 9, [3, 8, 5])];

/** Losses, gradients and weights of three steps of a fresh model. */
async function threeSteps(
  config: object,
  { lora, dtype }: ModelOptions,
  how: Pick<AccumulateOptions, 'keptLayers' | 'dropout'>,
  sharePrompt: boolean,
) {
  await using model = await tinyModel({ num_hidden_layers: LAYERS, ...config }, { seed: 3, dtype });
  if (lora) await model.addAdapters(lora);
  const problem = await problemOf(model, rowsOf(randomOf(5)), WRPO, randomOf(6));
  const optimizer = new AdamW(model, { learningRate: 0.03, totalSteps: 3, schedule: 'constant' });
  const batch = batchOf(problem, undefined, { sharePrompt });
  const { normalizer } = problem;
  const steps = [];
  for (let step = 0; step < 3; step++) {
    const results = await model.accumulate(batch, { ...how, objective: formOf(WRPO), normalizer });
    steps.push({ results, gradients: copies(model.gradients()), step: await optimizer.step() });
  }
  await optimizer.close();
  return { steps, weights: await model.fingerprint() };
}

const LORA = { lora: { targetModules: 'all-linear', r: 3, loraDropout: 0.3 } };
const DROPOUT = { dropout: { seed: 1, step: 2, firstRow: 0 } };

describe.each<[string, object, ModelOptions, Pick<AccumulateOptions, 'dropout'>?]>([
  ['llama', {}, {}],
  ['llama in bfloat16', {}, { dtype: 'bfloat16' }],
  ['llama in float64', {}, { dtype: 'float64' }],
  ['llama with adapters that drop inputs', {}, LORA, DROPOUT],
  ['qwen2, which has biases and windows', FAMILY_CONFIGS.qwen2, {}],
  ['qwen3, which has norms of heads', FAMILY_CONFIGS.qwen3, {}],
  ['qwen3 with adapters in bfloat16', FAMILY_CONFIGS.qwen3, { ...LORA, dtype: 'bfloat16' }, DROPOUT],
  ['gemma2, which has norms of branches and soft caps', FAMILY_CONFIGS.gemma2, {}],
  ['gemma2 in bfloat16', FAMILY_CONFIGS.gemma2, { dtype: 'bfloat16' }],
  ['gemma3, which has two rotations', FAMILY_CONFIGS.gemma3, {}],
])('%s', (_, config, options, how) => {
  it.each([true, false])(
    'steps are the same to the bit however many layers are kept (shared prompts: %s)',
    async (sharePrompt) => {
      const all = await threeSteps(config, options, { ...how }, sharePrompt);
      expect(all.steps[2]!.gradients).not.toEqual(all.steps[0]!.gradients);
      for (const keptLayers of [1, 2, LAYERS - 1, LAYERS, LAYERS + 7]) {
        expect(await threeSteps(config, options, { ...how, keptLayers }, sharePrompt)).toEqual(all);
      }
    },
  );
});

it('must be a number of layers', async () => {
  await using model = await tinyModel();
  const problem = await problemOf(model, rowsOf(randomOf(5)), WRPO, randomOf(6));
  for (const keptLayers of [0, -1, 1.5, Number.NaN]) {
    await expectSentence(
      () => model.accumulate(batchOf(problem), { objective: formOf(WRPO), normalizer: 1, keptLayers }),
      'ERR_CONFIG',
      'keptLayers must be a positive whole number',
    );
  }
});

describe('the memory of a forward and backward', () => {
  // Many short rows of narrow layers: little to compute, and tensors so large that each has a slab of its own.
  const SHAPE = {
    ...{ vocab_size: 64, hidden_size: 128, intermediate_size: 384, num_hidden_layers: LAYERS },
    ...{ num_attention_heads: 4, num_key_value_heads: 2, head_dim: 32, max_position_embeddings: 4096 },
  };
  const WIDE = { hidden_size: 256, intermediate_size: 600, head_dim: 64 };
  /** Bytes that the engine allocates for one micro-batch of `count` rows, and those of the plan for it. */
  async function measured(
    count: number,
    keptLayers: number,
    { config = {}, dtype = 'float32' as ComputeDtype, sharePrompt = true },
  ) {
    await using model = await Model.create({ model_type: 'llama', ...SHAPE, ...config }, { dtype });
    const random = randomOf(1);
    const rows = Array.from({ length: count }, () => quadruple(random, sharePrompt ? 30 : 1, [100, 110, 90], 64));
    const problem: Problem = { rows, objective: WRPO, reference: new Float64Array(3 * count), normalizer: count };
    const packed = batchOf(problem, undefined, { sharePrompt });
    // Gradients are states, and made when they are first asked for.
    for (const gradient of model.gradients().values()) gradient.dispose();
    const { current } = model.memory({ resetPeak: true });
    await model.accumulate(packed, { objective: formOf(WRPO), normalizer: count, keptLayers });
    const used = model.memory().peak - current;
    const options = { dtype, device: 'cpu', sharePrompt } as const;
    const of = (available: number) => forecast(model.config, packed.tokens.length, available, options);
    const each = (of(Number.POSITIVE_INFINITY).total - of(0).total) / (LAYERS - 1);
    const plan = of(of(0).total + (keptLayers - 1) * each);
    expect(plan.keptLayers).toBe(keptLayers);
    return { used, planned: plan.activations + plan.workspace };
  }

  it.each<[string, object, ComputeDtype, boolean]>([
    ['llama', {}, 'float32', true],
    ['llama, prompts not shared', {}, 'float32', false],
    ['qwen3, many words', { ...FAMILY_CONFIGS.qwen3, vocab_size: 2048 }, 'float32', true],
    ['llama', WIDE, 'bfloat16', true],
  ])('that a reference computes is as forecast: %s', async (_, config, dtype, sharePrompt) => {
    await using model = await Model.create({ model_type: 'llama', ...SHAPE, ...config }, { dtype, frozen: true });
    const rows = Array.from({ length: 100 }, () => quadruple(randomOf(1), sharePrompt ? 30 : 1, [100, 110, 90], 64));
    const packed = batchOf({ rows, objective: WRPO, reference: new Float64Array(300), normalizer: 1 }, undefined, {
      sharePrompt,
    });
    const { current } = model.memory({ resetPeak: true });
    await model.logProbs(packed);
    const options = { dtype, device: 'cpu', sharePrompt, residentReference: true } as const;
    const { reference } = forecast(model.config, packed.tokens.length, 0, options);
    const weights = { float32: 4, bfloat16: 2, float64: 8 }[dtype] * parameterCount(model.config);
    expect((model.memory().peak - current) / (reference - weights)).toBeGreaterThan(0.95);
    expect((model.memory().peak - current) / (reference - weights)).toBeLessThan(1.05);
  });

  it.each<[number, number, Parameters<typeof measured>[2]]>([
    [100, LAYERS, {}],
    [100, 1, {}],
    [110, 3, { config: { num_key_value_heads: 4, intermediate_size: 300 }, sharePrompt: false }],
    [100, 2, { config: FAMILY_CONFIGS.qwen3 }],
    // More logits than one layer's scratch.
    [100, 1, { config: { vocab_size: 2048 } }],
    // Its soft caps are computed in blocks on every processor.
    [
      100,
      2,
      {
        dtype: 'bfloat16',
        config: { ...WIDE, ...FAMILY_CONFIGS.gemma2, query_pre_attn_scalar: 64, sliding_window: 4096 },
      },
    ],
  ])('of %d rows with %d layers kept is as forecast, %j', async (rows, kept, how) => {
    const { used, planned } = await measured(rows, kept, how);
    expect(used / planned).toBeGreaterThan(0.95);
    expect(used / planned).toBeLessThan(1.05);
  });
});

describe('a run', () => {
  const path = scratchDirectory('recomputation');
  const rows = tokenRows(12, 7);
  const train = trainingOn(rows, rows.slice(0, 2), {
    ...{ learningRate: 1e-3, loggingSteps: 1, disableTqdm: true, perDeviceTrainBatchSize: 2 },
    gradientAccumulationSteps: 2,
  });

  it('is the same whatever gradientCheckpointing says', async () => {
    const results = [];
    for (const gradientCheckpointing of [false, true, 'auto'] as const) {
      const dir = path(String(gradientCheckpointing));
      await train(dir, { gradientCheckpointing });
      const lines = readJsonLines(`${dir}/metrics.jsonl`);
      results.push(lines.map(({ loss, grad_norm, eval_loss }) => ({ loss, grad_norm, eval_loss })));
    }
    expect(results[0]!.length).toBeGreaterThan(2);
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  const GIB = 2 ** 30;
  let model: Model | undefined;
  afterEach(() => model?.close());
  const planOf = async (free: number, changes: object = {}, options: ModelOptions = {}, refModel?: Model) => {
    await model?.close();
    model = await Model.create({ ...BIG, model_type: 'llama' }, options);
    const rows = [quadruple(randomOf(1), 100, [400, 500, 300], 64), quadruple(randomOf(2), 100, [40, 50, 30], 64)];
    const args = resolveArgs({ outputDir: '', microbatchTokens: 600, ...changes });
    const plan = planRun({ model, refModel, rows, roles: PREFERENCE_ROLES }, args, free);
    return { plan, words: describePlan(plan, model, args, free), held: model.memory().current };
  };
  const BIG = {
    ...{ vocab_size: 64, hidden_size: 64, intermediate_size: 512, num_hidden_layers: 9 },
    ...{ num_attention_heads: 2, num_key_value_heads: 1, head_dim: 32 },
  };

  it('keeps as many layers as fit, and says when that is not all', async () => {
    const { plan, words, held } = await planOf(GIB);
    expect([plan.keptLayers, words]).toEqual([9, undefined]);
    // The longest row, which is more than microbatchTokens.
    expect(plan.tokens).toBe(99 + 1200);
    const tight = await planOf(plan.total - held - plan.activations / 3);
    expect(tight.plan.keptLayers).toBeGreaterThan(1);
    expect(tight.plan.keptLayers).toBeLessThan(9);
    expect(tight.words).toMatch(/^memory: needs 0\.\d GiB of 0\.\d, with \d of 9 layers computed again in backward$/);
  });

  it.each([
    [
      { gradientCheckpointing: false },
      9,
      /^memory: needs .*: it will probably run out; lower microbatch_tokens \(600\), set gradient_checkpointing: true or train adapters/,
    ],
    [
      { gradientCheckpointing: true },
      1,
      /with 8 of 9 layers computed again in backward: it will probably run out; lower microbatch_tokens \(600\) or train/,
    ],
  ])('with %j does as it is told', async (changes, kept, message) => {
    const { plan, words } = await planOf(0, changes);
    expect(plan.keptLayers).toBe(kept);
    expect(words).toMatch(message);
  });

  it('counts adapters, and unshared prompts', async () => {
    const full = (await planOf(GIB)).plan;
    const { plan } = await planOf(GIB, { sharePrompt: false }, { lora: { r: 8 } });
    const [inputs, outputs] = [64, 64 + 32];
    expect(plan.states).toBe((full.states / 16) * 4 + 16 * 9 * 8 * (2 * inputs + outputs));
    expect(plan.tokens).toBe(3 * 99 + 1200);
  });

  it('counts a resident reference as it was loaded', async () => {
    const config = { ...BIG, model_type: 'llama' };
    const parameters = parameterCount(parseModelConfig(config));
    const counted = async (frozen: boolean) => {
      await using reference = await Model.create(config, { dtype: 'bfloat16', frozen });
      return (await planOf(GIB, {}, { dtype: 'bfloat16' }, reference)).plan.reference;
    };
    expect(await counted(true)).toBeGreaterThan(2 * parameters);
    expect((await counted(false)) - (await counted(true))).toBe(4 * parameters);
  });

  it('takes a reference from a directory without masters', async () => {
    const dir = path('wide');
    await using wide = await Model.create({ ...BIG, vocab_size: 199, model_type: 'llama' }, { dtype: 'bfloat16' });
    await wide.save(dir);
    const held = async (refModel: string | Model, name: string) => {
      const args = { outputDir: path(name), dtype: 'bfloat16', maxSteps: 1, disableTqdm: true } as const;
      await using trainer = new Trainer({ model: dir, refModel, trainDataset: rows, args });
      await trainer.train();
      return wide.memory().current;
    };
    const alone = await held(dir, 'directory');
    await using refModel = await Model.load(dir, { dtype: 'bfloat16' });
    const masters = 4 * parameterCount(wide.config);
    expect(((await held(refModel, 'model')) - alone) / masters).toBeCloseTo(1, 1);
  });

  it('on a GPU is compared with its forecast afterwards', async () => {
    const plan = { ...(await planOf(GIB)).plan, total: 9 * GIB };
    const peak = (share: number, device: 'cuda' | 'cpu' = 'cuda', of = plan) =>
      describePeak(of, { device, memory: () => ({ current: 0, peak: share * of.total, largest: 0 }) });
    // Of a tiny model nothing is said.
    expect(peak(1.5, 'cuda', { ...plan, total: GIB / 10 })).toBeUndefined();
    expect(peak(1.04)).toBeUndefined();
    expect(peak(1.5, 'cpu')).toBeUndefined();
    expect(peak(1.5)).toMatch(/^memory: 13\.5 GiB of tensors were in use at most, 50 % more than the 9\.0 forecast$/);
    expect(peak(0.8)).toMatch(/20 % less than/);
  });
});
