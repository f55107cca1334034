/** A libtorch archive of the user's choice, from a file or over HTTP: resumed where it broke off, and checked. */
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { mkdir, open, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { patientFetch } from '../data/http.js';
import { WrpoError } from '../errors.js';

const ATTEMPTS = 6;
const SECONDS_OF_SILENCE = 60;

export interface ArchiveOptions {
  /** Of the whole file, in hexadecimal; what differs is refused. */
  sha256?: string;
  log: (line: string) => void;
  /** Before another attempt, in milliseconds; doubles. */
  retryDelay?: number;
}

/**
 * The path of the archive that `source`, a file or an http(s) address, names. A download goes into `dir` and survives
 * there until it is whole, through broken connections and other runs. Throws ERR_NATIVE_LOAD.
 */
export async function obtainArchive(source: string, dir: string, options: ArchiveOptions): Promise<string> {
  const { sha256, log } = options;
  if (sha256 !== undefined && !/^[0-9a-f]{64}$/i.test(sha256)) {
    throw refusal(`--sha256 ${sha256} is no SHA-256 sum: expected 64 hexadecimal digits.`);
  }
  const isAddress = /^https?:\/\//i.test(source);
  if (!isAddress && !existsSync(source)) throw refusal(`${source}: no such file.`);
  const file = isAddress ? await download(source, dir, options) : source;
  const sum = await sha256Of(file);
  if (sha256 !== undefined && sum !== sha256.toLowerCase()) {
    if (isAddress) rmSync(file); // or it would be taken for whole the next time
    throw refusal(`${source} has the SHA-256 sum ${sum}: expected ${sha256.toLowerCase()}.`);
  }
  if (sha256 === undefined) log(`${basename(file)}: SHA-256 ${sum}, which nothing was compared with (--sha256)`);
  return file;
}

export async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk);
  return hash.digest('hex');
}

/** What is known of a partial file: beside it, since bytes of another version must not be appended. */
interface Partial {
  file: string;
  /** The ETag or date of the version that the bytes belong to. */
  validator: string;
}

async function download(address: string, dir: string, { log, retryDelay = 1000 }: ArchiveOptions): Promise<string> {
  await mkdir(dir, { recursive: true });
  const name = decodeURIComponent(basename(new URL(address).pathname)) || 'libtorch';
  const key = createHash('sha256').update(address).digest('hex').slice(0, 12);
  const whole = join(dir, `${key}-${name.replaceAll(/[^\w.+-]/g, '_')}`);
  if (existsSync(whole)) return whole;
  const partial = { file: `${whole}.part`, validator: `${whole}.validator` };
  for (let attempt = 1; ; attempt++) {
    const before = sizeOf(partial.file);
    try {
      await continueDownload(address, partial, log);
      renameSync(partial.file, whole);
      rmSync(partial.validator, { force: true });
      return whole;
    } catch (cause) {
      if (cause instanceof WrpoError) throw cause;
      const reason = reasonOf(cause);
      if (sizeOf(partial.file) > before) attempt = 1; // it gets on, if slowly
      if (attempt === ATTEMPTS) {
        throw refusal(`${address} could not be downloaded (${reason}): run the command again to go on.`, cause);
      }
      log(`${name}: ${reason}; going on at ${megabytes(sizeOf(partial.file))}…`);
      await sleep(Math.min(retryDelay * 2 ** (attempt - 1), 60_000));
    }
  }
}

async function continueDownload(address: string, { file, validator }: Partial, log: (line: string) => void) {
  const fetch = await patientFetch(SECONDS_OF_SILENCE);
  const known = existsSync(validator) ? readFileSync(validator, 'utf8') : '';
  const start = known === '' ? 0 : sizeOf(file);
  // A range of a compressed answer would be one of other bytes.
  const headers: Record<string, string> = { 'accept-encoding': 'identity' };
  if (start > 0) Object.assign(headers, { range: `bytes=${start}-`, 'if-range': known });
  const response = await fetch(address, { headers });
  if (response.status === 416) {
    rmSync(file, { force: true });
    throw new Error('the server has no such range');
  }
  if (!response.ok) {
    const words = `${address} answers ${response.status} ${response.statusText}`;
    if (response.status < 500 && response.status !== 429) throw refusal(`${words}: expected a libtorch archive.`);
    throw new Error(words);
  }
  const resumed = response.status === 206;
  const length = Number(response.headers.get('content-length') ?? Number.NaN);
  const total = (resumed ? start : 0) + length;
  const etag = response.headers.get('etag') ?? '';
  // A weak tag does not promise the same bytes.
  await writeFile(validator, etag.startsWith('"') ? etag : (response.headers.get('last-modified') ?? ''));
  log(`downloading ${address} (${Number.isNaN(total) ? 'of unknown size' : megabytes(total)})…`);
  const handle = await open(file, resumed ? 'a' : 'w');
  try {
    // Each piece at once: what a stream had buffered would be lost with the connection.
    for await (const piece of response.body as import('node:stream/web').ReadableStream<Uint8Array>) {
      await handle.writeFile(piece);
    }
  } finally {
    await handle.close();
  }
  if (!Number.isNaN(total) && sizeOf(file) !== total) throw new Error('the connection was closed early');
}

const sizeOf = (file: string): number => statSync(file, { throwIfNoEntry: false })?.size ?? 0;
const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** fetch wraps what happened. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  const inner = cause instanceof Error ? cause.message || (cause as NodeJS.ErrnoException).code : undefined;
  return inner ?? message;
}

const refusal = (message: string, cause?: unknown) => new WrpoError('ERR_NATIVE_LOAD', message, { cause });
