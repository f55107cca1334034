/**
 * ArmoRM: fixtures/armorm holds a head alone with its outputs in float64, and two tiny models with what transformers'
 * LlamaModel and that head make of conversations. Float32 results may be as far from float64 as twice those of PyTorch, of
 * which fixtures/float32.json holds the farthest.
 */
import { copyFileSync, cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { parquetWriteFile } from 'hyparquet-writer';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import { parseModelConfig } from '../lib/model/config.ts';
import { Model } from '../lib/model/model.ts';
import { gatingPosition, packConversations, placeConversations, type Score } from '../lib/model/reward.ts';
import { encodeConversations } from '../lib/text/conversations.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import {
  expectSentence,
  expectWithin,
  joinFile,
  maxAbsDifference,
  numberToBfloat16,
  randomIds,
  randomRow,
  readValues,
  splitFile,
  TINY,
  tinyModel,
} from './support.ts';
import {
  FIXTURES,
  fail,
  leftovers,
  POLICY,
  randomOf,
  readJson,
  readJsonLines,
  scratchDirectory,
  succeed,
  writeRows,
  writeRunFile,
} from './training.ts';

const ARMORM = join(FIXTURES, 'armorm');
const LIKE = join(ARMORM, 'like');
const SMALL = join(ARMORM, 'tiny');
const path = scratchDirectory('reward');

/** A small random reward model, its pattern [3, 4, 5]. */
const REWARD = {
  ...TINY,
  architectures: ['LlamaForRewardModelWithGating'],
  num_objectives: 5,
  gating_hidden_dim: 7,
  gating_n_hidden: 2,
  gating_temperature: 2,
  token_pattern_for_tests: [3, 4, 5],
};
const conversation = (random: () => number, before: number, after: number) =>
  Int32Array.of(...randomIds(random, before), 3, 4, 5, ...randomIds(random, after).map((id) => id || 6));
const all = (scores: Score[]) => scores.flatMap(({ score, rewards, gates }) => [score, ...rewards, ...gates]);

describe('configuration', () => {
  const base = { ...TINY, architectures: ['LlamaForRewardModelWithGating'] };

  it('defaults are those of ArmoRM', () => {
    expect(parseModelConfig(base).rewardHead).toEqual({
      ...{ objectives: 19, gatingHidden: 1024, gatingLayers: 3, temperature: 10 },
      pattern: [128009, 128006, 78191, 128007, 271],
    });
    expect(parseModelConfig(TINY).rewardHead).toBeUndefined();
  });

  it.each([
    ['num_objectives', 0, 'positive whole number'],
    ['gating_hidden_dim', 'wide', 'positive whole number'],
    ['gating_n_hidden', 1.5, 'positive whole number'],
    ['gating_temperature', -1, 'positive number'],
    ['token_pattern_for_tests', [], 'list of token ids'],
    ['token_pattern_for_tests', [1, 'x'], 'list of token ids'],
  ])('%s %j is refused', async (key, value, what) => {
    await expectSentence(() => parseModelConfig({ ...base, [key]: value }), 'ERR_MODEL', `"${key}"`, what);
  });
});

