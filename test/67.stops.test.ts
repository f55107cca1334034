/** Whatever stops a run: nothing that was complete is lost, no wrong number is read, and one sentence says what to do. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { Model } from '../lib/model/model.ts';
import type { TrainingArgsInput } from '../lib/train/args.ts';
import { pruneCheckpoints, recoverCheckpoints } from '../lib/train/checkpoint.ts';
import { Trainer, type TrainerOptions } from '../lib/train/trainer.ts';
import {
  expectFailure,
  failure,
  leftovers,
  metricsOf,
  POLICY,
  randomOf,
  readJson,
  scratchDirectory,
  sentence,
  start,
  succeed,
  tokenRows,
  trainingOn,
  weightsOf,
  writeRows,
  writeRunFile,
} from './training.ts';

const path = scratchDirectory('stops');
const rows = tokenRows(12, 31);
const held = tokenRows(6, 32);
const ARGS = {
  ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 1, learningRate: 1e-3, beta: 0.1, alpha: 0.5 },
  ...{ microbatchTokens: 100, loggingSteps: 2, evalSteps: 2, disableTqdm: true },
} satisfies Partial<TrainingArgsInput>;

const train = trainingOn(rows, held, ARGS);

const checkpoints = (dir: string) =>
  readdirSync(dir)
    .filter((name) => name.startsWith('checkpoint-'))
    .sort();

const whole = path('whole');
beforeAll(() => train(whole, { saveSteps: 1 }));

describe('a signal', () => {
  it('in any micro-batch of an evaluation: the step is kept, and the evaluation made up for', async () => {
    for (const call of [1, 2, 5, 6]) {
      const dir = path(`in evaluation ${call}`);
      const controller = new AbortController();
      await using model = await Model.load(POLICY);
      const logProbs = model.logProbs.bind(model);
      let evaluating = 0;
      model.logProbs = (...args) => {
        // The reference column has its file before it is whole; evaluations begin with the first step.
        if (existsSync(join(dir, 'metrics.jsonl')) && ++evaluating === call) controller.abort();
        return logProbs(...args);
      };
      const run = train(dir, {}, { signal: controller.signal }, { model });
      await expect(run).rejects.toMatchObject({ name: 'AbortError' });
      expect(checkpoints(dir)).toHaveLength(1);
      await train(dir, {}, { resumeFromCheckpoint: true });
      expect(weightsOf(dir).equals(weightsOf(whole))).toBe(true);
      expect(metricsOf(dir)).toEqual(metricsOf(whole));
      expect(leftovers(dir)).toEqual([]);
    }
  });

  it('that was there before: nothing is begun', async () => {
    const dir = path('never');
    await expect(train(dir, {}, { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' });
    expect(existsSync(dir)).toBe(false);
  });

  it('while a checkpoint is written: it becomes whole, and is not written twice', async () => {
    const dir = path('just saved');
    const controller = new AbortController();
    const saved: string[] = [];
    const callbacks: TrainerOptions['callbacks'] = {
      save: (where) => saved.push(basename(where)),
      // Its checkpoint is being written.
      step: ({ step }) => step === 2 && controller.abort(),
    };
    const run = train(dir, { saveSteps: 2 }, { signal: controller.signal }, { callbacks });
    await expect(run).rejects.toMatchObject({ name: 'AbortError' });
    expect(saved).toEqual(['checkpoint-2']);
  });
});

describe('the best model', () => {
  // By a metric that a callback cannot bend: the log's own numbers decide.
  const evaluations = () => metricsOf(whole).filter((line) => 'eval_loss' in line);
  const bestBy = (name: string, sign: 1 | -1) =>
    evaluations().reduce((best, line) => (sign * line[name]! > sign * best[name]! ? line : best));

  it.each([
    ['the loss', {}, 'eval_loss', -1],
    [
      'a metric that is to be small',
      { metricForBestModel: 'logps/target_chosen', greaterIsBetter: false },
      'eval_logps/target_chosen',
      -1,
    ],
    ['a metric that is to be great', { metricForBestModel: 'eval_rewards/margins' }, 'eval_rewards/margins', 1],
  ] as const)('by %s is the result, and its checkpoint is kept', async (name, args, metric, sign) => {
    const dir = path(`best by ${name}`);
    const best = bestBy(metric, sign);
    await train(dir, { ...args, loadBestModelAtEnd: true, saveSteps: 1, saveTotalLimit: 1 });
    const state = readJson(join(dir, 'trainer_state.json'));
    expect(state).toMatchObject({
      best_metric: best[metric],
      best_global_step: best.step,
      best_model_checkpoint: join(dir, `checkpoint-${best.step}`),
    });
    expect(weightsOf(dir).equals(weightsOf(join(whole, `checkpoint-${best.step}`)))).toBe(true);
    expect(checkpoints(dir)).toEqual([...new Set([`checkpoint-${best.step}`, 'checkpoint-6'])].sort());
  });

  it('save_strategy best writes the checkpoints that were the best so far, and no others', async () => {
    const dir = path('only the best');
    await train(dir, { saveStrategy: 'best', metricForBestModel: 'logps/rejected' });
    const values = evaluations();
    const expected = values.filter((line, i) =>
      values.slice(0, i).every((before) => line['eval_logps/rejected']! > before['eval_logps/rejected']!),
    );
    expect(checkpoints(dir)).toEqual(expected.map(({ step }) => `checkpoint-${step}`));
  });

  it('is found again by a run that goes on', async () => {
    const args = { loadBestModelAtEnd: true, metricForBestModel: 'logps/rejected', greaterIsBetter: true };
    const straight = path('best straight');
    await train(straight, args);
    const dir = path('best resumed');
    const controller = new AbortController();
    const evaluate = () => controller.abort();
    const run = train(dir, args, { signal: controller.signal }, { callbacks: { evaluate } });
    await expect(run).rejects.toMatchObject({ name: 'AbortError' });
    await train(dir, args, { resumeFromCheckpoint: true });
    expect(weightsOf(dir).equals(weightsOf(straight))).toBe(true);
    const relative = ({ best_model_checkpoint: _, log_history: __, ...state }: Record<string, unknown>) => state;
    expect(relative(readJson(join(dir, 'trainer_state.json')))).toEqual(
      relative(readJson(join(straight, 'trainer_state.json'))),
    );
  });

  it.each([
    [
      'without evaluations',
      { loadBestModelAtEnd: true, evalSteps: undefined },
      {},
      /load_best_model_at_end needs evaluations/,
    ],
    [
      'by a metric there is not',
      { metricForBestModel: 'f1' },
      {},
      /metric_for_best_model "f1": an evaluation has eval_loss, /,
    ],
    ['without evaluation data', { saveStrategy: 'best' }, { evalDataset: undefined }, /there must be evaluation data/],
  ] as const)('%s: one sentence', async (name, args, options, message) => {
    await expectFailure(() => train(path(name), args, {}, options), 'ERR_CONFIG', message);
  });
});

describe('the checkpoints that are kept', () => {
  const pretend = (name: string, entries: string[]) => {
    const dir = path(name);
    for (const entry of entries) {
      mkdirSync(join(dir, entry), { recursive: true });
      writeFileSync(join(dir, entry, 'manifest.json'), '{}');
    }
    return dir;
  };

  it.each([
    [1, undefined, [9]],
    [2, undefined, [7, 9]],
    [1, 3, [3, 9]],
    [2, 3, [3, 9]],
    [3, 3, [3, 7, 9]],
    [2, 7, [7, 9]],
    [1, 9, [9]],
    [9, 3, [1, 3, 5, 7, 9]],
    [1, 4, [9]], // gone already
  ])('of a limit of %d with the best at %s: %j', (limit, best, expected) => {
    const dir = pretend(
      `limit ${limit} ${best}`,
      [1, 3, 5, 7, 9, 12].map((step) => `checkpoint-${step}`),
    );
    const at = (step: number) => join(dir, `checkpoint-${step}`);
    pruneCheckpoints(at(9), limit, best === undefined ? undefined : at(best));
    expect(readdirSync(dir).sort()).toEqual([...expected, 12].map((step) => `checkpoint-${step}`).sort());
  });

  it.each([
    ['no', {}, []],
    ['steps', { saveSteps: 5 }, [5, 10]],
    ['epoch', {}, [6, 12]],
  ] as const)('by save_strategy %s', async (saveStrategy, args, steps) => {
    const dir = path(`strategy ${saveStrategy}`);
    await train(dir, { ...args, saveStrategy, numTrainEpochs: 2, evalSteps: undefined });
    expect(checkpoints(dir)).toEqual(steps.map((step) => `checkpoint-${step}`).sort());
  });

  it('a run that died between two renames keeps the checkpoint that only lacked its name', () => {
    const dir = pretend('renames', ['checkpoint-4.tmp', 'checkpoint-4.old.tmp', 'checkpoint-2', 'checkpoint-2.tmp']);
    mkdirSync(join(dir, 'checkpoint-5.tmp'));
    recoverCheckpoints(dir);
    expect(readdirSync(dir).sort()).toEqual(['checkpoint-2', 'checkpoint-4']);
  });

  it('and a run goes on from it', async () => {
    const dir = path('only one');
    cpSync(whole, dir, { recursive: true });
    for (const name of checkpoints(dir)) if (name !== 'checkpoint-4') rmSync(join(dir, name), { recursive: true });
    renameSync(join(dir, 'checkpoint-4'), join(dir, 'checkpoint-4.tmp'));
    await train(dir, {}, { resumeFromCheckpoint: true });
    expect(weightsOf(dir).equals(weightsOf(whole))).toBe(true);
  });
});

describe('a damaged checkpoint', () => {
  const copy = (name: string) => {
    const dir = path(name);
    mkdirSync(dir);
    for (const step of [2, 3])
      cpSync(join(whole, `checkpoint-${step}`), join(dir, `checkpoint-${step}`), { recursive: true });
    return dir;
  };
  const FILES = ['model.safetensors', 'optimizer.safetensors', 'trainer_state.json', 'manifest.json', 'config.json'];

  it.each(FILES)('%s with a bit flipped, wherever: named, with what to go on from', async (name) => {
    const dir = copy(`flipped ${name}`);
    const file = join(dir, 'checkpoint-3', name);
    const bytes = readFileSync(file);
    const random = randomOf(7);
    await using trainer = new Trainer({ model: POLICY, trainDataset: rows, args: { ...ARGS, outputDir: dir } });
    for (let i = 0; i < 8; i++) {
      // What holds a place in a number or a word; between JSON's tokens a changed blank changes nothing.
      let at: number;
      do at = Math.floor(random() * bytes.length);
      while (name.endsWith('.json') && !/[\w.]/.test(String.fromCharCode(bytes[at]!)));
      const flipped = Buffer.from(bytes);
      flipped[at]! ^= 1 << Math.floor(random() * 8);
      writeFileSync(file, flipped);
      const error = await failure(() => trainer.train({ resumeFromCheckpoint: true }));
      expect(error.code).toBe('ERR_CHECKPOINT');
      expect(error.message, `byte ${at}`).toContain(name);
      expect(error.message).toMatch(/an earlier one is checkpoint-2$/);
    }
    expect(existsSync(join(dir, 'model.safetensors'))).toBe(false);
  });

  it.each(FILES)('%s cut short or gone', async (name) => {
    const dir = copy(`cut ${name}`);
    const file = join(dir, 'checkpoint-3', name);
    const bytes = readFileSync(file);
    await using trainer = new Trainer({ model: POLICY, trainDataset: rows, args: { ...ARGS, outputDir: dir } });
    for (const length of [0, 1, bytes.length >> 1, bytes.length - 2]) {
      writeFileSync(file, bytes.subarray(0, length));
      const error = await failure(() => trainer.train({ resumeFromCheckpoint: true }));
      expect(error.code).toBe('ERR_CHECKPOINT');
      expect(error.message).toMatch(/truncated|not a complete checkpoint/);
      expect(error.message).toContain(name);
    }
  });

  it('resumed with several things changed: all of them', async () => {
    const error = await failure(() =>
      train(
        path('changed'),
        { beta: 0.2, seed: 7, maxSteps: 9 },
        { resumeFromCheckpoint: join(whole, 'checkpoint-3') },
      ),
    );
    expect(error.message).toMatch(
      /beta was 0\.1 and is now 0\.2; seed was 42 and is now 7; the number of steps was 6 and is now 9$/,
    );
  });
});

describe('processes', () => {
  const config = path('run.yaml');
  const straight = path('straight');
  beforeAll(async () => {
    writeRows(path('rows.jsonl'), tokenRows(120, 33));
    writeRows(path('held.jsonl'), tokenRows(60, 34));
    writeRunFile(config, {
      ...{ model_name_or_path: POLICY, dataset_name: path('rows.jsonl'), eval_dataset_name: path('held.jsonl') },
      ...{ beta: 0.1, learning_rate: 1e-3, logging_steps: 1, microbatch_tokens: 100, eval_steps: 2, save_steps: 4 },
      ...{ per_device_train_batch_size: 8, gradient_accumulation_steps: 1 },
    });
    await succeed(['train', '--config', config, '--output_dir', straight]);
  });

  it('SIGTERM, as schedulers send it', async () => {
    const dir = path('terminated');
    const args = ['train', '--config', config, '--output_dir', dir];
    const child = start(args);
    expect(await child.until(() => existsSync(join(dir, 'metrics.jsonl')) && metricsOf(dir).length > 4)).toBe(true);
    const words = sentence(await child.kill('SIGTERM'), 1);
    const [, step] = /^wrpo: stopped: .*checkpoint-(\d+) holds the run so far; the same command with/.exec(words)!;
    expect(checkpoints(dir)).toContain(`checkpoint-${step}`);
    const { stderr } = await succeed([...args, '--resume-from-checkpoint']);
    expect(stderr).toContain(`going on from ${join(dir, `checkpoint-${step}`)}, after step ${step} of 15`);
    expect(weightsOf(dir).equals(weightsOf(straight))).toBe(true);
    expect(metricsOf(dir)).toEqual(metricsOf(straight));
  });

  it('a second SIGINT while the checkpoint is written: at once, the one before it whole', async () => {
    const dir = path('twice');
    const args = ['train', '--config', config, '--output_dir', dir];
    const child = start(args);
    const half = () => existsSync(dir) && readdirSync(dir).some((name) => /^checkpoint-\d+\.tmp$/.test(name));
    expect(await child.until(() => existsSync(join(dir, 'checkpoint-4')) && metricsOf(dir).length > 8)).toBe(true);
    child.process.kill('SIGINT');
    await child.until(() => half() || child.stderr.includes('wrpo: stopped'));
    child.process.kill('SIGINT');
    await child.done;
    await succeed([...args, '--resume-from-checkpoint']);
    expect(weightsOf(dir).equals(weightsOf(straight))).toBe(true);
    expect(metricsOf(dir)).toEqual(metricsOf(straight));
    expect(leftovers(dir)).toEqual([]);
  });
});
