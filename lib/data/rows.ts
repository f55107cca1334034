/** What the readers of files share: a row before its shape is known, and how a file is said to be at fault. */
import { isUtf8 } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { WrpoError } from '../errors.js';

/**
 * One object of a file; `where` names it in errors and counts from 1: `rows.jsonl line 12`, or within a directory or
 * repository `test/0.parquet row 7`.
 */
export interface RawRow {
  value: unknown;
  where: string;
}

/**
 * Given a table's columns, says which of them are read; the others stay in each row as undefined, so that their names
 * can still be told in an error. Throws when the table is of something else.
 */
export type ChooseColumns = (columns: readonly string[], file: string) => readonly string[];

/** What is done about a row that is none; reading goes on behind it unless this throws. */
export type OnFault = (error: WrpoError) => void | Promise<void>;

export const fault = (where: string, what: string, cause?: unknown): WrpoError =>
  new WrpoError('ERR_DATA', `${where}: ${what}`, { cause });

/** The failure to read `path` as one sentence. */
export function readFault(path: string, cause: unknown): WrpoError {
  if (cause instanceof WrpoError) return cause;
  const { code } = cause as NodeJS.ErrnoException;
  if (code === 'ENOENT') return fault(path, 'no such file', cause);
  return fault(path, `cannot be read: ${reasonOf(cause)}`, cause);
}

/** A file of text, whole. Throws ERR_DATA naming it. */
export function readTextFile(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    throw readFault(path, cause);
  }
}

/** Why something cannot be read: a package's misstep over bytes that it did not expect says nothing of them. */
export function reasonOf(cause: unknown): string {
  const stumbled = cause instanceof TypeError || cause instanceof RangeError;
  // Of YAML the first line says what and where; the others draw it.
  const message = (cause as Error).message.split('\n')[0]!.replace(/:$/, '');
  return stumbled || /\b(undefined|NaN)\b/.test(message) ? 'it is damaged' : message;
}

/** Text, or the bytes themselves where they are not UTF-8: the row that holds them is then refused by its name. */
export function textOf(bytes: Uint8Array): string | Uint8Array {
  return isUtf8(bytes) ? Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString() : bytes;
}
