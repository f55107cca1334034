/** Fine-tuning on all tokens and on blocks, the authors' steps, and data that is looked at before the model. */
import { cpSync, mkdirSync, readFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import { Model } from '../lib/model/model.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { resolveArgs, type TrainingArgsInput } from '../lib/train/args.ts';
import { stepsPerEpoch, totalSteps } from '../lib/train/schedule.ts';
import { type StepResult, Trainer } from '../lib/train/trainer.ts';
import {
  expectFailure,
  FIXTURES,
  metricsOf,
  POLICY,
  randomOf,
  scratchDirectory,
  tokenRows,
  writeRows,
} from './training.ts';

const path = scratchDirectory('trainer-modes');
const MODEL = path('model');
const EOT = 804;
const SENTENCES = ['It is 4.', 'No.', 'a longer answer, with some words in it', 'yes', 'What is it?', '17'];

/** A tiny Llama with the small Llama-3 tokenizer. */
beforeAll(async () => {
  const shape = { hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2 };
  await using model = await Model.create({
    ...{ model_type: 'llama', vocab_size: 806, intermediate_size: 64, initializer_range: 0.2 },
    ...shape,
  });
  mkdirSync(MODEL, { recursive: true });
  await model.save(MODEL);
  cpSync(join(FIXTURES, 'text', 'llama3'), MODEL, { recursive: true });
});

const STILL = { learningRate: 0, shuffle: false, loggingSteps: 1, disableTqdm: true } as const;
let runs = 0;
async function train(
  trainDataset: readonly unknown[],
  args: Partial<TrainingArgsInput>,
  { model = MODEL, evalDataset }: { model?: string; evalDataset?: readonly unknown[] } = {},
) {
  const outputDir = path(`run-${++runs}`);
  const said: string[] = [];
  const stderr = vi.spyOn(process.stderr, 'write').mockImplementation((text) => said.push(String(text)) > 0);
  try {
    const steps: StepResult[] = [];
    await using trainer = new Trainer({ model, trainDataset, evalDataset, args: { ...STILL, ...args, outputDir } });
    trainer.on('step', (step) => steps.push(step));
    const result = await trainer.train();
    return { outputDir, steps, result, metrics: metricsOf(outputDir), said: said.join('') };
  } finally {
    stderr.mockRestore();
  }
}

/** Σ −log p(id | the ids before it), each from a sequence of its own, over all ids but the first of every list. */
async function lossOf(lists: number[][], model = MODEL): Promise<{ sum: number; tokens: number }> {
  await using loaded = await Model.load(model);
  const rows = lists.flatMap((list) =>
    list.slice(1).map((id, i) => ({
      where: '',
      prompt: Int32Array.from(list.slice(0, i + 1)),
      responses: { completion: Int32Array.of(id) },
    })),
  );
  const { sums } = await loaded.logProbs(packRows(rows, ['completion']));
  return { sum: -sums.reduce((a, b) => a + b, 0), tokens: rows.length };
}

const conversations = SENTENCES.map((completion, i) => ({ prompt: `${i} + 1?`, completion }));
/** A conversation as the template writes it, with or without the tokenizer's own special tokens. */
async function wholes(addSpecialTokens: boolean): Promise<number[][]> {
  const tokenizer = await Tokenizer.load(MODEL);
  const texts = conversations.map(({ prompt, completion }) =>
    tokenizer.applyChatTemplate([
      { role: 'user', content: prompt },
      { role: 'assistant', content: completion },
    ]),
  );
  return tokenizer.encodeBatch(texts, { addSpecialTokens });
}

const sft = { lossType: 'sft', perDeviceTrainBatchSize: 6, gradientAccumulationSteps: 1 } as const;

describe('fine-tuning on all tokens', () => {
  it('is the mean over every token but the first of each conversation, in training and evaluation', async () => {
    const options = { evalDataset: conversations.slice(0, 4) };
    const { metrics } = await train(conversations, { ...sft, completionOnlyLoss: false }, options);
    const lists = await wholes(false);
    const all = await lossOf(lists);
    expect(metrics[0]!.loss).toBeCloseTo(all.sum / all.tokens, 5);
    const held = await lossOf(lists.slice(0, 4));
    expect(metrics.at(-1)!.eval_loss).toBeCloseTo(held.sum / held.tokens, 5);
    const onlyAnswers = await train(conversations, sft);
    expect(Math.abs(onlyAnswers.metrics[0]!.loss! - metrics[0]!.loss!)).toBeGreaterThan(1e-3);
  });

  it('takes the second BOS and no second end with template_mode authors', async () => {
    const { metrics } = await train(conversations, { ...sft, templateMode: 'authors' });
    const { sum, tokens } = await lossOf(await wholes(true));
    expect(metrics[0]!.loss).toBeCloseTo(sum / tokens, 5);
  });

  it('wraps texts into blocks that attend across their texts, and says what they are', async () => {
    const wrapped = { packing: true, packingStrategy: 'wrapped', maxLength: 24 } as const;
    const options = { evalDataset: conversations };
    const { metrics, steps, said } = await train(conversations, { ...sft, ...wrapped }, options);
    const stream = (await wholes(true)).flatMap((list) => [...list, EOT]);
    const count = Math.floor(stream.length / 24);
    const blocks = Array.from({ length: count }, (_, i) => stream.slice(i * 24, (i + 1) * 24));
    expect(count).toBeGreaterThan(6);
    expect(steps.length).toBe(Math.ceil(count / 6));
    const first = await lossOf(blocks.slice(0, 6));
    expect(first.tokens).toBe(6 * 23);
    expect(metrics[0]!.loss).toBeCloseTo(first.sum / first.tokens, 5);
    const all = await lossOf(blocks);
    expect(metrics.at(-1)!.eval_loss).toBeCloseTo(all.sum / all.tokens, 5);
    const words = `6 rows make ${count} blocks of 24 tokens (${count * 24} in all); ${stream.length - count * 24} tokens at the end are left out`;
    expect(said).toContain(`training data: ${words}\n`);
    expect(said).toContain(`evaluation data: ${words}\n`);
    await expectFailure(
      () => train(conversations.slice(0, 1), { ...sft, ...wrapped, maxLength: 500 }),
      'ERR_DATA',
      /^training data: the 1 rows have \d+ tokens together, too few for one block of max_length 500$/,
    );
  });

  it('needs nothing else for packing without wrapping', async () => {
    const plain = await train(conversations, sft);
    const packed = await train(conversations, { ...sft, packing: true });
    expect(packed.metrics).toEqual(plain.metrics);
  });

  it('does not depend on how a ragged batch is cut into micro-batches', async () => {
    const random = randomOf(3);
    const rows = tokenRows(16, 4).map(({ prompt, rejected }, i) => ({
      prompt,
      completion: i % 5 === 0 ? rejected.slice(0, 1 + Math.floor(random() * 3)) : [...rejected, ...prompt],
    }));
    const args = { lossType: 'sft', learningRate: 1e-2, perDeviceTrainBatchSize: 8, dtype: 'float64' } as const;
    for (const completionOnlyLoss of [true, false]) {
      const run = (microbatchTokens: number, accumulation: number) =>
        train(
          rows,
          {
            ...{ ...args, completionOnlyLoss, microbatchTokens, gradientAccumulationSteps: accumulation },
            ...{ perDeviceTrainBatchSize: 8 / accumulation },
          },
          { model: POLICY },
        );
      const [one, many] = [await run(100000, 1), await run(40, 4)];
      expect(one.steps.length).toBe(2);
      for (const [i, line] of one.metrics.entries()) {
        if (line.loss !== undefined) expect(many.metrics[i]!.loss).toBeCloseTo(line.loss, 10);
        if (line.grad_norm !== undefined) expect(many.metrics[i]!.grad_norm).toBeCloseTo(line.grad_norm, 8);
      }
      // The second step's loss is that of the first's update.
      expect(one.metrics[1]!.loss).not.toBeCloseTo(one.metrics[0]!.loss!, 2);
    }
  });
});

describe("the authors' steps", () => {
  const of = (
    rows: number,
    perDeviceTrainBatchSize: number,
    gradientAccumulationSteps: number,
    templateMode: 'default' | 'authors',
  ) => stepsPerEpoch(rows, { perDeviceTrainBatchSize, gradientAccumulationSteps, templateMode });

  it('are the whole windows of the loader, and one at least', () => {
    // Rows, batch, window, default, authors: len(loader) = ceil(rows / batch), steps = max(1, floor(len / window)).
    const table = [
      [37, 2, 8, 3, 2],
      [32, 2, 8, 2, 2],
      [31, 2, 8, 2, 2], // 16 batches, the last of one row
      [30, 2, 8, 2, 1],
      [5, 2, 8, 1, 1],
      [60000, 16, 8, 469, 468],
    ] as const;
    for (const [rows, batch, window, mine, theirs] of table) {
      expect([of(rows, batch, window, 'default'), of(rows, batch, window, 'authors')]).toEqual([mine, theirs]);
    }
    expect(totalSteps(of(37, 2, 8, 'authors'), 1.6, -1)).toBe(4);
    expect(totalSteps(of(37, 2, 8, 'authors'), 2, 3)).toBe(3);
  });

  it('leave the incomplete last window of each epoch out, for rate and alpha too', async () => {
    const rows = tokenRows(22, 9);
    const batch = { perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 4, numTrainEpochs: 2 };
    const run = (templateMode: 'default' | 'authors') =>
      train(rows, { ...batch, templateMode, learningRate: 1e-3, warmupRatio: 0, alpha: 0.4 }, { model: POLICY });
    const tokensOf = (part: typeof rows) =>
      part.reduce(
        (sum, { prompt, ...responses }) =>
          sum + Object.values(responses).reduce((n, ids) => n + prompt.length + ids.length, 0),
        0,
      );
    const [theirs, mine] = [await run('authors'), await run('default')];
    const windows = [rows.slice(0, 8), rows.slice(8, 16)].map(tokensOf);
    expect(theirs.steps.map(({ tokens }) => tokens)).toEqual([...windows, ...windows]);
    expect(mine.steps.map(({ tokens }) => tokens)).toEqual([
      ...windows,
      tokensOf(rows.slice(16)),
      ...windows,
      tokensOf(rows.slice(16)),
    ]);
    expect(theirs.metrics.slice(0, 4).map(({ cur_alpha }) => cur_alpha)).toEqual(
      [0, 0.1, 0.2, 0.3].map((alpha) => expect.closeTo(alpha, 10)),
    );
    expect(theirs.metrics.map(({ epoch }) => epoch).slice(0, 4)).toEqual([0.5, 1, 1.5, 2]);
  });

  it('hold for rows of text, whose prompts are cut and counted', async () => {
    const rows = SENTENCES.map((text, i) => ({
      prompt: i === 0 ? text.repeat(40) : text,
      source_chosen: text,
      target_chosen: i === 1 ? text.repeat(60) : 'b',
      rejected: 'c',
    }));
    const { said, steps } = await train(rows, {
      ...{ templateMode: 'authors', maxLength: 100, maxPromptLength: 60 },
      ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 2 },
    });
    expect(said).toMatch(
      /training data: 6 rows \(\d+ tokens kept\), 1 prompts cut to max_prompt_length, 1 responses cut to max_length\n/,
    );
    expect(steps.length).toBe(1);
  });
});

