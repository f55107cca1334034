/** Judging by a server that misbehaves, from the run file to the public tools' files; killed and begun again. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { Annotation } from '../lib/evaluate/alpaca-eval.ts';
import { readCsv, writeCsv } from '../lib/evaluate/csv.ts';
import type { JudgedRow } from '../lib/evaluate/judge.ts';
import { type FakeOptions, FakeServer, type Seen, scoreOf } from './fake-server.ts';
import {
  FIXTURES,
  fail,
  filesBelow,
  readJson,
  readJsonLines,
  scratchDirectory,
  start,
  succeed,
  wrpo,
} from './training.ts';

const path = scratchDirectory('judging');
const servers: FakeServer[] = [];
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()));
});

async function serve(options: FakeOptions): Promise<FakeServer> {
  const server = await FakeServer.start(options);
  servers.push(server);
  return server;
}

let runs = 0;
/** A run file with its own output directory. */
function runFile(server: FakeServer, values: Record<string, unknown>): { file: string; out: string } {
  const out = path(`run-${++runs}`);
  // Soon where some answers never come; else so late that a slow machine asks nothing twice.
  const timeout = server.options.chaos ? 1 : 60;
  const judge = { base_url: server.url, model: 'gpt-judge', concurrency: 8, retry_delay: 0.005, timeout };
  const own = (values.judge ?? {}) as object;
  const file = path(`run-${runs}.yaml`);
  writeFileSync(file, JSON.stringify({ output_dir: out, ...values, judge: { ...judge, ...own } })); // JSON is YAML
  return { file, out };
}

// ---- AlpacaEval

const COUNT = 60;
const instruction = (i: number) => `Question ${i}?`;
const outputs = (generator: string, length: (i: number) => number) =>
  Array.from({ length: COUNT }, (_, i) => ({
    ...{ dataset: 'made', instruction: instruction(i), generator },
    output: `${generator} ${'x'.repeat(length(i))}`,
  }));
writeFileSync(path('base.json'), JSON.stringify(outputs('base', (i) => (i * 7) % 40)));
const mine = outputs('mine', (i) => (i * 11) % 50);
// Equal answers are a draw that nobody is asked about.
mine[3]!.output = outputs('base', (i) => (i * 7) % 40)[3]!.output;
writeFileSync(path('mine.json'), JSON.stringify([...mine].reverse()));
writeFileSync(
  path('prompt.txt'),
  '<|im_start|>system\nPick one.<|im_end|>\n<|im_start|>user\n{instruction}\nm: {output_1}\nM: {output_2}\n<|im_end|>\n',
);
const ALPACA = {
  benchmark: 'alpaca_eval',
  outputs: path('mine.json'),
  reference_outputs: path('base.json'),
  prompt: path('prompt.txt'),
};
/** Likes answers by their text alone, wherever they stand; says neither m nor M of one, and is silent on another. */
const tastes = ({ body }: Seen): { m: number; M: number } | undefined => {
  const [, first, second] = /m: (.*)\nM: (.*)/.exec(body.messages[1]!.content)!;
  const share = scoreOf(first!) / (scoreOf(first!) + scoreOf(second!));
  return body.messages[1]!.content.includes(instruction(5))
    ? undefined
    : { m: Math.log(share), M: Math.log(1 - share) };
};
const logprobs = (seen: Seen) => {
  const found = tastes(seen);
  const top = found
    ? Object.entries(found).map(([token, logprob]) => ({ token, logprob }))
    : [{ token: 'The', logprob: -0.1 }];
  return { logprobs: { content: [{ token: 'm', top_logprobs: top }] } };
};
const refusesSeven: FakeOptions['refuse'] = ({ body }) =>
  body.messages[1]!.content.includes(instruction(7))
    ? { status: 400, body: { error: { message: 'content policy' } } }
    : undefined;
/** The preference that the model's answer deserves. */
const deserved = (i: number): number | null => {
  if (i === 3) return 1.5;
  if (i === 5 || i === 7) return null;
  const base = outputs('base', (k) => (k * 7) % 40)[i]!.output;
  const [a, b] = [scoreOf(base), scoreOf(mine[i]!.output)];
  return 1 + b / (a + b);
};
const expectAnnotations = (out: string) => {
  const rows = readJson(`${out}/annotations.json`) as Annotation[];
  expect(rows.map((row) => row.instruction)).toEqual(Array.from({ length: COUNT }, (_, i) => instruction(i)));
  for (const [i, { preference }] of rows.entries()) {
    const wanted = deserved(i);
    if (wanted === null) expect(preference).toBeNull();
    else expect(preference).toBeCloseTo(wanted, 10);
  }
  return rows;
};

