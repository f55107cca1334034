/**
 * Against Hugging Face transformers: of every family, fixtures/<family> holds a tiny policy and reference, and what
 * transformers, PyTorch's autograd and torch.optim.AdamW make of them in float64. The float32 results here may be as far
 * from those as twice PyTorch's own float32 results are, of which fixtures/float32.json holds the farthest.
 */
import { copyFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
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
  maxAbsDifference,
  PARITY_FIXTURES,
  PREFERENCE_ROLES,
  type Problem,
  readValues,
  relativeL2,
} from './support.ts';
import { FIXTURES, readJson, scratchDirectory } from './training.ts';

const scratch = scratchDirectory('parity');

// Two quadruples; the files hold every response as a sequence of its own, role by role.
const ROWS = 2;

const FLOAT32: Record<string, Record<string, number>> = readJson(join(FIXTURES, 'float32.json'));

/** What a fixture directory holds, as this engine sees it. */
function oracleOf(family: string) {
  const directory = join(FIXTURES, family);
  const expected = JSON.parse(readFileSync(join(directory, 'expected.json'), 'utf8'));
  const values = readValues(join(directory, 'expected.safetensors'));
  const columns = (name: string) => {
    const { shape, values: all } = values.get(name)!;
    return (row: number) => Array.from(all.subarray(row * shape[1]!, (row + 1) * shape[1]!));
  };
  const [ids, labels, mask] = ['input_ids', 'labels', 'attention_mask'].map(columns);
  const [predicted, policy, reference] = ['completion_mask', 'token_logps_f64', 'ref_token_logps_f64'].map(columns);
  const sequences = Array.from({ length: ROWS * PREFERENCE_ROLES.length }, (_, r) => {
    const part = (isResponse: boolean) =>
      Int32Array.from(ids!(r).filter((_, c) => mask!(r)[c] === 1 && (labels!(r)[c] !== -100) === isResponse));
    const predictions = (list: number[]) => list.filter((_, c) => predicted!(r)[c] === 1);
    return {
      prompt: part(false),
      response: part(true),
      policy: predictions(policy!(r)),
      reference: predictions(reference!(r)),
    };
  });
  const sequence = (row: number, role: number) => sequences[role * ROWS + row]!;
  const rows: EncodedRow[] = Array.from({ length: ROWS }, (_, i) => ({
    where: `row ${i}`,
    prompt: sequence(i, 0).prompt,
    responses: Object.fromEntries(PREFERENCE_ROLES.map((role, k) => [role, sequence(i, k).response])),
  }));
  const { alpha, beta } = expected.hyper;
  const smallBeta = expected.hyper['beta_small (wrpo_beta0.01)'];
  const objectives: Record<string, Objective> = {
    wrpo: { lossType: 'wrpo', alpha, beta },
    'wrpo_beta0.01': { lossType: 'wrpo', alpha, beta: smallBeta },
    wrpo_alpha0: { lossType: 'wrpo', alpha: 0, beta },
    wrpo_alpha1: { lossType: 'wrpo', alpha: 1, beta },
    'wrpo_label_smoothing0.1': { lossType: 'wrpo', alpha, beta, labelSmoothing: 0.1 },
    dpo: { lossType: 'sigmoid', beta },
  };
  return {
    ...{ directory, expected, rows, objectives, noise: FLOAT32[family]! },
    // In the order of a packed batch.
    inOrder: rows.flatMap((_, i) => PREFERENCE_ROLES.map((_, k) => sequence(i, k))),
    sums: (name: string) =>
      rows.flatMap((_, i) => PREFERENCE_ROLES.map((_, k) => values.get(name)!.values[k * ROWS + i]!)),
    gradient: (() => {
      const gradients = readValues(join(directory, 'grads.safetensors'));
      return (name: string) => gradients.get(`grad.${name}`)!;
    })(),
    problemOf(objective: Objective, reference: Float64Array): Problem {
      const all = rolesOf(objective).map((role) => PREFERENCE_ROLES.indexOf(role));
      const picked = rows.flatMap((_, i) => all.map((k) => reference[i * PREFERENCE_ROLES.length + k]!));
      return { rows, objective, reference: Float64Array.from(picked), normalizer: rows.length };
    },
  };
}

