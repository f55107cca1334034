/**
 * Generation: greedy tokens of transformers for every family, frequencies against the exact truncated distribution, the
 * same sample in any company, and how samples end.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import type { GeneratedSample, GenerateOptions, GenerationPrompt, GeneratorOptions } from '../lib/model/generator.ts';
import { Model } from '../lib/model/model.ts';
import type { ComputeDtype } from '../lib/native/addon.ts';
import {
  expectSentence,
  expectWithin,
  FAMILY_CONFIGS,
  maxAbsDifference,
  PARITY_FIXTURES,
  randomIds,
  tinyModel,
} from './support.ts';
import { FIXTURES, poisonedPolicy, randomOf, scratchDirectory, sleep } from './training.ts';

const scratch = scratchDirectory('generate');

async function samplesOf(
  model: Model,
  prompts: Iterable<GenerationPrompt>,
  options: GenerateOptions,
): Promise<GeneratedSample[][]> {
  const all: GeneratedSample[][] = [];
  for await (const { prompt, samples } of model.generate(prompts, options)) {
    expect(prompt).toBe(all.length);
    all.push(samples);
  }
  return all;
}

describe.each(PARITY_FIXTURES)('greedy tokens of transformers: %s', (family) => {
  const { prompts } = JSON.parse(readFileSync(join(FIXTURES, family, 'greedy.json'), 'utf8')) as {
    prompts: { prompt: number[]; ids: number[] }[];
  };
  it.each<ComputeDtype>(['float64', 'float32'])('%s', async (dtype) => {
    const model = await Model.load(join(FIXTURES, family, 'policy'), { dtype });
    const asked = prompts.map(({ prompt }) => ({ ids: prompt, seeds: [0] }));
    const all = await samplesOf(model, asked, { temperature: 0, maxTokens: 64 });
    expect(all.map(([sample]) => sample!.ids)).toEqual(prompts.map(({ ids }) => ids));
    await model.close();
  });
});

/** Long enough for several blocks of the cache, and for more than one step of reading. */
const lengths = [1, 7, 40, 300];
const promptsOf = (random: () => number, seedsEach = 3): GenerationPrompt[] =>
  lengths.map((length, i) => ({
    ids: randomIds(random, length),
    seeds: Array.from({ length: seedsEach }, (_, k) => 100 * i + k),
  }));

describe('what the cache computes', () => {
  const families = Object.entries(FAMILY_CONFIGS).filter(([name]) => name !== 'internlm2');
  it.each([['llama', {}], ...families] as [string, object][])(
    '%s: the log-probs of drawn tokens are those of the whole sequence',
    async (_, config) => {
      const model = await tinyModel(config, { dtype: 'float64' });
      const prompts = promptsOf(randomOf(1), 2);
      const all = await samplesOf(model, prompts, { maxTokens: 70, logProbs: true, stopIds: [] });
      for (const [i, samples] of all.entries()) {
        for (const { ids, logProbs } of samples) {
          expect(ids).toHaveLength(70);
          const row = {
            where: 'row',
            prompt: Int32Array.from(prompts[i]!.ids),
            responses: { completion: Int32Array.from(ids) },
          };
          const { perToken } = await model.logProbs(packRows([row], ['completion']), { perToken: true });
          expectWithin(maxAbsDifference(logProbs!, perToken!), 1e-9);
        }
      }
      await model.close();
    },
  );

  it('adapters take part', async () => {
    const model = await tinyModel({}, { dtype: 'float64', lora: { targetModules: 'all-linear' } });
    const random = randomOf(5);
    for (const [name, tensor] of model.parameters({ master: true })) {
      if (!name.includes('lora_B')) continue;
      const values = tensor.view() as Float64Array;
      for (let i = 0; i < values.length; i++) values[i] = random() - 0.5;
    }
    await model.syncWork();
    const [prompt] = promptsOf(random, 1).slice(2);
    const [[sample]] = (await samplesOf(model, [prompt!], { maxTokens: 20, logProbs: true, stopIds: [] })) as [
      [GeneratedSample],
    ];
    const row = {
      where: 'row',
      prompt: Int32Array.from(prompt!.ids),
      responses: { completion: Int32Array.from(sample.ids) },
    };
    const batch = packRows([row], ['completion']);
    const [withThem, without] = [true, false].map((adapters) => model.logProbs(batch, { perToken: true, adapters }));
    expectWithin(maxAbsDifference(sample.logProbs!, (await withThem!).perToken!), 1e-9);
    expect(maxAbsDifference(sample.logProbs!, (await without!).perToken!)).toBeGreaterThan(0.01);
    await model.close();
  });
});

