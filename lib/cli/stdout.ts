/** Where commands write data: standard output, or a file of theirs. */
import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import pc from 'picocolors';
import { writeError } from '../data/files.js';

export type Paint = ReturnType<typeof pc.createColors>;

/** Colours, if standard output is a terminal or FORCE_COLOR asks for them, unless NO_COLOR forbids. */
export function paintOut(): Paint {
  const { FORCE_COLOR, NO_COLOR } = process.env;
  return pc.createColors(Boolean(FORCE_COLOR) || (process.stdout.isTTY === true && !NO_COLOR));
}

/** Writes to standard output and waits for it; a reader that went away is an error (EPIPE), not a crash. */
export function writeOut(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.once('error', reject).write(text, (error) => {
      process.stdout.removeListener('error', reject);
      if (!error) return resolve();
      // The event follows the callback.
      process.stdout.once('error', () => {});
      reject(error);
    });
  });
}

interface Sink {
  write(text: string): Promise<void>;
  finish(): void;
  abandon(): void;
}

/**
 * Lets `body` write lines to standard output, or to a file that appears under its name only when they are all there; of what
 * fails nothing is left.
 */
export async function writeLines<T>(path: string | undefined, body: (write: Sink['write']) => Promise<T>): Promise<T> {
  const sink = openSink(path);
  try {
    const result = await body(sink.write);
    sink.finish();
    return result;
  } catch (error) {
    sink.abandon();
    throw error;
  }
}

function openSink(path: string | undefined): Sink {
  if (path === undefined) {
    return { write: writeOut, finish: () => {}, abandon: () => {} };
  }
  const temporary = `${path}.${process.pid}.tmp`;
  const guarded = <T>(action: () => T): T => {
    try {
      return action();
    } catch (cause) {
      throw writeError(path, cause);
    }
  };
  const handle = guarded(() => openSync(temporary, 'w'));
  return {
    write: async (text) => guarded(() => writeFileSync(handle, text)), // unlike writeSync, all of it or an error
    finish: () =>
      guarded(() => {
        fsyncSync(handle);
        closeSync(handle);
        renameSync(temporary, path);
      }),
    abandon: () => rmSync(temporary, { force: true }),
  };
}
