/** `wrpo logprobs`: one JSON line a row, with the summed log-prob of each response the row has. */

import { splitMicrobatches } from '../data/pack.js';
import { type PreferenceRow, type Role, readPreferences } from '../data/preferences.js';
import { Model } from '../model/model.js';
import { type EncodedRow, encodeRows } from '../text/encode.js';
import { locate, sourceOf, tokenizerOf } from '../train/prepare.js';
import { logProbsOf } from '../train/reference.js';
import { readCompute } from './compute.js';
import { say } from './say.js';
import { writeLines } from './stdout.js';

const MICROBATCH_TOKENS = 2048;

// Rows per call of the tokenizer and, where they have the same responses, of the packer.
const SLICE = 256;

export async function logprobs(options: {
  model: string;
  data: string;
  split?: string;
  revision?: string;
  dtype: string;
  device: string;
  /** The numbers of tokens as well, as `logps.jsonl` of a fusion has them. */
  lengths?: boolean;
  output?: string;
}): Promise<void> {
  const compute = readCompute(options);
  const { split, revision } = options;
  const directory = await locate(options.model, { say });
  const source = await sourceOf(directory, { say });
  const { vocabSize } = source.config;
  const tokenizer = await tokenizerOf(source);
  // All of them before the weights: a bad row is told at once.
  const slices: { roles: Role[]; rows: EncodedRow[] }[] = [];
  for await (const rows of slicesOfEqualRoles(readPreferences(options.data, { split, revision, say }))) {
    const roles = rolesIn(rows[0]!);
    const encoding = { tokenizer, roles, vocabSize, maxLength: Number.MAX_SAFE_INTEGER };
    slices.push({ roles, rows: (await encodeRows(rows, encoding)).rows });
  }
  const model = await Model.load(directory, { ...compute, baseModel: source.baseDirectory, frozen: true });
  try {
    await writeLines(options.output, async (write) => {
      for (const { roles, rows } of slices) {
        for (const part of splitMicrobatches(rows, roles, MICROBATCH_TOKENS)) {
          const values = await logProbsOf(model, part, roles, true);
          const lines = values.map((value, i) => {
            const lengthOf = (role: Role) => [role, part[i]!.responses[role]!.length];
            const lengths = options.lengths && { lengths: Object.fromEntries(roles.map(lengthOf)) };
            return `${JSON.stringify({ ...value, ...lengths })}\n`;
          });
          await write(lines.join(''));
        }
      }
    });
  } finally {
    await model.close();
  }
}

function rolesIn(row: PreferenceRow): Role[] {
  return Object.keys(row.responses).filter((role) => row.responses[role as Role] !== undefined) as Role[];
}

/** Neighbouring rows with the same responses, so that output stays in file order. */
async function* slicesOfEqualRoles(rows: AsyncIterable<PreferenceRow>): AsyncGenerator<PreferenceRow[]> {
  let slice: PreferenceRow[] = [];
  for await (const row of rows) {
    if (slice.length === SLICE || (slice[0] && rolesIn(slice[0]).join() !== rolesIn(row).join())) {
      yield slice;
      slice = [];
    }
    slice.push(row);
  }
  yield slice;
}
