/** Arena-Hard and MT-Bench against the public tools' own numbers and rules. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import * as arena from '../lib/evaluate/arena-hard.ts';
import type { Choice } from '../lib/evaluate/judge.ts';
import * as mt from '../lib/evaluate/mt-bench.ts';
import { expectFailure, FIXTURES, readJson } from './training.ts';

const vectors = (name: string) => readJson(join(FIXTURES, 'evaluate', `${name}.json`));

describe('Arena-Hard', () => {
  const vector = vectors('arena_hard');
  const gamesOf = (model: string): arena.Games[] =>
    vector.judgments
      .filter((row: { model: string }) => row.model === model)
      .map((row: { game1: string; game2: string }) => [row.game1, row.game2]);

  it.each(['toy-A', 'toy-B'])('%s has the rate and the rating of the public tool', (model) => {
    const { wins, ties, n, win_rate, elo } = vector.closed_form[model];
    const found = arena.rate(gamesOf(model));
    expect(found).toMatchObject({ wins, ties, total: n, nulls: 0, score: vector.win_rate_percent[model].score });
    expect(found.elo).toBeCloseTo(elo, 8);
    expect(found.score).toBeCloseTo(win_rate, 2);
    // Other draws: as far apart as two of the public tool's own would be.
    expect(Math.abs(found.lower - vector.win_rate_percent[model].lower)).toBeLessThan(2.5);
    expect(Math.abs(found.upper - vector.win_rate_percent[model].upper)).toBeLessThan(2.5);
    const battles = arena.battlesOf(gamesOf(model), 'v2');
    expect(battles).toHaveLength(vector.v2_mean_score[model].n);
    expect((100 * battles.reduce((a, b) => a + b)) / battles.length).toBeCloseTo(
      vector.v2_mean_score[model].percent,
      10,
    );
  });

  it('reads verdicts by the rules of either version', () => {
    for (const [text, label, again] of vector.regex_cases) expect(arena.verdictOf(text)).toEqual({ label, again });
    expect(arena.verdictOf('first [[a>b]], at last [b>>a]', 'v2').label).toBe('A>B');
    expect(arena.verdictOf('only [b>>a]', 'v2').label).toBe('B>>A');
  });

  it('counts a clear verdict three times, and a null game alone or with its question', () => {
    const { null_case, double_weight_case: clear } = vector;
    expect(arena.battlesOf([null_case.games])).toEqual([1]);
    expect(arena.battlesOf([null_case.games], 'v2')).toEqual([]);
    expect(arena.battlesOf([clear.games])).toEqual(Array(clear.n).fill(1));
    expect(arena.rate([null_case.games]).nulls).toBe(1);
    expect(arena.battlesOf([['A<B', 'nonsense']])).toEqual([]);
  });

  it('asks once to finish, with all that was said before', () => {
    const reader = arena.arenaReader('v0.1');
    const answers = { baseline: 'old', model: 'new {answer_1}' };
    const question = arena.questionOf({ id: 'q', category: 'c', prompt: 'why?' }, answers, 1, {
      system: 'judge',
      template: '{question_1} A: {answer_1} B: {answer_2}',
    });
    expect(question.messages[1]!.content).toBe('why? A: old B: new {answer_1}');
    const says = (content: string): Choice => ({ message: { content } });
    const first = reader.read([says('hm')], question) as { again: { role: string; content: string }[] };
    expect(first.again.slice(0, 3)).toEqual([...question.messages, { role: 'assistant', content: 'hm' }]);
    expect(first.again[3]!.role).toBe('user');
    expect(reader.read([says('hm'), says('[[A>B]]')], question)).toEqual({ verdict: 'A>B' });
    expect(reader.read([says('hm'), says('hm')], question)).toEqual({ verdict: null });
    expect(reader.read([says('[[A>B]] or [[B>A]]')], question)).toEqual({ verdict: null });
  });

  it('reads both layouts', async () => {
    expect(arena.readQuestion({ question_id: 'a', category: 'x', turns: [{ content: 'why?' }] }, 'line 1')).toEqual(
      arena.readQuestion({ uid: 'a', category: 'x', prompt: 'why?' }, 'line 1'),
    );
    const counts = { token_len: 7, header_count: { h1: 1, h2: 2 }, list_count: { ordered: 4 }, bold_count: {} };
    const old = { question_id: 'a', model_id: 'm', choices: [{ turns: [{ content: 'so' }] }], conv_metadata: counts };
    const now = { uid: 'a', model: 'm', messages: [{}, { content: { answer: 'so' } }], metadata: counts };
    expect(arena.readAnswer(old, '')).toEqual({ id: 'a', model: 'm', text: 'so', style: [7, 3, 4, 0] });
    expect(arena.readAnswer(now, '')).toEqual(arena.readAnswer(old, ''));
    await expectFailure(
      () => arena.readAnswer({ uid: 'a' }, 'a.jsonl line 3'),
      'ERR_DATA',
      /^a.jsonl line 3: expected an/,
    );
  });

  it('a configuration of the judge that is damaged, or lacks its texts, is one sentence', async () => {
    const read = (text: string) => () => arena.readPrompt(text, 'judge.yaml');
    await expectFailure(read('a: [1,\nb: }'), 'ERR_DATA', /^judge\.yaml: cannot be read: [^\n]+ at line 2, column 1$/);
    await expectFailure(read('system_prompt: be fair'), 'ERR_DATA', /expected the texts system_prompt and/);
    expect(arena.readPrompt('{system_prompt: !own a, prompt_template: [b, c]}', '')).toEqual({
      system: 'a',
      template: 'b',
    });
  });

  it('control of style is the regression of the public tool', () => {
    const { questions, win_rate } = vectors('arena_style');
    const games = questions.map((one: arena.StyledGames) => one.games);
    expect(arena.battlesOf(games)).toHaveLength(win_rate.battles);
    expect(arena.styleControlled(questions)).toBeCloseTo(win_rate.exact, 10);
    // Which the tool's own solver stops before.
    expect(arena.styleControlled(questions)).toBeCloseTo(win_rate.default, 1);
  });

  it('control of style takes away what length alone explains', () => {
    const games = gamesOf('toy-A');
    const same = [100, 1, 1, 1] as const;
    const plain = arena.styleControlled(games.map((one) => ({ games: one, baseline: same, model: same })));
    expect(Math.abs(plain - arena.rate(games).score)).toBeLessThan(0.5);
    const styled = games.map((one) => {
      const won = arena.battlesOf([one]).reduce((a, b) => a + b, 0) / arena.battlesOf([one]).length;
      return { games: one, baseline: same, model: [100 + 200 * won, 1, 1, 1] as const };
    });
    expect(arena.styleControlled(styled)).not.toBeCloseTo(plain, 1);
  });
});

describe('MT-Bench', () => {
  const vector = vectors('mt_bench');
  const question: mt.MtQuestion = { id: 81, category: 'math', turns: ['1+1?', 'and 2 more?'] };
  const answer = (text: string): mt.MtAnswer => ({ id: 81, model: 'm', turns: [`${text}1`, `${text}2`] });
  const prompts: mt.JudgePrompts = new Map(
    ['single-v1', 'single-math-v1', 'single-math-v1-multi-turn', 'pair-v2-multi-turn'].map((name) => [
      name,
      {
        name,
        system_prompt: name,
        prompt_template: name.startsWith('pair')
          ? '{question_2} {answer_a_1} {answer_b_1} {answer_a_2} {answer_b_2}'
          : name.endsWith('turn')
            ? '{question_1} {answer_1} {question_2} {answer_2} {ref_answer_1} {ref_answer_2}'
            : '{question} {answer} {ref_answer_1}',
      },
    ]),
  );

  it('reads ratings and takes their means', () => {
    for (const { text, score } of vector.rating_extraction) expect(mt.ratingOf(text)).toBe(score);
    const { first_turn, second_turn, average } = vector;
    expect(mt.summarise(vector.judgments)).toEqual({ first_turn, second_turn, average, by_category: {}, dropped: 1 });
    expect(mt.TEMPERATURES).toEqual(vector.temperature);
  });

  it('compares in both orders', () => {
    expect(mt.comparePairs(vector.pairwise.rows)).toEqual(vector.pairwise.model_1);
    expect(['[[A]]', '[[B]]', '[[C]] ', 'A'].map(mt.winnerOf)).toEqual(['A', 'B', 'tie', 'error']);
  });

  it('asks with the prompt, the turns and the reference of the category', async () => {
    const both = { answer: answer('a'), reference: answer('r') };
    const [first, second] = ([1, 2] as const).map((turn) => mt.taskOf(question, turn, prompts, both));
    expect(first!.messages).toEqual([
      { role: 'system', content: 'single-math-v1' },
      { role: 'user', content: '1+1? a1 r1' },
    ]);
    expect(second!.messages[1]!.content).toBe('1+1? a1 and 2 more? a2 r1 r2');
    const writing = { ...question, category: 'writing' };
    const pair = mt.taskOf(writing, 2, prompts, { answer: answer('a'), other: answer('b') });
    expect(pair.messages[1]!.content).toBe('and 2 more? a1 b1 a2 b2');
    await expectFailure(
      () => mt.taskOf(question, 1, prompts, { answer: answer('a') }),
      'ERR_DATA',
      /none for question 81/,
    );
    await expectFailure(() => mt.taskOf(writing, 2, prompts, both), 'ERR_DATA', /no prompt "single-v1-multi-turn"/);
  });
});
