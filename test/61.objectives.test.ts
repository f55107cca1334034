/** The objectives end to end on tiny models: their gradients, their runs, and those a caller writes. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { packRows, withContests } from '../lib/data/pack.ts';
import type { Role } from '../lib/data/preferences.ts';
import { Model } from '../lib/model/model.ts';
import type { EncodedRow } from '../lib/text/encode.ts';
import type { TrainingArgsInput } from '../lib/train/args.ts';
import {
  type ContestObjective,
  type NamedObjective,
  type Objective,
  preferenceLoss,
  rolesOf,
  termsOf,
} from '../lib/train/objective.ts';
import { Trainer, type TrainerOptions } from '../lib/train/trainer.ts';
import { copies, expectWithin, maxAbsDifference, randomOf, randomRow, relativeL2, tinyModel } from './support.ts';
import {
  expectFailure,
  metricsOf,
  POLICY,
  REFERENCE,
  scratchDirectory,
  randomOf as seeded,
  tokenRows,
  weightsOf,
} from './training.ts';

const path = scratchDirectory('objectives');
const ROLES: Role[] = ['source_chosen', 'target_chosen', 'rejected', 'source_rejected'];
const smooth = { beta: 0.2, labelSmoothing: 0.1, sftWeight: 0.3 };

const NAMED: NamedObjective[] = [
  { lossType: 'sigmoid', ...smooth },
  { lossType: 'sigmoid', beta: 0.2, chosen: 'source' },
  { lossType: 'authors_sigmoid', ...smooth },
  { lossType: 'simpo', beta: 2, simpoGamma: 0.4 },
  { lossType: 'ipo', beta: 0.05 },
  { lossType: 'ipo', beta: 0.5, ipoNormalization: 'token_mean', sftWeight: 1 },
  { lossType: 'wrpo', alpha: 0.3, ...smooth },
  { lossType: 'wrpo_ls', alpha: 0.3, ...smooth },
  { lossType: 'wrpo_simpo', alpha: 0.3, simpoGamma: 0.4, ...smooth },
  { lossType: 'wrpo_ipo', alpha: 0.3, beta: 0.05 },
  { lossType: 'wrpo_ipo', alpha: 0.3, beta: 0.5, ipoNormalization: 'token_mean' },
];
const title = (objective: object) => JSON.stringify(objective).replace(/[{}"]/g, '');

describe('the gradient of a whole model', () => {
  // Eight responses a prompt, of any names.
  const eight = Array.from({ length: 8 }, (_, k) => `y${k}`) as string[] as Role[];
  const random = randomOf(5);
  const lengths = () => 1 + Math.floor(20 * random());
  const rowsOf = (roles: Role[]) =>
    [9, 1, 14].map((prompt) => randomRow(random, prompt, Object.fromEntries(roles.map((role) => [role, lengths()]))));
  const four = rowsOf(ROLES);
  const many = rowsOf(eight);
  let model: Model;
  beforeAll(async () => {
    model = await tinyModel({}, { dtype: 'float64' });
  });
  afterAll(() => model.close());

  /** The model's gradient by `accumulate`, and the combination of those of each response's log-prob. */
  async function both(rows: EncodedRow[], all: Role[], objective: Objective) {
    const terms = termsOf(objective);
    const packed = packRows(rows, all);
    const { sums, counts } = await model.logProbs(packed);
    const shift = seeded(7);
    const reference = sums.map((sum) => sum + 8 * (shift() - 0.5));
    const columns = (values: ArrayLike<number>) =>
      Object.fromEntries(all.map((role, k) => [role, rows.map((_, i) => values[i * all.length + k]!)]));
    const known = preferenceLoss(
      { policy: columns(sums), reference: columns(reference), lengths: columns(counts) },
      objective,
    );
    const slopes = rows.flatMap((_, i) => all.map((role) => known.gradients[role]?.[i] ?? 0));

    await model.zeroGradients();
    const batch = { ...withContests(packed, terms.contests), reference: terms.reference ? reference : undefined };
    const { loss } = await model.accumulate(batch, { objective: terms.form, normalizer: rows.length });
    const whole = copies(model.gradients());
    // Each response by itself, added up here.
    const combined = new Map([...whole].map(([name, values]) => [name, new Float64Array(values.length)]));
    for (const [k, slope] of slopes.entries()) {
      if (slope === 0) continue;
      await model.zeroGradients();
      const one = Float64Array.from(slopes, (_, j) => Number(j === k));
      await model.accumulate(packed, { objective: { form: 'gradients', dLossDLogp: one }, normalizer: 1 });
      for (const [name, values] of copies(model.gradients())) {
        const sum = combined.get(name)!;
        for (let i = 0; i < values.length; i++) sum[i]! += slope * values[i]!;
      }
    }
    await model.zeroGradients();
    await model.accumulate(packed, { objective: { form: 'gradients', dLossDLogp: slopes }, normalizer: 1 });
    return { whole, combined, given: copies(model.gradients()), loss, expected: known.loss };
  }

  it.each(NAMED.map((objective) => [title(objective), objective] as const))('%s', async (_, objective) => {
    const { whole, combined, given, loss, expected } = await both(four, ROLES, objective);
    expectWithin(Math.abs(loss - expected), 1e-14 * Math.max(1, Math.abs(expected)));
    expectWithin(relativeL2(whole, combined), 1e-14);
    expectWithin(relativeL2(whole, given), 1e-14);
  });

  it('three weighted contests between eight responses', async () => {
    const contest = (weight: number, ...coefficients: number[]) => ({
      weight,
      coefficients: Object.fromEntries(coefficients.flatMap((c, k) => (c === 0 ? [] : [[eight[k]!, c]]))),
    });
    const objective: ContestObjective = {
      ...{ beta: 3, gamma: 0.2, labelSmoothing: 0.05, lengthNormalized: true, sftWeight: 0.1 },
      contests: [
        contest(0.5, 0.4, 0.3, 0.2, 0.1, -0.25, -0.25, -0.25, -0.25),
        contest(0.3, 1, 0, 0, 0, 0, 0, 0, -1),
        contest(0.2, 0, 0.5, 0.5, 0, 0, -1),
      ],
    };
    const { whole, combined, given, loss, expected } = await both(many, eight, objective);
    expectWithin(Math.abs(loss - expected), 1e-14);
    expectWithin(relativeL2(whole, combined), 1e-14);
    expectWithin(relativeL2(whole, given), 1e-14);
  });

  it.each<[NamedObjective, NamedObjective]>([
    [
      { lossType: 'wrpo', alpha: 0, ...smooth },
      { lossType: 'sigmoid', ...smooth },
    ],
    [
      { lossType: 'wrpo_ls', alpha: 0, ...smooth },
      { lossType: 'sigmoid', ...smooth },
    ],
    [
      { lossType: 'wrpo_simpo', alpha: 0, simpoGamma: 0.4, ...smooth },
      { lossType: 'simpo', simpoGamma: 0.4, ...smooth },
    ],
    [
      { lossType: 'wrpo_ipo', alpha: 0, beta: 0.05 },
      { lossType: 'ipo', beta: 0.05 },
    ],
    [
      { lossType: 'wrpo', alpha: 1, beta: 0.2 },
      { lossType: 'sigmoid', beta: 0.2, chosen: 'source' },
    ],
  ])('%j is %j, to the bit', async (weighted, plain) => {
    const [a, b] = [await both(four, ROLES, weighted), await both(four, ROLES, plain)];
    expect(a.loss).toBe(b.loss);
    for (const [name, values] of a.whole) expect(maxAbsDifference(values, b.whole.get(name)!), name).toBe(0);
  });

  it('refuses contests and gradients that do not fit the batch', async () => {
    const packed = packRows(four, ROLES);
    await expectFailure(
      () => withContests(packed, [{ weight: 1, coefficients: { completion: 1 } }]),
      'ERR_CONFIG',
      /names "completion"; the batch holds source_chosen, /,
    );
    await expectFailure(
      () => model.accumulate(packed, { objective: { form: 'gradients', dLossDLogp: [1] }, normalizer: 1 }),
      'ERR_CONFIG',
      /expected 12 values in dLossDLogp, received 1/,
    );
  });
});

