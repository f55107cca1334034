/** The paper's analyses against their vectors, and tables over what runs leave behind. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { compareSamples, increase, summariseLogProbs, weightedMargin } from '../lib/evaluate/analyses.ts';
import { readCsv } from '../lib/evaluate/csv.ts';
import { FIXTURES, fail, readJson, scratchDirectory, succeed } from './training.ts';

const path = scratchDirectory('tables');
const vector = readJson(join(FIXTURES, 'evaluate', 'analyses.json'));

describe('analyses', () => {
  it('are those of the vectors', () => {
    const { alpha, on_policy_margin, hybrid_margin, weighted } = vector.fig3;
    expect(weightedMargin(alpha, hybrid_margin, on_policy_margin)).toBeCloseTo(weighted, 12);
    for (const { dpo, wrpo, pct } of vector.table8_increase) expect(increase(dpo, wrpo)).toBeCloseTo(pct, 2);
  });

  it('of two samples: means, deviations, and how far one must be moved to be the other', () => {
    const found = compareSamples([0, 1, 2], [5, 4, 3]);
    expect(found).toEqual({ means: [1, 4], deviations: [1, 1], difference: -3, wasserstein: expect.closeTo(3, 12) });
    expect(compareSamples([0, 0, 0, 4], [0, 1]).wasserstein).toBeCloseTo(1, 12); // a quarter by 3, and a quarter by 1
  });
});

describe('tables', () => {
  const put = (file: string, value: object) => {
    mkdirSync(join(path(file), '..'), { recursive: true });
    writeFileSync(path(file), JSON.stringify(value));
  };
  const alpaca = {
    benchmark: 'alpaca_eval',
    win_rate: 51.26,
    standard_error: 1.7,
    length_controlled_winrate: 55.9,
    lc_standard_error: 0.4,
    avg_length: 2159,
  };
  put('dpo/config.yaml', { loss_type: 'sigmoid', beta: 0.01 });
  put('dpo/trainer_state.json', { log_history: [{ train_runtime: 600 }] });
  put('wrpo/config.yaml', { loss_type: 'wrpo', beta: 0.01, alpha: 0.1, is_dynamic: true });
  put('wrpo/trainer_state.json', {
    log_history: [
      { 'rewards/source_chosen': 9, 'rewards/target_chosen': 9, 'rewards/rejected': 9 },
      { 'rewards/source_chosen': 0.9, 'rewards/target_chosen': 0.1, 'rewards/rejected': -0.1, cur_alpha: 0.5 },
      { 'eval_rewards/source_accuracies': 0.625, train_runtime: 690 },
    ],
  });
  put('wrpo/evaluation/alpaca/results.json', alpaca);
  put('wrpo/evaluation/arena/results.json', { benchmark: 'arena_hard', score: 79.03, lower: 72.61, upper: 83.72 });
  put('fusion/selected/selection.yaml', { shares: { gemma: 62.5, yi: 37.5 }, scores: { source_chosen: 0.18 } });

  it('say what every run has, with errors and intervals, as text, CSV and a page', async () => {
    const outputs = ['--csv', path('csv'), '--html', path('tables.html')];
    const { stdout } = await succeed(['tables', path('dpo'), path('wrpo'), path('fusion'), ...outputs]);
    expect(stdout).toMatch(/^wrpo +55\.9 ± 0\.4 +51\.3 ± 1\.7 +2159 +79\.0 \(72\.6 to 83\.7\)/m);
    expect(readCsv(path('csv', 'objectives.csv'))).toEqual([
      {
        ...{ run: 'dpo', loss: 'sigmoid', beta: '0.01', alpha: '', mode: '' },
        ...{ LC: '', 'LC stderr': '', 'hybrid accuracy': '' },
      },
      {
        ...{ run: 'wrpo', loss: 'wrpo', beta: '0.01', alpha: '0.1', mode: 'dynamic' },
        ...{ LC: '55.9', 'LC stderr': '0.4', 'hybrid accuracy': '62.5' },
      },
    ]);
    const [benchmarks] = readCsv(path('csv', 'benchmarks.csv'));
    expect(benchmarks).toMatchObject({ 'Arena-Hard low': '72.61', 'Arena-Hard high': '83.72' });
    const [margins] = readCsv(path('csv', 'rewards-at-the-end-of-training.csv'));
    for (const [name, value] of Object.entries({ hybrid: 1, 'on-policy': 0.2, weighted: 0.6 })) {
      expect(Number(margins![`${name} margin`])).toBeCloseTo(value, 12);
    }
    const increases = readCsv(path('csv', 'training-time.csv')).map((row) => Number(row['% above DPO']));
    expect(increases).toEqual([0, 15]);
    expect(readCsv(path('csv', 'responses.csv'))).toContainEqual({
      ...{ fusion: 'fusion', selection: 'selected', what: 'share of gemma, %', value: '62.5' },
    });
    const page = readFileSync(path('tables.html'), 'utf8');
    for (const title of ['Benchmarks', 'Objectives', 'Training time']) expect(page).toContain(`<h3>${title}`);
    expect(page).toMatch(/55\.9 ± 0\.4<\/td><td class="mark"><svg/);
    expect(page.replace(/<script[\s\S]*?<\/script>/g, '')).not.toContain('undefined');
  });

  it('read a whole fusion: its runs with their rows, its comparison, and evaluations wherever they lie', async () => {
    const row = { reward: 0.5, reward_stderr: 0.01, win_rate: 0.75, win_rate_stderr: 0.02, n: 9, mean_length: 40 };
    const selection = (sources: string[]) => ({
      ...{ rule: { sources }, selection: { rows: { test: 101 }, shares: {}, scores: {} } },
    });
    put('whole/selected/selection.yaml', selection(['a', 'b', 'c']));
    put('whole/selections/rank-2/selection.yaml', selection(['a', 'b']));
    put('whole/evaluation/results.json', { scorer: 'armorm', rows: [{ name: 'wrpo', ...row }] });
    const train = (name: string, config: object, stage: object, log: object) => {
      put(`whole/train/${name}/config.yaml`, config);
      put(`whole/train/${name}/trainer_state.json`, { log_history: [log] });
      put(`whole/stages/train-${name}.json`, { inputs: stage });
    };
    const rows = { 'sft/model.safetensors': '', 'selected/train.jsonl': '' };
    const accuracy = { 'eval_rewards/source_accuracies': 0.8, train_runtime: 120 };
    train('wrpo', { loss_type: 'wrpo', alpha: 0.1, is_dynamic: true }, rows, accuracy);
    train('only-y_ws', { loss_type: 'wrpo', alpha: 1, is_dynamic: false }, rows, { train_runtime: 60 });
    train('dpo', { loss_type: 'dpo' }, rows, { train_runtime: 60 });
    train('rank-2', { loss_type: 'wrpo' }, { 'selections/rank-2/train.jsonl': '' }, { train_runtime: 90 });
    // Below a run; beside the fusion's own comparison, by the model's name; and of a model without a run.
    put('whole/train/dpo/alpaca/results.json', { ...alpaca, length_controlled_winrate: 50.7 });
    put('whole/evaluation/alpaca/results.json', { ...alpaca, model: 'wrpo' });
    const less = { ...alpaca, model: 'only-y_ws', length_controlled_winrate: 49.6 };
    put('whole/evaluation/alpaca-y_ws/results.json', less);
    put('whole/evaluation/alpaca-gemma/results.json', { ...alpaca, model: 'gemma' });
    const pairs = {
      benchmark: 'mt_bench',
      model: 'wrpo',
      against: 'dpo',
      win: 3,
      loss: 1,
      tie: 0,
      win_rate_adjusted: 0.75,
    };
    put('whole/evaluation/pairs/results.json', pairs);
    const { stdout } = await succeed(['tables', path('whole')]);
    expect(stdout).not.toContain('undefined');
    expect(stdout).toMatch(/^dpo +target-sft +selected +3 +50\.7 ± 0\.4/m);
    expect(stdout).toMatch(/^gemma +55\.9 ± 0\.4/m);
    expect(stdout).toMatch(/^wrpo +wrpo +0\.1 +dynamic +55\.9 ± 0\.4 +80\.0 ± 4\.0$/m);
    // Fig. 4, Table 8 for as many sources, and the scorer's own comparison.
    expect(stdout).toMatch(/^only-y_ws +target-sft +y_wt +49\.6 ± 0\.4 +-6\.3$/m);
    expect(stdout).toMatch(/^dpo +target-sft +y_ws +50\.7 ± 0\.4 +-5\.2$/m);
    expect(stdout).toMatch(/^wrpo +3 +2\.0 +100\.00$/m);
    expect(stdout).toMatch(/^rank-2 +2 +1\.5 *$/m);
    expect(stdout).toMatch(/^wrpo +armorm +0\.500 ± 0\.010 +75\.0 ± 2\.0 +40 +9$/m);
    expect(stdout).toMatch(/^wrpo +dpo +3 +1 +0 +75\.0$/m);
    put('whole/evaluation/again/results.json', { ...alpaca, model: 'wrpo' });
    expect(await fail(['tables', path('whole')], 1)).toMatch(
      /whole: holds two evaluations by alpaca_eval of "wrpo", one of them in .*evaluation/,
    );
  });

  it('of Fig. 1: log-probs per token, of a fusion or of any run', async () => {
    const lengths = { source_chosen: 2, target_chosen: 1, rejected: 4 };
    const lines = [
      { source_chosen: -2, target_chosen: -3, rejected: -16, lengths },
      { source_chosen: -6, target_chosen: -1, rejected: -8, lengths },
    ];
    const [found] = summariseLogProbs(lines.map((one) => ({ ...one, model: 'm' })));
    expect(found).toMatchObject({
      means: { source_chosen: { mean: -2, stderr: 1 }, target_chosen: { mean: -2, stderr: 1 } },
      difference: { mean: 1, stderr: 2 },
      wasserstein: 1,
    });
    const text = (model?: string) => lines.map((one) => `${JSON.stringify({ ...one, model })}\n`).join('');
    put('single/config.yaml', { loss_type: 'dpo' });
    put('single/alpaca/results.json', alpaca);
    writeFileSync(path('single/logps.jsonl'), text());
    put('fused/selected/selection.yaml', { selection: {} });
    mkdirSync(path('fused/evaluation'));
    writeFileSync(path('fused/evaluation/logps.jsonl'), text('target'));
    const { stdout } = await succeed(['tables', path('single'), path('fused')]);
    expect(stdout).toMatch(/^single +2 +-2\.000 ± 1\.000 .* 1\.000 ± 2\.000 +1\.000 +55\.9 ± 0\.4$/m);
    expect(stdout).toMatch(/^target +2 +-2\.000 ± 1\.000/m);
    writeFileSync(path('single/logps.jsonl'), '{"source_chosen": -1}\n');
    expect(await fail(['tables', path('single')], 1)).toMatch(
      /logps\.jsonl line 1: expected the numbers source_chosen/,
    );
  });

  it('compare models by their length-controlled win rates over each other, and over saved weights', async () => {
    const features = ['np.tanh(std_delta_len)', 'instruction_difficulty', 'not_gamed_baseline.astype(float)'];
    const save = (file: string, models: Record<string, number[]>) => {
      const lines = Object.entries(models).map(([model, weights]) => [model, ...weights].join(','));
      writeFileSync(path(file), `,${features.join(',')}\n${lines.join('\n')}\n`);
    };
    const fitted = (name: string, weights: number[], difficulty: number[]) => {
      put(`${name}/results.json`, { ...alpaca, model: name });
      save(`${name}/weights.csv`, { other: [9, 9, 9], [name]: weights });
      const rows = difficulty.map((value, i) => `${i},${value}\n`).join('');
      writeFileSync(path(name, 'instruction_difficulty.csv'), `,instruction_difficulty\n${rows}`);
    };
    fitted('lc-a', [-1, 0.5, 1], [0, 2]);
    fitted('lc-b', [-1, 0.5, 0], [0, 2]);
    save('public.csv', { GPT: [-1, 0.5, 1 - Math.log(3)] });
    const args = ['tables', path('lc-a'), path('lc-b'), '--weights', path('public.csv'), '--json'];
    const all = JSON.parse((await succeed(args)).stdout) as { title: string; rows: unknown[][] }[];
    const { rows } = all.find(({ title }) => title === 'AlpacaEval, model against model')!;
    const share = (logit: number) => expect.closeTo(100 / (1 + Math.exp(-logit)), 10);
    const cell = (logit: number) => ({ value: share(logit), digits: 1, stderr: expect.closeTo(0, 10) });
    expect(rows).toEqual([
      ['lc-a', 'lc-b', cell(1)],
      ['lc-a', 'GPT', cell(Math.log(3))],
      ['lc-b', 'GPT', cell(Math.log(3) - 1)],
    ]);
    fitted('lc-b', [-1, 0.5, 0], [0, 2.5]);
    expect(await fail(['tables', path('lc-a'), path('lc-b')], 1)).toMatch(
      /lc-a and lc-b were fitted to other difficulties/,
    );
  });

  it('refuse what is no run', async () => {
    expect(await fail(['tables', path('nowhere')], 1)).toMatch(/nowhere: no such directory/);
    mkdirSync(path('empty'));
    expect(await fail(['tables', path('empty')], 1)).toMatch(/empty: holds no config.yaml of a run/);
    put('wrpo2/a/results.json', alpaca);
    put('wrpo2/b/results.json', alpaca);
    expect(await fail(['tables', path('wrpo2')], 1)).toMatch(/wrpo2: holds two evaluations by alpaca_eval/);
  });
});
