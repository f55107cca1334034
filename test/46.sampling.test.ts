/** Asking models: what goes over the wire, what a bad server changes (nothing), what ends a source. */
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { WrpoError } from '../lib/errors.ts';
import { type EndpointOptions, endpointSampler, foldSystem } from '../lib/fuse/endpoint.ts';
import { type Prompt, promptIdOf, readPrompts } from '../lib/fuse/prompts.ts';
import { type SampleOptions, sampleModel } from '../lib/fuse/sample.ts';
import { seedOf } from '../lib/fuse/seeds.ts';
import { type SampleRow, Store } from '../lib/fuse/store.ts';
import { type FakeOptions, FakeServer, type Seen, TROUBLES, textOf } from './fake-server.ts';
import {
  expectFailure,
  failure,
  filesBelow,
  readJson,
  readJsonLines,
  scratchDirectory,
  writeRows,
} from './training.ts';

// Counted here: a server hears only later of a request that was given up.
const requests = vi.hoisted(() => ({ running: 0, peak: 0 }));
vi.mock('../lib/data/http.ts', async (original) => {
  const { patientFetch } = await original<typeof import('../lib/data/http.ts')>();
  return {
    async patientFetch(seconds: number): Promise<typeof fetch> {
      const ask = await patientFetch(seconds);
      return (...args) => {
        requests.peak = Math.max(requests.peak, ++requests.running);
        return ask(...args).finally(() => requests.running--);
      };
    },
  };
});

const path = scratchDirectory('sampling');
const servers: FakeServer[] = [];
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()));
});

async function serve(options: FakeOptions = {}): Promise<FakeServer> {
  const server = await FakeServer.start(options);
  servers.push(server);
  return server;
}

const user = (content: string) => [{ role: 'user', content }];
const promptsOf = (count: number): Prompt[] =>
  Array.from({ length: count }, (_, i) => {
    const messages = user(`question ${i}`);
    return { promptId: promptIdOf(messages), messages };
  });

let stores = 0;
const newStore = (prompts: Prompt[] = promptsOf(8)) => Store.create(path(`store-${++stores}`), prompts);

const endpoint = (baseUrl: string, options: Partial<EndpointOptions> = {}) =>
  endpointSampler({
    ...{ name: 'gemma', baseUrl, model: 'gemma-2', concurrency: 4, timeout: 2, maxRetries: 8, retryDelay: 0.005 },
    ...{ temperature: 0.8, topP: 0.95, maxTokens: 64 },
    ...options,
  });
const RUN: SampleOptions = { n: 3, seed: 42 };
const rowsOf = (store: Store, model = 'gemma') => readJsonLines<SampleRow>(store.samplesPath(model));
/** What a deterministic server answers to seeds of this run. */
const expected = (messages: object[], id: string, n: number, model = 'gemma') =>
  Array.from({ length: n }, (_, i) => {
    const seed = seedOf(42, id, model, i);
    return { text: textOf('gemma-2', messages, seed), finish_reason: 'stop', seed };
  });

describe('seeds and ids', () => {
  it('a seed depends on run, prompt, model and index, and on nothing else', () => {
    const seeds = [seedOf(42, 'a', 'm', 0), seedOf(43, 'a', 'm', 0), seedOf(42, 'b', 'm', 0)];
    seeds.push(seedOf(42, 'a', 'k', 0), seedOf(42, 'a', 'm', 1));
    expect(new Set(seeds).size).toBe(5);
    expect(seedOf(42, 'a', 'm', 0)).toBe(seeds[0]);
    for (const seed of seeds) expect(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 31).toBe(true);
  });

  it('the id of a prompt is the SHA-256 of its text', () => {
    const { prompt_id } = readJson(new URL('fixtures/data_construction.json', import.meta.url).pathname);
    expect(promptIdOf(user(prompt_id.text))).toBe(prompt_id.sha256);
  });
});

