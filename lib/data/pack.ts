/** Encoded rows to packed micro-batches: no padding, each prompt once. The layout is described in native/model/batch.h. */
import { WrpoError } from '../errors.js';
import type { Batch } from '../native/addon.js';
import type { EncodedRow } from '../text/store.js';
import type { Role } from './preferences.js';

/** A batch together with the rows it holds and the role of each of its responses. */
export interface PackedBatch extends Batch {
  rows: EncodedRow[];
  roles: Role[];
}

/** Throws ERR_DATA naming the row unless it has a prompt and every response, none of them empty. */
function requireTokens({ where, prompt, responses }: EncodedRow, roles: readonly Role[]): void {
  if (prompt.length === 0) throw new WrpoError('ERR_DATA', `${where}: the prompt has no tokens`);
  for (const role of roles) {
    const what = responses[role] ? 'has no tokens' : 'is missing';
    if (!responses[role]?.length) throw new WrpoError('ERR_DATA', `${where}: "${role}" ${what}`);
  }
}

/** The tokens a row adds to a batch. */
export function packedLength(row: EncodedRow, roles: readonly Role[]): number {
  const { prompt, responses } = row;
  return roles.reduce((sum, role) => sum + responses[role]!.length, prompt.length - 1);
}

/** Cuts rows, in order, into micro-batches of at most `limit` tokens; a larger row gets one of its own. */
export function splitMicrobatches(rows: EncodedRow[], roles: readonly Role[], limit: number): EncodedRow[][] {
  const batches: EncodedRow[][] = [];
  let filled = 0;
  for (const row of rows) {
    const length = packedLength(row, roles);
    if (batches.length === 0 || filled + length > limit) {
      batches.push([]);
      filled = 0;
    }
    batches.at(-1)!.push(row);
    filled += length;
  }
  return batches;
}

/**
 * Packs whole rows. With `sharePrompt: false` every response carries its own copy of the prompt: the same answer, to
 * rounding, from plain causal sequences. Throws ERR_DATA naming a row whose prompt or response is missing or empty.
 */
export function packRows(rows: EncodedRow[], roles: readonly Role[], { sharePrompt = true } = {}): PackedBatch {
  const prompts: number[] = [];
  const promptPositions: number[] = [];
  const responses: number[] = [];
  const positions: number[] = [];
  const targets: number[] = [];
  const promptOffsets = [0];
  const responseOffsets = [0];
  const groupOffsets = [0];
  for (const row of rows) {
    requireTokens(row, roles);
    const { prompt, responses: byRole } = row;
    const last = prompt.length - 1;
    for (let i = 0; sharePrompt && i < last; i++) {
      prompts.push(prompt[i]!);
      promptPositions.push(i);
    }
    for (const role of roles) {
      const response = byRole[role]!;
      for (let i = sharePrompt ? last : 0; i <= last; i++) {
        responses.push(prompt[i]!);
        positions.push(i);
        targets.push(i < last ? -1 : response[0]!);
      }
      for (let i = 0; i + 1 < response.length; i++) {
        responses.push(response[i]!);
        positions.push(prompt.length + i);
        targets.push(response[i + 1]!);
      }
      responseOffsets.push(responses.length);
    }
    promptOffsets.push(prompts.length);
    groupOffsets.push(responseOffsets.length - 1);
  }
  return {
    rows,
    roles: rows.flatMap(() => roles),
    tokens: Int32Array.from([...prompts, ...responses]),
    positions: Int32Array.from([...promptPositions, ...positions]),
    targets: Int32Array.from(targets),
    promptOffsets: Int32Array.from(promptOffsets),
    responseOffsets: Int32Array.from(responseOffsets),
    groupOffsets: Int32Array.from(groupOffsets),
  };
}

/** One contest of every prompt: its weight, and the coefficient of each role that takes part. */
export interface Contest {
  weight: number;
  coefficients: Partial<Record<Role, number>>;
}

/** The batch with the same contests for each of its prompts. */
export function withContests(batch: PackedBatch, contests: readonly Contest[]): PackedBatch {
  const groups = [0];
  const offsets = [0];
  const responses: number[] = [];
  const coefficients: number[] = [];
  const weights: number[] = [];
  for (let g = 0; g + 1 < batch.groupOffsets.length; g++) {
    for (const contest of contests) {
      for (let k = batch.groupOffsets[g]!; k < batch.groupOffsets[g + 1]!; k++) {
        const coefficient = contest.coefficients[batch.roles[k]!];
        if (coefficient === undefined) continue;
        responses.push(k);
        coefficients.push(coefficient);
      }
      offsets.push(responses.length);
      weights.push(contest.weight);
    }
    groups.push(weights.length);
  }
  return {
    ...batch,
    contestGroups: Int32Array.from(groups),
    contestOffsets: Int32Array.from(offsets),
    contestResponses: Int32Array.from(responses),
    contestCoefficients: Float64Array.from(coefficients),
    contestWeights: Float64Array.from(weights),
  };
}
