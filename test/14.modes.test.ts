/** Ways from text to ids other than the default: the authors' own, whole texts, blocks; and rows that stream. */
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { type PreferenceRow, type Role, toPreferenceRow } from '../lib/data/preferences.ts';
import { authorsTruncate } from '../lib/text/authors.ts';
import { type EncodeOptions, encodeRows } from '../lib/text/encode.ts';
import { RowStore } from '../lib/text/store.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { expectFailure, FIXTURES, failure, randomOf, readJson, scratchDirectory } from './training.ts';

const path = scratchDirectory('modes');
const LLAMA3 = join(FIXTURES, 'text', 'llama3');
const QUADRUPLE: Role[] = ['source_chosen', 'target_chosen', 'rejected'];
const [BOS, EOT] = [800, 804];

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(LLAMA3);
});

let copies = 0;
/** The tokenizer with another template, and a change to its tokenizer_config.json. */
async function withTemplate(template: string | null, config: object = {}): Promise<Tokenizer> {
  const dir = path(String(copies++));
  cpSync(LLAMA3, dir, { recursive: true });
  const file = join(dir, 'tokenizer_config.json');
  writeFileSync(file, JSON.stringify({ ...readJson(file), ...config }));
  if (template === null) rmSync(join(dir, 'chat_template.jinja'));
  else writeFileSync(join(dir, 'chat_template.jinja'), template);
  return Tokenizer.load(dir);
}

const turn = (role: string, content: string) => ({ role, content });
const rowOf = (value: object, where = 'rows.jsonl line 7'): PreferenceRow => toPreferenceRow(value, where);
const encode = (rows: Iterable<PreferenceRow> | AsyncIterable<PreferenceRow>, options: Partial<EncodeOptions> = {}) =>
  encodeRows(rows, { tokenizer, roles: QUADRUPLE, maxLength: 2048, vocabSize: 806, ...options });
const text = { prompt: 'What is 2+2?', source_chosen: 'It is 4.', target_chosen: '4', rejected: '5' };
const ids = (from: number, count: number) => Array.from({ length: count }, (_, i) => from + i);