describe('the head alone, in float64', () => {
  const vectors = readJson(join(ARMORM, 'head.json'));
  const { hidden, num_objectives, gating_hidden_dim, gating_n_hidden, gating_temperature } = vectors.config;
  // Layers that add nothing and a norm that divides by so much that its input does not count: what is embedded comes out.
  const THROUGH = 1e15;
  const config = {
    ...{ model_type: 'llama', vocab_size: 3, hidden_size: hidden, intermediate_size: 4, num_hidden_layers: 1 },
    ...{ num_attention_heads: 1, rms_norm_eps: THROUGH ** 2 },
    ...{ architectures: REWARD.architectures, token_pattern_for_tests: [0, 1] },
    ...{ num_objectives, gating_hidden_dim, gating_n_hidden },
  };

  async function expectHead(temperature: number, logitScale: number, outputs: Record<string, number[][] | number[]>) {
    await using model = await Model.create({ ...config, gating_temperature: temperature }, { dtype: 'float64' });
    const weights = model.parameters();
    const set = (name: string, values: number[]) => (weights.get(name)!.view() as Float64Array).set(values);
    for (const name of ['self_attn.o_proj', 'mlp.down_proj']) {
      (weights.get(`model.layers.0.${name}.weight`)!.view() as Float64Array).fill(0);
    }
    (weights.get('model.norm.weight')!.view() as Float64Array).fill(THROUGH);
    set('regression_layer.weight', vectors.regression_layer_weight.flat());
    set('reward_transform_matrix', vectors.reward_transform_matrix.flat());
    set('gating.logit_scale', [logitScale]);
    for (const [i, { weight, bias }] of vectors.gating_layers.entries()) {
      set(`gating.layers.${i}.weight`, weight.flat());
      set(`gating.layers.${i}.bias`, bias);
    }
    for (const [i, last] of vectors.hidden_last_token.entries()) {
      const embed = model.parameters().get('model.embed_tokens.weight')!.view() as Float64Array;
      embed.set([...vectors.hidden_gating_token[i], ...new Array(hidden).fill(0), ...last]);
      const [found] = await model.score([[0, 1, 2]]);
      expectWithin(maxAbsDifference(found!.gates, outputs.gating_output![i] as number[]), 1e-15);
      expectWithin(maxAbsDifference(found!.rewards, vectors.rewards[i]), 1e-15);
      expectWithin(Math.abs(found!.score - (outputs.score![i] as number)), 2e-15);
    }
  }

  it('as written', () => expectHead(gating_temperature, vectors.config.logit_scale, vectors));
  it('with another temperature and scale', () => expectHead(1, 2.5, vectors['variant_temperature1_scale2.5']));
});

describe('whole models', () => {
  // The spellings of transformers 5 and 4.
  describe.each(['config.json', 'config.v4.json'])('%s', (config) => {
    const expected = readJson(join(LIKE, 'expected.json'));
    const farthest = readJson(join(FIXTURES, 'float32.json'))['armorm/like'];
    const oracle = readValues(join(LIKE, 'expected.safetensors'));
    const directory = path(`like-${config}`);
    const rows = (name: string) => {
      const { shape, values } = oracle.get(name)!;
      const width = values.length / shape[0]!;
      return Array.from({ length: shape[0]! }, (_, i) => values.subarray(i * width, (i + 1) * width));
    };
    const conversations = rows('input_ids').map((ids, i) => ids.filter((_, c) => rows('attention_mask')[i]![c] === 1));
    const outputs = { score: 'score', rewards: 'rewards', gates: 'gating_output' } as const;

    beforeAll(() => {
      mkdirSync(directory);
      const json = readJson(join(LIKE, config));
      writeFileSync(
        join(directory, 'config.json'),
        JSON.stringify({ ...json, token_pattern_for_tests: expected.token_pattern }),
      );
      copyFileSync(join(LIKE, 'model.safetensors'), join(directory, 'model.safetensors'));
    });

    it('finds the gate and the last token', () => {
      for (const [i, ids] of conversations.entries()) {
        expect(gatingPosition(ids, expected.token_pattern, '')).toBe(expected.gating_positions[i]);
        expect(ids.length - 1).toBe(expected.last_positions[i]);
      }
    });

    it.each(['float32', 'float64'] as const)('%s', async (dtype) => {
      await using model = await Model.load(directory, { dtype });
      const found = await model.score(conversations);
      for (const [key, name] of Object.entries(outputs)) {
        const exact = oracle.get(`${name}_f64`)!.values;
        const noise = dtype === 'float64' ? maxAbsDifference(oracle.get(name)!.values, exact) : farthest[name];
        const error = maxAbsDifference(
          found.flatMap((one) => one[key as keyof Score]),
          exact,
        );
        // In float64 what is left is the rotary table, which is float32 in both.
        expectWithin(error, dtype === 'float64' ? noise / 4 : 2 * noise, name);
      }
    });

    it('in bfloat16 the head stays whole', async () => {
      await using model = await Model.load(directory, { dtype: 'bfloat16' });
      const found = await model.score(conversations);
      const exact = rows('score_f64').map(([score]) => score!);
      expectWithin(
        maxAbsDifference(
          found.map(({ score }) => score),
          exact,
        ),
        0.02,
      );
      // To far more digits than bfloat16 has: from the gates and rewards themselves.
      const transform = model.parameters({ master: true }).get('reward_transform_matrix')!.view() as Float32Array;
      for (const { score, rewards, gates } of found) {
        const again = gates.reduce(
          (sum, gate, j) =>
            sum + gate * rewards.reduce((adjusted, reward, i) => adjusted + reward * transform[i * 19 + j]!, 0),
          0,
        );
        expectWithin(Math.abs(score - again), 1e-12);
      }
    });
  });

  it('the second fixture', async () => {
    const { cases, tolerance } = readJson(join(SMALL, 'expected.json'));
    await using model = await Model.load(SMALL);
    const found = await model.score(cases.map(({ input_ids }: { input_ids: number[] }) => input_ids));
    for (const [i, { gating_position, input_ids, score, rewards, gating_output }] of cases.entries()) {
      expect(gatingPosition(input_ids, model.config.rewardHead!.pattern, '')).toBe(gating_position);
      expectWithin(Math.abs(found[i]!.score - score), tolerance);
      expectWithin(maxAbsDifference(found[i]!.rewards, rewards), tolerance);
      expectWithin(maxAbsDifference(found[i]!.gates, gating_output), tolerance);
    }
  });
});

