/**
 * The safetensors format: eight bytes of header length, a JSON header, then the tensors' bytes. Headers are read and
 * planned here; the bytes themselves are mapped and written by the addon (native/io/tensor_file.h).
 */
import { isUtf8 } from 'node:buffer';
import { closeSync, fstatSync, openSync, readdirSync, readSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { makeDirectory, syncDirectory, syncFile, writeError, writeFileAtomic } from '../data/files.js';
import { WrpoError } from '../errors.js';
import type { Dtype, NamedTensor, NativeAddon } from '../native/addon.js';
import type { FileTensor } from './families.js';

const DTYPES: Record<string, { dtype: Dtype; bytes: number }> = {
  F64: { dtype: 'float64', bytes: 8 },
  F32: { dtype: 'float32', bytes: 4 },
  F16: { dtype: 'float16', bytes: 2 },
  BF16: { dtype: 'bfloat16', bytes: 2 },
};
const tagOf = (dtype: Dtype) => Object.entries(DTYPES).find(([, value]) => value.dtype === dtype)![0];
const elements = (shape: readonly number[]) => shape.reduce((product, size) => product * size, 1);

/** A tensor that is stored as it is, under its own name. */
export function wholeTensor({ name, tensor }: NamedTensor): FileTensor {
  return { name, shape: tensor.shape, pieces: [tensor] };
}

/** Where one tensor lies; `offset` counts from the beginning of the file. */
export interface StoredTensor {
  file: string;
  dtype: string;
  shape: number[];
  offset: number;
  bytes: number;
}

/** The tensors of one file. Throws ERR_MODEL naming the file when it is truncated or not a safetensors file. */
export function readHeader(file: string): Map<string, StoredTensor> {
  const fail = (what: string, cause?: unknown): never => {
    throw new WrpoError('ERR_MODEL', `${file} ${what}`, { cause });
  };
  const corrupt = 'is not a valid safetensors file';
  let handle: number;
  try {
    handle = openSync(file, 'r');
  } catch (cause) {
    return fail('cannot be read', cause);
  }
  try {
    const stat = fstatSync(handle);
    if (!stat.isFile()) fail(`${corrupt}: it is no file`);
    const { size } = stat;
    const length = Buffer.alloc(8);
    if (readSync(handle, length, 0, 8, 0) < 8) fail(`${corrupt}: it has only ${size} bytes`);
    const stated = length.readBigUInt64LE();
    if (stated > size - 8) fail(`is truncated or corrupt: its header should take ${stated} of ${size} bytes`);
    if (stated > 100e6) fail(`${corrupt}: a header of ${stated} bytes`);
    const headerBytes = Number(stated);
    const text = Buffer.alloc(headerBytes);
    readSync(handle, text, 0, headerBytes, 8);
    if (!isUtf8(text)) fail(`${corrupt}: its header is not UTF-8`);
    let header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
    try {
      header = JSON.parse(text.toString('utf8'));
    } catch (cause) {
      return fail(`${corrupt}: its header is not JSON`, cause);
    }
    if (typeof header !== 'object' || header === null || Array.isArray(header)) {
      return fail(`${corrupt}: its header is not a JSON object`);
    }
    const tensors = new Map<string, StoredTensor>();
    for (const [name, entry] of Object.entries(header)) {
      if (name === '__metadata__') continue;
      const { dtype, shape, data_offsets: range } = entry ?? {};
      if (
        !Array.isArray(shape) ||
        !shape.every((size) => Number.isSafeInteger(size) && size >= 0) ||
        !Array.isArray(range) ||
        range.length !== 2 ||
        !range.every(Number.isSafeInteger)
      ) {
        return fail(`${corrupt}: the entry of ${name} lacks a shape or data_offsets`);
      }
      const known = DTYPES[dtype];
      const bytes = range[1] - range[0];
      if (known && bytes !== elements(shape) * known.bytes) {
        fail(`${corrupt}: ${name} is ${dtype} [${shape}] but has ${bytes} bytes`);
      }
      if (range[0] < 0 || bytes < 0 || 8 + headerBytes + range[1] > size) {
        fail(`is truncated or corrupt: ${name} should end at byte ${8 + headerBytes + range[1]} of ${size}`);
      }
      tensors.set(name, { file, dtype, shape, offset: 8 + headerBytes + range[0], bytes });
    }
    const fault = overlap(tensors) ?? repetition(text.toString('utf8'), header);
    if (fault !== undefined) fail(`${corrupt}: ${fault}`);
    return tensors;
  } finally {
    closeSync(handle);
  }
}

function overlap(tensors: ReadonlyMap<string, StoredTensor>): string | undefined {
  const places = [...tensors].filter(([, { bytes }]) => bytes > 0).sort(([, a], [, b]) => a.offset - b.offset);
  for (const [i, [name, { offset }]] of places.entries()) {
    const [before, { offset: start, bytes }] = places[i - 1] ?? ['', { offset, bytes: 0 }];
    if (start + bytes > offset) return `${before} and ${name} share bytes`;
  }
  return undefined;
}

/** Of two entries of one name JSON.parse keeps the second, and says nothing. */
function repetition(text: string, header: Record<string, object>): string | undefined {
  const strings = text.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"(\s*:\s*\{)?/g);
  let written = 0;
  for (const [, opens] of strings) if (opens !== undefined) written++;
  return written === Object.keys(header).length ? undefined : 'it names a tensor twice';
}

/**
 * Fills `targets` from the stored tensors of the same names, converting dtypes. Every target must be there in its shape;
 * `ignore` says which stored tensors may be left over, and `by` what describes the targets. Throws ERR_MODEL before anything
 * is read.
 */
export async function loadTensors(
  native: NativeAddon,
  targets: FileTensor[],
  stored: Map<string, StoredTensor>,
  {
    where,
    ignore = () => false,
    by = 'config.json',
  }: { where: string; ignore?: (name: string) => boolean; by?: string },
): Promise<void> {
  const names = new Set(targets.map(({ name }) => name));
  for (const name of stored.keys()) {
    if (!names.has(name) && !ignore(name)) {
      throw new WrpoError('ERR_MODEL', `${where} holds ${name}, which its ${by} does not describe`);
    }
  }
  const byFile = new Map<
    string,
    { name: string; tensor: NamedTensor['tensor']; dtype: Dtype; offset: number; bytes: number }[]
  >();
  for (const { name, shape, pieces } of targets) {
    const source = stored.get(name);
    if (!source) throw new WrpoError('ERR_MODEL', `${where} lacks ${name}`);
    if (source.shape.join() !== shape.join()) {
      throw new WrpoError(
        'ERR_MODEL',
        `${source.file}: ${name} has shape [${source.shape}], ${by} asks for [${shape}]`,
      );
    }
    const known = DTYPES[source.dtype];
    if (!known) {
      throw new WrpoError(
        'ERR_MODEL',
        `${source.file}: ${name} has dtype ${source.dtype}; expected ${Object.keys(DTYPES).join(', ')}`,
      );
    }
    const ranges = byFile.get(source.file) ?? [];
    let { offset } = source;
    for (const tensor of pieces) {
      const bytes = elements(tensor.shape) * known.bytes;
      ranges.push({ name, tensor, dtype: known.dtype, offset, bytes });
      offset += bytes;
    }
    byFile.set(source.file, ranges);
  }
  for (const [file, ranges] of byFile) await native.readTensors(file, ranges);
}

/** The bytes of a file's beginning for these tensors in this order. */
function header(tensors: FileTensor[], dtype: Dtype): Uint8Array {
  const tag = tagOf(dtype);
  const entries: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let offset = 0;
  for (const { name, shape } of tensors) {
    const end = offset + elements(shape) * DTYPES[tag]!.bytes;
    entries[name] = { dtype: tag, shape, data_offsets: [offset, end] };
    offset = end;
  }
  let text = JSON.stringify(entries);
  text += ' '.repeat((8 - (Buffer.byteLength(text) % 8)) % 8);
  const body = Buffer.from(text);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(body.length));
  return Buffer.concat([length, body]);
}

