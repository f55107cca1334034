import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { type PreferenceRow, type Role, toPreferenceRow } from '../lib/data/preferences.ts';
import { ChatTemplate } from '../lib/text/chat.ts';
import { encodeRows } from '../lib/text/encode.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { failure } from './training.ts';

const loadedTokenizers = () =>
  Object.keys(createRequire(import.meta.url).cache).filter((f) => f.includes('tokenizers'));
const loadedAtImport = loadedTokenizers();

const FIXTURES = fileURLToPath(new URL('./fixtures/text', import.meta.url));
const LLAMA3 = join(FIXTURES, 'llama3');
const fixture = (name: string) => JSON.parse(readFileSync(join(FIXTURES, name), 'utf8'));

const scratch = mkdtempSync(join(tmpdir(), 'wrpo-text-'));
afterAll(() => rmSync(scratch, { recursive: true }));

/** A copy of the Llama-3 directory with other files beside or instead of its own; `null` leaves one out. */
let copies = 0;
function variant(files: Record<string, unknown>): string {
  const dir = join(scratch, String(copies++));
  cpSync(LLAMA3, dir, { recursive: true });
  for (const [name, content] of Object.entries(files)) {
    if (content === null) rmSync(join(dir, name));
    else writeFileSync(join(dir, name), typeof content === 'string' ? content : JSON.stringify(content));
  }
  return dir;
}

const user = (content: string) => ({ role: 'user', content });
const assistant = (content: string) => ({ role: 'assistant', content });

describe('chat templates', () => {
  const { templates, cases } = fixture('chat_templates.json');

  it.each(Object.keys(templates))('render %s as transformers does', (name) => {
    const { chat_template, bos_token, eos_token } = templates[name];
    const template = new ChatTemplate(chat_template);
    const mine = cases.filter((c: { template: string }) => c.template === name);
    expect(mine.length).toBe(20);
    for (const { messages, add_generation_prompt, rendered, error } of mine) {
      const render = () =>
        template.render(messages, { addGenerationPrompt: add_generation_prompt, specials: { bos_token, eos_token } });
      if (error) expect(render).toThrow(error.replace('TemplateError: ', ''));
      else expect(render()).toBe(rendered);
    }
  });

  it("render constructs as Python's Jinja does", () => {
    vi.useFakeTimers({ now: new Date(2024, 6, 6, 9, 5, 3) });
    try {
      for (const { template, messages, add_generation_prompt, rendered } of fixture('python_jinja.json')) {
        const specials = { bos_token: '<s>' };
        const text = new ChatTemplate(template).render(messages, {
          addGenerationPrompt: add_generation_prompt,
          specials,
        });
        expect(text, template).toBe(rendered);
      }
    } finally {
      vi.useRealTimers();
    }
  });

  it('differ from Python where no template in use can tell', () => {
    const render = (source: string) => new ChatTemplate(source).render([user('a')]);
    expect(render('{{ tools is defined }}'), 'Python writes True').toBe('true');
    expect(render('{% for m in messages %}{{ m.content }}{% break %}{% endfor %}'), 'Python writes a').toBe('');
  });

  it('obey the argument of strip, lstrip and rstrip, and strip what Python calls white', () => {
    const render = (source: string, content: string) => new ChatTemplate(source).render([user(content)]);
    expect(render("{{ messages[0].content.strip('xy') }}", 'xyaxbyx')).toBe('axb');
    expect(render("{{ messages[0]['content'].lstrip('\\n') }}", '\n\n a\n')).toBe(' a\n');
    expect(render("{{ messages[0].content.rstrip('\\n').split('<t>')[-1].lstrip('\\n') }}", 'q<t>\n a\n\n')).toBe(' a');
    expect(render('{{ messages[0].content | trim }}', '\x1c\x85 a \ufeff')).toBe('a \ufeff');
    expect(render('{{ messages[0].content.strip() }}', ' 😀 ')).toBe('😀');
  });

  it('treat markup inside a message as text', () => {
    const template = new ChatTemplate('{{ messages[0].content }}');
    expect(template.render([user("{{ bos_token }}{% raise_exception('x') %}")])).toContain('{{ bos_token }}');
  });

  it('refuse what is not a conversation of texts', async () => {
    const template = new ChatTemplate('{{ messages[0].content }}', 'dir');
    // biome-ignore lint/suspicious/noExplicitAny: what JavaScript may pass
    const content: any = [{ type: 'text', text: 'a' }];
    const { code, message } = await failure(() => template.render([user('a'), { role: 'user', content }]));
    expect([code, message]).toEqual(['ERR_DATA', 'message 2: "content" must be a string']);
  });

  it('explain a refusal, a template that fails and one that does not compile', async () => {
    const refusal = new ChatTemplate("{{ raise_exception('roles must alternate') }}", 'dir');
    expect(await failure(() => refusal.render([user('a'), user('b')]))).toMatchObject({
      code: 'ERR_DATA',
      message: 'dir refuses the turns (user, user): roles must alternate',
    });
    const failing = await failure(() => new ChatTemplate("{{ absent + 'a' }}", 'dir').render([user('a')]));
    expect(failing).toMatchObject({ code: 'ERR_MODEL', message: expect.stringMatching(/^dir fails on the turns/) });
    const broken = await failure(() => new ChatTemplate('{% if %}', 'dir'));
    expect(broken).toMatchObject({ code: 'ERR_MODEL', message: expect.stringContaining('does not compile') });
    const unknown = await failure(() => new ChatTemplate("{{ strftime_now('%Q') }}", 'dir').render([user('a')]));
    expect(unknown.message).toContain('%Q');
  });
});

