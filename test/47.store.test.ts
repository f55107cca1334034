/** What is kept: nothing sampled is lost or doubled, whatever happens to the process, the disk or the run file. */

import { spawn } from 'node:child_process';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { parquetWriteFile } from 'hyparquet-writer';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { importSamples } from '../lib/fuse/imports.ts';
import { promptIdOf } from '../lib/fuse/prompts.ts';
import { sampleModel } from '../lib/fuse/sample.ts';
import { Shard } from '../lib/fuse/shard.ts';
import { type SampleRow, type ScoreRow, Store } from '../lib/fuse/store.ts';
import { FakeServer } from './fake-server.ts';
import { contentsOf, instantSampler, promptsOf, sampledStore, user } from './fusion.ts';
import {
  expectFailure,
  fail,
  failure,
  filesBelow,
  leftovers,
  MAIN,
  randomOf,
  readJson,
  readJsonLines,
  scratchDirectory,
  sentence,
  sleep,
  start,
  succeed,
  writeRows,
  writeRunFile,
  wrpo,
} from './training.ts';

const path = scratchDirectory('store');
let stores = 0;
const fresh = () => path(`store-${++stores}`);
const RUN = { n: 3, seed: 42 };

describe('a shard', () => {
  const row = (id: string, text: string): SampleRow => {
    return {
      prompt_id: id,
      samples: [{ text, finish_reason: 'stop' }],
      usage: { prompt_tokens: 1, completion_tokens: 1 },
    };
  };
  const ids = ['b', 'a', 'c', 'quote " and \\'];
  const order = { ids, indexOf: new Map(ids.map((id, i) => [id, i])) };
  const open = (file: string) => new Shard<SampleRow>(file, { model: 'm' }, order);
  const file = () => path(`shard-${++stores}.jsonl`);

  it('is in the order of the prompts when it is finished, the last row of a prompt counting', () => {
    const at = file();
    const shard = open(at);
    for (const [id, text] of [
      ['c', '1'],
      ['a', '2'],
      ['quote " and \\', '3'],
      ['a', '4\u2028'],
      ['b', '5'],
    ]) {
      shard.append(row(id!, text!));
    }
    expect(existsSync(at)).toBe(false);
    shard.finish({ rows: 4 });
    shard.close();
    const rows = readJsonLines<SampleRow>(at).map(({ prompt_id, samples }) => [prompt_id, samples[0]!.text]);
    expect(rows).toEqual([
      ['b', '5'],
      ['a', '4\u2028'],
      ['c', '1'],
      ['quote " and \\', '3'],
    ]);
    expect(filesBelow(path()).filter((name) => name.startsWith(`shard-${stores}`))).toEqual([
      `shard-${stores}.json`,
      `shard-${stores}.jsonl`,
    ]);
  });

  it('goes on when it was finished', () => {
    const at = file();
    for (const [id, text] of [
      ['a', '1'],
      ['b', '2'],
      ['a', '3'],
    ]) {
      const shard = open(at);
      shard.append(row(id!, text!));
      shard.finish({});
      shard.close();
    }
    expect(readJsonLines<SampleRow>(at).map(({ samples }) => samples[0]!.text)).toEqual(['2', '3']);
  });

  it.each([
    ['a line without its end', (text: string) => text.slice(0, -9)],
    ['a line end too few', (text: string) => text.slice(0, -1)],
    ['a piece of the next line', (text: string) => `${text}{"prompt_id":"c","sam`],
    ['zeros', (text: string) => `${text}\0\0\0\0\0\0\0`],
  ])('cuts off what a killed process left: %s', (_, tear) => {
    const at = file();
    const shard = open(at);
    shard.append(row('b', '1'));
    shard.append(row('a', '2'));
    shard.close();
    writeFileSync(`${at}.part`, tear(readFileSync(`${at}.part`, 'utf8')));
    const again = open(at);
    expect(again.has(0)).toBe(true);
    if (!again.has(1)) again.append(row('a', '2'));
    again.append(row('c', '3'));
    again.finish({});
    again.close();
    expect(readJsonLines<SampleRow>(at).map(({ samples }) => samples[0]!.text)).toEqual(['1', '2', '3']);
  });

  it('does not go on where a line in the middle is damaged', async () => {
    const at = file();
    const shard = open(at);
    for (const id of ['a', 'b', 'c']) shard.append(row(id, 'x'));
    shard.close();
    const lines = readFileSync(`${at}.part`, 'utf8').split('\n');
    writeFileSync(`${at}.part`, [lines[0], lines[1]!.slice(4), lines[2], ''].join('\n'));
    await expectFailure(() => open(at), 'ERR_CHECKPOINT', /\.part line 2 is damaged/);
  });

  it('is written by one process at a time', async () => {
    const at = file();
    const shard = open(at);
    const { message } = await failure(() => open(at));
    expect(message).toMatch(new RegExp(`is being written by process ${process.pid}; `));
    shard.close();
    open(at).close();
    writeFileSync(`${at}.lock`, '999999 1'); // of a process that is no more
    open(at).close();
    expect(existsSync(`${at}.lock`)).toBe(false);
  });

  it('is on disk when its batch is full, before it is finished', () => {
    const many = Array.from({ length: 100 }, (_, i) => `p${i}`);
    const at = file();
    const shard = new Shard<SampleRow>(at, {}, { ids: many, indexOf: new Map(many.map((id, i) => [id, i])) });
    for (const id of many) shard.append(row(id, 'x'));
    expect(readJsonLines(`${at}.part`).length).toBeGreaterThanOrEqual(96);
    shard.close();
    expect(readJsonLines(`${at}.part`)).toHaveLength(100);
  });
});