/** Where a file is written before it is renamed to `path`. */
const temporaryOf = (path: string) => join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);

/** The failure to write a temporary file as one to write what it was to become. */
function temporaryError(path: string, cause: unknown): WrpoError {
  const { code, message } = writeError(path, cause);
  return new WrpoError(
    code,
    message.replace(temporaryOf(path), () => path),
    { cause },
  );
}

/** Writes `tensors` as `dtype` to the temporary file of `path`. */
async function writeTemporary(native: NativeAddon, path: string, tensors: FileTensor[], dtype: Dtype): Promise<void> {
  const handles = tensors.flatMap(({ pieces }) => pieces);
  try {
    await native.writeTensors(temporaryOf(path), header(tensors, dtype), handles, dtype);
    await syncFile(temporaryOf(path));
  } catch (cause) {
    rmSync(temporaryOf(path), { force: true });
    throw temporaryError(path, cause);
  }
}

function writeTemporaryText(path: string, text: string): void {
  try {
    writeFileAtomic(temporaryOf(path), `${text}\n`);
  } catch (cause) {
    throw temporaryError(path, cause);
  }
}

/** Writes `tensors` as `dtype` to one file, whole or not at all. */
export async function saveTensorFile(
  native: NativeAddon,
  path: string,
  tensors: FileTensor[],
  dtype: Dtype,
): Promise<void> {
  await writeTemporary(native, path, tensors, dtype);
  try {
    renameSync(temporaryOf(path), path);
  } catch (cause) {
    rmSync(temporaryOf(path), { force: true });
    throw writeError(path, cause);
  }
}

