/** One global batch: packed into micro-batches, accumulated. */
import { packRows, splitMicrobatches, withContests } from '../data/pack.js';
import type { Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { EncodedRow } from '../text/encode.js';
import type { TrainingArgs } from './args.js';
import { countResponseTokens, countTokens, type Example, logProbsOfRow } from './metrics.js';
import { lossOf, type Terms } from './objective.js';
import { type Prepared, referenceOf } from './prepare.js';

export interface AccumulatedBatch {
  examples: Example[];
  /** Real tokens of all sequences. */
  tokens: number;
}

/**
 * Adds the gradient of the mean objective over the training rows at `indices` (for `sft`, the mean over their tokens).
 * `step` is the number of completed steps. Throws the signal's reason, with the gradients zeroed, once it is aborted.
 */
export async function accumulateBatch(
  run: Prepared,
  indices: readonly number[],
  terms: Terms,
  args: TrainingArgs,
  step: number,
  signal?: AbortSignal,
): Promise<AccumulatedBatch> {
  const { model, roles, train } = run;
  const batch = indices.map((i) => train.rows[i]!);
  const tokensOf = (count: typeof countTokens) => batch.reduce((sum, row) => sum + count(row, roles), 0);
  const normalizer = terms.perToken ? tokensOf(countResponseTokens) : batch.length;
  const examples: Example[] = [];
  for (const part of splitMicrobatches(batch, roles, args.microbatchTokens)) {
    if (signal?.aborted) {
      await model.zeroGradients();
      signal.throwIfAborted();
    }
    const taken = indices.slice(examples.length, examples.length + part.length);
    const reference = await referenceOf(run, train, part, taken, args.sharePrompt);
    const packed = packRows(part, roles, { sharePrompt: args.sharePrompt });
    const examplesOf = (logps: ArrayLike<number>, lossAt: (i: number) => number): Example[] =>
      part.map((row, i) => {
        const own = Object.fromEntries(roles.map((role, k) => [role, logps[i * roles.length + k]!]));
        return { ...logProbsOfRow(row, roles, own, reference[i]!), loss: lossAt(i) };
      });
    const accumulate = async (): Promise<Example[]> => {
      if (terms.loss) {
        // A loss of the caller's own in two passes: log-probs, its derivatives at them, then the gradient.
        const { sums } = await model.logProbs(packed);
        const outcomes = examplesOf(sums, () => 0).map((prompt) => lossOf(terms, prompt));
        const dLossDLogp = outcomes.flatMap(({ gradients }) => roles.map((role) => gradients[role] ?? 0));
        await model.accumulate(packed, { objective: { form: 'gradients', dLossDLogp }, normalizer });
        const done = examplesOf(sums, (i) => outcomes[i]!.loss);
        for (const { loss } of done) {
          if (!Number.isFinite(loss)) throw new WrpoError('ERR_NON_FINITE', `the objective's loss is ${loss}`);
        }
        return done;
      }
      const batch = withContests(packed, terms.contests);
      if (terms.reference) {
        batch.reference = Float64Array.from(reference.flatMap((row) => roles.map((role) => row[role]!)));
      }
      const { logps, losses } = await model.accumulate(batch, { objective: terms.form, normalizer });
      const { contests } = terms;
      return examplesOf(logps, (i) =>
        contests.reduce((sum, { weight }, q) => sum + weight * losses[i * contests.length + q]!, 0),
      );
    };
    const done = await naming(accumulate(), step, part);
    if (step === 0 && terms.reference && !run.refModel) checkStart(done, part, args);
    examples.push(...done);
  }
  return { examples, tokens: tokensOf(countTokens) };
}

/** A promise whose ERR_NON_FINITE says which step and rows it was about. */
export async function naming<T>(promise: Promise<T>, step: number, rows: readonly EncodedRow[]): Promise<T> {
  try {
    return await promise;
  } catch (error) {
    if (!(error instanceof WrpoError) || error.code !== 'ERR_NON_FINITE') throw error;
    const where = rows.length === 1 ? rows[0]!.where : `${rows[0]!.where} … ${rows.at(-1)!.where}`;
    const message = `stopped at step ${step + 1}, before its update: ${error.message} (${where})`;
    throw new WrpoError('ERR_NON_FINITE', message, { cause: error });
  }
}

/** Before the first update the policy is its own reference: every log-ratio must be 0 to rounding, and the loss ln 2. */
function checkStart(examples: Example[], rows: EncodedRow[], { dtype }: TrainingArgs): void {
  const tolerance = dtype === 'bfloat16' ? 2e-2 : 1e-4;
  for (const [i, { policy, reference }] of examples.entries()) {
    for (const [role, value] of Object.entries(policy) as [Role, number][]) {
      const difference = Math.abs(value - reference[role]);
      if (difference <= tolerance * Math.max(1, Math.abs(value))) continue;
      throw new WrpoError(
        'ERR_INTERNAL',
        `before the first update policy and reference must agree, but the log-prob of ${role} of ${rows[i]!.where} differs by ${difference}`,
      );
    }
  }
}
