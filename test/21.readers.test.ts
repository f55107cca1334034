import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { parquetMetadata } from 'hyparquet';
import { parquetWriteFile } from 'hyparquet-writer';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { fetchModel } from '../lib/data/hub.ts';
import { loadPreferences, type PreferenceRow, readPreferences } from '../lib/data/preferences.ts';
import { COMMIT, oidOf, TestHub } from './hub.ts';
import { FIXTURES, failure, filesBelow, scratchDirectory } from './training.ts';

const scratch = scratchDirectory('readers');
const data = (...parts: string[]) => join(FIXTURES, 'data', ...parts);
const message = async (act: () => unknown): Promise<string> => {
  const error = await failure(act);
  expect(error.code).toBe('ERR_DATA');
  expect(error.message).not.toContain('\n');
  return error.message;
};

/** Writes files below a directory of its own. */
function tree(name: string, files: Record<string, string | Buffer>): string {
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(dirname(scratch(name, path)), { recursive: true });
    writeFileSync(scratch(name, path), content);
  }
  return scratch(name);
}

const line = (prompt: string) => `${JSON.stringify({ prompt, completion: 'a' })}\n`;
const prompts = async (source: string, options = {}) =>
  (await loadPreferences(source, options)).map(({ prompt }) => prompt);
const withoutPlace = (rows: PreferenceRow[]) => rows.map(({ where: _, ...row }) => row);
const places = (rows: PreferenceRow[]) => rows.map(({ where }) => where);
/** Open files of this process below the scratch directory or among the fixtures. */
const openFiles = () =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return /wrpo-readers|fixtures/.test(readlinkSync(`/proc/self/fd/${fd}`));
    } catch {
      return false;
    }
  });

/** A Parquet file whose second row group (rows 4 to 6) is damaged where its prompts are. */
function damagedParquet(): Buffer {
  const bytes = readFileSync(data('flat.zstd.parquet'));
  const { row_groups } = parquetMetadata(new Uint8Array(bytes).buffer);
  const column = row_groups[1]!.columns.find(({ meta_data }) => meta_data?.path_in_schema[0] === 'prompt')!.meta_data!;
  const start = Number(column.dictionary_page_offset ?? column.data_page_offset);
  return bytes.fill(0xff, start, start + Number(column.total_compressed_size));
}

describe('the same rows in every format', () => {
  const kinds = ['flat', 'pairs', 'authors', 'ids'];
  const others = (kind: string) => [`${kind}.snappy.parquet`, `${kind}.zstd.parquet`, `saved_${kind}`];

  it.each(kinds.flatMap((kind) => others(kind).map((other) => [kind, other] as const)))(
    '%s: %s',
    async (kind, other) => {
      const expected = await loadPreferences(data(`${kind}.jsonl`));
      expect(expected.length).toBeGreaterThan(3);
      const rows = await loadPreferences(data(other));
      expect(withoutPlace(rows)).toEqual(withoutPlace(expected));
    },
  );

  it('counts from one, over row groups and batches, and anew in each file', async () => {
    const count = (file: string, n: number) => Array.from({ length: n }, (_, i) => `${file} row ${i + 1}`);
    expect(places(await loadPreferences(data('flat.zstd.parquet')))).toEqual(count('flat.zstd.parquet', 7));
    expect(places(await loadPreferences(data('types.arrow')))).toEqual(count('types.arrow', 4));
    const shards = [3, 2, 2].flatMap((n, i) => count(`data-0000${i}-of-00003.arrow`, n));
    expect(places(await loadPreferences(data('saved_flat')))).toEqual(shards);
  });

  it('numbers of 64 bits are numbers', async () => {
    for (const file of ['ids.snappy.parquet', 'saved_ids']) {
      const [row] = await loadPreferences(data(file));
      expect(row).toMatchObject({ prompt: [1, 2], responses: { target_chosen: [3], rejected: [7, 128255] } });
    }
  });

  it('Arrow of the less common types, as a stream and as a file', async () => {
    for (const file of ['types.arrow', 'types.file.arrow']) {
      const rows = await loadPreferences(data(file));
      expect(withoutPlace(rows)).toEqual(
        [0, 1, 2, 3].map((i) => ({
          prompt: [{ role: 'user', content: `question ${i}` }],
          responses: {
            target_chosen: [{ role: 'assistant', content: `a good answer, number ${i}` }],
            rejected: `bad ${i}`,
          },
        })),
      );
    }
  });

  it('gzip, and one array of JSON', async () => {
    const text = readFileSync(data('pairs.jsonl'));
    const values = text.toString().trim().split('\n');
    const dir = tree('packed', {
      'rows.jsonl.gz': gzipSync(text),
      'rows.json': `\ufeff [\n${values.join(',\n')}]\n`,
    });
    const expected = withoutPlace(await loadPreferences(data('pairs.jsonl')));
    const zipped = await loadPreferences(join(dir, 'rows.jsonl.gz'));
    expect(withoutPlace(zipped)).toEqual(expected);
    expect(zipped[4]!.where).toBe('rows.jsonl.gz line 5');
    const array = await loadPreferences(join(dir, 'rows.json'));
    expect(withoutPlace(array)).toEqual(expected);
    expect(array[4]!.where).toBe('rows.json row 5');
  });
});