/**
 * Writes a model as Hugging Face does: `model.safetensors`, or shards of at most `maxShardBytes` and an index; and
 * `config`, the text of config.json and what goes with it, by file. Nothing of an earlier model in `dir` is touched before all the new files are on disk.
 */
export async function saveModel(
  native: NativeAddon,
  dir: string,
  tensors: FileTensor[],
  dtype: Dtype,
  config: Record<string, string>,
  maxShardBytes = 5e9,
): Promise<void> {
  const size = ({ shape }: FileTensor) => elements(shape) * DTYPES[tagOf(dtype)]!.bytes;
  const shards: FileTensor[][] = [[]];
  let filled = 0;
  for (const tensor of tensors) {
    if (filled > 0 && filled + size(tensor) > maxShardBytes) {
      shards.push([]);
      filled = 0;
    }
    shards.at(-1)!.push(tensor);
    filled += size(tensor);
  }
  const digits = (n: number) => String(n).padStart(5, '0');
  const names = shards.map((_, i) =>
    shards.length === 1 ? 'model.safetensors' : `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`,
  );
  const index = 'model.safetensors.index.json';
  const texts = { ...config };
  if (shards.length > 1) {
    const weightMap = Object.fromEntries(shards.flatMap((shard, i) => shard.map(({ name }) => [name, names[i]])));
    const total = tensors.reduce((sum, tensor) => sum + size(tensor), 0);
    texts[index] = JSON.stringify({ metadata: { total_size: total }, weight_map: weightMap }, null, 2);
  }
  await saveTogether(native, dir, Object.fromEntries(names.map((name, i) => [name, shards[i]!])), dtype, texts);
  for (const name of readdirSync(dir)) {
    const old = /^(model(-\d+-of-\d+)?|adapter_model)\.safetensors$|^adapter_config\.json$/.test(name);
    if ((old && !names.includes(name)) || (name === index && shards.length === 1)) rmSync(join(dir, name));
  }
  syncDirectory(dir);
}

/** Writes files of tensors and of text into `dir`: none takes its name before all are on disk. */
export async function saveTogether(
  native: NativeAddon,
  dir: string,
  files: Record<string, FileTensor[]>,
  dtype: Dtype,
  texts: Record<string, string>,
): Promise<void> {
  const paths = [...Object.keys(files), ...Object.keys(texts)].map((name) => join(dir, name));
  makeDirectory(dir);
  try {
    // All queued at once: no step of an optimizer can come between two files.
    const writing = Object.entries(files).map(([name, tensors]) =>
      writeTemporary(native, join(dir, name), tensors, dtype),
    );
    for (const result of await Promise.allSettled(writing)) if (result.status === 'rejected') throw result.reason;
    for (const [name, text] of Object.entries(texts)) writeTemporaryText(join(dir, name), text);
    for (const path of paths) renameSync(temporaryOf(path), path);
  } catch (cause) {
    for (const path of paths) rmSync(temporaryOf(path), { force: true });
    throw writeError(dir, cause);
  }
  syncDirectory(dir);
}
