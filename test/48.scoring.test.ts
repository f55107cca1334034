/** Scores of what was sampled: by a function, a server, a judge, ArmoRM. */
import { copyFileSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { armormScorer } from '../lib/fuse/armorm.ts';
import { httpScorer } from '../lib/fuse/http-scorer.ts';
import { judgeScorer, ratingOf } from '../lib/fuse/judge.ts';
import { sampleModel } from '../lib/fuse/sample.ts';
import { functionScorer, type ScoreItem, type Scorer, scoreModel } from '../lib/fuse/score.ts';
import { type SampleRow, type ScoreRow, Store } from '../lib/fuse/store.ts';
import { Model } from '../lib/model/model.ts';
import { info } from '../lib/native/surface.ts';
import { encodeConversations } from '../lib/text/conversations.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { toAnswer } from '../lib/text/turns.ts';
import { type FakeOptions, FakeServer, type Seen, scoreOf } from './fake-server.ts';
import { instantSampler, promptsOf, sampledStore, user } from './fusion.ts';
import { expectWithin, maxAbsDifference, TINY } from './support.ts';
import { expectFailure, FIXTURES, readJsonLines, scratchDirectory } from './training.ts';

const LLAMA3 = join(FIXTURES, 'text', 'llama3');
const path = scratchDirectory('scoring');
const servers: FakeServer[] = [];
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()));
});
async function serve(options: FakeOptions = {}): Promise<FakeServer> {
  const server = await FakeServer.start(options);
  servers.push(server);
  return server;
}
let stores = 0;
const fresh = () => path(`store-${++stores}`);
const SERVER = { name: 'reward', model: 'rm', concurrency: 4, timeout: 2, maxRetries: 4, retryDelay: 0.005 };
const samplesOf = (store: Store, model = 'm') => readJsonLines<SampleRow>(store.samplesPath(model));
const scoresOf = (store: Store, scorer: string, model = 'm') =>
  readJsonLines<ScoreRow>(store.scoresPath(scorer, model));
const lengthScorer = (calls: ScoreItem[] = []) =>
  functionScorer('length', (item) => {
    calls.push(item);
    return item.response.length;
  });