const rows = tokenRows(6, 2).map((row, i) => ({ ...row, source_rejected: tokenRows(6, 40)[i]!.rejected }));
const ARGS = {
  ...{ perDeviceTrainBatchSize: 3, gradientAccumulationSteps: 1, learningRate: 1e-3, numTrainEpochs: 4 },
  ...{ shuffle: false, loggingSteps: 1, disableTqdm: true, microbatchTokens: 120 },
} satisfies Partial<TrainingArgsInput>;

let runs = 0;
async function train(args: Partial<TrainingArgsInput>, options: Partial<TrainerOptions> = {}) {
  const outputDir = path(`run-${++runs}`);
  await using trainer = new Trainer({
    ...{ model: POLICY, trainDataset: rows, evalDataset: rows },
    args: { ...ARGS, ...args, outputDir },
    ...options,
  });
  const { metrics } = await trainer.train();
  const lines = metricsOf(outputDir);
  return { outputDir, evaluated: metrics, steps: lines.filter((line) => 'loss' in line) };
}

describe('a run', () => {
  const fields = ({ alpha: _, ...fields }: NamedObjective & { alpha?: number }) => fields;

  it.each(NAMED.map((objective) => [title(objective), objective] as const))('%s', async (_, objective) => {
    const alpha = 'alpha' in objective ? { alpha: 0.3, isDynamic: false } : {};
    const { steps, outputDir, evaluated } = await train({ ...fields(objective), ...alpha });
    // The same rows a second time, and in the end.
    const last = steps.at(-2)!.loss! + steps.at(-1)!.loss!;
    expect(last).toBeLessThan(steps[0]!.loss! + steps[1]!.loss!);
    expect(steps.at(-1)!['rewards/margins']).toBeGreaterThan(steps[1]!['rewards/margins']!);
    expect(evaluated.eval_loss).toBeLessThan((steps[0]!.loss! + steps[1]!.loss!) / 2);
    expect('cur_alpha' in steps[0]!).toBe('alpha' in objective);
    expect('eval_loss_current_alpha' in evaluated).toBe('alpha' in objective);
    expect('nll_loss' in steps[0]!).toBe('sftWeight' in objective);
    expect(existsSync(join(outputDir, 'reference-train.jsonl'))).toBe(termsOf(objective).reference);
    // The first loss is known where policy and reference are one: every log-ratio is 0.
    if (termsOf(objective).reference) {
      const ipo = /ipo$/.test(objective.lossType);
      const first = ipo ? 1 / (2 * (objective as { beta: number }).beta) ** 2 : Math.LN2;
      const nll = 'sftWeight' in objective ? objective.sftWeight! * steps[0]!.nll_loss! : 0;
      expect(Math.abs(steps[0]!.loss! - nll - first)).toBeLessThan(1e-3 * first);
    }
    // config.yaml has the loss's own fields alone, so that it runs again.
    const config = parse(readFileSync(join(outputDir, 'config.yaml'), 'utf8'));
    expect(config.loss_type).toBe(objective.lossType);
    expect('alpha' in config).toBe('alpha' in objective);
    expect('simpo_gamma' in config).toBe(/simpo/.test(objective.lossType));
    const again = await train({ ...config, output_dir: undefined });
    expect(weightsOf(again.outputDir).equals(weightsOf(outputDir))).toBe(true);
  });

  it('metrics are those of SimPO’s code where there is no reference', async () => {
    const still = { learningRate: 0, perDeviceTrainBatchSize: 6, numTrainEpochs: 1 };
    const { steps } = await train({ ...still, lossType: 'simpo', beta: 2, simpoGamma: 0.4 });
    await using model = await Model.load(POLICY);
    const { sums, counts } = await model.logProbs(
      packRows(
        rows.map((row) => ({
          where: '',
          prompt: Int32Array.from(row.prompt),
          responses: { target_chosen: Int32Array.from(row.target_chosen), rejected: Int32Array.from(row.rejected) },
        })),
        ['target_chosen', 'rejected'],
      ),
    );
    const rewards = Array.from(sums, (sum, k) => (2 * sum) / counts[k]!);
    const mean = (values: number[]) => values.reduce((sum, value) => sum + value) / values.length;
    const [chosen, rejected] = [0, 1].map((k) => rewards.filter((_, i) => i % 2 === k)) as [number[], number[]];
    const margins = chosen.map((reward, i) => reward - rejected[i]!);
    expect(steps[0]!['rewards/chosen']).toBeCloseTo(mean(chosen), 5);
    expect(steps[0]!['rewards/rejected']).toBeCloseTo(mean(rejected), 5);
    expect(steps[0]!['rewards/margins']).toBeCloseTo(mean(margins), 5); // gamma is not part of it
    expect(steps[0]!['rewards/accuracies']).toBe(mean(margins.map((margin) => Number(margin > 0))));
    expect(steps[0]!.loss).toBeCloseTo(mean(margins.map((margin) => Math.log1p(Math.exp(0.4 - margin)))), 5);
  });

  it('of Eq. 9 names both rejected responses, and their weighted reward', async () => {
    const still = { learningRate: 0, perDeviceTrainBatchSize: 6, numTrainEpochs: 1 } as const;
    const options = { refModel: REFERENCE };
    const args = { ...still, lossType: 'wrpo_ls', beta: 0.1, alpha: 0.3, isDynamic: false } as const;
    const line = (await train(args, options)).steps[0]!;
    const part = (name: string) => line[`rewards/${name}`]!;
    expect(part('chosen')).toBeCloseTo(0.3 * part('source_chosen') + 0.7 * part('target_chosen'), 10);
    expect(part('rejected')).toBeCloseTo(0.3 * part('source_rejected') + 0.7 * part('target_rejected'), 10);
    expect(part('margins')).toBeCloseTo(part('chosen') - part('rejected'), 10);
  });
});