describe('what a store depends on', () => {
  it.each([
    ['n', { n: 4, seed: 42 }, {}, /made with another n: 3 then, 4 now/],
    ['the seed', { n: 3, seed: 43 }, {}, /made with another seed: 42 then, 43 now/],
    ['a setting of the model', RUN, { temperature: 0.7 }, /made with another temperature: null then, 0\.7 now/],
    ['the model', RUN, { model: 'other' }, /made with another model: "gemma" then, "other" now/],
  ])('%s: a change is said, and nothing is touched', async (_, run, depends, message) => {
    const store = await sampledStore(fresh(), ['gemma']);
    const before = contentsOf(store.directory);
    const sampler = { ...instantSampler('gemma'), depends: { model: 'gemma', ...depends } };
    await expectFailure(() => sampleModel(store, sampler, run), 'ERR_CHECKPOINT', message);
    expect(contentsOf(store.directory)).toEqual(before);
  });

  it.each([
    ['one more', (prompts: ReturnType<typeof promptsOf>) => [...prompts, ...promptsOf(21).slice(-1)], 21],
    ['one less', (prompts: ReturnType<typeof promptsOf>) => prompts.slice(1), 1],
    [
      'another order',
      (prompts: ReturnType<typeof promptsOf>) => [
        ...prompts.slice(0, 4),
        prompts[5]!,
        prompts[4]!,
        ...prompts.slice(6),
      ],
      5,
    ],
  ])('the prompts: %s', async (_, change, number) => {
    const store = await sampledStore(fresh(), ['gemma']);
    const before = contentsOf(store.directory);
    const again = () => Store.create(store.directory, change(promptsOf(20)));
    await expectFailure(
      again,
      'ERR_CHECKPOINT',
      new RegExp(`prompts\\.jsonl holds .* differ from prompt ${number} on`),
    );
    expect(contentsOf(store.directory)).toEqual(before);
    await Store.create(store.directory, promptsOf(20));
  });
});

