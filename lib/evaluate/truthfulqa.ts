/** The six questions and answers that stand before every question of TruthfulQA, from the harness's own task file. */
import { dirname, join } from 'node:path';
import { parse } from 'yaml';
import { fault, readFault, readTextFile } from '../data/rows.js';
import { sha256 } from './work.js';

/** Of the text in lm-evaluation-harness 0.4.3 to 0.4.13, without what follows it. */
export const OFFICIAL_EXAMPLES = '5c0da5f346e8652c9a85061a6e3aca6bc82e10a8a7dad4596fe980a9c9bae543';

/**
 * The text of a plain file, or of `doc_to_text` in a task file of lm-evaluation-harness (`truthfulqa_mc1.yaml`, or
 * `truthfulqa_mc2.yaml`, which includes it), and whether it is the harness's. Throws ERR_DATA for a task file without it.
 */
export function readExamples(path: string): { text: string; isOfficial: boolean } {
  const text = /\.ya?ml$/i.test(path) ? examplesIn(path) : readTextFile(path).trim();
  return { text, isOfficial: sha256(text) === OFFICIAL_EXAMPLES };
}

function examplesIn(path: string): string {
  let task: { doc_to_text?: unknown; include?: unknown };
  try {
    // It names functions of its own by tags, which say nothing here.
    task = parse(readTextFile(path), { logLevel: 'silent' }) ?? {};
  } catch (cause) {
    throw readFault(path, cause);
  }
  const { doc_to_text, include } = task;
  if (doc_to_text === undefined && typeof include === 'string') return examplesIn(join(dirname(path), include));
  const found = /\bprompt_qa = '([^']*)'/.exec(String(doc_to_text))?.[1];
  if (found !== undefined) return found.trim();
  throw fault(path, 'expected a task file of TruthfulQA, whose doc_to_text sets prompt_qa');
}
