import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Role } from '../lib/data/preferences.ts';
import { type Columns, type NamedObjective, type Objective, preferenceLoss, rolesOf } from '../lib/train/objective.ts';
import { expectSentence, expectWithin, maxAbsDifference } from './support.ts';
import { FIXTURES } from './training.ts';

interface Vector {
  beta: number;
  alpha?: number;
  tau?: number;
  gamma?: number;
  label_smoothing?: number;
  per_example: number[];
  mean: number;
  grad: Record<string, number[]>;
}

const vectors = JSON.parse(readFileSync(join(FIXTURES, 'preference_losses.json'), 'utf8'));
const KEYS: Partial<Record<Role, string>> = {
  ...{ source_chosen: 'ws', target_chosen: 'wt', rejected: 'l', source_rejected: 'ls' },
};
const columns = (table: Record<string, number[]>): Columns =>
  Object.fromEntries(Object.entries(KEYS).map(([role, key]) => [role, table[key]!]));
const policy = columns(vectors.policy_logps);
const reference = columns(vectors.reference_logps);
const lengths = columns(vectors.lengths);

const wrpoVectors = ['0.0', '0.1', '0.5', '1.0', '0.1_labelsmooth0.1'].map((suffix) => `wrpo_dpo_alpha${suffix}`);

function expectVector(objective: Objective, { per_example, mean, grad }: Vector) {
  const result = preferenceLoss({ policy, reference, lengths }, objective);
  const scale = Math.max(1, Math.abs(mean)); // IPO's losses are in the thousands
  expectWithin(Math.abs(result.loss - mean), 1e-12 * scale);
  expectWithin(maxAbsDifference(result.losses, per_example), 1e-12 * scale);
  expect(Object.keys(result.gradients)).toEqual(rolesOf(objective));
  for (const [role, gradient] of Object.entries(result.gradients)) {
    expectWithin(maxAbsDifference(gradient, grad[KEYS[role as Role]!]!), 1e-12 * Math.max(1, scale / 10));
  }
}

describe('worked examples', () => {
  it.each(wrpoVectors)('%s', (name) => {
    const vector: Vector = vectors.losses[name];
    const { beta, alpha, label_smoothing: labelSmoothing } = vector;
    expectVector({ lossType: 'wrpo', beta, alpha: alpha!, labelSmoothing }, vector);
  });

  it('dpo_on', () => {
    const vector: Vector = vectors.losses.dpo_on;
    expectVector({ lossType: 'sigmoid', beta: vector.beta }, vector);
  });

  it('dpo_hybrid is WRPO at alpha 1', () => {
    const vector: Vector = vectors.losses.dpo_hybrid;
    expectVector({ lossType: 'wrpo', beta: vector.beta, alpha: 1 }, vector);
  });

  it.each<[string, (vector: Vector) => Objective]>([
    ['wrpo_yls_eq9_alpha0.1', ({ beta, alpha }) => ({ lossType: 'wrpo_ls', beta, alpha: alpha! })],
    ['simpo_on', ({ beta, gamma }) => ({ lossType: 'simpo', beta, simpoGamma: gamma })],
    [
      'wrpo_simpo_alpha0.5',
      ({ beta, alpha, gamma }) => ({ lossType: 'wrpo_simpo', beta, alpha: alpha!, simpoGamma: gamma }),
    ],
    ['ipo_on', ({ tau }) => ({ lossType: 'ipo', beta: tau! })],
    ['ipo_on_length_averaged', ({ tau }) => ({ lossType: 'ipo', beta: tau!, ipoNormalization: 'token_mean' })],
    ['wrpo_ipo_alpha0.1', ({ tau, alpha }) => ({ lossType: 'wrpo_ipo', beta: tau!, alpha: alpha! })],
  ])('%s', (name, of) => expectVector(of(vectors.losses[name]), vectors.losses[name]));

  it('dpo_hybrid is DPO on the source’s response', () => {
    const vector: Vector = vectors.losses.dpo_hybrid;
    expectVector({ lossType: 'sigmoid', beta: vector.beta, chosen: 'source' }, vector);
  });

  it('margins are the rewards of the metrics', () => {
    const { margins } = preferenceLoss({ policy, reference }, { lossType: 'wrpo', beta: 0.01, alpha: 0.1 });
    const mean = margins.reduce((sum, margin) => sum + margin / margins.length, 0);
    expect(mean).toBeCloseTo(vectors.metrics_alpha0p1_beta0p01['rewards/margins'], 12);
  });
});