describe('AlpacaEval', () => {
  it('is complete and correct whatever the server does, and stamps every row', async () => {
    const server = await serve({ more: logprobs, refuse: refusesSeven, chaos: { share: 0.4, seed: 3 } });
    // So many that none of them is refused all its attempts by chance.
    const { file, out } = runFile(server, { ...ALPACA, judge: { max_retries: 40 } });
    const { stdout } = await succeed(['evaluate', '--config', file, '--json']);
    const results = JSON.parse(stdout);
    expect(results).toMatchObject({
      benchmark: 'alpaca_eval',
      model: 'mine',
      n_total: COUNT - 2,
      n_null: 2,
      n_draws: 1,
    });
    const rows = expectAnnotations(out);
    expect(rows[0]).toMatchObject({
      generator_1: 'base',
      generator_2: 'mine',
      annotator: 'weighted_alpaca_eval_gpt4_turbo',
    });
    expect(rows[0]).toMatchObject({ judge: 'gpt-judge', prompt_sha256: expect.stringMatching(/^[0-9a-f]{64}$/) });
    expect(Date.parse(String(rows[0]!.date))).toBeGreaterThan(0);
    expect(rows[0]!.raw_completion).toHaveProperty('logprobs');
    expect(rows[7]!.failure).toMatch(/content policy/);
    const body = server.seen.find((one) => one.path.endsWith('completions'))!.body;
    expect(body).toMatchObject({ max_tokens: 1, temperature: 1, logprobs: true, top_logprobs: 5 });
    const [row] = readCsv(`${out}/leaderboard.csv`);
    expect(row).toMatchObject({ '': 'mine', n_total: String(COUNT - 2), length_controlled_winrate: '' });
    expect(results.variants).toHaveProperty('length_controlled_minimal');
    // Again: nothing is asked, nothing changes.
    const asked = server.seen.length;
    await succeed(['evaluate', '--config', file]);
    expect(server.seen.length).toBe(asked);
    expectAnnotations(out);
  });

  it('the keys of judge and sampler are in no file and no word, though the servers repeat them', async () => {
    const key = 'sk-MARKED-9876543210';
    const server = await serve({
      more: (seen) => (seen.body.model === 'mine' ? {} : { ...logprobs(seen), note: `for ${key}` }),
      text: () => `as ${key} asks`,
      refuse: ({ body }) =>
        body.model !== 'mine' && /Question [57]\?/.test(JSON.stringify(body.messages))
          ? { status: 400, body: { error: { message: `bad ${key}`, code: key } } }
          : undefined,
    });
    const { outputs: _, ...asked } = ALPACA;
    const sampler = { name: 'mine', base_url: server.url, model: 'mine', api_key_env: 'MARKED_KEY', max_tokens: 8 };
    const { file, out } = runFile(server, {
      ...{ ...asked, model: sampler, judge: { api_key_env: 'MARKED_KEY', max_retries: 0 } },
    });
    const { stdout, stderr } = await wrpo(['evaluate', '--config', file], {
      env: { ...process.env, MARKED_KEY: key },
    });
    expect(stdout + stderr).not.toContain(key);
    expect(server.seen.every(({ authorization }) => authorization === `Bearer ${key}`)).toBe(true);
    const texts = filesBelow(out)
      .filter((name) => /\.\w+$/.test(name))
      .map((name) => readFileSync(join(out, name), 'utf8'));
    // The judge's and the sampler's answers, and why some have none.
    for (const said of ['for ***', 'as *** asks', 'bad ***']) expect(texts.join('')).toContain(said);
    expect(texts.join('')).not.toContain(key);
  });

  it('killed at any moment goes on where it was, and asks no pair twice but those that were under way', async () => {
    let killed = false;
    const held = ({ answered }: FakeServer) => !killed && answered >= 40;
    const server = await serve({ more: logprobs, refuse: refusesSeven, held });
    const { file, out } = runFile(server, { ...ALPACA, judge: { concurrency: 2 } });
    const judged = () =>
      existsSync(`${out}/judgments.jsonl.part`) ? readJsonLines(`${out}/judgments.jsonl.part`).length : 0;
    const child = start(['evaluate', '--config', file]);
    expect(await child.until(() => judged() >= 32)).toBe(true);
    await child.kill();
    killed = true;
    await server.left();
    const before = judged();
    const asked = server.seen.length;
    await succeed(['evaluate', '--config', file]);
    expect(server.seen.length - asked).toBe(COUNT - 1 - before);
    expectAnnotations(out);
  });

  it('goes on from annotations that the public tool, or another run, has made', async () => {
    const server = await serve({ more: logprobs, refuse: refusesSeven });
    const first = runFile(server, ALPACA);
    await succeed(['evaluate', '--config', first.file, '--limit', '20']);
    expect(readJson(`${first.out}/annotations.json`)).toHaveLength(20);
    const asked = server.seen.length;
    expect(asked).toBe(19);
    const second = runFile(server, { ...ALPACA, annotations: `${first.out}/annotations.json` });
    await succeed(['evaluate', '--config', second.file]);
    expect(server.seen.length - asked).toBe(COUNT - 20);
    expectAnnotations(second.out);
  });

  it('spends no more than it may, tells before what it would, and needs prices for it', async () => {
    const server = await serve({ more: logprobs });
    const { file } = runFile(server, { ...ALPACA, judge: { prices: { input: 1e4, output: 0 } } });
    const plan = JSON.parse((await succeed(['evaluate', '--config', file, '--dry-run', '--json'])).stdout);
    expect(server.seen).toHaveLength(0);
    expect(plan).toMatchObject({ requests: COUNT - 1, completionTokens: COUNT - 1 });
    expect(plan.dollars).toBeCloseTo(plan.promptTokens * 0.01, 6);
    const said = await fail(['evaluate', '--config', file, '--max_cost', String(plan.dollars / 4)], 1);
    expect(said).toMatch(/max_cost: another question could go beyond/);
    const spent = server.seen.length;
    expect(spent).toBeGreaterThan(3);
    expect(spent).toBeLessThan(COUNT);
    await succeed(['evaluate', '--config', file, '--max_cost', '1000']);
    expect(server.seen.length).toBe(COUNT - 1);
    const free = runFile(server, ALPACA);
    expect(await fail(['evaluate', '--config', free.file, '--max_cost', '1'], 1)).toMatch(/max_cost needs prices/);
  });

  it('needs no judge for annotations that are there, and controls their lengths by the public files', async () => {
    const lc = readJson(join(FIXTURES, 'evaluate', 'alpacaeval_lc.json'));
    const annotations = lc.preference.map((preference: number, i: number) => ({
      ...{ instruction: instruction(i), dataset: 'made', annotator: 'gpt', preference, raw_completion: null },
      ...{ output_1: 'x'.repeat(lc.baseline_len[i]), generator_1: 'base' },
      ...{ output_2: 'y'.repeat(lc.model_len[i]), generator_2: 'mine' },
    }));
    writeFileSync(path('annotations.json'), JSON.stringify(annotations));
    writeCsv(path('df_gamed.csv'), Object.keys(lc.gamed[0]), lc.gamed);
    const out = path('controlled');
    const values = {
      benchmark: 'alpaca_eval',
      output_dir: out,
      annotations: path('annotations.json'),
      gamed: path('df_gamed.csv'),
    };
    writeFileSync(path('controlled.yaml'), JSON.stringify(values));
    const plan = await succeed(['evaluate', '--config', path('controlled.yaml'), '--dry-run', '--json']);
    expect(JSON.parse(plan.stdout)).toMatchObject({ model: 'mine', requests: 0 });
    const { stdout } = await succeed(['evaluate', '--config', path('controlled.yaml'), '--json']);
    const found = JSON.parse(stdout);
    const reference = lc.lc.length_controlled_v1;
    expect(Math.abs(found.length_controlled_winrate - reference.length_controlled_winrate_reference)).toBeLessThan(
      0.01,
    );
    expect(found.discrete_win_rate).toBeCloseTo(lc.raw.discrete_win_rate, 10);
    const [row] = readCsv(`${out}/leaderboard.csv`);
    expect(Number(row!.length_controlled_winrate)).toBe(found.length_controlled_winrate);
    const [weights] = readCsv(`${out}/weights.csv`);
    expect(Number(weights!.instruction_difficulty)).toBeCloseTo(reference.exact_coef_at_C[1], 5);
    writeCsv(path('short.csv'), Object.keys(lc.gamed[0]), lc.gamed.slice(0, 100));
    const said = await fail(['evaluate', '--config', path('controlled.yaml'), '--gamed', path('short.csv')], 1);
    expect(said).toMatch(/the gamed file: expected one difficulty for each of 120 instructions in order, found 100/);
  });

  it('says in a sentence what is wrong: no log-probs, other questions, nobody to answer', async () => {
    const mute = await serve({});
    const { file } = runFile(mute, { ...ALPACA, judge: { max_retries: 1 } });
    expect(await fail(['evaluate', '--config', file], 1)).toMatch(/judge: the judge "gpt-judge" gives no log-probs/);
    const server = await serve({ more: logprobs });
    const good = runFile(server, ALPACA);
    await succeed(['evaluate', '--config', good.file, '--limit', '2']);
    writeFileSync(path('other.txt'), '<|im_start|>user\n{instruction}{output_1}{output_2}<|im_end|>');
    const changed = ['evaluate', '--config', good.file, '--prompt', path('other.txt')];
    expect(await fail(changed, 1)).toMatch(/judgments.jsonl was made with another prompt/);
    writeFileSync(path('none.yaml'), 'benchmark: alpaca_eval\noutput_dir: x\nlimt: 3\n');
    expect(await fail(['evaluate', '--config', path('none.yaml')], 1)).toMatch(
      /none.yaml line 3: unknown key "limt"; did you mean "limit"/,
    );
    writeFileSync(path('odd.yaml'), 'benchmark: alpaca\noutput_dir: x\n');
    expect(await fail(['evaluate', '--config', path('odd.yaml')], 1)).toMatch(
      /odd.yaml line 1: "benchmark": expected alpaca_eval/,
    );
  });
});

