/**
 * The objectives, as a table. Every preference objective is a contest between a prompt's responses,
 * z = beta · Σ_k c_k (log π(y_k|x) − log π_ref(y_k|x)), loss −log σ(z); only the coefficients c differ. The arithmetic is
 * in native/train/objective.cpp.
 */
import type { Contest } from '../data/pack.js';
import type { PreferenceRow, Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { type ContestForm, callNative } from '../native/addon.js';
import { loadNative } from '../native/load.js';

export type LossType = 'wrpo' | 'sigmoid' | 'sft';

export type Objective =
  /** WRPO. `alpha` is the weight of the source's response, ramped by the trainer when `isDynamic`. */
  | { lossType: 'wrpo'; beta: number; alpha: number; labelSmoothing?: number }
  /** DPO on (target_chosen, rejected). */
  | { lossType: 'sigmoid'; beta: number; labelSmoothing?: number }
  /** Supervised fine-tuning: the mean negative log-prob of a completion's tokens. */
  | { lossType: 'sft' };

type Coefficients = Partial<Record<Role, number>>;

const COEFFICIENTS: { [T in LossType]: (alpha: number) => Coefficients } = {
  wrpo: (alpha) => ({ source_chosen: alpha, target_chosen: 1 - alpha, rejected: -1 }), // WRPO, Eq. 6
  sigmoid: () => ({ target_chosen: 1, rejected: -1 }), // DPO, Eq. 3
  sft: () => ({ completion: 1 }), // the linear form: loss −log π(y|x)
};

/** The objective of a run at a given alpha. */
export function objectiveOf(
  args: { lossType: LossType; beta: number; labelSmoothing: number },
  alpha: number,
): Objective {
  const { lossType, beta, labelSmoothing } = args;
  return lossType === 'sft' ? { lossType } : { lossType, beta, labelSmoothing, alpha };
}

/** The roles a row must have for a loss. */
export function rolesOf(lossType: LossType): Role[] {
  return Object.keys(COEFFICIENTS[lossType](0)) as Role[];
}

/** The objective that a row is written for, by the responses it has. */
export function fittingLoss({ responses, otherKeys = [] }: PreferenceRow): LossType {
  // A pair may say where it comes from ("source"), but a misspelt source_chosen is no pair.
  if (responses.source_chosen !== undefined || otherKeys.some((key) => /^s(ou)?rc?e?.?cho|^y_?ws/i.test(key)))
    return 'wrpo';
  return responses.rejected === undefined ? 'sft' : 'sigmoid';
}

/** The contests of every prompt. */
export function contestsOf(objective: Objective): Contest[] {
  const alpha = objective.lossType === 'wrpo' ? objective.alpha : 0;
  return [{ weight: 1, coefficients: COEFFICIENTS[objective.lossType](alpha) }];
}

/** Whether the loss compares with a reference model. */
export function usesReference(lossType: LossType): boolean {
  return lossType !== 'sft';
}

/** The scalar part, as the addon takes it. */
export function formOf(objective: Objective): ContestForm {
  if (objective.lossType === 'sft') {
    return { form: 'linear', beta: 1, gamma: 0, labelSmoothing: 0, lengthNormalized: false };
  }
  const { beta, labelSmoothing = 0 } = objective;
  return { form: 'sigmoid', beta, gamma: 0, labelSmoothing, lengthNormalized: false };
}

/** Named columns of summed log-probs, one value a prompt: `{ source_chosen: [...], target_chosen: [...], … }`. */
export type Columns = Partial<Record<Role, ArrayLike<number>>>;

export interface PreferenceLoss {
  /** Mean over the prompts. */
  loss: number;
  /** Per prompt. */
  losses: Float64Array;
  /** z of each prompt. */
  margins: Float64Array;
  /** d(mean loss) / d(policy log-prob), in the same columns. */
  gradients: Partial<Record<Role, Float64Array>>;
}

/**
 * An objective by itself, on log-probs that are already known; float64. `lengths` (tokens of each response) is needed only
 * by length-normalised objectives. Throws ERR_CONFIG when a column is missing or of another length.
 */
export function preferenceLoss(
  { policy, reference }: { policy: Columns; reference?: Columns; lengths?: Columns },
  objective: Objective,
): PreferenceLoss {
  const native = loadNative();
  const form = formOf(objective);
  const contests = contestsOf(objective);
  const roles = rolesOf(objective.lossType);
  const count = roles.map((role) => policy[role]?.length).find((length) => length !== undefined) ?? 0;
  const column = (columns: Columns | undefined, role: Role, name: string): ArrayLike<number> => {
    const values = columns?.[role];
    if (values !== undefined && values.length === count && count > 0) return values;
    throw new WrpoError(
      'ERR_CONFIG',
      `preferenceLoss: expected ${count || 'one or more'} values in ${name}.${role} for ${objective.lossType}, received ${values?.length ?? 'none'}`,
    );
  };
  const needsReference = usesReference(objective.lossType);
  for (const role of roles) {
    column(policy, role, 'policy');
    if (needsReference) column(reference, role, 'reference');
  }
  const result: PreferenceLoss = {
    loss: 0,
    losses: new Float64Array(count),
    margins: new Float64Array(count),
    gradients: Object.fromEntries(roles.map((role) => [role, new Float64Array(count)])),
  };
  for (let i = 0; i < count; i++) {
    for (const { weight, coefficients } of contests) {
      const taking = Object.keys(coefficients) as Role[];
      const values = (columns: Columns | undefined, name: string) =>
        Float64Array.from(taking, (role) => column(columns, role, name)[i]!);
      const outcome = callNative(() =>
        native.contestLoss(
          {
            policy: values(policy, 'policy'),
            reference: needsReference ? values(reference, 'reference') : undefined,
            coefficients: Float64Array.from(taking, (role) => coefficients[role]!),
          },
          form,
        ),
      );
      result.losses[i]! += weight * outcome.loss;
      result.margins[i] = outcome.margin;
      for (const [k, role] of taking.entries()) result.gradients[role]![i]! += (weight * outcome.gradient[k]!) / count;
    }
  }
  for (const loss of result.losses) result.loss += loss / count;
  return result;
}
