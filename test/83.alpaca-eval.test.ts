/** AlpacaEval 2 against the public tool's own numbers, and Python's random numbers against CPython's. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type Annotation,
  annotationOf,
  FEATURES,
  type GlmVariant,
  isExtremeChange,
  isSwitched,
  lengthControlled,
  type Output,
  pairOutputs,
  pairwiseRate,
  parsePreference,
  parsePrompt,
  questionOf,
  readGlmData,
  summarise,
} from '../lib/evaluate/alpaca-eval.ts';
import { readCsv, writeCsv } from '../lib/evaluate/csv.ts';
import { PythonRandom } from '../lib/evaluate/python-random.ts';
import { STRENGTHS, winRate } from '../lib/evaluate/statistics.ts';
import { expectFailure, FIXTURES, readJson, scratchDirectory } from './training.ts';

const path = scratchDirectory('alpaca');
const annotation = readJson(join(FIXTURES, 'evaluate', 'alpacaeval_annotation.json'));
const lc = readJson(join(FIXTURES, 'evaluate', 'alpacaeval_lc.json'));

describe("Python's random numbers", () => {
  it('are those of CPython 3.11', () => {
    const random = new PythonRandom(1234);
    expect([random.random(), random.random(), random.random()]).toEqual([
      0.9664535356921388, 0.4407325991753527, 0.007491470058587191,
    ]);
    const thousand = Array.from({ length: 1000 }, (_, i) => i);
    expect(random.sample(thousand, 25).slice(0, 8)).toEqual([932, 965, 961, 826, 596, 35, 687, 709]);
    expect(random.sample(thousand.slice(0, 30), 5)).toEqual([5, 22, 3, 27, 0]);
    expect(new PythonRandom(0).random()).toBe(0.8444218515250481);
    expect(new PythonRandom(2 ** 40 + 5).random()).toBe(0.5043802970418443);
    for (const { seed_string, random01 } of annotation.position_switch) {
      expect(new PythonRandom(seed_string).random()).toBe(random01);
    }
  });
});

describe('annotations', () => {
  it("read the judge's log-probs and undo the swap", () => {
    expect(annotation.position_switch.map((one: { instruction: string }) => isSwitched(one.instruction))).toEqual(
      annotation.position_switch.map((one: { switched: boolean }) => one.switched),
    );
    for (const one of annotation.logprob_parse) {
      const top = one.top_logprobs.map(([token, logprob]: [string, number]) => ({ token, logprob }));
      const verdict = parsePreference(top);
      if (one.parsed_prompt_order === null) expect(verdict).toBeNull();
      else expect(verdict).toBeCloseTo(one.parsed_prompt_order, 12);
      for (const [instruction, wanted] of [
        ['What is 2+2?', one.preference_if_not_switched],
        ['Write a haiku about autumn.', one.preference_if_switched],
      ]) {
        const row = { verdict, completions: [{}] } as never;
        const { preference } = annotationOf({ ...pair('a', 'b'), instruction }, row, 'judge');
        if (wanted === null) expect(preference).toBeNull();
        else expect(preference).toBeCloseTo(wanted, 12);
      }
    }
  });

  it('put the answers where the draw says, once each, whatever they contain', () => {
    const prompt = parsePrompt(
      '<|im_start|>system\nPick.<|im_end|>\n<|im_start|>user\n{instruction} m: {output_1} M: {output_2}<|im_end|>\n',
      'prompt.txt',
    );
    const ask = (instruction: string) => questionOf({ ...pair('{output_2}', 'new'), instruction }, prompt).messages;
    expect(ask('What is 2+2?')).toEqual([
      { role: 'system', content: 'Pick.' },
      { role: 'user', content: 'What is 2+2? m: {output_2} M: new' },
    ]);
    expect(ask('Write a haiku about autumn.')[1]!.content).toBe('Write a haiku about autumn. m: new M: {output_2}');
  });

  it('come to the win rates of the public tool', () => {
    const { preferences, ...wanted } = annotation.win_rate;
    const found = winRate(preferences);
    for (const [key, value] of Object.entries(wanted))
      expect(found[key as keyof typeof found]).toBeCloseTo(value as number, 12);
    const raw = winRate(lc.preference);
    for (const [key, value] of Object.entries(lc.raw))
      expect(raw[key as keyof typeof raw]).toBeCloseTo(value as number, 10);
    expect(winRate([...preferences, null])).toEqual(found);
    expect(winRate([0, 1.5, 1.6]).discrete_win_rate).toBeCloseTo((100 * 2) / 3, 12);
    const rows = [
      { ...pair('x', 'añ😀'), preference: 2 },
      { ...pair('x', 'four'), preference: 1 },
    ] as Annotation[];
    expect(summarise(rows).avg_length).toBe(3);
  });
});

describe('length control', () => {
  const data = readGlmData(gamedTable(), undefined, lc.n);
  const rows = lc.preference.map((preference: number, index: number) => ({
    ...{ preference, index, lengths: [lc.baseline_len[index], lc.model_len[index]] as const },
  }));

  it.each(Object.keys(lc.lc))('%s has the C, the weights and the rate of the public tool', (variant) => {
    const wanted = lc.lc[variant];
    const found = lengthControlled(rows, data, variant as GlmVariant);
    expect(found.fit.c).toBeCloseTo(wanted.chosen_C, 9);
    for (const [i, c] of wanted.Cs.entries()) expect(STRENGTHS[i]! / c).toBeCloseTo(1, 12);
    for (const [i, score] of wanted.cv_scores_mean.entries()) expect(found.fit.scores[i]).toBeCloseTo(score, 4);
    for (const [j, weight] of wanted.exact_coef_at_C.entries()) expect(found.fit.weights[j]).toBeCloseTo(weight, 5);
    expect(Math.abs(found.length_controlled_winrate - wanted.length_controlled_winrate_exact)).toBeLessThan(1e-4);
    expect(Math.abs(found.length_controlled_winrate - wanted.length_controlled_winrate_reference)).toBeLessThan(0.01);
    expect(Math.abs(found.lc_standard_error - wanted.lc_standard_error_reference)).toBeLessThan(1e-3);
  });

  it('follows from saved weights too, against any other model', () => {
    const { difficulty, weights, lc_win_rate } = annotation.lc_from_weights;
    expect(pairwiseRate(difficulty, weights)).toBeCloseTo(lc_win_rate, 10);
    expect(pairwiseRate(difficulty, weights, weights)).toBe(50);
    const other = { ...weights, [FEATURES[2]]: 0.5 };
    expect(pairwiseRate(difficulty, weights, other) + pairwiseRate(difficulty, other, weights)).toBeCloseTo(100, 10);
  });

  it('counts rows that were not judged as the public tool does: not fitted, but predicted', () => {
    const some = rows.map((row: { index: number }) => (row.index % 7 === 0 ? { ...row, preference: null } : row));
    expect(lengthControlled(some, data).preferences).toHaveLength(lc.n);
  });

  it('refuses fewer rows than it has folds', async () => {
    const few = () => lengthControlled(rows.slice(0, 4), data);
    await expectFailure(few, 'ERR_DATA', /length control needs 5 judged rows, found 4/);
  });

  it('warns of changes that only a failed fit explains', () => {
    expect([isExtremeChange(20, 11), isExtremeChange(20, 9), isExtremeChange(50, 61), isExtremeChange(50, 63)]).toEqual(
      [...[false, true, false, true]],
    );
  });

  it('refuses a difficulty file that is reordered or shortened', async () => {
    const table = lc.instruction_difficulty.map((value: number, i: number) => ({
      '': i,
      instruction_difficulty: value,
    }));
    const read = (rows: object[]) => {
      writeCsv(path('difficulty.csv'), Object.keys(rows[0]!), rows as Record<string, unknown>[]);
      return () => readGlmData(gamedTable(), readCsv(path('difficulty.csv')), lc.n);
    };
    expect(read(table)().difficulty).toEqual(lc.instruction_difficulty);
    await expectFailure(read(table.slice(0, 100)), 'ERR_DATA', /expected one difficulty for each of 120 .* found 100/);
    await expectFailure(read([table[1], table[0], ...table.slice(2)]), 'ERR_DATA', /row 1: expected index 0, found 1/);
    const bare = table.map((row: { instruction_difficulty: number }) => ({
      instruction_difficulty: row.instruction_difficulty,
    }));
    await expectFailure(read([bare[1], bare[0], ...bare.slice(2)]), 'ERR_DATA', /one of them is reordered/);
  });
});

describe('outputs', () => {
  const rows = (generator: string, texts: string[]): Output[] =>
    texts.map((instruction) => ({ instruction, output: `${generator} ${instruction}`, generator }));

  it('are put into the order of the baseline', () => {
    const pairs = pairOutputs(rows('base', ['a', 'b']), rows('mine', ['b', 'a']), 'mine.json');
    expect(pairs.map((one) => one.output_2)).toEqual(['mine a', 'mine b']);
  });

  it('must answer all instructions, by one generator of another name', async () => {
    const base = rows('base', ['a', 'b']);
    const pairs = (model: Output[]) => () => pairOutputs(base, model, 'mine.json');
    await expectFailure(pairs(rows('mine', ['a'])), 'ERR_DATA', /mine.json: no output for 1 of 2 .* "b"/);
    await expectFailure(
      pairs([...rows('mine', ['a']), ...rows('other', ['b'])]),
      'ERR_DATA',
      /one generator, found mine, other/,
    );
    await expectFailure(pairs(base), 'ERR_DATA', /the same generator name "base"/);
  });
});

it('tables keep quotes, commas and line ends', () => {
  const rows = [
    { '': 'a "b", c', x: '1\n2' },
    { '': '', x: '' },
  ];
  writeCsv(path('table.csv'), ['', 'x'], rows);
  expect(readCsv(path('table.csv'))).toEqual(rows);
  writeFileSync(path('table.csv'), 'a,b\r\n1,2\r\n');
  expect(readCsv(path('table.csv'))).toEqual([{ a: '1', b: '2' }]);
});

function pair(output_1: string, output_2: string) {
  return { instruction: 'i', dataset: 'd', output_1, generator_1: 'base', output_2, generator_2: 'mine' };
}

function gamedTable() {
  return lc.gamed.map((row: object) =>
    Object.fromEntries(Object.entries(row).map(([key, value]) => [key, String(value)])),
  );
}