describe('a sample depends on its prompt and seed alone', () => {
  const configs = { llama: {}, ...FAMILY_CONFIGS };
  const cases = (['float32', 'float64', 'bfloat16'] as ComputeDtype[]).flatMap((dtype) =>
    Object.keys(configs).map((family) => [dtype, family as keyof typeof configs] as const),
  );
  it.each(cases)('%s, %s: to the bit', async (dtype, family) => {
    const model = await tinyModel(configs[family], { dtype });
    const options = { temperature: 0.9, topP: 0.95, maxTokens: 40, maxSequences: 5, logProbs: true, stopIds: [3] };
    // A length that decides the rotation costs a reading of the whole sequence a token.
    const prompts = promptsOf(randomOf(2)).slice(0, family === 'internlm2' ? 3 : undefined);
    const together = await samplesOf(model, prompts, options);
    for (const [i, { ids, seeds }] of prompts.entries()) {
      for (const [k, seed] of seeds.entries()) {
        const [[alone]] = (await samplesOf(model, [{ ids, seeds: [seed] }], options)) as [[GeneratedSample]];
        expect(alone).toEqual(together[i]![k]);
      }
    }
    const reversed = await samplesOf(model, [...prompts].reverse(), options);
    expect(reversed.reverse()).toEqual(together);
    await model.close();
  });

  it('another seed draws something else', async () => {
    const model = await tinyModel();
    const [samples] = await samplesOf(model, [{ ids: [1, 2, 3], seeds: [1, 2, 1, 2 ** 53 - 1] }], { maxTokens: 20 });
    const texts = samples!.map(({ ids }) => ids.join());
    expect(texts[2]).toBe(texts[0]);
    expect(new Set(texts).size).toBe(3);
    await model.close();
  });
});

/** The 99.9 % point of chi-square (Wilson and Hilferty). */
const critical = (freedom: number) => {
  const c = 2 / (9 * freedom);
  return freedom * (1 - c + 3.09 * Math.sqrt(c)) ** 3;
};

