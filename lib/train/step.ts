/** One global batch: packed into micro-batches, accumulated. */
import { packRows, splitMicrobatches, withContests } from '../data/pack.js';
import type { Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { EncodedRow } from '../text/encode.js';
import type { TrainingArgs } from './args.js';
import { countResponseTokens, countTokens, type Example } from './metrics.js';
import { contestsOf, formOf, type Objective, usesReference } from './objective.js';
import { type Prepared, referenceOf } from './prepare.js';
import type { ReferenceColumn } from './reference.js';

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
  objective: Objective,
  args: TrainingArgs,
  step: number,
  signal?: AbortSignal,
): Promise<AccumulatedBatch> {
  const { model, roles, train } = run;
  const batch = indices.map((i) => train.rows[i]!);
  const tokensOf = (count: typeof countTokens) => batch.reduce((sum, row) => sum + count(row, roles), 0);
  const normalizer = objective.lossType === 'sft' ? tokensOf(countResponseTokens) : batch.length;
  const contests = contestsOf(objective);
  const examples: Example[] = [];
  for (const part of splitMicrobatches(batch, roles, args.microbatchTokens)) {
    if (signal?.aborted) {
      await model.zeroGradients();
      signal.throwIfAborted();
    }
    const taken = indices.slice(examples.length, examples.length + part.length);
    const reference = await referenceOf(run, train, part, taken, args.sharePrompt);
    const packed = withContests(packRows(part, roles, { sharePrompt: args.sharePrompt }), contests);
    if (usesReference(objective.lossType)) {
      packed.reference = Float64Array.from(reference.flatMap((row) => roles.map((role) => row[role]!)));
    }
    const accumulated = model.accumulate(packed, { objective: formOf(objective), normalizer });
    const { logps, losses } = await naming(accumulated, step, part);
    const done = part.map((row, i) => ({
      loss: losses[i]!,
      tokens: countResponseTokens(row, roles),
      logps: Object.fromEntries(roles.map((role, k) => [role, logps[i * roles.length + k]!])),
      reference: reference[i]!,
    }));
    if (step === 0 && usesReference(objective.lossType) && !run.refModel) checkStart(done, part, args);
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
  for (const [i, { logps, reference }] of examples.entries()) {
    for (const [role, value] of Object.entries(logps) as [Role, number][]) {
      const difference = Math.abs(value - (reference as ReferenceColumn[number])[role]!);
      if (difference <= tolerance * Math.max(1, Math.abs(value))) continue;
      throw new WrpoError(
        'ERR_INTERNAL',
        `before the first update policy and reference must agree, but the log-prob of ${role} of ${rows[i]!.where} differs by ${difference}`,
      );
    }
  }
}
