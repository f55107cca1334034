/**
 * Checkpoints: everything a run needs to go on to the same bits. One is complete when its manifest is there, which is
 * written last and holds the checksums of all other files and its own.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { crc32 } from 'node:zlib';
import { checksum, type FileSum, syncDirectory, writeError, writeFileAtomic } from '../data/files.js';
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
  /** Of the steps so far, those that were no update (`nonFinite: 'skip'`). */
  skipped_steps?: number;
  /** The best evaluation so far, where one is looked for (best.ts). */
  best_metric?: number;
  best_global_step?: number;
  best_model_checkpoint?: string;
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
  /** Every other file of the checkpoint. */
  files: Record<string, FileSum>;
}

export interface Checkpoint extends Manifest {
  dir: string;
  state: TrainerState;
}

const NAME = /^checkpoint-(\d+)$/;
const MANIFEST = 'manifest.json';
const CHANGED = 'is damaged: its bytes are not those that were written';

/** Where the checkpoint of a step lies. */
export const checkpointDirectory = (runDir: string, step: number): string => join(runDir, `checkpoint-${step}`);

/**
 * Writes `runDir/checkpoint-<step>` under a temporary name and renames it when all of it is on disk. It holds what is there
 * at the call, whatever is queued later: training goes on meanwhile.
 */
export async function saveCheckpoint(
  runDir: string,
  {
    model,
    tokenizer,
    optimizer,
    state,
    ...manifest
  }: { model: Model; tokenizer?: Tokenizer; optimizer: AdamW; state: TrainerState } & Omit<Manifest, 'step' | 'files'>,
): Promise<string> {
  const dir = checkpointDirectory(runDir, state.global_step);
  const temporary = `${dir}.tmp`;
  const stateText = `${JSON.stringify(state, null, 1)}\n`;
  const now: Omit<Manifest, 'files'> = structuredClone({ ...manifest, step: state.global_step });
  try {
    rmSync(temporary, { recursive: true, force: true });
    mkdirSync(temporary, { recursive: true });
    // Both queued in the engine before anything else is.
    const writing = [model.save(temporary), optimizer.save(temporary)];
    for (const result of await Promise.allSettled(writing)) if (result.status === 'rejected') throw result.reason;
    await tokenizer?.saveTo(temporary);
    writeFileAtomic(join(temporary, 'trainer_state.json'), stateText);
    const files: Manifest['files'] = {};
    for (const name of readdirSync(temporary).sort()) files[name] = await checksum(join(temporary, name));
    const all = { ...now, files };
    writeFileAtomic(join(temporary, MANIFEST), `${JSON.stringify({ ...all, crc32: sumOf(all) }, null, 1)}\n`);
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
    .filter((name) => NAME.test(name) && existsSync(join(runDir, name, MANIFEST)))
    .sort((a, b) => Number(NAME.exec(a)![1]) - Number(NAME.exec(b)![1]))
    .map((name) => join(runDir, name));
}

/**
 * Reads a checkpoint and checks every byte of it. Throws ERR_CHECKPOINT when it is incomplete or damaged, or naming all that
 * differs from `resume`.
 */
export async function readCheckpoint(dir: string, resume: ResumeKey): Promise<Checkpoint> {
  const manifest = readManifest(dir);
  const changed = Object.keys(resume).filter((key) => manifest.resume?.[key] !== resume[key]);
  if (changed.length > 0) {
    const show = (value: unknown) => JSON.stringify(value) ?? 'not there';
    const changes = changed.map((key) => `${key} was ${show(manifest.resume?.[key])} and is now ${show(resume[key])}`);
    throw new WrpoError('ERR_CHECKPOINT', `${dir} cannot be resumed: ${changes.join('; ')}`);
  }
  await verifyFiles(dir, manifest);
  return { ...manifest, dir, state: readObject(dir, 'trainer_state.json') as unknown as TrainerState };
}

/** Checks every byte of a complete checkpoint. Throws ERR_CHECKPOINT naming the file that is damaged. */
export const verifyCheckpoint = (dir: string): Promise<void> => verifyFiles(dir, readManifest(dir));

function readManifest(dir: string): Manifest {
  const { crc32: sum, ...manifest } = readObject(dir, MANIFEST);
  if (sum !== sumOf(manifest)) throw damaged(dir, MANIFEST, CHANGED);
  return manifest as unknown as Manifest;
}

async function verifyFiles(dir: string, { files }: Manifest): Promise<void> {
  for (const [name, written] of Object.entries(files)) {
    let found: FileSum;
    try {
      found = await checksum(join(dir, name));
    } catch (cause) {
      throw incomplete(dir, name, cause);
    }
    if (found.bytes < written.bytes) {
      throw damaged(dir, name, `is truncated: it has ${found.bytes} of ${written.bytes} bytes`);
    }
    if (found.bytes !== written.bytes || found.crc32 !== written.crc32) {
      throw damaged(dir, name, CHANGED);
    }
  }
}

function readObject(dir: string, name: string): Record<string, unknown> {
  try {
    const value = JSON.parse(readFileSync(join(dir, name), 'utf8'));
    if (typeof value !== 'object' || value === null) throw new Error('not an object');
    return value;
  } catch (cause) {
    throw incomplete(dir, name, cause);
  }
}

const sumOf = (manifest: object): string => crc32(JSON.stringify(manifest)).toString(16).padStart(8, '0');

const incomplete = (dir: string, name: string, cause: unknown) =>
  new WrpoError('ERR_CHECKPOINT', `${dir} is not a complete checkpoint: cannot read its ${name}${others(dir)}`, {
    cause,
  });

const damaged = (dir: string, name: string, what: string) =>
  new WrpoError('ERR_CHECKPOINT', `${join(dir, name)} ${what}${others(dir)}`);

/** What to go on from instead. */
function others(dir: string): string {
  const earlier = listCheckpoints(dirname(dir)).filter((other) => stepOf(other) < stepOf(dir));
  return earlier.length === 0 ? '' : `; an earlier one is ${basename(earlier.at(-1)!)}`;
}

const stepOf = (dir: string) => Number(NAME.exec(basename(dir))?.[1] ?? Number.POSITIVE_INFINITY);

// Under its own name a checkpoint is whole until it is gone.
function remove(dir: string): void {
  if (!existsSync(dir)) return;
  const old = `${dir}.old.tmp`;
  removing(old);
  try {
    renameSync(dir, old);
  } catch (cause) {
    throw writeError(dir, cause);
  }
  removing(old);
}

function removing(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true });
  } catch (cause) {
    throw writeError(path, cause);
  }
}

