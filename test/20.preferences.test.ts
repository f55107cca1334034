import { createWriteStream, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { isIds, loadPreferences, missingKey, toPreferenceRow } from '../lib/data/preferences.ts';
import { WrpoError } from '../lib/errors.ts';

const scratch = mkdtempSync(join(tmpdir(), 'wrpo-preferences-'));
afterAll(() => rmSync(scratch, { recursive: true }));

function file(content: string | Uint8Array, name = 'rows.jsonl'): string {
  const path = join(scratch, name);
  writeFileSync(path, content);
  return path;
}

async function message(act: () => unknown): Promise<string> {
  try {
    await act();
  } catch (error) {
    expect(error).toBeInstanceOf(WrpoError);
    expect((error as WrpoError).code).toBe('ERR_DATA');
    return (error as WrpoError).message;
  }
  throw new Error('expected a WrpoError');
}

const user = (content: string) => ({ role: 'user', content });
const assistant = (content: string) => ({ role: 'assistant', content });
const read = (value: unknown) => {
  const { where, ...row } = toPreferenceRow(value, 'rows.jsonl line 7');
  expect(where).toBe('rows.jsonl line 7');
  return row;
};
const refusal = (value: unknown) => message(() => read(value));

describe('the shapes of a row', () => {
  it('flat, by our names and by those of the paper', () => {
    const responses = { source_chosen: 'a', target_chosen: 'b', rejected: 'c', source_rejected: 'd' };
    expect(read({ prompt: 'p', ...responses })).toEqual({ prompt: 'p', responses });
    expect(read({ prompt: 'p', y_ws: 'a', y_wt: 'b', y_l: 'c', y_ls: 'd' })).toEqual({ prompt: 'p', responses });
    const { source_rejected: _, ...three } = responses;
    expect(read({ prompt: 'p', ...three, source_rejected: null })).toEqual({ prompt: 'p', responses: three });
  });

  it('flat, of messages and of ids', () => {
    const responses = { source_chosen: [assistant('a')], target_chosen: [assistant('b')], rejected: 'c' };
    expect(read({ prompt: [user('p')], ...responses })).toEqual({ prompt: [user('p')], responses });
    const ids = { source_chosen: [1], target_chosen: [2, 3], rejected: [4] };
    expect(read({ prompt: [0], ...ids })).toEqual({ prompt: [0], responses: ids });
  });

  it("the authors' quadruple, with and without y_ls", () => {
    const authors = { prompt: user('p'), chosen: [assistant('a'), assistant('b')], rejected: [assistant('c')] };
    const responses = { source_chosen: [assistant('a')], target_chosen: [assistant('b')], rejected: [assistant('c')] };
    expect(read({ prompt_id: 'x', ...authors })).toEqual({ prompt: [user('p')], responses, otherKeys: ['prompt_id'] });
    const four = { ...authors, rejected: [assistant('c'), assistant('d')] };
    expect(read(four).responses).toEqual({ ...responses, source_rejected: [assistant('d')] });
    expect(read({ ...authors, rejected: undefined }).responses).not.toHaveProperty('rejected');
  });

  it('pairs, of texts, ids, answers and whole conversations', () => {
    const pair = { target_chosen: [assistant('a')], rejected: [assistant('b')] };
    const strings = { prompt: 'p', responses: { target_chosen: 'a', rejected: 'b' } };
    expect(read({ prompt: 'p', chosen: 'a', rejected: 'b' })).toEqual(strings);
    expect(read({ prompt: [1], chosen: [2], rejected: [3, 4] }).responses).toEqual({
      target_chosen: [2],
      rejected: [3, 4],
    });
    const turns = [{ role: 'system', content: 's' }, user('p')];
    const answers = { chosen: [assistant('a')], rejected: [assistant('b')] };
    const whole = { chosen: [...turns, assistant('a')], rejected: [...turns, assistant('b')] };
    expect(read({ prompt: turns, ...answers })).toEqual({ prompt: turns, responses: pair });
    expect(read({ prompt: turns, ...whole })).toEqual({ prompt: turns, responses: pair });
    const repeated = { chosen: [user('p'), assistant('a')], rejected: [user(' p\n'), assistant('b')] };
    expect(read({ prompt: 'p', ...repeated })).toEqual({ prompt: 'p', responses: pair });
    expect(read({ prompt: user('p'), ...repeated })).toEqual({ prompt: [user('p')], responses: pair });
    expect(read({ prompt: user('p'), ...answers })).toEqual({ prompt: [user('p')], responses: pair });
  });

  it('pairs without a prompt, which is what both conversations begin with', () => {
    const turns = [{ role: 'system', content: 's' }, user('p')];
    const whole = { chosen: [...turns, assistant('a')], rejected: [...turns, assistant('b')] };
    const responses = { target_chosen: [assistant('a')], rejected: [assistant('b')] };
    expect(read(whole)).toEqual({ prompt: turns, responses });
    expect(read({ ...whole, prompt: null })).toEqual({ prompt: turns, responses });
    expect(read({ ...whole, messages: [user('other'), assistant('c')] })).toEqual({ prompt: turns, responses });
    const longer = [user('p'), assistant('q'), user('r')];
    const later = { chosen: [...longer, assistant('a')], rejected: [...longer, assistant('b')] };
    expect(read(later)).toEqual({ prompt: longer, responses });
    expect(read({ chosen: later.chosen, rejected: [assistant('b')] })).toEqual({ prompt: longer, responses });
  });

  it('fine-tuning rows', () => {
    expect(read({ prompt: 'p', completion: 'a' })).toEqual({ prompt: 'p', responses: { completion: 'a' } });
    expect(read({ prompt: [1], completion: [2] }).responses).toEqual({ completion: [2] });
    const messages = [user('p'), assistant('a'), user('q'), assistant('b')];
    const row = { prompt: messages.slice(0, 3), responses: { completion: [assistant('b')] } };
    expect(read({ messages })).toEqual(row);
    expect(read({ messages: [...messages, user('thanks')] })).toEqual(row);
    expect(read({ prompt: 'p', prompt_id: 'x', messages })).toEqual(row);
  });

  it('a pair that also has messages is a pair', () => {
    const row = read({ prompt: 'p', chosen: 'a', rejected: 'b', messages: [user('p'), assistant('a')] });
    expect(row.responses).toEqual({ target_chosen: 'a', rejected: 'b' });
  });

  it('keeps of a message its role and content', () => {
    expect(read({ prompt: { ...user('p'), name: 'x' }, completion: 'a' }).prompt).toEqual([user('p')]);
  });

  it('tells ids from text', () => {
    expect([[1], 'a', [user('a')], ''].map((content) => isIds(content as string))).toEqual([true, false, false, false]);
  });
});

describe('a row that is not one', () => {
  const quadruple = { prompt: 'p', source_chosen: 'a', target_chosen: 'b', rejected: 'c' };
  it.each([
    [[1], 'expected an object, got an array'],
    [null, 'expected an object, got null'],
    ['text', 'expected an object, got a string'],
    [{ ...quadruple, prompt: null }, 'missing key "prompt"'],
    [{ promt: 'p', rejected: 'c' }, 'missing key "prompt" (is "promt" meant for it?)'],
    [{ prompt: 'p' }, 'no response; expected source_chosen, target_chosen and rejected, or chosen and rejected, or'],
    [{ prompt: 'p', 'Target-Chosen': 'b' }, '(is "Target-Chosen" meant for it?)'],
    [{ ...quadruple, prompt: '' }, '"prompt" is empty'],
    [{ ...quadruple, prompt: [] }, '"prompt" is empty'],
    [{ ...quadruple, rejected: [] }, '"rejected" is empty'],
    [
      { ...quadruple, rejected: 5 },
      '"rejected" must be a string, a list of messages or a list of token ids, got a number',
    ],
    [{ ...quadruple, rejected: [1, 2] }, '"rejected" is token ids but "prompt" is text; a row is all of one kind'],
    [{ ...quadruple, prompt: [1] }, '"prompt" is token ids but "source_chosen" is text'],
    [{ prompt: [1, 'a'], completion: [2] }, '"prompt[1]" must be a token id like those before, got a string'],
    [{ ...quadruple, rejected: ['c'] }, '"rejected[0]" must be a message {role, content}, got a string'],
    [{ ...quadruple, rejected: [{ content: 'c' }] }, '"rejected[0].role" must be a string, got nothing'],
    [{ ...quadruple, rejected: assistant(null as never) }, '"rejected.content" must be a string, got null'],
    [
      { ...quadruple, rejected: [{ role: 'assistant', content: ['c'] }] },
      '"rejected[0].content" must be a string, got an',
    ],
    [{ ...quadruple, rejected: [user('c')] }, '"rejected" must end in an assistant message, got the role "user"'],
    [
      { ...quadruple, rejected: [user('other'), assistant('c')] },
      '"rejected" must be one assistant message, or "prompt"',
    ],
    [{ ...quadruple, y_l: 'd' }, '"rejected" and "y_l" are two names of one response'],
    [{ prompt: 'p', chosen: [assistant('a'), assistant('b')] }, 'so "prompt" must be one message, got a string'],
    [
      { prompt: [user('p')], chosen: [assistant('a'), assistant('b')] },
      'so "prompt" must be one message, got an array',
    ],
    [
      { prompt: user('p'), chosen: 'abc'.split('').map(assistant) },
      '"chosen" must be a list of assistant messages: source_',
    ],
    [
      { prompt: user('p'), chosen: [assistant('a'), assistant('b')], rejected: [user('p'), assistant('c')] },
      '"rejected" must be a list of assistant messages: rejected, source_rejected',
    ],
    [{ chosen: 'p a', rejected: 'p b' }, 'missing key "prompt"'],
    [
      { chosen: [user('p'), assistant('a')], rejected: [user('q'), assistant('b')] },
      'all turns in common but the last',
    ],
    [{ chosen: [user('p'), user('q')], rejected: [user('p'), assistant('b')] }, '"chosen" must end in an assistant'],
    [{ ...quadruple, rejected: Buffer.from([255]) }, 'got bytes that are not UTF-8'],
    [{ messages: [assistant('a')] }, '"messages" must hold an assistant message after the turns it answers'],
    [{ messages: [user('a')] }, '"messages" must hold an assistant message after the turns it answers'],
    [{ messages: 'a' }, '"messages" must be a list of messages'],
  ])('%j', async (value, words) => {
    const text = await refusal(value);
    expect(text).toContain(words);
    expect(text.startsWith('rows.jsonl line 7: ')).toBe(true);
  });

  it('is told by the key it lacks, with the one that was meant', () => {
    const lacking = (row: object) => missingKey(toPreferenceRow(row, 'row 1'), 'rejected', ['rejected']).message;
    expect(lacking({ prompt: 'p', chosen: 'a', reject: 'b' })).toBe(
      'row 1: missing key "rejected"; this run needs rejected (is "reject" meant for it?)',
    );
    for (const key of ['Rejected', 'rejectd', 'rejcted', 'reject_ed']) {
      expect(lacking({ prompt: 'p', chosen: 'a', [key]: 'b' })).toContain(`"${key}"`);
    }
    expect(lacking({ prompt: 'p', chosen: 'a', prompt_id: 'x', score: 1, y: 2 })).not.toContain('meant');
  });
});

describe('a file of rows', () => {
  const line = (n: number) => JSON.stringify({ prompt: `p${n}`, completion: `a${n}` });

  it('is read with its line numbers', async () => {
    const rows = await loadPreferences(file(`\ufeff${line(1)}\r\n\r\n  \n${line(4)}\n${line(5)}`));
    expect(rows.map(({ where, prompt }) => [where, prompt])).toEqual([
      ['rows.jsonl line 1', 'p1'],
      ['rows.jsonl line 4', 'p4'],
      ['rows.jsonl line 5', 'p5'],
    ]);
    expect(await loadPreferences(file(`${line(1)}\n`, 'rows.JSON'))).toHaveLength(1);
  });

  it('may hold any character in its strings', async () => {
    const prompt = 'a\u2028b\u2029c\u0085d😀\ufeff';
    const [row, ...more] = await loadPreferences(file(`{"prompt": "${prompt}", "completion": "x"}\n`));
    expect([row!.prompt, more]).toEqual([prompt, []]);
  });

  it('comes back as it was written', async () => {
    const text = fc.string({ unit: 'grapheme', minLength: 1 });
    const rows = fc.array(fc.record({ prompt: text, completion: text }), { minLength: 1 });
    await fc.assert(
      fc.asyncProperty(rows, fc.constantFrom('\n', '\r\n'), async (values, end) => {
        const read = await loadPreferences(file(values.map((value) => JSON.stringify(value)).join(end)));
        expect(read.map(({ prompt, responses }) => ({ prompt, ...responses }))).toEqual(values);
      }),
    );
  });

  it('may be larger than what is read at once', async () => {
    const path = join(scratch, 'large.jsonl');
    const out = createWriteStream(path);
    const filler = 'é'.repeat(700_000);
    for (let n = 1; n <= 5; n++) out.write(`${JSON.stringify({ prompt: filler + n, completion: 'a' })}\n${line(n)}\n`);
    out.end();
    await finished(out);
    const rows = await loadPreferences(path);
    expect(rows).toHaveLength(10);
    expect(rows.filter((_, i) => i % 2 === 0).map(({ prompt }) => prompt)).toEqual(
      [1, 2, 3, 4, 5].map((n) => filler + n),
    );
  });

  it.each([
    ['is cut', `${line(1)}\n{"prompt": "p"`, 'rows.jsonl line 2: expected one JSON object on the line, but '],
    ['holds one array', '[\n{}\n]', 'rows.jsonl line 1: expected one JSON object on the line, but '],
    ['holds an array', `${line(1)}\n\n[1]`, 'rows.jsonl line 3: expected an object, got an array'],
    ['lacks a key', `${line(1)}\n{"completion": "a"}`, 'rows.jsonl line 2: missing key "prompt"'],
    [
      'is not UTF-8',
      Buffer.from(`${line(1)}\n{"prompt": "\xff", "completion": "a"}`, 'latin1'),
      'rows.jsonl line 2: not valid UTF-8',
    ],
    ['is UTF-16', Buffer.from(`\ufeff${line(1)}`, 'utf16le'), 'rows.jsonl line 1: not valid UTF-8'],
  ])('that %s is refused', async (_, content, words) => {
    expect(await message(() => loadPreferences(file(content)))).toContain(words);
  });

  it('that is empty, missing or of another kind is refused', async () => {
    for (const content of ['', '\n \r\n', '\ufeff']) {
      const path = file(content);
      expect(await message(() => loadPreferences(path))).toBe(`${path}: holds no rows`);
    }
    const absent = join(scratch, 'absent.jsonl');
    expect(await message(() => loadPreferences(absent))).toBe(`${absent}: no such file`);
    const table = file('prompt,chosen', 'rows.csv');
    expect(await message(() => loadPreferences(table))).toBe(
      `${table}: is no .jsonl, .json, .jsonl.gz, .parquet or .arrow file`,
    );
    mkdirSync(join(scratch, 'dir.jsonl'));
    expect(await message(() => loadPreferences(join(scratch, 'dir.jsonl')))).toContain('dir.jsonl: holds no .jsonl');
  });
});