/** Autograd's values in float64, of the formulas as the papers print them (test/fixtures/make_objectives.py). */
describe('autograd', () => {
  const fixture = JSON.parse(readFileSync(join(FIXTURES, 'objectives.json'), 'utf8'));
  const label = ({ objective }: { objective: Objective }) => JSON.stringify(objective).replace(/[{}"]/g, '');

  it.each(fixture.cases.map((one: { objective: Objective }) => [label(one), one]))('%s', (_, one) => {
    const { objective, losses, gradient } = one;
    const result = preferenceLoss(fixture, objective);
    const scale = Math.max(1, ...losses.map(Math.abs));
    expectWithin(maxAbsDifference(result.losses, losses), 1e-14 * scale);
    for (const role of rolesOf(objective)) {
      expectWithin(maxAbsDifference(result.gradients[role]!, gradient[role]), 1e-14 * scale);
    }
    // What the loss does not name has no gradient there either.
    for (const role of Object.keys(gradient)) {
      if (!rolesOf(objective).includes(role as Role)) expect(gradient[role].every((g: number) => g === 0)).toBe(true);
    }
  });

  it('every loss with every field of its own is there', () => {
    const seen = new Set(fixture.cases.map(({ objective }: { objective: { lossType: string } }) => objective.lossType));
    expect([...seen].sort()).toEqual(
      ['authors_sigmoid', 'ipo', 'sigmoid', 'simpo', 'wrpo', 'wrpo_ipo', 'wrpo_ls', 'wrpo_simpo'].sort(),
    );
  });

  it('three weighted contests between eight responses', () => {
    const { objective, loss, gradient, ...columns } = fixture.contests;
    const result = preferenceLoss(columns, objective);
    expectWithin(Math.abs(result.loss - loss), 1e-14);
    for (const [role, values] of Object.entries<number[]>(gradient)) {
      expectWithin(maxAbsDifference(result.gradients[role as Role]!, values), 1e-14);
    }
  });
});

const logProb = fc.double({ min: -400, max: 0, noNaN: true });
const contests = fc.integer({ min: 1, max: 4 }).chain((count) => {
  const column = fc.array(logProb, { minLength: count, maxLength: count });
  const roles = { source_chosen: column, target_chosen: column, rejected: column, source_rejected: column };
  const length = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: count, maxLength: count });
  const lengths = { source_chosen: length, target_chosen: length, rejected: length, source_rejected: length };
  return fc.record({ policy: fc.record(roles), reference: fc.record(roles), lengths: fc.record(lengths) });
});
const beta = fc.double({ min: 0.001, max: 2, noNaN: true });
const fraction = fc.double({ min: 0, max: 1, noNaN: true });

