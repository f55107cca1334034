/** Training adapters: what a run does with them, writes of them and goes on from. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { packRows } from '../lib/data/pack.ts';
import { Model } from '../lib/model/model.ts';
import type { TrainingArgsInput } from '../lib/train/args.ts';
import { expectWithin, maxAbsDifference, PREFERENCE_ROLES } from './support.ts';
import {
  expectFailure,
  fail,
  filesBelow,
  leftovers,
  metricsOf,
  POLICY,
  REFERENCE,
  type Row,
  readJson,
  readJsonLines,
  readTensors,
  scratchDirectory,
  start,
  succeed,
  tokenRows,
  trainingOn,
  weightsOf,
  writeRows,
  writeRunFile,
} from './training.ts';

const path = scratchDirectory('lora-training');
// 14 rows in batches of 4: four steps an epoch, the last of two rows; nine steps in all.
const rows = tokenRows(14, 11);
const held = tokenRows(4, 12);
const LORA = { usePeft: true, loraR: 4, loraAlpha: 8 } satisfies Partial<TrainingArgsInput>;
const ARGS = {
  ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 2, numTrainEpochs: 2.25, learningRate: 1e-2, beta: 0.1 },
  ...{ alpha: 0.5, weightDecay: 0.1, microbatchTokens: 100, loggingSteps: 4, evalSteps: 3, disableTqdm: true },
} satisfies Partial<TrainingArgsInput>;

const train = trainingOn(rows, held, { ...ARGS, ...LORA });

const packed = (of: Row[]) =>
  packRows(
    of.map(({ prompt, ...responses }) => ({
      where: 'row',
      prompt: Int32Array.from(prompt),
      responses: Object.fromEntries(Object.entries(responses).map(([role, ids]) => [role, Int32Array.from(ids)])),
    })),
    PREFERENCE_ROLES,
  );
async function sumsOf(dir: string, options = {}): Promise<number[]> {
  await using model = await Model.load(dir);
  return [...(await model.logProbs(packed(held), options)).sums];
}
const adapterOf = (dir: string) => readFileSync(join(dir, 'adapter_model.safetensors'));
const lossesOf = (dir: string) => metricsOf(dir).flatMap(({ loss }) => loss ?? []);

describe('a run', () => {
  it('trains the adapters alone, against the weights without them', async () => {
    const dir = path('run');
    const lines: Record<string, number>[] = [];
    await train(dir, { loggingSteps: 1 }, {}, { callbacks: { log: (line) => lines.push(line) } });
    // The policy is its reference at first, whatever dropout does: adapters that do nothing cannot be dropped.
    expectWithin(Math.abs(lines[0]!.loss! - Math.log(2)), 1e-6);
    const last = lines.filter(({ loss }) => loss !== undefined).at(-1)!;
    expect(last.loss).toBeLessThan(Math.log(2) - 0.02);

    expect(filesBelow(dir).filter((name) => /safetensors|config/.test(name))).toEqual([
      'adapter_config.json',
      'adapter_model.safetensors',
      'config.yaml',
    ]);
    expect(readJson(join(dir, 'adapter_config.json'))).toMatchObject({
      ...{ peft_type: 'LORA', task_type: 'CAUSAL_LM', bias: 'none', base_model_name_or_path: POLICY },
      ...{ r: 4, lora_alpha: 8, lora_dropout: 0.05, use_rslora: false, target_modules: ['q_proj', 'v_proj'] },
    });
    const config = parse(readFileSync(join(dir, 'config.yaml'), 'utf8'));
    expect(config).toMatchObject({ use_peft: true, lora_r: 4, lora_alpha: 8, lora_dropout: 0.05 });
    const names = [...readTensors(join(dir, 'adapter_model.safetensors')).keys()];
    expect(names).toHaveLength(2 * 2 * 2);
    for (const name of names) {
      expect(name).toMatch(/^base_model\.model\.model\.layers\.[01]\.self_attn\.(q|v)_proj\.lora_[AB]\.weight$/);
    }

    const base = await sumsOf(POLICY);
    expectWithin(maxAbsDifference(referenceOf(join(dir, 'reference-eval.jsonl')), base), 1e-4);
    expect(await sumsOf(dir, { adapters: false })).toEqual(base);
    expect(maxAbsDifference(await sumsOf(dir), base)).toBeGreaterThan(0.05);
  });

  it('lets another rank or seed take the reference that is there', async () => {
    const dir = path('again');
    await train(dir);
    const file = join(dir, 'reference-train.jsonl');
    const { mtimeMs } = statSync(file);
    await train(dir, { loraR: 2, seed: 9 });
    expect(statSync(file).mtimeMs).toBe(mtimeMs);
    expect(readJson(join(dir, 'adapter_config.json')).r).toBe(2);
  });

  it('has a reference of another model where one is named', async () => {
    const dir = path('other reference');
    await train(dir, { refModelNameOrPath: REFERENCE, loggingSteps: 1 });
    expect(Math.abs(lossesOf(dir)[0]! - Math.log(2))).toBeGreaterThan(1e-3);
    expect(existsSync(join(dir, 'reference-train.jsonl'))).toBe(false);
  });

  it('the same seed gives the same bytes, another seed others', async () => {
    const dirs = ['same', 'same again', 'other'].map((name) => path(name));
    for (const [i, dir] of dirs.entries()) await train(dir, { seed: i < 2 ? 1 : 2 });
    const [one, again, other] = dirs.map(adapterOf);
    expect(one!.equals(again!)).toBe(true);
    expect(one!.equals(other!)).toBe(false);
  });

  it('with dropout, too, the packing is no part of the result', async () => {
    const losses = async (name: string, args: Partial<TrainingArgsInput>) => {
      await train(path(name), { loraDropout: 0.3, dtype: 'float64', loggingSteps: 1, ...args });
      return lossesOf(path(name));
    };
    const wanted = await losses('one', {});
    for (const [i, args] of [{ microbatchTokens: 1 }, { microbatchTokens: 4000 }, { sharePrompt: false }].entries()) {
      expectWithin(maxAbsDifference(await losses(`packed ${i}`, args), wanted), 1e-9, JSON.stringify(args));
    }
    const without = await losses('none', { loraDropout: 0 });
    expect(maxAbsDifference(without, wanted)).toBeGreaterThan(1e-5);
  });

  it('a loss written in TypeScript sees the log-probs of the same masks', async () => {
    const args = { loraDropout: 0.4, dtype: 'float64' as const, loggingSteps: 1, beta: undefined, alpha: undefined };
    const step = (z: number) => ({ loss: Math.log1p(Math.exp(-z)), slope: -1 / (1 + Math.exp(z)) });
    await train(
      path('own'),
      args,
      {},
      {
        objective: {
          roles: ['target_chosen', 'rejected'],
          loss: ({ policy: p, reference: q }) => {
            const { loss, slope } = step(0.1 * (p.target_chosen - q.target_chosen - p.rejected + q.rejected));
            return { loss, gradients: { target_chosen: 0.1 * slope, rejected: -0.1 * slope } };
          },
        },
      },
    );
    await train(path('named'), { ...args, lossType: 'sigmoid', beta: 0.1 });
    expectWithin(maxAbsDifference(lossesOf(path('own')), lossesOf(path('named'))), 1e-9);
  });

  it('adds adapters to a model that is loaded already', async () => {
    await using model = await Model.load(POLICY);
    await train(path('loaded'), {}, {}, { model });
    expect(model.lora!.modules).toHaveLength(4);
    await train(path('named by path'));
    expect(adapterOf(path('loaded')).equals(adapterOf(path('named by path')))).toBe(true);
  });

  it.each(['sft', 'simpo'] as const)('%s', async (lossType) => {
    const dir = path(lossType);
    const own = { beta: undefined, alpha: undefined };
    await train(dir, { lossType, ...own, loggingSteps: 1, useRslora: true, loraTargetModules: 'all-linear' });
    const losses = lossesOf(dir);
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    expect([...readTensors(join(dir, 'adapter_model.safetensors')).keys()]).toHaveLength(2 * 7 * 2);
  });

  it('refuses what cannot be meant', async () => {
    const dir = path('trained');
    await train(dir);
    await expectFailure(
      () => train(path('no'), { loraTargetModules: ['q_proj', 'query'] }),
      'ERR_CONFIG',
      /no projection "query"; it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj/,
    );
    await expectFailure(
      () => train(path('no'), {}, {}, { model: dir }),
      'ERR_CONFIG',
      /use_peft: .*trained has adapters already/,
    );
    await using model = await Model.load(dir);
    await expectFailure(() => train(path('no'), {}, {}, { model }), 'ERR_CONFIG', /use_peft: the model has adapters/);
  });
});

describe('an adapter as the model', () => {
  it('is trained further, with itself at first as the reference', async () => {
    const [first, second] = [path('first'), path('second')];
    await train(first, { loraDropout: 0.2 });
    await train(
      second,
      { usePeft: undefined, loraR: undefined, loraAlpha: undefined, saveSteps: 3 },
      {},
      { model: first },
    );
    expectWithin(maxAbsDifference(referenceOf(join(second, 'reference-eval.jsonl')), await sumsOf(first)), 1e-4);
    expect(readJson(join(second, 'adapter_config.json'))).toEqual(readJson(join(first, 'adapter_config.json')));
    expect(maxAbsDifference(await sumsOf(second), await sumsOf(first))).toBeGreaterThan(0.01);
  });
});

describe('a resumed run ends as an uninterrupted one', () => {
  it.each([
    ['float32, dropout', { loraDropout: 0.3 }],
    ['bfloat16, all-linear', { dtype: 'bfloat16', loraTargetModules: 'all-linear' }],
  ] as const)('%s', async (name, args) => {
    const whole = path(`whole ${name}`);
    await train(whole, { ...args, saveSteps: 1 });
    const checkpoint = join(whole, 'checkpoint-3');
    expect(
      readdirSync(checkpoint)
        .filter((file) => /\.safetensors$/.test(file))
        .sort(),
    ).toEqual(['adapter_model.safetensors', 'optimizer.safetensors']);
    const moments = [...readTensors(join(checkpoint, 'optimizer.safetensors')).keys()];
    for (const moment of moments) expect(moment).toMatch(/^exp_avg(_sq)?\..*\.lora_[AB]\.weight$/);
    for (const step of [1, 6, 9]) {
      const dir = path(`${name} from ${step}`);
      mkdirSync(dir);
      cpSync(join(whole, `checkpoint-${step}`), join(dir, `checkpoint-${step}`), { recursive: true });
      await train(dir, args, { resumeFromCheckpoint: true });
      expect(adapterOf(dir).equals(adapterOf(whole))).toBe(true);
      expect(metricsOf(dir)).toEqual(metricsOf(whole));
    }
  });

  it('killed', async () => {
    const keys = {
      ...{ model_name_or_path: POLICY, dataset_name: writeRows(path('rows.jsonl'), rows), use_peft: true, lora_r: 4 },
      ...{
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 2,
        max_steps: 60,
        learning_rate: 1e-2,
        beta: 0.1,
      },
      ...{ save_steps: 1, logging_steps: 1, disable_tqdm: true },
    };
    const runFile = (name: string) => writeRunFile(path(`${name}.yaml`), { ...keys, output_dir: path(name) });
    await succeed(['train', '--config', runFile('kept alive')]);
    const child = start(['train', '--config', runFile('killed')]);
    expect(await child.until(() => existsSync(path('killed', 'checkpoint-7')))).toBe(true);
    await child.kill();
    expect(existsSync(path('killed', 'adapter_model.safetensors'))).toBe(false);
    await succeed(['train', '--config', path('killed.yaml'), '--resume-from-checkpoint']);
    expect(adapterOf(path('killed')).equals(adapterOf(path('kept alive')))).toBe(true);
    expect(metricsOf(path('killed'))).toEqual(metricsOf(path('kept alive')));
    expect(leftovers(path('killed'))).toEqual([]);
  });

  it.each<[Partial<TrainingArgsInput>, RegExp]>([
    [{ loraR: 8 }, /loraR was 4 and is now 8/],
    [{ loraAlpha: 9 }, /loraAlpha was 8 and is now 9/],
    [{ loraDropout: 0 }, /loraDropout was 0.05 and is now 0/],
    [{ useRslora: true }, /useRslora was false and is now true/],
    [{ loraTargetModules: ['k_proj'] }, /loraTargetModules was ".*q_proj.*" and is now ".*k_proj/],
    [{ usePeft: false }, /loraR was 4 and is now not there/],
  ])('not with %j', async (args, message) => {
    const dir = path('to resume');
    if (!existsSync(dir)) await train(dir, { saveSteps: 4 });
    const resumeFromCheckpoint = join(dir, 'checkpoint-4');
    await expectFailure(() => train(path('resumed'), args, { resumeFromCheckpoint }), 'ERR_CHECKPOINT', message);
  });
});

describe('the command', () => {
  const data = path('held.jsonl');
  const run = path('command');
  const trained = (() => {
    let done: Promise<unknown> | undefined;
    return () => {
      writeRows(data, held);
      done ??= succeed([
        ...['train', '--config', writeRunFile(path('command.yaml'), { ...TRAIN, output_dir: run })],
        ...['--lora_target_modules', 'q_proj,down_proj', '--lora-r=3'],
      ]);
      return done;
    };
  })();
  const TRAIN = {
    ...{ model_name_or_path: POLICY, dataset_name: data, loss_type: 'wrpo', use_peft: true, learning_rate: 1e-2 },
    ...{ per_device_train_batch_size: 2, gradient_accumulation_steps: 1, num_train_epochs: 4 },
  };
  const logprobs = async (...args: string[]) => {
    const out = path('logprobs.jsonl');
    await succeed(['logprobs', '--data', data, '--dtype', 'float64', '--output', out, ...args]);
    return readJsonLines(out).flatMap((line) => Object.values(line));
  };

  it('trains, looks at, uses and merges adapters', async () => {
    await trained();
    expect(readJson(join(run, 'adapter_config.json'))).toMatchObject({ r: 3, target_modules: ['q_proj', 'down_proj'] });
    const doctor = await succeed(['doctor', '--model', run]);
    expect(doctor.stdout).toMatch(/model +LoRA adapter of rank 3, 8 tensors, on llama: 2 layers/);
    const adapted = await logprobs('--model', run);
    const out = path('merged');
    await succeed(['merge', '--model', run, '--output', out]);
    expect(filesBelow(out)).toEqual(['config.json', 'model.safetensors']);
    // The merged weights are rounded to float32, once.
    expectWithin(maxAbsDifference(await logprobs('--model', out), adapted), 1e-4);
    expect(maxAbsDifference(await logprobs('--model', POLICY), adapted)).toBeGreaterThan(0.01);
    const half = path('merged in bfloat16');
    await succeed(['merge', '--model', run, '--output', half, '--base', POLICY, '--dtype', 'bfloat16']);
    expect(weightsOf(half).length).toBeLessThan(0.6 * weightsOf(out).length);
    const check = await succeed(['data', 'check', data, '--model', run]);
    expect(check.stdout).toContain('4');
  });

  it.each([
    [['merge', '--model', POLICY, '--output', 'x'], 1, 'holds no adapter to merge'],
    [['merge', '--model', POLICY], 2, '--output'],
    [['merge', '--model', '/not/there', '--output', 'x'], 1, '/not/there holds no adapter'],
  ] as const)('%j', async (args, status, part) => {
    expect(await fail([...args], status)).toContain(part);
  });

  it('a target that is not there is told before weights are read', async () => {
    const file = writeRunFile(path('bad.yaml'), { ...TRAIN, output_dir: path('bad'), lora_target_modules: ['Wqkv'] });
    writeRows(data, held);
    expect(await fail(['train', '--config', file], 1)).toMatch(/no projection "Wqkv"; it has q_proj, /);
  });
});

/** The values of a reference file. */
function referenceOf(file: string): number[] {
  const [, ...lines] = readJsonLines(file);
  return lines.flatMap((line) => PREFERENCE_ROLES.map((role) => line[role]!));
}
