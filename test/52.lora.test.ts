/**
 * LoRA against PEFT: fixtures/lora holds adapters that PEFT saved, and what they, autograd and torch.optim.AdamW make in
 * float64. The float32 results here may be as far from those as twice PyTorch's own float32 results are.
 */
import { cpSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import type { LoraOptions } from '../lib/model/lora.ts';
import { type LoadOptions, Model } from '../lib/model/model.ts';
import type { AdapterUse } from '../lib/native/addon.ts';
import type { EncodedRow } from '../lib/text/encode.ts';
import { AdamW } from '../lib/train/adamw.ts';
import { formOf, type Objective } from '../lib/train/objective.ts';
import {
  accumulate,
  batchOf,
  copies,
  expectSentence,
  expectWithin,
  FAMILY_CONFIGS,
  gradientsOf,
  joinFile,
  LLAMA,
  maxAbsDifference,
  PREFERENCE_ROLES,
  type Problem,
  problemOf,
  quadruple,
  randomOf,
  readValues,
  relativeL2,
  splitFile,
  tinyModel,
} from './support.ts';
import { FIXTURES, filesBelow, POLICY, readJson, scratchDirectory } from './training.ts';

const LORA = join(FIXTURES, 'lora');
const { setup, cases } = readJson(join(LORA, 'expected.json'));
const scratch = scratchDirectory('lora');
let made = 0;
const fresh = () => scratch(String(made++));
const WRPO: Objective = { lossType: 'wrpo', beta: setup.beta, alpha: setup.alpha };
const ALL = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'];

// The two quadruples of fixtures/llama; a table there has a row for each response, role by role.
const table = readValues(join(LLAMA, 'expected.safetensors'));
const cells = (of: Map<string, { shape: number[]; values: Float64Array }>, name: string, row: number) => {
  const { shape, values } = of.get(name)!;
  return values.subarray(row * shape[1]!, (row + 1) * shape[1]!);
};
const sequenceOf = (i: number, role: number) => role * 2 + i;
const rows: EncodedRow[] = [0, 1].map((i) => {
  const part = (role: number, isResponse: boolean) => {
    const [ids, labels, mask] = ['input_ids', 'labels', 'attention_mask'].map((name) =>
      cells(table, name, sequenceOf(i, role)),
    );
    return Int32Array.from(ids!.filter((_, c) => mask![c] === 1 && (labels![c] !== -100) === isResponse));
  };
  const responses = Object.fromEntries(PREFERENCE_ROLES.map((role, k) => [role, part(k, true)]));
  return { where: `row ${i}`, prompt: part(0, false), responses };
});
/** Token log-probs of a table, in the order of a packed batch. */
const tokensIn = (of: typeof table, name: string) =>
  rows.flatMap((_, i) =>
    PREFERENCE_ROLES.flatMap((_, k) => {
      const predicted = cells(table, 'completion_mask', sequenceOf(i, k));
      return [...cells(of, name, sequenceOf(i, k))].filter((_, c) => predicted[c] === 1);
    }),
  );
const named = (of: typeof table, prefix: string) =>
  new Map(
    [...of]
      .filter(([name]) => name.startsWith(prefix))
      .map(([name, { values }]) => [name.slice(prefix.length), values]),
  );
const inOrderOf = (like: Map<string, unknown>, of: Map<string, Float64Array>) =>
  new Map([...like.keys()].map((name) => [name, of.get(name)!]));

/** Random values for B, without which adapters do nothing. */
async function stir(model: Model, seed = 7): Promise<void> {
  const random = randomOf(seed);
  for (const [name, tensor] of model.parameters({ master: true })) {
    if (!name.endsWith('lora_B.weight')) continue;
    const values = tensor.view() as Float32Array;
    for (let i = 0; i < values.length; i++) values[i] = random() - 0.5;
  }
  await model.syncWork();
}
const randomRows = (seed = 1) => [0, 1, 2].map((i) => quadruple(randomOf(seed + i), 3 + 2 * i, [4, 7, 5 - i]));
const packed = (sharePrompt = true) => packRows(randomRows(), PREFERENCE_ROLES, { sharePrompt });

describe.each(Object.keys(cases))('PEFT: %s', (name) => {
  const directory = join(LORA, name);
  const oracle = readValues(join(directory, 'oracle.safetensors'));
  const { losses, norms, float32 } = cases[name];

  /** WRPO's loss on the two rows, whose reference is the base. */
  async function pose(model: Model): Promise<Problem> {
    const { sums } = await model.logProbs(packRows(rows, PREFERENCE_ROLES), { adapters: false });
    return { rows, objective: WRPO, reference: sums, normalizer: rows.length };
  }

  it.each([true, false])('log-probs with and without the adapters, sharePrompt %s', async (sharePrompt) => {
    await using model = await Model.load(directory);
    const batch = packRows(rows, PREFERENCE_ROLES, { sharePrompt });
    const policy = await model.logProbs(batch, { perToken: true });
    expectWithin(maxAbsDifference(policy.perToken!, tokensIn(oracle, 'logps')), 2 * float32.logps);
    const base = await model.logProbs(batch, { perToken: true, adapters: false });
    expectWithin(maxAbsDifference(base.perToken!, tokensIn(oracle, 'reference')), 2 * float32.logps);
    expect(maxAbsDifference(policy.sums, base.sums)).toBeGreaterThan(0.1);
  });

  it.each([true, false])('loss and gradients, sharePrompt %s', async (sharePrompt) => {
    await using model = await Model.load(directory);
    const { loss, gradients } = await gradientsOf(model, await pose(model), { sharePrompt });
    expectWithin(Math.abs(loss - losses[0]), 2 * float32.loss);
    const wanted = named(oracle, 'grad.');
    expect([...gradients.keys()].sort()).toEqual([...wanted.keys()].sort());
    expectWithin(relativeL2(gradients, inOrderOf(gradients, wanted)), 2 * float32.grads);
  });

  it('gradients in float64', async () => {
    await using model = await Model.load(directory, { dtype: 'float64' });
    const { loss, gradients } = await gradientsOf(model, await pose(model));
    expectWithin(Math.abs(loss - losses[0]), 1e-6); // the rope table is float32, as transformers has it
    expectWithin(relativeL2(gradients, inOrderOf(gradients, named(oracle, 'grad.'))), 1e-6);
  });

  it('AdamW steps', async () => {
    await using model = await Model.load(directory);
    const before = copies(new Map([...model.parameters()].filter(([key]) => !key.includes('lora_'))));
    const optimizer = new AdamW(model, {
      ...{ learningRate: setup.lr, schedule: 'constant', weightDecay: setup.weight_decay },
      maxGradNorm: setup.max_grad_norm,
    });
    const problem = await pose(model);
    for (const [i, wanted] of losses.entries()) {
      const { loss } = await accumulate(model, batchOf(problem), problem);
      expectWithin(Math.abs(loss - wanted), 2 * float32.loss, `loss ${i}`);
      expectWithin(Math.abs((await optimizer.step()).gradNorm / norms[i] - 1), 2 * float32.grads, `norm ${i}`);
    }
    const after = copies(model.parameters());
    for (const [key, values] of named(oracle, 'steps.')) {
      expectWithin(maxAbsDifference(after.get(key)!, values), 2 * float32.steps, key);
    }
    for (const [key, values] of before) expect(after.get(key), key).toEqual(values);
    await optimizer.close();
  });

  it('saved again it holds the same tensors and settings', async () => {
    const to = fresh();
    await using model = await Model.load(directory);
    await model.save(to);
    expect(filesBelow(to)).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
    expect(readValues(join(to, 'adapter_model.safetensors'))).toEqual(
      readValues(join(directory, 'adapter_model.safetensors')),
    );
    const { base_model_name_or_path: base, ...settings } = readJson(join(to, 'adapter_config.json'));
    expect(readJson(join(directory, 'adapter_config.json'))).toMatchObject(settings);
    expect(base).toBe(POLICY);
  });

  it('merged it has the same log-probs, and is a model like any other', async () => {
    await using model = await Model.load(directory);
    const batch = packRows(rows, PREFERENCE_ROLES);
    await model.mergeAdapters();
    expect(model.lora).toBeUndefined();
    const { perToken } = await model.logProbs(batch, { perToken: true });
    expectWithin(maxAbsDifference(perToken!, tokensIn(oracle, 'logps')), 3 * float32.logps);
    const to = fresh();
    await model.save(to);
    await using loaded = await Model.load(to);
    expect((await loaded.logProbs(batch, { perToken: true })).perToken).toEqual(perToken);
    const gradients = (await gradientsOf(model, await pose(model))).gradients;
    expect([...gradients.keys()]).toEqual([...model.parameters().keys()]);
  });
});

describe('adapters', () => {
  it.each(['float32', 'float64', 'bfloat16'] as const)('fresh ones change no bit, %s', async (dtype) => {
    await using plain = await tinyModel({}, { dtype });
    await using model = await tinyModel({}, { dtype });
    await model.addAdapters({ r: 3, targetModules: 'all-linear' });
    for (const sharePrompt of [true, false]) {
      const wanted = await plain.logProbs(packed(sharePrompt), { perToken: true });
      const batch = packed(sharePrompt);
      expect(await model.logProbs(batch, { perToken: true })).toEqual(wanted);
      expect(await model.logProbs(batch, { perToken: true, adapters: false })).toEqual(wanted);
      const dropout = { seed: 1, step: 2, firstRow: 3 };
      expect(await model.logProbs(batch, { perToken: true, dropout })).toEqual(wanted);
    }
    await stir(model);
    const moved = await model.logProbs(packed());
    expect(maxAbsDifference(moved.sums, (await plain.logProbs(packed())).sums)).toBeGreaterThan(0.01);
    expect(await model.logProbs(packed(), { adapters: false })).toEqual(await plain.logProbs(packed()));
  });

  it('A is uniform in ±1/√in, the same for the same seed, B zero', async () => {
    const wide = { hidden_size: 256, intermediate_size: 64 };
    const parameters = async (seed: number) => {
      await using model = await tinyModel(wide, { lora: { r: 64, seed, targetModules: ALL } });
      return copies(model.parameters());
    };
    const one = await parameters(1);
    const again = await parameters(1);
    const other = await parameters(2);
    expect(one).toEqual(again);
    const name = 'model.layers.1.self_attn.q_proj.lora_A.weight';
    expect(one.get(name)).not.toEqual(other.get(name));
    const values = one.get(name)!;
    expect(values.length).toBe(64 * 256);
    const bound = 1 / 16;
    expectWithin(Math.max(...values.map(Math.abs)), bound * (1 + 1e-6));
    // The standard deviation of a uniform is bound / √3; its estimate from n values is within 1/√n of that.
    const deviation = Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / values.length);
    expect(deviation / (bound / Math.sqrt(3))).toBeCloseTo(1, 1);
    for (const [key, b] of one) if (key.includes('lora_B')) expect(b.every((x) => x === 0)).toBe(true);
  });

  it('gradients are those of the loss, by central differences in float64', async () => {
    await using model = await tinyModel(
      {},
      { dtype: 'float64', lora: { r: 2, loraAlpha: 2, targetModules: ALL, loraDropout: 0 } },
    );
    await stir(model);
    const problem = await problemOf(model, randomRows(), WRPO, randomOf(3));
    await expectDerivatives(model, problem, {});
  });

  // InternLM2's files have no projections of the adapters' names.
  it.each(Object.entries(FAMILY_CONFIGS).filter(([name]) => name !== 'internlm2'))(
    'and so they are of %s',
    async (_, config) => {
      const lora = { r: 2, loraAlpha: 2, targetModules: 'all-linear', loraDropout: 0 };
      await using model = await tinyModel(config, { dtype: 'float64', lora });
      await stir(model);
      await expectDerivatives(model, await problemOf(model, randomRows(), WRPO, randomOf(3)), {});
    },
  );

  it('of InternLM2 there are none: one sentence', async () => {
    await using model = await tinyModel(FAMILY_CONFIGS.internlm2);
    await expectSentence(() => model.addAdapters(), 'ERR_CONFIG', 'internlm2');
  });

  it('a bfloat16 base has no masters and nothing but adapters has gradients or moments', async () => {
    const bytes = async (lora?: LoraOptions) => {
      await using model = await Model.load(POLICY, { dtype: 'bfloat16', lora });
      const optimizer = new AdamW(model, { learningRate: 1e-3 });
      const problem = await problemOf(model, rows, WRPO, randomOf(3));
      const before = copies(model.parameters());
      await accumulate(model, batchOf(problem), problem);
      const gradients = [...model.gradients().keys()];
      await optimizer.step();
      const after = copies(model.parameters());
      const changed = [...after.keys()].filter((name) => after.get(name)!.some((x, i) => x !== before.get(name)![i]));
      await optimizer.close();
      return { gradients, changed };
    };
    const { gradients, changed } = await bytes({ r: 2 });
    expect(gradients).toHaveLength(2 * 2 * 2);
    for (const name of [...gradients, ...changed]) expect(name).toMatch(/(q|v)_proj\.lora_[AB]\.weight$/);
    expect(changed.length).toBeGreaterThan(0);
    await using model = await Model.load(POLICY, { dtype: 'bfloat16', lora: { r: 2 } });
    const masters = model.parameters({ master: true });
    expect(masters.get('model.norm.weight')!.dtype).toBe('bfloat16');
    expect(masters.get('model.layers.0.self_attn.q_proj.lora_A.weight')!.dtype).toBe('float32');
  });

  it('added to a bfloat16 model, the base keeps its bits; merged, the masters take the sum', async () => {
    await using model = await Model.load(POLICY, { dtype: 'bfloat16' });
    const before = await model.logProbs(packRows(rows, PREFERENCE_ROLES));
    await model.addAdapters({ r: 2, targetModules: 'all-linear' });
    expect(await model.logProbs(packRows(rows, PREFERENCE_ROLES))).toEqual(before);
    await stir(model);
    const name = 'model.layers.1.mlp.down_proj';
    const all = copies(model.parameters({ master: true }));
    const shape = model.parameters().get(`${name}.weight`)!.shape;
    await model.mergeAdapters();
    const merged = model.parameters({ master: true }).get(`${name}.weight`)!;
    expect(merged.dtype).toBe('float32');
    const [out, width] = shape as [number, number];
    const [a, b, w] = ['lora_A.weight', 'lora_B.weight', 'weight'].map((part) => all.get(`${name}.${part}`)!);
    const base = (await Model.load(POLICY, { dtype: 'bfloat16' })).parameters().get(`${name}.weight`)!.view();
    expect(w!.length).toBe(base.length);
    const values = merged.view() as Float32Array;
    for (const [o, i] of [
      [0, 0],
      [out - 1, width - 1],
      [3, 5],
    ] as const) {
      const delta = 16 * (b![o * 2]! * a![i]! + b![o * 2 + 1]! * a![width + i]!);
      const word = new Float32Array(Uint32Array.of(Number(base[o * width + i]) << 16).buffer)[0]!;
      expect(values[o * width + i]).toBeCloseTo(word + delta, 5);
    }
  });

  it('an optimizer made before adapters came or went is refused', async () => {
    await using model = await tinyModel();
    const early = new AdamW(model, { learningRate: 1 });
    await model.addAdapters();
    const late = new AdamW(model, { learningRate: 1 });
    await expectSentence(() => early.step(), 'ERR_CONFIG', 'make another');
    await model.mergeAdapters();
    await expectSentence(() => late.step(), 'ERR_CONFIG', 'make another');
    // A change that is refused is over, too.
    await expectSentence(() => model.mergeAdapters(), 'ERR_CONFIG', 'no adapters');
    await model.logProbs(packed());
    await Promise.all([early.close(), late.close()]);
  });

  it('while they are added or merged nothing else is done', async () => {
    await using model = await tinyModel();
    for (const change of [() => model.addAdapters(), () => model.mergeAdapters()]) {
      const changing = change();
      const refused = [() => model.logProbs(packed()), () => model.save(fresh()), () => model.fingerprint()];
      await Promise.all(refused.map((act) => expectSentence(act, 'ERR_CLOSED', 'await that first')));
      await changing;
      await model.logProbs(packed());
    }
  });
});