describe('a tokenizer', () => {
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    tokenizer = await Tokenizer.load(LLAMA3);
  });

  it("gives Python's ids and texts", async () => {
    const { encode, decode, vocab_size_with_added } = fixture('llama3_vectors.json');
    expect(tokenizer.vocabSize).toBe(vocab_size_with_added);
    const texts = encode.map(({ text }: { text: string }) => text);
    const batch = await tokenizer.encodeBatch(texts);
    for (const [i, { text, ids, ids_with_special, ...decoded }] of encode.entries()) {
      expect(batch[i]).toEqual(ids);
      expect(await tokenizer.encode(text)).toEqual(ids);
      expect(await tokenizer.encode(text, { addSpecialTokens: true })).toEqual(ids_with_special);
      expect(await tokenizer.decode(ids)).toBe(decoded.decoded_keep_special);
      expect(await tokenizer.decode(ids, { skipSpecialTokens: true })).toBe(decoded.decoded_skip_special);
    }
    for (const { ids, skip_special, keep_special } of decode) {
      expect(await tokenizer.decode(Int32Array.from(ids))).toBe(keep_special);
      expect(await tokenizer.decode(ids, { skipSpecialTokens: true })).toBe(skip_special);
    }
  });

  it('gives the ids of transformers for its rendered chats', async () => {
    const cases = fixture('chat_templates.json').cases.filter((c: { template: string }) => c.template === 'llama3');
    for (const { messages, add_generation_prompt, rendered, ids } of cases) {
      const text = tokenizer.applyChatTemplate(messages, { addGenerationPrompt: add_generation_prompt });
      expect(text).toBe(rendered);
      expect(await tokenizer.encode(text)).toEqual(ids);
    }
  });

  it('knows its special tokens', async () => {
    expect([tokenizer.bosTokenId, tokenizer.eosTokenId, tokenizer.hasChatTemplate]).toEqual([800, 804, true]);
    expect([799, 800, 804, 805, 806].map((id) => tokenizer.isSpecial(id))).toEqual([false, true, true, true, false]);
    const none = await Tokenizer.load(variant({ 'tokenizer_config.json': { bos_token: null } }));
    expect([none.bosTokenId, none.eosTokenId]).toEqual([undefined, undefined]);
    const objects = await Tokenizer.load(
      variant({ 'tokenizer_config.json': { bos_token: { content: '<|eot_id|>' }, eos_token: { content: 'h' } } }),
    );
    expect(objects.bosTokenId).toBe(804);
    expect(objects.isSpecial(objects.eosTokenId!)).toBe(true);
  });

  it('lets the older special_tokens_map.json speak as transformers does', async () => {
    const map = { eos_token: { content: '<|end_of_text|>' } };
    const config = { bos_token: '<|begin_of_text|>', eos_token: '<|eot_id|>' };
    const older = await Tokenizer.load(variant({ 'special_tokens_map.json': map, 'tokenizer_config.json': config }));
    expect([older.bosTokenId, older.eosTokenId]).toEqual([800, 801]);
    const newer = { ...config, added_tokens_decoder: {} };
    const both = await Tokenizer.load(variant({ 'special_tokens_map.json': map, 'tokenizer_config.json': newer }));
    expect(both.eosTokenId).toBe(804);
  });

  it('finds the chat template wherever it may stand', async () => {
    const load = async (chat_template: unknown, jinja: string | null = null) =>
      Tokenizer.load(variant({ 'chat_template.jinja': jinja, 'tokenizer_config.json': { chat_template } }));
    const render = (t: Tokenizer) => t.applyChatTemplate([user('a')]);
    expect(render(await load('config'))).toBe('config');
    expect(render(await load('config', 'file'))).toBe('file');
    const list = [
      { name: 'tool_use', template: 'tools' },
      { name: 'default', template: 'chosen' },
    ];
    expect(render(await load(list))).toBe('chosen');
    const none = await load(list.slice(0, 1));
    expect(none.hasChatTemplate).toBe(false);
    expect(await failure(() => render(none))).toMatchObject({
      code: 'ERR_MODEL',
      message: expect.stringContaining('no chat template'),
    });
  });

  it('forgets the truncation and padding that a file carries', async () => {
    const json = JSON.parse(readFileSync(join(LLAMA3, 'tokenizer.json'), 'utf8'));
    json.truncation = { direction: 'Right', max_length: 4, strategy: 'LongestFirst', stride: 0 };
    json.padding = { strategy: { Fixed: 16 }, direction: 'Right', pad_id: 805, pad_type_id: 0, pad_token: 'x' };
    json.padding.pad_to_multiple_of = null;
    const loaded = await Tokenizer.load(variant({ 'tokenizer.json': json }));
    expect(await loaded.encode('Hello world')).toEqual(await tokenizer.encode('Hello world'));
    expect(await loaded.encode('a')).toHaveLength(1);
  });

  it('reads half of a surrogate pair as U+FFFD', async () => {
    expect(await tokenizer.encode('a\ud800b')).toEqual(await tokenizer.encode('a\ufffdb'));
    expect(await tokenizer.encodeBatch(['x\ud83d', '\udc00'])).toEqual(
      await tokenizer.encodeBatch(['x\ufffd', '\ufffd']),
    );
    expect(await tokenizer.encode('\ud83d\ude00')).toEqual(await tokenizer.encode('😀'));
  });

  it('brings every text back', async () => {
    await fc.assert(
      fc.asyncProperty(fc.string({ unit: 'grapheme' }), async (text) => {
        expect(await tokenizer.decode(await tokenizer.encode(text))).toBe(text);
      }),
    );
  });

  it('refuses to decode what is no id', async () => {
    for (const id of [-1, 0.5, Number.NaN]) {
      expect(await failure(() => tokenizer.decode([1, id]))).toMatchObject({
        code: 'ERR_DATA',
        message: `token 1 to decode: expected an id, got ${id}`,
      });
    }
    expect(await tokenizer.decode([100000])).toBe('');
  });

  it.each([
    ['a missing directory', null, 'tokenizer.json', 'no such file'],
    ['a missing tokenizer.json', { 'tokenizer.json': null }, 'tokenizer.json', 'no such file'],
    ['a cut tokenizer.json', { 'tokenizer.json': '{"model": ' }, 'tokenizer.json', 'cannot be read'],
    ['another tokenizer.json', { 'tokenizer.json': '{"model": 1}' }, 'tokenizer.json', 'cannot be read'],
    ['a missing tokenizer_config.json', { 'tokenizer_config.json': null }, 'tokenizer_config.json', 'no such file'],
    ['a tokenizer_config.json of other kind', { 'tokenizer_config.json': '[]' }, 'tokenizer_config.json', 'object'],
    ['a cut special_tokens_map.json', { 'special_tokens_map.json': '{' }, 'special_tokens_map.json', 'cannot be read'],
    ['an unknown eos_token', { 'tokenizer_config.json': { eos_token: '<no>' } }, '', 'eos_token "<no>" is not in'],
  ])('explains %s', async (_, files, name, words) => {
    const dir = files ? variant(files) : join(scratch, 'absent');
    const { code, message } = await failure(() => Tokenizer.load(dir));
    expect(code).toBe('ERR_MODEL');
    expect(message.startsWith(join(dir, name))).toBe(true);
    expect(message).toContain(words);
  });

  it('is saved beside a model, whole', async () => {
    const source = variant({ 'special_tokens_map.json': {}, 'merges.txt': 'a b', 'model.safetensors': 'not mine' });
    const loaded = await Tokenizer.load(source);
    const target = join(scratch, 'saved', 'deep');
    await loaded.saveTo(target);
    await loaded.saveTo(target);
    await loaded.saveTo(source);
    const own = [
      'chat_template.jinja',
      'merges.txt',
      'special_tokens_map.json',
      'tokenizer.json',
      'tokenizer_config.json',
    ];
    expect(readdirSync(target).sort()).toEqual(own);
    for (const name of own) expect(readFileSync(join(target, name))).toEqual(readFileSync(join(source, name)));
    const blocked = variant({ inner: 'a file' });
    expect(await failure(() => loaded.saveTo(join(blocked, 'inner')))).toMatchObject({ code: 'ERR_MODEL' });
    mkdirSync(join(blocked, 'taken', 'tokenizer.json'), { recursive: true });
    await failure(() => loaded.saveTo(join(blocked, 'taken')));
    expect(readdirSync(join(blocked, 'taken'))).toEqual(['tokenizer.json']);
    rmSync(join(source, 'tokenizer_config.json'));
    expect((await failure(() => loaded.saveTo(join(scratch, 'late')))).message).toContain('tokenizer_config.json');
  });

  it('loads no native code before it is asked to', () => {
    expect(loadedAtImport).toEqual([]);
    expect(loadedTokenizers()).not.toEqual([]);
  });
});

