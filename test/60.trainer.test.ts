/** The training loop: a recorded run of a TRL-based trainer replayed, and every promise the loop makes beside it. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { packRows } from '../lib/data/pack.ts';
import { type Role, toPreferenceRow } from '../lib/data/preferences.ts';
import { WrpoError } from '../lib/errors.ts';
import { Model } from '../lib/model/model.ts';
import { encodeRows } from '../lib/text/encode.ts';
import type { TrainingArgsInput } from '../lib/train/args.ts';
import type { Metrics } from '../lib/train/metrics.ts';
import { type StepResult, Trainer, type TrainerOptions } from '../lib/train/trainer.ts';
import {
  expectFailure,
  filesBelow,
  metricsOf,
  POLICY,
  poisonedPolicy,
  REFERENCE,
  type Row,
  readJson,
  readJsonLines,
  readTensors,
  scratchDirectory,
  succeed,
  TRACE,
  tokenRows,
  weightsOf,
  writeRows,
  writeRunFile,
} from './training.ts';

const path = scratchDirectory('trainer');
const ROLES: Role[] = ['source_chosen', 'target_chosen', 'rejected'];
const LN2 = Math.log(2);

let runs = 0;
/** Trains in this process, and lets go of everything. */
async function train(
  trainDataset: string | readonly unknown[],
  args: Partial<TrainingArgsInput> = {},
  options: Partial<TrainerOptions> = {},
) {
  const outputDir = args.outputDir ?? path(`run-${++runs}`);
  const steps: StepResult[] = [];
  await using trainer = new Trainer({
    model: POLICY,
    trainDataset,
    args: { loggingSteps: 1, disableTqdm: true, ...(args.lossType === 'sft' ? {} : { beta: 0.1 }), ...args, outputDir },
    ...options,
  });
  trainer.on('step', (step) => steps.push(step));
  const result = await trainer.train();
  return { outputDir, result, steps, metrics: metricsOf(outputDir) };
}

/** Summed log-probs by the engine alone. */
async function logProbs(model: string, rows: readonly unknown[], roles: Role[] = ROLES) {
  await using loaded = await Model.load(model);
  const { vocabSize } = loaded.config;
  const encoded = await encodeRows(
    rows.map((row, i) => toPreferenceRow(row, `row ${i}`)),
    { roles, maxLength: 512, vocabSize },
  );
  const { sums, counts } = await loaded.logProbs(packRows(encoded.rows, roles));
  return rows.map((_, i) => ({
    ...(Object.fromEntries(roles.map((role, k) => [role, sums[i * roles.length + k]!])) as Record<Role, number>),
    tokens: Array.from(counts.subarray(i * roles.length, (i + 1) * roles.length)).reduce((a, b) => a + b),
  }));
}

type Columns = Awaited<ReturnType<typeof logProbs>>;
const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const softplus = (z: number) => Math.log1p(Math.exp(-Math.abs(z))) + Math.max(z, 0);

/** Eq. 6 of the paper, row by row. */
function wrpoLosses(policy: Columns, reference: Columns, alpha: number, beta: number): number[] {
  return policy.map((row, i) => {
    const reward = (role: Role) => beta * (row[role] - reference[i]![role]);
    const chosen = alpha * reward('source_chosen') + (1 - alpha) * reward('target_chosen');
    return softplus(reward('rejected') - chosen);
  });
}