describe('template_mode authors', () => {
  const authors = (rows: PreferenceRow[], options: Partial<EncodeOptions> = {}) =>
    encode(rows, { templateMode: 'authors', ...options });

  it("makes of a row what the authors' script makes of it", async () => {
    const expected = readJson(join(FIXTURES, 'text', 'authors_row_llama3.json'));
    const { rows } = await authors([rowOf(expected.row)]);
    const [source, target] = expected.response_ids.chosen;
    expect([...rows[0]!.prompt]).toEqual(expected.prompt_ids);
    expect(Object.entries(rows[0]!.responses).map(([role, response]) => [role, [...response]])).toEqual([
      ['source_chosen', source],
      ['target_chosen', target],
      ['rejected', expected.response_ids.rejected[0]],
    ]);
  });

  it('removes the BOS that the template writes before a response', async () => {
    const { rows } = await authors([rowOf(text)]);
    const all = [...rows[0]!.prompt, ...QUADRUPLE.flatMap((role) => [...rows[0]!.responses[role]!])];
    expect(all.filter((id) => id === BOS)).toEqual([BOS]);
  });

  it('lets an answer begin a token earlier when it merges with the prompt', async () => {
    const plain = await withTemplate('{% for m in messages %}{{ m.content }}{% endfor %}');
    const [th, the] = [await plain.encode('x th'), await plain.encode('x the')];
    expect(the.slice(0, th.length)).not.toEqual(th);
    const options = { tokenizer: plain, roles: ['completion'] as Role[] };
    const { rows } = await authors([rowOf({ prompt: 'x th', completion: 'e' })], options);
    expect([...rows[0]!.prompt]).toEqual(the.slice(0, th.length - 1));
    expect([...rows[0]!.responses.completion!]).toEqual([...the.slice(th.length - 1), EOT]);
    // One prompt for all responses: it ends before the first that merges.
    const both = { prompt: 'x th', target_chosen: 'e', rejected: ' no' };
    const pair = await authors([rowOf(both)], { tokenizer: plain, roles: ['target_chosen', 'rejected'] });
    const whole = await plain.encode('x th no');
    expect([...pair.rows[0]!.prompt, ...pair.rows[0]!.responses.rejected!]).toEqual([...whole, EOT]);
    expect(pair.rows[0]!.prompt.length).toBe(th.length - 1);
  });

  it('inserts an empty system message where the words of the template ask for it, and only there', async () => {
    const source = (word: string) => `{# ${word} #}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}`;
    const promptOf = async (word: string, prompt: unknown, autoInsertEmptySystemMsg?: boolean) => {
      const loaded = await withTemplate(source(word));
      const { rows } = await authors([rowOf({ ...text, prompt })], { tokenizer: loaded, autoInsertEmptySystemMsg });
      return loaded.decode(rows[0]!.prompt);
    };
    expect(await promptOf('system', 'q')).toBe('[system][user]q');
    expect(await promptOf('<|im_start|>', 'q')).toBe('[system][user]q');
    expect(await promptOf('other', 'q')).toBe('[user]q');
    expect(await promptOf('system', 'q', false)).toBe('[user]q');
    expect(await promptOf('system', [turn('system', 's'), turn('user', 'q')])).toBe('[system]s[user]q');
    const refusing = await withTemplate(
      "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}",
    );
    await expectFailure(
      () => authors([rowOf(text)], { tokenizer: refusing }),
      'ERR_DATA',
      /line 7: .* refuses the turns \(system, user\): no system \(.*auto_insert_empty_system_msg false does not\)$/,
    );
  });

  it.each([
    ['nothing that fits', { prompt: 5, responses: [3, 5] }, 'keep_end', { prompt: [0, 5], responses: [3, 5] }],
    [
      'the prompt, keeping its end',
      { prompt: 8, responses: [2, 4] },
      'keep_end',
      { prompt: [2, 6], responses: [2, 4] },
    ],
    ['the prompt, keeping its start', { prompt: 8, responses: [2] }, 'keep_start', { prompt: [0, 8], responses: [2] }],
    ['a long prompt by its start', { prompt: 9, responses: [2] }, 'keep_start', { prompt: [0, 6], responses: [2] }],
    // A prompt below its limit is not cut, and responses are cut as if it were at it.
    ['responses alone', { prompt: 3, responses: [9, 2, 5] }, 'keep_end', { prompt: [0, 3], responses: [4, 2, 4] }],
    ['both', { prompt: 9, responses: [9, 4] }, 'keep_end', { prompt: [3, 6], responses: [4, 4] }],
  ] as const)('cuts %s', (_, row, truncationMode, expected) => {
    const given = { prompt: ids(0, row.prompt), responses: row.responses.map((count) => ids(50, count)) };
    const cut = authorsTruncate(given, { maxLength: 10, maxPromptLength: 6, truncationMode });
    expect(cut.prompt).toEqual(ids(expected.prompt[0], expected.prompt[1]));
    expect(cut.responses).toEqual(expected.responses.map((count) => ids(50, count)));
  });

  it('counts what it cut, drops nothing, and takes 1800 of 2048 for a prompt', async () => {
    const rows = [
      rowOf({ prompt: ids(0, 500), source_chosen: ids(0, 7), target_chosen: [1], rejected: [1] }),
      rowOf({ prompt: ids(0, 3), source_chosen: ids(0, 600), target_chosen: ids(0, 63), rejected: [1] }),
    ];
    const report = await authors(rows, { maxLength: 504 });
    expect(report).toMatchObject({ read: 2, dropped: 0, truncated: 2, truncatedPrompts: 1 });
    expect(report.rows.map(({ prompt }) => prompt.length)).toEqual([442, 3]);
    expect(report.rows[1]!.responses.source_chosen).toEqual(Int32Array.from(ids(0, 504 - 442)));
    expect(report.rows[0]!.prompt).toEqual(Int32Array.from(ids(500 - 442, 442)));
  });

  it('says what it needs', async () => {
    const endless = await withTemplate('{{ messages[0].content }}', { eos_token: null });
    await expectFailure(() => authors([rowOf(text)], { tokenizer: endless }), 'ERR_MODEL', /"eos_token"/);
    const alternating = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}x";
    const strict = await withTemplate(alternating);
    await expectFailure(
      () => authors([rowOf(text)], { tokenizer: strict }),
      'ERR_DATA',
      /^rows.jsonl line 7: .*refuses the turns \(assistant\): user first$/,
    );
    const narrow = { maxLength: 10, maxPromptLength: 10 };
    await expectFailure(
      () => authors([rowOf(text)], narrow),
      'ERR_CONFIG',
      /maxPromptLength \(10\) must be below maxLength/,
    );
    const bare = await withTemplate(null);
    await expectFailure(() => authors([rowOf(text)], { tokenizer: bare }), 'ERR_DATA', /no chat template/);
  });
});

