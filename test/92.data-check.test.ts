/** `wrpo data check`: every fault of a file at once, and what a run would keep of its rows. */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tableFromArrays, tableToIPC } from 'apache-arrow';
import { parquetWriteFile } from 'hyparquet-writer';
import { beforeAll, describe, expect, it } from 'vitest';
import { toPreferenceRow } from '../lib/data/preferences.ts';
import { encodeRows } from '../lib/text/encode.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { resolveArgs } from '../lib/train/args.ts';
import { objectiveOf, rolesOf } from '../lib/train/objective.ts';
import { encodingOf } from '../lib/train/prepare.ts';
import { TestHub } from './hub.ts';
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
    const preset = await json(file(good), '--preset', 'table6/simpo');
    expect(preset.report).toMatchObject({ lossType: 'simpo', lengths: { target_chosen: { count: 70 } } });
    expect(Object.keys(preset.report.lengths)).not.toContain('source_chosen');
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

describe('what else training reads', () => {
  const roles = ['prompt', 'source_chosen', 'target_chosen', 'rejected'] as const;
  const column = (role: (typeof roles)[number]) =>
    good.map((row, i) => (i === 1 || i === 66 ? (role === 'rejected' ? null : row[role]) : i === 3 ? null : row[role]));
  /** The rows with three bad ones, as `save_to_disk` leaves them. */
  function saveTo(dir: string): void {
    mkdirSync(dir, { recursive: true });
    const table = tableFromArrays(Object.fromEntries(roles.map((role) => [role, column(role)])));
    writeFileSync(join(dir, 'data.arrow'), tableToIPC(table, 'stream'));
    writeFileSync(join(dir, 'state.json'), JSON.stringify({ _data_files: [{ filename: 'data.arrow' }] }));
  }
  const parquet = (filename: string) =>
    parquetWriteFile({
      filename,
      columnData: roles.map((role) => ({ name: role, data: column(role), type: 'STRING' as const })),
      rowGroupSize: 10,
    });

  it('tables and directories: all bad rows, and the rest', async () => {
    await parquet(path('table.parquet'));
    saveTo(path('saved'));
    for (const [data, name] of [
      ['table.parquet', 'table.parquet'],
      ['saved', 'data.arrow'],
    ] as const) {
      const { status, report } = await json(path(data));
      expect(status).toBe(1);
      expect(report.bad).toEqual({
        count: 3,
        first: [
          expect.stringMatching(`^${name} row 2: missing key "rejected"`),
          expect.stringMatching(`^${name} row 4: missing key "prompt"`),
          expect.stringMatching(`^${name} row 67: missing key "rejected"`),
        ],
      });
      expect([report.rows, report.lengths.prompt.count, report.lossType]).toEqual([70, 67, 'wrpo']);
    }
    // What is wrong with a whole file is no row's fault.
    writeFileSync(path('cut.parquet'), 'PAR1 and no more');
    expect(await fail(check(path('cut.parquet')), 1)).toMatch(/cut\.parquet: not a Parquet file, or one that is cut/);
  });

  it('lines that are not UTF-8, in the middle and alone', async () => {
    const bad = Buffer.concat([Buffer.from('{"prompt": "'), Buffer.of(0xff), Buffer.from('"}\n')]);
    const lines = good.slice(0, 2).map((row) => Buffer.from(`${JSON.stringify(row)}\n`));
    writeFileSync(path('latin.jsonl'), Buffer.concat([lines[0]!, bad, lines[1]!]));
    const { report } = await json(path('latin.jsonl'));
    expect(report).toMatchObject({ rows: 3, bad: { count: 1, first: ['latin.jsonl line 2: not valid UTF-8'] } });
    writeFileSync(path('latin-alone.jsonl'), Buffer.concat(Array.from({ length: 200 }, () => bad)));
    const alone = await json(path('latin-alone.jsonl'), '--loss-type', 'wrpo');
    expect(alone).toMatchObject({ status: 1, report: { rows: 200, bad: { count: 200 }, lossType: 'wrpo' } });
  });

  it('files of one name in two folders are two files', async () => {
    for (const [folder, rows] of [['a', good.slice(0, 3)] as const, ['b', good.slice(3, 5)] as const]) {
      mkdirSync(path('two', 'train', folder), { recursive: true });
      writeRows(path('two', 'train', folder, '0.jsonl'), rows);
    }
    const { status, report } = await json(path('two'));
    expect(status).toBe(0);
    expect([report.rows, report.lengths.prompt.count, report.duplicateRows.count]).toEqual([5, 5, 0]);
  });

  it('splits, and data and models of the hub, without their weights', async () => {
    saveTo(path('dict', 'train'));
    mkdirSync(path('dict', 'test'));
    cpSync(path('dict', 'train'), path('dict', 'test'), { recursive: true });
    writeFileSync(path('dict', 'dataset_dict.json'), JSON.stringify({ splits: ['train', 'test'] }));
    const half = tableFromArrays(Object.fromEntries(roles.map((role) => [role, good.map((row) => row[role])])));
    writeFileSync(path('dict', 'test', 'data.arrow'), tableToIPC(half.slice(0, 9), 'stream'));
    expect((await json(path('dict'), '--split', 'test')).report).toMatchObject({ rows: 9, bad: { count: 0 } });
    expect(await fail(check(path('dict'), '--split', 'held'), 1)).toMatch(/no split "held"; there is "train", "test"/);

    const hub = await TestHub.start();
    try {
      const files = ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'];
      const contents = Object.fromEntries(files.map((name) => [name, readFileSync(join(model, name))]));
      hub.add('owner/model', { ...contents, 'model.safetensors': 'weights' });
      const text = good.map((row) => `${JSON.stringify(row)}\n`).join('');
      hub.add('datasets/owner/rows', { 'one/train.jsonl': text, 'two/train.jsonl': text, 'two/test.jsonl': text });
      const env = { HF_ENDPOINT: hub.url, HF_HOME: path('hub home') };
      const args = [
        'data',
        'check',
        'owner/rows',
        '--model',
        'owner/model',
        '--revision',
        'v1',
        '--dataset_config',
        'two',
      ];
      const { stdout, stderr } = await succeed([...args, '--json', '--split', 'test'], { env });
      expect(JSON.parse(stdout)).toMatchObject({ file: 'owner/rows', rows: 70, bad: { count: 0 } });
      expect(stderr).toMatch(/^downloading two\/test\.jsonl of owner\/rows/m);
      expect(hub.requests.filter((request) => /safetensors|train\.jsonl/.test(request))).toEqual([]);
      expect(hub.requests).toContain('/api/datasets/owner/rows/revision/v1');
    } finally {
      hub.close();
    }
  });

  const BLOCKS = { loss_type: 'sft', packing: true, packing_strategy: 'wrapped', max_length: 64 };
  it.each([
    ['blocks', BLOCKS],
    ['the whole text of the authors', { loss_type: 'sft', template_mode: 'authors', max_length: 64 }],
    ['all tokens', { loss_type: 'sft', completion_only_loss: false, max_length: 64 }],
    ['the authors’ pairs', { loss_type: 'wrpo', template_mode: 'authors', max_length: 70, max_prompt_length: 60 }],
  ])('%s: what encoding for such a run makes of the rows', async (_, keys) => {
    const args = resolveArgs({ output_dir: '.', ...keys });
    const tokenizer = await Tokenizer.load(LLAMA3);
    const long = good.map((row, i) => ({ ...row, prompt: row.prompt + ' more'.repeat(i % 7 === 0 ? 60 : 0) }));
    const inputs = long.map((row, i) => {
      const { source_chosen, prompt } = row;
      return toPreferenceRow(args.lossType === 'sft' ? { prompt, completion: source_chosen } : row, `${i}`);
    });
    // The first that is kept.
    const shown = args.completionOnlyLoss === false ? '2' : '1';
    const wanted = await encodeRows(inputs, {
      ...encodingOf(args, 1000, rolesOf(objectiveOf(args, args.alpha))),
      tokenizer,
    });
    const options = Object.entries(keys).flatMap(([key, value]) => [`--${key}`, String(value)]);
    const { status, report } = await json(file(long), '--row', shown, ...options);
    expect(status).toBe(0);
    const { dropped, cutPrompts, cutResponses, blocks } = report;
    expect([dropped.count, cutPrompts.count, cutResponses.count]).toEqual([
      wanted.dropped,
      wanted.truncatedPrompts,
      wanted.truncated,
    ]);
    if (keys === BLOCKS) expect(blocks).toEqual({ count: wanted.rows.length, leftOver: wanted.leftOver });
    else expect(wanted.dropped + wanted.truncated + wanted.truncatedPrompts).toBeGreaterThan(5);
    const parts = Object.entries(report.row.parts as Record<string, { ids: number[]; kept: [number, number] }>);
    const kept = parts.flatMap(
      ([
        ,
        {
          ids,
          kept: [from, to],
        },
      ]) => ids.slice(from, to),
    );
    const [first] = wanted.rows;
    if (keys !== BLOCKS) {
      expect(kept).toEqual([...first!.prompt, ...Object.values(first!.responses).flatMap((ids) => [...ids])]);
    }
    expect(parts[0]![0]).toBe(args.lossType === 'sft' && args.completionOnlyLoss !== false ? 'text' : 'prompt');
  });

  it('says what becomes of blocks, and fails when there is none', async () => {
    const options = Object.entries(BLOCKS).flatMap(([key, value]) => [`--${key}`, String(value)]);
    const { stdout } = await succeed(check(file(good), ...options));
    expect(stdout).toMatch(/^ +\d+ {2}blocks of 64 tokens; \d+ tokens at the end are left out$/m);
    expect((await wrpo(check(file(good.slice(0, 1)), ...options, '--max_length', '4000'))).status).toBe(1);
  });

  it('the data of a run file, for its run; what the command line says outweighs it', async () => {
    const run = path('run.yaml');
    const keys = { model_name_or_path: model, dataset_name: file(good), loss_type: 'dpo', max_length: 60 };
    writeFileSync(
      run,
      Object.entries({ ...keys, bf16: true })
        .map((pair) => `${pair.join(': ')}\n`)
        .join(''),
    );
    const { stdout } = await succeed(['data', 'check', '--config', run, '--json']);
    expect(JSON.parse(stdout)).toMatchObject({ file: keys.dataset_name, lossType: 'sigmoid', maxLength: 60, rows: 70 });
    const other = await succeed([
      'data',
      'check',
      file(good.slice(0, 9)),
      '--config',
      run,
      '--max-length=50',
      '--json',
    ]);
    expect(JSON.parse(other.stdout)).toMatchObject({ maxLength: 50, rows: 9 });
    writeFileSync(run, 'max_lenght: 60\n');
    expect(await fail(['data', 'check', '--config', run], 1)).toMatch(/run\.yaml line 1: unknown key "max_lenght"/);
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

  it('rows that the template refuses, or is not made for', async () => {
    const refusing = path('refusing');
    cpSync(model, refusing, { recursive: true });
    writeFileSync(
      join(refusing, 'chat_template.jinja'),
      `{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('bad words') }}{% endif %}
{%- if 'ugly' in m.content %}{{ 1 + m }}{% endif %}{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}
{%- if add_generation_prompt %}assistant<|end_header_id|>{% endif %}`,
    );
    const answer: Record<number, string> = { 20: 'bad', 21: 'ugly', 22: 'bad', 69: 'bad' };
    const rows = good.map(({ prompt }, i) => ({ prompt, completion: answer[i] ?? 'fine' }));
    const { status, stdout } = await wrpo(['data', 'check', file(rows), '--model', refusing, '--json']);
    const { bad, lengths } = JSON.parse(stdout);
    expect([status, lengths.prompt.count]).toEqual([1, 66]);
    expect(bad.first).toEqual([
      expect.stringMatching(/ line 21: the chat template of .* refuses the turns \(user, assistant\): bad words$/),
      expect.stringMatching(/ line 22: the chat template of .* fails on the turns \(user, assistant\): /),
      expect.stringMatching(/ line 23: .*bad words$/),
      expect.stringMatching(/ line 70: .*bad words$/),
    ]);
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
    expect(await fail(check(file([])), 1)).toMatch(/holds no rows/);
    expect(await fail(['data', 'check', file(good), '--model', path('no-model')], 1)).toMatch(/no model in .*no-model/);
    expect(await fail(check(file(good), '--row', '0'), 2)).toMatch(/--row.*positive whole number/);
    expect(await fail(check(file(good), '--max-length', '0'), 1)).toMatch(/command line: "max_length": .*found 0/);
    expect(await fail(check(file(good), '--loss-type', 'dop'), 1)).toMatch(/command line: "loss_type": .*"sft".*"dop"/);
    expect(await fail(check(file(good), '--max-lenght', '9'), 1)).toMatch(/"max_lenght"; did you mean "max_length"\?/);
    expect(await fail(check(file(good), '--json', 'more.jsonl'), 1)).toMatch(/unexpected argument "more\.jsonl"/);
    expect(await fail(['data', 'check', '--model', model], 1)).toMatch(/needs data: give a file, or --config/);
    expect(await fail(['data', 'check', file(good)], 1)).toMatch(/needs a model: give --model, or --config/);
    const { stdout } = await succeed(['data', 'check', '--help']);
    expect(stdout.split('\n').length).toBeLessThan(30);
    expect(stdout).toMatch(/Example: wrpo data check /);
  });
});