/** `accumulate`'s gradients of the adapters against central differences of the loss, in some entries of each tensor. */
async function expectDerivatives(model: Model, problem: Problem, use: AdapterUse): Promise<void> {
  const batch = batchOf(problem);
  const form = { objective: formOf(problem.objective), normalizer: problem.normalizer };
  await model.zeroGradients();
  await model.accumulate(batch, { ...form, ...use });
  const gradients = copies(model.gradients());
  const random = randomOf(11);
  const largest = Math.max(...[...gradients.values()].flatMap((values) => [...values].map(Math.abs)));
  for (const [name, values] of gradients) {
    for (let n = 0; n < 3; n++) {
      const i = Math.floor(random() * values.length);
      const at = async (step: number) => {
        const parameter = model.parameters().get(name)!.view() as Float64Array;
        const before = parameter[i]!;
        parameter[i] = before + step;
        const { loss } = await model.accumulate(batch, { ...form, ...use });
        (model.parameters().get(name)!.view() as Float64Array)[i] = before;
        return loss;
      };
      const h = 1e-4;
      // Five points: wrong by about h⁴ and by rounding / h, far less than 1e-8 of the largest either way.
      const slope = (8 * ((await at(h)) - (await at(-h))) - ((await at(2 * h)) - (await at(-2 * h)))) / (12 * h);
      expectWithin(Math.abs(slope - values[i]!), 1e-8 * largest, `${name}[${i}]`);
    }
  }
}

