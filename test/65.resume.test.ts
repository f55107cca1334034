/** Checkpoints: whatever stops a run, continuing it ends in the same bytes. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { Model } from '../lib/model/model.ts';
import type { TrainingArgsInput } from '../lib/train/args.ts';
import type { Objective } from '../lib/train/objective.ts';
import {
  type Child,
  expectFailure,
  failure,
  filesBelow,
  leftovers,
  metricsOf,
  POLICY,
  poisonedPolicy,
  randomOf,
  readJson,
  readJsonLines,
  readTensors,
  scratchDirectory,
  sentence,
  sleep,
  start,
  succeed,
  tokenRows,
  trainingOn,
  weightsOf,
  writeRows,
  writeRunFile,
} from './training.ts';

const path = scratchDirectory('resume');
// 14 rows in batches of 4: four steps an epoch, the last of two rows; nine steps in all.
const rows = tokenRows(14, 11);
const held = tokenRows(4, 12);
const ARGS = {
  ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 2, numTrainEpochs: 2.25, learningRate: 1e-3, beta: 0.1 },
  ...{ alpha: 0.5, weightDecay: 0.1, microbatchTokens: 100, loggingSteps: 4, evalSteps: 3, disableTqdm: true },
} satisfies Partial<TrainingArgsInput>;

const train = trainingOn(rows, held, ARGS);

/** `trainer_state.json` without what no two processes share. */
function stateOf(dir: string) {
  const { log_history, ...state } = readJson(join(dir, 'trainer_state.json'));
  const times = ['tokens_per_second', 'peak_memory_bytes', 'train_runtime'];
  for (const line of log_history) for (const name of times) delete line[name];
  return { ...state, log_history };
}

function expectSameRun(found: string, expected: string) {
  expect(weightsOf(found).equals(weightsOf(expected)), 'model.safetensors').toBe(true);
  expect(metricsOf(found)).toEqual(metricsOf(expected));
  expect(stateOf(found)).toEqual(stateOf(expected));
  expect(leftovers(found)).toEqual([]);
}

/** What a run leaves that died right after saving this step, having logged further. */
function interrupted(from: string, step: number, dir: string): string {
  mkdirSync(dir);
  for (const name of readdirSync(from)) {
    if (/^(metrics|reference-\w+)\.jsonl$/.test(name) || name === `checkpoint-${step}`) {
      cpSync(join(from, name), join(dir, name), { recursive: true });
    }
  }
  return dir;
}

/** The uninterrupted run of these arguments, with a checkpoint of every step. */
const whole = path('whole');
beforeAll(async () => {
  await train(whole, { saveSteps: 1 });
});