describe('batches', () => {
  let exact: Model;
  let single: Model;
  beforeAll(async () => {
    exact = await tinyModel(REWARD, { dtype: 'float64' });
    single = await tinyModel(REWARD);
  });
  afterAll(() => Promise.all([exact.close(), single.close()]));

  it('a score does not depend on what it is computed with', async () => {
    const shape = fc.record({
      prompts: fc.array(
        fc.record({
          before: fc.integer({ min: 0, max: 40 }),
          answers: fc.array(fc.integer({ min: 0, max: 30 }), { minLength: 1, maxLength: 4 }),
        }),
        { minLength: 1, maxLength: 5 },
      ),
      seed: fc.nat(),
      microbatchTokens: fc.integer({ min: 1, max: 200 }),
    });
    await fc.assert(
      fc.asyncProperty(shape, async ({ prompts, seed, microbatchTokens }) => {
        const random = randomOf(seed);
        const conversations = prompts.flatMap(({ before, answers }) => {
          const prompt = [...randomIds(random, before), 3, 4, 5];
          return answers.map((length) => Int32Array.of(...prompt, ...randomIds(random, length)));
        });
        for (const [model, limit] of [
          [exact, 1e-13],
          [single, 2e-5],
        ] as const) {
          const together = await model.score(conversations, { microbatchTokens });
          const alone = [];
          for (const one of conversations) alone.push(...(await model.score([one])));
          expectWithin(maxAbsDifference(all(together), all(alone)), limit);
        }
      }),
      { numRuns: 40, seed: 1 },
    );
  });

  it('packs neighbours with one prompt together, each prompt once, and no batch over the limit', () => {
    const random = randomOf(7);
    const prompt = [...randomIds(random, 9), 3, 4, 5];
    const other = conversation(random, 4, 2);
    const given = [[...prompt, 7], [...prompt, 8, 9], other, [...prompt, 9]];
    const placed = placeConversations(given, exact.config, {});
    const [whole] = [...packConversations(placed)];
    expect(whole!.tokens.length).toBe(9 + 4 + 5 + other.length + 9 + 4);
    expect([...whole!.promptOffsets]).toEqual([0, 9, 13, 22]);
    expect([...whole!.groupOffsets]).toEqual([0, 2, 3, 4]);
    const parts = [...packConversations(placed, 18)];
    for (const { tokens } of parts) expectWithin(tokens.length, 18);
    expect(parts.map(({ groupOffsets }) => groupOffsets.at(-1))).toEqual([2, 1, 1]);
    expect([...packConversations(placed, 1)]).toHaveLength(4);
  });

  it('none', async () => {
    expect(await exact.score([])).toEqual([]);
  });

  it('the last token counts, and those behind the pattern do not move the gates', async () => {
    const random = randomOf(11);
    const ids = conversation(random, 6, 5);
    const [a, b] = await exact.score([ids, ids.with(-1, ids.at(-1) === 9 ? 10 : 9)]);
    expect(a!.rewards).not.toEqual(b!.rewards);
    expectWithin(maxAbsDifference(a!.gates, b!.gates), 1e-15);
  });
});