describe('dropout', () => {
  const lora = { r: 4, loraAlpha: 4, targetModules: ALL, loraDropout: 0.3 };
  const draw = { seed: 5, step: 3, firstRow: 2 };

  it('gradients are those of the masked loss, by central differences in float64', async () => {
    await using model = await tinyModel({}, { dtype: 'float64', lora });
    await stir(model);
    const problem = await problemOf(model, randomRows(), WRPO, randomOf(3));
    await expectDerivatives(model, problem, { dropout: draw });
  });

  it('the same draw gives the same bits; another seed, step or row another mask; without a draw there is none', async () => {
    await using model = await tinyModel({}, { lora });
    await stir(model);
    const sums = async (use: AdapterUse) => [...(await model.logProbs(packed(), use)).sums];
    const dropped = await sums({ dropout: draw });
    expect(await sums({ dropout: draw })).toEqual(dropped);
    const all = [dropped, await sums({})];
    for (const change of [{ seed: 6 }, { step: 4 }, { firstRow: 9 }])
      all.push(await sums({ dropout: { ...draw, ...change } }));
    for (let k = 0; k < dropped.length; k++) expect(new Set(all.map((values) => values[k])).size).toBe(all.length);
    const loss = async () => {
      const problem = await problemOf(model, randomRows(), WRPO, randomOf(3));
      const form = { objective: formOf(WRPO), normalizer: 3 };
      return (await model.accumulate(batchOf(problem), { ...form, dropout: draw })).logps;
    };
    expect([...(await loss())]).toEqual(dropped);
  });

  it.each(['float32', 'float64'] as const)('neither packing nor sharing prompts changes a mask, %s', async (dtype) => {
    await using model = await tinyModel({}, { dtype, lora });
    await stir(model);
    const all = randomRows();
    const of = (indices: number[], sharePrompt: boolean) => {
      const batch = packRows(
        indices.map((i) => all[i]!),
        PREFERENCE_ROLES,
        { sharePrompt },
      );
      return model.logProbs(batch, { dropout: { ...draw, firstRow: draw.firstRow + indices[0]! } });
    };
    const whole = [...(await of([0, 1, 2], true)).sums];
    const apart = [...(await of([0], true)).sums, ...(await of([1, 2], true)).sums];
    const unshared = [...(await of([0, 1, 2], false)).sums];
    const rounding = dtype === 'float64' ? 1e-11 : 1e-4;
    expectWithin(maxAbsDifference(apart, whole), rounding);
    expectWithin(maxAbsDifference(unshared, whole), rounding);
    const without = [...(await model.logProbs(packed())).sums];
    expect(maxAbsDifference(without, whole)).toBeGreaterThan(0.01);
  });

  it('what is left is scaled so that the expectation stays', async () => {
    // One layer with an adapter behind the last nonlinearity but the norm's: B small, so that log-probs are linear in it.
    const only = { r: 2, targetModules: ['model.layers.1.mlp.down_proj'], loraDropout: 0.3 };
    await using model = await tinyModel({}, { dtype: 'float64', lora: only });
    const b = model.parameters().get('model.layers.1.mlp.down_proj.lora_B.weight')!.view() as Float64Array;
    const random = randomOf(4);
    for (let i = 0; i < b.length; i++) b[i] = 1e-4 * (random() - 0.5);
    const base = (await model.logProbs(packed())).sums;
    const alone = (await model.logProbs(packed(), { adapters: false })).sums;
    const draws = 600;
    const effects: number[][] = base.length ? Array.from(base, () => []) : [];
    for (let step = 0; step < draws; step++) {
      const { sums } = await model.logProbs(packed(), { dropout: { ...draw, step } });
      for (const [k, sum] of sums.entries()) effects[k]!.push(sum - alone[k]!);
    }
    for (const [k, values] of effects.entries()) {
      const mean = values.reduce((sum, x) => sum + x, 0) / draws;
      const deviation = Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / draws);
      expect(deviation).toBeGreaterThan(0);
      // Four standard errors.
      expectWithin(Math.abs(mean - (base[k]! - alone[k]!)), (4 * deviation) / Math.sqrt(draws), `response ${k}`);
    }
  });
});

