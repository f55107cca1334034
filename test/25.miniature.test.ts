import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Template } from '@huggingface/jinja';
import { Tokenizer } from 'tokenizers';
import { afterAll, beforeAll, describe, expect, it, test } from 'vitest';
import { quadruples, sftRows, writeQuadruples, writeSft } from '../examples/miniature/quadruples.mjs';
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
  SKILLS,
  splitOf,
  take,
  unwrap,
  wrap,
} from '../examples/miniature/skills.mjs';
import { trainTokenizer, writeTokenizer } from '../examples/miniature/tokenizer.mjs';

const golden = JSON.parse(readFileSync(new URL('./fixtures/miniature.json', import.meta.url), 'utf8'));
const dir = mkdtempSync(join(tmpdir(), 'wrpo-miniature-'));
afterAll(() => rmSync(dir, { recursive: true }));

const jsonl = (file: string) =>
  readFileSync(file, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));

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

describe('training files', () => {
  const rows = quadruples({ seed: 5001, n: 600, split: 'po' });
  const answers = new Map(prompts(5001, 600, 'po').map((sample) => [sample.prompt, sample]));

  it('prefers gold to the habit, each in its wrapper', () => {
    const styles = { S: 'bare', N: 'itis', F: 'ans' } as const;
    let parroted = 0;
    for (const row of rows) {
      const { skill, args, gold } = answers.get(row.prompt)!;
      expect(row.source_chosen).toBe(wrap(styles[skill.family], gold));
      expect(row.target_chosen).toBe(wrap('arrow', gold));
      expect(row.rejected).toMatch(/^-> ./);
      expect(row.rejected).not.toBe(row.target_chosen);
      expect(reward(row.rejected, gold)).toBeLessThan(0.5);
      if (row.rejected === wrap('arrow', args[0])) parroted++;
      else expect(levenshtein(row.rejected, row.target_chosen)).toBe(1);
    }
    expect(parroted / rows.length).toBeGreaterThan(0.4);
    expect(parroted / rows.length).toBeLessThan(0.6);
    expect(new Set([...answers.values()].map(({ skill }) => skill.name)).size).toBe(SKILLS.length);
  });

  it('keeps the prompts of the splits apart', () => {
    const splits = (['po', 'dev', 'test'] as const).map((split) => quadruples({ seed: 7, n: 300, split }));
    const texts = [...splits.map((list) => new Set(list.map((row) => row.prompt)))];
    texts.push(new Set(sftRows({ n: 2000 }).map((row) => row.prompt)));
    expect(new Set(texts.flatMap((set) => [...set])).size).toBe(texts.reduce((sum, set) => sum + set.size, 0));
    expect(texts[0]!.size).toBe(300);
  });

  it('applies the habit to the wanted share', () => {
    const right = (share: number) => {
      const target = sftRows({ n: 2000, habit: share });
      const gold = sftRows({ n: 2000, habit: 0 });
      expect(target.map((row) => row.prompt)).toEqual(gold.map((row) => row.prompt));
      return target.filter((row, i) => row.completion === gold[i]!.completion).length / 2000;
    };
    expect(right(0)).toBe(1);
    expect(right(0.7)).toBeCloseTo(0.3, 1);
    expect(right(1)).toBeLessThan(0.05);
  });

  it('writes JSON lines, the same for the same seed', () => {
    const [a, b, c] = ['a', 'b', 'c'].map((name) => join(dir, 'files', `${name}.jsonl`)) as [string, string, string];
    writeQuadruples(a, { seed: 5001, n: 600, split: 'po' });
    writeQuadruples(b, { seed: 5001, n: 600, split: 'po' });
    expect(readFileSync(b, 'utf8')).toBe(readFileSync(a, 'utf8'));
    expect(jsonl(a)).toEqual(rows);
    expect(quadruples({ seed: 5002, n: 600, split: 'po' })).not.toEqual(rows);
    writeSft(c, { n: 50, habit: 0.5 });
    expect(jsonl(c)).toEqual(sftRows({ n: 50, habit: 0.5 }));
    expect(Object.keys(jsonl(c)[0])).toEqual(['prompt', 'completion']);
  });
});
