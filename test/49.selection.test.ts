/** Which answers become rows, as which files, and the three commands from a run file to rows that training reads. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parquetMetadata, parquetSchema } from 'hyparquet';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { loadPreferences } from '../lib/data/preferences.ts';
import { resolveFusion } from '../lib/fuse/config.ts';
import { type SelectOptions, selectRows } from '../lib/fuse/quadruples.ts';
import { sampleModel } from '../lib/fuse/sample.ts';
import { functionScorer, scoreModel } from '../lib/fuse/score.ts';
import { extremes, pickTarget, rankSources } from '../lib/fuse/select.ts';
import { splitPrompts } from '../lib/fuse/split.ts';
import { Store } from '../lib/fuse/store.ts';
import { FakeServer } from './fake-server.ts';
import { contentsOf, instantSampler, promptsOf, sampledStore, user } from './fusion.ts';
import {
  expectFailure,
  FIXTURES,
  fail,
  filesBelow,
  ROOT,
  readJson,
  readJsonLines,
  scratchDirectory,
  succeed,
  writeRows,
  writeRunFile,
  wrpo,
} from './training.ts';

const path = scratchDirectory('selection');
let stores = 0;
const fresh = () => path(`store-${++stores}`);

interface Vectors {
  prompts: { id: string; src: Record<string, number[]>; tgt: number[] }[];
  selected: {
    id: string;
    ws: object;
    ls: object;
    wt: number;
    l: number;
    model_ranking: string[];
    rank2: object;
    degenerate_target: boolean;
  }[];
  table1_percent: Record<string, number>;
}
const vectors: Vectors = readJson(join(FIXTURES, 'data_construction.json'));

/** The prompts, answers and scores of the vectors as a store; answers say what they are. */
async function storeOfVectors(): Promise<Store> {
  const prompts = vectors.prompts.map(({ id }) => ({ promptId: id, messages: user(`question ${id}`) }));
  const store = await Store.create(fresh(), prompts);
  for (const model of ['m1', 'm2', 'target']) {
    const text = (seed: number, id: string, k: number) => `${model} ${id} ${k} ${seed}`;
    const sampler = {
      ...instantSampler(model),
      sample: async ({ promptId, seeds }: { promptId: string; seeds: readonly number[] }) => ({
        samples: seeds.map((seed, k) => ({ text: text(seed, promptId, k), finish_reason: 'stop', seed })),
        ...{ promptTokens: 1, completionTokens: 1 },
      }),
    };
    await sampleModel(store, sampler, { n: 3, seed: 42 });
    const scorer = functionScorer('vectors', ({ promptId, response }) => {
      const { src, tgt } = vectors.prompts.find(({ id }) => id === promptId)!;
      return (model === 'target' ? tgt : src[model]!)[Number(response.split(' ')[2])]!;
    });
    await scoreModel(store, model, scorer);
  }
  return store;
}

const RULE: SelectOptions = {
  ...{ sources: ['m1', 'm2'], target: 'target', scorer: 'vectors', rank: 1, sourceRejected: false },
  ...{ seed: 42, heldOut: 0, sftRatio: 0, rowSchema: 'authors', format: 'jsonl' },
};
/** Of a text that says what it is: model and sample. */
const what = (content: string) =>
  content
    .split(' ')
    .filter((_, i) => i === 0 || i === 2)
    .join(' ');