describe('an objective of the caller’s own', () => {
  const args = { dtype: 'float64', alpha: 0.4, evalStrategy: 'steps', evalSteps: 3 } as const;
  // DPO by hand, on one prompt.
  const dpo: TrainerOptions['objective'] = {
    roles: ['target_chosen', 'rejected'],
    beta: 0.1,
    loss({ policy, reference }) {
      const z = 0.1 * (policy.target_chosen - reference.target_chosen - policy.rejected + reference.rejected);
      const slope = -0.1 / (1 + Math.exp(z));
      return { loss: Math.log1p(Math.exp(-z)), gradients: { target_chosen: slope, rejected: -slope } };
    },
  };

  it('contests that are WRPO’s give WRPO, to the byte', async () => {
    const named = await train({ ...args, lossType: 'wrpo', beta: 0.1 });
    const own = await train(args, {
      objective: ({ alpha }) => ({
        beta: 0.1,
        contests: [{ weight: 1, coefficients: { source_chosen: alpha, target_chosen: 1 - alpha, rejected: -1 } }],
      }),
    });
    expect(metricsOf(own.outputDir)).toEqual(metricsOf(named.outputDir));
    expect(weightsOf(own.outputDir).equals(weightsOf(named.outputDir))).toBe(true);
    expect(parse(readFileSync(join(own.outputDir, 'config.yaml'), 'utf8')).loss_type).toBe('own');
  });

  it('a named one may follow alpha in its own way', async () => {
    const own = await train(args, { objective: ({ alpha }) => ({ lossType: 'wrpo', beta: 0.1, alpha: alpha ** 2 }) });
    const flat = await train({ ...args, alpha: 0, lossType: 'wrpo', beta: 0.1 });
    expect(own.steps[0]!.loss).toBe(flat.steps[0]!.loss);
    expect(own.steps.at(-1)!.loss).not.toBe(flat.steps.at(-1)!.loss);
    expect(own.steps.at(-1)!.cur_alpha).toBeCloseTo((0.4 * 7) / 8, 12);
  });

  it('a function of log-probs in two passes', async () => {
    const named = await train({ dtype: 'float64', lossType: 'sigmoid', beta: 0.1 });
    const own = await train({ dtype: 'float64' }, { objective: dpo });
    expect(own.steps).toHaveLength(named.steps.length);
    let worst = 0;
    for (const [i, line] of own.steps.entries()) {
      const expected = named.steps[i]!;
      // Everything that needs no coefficients.
      const lost = Object.keys(expected).filter((name) => !(name in line));
      expect(lost).toEqual(['rewards/chosen', 'rewards/margins', 'rewards/accuracies']);
      for (const [name, value] of Object.entries(line))
        worst = Math.max(worst, Math.abs(value - expected[name]!) / Math.max(1, Math.abs(value)));
    }
    expectWithin(worst, 1e-11);
    expect(own.evaluated.eval_loss).toBeCloseTo(named.evaluated.eval_loss!, 11);
  });

  it('one without a reference computes none, and sees lengths', async () => {
    // SimPO with a hinge instead of a sigmoid.
    const { steps, outputDir } = await train(
      {},
      {
        objective: {
          roles: ['source_chosen', 'rejected'],
          reference: false,
          loss({ policy, reference, lengths }) {
            expect(reference).toEqual({});
            const mean = (role: Role) => policy[role] / lengths[role];
            const short = 1 - mean('source_chosen') + mean('rejected');
            if (short <= 0) return { loss: 0, gradients: {} };
            const gradients = { source_chosen: -1 / lengths.source_chosen, rejected: 1 / lengths.rejected };
            return { loss: short, gradients };
          },
        },
      },
    );
    expect(steps.at(-1)!.loss! + steps.at(-2)!.loss!).toBeLessThan(steps[0]!.loss! + steps[1]!.loss! - 0.1);
    expect(existsSync(join(outputDir, 'reference-train.jsonl'))).toBe(false);
    expect(Object.keys(steps[0]!).sort()).toEqual(
      [
        'step',
        'epoch',
        'loss',
        'grad_norm',
        'learning_rate',
        'logps/chosen',
        'logps/rejected',
        'logps/source_chosen',
      ].sort(),
    );
  });

  it('that is no number stops the run, and one beside a loss_type never starts', async () => {
    const nan = {
      roles: rolesOf({ lossType: 'sft' }),
      reference: false,
      loss: () => ({ loss: Number.NaN, gradients: {} }),
    };
    const trainDataset = [{ prompt: [1, 2], completion: [3, 4] }];
    await expectFailure(
      () => train({}, { trainDataset, evalDataset: trainDataset, objective: nan }),
      'ERR_NON_FINITE',
      /stopped at step 1, before its update: the objective's loss or gradient is NaN \(trainDataset\[0\]\)/,
    );
    for (const stray of [{ lossType: 'wrpo' }, { preset: 'table6/dpo' }, { beta: 1 }, { simpoGamma: 1 }] as const) {
      await expectFailure(() => train(stray, { objective: dpo }), 'ERR_CONFIG', /has no meaning beside.*"objective"/);
    }
  });

  it('has the same roles at every alpha, in whatever order, and gradients of these alone', async () => {
    const other = { ...dpo, loss: () => ({ loss: 0, gradients: { source_chosen: 1 } }) } as Objective;
    await expectFailure(
      () => train({}, { objective: other }),
      'ERR_CONFIG',
      /name "source_chosen"; its roles are target_/,
    );
    const turned = await train(args, {
      objective: ({ alpha }) => ({
        beta: 0.1,
        contests: [
          {
            weight: 1,
            coefficients: alpha < 0.2 ? { rejected: -1, target_chosen: 1 } : { target_chosen: 1, rejected: -1 },
          },
        ],
      }),
    });
    const straight = await train({ dtype: 'float64', lossType: 'sigmoid', beta: 0.1 });
    for (const [i, { loss }] of straight.steps.entries()) expectWithin(Math.abs(turned.steps[i]!.loss! - loss!), 1e-12);
    const late: TrainerOptions['objective'] = ({ alpha }) => ({
      beta: 0.1,
      contests: [
        {
          weight: 1,
          coefficients: alpha < 0.2 ? { source_chosen: 1, rejected: -1 } : { target_chosen: 1, rejected: -1 },
        },
      ],
    });
    await expectFailure(() => train(args, { objective: late }), 'ERR_CONFIG', /a contest names "source_chosen"/);
  });
});