describe('arguments', () => {
  const resolve = (args: object) => resolveArgs({ outputDir: 'x', ...args });

  it('dpo is sigmoid, and the only name of it in template_mode authors', async () => {
    expect(resolve({ lossType: 'dpo' }).lossType).toBe('sigmoid');
    const rows = tokenRows(4, 1);
    const own = {
      templateMode: 'authors',
      lossType: 'dpo',
      perDeviceTrainBatchSize: 2,
      gradientAccumulationSteps: 1,
    } as const;
    const { outputDir, metrics } = await train(rows, own, { model: POLICY });
    expect(metrics[0]!.loss).toBeCloseTo(Math.log(2), 5);
    // The run file that a run writes can be run again.
    const config = readFileSync(join(outputDir, 'config.yaml'), 'utf8');
    expect(config).toContain('loss_type: dpo\n');
    expect(() => resolve({ templateMode: 'authors', lossType: 'sigmoid' })).toThrow(
      /^args: with template_mode authors, loss_type "sigmoid" would mean .*both chosen responses; spell "authors_sigmoid" for that, or "dpo" for DPO$/,
    );
    expect(resolve({ lossType: 'sigmoid' }).lossType).toBe('sigmoid');
    const both = { ...own, lossType: 'authors_sigmoid' } as const;
    expect((await train(rows, both, { model: POLICY })).metrics[0]!.loss).toBeCloseTo(Math.log(2), 5);
  });

  it.each([
    [
      { lossType: 'sft', packing: true, packingStrategy: 'wrapped', completionOnlyLoss: true },
      /packing_strategy wrapped, whose loss is on all tokens/,
    ],
    [
      { lossType: 'sft', templateMode: 'authors', completionOnlyLoss: true },
      /template_mode authors, whose loss is on all tokens/,
    ],
    [{ packing: true }, /packing is for loss_type "sft", found "wrpo"/],
    [{ lossType: 'dpo', completionOnlyLoss: false }, /completion_only_loss false is for loss_type "sft", found "dpo"/],
    [
      { templateMode: 'authors', maxLength: 100, maxPromptLength: 100 },
      /max_prompt_length \(100\) must be below max_length \(100\)/,
    ],
  ])('%j cannot be meant', (args, message) => {
    expect(() => resolve(args)).toThrow(message);
  });

  it('that seem alike are fine', () => {
    for (const args of [
      { lossType: 'sft', packing: true, packingStrategy: 'wrapped', completionOnlyLoss: false },
      { lossType: 'sft', packing: true, completionOnlyLoss: true },
      { packingStrategy: 'wrapped' },
      { maxLength: 100, maxPromptLength: 100 },
      { lossType: 'sft', templateMode: 'authors', maxLength: 100, maxPromptLength: 100 },
    ]) {
      expect(() => resolve(args)).not.toThrow();
    }
  });
});