describe('a function', () => {
  it('scores every sample once, beside its prompt', async () => {
    const store = await sampledStore(fresh(), ['m']);
    const calls: ScoreItem[] = [];
    const totals = await scoreModel(store, 'm', lengthScorer(calls));
    const rows = samplesOf(store);
    expect(scoresOf(store, 'length').map(({ scores }) => scores)).toEqual(
      rows.map(({ samples }) => samples.map(({ text }) => text.length)),
    );
    expect(calls[4]).toMatchObject({
      source: 'm',
      promptId: store.order.ids[1],
      messages: [{ content: 'question 1' }],
    });
    const all = rows.flatMap(({ samples }) => samples.map(({ text }) => text.length));
    expect(totals).toMatchObject({ prompts: 20, scores: 60, failed: 0 });
    expect(totals.mean).toBeCloseTo(all.reduce((a, b) => a + b) / 60, 12);
    await scoreModel(store, 'm', lengthScorer(calls));
    expect(calls).toHaveLength(60);
  });

  it('scores again what was sampled again, and nothing else', async () => {
    const store = await Store.create(fresh(), promptsOf(20));
    let broken = true;
    const sampler = instantSampler('m');
    const flaky = {
      ...sampler,
      sample: async (...args: Parameters<typeof sampler.sample>) => {
        const answer = await sampler.sample(...args);
        const fails = broken && [3, 7].includes(store.order.indexOf.get(args[0].promptId)!);
        return fails ? { ...answer, samples: answer.samples.slice(1), failure: 'lost' } : answer;
      },
    };
    await sampleModel(store, flaky, { n: 3, seed: 42 });
    const calls: ScoreItem[] = [];
    await scoreModel(store, 'm', lengthScorer(calls));
    expect(calls).toHaveLength(58);
    broken = false;
    await sampleModel(store, flaky, { n: 3, seed: 42, retryFailed: true });
    await scoreModel(store, 'm', lengthScorer(calls));
    expect(calls).toHaveLength(58 + 6);
    expect(scoresOf(store, 'length').map(({ scores }) => scores)).toEqual(
      samplesOf(store).map(({ samples }) => samples.map(({ text }) => text.length)),
    );
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY])(
    '%d is no score: one sentence, and the scores before it stay',
    async (bad) => {
      const store = await sampledStore(fresh(), ['m'], promptsOf(100));
      const before = readFileSync(store.samplesPath('m'));
      const id = store.order.ids[90]!;
      const score = ({ promptId }: ScoreItem) => (promptId === id ? bad : 1);
      await expectFailure(
        () => scoreModel(store, 'm', functionScorer('odd', score)),
        'ERR_NON_FINITE',
        new RegExp(`^m: sample 1 of prompt ${id}: the score by "odd" is ${bad}; expected a finite number$`),
      );
      expect(readFileSync(store.samplesPath('m'))).toEqual(before);
      let again = 0;
      const good = functionScorer('odd', () => {
        again++;
        return 1;
      });
      await scoreModel(store, 'm', good);
      expect(again).toBeLessThan(300);
      expect(scoresOf(store, 'odd')).toHaveLength(100);
    },
  );

  it('of another version does not go on with the scores of the last', async () => {
    const store = await sampledStore(fresh(), ['m']);
    await scoreModel(
      store,
      'm',
      functionScorer('f', () => 1),
    );
    const next = () =>
      scoreModel(
        store,
        'm',
        functionScorer('f', () => 2, 2),
      );
    await expectFailure(next, 'ERR_CHECKPOINT', /made with another version: 1 then, 2 now/);
  });

  it('without samples there is nothing to score', async () => {
    const store = await Store.create(fresh(), promptsOf(3));
    await expectFailure(
      () => scoreModel(store, 'm', lengthScorer()),
      'ERR_DATA',
      /^"m" is not sampled yet: there is no .*m\.jsonl; run `wrpo sample` first$/,
    );
  });
});

describe('a server', () => {
  const conversation = ({ prompt, text }: { prompt: string; text: string }) => `${prompt}\n${text}`;
  const expected = (store: Store) =>
    samplesOf(store).map(({ samples }, i) =>
      samples.map(({ text }) => scoreOf(conversation({ prompt: `question ${i}`, text }))),
    );

  it.each(['pooling', 'classify'] as const)('/%s: conversations that it renders itself', async (api) => {
    const server = await serve({ chaos: { share: 0.2, seed: 3 } });
    const store = await sampledStore(fresh(), ['m']);
    const options = { ...SERVER, baseUrl: server.url, timeout: 0.2, maxRetries: 20, api, output: 0, batch: 8 };
    await scoreModel(store, 'm', await httpScorer(options));
    expect(scoresOf(store, 'reward').map(({ scores }) => scores)).toEqual(expected(store));
    expect(server.seen[0]).toMatchObject({ path: `/${api}`, body: { model: 'rm', add_generation_prompt: false } });
    expect(server.seen.length).toBeGreaterThan(60);
  });

  it('texts that are rendered here, several a request', async () => {
    const server = await serve();
    const store = await sampledStore(fresh(), ['m']);
    const options = { ...SERVER, baseUrl: server.url, api: 'pooling' as const, output: 0, batch: 9, tokenizer: LLAMA3 };
    await scoreModel(store, 'm', await httpScorer(options));
    // Requests under way at once arrive in any order.
    const inputs = server.seen.map(({ body }) => body.input!);
    expect(inputs.map(({ length }) => length).sort()).toEqual([6, 9, 9, 9, 9, 9, 9]);
    const text = inputs.flat().find((input) => input.includes('question 0<'))!;
    const { text: response } = samplesOf(store)[0]!.samples[0]!;
    expect(text).toBe((await Tokenizer.load(LLAMA3)).applyChatTemplate([...user('question 0'), toAnswer(response)]));
    expect(scoresOf(store, 'reward')[0]!.scores[0]).toBe(scoreOf(text!));
  });

  it('that says NaN ends the scoring in one sentence', async () => {
    const server = await serve({ refuse: () => ({ status: 200, body: '{"data": [{"index": 0, "data": [NaN]}]}' }) });
    const store = await sampledStore(fresh(), ['m']);
    const scorer = await httpScorer({ ...SERVER, baseUrl: server.url, api: 'pooling', output: 0, batch: 1 });
    await expectFailure(
      () => scoreModel(store, 'm', scorer),
      'ERR_NON_FINITE',
      /^m: sample \d of prompt [0-9a-f]{64}: the score by "reward" is NaN/,
    );
  });

  it('that refuses one answer: it has no score, and the others have', async () => {
    const store = await sampledStore(fresh(), ['m']);
    const long = samplesOf(store)[2]!.samples[1]!.text;
    let refuses = true;
    const refuse = ({ body }: Seen) =>
      refuses && body.messages[0]!.content === 'question 2' && body.messages[1]!.content === long
        ? { status: 400, body: { error: { message: 'too long' } } }
        : undefined;
    const server = await serve({ refuse });
    const scorer = await httpScorer({ ...SERVER, baseUrl: server.url, api: 'pooling', output: 0, batch: 1 });
    expect(await scoreModel(store, 'm', scorer)).toMatchObject({ scores: 59, failed: 1 });
    const row = scoresOf(store, 'reward')[2]!;
    expect(row.scores[1]).toBeNull();
    expect(row.failure).toBe('sample 2: the server answers 400: too long');
    refuses = false;
    expect(await scoreModel(store, 'm', scorer, { retryFailed: true })).toMatchObject({ scores: 60, failed: 0 });
    expect(scoresOf(store, 'reward').map(({ scores }) => scores)).toEqual(expected(store));
  });
});

