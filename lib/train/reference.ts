/**
 * The reference as a column: the summed log-prob of every response under the frozen reference, computed once. The file has
 * a header line with the key of what it was computed from, then one line a row; a run that was interrupted continues it.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { appendLines, writeFileAtomic } from '../data/files.js';
import { packRows, splitMicrobatches } from '../data/pack.js';
import type { Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import type { AdapterUse } from '../native/addon.js';
import type { EncodedRow } from '../text/encode.js';

/** Per row, the reference log-prob of each role. */
export type ReferenceColumn = Partial<Record<Role, number>>[];

/** What the values depend on, each by name, so that a mismatch can say what changed. */
export interface ReferenceKey {
  'model weights': string;
  'token ids': string;
  roles: string;
  dtype: string;
}

/** A hash of every id the column is computed from. */
export function hashRows(rows: readonly EncodedRow[], roles: readonly Role[]): string {
  const hash = createHash('sha256');
  for (const { prompt, responses } of rows) {
    for (const ids of [prompt, ...roles.map((role) => responses[role]!)]) {
      hash.update(Int32Array.of(ids.length));
      hash.update(ids);
    }
  }
  return hash.digest('hex');
}

/** Summed log-probs of every response of some rows, in one packed batch. */
export async function logProbsOf(
  model: Model,
  rows: EncodedRow[],
  roles: readonly Role[],
  sharePrompt: boolean,
  use: Pick<AdapterUse, 'adapters'> = {},
): Promise<ReferenceColumn> {
  const packing = { sharePrompt, longestShared: model.longestShared };
  const { sums } = await model.logProbs(packRows(rows, roles, packing), use);
  return rows.map((_, i) => Object.fromEntries(roles.map((role, k) => [role, sums[i * roles.length + k]!])));
}

/**
 * Reads the column in `file`, computing with `model` what it lacks.
 * Throws ERR_CHECKPOINT naming what changed when the file was made from something else.
 */
export async function referenceColumn(options: {
  file: string;
  key: ReferenceKey;
  model: Model;
  /** Whether with its adapters, if it has any. */
  use?: Pick<AdapterUse, 'adapters'>;
  rows: EncodedRow[];
  roles: readonly Role[];
  microbatchTokens: number;
  sharePrompt: boolean;
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}): Promise<ReferenceColumn> {
  const { file, key, model, use, rows, roles, microbatchTokens, sharePrompt, onProgress, signal } = options;
  const stored = existsSync(file) ? readColumn(file, key) : [];
  if (stored.length === rows.length) return stored;
  // Continued at a micro-batch's beginning, so that an interrupted column has the bits of an uninterrupted one.
  const column: ReferenceColumn = [];
  const parts = splitMicrobatches(rows, roles, microbatchTokens);
  while (parts.length > 0 && column.length + parts[0]!.length <= stored.length) {
    column.push(...stored.slice(column.length, column.length + parts.shift()!.length));
  }
  writeFileAtomic(file, [{ reference: key }, ...column].map((line) => `${JSON.stringify(line)}\n`).join(''));
  for (const part of parts) {
    const values = await logProbsOf(model, part, roles, sharePrompt, use);
    for (const [i, value] of values.entries()) requireFinite(value, part[i]!.where);
    appendLines(
      file,
      values.map((value) => JSON.stringify(value)),
    );
    column.push(...values);
    onProgress?.(column.length, rows.length);
    signal?.throwIfAborted();
  }
  return column;
}

function requireFinite(values: ReferenceColumn[number], where: string): void {
  for (const [role, value] of Object.entries(values)) {
    if (Number.isFinite(value)) continue;
    throw new WrpoError(
      'ERR_NON_FINITE',
      `stopped before step 1: the reference log-prob of ${role} is ${value} (${where})`,
    );
  }
}

function readColumn(file: string, key: ReferenceKey): ReferenceColumn {
  const text = readFileSync(file, 'utf8');
  // What follows the last newline was being written when the run died.
  const [first, ...lines] = text.split('\n').slice(0, -1);
  let stored: Partial<ReferenceKey>;
  let column: ReferenceColumn;
  try {
    stored = JSON.parse(first ?? '').reference;
    column = lines.map((line) => JSON.parse(line));
  } catch (cause) {
    throw new WrpoError('ERR_CHECKPOINT', `${file} is not a reference file: delete it to compute it anew`, { cause });
  }
  const changed = (Object.keys(key) as (keyof ReferenceKey)[]).filter((name) => stored?.[name] !== key[name]);
  if (changed.length > 0) {
    throw new WrpoError(
      'ERR_CHECKPOINT',
      `${file} was computed from other ${changed.join(' and ')}: delete it to compute it anew, or choose another output_dir`,
    );
  }
  return column;
}
