/** What the commands of a fusion share: their run file, the models that are meant, Ctrl-C. */
import { setMaxListeners } from 'node:events';
import { WrpoError } from '../errors.js';
import { type FusionConfig, resolveFusion, type SourceConfig } from '../fuse/config.js';
import { camel } from '../train/compat.js';
import { parseOverrides, readRunFile } from './run-file.js';

/** Options of `wrpo sample`, `score` and `select`. */
export interface FusionOptions {
  config: string;
  /** Names of models, or `sources` or `targets`, with commas between. */
  only?: string;
  retryFailed?: boolean;
  dryRun?: boolean;
  json?: boolean;
}

/** The run file, and keys of the command line over it. */
export function readFusion(file: string, rest: string[]): FusionConfig {
  const { values, where } = readRunFile(file);
  const overrides = Object.fromEntries(Object.entries(parseOverrides(rest)).map(([key, one]) => [camel(key), one]));
  const own = Object.fromEntries(Object.entries(values).map(([key, one]) => [camel(key), one]));
  return resolveFusion({ ...own, ...overrides }, (...path) =>
    path.length > 0 && camel(String(path[0])) in overrides ? 'command line' : where(...path),
  );
}

/** A model of the run, and whether it is a target. */
export interface ChosenModel {
  source: SourceConfig;
  isTarget: boolean;
}

/** The models that `--only` names, or all. Throws ERR_CONFIG when there is none of a name, or none at all. */
export function chosenModels({ sources, targets }: FusionConfig, only: string | undefined): ChosenModel[] {
  const all = [
    ...sources.map((source) => ({ source, isTarget: false })),
    ...targets.map((source) => ({ source, isTarget: true })),
  ];
  if (all.length === 0)
    throw new WrpoError('ERR_CONFIG', 'the run file names no models: sources and targets are empty');
  if (only === undefined) return all;
  const wanted = only.split(',').map((name) => name.trim());
  const groups: Record<string, ChosenModel[]> = {
    sources: all.filter(({ isTarget }) => !isTarget),
    targets: all.filter(({ isTarget }) => isTarget),
  };
  const chosen = wanted.flatMap((name) => {
    const found = all.filter(({ source }) => source.name === name);
    const meant = found.length > 0 ? found : (groups[name] ?? []);
    if (meant.length > 0) return meant;
    const names = all.map(({ source }) => source.name).join(', ');
    throw new WrpoError('ERR_CONFIG', `--only ${name}: there is no such model; there is ${names}`);
  });
  return [...new Set(chosen)];
}

/** Does the work with a signal that Ctrl-C aborts; a second Ctrl-C ends the process. */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal); // as many as there are requests under way
  const stop = () => controller.abort();
  process.once('SIGINT', stop);
  try {
    return await work(controller.signal);
  } finally {
    process.removeListener('SIGINT', stop);
  }
}

/** Rows of words as aligned columns, the first to the left. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const line = (row: readonly string[]) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)));
  return rows.map((row) => `${line(row).join('  ')}\n`).join('');
}
