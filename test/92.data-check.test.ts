/** `wrpo data check`: every fault of a file at once, and what a run would keep of its rows. */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { toPreferenceRow } from '../lib/data/preferences.ts';
import { encodeRows } from '../lib/text/encode.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { FIXTURES, fail, MAIN, POLICY, scratchDirectory, succeed, tokenRows, writeRows, wrpo } from './training.ts';

const path = scratchDirectory('data-check');
const model = path('model');
const LLAMA3 = join(FIXTURES, 'text', 'llama3');

beforeAll(() => {
  // No weights: config.json and the tokenizer are all that is read.
  mkdirSync(model);
  for (const name of ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja']) {
    cpSync(join(LLAMA3, name), join(model, name));
  }
  const config = { model_type: 'llama', vocab_size: 1000, hidden_size: 32, num_hidden_layers: 1 };
  const rest = { num_attention_heads: 2, intermediate_size: 32 };
  writeFileSync(join(model, 'config.json'), JSON.stringify({ ...config, ...rest }));
});

const quadruple = (i: number) => ({
  prompt: `What is ${i} and ${i}?`,
  source_chosen: `It is ${2 * i}, as anyone can see.`,
  target_chosen: `${2 * i}`,
  rejected: `I do not know what ${i} and ${i} make.`,
});
const good = Array.from({ length: 70 }, (_, i) => quadruple(i));
let files = 0;
const file = (rows: readonly unknown[]) => writeRows(path(`rows-${++files}.jsonl`), rows);
const check = (data: string, ...more: string[]) => ['data', 'check', data, '--model', model, ...more];
async function json(data: string, ...more: string[]) {
  const { status, stdout, stderr } = await wrpo(check(data, '--json', ...more));
  expect(stderr).toBe('');
  expect(stdout.trim().split('\n')).toHaveLength(1);
  return { status, report: JSON.parse(stdout) };
}

/** Lengths as the library itself encodes them. */
async function lengthsOf(rows: readonly unknown[], role: 'prompt' | 'source_chosen') {
  const tokenizer = await Tokenizer.load(LLAMA3);
  const roles = ['source_chosen', 'target_chosen', 'rejected'] as const;
  const encoded = await encodeRows(
    rows.map((row, i) => toPreferenceRow(row, `${i}`)),
    { tokenizer, roles, maxLength: 4096, vocabSize: 1000 },
  );
  return encoded.rows.map((row) => (role === 'prompt' ? row.prompt : row.responses[role]!).length);
}