describe('adapter directories', () => {
  /** A copy of a good one, changed; its base is found by an absolute path. */
  function changed(config: Record<string, unknown>, change: (dir: string) => void = () => {}): string {
    const dir = fresh();
    cpSync(join(LORA, 'qv'), dir, { recursive: true });
    const settings = { ...readJson(join(dir, 'adapter_config.json')), base_model_name_or_path: POLICY, ...config };
    writeFileSync(join(dir, 'adapter_config.json'), JSON.stringify(settings));
    change(dir);
    return dir;
  }
  const refused = (dir: string, ...parts: (string | RegExp)[]) =>
    expectSentence(() => Model.load(dir), 'ERR_MODEL', dir, ...parts);
  type Header = ReturnType<typeof splitFile>['header'];
  const withTensors = (change: (header: Header) => void) =>
    changed({}, (dir) => {
      const file = join(dir, 'adapter_model.safetensors');
      const { header, data } = splitFile(file);
      change(header);
      joinFile(file, header, data);
    });
  const first = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight';

  it.each<[Record<string, unknown>, ...(string | RegExp)[]]>([
    [{ peft_type: 'IA3' }, '"peft_type" "IA3"', '"LORA"'],
    [{ bias: 'lora_only' }, '"bias" "lora_only"', '"none"'],
    [{ use_dora: true }, '"use_dora" true (DoRA) is not supported'],
    [{ modules_to_save: ['lm_head'] }, '"modules_to_save" ["lm_head"]'],
    [{ rank_pattern: { q_proj: 3 } }, '"rank_pattern"'],
    [{ alpha_pattern: { q_proj: 3 } }, '"alpha_pattern"'],
    [{ layers_to_transform: [0] }, '"layers_to_transform"'],
    [{ trainable_token_indices: [3] }, '"trainable_token_indices"'],
    [{ init_lora_weights: 'pissa' }, '"init_lora_weights" "pissa"', 'changes the weights of the base'],
    [{ r: 0 }, '"r" must be a whole number of at least 1, found 0'],
    [{ r: undefined }, '"r"', 'found none'],
    [{ lora_alpha: 'x' }, '"lora_alpha" must be a positive number, found "x"'],
    [{ lora_dropout: 1 }, '"lora_dropout" must be at least 0 and below 1, found 1'],
    [{ target_modules: 3 }, '"target_modules" must be a string or a list of names, found 3'],
    [{ use_rslora: 1 }, '"use_rslora" must be true or false, found 1'],
    [{ base_model_name_or_path: null }, 'names no base model'],
    [{ base_model_name_or_path: '/nowhere/at all' }, '"/nowhere/at all", where nothing is'],
    [{ base_model_name_or_path: 'nobody/nothing' }, 'nobody/nothing', 'no local directory'],
    [{ r: 5 }, first, 'has shape [4,64]', 'adapter_config.json with its base asks for [5,64]'],
    [{ base_model_name_or_path: join(FIXTURES, 'armorm', 'tiny') }, /lora_[AB]\.weight has shape|no projection/],
    [
      { target_modules: ['q_proj'] },
      'v_proj.lora_A.weight, which its adapter_config.json with its base does not describe',
    ],
    [
      { target_modules: ['q_proj', 'v_proj', 'k_proj'] },
      'lacks base_model.model.model.layers.0.self_attn.k_proj.lora_A',
    ],
  ])('%j', async (config, ...parts) => {
    await refused(changed(config), ...parts);
  });

  it('tensors that are missing, too many, of another shape or dtype', async () => {
    await refused(
      withTensors((header) => {
        delete header[first];
      }),
      `lacks ${first}`,
    );
    const vector = first.replace('lora_A.weight', 'lora_magnitude_vector');
    await refused(
      withTensors((header) => {
        header[vector] = header[first]!;
      }),
      vector,
    );
    await refused(
      withTensors((header) => {
        header[first]!.shape.reverse();
      }),
      `${first} has shape [64,4]`,
    );
  });

  it('files that are missing or no JSON', async () => {
    await refused(
      changed({}, (dir) => writeFileSync(join(dir, 'adapter_config.json'), '{')),
      'cannot be read as JSON',
    );
    await refused(
      changed({}, (dir) => writeFileSync(join(dir, 'adapter_config.json'), '[]')),
      'must hold a JSON object',
    );
    const file = 'adapter_model.safetensors';
    await refused(
      changed({}, (dir) => renameSync(join(dir, file), join(dir, 'elsewhere'))),
      file,
      'cannot be read',
    );
  });

  it.each<[LoraOptions, ...string[]]>([
    [{ targetModules: ['q_proj', 'query'] }, 'no projection "query"', ALL.join(', '), 'all-linear'],
    [{ targetModules: 'lm_head' }, 'no projection "lm_head"'],
    [{ targetModules: ['model.layers.9.self_attn.q_proj'] }, 'no projection "model.layers.9.self_attn.q_proj"'],
    [{ targetModules: [] }, 'no target modules'],
    [{ targetModules: '(q_proj' }, '"(q_proj" is no regular expression'],
    [{ r: 0 }, '"r" must be a whole number of at least 1, found 0'],
    [{ r: 1.5 }, '"r"', 'found 1.5'],
    [{ loraAlpha: -1 }, '"loraAlpha" must be a positive number, found -1'],
    [{ loraDropout: 1 }, '"loraDropout" must be at least 0 and below 1, found 1'],
    [{ loraDropout: Number.NaN }, '"loraDropout"'],
  ])('options: %j', async (lora, ...parts) => {
    await expectSentence(() => Model.load(POLICY, { lora }), 'ERR_CONFIG', 'lora: ', ...parts);
    await using model = await Model.load(POLICY);
    await expectSentence(() => model.addAdapters(lora), 'ERR_CONFIG', 'lora: ', ...parts);
    expect(model.lora).toBeUndefined();
    expect([...(await gradientsOf(model, await problemOf(model, rows, WRPO, randomOf(1)))).gradients.keys()]).toContain(
      'lm_head.weight',
    );
  });

  it.each<[LoraOptions['targetModules'], number]>([
    [undefined, 4],
    ['all-linear', 14],
    [['all-linear'], 14],
    ['q_proj, o_proj', 4],
    ['mlp.up_proj', 2],
    [['layers.1.mlp.up_proj', 'k_proj'], 3],
    ['model\\.layers\\.1\\..*_proj', 7],
  ])('targets %j', async (targetModules, count) => {
    await using model = await Model.load(POLICY, { lora: { r: 2, targetModules } });
    expect(model.lora!.modules).toHaveLength(count);
    await stir(model);
    const to = fresh();
    await model.save(to);
    await using again = await Model.load(to);
    expect(again.lora).toEqual(model.lora);
    const batch = packRows(rows, PREFERENCE_ROLES);
    expect(await again.logProbs(batch)).toEqual(await model.logProbs(batch));
    expect(await again.fingerprint()).toBe(await model.fingerprint());
    await using plain = await Model.load(POLICY);
    expect(await again.fingerprint({ adapters: false })).toBe(await plain.fingerprint());
    expect(await again.fingerprint()).not.toBe(await plain.fingerprint());
  });

  it('an adapter that is there is not laid over by another', async () => {
    const dir = changed({});
    await expectSentence(() => Model.load(dir, { lora: {} }), 'ERR_CONFIG', dir, 'holds an adapter already');
    await using model = await Model.load(dir);
    await expectSentence(() => model.addAdapters(), 'ERR_CONFIG', 'has adapters already');
  });

  it('the base is found from the working directory, from the adapter, or where the caller says', async () => {
    const batch = packRows(rows, PREFERENCE_ROLES);
    const sumsOf = async (dir: string, options?: LoadOptions) => {
      await using model = await Model.load(dir, options);
      return { sums: [...(await model.logProbs(batch)).sums], name: model.lora!.baseModelNameOrPath };
    };
    const { sums } = await sumsOf(join(LORA, 'qv'));
    const beside = changed({ base_model_name_or_path: 'base' }, (dir) =>
      cpSync(POLICY, join(dir, 'base'), { recursive: true }),
    );
    expect(await sumsOf(beside)).toEqual({ sums, name: join(beside, 'base') });
    const here = changed({ base_model_name_or_path: relative(process.cwd(), POLICY) });
    expect(await sumsOf(here)).toEqual({ sums, name: POLICY });
    const id = changed({ base_model_name_or_path: 'someone/model' });
    expect(await sumsOf(id, { baseModel: POLICY })).toEqual({ sums, name: 'someone/model' });
    const gone = changed({ base_model_name_or_path: '/not/there' });
    expect(await sumsOf(gone, { baseModel: POLICY })).toEqual({ sums, name: POLICY });
    const other = await sumsOf(gone, { baseModel: join(dirname(POLICY), 'ref') });
    expect(maxAbsDifference(other.sums, sums)).toBeGreaterThan(0.01);
  });

  it('a whole model takes the place of an adapter, and an adapter leaves a whole model where it is', async () => {
    const dir = fresh();
    mkdirSync(dir);
    await using model = await Model.load(join(LORA, 'qv'));
    await model.save(dir);
    await model.mergeAdapters();
    await model.save(dir);
    expect(filesBelow(dir)).toEqual(['config.json', 'model.safetensors']);
    const weights = readFileSync(join(dir, 'model.safetensors'));
    await using beside = await Model.load(dir, { lora: { r: 2 } });
    await beside.save(dir);
    expect(readFileSync(join(dir, 'model.safetensors')).equals(weights)).toBe(true);
    await using loaded = await Model.load(dir, { baseModel: dir });
    expect(loaded.lora!.r).toBe(2);
    expect(existsSync(join(dir, 'adapter_config.json'))).toBe(true);
  });
});
