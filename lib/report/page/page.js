/** The page's behaviour: charts that fit, zoom and tell their values; light or dark; news of a run that goes on. */
import { drawChart, MARGIN, numberText, pointAt, rangesOf, scaleOf } from './charts.js';

/** @typedef {import('./charts.js').Chart} Chart */

const SVG = 'http://www.w3.org/2000/svg';
/** Of these series a readout tells the values: those nearest to the pointer. */
const MOST_TOLD = 12;

/** @type {Record<string, Chart>} */
let charts = JSON.parse(document.getElementById('charts').textContent);
/** What a reader did to a chart, kept when it is drawn anew. @type {Map<string, { zoom?: [number, number], hidden: Set<string> }>} */
const views = new Map();

const element = (/** @type {string} */ name, /** @type {object} */ properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

/** @param {HTMLElement} figure */
function mount(figure) {
  const id = figure.dataset.chart;
  const chart = charts[id];
  if (!views.has(id)) views.set(id, { hidden: new Set() });
  const view = views.get(id);
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('tabindex', '0');
  svg.setAttribute('role', 'img');
  svg.setAttribute(
    'aria-label',
    `${chart.title}. ${chart.y} against ${chart.x}. Arrow keys tell values, plus and minus zoom, Escape shows all.`,
  );
  const readout = element('div', { className: 'readout', hidden: true });
  readout.setAttribute('role', 'status');
  const reset = element('button', { className: 'reset', type: 'button', textContent: 'show all', hidden: true });
  const plot = element('div', { className: 'plot' }, svg, readout, reset);
  const legend = element('div', { className: 'legend' });
  figure.querySelector('.plot')?.remove();
  figure.querySelector('.legend')?.remove();
  figure.append(legend, plot);

  let [width, height] = [0, 0];
  let scale = /** @type {ReturnType<typeof scaleOf>} */ (/** @type {unknown} */ (undefined));
  let cursor = /** @type {number | undefined} */ (undefined);

  const draw = () => {
    if (width === 0) return;
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    scale = scaleOf(rangesOf(chart, view.zoom, view.hidden), width, height);
    svg.innerHTML = drawChart(chart, { width, height, ...view, id });
    reset.hidden = view.zoom === undefined;
  };
  /** Shows no more than there is; without a range, all of it. */
  const zoomTo = (/** @type {[number, number] | undefined} */ range) => {
    const [first, last] = rangesOf(chart, undefined, view.hidden).x;
    view.zoom = range && [Math.max(first, range[0]), Math.min(last, range[1])];
    cursor = undefined;
    readout.hidden = true;
    draw();
  };

  for (const { name, colour, dash = 0 } of chart.series) {
    const key = element('button', { type: 'button' });
    key.innerHTML = `<svg viewBox="0 0 22 8" aria-hidden="true"><path class="line c${colour} d${dash}" d="M1 4H21"/></svg>`;
    key.append(name);
    const show = () => key.setAttribute('aria-pressed', String(!view.hidden.has(name)));
    key.addEventListener('click', () => {
      if (!view.hidden.delete(name)) view.hidden.add(name);
      show();
      draw();
    });
    show();
    legend.append(key);
  }

  /** Tells the values at x, near the height `y` of the pointer if there is one. */
  const tell = (/** @type {number} */ x, /** @type {number | undefined} */ y) => {
    const shown = chart.series.filter(({ name, points }) => !view.hidden.has(name) && points.length > 0);
    if (shown.length === 0) return;
    const told = shown.map((series) => ({ ...series, point: pointAt(chart, series.points, x) }));
    const distance = (/** @type {[number, number]} */ point) => Math.abs(scale.x(point[0]) - scale.x(x));
    const nearest = told.reduce((a, b) => (distance(b.point) < distance(a.point) ? b : a)).point[0];
    cursor = nearest;
    const here = told.filter(({ point }) => Math.abs(scale.x(point[0]) - scale.x(nearest)) < 1);
    const height = y ?? scale.y(here[0].point[1]);
    here.sort((a, b) => Math.abs(scale.y(a.point[1]) - height) - Math.abs(scale.y(b.point[1]) - height));
    const some = here.slice(0, MOST_TOLD).sort((a, b) => b.point[1] - a.point[1]);
    for (const one of svg.querySelectorAll('.cursor')) one.remove();
    const line = document.createElementNS(SVG, 'path');
    line.setAttribute('class', 'cursor');
    line.setAttribute('d', `M${scale.x(nearest)} ${MARGIN.top}V${svg.viewBox.baseVal.height - MARGIN.bottom}`);
    svg.append(line);
    for (const { colour, point } of chart.isHistogram ? [] : some) {
      const dot = document.createElementNS(SVG, 'circle');
      dot.setAttribute('class', `cursor dot c${colour}`);
      dot.setAttribute('cx', String(scale.x(point[0])));
      dot.setAttribute('cy', String(scale.y(point[1])));
      dot.setAttribute('r', '3');
      svg.append(dot);
    }
    const bin = chart.isHistogram && here[0].points[here[0].points.indexOf(here[0].point) + 1];
    const where = bin ? `${numberText(nearest)} to ${numberText(bin[0])}` : numberText(nearest);
    const rows = some.map(({ name, colour, dash = 0, point }) => {
      const row = element('div', { className: 'told' });
      row.innerHTML = `<svg viewBox="0 0 22 8" aria-hidden="true"><path class="line c${colour} d${dash}" d="M1 4H21"/></svg>`;
      row.append(
        element('span', { textContent: name }),
        element('b', { className: 'value', textContent: numberText(point[1]) }),
      );
      return row;
    });
    const more = here.length - some.length;
    const rest = more > 0 ? [element('div', { textContent: `and ${more} more` })] : [];
    readout.replaceChildren(
      element('div', { className: 'where', textContent: `${chart.x.replace(/,.*/, '')} ${where}` }),
      ...rows,
      ...rest,
    );
    readout.hidden = false;
    const onLeft = scale.x(nearest) > width / 2;
    readout.style.left = onLeft ? 'auto' : `${scale.x(nearest) + 12}px`;
    readout.style.right = onLeft ? `${width - scale.x(nearest) + 12}px` : 'auto';
  };
  const silence = () => {
    readout.hidden = true;
    for (const one of svg.querySelectorAll('.cursor')) one.remove();
  };

  let from = /** @type {number | undefined} */ (undefined);
  const at = (/** @type {PointerEvent} */ event) => {
    const box = svg.getBoundingClientRect();
    const x = Math.min(width - MARGIN.right, Math.max(MARGIN.left, event.clientX - box.left));
    return { x, y: event.clientY - box.top };
  };
  svg.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    const { x, y } = at(event);
    if (event.pointerType === 'touch') tell(scale.valueAt(x), y);
    else from = x;
  });
  svg.addEventListener('pointermove', (event) => {
    const { x, y } = at(event);
    tell(scale.valueAt(x), y);
    if (from === undefined) return;
    if (!svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
    const band = svg.querySelector('.band') ?? svg.appendChild(document.createElementNS(SVG, 'rect'));
    band.setAttribute('class', 'band');
    band.setAttribute('x', String(Math.min(x, from)));
    band.setAttribute('width', String(Math.abs(x - from)));
    band.setAttribute('y', String(MARGIN.top));
    band.setAttribute('height', String(height - MARGIN.top - MARGIN.bottom));
  });
  svg.addEventListener('pointerup', (event) => {
    const { x } = at(event);
    const began = from;
    from = undefined;
    svg.querySelector('.band')?.remove();
    if (began === undefined || Math.abs(x - began) < 6) return;
    zoomTo([scale.valueAt(Math.min(x, began)), scale.valueAt(Math.max(x, began))]);
  });
  svg.addEventListener('pointerleave', (event) => {
    if (event.pointerType !== 'touch' && from === undefined) silence();
  });
  svg.addEventListener('blur', silence);
  svg.addEventListener('dblclick', () => zoomTo(undefined));
  reset.addEventListener('click', () => zoomTo(undefined));
  svg.addEventListener('keydown', (event) => {
    const [low, high] = rangesOf(chart, view.zoom, view.hidden).x;
    const middle = cursor ?? (low + high) / 2;
    if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') step(event.key === 'ArrowLeft' ? -1 : 1);
    else if (event.key === '+' || event.key === '=') zoomTo([middle - (high - low) / 4, middle + (high - low) / 4]);
    else if (event.key === '-') zoomTo(undefined);
    else if (event.key === 'Escape') zoomTo(undefined);
    else return;
    event.preventDefault();
  });
  /** To the neighbour of the point that is told. */
  const step = (/** @type {number} */ by) => {
    const { points } = chart.series.find(({ name }) => !view.hidden.has(name)) ?? { points: [] };
    if (points.length === 0) return;
    const now = cursor === undefined ? (by > 0 ? -1 : points.length) : points.indexOf(pointAt(chart, points, cursor));
    tell(points[Math.min(points.length - 1, Math.max(0, now + by))][0], undefined);
  };

  new ResizeObserver(() => {
    [width, height] = [plot.clientWidth, plot.clientHeight];
    draw();
  }).observe(plot);
}