describe('good rows', () => {
  it('counts, lengths and the ids of a row', async () => {
    const { status, report } = await json(file(good), '--row', '3');
    expect(status).toBe(0);
    expect(report).toMatchObject({ rows: 70, lossType: 'wrpo', maxLength: 2048, bad: { count: 0, first: [] } });
    expect(report.shapes).toEqual({ 'text: prompt, source_chosen, target_chosen, rejected': 70 });
    for (const role of ['prompt', 'source_chosen'] as const) {
      const lengths = await lengthsOf(good, role);
      const { mean, max, count, histogram } = report.lengths[role];
      expect(count).toBe(70);
      expect(max).toBe(Math.max(...lengths));
      expect(mean).toBeCloseTo(lengths.reduce((sum, n) => sum + n, 0) / 70, 9);
      let from = 0;
      for (const { upTo, count: inside } of histogram) {
        expect(inside).toBe(lengths.filter((n) => n > from && n <= upTo).length);
        from = upTo;
      }
    }
    expect(report.row.where).toMatch(/rows-\d+\.jsonl line 3$/);
    const tokenizer = await Tokenizer.load(LLAMA3);
    const { prompt, target_chosen } = report.row.parts;
    expect(await tokenizer.decode(prompt.ids, { skipSpecialTokens: false })).toContain('What is 2 and 2?<|eot_id|>');
    expect(await tokenizer.decode(target_chosen.ids)).toBe('4<|eot_id|>');
    expect(target_chosen.kept).toEqual([0, target_chosen.ids.length]);
  });

  it('in words, without colour unless it is asked for', async () => {
    const data = file(good);
    const { stdout } = await succeed(check(data));
    expect(stdout).toMatch(/: 70 rows, for loss_type wrpo, template_mode default, max_length 2048\n/);
    expect(stdout).toMatch(/^ +0 {2}bad$/m);
    expect(stdout).toMatch(/^prompt: tokens a row, mean \d+\.\d, longest \d+\n.*█ \d+$/m);
    expect(stdout).toMatch(
      /row 1, rows-\d+\.jsonl line 1: token\(id\)[^\n]*\nprompt \(\d+ tokens\)\n {2}<\|begin_of_text\|>\(\d+\)/,
    );
    expect(stdout).not.toContain('\u001b[');
    const colours = await succeed(check(data), { env: { FORCE_COLOR: '1' } });
    const codes = new Set(
      colours.stdout
        .split('\u001b')
        .map((part) => part.slice(0, 4))
        .filter((part) => /^\[3\dm/.test(part)),
    );
    expect(codes.size).toBeGreaterThanOrEqual(3); // prompt, chosen and rejected
  });

  it('pairs, completions and token ids; other objectives on request', async () => {
    const pairs = good.map(({ prompt, target_chosen, rejected }) => ({ prompt, chosen: target_chosen, rejected }));
    expect((await json(file(pairs))).report).toMatchObject({ lossType: 'sigmoid', bad: { count: 0 } });
    const asked = await json(file(pairs), '--loss-type', 'wrpo');
    expect(asked).toMatchObject({ status: 1, report: { bad: { count: 70 } } });
    expect(asked.report.bad.first).toHaveLength(20);
    const sft = await json(file(good), '--loss-type', 'sft');
    expect(sft).toMatchObject({ status: 0, report: { lossType: 'sft', lengths: { completion: { count: 70 } } } });
    expect(sft.report.lengths.completion.max).toBe(Math.max(...(await lengthsOf(good, 'source_chosen'))));
    // Without a tokenizer rows of ids can still be read.
    const { stdout } = await succeed(['data', 'check', file(tokenRows(5, 1)), '--model', POLICY]);
    expect(stdout).toMatch(/^ +5 {2}token ids: prompt, source_chosen, target_chosen, rejected$/m);
    expect(stdout).toMatch(/^prompt \(\d+ tokens\)\n {2}\d+( \d+)*$/m);
  });
});

describe('what is lost', () => {
  it('drops and cuts are what encoding does', async () => {
    const rows = good.map((row, i) => ({
      ...row,
      prompt: row.prompt + ' more'.repeat(i % 7 === 0 ? 60 : 0),
      rejected: row.rejected + ' and more'.repeat(i % 10 === 1 ? 30 : 0),
    }));
    const data = file(rows);
    const tokenizer = await Tokenizer.load(LLAMA3);
    const roles = ['source_chosen', 'target_chosen', 'rejected'] as const;
    const inputs = rows.map((row, i) => toPreferenceRow(row, `${i}`));
    const wanted = await encodeRows(inputs, { tokenizer, roles, maxLength: 80, vocabSize: 1000 });
    expect(wanted.dropped).toBeGreaterThan(5);
    expect(wanted.truncated).toBeGreaterThan(5);
    const { status, report } = await json(data, '--max-length', '80', '--row', '2');
    expect(status).toBe(0);
    expect([report.dropped.count, report.cutResponses.count]).toEqual([wanted.dropped, wanted.truncated]);
    expect(report.dropped.first[1]).toMatch(/line 8$/);
    expect(report.cutResponses.first[0]).toMatch(/line 2: rejected$/);
    const { ids, kept } = report.row.parts.rejected;
    expect(report.row.parts.prompt.ids.length + kept[1]).toBe(80);
    expect(kept[1]).toBeLessThan(ids.length);

    const words = await succeed(check(data, '--max-length', '80', '--row', '2'));
    expect(words.stdout).toMatch(/^rejected \(\d+ tokens, \d+ cut\)\n {2}.*\) \[.*\]$/m);
    expect(words.stdout).toMatch(/^ +10 {2}dropped, the prompt is too long: rows-\d+\.jsonl line 1, .*, …$/m);
    expect((await succeed(check(data, '--max-length', '80'))).stdout).toContain('line 1, which is dropped');
    const short = await json(data, '--max-prompt-length', '50');
    expect(short.report.dropped.count).toBe(10);
    // Nothing is left to train on.
    expect((await wrpo(check(data, '--max-length', '5'))).status).toBe(1);
  });

  it('duplicates, and responses that are the same', async () => {
    const [a, b, c, d] = good as [(typeof good)[0], (typeof good)[0], (typeof good)[0], (typeof good)[0]];
    const rows = [
      a,
      b,
      { ...a, rejected: 'Another.' },
      { ...b, prompt: [{ role: 'user', content: b.prompt }] }, // the same, in another shape
      { ...c, rejected: c.target_chosen },
      { ...d, source_chosen: d.target_chosen },
    ];
    const { status, report } = await json(file(rows));
    expect(status).toBe(0);
    const lines = (found: { first: string[] }) => found.first.map((where) => Number(where.split(' ').at(-1)));
    expect(lines(report.duplicatePrompts)).toEqual([3, 4]);
    expect(lines(report.duplicateRows)).toEqual([4]);
    expect(lines(report.chosenIsRejected)).toEqual([5]);
    expect(lines(report.sourceIsTarget)).toEqual([6]);
  });
});