describe('requests', () => {
  it('ask for one sample each, with its own seed and the settings of the run', async () => {
    const server = await serve();
    const store = await newStore();
    const totals = await sampleModel(store, endpoint(server.url, { extraBody: { top_k: 7, max_tokens: null } }), RUN);
    const { body, path: route } = server.seen[0]!;
    expect(route).toBe('/v1/chat/completions');
    expect(body).toMatchObject({ model: 'gemma-2', temperature: 0.8, top_p: 0.95, n: 1, top_k: 7 });
    expect(body).not.toHaveProperty('max_tokens');
    const rows = rowsOf(store);
    expect(rows.map((row) => row.prompt_id)).toEqual(store.order.ids);
    for (const [i, row] of rows.entries()) {
      expect(row.samples).toEqual(expected(user(`question ${i}`), row.prompt_id, 3));
      expect(row.usage.prompt_tokens).toBe(6);
    }
    expect(totals).toMatchObject({ prompts: 8, samples: 24, failed: 0, promptTokens: 48 });
    expect(server.seen.length).toBe(24);
  });

  it('may ask for several at a time, and again for what a server leaves out', async () => {
    const server = await serve({ choices: 2 });
    const store = await newStore(promptsOf(2));
    await sampleModel(store, endpoint(server.url, { samplesPerRequest: 5 }), { n: 5, seed: 42 });
    expect(server.seen.map(({ body }) => body.n).sort()).toEqual([1, 1, 3, 3, 5, 5]);
    for (const { samples } of rowsOf(store)) expect(samples).toHaveLength(5);
  });

  it('are as many at a time as was asked for, and no more', async () => {
    for (const concurrency of [1, 3, 12]) {
      // Nobody is answered before so many have come, and then not at once: another would come meanwhile.
      const server = await serve({ held: ({ peak }) => peak < concurrency, latency: 25 });
      await sampleModel(await newStore(), endpoint(server.url, { concurrency, timeout: 60 }), RUN);
      expect(server.peak).toBe(concurrency);
    }
  });

  it('carry the key, which is written nowhere', async () => {
    const key = 'sk-very-secret-0123456789';
    process.env.WRPO_TEST_KEY = key;
    try {
      const server = await serve({
        refuse: ({ body }) =>
          body.messages[0]!.content.endsWith('3')
            ? { status: 400, body: { error: { message: `you sent ${key}` } } }
            : undefined,
      });
      const store = await newStore();
      await sampleModel(store, endpoint(server.url, { apiKeyEnv: 'WRPO_TEST_KEY' }), RUN);
      for (const { authorization } of server.seen) expect(authorization).toBe(`Bearer ${key}`);
      expect(rowsOf(store)[3]!.failure).toBe('the server answers 400: you sent ***');
      const files = filesBelow(store.directory).filter((name) => /\.json/.test(name));
      expect(files).toContain('samples/gemma.json');
      for (const file of files) expect(readFileSync(`${store.directory}/${file}`, 'utf8')).not.toContain(key);
    } finally {
      delete process.env.WRPO_TEST_KEY;
    }
  });
});

describe('system turns', () => {
  const system = { role: 'system', content: 'Be brief.' };
  const prompts = (): Prompt[] => [1, 2, 3].map((i) => ({ promptId: `p${i}`, messages: [system, ...user(`q${i}`)] }));

  it('are put before the first user turn where the model takes none', async () => {
    const refuse = ({ body }: Seen) =>
      body.messages[0]!.role === 'system' ? { status: 400, body: { message: 'System role not supported' } } : undefined;
    const server = await serve({ refuse });
    const store = await newStore(prompts());
    const said: string[] = [];
    await sampleModel(store, endpoint(server.url, { concurrency: 1, say: (line) => said.push(line) }), RUN);
    expect(said).toEqual(['gemma: the model takes no system turns; they go into the first user turn']);
    // Those of the first prompt, which are under way together.
    expect(server.seen.filter(({ body }) => body.messages[0]!.role === 'system')).toHaveLength(3);
    expect(server.seen.at(-1)!.body.messages).toEqual(user('Be brief.\n\nq3'));
    expect(rowsOf(store).every(({ failure }) => failure === undefined)).toBe(true);
  });

  it('stay where they are otherwise, and other refusals are no reason to move them', async () => {
    const refuse = () => ({ status: 400, body: { message: 'maximum context length exceeded' } });
    const server = await serve({ refuse });
    const store = await newStore(prompts());
    await sampleModel(store, endpoint(server.url), RUN);
    for (const { body } of server.seen) expect(body.messages[0]).toEqual(system);
    expect(rowsOf(store)[0]!.failure).toContain('maximum context length exceeded');
  });

  it('foldSystem', () => {
    expect(foldSystem(user('q'))).toEqual(user('q'));
    expect(foldSystem([system, ...user('q'), { role: 'assistant', content: 'a' }, ...user('r')])).toEqual([
      ...user('Be brief.\n\nq'),
      { role: 'assistant', content: 'a' },
      ...user('r'),
    ]);
  });
});