describe('fine-tuning on all tokens', () => {
  const completions = { roles: ['completion'] as Role[], allTokens: true };
  const row = { prompt: 'What is 2+2?', completion: 'It is 4.' };

  it('moves all but the first token into the response', async () => {
    const plain = (await encode([rowOf(row)], { roles: ['completion'] })).rows[0]!;
    const all = (await encode([rowOf(row)], completions)).rows[0]!;
    const whole = [...plain.prompt, ...plain.responses.completion!];
    expect([...all.prompt]).toEqual(whole.slice(0, 1));
    expect([...all.responses.completion!]).toEqual(whole.slice(1));
  });

  it("takes the authors' whole text, with the BOS that the tokenizer adds to the template's", async () => {
    const messages = [turn('user', row.prompt), turn('assistant', row.completion)];
    const expected = await tokenizer.encode(tokenizer.applyChatTemplate(messages), { addSpecialTokens: true });
    expect(expected.slice(0, 2)).toEqual([BOS, BOS]);
    const { rows } = await encode([rowOf(row)], { ...completions, templateMode: 'authors' });
    expect([...rows[0]!.prompt, ...rows[0]!.responses.completion!]).toEqual(expected);
    const cut = await encode([rowOf(row)], { ...completions, templateMode: 'authors', maxLength: 5 });
    expect(cut).toMatchObject({ truncated: 1, tokens: 5, dropped: 0 });
  });

  it('wraps texts into blocks, an EOS behind each, and leaves the remainder out', async () => {
    const answers = ['It is 4.', 'No.', 'a longer answer, with words', '4', 'yes'];
    const texts = answers.map((completion) => ({ ...row, completion }));
    const stream: number[] = [];
    const ends: number[] = [];
    for (const { prompt, completion } of texts) {
      const whole = tokenizer.applyChatTemplate([turn('user', prompt), turn('assistant', completion)]);
      stream.push(...(await tokenizer.encode(whole, { addSpecialTokens: true })), EOT);
      ends.push(stream.length);
    }
    const maxLength = 17;
    const rows = texts.map((each, i) => rowOf(each, `row ${i}`));
    const report = await encode(rows, { ...completions, blocks: true, maxLength });
    const count = Math.floor(stream.length / maxLength);
    expect(report).toMatchObject({ read: 5, tokens: count * maxLength, leftOver: stream.length - count * maxLength });
    expect(report.leftOver).toBeGreaterThan(0);
    expect(report.rows.length).toBe(count);
    for (const [i, { where, prompt, responses }] of report.rows.entries()) {
      expect(prompt.length).toBe(1);
      const block = stream.slice(i * maxLength, (i + 1) * maxLength);
      expect([...prompt, ...responses.completion!]).toEqual(block);
      const [first, last] = [i * maxLength, (i + 1) * maxLength - 1].map((at) => ends.findIndex((end) => at < end));
      expect(where).toBe(first === last ? `row ${first}` : `row ${first} … row ${last}`);
    }
  });

  it('joins rows of ids as they are', async () => {
    const rows = [rowOf({ prompt: [1, 2], completion: [3] }), rowOf({ prompt: [4], completion: [5, 6, 7] })];
    const report = await encode(rows, { ...completions, blocks: true, maxLength: 3, tokenizer: undefined });
    const blocks = report.rows.map(({ prompt, responses }) => [...prompt, ...responses.completion!]);
    expect([blocks, report.leftOver]).toEqual([
      [
        [1, 2, 3],
        [4, 5, 6],
      ],
      1,
    ]);
  });
});