describe('a table that is not one of rows', () => {
  it.each([
    ['other.parquet', 'other.parquet'],
    ['saved_other', join('saved_other', 'data-00000-of-00001.arrow')],
  ])('%s', async (source, file) => {
    const text = await message(() => loadPreferences(data(source)));
    expect(text.startsWith(`${data(file)}: no column holds responses; expected source_chosen,`)).toBe(true);
    expect(text).toContain('its columns are "text", "label"');
  });

  async function parquet(name: string, columns: Record<string, unknown[]>, types: Record<string, string> = {}) {
    const columnData = Object.entries(columns).map(([name, values]) => ({
      name,
      data: values,
      type: (types[name] ?? 'STRING') as 'STRING',
    }));
    await parquetWriteFile({ filename: scratch(name), columnData });
    return scratch(name);
  }

  it('is told with the name that was meant', async () => {
    const meant = await parquet('meant.parquet', { promt: ['p'], rejected: ['b'], y_wt: ['a'] });
    expect(await message(() => loadPreferences(meant))).toBe(
      `${meant}: no column "prompt"; its columns are "promt", "rejected", "y_wt" (is "promt" meant for it?)`,
    );
  });

  it('names the row whose cell is of another type', async () => {
    const path = await parquet('numbers.parquet', { prompt: ['p'], completion: [5n] }, { completion: 'INT64' });
    expect(await message(() => loadPreferences(path))).toBe(
      'numbers.parquet row 1: "completion" must be a string, a list of messages or a list of token ids, got a number',
    );
    const nulls = await parquet('nulls.parquet', { prompt: ['p', null], completion: ['a', 'b'] });
    expect(await message(() => loadPreferences(nulls))).toBe('nulls.parquet row 2: missing key "prompt"');
  });

  it('names the row that is not UTF-8', async () => {
    const bytes = (text: string) => Buffer.from(text, 'latin1');
    const odd = [bytes('fine'), bytes('caf\xe9'), bytes('fine')];
    const path = await parquet(
      'latin.parquet',
      { prompt: ['p', 'q', 'r'], completion: odd },
      { completion: 'BYTE_ARRAY' },
    );
    expect(await message(() => loadPreferences(path))).toMatch(/^latin\.parquet row 2: .*bytes that are not UTF-8$/);

    const arrow = readFileSync(data('saved_flat', 'data-00000-of-00003.arrow'));
    arrow[arrow.indexOf('target 1') + 2] = 0xff;
    const dir = tree('latin', { 'rows.arrow': arrow });
    expect(await message(() => loadPreferences(join(dir, 'rows.arrow')))).toMatch(
      /^rows\.arrow row 2: "target_chosen" .*bytes that are not UTF-8$/,
    );
  });
});