describe('a server that misbehaves', () => {
  it.each([1, 2, 3])('changes nothing in what is sampled (seed %i)', async (seed) => {
    const calm = await serve();
    const wild = await serve({ chaos: { share: 0.4, seed }, latency: 5 });
    const [a, b] = [await newStore(promptsOf(40)), await newStore(promptsOf(40))];
    const options = { concurrency: 10, timeout: 0.1, maxRetries: 40 };
    await sampleModel(a, endpoint(calm.url, options), RUN);
    requests.peak = 0;
    await sampleModel(b, endpoint(wild.url, options), RUN);
    expect(wild.seen.length).toBeGreaterThan(150);
    expect(wild.answered).toBeGreaterThanOrEqual(120);
    expect(requests.peak).toBe(10);
    expect(readFileSync(b.samplesPath('gemma'))).toEqual(readFileSync(a.samplesPath('gemma')));
  });

  it.each(TROUBLES)('is asked again after: %s', async (trouble) => {
    const server = await serve({ chaos: { share: 0.5, seed: 5, troubles: [trouble] } });
    const store = await newStore(promptsOf(6));
    await sampleModel(store, endpoint(server.url, { timeout: 0.1, maxRetries: 30 }), RUN);
    expect(server.seen.length).toBeGreaterThan(18);
    expect(rowsOf(store).flatMap(({ samples }) => samples)).toHaveLength(18);
  });

  it('is left alone for as long as it asks', async () => {
    const times: number[] = [];
    const server = await serve({
      refuse: () => {
        times.push(performance.now());
        return times.length === 1 ? { status: 429, body: 'later', headers: { 'retry-after': '1' } } : undefined;
      },
    });
    await sampleModel(await newStore(promptsOf(1)), endpoint(server.url), { n: 1, seed: 1 });
    expect(times[1]! - times[0]!).toBeGreaterThanOrEqual(1000);
  });

  it('a prompt that keeps failing is a row that says so, and is asked again on request alone', async () => {
    let broken = true;
    const server = await serve({
      refuse: ({ body }) =>
        broken && body.messages[0]!.content === 'question 5' ? { status: 500, body: 'no' } : undefined,
    });
    const store = await newStore();
    const sampler = endpoint(server.url, { maxRetries: 2 });
    const totals = await sampleModel(store, sampler, RUN);
    expect(totals).toMatchObject({ prompts: 8, samples: 21, failed: 1 });
    expect(rowsOf(store)[5]).toMatchObject({ failure: 'the server answers 500: no (tried 3 times)', samples: [] });
    broken = false;
    const asked = server.seen.length;
    expect((await sampleModel(store, sampler, RUN)).failed).toBe(1);
    expect(server.seen.length).toBe(asked);
    expect(await sampleModel(store, sampler, { ...RUN, retryFailed: true })).toMatchObject({ samples: 24, failed: 0 });
    expect(server.seen.length).toBe(asked + 3);
    expect(rowsOf(store)[5]!.samples).toEqual(expected(user('question 5'), store.order.ids[5]!, 3));
  });

  it('keeps the samples of a prompt whose others fail', async () => {
    const store = await newStore(promptsOf(2));
    const bad = seedOf(42, store.order.ids[1]!, 'gemma', 1);
    const refuse = ({ body }: Seen) => (body.seed === bad ? { status: 422, body: { detail: 'odd' } } : undefined);
    const server = await serve({ refuse });
    await sampleModel(store, endpoint(server.url), RUN);
    const all = expected(user('question 1'), store.order.ids[1]!, 3);
    expect(rowsOf(store)[1]).toMatchObject({ failure: 'the server answers 422: odd', samples: [all[0], all[2]] });
  });
});