describe('picks', () => {
  it.each(vectors.prompts.map((prompt, i) => [prompt.id, prompt, vectors.selected[i]!] as const))(
    'of the vectors: %s',
    (_, { src, tgt }, expected) => {
      const { ranking, best, worst } = rankSources(Object.entries(src).map(([model, scores]) => ({ model, scores })));
      expect(ranking).toEqual(expected.model_ranking);
      expect([best[0], worst[0], best[1]]).toEqual([expected.ws, expected.ls, expected.rank2]);
      const ends = extremes(tgt)!;
      expect([ends.best.index, ends.worst.index]).toEqual([expected.wt, expected.l]);
      const samples = tgt.map((_, i) => ({ text: `answer ${i}`, finish_reason: 'stop' }));
      expect(typeof pickTarget(samples, tgt) === 'string').toBe(expected.degenerate_target);
    },
  );

  it('pass over what has no score', () => {
    expect(extremes([null, 2, null, 1, 2])).toEqual({ best: { index: 1, score: 2 }, worst: { index: 3, score: 1 } });
    expect(extremes([null])).toBeUndefined();
    const sources = [
      { model: 'a', scores: [] },
      { model: 'b', scores: [null] },
      { model: 'c', scores: [-1] },
    ];
    expect(rankSources(sources).ranking).toEqual(['c']);
  });

  it.each([
    ['all the same text', ['x', 'x', 'x'], [1, 1, 1], 'target answers all alike'],
    ['the same text, scored differently', ['x', 'x', 'x'], [1, 1, 2], 'target answers all alike'],
    ['best and worst the same text', ['x', 'y', 'x'], [3, 2, 1], 'target answers all alike'],
    ['all the same score', ['x', 'y', 'z'], [1, 1, 1], 'target scores all equal'],
    ['one answer', ['x'], [1], 'target answers all alike'],
    ['no answer', [], [], 'no target answer'],
    ['no score', ['x', 'y'], [null, null], 'no target answer'],
  ])('a prompt teaches nothing: %s', (_, texts, scores, reason) => {
    expect(
      pickTarget(
        texts.map((text) => ({ text, finish_reason: 'stop' })),
        scores,
      ),
    ).toBe(reason);
  });
});

it('keeps prompts that teach y_ws alone, when it is told to', async () => {
  const equal = ['x', 'y'].map((text) => ({ text, finish_reason: 'stop' }));
  const first = { index: 0, score: 1 };
  expect(pickTarget(equal, [1, 1], { keepTies: true })).toEqual({ best: first, worst: first });
  expect(pickTarget(equal, [null, null], { keepTies: true })).toBe('no target answer');
  const selection = selectRows(await storeOfVectors(), { ...RULE, keepTies: true });
  expect(selection.rows.train).toBe(3);
  expect(selection.dropped).toEqual({});
});

describe('the split', () => {
  const ids = Array.from({ length: 1000 }, (_, i) => `p${i}`);
  const count = (parts: string[], part: string) => parts.filter((one) => one === part).length;

  it('has the sizes that are asked for, and is the same whatever the order', () => {
    const parts = splitPrompts(ids, { seed: 42, heldOut: 0.1, sftRatio: 1 / 3 });
    expect(['train', 'test', 'sft'].map((part) => count(parts, part))).toEqual([600, 100, 300]);
    const reversed = splitPrompts([...ids].reverse(), { seed: 42, heldOut: 0.1, sftRatio: 1 / 3 });
    expect(reversed.reverse()).toEqual(parts);
    expect(splitPrompts(ids, { seed: 43, heldOut: 0.1, sftRatio: 1 / 3 })).not.toEqual(parts);
    expect(count(splitPrompts(ids, { seed: 42, heldOut: 7, sftRatio: 0 }), 'test')).toBe(7);
  });

  it('draws from everywhere alike', () => {
    const parts = splitPrompts(ids, { seed: 42, heldOut: 0, sftRatio: 0.5 });
    expect(count(parts.slice(0, 500), 'sft')).toBeGreaterThan(200);
    expect(count(parts.slice(0, 500), 'sft')).toBeLessThan(300);
  });
});

