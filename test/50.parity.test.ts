/**
 * Against Hugging Face transformers: fixtures/llama holds a tiny policy and reference, and what transformers, PyTorch's
 * autograd and torch.optim.AdamW make of them in float64 and float32. The float32 results here may be as far from the
 * float64 ones as twice PyTorch's own float32 results are.
 */
import { copyFileSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import { Model } from '../lib/model/model.ts';
import type { EncodedRow } from '../lib/text/encode.ts';
import { AdamW } from '../lib/train/adamw.ts';
import { type Objective, preferenceLoss, rolesOf } from '../lib/train/objective.ts';
import { alphaAt } from '../lib/train/schedule.ts';
import {
  accumulate,
  batchOf,
  copies,
  expectWithin,
  LLAMA,
  maxAbsDifference,
  PREFERENCE_ROLES,
  type Problem,
  readValues,
  relativeL2,
} from './support.ts';
import { scratchDirectory } from './training.ts';

const expected = JSON.parse(readFileSync(join(LLAMA, 'expected.json'), 'utf8'));
const oracle = readValues(join(LLAMA, 'expected.safetensors'));
const oracleGradients = readValues(join(LLAMA, 'grads.safetensors'));
const oracleSteps = readValues(join(LLAMA, 'adamw.safetensors'));
const noise = expected.fp32_vs_fp64_max_abs;
const scratch = scratchDirectory('parity');

// Two quadruples; the files hold every response as a sequence of its own, role by role.
const ROWS = 2;
const sequences = (() => {
  const columns = (name: string) => {
    const { shape, values } = oracle.get(name)!;
    return (row: number) => Array.from(values.subarray(row * shape[1]!, (row + 1) * shape[1]!));
  };
  const [ids, labels, mask] = ['input_ids', 'labels', 'attention_mask'].map(columns);
  const [predicted, policy, reference] = ['completion_mask', 'token_logps_f64', 'ref_token_logps_f64'].map(columns);
  return Array.from({ length: ROWS * PREFERENCE_ROLES.length }, (_, r) => {
    const part = (isResponse: boolean) =>
      Int32Array.from(ids!(r).filter((_, c) => mask!(r)[c] === 1 && (labels!(r)[c] !== -100) === isResponse));
    const predictions = (values: number[]) => values.filter((_, c) => predicted!(r)[c] === 1);
    return {
      prompt: part(false),
      response: part(true),
      policy: predictions(policy!(r)),
      reference: predictions(reference!(r)),
    };
  });
})();
const sequence = (row: number, role: number) => sequences[role * ROWS + row]!;
const rows: EncodedRow[] = Array.from({ length: ROWS }, (_, i) => ({
  where: `row ${i}`,
  prompt: sequence(i, 0).prompt,
  responses: Object.fromEntries(PREFERENCE_ROLES.map((role, k) => [role, sequence(i, k).response])),
}));
// In the order of a packed batch.
const inOrder = rows.flatMap((_, i) => PREFERENCE_ROLES.map((_, k) => sequence(i, k)));
const sums = (name: string) =>
  rows.flatMap((_, i) => PREFERENCE_ROLES.map((_, k) => oracle.get(name)!.values[k * ROWS + i]!));

function problemOf(objective: Objective, reference: Float64Array): Problem {
  const all = rolesOf(objective).map((role) => PREFERENCE_ROLES.indexOf(role));
  const picked = rows.flatMap((_, i) => all.map((k) => reference[i * PREFERENCE_ROLES.length + k]!));
  return { rows, objective, reference: Float64Array.from(picked), normalizer: rows.length };
}

const { alpha, beta } = expected.hyper;
const smallBeta = expected.hyper['beta_small (wrpo_beta0.01)'];
const OBJECTIVES: Record<string, Objective> = {
  wrpo: { lossType: 'wrpo', alpha, beta },
  'wrpo_beta0.01': { lossType: 'wrpo', alpha, beta: smallBeta },
  wrpo_alpha0: { lossType: 'wrpo', alpha: 0, beta },
  wrpo_alpha1: { lossType: 'wrpo', alpha: 1, beta },
  'wrpo_label_smoothing0.1': { lossType: 'wrpo', alpha, beta, labelSmoothing: 0.1 },
  dpo: { lossType: 'sigmoid', beta },
};
// How far PyTorch's own float32 takes these losses from float64.
const lossNoise = Math.max(
  ...Object.keys(OBJECTIVES).map((name) => Math.abs(expected.losses_mean_f32[name] - expected.losses_mean_f64[name])),
);

// The spellings of transformers 5 and 4.
describe.each(['config.json', 'config.v4.json'])('%s', (config) => {
  const directory = scratch(config.replace('.json', ''));
  let policy: Model;
  let reference: Model;

  beforeAll(async () => {
    mkdirSync(directory);
    copyFileSync(join(LLAMA, 'policy', config), join(directory, 'config.json'));
    copyFileSync(join(LLAMA, 'policy', 'model.safetensors'), join(directory, 'model.safetensors'));
    [policy, reference] = await Promise.all([Model.load(directory), Model.load(join(LLAMA, 'ref'))]);
  });
  afterAll(() => Promise.all([policy.close(), reference.close()]));

  describe.each([true, false])('sharePrompt %s', (sharePrompt) => {
    it.each(['policy', 'reference'] as const)('log-probs of the %s', async (which) => {
      const model = which === 'policy' ? policy : reference;
      const result = await model.logProbs(packRows(rows, PREFERENCE_ROLES, { sharePrompt }), { perToken: true });
      const tokens = inOrder.flatMap((sequence) => sequence[which]);
      expect([...result.counts]).toEqual(inOrder.map(({ response }) => response.length));
      expectWithin(maxAbsDifference(result.perToken!, tokens), 2 * noise.token_logps);
      const wanted = sums(which === 'policy' ? 'seq_logps_f64' : 'ref_seq_logps_f64');
      expectWithin(maxAbsDifference(result.sums, wanted), 2 * noise.seq_logps);
    });

    it.each(Object.keys(OBJECTIVES))('%s: losses and gradients', async (name) => {
      const objective = OBJECTIVES[name]!;
      const { sums } = await reference.logProbs(packRows(rows, PREFERENCE_ROLES, { sharePrompt }));
      const problem = problemOf(objective, sums);
      await policy.zeroGradients();
      const result = await accumulate(policy, batchOf(problem, undefined, { sharePrompt }), problem);
      expectWithin(Math.abs(result.loss - expected.losses_mean_f64[name]), 2 * lossNoise);
      expectWithin(maxAbsDifference(result.losses, expected.losses_per_quad_f64[name]), 2 * lossNoise);
      const names = name === 'wrpo' ? expected.param_names : expected.few_params;
      const gradients = policy.gradients();
      for (const parameter of names) {
        const wanted = oracleGradients.get(`grad.${name}.${parameter}`)!;
        expect(gradients.get(parameter)!.shape).toEqual(wanted.shape);
        const own = copies(new Map([[parameter, gradients.get(parameter)!]]));
        expectWithin(relativeL2(own, new Map([[parameter, wanted.values]])), 5e-6, parameter);
      }
      const norm = Math.hypot(...[...copies(gradients).values()].map((values) => Math.hypot(...values)));
      expectWithin(Math.abs(norm / expected.grad_global_l2_f64[name] - 1), 5e-6);
    });
  });
});

describe('supervised fine-tuning', () => {
  let policy: Model;
  const objective: Objective = { lossType: 'sft' };
  // Every response as a completion of its own.
  const completions = inOrder.map(({ prompt, response }, i) => ({
    where: `response ${i}`,
    prompt,
    responses: { completion: response },
  }));

  beforeAll(async () => {
    policy = await Model.load(join(LLAMA, 'policy'));
  });
  afterAll(() => policy.close());

  it.each([true, false])('the loss is the mean over predicted tokens, sharePrompt %s', async (sharePrompt) => {
    const tokens = inOrder.flatMap((sequence) => sequence.policy);
    const mean = tokens.reduce((sum, logp) => sum - logp / tokens.length, 0);
    const problem = { rows: completions, objective, reference: new Float64Array(), normalizer: tokens.length };
    const { loss } = await accumulate(policy, batchOf(problem, undefined, { sharePrompt }), problem);
    expectWithin(Math.abs(loss - mean), 2 * noise.token_logps);
  });

  it('its gradients, weighed by what each response is worth to WRPO, make the gradient of WRPO', async () => {
    const columns = (values: number[]) =>
      Object.fromEntries(PREFERENCE_ROLES.map((role, k) => [role, rows.map((_, i) => values[i * 3 + k]!)]));
    const { gradients } = preferenceLoss(
      { policy: columns(sums('seq_logps_f64')), reference: columns(sums('ref_seq_logps_f64')) },
      OBJECTIVES.wrpo!,
    );
    const worth = rows.flatMap((_, i) => PREFERENCE_ROLES.map((role) => -gradients[role]![i]!));
    const problem = { rows: completions, objective, reference: new Float64Array(), normalizer: 1 };
    const batch = { ...batchOf(problem), contestWeights: Float64Array.from(worth) };
    await policy.zeroGradients();
    await accumulate(policy, batch, problem);
    const wanted = expected.param_names.map((name: string) => [name, oracleGradients.get(`grad.wrpo.${name}`)!.values]);
    const own = copies(policy.gradients());
    for (const [name, values] of wanted) {
      expectWithin(relativeL2(new Map([[name, own.get(name)!]]), new Map([[name, values]])), 5e-6, name);
    }
  });
});

describe('AdamW', () => {
  const { lr, warmup_steps, total_steps, alpha_end, betas, eps, max_grad_norm, n_steps } = expected.adamw_setup;

  it.each(['wd0', 'wd0.1'])('three steps, %s', async (run) => {
    const { weight_decay, fp32, fp64, final_params_fp32_vs_fp64_max_abs } = expected.adamw[run];
    const [policy, reference] = await Promise.all(['policy', 'ref'].map((name) => Model.load(join(LLAMA, name))));
    const optimizer = new AdamW(policy!, {
      learningRate: lr,
      warmupSteps: warmup_steps,
      totalSteps: total_steps,
      schedule: 'cosine',
      betas,
      eps,
      weightDecay: weight_decay,
      maxGradNorm: max_grad_norm,
    });
    const { sums } = await reference!.logProbs(packRows(rows, PREFERENCE_ROLES));
    for (let step = 0; step < n_steps; step++) {
      const objective: Objective = { lossType: 'wrpo', alpha: alphaAt(step, total_steps, alpha_end, true), beta };
      expect(objective.alpha).toBeCloseTo(fp64[step].alpha_used, 15);
      const problem = problemOf(objective, sums);
      const { loss } = await accumulate(policy!, batchOf(problem), problem);
      const { learningRate, gradNorm } = await optimizer.step();
      expect(learningRate).toBeCloseTo(fp64[step].lr_used, 15);
      const torchLoss = Math.max(
        ...fp64.slice(0, 3).map(({ loss }: { loss: number }, i: number) => Math.abs(fp32[i].loss - loss)),
      );
      expectWithin(Math.abs(loss - fp64[step].loss), 2 * torchLoss);
      expectWithin(Math.abs(gradNorm / fp64[step].grad_norm_before_clip - 1), 5e-6);
      for (const [name, parameter] of copies(policy!.parameters({ master: true }))) {
        const wanted = oracleSteps.get(`${run}.step${step + 1}.${name}`);
        if (!wanted) continue;
        const worst = maxAbsDifference(parameter, wanted.values);
        expectWithin(worst, 2 * final_params_fp32_vs_fp64_max_abs, name);
      }
    }
    await optimizer.close();
    await Promise.all([policy!.close(), reference!.close()]);
  });
});
