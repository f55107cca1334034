/**
 * The objectives, as a table. Every preference objective is a contest between a prompt's responses: the margin is
 * z = β · Σ_k c_k u_k (log π(y_k|x) − log π_ref(y_k|x)) − γ, the loss −log σ(z) or IPO's square of the distance to
 * 1/(2β), and only the coefficients c differ. The arithmetic is in native/train/objective.cpp.
 */
import type { Contest } from '../data/pack.js';
import type { PreferenceRow, Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { ContestForm } from '../native/addon.js';
import { loadNative } from '../native/load.js';

/** Which chosen response meets the rejected one: the target's own, or the source's (the hybrid of Fig. 3). */
export type Chosen = 'target' | 'source';

interface Preference {
  /** For IPO the paper's τ. */
  beta: number;
  /** Adds so much of the mean token NLL of the chosen responses, each weighted as in the margin (arXiv 2404.19733). */
  sftWeight?: number;
}
interface Logistic extends Preference {
  /** How likely it is that a label is the wrong way round: (1 − e)(−log σ(z)) + e(−log σ(−z)). */
  labelSmoothing?: number;
}

/** An objective of the table, with the fields that it has. `alpha` is the weight of the source's response. */
export type NamedObjective =
  | ({ lossType: 'sigmoid'; chosen?: Chosen } & Logistic)
  | ({ lossType: 'authors_sigmoid' } & Logistic)
  | ({ lossType: 'simpo'; chosen?: Chosen; simpoGamma?: number } & Logistic)
  | ({ lossType: 'ipo'; chosen?: Chosen; ipoNormalization?: 'sum' | 'token_mean' } & Preference)
  | ({ lossType: 'wrpo' | 'wrpo_ls'; alpha: number } & Logistic)
  | ({ lossType: 'wrpo_simpo'; alpha: number; simpoGamma?: number } & Logistic)
  | ({ lossType: 'wrpo_ipo'; alpha: number; ipoNormalization?: 'sum' | 'token_mean' } & Preference)
  | { lossType: 'sft' };
export type LossType = NamedObjective['lossType'];

/** Contests of the caller's own. What of the form is left out is plain: sigmoid, γ 0, no smoothing, sums. */
export interface ContestObjective extends Partial<ContestForm> {
  beta: number;
  contests: Contest[];
  /** Whether the loss compares with the reference. Default true. */
  reference?: boolean;
}

/** One prompt's summed log-probs and token counts, by role. `reference` is empty where there is none. */
export interface PromptLogProbs {
  policy: Record<Role, number>;
  reference: Record<Role, number>;
  lengths: Record<Role, number>;
}

/** Any function of one prompt's log-probs, with its derivatives: a run computes log-probs first, then the gradient. */
export interface FunctionObjective {
  /** The responses it needs. */
  roles: Role[];
  loss(prompt: PromptLogProbs): { loss: number; gradients: Partial<Record<Role, number>> };
  /** Whether it reads the reference. Default true. */
  reference?: boolean;
  /** For the metrics `rewards/…` alone. Default 1. */
  beta?: number;
}

export type Objective = NamedObjective | ContestObjective | FunctionObjective;

type Coefficients = Contest['coefficients'];
interface Line {
  form: ContestForm['form'];
  /** u = 1/length: log-probs are means over a response's tokens. */
  lengthNormalized?: boolean;
  /** Without one, log π_ref is left out of the margin. */
  reference?: false;
  /** One contest a prompt, or several of equal weight. */
  contests(o: { alpha: number; chosen: Chosen }): Coefficients[];
}

const pair: Line['contests'] = ({ chosen }) => [
  chosen === 'source' ? { source_chosen: 1, rejected: -1 } : { target_chosen: 1, rejected: -1 },
];
const fused: Line['contests'] = ({ alpha }) => [{ source_chosen: alpha, target_chosen: 1 - alpha, rejected: -1 }];
/** The second contrast is with each model's own worst response. */
const fusedWithSource: Line['contests'] = ({ alpha }) => [
  { source_chosen: alpha, target_chosen: 1 - alpha, source_rejected: -alpha, rejected: alpha - 1 },
];
const both: Line['contests'] = (o) => [...pair({ ...o, chosen: 'source' }), ...pair({ ...o, chosen: 'target' })];

/** Equations of the WRPO paper, arXiv 2412.03187, unless another is named. */
const TABLE: Record<LossType, Line> = {
  sigmoid: { form: 'sigmoid', contests: pair }, // DPO, Eq. 3
  wrpo: { form: 'sigmoid', contests: fused }, // Eq. 6
  wrpo_ls: { form: 'sigmoid', contests: fusedWithSource }, // Eq. 9
  authors_sigmoid: { form: 'sigmoid', contests: both }, // the mean of DPO over both chosen, as in the authors' trainer
  simpo: { form: 'sigmoid', lengthNormalized: true, reference: false, contests: pair }, // Eq. 6 of arXiv 2405.14734
  wrpo_simpo: { form: 'sigmoid', lengthNormalized: true, reference: false, contests: fused }, // Table 5
  ipo: { form: 'ipo', contests: pair }, // Eq. 17 of arXiv 2310.12036
  wrpo_ipo: { form: 'ipo', contests: fused }, // Table 5
  sft: { form: 'linear', reference: false, contests: () => [{ completion: 1 }] }, // −log π(y|x)
};

/** What any objective comes to. */
export interface Terms {
  roles: Role[];
  form: ContestForm;
  /** Of every prompt; none where `loss` stands for them. */
  contests: Contest[];
  loss?: FunctionObjective['loss'];
  reference: boolean;
  /** Whether the mean is over tokens rather than prompts. */
  perToken: boolean;
}

const PLAIN = { form: 'sigmoid', beta: 1, gamma: 0, labelSmoothing: 0, lengthNormalized: false, sftWeight: 0 } as const;

/** Settles an objective of whichever kind. */
export function termsOf(objective: Objective): Terms {
  if ('loss' in objective) {
    const { roles, loss, reference = true, beta = 1 } = objective;
    return { roles, form: { ...PLAIN, beta }, contests: [], loss, reference, perToken: false };
  }
  if ('contests' in objective) {
    const { contests, reference = true, ...form } = objective;
    const roles = [...new Set(contests.flatMap(({ coefficients }) => Object.keys(coefficients) as Role[]))];
    return { roles, form: { ...PLAIN, ...known(form) }, contests, reference, perToken: false };
  }
  const { lossType } = objective;
  // A field that a loss does not have is at its neutral value.
  const o = { ...NEUTRAL, ...known(objective) };
  const { form, lengthNormalized = form === 'ipo' && o.ipoNormalization === 'token_mean', ...line } = TABLE[lossType];
  const contests = line.contests(o).map((coefficients, _, all) => ({ weight: 1 / all.length, coefficients }));
  const { beta, simpoGamma: gamma, labelSmoothing, sftWeight } = o;
  const scalars = { form, beta, gamma, labelSmoothing, lengthNormalized, sftWeight };
  return { ...termsOf({ ...scalars, contests, reference: line.reference }), perToken: lossType === 'sft' };
}

const NEUTRAL = {
  beta: 1,
  alpha: 0,
  chosen: 'target',
  labelSmoothing: 0,
  simpoGamma: 0,
  ipoNormalization: 'sum',
  sftWeight: 0,
} as const;

const known = <T extends object>(fields: T): T =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;

export const contestsOf = (objective: Objective): Contest[] => termsOf(objective).contests;
/** The scalar part, as the addon takes it. */
export const formOf = (objective: Objective): ContestForm => termsOf(objective).form;
/** The roles a row must have for an objective. */
export const rolesOf = (objective: Objective): Role[] => termsOf(objective).roles;

/** The objective that a run's arguments name, at an alpha. */
export function objectiveOf(
  args: { lossType: LossType } & Record<Exclude<keyof typeof NEUTRAL, 'alpha'>, unknown>,
  alpha: number,
): NamedObjective {
  const { lossType, beta, chosen, labelSmoothing, simpoGamma, ipoNormalization, sftWeight } = args;
  const all = { lossType, beta, alpha, chosen, labelSmoothing, simpoGamma, ipoNormalization, sftWeight };
  return all as NamedObjective;
}

/** The objective that a row is written for, by the responses it has. */
export function fittingLoss({ responses, otherKeys = [] }: PreferenceRow): 'wrpo' | 'sigmoid' | 'sft' {
  // A pair may say where it comes from ("source"), but a misspelt source_chosen is no pair.
  if (responses.source_chosen !== undefined || otherKeys.some((key) => /^s(ou)?rc?e?.?cho|^y_?ws/i.test(key)))
    return 'wrpo';
  return responses.rejected === undefined ? 'sft' : 'sigmoid';
}

/** One prompt's loss and its derivatives, on log-probs that are already known; `margin` is the contests' weighted mean. */
export function lossOf(
  { roles, form, contests, loss, reference: compares }: Terms,
  prompt: PromptLogProbs,
): { loss: number; margin: number; gradients: Partial<Record<Role, number>> } {
  if (loss) return { margin: Number.NaN, ...loss(prompt) };
  const { policy, reference, lengths } = prompt;
  const total = { loss: 0, margin: 0, gradients: Object.fromEntries(roles.map((role) => [role, 0])) };
  for (const { weight, coefficients } of contests) {
    const taking = Object.keys(coefficients) as Role[];
    const values = (of: Record<Role, number>) => Float64Array.from(taking, (role) => of[role]);
    const outcome = loadNative().contestLoss(
      {
        policy: values(policy),
        reference: compares ? values(reference) : undefined,
        lengths: needsLengths(form) ? Int32Array.from(taking, (role) => lengths[role]) : undefined,
        coefficients: values(coefficients as Record<Role, number>),
      },
      form,
    );
    total.loss += weight * outcome.loss;
    total.margin += weight * outcome.margin;
    for (const [k, role] of taking.entries()) total.gradients[role]! += weight * outcome.gradient[k]!;
  }
  return total;
}

const needsLengths = ({ lengthNormalized, sftWeight }: ContestForm) => lengthNormalized || Boolean(sftWeight);

/** Named columns of summed log-probs, one value a prompt: `{ source_chosen: [...], target_chosen: [...], … }`. */
export type Columns = Partial<Record<Role, ArrayLike<number>>>;

export interface PreferenceLoss {
  /** Mean over the prompts. */
  loss: number;
  /** Per prompt. */
  losses: Float64Array;
  /** z of each prompt; NaN where a function stands for the contests. */
  margins: Float64Array;
  /** d(mean loss) / d(policy log-prob), in the same columns. */
  gradients: Partial<Record<Role, Float64Array>>;
}

/**
 * An objective by itself, on log-probs that are already known; float64. `lengths` (tokens of each response) is needed only
 * by length-normalised objectives and `sftWeight`. Throws ERR_CONFIG when a column is missing or of another length.
 */
export function preferenceLoss(
  columns: { policy: Columns; reference?: Columns; lengths?: Columns },
  objective: Objective,
): PreferenceLoss {
  const terms = termsOf(objective);
  const { roles } = terms;
  const count = roles.map((role) => columns.policy[role]?.length).find((length) => length !== undefined) ?? 0;
  const required = (name: keyof typeof columns): boolean => {
    if (name === 'reference') return terms.reference;
    return name === 'policy' || (terms.loss ? columns.lengths !== undefined : needsLengths(terms.form));
  };
  const name = 'lossType' in objective ? objective.lossType : 'this objective';
  for (const role of roles) {
    for (const table of ['policy', 'reference', 'lengths'] as const) {
      const values = columns[table]?.[role];
      if (!required(table) || (values?.length === count && count > 0)) continue;
      throw new WrpoError(
        'ERR_CONFIG',
        `preferenceLoss: expected ${count || 'one or more'} values in ${table}.${role} for ${name}, received ${values?.length ?? 'none'}`,
      );
    }
  }
  const result: PreferenceLoss = {
    loss: 0,
    losses: new Float64Array(count),
    margins: new Float64Array(count),
    gradients: Object.fromEntries(roles.map((role) => [role, new Float64Array(count)])),
  };
  const at = (table: keyof typeof columns, i: number) =>
    Object.fromEntries(required(table) ? roles.map((role) => [role, columns[table]![role]![i]!]) : []);
  for (let i = 0; i < count; i++) {
    const prompt = { policy: at('policy', i), reference: at('reference', i), lengths: at('lengths', i) };
    const { loss, margin, gradients } = lossOf(terms, prompt as unknown as PromptLogProbs);
    result.losses[i] = loss;
    result.margins[i] = margin;
    for (const role of roles) result.gradients[role]![i] = (gradients[role] ?? 0) / count;
    result.loss += loss / count;
  }
  return result;
}
