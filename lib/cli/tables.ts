/** `wrpo tables`: the paper's tables and figures over finished runs. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { weightsIn } from '../evaluate/alpaca-eval.js';
import { cellText, recordsOf, withoutGaps } from '../evaluate/cells.js';
import { readCsv, writeCsv } from '../evaluate/csv.js';
import { readFinished } from '../evaluate/runs.js';
import { tablesOf } from '../evaluate/tables.js';
import { writeTables } from '../report/report.js';
import { table } from './fusion.js';
import { say } from './say.js';
import { writeOut } from './stdout.js';

export interface TablesCommand {
  /** A directory for a CSV file a table. */
  csv?: string;
  html?: string;
  /** A CSV file of AlpacaEval's saved weights: models to compare with. */
  weights?: string;
  json?: boolean;
}

export async function tables(directories: string[], { csv, html, weights, json }: TablesCommand): Promise<void> {
  const saved =
    weights === undefined ? [] : readCsv(weights).map((row) => [row['']!, weightsIn(row, weights)] as const);
  const all = tablesOf(readFinished(directories), new Map(saved));
  if (csv !== undefined) {
    mkdirSync(csv, { recursive: true });
    for (const one of all) {
      const file = join(csv, `${one.title.replace(/ \(.*/, '').toLowerCase().replace(/\W+/g, '-')}.csv`);
      const { columns, records } = recordsOf(one);
      writeCsv(file, columns, records);
      say(file);
    }
  }
  if (html !== undefined) {
    writeTables(all, html);
    say(html);
  }
  const texts = all.map(withoutGaps).map(({ title, columns, rows }) => {
    return `${title}\n${table([columns, ...rows.map((row) => row.map(cellText))])}`;
  });
  await writeOut(json ? `${JSON.stringify(all)}\n` : texts.join('\n'));
}
