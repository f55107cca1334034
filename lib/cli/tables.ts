/** `wrpo tables`: the paper's tables and figures over finished runs. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { writeCsv } from '../evaluate/csv.js';
import { readRun, tablesOf } from '../evaluate/tables.js';
import { table } from './fusion.js';
import { say } from './say.js';
import { writeOut } from './stdout.js';

export async function tables(directories: string[], { csv, json }: { csv?: string; json?: boolean }): Promise<void> {
  const all = tablesOf(directories.map(readRun));
  if (csv !== undefined) {
    mkdirSync(csv, { recursive: true });
    for (const { title, columns, rows } of all) {
      const name = `${title.replace(/ \(.*/, '').toLowerCase().replaceAll(' ', '-')}.csv`;
      const records = rows.map((row) => Object.fromEntries(columns.map((column, i) => [column, row[i]])));
      writeCsv(join(csv, name), columns, records);
      say(join(csv, name));
    }
  }
  const text = all.map(({ title, columns, rows }) => `${title}\n${table([columns, ...rows])}`).join('\n');
  await writeOut(json ? `${JSON.stringify(all)}\n` : text);
}