describe('the recorded run', () => {
  const trace = readJson(join(TRACE, 'trace.json'));
  const noise = trace.float32_noise;
  const rows = readJsonLines<Row>(join(TRACE, 'train.jsonl'));
  const keys = {
    loss_type: 'wrpo',
    beta: trace.beta,
    alpha: trace.alpha_end,
    learning_rate: trace.lr,
    warmup_steps: trace.warmup_steps,
    max_grad_norm: trace.max_grad_norm,
    per_device_train_batch_size: trace.bs,
    gradient_accumulation_steps: trace.accum,
    shuffle: false,
    logging_steps: 1,
  };
  const args = {
    ...{ beta: trace.beta, alpha: trace.alpha_end, learningRate: trace.lr, warmupSteps: trace.warmup_steps },
    ...{ perDeviceTrainBatchSize: trace.bs, gradientAccumulationSteps: trace.accum, shuffle: false },
  };

  /** Losses and gradient norms against the recorded float64 run, weights against the recorded last ones. */
  function expectTrace(dir: string) {
    const metrics = metricsOf(dir);
    expect(metrics).toHaveLength(trace.total_steps);
    for (const [i, line] of metrics.entries()) {
      const { float64_loss, float64_grad_norm } = noise;
      expect(Math.abs(line.loss! - float64_loss[i]), `loss of step ${i}`).toBeLessThan(3 * noise.loss_max_abs);
      const ratio = line.grad_norm! / float64_grad_norm[i];
      expect(Math.abs(ratio - 1), `grad_norm of step ${i}`).toBeLessThan(3 * noise.grad_norm_max_rel);
    }
    const expected = readTensors(join(TRACE, 'final', 'model.safetensors'));
    const found = readTensors(join(dir, 'model.safetensors'));
    expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
    let worst = 0;
    for (const [name, values] of expected) {
      const ours = found.get(name)!;
      expect(ours.length).toBe(values.length);
      for (const [i, value] of values.entries()) worst = Math.max(worst, Math.abs(value - ours[i]!));
    }
    expect(worst).toBeLessThan(3 * noise.final_weights_max_abs);
  }

  describe('by `wrpo train`', () => {
    const out = path('trace');

    beforeAll(async () => {
      const config = writeRunFile(path('trace.yaml'), {
        ...keys,
        model_name_or_path: POLICY,
        dataset_name: join(TRACE, 'train.jsonl'),
        output_dir: out,
      });
      await succeed(['train', '--config', config]);
    });

    it('losses, gradient norms and final weights', () => expectTrace(out));

    it('every metric that it has, and learning rate and alpha exactly', () => {
      const logged = metricsOf(out);
      for (const [i, expected] of (trace.log as Metrics[]).entries()) {
        const line = logged[i]!;
        expect(line.step).toBe(i + 1);
        expect(line.cur_alpha).toBe(expected.cur_alpha);
        expect(line.cur_alpha).toBe((trace.alpha_end * i) / trace.total_steps);
        expect(Number(line.learning_rate!.toFixed(7))).toBe(expected.learning_rate);
        for (const [name, value] of Object.entries(expected)) {
          if (name.startsWith('logits/')) continue; // needs all logits, which are never held
          expect(line, `step ${i}`).toHaveProperty([name]);
          // A summed log-prob of -200 in float32 is itself known to 1e-5 only.
          const tolerance = 1e-5 * Math.max(1, Math.abs(value) / 100);
          expect(Math.abs(line[name]! - value), `${name} of step ${i}`).toBeLessThan(tolerance);
        }
      }
    });

    it('config.yaml runs again, to the same bytes', async () => {
      const again = path('trace-again');
      await succeed(['train', '--config', join(out, 'config.yaml'), '--output_dir', again]);
      expect(weightsOf(again).equals(weightsOf(out))).toBe(true);
      expect(metricsOf(again)).toEqual(metricsOf(out));
      const [first, second] = [out, again].map((dir) => parse(readFileSync(join(dir, 'config.yaml'), 'utf8')));
      expect(second).toEqual({ ...first, output_dir: again });
    });
  });

  it.each([
    ['one row a micro-batch', { microbatchTokens: 1 }],
    ['everything in one', { microbatchTokens: 1_000_000 }],
    ['prompts not shared', { sharePrompt: false }],
    ['the global batch cut another way', { perDeviceTrainBatchSize: 4, gradientAccumulationSteps: 1 }],
  ])('the same with %s', async (_, changes) => {
    const { outputDir } = await train(rows, { ...args, ...changes });
    expectTrace(outputDir);
  });

  it('the same with the reference in memory', async () => {
    const { outputDir } = await train(rows, args, { refModel: POLICY });
    expect(existsSync(join(outputDir, 'reference-train.jsonl'))).toBe(false);
    expectTrace(outputDir);
    await using refModel = await Model.load(POLICY);
    const loaded = await train(rows, args, { refModel });
    expect(weightsOf(loaded.outputDir).equals(weightsOf(outputDir))).toBe(true);
    expect(await refModel.fingerprint()).toMatch(/^[0-9a-f]{16}$/); // the caller's own model stays open
  });

  it('in float64 to the digits of the record, in bfloat16 to its own', async () => {
    const { metrics } = await train(rows, { ...args, dtype: 'float64', maxSteps: trace.total_steps });
    for (const [i, line] of metrics.entries()) expect(line.loss).toBeCloseTo(noise.float64_loss[i], 7);
    const low = await train(rows, { ...args, dtype: 'bfloat16' });
    for (const [i, line] of low.metrics.entries()) {
      expect(Math.abs(line.loss! - noise.float64_loss[i])).toBeLessThan(0.03);
    }
  });
});