it('a faulty row ends a run before its weights are read', async () => {
  const model = path('without-weights');
  cpSync(MODEL, model, { recursive: true });
  truncateSync(join(model, 'model.safetensors'), 100);
  const good = { prompt: 'a', source_chosen: 'b', target_chosen: 'c', rejected: 'd' };
  const file = (name: string, last: object) => writeRows(path(name), [good, good, last]);
  const run = (trainDataset: string, evalDataset?: string) => async () => {
    await using trainer = new Trainer({
      model,
      trainDataset,
      evalDataset,
      args: { ...STILL, outputDir: path('never') },
    });
    await trainer.train();
  };
  const { rejected: _, ...missing } = good;
  await expectFailure(run(file('missing.jsonl', missing)), 'ERR_DATA', /^missing.jsonl line 3: missing key "rejected"/);
  const ids = { prompt: [1], source_chosen: [2], target_chosen: [806], rejected: [3] };
  await expectFailure(
    run(file('ids.jsonl', ids)),
    'ERR_DATA',
    /^ids.jsonl line 3: "target_chosen" has 806 at position 0/,
  );
  const fine = file('fine.jsonl', good);
  await expectFailure(run(fine, file('held.jsonl', missing)), 'ERR_DATA', /^held.jsonl line 3: missing key "rejected"/);
  await expectFailure(run(fine), 'ERR_MODEL', /model.safetensors/);
});