/** Packs so that no prompt is shared whose responses rotate it differently. */
const pack = (model: Model, rows: EncodedRow[], sharePrompt = true) =>
  packRows(rows, PREFERENCE_ROLES, { sharePrompt, longestShared: model.longestShared });

/** Tensors by the names of the checkpoint. Only InternLM2's are others than the parameters': it interleaves by group. */
function asStored(model: Model, tensors: Map<string, Float64Array>): Map<string, Float64Array> {
  const { family, kvHeads, heads, headDim, hiddenSize } = model.config;
  if (family !== 'internlm2') return tensors;
  const stored = new Map<string, Float64Array>();
  for (const [name, values] of tensors) {
    const [, layer, rest] = /^(model\.layers\.\d+\.)(.*)\.weight$/.exec(name) ?? [];
    const top: Record<string, string> = { 'model.embed_tokens': 'model.tok_embeddings', lm_head: 'output' };
    const inLayer: Record<string, string> = {
      'self_attn.o_proj': 'attention.wo',
      'mlp.gate_proj': 'feed_forward.w1',
      'mlp.up_proj': 'feed_forward.w3',
      'mlp.down_proj': 'feed_forward.w2',
      input_layernorm: 'attention_norm',
      post_attention_layernorm: 'ffn_norm',
    };
    if (!layer) stored.set(`${top[name.replace('.weight', '')] ?? 'model.norm'}.weight`, values);
    else if (inLayer[rest!]) stored.set(`${layer}${inLayer[rest!]}.weight`, values);
    else if (rest === 'self_attn.q_proj') {
      const [k, v] = ['k_proj', 'v_proj'].map((part) => tensors.get(name.replace('q_proj', part))!);
      const perHead = headDim * hiddenSize;
      const head = (list: Float64Array, first: number, count = 1) =>
        list.subarray(first * perHead, (first + count) * perHead);
      const share = heads / kvHeads;
      const groups = Array.from({ length: kvHeads }, (_, g) => [
        ...[head(values, g * share, share), head(k!, g), head(v!, g)],
      ]);
      const whole = new Float64Array(groups.flat().reduce((sum, { length }) => sum + length, 0));
      let at = 0;
      for (const part of groups.flat()) {
        whole.set(part, at);
        at += part.length;
      }
      stored.set(`${layer}attention.wqkv.weight`, whole);
    }
  }
  return stored;
}

