/**
 * One stage's rows of one model: an append-only file, a JSON line a prompt, that may be killed at any moment.
 *
 * Rows are appended to `<name>.jsonl.part` in the order in which they come, so that nothing waits for a slow neighbour and
 * what was paid for is soon on disk; of two rows of a prompt the later counts. When all are there they are put into the
 * order of the prompts as `<name>.jsonl`, which therefore has the same bytes however often the work was cut off, and can
 * be read side by side with other shards without an index.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { PendingFile, syncDirectory, writeError } from '../data/files.js';
import { WrpoError } from '../errors.js';
import { idOf, isWhole, type Line, linesOf } from './lines.js';
import { lock } from './lock.js';

export interface ShardRow {
  prompt_id: string;
}

/** What rows depend on, each by name: what is not the same must not go on in the same file. */
export type Depends = Record<string, string | number | boolean | null>;

/** Where each prompt stands. */
export interface PromptOrder {
  ids: readonly string[];
  indexOf: ReadonlyMap<string, number>;
}

/** Rows that are written and flushed to the disk together, unless the last time is longer ago than this. */
const BATCH = { rows: 32, milliseconds: 1000 };
const CHUNK = 1 << 20;

export class Shard<Row extends ShardRow> {
  readonly #part: string;
  readonly #manifest: string;
  readonly #offsets: Float64Array;
  readonly #lengths: Uint32Array;
  readonly #unlock: () => void;
  #handle: number | undefined;
  #size = 0;
  #pending: { index: number; line: Buffer }[] = [];
  #flushed = performance.now();