describe('a judge', () => {
  const judge = (baseUrl: string, more: object = {}): Scorer =>
    judgeScorer({
      ...{ ...SERVER, name: 'judge', baseUrl, temperature: 0, topP: 1, maxTokens: 100 },
      ...{ scale: [1, 10], attempts: 3, seed: 42, ...more },
    });

  it('rates answers on its scale', async () => {
    const rating = (text: string) => 1 + Math.floor(10 * scoreOf(text));
    const answerIn = (content: string) => /<answer>\n([\s\S]*)\n<\/answer>/.exec(content)![1]!;
    const server = await serve({
      text: ({ body }) => `It is [[0]] of nothing. My rating: [[${rating(answerIn(body.messages[0]!.content))}]].`,
    });
    const store = await sampledStore(fresh(), ['m']);
    await scoreModel(store, 'm', judge(server.url));
    expect(scoresOf(store, 'judge').map(({ scores }) => scores)).toEqual(
      samplesOf(store).map(({ samples }) => samples.map(({ text }) => rating(text))),
    );
    expect(server.seen[0]!.body.messages[0]!.content).toMatch(/question \d/);
    expect(server.seen[0]!.body).toMatchObject({ temperature: 0, max_tokens: 100, n: 1 });
  });

  it('is asked again when it gives no rating, and at last there is none', async () => {
    const seeds = new Map<string, number>();
    const server = await serve({
      text({ body }) {
        const { content } = body.messages[0]!;
        const times = (seeds.get(content) ?? 0) + 1;
        seeds.set(content, times);
        if (content.startsWith('question 4:')) return 'I would rather not say.';
        return times < 3 ? 'hm [[11]]' : '[[7.5]]';
      },
    });
    const store = await sampledStore(fresh(), ['m'], promptsOf(6), 1);
    await scoreModel(store, 'm', judge(server.url, { template: '{prompt}: {response} ({min} to {max})' }));
    const rows = scoresOf(store, 'judge');
    expect(rows.map(({ scores }) => scores[0])).toEqual([7.5, 7.5, 7.5, 7.5, null, 7.5]);
    expect(rows[4]!.failure).toBe(
      'sample 1: no rating [[1…10]] in 3 answers, of which the last ends "I would rather not say."',
    );
    expect(server.seen).toHaveLength(18);
    expect(server.seen[0]!.body.messages[0]!.content).toMatch(/^question \d: .* \(1 to 10\)$/);
    const own = server.seen.filter(({ body }) => body.messages[0]!.content.startsWith('question 4:'));
    expect(new Set(own.map(({ body }) => body.seed)).size).toBe(3);
  });

  it.each([
    ['[[7]]', 7],
    ['first [[3]], then [[ 8.25 ]]', 8.25],
    ['[[11]]', undefined],
    ['[[0]]', undefined],
    ['[7]', undefined],
    ['Rating: [[good]]', undefined],
  ])('reads "%s"', (text, rating) => {
    expect(ratingOf(text, [1, 10])).toBe(rating);
  });
});

