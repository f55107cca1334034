/** What the commands of a fusion share: their run file, the models that are meant, Ctrl-C. */
import { setMaxListeners } from 'node:events';
import { type FusionConfig, resolveFusion } from '../fuse/config.js';
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

/** Does the work with a signal that Ctrl-C, or what schedulers send, aborts; a second one ends the process. */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal); // as many as there are requests under way
  const stop = () => controller.abort();
  const signals = ['SIGINT', 'SIGTERM'] as const;
  for (const signal of signals) process.once(signal, stop);
  try {
    return await work(controller.signal);
  } finally {
    for (const signal of signals) process.removeListener(signal, stop);
  }
}

/** Rows of words as aligned columns, the first to the left. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const line = (row: readonly string[]) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)));
  return rows.map((row) => `${line(row).join('  ')}\n`).join('');
}