describe.each(PARITY_FIXTURES)('%s', (family) => {
  const oracle = oracleOf(family);
  const { expected, rows, objectives, noise, inOrder, sums, gradient, problemOf } = oracle;

  const spellings = ['config.json', 'config.v4.json'].filter((name) =>
    existsSync(join(oracle.directory, 'policy', name)),
  );
  describe.each(spellings)('%s', (config) => {
    const directory = scratch(`${family}-${config.replace('.json', '')}`);
    let policy: Model;
    let reference: Model;

    beforeAll(async () => {
      mkdirSync(directory);
      copyFileSync(join(oracle.directory, 'policy', config), join(directory, 'config.json'));
      copyFileSync(join(oracle.directory, 'policy', 'model.safetensors'), join(directory, 'model.safetensors'));
      [policy, reference] = await Promise.all([Model.load(directory), Model.load(join(oracle.directory, 'ref'))]);
    });
    afterAll(() => Promise.all([policy.close(), reference.close()]));

    describe.each([true, false])('sharePrompt %s', (sharePrompt) => {
      it.each(['policy', 'reference'] as const)('log-probs of the %s', async (which) => {
        const model = which === 'policy' ? policy : reference;
        const result = await model.logProbs(pack(model, rows, sharePrompt), { perToken: true });
        const tokens = inOrder.flatMap((sequence) => sequence[which]);
        expect([...result.counts]).toEqual(inOrder.map(({ response }) => response.length));
        expectWithin(maxAbsDifference(result.perToken!, tokens), 2 * noise.token_logps!);
        const wanted = sums(which === 'policy' ? 'seq_logps_f64' : 'ref_seq_logps_f64');
        expectWithin(maxAbsDifference(result.sums, wanted), 2 * noise.seq_logps!);
      });

      it.each(Object.keys(objectives))('%s: losses and gradients', async (name) => {
        const objective = objectives[name]!;
        const { sums } = await reference.logProbs(pack(reference, rows, sharePrompt));
        const problem = problemOf(objective, sums);
        await policy.zeroGradients();
        const options = { sharePrompt, longestShared: policy.longestShared };
        const result = await accumulate(policy, batchOf(problem, undefined, options), problem);
        expectWithin(Math.abs(result.loss - expected.losses_mean_f64[name]), 2 * noise.losses!);
        expectWithin(maxAbsDifference(result.losses, expected.losses_per_quad_f64[name]), 2 * noise.losses!);
        const gradients = copies(policy.gradients());
        const stored = asStored(policy, gradients);
        for (const parameter of name === 'wrpo' ? expected.param_names : expected.few_params) {
          const wanted = gradient(`${name}.${parameter}`).values;
          const own = new Map([[parameter, stored.get(parameter)!]]);
          expectWithin(relativeL2(own, new Map([[parameter, wanted]])), 5e-6, parameter);
        }
        const norm = Math.hypot(...[...gradients.values()].map((values) => Math.hypot(...values)));
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
      policy = await Model.load(join(oracle.directory, 'policy'));
    });
    afterAll(() => policy.close());

    it.each([true, false])('the loss is the mean over predicted tokens, sharePrompt %s', async (sharePrompt) => {
      const tokens = inOrder.flatMap((sequence) => sequence.policy);
      const mean = tokens.reduce((sum, logp) => sum - logp / tokens.length, 0);
      const problem = { rows: completions, objective, reference: new Float64Array(), normalizer: tokens.length };
      const { loss } = await accumulate(
        policy,
        batchOf(problem, undefined, { sharePrompt, longestShared: policy.longestShared }),
        problem,
      );
      expectWithin(Math.abs(loss - mean), 2 * noise.token_logps!);
    });

    it('its gradients, weighed by what each response is worth to WRPO, make the gradient of WRPO', async () => {
      const columns = (values: number[]) =>
        Object.fromEntries(PREFERENCE_ROLES.map((role, k) => [role, rows.map((_, i) => values[i * 3 + k]!)]));
      const { gradients } = preferenceLoss(
        { policy: columns(sums('seq_logps_f64')), reference: columns(sums('ref_seq_logps_f64')) },
        objectives.wrpo!,
      );
      const worth = rows.flatMap((_, i) => PREFERENCE_ROLES.map((role) => -gradients[role]![i]!));
      const problem = { rows: completions, objective, reference: new Float64Array(), normalizer: 1 };
      const packed = batchOf(problem, undefined, { longestShared: policy.longestShared });
      const batch = { ...packed, contestWeights: Float64Array.from(worth) };
      await policy.zeroGradients();
      await accumulate(policy, batch, problem);
      const wanted = expected.param_names.map((name: string) => [name, gradient(`wrpo.${name}`).values]);
      const own = asStored(policy, copies(policy.gradients()));
      for (const [name, values] of wanted) {
        expectWithin(relativeL2(new Map([[name, own.get(name)!]]), new Map([[name, values]])), 5e-6, name);
      }
    });
  });

  // Where a fixture holds the parameters after each step.
  describe.runIf(existsSync(join(oracle.directory, 'adamw.safetensors')))('AdamW', () => {
    if (!expected.adamw) return;
    const oracleSteps = readValues(join(oracle.directory, 'adamw.safetensors'));
    const { beta } = expected.hyper;
    const { lr, warmup_steps, total_steps, alpha_end, betas, eps, max_grad_norm, n_steps } = expected.adamw_setup;

    it.each(['wd0', 'wd0.1'])('three steps, %s', async (run) => {
      const { weight_decay, fp64 } = expected.adamw[run];
      const [policy, reference] = await Promise.all(
        ['policy', 'ref'].map((name) => Model.load(join(oracle.directory, name))),
      );
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
        expectWithin(Math.abs(loss - fp64[step].loss), 2 * noise[`adamw_${run}_losses`]!);
        expectWithin(Math.abs(gradNorm / fp64[step].grad_norm_before_clip - 1), 5e-6);
        for (const [name, parameter] of copies(policy!.parameters({ master: true }))) {
          const wanted = oracleSteps.get(`${run}.step${step + 1}.${name}`);
          if (!wanted) continue;
          const worst = maxAbsDifference(parameter, wanted.values);
          expectWithin(worst, 2 * noise[`adamw_${run}`]!, name);
        }
      }
      await optimizer.close();
      await Promise.all([policy!.close(), reference!.close()]);
    });
  });
});
