/** `wrpo logprobs`: one JSON line a row, with the summed log-prob of each response the row has. */

import { splitMicrobatches } from '../data/pack.js';
import { loadPreferences, type PreferenceRow, type Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { Model } from '../model/model.js';
import type { ComputeDtype } from '../native/addon.js';
import { encodeRows } from '../text/encode.js';
import { tokenizerOf } from '../train/prepare.js';
import { logProbsOf } from '../train/reference.js';
import { openSink } from './stdout.js';

const MICROBATCH_TOKENS = 2048;

export async function logprobs(options: {
  model: string;
  data: string;
  dtype: string;
  output?: string;
}): Promise<void> {
  if (!['float32', 'float64', 'bfloat16'].includes(options.dtype)) {
    throw new WrpoError('ERR_CONFIG', `--dtype "${options.dtype}": expected float32, float64 or bfloat16`);
  }
  const rows = await loadPreferences(options.data);
  const model = await Model.load(options.model, { dtype: options.dtype as ComputeDtype });
  const tokenizer = await tokenizerOf(model);
  const sink = openSink(options.output);
  try {
    for (const run of runsOfEqualRoles(rows)) {
      const roles = rolesIn(run[0]!);
      const limits = { maxLength: Number.MAX_SAFE_INTEGER, vocabSize: model.config.vocabSize };
      const { rows: encoded } = await encodeRows(run, { tokenizer, roles, ...limits });
      for (const part of splitMicrobatches(encoded, roles, MICROBATCH_TOKENS)) {
        const values = await logProbsOf(model, part, roles, true);
        await sink.write(values.map((value) => `${JSON.stringify(value)}\n`).join(''));
      }
    }
    sink.finish();
  } catch (error) {
    sink.abandon();
    throw error;
  } finally {
    await model.close();
  }
}

function rolesIn(row: PreferenceRow): Role[] {
  return Object.keys(row.responses).filter((role) => row.responses[role as Role] !== undefined) as Role[];
}

/** Neighbouring rows with the same responses, so that output stays in file order. */
function runsOfEqualRoles(rows: PreferenceRow[]): PreferenceRow[][] {
  const runs: PreferenceRow[][] = [];
  let previous = '';
  for (const row of rows) {
    const roles = rolesIn(row).join();
    if (roles !== previous) runs.push([]);
    runs.at(-1)!.push(row);
    previous = roles;
  }
  return runs;
}