describe('encoding rows', () => {
  const BOS = 800;
  const EOT = 804;
  const QUADRUPLE: Role[] = ['source_chosen', 'target_chosen', 'rejected'];
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    tokenizer = await Tokenizer.load(LLAMA3);
  });

  const row = (value: object, where = 'rows.jsonl line 7'): PreferenceRow => toPreferenceRow(value, where);
  const encode = (rows: PreferenceRow[], options: Partial<Parameters<typeof encodeRows>[1]> = {}) =>
    encodeRows(rows, { tokenizer, roles: QUADRUPLE, maxLength: 2048, vocabSize: 806, ...options });
  const text = { prompt: 'What is 2+2?', source_chosen: 'It is 4.', target_chosen: '4', rejected: '5' };
  const count = (ids: Int32Array, id: number) => ids.filter((each) => each === id).length;

  it('holds one BOS, the answer header in the prompt, and one end of turn in each response', async () => {
    const { rows, dropped, truncated } = await encode([row(text)]);
    expect([rows.length, dropped, truncated]).toEqual([1, 0, 0]);
    const { where, prompt, responses } = rows[0]!;
    expect(where).toBe('rows.jsonl line 7');
    expect(await tokenizer.decode(prompt)).toBe(
      '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 2+2?<|eot_id|>' +
        '<|start_header_id|>assistant<|end_header_id|>\n\n',
    );
    expect(count(prompt, BOS)).toBe(1);
    expect(Object.keys(responses)).toEqual(QUADRUPLE);
    for (const role of QUADRUPLE) {
      const ids = responses[role]!;
      expect(await tokenizer.decode(ids)).toBe(`${text[role as keyof typeof text]}<|eot_id|>`);
      expect([count(ids, EOT), count(ids, BOS), ids.at(-1)]).toEqual([1, 0, EOT]);
    }
  });

  it('reads the same row from each of its shapes', async () => {
    const authors = JSON.parse(JSON.stringify({ prompt: user(text.prompt), rejected: [assistant('5')] }));
    authors.chosen = [assistant('It is 4.'), assistant('4')];
    const messages = { ...text, prompt: [user(text.prompt)], rejected: [user(text.prompt), assistant('5')] };
    const [flat, ...others] = (await encode([row(text), row(authors), row(messages)])).rows;
    for (const other of others) expect(other).toEqual(flat);
  });

  it('keeps a conversation and the roles that are asked for', async () => {
    const prompt = [{ role: 'system', content: 'Be brief.' }, user('a'), assistant('b'), user('c')];
    const { rows } = await encode([row({ prompt, completion: 'd' })], { roles: ['completion'] });
    const whole = tokenizer.applyChatTemplate([...prompt, assistant('d')]);
    expect([...rows[0]!.prompt, ...rows[0]!.responses.completion!]).toEqual(await tokenizer.encode(whole));
  });

  it.each([
    ['a line end behind the end of turn', '{{ m.content }}<|eot_id|>\n', '4<|eot_id|>'],
    ['a second special token', '{{ m.content }}<|eot_id|>\n<|end_of_text|>', '4<|eot_id|>'],
    ['no end of turn', '{{ m.content }}', '4<|eot_id|>'],
    ['words behind the end of turn', '{{ m.content }}<|end_of_text|>more', '4<|end_of_text|>'],
    [
      'the header of the next answer',
      '{{ m.content }}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n',
      '4<|eot_id|>',
    ],
    ['an end of turn other than EOS', '{{ m.content }} <|end_of_text|>', '4 <|end_of_text|>'],
  ])('ends a response exactly once after %s', async (_, turn, expected) => {
    const template = `{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|end_header_id|>{% else %}${turn.replaceAll('\n', "{{ '\\n' }}")}{% endif %}{% endfor %}`;
    const loaded = await Tokenizer.load(variant({ 'chat_template.jinja': template }));
    const { rows } = await encode([row(text)], { tokenizer: loaded });
    expect(await loaded.decode(rows[0]!.responses.target_chosen!)).toBe(expected);
  });

  it('ends a response once although its text ends itself', async () => {
    const { rows } = await encode([row({ ...text, rejected: '5<|eot_id|>' })]);
    expect(rows[0]!.responses.rejected).toEqual((await encode([row(text)])).rows[0]!.responses.rejected);
    const inside = await encode([row({ ...text, rejected: '5<|eot_id|>6' })]);
    expect(count(inside.rows[0]!.responses.rejected!, EOT)).toBe(2);
  });

  it('says so when nothing can end a response', async () => {
    const files = { 'chat_template.jinja': '{{ messages[-1].content }}', 'tokenizer_config.json': {} };
    const endless = await Tokenizer.load(variant(files));
    const rows = [row({ prompt: '4', completion: '42' })];
    const error = await failure(() => encode(rows, { tokenizer: endless, roles: ['completion'] }));
    expect(error.message).toContain('"eos_token"');
  });

  it('takes an empty answer for what it is, an end of turn', async () => {
    const { rows } = await encode([row({ ...text, rejected: '' })]);
    expect(rows[0]!.responses.rejected).toEqual(Int32Array.of(EOT));
  });

  it('splits every conversation so that prompt and response make the whole', async () => {
    const words = fc.string({ unit: 'grapheme', minLength: 1 });
    const three = fc.record({ prompt: words, source_chosen: words, target_chosen: words, rejected: words });
    await fc.assert(
      fc.asyncProperty(fc.array(three, { minLength: 1, maxLength: 40 }), async (values) => {
        const { rows } = await encode(values.map((value) => row(value)));
        expect(rows.length).toBe(values.length);
        for (const [i, { prompt, responses }] of rows.entries()) {
          for (const role of QUADRUPLE) {
            const turns = [user(values[i]!.prompt), assistant(values[i]![role as keyof (typeof values)[number]])];
            const whole = await tokenizer.encode(tokenizer.applyChatTemplate(turns));
            expect([...prompt, ...responses[role]!]).toEqual(whole);
          }
        }
      }),
      { numRuns: 30 },
    );
  });

  it('refuses a split that tokens cross', async () => {
    const template = '{% for m in messages %}{{ m.content }}{% endfor %}';
    const loaded = await Tokenizer.load(variant({ 'chat_template.jinja': template }));
    const crossing = { prompt: 'x th', completion: 'e' };
    const { code, message } = await failure(() =>
      encode([row(crossing)], { tokenizer: loaded, roles: ['completion'] }),
    );
    expect(code).toBe('ERR_DATA');
    const lists = [await loaded.encode('x th'), await loaded.encode('x the')].map((ids) => `[${ids.join(', ')}]`);
    expect(message).toMatch(/^rows.jsonl line 7: the prompt alone and with "completion" part at token 1/);
    for (const list of lists) expect(message).toContain(list);
  });

  it('cuts long responses and drops rows without room', async () => {
    const prompt = [1, 2, 3];
    const rows = [
      row({ prompt, source_chosen: [4, 5, 6], target_chosen: [4, 5], rejected: [4] }),
      row({ prompt: [1, 2, 3, 4, 5], source_chosen: [4], target_chosen: [4], rejected: [4] }),
      row({ prompt: [1], source_chosen: [4, 5, 6, 7], target_chosen: [4, 5, 6, 7, 8], rejected: [4] }),
    ];
    const five = await encode(rows, { maxLength: 5 });
    expect([five.rows.length, five.dropped, five.truncated]).toEqual([2, 1, 2]);
    expect(five.rows[0]!.responses.source_chosen).toEqual(Int32Array.of(4, 5));
    expect(five.rows[1]!.responses.target_chosen).toEqual(Int32Array.of(4, 5, 6, 7));
    const short = await encode(rows, { maxLength: 100, maxPromptLength: 2 });
    expect([short.rows.length, short.dropped, short.truncated]).toEqual([1, 2, 0]);
    expect((await encode(rows, { maxLength: 6, maxPromptLength: 5 })).dropped).toBe(0);
  });

  it('uses ids as they are, with or without a tokenizer', async () => {
    const ids = { prompt: [1, 2], source_chosen: [3], target_chosen: [805], rejected: [0, 0] };
    const expected = { prompt: Int32Array.of(1, 2), responses: { rejected: Int32Array.of(0, 0) } };
    for (const each of [tokenizer, undefined]) {
      const { rows } = await encode([row(ids)], { tokenizer: each, roles: ['rejected'] });
      expect(rows[0]).toMatchObject(expected);
    }
    const { rows } = await encode([row(text), row(ids), row(text)]);
    expect(rows.map(({ prompt }) => prompt.length > 2)).toEqual([true, false, true]);
    expect(rows[2]).toEqual(rows[0]);
  });

  it.each([806, -1, 1.5])('refuses the id %d', async (id) => {
    const ids = { prompt: [1, 2], source_chosen: [3], target_chosen: [3, id], rejected: [3] };
    const { code, message } = await failure(() => encode([row(ids)]));
    expect(code).toBe('ERR_DATA');
    expect(message).toBe(
      `rows.jsonl line 7: "target_chosen" has ${id} at position 1; expected an id from 0 to 805 (vocabulary size 806)`,
    );
    const texts = await failure(() => encode([row(text)], { vocabSize: 100 }));
    expect(texts.message).toContain('"prompt" has 800 at position 0');
  });

  it('names the row and key of what is missing or empty', async () => {
    const { rejected: _, ...rest } = text;
    const misspelt = await failure(() => encode([row(text), row({ ...rest, reject: '5' })]));
    expect(misspelt).toMatchObject({ code: 'ERR_DATA' });
    expect(misspelt.message).toBe(
      'rows.jsonl line 7: missing key "rejected"; this run needs source_chosen, target_chosen, rejected (is "reject" meant for it?)',
    );
    const empty = (part: object) => failure(() => encode([{ where: 'row 3', prompt: [1], responses: {}, ...part }]));
    expect((await empty({ prompt: [] })).message).toBe('row 3: "prompt" is empty');
    expect((await empty({ responses: { source_chosen: [] } })).message).toBe('row 3: "source_chosen" is empty');
    expect((await empty({})).message).toMatch(/^row 3: missing key "source_chosen"; this run needs [^(]*$/);
  });

  it('says what text needs', async () => {
    expect((await failure(() => encode([row(text)], { tokenizer: undefined }))).message).toContain('no tokenizer');
    const bare = await Tokenizer.load(variant({ 'chat_template.jinja': null }));
    expect((await failure(() => encode([row(text)], { tokenizer: bare }))).message).toContain('no chat template');
  });

  it('names the row that the template refuses', async () => {
    const template =
      "{% if messages[0].content == 'b' %}{{ raise_exception('no b') }}{% endif %}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}";
    const loaded = await Tokenizer.load(variant({ 'chat_template.jinja': template }));
    const rows = [row(text, 'row 1'), row({ ...text, prompt: 'b' }, 'row 2')];
    const error = await failure(() => encode(rows, { tokenizer: loaded }));
    expect(error).toMatchObject({ code: 'ERR_DATA', message: expect.stringMatching(/^row 2: .* no b$/) });
  });
});