describe('batches', () => {
  const rows = tokenRows(6, 1);
  const still = { learningRate: 0, shuffle: false, isDynamic: false, alpha: 0.3 } as const;
  const batchOf = (size: number) => ({ perDeviceTrainBatchSize: size, gradientAccumulationSteps: 1 });

  it('a short last batch is normalised by its own count', async () => {
    const options = { refModel: REFERENCE };
    const { metrics } = await train(rows, { ...still, ...batchOf(4), microbatchTokens: 60 }, options);
    const one = await train(rows, { ...still, ...batchOf(1) }, options);
    const losses = one.metrics.map((line) => line.loss!);
    expect(losses.every((loss) => Math.abs(loss - LN2) > 1e-3)).toBe(true);
    const independent = wrpoLosses(await logProbs(POLICY, rows), await logProbs(REFERENCE, rows), 0.3, 0.1);
    for (const [i, loss] of losses.entries()) expect(loss).toBeCloseTo(independent[i]!, 5);
    expect(metrics).toHaveLength(2);
    expect(metrics[0]!.loss).toBeCloseTo(mean(losses.slice(0, 4)), 6);
    expect(metrics[1]!.loss).toBeCloseTo(mean(losses.slice(4)), 6);
    // The gradient as well: the last two rows by themselves have the same.
    const alone = await train(rows.slice(4), { ...still, ...batchOf(2), microbatchTokens: 60 }, options);
    expect(metrics[1]!.grad_norm).toBe(alone.metrics[0]!.grad_norm);
  });

  it('epochs, whole and in part, and maxSteps', async () => {
    const epochs = async (args: Partial<TrainingArgsInput>) => {
      const sft = { learningRate: 0, shuffle: false, lossType: 'sft' } as const;
      const { metrics, result } = await train(rows, { ...sft, ...batchOf(4), ...args });
      expect(result.globalStep).toBe(metrics.length);
      return metrics.map((line) => line.epoch);
    };
    expect(await epochs({ numTrainEpochs: 2 })).toEqual([0.5, 1, 1.5, 2]);
    expect(await epochs({ numTrainEpochs: 1.5 })).toEqual([0.5, 1, 1.5]);
    expect(await epochs({ numTrainEpochs: 0.1 })).toEqual([0.5]);
    expect(await epochs({ maxSteps: 3 })).toEqual([0.5, 1, 1.5]);
    expect(await epochs({ maxSteps: 1, numTrainEpochs: 3 })).toEqual([0.5]);
  });

  it('the seed alone decides the order, and every epoch has its own', async () => {
    const values = (await logProbs(POLICY, rows)).map((row) => row.rejected);
    // With batches of one row at a learning rate of 0 a step's log-prob tells which row it took.
    const order = async (args: Partial<TrainingArgsInput>) => {
      const { metrics } = await train(rows, { ...still, ...batchOf(1), numTrainEpochs: 2, shuffle: true, ...args });
      return metrics.map((line) => values.findIndex((value) => Math.abs(value - line['logps/rejected']!) < 1e-3));
    };
    const first = await order({});
    const epochs = [first.slice(0, 6), first.slice(6)];
    for (const epoch of epochs) expect([...epoch].sort()).toEqual([0, 1, 2, 3, 4, 5]);
    expect(epochs[0]).not.toEqual(epochs[1]);
    expect(epochs[0]).not.toEqual([0, 1, 2, 3, 4, 5]);
    expect(await order({})).toEqual(first);
    expect(await order({ seed: 43 })).not.toEqual(first);
    expect(await order({ shuffle: false })).toEqual([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
  });
});

describe('the other losses', () => {
  const rows = tokenRows(6, 2);
  const args = { perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 2, learningRate: 1e-3, numTrainEpochs: 3 };

  it('sigmoid learns a pair, with the metrics of a pair', async () => {
    const pairs = rows.map(({ prompt, target_chosen, rejected }) => ({ prompt, chosen: target_chosen, rejected }));
    const { metrics } = await train(pairs, { ...args, lossType: 'sigmoid' });
    expect(metrics[0]!.loss).toBeCloseTo(LN2, 5);
    expect(metrics.at(-1)!.loss).toBeLessThan(LN2 - 0.1);
    expect(metrics.at(-1)!['rewards/margins']).toBeGreaterThan(0.1);
    expect(metrics[0]).not.toHaveProperty('cur_alpha');
    expect(metrics[0]).not.toHaveProperty(['rewards/source_chosen']);
    expect(metrics[0]!['logps/chosen']).toBe(metrics[0]!['logps/target_chosen']);
  });

  it('on quadruples sigmoid is wrpo without the source', async () => {
    const sigmoid = await train(rows, { ...args, lossType: 'sigmoid' });
    const wrpo = await train(rows, { ...args, alpha: 0 });
    for (const [i, line] of sigmoid.metrics.entries()) expect(line.loss).toBeCloseTo(wrpo.metrics[i]!.loss!, 5);
  });

  it('sft is the mean over the completions’ tokens, needs no reference and learns', async () => {
    const completions = rows.map(({ prompt, target_chosen }) => ({ prompt, completion: target_chosen }));
    const { metrics, outputDir } = await train(completions, { ...args, lossType: 'sft', shuffle: false });
    const known = await logProbs(POLICY, completions, ['completion']);
    const batch = known.slice(0, 4);
    const tokens = batch.reduce((sum, row) => sum + row.tokens, 0);
    expect(tokens).toBe(completions.slice(0, 4).reduce((sum, row) => sum + row.completion.length, 0));
    const loss = -batch.reduce((sum, row) => sum + row.completion, 0) / tokens;
    expect(metrics[0]!.loss).toBeCloseTo(loss, 5);
    expect(metrics[0]!['logps/completion']).toBeCloseTo(mean(batch.map((row) => row.completion)), 3);
    expect(metrics.at(-1)!.loss).toBeLessThan(loss - 0.3);
    expect(existsSync(join(outputDir, 'reference-train.jsonl'))).toBe(false);
    // The best response of a preference row serves as its completion: the source's.
    const fromPairs = await train(rows, { ...args, lossType: 'sft', shuffle: false });
    const sources = await train(
      rows.map(({ prompt, source_chosen }) => ({ prompt, completion: source_chosen })),
      { ...args, lossType: 'sft', shuffle: false },
    );
    expect(fromPairs.metrics).toEqual(sources.metrics);
  });

  it('a constant learning rate never warms up, unless it is said to', async () => {
    const still = { ...args, lossType: 'sigmoid', numTrainEpochs: 2, warmupSteps: 2 } as const;
    const rates = async (lrSchedulerType: 'constant' | 'constant_with_warmup') =>
      (await train(rows, { ...still, lrSchedulerType })).metrics.map((line) => line.learning_rate);
    expect(await rates('constant')).toEqual([1e-3, 1e-3, 1e-3, 1e-3]);
    expect(await rates('constant_with_warmup')).toEqual([0, 5e-4, 1e-3, 1e-3]);
  });

  it('label smoothing and a constant alpha', async () => {
    const still = { ...args, learningRate: 0, shuffle: false, numTrainEpochs: 1 };
    const [policy, reference] = [await logProbs(POLICY, rows), await logProbs(REFERENCE, rows)];
    const right = wrpoLosses(policy, reference, 0.4, 0.1);
    const wrong = right.map((loss) => -Math.log1p(-Math.exp(-loss))); // −log σ(−z)
    const smoothed = right.map((loss, i) => 0.9 * loss + 0.1 * wrong[i]!);
    const { metrics } = await train(
      rows,
      { ...still, isDynamic: false, alpha: 0.4, labelSmoothing: 0.1 },
      { refModel: REFERENCE },
    );
    expect(metrics.map((line) => line.cur_alpha)).toEqual([0.4, 0.4]);
    expect(metrics[0]!.loss).toBeCloseTo(mean(smoothed.slice(0, 4)), 5);
  });
});

describe('what a run tells', () => {
  const rows = tokenRows(8, 3);
  const held = tokenRows(5, 4);
  const args = {
    ...{
      perDeviceTrainBatchSize: 2,
      gradientAccumulationSteps: 1,
      learningRate: 1e-3,
      alpha: 0.5,
      lrSchedulerType: 'constant' as const,
    },
    ...{ warmupRatio: 0, loggingSteps: 3, evalSteps: 2, saveSteps: 2, beta: 0.1, disableTqdm: true },
  } as const;
  const out = path('told');
  const events: [string, unknown][] = [];
  const steps: StepResult[] = [];
  let result: Awaited<ReturnType<Trainer['train']>>;
  let evaluated: Metrics;

  beforeAll(async () => {
    const record = (name: string) => (value: unknown) => events.push([name, value]);
    await using trainer = new Trainer({
      model: POLICY,
      args: { ...args, outputDir: out },
      trainDataset: rows,
      evalDataset: held,
      callbacks: { log: record('log'), evaluate: record('evaluate'), save: record('save') },
    });
    trainer.on('step', (step) => steps.push(step));
    result = await trainer.train();
    evaluated = await trainer.evaluate();
  });

  it('steps, logs, evaluations and saves in their order', () => {
    expect(steps.map(({ step, totalSteps }) => [step, totalSteps])).toEqual([1, 2, 3, 4].map((step) => [step, 4]));
    // Checkpoints are written while training goes on.
    expect(events.map(([name]) => name).filter((name) => name !== 'save')).toEqual([
      ...['evaluate', 'log'], // step 2
      'log', // step 3
      'log', // step 4, the last: it always logs
      ...['evaluate', 'log'], // the end
      'evaluate', // the call above
    ]);
    const saved = events.filter(([name]) => name === 'save').map(([, dir]) => dir);
    expect(saved).toEqual([join(out, 'checkpoint-2'), join(out, 'checkpoint-4'), out]);
    const logs = events.filter(([name]) => name === 'log').map(([, line]) => line);
    expect(logs).toEqual(readJsonLines(join(out, 'metrics.jsonl')));
  });

  it('a log is the exact mean over its interval', () => {
    const lines = readJsonLines(join(out, 'metrics.jsonl')).filter((line) => 'loss' in line);
    expect(lines.map(({ step, epoch }) => [step, epoch])).toEqual([
      [3, 0.75],
      [4, 1],
    ]);
    for (const [line, from, to] of [
      [lines[0]!, 0, 3],
      [lines[1]!, 3, 4],
    ] as const) {
      const part = steps.slice(from, to).map(({ metrics }) => metrics);
      for (const name of Object.keys(part[0]!)) {
        if (name === 'grad_norm' || name === 'learning_rate' || name === 'cur_alpha') {
          expect(line[name]).toBe(part.at(-1)![name]);
        } else expect(line[name], name).toBeCloseTo(mean(part.map((metrics) => metrics[name]!)), 9);
      }
      expect(line.tokens_per_second).toBeGreaterThan(0);
      expect(line.peak_memory_bytes).toBeGreaterThan(1e5);
    }
    expect(result.trainingLoss).toBeCloseTo(mean(steps.map(({ metrics }) => metrics.loss!)), 9);
    expect(result.globalStep).toBe(4);
  });

  it('eval_loss is taken with the final alpha, beside it that of the moment', async () => {
    const lines = readJsonLines(join(out, 'metrics.jsonl')).filter((line) => 'eval_loss' in line);
    expect(lines.map((line) => line.step)).toEqual([2, 4]);
    const reference = await logProbs(POLICY, held);
    const halfway = await logProbs(join(out, 'checkpoint-2'), held);
    expect(steps[1]!.metrics.cur_alpha).toBe(0.125);
    expect(lines[0]!.eval_loss).toBeCloseTo(mean(wrpoLosses(halfway, reference, 0.5, 0.1)), 5);
    expect(lines[0]!.eval_loss_current_alpha).toBeCloseTo(mean(wrpoLosses(halfway, reference, 0.125, 0.1)), 5);
    expect(Math.abs(lines[0]!.eval_loss! - lines[0]!.eval_loss_current_alpha!)).toBeGreaterThan(1e-4);
    const end = await logProbs(out, held);
    expect(lines[1]!.eval_loss).toBeCloseTo(mean(wrpoLosses(end, reference, 0.5, 0.1)), 5);
    expect(lines[1]!.eval_loss_current_alpha).toBe(lines[1]!.eval_loss);
    const margins = end.map((row, i) => {
      const reward = (role: Role) => 0.1 * (row[role] - reference[i]![role]);
      return 0.5 * (reward('source_chosen') + reward('target_chosen')) - reward('rejected');
    });
    expect(lines[1]!['eval_rewards/margins']).toBeCloseTo(mean(margins), 4);
    expect(lines[1]!['eval_rewards/accuracies']).toBe(mean(margins.map((margin) => Number(margin > 0))));
    const { step: _, epoch: __, ...last } = lines[1]!;
    expect(evaluated).toEqual(last);
    expect(result.metrics).toMatchObject(last);
  });

  it('before training too, and without a trainer’s alpha when that is constant', async () => {
    const options = { model: POLICY, trainDataset: rows, evalDataset: held };
    await using moving = new Trainer({ ...options, refModel: REFERENCE, args: { ...args, outputDir: path('before') } });
    const [policy, reference] = [await logProbs(POLICY, held), await logProbs(REFERENCE, held)];
    const atFirst = await moving.evaluate();
    expect(atFirst.eval_loss).toBeCloseTo(mean(wrpoLosses(policy, reference, 0.5, 0.1)), 5);
    expect(atFirst.eval_loss_current_alpha).toBeCloseTo(mean(wrpoLosses(policy, reference, 0, 0.1)), 5);
    await using constant = new Trainer({
      ...{ ...options, refModel: REFERENCE },
      args: { ...args, isDynamic: false, outputDir: path('before-constant') },
    });
    const { eval_loss, eval_loss_current_alpha } = await constant.evaluate();
    expect(eval_loss_current_alpha).toBe(eval_loss);
    await using without = new Trainer({
      model: POLICY,
      trainDataset: rows,
      args: { ...args, outputDir: path('no-eval') },
    });
    await expectFailure(() => without.evaluate(), 'ERR_CONFIG', /evalDataset/);
  });

  it('trainer_state.json, manifest.json and config.yaml', () => {
    const state = readJson(join(out, 'trainer_state.json'));
    expect(state).toMatchObject({ global_step: 4, max_steps: 4, epoch: 1 });
    const last = state.log_history.pop();
    expect(last).toMatchObject({ step: 4, epoch: 1 });
    expect([last.train_runtime > 0, last.train_loss > 0]).toEqual([true, true]);
    expect(state.log_history).toEqual(readJsonLines(join(out, 'metrics.jsonl')));
    const halfway = readJson(join(out, 'checkpoint-2', 'trainer_state.json'));
    expect(halfway).toMatchObject({ global_step: 2, max_steps: 4, epoch: 0.5 });
    expect(halfway.log_history).toEqual(state.log_history.slice(0, 1));
    const manifest = readJson(join(out, 'manifest.json'));
    expect(manifest).toMatchObject({
      seed: 42,
      node: process.version,
      libtorch: expect.stringMatching(/^\d+\.\d+\.\d+/),
    });
    expect(manifest.hashes['model weights']).toMatch(/^[0-9a-f]{16}$/);
    const config = parse(readFileSync(join(out, 'config.yaml'), 'utf8'));
    expect(config).toMatchObject({ learning_rate: 1e-3, alpha: 0.5, eval_steps: 2, output_dir: out, seed: 42 });
    expect(filesBelow(out).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });

  it('a step at a time, and no further than asked', async () => {
    const dir = path('stepwise');
    const seen: number[] = [];
    await using trainer = new Trainer({ model: POLICY, args: { ...args, outputDir: dir }, trainDataset: rows });
    const before = await (await trainer.model()).fingerprint();
    for await (const { step, totalSteps, metrics } of trainer.steps()) {
      seen.push(step);
      expect(totalSteps).toBe(4);
      expect(metrics.loss).toBe(steps[step - 1]!.metrics.loss);
      if (step === 2) break;
    }
    expect(seen).toEqual([1, 2]);
    expect(existsSync(join(dir, 'model.safetensors'))).toBe(false);
    const model = await trainer.model();
    expect(await model.fingerprint()).not.toBe(before);
    // What it has learned so far is what the other run had at this step.
    await trainer.saveModel(path('stepwise-model'));
    expect(weightsOf(path('stepwise-model')).equals(weightsOf(join(out, 'checkpoint-2')))).toBe(true);
  });

  it('is saved in bfloat16 when asked, rounded to nearest', async () => {
    const dir = path('bfloat16');
    const { evalSteps: _, ...rest } = args;
    await train(rows, { ...rest, outputDir: dir, saveDtype: 'bfloat16' });
    expect(readJson(join(dir, 'config.json'))).toMatchObject({ dtype: 'bfloat16' });
    const masters = readTensors(join(dir, 'checkpoint-4', 'model.safetensors'));
    const saved = readTensors(join(dir, 'model.safetensors'));
    expect([...saved.keys()]).toEqual([...masters.keys()]);
    for (const [name, values] of masters) {
      const bits = new Uint32Array(values.buffer);
      const rounded = bits.map((word) => (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000);
      expect(Buffer.from(rounded.buffer).equals(Buffer.from(saved.get(name)!.buffer)), name).toBe(true);
    }
    await using model = await Model.load(dir);
    expect(model.dtype).toBe('float32');
  });
});

describe('what stops a run', () => {
  const POISON = 198; // beyond the ids of tokenRows
  const args = {
    perDeviceTrainBatchSize: 2,
    gradientAccumulationSteps: 1,
    shuffle: false,
    disableTqdm: true,
    saveSteps: 1,
  };
  const nothingSaved = (dir: string) =>
    expect(filesBelow(dir).filter((name) => /safetensors|checkpoint/.test(name))).toEqual([]);

  it.each([Number.NaN, Number.POSITIVE_INFINITY])('a weight of %d: before any update, naming rows', async (value) => {
    const model = poisonedPolicy(path(`poisoned-${value}`), POISON, value);
    const rows = tokenRows(6, 5).map((row) => ({ ...row, prompt: [POISON, ...row.prompt] }));
    const file = writeRows(path('poisoned.jsonl'), rows);
    for (const lossType of ['wrpo', 'sft'] as const) {
      const outputDir = path(`poisoned-${value}-${lossType}`);
      await using trainer = new Trainer({ model, trainDataset: file, args: { ...args, lossType, outputDir } });
      const before = await (await trainer.model()).fingerprint();
      await expectFailure(
        () => trainer.train(),
        'ERR_NON_FINITE',
        /step 1\b.*is -?nan \(poisoned\.jsonl line 1( … poisoned\.jsonl line 2)?\)/i,
      );
      expect(await (await trainer.model()).fingerprint()).toBe(before);
      nothingSaved(outputDir);
    }
  });

  it('in the middle: the step and the row, with the steps before it kept', async () => {
    const model = poisonedPolicy(path('poisoned-late'), POISON, Number.NaN);
    const rows = tokenRows(6, 6).map((row, i) => (i === 4 ? { ...row, source_chosen: [POISON, 3, 4] } : row));
    const outputDir = path('poisoned-late-run');
    const file = writeRows(path('late.jsonl'), rows);
    await using trainer = new Trainer({
      ...{ model, trainDataset: file },
      args: { ...args, lossType: 'sft', microbatchTokens: 1, outputDir },
    });
    await expectFailure(
      () => trainer.train(),
      'ERR_NON_FINITE',
      /at step 3, before its update.*\(late\.jsonl line 5\)/,
    );
    expect(existsSync(join(outputDir, 'checkpoint-2', 'manifest.json'))).toBe(true);
    expect(filesBelow(outputDir).filter((name) => /checkpoint-3|^model/.test(name))).toEqual([]);
  });

  it('a reference with a NaN, cached or resident', async () => {
    const poisoned = poisonedPolicy(path('poisoned-reference'), POISON, Number.NaN);
    const rows = tokenRows(4, 7).map((row, i) => (i === 1 ? { ...row, rejected: [POISON, 5, 6] } : row));
    const outputDir = path('poisoned-reference-run');
    await using resident = new Trainer({
      ...{ model: POLICY, refModel: poisoned, trainDataset: rows },
      args: { ...args, microbatchTokens: 1, outputDir },
    });
    await expectFailure(() => resident.train(), 'ERR_NON_FINITE', /step 1\b.*\(trainDataset\[1\]\)/);
    nothingSaved(outputDir);
    const cachedDir = path('poisoned-cached-run');
    await using cached = new Trainer({ model: poisoned, trainDataset: rows, args: { ...args, outputDir: cachedDir } });
    await expectFailure(() => cached.train(), 'ERR_NON_FINITE', /step 1\b.*trainDataset\[1\]/);
    // Nothing that is not a number may have reached the column, where a later run would read it.
    const column = readFileSync(join(cachedDir, 'reference-train.jsonl'), 'utf8');
    expect(column).not.toMatch(/null|NaN/);
    nothingSaved(cachedDir);
  });

  it('a reference file that is not the policy’s: the check before the first update names the row', async () => {
    const rows = writeRows(path('tampered.jsonl'), tokenRows(4, 8));
    const outputDir = path('tampered');
    await train(rows, { ...args, maxSteps: 1, outputDir });
    const file = join(outputDir, 'reference-train.jsonl');
    const lines = readFileSync(file, 'utf8').split('\n');
    const second = JSON.parse(lines[2]!);
    lines[2] = JSON.stringify({ ...second, target_chosen: second.target_chosen + 0.5 });
    writeFileSync(file, lines.join('\n'));
    const before = weightsOf(outputDir);
    await expectFailure(
      () => train(rows, { ...args, maxSteps: 1, outputDir }),
      'ERR_INTERNAL',
      /before the first update.*target_chosen of tampered\.jsonl line 2 differs by 0\.(5|49|50)/,
    );
    expect(weightsOf(outputDir).equals(before)).toBe(true);
  });

  it('arguments that cannot be meant, when the trainer is made', () => {
    const make = (args: Record<string, unknown>) => () =>
      new Trainer({
        model: POLICY,
        trainDataset: [],
        args: { outputDir: path('never'), ...args } as TrainingArgsInput,
      });
    expect(make({ learningRat: 1 })).toThrow(/unknown key "learningRat"; did you mean "learningRate"\?/);
    expect(make({ beta: 0 })).toThrow(/"beta".*found 0/);
    expect(make({ alpha: 2 })).toThrow(WrpoError);
    expect(make({ lossType: 'dop' })).toThrow(/"loss_type".*"wrpo"/);
    expect(make({ outputDir: undefined })).toThrow(/"output_dir"/);
    expect(existsSync(path('never'))).toBe(false);
  });
});