function mountAll() {
  for (const figure of document.querySelectorAll('figure[data-chart]')) mount(/** @type {HTMLElement} */ (figure));
}
mountAll();

const dark = matchMedia('(prefers-color-scheme: dark)');
const theme = document.getElementById('theme');
theme.hidden = false;
theme.addEventListener('click', () => {
  const { style } = document.documentElement;
  const isDark = style.colorScheme === '' ? dark.matches : style.colorScheme === 'dark';
  style.colorScheme = isDark ? 'light' : 'dark';
});

// What is folded away would be missing on paper.
addEventListener('beforeprint', () => {
  for (const details of document.querySelectorAll('details')) details.open = true;
});

if (document.documentElement.hasAttribute('data-live')) {
  const news = new EventSource('events');
  const pulse = document.getElementById('pulse');
  news.addEventListener('open', () => pulse.classList.add('on'));
  news.addEventListener('error', () => pulse.classList.remove('on'));
  news.addEventListener('message', ({ data }) => {
    const report = JSON.parse(data);
    charts = report.charts;
    const open = [...document.querySelectorAll('details')].map((details) => details.open);
    document.querySelector('main').innerHTML = report.main;
    document.title = report.title;
    for (const [i, details] of [...document.querySelectorAll('details')].entries())
      details.open = open[i] ?? details.open;
    mountAll();
  });
}
