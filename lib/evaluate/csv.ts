/** Comma-separated tables with a header, as pandas reads and writes them. */
import { writeFileAtomic } from '../data/files.js';
import { fault, readTextFile } from '../data/rows.js';

export type Table = Record<string, string>[];

/** The rows of a file by column; a column without a name is called ''. Throws ERR_DATA naming the line that is too short. */
export function readCsv(path: string): Table {
  const text = readTextFile(path);
  const [header, ...rows] = cellsOf(text.replace(/^\ufeff/, ''));
  if (!header) throw fault(path, 'is empty; expected a line of column names');
  return rows.map((cells, i) => {
    if (cells.length === header.length) return Object.fromEntries(header.map((name, k) => [name, cells[k]!]));
    throw fault(`${path} row ${i + 1}`, `expected ${header.length} cells, got ${cells.length}`);
  });
}

function cellsOf(text: string): string[][] {
  const rows: string[][] = [];
  let row: string[] = [];
  // A cell, quoted or not, and what ends it.
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/g)) {
    row.push(quoted?.replaceAll('""', '"') ?? plain!);
    if (end === ',') continue;
    if (row.length > 1 || row[0] !== '') rows.push(row);
    row = [];
  }
  return rows;
}

export function writeCsv(path: string, columns: readonly string[], rows: readonly Record<string, unknown>[]): void {
  const cell = (value: unknown) => {
    const text = String(value ?? '');
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns, ...rows.map((row) => columns.map((name) => row[name]))];
  writeFileAtomic(path, lines.map((line) => `${line.map(cell).join(',')}\n`).join(''));
}

/** A cell that must be a number. */
export function numberIn(row: Record<string, string>, column: string, where: string): number {
  const text = row[column];
  const value = Number(text);
  if (text !== undefined && text.trim() !== '' && Number.isFinite(value)) return value;
  throw fault(where, text === undefined ? `no column "${column}"` : `"${column}" must be a number, found "${text}"`);
}
