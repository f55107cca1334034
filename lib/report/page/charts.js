/**
 * Curves and histograms as SVG text: pure functions, so that they draw alike in a browser and in a test. Colours come from
 * the page's style, by classes c0 to c7.
 *
 * @typedef {{ name: string, colour: number, dash?: number, points: [number, number][] }} Series by rising x
 * @typedef {object} Chart
 * @property {string} title
 * @property {string} x label of the axis, with its unit
 * @property {string} y label of the axis, with its unit
 * @property {Series[]} series
 * @property {boolean} [isHistogram] each point is where a bin begins, and its height; the last one ends the last bin
 * @property {[number, number]} [yRange] at least this is shown
 * @property {[number, number]} [xRange] likewise
 * @property {{ value: number, name: string }} [level] a height to compare with
 *
 * @typedef {[number, number]} Range
 */

export const MARGIN = { left: 52, right: 14, top: 26, bottom: 40 };

/** Whole multiples of 1, 2 or 5 times a power of ten, about `count` of them. @param {Range} range @param {number} count */
export function ticksOf([low, high], count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) ?? 10);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9) + 0; i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return { ticks, step };
}

/** A number as an axis or a readout shows it. @param {number} value @param {number} [step] of the axis */
export function numberText(value, step) {
  if (value === 0) return '0';
  if (step === undefined && Number.isInteger(value) && Math.abs(value) < 1e6) return String(value).replace('-', '−');
  const size = Math.max(Math.abs(value), step ?? 0);
  if (size >= 1e6 || size < 1e-3)
    return value
      .toExponential(step === undefined ? 2 : 1)
      .replace('e+', 'e')
      .replace('.0e', 'e');
  const digits =
    step === undefined ? 4 - Math.ceil(Math.log10(Math.abs(value) + 1e-9)) : -Math.floor(Math.log10(step) + 1e-9);
  return value.toFixed(Math.min(6, Math.max(0, digits))).replace('-', '−');
}

/** What of a chart is in sight. @param {Chart} chart @param {Range | undefined} zoom @param {Set<string>} hidden */
export function rangesOf(chart, zoom, hidden) {
  const shown = chart.series.filter(({ name }) => !hidden.has(name));
  const xs = shown.flatMap(({ points }) => points.map(([x]) => x)).concat(chart.xRange ?? []);
  const x = zoom ?? padded(xs, 0);
  const inSight = shown.flatMap(({ points }) => points.filter(([at]) => at >= x[0] && at <= x[1]).map(([, y]) => y));
  const floor = chart.isHistogram ? [0] : [];
  const level = chart.level ? [chart.level.value] : [];
  const y = padded([...inSight, ...floor, ...level, ...(zoom && !chart.isHistogram ? [] : (chart.yRange ?? []))], 0.06);
  return { x, y: /** @type {Range} */ (chart.isHistogram ? [0, y[1]] : y) };
}

/** @param {number[]} values @param {number} share @returns {Range} */
function padded(values, share) {
  if (values.length === 0) return [0, 1];
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  if (low === high) return [low - (Math.abs(low) / 2 || 1), high + (Math.abs(high) / 2 || 1)];
  return [low - share * (high - low), high + share * (high - low)];
}

/** From values to places. @param {Chart} chart @param {{ x: Range, y: Range }} ranges @param {number} width @param {number} height */
export function scaleOf({ x, y }, width, height) {
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  return {
    x: (/** @type {number} */ value) => MARGIN.left + (inner.width * (value - x[0])) / (x[1] - x[0]),
    y: (/** @type {number} */ value) => MARGIN.top + inner.height * (1 - (value - y[0]) / (y[1] - y[0])),
    /** The value of x at a place. */
    valueAt: (/** @type {number} */ place) => x[0] + ((place - MARGIN.left) / inner.width) * (x[1] - x[0]),
  };
}

const escaped = (/** @type {string} */ text) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
const place = (/** @type {number} */ value) => value.toFixed(1);