describe('imports', () => {
  const questions = ['one?', 'two?', 'three?'];
  const store = () =>
    Store.create(
      fresh(),
      questions.map((text) => ({ promptId: promptIdOf(user(text)), messages: user(text) })),
    );
  const samples = (store: Store) =>
    readJsonLines<SampleRow>(store.samplesPath('m')).map(({ samples }) => samples.map(({ text }) => text));
  const scores = (store: Store, scorer = 'imported') =>
    readJsonLines<ScoreRow>(store.scoresPath(scorer, 'm')).map(({ scores }) => scores);
  const turns = (...texts: string[]) =>
    texts.map((content, i) => ({ role: i % 2 === 0 ? 'user' : 'assistant', content }));

  it('the SimPO scripts’ all_outputs_rm.json, in its own order of prompts', async () => {
    const rows = [...questions].sort().map((prompt, i) => ({
      prompt,
      all_generated_responses: [`${prompt} a`, `${prompt} b`],
      all_rm_scores: [i, i + 0.5],
    }));
    writeFileSync(path('all_outputs_rm.json'), JSON.stringify(rows, null, 4));
    const to = await store();
    await importSamples(to, { name: 'm', source: path('all_outputs_rm.json'), scorer: 'armorm' });
    expect(samples(to)).toEqual(questions.map((prompt) => [`${prompt} a`, `${prompt} b`]));
    expect(scores(to, 'armorm')).toEqual([
      [0, 0.5],
      [2, 2.5],
      [1, 1.5],
    ]);
  });

  it('all_outputs.json, which has no scores', async () => {
    writeFileSync(
      path('all_outputs.json'),
      JSON.stringify(questions.map((prompt) => ({ prompt, all_generated_responses: ['x'] }))),
    );
    const to = await store();
    await importSamples(to, { name: 'm', source: path('all_outputs.json') });
    expect(samples(to)).toEqual([['x'], ['x'], ['x']]);
    expect(existsSync(to.scoresPath('imported', 'm'))).toBe(false);
  });

  it('llama3-ultrafeedback-armorm and ultrafeedback_binarized as Parquet', async () => {
    const column = (name: string, data: unknown[]) => ({ name, data });
    const ids = questions.map((text) => promptIdOf(user(text)));
    parquetWriteFile({
      filename: path('armorm.parquet'),
      columnData: [
        column('prompt_id', ids),
        column('prompt', questions),
        column(
          'all_generated_responses',
          questions.map((q) => [`${q} 1`, `${q} 2`]),
        ),
        column('all_rm_scores', [
          [0.1, 0.2],
          [0.3, 0.4],
          [0.5, 0.6],
        ]),
        column(
          'chosen',
          questions.map((q) => turns(q, `${q} 2`)),
        ),
        column(
          'rejected',
          questions.map((q) => turns(q, `${q} 1`)),
        ),
      ],
    });
    const a = await store();
    await importSamples(a, { name: 'm', source: path('armorm.parquet') });
    expect(samples(a)).toEqual(questions.map((q) => [`${q} 1`, `${q} 2`]));
    expect(scores(a)).toEqual([
      [0.1, 0.2],
      [0.3, 0.4],
      [0.5, 0.6],
    ]);
    const rows = questions.map((q, i) => ({
      ...{ prompt: q, prompt_id: ids[i], chosen: turns(q, 'good'), rejected: turns(q, 'bad') },
      ...{ messages: turns(q, 'good'), score_chosen: 8.5, score_rejected: 3 },
    }));
    const b = await store();
    await importSamples(b, { name: 'm', source: writeRows(path('binarized.jsonl'), rows) });
    expect(samples(b)).toEqual(questions.map(() => ['good', 'bad']));
    expect(scores(b)).toEqual(questions.map(() => [8.5, 3]));
  });

  it('any other, by a map of its columns', async () => {
    const rows = questions.map((content) => ({
      prompt: { role: 'user', content },
      answers: { gemma: [{ text: 'g', reward: 1 }] },
      chosen: [
        { role: 'assistant', content: 'ws' },
        { role: 'assistant', content: 'wt' },
      ],
      rejected: [{ role: 'assistant', content: 'l' }],
    }));
    const source = writeRows(path('mapped.jsonl'), rows);
    const a = await store();
    const columns = { responses: 'answers.gemma.0.text', scores: 'answers.gemma.0.reward' };
    await importSamples(a, { name: 'm', source, columns });
    expect([samples(a)[0], scores(a)[0]]).toEqual([['g'], [1]]);
    const b = await store();
    await importSamples(b, { name: 'm', source, columns: { responses: ['chosen.1', 'rejected'] } });
    expect(samples(b)[0]).toEqual(['wt', 'l']);
  });

  it('prompts without an answer are recorded; others’ and second answers are left out aloud', async () => {
    const rows = ['one?', 'four?', 'one?', 'three?'].map((prompt, i) => ({ prompt, response: `${i}` }));
    const to = await store();
    const said: string[] = [];
    const source = writeRows(path('some.jsonl'), rows);
    const totals = await importSamples(to, { name: 'm', source, say: (line) => said.push(line) });
    expect(samples(to)).toEqual([['0'], [], ['3']]);
    expect(totals).toMatchObject({ prompts: 3, failed: 1 });
    expect(said).toEqual([expect.stringContaining('1 rows of'), expect.stringContaining('1 rows of')]);
    writeRows(path('some.jsonl'), rows.slice(1));
    await expectFailure(() => importSamples(to, { name: 'm', source }), 'ERR_CHECKPOINT', /made with another import/);
  });

  it.each([
    [
      'no known column',
      [{ prompt: 'one?', outputs: ['x'] }],
      /line 1: no column is known to hold responses; .*there is "prompt", "outputs"/,
    ],
    ['too few scores', [{ prompt: 'one?', responses: ['x', 'y'], scores: [1] }], /line 1: 1 scores of 2 responses/],
    ['a score that is none', [{ prompt: 'one?', responses: ['x'], scores: ['good'] }], /line 1: a score is "good"/],
    ['no answer', [{ prompt: 'one?', responses: [] }], /line 1: "responses" must hold responses/],
    ['an answer by the user', [{ prompt: 'one?', response: turns('one?') }], /must end in an assistant message/],
  ])('%s: one sentence', async (_, rows, message) => {
    const to = await store();
    const source = writeRows(path('odd.jsonl'), rows);
    await expectFailure(() => importSamples(to, { name: 'm', source }), 'ERR_DATA', message);
  });
});

