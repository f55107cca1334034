/** The paper's tables as HTML. */
import { cellText, reachOf, type Table, type Cell as TableCell, withoutGaps } from '../evaluate/cells.js';
import { type Cell, type Html, html, type Part, table } from './html.js';

/** A table; what has an error is drawn beside its value as well, on the column's scale. */
export function tableHtml(given: Table): Html {
  const { title, columns, rows } = withoutGaps(given);
  const scales = columns.map((_, i) => scaleOf(rows.map((row) => row[i]!)));
  const head = columns.map((name, i): string | [string] => (i === 0 ? name : [name]));
  const body = rows.map((row) =>
    row.map((cell, i): Cell | Part => {
      const scale = scales[i];
      if (typeof cell === 'string' || !scale) return cellText(cell);
      const [low, high] = reachOf(cell).map(scale) as [number, number];
      return { value: cellText(cell), mark: { at: scale(cell.value), low, high } };
    }),
  );
  return html`<h3>${title}</h3>\n${table(head, body)}`;
}

/** From 0 to 1 over all that a column's values reach; undefined for a column without errors. */
function scaleOf(cells: readonly TableCell[]): ((value: number) => number) | undefined {
  const values = cells.flatMap((cell) => (typeof cell === 'string' ? [] : [cell]));
  if (!values.some(({ stderr, interval }) => stderr !== undefined || interval)) return undefined;
  const ends = values.flatMap(reachOf);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  return (value) => (high > low ? (value - low) / (high - low) : 0.5);
}