/**
 * The content of an `svg` element of this size.
 * @param {Chart} chart
 * @param {{ width: number, height: number, zoom?: Range, hidden?: Set<string>, id: string }} view `id` is unique in its page
 */
export function drawChart(chart, { width, height, zoom, hidden = new Set(), id }) {
  const ranges = rangesOf(chart, zoom, hidden);
  const scale = scaleOf(ranges, width, height);
  const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom];
  const out = [];
  const yTicks = ticksOf(ranges.y, height < 220 ? 4 : 5);
  for (const tick of yTicks.ticks) {
    const at = place(scale.y(tick));
    out.push(`<path class="grid" d="M${MARGIN.left} ${at}H${right}"/>`);
    out.push(
      `<text class="tick" x="${MARGIN.left - 7}" y="${at}" dy=".32em" text-anchor="end">${numberText(tick, yTicks.step)}</text>`,
    );
  }
  const xTicks = ticksOf(ranges.x, Math.max(2, Math.floor(width / 75)));
  for (const tick of xTicks.ticks) {
    const at = place(scale.x(tick));
    out.push(`<path class="axis" d="M${at} ${bottom}v4"/>`);
    out.push(
      `<text class="tick" x="${at}" y="${bottom + 16}" text-anchor="middle">${numberText(tick, xTicks.step)}</text>`,
    );
  }
  out.push(`<path class="axis" d="M${MARGIN.left} ${bottom}H${right}"/>`);
  out.push(`<text class="label" x="${right}" y="${bottom + 33}" text-anchor="end">${escaped(chart.x)}</text>`);
  out.push(`<text class="label" x="2" y="12">${escaped(chart.y)}</text>`);
  out.push(
    `<clipPath id="clip-${id}"><rect x="${MARGIN.left}" y="${MARGIN.top - 4}" width="${right - MARGIN.left}" height="${bottom - MARGIN.top + 5}"/></clipPath>`,
  );
  if (chart.level) {
    const at = place(scale.y(chart.level.value));
    out.push(`<path class="level" d="M${MARGIN.left} ${at}H${right}"/>`);
    out.push(
      `<text class="tick" x="${right}" y="${at}" dy="-.4em" text-anchor="end">${escaped(chart.level.name)}</text>`,
    );
  }
  out.push(`<g clip-path="url(#clip-${id})">`);
  for (const { name, colour, dash = 0, points } of chart.series) {
    if (hidden.has(name) || points.length === 0) continue;
    const kind = `c${colour} d${dash}`;
    const path = (chart.isHistogram ? stepsOf : lineOf)(points, scale);
    if (chart.isHistogram) {
      const base = place(scale.y(0));
      out.push(`<path class="area ${kind}" d="${path}V${base}H${place(scale.x(points[0][0]))}Z"/>`);
    }
    out.push(`<path class="line ${kind}" d="${path}"/>`);
    if (!chart.isHistogram && points.length === 1) {
      out.push(
        `<circle class="dot ${kind}" cx="${place(scale.x(points[0][0]))}" cy="${place(scale.y(points[0][1]))}" r="3"/>`,
      );
    }
  }
  out.push('</g>');
  return out.join('');
}

const lineOf = (/** @type {[number, number][]} */ points, /** @type {ReturnType<typeof scaleOf>} */ scale) =>
  points.map(([x, y], i) => `${i ? 'L' : 'M'}${place(scale.x(x))} ${place(scale.y(y))}`).join('');

const stepsOf = (/** @type {[number, number][]} */ points, /** @type {ReturnType<typeof scaleOf>} */ scale) =>
  points.map(([x, y], i) => `${i ? 'H' : 'M'}${place(scale.x(x))}${i ? 'V' : ' '}${place(scale.y(y))}`).join('');

/** The point of a series that is meant at x: the nearest, of a histogram the bin. @param {Chart} chart @param {[number, number][]} points @param {number} x */
export function pointAt(chart, points, x) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (points[middle][0] <= x) low = middle;
    else high = middle - 1;
  }
  const [here, next] = [points[low], points[low + 1]];
  return !chart.isHistogram && next && next[0] - x < x - here[0] ? next : here;
}
