/** HTML in which every value is escaped, unless it is HTML already. */

export class Html {
  constructor(readonly text: string) {}
}

export type Part = Html | string | number | false | undefined | readonly Part[];

/** A template whose values are escaped; lists are joined, `undefined` and `false` are nothing. */
export const html = (strings: TemplateStringsArray, ...values: Part[]): Html =>
  new Html(strings.reduce((text, string, i) => text + textOf(values[i - 1]) + string));

function textOf(part: Part): string {
  if (part === undefined || part === false) return '';
  if (part instanceof Html) return part.text;
  if (typeof part === 'object') return part.map(textOf).join('');
  return escaped(String(part));
}

/** For text and for quoted attributes. Control characters that no HTML may hold become visible. */
const escaped = (text: string): string =>
  text
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
    .replace(/[\0-\x08\x0b\x0c\x0e-\x1f]/g, (char) => String.fromCodePoint(0x2400 + char.charCodeAt(0)))
    .replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);

/** JSON that can stand in a script element: nothing in it ends the element or begins another. */
export const jsonForScript = (value: unknown): Html =>
  new Html(
    JSON.stringify(value).replace(
      /[<>&\u2028\u2029]/g,
      (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
    ),
  );

export interface Cell {
  value: Part;
  /** Drawn beside the value: from 0 to 1, where it lies on the column's scale, and how far its error reaches. */
  mark?: { at: number; low?: number; high?: number; isBar?: boolean };
}

/**
 * A table; columns whose name is given as a list hold numbers and stand to the right. What is drawn beside values has a
 * column of its own.
 */
export function table(head: readonly (string | [string])[], rows: readonly (readonly (Cell | Part)[])[]): Html {
  const lines = rows.map((cells) => cells.map((cell) => (isCell(cell) ? cell : { value: cell })));
  const isNumber = head.map((name) => typeof name !== 'string');
  const isMarked = head.map((_, i) => lines.some((cells) => cells[i]?.mark));
  const titles = head.map(
    (name, i) =>
      html`<th scope="col"${isNumber[i] && NUMBER}>${name}</th>${isMarked[i] && new Html('<td class="mark"></td>')}`,
  );
  const body = lines.map((cells) => {
    const [first, ...rest] = cells.map(({ value, mark }, i) => {
      const drawn = isMarked[i] && html`<td class="mark">${mark && markOf(mark)}</td>`;
      return i === 0 ? html`<th scope="row">${value}</th>` : html`<td${isNumber[i] && NUMBER}>${value}</td>${drawn}`;
    });
    return html`<tr>${first}${rest}</tr>\n`;
  });
  return html`<div class="wide"><table><thead><tr>${titles}</tr></thead><tbody>\n${body}</tbody></table></div>\n`;
}

const NUMBER = new Html(' class="n"');
const isCell = (cell: Cell | Part): cell is Cell =>
  typeof cell === 'object' && !(cell instanceof Html) && !Array.isArray(cell);

function markOf({ at, low, high, isBar }: NonNullable<Cell['mark']>): Html {
  const x = (share: number) => (2 + 96 * Math.min(1, Math.max(0, share))).toFixed(1);
  const reach = low !== undefined && high !== undefined && html`<path d="M${x(low)} 5H${x(high)}"/>`;
  const shape = isBar
    ? html`<rect x="2" y="2" width="${(96 * at).toFixed(1)}" height="6"/>`
    : html`${reach}<circle cx="${x(at)}" cy="5" r="2.5"/>`;
  return html`<svg viewBox="0 0 100 10" aria-hidden="true"><path class="rule" d="M2 5H98"/>${shape}</svg>`;
}