// Checkpoints and files on their way to their names, or out of the world.
const HALF_WRITTEN = /^checkpoint-\d+(\.old)?\.tmp$|\.\d+\.tmp$/;

/** Removes what a killed run left half-written; a checkpoint that only lacked its name gets it. */
export function recoverCheckpoints(runDir: string): void {
  for (const name of existsSync(runDir) ? readdirSync(runDir) : []) {
    if (!HALF_WRITTEN.test(name)) continue;
    const from = join(runDir, name);
    const to = join(runDir, name.replace(/(\.old)?\.tmp$/, ''));
    // Died between the two renames by which one checkpoint replaces another of the same step.
    if (NAME.test(basename(to)) && !name.includes('.old') && existsSync(join(from, MANIFEST)) && !existsSync(to)) {
      renameSync(from, to);
    } else removing(from);
  }
}

/**
 * Removes all but `limit` of a run's checkpoints up to `latest`, which stays whatever the limit is, and so does `best`,
 * counted in; those of later steps are an earlier run's.
 */
export function pruneCheckpoints(latest: string, limit = Number.POSITIVE_INFINITY, best?: string): void {
  const own = listCheckpoints(dirname(latest));
  own.length = own.indexOf(latest) + 1;
  const hasBest = best !== undefined && own.includes(best) && !own.slice(-limit).includes(best);
  const kept = own.slice(-Math.max(1, hasBest ? limit - 1 : limit));
  for (const dir of own) if (!kept.includes(dir) && dir !== best) remove(dir);
}
