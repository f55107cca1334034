/**
 * Models and runs on a GPU, on an emulated one: the core of native/check/emulator, whose device is called `cuda` and lies
 * in the host's memory. What is held is what a GPU computes, when the host waits for it, and what is said of its memory.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import { selectedLogProbs, selectedLogProbsBackward } from '../lib/model/head.ts';
import { Model } from '../lib/model/model.ts';
import { info, Tensor } from '../lib/native/surface.ts';
import type { TrainingArgsInput } from '../lib/train/args.ts';
import { forecast } from '../lib/train/memory-plan.ts';
import { formOf, type Objective } from '../lib/train/objective.ts';
import { Trainer } from '../lib/train/trainer.ts';
import {
  batchOf,
  expectSentence,
  maxAbsDifference,
  numberToBfloat16,
  PREFERENCE_ROLES,
  quadruple,
  randomOf,
} from './support.ts';
import {
  expectFailure,
  FIXTURES,
  fail,
  metricsOf,
  POLICY,
  poisonedPolicy,
  REFERENCE,
  ROOT,
  readJsonLines,
  readTensors,
  scratchDirectory,
  succeed,
  tokenRows,
  trainingOn,
  weightsOf,
  writeRows,
  writeRunFile,
} from './training.ts';

// Before anything loads the core.
process.env.WRPO_PREBUILD = join(ROOT, 'build/Release/emulated');
const path = scratchDirectory('emulated');

beforeAll(() => {
  const build = ['--build', join(ROOT, 'build/cmake'), '--target', 'core_emulated', '--parallel', '2'];
  const { status, stdout, stderr } = spawnSync('cmake', build, { encoding: 'utf8' });
  expect(status, stdout + stderr).toBe(0);
}, 900_000);

describe('a model on a GPU', () => {
  it('is there for `auto`, in bfloat16, and gives the log-probs of the CPU', async () => {
    expect(info()).toMatchObject({ devices: ['cpu', 'cuda'], gpu: { name: 'an emulated GPU' } });
    await using model = await Model.load(POLICY, { device: 'auto', dtype: 'auto' });
    expect(model).toMatchObject({ device: 'cuda', dtype: 'bfloat16' });
    await using same = await Model.load(POLICY, { dtype: 'bfloat16' });
    const rows = [0, 1, 2].map((i) => quadruple(randomOf(i), 3 + 2 * i, [4, 7, 5 - i]));
    for (const sharePrompt of [true, false]) {
      const batch = packRows(rows, PREFERENCE_ROLES, { sharePrompt });
      const [mine, wanted] = [await model.logProbs(batch, { perToken: true }), await same.logProbs(batch)];
      mine.sums.forEach((sum, k) => {
        expect(Math.abs(sum / wanted.sums[k]! - 1)).toBeLessThan(3e-3);
      });
      expect(mine.perToken!.reduce((sum, logp) => sum + logp)).toBeCloseTo(
        mine.sums.reduce((sum, logp) => sum + logp),
        3,
      );
    }
  });

  it('holds the same parameters, and saves them as they are', async () => {
    await using model = await Model.load(POLICY, { device: 'cuda', dtype: 'bfloat16' });
    await using same = await Model.load(POLICY, { dtype: 'bfloat16' });
    expect(model.parameters().values().next().value!.device).toBe('cuda');
    expect(await model.fingerprint()).toBe(await same.fingerprint());
    await model.save(path('saved'));
    await same.save(path('saved-too'));
    expect(weightsOf(path('saved')).equals(weightsOf(path('saved-too')))).toBe(true);
  });

  it('is refused what a GPU does not compute', async () => {
    await expectSentence(() => Model.load(POLICY, { device: 'cuda' }), 'ERR_DEVICE', 'a GPU computes in bfloat16 only');
  });
});

const rows = tokenRows(12, 1);

describe('what else computes on a GPU', () => {
  it('tensors and the fused head', async () => {
    const random = randomOf(3);
    const values = (count: number) => Float32Array.from({ length: count }, () => random() - 0.5);
    const [hidden, weight, dLogps] = [values(5 * 16), values(40 * 16), values(5)];
    const targets = Int32Array.of(3, 0, 39, 7, 7);
    const halves = (of: Float32Array, shape: number[], device: 'cpu' | 'cuda') =>
      Tensor.from(Uint16Array.from(of, numberToBfloat16), shape, { dtype: 'bfloat16', device });
    const on = async (device: 'cpu' | 'cuda') => {
      const [h, w] = [hidden, weight].map((of, i) => halves(of, [i ? 40 : 5, 16], device));
      const { logps, lse } = await selectedLogProbs(h!, w!, targets);
      const g = Tensor.from(dLogps, [5], { device });
      const { dHidden, dWeight } = await selectedLogProbsBackward(h!, w!, targets, lse, g);
      expect(new Set([logps, lse, dHidden, dWeight].map((tensor) => tensor.device))).toEqual(new Set([device]));
      return [logps, lse, dWeight].map((tensor) => Float64Array.from(tensor.toHost() as Float32Array));
    };
    const [mine, wanted] = [await on('cuda'), await on('cpu')];
    for (const [i, found] of mine.entries()) expect(maxAbsDifference(found, wanted[i]!)).toBeLessThan(4e-3);

    const far = Tensor.from(hidden, [5, 16], { device: 'cuda' });
    expect(far.to('cpu').toHost()).toEqual(hidden);
    expect(far.rows(1, 2).toHost()).toEqual(hidden.subarray(16, 48));
    expect(() => far.view()).toThrow('a tensor of a GPU has no view: toHost() copies its values');
    const wide = Tensor.from(weight, [40, 16], { device: 'cuda' });
    await expectSentence(() => selectedLogProbs(far, wide, targets), 'ERR_DEVICE', 'a GPU computes in bfloat16 only');
    const [h, w] = [halves(hidden, [5, 16], 'cuda'), halves(weight, [40, 16], 'cuda')];
    const near = Tensor.from(dLogps, [5]);
    await expectSentence(
      () => selectedLogProbsBackward(h, w, targets, near, near),
      'ERR_CONFIG',
      'on the device of hidden and weight',
    );
  });

  it('`wrpo score` and `wrpo logprobs`', async () => {
    const answers = [5, 8].map((end) => ({ prompt: [1, 30, 9, 6, 17, 7, 21], responses: [[11, 12, end], [end]] }));
    const pairs = rows.map(({ prompt, target_chosen: chosen, rejected }) => ({ prompt, chosen, rejected }));
    const numbers = async (command: string, model: string, data: string, device: string) => {
      const args = [command, '--model', model, '--data', data, '--dtype', 'bfloat16', '--device', device];
      const lines = (await succeed(args)).stdout.trim().split('\n');
      return lines.flatMap((line) => Object.values(JSON.parse(line)).flat() as number[]);
    };
    for (const [command, model, data] of [
      ['score', join(FIXTURES, 'armorm', 'tiny'), writeRows(path('answers.jsonl'), answers)],
      ['logprobs', POLICY, writeRows(path('pairs.jsonl'), pairs)],
    ] as const) {
      const [mine, wanted] = [await numbers(command, model, data, 'cuda'), await numbers(command, model, data, 'cpu')];
      expect(mine.length).toBe(command === 'score' ? 4 : 24);
      mine.forEach((value, i) => {
        expect(Math.abs(value - wanted[i]!), `${command} ${i}`).toBeLessThan(0.02 * Math.max(1, Math.abs(wanted[i]!)));
      });
    }
  });

  it('but not text', async () => {
    await using model = await Model.load(POLICY, { device: 'cuda', dtype: 'bfloat16' });
    await expectSentence(() => model.generate([[1, 2]], { maxNewTokens: 2 }), 'ERR_DEVICE', 'on the CPU only');
  });
});

const ARGS = {
  ...{ dtype: 'bfloat16', perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 2, maxSteps: 3, learningRate: 1e-3 },
  ...{ beta: 0.1, alpha: 0.5, microbatchTokens: 100, loggingSteps: 1, evalSteps: 3, saveSteps: 2, disableTqdm: true },
} satisfies Partial<TrainingArgsInput>;
const train = trainingOn(rows, tokenRows(2, 2), ARGS);

describe.each<[string, Partial<TrainingArgsInput>, string?]>([
  ['of all weights, layers computed again', { gradientCheckpointing: true }],
  ['with a reference in memory, prompts not shared', { sharePrompt: false }, REFERENCE],
  ['of adapters that drop inputs', { usePeft: true, loraR: 4, loraDropout: 0.2 }],
  ['in SimPO', { lossType: 'simpo', alpha: undefined }],
])('a run %s', (name, args, refModel) => {
  const run = async (device: 'cpu' | 'cuda', dir: string, resumeFromCheckpoint?: string) => {
    const options = refModel === undefined ? {} : { refModel };
    await train(dir, { ...args, device }, { resumeFromCheckpoint }, options);
    return metricsOf(dir);
  };

  it('is on a GPU what it is on the CPU, and resumes to the same bytes', async () => {
    const wanted = await run('cpu', path(`${name}-cpu`));
    const found = await run('cuda', path(`${name}-gpu`));
    expect(found.length).toBe(wanted.length);
    for (const [i, line] of found.entries()) {
      expect(Object.keys(line)).toEqual(Object.keys(wanted[i]!));
      for (const key of ['loss', 'eval_loss', 'grad_norm', 'learning_rate', 'logps/rejected'].filter(
        (k) => k in line,
      )) {
        expect(Math.abs(line[key]! - wanted[i]![key]!), `${key} of line ${i}`).toBeLessThan(
          0.02 * Math.max(0.1, Math.abs(wanted[i]![key]!)),
        );
      }
    }
    const file = args.usePeft ? 'adapter_model.safetensors' : 'model.safetensors';
    const [mine, theirs] = ['gpu', 'cpu'].map((device) => readTensors(path(`${name}-${device}`, file)));
    for (const [tensor, values] of mine!) {
      // Three updates of at most the learning rate each, whose signs differ where a gradient is all but zero.
      expect(maxAbsDifference(values, theirs!.get(tensor)!), tensor).toBeLessThan(8e-3);
    }
    const resumed = await run('cuda', path(`${name}-again`), path(`${name}-gpu`, 'checkpoint-2'));
    expect(resumed).toEqual(found);
    expect(readTensors(path(`${name}-again`, file))).toEqual(mine);
  });
});

it('a loss that is no number, found when its update is queued already, leaves that out and names its rows', async () => {
  const POISON = 198; // beyond the ids of tokenRows
  const model = poisonedPolicy(path('poisoned'), POISON, Number.NaN);
  const trainDataset = rows.map((row, i) => (i === 5 ? { ...row, source_chosen: [POISON, 3] } : row));
  const sft = {
    ...{ ...ARGS, lossType: 'sft', beta: undefined, alpha: undefined },
    ...{ device: 'cuda', warmupRatio: 0, evalStrategy: 'no' },
  } as const;
  const outputDir = path('left out');
  await using trainer = new Trainer({ model, trainDataset, args: { ...sft, nonFinite: 'skip', outputDir } });
  const weights: string[] = [await (await trainer.model()).fingerprint()];
  for await (const { metrics } of trainer.steps()) {
    expect('loss' in metrics).toBe(weights.length !== 2);
    weights.push(await (await trainer.model()).fingerprint());
  }
  expect(weights.map((hash) => weights.indexOf(hash))).toEqual([0, 1, 1, 3]);
  await expectFailure(
    () => train(path('stopped'), { ...sft, microbatchTokens: 1 }, {}, { model, trainDataset }),
    'ERR_NON_FINITE',
    /^stopped at step 2, before its update: the loss of a micro-batch is -?nan \(trainDataset\[5\]\)$/,
  );
});

describe('the memory of a GPU', () => {
  // Of as much that what is left over in the slabs of native/memory.h does not count.
  it('is what was forecast', async () => {
    const shape = { vocab_size: 512, hidden_size: 1024, intermediate_size: 2048, num_hidden_layers: 4 };
    const heads = { num_attention_heads: 8, num_key_value_heads: 4, head_dim: 128, max_position_embeddings: 4096 };
    const options = { dtype: 'bfloat16', device: 'cuda' } as const;
    await using model = await Model.create({ model_type: 'llama', ...shape, ...heads }, options);
    const random = randomOf(1);
    const objective: Objective = { lossType: 'wrpo', beta: 0.1, alpha: 0.3 };
    const held = [quadruple(random, 271, [240, 250, 240], 512)];
    const packed = batchOf({ rows: held, objective, reference: new Float64Array(3), normalizer: 1 });
    for (const gradient of model.gradients().values()) gradient.dispose();
    const { current } = model.memory({ resetPeak: true });
    await model.accumulate(packed, { objective: formOf(objective), normalizer: 1 });
    const plan = forecast(model.config, packed.tokens.length, Number.POSITIVE_INFINITY, options);
    const share = (model.memory().peak - current) / (plan.activations + plan.workspace);
    expect(share).toBeGreaterThan(0.95);
    expect(share).toBeLessThan(1.05);
    // Without the two moments.
    expect(current / (plan.states / 2)).toBeCloseTo(1, 2);
  });

  const tooSmall = (mebibytes: number) => {
    const file = writeRunFile(path(`${mebibytes}.yaml`), {
      ...{
        model_name_or_path: POLICY,
        dataset_name: writeRows(path('rows.jsonl'), rows),
        device: 'cuda',
        dtype: 'auto',
      },
      output_dir: path(`${mebibytes}`),
    });
    return fail(['train', '--config', file], 1, { env: { WRPO_EMULATED_MEMORY: String(mebibytes * 2 ** 20) } });
  };

  // Enough for the reference's pass, but not for gradients and moments; and not enough for either.
  it.each([
    [17, true],
    [16, false],
  ])('when %d MiB are not enough ends the run with forecast, peak and what to change', async (size, reference) => {
    expect(await tooSmall(size)).toMatch(
      /GPU's memory is not enough: 0\.0 GiB were in use at most, 0\.\d GiB were forecast; lower microbatch_tokens \(\d+\), set gradient_checkpointing: true or train adapters/,
    );
    expect(readJsonLines(path(`${size}`, 'reference-train.jsonl')).length > 1).toBe(reference);
  });

  it('when it does not hold the weights says so', async () => {
    expect(await tooSmall(0.2)).toMatch(
      /not enough for the model's weights: 0\.0 GiB were in use .*adapters \(use_peft\)/,
    );
  });
});
