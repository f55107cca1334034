/** Replies of servers that may say anything: each is read for what it is, asked for again, or refused in one sentence. */
import { mkdirSync, rmSync } from 'node:fs';
import fc from 'fast-check';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { readPreference } from '../lib/evaluate/alpaca-eval.ts';
import { arenaReader } from '../lib/evaluate/arena-hard.ts';
import { judge, type Reader } from '../lib/evaluate/judge.ts';
import { readRating, readWinner } from '../lib/evaluate/mt-bench.ts';
import { endpointSampler } from '../lib/fuse/endpoint.ts';
import { httpScorer } from '../lib/fuse/http-scorer.ts';
import { near, RUNS, TIME, tried } from './hostile.ts';
import { scratchDirectory } from './training.ts';

const path = scratchDirectory('replies');
const KEY = 'sk-MARKED-KEY-0123456789';

interface Reply {
  status: number;
  headers: Record<string, string>;
  body: Buffer;
}
/** What the server says, in turn. */
let replies: Reply[];
let requests = 0;
vi.mock('../lib/data/http.ts', () => ({
  patientFetch: async () => async () => {
    const { body, ...head } = replies[requests++ % replies.length]!;
    return new Response(body, head);
  },
}));
beforeAll(() => vi.stubEnv('MARKED_KEY', KEY));

/** Of these a server that can be asked again is not given up. */
const PASSING = [400, 422, 429, 500, 503];
const replyNear = (value: unknown, statuses = [...PASSING, 302, 401, 404]): fc.Arbitrary<Reply> =>
  fc.record({
    status: fc.oneof({ weight: 6, arbitrary: fc.constant(200) }, fc.constantFrom(...statuses)),
    headers: fc.constantFrom<Record<string, string>[]>(
      ...[{}, { 'retry-after': '0' }, { 'retry-after': '-9' }, { 'retry-after': '1e99' }, { 'retry-after': 'soon' }],
      ...[{ location: 'http://[' }, { 'retry-after': 'Thu, 01 Jan 1970 00:00:00 GMT' }],
    ),
    body: fc.oneof(
      { weight: 4, arbitrary: near(value) },
      fc
        .constantFrom(`bad key ${KEY}`, { error: { message: `no ${KEY}`, code: KEY } }, { message: [KEY] })
        .map((said) => Buffer.from(typeof said === 'string' ? said : JSON.stringify(said))),
    ),
  });

const server = {
  ...{ name: 'anyone', baseUrl: 'http://localhost:1/v1', model: 'm', apiKeyEnv: 'MARKED_KEY' },
  ...{ concurrency: 8, timeout: 5, maxRetries: 1, retryDelay: 0 },
};
const messages = [{ role: 'user', content: 'hello' }];
const signal = new AbortController().signal;
const usage = { prompt_tokens: 3, completion_tokens: 2 };

/** Neither what comes of a reply nor what is said of it holds the key, and all of it can be written down. */
const expectKeyless = (value: unknown) => expect(JSON.stringify(value) ?? '').not.toContain(KEY);
async function asked<T>(act: () => Promise<T>): Promise<T | undefined> {
  return tried(async () => {
    try {
      return await act();
    } catch (error) {
      expectKeyless((error as Error).message);
      throw error;
    }
  });
}

