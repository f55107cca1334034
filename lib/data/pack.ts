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

/** A row's ids, read once. Throws ERR_DATA naming the row unless it has a prompt and every response, none of them empty. */
function requireTokens({ where, prompt, responses: byRole }: EncodedRow, roles: readonly Role[]) {
  if (prompt.length === 0) throw new WrpoError('ERR_DATA', `${where}: the prompt has no tokens`);
  const responses = roles.map((role) => {
    const response = byRole[role];
    if (response?.length) return response;
    throw new WrpoError('ERR_DATA', `${where}: "${role}" ${response ? 'has no tokens' : 'is missing'}`);
  });
  return { prompt, responses };
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
 * rounding, from plain causal sequences. So do the responses of a row with a sequence of more than `longestShared` tokens
 * (Model.longestShared). Throws ERR_DATA naming a row whose prompt or response is missing or empty.
 */
export function packRows(
  rows: EncodedRow[],
  roles: readonly Role[],
  { sharePrompt = true, longestShared = Number.POSITIVE_INFINITY } = {},
): PackedBatch {
  const promptOffsets = [0];
  const responseOffsets = [0];
  const groupOffsets = [0];
  const ids = rows.map((row) => requireTokens(row, roles));
  // A shared prompt's last token stands in each response, where it predicts the first of its own.
  const before = ({ prompt, responses }: (typeof ids)[number]) => {
    const shares = sharePrompt && responses.every(({ length }) => prompt.length + length <= longestShared);
    return shares ? prompt.length - 1 : 0;
  };
  let promptTokens = 0;
  let responseTokens = 0;
  for (const row of ids) {
    promptTokens += before(row);
    for (const { length } of row.responses) responseTokens += row.prompt.length - before(row) + length - 1;
  }
  const tokens = new Int32Array(promptTokens + responseTokens);
  const positions = new Int32Array(tokens.length);
  const targets = new Int32Array(responseTokens).fill(-1);
  let at = 0;
  const put = (part: Int32Array, position: number) => {
    tokens.set(part, at);
    for (let i = 0; i < part.length; i++) positions[at + i] = position + i;
    at += part.length;
  };
  for (const row of ids) {
    put(row.prompt.subarray(0, before(row)), 0);
    promptOffsets.push(at);
  }
  for (const row of ids) {
    const { prompt, responses } = row;
    const first = before(row);
    for (const response of responses) {
      put(prompt.subarray(first), first);
      targets.set(response, at - 1 - promptTokens);
      put(response.subarray(0, -1), prompt.length);
      responseOffsets.push(at - promptTokens);
    }
    groupOffsets.push(responseOffsets.length - 1);
  }
  return {
    rows,
    roles: rows.flatMap(() => roles),
    tokens,
    positions,
    targets,
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

/** The batch with the same contests for each of its prompts. Throws ERR_CONFIG when one names a role that it lacks. */
export function withContests(batch: PackedBatch, contests: readonly Contest[]): PackedBatch {
  const roles = new Set(batch.roles);
  for (const role of contests.flatMap(({ coefficients }) => Object.keys(coefficients) as Role[])) {
    if (roles.has(role) || roles.size === 0) continue;
    throw new WrpoError('ERR_CONFIG', `a contest names "${role}"; the batch holds ${[...roles].join(', ')}`);
  }
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

/** The batch with one linear contest a prompt, whose gradient with respect to each response's log-prob is the given one. */
export function withGradients<B extends Batch>(batch: B, dLossDLogp: ArrayLike<number>): B {
  const prompts = batch.groupOffsets.length - 1;
  const responses = batch.responseOffsets.length - 1;
  if (dLossDLogp.length !== responses) {
    throw new WrpoError('ERR_CONFIG', `expected ${responses} values in dLossDLogp, received ${dLossDLogp.length}`);
  }
  return {
    ...batch,
    contestGroups: Int32Array.from({ length: prompts + 1 }, (_, g) => g),
    contestOffsets: batch.groupOffsets,
    contestResponses: Int32Array.from({ length: responses }, (_, k) => k),
    contestCoefficients: Float64Array.from(dLossDLogp, (slope) => -slope),
    contestWeights: new Float64Array(prompts).fill(1),
  };
}