describe('a file that is cut or of another kind', () => {
  it('is refused wherever it is cut', async () => {
    for (const [name, step] of [
      ['flat.zstd.parquet', 487],
      ['pairs.snappy.parquet', 487],
      ['types.arrow', 96],
      ['types.file.arrow', 146],
    ] as const) {
      const whole = readFileSync(data(name));
      for (let end = 0; end < whole.length; end += step) {
        const dir = tree('cut', { [name]: whole.subarray(0, end) });
        const text = await message(() => loadPreferences(join(dir, name)));
        expect(text, `${name} at ${end}`).toContain(name);
        expect(text, `${name} at ${end}`).toMatch(/cut short|not a|cannot be read/);
      }
    }
    const gzip = gzipSync(readFileSync(data('pairs.jsonl')));
    const dir = tree('cut', { 'rows.jsonl.gz': gzip.subarray(0, gzip.length - 20) });
    expect(await message(() => loadPreferences(join(dir, 'rows.jsonl.gz')))).toContain(
      'rows.jsonl.gz: cannot be read: ',
    );
  });

  it('a stream that ends between two batches is not taken for a shorter one', async () => {
    const stream = readFileSync(data('types.arrow')).subarray(0, -8);
    const dir = tree('cut', { 'end.arrow': stream });
    expect(await message(() => loadPreferences(join(dir, 'end.arrow')))).toBe(
      `${join(dir, 'end.arrow')}: the file is cut short`,
    );
  });

  it('a damaged page names its rows', async () => {
    const bytes = damagedParquet();
    const dir = tree('damaged', { 'flat.parquet': bytes });
    expect(await message(() => loadPreferences(join(dir, 'flat.parquet')))).toMatch(
      /^flat\.parquet rows \d to \d: cannot be read: /,
    );
  });

  it('is refused by its content, not believed by its name', async () => {
    const text = readFileSync(data('flat.jsonl'));
    const dir = tree('named', {
      'a.parquet': text,
      'a.arrow': text,
      'a.jsonl.gz': text,
      'p.jsonl': readFileSync(data('ids.zstd.parquet')),
    });
    expect(await message(() => loadPreferences(join(dir, 'a.parquet')))).toContain('not a Parquet file');
    expect(await message(() => loadPreferences(join(dir, 'a.arrow')))).toContain('not an Arrow file');
    expect(await message(() => loadPreferences(join(dir, 'a.jsonl.gz')))).toContain('cannot be read: incorrect header');
    expect(await message(() => loadPreferences(join(dir, 'p.jsonl')))).toContain('p.jsonl line 1: ');
  });

  it('or that cannot be opened', async () => {
    for (const name of ['a.parquet', 'a.arrow', 'a.jsonl', 'a.jsonl.gz']) {
      expect(await message(() => loadPreferences(scratch('absent', name)))).toBe(
        `${scratch('absent', name)}: no such file`,
      );
      const below = join(data('flat.jsonl'), name);
      expect(await message(() => loadPreferences(below))).toContain(`${below}: cannot be read: ENOTDIR`);
    }
  });
});

