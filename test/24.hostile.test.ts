/** Files from anywhere: each is read for what it is, or refused in one sentence. `npm run fuzz` tries many more. */
import { mkdirSync, mkdtempSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import fc from 'fast-check';
import { parquetWriteFile } from 'hyparquet-writer';
import { describe, expect, it } from 'vitest';
import { readRun, readRunFile } from '../lib/cli/run-file.ts';
import { readPreferences } from '../lib/data/preferences.ts';
import { readModelConfig } from '../lib/model/config.ts';
import { readAdapterTensors, readModelTensors } from '../lib/model/directory.ts';
import { readHeader } from '../lib/model/safetensors.ts';
import { ChatTemplate } from '../lib/text/chat.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { resolveArgs } from '../lib/train/args.ts';
import { counted, near, RUNS, TIME, tried } from './hostile.ts';
import { joinFile } from './support.ts';
import { Child, expectFailure, FIXTURES, failure, ROOT, scratchDirectory, wrpo } from './training.ts';

const path = scratchDirectory('hostile');
describe('safetensors', () => {
  const entry = (dtype: string, shape: number[], begin: number, end: number) => ({
    dtype,
    shape,
    data_offsets: [begin, end],
  });
  const header = { a: entry('F32', [2, 3], 0, 24), b: entry('BF16', [4], 24, 32), __metadata__: { format: 'pt' } };

  it.each([
    ['overlapping tensors', { a: entry('F32', [2], 0, 8), b: entry('F32', [2], 4, 12) }, /a and b share bytes/],
    ['a tensor within another', { a: entry('F32', [4], 0, 16), b: entry('F32', [1], 4, 8) }, /a and b share bytes/],
    ['the same bytes twice', { a: entry('F32', [2], 0, 8), b: entry('F32', [2], 0, 8) }, /a and b share bytes/],
    ['an overflowing shape', { a: entry('F32', [2 ** 32, 2 ** 32], 0, 0) }, /a is F32 .* but has 0 bytes/],
    ['a shape that is negative twice', { a: entry('F32', [-2, -3], 0, 24) }, /the entry of a lacks a shape/],
    ['offsets the wrong way', { a: entry('F32', [0], 8, 0) }, /a is F32|truncated/],
    ['offsets beyond the file', { a: entry('F32', [2 ** 40], 0, 2 ** 42) }, /truncated or corrupt: a should end/],
    ['offsets beyond integers', '{"a":{"dtype":"F32","shape":[1],"data_offsets":[1e300,1e300]}}', /lacks a shape/],
    ['three offsets', '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}', /lacks a shape or data_offsets/],
    [
      'a name twice',
      '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
      /names a tensor twice/,
    ],
    ['the metadata twice', '{"__metadata__":{"a":"b"},"__metadata__": {}}', /twice/],
  ])('%s', (name, content, message) => {
    const file = path(`${name}.safetensors`);
    joinFile(file, content as string, Buffer.alloc(32));
    expect(() => readHeader(file)).toThrow(message);
  });

  it('bytes that are no UTF-8, and lengths that lie', () => {
    const file = path('bytes.safetensors');
    writeFileSync(file, Buffer.concat([Buffer.from([4, 0, 0, 0, 0, 0, 0, 0]), Buffer.from([0x7b, 0xff, 0x7d, 0x20])]));
    expect(() => readHeader(file)).toThrow(/header is not UTF-8/);
    for (const length of [2n ** 64n - 1n, 2n ** 63n, 2n ** 53n, 1000n]) {
      joinFile(file, '{}', Buffer.alloc(0), length);
      expect(() => readHeader(file)).toThrow(/truncated or corrupt|too long|a header of/);
    }
  });

  it('names and metadata that look like entries are what they are', () => {
    const file = path('names.safetensors');
    const entries = [
      ['"data_offsets": {', [1], 0, 4],
      ['__proto__', [1], 4, 8],
      ['b\\', [0], 8, 8],
    ] as const;
    const text = entries.map(([name, shape, ...range]) => {
      return `${JSON.stringify(name)}: ${JSON.stringify(entry('F32', [...shape], ...range))}`;
    });
    joinFile(file, `{"__metadata__": {"x\\": {": "\\"a\\": {"}, ${text.join()}}`, Buffer.alloc(8));
    expect([...readHeader(file).keys()]).toEqual(entries.map(([name]) => name));
  });

  it(
    'whatever is in a header, every tensor lies in its file, alone',
    async () => {
      const file = path('any.safetensors');
      await fc.assert(
        fc.asyncProperty(near(header), async (bytes) => {
          const length = Buffer.alloc(8);
          length.writeBigUInt64LE(BigInt(bytes.length));
          writeFileSync(file, Buffer.concat([length, bytes, Buffer.alloc(32)]));
          const tensors = await tried(() => readHeader(file));
          const places = [...(tensors?.values() ?? [])]
            .filter((one) => one.bytes > 0)
            .sort((a, b) => a.offset - b.offset);
          for (const [i, one] of places.entries()) {
            expect(one.offset).toBeGreaterThanOrEqual(8 + bytes.length);
            expect(one.offset + one.bytes).toBeLessThanOrEqual(8 + bytes.length + 32);
            if (i > 0) expect(places[i - 1]!.offset + places[i - 1]!.bytes).toBeLessThanOrEqual(one.offset);
          }
        }),
        RUNS,
      );
    },
    TIME,
  );
});

describe('model directories', () => {
  const directory = (name: string, files: Record<string, string>) => {
    const dir = path(name);
    mkdirSync(dir, { recursive: true });
    for (const [file, text] of Object.entries(files)) writeFileSync(join(dir, file), text);
    return dir;
  };
  const safetensors = (file: string) =>
    joinFile(file, { a: { dtype: 'F32', shape: [1], data_offsets: [0, 4] } }, Buffer.alloc(4));

  it.each(['../outside.safetensors', '/etc/passwd', 'sub/x.safetensors', '..', '.', ''])(
    'a shard named "%s"',
    (shard) => {
      const index = JSON.stringify({ weight_map: { a: shard } });
      const dir = directory('shards', { 'model.safetensors.index.json': index });
      expect(() => readModelTensors(dir)).toThrow(/names a shard outside its directory/);
    },
  );

  it('links out of the directory are refused, those within it and in a hub’s cache are not', () => {
    const dir = directory('links', {});
    safetensors(path('elsewhere.safetensors'));
    symlinkSync('../elsewhere.safetensors', join(dir, 'model.safetensors'));
    expect(() => readModelTensors(dir)).toThrow(/model\.safetensors is a link out of its directory, to .*elsewhere/);
    const sharded = directory('linked shard', {
      'model.safetensors.index.json': JSON.stringify({ weight_map: { a: 'one.safetensors' } }),
    });
    symlinkSync(path('elsewhere.safetensors'), join(sharded, 'one.safetensors'));
    expect(() => readModelTensors(sharded)).toThrow(/one\.safetensors is a link out of its directory/);
    const within = directory('within', {});
    safetensors(join(within, 'real.safetensors'));
    symlinkSync('real.safetensors', join(within, 'model.safetensors'));
    expect([...readModelTensors(within).keys()]).toEqual(['a']);
    const snapshot = directory('hub/snapshots/abc', {});
    safetensors(join(directory('hub/blobs', {}), '0123'));
    symlinkSync('../../blobs/0123', join(snapshot, 'model.safetensors'));
    expect([...readModelTensors(snapshot).keys()]).toEqual(['a']);
    // A directory that is itself a link is a directory.
    symlinkSync(within, path('a link'));
    expect([...readModelTensors(path('a link')).keys()]).toEqual(['a']);
  });

  it.each([
    ['pytorch_model.bin', readModelTensors],
    ['pytorch_model.bin.index.json', readModelTensors],
    ['adapter_model.bin', readAdapterTensors],
  ] as const)('%s is no weights file', (name, read) => {
    const dir = directory(`pickled ${name}`, { [name]: '\x80\x02' });
    expect(() => read(dir)).toThrow(/a pickle, which can run any code when it is read; expected \w+\.safetensors/);
  });

  it('a config.json of more layers than memory has room for', () => {
    const dir = directory('layers', {});
    const sizes = { vocab_size: 8, hidden_size: 8, intermediate_size: 8, num_attention_heads: 1 };
    const json = { model_type: 'llama', ...sizes, num_hidden_layers: 2 ** 53 };
    writeFileSync(join(dir, 'config.json'), JSON.stringify(json));
    expect(() => readModelConfig(dir)).toThrow(/"num_hidden_layers" must be at most 10000/);
  });

  it(
    'config.json',
    async () => {
      const config = {
        ...{ model_type: 'llama', vocab_size: 32, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 2 },
        ...{ num_attention_heads: 2, num_key_value_heads: 1, rms_norm_eps: 1e-5, rope_theta: 1e4, head_dim: 4 },
        ...{
          rope_scaling: { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
          eos_token_id: [1, 2],
        },
      };
      const dir = directory('config', {});
      await fc.assert(
        fc.asyncProperty(near(config), async (bytes) => {
          writeFileSync(join(dir, 'config.json'), bytes);
          const shape = await tried(() => readModelConfig(dir));
          if (shape)
            for (const size of [shape.vocabSize, shape.hiddenSize, shape.layers]) expect(size).toBeGreaterThan(0);
        }),
        RUNS,
      );
    },
    TIME,
  );

  it(
    'tokenizer files',
    async () => {
      const dir = directory('tokenizer', {});
      const vocab = { '<s>': 0, a: 1, b: 2 };
      const tokenizer = {
        version: '1.0',
        added_tokens: [
          { id: 0, content: '<s>', special: true, single_word: false, lstrip: false, rstrip: false, normalized: false },
        ],
        model: { type: 'BPE', vocab, merges: [] },
      };
      const config = { bos_token: '<s>', chat_template: '{{ messages[0].content }}', eos_token: { content: '<s>' } };
      await fc.assert(
        fc.asyncProperty(near(tokenizer), near(config), fc.nat(2), async (one, other, which) => {
          writeFileSync(join(dir, 'tokenizer.json'), which === 1 ? JSON.stringify(tokenizer) : one);
          writeFileSync(join(dir, 'tokenizer_config.json'), which === 0 ? JSON.stringify(config) : other);
          const loaded = await tried(() => Tokenizer.load(dir));
          if (loaded) expect((await loaded.encode('ab')).every((id) => id >= 0)).toBe(true);
        }),
        RUNS,
      );
    },
    TIME,
  );
});

describe('chat templates', () => {
  const turns = [{ role: 'user', content: 'hello' }];
  const LOOPS =
    '{% for i in range(1000) %}{% for j in range(1000) %}{% for k in range(1000) %}{% endfor %}{% endfor %}{% endfor %}';

  it.each([
    ['loops in loops', LOOPS, /still looping after 100000 rounds/],
    [
      'a range without end',
      '{% for i in range(10 ** 12) %}{% endfor %}{{ range(1000000000) | length }}',
      /range|compile/,
    ],
    ['a long range', '{{ range(100001) | length }}', /a range of 100001 is longer than 100000/],
    [
      'a macro that calls itself',
      '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
      /not a function|call stack|rounds/,
    ],
    [
      'a macro that calls itself twice',
      '{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
      /rounds/,
    ],
    [
      'a text that doubles',
      '{% set n = namespace(x="ab") %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}',
      /a value of \d+ characters/,
    ],
    [
      'a list that doubles',
      '{% set n = namespace(x=[1, 2]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}',
      /a value of \d+ elements/,
    ],
    [
      'a text that doubles in a macro',
      '{% macro f(x, n) %}{% if n > 0 %}{{ f(x ~ x, n - 1) }}{% else %}{{ x }}{% endif %}{% endmacro %}{{ f("abcdefgh", 60) }}',
      /value of|string length|rounds|call stack/,
    ],
    [
      'an output that grows',
      `{% for i in range(90000) %}${'0123456789'.repeat(40)}{% endfor %}`,
      /a value of \d+ characters/,
    ],
  ])('%s: refused, in seconds', async (_, source, message) => {
    const began = performance.now();
    const { code, message: words } = await failure(() => new ChatTemplate(source).render(turns));
    expect(code).toBe('ERR_MODEL');
    expect(words).toMatch(message);
    expect(performance.now() - began).toBeLessThan(10_000);
  });

  it('what they bound is not seen: ranges, sets, macros and loops print what they did', () => {
    const source =
      '{%- macro twice(x) %}{{ x }}{{ x }}{% endmacro -%}{% set a, b = 1, 2 %}{% set block %}<{{ a }}>{% endset -%}' +
      '{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + range(2, 8, 2) | length %}{{ loop.index }}{{ twice(m.role) }}{% endfor %}' +
      '{{ block }}{{ range(3) | join(",") }}{{ range(5, 0, -2) | join(",") }}{{ ns.n }}';
    expect(new ChatTemplate(source).render(turns)).toBe('1useruser<1>0,1,25,3,13');
  });

  it(
    'any words between braces',
    async () => {
      const word = fc.constantFrom(
        ...[
          'messages',
          'm',
          'role',
          '.',
          '[0]',
          '[-1]',
          '|',
          'length',
          'trim',
          'tojson',
          '+',
          '~',
          '-',
          '*',
          '==',
          'is',
          'not',
        ],
        ...[
          'defined',
          'in',
          'loop',
          'range',
          '(',
          ')',
          '9',
          '"x"',
          'none',
          'true',
          'namespace',
          'if',
          'else',
          ',',
          ':',
          '{',
          '}',
        ],
      );
      const statement = fc.constantFrom(
        'for m in messages',
        'endfor',
        'if m',
        'else',
        'endif',
        'set m =',
        'set x',
        'endset',
        'macro f(x)',
        'endmacro',
      );
      const part = fc.oneof(
        fc.array(word, { maxLength: 6 }).map((words) => `{{ ${words.join(' ')} }}`),
        fc
          .tuple(statement, fc.array(word, { maxLength: 4 }))
          .map(([begin, words]) => `{% ${begin} ${words.join(' ')} %}`),
        statement.map((words) => `{%- ${words} -%}`),
        fc.string({ maxLength: 5 }),
      );
      await fc.assert(
        fc.asyncProperty(fc.array(part, { maxLength: 8 }), async (parts) => {
          await tried(() => new ChatTemplate(parts.join('')).render(turns));
        }),
        RUNS,
      );
    },
    TIME,
  );
});

describe('rows and run files', () => {
  const row = {
    prompt: 'p',
    source_chosen: [{ role: 'user', content: 'x' }],
    target_chosen: 'y',
    rejected: [1, 2, 3],
    chosen: ['a', 'b'],
  };

  it(
    'JSON lines',
    async () => {
      const file = path('any.jsonl');
      await fc.assert(
        fc.asyncProperty(fc.array(near(row), { maxLength: 3 }), async (lines) => {
          writeFileSync(file, Buffer.concat(lines.flatMap((line) => [line, Buffer.from('\n')])));
          await tried(async () => {
            for await (const { responses } of readPreferences(file))
              expect(Object.keys(responses).length).toBeGreaterThan(0);
          });
        }),
        RUNS,
      );
    },
    TIME,
  );

  it('a NaN among the token ids of a Parquet file', async () => {
    const file = path('nan.parquet');
    const column = (name: string, data: number[][]) => ({ name, data });
    parquetWriteFile({
      filename: file,
      columnData: [
        ...[column('prompt', [[1.5, Number.NaN]]), column('source_chosen', [[1]])],
        ...[column('target_chosen', [[2]]), column('rejected', [[3]])],
      ],
    });
    const read = async () => {
      for await (const _ of readPreferences(file));
    };
    await expectFailure(read, 'ERR_DATA', /nan\.parquet row 1: "prompt\[1\]" must be a token id/);
  });

  it('a column of a Parquet file without a name', async () => {
    const file = path('nameless.parquet');
    const bytes = readFileSync(join(FIXTURES, 'data', 'ids.zstd.parquet'));
    // The name of a column becomes a field that its schema does not know.
    bytes[817]! ^= 1 << 6;
    writeFileSync(file, bytes);
    const read = async () => {
      for await (const _ of readPreferences(file));
    };
    await expectFailure(read, 'ERR_DATA', /nameless\.parquet: cannot be read: it is damaged: a column has no name/);
  });

  it.each(['parquet', 'arrow'])(
    'a .%s file of any bytes',
    async (extension) => {
      const [begin, end] = extension === 'parquet' ? ['PAR1', 'PAR1'] : ['ARROW1\0\0', 'ARROW1'];
      const dir = mkdtempSync(path('rows-'));
      const file = join(dir, `any.${extension}`);
      await fc.assert(
        fc.asyncProperty(
          fc.uint8Array({ maxLength: 200 }),
          fc.integer({ min: -5, max: 300 }),
          async (bytes, length) => {
            const size = Buffer.alloc(4);
            size.writeInt32LE(length);
            writeFileSync(file, Buffer.concat([Buffer.from(begin!), bytes, size, Buffer.from(end!)]));
            await tried(async () => {
              for await (const _ of readPreferences(file));
            });
          },
        ),
        RUNS,
      );
    },
    TIME,
  );

  // In a process of their own, which ends them if they take too much time or memory.
  it.each([
    ...['flat.jsonl', 'types.arrow', 'types.file.arrow', 'ids.zstd.parquet', 'authors.snappy.parquet'],
    ...(process.env.TORTURE
      ? ['saved_authors/data-00000-of-00001.arrow', 'saved_ids/data-00000-of-00001.arrow', 'flat.zstd.parquet']
      : []),
  ])(
    '%s with other bytes in it',
    async (name) => {
      const file = path(`spoilt-${basename(name)}`);
      const args = [join(FIXTURES, 'data', name), file, JSON.stringify(RUNS)];
      const flags = ['--max-old-space-size=192', join(ROOT, 'test', 'spoilt.mjs')];
      const child = new Child([...flags, ...args]);
      const timer = setTimeout(() => child.process.kill('SIGKILL'), TIME);
      const { status, signal, stdout, stderr } = await child.done;
      clearTimeout(timer);
      expect({ status, signal }, `${stderr}\nthe file: ${readFileSync(file).toString('base64')}`).toEqual({
        status: 0,
        signal: null,
      });
      const { executions, refused, slowest } = JSON.parse(stdout);
      counted(executions);
      expect(executions).toBe(RUNS.numRuns);
      // Text of which a byte is another is text still; lengths and places are most of what else there is.
      expect(refused).toBeGreaterThan(executions / 20);
      expect(slowest).toBeLessThan(10_000);
    },
    TIME + 10_000,
  );

  it(
    'a run file of anchors, aliases and merges',
    async () => {
      const file = path('any.yaml');
      const name = fc.constantFrom('a', 'b', 'c');
      const value = fc.oneof(
        name.map((n) => `*${n}`),
        fc.tuple(name, fc.constantFrom('x', '[1, 2]', '{k: v}')).map(([n, v]) => `&${n} ${v}`),
        fc.tuple(name, name).map(([n, m]) => `&${n} [${Array(9).fill(`*${m}`).join(', ')}]`),
        fc.constantFrom(
          '!!binary "//8="',
          '!!set {a, b}',
          '!!js/function "x"',
          '1e400',
          '.nan',
          '2001-01-01',
          '|\n  x',
          '? y',
        ),
        fc.string({ maxLength: 6 }),
      );
      const key = fc.oneof(fc.constantFrom('beta', 'output_dir', '<<', '__proto__', 'constructor', '? [a]'), name);
      await fc.assert(
        fc.asyncProperty(fc.array(fc.tuple(key, value), { maxLength: 12 }), async (pairs) => {
          writeFileSync(file, pairs.map(([k, v]) => `${k}: ${v}\n`).join(''));
          await tried(() => resolveArgs(readRun(file, { output_dir: 'o' }, () => {}).input, file, () => {}));
          expect(({} as Record<string, unknown>).beta).toBeUndefined();
        }),
        RUNS,
      );
    },
    TIME,
  );

  it.each(['!!js/function "x"', '!!python/tuple [1, 2]', '!own {a: 1}'])(
    'a tag that is not known, %s: one sentence, and nothing of Node’s',
    async (value) => {
      const file = path('tagged.yaml');
      writeFileSync(file, `output_dir: o\nbeta: ${value}\n`);
      const { status, stdout, stderr } = await wrpo(['train', '--config', file]);
      expect([status, stdout]).toEqual([1, '']);
      expect(stderr).toMatch(/^wrpo: [^\n]*tagged\.yaml: Unresolved tag: \S+ at line 2, column 7\n$/);
    },
  );

  it('a YAML file whose aliases multiply, or that is deep', async () => {
    const levels = Array.from(
      { length: 30 },
      (_, i) => `a${i + 1}: &a${i + 1} [${Array(10).fill(`*a${i}`).join(', ')}]`,
    );
    const file = path('bomb.yaml');
    writeFileSync(file, ['a0: &a0 x', ...levels].join('\n'));
    await expectFailure(() => readRunFile(file), 'ERR_CONFIG', /bomb\.yaml: .*alias/i);
    writeFileSync(file, `a: ${'['.repeat(10_000)}`);
    await expectFailure(() => readRunFile(file), 'ERR_CONFIG', /bomb\.yaml/);
    writeFileSync(file, 'a: &a\n  <<: *a\n');
    await tried(() => readRunFile(file));
    renameSync(file, path('done.yaml'));
  });
});