describe('a resumed run ends as an uninterrupted one', () => {
  it.each([
    ['wrpo in float32', {}],
    ['wrpo in bfloat16', { dtype: 'bfloat16', saveDtype: 'bfloat16' }],
    ['sft, in file order', { ...{ lossType: 'sft', beta: undefined, alpha: undefined }, shuffle: false }],
    ['wrpo_simpo', { lossType: 'wrpo_simpo', beta: 2, simpoGamma: 0.3 }],
    ['authors_sigmoid and sft_weight', { lossType: 'authors_sigmoid', alpha: undefined, sftWeight: 0.2 }],
  ] as const)('%s', async (name, args) => {
    const uninterrupted = path(`whole ${name}`);
    const { trainingLoss, metrics } = await train(uninterrupted, { ...args, saveSteps: 1 });
    expect(stateOf(uninterrupted)).toMatchObject({ global_step: 9, max_steps: 9, epoch: 2.25 });
    // In the middle of a logging interval (1, 6), of an epoch (1, 3, 6), at both ends (4, 8), and with nothing left (9).
    for (const step of [1, 3, 4, 6, 8, 9]) {
      const dir = interrupted(uninterrupted, step, path(`${name} from ${step}`));
      const resumed = await train(dir, args, { resumeFromCheckpoint: true });
      expectSameRun(dir, uninterrupted);
      expect(resumed.globalStep).toBe(9);
      expect(resumed.trainingLoss).toBe(trainingLoss);
      expect(resumed.metrics.eval_loss).toBe(metrics.eval_loss);
    }
  });

  it('from a checkpoint that lies elsewhere, with the whole history', async () => {
    const dir = path('elsewhere');
    await train(dir, {}, { resumeFromCheckpoint: join(whole, 'checkpoint-6') });
    expectSameRun(dir, whole);
    expect(existsSync(join(whole, 'checkpoint-6'))).toBe(true);
  });

  it('with nothing to resume it starts, and says so', async () => {
    const dir = path('nothing there');
    const said = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
    try {
      await train(dir, {}, { resumeFromCheckpoint: true });
      expect(said.mock.calls.flat()).toContain(`no checkpoint in ${dir}: starting at step 0\n`);
    } finally {
      said.mockRestore();
    }
    expectSameRun(dir, whole);
  });

  it('started anew in the same directory it is the same again, checkpoints replaced', async () => {
    const dir = interrupted(whole, 3, path('anew'));
    writeFileSync(join(dir, 'checkpoint-3', 'model.safetensors'), 'stale');
    await train(dir, { saveSteps: 3 });
    expectSameRun(dir, whole);
    expect(weightsOf(join(dir, 'checkpoint-3'))).toEqual(weightsOf(join(whole, 'checkpoint-3')));
  });

  it('stopped between two micro-batches of one step', async () => {
    for (const call of [1, 8, 18]) {
      const dir = path(`aborted at call ${call}`);
      const controller = new AbortController();
      await using model = await Model.load(POLICY);
      const enqueue = model.enqueue.bind(model);
      let calls = 0;
      model.enqueue = (...args) => {
        if (++calls === call) controller.abort();
        return enqueue(...args);
      };
      const run = train(dir, {}, { signal: controller.signal }, { model });
      await expect(run).rejects.toMatchObject({ name: 'AbortError' });
      expect(calls).toBe(call);
      for (const gradient of model.gradients().values())
        expect(gradient.view().every((value) => value === 0)).toBe(true);
      const checkpoints = filesBelow(dir).filter((name) => /^checkpoint-\d+$/.test(name));
      expect(checkpoints).toHaveLength(call === 1 ? 0 : 1);
      await train(dir, {}, { resumeFromCheckpoint: true });
      expectSameRun(dir, whole);
    }
  });
});

it('a loss written in TypeScript resumes to the same bits, and changed it does not', async () => {
  const objectiveOf = (margin: number): Objective => ({
    roles: ['target_chosen', 'rejected'],
    loss: ({ policy, reference }) => {
      const z = policy.target_chosen - reference.target_chosen - policy.rejected + reference.rejected - margin;
      return { loss: z * z, gradients: { target_chosen: 2 * z, rejected: -2 * z } };
    },
  });
  const args = { beta: undefined, saveSteps: 1 };
  const uninterrupted = path('own whole');
  await train(uninterrupted, args, {}, { objective: objectiveOf(1) });
  for (const step of [1, 6]) {
    const dir = interrupted(uninterrupted, step, path(`own from ${step}`));
    await train(dir, { beta: undefined }, { resumeFromCheckpoint: true }, { objective: objectiveOf(1) });
    expectSameRun(dir, uninterrupted);
  }
  const objective = { ...objectiveOf(1), loss: () => ({ loss: 0, gradients: {} }) } as Objective;
  await expectFailure(
    () =>
      train(path('own changed'), args, { resumeFromCheckpoint: join(uninterrupted, 'checkpoint-1') }, { objective }),
    'ERR_CHECKPOINT',
    /the objective was/,
  );
});