/** What transformers' processors make of logits, written as plainly as they are. */
function distributionOf(logits: number[], history: readonly number[], options: GeneratorOptions): number[] {
  const { temperature = 1, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  const softmax = (list: number[]) => {
    const top = Math.max(...list);
    const weights = list.map((z) => Math.exp(z - top));
    const total = weights.reduce((sum, w) => sum + w, 0);
    return weights.map((w) => w / total);
  };
  let z = logits.map((value, id) => {
    if (!history.includes(id)) return value;
    return value < 0 ? value * repetitionPenalty : value / repetitionPenalty;
  });
  z = z.map((value) => value / temperature);
  if (topK > 0) {
    const least = [...z].sort((a, b) => b - a)[Math.min(topK, z.length) - 1]!;
    z = z.map((value) => (value < least ? Number.NEGATIVE_INFINITY : value));
  }
  if (topP < 1) {
    const p = softmax(z);
    let before = 0;
    for (const id of [...p.keys()].sort((a, b) => p[b]! - p[a]!)) {
      if (before >= topP) z[id] = Number.NEGATIVE_INFINITY;
      before += p[id]!;
    }
  }
  if (minP > 0) {
    const p = softmax(z);
    const least = minP * Math.max(...p);
    z = z.map((value, id) => (p[id]! < least ? Number.NEGATIVE_INFINITY : value));
  }
  return softmax(z);
}

describe('frequencies of 60,000 draws', () => {
  const DRAWS = 60_000;
  const prompt = [5, 9, 5, ...Array.from({ length: 20 }, (_, i) => 3 * i)];
  let model: Model;
  let logits: number[];
  beforeAll(async () => {
    model = await tinyModel({ tie_word_embeddings: false });
    // A token of logit 0 tells the logits of the others from their log-probs.
    const head = model.parameters({ master: true }).get('lm_head.weight')!;
    (head.view() as Float32Array).fill(0, 0, head.shape[1]);
    await model.syncWork();
    const rows = Array.from({ length: model.config.vocabSize }, (_, id) => ({
      ...{ where: 'row', prompt: Int32Array.from(prompt), responses: { completion: Int32Array.of(id) } },
    }));
    const { sums } = await model.logProbs(packRows(rows, ['completion']));
    logits = Array.from(sums, (sum) => sum - sums[0]!);
  });
  afterAll(() => model.close());

  const cases: [string, GeneratorOptions][] = [
    ['the model itself', {}],
    ['temperature', { temperature: 0.6 }],
    ['a high temperature', { temperature: 2.5 }],
    ['top-p', { topP: 0.7 }],
    ['a top-p that leaves one token', { topP: 0.001 }],
    ['top-k', { topK: 8 }],
    ['min-p', { minP: 0.2 }],
    ['repetition penalty', { repetitionPenalty: 8 }],
    ['repetition penalty below one', { repetitionPenalty: 0.1 }],
    ['all of them', { temperature: 1.4, topK: 25, topP: 0.9, minP: 0.05, repetitionPenalty: 3 }],
  ];
  it.each(cases)('%s', async (_, options) => {
    const expected = distributionOf(logits, prompt, options);
    const seeds = Array.from({ length: DRAWS }, (_, i) => i);
    const [samples] = await samplesOf(model, [{ ids: prompt, seeds }], { ...options, maxTokens: 1 });
    const counts = new Array<number>(expected.length).fill(0);
    for (const { ids } of samples!) counts[ids[0]!]!++;
    // Rare tokens are counted as one, so that every cell has enough.
    const rare = { expected: 0, count: 0 };
    const cells: { expected: number; count: number }[] = [];
    for (const [id, p] of expected.entries()) {
      if (p === 0) expect(counts[id], `token ${id} is cut`).toBe(0);
      else if (p * DRAWS >= 10) cells.push({ expected: p * DRAWS, count: counts[id]! });
      else {
        rare.expected += p * DRAWS;
        rare.count += counts[id]!;
      }
    }
    if (rare.expected > 0) cells.push(rare);
    const statistic = cells.reduce((sum, cell) => sum + (cell.count - cell.expected) ** 2 / cell.expected, 0);
    expectWithin(statistic, cells.length > 1 ? critical(cells.length - 1) : 1e-9, `${cells.length} cells`);
  });

  it('are those of another distribution where a setting changes it', () => {
    // Or the cases above would say nothing.
    const plain = distributionOf(logits, prompt, {});
    for (const [name, options] of cases.slice(1)) {
      const distance = distributionOf(logits, prompt, options).reduce((sum, p, i) => sum + Math.abs(p - plain[i]!), 0);
      expect(distance, name).toBeGreaterThan(0.1);
    }
  });

  it('a later token sees what was drawn: a strong penalty repeats nothing', async () => {
    const options = { repetitionPenalty: 1e4, temperature: 1e-4, maxTokens: 12 };
    const [samples] = await samplesOf(model, [{ ids: prompt, seeds: [0, 1, 2] }], options);
    for (const { ids } of samples!) expect(new Set([...prompt, ...ids]).size).toBe(new Set(prompt).size + 12);
  });
});

describe('how samples end', () => {
  let model: Model;
  beforeAll(async () => {
    model = await tinyModel();
  });
  afterAll(() => model.close());

  it('after a stop id, which is their last token, or at maxTokens', async () => {
    const seeds = Array.from({ length: 200 }, (_, i) => i);
    const [samples] = await samplesOf(model, [{ ids: [1, 2], seeds }], { maxTokens: 30, stopIds: [7, 8] });
    const stops = samples!.filter(({ finishReason }) => finishReason === 'stop');
    expect(stops.length).toBeGreaterThan(20);
    expect(stops.length).toBeLessThan(200);
    for (const { ids, finishReason } of samples!) {
      const at = ids.findIndex((id) => id === 7 || id === 8);
      if (finishReason === 'stop') expect(at).toBe(ids.length - 1);
      else expect([at, ids.length]).toEqual([-1, 30]);
    }
  });

  it('stop ids are those of generation_config.json or config.json unless they are given', async () => {
    const loaded = await Model.load(join(FIXTURES, 'internlm2', 'policy'));
    const { prompts } = JSON.parse(readFileSync(join(FIXTURES, 'internlm2', 'greedy.json'), 'utf8'));
    const asked = [{ ids: prompts[0].prompt, seeds: [0] }];
    const [[own]] = (await samplesOf(loaded, asked, { temperature: 0 })) as [[GeneratedSample]];
    const [[none]] = (await samplesOf(loaded, asked, { temperature: 0, maxTokens: 40, stopIds: [] })) as [
      [GeneratedSample],
    ];
    expect(own).toMatchObject({ finishReason: 'stop', ids: prompts[0].ids });
    expect(none.ids.slice(0, own.ids.length)).toEqual(own.ids);
    expect(none).toMatchObject({ finishReason: 'length' });
    await loaded.close();
  });

  it('when they are aborted, while others go on; what was cancelled leaves no memory behind', async () => {
    const generator = model.generator({ maxTokens: 400, stopIds: [] });
    const before = model.memory().current;
    const controller = new AbortController();
    let tokens = 0;
    const onToken = () => {
      if (++tokens === 50) controller.abort(new Error('enough'));
    };
    const aborted = generator.sample({ ids: [1, 2, 3], seeds: [1, 2] }, { signal: controller.signal, onToken });
    const other = generator.sample({ ids: [4, 5], seeds: [3] });
    await expect(aborted).rejects.toThrow('enough');
    expect(tokens).toBeLessThan(2 * 400);
    const [sample] = await other;
    expect(sample!.ids).toHaveLength(400);
    await expect(
      generator.sample({ ids: [1], seeds: [1] }, { signal: AbortSignal.abort(new Error('before')) }),
    ).rejects.toThrow('before');
    await generator.close();
    await sleep(0);
    // The workspace of the model may have grown, the cache is gone.
    expect(model.memory().current - before).toBeLessThan(64 * 2 ** 20);
    await expectSentence(() => generator.sample({ ids: [1], seeds: [1] }), 'ERR_CLOSED', 'the generator was closed');
  });

  it('when the generator is closed under them', async () => {
    const generator = model.generator({ maxTokens: 100_000, stopIds: [] });
    const sample = generator.sample({ ids: [1], seeds: [1] });
    await Promise.all([expectSentence(() => sample, 'ERR_CLOSED', 'the generator was closed'), generator.close()]);
  });

  it('a loop that breaks off closes its generator', async () => {
    const prompts = Array.from({ length: 20 }, (_, i) => ({ ids: [i + 1], seeds: [i] }));
    for await (const { prompt } of model.generate(prompts, { maxTokens: 8 })) if (prompt === 3) break;
  });
});

describe('one sentence for what is wrong', () => {
  let model: Model;
  beforeAll(async () => {
    model = await tinyModel();
  });
  afterAll(() => model.close());
  const ask = (options: GeneratorOptions, prompt: GenerationPrompt = { ids: [1], seeds: [0] }) =>
    samplesOf(model, [prompt], options);

  const options: [GeneratorOptions, string][] = [
    [{ topP: 0 }, 'top_p must be above 0 and at most 1'],
    [{ topP: 1.01 }, 'top_p must be above 0 and at most 1'],
    [{ topP: Number.NaN }, 'top_p must be above 0 and at most 1'],
    [{ maxTokens: 0 }, 'max_tokens must be at least 1'],
    [{ maxTokens: 1.5 }, 'max_tokens must be at least 1'],
    [{ topK: -1 }, 'top_k must be a whole number'],
    [{ minP: 1.5 }, 'min_p must be from 0 to 1'],
    [{ temperature: -1 }, 'temperature must be 0'],
    [{ temperature: 1e-9 }, 'temperature must be 0'],
    [{ repetitionPenalty: 0 }, 'repetition_penalty must be above 0'],
    [{ maxSequences: 0 }, 'max_sequences must be from 1 to 4096'],
    [{ stop: ['\n'] }, 'stop strings need a tokenizer'],
  ];
  it.each(options)('%o', (given, message) => expectSentence(() => ask(given), 'ERR_CONFIG', message));

  it('prompts and seeds', async () => {
    await expectSentence(() => ask({}, { ids: [], seeds: [0] }), 'ERR_DATA', 'the prompt has no tokens');
    await expectSentence(
      () => ask({}, { ids: [1, 61], seeds: [0] }),
      'ERR_DATA',
      /token 1 has the id 61; .* 61 tokens/,
    );
    await expectSentence(() => ask({}, { ids: [-1], seeds: [0] }), 'ERR_DATA', 'id -1');
    await expectSentence(() => ask({}, { ids: [1.5], seeds: [0] }), 'ERR_DATA', 'no token id: 1.5');
    await expectSentence(() => ask({}, { ids: [1], seeds: [-1] }), 'ERR_CONFIG', 'seed -1');
    await expectSentence(() => ask({}, { ids: [1], seeds: [0.5] }), 'ERR_CONFIG', 'seed 0.5');
  });

  it('a bad prompt among good ones fails alone', async () => {
    const generator = model.generator({ maxTokens: 5, stopIds: [] });
    const good = generator.sample({ ids: [1, 2], seeds: [1] });
    const bad = generator.sample({ ids: [99], seeds: [2] });
    await expectSentence(() => bad, 'ERR_DATA', 'id 99');
    expect((await good)[0]!.ids).toHaveLength(5);
    await generator.close();
  });

  it('a model that gives no numbers ends all samples there are, and later ones may do better', async () => {
    const broken = await Model.load(poisonedPolicy(scratch('poisoned'), 7, Number.NaN));
    const generator = broken.generator({ maxTokens: 1 });
    // Equally long, the broken one first: read together or one by one, which depends on the machine, neither is done before.
    const both = [
      [1, 7],
      [1, 2],
    ].map((ids) => generator.sample({ ids, seeds: [0, 1] }));
    await Promise.all(both.map((act) => expectSentence(() => act, 'ERR_NON_FINITE', 'logits are no numbers')));
    expect(await generator.sample({ ids: [1, 2], seeds: [0, 1] })).toHaveLength(2);
    await generator.close();
    await broken.close();
  });

  it('a single logit that is no number, of the likeliest token too', async () => {
    const broken = await tinyModel({ tie_word_embeddings: false });
    const head = broken.parameters({ master: true }).get('lm_head.weight')!;
    const width = head.shape[1]!;
    for (const token of [3, 60]) {
      // One in the middle of a vector, one in the remainder.
      const row = (head.view() as Float32Array).subarray(token * width, (token + 1) * width);
      const before = row.slice();
      row.fill(Number.NaN);
      await broken.syncWork();
      for (const temperature of [0, 1]) {
        const act = () => samplesOf(broken, [{ ids: [1, 2], seeds: [0] }], { temperature, maxTokens: 1 });
        await expectSentence(act, 'ERR_NON_FINITE', 'logits are no numbers');
      }
      row.set(before);
    }
    await broken.close();
  });

  it('a reward model', async () => {
    const reward = await Model.load(join(FIXTURES, 'armorm', 'tiny'));
    await expectSentence(() => reward.generator(), 'ERR_MODEL', 'reward model');
    await reward.close();
  });
});
