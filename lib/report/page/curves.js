// Draws the charts of a report with uPlot. What they show stands as JSON in #charts; a live page asks for it again.
const MOST_RUNS = 6;
const HEIGHT = 220;
const DASH = [6, 4];

let charts = JSON.parse(document.getElementById('charts').textContent);
/** Numbers of the runs that are shown. */
const shown = new Set(charts.runs.slice(0, MOST_RUNS).map((_, i) => i));
/** What is drawn, with the place it is in. */
let drawn = [];

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (value) =>
  value == null
    ? ''
    : value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)
      ? value.toExponential(2)
      : String(Number(value.toPrecision(4)));

function draw(place, chart, isOfRuns) {
  const lines = chart.lines.filter((line) => !isOfRuns || shown.has(line.run));
  const axis = {
    stroke: style('--faint'),
    grid: { stroke: style('--rule'), width: 1 },
    ticks: { stroke: style('--rule'), width: 1 },
    font: '11px system-ui',
  };
  const plot = new uPlot(
    {
      width: Math.max(200, place.clientWidth),
      height: HEIGHT,
      scales: { x: { time: false } },
      axes: [
        { ...axis, size: 30, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick : '')) },
        { ...axis, size: 58, values: (_, ticks) => ticks.map(short) },
      ],
      cursor: { drag: { x: true, y: false }, points: { size: 6 } },
      legend: { live: true },
      series: [
        { label: 'step' },
        ...lines.map((line) => ({
          label: line.name,
          stroke: style(`--s${(line.run % 8) + 1}`),
          width: 1.6,
          spanGaps: true,
          dash: line.dashed ? DASH : undefined,
          points: { show: chart.steps.length < 3 || line.dashed, size: 4 },
          value: (_, value) => short(value),
        })),
      ],
    },
    [chart.steps, ...lines.map((line) => line.values)],
    place,
  );
  // A finger that moves sideways points; up and down it scrolls.
  plot.over.addEventListener(
    'touchmove',
    ({ touches: [touch] }) => {
      const { left, top } = plot.over.getBoundingClientRect();
      plot.setCursor({ left: touch.clientX - left, top: touch.clientY - top });
    },
    { passive: true },
  );
  return plot;
}

function drawAll() {
  for (const { plot } of drawn) plot.destroy();
  drawn = [];
  for (const id of ['margins', 'curves']) {
    const places = document.querySelectorAll(`#${id} .plot`);
    for (const [i, chart] of charts[id].entries()) {
      if (places[i]) drawn.push({ place: places[i], plot: draw(places[i], chart, id === 'curves') });
    }
  }
}

function resize() {
  for (const { place, plot } of drawn) {
    if (place.clientWidth !== plot.width) plot.setSize({ width: Math.max(200, place.clientWidth), height: HEIGHT });
  }
}

function drawPicker() {
  const curves = document.getElementById('curves');
  if (!curves || charts.runs.length < 2) return;
  const picker = document.createElement('p');
  picker.className = 'runs';
  for (const [i, name] of charts.runs.entries()) {
    const label = document.createElement('label');
    const box = document.createElement('input');
    box.type = 'checkbox';
    box.checked = shown.has(i);
    box.addEventListener('change', () => {
      if (box.checked) shown.add(i);
      else shown.delete(i);
      drawAll();
    });
    label.append(box, ` ${name}`);
    picker.append(label);
  }
  curves.before(picker);
}

addEventListener('themed', drawAll);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
// In a frame of its own: a plot that changes its size inside the observer's call would be seen by it again.
new ResizeObserver(() => requestAnimationFrame(resize)).observe(document.body);
drawPicker();
drawAll();

// A live page: other values go into the charts that are there; where there are new ones the page is made anew.
if ('live' in document.documentElement.dataset) {
  new EventSource('/changes').addEventListener('message', ({ data }) => {
    const now = JSON.parse(data);
    const shape = (all) =>
      JSON.stringify(['margins', 'curves'].map((id) => all[id].map(({ lines }) => lines.map(({ name }) => name))));
    if (shape(now) !== shape(charts)) location.reload();
    charts = now;
    const all = [...charts.margins, ...charts.curves];
    for (const [i, { plot }] of drawn.entries()) {
      const names = new Set(plot.series.slice(1).map(({ label }) => label));
      const lines = all[i].lines.filter(({ name }) => names.has(name));
      plot.setData([all[i].steps, ...lines.map(({ values }) => values)]);
    }
  });
}