describe('checkpoints', () => {
  it('saveTotalLimit keeps the latest', async () => {
    const dir = path('limited');
    const saved: string[] = [];
    const present = () => readdirSync(dir).filter((name) => name.startsWith('checkpoint-'));
    const save = (where: string) => saved.push(`${basename(where)}: ${present().sort()}`);
    await train(dir, { saveSteps: 2, saveTotalLimit: 2 }, {}, { callbacks: { save } });
    expect(saved).toEqual([
      'checkpoint-2: checkpoint-2',
      'checkpoint-4: checkpoint-2,checkpoint-4',
      'checkpoint-6: checkpoint-4,checkpoint-6',
      'checkpoint-8: checkpoint-6,checkpoint-8',
      'limited: checkpoint-6,checkpoint-8',
    ]);
    expectSameRun(dir, whole);
  });

  it('saveTotalLimit never takes the one just saved for the oldest', async () => {
    const dir = interrupted(whole, 8, path('limited anew'));
    const saved: boolean[] = [];
    const save = (where: string) => saved.push(existsSync(where));
    await train(dir, { saveSteps: 2, saveTotalLimit: 1, maxSteps: 4, learningRate: 2e-3 }, {}, { callbacks: { save } });
    expect(saved).toEqual([true, true, true]);
    expect(readdirSync(dir).filter((name) => name.startsWith('checkpoint-'))).toEqual(['checkpoint-4', 'checkpoint-8']);
  });

  it('hold a model that loads, and what a killed run half wrote goes', async () => {
    const dir = path('litter');
    mkdirSync(join(dir, 'checkpoint-7.tmp'), { recursive: true });
    for (const name of ['config.yaml.123.tmp', '.model.safetensors.9.tmp.9.tmp', 'reference-train.jsonl.77.tmp']) {
      writeFileSync(join(dir, name), 'half');
    }
    writeFileSync(join(dir, 'notes.tmp'), 'the user’s own');
    await train(dir, { saveSteps: 4 });
    expect(leftovers(dir)).toEqual(['notes.tmp']);
    await using model = await Model.load(join(dir, 'checkpoint-4'));
    expect(model.config.layers).toBe(2);
  });

  it('an incomplete one is named, and is not taken for the latest', async () => {
    const dir = interrupted(whole, 3, path('incomplete'));
    cpSync(join(whole, 'checkpoint-5'), join(dir, 'checkpoint-5'), { recursive: true });
    const manifest = join(dir, 'checkpoint-5', 'manifest.json');
    for (const text of ['null', '{"step":']) {
      writeFileSync(manifest, text);
      await expectFailure(
        () => train(dir, {}, { resumeFromCheckpoint: true }),
        'ERR_CHECKPOINT',
        /checkpoint-5 is not a complete checkpoint.*manifest\.json/,
      );
    }
    rmSync(manifest);
    await expectFailure(
      () => train(dir, {}, { resumeFromCheckpoint: join(dir, 'checkpoint-5') }),
      'ERR_CHECKPOINT',
      /checkpoint-5 is not a complete checkpoint.*manifest\.json/,
    );
    await train(dir, {}, { resumeFromCheckpoint: true });
    expectSameRun(dir, whole);
    for (const name of ['model.safetensors', 'optimizer.safetensors', 'trainer_state.json']) {
      const broken = interrupted(whole, 3, path(`without ${name}`));
      rmSync(join(broken, 'checkpoint-3', name));
      const error = await failure(() => train(broken, {}, { resumeFromCheckpoint: true }));
      expect(error.message).toContain(name);
      expect(existsSync(join(broken, 'model.safetensors'))).toBe(false);
    }
    const cut = interrupted(whole, 3, path('cut optimizer'));
    const file = join(cut, 'checkpoint-3', 'optimizer.safetensors');
    writeFileSync(file, readFileSync(file).subarray(0, 5000));
    const error = await failure(() => train(cut, {}, { resumeFromCheckpoint: true }));
    expect(error.message).toMatch(/optimizer\.safetensors is truncated/);
  });

  it('a directory that is not there', async () => {
    const gone = path('gone', 'checkpoint-3');
    await expectFailure(
      () => train(path('x'), {}, { resumeFromCheckpoint: gone }),
      'ERR_CHECKPOINT',
      /gone\/checkpoint-3/,
    );
  });

  it.each([
    ['another learning rate', { learningRate: 2e-3 }, {}, /learningRate was 0\.001 and is now 0\.002/],
    ['another number of epochs', { numTrainEpochs: 3 }, {}, /the number of steps was 9 and is now 12/],
    ['another batch', { gradientAccumulationSteps: 3, maxSteps: 9 }, {}, /the global batch was 4 and is now 6/],
    ['another seed', { seed: 1 }, {}, /seed was 42 and is now 1/],
    ['other micro-batches', { microbatchTokens: 101 }, {}, /microbatchTokens was 100 and is now 101/],
    ['warm-up steps that were a ratio', { warmupSteps: 1 }, {}, /warmupSteps/],
    ['another dtype', { dtype: 'float64' }, {}, /dtype was "float32" and is now "float64"/],
    ['another weight of SFT', { sftWeight: 0.1 }, {}, /sftWeight was 0 and is now 0\.1/],
    [
      'an objective of its own',
      { beta: undefined },
      { objective: () => () => ({ lossType: 'wrpo', beta: 0.1, alpha: 0.1 }) },
      /the objective was/,
    ],
    ['other data', {}, { trainDataset: tokenRows(14, 99) }, /the training data was/],
    ['the same data in another order', {}, { trainDataset: [...rows].reverse() }, /the training data was/],
    ['another model', {}, { model: () => poisonedPolicy(path('other model'), 198, 0.5) }, /the initial model was/],
    ['another reference', {}, { refModel: () => poisonedPolicy(path('other reference'), 198, 0.5) }, /the reference/],
  ] as const)('resumed with %s: what changed', async (name, args, options, message) => {
    const dir = path(`changed: ${name}`);
    const given = Object.fromEntries(Object.entries(options).map(([k, v]) => [k, typeof v === 'function' ? v() : v]));
    const from = join(whole, 'checkpoint-3');
    const error = await failure(() => train(dir, args, { resumeFromCheckpoint: from }, given));
    expect(error.code).toBe('ERR_CHECKPOINT');
    expect(error.message).toMatch(/checkpoint-3 cannot be resumed: /);
    expect(error.message).toMatch(message);
    expect(filesBelow(dir).filter((file) => /safetensors|reference/.test(file))).toEqual([]);
  });

  it('what may change: how often to log, evaluate and save', async () => {
    const dir = interrupted(whole, 3, path('may change'));
    const args = { loggingSteps: 2, evalSteps: undefined, saveSteps: 5, saveTotalLimit: 3 };
    await train(dir, args, { resumeFromCheckpoint: true }, { evalDataset: undefined });
    expect(weightsOf(dir).equals(weightsOf(whole))).toBe(true);
  });
});