describe('properties', () => {
  it.each<[NamedObjective['lossType'], NamedObjective['lossType']]>([
    ['wrpo', 'sigmoid'],
    ['wrpo_ls', 'sigmoid'],
    ['wrpo_simpo', 'simpo'],
    ['wrpo_ipo', 'ipo'],
  ])('%s with alpha 0 is %s', (weighted, plain) => {
    fc.assert(
      fc.property(contests, beta, fraction, (input, beta, fraction) => {
        // Of the fields, each takes those it has.
        const fields = { beta, labelSmoothing: fraction, sftWeight: fraction };
        const wrpo = preferenceLoss(input, { lossType: weighted, alpha: 0, ...fields } as NamedObjective);
        const sigmoid = preferenceLoss(input, { lossType: plain, ...fields } as NamedObjective);
        const scale = 1 + Math.abs(sigmoid.loss);
        expectWithin(Math.abs(wrpo.loss - sigmoid.loss), 1e-12 * scale);
        expectWithin(maxAbsDifference(wrpo.losses, sigmoid.losses), 4e-12 * scale);
        for (const role of rolesOf({ lossType: 'sigmoid', beta })) {
          expectWithin(maxAbsDifference(wrpo.gradients[role]!, sigmoid.gradients[role]!), 1e-12);
        }
        for (const role of ['source_chosen', 'source_rejected'] as const)
          expect(wrpo.gradients[role]?.every((g) => g === 0) ?? true).toBe(true);
      }),
    );
  });

  it('label smoothing weighs the loss of z and of -z', () => {
    const swapped = ({ source_chosen, target_chosen, rejected }: Columns): Columns => ({
      source_chosen: source_chosen!,
      target_chosen: rejected!,
      rejected: target_chosen!,
    });
    fc.assert(
      fc.property(contests, beta, fraction, (input, beta, labelSmoothing) => {
        const plain: Objective = { lossType: 'sigmoid', beta };
        const won = preferenceLoss(input, plain).losses;
        const lost = preferenceLoss(
          { policy: swapped(input.policy), reference: swapped(input.reference) },
          plain,
        ).losses;
        const smooth = preferenceLoss(input, { ...plain, labelSmoothing }).losses;
        for (const [i, loss] of smooth.entries()) {
          const expected = (1 - labelSmoothing) * won[i]! + labelSmoothing * lost[i]!;
          expectWithin(Math.abs(loss - expected), 1e-12 * (1 + Math.abs(expected)));
        }
      }),
    );
  });

  it('gradients are those of the loss', () => {
    const objectives = fc.oneof(
      fc.record({ lossType: fc.constant('wrpo' as const), beta, alpha: fraction, labelSmoothing: fraction }),
      fc.record({ lossType: fc.constant('sigmoid' as const), beta, labelSmoothing: fraction }),
    );
    fc.assert(
      fc.property(contests, objectives, (input, objective) => {
        const { gradients } = preferenceLoss(input, objective);
        // A five-point difference over 0.01 of margin: its error is 1e-10 of beta, the rounding of losses up to 1,600 another.
        const step = 0.01 / objective.beta;
        for (const role of rolesOf(objective) as (keyof typeof input.policy)[]) {
          for (const [i, value] of input.policy[role].entries()) {
            const lossAt = (shift: number) => {
              const column = input.policy[role].with(i, value + shift * step);
              return preferenceLoss({ ...input, policy: { ...input.policy, [role]: column } }, objective).losses[i]!;
            };
            const slope = (8 * (lossAt(1) - lossAt(-1)) - (lossAt(2) - lossAt(-2))) / (12 * step);
            const count = input.policy[role].length;
            expectWithin(Math.abs(gradients[role]![i]! * count - slope), 1e-8 * objective.beta);
          }
        }
      }),
      { numRuns: 60 },
    );
  });

  it('stays finite and exact where a softplus overflows', () => {
    const far = (margin: number) =>
      preferenceLoss(
        { policy: { target_chosen: [margin], rejected: [0] }, reference: { target_chosen: [0], rejected: [0] } },
        { lossType: 'sigmoid', beta: 1 },
      );
    expect(far(-1e5).loss).toBe(1e5);
    expect(far(-1e5).gradients.target_chosen![0]).toBe(-1);
    expect(far(1e5).loss).toBe(0);
    expect(far(40).loss).toBeCloseTo(Math.exp(-40), 30);
    expect(far(0).loss).toBe(Math.LN2);
  });

  it('fine-tuning is the negative log-prob', () => {
    const { loss, losses, gradients } = preferenceLoss({ policy: { completion: [-3, -5.5] } }, { lossType: 'sft' });
    expect(loss).toBe(4.25);
    expect([...losses]).toEqual([3, 5.5]);
    expect([...gradients.completion!]).toEqual([-0.5, -0.5]);
  });
});

describe('refusals', () => {
  const wrpo: Objective = { lossType: 'wrpo', beta: 0.1, alpha: 0.3 };
  const { source_chosen, ...withoutSource } = policy;
  const { rejected, ...withoutRejected } = policy;

  it.each([
    ['the first column is missing', { policy: withoutSource, reference }, 'policy.source_chosen', /received none/],
    ['the last column is missing', { policy: withoutRejected, reference }, 'policy.rejected', /received none/],
    [
      'a column is short',
      { policy: { ...policy, rejected: [-1, -2] }, reference },
      'policy.rejected',
      /3 .*received 2/,
    ],
    [
      'a column is long',
      { policy: { ...policy, target_chosen: [0, 0, 0, 0] }, reference },
      'policy.target_chosen',
      /4/,
    ],
    ['there is no reference', { policy }, 'reference.source_chosen', /received none/],
    [
      'the reference lacks a column',
      { policy, reference: { ...reference, target_chosen: undefined } },
      'reference.target_chosen',
      /received none/,
    ],
    [
      'the reference is short',
      { policy, reference: { ...reference, rejected: [1] } },
      'reference.rejected',
      /received 1/,
    ],
  ])('%s', async (_, input, column, count) => {
    await expectSentence(() => preferenceLoss(input, wrpo), 'ERR_CONFIG', column, count, 'wrpo');
  });

  it('does not ask for columns that the loss does not use', () => {
    expect(preferenceLoss({ policy: withoutSource, reference }, { lossType: 'sigmoid', beta: 0.01 }).loss).toBeCloseTo(
      vectors.losses.dpo_on.mean,
      12,
    );
  });
});