describe('bad rows', () => {
  it('all of them are told, wherever they stand, and the rest is counted', async () => {
    const data = path('bad.jsonl');
    const { rejected: _, ...missing } = good[1]!;
    const lines = [...good.slice(0, 65).map((row) => JSON.stringify(row)), '', '{"prompt": "cut', '7'];
    lines.splice(1, 0, JSON.stringify(missing));
    lines.splice(40, 0, JSON.stringify({ prompt: [1], source_chosen: [2], target_chosen: [3], rejected: [4000] }));
    lines.splice(66, 0, '{"prompt": "a\u2028b", "source_chosen": "b", "target_chosen": "c", "rejected": "d"}');
    writeFileSync(data, `\ufeff${lines.join('\n')}`);
    const { status, report } = await json(data);
    expect(status).toBe(1);
    expect(report.rows).toBe(70);
    expect(report.bad.count).toBe(4);
    expect(report.bad.first).toEqual([
      expect.stringMatching(/^bad\.jsonl line 2: missing key "rejected"/),
      expect.stringMatching(/^bad\.jsonl line 41: "rejected" has 4000 at position 0.*vocabulary size 1000/),
      expect.stringMatching(/^bad\.jsonl line 70: expected one JSON object on the line/),
      expect.stringMatching(/^bad\.jsonl line 71: expected an object, got a number/),
    ]);
    expect(report.lengths.prompt.count).toBe(66);
    const words = await wrpo(check(data, '--row', '2'));
    expect(words).toMatchObject({ status: 1, stderr: '' });
    expect(words.stdout).toMatch(/^ +4 {2}bad:\n +bad\.jsonl line 2: missing key/m);
    expect(words.stdout).toContain('row 2 cannot be shown: it is bad');
    expect((await wrpo(check(data, '--row', '99'))).stdout).toContain('row 99 cannot be shown: there are 70');
  });

  it('a reader that goes away is no crash', () => {
    for (const more of [[], ['--json']]) {
      const shell = ['-c', '"$0" "$@" | true; exit $PIPESTATUS', process.execPath, MAIN];
      const { status, stderr } = spawnSync('bash', [...shell, ...check(file(good), ...more)], { encoding: 'utf8' });
      expect({ status, stderr }).toEqual({ status: 1, stderr: '' });
    }
  });

  it('a file or a model that is not there, and wrong usage', async () => {
    expect(await fail(check(path('no.jsonl')), 1)).toMatch(/no\.jsonl: no such file/);
    expect(await fail(check(file([])), 1)).toMatch(/the file holds no rows/);
    expect(await fail(['data', 'check', file(good), '--model', path('no-model')], 1)).toMatch(/no model in .*no-model/);
    expect(await fail(check(file(good), '--max-length', '0'), 2)).toMatch(/--max-length.*positive whole number/);
    expect(await fail(check(file(good), '--loss-type', 'dop'), 2)).toMatch(
      /--loss-type.*wrpo, wrpo_simpo, .*sigmoid, .*sft/,
    );
    const { stdout } = await succeed(['data', 'check', '--help']);
    expect(stdout.split('\n').length).toBeLessThan(40);
    expect(stdout).toMatch(/Example: wrpo data check /);
  });
});