describe('processes', () => {
  const many = tokenRows(120, 21, { longest: 30 });
  const keys = {
    ...{ model_name_or_path: POLICY, dataset_name: path('many.jsonl'), eval_dataset_name: path('held.jsonl') },
    ...{ beta: 0.1, alpha: 0.5, learning_rate: 1e-3, num_train_epochs: 4, logging_steps: 3, microbatch_tokens: 100 },
    ...{ per_device_train_batch_size: 8, gradient_accumulation_steps: 1, save_steps: 6, save_total_limit: 3 },
  };
  const config = path('many.yaml');
  const straight = path('many');
  const steps = 60;

  beforeAll(async () => {
    writeRows(path('many.jsonl'), many);
    writeRows(path('held.jsonl'), held);
    writeRunFile(config, { ...keys, output_dir: straight });
    await succeed(['train', '--config', config]);
  });

  const completed = (dir: string) =>
    Math.max(
      0,
      ...(existsSync(dir) ? readdirSync(dir) : []).map((name) => Number(/^checkpoint-(\d+)$/.exec(name)?.[1] ?? 0)),
    );

  const logged = (dir: string) =>
    existsSync(join(dir, 'metrics.jsonl')) ? readJsonLines(join(dir, 'metrics.jsonl')).length : 0;

  it('ten kills', async () => {
    const dir = path('killed');
    const random = randomOf(2024);
    const file = (name: string) => join(dir, name);
    const lines = () =>
      existsSync(file('reference-train.jsonl'))
        ? readFileSync(file('reference-train.jsonl'), 'utf8').split('\n').length - 2
        : 0;
    const top = () => (existsSync(dir) ? readdirSync(dir) : []);

    // Each waits for its phase to begin and then for a while that the seed draws.
    const within = async (child: Child, began: () => boolean, longest: number) => {
      if (await child.until(began)) await sleep(random() * longest);
    };
    const startUp = (child: Child) => within(child, () => true, 350);
    const reference = (from: number, to: number) => (child: Child) => {
      const until = from + random() * (to - from);
      return within(child, () => lines() >= until, 0);
    };
    const stepping = (further: number) => {
      let goal: number | undefined;
      return (child: Child) => {
        goal ??= completed(dir) + further;
        return within(child, () => completed(dir) >= goal!, 40);
      };
    };
    const saving = (further: number, longest: number) => {
      const half = () => top().some((name) => /^checkpoint-\d+\.tmp$/.test(name));
      let goal: number | undefined;
      return (child: Child) => {
        goal ??= completed(dir) + further;
        return within(child, () => completed(dir) >= goal! && half(), longest);
      };
    };
    const ending = (child: Child) => within(child, () => completed(dir) >= steps, 25);
    const moments = [
      ...[startUp, reference(1, 50), reference(50, 115), startUp, stepping(3), saving(4, 0)],
      ...[stepping(5), saving(6, 3), saving(3, 8), ending],
    ];

    const landed: string[] = [];
    for (const moment of moments) {
      const child = start(['train', '--config', config, '--output_dir', dir, '--resume-from-checkpoint']);
      await moment(child);
      const { signal, stderr } = await child.kill();
      expect(signal, `${landed.join(', ')}: ${stderr}`).toBe('SIGKILL');
      const half = top().some((name) => /^checkpoint-\d+\.tmp$/.test(name));
      landed.push(
        half
          ? 'saving'
          : existsSync(file('model.safetensors'))
            ? 'saved'
            : completed(dir) > 0
              ? 'steps'
              : lines() > 0
                ? 'reference'
                : 'start-up',
      );
      // Whatever bears a checkpoint's name and a manifest is whole.
      for (const name of top().filter((entry) => /^checkpoint-\d+$/.test(entry))) {
        expect(readTensors(file(join(name, 'model.safetensors'))).size).toBe(21);
        expect(readTensors(file(join(name, 'optimizer.safetensors'))).size).toBe(42);
        expect(readJson(file(join(name, 'manifest.json'))).step).toBe(Number(name.split('-')[1]));
      }
    }
    expect(landed).toHaveLength(10);
    for (const phase of ['start-up', 'reference', 'steps', 'saving']) expect(landed).toContain(phase);

    await succeed(['train', '--config', config, '--output_dir', dir, '--resume-from-checkpoint']);
    expectSameRun(dir, straight);
    for (const name of ['reference-train.jsonl', 'reference-eval.jsonl']) {
      expect(readFileSync(file(name), 'utf8')).toBe(readFileSync(join(straight, name), 'utf8'));
    }
    expect(
      top()
        .filter((name) => name.startsWith('checkpoint-'))
        .sort(),
    ).toEqual([48, 54, 60].map((step) => `checkpoint-${step}`));
    console.log(`killed in: ${landed.join(', ')}`);
  });

  it('Ctrl-C: stops after the micro-batch, with a checkpoint to go on from', async () => {
    const dir = path('stopped');
    const args = ['train', '--config', config, '--output_dir', dir, '--save_steps', '1000'];
    const child = start(args);
    expect(await child.until(() => logged(dir) > 0)).toBe(true);
    const before = logged(dir);
    const result = await child.kill('SIGINT');
    const words = sentence(result, 1);
    expect(logged(dir)).toBeLessThan(before + 4);
    const step = completed(dir);
    expect(step).toBeGreaterThanOrEqual(3);
    expect(step).toBeLessThan(steps);
    expect(words).toBe(
      `wrpo: stopped: ${join(dir, `checkpoint-${step}`)} holds the run so far; the same command with --resume-from-checkpoint goes on from there`,
    );
    expect(existsSync(join(dir, 'model.safetensors'))).toBe(false);
    await succeed([...args, '--resume-from-checkpoint', join(dir, `checkpoint-${step}`)]);
    expectSameRun(dir, straight);
  });

  it('Ctrl-C while the reference is computed: what is there is kept', async () => {
    const dir = path('stopped early');
    const column = join(dir, 'reference-train.jsonl');
    const args = ['train', '--config', config, '--output_dir', dir, '--microbatch_tokens', '100'];
    const child = start(args);
    expect(await child.until(() => existsSync(column) && readJsonLines(column).length > 2)).toBe(true);
    expect(sentence(await child.kill('SIGINT'), 1)).toMatch(/^wrpo: stopped: what is in .* is kept; the same/);
    const kept = readFileSync(column, 'utf8');
    expect(readJsonLines(column).length).toBeLessThan(many.length + 1);
    await succeed([...args, '--max_steps', '1', '--resume-from-checkpoint']);
    expect(readFileSync(column, 'utf8').startsWith(kept)).toBe(true);
    expect(readFileSync(column, 'utf8')).toBe(readFileSync(join(straight, 'reference-train.jsonl'), 'utf8'));
  });

  it('Ctrl-C twice: at once', async () => {
    const dir = path('stopped twice');
    const child = start(['train', '--config', config, '--output_dir', dir]);
    expect(await child.until(() => logged(dir) > 0)).toBe(true);
    child.process.kill('SIGINT');
    await child.until(() => child.stderr.includes('again to stop at once'));
    child.process.kill('SIGINT');
    const { signal, status } = await child.done;
    expect(signal === 'SIGINT' || status === 1).toBe(true);
  });
});
