/** kill -9 at any moment of a whole fusion: going on ends in the same bytes, whichever stage it fell in. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { FakeServer } from '../fake-server.ts';
import { contentsOf } from '../fusion.ts';
import {
  Child,
  filesBelow,
  MAIN,
  ROOT,
  randomOf,
  scratchDirectory,
  sleep,
  succeed,
  writeRows,
  writeRunFile,
} from '../training.ts';

const path = scratchDirectory('fusion-kills');
const KILLS = 30;
/** What is killed, and the stage from which it is done again when all is done. */
const PHASES = { sampling: 'sample-sources', scoring: 'score-sources', training: 'sft', evaluating: 'evaluate' };
type Phase = keyof typeof PHASES | 'start-up' | 'selecting';

/** The phase of the last stage that a process has said it does; those that were done before are its start. */
function phaseOf({ stderr }: Child): Phase {
  const stage = [...stderr.matchAll(/^(sample|score|select|sft|reference|train|evaluate)\S*$/gm)].at(-1)?.[1];
  if (stage === undefined) return 'start-up';
  if (stage === 'sample') return 'sampling';
  if (stage === 'score') return 'scoring';
  if (stage === 'select') return 'selecting';
  return stage === 'evaluate' ? 'evaluating' : 'training';
}

it(`${KILLS} kills in each phase of a fusion`, { timeout: 3_600_000 }, async () => {
  const server = await FakeServer.start({ latency: 5 });
  const model = (name: string) => join(ROOT, 'miniature', 'models', name);
  const training = { per_device_train_batch_size: 4, gradient_accumulation_steps: 1, max_length: 96, logging_steps: 1 };
  const saves = { save_steps: 4, save_total_limit: 1, learning_rate: 1e-4 };
  const file = writeRunFile(path('fusion.yaml'), {
    prompts: writeRows(
      path('prompts.jsonl'),
      Array.from({ length: 160 }, (_, i) => ({ prompt: `Add one to ${i}` })),
    ),
    ...{ output_dir: 'out', model_name_or_path: model('target'), n: 2, max_tokens: 16, held_out: 60 },
    sources: ['srcA', 'srcB'].map((name) => ({ name, model: model(name) })),
    scorers: [{ name: 'rm', kind: 'http', base_url: server.url, model: 'rm', api: 'classify', retry_delay: 0.01 }],
    sft: { ...training, ...saves },
    train: { wrpo: { ...training, ...saves, alpha: 0.5, beta: 0.5 } },
  });
  const cwd = (name: string) => {
    mkdirSync(path(name));
    return path(name);
  };
  /** Everything but times, the checkpoints of runs that go on, and what --from put aside. */
  const results = (directory: string) =>
    Object.fromEntries(
      Object.entries(contentsOf(join(directory, 'out'))).filter(
        ([name]) =>
          !/^(stages|superseded)\/|metrics\.jsonl$|trainer_state\.json$|\/checkpoint-|report\.html$/.test(name),
      ),
    );

  const whole = cwd('whole');
  await succeed(['fuse', '--config', file], { cwd: whole });
  const expected = results(whole);
  const killed = cwd('killed');
  let finished = 0;
  const expectWhole = () => {
    finished++;
    const found = results(killed);
    const names = [...new Set([...Object.keys(found), ...Object.keys(expected)])];
    expect(names.filter((name) => found[name] !== expected[name])).toEqual([]);
    expect(
      filesBelow(join(killed, 'out')).filter(
        (name) => /lock$|\.tmp$|\.part$/.test(name) && !name.startsWith('superseded'),
      ),
    ).toEqual([]);
  };

  const random = randomOf(9);
  const histogram: Record<Phase, number> = {
    ...{ 'start-up': 0, sampling: 0, scoring: 0, selecting: 0, training: 0, evaluating: 0 },
  };
  /** Starts it and kills it in that phase, wherever the last kill left it; `delay`: milliseconds at most. */
  const kill = async (wanted: Phase, delay: number, more: string[]): Promise<'killed' | 'done'> => {
    const child = new Child([MAIN, 'fuse', '--config', file, ...more], { cwd: killed });
    const reached = wanted === 'start-up' || (await child.until(() => phaseOf(child) === wanted));
    if (reached) await sleep(random() * delay);
    const { status, signal, stderr } = await (reached ? child.kill() : child.done);
    if (signal === 'SIGKILL') histogram[phaseOf(child)]++;
    else expect(status, stderr).toBe(0);
    return signal === 'SIGKILL' ? 'killed' : 'done';
  };
  // As many attempts as it takes: where it starts quickly, some come when it samples already.
  while (histogram['start-up'] < KILLS) await kill('start-up', 700, []);
  for (const [phase, stage] of Object.entries(PHASES) as [keyof typeof PHASES, string][]) {
    let isDone = false;
    while (histogram[phase] < KILLS) {
      isDone = (await kill(phase, 400, isDone ? ['--from', stage] : [])) === 'done';
      if (isDone) expectWhole();
    }
    await succeed(['fuse', '--config', file], { cwd: killed });
    expectWhole();
  }
  await server.close();
  const kills = Object.values(histogram).reduce((sum, n) => sum + n);
  console.log(
    `${kills} of ${kills} kills of a fusion survived, ${finished} times to its end: ${JSON.stringify(histogram)}`,
  );
  for (const phase of ['start-up', ...Object.keys(PHASES)]) {
    expect(histogram[phase as Phase], phase).toBeGreaterThanOrEqual(KILLS);
  }
});