describe('rows that stream', () => {
  const rows = (count: number) => Array.from({ length: count }, (_, i) => ({ ...text, source_chosen: `number ${i}` }));

  it('come out in order, whatever their number', async () => {
    for (const count of [0, 1, 15, 16, 17, 100]) {
      const report = await encode(rows(count).map((each, i) => rowOf(each, `row ${i}`)));
      expect(report.read).toBe(count);
      expect(report.rows.map(({ where }) => where)).toEqual(rows(count).map((_, i) => `row ${i}`));
      if (count === 0) continue;
      const [last] = (await encode([rowOf(rows(count).at(-1)!, `row ${count - 1}`)])).rows;
      expect(report.rows.at(-1)).toEqual(last);
    }
  });

  it('are taken a few at a time', async () => {
    let given = 0;
    const releases: (() => void)[] = [];
    async function* slowly() {
      for (const each of rows(1000)) {
        given++;
        // The reader goes on only as the tokenizer does: were rows gathered first, all would be asked for at once.
        if (given === 200) await new Promise<void>((resolve) => releases.push(resolve));
        yield rowOf(each);
      }
    }
    const report = encode(slowly());
    while (releases.length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    expect(given).toBe(200);
    releases[0]!();
    expect((await report).rows.length).toBe(1000);
  });

  it.each([0, 3, 15, 16, 40, 70])('stop at the first faulty row, number %d', async (at) => {
    const list = rows(80).map((each, i) => rowOf(each, `row ${i}`));
    list[at] = { ...list[at]!, responses: {} };
    // Two more faults, of other kinds, behind it.
    list[at + 2] = { where: `row ${at + 2}`, prompt: [1, 2, 9999], responses: list[0]!.responses };
    let closed = false;
    async function* source() {
      try {
        for (const [i, each] of list.entries()) {
          if (i === at + 4) throw new Error('the file ends here');
          yield each;
        }
      } finally {
        closed = true;
      }
    }
    expect((await failure(() => encode(source()))).message).toMatch(new RegExp(`^row ${at}: missing key`));
    expect(closed).toBe(true);
  });

  it('name an earlier row whose ids are wrong before a later one that cannot be read', async () => {
    function* source() {
      yield rowOf(text, 'row 0');
      yield rowOf({ prompt: [1], source_chosen: [900], target_chosen: [1], rejected: [1] }, 'row 1');
      throw new Error('unreadable');
    }
    expect((await failure(() => encode(source()))).message).toMatch(/^row 1: "source_chosen" has 900/);
    await expect(encode(source(), { vocabSize: 1000 })).rejects.toThrow('unreadable');
  });
});

describe('the store of ids', () => {
  it.each([806, 2 ** 16, 2 ** 16 + 1, 128256, 151936, 256128, 2 ** 20, 2 ** 24])('keeps ids below %d', (size) => {
    const random = randomOf(size);
    const store = new RowStore(['target_chosen', 'rejected'], size);
    const list = () => [
      size - 1,
      ...Array.from({ length: Math.floor(random() * 5000) }, () => Math.floor(random() * size)),
    ];
    const given = Array.from({ length: 300 }, () => [list(), list(), list()] as const);
    for (const [i, [prompt, ...responses]] of given.entries()) store.add(`row ${i}`, prompt, responses);
    expect(store.tokens).toBe(given.flat().reduce((sum, { length }) => sum + length, 0));
    for (const [i, [prompt, target_chosen, rejected]] of given.entries()) {
      const row = store.rows[i]!;
      expect(row.where).toBe(`row ${i}`);
      expect([...row.prompt]).toEqual(prompt);
      expect([...row.responses.target_chosen!]).toEqual(target_chosen);
      expect([...row.responses.rejected!]).toEqual(rejected);
    }
  });

  it('shows rows that differ as different, and that can be spread', () => {
    const store = new RowStore(['completion'], 100);
    for (const id of [5, 6, 5]) store.add('row', [1], [[id, 7]]);
    const [a, b, c] = store.rows;
    expect(a).toEqual(c);
    expect(a).not.toEqual(b);
    expect({ ...a }).toEqual({
      where: 'row',
      prompt: Int32Array.of(1),
      responses: { completion: Int32Array.of(5, 7) },
    });
  });
});

describe('in the default mode', () => {
  const addsBos = JSON.parse(readFileSync(join(LLAMA3, 'tokenizer.json'), 'utf8')).post_processor !== null;

  it('there is one BOS, although template and tokenizer both have one', async () => {
    expect(addsBos).toBe(true);
    expect((await tokenizer.encode('a', { addSpecialTokens: true }))[0]).toBe(BOS);
    const { rows } = await encode([rowOf(text)]);
    for (const role of QUADRUPLE) {
      const whole = [...rows[0]!.prompt, ...rows[0]!.responses[role]!];
      expect(whole.filter((id) => id === BOS)).toEqual([BOS]);
      expect(whole[0]).toBe(BOS);
      expect(rows[0]!.responses[role]!.filter((id) => id === EOT)).toEqual(Int32Array.of(EOT));
    }
  });

  it('an answer of white space is an end of turn, where the template trims it', async () => {
    const { rows } = await encode([rowOf({ ...text, rejected: ' \n\t ' })]);
    expect(rows[0]!.responses.rejected).toEqual(Int32Array.of(EOT));
  });

  it('a template that writes nothing of an answer is refused', async () => {
    const loaded = await withTemplate(
      "{% for m in messages if m.role == 'user' %}{{ m.content }}<|eot_id|>{% endfor %}",
    );
    await expectFailure(
      () => encode([rowOf(text)], { tokenizer: loaded }),
      'ERR_DATA',
      /^rows.jsonl line 7: the chat template writes nothing of "source_chosen"$/,
    );
    // Nor is an end of turn alone something: templates of reasoning models leave the thoughts of an answer out.
    const thoughtless = await withTemplate(
      "{% for m in messages %}{{ m.role }}<|end_header_id|>{{ m.content.split('</think>')[-1] }}<|eot_id|>{% endfor %}" +
        '{% if add_generation_prompt %}assistant<|end_header_id|>{% endif %}',
    );
    await expectFailure(
      () => encode([rowOf({ ...text, target_chosen: '<think>4, is it not</think>' })], { tokenizer: thoughtless }),
      'ERR_DATA',
      /^rows.jsonl line 7: the chat template writes nothing of "target_chosen"$/,
    );
  });

  it.each([
    ['a template that throws', "{{ absent + 'a' }}", 'ERR_MODEL', /^rows.jsonl line 7: .*fails on the turns \(user\)/],
    [
      'roles it refuses',
      "{{ raise_exception('no') }}",
      'ERR_DATA',
      /^rows.jsonl line 7: .*refuses the turns \(user\): no$/,
    ],
    ['no template', null, 'ERR_DATA', /^rows.jsonl line 7: the row is text, but the tokenizer has no chat template/],
  ] as const)('%s is one sentence with the row', async (_, template, code, message) => {
    const loaded = await withTemplate(template);
    await expectFailure(() => encode([rowOf(text)], { tokenizer: loaded }), code, message);
  });

  it('content that is no string is refused with the row and its key', async () => {
    const bad = { ...text, prompt: [{ role: 'user', content: [{ type: 'text', text: 'a' }] }] };
    await expectFailure(
      () => encode([rowOf(bad)]),
      'ERR_DATA',
      /^rows.jsonl line 7: "prompt\[0\].content" must be a string, got an array$/,
    );
  });

  it('a response without room is dropped with its row and counted', async () => {
    const length = (await encode([rowOf(text)])).rows[0]!.prompt.length;
    expect(await encode([rowOf(text)], { maxLength: length })).toMatchObject({ read: 1, dropped: 1, rows: [] });
    const one = await encode([rowOf(text)], { maxLength: length + 1 });
    expect(one).toMatchObject({ dropped: 0, truncated: 3 });
    expect(one.rows[0]!.responses.rejected!.length).toBe(1);
  });
});
