/** Figures that need no script: bars and distributions, as HTML and SVG. */
import { type Html, html } from './html.js';

/** Colours are the page's, by number. */
export const series = (index: number): string => `s${(index % 8) + 1}`;

/** A bar a row, with its value behind it. */
export function bars(rows: readonly { name: string; value: number; words: string }[]): Html {
  const most = Math.max(...rows.map(({ value }) => value), 1e-9);
  return html`<dl class="bars">${rows.map(
    ({ name, value, words }) =>
      html`<dt>${name}</dt><dd><span class="bar" style="width:${((70 * value) / most).toFixed(2)}%"></span><span>${words}</span></dd>`,
  )}</dl>`;
}

export interface Distribution {
  name: string;
  values: readonly number[];
}

const SIZE = { width: 340, height: 150, left: 8, right: 8, top: 8, bottom: 28 };
const BINS = 28;

/** Distributions over each other, on one axis; `range` where figures are to be compared. */
export function distributions(
  all: readonly Distribution[],
  { title, unit, range = rangeOf(all) }: { title: string; unit: string; range?: readonly [number, number] },
): Html {
  const [low, high] = range;
  const inner = SIZE.width - SIZE.left - SIZE.right;
  const floor = SIZE.height - SIZE.bottom;
  const x = (value: number) => SIZE.left + (inner * (value - low)) / (high - low);
  const counts = all.map(({ values }) => histogram(values, low, high));
  const most = Math.max(...counts.flat());
  const y = (share: number) => floor - ((floor - SIZE.top) * share) / most;
  const outline = (bins: readonly number[]) =>
    bins.map((share, i) => `H${x(low + ((high - low) * i) / BINS).toFixed(1)}V${y(share).toFixed(1)}`).join('');
  const said = all.map(({ name, values }) => `${name} ${short(average(values))}`).join(', ');
  const ticks = [low, (low + high) / 2, high];
  return html`<figure><figcaption>${title}</figcaption>
<svg viewBox="0 0 ${SIZE.width} ${SIZE.height}" role="img" aria-label="${title}: means ${said}">
${counts.map(
  (bins, i) =>
    html`<path class="area ${series(i)}" d="M${SIZE.left} ${floor}${outline(bins)}H${SIZE.width - SIZE.right}V${floor}Z"/>`,
)}
${all.map(({ values }, i) => {
  const at = Math.min(Math.max(average(values), low), high);
  return html`<line class="mean ${series(i)}" x1="${x(at).toFixed(1)}" x2="${x(at).toFixed(1)}" y1="${SIZE.top}" y2="${floor}"/>`;
})}
<line class="axis" x1="${SIZE.left}" x2="${SIZE.width - SIZE.right}" y1="${floor}" y2="${floor}"/>
${ticks.map(
  (tick, i) =>
    html`<text x="${x(tick).toFixed(1)}" y="${floor + 14}" text-anchor="${['start', 'middle', 'end'][i]!}">${short(tick)}</text>`,
)}
<text class="unit" x="${SIZE.width / 2}" y="${SIZE.height - 2}" text-anchor="middle">${unit}</text>
</svg>
<p class="legend">${all.map(({ name, values }, i) => html`<span class="key ${series(i)}">${name}, mean ${short(average(values))}</span> `)}</p></figure>`;
}

/** What all of them lie in, but for the outermost hundredth on each side. */
export function rangeOf(all: readonly Distribution[]): [number, number] {
  const sorted = all.flatMap(({ values }) => values).sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))]!;
  const [low, high] = [at(0.01), at(0.99)];
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}

/** Shares of the values in bins of equal width; what lies outside counts with the outermost. */
function histogram(values: readonly number[], low: number, high: number): number[] {
  const bins = new Array<number>(BINS).fill(0);
  for (const value of values) {
    const bin = Math.floor((BINS * (value - low)) / (high - low));
    bins[Math.min(Math.max(bin, 0), BINS - 1)]! += 1 / values.length;
  }
  return bins;
}

const average = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

export const short = (value: number): string =>
  Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3)
    ? value.toExponential(1)
    : String(Number(value.toPrecision(3)));