describe('whatever a server replies', () => {
  it(
    'a sampler has texts and counts, or says why not',
    async () => {
      const good = {
        choices: [{ message: { content: 'hi' }, finish_reason: 'stop' }, { message: { content: '' } }],
        usage,
      };
      await fc.assert(
        fc.asyncProperty(replyNear(good), async (next) => {
          replies = [next];
          const sampler = endpointSampler({ ...server, temperature: 1, topP: 1, maxTokens: 9, samplesPerRequest: 2 });
          const answer = await asked(() => sampler.sample({ promptId: 'p', messages, seeds: [1, 2, 3] }, signal));
          if (!answer) return;
          for (const { text, finish_reason, seed } of answer.samples) {
            expect([typeof text, typeof finish_reason, typeof seed]).toEqual(['string', 'string', 'number']);
          }
          for (const count of [answer.promptTokens, answer.completionTokens]) {
            expect(Number.isSafeInteger(count) && count >= 0, String(count)).toBe(true);
          }
          if (answer.failure === undefined) expect(answer.samples).toHaveLength(3);
          else expect(answer.failure).not.toMatch(/\n|undefined|\[object/);
          expectKeyless(answer.failure);
        }),
        RUNS,
      );
    },
    TIME,
  );

  it.each([
    ['pooling', { data: [{ index: 0, data: [[0.1, 0.2], [0.3]] }] }],
    ['classify', { data: [{ index: 0, label: 'good', probs: [0.5, 0.25] }] }],
  ] as const)(
    'a scorer has a number, or says why not (%s)',
    async (api, good) => {
      const item = { where: 'w', promptId: 'p', source: 's', messages, response: 'r' };
      await fc.assert(
        fc.asyncProperty(replyNear(good), async (next) => {
          replies = [next];
          const scorer = await httpScorer({ ...server, api, output: 0, batch: 1 });
          const scores = await asked(() => scorer.score([item, item], signal));
          if (!scores) return;
          expect(scores).toHaveLength(2);
          for (const score of [...scores]) {
            if (typeof score === 'object') expect(score.failure).not.toMatch(/\n|undefined|\[object/);
            else expect(typeof score).toBe('number');
          }
          expectKeyless(scores);
        }),
        RUNS,
      );
    },
    TIME,
  );

  const top = [
    { token: 'm', logprob: -0.1 },
    { token: 'M', logprob: -2 },
  ];
  const judged = (content: string) => ({
    choices: [{ message: { content }, finish_reason: 'stop', logprobs: { content: [{ top_logprobs: top }] } }],
    usage,
  });
  const rules = { patterns: [/\[\[([AB<>=]+)\]\]/], model: 'm' };
  it.each([
    ['a preference', readPreference, 'm', (verdict: number) => verdict >= 1 && verdict <= 2],
    ['a game', arenaReader(rules as never), 'so [[A>B]]', (verdict: string) => typeof verdict === 'string'],
    ['a rating', readRating, 'Rating: [[7]]', (verdict: number) => Number.isFinite(verdict)],
    ['a winner', readWinner, '[[B]]', (verdict: string) => /^(A|B|tie|error)$/.test(verdict)],
  ] as [string, Reader<unknown>, string, (verdict: never) => boolean][])(
    'a judge gives %s, none, or says why',
    async (name, reader, content, isVerdict) => {
      const good = judged(content);
      const whole = { status: 200, headers: {}, body: Buffer.from(JSON.stringify(good)) };
      let files = 0;
      let answered = 0;
      mkdirSync(path(name));
      await fc.assert(
        fc.asyncProperty(fc.array(replyNear(good, PASSING), { minLength: 20, maxLength: 40 }), async (next) => {
          replies = [whole, ...next];
          requests = 0;
          const file = path(name, `${++files}.jsonl`);
          const settings = { max_tokens: 4 };
          const prices = { input: 1, output: 1 };
          // One at a time and the first well answered, so that none is the fault of the judge itself.
          const options = {
            judge: { ...server, concurrency: 1, prices },
            reader,
            settings,
            promptHash: 'h',
            path: file,
          };
          const questions = next.map((_, i) => ({ id: `${i}`, messages }));
          const rows = await asked(() => judge(questions, options));
          rmSync(file, { force: true });
          for (const row of rows?.values() ?? []) {
            if (row.verdict !== null) expect(isVerdict(row.verdict as never), JSON.stringify(row.verdict)).toBe(true);
            for (const count of Object.values(row.usage)) expect(Number.isSafeInteger(count) && count >= 0).toBe(true);
            expect(Number.isFinite(row.dollars)).toBe(true);
            expectKeyless(row.failure);
          }
          answered += rows?.size ?? 0;
        }),
        { ...RUNS, numRuns: RUNS.numRuns / 25 },
      );
      expect(answered).toBeGreaterThan(RUNS.numRuns / 2);
    },
    TIME,
  );
});