describe('errors', () => {
  let model: Model;
  beforeAll(async () => {
    model = await tinyModel(REWARD);
  });
  afterAll(() => model.close());

  it.each([
    ['absent', [1, 2, 3, 4, 6]],
    ['cut off', [1, 2, 3, 4]],
    ['shorter than the pattern', [3]],
  ])('a pattern that is %s names the row', async (_, ids) => {
    await expectSentence(
      () => model.score([[3, 4, 5], ids], { where: ['a', 'rows.jsonl line 7'] }),
      'ERR_DATA',
      'rows.jsonl line 7: no gating position',
      '[3, 4, 5]',
    );
    await expectSentence(() => model.score([[3, 4, 5], ids]), 'ERR_DATA', 'conversation 2: ');
  });

  it('the last of several occurrences counts', () => {
    expect(gatingPosition([3, 4, 5, 3, 4, 5, 3, 4], [3, 4, 5], '')).toBe(3);
    expect(gatingPosition([3, 4, 5], [3, 4, 5], '')).toBe(0);
  });

  it('conversations that are none', async () => {
    await expectSentence(() => model.score([[]]), 'ERR_DATA', 'conversation 1', 'no tokens');
    for (const odd of [-1, 61, 1.5, Number.NaN]) {
      await expectSentence(
        () => model.score([[3, 4, 5, odd]]),
        'ERR_DATA',
        `conversation 1: ${odd} at position 3`,
        '60',
      );
    }
  });

  it('a score that is no number names the row', async () => {
    await using broken = await tinyModel(REWARD);
    (broken.parameters().get('model.embed_tokens.weight')!.view() as Float32Array)[9 * 20] = Number.NaN;
    await broken.syncWork();
    await expectSentence(
      () =>
        broken.score(
          [
            [3, 4, 5],
            [3, 4, 5, 9],
          ],
          { microbatchTokens: 1 },
        ),
      'ERR_NON_FINITE',
      'conversation 2: the score is NaN',
    );
  });

  it('a reward model has no log-probs and no loss, a language model no scores', async () => {
    const batch = packRows([randomRow(randomOf(3), 4, { completion: 3 })], ['completion']);
    await expectSentence(() => model.logProbs(batch), 'ERR_MODEL', 'reward model', 'language-model head');
    const objective = { form: 'linear', beta: 1, gamma: 0, labelSmoothing: 0, lengthNormalized: false } as const;
    await expectSentence(() => model.accumulate(batch, { objective, normalizer: 1 }), 'ERR_MODEL', 'reward model');
    await using ordinary = await Model.load(POLICY);
    await expectSentence(() => ordinary.score([[3, 4, 5]]), 'ERR_MODEL', POLICY, 'without a reward head');
    await expectSentence(() => ordinary.handle.score(batch), 'ERR_MODEL', 'without a reward head');
    await expectSentence(
      () =>
        model.handle.score({ ...batch, responseOffsets: Int32Array.of(0, 0, 3), groupOffsets: Int32Array.of(0, 2) }),
      'ERR_DATA',
      'has no token',
    );
  });

  describe('of files', () => {
    let count = 0;
    /** The fixture with other tensors in its header. */
    function changed(change: (header: ReturnType<typeof splitFile>['header']) => void): string {
      const directory = path(`changed-${++count}`);
      cpSync(SMALL, directory, { recursive: true });
      const { header, data } = splitFile(join(SMALL, 'model.safetensors'));
      change(header);
      joinFile(join(directory, 'model.safetensors'), header, data);
      return directory;
    }

    it.each(['regression_layer.weight', 'reward_transform_matrix', 'gating.layers.3.bias', 'gating.logit_scale'])(
      'without %s',
      async (name) => {
        const directory = changed((header) => delete header[name]);
        await expectSentence(() => Model.load(directory), 'ERR_MODEL', `lacks ${name}`);
      },
    );

    it.each([
      ['regression_layer.weight', [32, 19], '[19,32]'],
      ['gating.layers.0.weight', [32, 16], '[16,32]'],
      ['gating.logit_scale', [], '[1]'],
    ])('%s in another shape', async (name, shape, wanted) => {
      const directory = changed((header) => {
        header[name]!.shape = shape;
      });
      await expectSentence(() => Model.load(directory), 'ERR_MODEL', `${name} has shape [${shape}]`, wanted);
    });

    it('a head of another config', async () => {
      const directory = changed(() => {});
      const config = readJson(join(SMALL, 'config.json'));
      writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...config, gating_n_hidden: 4 }));
      await expectSentence(() => Model.load(directory), 'ERR_MODEL', 'gating.layers.3.weight', '[16,16]');
      writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...config, architectures: ['LlamaForCausalLM'] }));
      await expectSentence(() => Model.load(directory), 'ERR_MODEL', 'gating.layers.0.bias', 'config.json does not');
    });
  });
});