it('a key is in no file and no word of sample, score and select, though the server repeats it', async () => {
  const key = 'sk-MARKED-9876543210';
  let asked = 0;
  const quotes = () => (++asked % 4 === 0 ? { status: 400, body: { error: { message: `bad ${key}` } } } : undefined);
  const server = await FakeServer.start({ refuse: quotes });
  const model = (name: string) => ({ name, base_url: server.url, model: name, api_key_env: 'MARKED_KEY' });
  const out = fresh();
  const file = writeRunFile(`${out}.yaml`, {
    ...{
      output_dir: out,
      prompts: writeRows(path('keyed.jsonl'), [{ prompt: 'a?' }, { prompt: 'b?' }, { prompt: 'c?' }]),
    },
    ...{ n: 2, sources: [model('one')], targets: [model('own')], scorers: [{ ...model('reward'), kind: 'http' }] },
  });
  for (const stage of ['sample', 'score', 'select']) {
    const { stdout, stderr } = await wrpo([stage, '--config', file], { env: { ...process.env, MARKED_KEY: key } });
    expect(stdout + stderr).not.toContain(key);
  }
  await server.close();
  expect(server.seen.every(({ authorization }) => authorization === `Bearer ${key}`)).toBe(true);
  const texts = filesBelow(out)
    .filter((name) => /\.\w+$/.test(name))
    .map((name) => readFileSync(`${out}/${name}`, 'utf8'));
  expect(texts.join('')).toContain('bad ***');
  expect(texts.join('')).not.toContain(key);
});

