/** One step: a global batch, packed into micro-batches and accumulated, and the update. */
import { type PackedBatch, packRows, splitMicrobatches, withContests } from '../data/pack.js';
import type { Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import type { AccumulateOptions, ComputeDtype } from '../native/addon.js';
import type { EncodedRow } from '../text/encode.js';
import type { AdamW } from './adamw.js';
import type { TrainingArgs } from './args.js';
import { countResponseTokens, countTokens, type Example, logProbsOfRow } from './metrics.js';
import { lossOf, type PromptLogProbs, type Terms } from './objective.js';
import { type Prepared, referenceOf } from './prepare.js';
import type { ReferenceColumn } from './reference.js';

export interface Step {
  examples: Example[];
  /** Real tokens of all sequences. */
  tokens: number;
  /** Before clipping. */
  gradNorm: number;
  learningRate: number;
}

/**
 * Takes a step on the training rows at `indices`; `step` is the number of steps before it. All of it is queued before
 * anything is read, so that a GPU never waits for this thread. A loss or gradient that is not finite changes nothing: it
 * throws ERR_NON_FINITE naming step and rows, or with `nonFinite: 'skip'` is returned.
 */
export async function takeStep(
  run: Prepared,
  optimizer: AdamW,
  indices: readonly number[],
  terms: Terms,
  args: TrainingArgs,
  step: number,
  signal?: AbortSignal,
): Promise<Step | WrpoError> {
  try {
    const read = await enqueueBatch(run, indices, terms, args, step, signal);
    const rows = indices.map((i) => run.train.rows[i]!);
    const update = naming(optimizer.step(), step, rows);
    update.catch(() => {}); // told below, after a loss, which says more
    const examples = await read();
    const tokens = rows.reduce((sum, row) => sum + countTokens(row, run.roles), 0);
    return { examples, tokens, ...(await update) };
  } catch (error) {
    if (args.nonFinite === 'stop' || !(error instanceof WrpoError) || error.code !== 'ERR_NON_FINITE') throw error;
    await run.model.zeroGradients();
    return error;
  }
}

/** Reads what queued work gave: an example a row. */
type Read = () => Promise<Example[]>;

/**
 * Adds the gradient of the mean objective over the training rows at `indices` (for `sft`, the mean over their tokens).
 * `step` is the number of completed steps. Throws the signal's reason, with the gradients zeroed, once it is aborted.
 */
async function enqueueBatch(
  run: Prepared,
  indices: readonly number[],
  terms: Terms,
  args: TrainingArgs,
  step: number,
  signal?: AbortSignal,
): Promise<Read> {
  const { model, roles, train } = run;
  const batch = indices.map((i) => train.rows[i]!);
  const normalizer = terms.perToken
    ? batch.reduce((sum, row) => sum + countResponseTokens(row, roles), 0)
    : batch.length;
  const reads: Read[] = [];
  let firstRow = 0;
  for (const part of splitMicrobatches(batch, roles, args.microbatchTokens)) {
    if (signal?.aborted) {
      await model.zeroGradients();
      signal.throwIfAborted();
    }
    const taken = indices.slice(firstRow, firstRow + part.length);
    const reference = await referenceOf(run, train, part, taken, args.sharePrompt);
    const packed = packRows(part, roles, { sharePrompt: args.sharePrompt, longestShared: model.longestShared });
    const enqueue = terms.loss ? enqueueFunction : enqueueContests;
    const dropout = { seed: args.seed, step, firstRow };
    const how = { normalizer, dropout, keptLayers: run.memory.keptLayers };
    const read = await naming(enqueue(model, packed, reference, terms, how), step, part);
    reads.push(async () => {
      const examples = await naming(read(), step, part);
      // Dropout moves what adapters compute, unless they are fresh and compute nothing.
      const moved = run.referenceUse.adapters && model.lora && model.lora.loraDropout > 0;
      if (step === 0 && terms.reference && !run.refModel && !moved) checkStart(examples, part, model.dtype);
      return examples;
    });
    firstRow += part.length;
  }
  return async () => {
    const examples: Example[] = [];
    for (const read of reads) examples.push(...(await read()));
    return examples;
  };
}

/** How a micro-batch is computed: what it is divided by, what draws its dropout, and how many layers are kept. */
type Pass = Required<Pick<AccumulateOptions, 'normalizer' | 'dropout' | 'keptLayers'>>;

/** The contests of a micro-batch in one pass, which computes log-probs, losses and gradients. */
async function enqueueContests(
  model: Model,
  packed: PackedBatch,
  reference: ReferenceColumn,
  { contests, form, reference: compares }: Terms,
  how: Pass,
): Promise<Read> {
  const batch = withContests(packed, contests);
  const each = rolesIn(packed);
  if (compares) batch.reference = Float64Array.from(reference.flatMap((row) => each.map((role) => row[role]!)));
  const read = await model.enqueue(batch, { ...how, objective: form });
  return async () => {
    const { logps, losses } = await read();
    return promptsOf(packed, logps, reference).map((prompt, i) => ({
      ...prompt,
      loss: contests.reduce((sum, { weight }, q) => sum + weight * losses[i * contests.length + q]!, 0),
    }));
  };
}

/** A loss of the caller's own in two: log-probs, and at its derivatives there the gradients. */
async function enqueueFunction(
  model: Model,
  packed: PackedBatch,
  reference: ReferenceColumn,
  terms: Terms,
  how: Pass,
): Promise<Read> {
  const { sums } = await model.logProbs(packed, { dropout: how.dropout });
  const prompts = promptsOf(packed, sums, reference);
  const outcomes = prompts.map((prompt) => lossOf(terms, prompt));
  const each = rolesIn(packed);
  const stray = outcomes
    .flatMap(({ gradients }) => Object.keys(gradients))
    .find((role) => !each.includes(role as Role));
  if (stray !== undefined) {
    throw new WrpoError('ERR_CONFIG', `the objective's gradients name "${stray}"; its roles are ${each.join(', ')}`);
  }
  const dLossDLogp = outcomes.flatMap(({ gradients }) => each.map((role) => gradients[role] ?? 0));
  for (const value of [...outcomes.map(({ loss }) => loss), ...dLossDLogp]) {
    if (!Number.isFinite(value)) throw new WrpoError('ERR_NON_FINITE', `the objective's loss or gradient is ${value}`);
  }
  const read = await model.enqueue(packed, { ...how, objective: { form: 'gradients', dLossDLogp } });
  return async () => {
    await read();
    return prompts.map((prompt, i) => ({ ...prompt, loss: outcomes[i]!.loss }));
  };
}

/** The log-probs of a batch's responses by prompt and role. */
function promptsOf(packed: PackedBatch, logps: Float64Array, reference: ReferenceColumn): PromptLogProbs[] {
  const each = rolesIn(packed);
  return packed.rows.map((row, i) => {
    const policy = Object.fromEntries(each.map((role, k) => [role, logps[i * each.length + k]!]));
    return logProbsOfRow(row, each, policy, reference[i]!);
  });
}

/** The roles of each row, all alike. */
const rolesIn = ({ rows, roles }: PackedBatch): Role[] => roles.slice(0, roles.length / rows.length);

/** A promise whose ERR_NON_FINITE says which step and rows it was about. */
async function naming<T>(promise: Promise<T>, step: number, rows: readonly EncodedRow[]): Promise<T> {
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
function checkStart(examples: Example[], rows: EncodedRow[], dtype: ComputeDtype): void {
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