it('is saved with its head', async () => {
  await using model = await Model.load(SMALL);
  const directory = path('saved');
  await model.save(directory);
  expect(readJson(join(directory, 'config.json'))).toMatchObject({
    architectures: REWARD.architectures,
    num_objectives: 19,
  });
  expect(readValues(join(directory, 'model.safetensors'))).toEqual(readValues(join(SMALL, 'model.safetensors')));
  await model.save(directory, { dtype: 'bfloat16' });
  const half = readValues(join(directory, 'model.safetensors')).get('gating.logit_scale')!;
  expect(half.values.length).toBe(1);
  expect(numberToBfloat16(half.values[0]!)).toBe(
    numberToBfloat16(readValues(join(SMALL, 'model.safetensors')).get('gating.logit_scale')!.values[0]!),
  );
});

describe('text and the command', () => {
  const LLAMA3 = join(FIXTURES, 'text', 'llama3');
  const directory = path('text-model');
  let tokenizer: Tokenizer;
  let pattern: number[];

  beforeAll(async () => {
    tokenizer = await Tokenizer.load(LLAMA3);
    pattern = await tokenizer.encode('<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n');
    await using model = await Model.create({
      ...REWARD,
      vocab_size: tokenizer.vocabSize,
      token_pattern_for_tests: pattern,
    });
    await model.save(directory);
    for (const name of readdirSync(LLAMA3)) copyFileSync(join(LLAMA3, name), join(directory, name));
  });

  const say = (role: string, content: string) => ({ role, content });
  const encoded = async (prompt: string | ReturnType<typeof say>[], ...answers: string[]) => {
    const row = { where: 'row', shape: 'responses' as const, prompt };
    const list = answers.map((content, i) => ({ key: `responses[${i}]`, content }));
    for await (const { conversations } of encodeConversations([{ ...row, answers: list }], tokenizer))
      return conversations;
    throw new Error('no row');
  };

  it('renders the turns with the answer, BOS once, and nothing behind its end', async () => {
    const [ids] = await encoded('hi', 'yo');
    expect(await tokenizer.decode(ids!)).toBe(
      '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>',
    );
    expect(ids!.filter((id) => id === tokenizer.bosTokenId)).toHaveLength(1);
    const gate = gatingPosition(ids!, pattern, '');
    expect(await tokenizer.decode(ids!.slice(0, gate))).toMatch(/user<\|end_header_id\|>\n\nhi$/);
  });

  it('writes BOS where the template does not, and never twice', async () => {
    for (const [name, change] of [
      ['none', (template: string) => template.replace('bos_token + content', 'content')],
      ['two', (template: string) => template.replace('bos_token + content', 'bos_token + bos_token + content')],
    ] as const) {
      const other = path(`bos-${name}`);
      cpSync(LLAMA3, other, { recursive: true });
      const template = readFileSync(join(LLAMA3, 'chat_template.jinja'), 'utf8');
      expect(change(template)).not.toBe(template);
      writeFileSync(join(other, 'chat_template.jinja'), change(template));
      const wanted = await encoded('hi', 'yo');
      const same = tokenizer;
      tokenizer = await Tokenizer.load(other);
      expect(await encoded('hi', 'yo')).toEqual(wanted);
      tokenizer = same;
    }
  });

  /** What the command must write. */
  async function scoresOf(prompt: string | ReturnType<typeof say>[], ...answers: string[]): Promise<Score[]> {
    await using model = await Model.load(directory);
    return model.score(await encoded(prompt, ...answers));
  }
  const close = (value: unknown) => expect.closeTo(value as number, 4);

  it('one line a row, whichever shape it has', async () => {
    const turns = [say('user', 'One?'), say('assistant', 'Yes.'), say('user', 'Two?')];
    const data = writeRows(path('rows.jsonl'), [
      { prompt: 'What is 1 and 1?', source_chosen: 'Two.', target_chosen: '2', rejected: 'Three.' },
      { prompt: 'Hello', responses: ['Hi.', 'Go away.', ''] },
      { prompt: turns, response: [say('assistant', 'No.')] },
      {
        prompt: say('user', 'Well?'),
        chosen: [say('assistant', 'a'), say('assistant', 'b')],
        rejected: [say('assistant', 'c')],
      },
      { prompt: [1, 2, ...pattern, 9], responses: [[8, 7], [6]] },
    ]);
    const [a, b, c, d] = await Promise.all([
      scoresOf('What is 1 and 1?', 'Two.', '2', 'Three.'),
      scoresOf('Hello', 'Hi.', 'Go away.', ''),
      scoresOf(turns, 'No.'),
      scoresOf('Well?', 'a', 'b', 'c'),
    ]);
    await using model = await Model.load(directory);
    const e = await model.score([
      [1, 2, ...pattern, 9, 8, 7],
      [1, 2, ...pattern, 9, 6],
    ]);
    const roles = (scores: Score[]) => ({
      source_chosen: close(scores[0]!.score),
      target_chosen: close(scores[1]!.score),
      rejected: close(scores[2]!.score),
    });
    const wanted = [
      roles(a),
      { scores: b.map(({ score }) => close(score)) },
      { score: close(c[0]!.score) },
      roles(d),
      { scores: e.map(({ score }) => close(score)) },
    ];
    const { stdout, stderr } = await succeed(['score', '--model', directory, '--data', data]);
    expect(stderr).toBe('');
    const lines = stdout.trim().split('\n');
    expect(lines.map((line) => JSON.parse(line))).toEqual(wanted);

    const output = path('scores.jsonl');
    await succeed(['score', '--model', directory, '--data', data, '--output', output, '--rewards']);
    const full = readJsonLines<Record<string, never>>(output);
    expect(full).toMatchObject(wanted);
    expect(full[0]).toMatchObject({
      rewards: { rejected: a[2]!.rewards.map(close) },
      gates: { rejected: a[2]!.gates.map(close) },
    });
    expect(full[1]!.rewards).toEqual(b.map(({ rewards }) => rewards.map(close)));
    expect(full[2]).toMatchObject({ rewards: c[0]!.rewards.map(close), gates: c[0]!.gates.map(close) });
    expect(leftovers(path())).toEqual([]);
  });

  it('many rows, more than a batch of them', async () => {
    const random = randomOf(5);
    const rows = Array.from({ length: 90 }, (_, i) => ({
      prompt: [...randomIds(random, 20 + (i % 30)), ...pattern],
      responses: [[...randomIds(random, 30)], [...randomIds(random, 1 + (i % 50))]],
    }));
    const { stdout } = await succeed(['score', '--model', directory, '--data', writeRows(path('many.jsonl'), rows)]);
    const found = stdout
      .trim()
      .split('\n')
      .flatMap((line) => JSON.parse(line).scores);
    await using model = await Model.load(directory);
    const wanted = await model.score(
      rows.flatMap(({ prompt, responses }) => responses.map((one) => [...prompt, ...one])),
    );
    expectWithin(
      maxAbsDifference(
        found,
        wanted.map(({ score }) => score),
      ),
      1e-5,
    );
  });

  it('rows of a table, of which only prompt and responses are read', async () => {
    const filename = path('rows.parquet');
    const column = (name: string, data: unknown[]) => ({ name, data, type: 'STRING' as const });
    await parquetWriteFile({
      filename,
      columnData: [column('id', ['x', 'y']), column('prompt', ['a', 'b']), column('response', ['c', 'd'])],
    });
    const [first, second] = [await scoresOf('a', 'c'), await scoresOf('b', 'd')];
    const { stdout } = await succeed(['score', '--model', directory, '--data', filename]);
    const found = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(found).toEqual([first, second].map((scores) => ({ score: close(scores[0]!.score) })));
  });

  it.each([
    ['no pattern', { prompt: [1, 2], responses: [[3], [4]] }, /line 2 \("responses\[0\]"\): no gating position/],
    ['no response', { prompt: 'a', responses: [] }, /line 2: "responses" must be a list of at least one response/],
    ['no prompt', { responses: ['a'] }, /line 2: missing key "prompt"/],
    ['an empty prompt', { prompt: '', response: 'a' }, /line 2: "prompt" is empty/],
    ['two kinds', { prompt: 'a', responses: ['b', [1]] }, /line 2: "responses\[1\]" is token ids but "prompt" is text/],
    ['a number', { prompt: 'a', response: 5 }, /line 2: "response" must be a string/],
    ['neither', { prompt: 'a' }, /line 2: no response/],
    ['an id too high', { prompt: [1], rejected: [99999] }, /line 2 \("rejected"\): 99999 at position 1/],
  ])('%s: one sentence, and no output', async (name, row, message) => {
    const data = writeRows(path('bad.jsonl'), [{ prompt: 'a', responses: ['b'] }, row]);
    const output = path(`${name}.out`);
    expect(await fail(['score', '--model', directory, '--data', data, '--output', output], 1)).toMatch(message);
    expect(readdirSync(path()).filter((file) => file.startsWith(name))).toEqual([]);
  });

  it('a line that is no JSON, and a file without rows', async () => {
    const broken = path('broken.jsonl');
    const score = () => fail(['score', '--model', directory, '--data', broken], 1);
    writeFileSync(broken, '{"prompt": "a", "response": "b"}\n{"prompt"\n');
    expect(await score()).toMatch(/broken\.jsonl line 2/);
    writeFileSync(broken, '');
    expect(await score()).toMatch(/broken\.jsonl: holds no rows/);
  });

  it('models and templates that cannot', async () => {
    const data = writeRows(path('one.jsonl'), [{ prompt: 'a', response: 'b' }]);
    const score = (model: string, ...more: string[]) => fail(['score', '--model', model, '--data', data, ...more], 1);
    expect(await score(path('nowhere'))).toMatch(/no model in .*nowhere/);
    expect(await score(SMALL)).toMatch(/one\.jsonl line 1: the row is text, but there is no tokenizer/);
    const ids = writeRows(path('ids.jsonl'), [{ prompt: [1], response: [2] }]);
    expect(await fail(['score', '--model', POLICY, '--data', ids], 1)).toMatch(
      /policy is a language model, without a rew/,
    );
    expect(await score(directory, '--dtype', 'float8')).toMatch(/--dtype "float8"/);
    const failing = path('failing');
    cpSync(directory, failing, { recursive: true });
    writeFileSync(join(failing, 'chat_template.jinja'), "{{ raise_exception('no such turns') }}");
    expect(await score(failing)).toMatch(/one\.jsonl line 1: .*refuses the turns \(user, assistant\): no such turns/);
    writeFileSync(join(failing, 'chat_template.jinja'), '{{ nothing.at() }}');
    expect(await score(failing)).toMatch(/one\.jsonl line 1: .*fails on the turns/);
    writeFileSync(join(failing, 'chat_template.jinja'), '{{ messages[0].content }}');
    expect(await score(failing)).toMatch(/one\.jsonl line 1 \("response"\): no gating position/);
    const pairs = writeRows(path('pairs.jsonl'), [{ prompt: [1], chosen: [2], rejected: [3] }]);
    expect(await fail(['logprobs', '--model', directory, '--data', pairs], 1)).toMatch(/reward model/);
    const run = { model_name_or_path: directory, dataset_name: pairs, loss_type: 'dpo', output_dir: path('trained') };
    const refused = await fail(['train', '--config', writeRunFile(path('trained.yaml'), run)], 1);
    expect(refused).toMatch(/is a reward model, without a language-model head: it scores, and is not trained/);
    const saved = join(FIXTURES, 'data', 'saved_pairs');
    expect(await fail(['score', '--model', directory, '--data', saved, '--split', 'none'], 1)).toMatch(/"none"|none/);
  });

  it('doctor says what it is', async () => {
    const { stdout } = await succeed(['doctor', '--model', LIKE]);
    expect(stdout).toMatch(/^ok {6}model .*reward model \(ArmoRM, 19 objectives\).*no language-model head/m);
  });
});