describe('processes that are killed', () => {
  let server: FakeServer;
  let held = false;
  let runFile: (outputDir: string) => string;
  const STAGES = ['sample', 'score', 'select'] as const;
  /** That a stage goes on for, about, once it has begun to write. */
  const MILLISECONDS = { sample: 700, score: 700, select: 40 };

  beforeAll(async () => {
    server = await FakeServer.start({ latency: 8, held: () => held });
    writeRows(
      path('questions.jsonl'),
      promptsOf(120).map(({ messages }) => ({ prompt: messages[0]!.content })),
    );
    const model = (name: string) => ({ name, base_url: server.url, model: name, concurrency: 4, retry_delay: 0.01 });
    runFile = (output_dir) =>
      writeRunFile(`${output_dir}.yaml`, {
        ...{ output_dir, prompts: path('questions.jsonl'), n: 2, held_out: 0.1 },
        ...{ sources: [model('one'), model('two')], targets: [model('own')] },
        scorers: [{ ...model('reward'), kind: 'http' }],
      });
  });
  afterAll(() => server.close());

  it('at any moment: what is there in the end is what an uninterrupted run gives', async () => {
    const whole = fresh();
    const file = runFile(whole);
    for (const stage of STAGES) await succeed([stage, '--config', file]);
    const expected = contentsOf(whole);
    expect(Object.keys(expected)).toContain('selected/train.jsonl');
    const random = randomOf(Number(process.env.WRPO_KILL_SEED ?? 7));
    const rounds = process.env.TORTURE ? 14 : 1;
    const killed = { sample: 0, score: 0, select: 0 };
    for (let round = 0; round < rounds; round++) {
      const cut = fresh();
      const rows = () =>
        filesBelow(cut)
          .filter((name) => /part$|tmp$/.test(name))
          .map((name) => statSync(`${cut}/${name}`, { throwIfNoEntry: false })?.size);
      const asked = server.seen.length;
      let started = 0;
      for (const stage of STAGES) {
        for (let kills = 0; ; kills++) {
          const before = `${rows()}`;
          const child = start([stage, '--config', runFile(cut)]);
          started++;
          // From the moment on at which it has written a row, or begun with its files.
          if (kills < 3 && (await child.until(() => `${rows()}` !== before))) {
            await sleep(random() * MILLISECONDS[stage]);
            child.process.kill('SIGKILL');
          }
          const { status, signal, stderr } = await child.done;
          if (signal === null) {
            expect(status, stderr).toBe(0);
            break;
          }
          killed[stage]++;
        }
      }
      expect(Object.keys(contentsOf(cut))).toEqual(Object.keys(expected));
      expect(contentsOf(cut)).toEqual(expected);
      expect(leftovers(cut)).toEqual([]);
      // Samples and scores of what could be lost by a kill were asked for again, and no others.
      const needed = 120 * 2 * 2 * 2 + 82 * 2 * 2;
      expect(server.seen.length - asked).toBeLessThanOrEqual(needed + (started - 3) * 3 * (32 + 4) * 2);
    }
    if (rounds > 1) console.log(`all kills survived: ${JSON.stringify(killed)}`);
    // Selecting takes so little time that it is over before most kills.
    const least = rounds > 1 ? { sample: 30, score: 30, select: 1 } : { sample: 1, score: 1, select: 1 };
    for (const stage of STAGES) expect(killed[stage], stage).toBeGreaterThanOrEqual(least[stage]);
  }, 1_800_000);

  it('leave nothing that the next run does not clear away', async () => {
    const cut = fresh();
    const file = runFile(cut);
    for (const stage of STAGES) await succeed([stage, '--config', file]);
    const before = contentsOf(cut);
    const left = [
      ...['prompts.jsonl.lock', 'samples/one.jsonl.lock', 'samples/one.jsonl.tmp', 'samples/one.json.tmp'],
      ...['scores/reward/own.jsonl.lock', 'scores/reward/own.json.tmp'],
      ...['selected/selection.yaml.tmp', 'selected/train.parquet.tmp', 'selected/sft.jsonl.tmp'],
    ];
    for (const name of left) writeFileSync(`${cut}/${name}`, '999999 1');
    for (const stage of STAGES) await succeed([stage, '--config', file]);
    expect(contentsOf(cut)).toEqual(before);
  });

  it('after a full disk: what was sampled stays, and the rest follows', async () => {
    const whole = fresh();
    const only = ['--only', 'one'];
    await succeed(['sample', '--config', runFile(whole), ...only]);
    const cut = fresh();
    const file = runFile(cut);
    // A file may have 16 blocks of 1024 bytes: the same to the writer as a disk that is full.
    const limited = spawn('bash', [
      '-c',
      `ulimit -f 16; exec "${process.execPath}" "${MAIN}" sample --config "${file}" --only one`,
    ]);
    let stderr = '';
    limited.stderr.on('data', (text) => {
      stderr += text;
    });
    const status = await new Promise<number | null>((resolve) => limited.on('close', resolve));
    const words = sentence({ status, signal: null, stdout: '', stderr }, 1);
    expect(words).toMatch(/^wrpo: cannot write .*one\.jsonl: .*file too large/);
    const part = `${cut}/samples/one.jsonl.part`;
    const kept = readJsonLines(part).length; // whole lines, all of them
    expect(kept).toBeGreaterThan(20);
    const asked = server.seen.length;
    await succeed(['sample', '--config', file, ...only]);
    expect(server.seen.length - asked).toBe((120 - kept) * 2);
    expect(readFileSync(`${cut}/samples/one.jsonl`)).toEqual(readFileSync(`${whole}/samples/one.jsonl`));
  });

  it('by Ctrl-C: one word, and the rest follows', async () => {
    const cut = fresh();
    const file = runFile(cut);
    const child = start(['sample', '--config', file, '--only', 'one']);
    const part = `${cut}/samples/one.jsonl.part`;
    await child.until(() => existsSync(part) && readFileSync(part).length > 0);
    const { status, stderr } = await child.kill('SIGINT');
    expect([status, stderr.trim().split('\n').at(-1)]).toEqual([1, 'wrpo: stopped']);
    await succeed(['sample', '--config', file, '--only', 'one']);
    expect(readJson(`${cut}/samples/one.json`).totals).toMatchObject({ prompts: 120, samples: 240, failed: 0 });
  });

  it('two at a time are one too many', async () => {
    const cut = fresh();
    const file = runFile(cut);
    held = true; // so that the first is still there when the second comes
    const child = start(['sample', '--config', file, '--only', 'one']);
    await child.until(() => existsSync(`${cut}/samples/one.jsonl.lock`));
    const words = await fail(['sample', '--config', file, '--only', 'one'], 1).finally(() => {
      held = false;
    });
    expect(words).toMatch(/one\.jsonl is being written by process \d+/);
    expect((await child.done).status).toBe(0);
  });
});