describe('a directory', () => {
  it.each([
    ['a file a split', { 'train.jsonl': line('a'), 'test.jsonl': line('b') }, {}, ['a']],
    ['the other split', { 'train.jsonl': line('a'), 'test.jsonl': line('b') }, { split: 'test' }, ['b']],
    [
      'parts in order',
      { 'data/train-00001-of-00002.jsonl': line('b'), 'data/train-00000-of-00002.jsonl': line('a'), 'README.md': '' },
      {},
      ['a', 'b'],
    ],
    [
      'parts with a hash',
      {
        'data/train_prefs-00000-of-00001-6497e921066ee0fd.jsonl': line('a'),
        'data/test_prefs-00000-of-00001-0a.jsonl': line('b'),
      },
      { split: 'test_prefs' },
      ['b'],
    ],
    ['a longer name', { 'train_prefs.jsonl': line('a'), 'test_prefs.jsonl': line('b') }, {}, ['a']],
    [
      'a folder a split',
      { 'train/0.jsonl': line('a'), 'train/1.jsonl': line('b'), 'test/0.jsonl': line('c') },
      {},
      ['a', 'b'],
    ],
    [
      'other names',
      { 'b.jsonl': line('b'), 'a.jsonl': line('a'), '.c.jsonl': line('c'), 'dataset_info.json': '{}' },
      {},
      ['a', 'b'],
    ],
    ['a configuration', { 'en/train.jsonl': line('a'), 'de/train.jsonl': line('b') }, { config: 'de' }, ['b']],
    ['the only configuration', { 'en/train.jsonl': line('a') }, {}, ['a']],
    ['the default one', { 'default/train/0.jsonl': line('a'), 'de/train/0.jsonl': line('b') }, {}, ['a']],
    [
      'a README that declares nothing of use',
      { 'README.md': '---\nconfigs: [null, data_files]\n---\n', 'train.jsonl': line('a') },
      {},
      ['a'],
    ],
    [
      'what its README declares',
      {
        'README.md':
          '---\nconfigs:\n- config_name: x\n  data_files: other/*.jsonl\n- config_name: y\n  default: true\n  data_files:\n  - split: train\n    path: [ "files/p-?.jsonl" ]\n  - split: held_out\n    path: ./files/**\n---\n# Rows\n',
        'files/p-1.jsonl': line('a'),
        'files/p-2.jsonl': line('b'),
        'files/deep/q.jsonl': line('c'),
        'other/r.jsonl': line('d'),
      },
      {},
      ['a', 'b'],
    ],
  ])('with %s', async (name, files, options, expected) => {
    expect(await prompts(tree(`dir ${name}`, files as Record<string, string>), options)).toEqual(expected);
  });

  it('read by what its README declares, of another split and configuration', async () => {
    const dir = scratch('dir what its README declares');
    expect(await prompts(dir, { split: 'held_out' })).toEqual(['c', 'a', 'b']);
    expect(await prompts(dir, { config: 'x' })).toEqual(['d']);
    expect(await message(() => loadPreferences(dir, { config: 'z' }))).toContain(
      'no configuration "z"; there is "x", "y"',
    );
  });

  it.each([
    [
      'without the split',
      { 'train.jsonl': line('a'), 'test.jsonl': line('b') },
      { split: 'dev' },
      'has no split "dev"; there is "test", "train"',
    ],
    [
      'with several that could be meant',
      { 'train_sft.jsonl': line('a'), 'train_prefs.jsonl': line('b') },
      {},
      'has no split "train"; there is "train_prefs", "train_sft"',
    ],
    ['with only a test split', { 'test.jsonl': line('a') }, {}, 'has no split "train"; there is "test"'],
    [
      'with several configurations',
      { 'en/train.jsonl': line('a'), 'de/train.jsonl': line('b') },
      {},
      'has several configurations and none was chosen; there is "de", "en"',
    ],
    [
      'that lacks a part',
      { 'train-00000-of-00002.jsonl': line('a') },
      {},
      'only 1 of the 2 parts of the split are there',
    ],
    [
      'that has the split twice',
      { 'train.jsonl': line('a'), 'train.json': line('a') },
      {},
      'holds the split as .json and as .jsonl; name one',
    ],
    ['without data', { 'notes.txt': 'x' }, {}, 'holds no .jsonl, .json, .jsonl.gz, .parquet or .arrow file'],
    ['of empty files', { 'train.jsonl': '\n' }, {}, 'holds no rows'],
  ])('%s is refused', async (name, files, options, words) => {
    const dir = tree(`dir ${name}`, files as Record<string, string>);
    const text = await message(() => loadPreferences(dir, options));
    expect(text.startsWith(`${dir}: ${words}`), text).toBe(true);
  });

  it('of save_to_disk, with its splits', async () => {
    expect(await prompts(data('saved_pairs'))).toHaveLength(5);
    expect(await prompts(data('saved_pairs'), { split: 'test' })).toEqual(['question 0', 'question 1']);
    expect(await message(() => loadPreferences(data('saved_pairs'), { split: 'dev' }))).toBe(
      `${data('saved_pairs')}: has no split "dev"; there is "train", "test"`,
    );
  });

  it('tells apart the rows of files of one name', async () => {
    const rows = await loadPreferences(data('saved_pairs'), { split: 'test' });
    expect(rows[0]!.where).toBe('test/data-00000-of-00001.arrow row 1');
    const dir = tree('same names', { 'train/a/0.jsonl': line('a'), 'train/b/0.jsonl': `${line('b')}{}` });
    expect(await message(() => loadPreferences(dir))).toMatch(/^train\/b\/0\.jsonl line 2: /);
  });

  it('of save_to_disk keeps the order that state.json gives', async () => {
    cpSync(data('saved_flat'), scratch('reordered'), { recursive: true });
    const state = JSON.parse(readFileSync(scratch('reordered', 'state.json'), 'utf8'));
    state._data_files.reverse();
    writeFileSync(scratch('reordered', 'state.json'), JSON.stringify(state));
    const files = (await loadPreferences(scratch('reordered'))).map(({ where }) => where.split(' ')[0]);
    expect([...new Set(files)].map((name) => name?.slice(0, 10))).toEqual(['data-00002', 'data-00001', 'data-00000']);
  });

  it('of save_to_disk that is a selection, damaged or incomplete is refused', async () => {
    cpSync(data('saved_flat'), scratch('odd'), { recursive: true });
    const state = JSON.parse(readFileSync(scratch('odd', 'state.json'), 'utf8'));
    const write = (text: string) => writeFileSync(scratch('odd', 'state.json'), text);
    write(JSON.stringify({ ...state, _indices_data_files: [{ filename: 'indices.arrow' }] }));
    expect(await message(() => loadPreferences(scratch('odd')))).toContain(
      'call flatten_indices() before save_to_disk',
    );
    write('{');
    expect(await message(() => loadPreferences(scratch('odd')))).toContain('state.json: cannot be read as what');
    write('{}');
    expect(await message(() => loadPreferences(scratch('odd')))).toContain('state.json: ');
    write(JSON.stringify({ ...state, _data_files: [{ filename: 'gone.arrow' }] }));
    expect(await message(() => loadPreferences(scratch('odd')))).toContain('gone.arrow: no such file');
  });
});

