/** How likely the responses of quadruples are to models before and after training: the paper's Fig. 1. */
import { PendingFile } from '../data/files.js';
import { splitMicrobatches } from '../data/pack.js';
import { type PreferenceRow, type Role, readPreferences } from '../data/preferences.js';
import { Model } from '../model/model.js';
import { encodeRows } from '../text/encode.js';
import type { TrainingArgs } from '../train/args.js';
import { encodingOf, locate, sourceOf, tokenizerOf } from '../train/prepare.js';
import { logProbsOf } from '../train/reference.js';
import type { Compared } from './comparison.js';

const ROLES: readonly Role[] = ['source_chosen', 'target_chosen', 'rejected'];
/** Enough for a distribution. */
const MOST_ROWS = 500;

/**
 * Writes to `file` a line a quadruple and model, of the first 500 in `data`: {model, row, source_chosen, target_chosen,
 * rejected, lengths: {…}}, summed log-probs and numbers of tokens.
 */
export async function writeLogProbs(
  file: string,
  data: string,
  models: readonly Compared[],
  { args, signal, say }: { args: TrainingArgs; signal: AbortSignal; say: (line: string) => void },
): Promise<void> {
  const rows: PreferenceRow[] = [];
  for await (const row of readPreferences(data, { say })) {
    if (rows.length === MOST_ROWS) break;
    rows.push(row);
  }
  const out = new PendingFile(file);
  try {
    for (const { name, source } of models) {
      signal.throwIfAborted();
      const directory = await locate(source.model, { say });
      const found = await sourceOf(directory, { say });
      const tokenizer = await tokenizerOf(found, args.chatTemplate);
      const encoded = await encodeRows(rows, { ...encodingOf(args, found.config.vocabSize, ROLES), tokenizer });
      const model = await Model.load(directory, { dtype: source.dtype, baseModel: found.baseDirectory, frozen: true });
      let row = 0;
      try {
        for (const part of splitMicrobatches(encoded.rows, ROLES, args.microbatchTokens)) {
          signal.throwIfAborted();
          const logps = await logProbsOf(model, part, ROLES, args.sharePrompt);
          for (const [i, { responses }] of part.entries()) {
            const lengths = Object.fromEntries(ROLES.map((role) => [role, responses[role]!.length]));
            out.write(`${JSON.stringify({ model: name, row: row++, ...logps[i], lengths })}\n`);
          }
        }
      } finally {
        await model.close();
      }
    }
    out.finish();
  } catch (error) {
    out.abandon();
    throw error;
  }
}
