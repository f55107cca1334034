/** SHA-256 of files, read through again only when their size or time has changed. */
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { makeDirectory, writeFileAtomic } from '../data/files.js';
import { WrpoError } from '../errors.js';
import { locate } from '../train/prepare.js';

interface Known {
  bytes: number;
  modified: number;
  sha256: string;
}

/** What of a model's directory decides what it computes. */
const OF_A_MODEL =
  /\.safetensors$|^((generation_|adapter_)?config|tokenizer.*|chat_template.*|.*\.index)\.(json|jinja)$/;

export class Hashes {
  readonly #known: Record<string, Known>;
  #isSaved = true;

  /** `file` keeps what is known from one process to the next; what it lacks is computed. */
  constructor(readonly file: string) {
    this.#known = read(file);
  }

  /** Of a file; undefined where there is none. */
  async of(path: string): Promise<string | undefined> {
    const found = statSync(path, { throwIfNoEntry: false });
    if (!found?.isFile()) return undefined;
    const { size: bytes, mtimeMs: modified } = found;
    const before = this.#known[path];
    if (before?.bytes === bytes && before.modified === modified) return before.sha256;
    const hash = createHash('sha256');
    await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
    const sha256 = hash.digest('hex');
    this.#known[path] = { bytes, modified, sha256 };
    this.#isSaved = false;
    return sha256;
  }

  /** Of all that decides what a model computes: one in a directory, or on the hub. Throws ERR_MODEL when there is none. */
  async ofModel(model: string, say: (line: string) => void): Promise<string> {
    const directory = await locate(model, { say });
    const hash = createHash('sha256');
    for (const name of modelFiles(directory)) hash.update(`${name} ${await this.of(join(directory, name))}\n`);
    return hash.digest('hex');
  }

  save(): void {
    if (this.#isSaved) return;
    makeDirectory(dirname(this.file));
    this.#isSaved = true;
    writeFileAtomic(this.file, `${JSON.stringify(this.#known, null, 1)}\n`);
  }
}

/** The names of the files in a model's directory that decide what it computes. Throws ERR_MODEL when there is none. */
export function modelFiles(directory: string): string[] {
  const names = existsSync(directory) ? readdirSync(directory).filter((name) => OF_A_MODEL.test(name)) : [];
  if (names.length > 0) return names.sort();
  throw new WrpoError('ERR_MODEL', `${directory} is no model directory: there are no weights and no config.json`);
}

/** What is damaged is only slower. */
function read(file: string): Record<string, Known> {
  try {
    return JSON.parse(readFileSync(file, 'utf8'));
  } catch {
    return {};
  }
}