describe('what ends a source, in one sentence', () => {
  const ends = async (options: FakeOptions, message: RegExp, more: Partial<EndpointOptions> = {}) => {
    const server = await serve(options);
    const store = await newStore(promptsOf(30));
    const error = await failure(() => sampleModel(store, endpoint(server.url, more), RUN));
    expect(error.code).toBe('ERR_ENDPOINT');
    expect(error.message).toMatch(message);
    expect(error.message).not.toMatch(/\n|undefined/);
    return { server, store };
  };

  it('nobody listens', async () => {
    const closed = createServer();
    await new Promise<void>((resolve) => closed.listen(0, resolve));
    const { port } = closed.address() as AddressInfo;
    await new Promise((resolve) => closed.close(resolve));
    const began = performance.now();
    const run = async () =>
      sampleModel(await newStore(), endpoint(`http://127.0.0.1:${port}/v1`, { retryDelay: 5 }), RUN);
    await expectFailure(
      run,
      'ERR_ENDPOINT',
      /^gemma: http:\/\/127\.0\.0\.1:\d+\/v1\/chat\/completions cannot be reached: .*ECONNREFUSED/,
    );
    expect(performance.now() - began).toBeLessThan(3000);
  });

  it('no such host', async () => {
    const run = async () => sampleModel(await newStore(), endpoint('http://nowhere.invalid/v1'), RUN);
    await expectFailure(run, 'ERR_ENDPOINT', /^gemma: .*nowhere\.invalid.* cannot be reached/);
  });

  it('no such model', () =>
    ends(
      { models: ['llama'] },
      /^gemma: .* answers 404 \(The model gemma-2 does not exist\.\); expected the model "gemma-2"/,
    ));

  it.each([401, 403])('a refused key (%i)', async (status) => {
    process.env.WRPO_TEST_KEY = 'sk-wrong';
    const refuse = () => ({ status, body: { error: { message: 'Incorrect API key provided: sk-wrong' } } });
    await ends({ refuse }, new RegExp(`^gemma: .* refuses access \\(${status}\\) with the key in WRPO_TEST_KEY$`), {
      apiKeyEnv: 'WRPO_TEST_KEY',
    });
    delete process.env.WRPO_TEST_KEY;
  });

  it('no credit left', () =>
    ends(
      {
        refuse: () => ({
          status: 429,
          body: { error: { message: 'You exceeded your quota', code: 'insufficient_quota' } },
        }),
      },
      /^gemma: .* answers 429: You exceeded your quota$/,
    ));

  it('a wait of hours', () =>
    ends({ refuse: () => ({ status: 429, body: 'x', headers: { 'retry-after': '86400' } }) }, /asks to wait 86400 s/));

  it('nothing but refusals, which are not recorded as if they were of the prompts', async () => {
    const refuse = () => ({ status: 400, body: { message: 'top_p is unsupported' } });
    const { store } = await ends({ refuse }, /^gemma: the first 20 prompts have no answer; .*top_p is unsupported/);
    expect(filesBelow(store.directory).filter((name) => /gemma\.jsonl/.test(name))).toEqual([]);
  });

  it('a server that goes away: what was sampled stays, and is not asked for again', async () => {
    const server = await serve({ latency: 2 });
    const store = await newStore(promptsOf(60));
    const sampler = endpoint(server.url, { maxRetries: 2, concurrency: 2 });
    let count = 0;
    const run = sampleModel(store, sampler, { ...RUN, onPrompt: () => ++count === 40 && server.close() });
    await expectFailure(() => run, 'ERR_ENDPOINT', /^gemma: .* can no longer be reached \(tried 3 times\)/);
    servers.splice(0);
    const back = await serve();
    const totals = await sampleModel(store, endpoint(back.url), RUN);
    expect(totals).toMatchObject({ prompts: 60, samples: 180, failed: 0 });
    expect(back.seen.length).toBeLessThanOrEqual(3 * 21);
  });

  it('a key that is not set, or is none', () => {
    const make = (key?: string) => () => {
      if (key !== undefined) process.env.WRPO_TEST_KEY = key;
      endpoint('http://localhost/v1', { apiKeyEnv: 'WRPO_TEST_KEY' });
    };
    expect(make()).toThrow('gemma: api_key_env names WRPO_TEST_KEY, which is not set');
    expect(make('a\u00e9b')).toThrow('gemma: WRPO_TEST_KEY holds characters that no HTTP header can');
    delete process.env.WRPO_TEST_KEY;
  });

  it('Ctrl-C', async () => {
    const server = await serve({ latency: 5 });
    const controller = new AbortController();
    const store = await newStore(promptsOf(50));
    let count = 0;
    const onPrompt = () => ++count === 5 && controller.abort();
    const run = sampleModel(store, endpoint(server.url), { ...RUN, signal: controller.signal, onPrompt });
    const error = await run.catch((error) => error as WrpoError);
    expect((error as Error).name).toBe('AbortError');
    const kept = readJsonLines(`${store.samplesPath('gemma')}.part`).length;
    expect(kept).toBeGreaterThanOrEqual(5);
    expect(kept).toBeLessThan(50);
  });
});