  /**
   * Opens, or begins, the shard at `path`. Throws ERR_CHECKPOINT when it is in use by another process, damaged, or of
   * other dependencies (named).
   */
  constructor(
    readonly path: string,
    readonly depends: Depends,
    readonly order: PromptOrder,
  ) {
    this.#part = `${path}.part`;
    this.#manifest = manifestOf(path);
    this.#offsets = new Float64Array(order.ids.length);
    this.#lengths = new Uint32Array(order.ids.length);
    guarded(path, () => mkdirSync(dirname(path), { recursive: true }));
    this.#unlock = lock(`${path}.lock`, path);
    try {
      this.#checkManifest();
      for (const file of [path, this.#manifest]) rmSync(`${file}.tmp`, { force: true });
      this.#scan();
    } catch (error) {
      this.#unlock();
      throw error;
    }
  }

  /** Whether all of it is there, in order. */
  get finished(): boolean {
    return isFinished(this.path);
  }

  has(index: number): boolean {
    return this.#lengths[index]! > 0;
  }

  /** The rows that are on disk, in the order of the prompts. */
  *rows(): Generator<Row> {
    if (!existsSync(this.#file)) return;
    const handle = openSync(this.#file, 'r');
    try {
      for (const index of this.order.ids.keys()) if (this.has(index)) yield JSON.parse(`${this.#read(handle, index)}`);
    } finally {
      closeSync(handle);
    }
  }

  /** Adds a row, which is on disk when its batch is full. Throws ERR_CHECKPOINT when it cannot be written. */
  append(row: Row): void {
    const line = Buffer.from(`${JSON.stringify(row)}\n`);
    this.#pending.push({ index: this.order.indexOf.get(row.prompt_id)!, line });
    const late = performance.now() - this.#flushed > BATCH.milliseconds;
    if (late || this.#pending.length >= BATCH.rows) this.flush();
  }

  flush(): void {
    this.#flushed = performance.now();
    const batch = this.#pending;
    if (batch.length === 0) return;
    this.#pending = [];
    guarded(this.path, () => {
      this.#open();
      try {
        writeFileSync(this.#handle!, Buffer.concat(batch.map(({ line }) => line))); // all of it or an error
        fsyncSync(this.#handle!);
      } catch (error) {
        ftruncateSync(this.#handle!, this.#size);
        throw error;
      }
    });
    for (const { index, line } of batch) {
      this.#offsets[index] = this.#size;
      this.#lengths[index] = line.length;
      this.#size += line.length;
    }
  }

  /** Puts the rows in order; `totals` goes into the manifest. */
  finish(totals: object): void {
    this.flush();
    guarded(this.path, () => this.#open()); // a shard without rows is a file too
    this.#closeFile();
    const ordered = new PendingFile(this.path);
    try {
      this.#copyTo(ordered);
      // While there is a .part it is what counts, so a process killed between these does the ordering again.
      ordered.finish();
    } catch (error) {
      ordered.abandon();
      throw error;
    }
    this.#writeManifest(totals);
    guarded(this.path, () => {
      rmSync(this.#part);
      syncDirectory(dirname(this.path));
    });
  }

  #copyTo(file: PendingFile): void {
    const source = openSync(this.#part, 'r');
    let lines: Buffer[] = [];
    let filled = 0;
    const drain = () => {
      file.write(Buffer.concat(lines));
      lines = [];
      filled = 0;
    };
    try {
      for (const index of this.order.ids.keys()) {
        if (!this.has(index)) continue;
        lines.push(this.#read(source, index));
        filled += this.#lengths[index]!;
        if (filled >= CHUNK) drain();
      }
      drain();
    } finally {
      closeSync(source);
    }
  }

  /** Writes down what is pending and lets go of the file. */
  close(): void {
    try {
      this.flush();
    } finally {
      this.#closeFile();
      this.#unlock();
    }
  }

  get #file(): string {
    return existsSync(this.#part) ? this.#part : this.path;
  }

  /** Ready to append: a finished shard is opened again. */
  #open(): void {
    if (this.#handle !== undefined) return;
    if (this.finished) renameSync(this.path, this.#part);
    this.#handle = openSync(this.#part, 'a');
    syncDirectory(dirname(this.path));
  }

  #closeFile(): void {
    if (this.#handle !== undefined) closeSync(this.#handle);
    this.#handle = undefined;
  }

  #read(handle: number, index: number): Buffer {
    const line = Buffer.alloc(this.#lengths[index]!);
    readSync(handle, line, 0, line.length, this.#offsets[index]!);
    return line;
  }

  /** Where the rows stand. What a killed process left half-written at the end is cut off. */
  #scan(): void {
    const path = this.#file;
    if (!existsSync(path)) return;
    let torn: number | undefined;
    let number = 0;
    for (const { line, offset } of linesOf(path)) {
      number++;
      const index = isWhole(line) ? this.order.indexOf.get(idOf(line)) : undefined;
      if (index === undefined) torn ??= number;
      else if (torn !== undefined) {
        throw new WrpoError('ERR_CHECKPOINT', `${path} line ${torn} is damaged: expected a JSON object of a prompt`);
      } else {
        this.#offsets[index] = offset;
        this.#lengths[index] = line.length;
        this.#size = offset + line.length;
      }
    }
    if (torn === undefined) return;
    guarded(path, () => {
      const handle = openSync(path, 'r+');
      try {
        ftruncateSync(handle, this.#size);
        fsyncSync(handle);
      } finally {
        closeSync(handle);
      }
    });
  }

  #checkManifest(): void {
    if (!existsSync(this.#manifest) && !existsSync(this.#file)) this.#writeManifest();
    const { depends: before } = readManifest(this.path);
    const names = new Set([...Object.keys(before), ...Object.keys(this.depends)]);
    const changed = [...names].find((name) => (before[name] ?? null) !== (this.depends[name] ?? null));
    if (changed === undefined) return;
    const show = (value: unknown) => JSON.stringify(value ?? null);
    throw new WrpoError(
      'ERR_CHECKPOINT',
      `${this.path} was made with another ${changed}: ${show(before[changed])} then, ${show(this.depends[changed])} now; set it back, or move the file away to begin anew`,
    );
  }

  #writeManifest(totals?: object): void {
    const manifest = { depends: this.depends, ...(totals && { totals }) };
    const file = new PendingFile(this.#manifest);
    file.write(`${JSON.stringify(manifest, null, 1)}\n`);
    file.finish();
  }
}

/** Every file that the shard at `path` may have: its manifest, itself, and what of it is not in order yet. */
export const shardFiles = (path: string): string[] => [manifestOf(path), path, `${path}.part`];

const manifestOf = (path: string): string => path.replace(/\.jsonl$/, '.json');

/** Whether the shard at `path` has all its rows. */
export const isFinished = (path: string): boolean => existsSync(path) && !existsSync(`${path}.part`);

/** The prompts that have a row in the shard at `path`, finished or not, without opening it. */
export function* idsIn(path: string): Generator<string> {
  const file = existsSync(`${path}.part`) ? `${path}.part` : path;
  if (!existsSync(file)) return;
  for (const { line } of linesOf(file)) if (isWhole(line)) yield idOf(line);
}

/** What a shard was made with, and what its stage counted when it was finished. */
export function readManifest(path: string): { depends: Depends; totals?: Record<string, number> } {
  const file = manifestOf(path);
  try {
    const manifest = JSON.parse(readFileSync(file, 'utf8'));
    if (typeof manifest.depends !== 'object') throw new Error('it has no "depends"');
    return manifest;
  } catch (cause) {
    throw new WrpoError('ERR_CHECKPOINT', `${file} cannot be read: ${(cause as Error).message}`, { cause });
  }
}

/** The rows of a finished shard, by the index of their prompt, which may only rise. */
export class ShardReader<Row extends ShardRow> {
  readonly #lines: Generator<Line>;
  #next: { index: number; line: Buffer } = { index: -1, line: Buffer.alloc(0) };

  constructor(
    readonly path: string,
    readonly order: PromptOrder,
  ) {
    this.#lines = linesOf(path); // opened when the first row is asked for
  }

  /** The prompt's row, if it has one. */
  at(index: number): Row | undefined {
    while (this.#next.index < index) this.#advance();
    return this.#next.index === index ? JSON.parse(`${this.#next.line}`) : undefined;
  }

  close(): void {
    this.#lines.return(undefined);
  }

  #advance(): void {
    const { value, done } = this.#lines.next();
    const index = done || !isWhole(value.line) ? undefined : this.order.indexOf.get(idOf(value.line));
    if (!done && (index === undefined || index <= this.#next.index)) {
      throw new WrpoError('ERR_CHECKPOINT', `${this.path} is damaged at byte ${value.offset}: expected a prompt's row`);
    }
    this.#next = done
      ? { index: Number.POSITIVE_INFINITY, line: Buffer.alloc(0) }
      : { index: index!, line: value.line };
  }
}

function guarded<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (cause) {
    throw writeError(path, cause);
  }
}