describe('a selection', () => {
  const picksOf = (directory: string) =>
    readJsonLines<{ prompt_id: string; chosen: { content: string }[]; rejected: { content: string }[] }>(
      join(directory, 'train.jsonl'),
    ).map(({ prompt_id, chosen, rejected }) => [
      prompt_id,
      ...[...chosen, ...rejected].map(({ content }) => what(content)),
    ]);

  it('of the vectors: rows, shares, means, and what is dropped', async () => {
    const store = await storeOfVectors();
    const directory = join(store.directory, 'selected');
    const selection = selectRows(store, { ...RULE, sourceRejected: true, directory });
    expect(picksOf(directory)).toEqual([
      ['p1', 'm1 1', 'target 0', 'target 1', 'm1 0'],
      ['p3', 'm2 0', 'target 0', 'target 1', 'm2 1'],
    ]);
    expect(selection.rows).toEqual({ train: 2, test: 0, sft: 0 });
    expect(selection.dropped).toEqual({ 'target scores all equal': 1 });
    expect(selection.shares).toEqual(vectors.table1_percent);
    expect(selection.scores.source_chosen).toBeCloseTo((0.14 + 0.16) / 2, 12);
    expect(selection.scores.rejected).toBeCloseTo((0.08 + 0.03) / 2, 12);
    expect(filesBelow(directory)).toEqual(['selection.yaml', 'train.jsonl']);
  });

  it('of rank 2, and of fewer sources, needs no new sampling', async () => {
    const store = await storeOfVectors();
    const directory = join(store.directory, 'selected');
    selectRows(store, { ...RULE, rank: 2, directory });
    expect(picksOf(directory).map((row) => row.slice(0, 2))).toEqual([
      ['p1', 'm2 1'],
      ['p3', 'm1 1'],
    ]);
    selectRows(store, { ...RULE, sources: ['m2'], directory });
    expect(picksOf(directory).map((row) => row.slice(0, 2))).toEqual([
      ['p1', 'm2 1'],
      ['p3', 'm2 0'],
    ]);
    expect(selectRows(store, { ...RULE, sources: ['m2'], rank: 2 }).dropped).toEqual({ 'no second source': 3 });
    // Ties go to the source that is named first.
    selectRows(store, { ...RULE, sources: ['m2', 'm1'], directory });
    expect(picksOf(directory)[0]![1]).toBe('m2 1');
  });

  it('is refused on scores of other samples', async () => {
    const store = await storeOfVectors();
    const scores = readFileSync(store.scoresPath('vectors', 'm1'), 'utf8');
    writeFileSync(store.scoresPath('vectors', 'm1'), scores.replace(/"of":"../, '"of":"zz'));
    await expectFailure(
      () => selectRows(store, RULE),
      'ERR_DATA',
      /m1\.jsonl are of other samples than there are now of prompt p1; run `wrpo score` again/,
    );
  });

  it('says what is missing', async () => {
    const store = await storeOfVectors();
    await expectFailure(() => selectRows(store, { ...RULE, sources: ['m9'] }), 'ERR_DATA', /^"m9" is not sampled yet/);
    await expectFailure(
      () => selectRows(store, { ...RULE, scorer: 'x' }),
      'ERR_DATA',
      /^"m1" is not scored by "x" yet/,
    );
    await expectFailure(() => selectRows(store, { ...RULE, sources: [] }), 'ERR_CONFIG', /no sources/);
  });

  it('of conversations takes the flat schema', async () => {
    const messages = [...user('a'), { role: 'assistant', content: 'b' }, ...user('c')];
    const store = await sampledStore(fresh(), ['m1', 'target'], [{ promptId: 'x', messages }]);
    for (const model of ['m1', 'target']) {
      await scoreModel(
        store,
        model,
        functionScorer('vectors', ({ response }) => response.length),
      );
    }
    const directory = join(store.directory, 'selected');
    const rule = { ...RULE, sources: ['m1'], directory };
    await expectFailure(() => selectRows(store, rule), 'ERR_DATA', /prompt x has 3 turns, .* row_schema: flat/);
    expect(filesBelow(directory)).toEqual([]);
    selectRows(store, { ...rule, rowSchema: 'flat' });
    const [row] = await loadPreferences(directory);
    expect(row!.prompt).toEqual(messages);
  });
});

describe('files', () => {
  let store: Store;
  beforeAll(async () => {
    store = await sampledStore(fresh(), ['m1', 'm2', 'target'], promptsOf(50));
    for (const model of ['m1', 'm2', 'target']) {
      await scoreModel(
        store,
        model,
        functionScorer('vectors', ({ response }) => response.length),
      );
    }
  });
  const rule = { ...RULE, heldOut: 5, sftRatio: 1 / 3, sourceRejected: true };

  it.each([
    ['authors', 'jsonl'],
    ['authors', 'parquet'],
    ['flat', 'jsonl'],
    ['flat', 'parquet'],
  ] as const)('%s rows as %s are what training reads', async (rowSchema, format) => {
    const directory = join(store.directory, `${rowSchema}-${format}`);
    const { rows } = selectRows(store, { ...rule, rowSchema, format, directory });
    for (const split of ['train', 'test'] as const) {
      const read = await loadPreferences(directory, { split });
      expect(read).toHaveLength(rows[split]);
      for (const { prompt, responses } of read) {
        expect(prompt).toHaveLength(1);
        expect(Object.keys(responses).sort()).toEqual([
          'rejected',
          'source_chosen',
          'source_rejected',
          'target_chosen',
        ]);
      }
    }
    const tuned = await loadPreferences(directory, { split: 'sft' });
    expect(tuned).toHaveLength(15);
    expect(Object.keys(tuned[0]!.responses)).toEqual(['completion']);
    const plain = join(store.directory, 'authors-jsonl');
    const contentsOfRows = async (from: string) =>
      (await loadPreferences(from)).map(({ prompt, responses }) =>
        JSON.stringify({ prompt, responses }).replace(/\[\{"role":"assistant","content":("[^"]*")\}\]/g, '$1'),
      );
    expect(await contentsOfRows(directory)).toEqual(await contentsOfRows(plain));
  });

  it('Parquet has messages as lists of structs, not as JSON text', () => {
    const bytes = readFileSync(join(store.directory, 'authors-parquet', 'train.parquet'));
    const { children } = parquetSchema(parquetMetadata(new Uint8Array(bytes).buffer));
    const of = (name: string) => children.find(({ element }) => element.name === name)!;
    expect(of('prompt').children.map(({ element }) => element.name)).toEqual(['role', 'content']);
    const list = of('chosen');
    expect(list.element.converted_type).toBe('LIST');
    expect(
      list.children[0]!.children[0]!.children.map(({ element }) => [element.name, element.converted_type]),
    ).toEqual([
      ['role', 'UTF8'],
      ['content', 'UTF8'],
    ]);
  });

  it('a selection replaces another, in the other format too', () => {
    const directory = join(store.directory, 'replaced');
    selectRows(store, { ...rule, directory });
    selectRows(store, { ...rule, sftRatio: 0, format: 'parquet', directory });
    expect(filesBelow(directory)).toEqual(['selection.yaml', 'test.parquet', 'train.parquet']);
  });
});

describe('run files', () => {
  const where = (...steps: PropertyKey[]) => ['run.yaml', ...steps.map(String)].join(' ');
  const base = { output_dir: 'out', sources: [{ name: 'a', base_url: 'http://localhost:1/v1', model: 'm' }] };
  const source = (more: object) => ({ ...base, sources: [{ ...base.sources[0], ...more }] });

  it('take keys in either case, and have the paper’s settings', () => {
    const config = resolveFusion({ ...base, sft_ratio: '1/3', heldOut: 3 }, where);
    expect(config).toMatchObject({
      outputDir: 'out',
      n: 5,
      temperature: 0.8,
      topP: 0.95,
      maxTokens: 4096,
      sftRatio: 1 / 3,
      heldOut: 3,
    });
    expect(config.sources[0]).toMatchObject({ concurrency: 16, maxRetries: 8 });
    const extra_body = { top_k: 3, chat_template_kwargs: { enable_thinking: false } };
    expect(resolveFusion(source({ extra_body }), where).sources[0]).toMatchObject({ extraBody: extra_body });
  });

  it.each([
    [
      'an unknown key',
      { ...base, temprature: 1 },
      /^run\.yaml temprature: unknown key "temprature"; did you mean "temperature"\?$/,
    ],
    [
      'an unknown key of a source',
      source({ api_key: 'sk-secret' }),
      /^run\.yaml sources 0 apiKey: unknown key "api_key"; did you mean "api_key_env"\?$/,
    ],
    [
      'a bad value',
      source({ concurrency: 0 }),
      /^run\.yaml sources 0 concurrency: "sources\.0\.concurrency": .*\(found 0\)$/,
    ],
    [
      'no model',
      { ...base, sources: [{ name: 'a', base_url: 'http://localhost/v1' }] },
      /"sources\.0\.model": .*\(found nothing\)/,
    ],
    [
      'neither server nor file',
      { ...base, sources: [{ name: 'a' }] },
      /sources 0: sources: expected a model with base_url .* or import/,
    ],
    ['no address', source({ base_url: 'localhost:8000' }), /expected an address such as http:\/\/localhost:8000\/v1/],
    [
      'two sources of one name',
      { ...base, sources: [base.sources[0], base.sources[0]] },
      /sources 1 name: two models have the name "a"/,
    ],
    [
      'a target of a source’s name',
      { ...base, targets: [{ ...base.sources[0], name: 'A' }] },
      /targets 0 name: two models have the name "A"/,
    ],
    ['a name that is a path', source({ name: '../a' }), /"sources\.0\.name": expected letters, digits/],
    ['a group of nobody', { ...base, groups: { one: ['b'] } }, /there is no source "b"; there is a/],
    ['a subset of nobody', { ...base, subset: ['b'] }, /there is no source or group "b"/],
    ['rank 3', { ...base, rank: 3 }, /"rank": expected 1 or 2 \(found 3\)/],
  ])('%s: one sentence', async (_, input, message) => {
    await expectFailure(() => resolveFusion(input, where), 'ERR_CONFIG', message);
  });

  it('that the README shows are understood', () => {
    const readme = readFileSync(join(ROOT, 'README.md'), 'utf8');
    const text = /```yaml\n(# data\.yaml[\s\S]*?)```/.exec(readme)![1]!;
    const { sources, targets, scorers } = resolveFusion(parse(text), where);
    expect([...sources, ...targets, ...scorers].map(({ name }) => name)).toEqual([
      ...['gemma-27b', 'hosted', 'yi-6b', 'llama3-8b', 'target-sft', 'armorm'],
    ]);
  });

  it('a key in the address is not repeated', async () => {
    const input = source({ base_url: 'http://me:sk-secret@localhost/v1' });
    const error = await Promise.resolve()
      .then(() => resolveFusion(input, where))
      .catch((error: Error) => error);
    expect((error as Error).message).toMatch(/a key does not belong into the address/);
    expect((error as Error).message).not.toContain('secret');
  });
});

describe('the commands', () => {
  let server: FakeServer;
  let file: string;
  const dir = path('run');
  beforeAll(async () => {
    server = await FakeServer.start({ models: ['one', 'two', 'own', 'reward'] });
    writeRows(
      path('questions.jsonl'),
      promptsOf(30).map(({ messages }) => ({ prompt: messages[0]!.content })),
    );
    const model = (name: string) => ({ name, base_url: server.url, model: name, retry_delay: 0.01 });
    file = writeRunFile(path('run.yaml'), {
      ...{ output_dir: dir, prompts: path('questions.jsonl'), n: 3, held_out: 3 },
      sources: [{ ...model('one'), prices: { input: 1, output: 2 } }, model('two')],
      targets: [model('own')],
      scorers: [{ ...model('reward'), kind: 'http' }],
      groups: { first: ['one'] },
    });
  });
  afterAll(() => server.close());
  const json = async (args: string[]) => JSON.parse((await succeed([...args, '--config', file, '--json'])).stdout);

  it('say what they would do, and do nothing', async () => {
    const plan = await json(['sample', '--dry-run', '--answer-tokens', '100', '--speed', '10']);
    expect(plan).toMatchObject({ prompts: 30, seconds: Math.ceil((90 * 100) / (16 * 10)) });
    expect(
      plan.models.map(({ model, prompts, requests }: Record<string, unknown>) => [model, prompts, requests]),
    ).toEqual([
      ['one', 30, 90],
      ['two', 30, 90],
      ['own', 21, 63], // without the third that fine-tuning takes
    ]);
    expect(plan.models[0]).toMatchObject({ completionTokens: 9000, mostCompletionTokens: 90 * 4096 });
    expect(plan.models[0].dollars).toBeCloseTo((plan.models[0].promptTokens + 2 * 9000) / 1e6, 12);
    const { stdout } = await succeed(['sample', '--config', file, '--dry-run']);
    expect(stdout).toMatch(/^one +30 +90 /m);
    expect(existsSync(dir)).toBe(false);
    expect(server.seen).toEqual([]);
  });

  it('sample, score and select, stage by stage, up to rows that training reads', async () => {
    const sources = await json(['sample', '--only', 'sources']);
    expect(sources[0]).toMatchObject({ samples: 90, failed: 0 });
    const { promptTokens, completionTokens } = sources.find(({ model }: { model: string }) => model === 'one');
    expect(sources.find(({ model }: { model: string }) => model === 'one').dollars).toBeCloseTo(
      (promptTokens + 2 * completionTokens) / 1e6,
      12,
    );
    const scored = await succeed(['score', '--config', file]);
    expect(scored.stderr).toMatch(/not sampled to the end yet, and not scored: own/);
    const tuning = await json(['select']);
    expect(tuning.rows).toEqual({ train: 0, test: 0, sft: 9 });
    expect(filesBelow(join(dir, 'selected'))).toEqual(['selection.yaml', 'sft.jsonl']);

    expect(await json(['sample', '--only', 'targets'])).toMatchObject([{ model: 'own', prompts: 21, samples: 63 }]);
    const plan = await json(['score', '--dry-run', '--rate', '7']);
    expect(plan.models.map(({ answers }: { answers: number }) => answers)).toEqual([0, 0, 63]);
    expect(plan.seconds).toBe(9);
    await succeed(['score', '--config', file, '--only', 'own']);
    const looked = await json(['select', '--dry-run', '--subset', '[first]']);
    expect(looked.shares).toEqual({ one: 100 });
    const selection = await json(['select']);
    expect(selection.rows.train).toBe(18);
    expect(Object.values(selection.shares as Record<string, number>).reduce((a, b) => a + b)).toBeCloseTo(100, 9);
    const asked = server.seen.length;
    const before = contentsOf(dir);
    for (const stage of ['sample', 'score', 'select']) await succeed([stage, '--config', file]);
    expect(server.seen.length).toBe(asked);
    expect(contentsOf(dir)).toEqual(before);
    const read = await loadPreferences(join(dir, 'selected'));
    expect(read).toHaveLength(18);
    expect(Object.keys(read[0]!.responses)).toEqual(['source_chosen', 'target_chosen', 'rejected']);
  });

  it('one source that is out of reach stops alone', async () => {
    const other = writeRunFile(path('other.yaml'), {
      ...{ output_dir: path('other'), prompts: path('questions.jsonl'), n: 1 },
      sources: ['one', 'missing'].map((name) => ({ name, base_url: server.url, model: name, retry_delay: 0.01 })),
    });
    expect(await fail(['sample', '--config', other], 1)).toMatch(
      /^wrpo: missing: .* answers 404 \(The model missing does not exist\.\)/,
    );
    expect(readJson(path('other', 'samples', 'one.json')).totals.samples).toBe(30);
  });

  it.each([
    ['no run file', ['sample'], 2, /required option '--config <file>'/],
    ['a key with its line', ['sample', '--config', 'RUN', '--nn', '3'], 1, /command line: unknown key "nn"/],
    [
      'a model that is not there',
      ['sample', '--config', 'RUN', '--only', 'three'],
      1,
      /--only three: there is no such model; there is one, two, own/,
    ],
    [
      'nothing sampled',
      ['score', '--config', 'RUN', '--output_dir', '/nowhere'],
      1,
      /\/nowhere holds no prompts\.jsonl/,
    ],
    [
      'a setting that changed',
      ['sample', '--config', 'RUN', '--temperature', '0.5'],
      1,
      /made with another temperature: 0\.8 then, 0\.5 now/,
    ],
    ['score of nothing', ['score'], 2, /required option '--model <name>' not specified \(or --config <file>\)/],
    [
      'score with an option too many',
      ['score', '--model', 'x', '--data', 'y', '--bogus'],
      2,
      /unknown option '--bogus'/,
    ],
  ])('%s: one sentence', async (_, args, status, message) => {
    const run = await wrpo(args.map((arg) => (arg === 'RUN' ? file : arg)));
    expect(run.status, run.stderr).toBe(status);
    expect(run.stderr.trim().split('\n').at(-1)).toMatch(message);
    expect(run.stderr).not.toMatch(/^\s+at /m);
  });

  it('a key of the run file is told with its line', async () => {
    const bad = path('bad.yaml');
    writeFileSync(
      bad,
      `output_dir: x\nsources:\n  - name: a\n    model: m\n    base_url: http://localhost/v1\n    concurency: 3\n`,
    );
    expect(await fail(['sample', '--config', bad], 1)).toMatch(
      /bad\.yaml line 6: unknown key "concurency"; did you mean "concurrency"\?/,
    );
  });
});
