/** Checkpoints: everything a run needs to go on to the same bits. One is complete when its manifest is there. */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { syncDirectory, writeError, writeFileAtomic } from '../data/files.js';
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import type { Tokenizer } from '../text/tokenizer.js';
import type { AdamW } from './adamw.js';
import type { MetricMeans, Metrics } from './metrics.js';

/** TRL's trainer state, as far as it has a meaning here. */
export interface TrainerState {
  global_step: number;
  max_steps: number;
  epoch: number;
  log_history: Metrics[];
}

/** What must be the same for a run to continue, each by name; undefined is what it does not have. */
export type ResumeKey = Record<string, string | number | boolean | undefined>;

interface Manifest {
  wrpo: string;
  step: number;
  resume: ResumeKey;
  /** Sum of the losses of all steps so far. */
  lossSum: number;
  /** The sums of a logging interval that was not yet over. */
  pending: ReturnType<MetricMeans['toJSON']>;
}

export interface Checkpoint extends Manifest {
  dir: string;
  state: TrainerState;
}

const NAME = /^checkpoint-(\d+)$/;

/** Writes `runDir/checkpoint-<step>` under a temporary name and renames it when all of it is on disk. */
export async function saveCheckpoint(
  runDir: string,
  {
    model,
    tokenizer,
    optimizer,
    state,
    ...manifest
  }: { model: Model; tokenizer?: Tokenizer; optimizer: AdamW; state: TrainerState } & Omit<Manifest, 'step'>,
): Promise<string> {
  const dir = join(runDir, `checkpoint-${state.global_step}`);
  const temporary = `${dir}.tmp`;
  try {
    rmSync(temporary, { recursive: true, force: true });
    mkdirSync(temporary, { recursive: true });
    await model.save(temporary);
    await tokenizer?.saveTo(temporary);
    await optimizer.save(temporary);
    writeFileAtomic(join(temporary, 'trainer_state.json'), `${JSON.stringify(state, null, 1)}\n`);
    writeFileAtomic(
      join(temporary, 'manifest.json'),
      `${JSON.stringify({ ...manifest, step: state.global_step }, null, 1)}\n`,
    );
    remove(dir);
    renameSync(temporary, dir);
    syncDirectory(runDir);
  } catch (cause) {
    rmSync(temporary, { recursive: true, force: true });
    throw writeError(dir, cause);
  }
  return dir;
}

/** Complete checkpoints of a run, the latest last. */
export function listCheckpoints(runDir: string): string[] {
  if (!existsSync(runDir)) return [];
  return readdirSync(runDir)
    .filter((name) => NAME.test(name) && existsSync(join(runDir, name, 'manifest.json')))
    .sort((a, b) => Number(NAME.exec(a)![1]) - Number(NAME.exec(b)![1]))
    .map((name) => join(runDir, name));
}

/** Reads a checkpoint. Throws ERR_CHECKPOINT when it is incomplete, or naming what differs from `resume`. */
export function readCheckpoint(dir: string, resume: ResumeKey): Checkpoint {
  const read = (name: string) => {
    try {
      const value = JSON.parse(readFileSync(join(dir, name), 'utf8'));
      if (typeof value !== 'object' || value === null) throw new Error('not an object');
      return value;
    } catch (cause) {
      throw new WrpoError('ERR_CHECKPOINT', `${dir} is not a complete checkpoint: cannot read its ${name}`, { cause });
    }
  };
  const manifest = read('manifest.json') as Manifest;
  const changed = Object.keys(resume).filter((key) => manifest.resume?.[key] !== resume[key]);
  if (changed.length > 0) {
    const key = changed[0]!;
    const show = (value: unknown) => JSON.stringify(value) ?? 'not there';
    throw new WrpoError(
      'ERR_CHECKPOINT',
      `${dir} cannot be resumed: ${key} was ${show(manifest.resume?.[key])} and is now ${show(resume[key])}`,
    );
  }
  return { ...manifest, dir, state: read('trainer_state.json') as TrainerState };
}

// Under its own name a checkpoint is whole until it is gone.
function remove(dir: string): void {
  if (!existsSync(dir)) return;
  const old = `${dir}.old.tmp`;
  rmSync(old, { recursive: true, force: true });
  renameSync(dir, old);
  rmSync(old, { recursive: true, force: true });
}

// Checkpoints and files on their way to their names, or out of the world.
const HALF_WRITTEN = /^checkpoint-\d+(\.old)?\.tmp$|\.\d+\.tmp$/;

/**
 * Removes what a killed run left half-written, and all but `limit` of the checkpoints up to `latest`: those of later steps
 * are an earlier run's.
 */
export function pruneCheckpoints(runDir: string, latest?: string, limit = Number.POSITIVE_INFINITY): void {
  const complete = listCheckpoints(runDir);
  const end = latest === undefined ? 0 : complete.indexOf(latest) + 1;
  for (const dir of complete.slice(0, Math.max(0, end - limit))) remove(dir);
  for (const name of existsSync(runDir) ? readdirSync(runDir) : []) {
    if (HALF_WRITTEN.test(name)) rmSync(join(runDir, name), { recursive: true, force: true });
  }
}
