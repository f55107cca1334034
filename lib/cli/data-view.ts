/** The report of `wrpo data check`, for people. */
import type { Tokenizer } from '../text/tokenizer.js';
import type { DataReport, Found, Lengths, Part } from './data-report.js';
import { type Paint, paintOut, writeOut } from './stdout.js';

const BAR = 40;
// Of a long part, so many tokens at its beginning and its end are shown.
const SHOWN = 40;

/** Writes to standard output. */
export async function print(report: DataReport, number: number, tokenizer: Tokenizer | undefined): Promise<void> {
  const paint = paintOut();
  const lines = [...summary(report, paint), ...histograms(report)];
  if (report.row) lines.push(...(await rowLines(report.row, number, tokenizer, paint)));
  else
    lines.push('', `row ${number} cannot be shown: ${number > report.rows ? `there are ${report.rows}` : 'it is bad'}`);
  await writeOut(`${lines.join('\n')}\n`);
}

function summary(report: DataReport, paint: Paint): string[] {
  const { bad, maxLength, maxPromptLength } = report;
  const limits = `max_length ${maxLength}${maxPromptLength === undefined ? '' : `, max_prompt_length ${maxPromptLength}`}`;
  const found = (what: string, { count, first }: Found) => {
    if (count === 0) return [];
    const more = count > 3 ? ', …' : '';
    return [`${paint.yellow(String(count).padStart(8))}  ${what}: ${first.slice(0, 3).join(', ')}${more}`];
  };
  return [
    `${report.file}: ${report.rows} rows, for loss_type ${report.lossType ?? 'none'}, template_mode ${report.templateMode}, ${limits}`,
    ...Object.entries(report.shapes).map(([shape, count]) => `${String(count).padStart(8)}  ${shape}`),
    ...blockLines(report),
    ...found(`dropped, ${report.lengths.text ? 'nothing to predict' : 'the prompt is too long'}`, report.dropped),
    ...found('prompts cut', report.cutPrompts),
    ...found(report.lengths.text ? 'texts cut' : 'responses cut', report.cutResponses),
    ...found('with the prompt of an earlier row', report.duplicatePrompts),
    ...found('the same as an earlier row', report.duplicateRows),
    ...found('whose chosen response is the rejected one', report.chosenIsRejected),
    ...found('whose source_chosen is the target_chosen', report.sourceIsTarget),
    bad.count === 0 ? `${paint.green('       0')}  bad` : `${paint.red(String(bad.count).padStart(8))}  bad:`,
    ...bad.first.map((sentence) => `          ${sentence}`),
    ...(bad.count > bad.first.length ? [`          and ${bad.count - bad.first.length} more`] : []),
  ];
}

function blockLines({ blocks, maxLength }: DataReport): string[] {
  if (!blocks) return [];
  const { count, leftOver } = blocks;
  return [`${String(count).padStart(8)}  blocks of ${maxLength} tokens; ${leftOver} tokens at the end are left out`];
}

function histograms({ lengths }: DataReport): string[] {
  return Object.entries(lengths).flatMap(([name, { mean, max, histogram }]) => {
    const most = Math.max(...histogram.map(({ count }) => count));
    const first = histogram.findIndex(({ count }) => count > 0);
    const bar = ({ upTo, count }: Lengths['histogram'][number]) =>
      `${`≤ ${upTo}`.padStart(10)} ${'█'.repeat(Math.ceil((BAR * count) / most))} ${count}`;
    return ['', `${name}: tokens a row, mean ${mean.toFixed(1)}, longest ${max}`, ...histogram.slice(first).map(bar)];
  });
}

/** Each part's tokens with their ids; what is cut off stands in brackets, and in colour too. */
async function rowLines(
  row: NonNullable<DataReport['row']>,
  number: number,
  tokenizer: Tokenizer | undefined,
  paint: Paint,
): Promise<string[]> {
  const lines = ['', `row ${number}, ${row.where}${row.dropped ? ', which is dropped' : ''}: token(id), [what is cut]`];
  for (const [name, { ids, kept }] of Object.entries(row.parts)) {
    const colour =
      name === 'prompt' ? paint.cyan : name === 'rejected' || name === 'source_rejected' ? paint.magenta : paint.green;
    const cut = ids.length - (kept[1] - kept[0]);
    const stretches: [number, number, boolean][] = [
      [0, kept[0], true],
      [...kept, false],
      [kept[1], ids.length, true],
    ];
    const texts: string[] = [];
    for (const [from, to, isCut] of stretches) {
      if (from === to) continue;
      const text = await tokensOf(ids.slice(from, to), tokenizer);
      texts.push(isCut ? paint.red(`[${text}]`) : colour(text));
    }
    lines.push(`${paint.bold(name)} (${ids.length} tokens${cut > 0 ? `, ${cut} cut` : ''})`, `  ${texts.join(' ')}`);
  }
  return lines;
}

async function tokensOf(ids: Part['ids'], tokenizer: Tokenizer | undefined): Promise<string> {
  const one = async (id: number) => {
    if (!tokenizer) return String(id);
    return `${JSON.stringify(await tokenizer.decode([id])).slice(1, -1)}(${id})`;
  };
  const text = async (some: number[]) => (await Promise.all(some.map(one))).join(' ');
  if (ids.length <= 2 * SHOWN) return text(ids);
  const left = ids.length - 2 * SHOWN;
  return `${await text(ids.slice(0, SHOWN))} … ${left} more … ${await text(ids.slice(-SHOWN))}`;
}
