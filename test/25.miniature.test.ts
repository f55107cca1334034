import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Template } from '@huggingface/jinja';
import { Tokenizer } from 'tokenizers';
import { afterAll, beforeAll, describe, expect, it, test } from 'vitest';
import {
  drawExample,
  fnv1a,
  habit,
  levenshtein,
  MODELS,
  pretrainStream,
  prompts,
  Rng,
  reward,
  splitOf,
  take,
  unwrap,
  wrap,
} from '../miniature/skills.mjs';
import { devPrompts, fusionPrompts, SEEDS, testPrompts } from '../miniature/task.mjs';
import { trainTokenizer, writeTokenizer } from '../miniature/tokenizer.mjs';

const golden = JSON.parse(readFileSync(new URL('./fixtures/miniature.json', import.meta.url), 'utf8'));
const dir = mkdtempSync(join(tmpdir(), 'wrpo-miniature-'));
afterAll(() => rmSync(dir, { recursive: true }));

describe('golden data', () => {
  test('random numbers', () => {
    const rng = new Rng(golden.rng.seed);
    expect(golden.rng.u32.map(() => rng.u32())).toEqual(golden.rng.u32);
    const { seed, n, values } = golden.rng_int;
    const ints = new Rng(seed);
    expect(values.map(() => ints.int(n))).toEqual(values);
  });

  test('hashes and splits', () => {
    for (const [text, hash] of Object.entries(golden.fnv1a)) expect(fnv1a(text)).toBe(hash);
    for (const [skill, args, split] of golden.split_of) expect(splitOf(skill, args)).toBe(split);
  });

  test.each(golden.prompts as { seed: number; n: number; split: 'po'; items: string[][] }[])(
    'prompts of $split, seed $seed',
    ({ seed, n, split, items }) => {
      const drawn = prompts(seed, n, split);
      expect(drawn).toHaveLength(n);
      expect(drawn.slice(0, items.length).map(({ skill, prompt, gold }) => [skill.name, prompt, gold])).toEqual(items);
    },
  );

  test.each(golden.pretrain_stream as { model: string; seed: number; items: string[][] }[])(
    'stream of $model',
    ({ model, seed, items }) => {
      const [name, phase] = model.split(', ') as [keyof typeof MODELS, string?];
      expect(MODELS[name].seed).toBe(seed);
      const rng = new Rng(seed);
      const drawn = phase
        ? items.map(() => drawExample(rng, MODELS[name], habit))
        : take(pretrainStream(MODELS[name]), items.length);
      expect(drawn.map(({ skill, prompt, response }) => [skill.name, prompt, response])).toEqual(items);
    },
  );

  test('rewards and distances', () => {
    for (const { gold, response, ended, reward: expected } of golden.reward) {
      expect(reward(response, gold, ended)).toBeCloseTo(expected, 12);
    }
    for (const [a, b, distance] of golden.lev) expect(levenshtein(a, b)).toBe(distance);
  });
});

describe('skills', () => {
  it('finds every gold answer in every wrapper', () => {
    for (const { gold } of prompts(1, 120, 'dev')) {
      for (const style of ['bare', 'itis', 'ans', 'arrow'] as const) {
        expect(unwrap(wrap(style, gold))).toEqual({ answer: gold, wellFormed: true });
        expect(reward(wrap(style, gold), gold)).toBeCloseTo(1, 12);
      }
    }
  });

  it('gives the target its habit in the last 15 % of the stream', () => {
    const model = { ...MODELS.target, steps: 20 };
    const stream = pretrainStream(model);
    const right = (n: number) =>
      take(stream, n).filter(({ response, gold }) => unwrap(response).answer === gold).length / n;
    expect(right(3000 + 17 * 64)).toBe(1);
    expect(right(3 * 64)).toBeLessThan(0.4);
    expect(take(stream, 1)).toEqual([]);
  });
});

it('asks nothing on a held-out prompt that occurs in a training text', () => {
  const held = new Set([...testPrompts(), ...devPrompts()].map(({ prompt }) => prompt));
  expect(held.size).toBe(1200 + 480);
  const found = (texts: Iterable<{ prompt: string }>) => [...texts].filter(({ prompt }) => held.has(prompt));
  for (const model of Object.values(MODELS)) expect(found(pretrainStream(model))).toEqual([]);
  for (const seed of SEEDS) expect(found(fusionPrompts(seed))).toEqual([]);
  expect(found(testPrompts(5))).toHaveLength(5);
});

describe('tokenizer', () => {
  const merges = { target: trainTokenizer(MODELS.target), srcB: trainTokenizer(MODELS.srcB) };
  const load = (name: string) => Tokenizer.fromFile(join(dir, name, 'tokenizer.json'));
  const ids = async (tokenizer: Tokenizer, text: string) => (await tokenizer.encode(text)).getIds();

  beforeAll(() => {
    writeTokenizer(join(dir, 'srcA'), trainTokenizer(MODELS.srcA));
    writeTokenizer(join(dir, 'srcB'), merges.srcB);
    writeTokenizer(join(dir, 'target'), merges.target);
  });

  it('learns the merges', () => expect(merges.target).toEqual(golden.bpe.target_merges));

  it.each([
    ['target', 159],
    ['srcA', 99],
    ['srcB', 399],
  ])('exports the vocabulary of %s', (name, size) => {
    const tokenizer = load(name);
    expect(tokenizer.getVocabSize()).toBe(size);
    expect(['<pad>', '<user>', '<bot>', '<end>', 'Ġ', '~'].map((t) => tokenizer.tokenToId(t))).toEqual([
      0, 1, 2, 3, 4, 98,
    ]);
  });

  it.each(['target', 'srcB'])('encodes as %s and decodes', async (name) => {
    const tokenizer = load(name);
    const texts = Object.entries(golden.bpe[`encode_${name}`]);
    for (const [text, expected] of texts) {
      expect(await ids(tokenizer, text)).toEqual(expected);
      expect(await tokenizer.decode(await ids(tokenizer, text), true)).toBe(text);
    }
    const ascii = `  ${String.fromCharCode(...Array.from({ length: 95 }, (_, i) => 126 - i))} two  spaces `;
    expect(await tokenizer.decode(await ids(tokenizer, ascii), true)).toBe(ascii);
  });

  it('renders chats to [<user>] + prompt + [<bot>] + response + [<end>]', async () => {
    const config = JSON.parse(readFileSync(join(dir, 'target', 'tokenizer_config.json'), 'utf8'));
    const template = new Template(config.chat_template);
    const tokenizer = load('target');
    const [[prompt, promptIds], [response, responseIds]] = Object.entries<number[]>(golden.bpe.encode_target);
    const user = { role: 'user', content: prompt };
    const asked = template.render({ messages: [user], add_generation_prompt: true });
    expect(await ids(tokenizer, asked)).toEqual([1, ...promptIds, 2]);
    const whole = template.render({ messages: [user, { role: 'assistant', content: response }] });
    expect(await ids(tokenizer, whole)).toEqual([1, ...promptIds, 2, ...responseIds, 3]);
    expect(whole.startsWith(asked)).toBe(true);
    expect([config.pad_token, config.eos_token]).toEqual(['<pad>', '<end>']);
  });
});