describe('reading is streaming', () => {
  it('breaking out closes the file', async () => {
    const zipped = join(
      tree('closed', { 'a.jsonl.gz': gzipSync(line('x').repeat(100_000), { level: 0 }) }),
      'a.jsonl.gz',
    );
    const files = ['flat.jsonl', 'flat.zstd.parquet', 'types.arrow', 'types.file.arrow'].map((name) => data(name));
    for (const file of [...files, zipped]) {
      for await (const row of readPreferences(file)) {
        expect(row.where).toMatch(/ 1$/);
        expect(openFiles(), file).toHaveLength(1);
        break;
      }
      await vi.waitFor(() => expect(openFiles(), file).toEqual([]), 30_000);
    }
  });

  it('the first rows come before the last are read', async () => {
    // The last line and the second row group are damaged: only who reads so far meets it.
    const jsonl = tree('late', { 'a.jsonl': `${line('x'.repeat(3 << 20)).repeat(2)}{` });
    tree('late', { 'a.parquet': damagedParquet() });
    for (const name of ['a.jsonl', 'a.parquet']) {
      const rows = readPreferences(join(jsonl, name));
      expect((await rows.next()).value!.where).toMatch(/ 1$/);
      await expect(loadPreferences(join(jsonl, name))).rejects.toThrow(/line 3|rows 4 to 6/);
      await rows.return(undefined);
    }
  });

  it('takes memory for one row group, not for the file', async () => {
    const rows = 20_000;
    const texts = Array.from({ length: rows }, (_, i) => `${i} `.repeat(400));
    const columnData = ['prompt', 'chosen', 'rejected'].map((name) => ({ name, data: texts, type: 'STRING' as const }));
    await parquetWriteFile({ filename: scratch('big.parquet'), columnData, rowGroupSize: 500, codec: 'SNAPPY' });
    const module = JSON.stringify(new URL('../dist/data/preferences.js', import.meta.url).pathname);
    const script = `
      import { readFileSync } from 'node:fs';
      const { readPreferences } = await import(${module});
      let rows = 0, characters = 0;
      for await (const row of readPreferences(process.argv[1])) { rows++; characters += row.prompt.length; }
      // The program's own: what getrusage counts begins with what the process that started it had.
      const peak = /VmHWM:\\s*(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1] / 1024;
      console.log(JSON.stringify({ rows, characters, peak }));`;
    const flags = ['--max-semi-space-size=2', '--input-type=module', '-e', script, scratch('big.parquet')];
    // Without a sanitizer, which takes memory of its own.
    const env = { ...process.env, LD_PRELOAD: '' };
    const result = JSON.parse(execFileSync(process.execPath, flags, { encoding: 'utf8', env }));
    expect(result).toMatchObject({ rows, characters: texts.join('').length });
    expect(3 * result.characters).toBeGreaterThan(120e6);

    expect(result.peak).toBeLessThan(160);
  });
});