describe('prompts', () => {
  const read = async (rows: object[], say?: (line: string) => void) => {
    const file = writeRows(path('prompts.jsonl'), rows);
    const all: Prompt[] = [];
    for await (const prompt of readPrompts(file, { say })) all.push(prompt);
    return all;
  };

  it('are texts, messages or conversations, under their own id or a hash', async () => {
    const conversation = [...user('a'), { role: 'assistant', content: 'b' }, ...user('c')];
    const all = await read([
      { prompt: 'a' },
      { prompt: { role: 'user', content: 'b' }, prompt_id: 'x' },
      { prompt: conversation },
    ]);
    expect(all.map(({ messages }) => messages)).toEqual([user('a'), user('b'), conversation]);
    expect(all.map(({ promptId }) => promptId)).toEqual([promptIdOf(user('a')), 'x', promptIdOf(conversation)]);
  });

  it('that stand twice are sampled once, and that is said', async () => {
    const said: string[] = [];
    const all = await read([{ prompt: 'a' }, { prompt: 'b' }, { prompt: 'a' }, { prompt: 'b' }], (line) =>
      said.push(line),
    );
    expect(all).toHaveLength(2);
    expect(said).toEqual([expect.stringMatching(/2 prompts stand there before .*line 3 repeats prompts.jsonl line 1/)]);
  });

  it.each([
    ['an empty one', [{ prompt: 'a' }, { prompt: '' }], /^prompts\.jsonl line 2: "prompt" is empty$/],
    ['a blank one', [{ prompt: ' \n' }], /line 1: "prompt" is empty/],
    ['none', [{ question: 'a' }], /line 1: missing key "prompt"/],
    ['token ids', [{ prompt: [1, 2] }], /line 1: "prompt" is token ids/],
    [
      'an answer at the end',
      [{ prompt: [...user('a'), { role: 'assistant', content: 'b' }] }],
      /must end in a user turn/,
    ],
    [
      'one id for two',
      [
        { prompt: 'a', prompt_id: 'x' },
        { prompt: 'b', prompt_id: 'x' },
      ],
      /line 2: "prompt_id" is that of prompts.jsonl line 1/,
    ],
    ['no rows', [], /holds no prompts/],
  ])('%s: one sentence', async (_, rows, message) => {
    await expectFailure(() => read(rows), 'ERR_DATA', message);
  });
});
