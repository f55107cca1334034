/** Reports of runs and fusions: what they tell, that nothing in them can act, and the page that follows a run. */
import { createHash } from 'node:crypto';
import { appendFileSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import { dirname, join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { stringify } from 'yaml';
import { writeReport } from '../lib/report/call.ts';
import { curvesOfRun, curvesOfRuns, pointsOf } from '../lib/report/curves.ts';
import { histogram } from '../lib/report/distributions.ts';
// @ts-expect-error: the page's own script has no types
import { drawChart, numberText, pointAt, rangesOf, scaleOf, ticksOf } from '../lib/report/page/charts.js';
import type { Quadruple, TrainingRun } from '../lib/report/read.ts';
import { makeReport } from '../lib/report/report.ts';
import { dataWarnings, resultWarnings } from '../lib/report/warnings.ts';
import { watch } from '../lib/report/watch.ts';
import { Trainer } from '../lib/train/trainer.ts';
import { expectFailure, fail, metricsOf, POLICY, scratchDirectory, start, succeed, tokenRows } from './training.ts';

const path = scratchDirectory('report');
const put = (file: string, content: string) => {
  mkdirSync(dirname(path(file)), { recursive: true });
  writeFileSync(path(file), content);
};
const lines = (values: readonly object[]) => values.map((value) => `${JSON.stringify(value)}\n`).join('');

/** What a model may answer. */
const HOSTILE = '</script><script>alert(1)</script><!-- <img src=x onerror="alert(2)"> \u2028 \0 &amp; \'';

const LOG = Array.from({ length: 12 }, (_, i) => ({
  ...{ step: i + 1, epoch: (i + 1) / 12, loss: 0.69 - 0.03 * i, grad_norm: 2, learning_rate: 1e-4, cur_alpha: i / 24 },
  ...{ 'rewards/source_chosen': 0.3 * i, 'rewards/target_chosen': 0.1 * i, 'rewards/rejected': -0.1 * i },
  ...{ 'rewards/margins': 0.25 * i, 'rewards/accuracies': 0.5 + 0.03 * i },
}));
const putRun = (dir: string, log: readonly object[] = LOG, config: object = { loss_type: 'wrpo', alpha: 0.5 }) => {
  put(`${dir}/config.yaml`, stringify(config));
  put(`${dir}/metrics.jsonl`, lines(log));
  put(`${dir}/trainer_state.json`, JSON.stringify({ global_step: 12, max_steps: 12, log_history: log }));
};

const OF_ROLES = (a: number, b: number, c: number) => ({ source_chosen: a, target_chosen: b, rejected: c });
const row = (name: string, reward: number, win_rate: number) => ({
  ...{ name, reward, reward_stderr: 0.01, win_rate, win_rate_stderr: 0.02, n: 300, mean_length: 40 },
});

/** A whole fusion, as `wrpo fuse` leaves it. */
function putFusion(dir: string): void {
  const stages = ['sample-sources', 'select', 'train/wrpo', 'train/dpo', 'evaluate'];
  for (const [i, stage] of stages.entries()) {
    const started = new Date(Date.UTC(2026, 0, 2, 3, i)).toISOString();
    const record = { stage, started, seconds: 10 * (i + 1), peak_rss_bytes: 3e8, inputs: {}, outputs: {} };
    put(`${dir}/stages/${stage.replace('/', '-')}.json`, JSON.stringify(record));
  }
  put(`${dir}/stages/hashes.json`, '{}');
  const selection = {
    ...{
      rows: { train: 40, test: 2, sft: 20 },
      prompts: { train: 41, test: 2, sft: 20 },
      dropped: { 'no source answer': 1 },
    },
    ...{ shares: { gemma: 62.5, [HOSTILE]: 37.5 }, scores: OF_ROLES(0.9, 0.5, 0.2) },
  };
  put(`${dir}/selected/selection.yaml`, stringify({ prompts: 'ab', rule: {}, selection }));
  const quadruple = (i: number) => ({
    ...{ prompt_id: `p${i}`, prompt: [{ role: 'user', content: 'Say hello' }] },
    ...{ source_chosen: 'hello '.repeat(3), target_chosen: 'hello', rejected: HOSTILE },
    meta: { source_model: 'gemma', ...OF_ROLES(0.9, 0.4 + 0.01 * i, 0.2) },
  });
  put(`${dir}/selected/train.jsonl`, lines(Array.from({ length: 40 }, (_, i) => quadruple(i))));
  putRun(`${dir}/sft`, [{ step: 5, loss: 1.5 }], { loss_type: 'sft' });
  putRun(`${dir}/train/wrpo`);
  putRun(`${dir}/train/dpo`, LOG, { loss_type: 'dpo' });
  const rows = [row('target', 0.3, 0.5), row('gemma', 0.6, 0.7), row('target-sft', 0.35, 0.55)];
  rows.push(row('wrpo', 0.5, 0.71), row('dpo', 0.45, 0.65));
  put(`${dir}/evaluation/results.json`, JSON.stringify({ scorer: 'armorm', rows }));
  const answers = { target: { text: HOSTILE, reward: 0.1 }, wrpo: { text: 'x'.repeat(5000), reward: null } };
  const prompt = [{ role: 'user', content: HOSTILE }];
  put(
    `${dir}/evaluation/answers.jsonl`,
    lines(Array.from({ length: 20 }, (_, i) => ({ prompt_id: `h${i}`, prompt, answers }))),
  );
  const logps = ['target', HOSTILE, 'wrpo'].flatMap((model, k) =>
    Array.from({ length: 50 }, (_, i) => ({
      model,
      row: i,
      ...OF_ROLES(-20 - i + 9 * k, -10 - i, -12 - i),
      lengths: OF_ROLES(10, 10, 10),
    })),
  );
  put(`${dir}/evaluation/logps.jsonl`, lines(logps));
}

const chartsIn = (page: string) =>
  JSON.parse(/<script type="application\/json" id="charts">(.*?)<\/script>/s.exec(page)![1]!);
const titlesIn = (page: string) => [...page.matchAll(/<h2[^>]*>(.*?)<\/h2>/g)].map(([, title]) => title);
const wordsIn = (page: string) =>
  page
    .replace(/<(script|style)[\s\S]*?<\/\1>/g, '')
    .replace(/<[^>]+>/g, ' ')
    .replace(/\s+/g, ' ');

describe('a fusion', () => {
  let page: string;
  beforeAll(async () => {
    putFusion('fusion');
    page = readFileSync(await writeReport(path('fusion')), 'utf8');
  });

  it('is told in a sentence and its parts', () => {
    expect(page).toContain(
      '<h1>wrpo beats the target on held-out prompts: it wins 71.0 ± 2.0 % of 300, with mean reward 0.500 against 0.300.</h1>',
    );
    expect(titlesIn(page)).toEqual([
      'Results',
      'Where the responses come from',
      'Training',
      'Log-probs before and after',
      'Tables',
      'Samples',
      'Stages',
    ]);
    const words = wordsIn(page);
    expect(words).toContain('gemma 62.5');
    expect(words).toContain('gemma source 0.600 ± 0.010 70.0 ± 2.0');
    expect(words).toContain('y_wt (target_chosen) 0.500 5 ');
    expect(words).toContain('1 without one (no source answer)');
    expect(words).toContain('train/dpo 2026-01-02 03:03:00 40 s 286 MiB');
    expect(words).toContain('(3800 characters more)');
    expect(words).toContain('wrpo −2.650 ± 0.206 −3.450 ± 0.206 −3.650 ± 0.206 1.000 ± 0.000 1.000');
  });

  it('has Fig. 1 and Fig. 3, and runs beside each other', () => {
    const charts = Object.values<{ title: string; series: { name: string; points: [number, number][] }[] }>(
      chartsIn(page),
    );
    const found = (title: string) => charts.filter((chart) => chart.title === title);
    const [margins, logps] = found('wrpo');
    expect(margins!.series.map(({ name, points }) => [name, points.at(-1)])).toEqual([
      ['on-policy', [12, 2.2]],
      ['hybrid', [12, 4.4]],
      ['total', [12, 2.75]],
    ]);
    expect(logps!.series.map(({ name }) => name)).toEqual(['y_ws', 'y_wt', 'y_l']);
    expect(found('Reward margin')[0]!.series.map(({ name }) => name)).toEqual(['wrpo', 'dpo']);
    expect(found('Loss (dpo)')[0]!.series.map(({ name }) => name)).toEqual(['dpo']);
  });

  it('gives every figure a chart, and every chart axes with their units and names for its series', () => {
    const charts = chartsIn(page);
    const figures = [...page.matchAll(/<figure data-chart="([^"]+)">/g)].map(([, id]) => id);
    expect(figures).toEqual(Object.keys(charts));
    expect(figures.length).toBeGreaterThan(12);
    for (const [id, chart] of Object.entries<{ x: string; y: string; title: string; series: { name: string }[] }>(
      charts,
    )) {
      expect(chart, id).toMatchObject({ title: /./, x: /./, y: /./ });
      expect(new Set(chart.series.map(({ name }) => name)).size).toBe(chart.series.length);
      const svg = drawChart(chart, { width: 400, height: 250, id });
      for (const label of [chart.x, chart.y]) expect(svg).toContain(`>${label}</text>`);
      expect(svg.match(/class="tick"/g)!.length, id).toBeGreaterThan(3);
      expect(svg.match(/class="line /g)).toHaveLength(chart.series.length);
      expect(svg).not.toMatch(/NaN|undefined|Infinity/);
    }
  });

  it('lets no text of a model act', () => {
    const scripts = [...page.matchAll(/<script[^>]*>([\s\S]*?)<\/script>/g)];
    expect(scripts).toHaveLength(2);
    expect(page).not.toMatch(/<img|alert\(1\)<\/script>|<!-- <img/);
    expect(page.match(/&#60;\/script&#62;&#60;script&#62;alert\(1\)/g)!.length).toBeGreaterThan(8);
    expect(page).not.toContain('\0');
    const charts = Object.values<{ title: string }>(chartsIn(page));
    expect(charts.map(({ title }) => title)).toContain(HOSTILE);
  });

  it('is allowed to run its own script and style, and to ask nobody', () => {
    const policy = /Content-Security-Policy" content="([^"]+)"/.exec(page)![1]!;
    const hash = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toMatch(/unsafe|connect-src|https?:/);
    expect(policy).toContain(`script-src ${hash(/<script type="module">([\s\S]*?)<\/script>/.exec(page)![1]!)}`);
    expect(policy).toContain(`style-src ${hash(/<style>([\s\S]*?)<\/style>/.exec(page)![1]!)}`);
    // Nothing is fetched, and no style stands where the policy forbids it.
    expect(page).not.toMatch(/<link[^>]+(?:https?:|stylesheet)|@import|url\(\s*['"]?http|<[a-z]+[^>]* style=/);
    expect(page).not.toMatch(/^(import|export) /m);
    expect(Buffer.byteLength(page)).toBeLessThan(150_000);
  });

  it('leaves out what is not there', async () => {
    cpSync(path('fusion'), path('part'), { recursive: true });
    rmSync(path('part/evaluation'), { recursive: true });
    rmSync(path('part/stages/evaluate.json'));
    const report = await makeReport(path('part'));
    expect(report.title).toBe('part: A fusion under way: 4 stages are done, the last is train/dpo.');
    expect(titlesIn(report.main)).toEqual(['Where the responses come from', 'Training', 'Tables', 'Stages']);
    rmSync(path('part/train'), { recursive: true });
    rmSync(path('part/sft'), { recursive: true });
    rmSync(path('part/selected'), { recursive: true });
    expect(titlesIn((await makeReport(path('part'))).main)).toEqual(['Stages']);
  });

  it('shows what a program adds first', async () => {
    const table = {
      head: ['finding', 'difference'],
      rows: [
        ['<b>DPO</b> loses', '−0.1'],
        ['more', 2],
      ],
    };
    const sections = [{ title: 'Findings', text: 'Over five seeds.\n\nNot all show.', table }];
    const file = await writeReport(path('fusion'), { sections, file: path('added.html') });
    const added = readFileSync(file, 'utf8');
    expect(titlesIn(added).slice(0, 2)).toEqual(['Findings', 'Results']);
    expect(added).toContain('<p>Over five seeds.</p>\n<p>Not all show.</p>');
    expect(added).toContain('<th scope="row">&#60;b&#62;DPO&#60;/b&#62; loses</th><td class="n">−0.1</td>');
  });
});

describe('a training run', () => {
  it('is told by the curves of its log', async () => {
    const outputDir = path('trained');
    const args = { outputDir, lossType: 'wrpo', beta: 0.1, alpha: 0.5, loggingSteps: 1, disableTqdm: true } as const;
    await using trainer = new Trainer({
      model: POLICY,
      trainDataset: tokenRows(6, 51),
      args: { ...args, perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 1 },
    });
    await trainer.train();
    const { stdout } = await succeed(['report', outputDir]);
    expect(stdout).toBe(`${join(outputDir, 'report.html')}\n`);
    const page = readFileSync(join(outputDir, 'report.html'), 'utf8');
    expect(page).toMatch(
      /<h1>Preference optimisation \(wrpo\) over 3 steps: the loss went from 0\.693 to 0\.\d{3}, and the chosen side wins \d+ % of the examples\.<\/h1>/,
    );
    const charts = Object.values<{ title: string; series: { points: [number, number][] }[] }>(chartsIn(page));
    expect(charts.map(({ title }) => title)).toEqual([
      ...['Loss', 'Reward margins over training', 'Accuracies', 'Rewards', 'Log-probs of the responses', 'Alpha'],
      ...['Learning rate', 'Gradient norm', 'Speed'],
    ]);
    const losses = metricsOf(outputDir).map(({ step, loss }) => [step, Number(loss!.toPrecision(5))]);
    expect(charts[0]!.series[0]!.points).toEqual(losses);
  });

  it('has the benchmarks that were measured below it', async () => {
    putRun('measured');
    const alpaca = { benchmark: 'alpaca_eval', win_rate: 51.26, standard_error: 1.7, length_controlled_winrate: 55.9 };
    put('measured/evaluation/a/results.json', JSON.stringify({ ...alpaca, lc_standard_error: 0.4, avg_length: 2159 }));
    const { main } = await makeReport(path('measured'));
    expect(titlesIn(main)).toEqual(['Training', 'Tables']);
    expect(wordsIn(main)).toContain('measured 55.9 ± 0.4 51.3 ± 1.7 2159');
    // Of two it is not known which is meant: that is said, and the rest told.
    put('measured/evaluation/b/results.json', JSON.stringify(alpaca));
    const again = await makeReport(path('measured'));
    expect(wordsIn(again.main)).toMatch(/measured: holds two evaluations by alpaca_eval/);
    expect(titlesIn(again.main)).toContain('Training');
  });

  it('that goes on says how far it is, and may be half-way through a line', async () => {
    put('going/config.yaml', stringify({ loss_type: 'sft', num_train_epochs: 2 }));
    put('going/metrics.jsonl', `${lines(LOG.slice(0, 3))}{"step": 4, "lo`);
    const { title } = await makeReport(path('going'));
    expect(title).toBe(
      'going: Fine-tuning at step 3, epoch 0.25 of 2: the loss went from 0.690 to 0.630, and the chosen side wins 56 % of the examples.',
    );
  });

  it('of a damaged file, or of nothing, is refused in a sentence', async () => {
    put('damaged/metrics.jsonl', '{"step": 1}\nloss\n{"step": 3}\n');
    await expectFailure(
      () => makeReport(path('damaged')),
      'ERR_DATA',
      /damaged\/metrics\.jsonl line 2: expected one JSON object/,
    );
    putFusion('edited');
    put('edited/evaluation/results.json', '{"rows": [{"name": "target", "reward": "high"}]}');
    expect(await fail(['report', path('edited')], 1)).toMatch(
      /results\.json: is not as wrpo wrote it: rows: 0: reward: /,
    );
    put('edited/evaluation/results.json', '{"rows": []}');
    put('edited/stages/select.json', '{"stage": "select"}');
    expect(await fail(['report', path('edited')], 1)).toMatch(/select\.json: is not as wrpo wrote it: started: /);
    mkdirSync(path('empty'));
    expect(await fail(['report', path('empty')], 1)).toMatch(
      /empty: holds no metrics\.jsonl of a training run and no stages of a fusion/,
    );
    expect(await fail(['report', path('nowhere')], 1)).toMatch(/nowhere: no such directory/);
    expect(await fail(['report', path('damaged/metrics.jsonl')], 1)).toMatch(
      /is a file: a report is made of the directory/,
    );
    expect(existsSync(path('empty/report.html'))).toBe(false);
  });
});

describe('charts', () => {
  const run = (log: object[], config = {}): TrainingRun => ({
    ...{ name: 'one', directory: '', config, lines: log as TrainingRun['lines'], isFinished: true },
  });

  it("of Eq. 9 take the target's own y_l", () => {
    const log = [
      {
        step: 1,
        'rewards/source_chosen': 3,
        'rewards/target_chosen': 2,
        'rewards/rejected': 9,
        'rewards/target_rejected': 1,
        'rewards/margins': 5,
      },
    ];
    const margins = curvesOfRun(run(log)).find(({ title }) => title.startsWith('Reward margins'))!;
    expect(margins.series.map(({ points }) => points[0])).toEqual([
      [1, 1],
      [1, 2],
      [1, 5],
    ]);
  });

  it('tell many runs apart by colour and dashes', () => {
    const runs = Array.from({ length: 20 }, (_, i) => ({ ...run(LOG), name: `run ${i}` }));
    const { series } = curvesOfRuns(runs)[0]!;
    expect(new Set(series.map(({ colour, dash }) => `${colour} ${dash}`)).size).toBe(20);
  });

  it('lose no spike of a long log', () => {
    const log = Array.from({ length: 50_000 }, (_, i) => ({ step: i + 1, loss: i === 31_337 ? 99 : 1 + (i % 7) / 10 }));
    const points = pointsOf(log, (line) => line.loss);
    expect(points.length).toBeLessThanOrEqual(800);
    expect(points).toContainEqual([31_338, 99]);
    expect(points.map(([x]) => x)).toEqual(points.map(([x]) => x).sort((a, b) => a - b));
    expect(pointsOf([{ step: 1, loss: Number.NaN }, { step: 2 }], (line) => line.loss)).toEqual([]);
  });

  it('of distributions hold every value', () => {
    const values = [...Array.from({ length: 990 }, (_, i) => i / 990), ...Array<number>(10).fill(1e6)];
    const { points } = histogram('t', 'x', [{ name: 'a', colour: 0, values }]).series[0]!;
    expect(points.slice(0, -1).reduce((sum, [, y]) => sum + y, 0)).toBeCloseTo(100, 2);
    const lengths = histogram('t', 'x', [{ name: 'a', colour: 0, values: [3, 4, 4, 5, 9, 9] }]).series[0]!;
    expect(lengths.points.map(([x]) => x)).toEqual([3, 4, 5, 6, 7, 8, 9, 10]);
    expect(lengths.points[1]).toEqual([4, 33.333]);
  });

  it('have round ticks, and numbers with the digits these need', () => {
    expect(ticksOf([0, 10], 5).ticks).toEqual([0, 2, 4, 6, 8, 10]);
    expect(ticksOf([-0.013, 0.021], 4).ticks.map((tick: number) => numberText(tick, 0.01))).toEqual([
      '−0.01',
      '0',
      '0.01',
      '0.02',
    ]);
    expect([numberText(3e-7, 1e-7), numberText(1234.5678), numberText(28), numberText(0.5)]).toEqual([
      '3e-7',
      '1235',
      '28',
      '0.5000',
    ]);
  });

  it('zoom to what lies in sight, and find the point that is meant', () => {
    const points: [number, number][] = [
      [1, 5],
      [2, 50],
      [3, 7],
      [4, 6],
    ];
    const chart = { title: 't', x: 'x', y: 'y', series: [{ name: 'a', colour: 0, points }] };
    expect(rangesOf(chart, undefined, new Set()).x).toEqual([1, 4]);
    const zoomed = rangesOf(chart, [2.5, 4], new Set());
    expect(zoomed.y[1]).toBeLessThan(8);
    const scale = scaleOf(zoomed, 400, 200);
    expect(scale.valueAt(scale.x(3.25))).toBeCloseTo(3.25, 12);
    expect([0, 1.4, 1.6, 9].map((x) => pointAt(chart, points, x)[0])).toEqual([1, 1, 2, 4]);
    expect(pointAt({ ...chart, isHistogram: true }, points, 1.9)[0]).toBe(1);
  });
});

describe('warnings', () => {
  const quadruples = (scores: Quadruple['scores'], lengths = OF_ROLES(10, 10, 10)): Quadruple[] =>
    Array.from({ length: 30 }, () => ({ scores, lengths }));
  const selection = (shares: Record<string, number>, dropped = {}) => ({
    ...{ shares, dropped, scores: {}, rows: { train: 80, test: 0, sft: 0 }, prompts: { train: 100, test: 0, sft: 0 } },
  });

  it('are none of good data and results', () => {
    expect(dataWarnings(quadruples(OF_ROLES(3, 2, 1)), selection({ a: 60, b: 40 }))).toEqual([]);
    expect(
      resultWarnings([row('target', 0.3, 0.5), row('target-sft', 0.4, 0.6), row('wrpo', 0.5, 0.7)], ['wrpo']),
    ).toEqual([]);
  });

  it.each([
    [
      'length',
      OF_ROLES(3, 2, 1),
      OF_ROLES(20, 10, 10),
      /^Length bias: y_ws \(20 characters on average\) is much longer than y_l \(10\)/,
    ],
    [
      'both lengths',
      OF_ROLES(3, 2, 1),
      OF_ROLES(20, 15, 10),
      /y_ws \(20 characters on average\) and y_wt \(15\) are much longer/,
    ],
    [
      'sources',
      OF_ROLES(1.5, 2, 1),
      undefined,
      /^y_ws is worse than y_wt in 100 % of the quadruples \(mean score 1\.5 against 2\)/,
    ],
    ['ties', OF_ROLES(3, 1, 1), undefined, /^In 100 % of the quadruples y_wt scores no better than y_l/],
  ] as const)('of %s', (_, scores, lengths, message) => {
    const found = dataWarnings(quadruples(scores, lengths));
    expect(found).toHaveLength(1);
    expect(found[0]).toMatch(message);
    expect(dataWarnings(quadruples(scores, lengths).slice(0, 5))).toEqual([]);
  });

  it('of one source alone, and of prompts that are lost', () => {
    expect(dataWarnings([], selection({ a: 92, b: 8 }, { 'no target answer': 20 }))).toEqual([
      expect.stringMatching(/^a gives y_ws for 92 %/),
    ]);
    expect(dataWarnings([], selection({ a: 50, b: 50 }, { 'no target answer': 30 }))).toEqual([
      '30 % of the prompts gave no row (no target answer: 30).',
    ]);
  });

  it('of models that are no better, or better by length', () => {
    const rows = [row('target', 0.3, 0.5), row('target-sft', 0.5, 0.6), row('bad', 0.2, 0.4), row('less', 0.4, 0.6)];
    rows.push({ ...row('long', 0.6, 0.8), mean_length: 100 });
    expect(resultWarnings(rows, ['bad', 'less', 'long'])).toEqual([
      'bad is worse than the target: it wins 40 % of the prompts.',
      'less has less reward (0.4) than Target-SFT, from which it started (0.5).',
      expect.stringMatching(/^Length bias: long answers with 100 characters on average, the target with 40/),
    ]);
  });

  it('of a log stand in its report, each kind once', async () => {
    const falling = LOG.map((line, i) => ({ ...line, 'logps/chosen': i < 6 ? -100 : -200, 'rewards/accuracies': 0.9 }));
    put('warned/stages/hashes.json', '{}');
    for (const name of ['a', 'b']) putRun(`warned/train/${name}`, falling);
    const { main } = await makeReport(path('warned'));
    expect(wordsIn(main)).toMatch(/a \(step \d+\): the chosen responses become improbable.*Also b \(step \d+\)\./);
  });
});

describe('watching', () => {
  const ask = (url: string, options: object = {}, target = new URL(url).pathname) =>
    new Promise<{ status: number; body: string; response: IncomingMessage }>((resolve, reject) => {
      const { port } = new URL(url);
      request({ port, host: '127.0.0.1', path: target, ...options }, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (text) => {
          body += text;
        });
        response.on('end', () => resolve({ status: response.statusCode!, body, response }));
      })
        .on('error', reject)
        .end();
    });

  /** The reports that the page is told of. */
  async function* newsOf(
    url: string,
  ): AsyncGenerator<{ title: string; charts: Record<string, { series: { points: number[][] }[] }> }> {
    const response = await new Promise<IncomingMessage>((resolve) => request(`${url}events`, resolve).end());
    let text = '';
    for await (const piece of response.setEncoding('utf8')) {
      text += piece;
      for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
        yield JSON.parse(text.slice('data: '.length, end));
        text = text.slice(end + 2);
      }
    }
  }

  it('tells of every new line of a log', async () => {
    putRun('watched', LOG.slice(0, 3));
    const { url, close } = await watch(path('watched'));
    try {
      const { status, body } = await ask(url);
      expect(status).toBe(200);
      expect(body).toMatch(/<html lang="en" data-live>/);
      expect(body).toContain("connect-src 'self'");
      const news = newsOf(url);
      const points = async () => (await news.next()).value!.charts['run-0']!.series[0]!.points.length;
      expect(await points()).toBe(3);
      appendFileSync(path('watched/metrics.jsonl'), lines([LOG[3]!]));
      expect(await points()).toBe(4);
    } finally {
      await close();
    }
  });

  it('shows nothing else, and nothing to another name', async () => {
    putRun('guarded');
    const { url, close } = await watch(path('guarded'));
    try {
      const { port } = new URL(url);
      const statuses = async (targets: string[]) =>
        Promise.all(targets.map(async (target) => (await ask(url, {}, target)).status));
      expect(
        await statuses(['/metrics.jsonl', '/../guarded/config.yaml', '/%2e%2e/', '/report.html', '//', '/events/x']),
      ).toEqual(Array(6).fill(404));
      for (const host of ['evil.example', `evil.example:${port}`, '127.0.0.1', `127.0.0.1:${Number(port) + 1}`]) {
        const { status, body } = await ask(url, { headers: { host } });
        expect([host, status, body]).toEqual([host, 403, '']);
      }
      expect((await ask(url, { headers: { host: `localhost:${port}` } })).status).toBe(200);
      // Another address of this machine, at which whoever binds to all of them answers.
      await expect(ask(url, { host: '127.0.0.2' })).rejects.toMatchObject({ code: 'ECONNREFUSED' });
      expect((await ask(url, { method: 'POST' })).status).toBe(405);
      await expectFailure(
        () => watch(path('guarded'), { port: Number(port) }),
        'ERR_CONFIG',
        /port \d+ cannot be had: another program uses it/,
      );
    } finally {
      await close();
    }
  });

  it('keeps the last report while a file is damaged', async () => {
    putRun('breaking', LOG.slice(0, 3));
    const errors: string[] = [];
    const { url, close } = await watch(path('breaking'), { onError: ({ message }) => errors.push(message) });
    try {
      writeFileSync(path('breaking/metrics.jsonl'), `no\n${lines(LOG)}`);
      await expect.poll(() => errors, { timeout: 10_000 }).toEqual([expect.stringMatching(/metrics\.jsonl line 1/)]);
      expect((await ask(url)).body).toContain('over 3 steps');
    } finally {
      await close();
    }
  });

  it('is a command that says where, and ends well', async () => {
    putRun('command');
    const child = start(['watch', path('command')]);
    expect(await child.until(() => child.stderr.includes('until Ctrl-C'))).toBe(true);
    const url = /http:\S+\//.exec(child.stderr)![0];
    expect((await ask(url)).status).toBe(200);
    expect(await child.kill('SIGINT')).toMatchObject({ status: 0, signal: null });
    const hasty = start(['watch', path('command')]);
    await hasty.until(() => hasty.stderr.includes('until Ctrl-C'));
    expect(await hasty.kill('SIGTERM')).toMatchObject({ status: 0, signal: null });
    expect(await fail(['watch', path('nowhere')], 1)).toMatch(/nowhere: no such directory/);
  });
});