describe('the hub', () => {
  let hub: TestHub;
  const before = { ...process.env };
  const TOKEN = 'hf_secretOfTheTest';
  beforeAll(async () => {
    hub = await TestHub.start();
  });
  afterAll(() => {
    hub.close();
    for (const name of Object.keys(process.env)) if (!(name in before)) delete process.env[name];
    Object.assign(process.env, before);
  });

  let home: string;
  let homes = 0;
  beforeEach(() => {
    home = scratch(`home ${homes++}`);
    for (const name of Object.keys(process.env)) if (/^(HF_|HUGGING)/.test(name)) delete process.env[name];
    Object.assign(process.env, { HF_ENDPOINT: `${hub.url}/`, HF_HOME: home });
    hub.requests.length = 0;
    hub.repositories.clear();
    hub.tokens.clear();
    hub.cuts.clear();
    hub.tokensSeen.clear();
    hub.status = hub.store = undefined;
    hub.add('datasets/owner/pairs', {
      'README.md': '# no declaration',
      'data/train-00000-of-00002.jsonl': line('a'),
      'data/train-00001-of-00002.jsonl': line('b é'),
      'data/test-00000-of-00001.jsonl': line('c'),
      'script.py': 'import os',
    });
  });
  const cache = (...parts: string[]) => join(home, 'hub', ...parts);
  const refusal = async (act: () => unknown) => {
    const error = await failure(act);
    expect(JSON.stringify([error.message, error.cause])).not.toContain(TOKEN);
    expect(error.message).not.toContain('\n');
    return error.message;
  };

  it('a data set is fetched into the cache of Python, its split alone', async () => {
    expect(await prompts('owner/pairs')).toEqual(['a', 'b é']);
    const snapshot = cache('datasets--owner--pairs', 'snapshots', COMMIT);
    expect(filesBelow(snapshot)).toEqual(
      ['README.md', 'data', 'data/train-00000-of-00002.jsonl', 'data/train-00001-of-00002.jsonl'].sort(),
    );
    expect(readlinkSync(join(snapshot, 'README.md'))).toBe(`../../blobs/${oidOf(Buffer.from('# no declaration'))}`);
    expect(readFileSync(cache('datasets--owner--pairs', 'refs', 'main'), 'utf8')).toBe(COMMIT);

    hub.requests.length = 0;
    expect(await prompts('owner/pairs', { split: 'test' })).toEqual(['c']);
    expect(hub.requests.filter((path) => path.includes('/resolve/'))).toEqual([
      `/datasets/owner/pairs/resolve/${COMMIT}/data/test-00000-of-00001.jsonl`,
    ]);
  });

  it('where a row stands is told as of a file', async () => {
    hub.add('datasets/owner/bad', { 'train.jsonl': `${line('a')}{"prompt": 1}` });
    expect(await message(() => loadPreferences('owner/bad'))).toContain('train.jsonl line 2: ');
  });

  it('of a revision', async () => {
    expect(await prompts('owner/pairs', { revision: 'v1' })).toEqual(['a', 'b é']);
    expect(readdirSync(cache('datasets--owner--pairs', 'refs'))).toEqual(['v1']);
    expect(await prompts('owner/pairs', { revision: COMMIT })).toEqual(['a', 'b é']);
    expect(await refusal(() => loadPreferences('owner/pairs', { revision: 'v9' }))).toBe(
      `owner/pairs is no local path, and as a dataset on the hub (revision v9) it has no such revision: see ${hub.url}/datasets/owner/pairs`,
    );
  });

  it('offline, from the cache alone', async () => {
    process.env.HF_HUB_OFFLINE = '1';
    const cold = await refusal(() => loadPreferences('owner/pairs'));
    expect(cold).toContain('(revision main) it is not in the cache, and HF_HUB_OFFLINE is set');
    delete process.env.HF_HUB_OFFLINE;
    await loadPreferences('owner/pairs');
    hub.requests.length = 0;
    process.env.HF_HUB_OFFLINE = 'yes';
    expect(await prompts('owner/pairs')).toEqual(['a', 'b é']);
    expect(await refusal(() => loadPreferences('owner/pairs', { split: 'test' }))).toContain('there is "train"');
    expect(hub.requests).toEqual([]);
  });

  it('private ones, with the token of the environment or of a login', async () => {
    hub.add('datasets/owner/private', { 'train.jsonl': line('p') }, TOKEN);
    const without = await refusal(() => loadPreferences('owner/private'));
    expect(without).toContain('it is private, gated or not there: check the id, or set HF_TOKEN');
    process.env.HF_TOKEN = 'hf_another';
    expect(await refusal(() => loadPreferences('owner/private'))).toContain(
      `it needs permission: accept its terms at ${hub.url}/datasets/owner/private with the account of the token`,
    );
    process.env.HF_TOKEN = TOKEN;
    expect(await refusal(() => loadPreferences('owner/absent'))).toContain(
      'does not exist, or the token may not read it',
    );
    expect(await prompts('owner/private')).toEqual(['p']);
    process.env.HF_TOKEN = TOKEN.slice(3);
    const odd = await refusal(() => loadPreferences('owner/private'));
    expect(odd).toContain('HF_TOKEN is no token, which begins with "hf_"');
    expect(odd).not.toContain(TOKEN.slice(3));
    delete process.env.HF_TOKEN;
    writeFileSync(join(home, 'token'), `${TOKEN}\n`);
    expect(await prompts('owner/private')).toEqual(['p']);
  });

  it('the token is not shown to another host, to which the hub redirects', async () => {
    const store = await TestHub.start();
    try {
      hub.add('datasets/owner/private', { 'train.jsonl': line('p'.repeat(2000)) }, TOKEN);
      store.add('datasets/owner/private', { 'train.jsonl': line('p'.repeat(2000)) });
      store.cuts.set('train.jsonl', [1500]);
      hub.store = store;
      process.env.HF_TOKEN = TOKEN;
      const said: string[] = [];
      expect(await prompts('owner/private', { say: (text: string) => said.push(text) })).toEqual(['p'.repeat(2000)]);
      expect(said).toEqual(['downloading train.jsonl of owner/private (0.0 MB)']);
      const file = `/datasets/owner/private/resolve/${COMMIT}/train.jsonl`;
      expect(store.requests).toEqual([file, `${file} bytes=1500-`]);
      expect([hub.tokensSeen, store.tokensSeen]).toEqual([new Set([TOKEN]), new Set()]);
    } finally {
      store.close();
    }
  });

  it('an interrupted transfer goes on where it stopped', async () => {
    const long = line('x'.repeat(300_000));
    hub.add('datasets/owner/long', { 'train.jsonl': long });
    hub.cuts.set('train.jsonl', [100_000, 50_000]);
    expect(await prompts('owner/long')).toEqual(['x'.repeat(300_000)]);
    const ranges = hub.requests.filter((path) => path.includes('/resolve/')).map((path) => path.split(' ')[1]);
    expect(ranges).toEqual([undefined, 'bytes=100000-', 'bytes=150000-']);
    expect(filesBelow(cache()).filter((name) => name.includes('incomplete'))).toEqual([]);
  });

  it('one that never ends well leaves nothing that passes for whole, and is taken up by the next run', async () => {
    const long = line('y'.repeat(300_000));
    hub.add('datasets/owner/long', { 'train.jsonl': long });
    hub.cuts.set('train.jsonl', [4000, 0, 0, 0, 0]);
    const text = await refusal(() => loadPreferences('owner/long'));
    expect(text).toContain(`it cannot be fetched from ${hub.url} (`);
    expect(existsSync(cache('datasets--owner--long', 'blobs', oidOf(Buffer.from(long))))).toBe(false);
    process.env.HF_HUB_OFFLINE = '1';
    await refusal(() => loadPreferences('owner/long'));
    delete process.env.HF_HUB_OFFLINE;
    hub.requests.length = 0;
    expect(await prompts('owner/long')).toEqual(['y'.repeat(300_000)]);
    expect(hub.requests.at(-1)).toContain('bytes=4000-');
  });

  it('out of reach or out of order is one sentence', async () => {
    hub.status = 503;
    expect(await refusal(() => loadPreferences('owner/pairs'))).toContain('it cannot be fetched: the hub answers 503');
    hub.status = undefined;
    await loadPreferences('owner/pairs');
    process.env.HF_ENDPOINT = 'http://127.0.0.1:9';
    expect(await refusal(() => loadPreferences('owner/other'))).toMatch(
      /^owner\/other is no local path.*cannot be fetched from http:\/\/127\.0\.0\.1:9 \(.+\): check the network$/,
    );
    expect(await refusal(() => loadPreferences('owner/pairs'))).toContain(
      'set HF_HUB_OFFLINE=1 to use what is in the cache',
    );
  });

  it('a cache that cannot be written is one sentence', async () => {
    process.env.HF_HUB_CACHE = join(data('flat.jsonl'), 'cache');
    expect(await refusal(() => loadPreferences('owner/pairs'))).toContain('it cannot be kept in the cache: ENOTDIR');
  });

  it('names that leave the repository are refused', async () => {
    hub.add('datasets/owner/evil', { 'data/../../../../train.jsonl': line('a') });
    expect(await refusal(() => loadPreferences('owner/evil'))).toContain('names a file outside of itself');
    expect(filesBelow(home).filter((name) => name.endsWith('train.jsonl'))).toEqual([]);
  });

  it('a path that is no id is not looked for there', async () => {
    for (const path of ['owner/rows.jsonl', './owner/pairs', 'a/b/c', 'pairs'])
      await refusal(() => loadPreferences(path));
    expect(hub.requests).toEqual([]);
  });

  it('of a model, what loading needs; never pickles', async () => {
    const files = ['config.json', 'generation_config.json', 'model-00001-of-00002.safetensors', 'tokenizer.json'];
    files.push('model-00002-of-00002.safetensors', 'model.safetensors.index.json', 'tokenizer_config.json');
    files.push('chat_template.jinja', 'special_tokens_map.json', 'tokenizer.model', 'vocab.json', 'merges.txt');
    const never = [
      'pytorch_model.bin',
      'original/consolidated.00.pth',
      'consolidated.safetensors',
      'README.md',
      'x.py',
    ];
    const text = (name: string) => `content of ${name}`;
    hub.add('owner/model', Object.fromEntries([...files, ...never].map((name) => [name, text(name)])));
    const directory = await fetchModel('owner/model');
    expect(directory).toBe(cache('models--owner--model', 'snapshots', COMMIT));
    expect(filesBelow(directory)).toEqual(files.sort());
    for (const name of files) expect(readFileSync(join(directory, name), 'utf8')).toBe(text(name));
    expect(hub.requests[0]).toBe('/api/models/owner/model/revision/main');

    hub.add('owner/pickled', { 'config.json': '{}', 'pytorch_model.bin': 'x' });
    const error = await failure(() => fetchModel('owner/pickled'));
    expect([error.code, error.message]).toEqual([
      'ERR_MODEL',
      'owner/pickled on the hub has no weights in safetensors (model*.safetensors)',
    ]);
  });
});
