/** The paper's analyses against their vectors, and tables over what runs leave behind. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { compareSamples, increase, weightedMargin } from '../lib/evaluate/analyses.ts';
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

  it('say what every run has, with errors and intervals, as text and CSV', async () => {
    const { stdout } = await succeed(['tables', path('dpo'), path('wrpo'), path('fusion'), '--csv', path('csv')]);
    expect(stdout).toMatch(/^wrpo +55\.9 ± 0\.4 +51\.3 ± 1\.7 +2159 +79\.0 \(72\.6 to 83\.7\)/m);
    expect(readCsv(path('csv', 'objectives.csv'))).toEqual([
      { run: 'dpo', loss: 'sigmoid', beta: '0.01', alpha: '', mode: '', LC: '', 'hybrid accuracy': '' },
      {
        run: 'wrpo',
        loss: 'wrpo',
        beta: '0.01',
        alpha: '0.1',
        mode: 'dynamic',
        LC: '55.9 ± 0.4',
        'hybrid accuracy': '62.5',
      },
    ]);
    const [margins] = readCsv(path('csv', 'rewards-at-the-end-of-training.csv'));
    expect(margins).toMatchObject({
      'hybrid margin': '1.0000',
      'on-policy margin': '0.2000',
      'weighted margin': '0.6000',
    });
    expect(readCsv(path('csv', 'training-time.csv')).map((row) => row['% above DPO'])).toEqual(['0.00', '15.00']);
    expect(readCsv(path('csv', 'responses.csv'))).toContainEqual({
      fusion: 'fusion',
      what: 'share of gemma, %',
      value: '62.50',
    });
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
