/** Writing that survives a crash: temporary name, fsync, rename. */
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { crc32 } from 'node:zlib';
import { WrpoError } from '../errors.js';

/** Makes a rename or a new file in `dir` durable. */
export function syncDirectory(dir: string): void {
  const handle = openSync(dir, 'r');
  try {
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}

/** Makes a directory and those above it, where they are not there. */
export function makeDirectory(dir: string): void {
  try {
    mkdirSync(dir, { recursive: true });
  } catch (cause) {
    let reason = cause;
    try {
      // Of a read-only file system Node says ENOENT, unless it makes one directory alone.
      let missing = resolve(dir);
      while (!existsSync(dirname(missing))) missing = dirname(missing);
      mkdirSync(missing);
    } catch (own) {
      reason = own;
    }
    throw writeError(dir, reason);
  }
}

/** Waits until a file is on disk, without holding up anything else. */
export async function syncFile(path: string): Promise<void> {
  const handle = await open(path, 'r+');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** The length and the CRC-32 (eight hexadecimal digits) of a file. */
export interface FileSum {
  bytes: number;
  crc32: string;
}

/** Reads a file through, a piece at a time; the event loop turns in between. */
export async function checksum(path: string): Promise<FileSum> {
  const handle = await open(path, 'r');
  try {
    const piece = Buffer.allocUnsafe(1 << 20);
    let bytes = 0;
    let sum = 0;
    for (;;) {
      const { bytesRead } = await handle.read(piece, 0, piece.length, bytes);
      if (bytesRead === 0) return { bytes, crc32: sum.toString(16).padStart(8, '0') };
      sum = crc32(piece.subarray(0, bytesRead), sum);
      bytes += bytesRead;
    }
  } finally {
    await handle.close();
  }
}

/** Replaces `path` by `text`, whole or not at all. */
export function writeFileAtomic(path: string, text: string): void {
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    const handle = openSync(temporary, 'w');
    try {
      writeFileSync(handle, text); // unlike writeSync, all of it or an error
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
    renameSync(temporary, path);
    syncDirectory(dirname(path));
  } catch (cause) {
    rmSync(temporary, { force: true });
    throw writeError(path, cause);
  }
}

/** Appends whole lines to `path`. */
export function appendLines(path: string, lines: string[]): void {
  try {
    const handle = openSync(path, 'a');
    try {
      writeFileSync(handle, lines.map((line) => `${line}\n`).join(''));
    } finally {
      closeSync(handle);
    }
  } catch (cause) {
    throw writeError(path, cause);
  }
}

/** A file that is written piece by piece and appears under its name only when it is whole. */
export class PendingFile {
  readonly #temporary: string;
  #handle: number | undefined;

  /** `<path>.tmp`, in place of what a killed process may have left there. */
  constructor(readonly path: string) {
    this.#temporary = `${path}.tmp`;
    this.#handle = this.#guarded(() => openSync(this.#temporary, 'w'));
  }

  write(data: string | Uint8Array): void {
    this.#guarded(() => writeFileSync(this.#handle!, data)); // unlike writeSync, all of it or an error
  }

  finish(): void {
    this.#guarded(() => {
      fsyncSync(this.#handle!);
      this.#close();
      renameSync(this.#temporary, this.path);
      syncDirectory(dirname(this.path));
    });
  }

  abandon(): void {
    this.#close();
    rmSync(this.#temporary, { force: true });
  }

  #close(): void {
    if (this.#handle !== undefined) closeSync(this.#handle);
    this.#handle = undefined;
  }

  #guarded<T>(action: () => T): T {
    try {
      return action();
    } catch (cause) {
      throw writeError(this.path, cause);
    }
  }
}

/** The failure to write `path` as one sentence. */
export function writeError(path: string, cause: unknown): WrpoError {
  if (cause instanceof WrpoError) return cause;
  const { code, message } = cause as NodeJS.ErrnoException;
  const reason =
    code === 'ENOSPC'
      ? 'no space left on the device'
      : existsSync(dirname(path))
        ? message
        : 'its directory does not exist';
  return new WrpoError('ERR_CHECKPOINT', `cannot write ${path}: ${reason}`, { cause });
}
