/** Tables of words and measured values, as text and as CSV. */

/** A number with what is known of its error. */
export interface Measured {
  value: number;
  /** Behind the point, where it is read by people. */
  digits: number;
  stderr?: number;
  interval?: readonly [low: number, high: number];
}

/** An empty text is nothing. */
export type Cell = string | Measured;

/** The first column names the row. */
export interface Table {
  title: string;
  columns: string[];
  rows: Cell[][];
}

/** A finite number as a cell; anything else is none. */
export function measured(value: unknown, digits: number, error: Pick<Measured, 'stderr' | 'interval'> = {}): Cell {
  if (typeof value !== 'number' || !Number.isFinite(value)) return '';
  const { stderr, interval } = error;
  return {
    ...{ value, digits },
    ...(Number.isFinite(stderr) && { stderr }),
    ...(interval?.every(Number.isFinite) && { interval }),
  };
}

/** `55.9 ± 0.4`, or `79.0 (72.6 to 83.7)`. */
export function cellText(cell: Cell): string {
  if (typeof cell === 'string') return cell;
  const { value, digits, stderr, interval } = cell;
  const said = (one: number) => one.toFixed(digits);
  if (interval) return `${said(value)} (${said(interval[0])} to ${said(interval[1])})`;
  return stderr === undefined ? said(value) : `${said(value)} ± ${said(stderr)}`;
}

/** How far a cell's value may reach: by its standard error, or its interval. */
export const reachOf = ({ value, stderr = 0, interval }: Measured): readonly [number, number] =>
  interval ?? [value - stderr, value + stderr];

/** Without columns that no row has anything in. */
export function withoutGaps({ title, columns, rows }: Table): Table {
  const told = columns.flatMap((_, i) => (i === 0 || rows.some((row) => row[i] !== '') ? [i] : []));
  return { title, columns: told.map((i) => columns[i]!), rows: rows.map((row) => told.map((i) => row[i]!)) };
}

/** For `writeCsv`: every value whole, with its error in columns of their own behind it. */
export function recordsOf({ columns, rows }: Table): { columns: string[]; records: Record<string, unknown>[] } {
  const hasAny = (i: number, key: 'stderr' | 'interval') =>
    rows.some((row) => typeof row[i] !== 'string' && row[i]![key] !== undefined);
  const all = columns.flatMap((name, i) => [
    name,
    ...(hasAny(i, 'stderr') ? [`${name} stderr`] : []),
    ...(hasAny(i, 'interval') ? [`${name} low`, `${name} high`] : []),
  ]);
  const records = rows.map((row) =>
    Object.fromEntries(
      row.flatMap((cell, i): [string, unknown][] => {
        const name = columns[i]!;
        if (typeof cell === 'string') return [[name, cell]];
        const { value, stderr, interval } = cell;
        return [
          [name, value],
          ...(stderr === undefined ? [] : [[`${name} stderr`, stderr] as [string, number]]),
          ...(interval
            ? ([
                [`${name} low`, interval[0]],
                [`${name} high`, interval[1]],
              ] as [string, number][])
            : []),
        ];
      }),
    ),
  );
  return { columns: all, records };
}