// ---- Arena-Hard and MT-Bench

const lines = (file: string, rows: object[]) => {
  writeFileSync(path(file), rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  return path(file);
};

describe('Arena-Hard', () => {
  it('answers, plays two games a question, asks once to finish, and writes the public files', async () => {
    const server = await serve({
      chaos: { share: 0.3, seed: 5 },
      text: ({ body }) => {
        if (body.model === 'new') return 'the better answer';
        if (body.messages.length > 2) return '[[A=B]]';
        const { content } = body.messages[1]!;
        if (content.includes('why 2')) return 'hm';
        return content.indexOf('better') < content.indexOf('old') ? 'so [[A>>B]]' : 'so [[B>A]]';
      },
    });
    const ids = [0, 1, 2, 3];
    const { file, out } = runFile(server, {
      benchmark: 'arena_hard',
      questions: lines(
        'arena-questions.jsonl',
        ids.map((i) => ({ question_id: `q${i}`, turns: [{ content: `why ${i}` }] })),
      ),
      baseline_answers: lines(
        'arena-base.jsonl',
        ids.map((i) => ({ question_id: `q${i}`, model_id: 'base', choices: [{ turns: [{ content: 'old' }] }] })),
      ),
      judge_config: lines('arena.yaml', [
        { system_prompt: 'judge', prompt_template: ['{question_1} A: {answer_1} B: {answer_2}'] },
      ]),
      model: { name: 'mine', base_url: server.url, model: 'new', retry_delay: 0.005, timeout: 1 },
    });
    const results = JSON.parse((await succeed(['evaluate', '--config', file, '--json'])).stdout);
    // Three questions: a win and a clear win; one: two ties.
    expect(results).toMatchObject({
      model: 'mine',
      baseline: 'base',
      wins: 12,
      ties: 2,
      total: 14,
      nulls: 0,
      score: 92.86,
    });
    const rows = readJsonLines<{ games: { score: string; judgment: string }[] }>(
      `${out}/model_judgment/gpt-judge/mine.jsonl`,
    );
    expect(rows[0]!.games.map(({ score }) => score)).toEqual(['B>A', 'A>>B']);
    expect(rows[2]!.games[0]).toMatchObject({ score: 'A=B', judgment: 'hm\n[[A=B]]', judge_model: 'gpt-judge' });
    expect(readJsonLines(`${out}/model_answer/mine.jsonl`)[0]).toMatchObject({ question_id: 'q0', model_id: 'mine' });
    const kept = readJsonLines<JudgedRow<string>>(`${out}/judgments.jsonl`);
    expect(kept.map(({ completions }) => completions.length)).toEqual([1, 1, 1, 1, 2, 2, 1, 1]);
  });
});

describe('MT-Bench', () => {
  const questions = lines('mt-questions.jsonl', [
    { question_id: 81, category: 'writing', turns: ['write', 'rewrite'] },
    { question_id: 111, category: 'math', turns: ['1+1?', '2+2?'] },
  ]);
  const prompt = (name: string, prompt_template: string) => ({ name, system_prompt: 'rate', prompt_template });
  const prompts = lines('mt-prompts.jsonl', [
    prompt('single-v1', '1 {question} {answer}'),
    prompt('single-math-v1', '1 {question} {answer} {ref_answer_1}'),
    prompt('single-v1-multi-turn', '2 {question_2} {answer_2}'),
    prompt('single-math-v1-multi-turn', '2 {question_2} {answer_2} {ref_answer_2}'),
    prompt('pair-v2', '1 {answer_a} / {answer_b}'),
    prompt('pair-math-v1', '1 {answer_a} / {answer_b}'),
    prompt('pair-v2-multi-turn', '2 {answer_a_2} / {answer_b_2}'),
    prompt('pair-math-v1-multi-turn', '2 {answer_a_2} / {answer_b_2}'),
  ]);
  const answers = (file: string, model_id: string, text: string) =>
    lines(
      file,
      [81, 111].map((question_id) => ({ question_id, model_id, choices: [{ turns: [`${text} 1`, `${text} 2`] }] })),
    );
  const references = answers('mt-references.jsonl', 'gpt-judge', 'right');

  it('answers in two turns at the temperatures of the categories, and is rated', async () => {
    const server = await serve({
      text: ({ body }) => {
        if (body.model === 'new') return `answer to ${body.messages.at(-1)!.content}`;
        const { content } = body.messages[1]!;
        return content.startsWith('1') ? 'Rating: [[8]]' : content.includes('2+2') ? 'I cannot.' : '[[6.5]]';
      },
    });
    const model = { name: 'mine', base_url: server.url, model: 'new' };
    const { file, out } = runFile(server, {
      benchmark: 'mt_bench',
      questions,
      judge_prompts: prompts,
      references,
      model,
    });
    const results = JSON.parse((await succeed(['evaluate', '--config', file, '--json'])).stdout);
    expect(results).toMatchObject({ model: 'mine', first_turn: 8, second_turn: 6.5, average: 7.5, dropped: 1 });
    const asked = server.seen
      .filter(({ body }) => body.model === 'new')
      .map(({ body }) => [body.temperature, body.messages.length]);
    expect(asked.sort()).toEqual([
      [0, 1],
      [0, 3],
      [0.7, 1],
      [0.7, 3],
    ]);
    const rows = readJsonLines<{ score: number; turn: number; judge: string[] }>(
      `${out}/model_judgment/gpt-judge_single.jsonl`,
    );
    expect(rows.map(({ score }) => score)).toEqual([8, 6.5, 8, -1]);
    expect(rows[3]!.judge).toEqual(['gpt-judge', 'single-math-v1-multi-turn']);
  });

  it('compares two models in both orders', async () => {
    const server = await serve({
      text: ({ body }) => {
        const { content } = body.messages[1]!;
        if (content.startsWith('2')) return '[[A]]'; // whoever comes first
        return content.indexOf('good') < content.indexOf('bad') ? '[[A]]' : '[[B]]';
      },
    });
    const { file } = runFile(server, {
      ...{ benchmark: 'mt_bench', questions, judge_prompts: prompts, references },
      ...{ answers: answers('mt-a.jsonl', 'a', 'good'), against: answers('mt-b.jsonl', 'b', 'bad') },
    });
    const results = JSON.parse((await succeed(['evaluate', '--config', file, '--json'])).stdout);
    expect(results).toMatchObject({ model: 'a', against: 'b', win: 2, loss: 0, tie: 2, win_rate_adjusted: 0.75 });
    const same = runFile(server, {
      ...{ benchmark: 'mt_bench', questions, judge_prompts: prompts, references },
      ...{ answers: path('mt-a.jsonl'), against: path('mt-a.jsonl') },
    });
    expect(await fail(['evaluate', '--config', same.file], 1)).toMatch(/both models have the name "a"/);
  });
});

describe('a judge that fails in every way', () => {
  /** Statuses, and answers that are cut, closed, refused or without what is needed: each is drawn often enough to occur. */
  const chaos = { share: 0.3, seed: 21 };
  const ids = Array.from({ length: 8 }, (_, i) => i);
  const arenaAnswers = (file: string, model_id: string) =>
    lines(
      file,
      ids.map((i) => ({ question_id: `q${i}`, model_id, choices: [{ turns: [{ content: `${model_id} ${i}` }] }] })),
    );
  const mtAnswers = (file: string, model_id: string) =>
    lines(
      file,
      ids.map((i) => ({
        question_id: i,
        model_id,
        choices: [{ turns: [`${model_id} ${i} one`, `${model_id} ${i} two`] }],
      })),
    );
  const prompt = (name: string) => ({
    name,
    system_prompt: 'rate',
    prompt_template: '{question_1} {answer_1} {answer_2}',
  });

  const BENCHMARKS = {
    alpaca_eval: { values: () => ALPACA, questions: COUNT - 1 },
    arena_hard: {
      values: () => ({
        benchmark: 'arena_hard',
        questions: lines(
          'faults-questions.jsonl',
          ids.map((i) => ({ question_id: `q${i}`, turns: [{ content: `why ${i}?` }] })),
        ),
        baseline_answers: arenaAnswers('faults-base.jsonl', 'base'),
        answers: arenaAnswers('faults-mine.jsonl', 'mine'),
        judge_config: lines('faults.yaml', [
          { system_prompt: 'judge', prompt_template: ['{question_1} A: {answer_1} B: {answer_2}'] },
        ]),
      }),
      questions: 2 * ids.length,
    },
    mt_bench: {
      values: () => ({
        benchmark: 'mt_bench',
        questions: lines(
          'faults-mt.jsonl',
          ids.map((i) => ({ question_id: i, category: 'writing', turns: [`write ${i}`, 'again'] })),
        ),
        answers: mtAnswers('faults-mt-mine.jsonl', 'mine'),
        judge_prompts: lines('faults-prompts.jsonl', [prompt('single-v1'), prompt('single-v1-multi-turn')]),
      }),
      questions: 2 * ids.length,
    },
  };
  const more = (seen: Seen) => (seen.body.logprobs ? logprobs(seen) : {});
  /** By the text of the question alone; a refusal in words has no verdict. */
  const text = ({ body }: Seen) => {
    const { content } = body.messages[1]!;
    if (content.includes(' 4')) return 'I cannot judge this.';
    return content.includes('A:') ? `[[${['A>>B', 'B>A', 'A=B'][content.length % 3]}]]` : '[[7]]';
  };
  /** What a run came to, without its times. */
  const outcome = (out: string) =>
    readJsonLines<JudgedRow<unknown>>(`${out}/judgments.jsonl`)
      .map(({ prompt_id, verdict, failure }) => ({ prompt_id, verdict, failure }))
      .sort((a, b) => a.prompt_id.localeCompare(b.prompt_id));

  it.each(Object.entries(BENCHMARKS))(
    '%s: killed, ends with the judgments of a judge without faults, and none is made twice',
    async (_, { values, questions }) => {
      const good = await serve({ more, text });
      const whole = runFile(good, values());
      const expected = JSON.parse((await succeed(['evaluate', '--config', whole.file, '--json'])).stdout);
      const bad = await serve({ more, text, chaos, latency: 5 });
      const { file, out } = runFile(bad, { ...values(), judge: { concurrency: 3, max_retries: 40 } });
      const judged = () =>
        existsSync(`${out}/judgments.jsonl.part`) ? readJsonLines(`${out}/judgments.jsonl.part`).length : 0;
      const child = start(['evaluate', '--config', file]);
      expect(await child.until(() => judged() >= questions / 3)).toBe(true);
      await child.kill();
      const found = JSON.parse((await succeed(['evaluate', '--config', file, '--json'])).stdout);
      expect(found).toEqual(expected);
      expect(outcome(out)).toEqual(outcome(whole.out));
      expect(outcome(out)).toHaveLength(questions);
      expect(found.n_null ?? found.nulls ?? found.dropped).toBeGreaterThan(0);
      // What was under way when it was killed was not written, and is all that was answered again.
      expect(bad.answered - good.answered).toBeLessThanOrEqual(3);
    },
  );
});