describe('ArmoRM in this process', () => {
  const directory = path('armorm');

  beforeAll(async () => {
    const tokenizer = await Tokenizer.load(LLAMA3);
    const pattern = await tokenizer.encode('<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n');
    await using model = await Model.create({
      ...{ ...TINY, architectures: ['LlamaForRewardModelWithGating'], vocab_size: tokenizer.vocabSize },
      ...{ num_objectives: 5, gating_hidden_dim: 7, gating_n_hidden: 2, token_pattern_for_tests: pattern },
    });
    await model.save(directory);
    for (const name of readdirSync(LLAMA3)) copyFileSync(join(LLAMA3, name), join(directory, name));
  });

  const scored = async (scorer: Scorer, store: Store) => {
    await scoreModel(store, 'm', scorer);
    await scorer.close?.();
    return scoresOf(store, scorer.name).flatMap(({ scores }) => scores as number[]);
  };

  it('gives every answer the score that the model gives it alone, whatever the batch', async () => {
    const store = await sampledStore(fresh(), ['m']);
    const options = (name: string) => ({ name, model: directory, dtype: 'float32' as const });
    const many = await scored(await armormScorer(options('many')), store);
    const single = await scored({ ...(await armormScorer(options('single'))), batch: 1 }, store);
    expectWithin(maxAbsDifference(many, single), 1e-6);
    await using model = await Model.load(directory);
    const tokenizer = await Tokenizer.load(LLAMA3);
    const answers = [{ key: 'response', content: samplesOf(store)[1]!.samples[2]!.text }];
    const row = { where: 'row', shape: 'response' as const, prompt: 'question 1', answers };
    for await (const { conversations } of encodeConversations([row], tokenizer)) {
      const [alone] = await model.score(conversations);
      expectWithin(Math.abs(alone!.score - many[5]!), 1e-6);
    }
    expect(new Set(many).size).toBeGreaterThan(50);
  });

  it.runIf(info().gpu === undefined)('says at once that there is no GPU', async () => {
    const options = { name: 'far', model: directory, dtype: 'bfloat16' as const, device: 'cuda' as const };
    await expectFailure(() => armormScorer(options), 'ERR_DEVICE', /device "cuda": /);
    expect((await armormScorer({ ...options, device: 'auto' })).depends).not.toHaveProperty('device');
  });

  it('names model, prompt and sample of a NaN', async () => {
    const store = await sampledStore(fresh(), ['m']);
    const broken = path('broken');
    await using model = await Model.load(directory);
    (model.parameters({ master: true }).get('model.norm.weight')!.view() as Float32Array).fill(Number.NaN);
    await model.save(broken);
    for (const name of readdirSync(LLAMA3)) copyFileSync(join(LLAMA3, name), join(broken, name));
    const scorer = await armormScorer({ name: 'armorm', model: broken, dtype: 'float32' });
    const where = new RegExp(`^m: sample 1 of prompt ${store.order.ids[0]}: the score is NaN`);
    await expectFailure(() => scoreModel(store, 'm', scorer), 'ERR_NON_FINITE', where);
    await scorer.close?.();
  });

  it('is refused where it has no reward head', async () => {
    const options = { name: 'armorm', model: join(FIXTURES, 'llama', 'policy'), dtype: 'float32' as const };
    await expectFailure(() => armormScorer(options), 'ERR_MODEL', /without a reward head/);
  });
});
