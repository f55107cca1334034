/** kill -9 at any moment of a run: what was complete stays whole, and going on ends in the same bytes. */
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { listCheckpoints, verifyCheckpoint } from '../../lib/train/checkpoint.ts';
import {
  type Child,
  leftovers,
  metricsOf,
  POLICY,
  randomOf,
  scratchDirectory,
  sleep,
  start,
  succeed,
  tokenRows,
  weightsOf,
  writeRows,
  writeRunFile,
} from '../training.ts';

const path = scratchDirectory('kills');
const KILLS = 30;
const EVERY = 4;
const PHASES = ['start-up', 'reference', 'training', 'evaluating', 'saving'] as const;
type Phase = (typeof PHASES)[number];

it(`${KILLS} kills in each phase`, async () => {
  const config = path('run.yaml');
  writeRows(path('rows.jsonl'), tokenRows(400, 51));
  writeRows(path('held.jsonl'), tokenRows(60, 52));
  writeRunFile(config, {
    ...{ model_name_or_path: POLICY, dataset_name: path('rows.jsonl'), eval_dataset_name: path('held.jsonl') },
    ...{ beta: 0.1, learning_rate: 1e-3, num_train_epochs: 12, logging_steps: 1, microbatch_tokens: 200 },
    ...{ per_device_train_batch_size: 8, gradient_accumulation_steps: 1, max_grad_norm: 1 },
    ...{ eval_steps: EVERY, save_steps: EVERY, save_total_limit: 2 },
  });
  const straight = path('straight');
  await succeed(['train', '--config', config, '--output_dir', straight]);

  const dir = path('killed');
  const args = ['train', '--config', config, '--output_dir', dir, '--resume-from-checkpoint'];
  const names = () => (existsSync(dir) ? readdirSync(dir) : []);
  const text = (name: string) => (existsSync(join(dir, name)) ? readFileSync(join(dir, name), 'utf8') : '');
  /** What a run is in the middle of, as its files tell. */
  const phase = (child: Child): Phase => {
    if (names().some((name) => /^checkpoint-\d+\.tmp$/.test(name))) return 'saving';
    // Only this process's own lines count: it says when it has begun to go on.
    if (!/going on from|no checkpoint in/.test(child.stderr)) return 'start-up';
    const line = /^step /m.test(child.stderr) ? text('metrics.jsonl').split('\n').at(-2) : undefined;
    if (line === undefined) return text('reference-eval.jsonl').split('\n').length < 62 ? 'reference' : 'training';
    const { step, loss } = JSON.parse(line);
    return loss !== undefined && step % EVERY === 0 ? 'evaluating' : 'training';
  };

  const random = randomOf(2025);
  const histogram = Object.fromEntries(PHASES.map((name) => [name, 0])) as Record<Phase, number>;
  let kills = 0;
  let most = 0;
  const kill = async (wanted: Phase, delay: number): Promise<void> => {
    // The reference is computed once: for another kill in it, again.
    if (wanted === 'reference' && text('reference-eval.jsonl') !== '') {
      for (const name of names().filter((file) => file.startsWith('reference-'))) rmSync(join(dir, name));
    }
    const child = start(args);
    const before = listCheckpoints(dir).at(-1);
    // Beyond the last checkpoint now and then, so that the run gets on.
    const further = wanted === 'start-up' || wanted === 'reference' ? false : random() < 0.3;
    const ready = () => phase(child) === wanted && !(further && listCheckpoints(dir).at(-1) === before);
    expect(await child.until(ready), child.stderr).toBe(true);
    await sleep(random() * delay);
    const landed = phase(child);
    const { signal, stderr } = await child.kill();
    expect(signal, stderr).toBe('SIGKILL');
    histogram[landed]++;
    kills++;
    const complete = listCheckpoints(dir);
    for (const checkpoint of complete) await verifyCheckpoint(checkpoint);
    const whole = names().filter((name) => existsSync(join(dir, name, 'manifest.json'))).length;
    if (most > 0) expect(whole).toBeGreaterThan(0);
    most = Math.max(most, whole);
  };

  const longest: Record<Phase, number> = { 'start-up': 600, reference: 150, training: 15, evaluating: 60, saving: 25 };
  for (const wanted of PHASES) {
    for (let tries = 0; histogram[wanted] < KILLS && tries < 4 * KILLS; tries++) await kill(wanted, longest[wanted]);
  }
  await succeed(args);
  expect(weightsOf(dir).equals(weightsOf(straight))).toBe(true);
  expect(metricsOf(dir)).toEqual(metricsOf(straight));
  expect(leftovers(dir)).toEqual([]);
  for (const name of ['reference-train.jsonl', 'reference-eval.jsonl']) {
    expect(text(name)).toBe(readFileSync(join(straight, name), 'utf8'));
  }
  console.log(`${kills} of ${kills} kills survived: ${JSON.stringify(histogram)}`);
  for (const name of PHASES) expect(histogram[name], name).toBeGreaterThanOrEqual(KILLS);
}, 1_800_000);
