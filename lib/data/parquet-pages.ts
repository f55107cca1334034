/**
 * The pages of a Parquet file (https://parquet.apache.org/docs/file-format), each looked at before the package decodes it:
 * it believes whatever length it reads, and a run of one value that says it is two thousand million long becomes as many.
 */
import { getHeapStatistics } from 'node:v8';
import { type AsyncBuffer, type Compressors, type FileMetaData, parquetSchema, type RowGroup } from 'hyparquet';
import { deltaBinaryUnpack } from 'hyparquet/src/delta.js';
import { getMaxDefinitionLevel, getMaxRepetitionLevel, getTreePath, isFlatColumn } from 'hyparquet/src/schema.js';
import { readStruct, type Struct } from './thrift.js';

const DATA_PAGE = 0;
const DICTIONARY_PAGE = 2;
const DATA_PAGE_V2 = 3;
const PLAIN_DICTIONARY = 2;
const RLE = 3;
const [DELTA_LENGTHS, DELTA_BYTES] = [6, 7];
const RLE_DICTIONARY = 8;

/** A column's part of a row group. */
interface Column {
  rows: number;
  isFlat: boolean;
  isBoolean: boolean;
  /** The highest of its levels. */
  repetition: number;
  definition: number;
}

/** What a page says of itself. */
interface Page {
  values: number;
  encoding: number;
  /** Of its values, decompressed. */
  bytes: number;
  /** Throws unless its values, decompressed, are as many as it says. */
  require: (bytes: Uint8Array) => void;
}

/** Bytes of all texts in a page: what a string may have. */
const MOST_TEXT = 2 ** 29;

const damaged = (what: string) => new Error(`it is damaged: ${what}`);
const number = (value: Struct[number]): number => (typeof value === 'number' ? value : Number.NaN);

/** The end of a file, where it is described, once all of that is known to be there. */
export async function footerOf(file: AsyncBuffer): Promise<ArrayBuffer> {
  const tail = await file.slice(file.byteLength - 8);
  const length = new DataView(tail).getUint32(0, true);
  const footer = await file.slice(file.byteLength - 8 - length);
  readStruct(new Uint8Array(footer, 0, length), 0);
  return footer;
}

/** A row group with the columns that are read, whose pages are looked at when they are. */
export async function checkedGroup(
  file: AsyncBuffer,
  metadata: FileMetaData,
  group: RowGroup,
  { columns, compressors }: { columns: readonly string[]; compressors: Compressors },
): Promise<RowGroup> {
  const tree = parquetSchema(metadata);
  const rows = Number(group.num_rows);
  // A value and its levels are three numbers while rows are put together, and text is as long as its bytes.
  let memory = 64 * rows;
  const checked: RowGroup['columns'] = [];
  for (const column of group.columns) {
    const meta = column.meta_data;
    if (!meta) throw damaged('a column has no description');
    if (!columns.includes(meta.path_in_schema[0]!)) continue;
    const path = getTreePath(tree, meta.path_in_schema);
    const about: Column = {
      ...{ rows, isFlat: isFlatColumn(path), isBoolean: meta.type === 'BOOLEAN' },
      ...{ repetition: getMaxRepetitionLevel(path), definition: getMaxDefinitionLevel(path) },
    };
    const start = Number(meta.dictionary_page_offset || meta.data_page_offset);
    const bytes = new Uint8Array(await file.slice(start, start + Number(meta.total_compressed_size)));
    const pages = pagesOf(bytes, about);
    for (const page of pages) memory += 24 * page.values + page.bytes;
    const decompress = meta.codec === 'UNCOMPRESSED' ? (input: Uint8Array) => input : compressors[meta.codec];
    if (!decompress) throw new Error(`the codec ${meta.codec} is not known`);
    let next = 0;
    const look = (input: Uint8Array, length: number) => {
      if (meta.codec === 'ZSTD') requireZstd(input, length);
      const output = decompress(input, length);
      if (output.length === length) pages[next++]?.require(output);
      return output;
    };
    // What a column has goes before what is given for all.
    const own = { codec: 'LOOK' as typeof meta.codec, compressors: { LOOK: look } };
    checked.push({ ...column, meta_data: { ...meta, ...own } });
  }
  if (!(memory <= getHeapStatistics().heap_size_limit)) {
    const size = (memory / 2 ** 30).toFixed(1);
    throw new Error(`they take ${size} GiB at once, more than Node has: write smaller row groups`);
  }
  return { ...group, columns: checked };
}

/** The pages of a column that will be decompressed, in their order. */
function pagesOf(bytes: Uint8Array, column: Column): Page[] {
  const pages: Page[] = [];
  let values = 0;
  for (let at = 0; at < bytes.length - 1 && (!column.isFlat || values < column.rows); ) {
    const { struct, end } = readStruct(bytes, at);
    const [kind, uncompressed, compressed] = [number(struct[1]), number(struct[2]), number(struct[3])];
    at = end + compressed;
    if (!(compressed >= 0 && uncompressed >= 0 && at <= bytes.length))
      throw damaged('a page is longer than its column');
    const head = struct[{ [DATA_PAGE]: 5, [DICTIONARY_PAGE]: 7, [DATA_PAGE_V2]: 8 }[kind] ?? 0] as Struct | undefined;
    const count = number(head?.[1]);
    if (!head || !(count >= 0)) throw damaged('a page has no description');
    if (kind === DICTIONARY_PAGE) {
      if (count > 8 * uncompressed) throw damaged('a dictionary has more values than bits');
      pages.push({ values: count, encoding: 0, bytes: uncompressed, require: () => {} });
      continue;
    }
    values += count;
    if (kind === DATA_PAGE) {
      const encoding = number(head[2]);
      const require = (page: Uint8Array) => {
        const { at, present } = requireLevels(page, count, column);
        requireValues(page, at, present, encoding, column);
      };
      pages.push({ values: count, encoding, bytes: uncompressed, require });
      continue;
    }
    const [nulls, encoding] = [number(head[2]), number(head[4])];
    const [definition, repetition] = [number(head[5]), number(head[6])];
    const body = bytes.subarray(end, at);
    const levels = definition + repetition;
    if (!(definition >= 0 && repetition >= 0 && levels <= Math.min(body.length, uncompressed) && nulls <= count)) {
      throw damaged('the levels of a page are longer than it');
    }
    if (column.repetition > 0) walkRuns(body.subarray(0, repetition), 0, width(column.repetition), count);
    if (column.definition > 0) walkRuns(body.subarray(repetition, levels), 0, width(column.definition), count);
    const require = (page: Uint8Array) => requireValues(page, 0, count - nulls, encoding, column);
    if (head[7] === false) require(body.subarray(levels));
    else pages.push({ values: count, encoding, bytes: uncompressed - levels, require });
  }
  if (column.isFlat && values !== column.rows) throw damaged(`a column has ${values} values for ${column.rows} rows`);
  return pages;
}

/** Of a page's `count` values: how many there are behind its levels, and where they begin. */
function requireLevels(page: Uint8Array, count: number, column: Column): { at: number; present: number } {
  let at = 0;
  let present = count;
  for (const highest of [column.repetition, column.definition]) {
    if (highest === 0) continue;
    if (at + 4 > page.length) throw damaged('a page is shorter than its levels');
    const length = new DataView(page.buffer, page.byteOffset, page.byteLength).getUint32(at, true);
    at += 4;
    if (length > page.length - at) throw damaged('a page is shorter than its levels');
    present = 0;
    walkRuns(page.subarray(at, at + length), 0, width(highest), count, (level, times) => {
      if (level === highest) present += times;
    });
    at += length;
  }
  return { at, present: column.definition > 0 ? present : count };
}

function requireValues(page: Uint8Array, at: number, count: number, encoding: number, column: Column): void {
  if (encoding === PLAIN_DICTIONARY || encoding === RLE_DICTIONARY) {
    if (count > 0 && !(page[at]! <= 32)) throw damaged('the numbers of a page are too wide');
    if (count > 0) walkRuns(page, at + 1, page[at]!, count);
  } else if (encoding === RLE && column.isBoolean) walkRuns(page, at + 4, 1, count);
  else if (encoding === DELTA_LENGTHS || encoding === DELTA_BYTES) {
    const reader = { view: new DataView(page.buffer, page.byteOffset, page.byteLength), offset: at };
    let total = 0;
    for (let part = DELTA_LENGTHS; part <= encoding; part++) {
      const lengths = new Int32Array(count);
      deltaBinaryUnpack(reader, count, lengths);
      for (const length of lengths) total += length >= 0 ? length : Number.NaN;
    }
    if (!(total <= MOST_TEXT)) throw damaged('the texts of a page are too long');
  }
}

/**
 * Goes over numbers of `width` bits in runs (https://parquet.apache.org/docs/file-format/data-pages/encodings), `count` of
 * them, and tells `each` of them; throws where a run is longer than what is left.
 */
function walkRuns(
  bytes: Uint8Array,
  start: number,
  width: number,
  count: number,
  each?: (value: number, times: number) => void,
): void {
  let at = start;
  for (let seen = 0; seen < count; ) {
    let head = 0;
    for (let shift = 0; ; shift += 7) {
      if (at >= bytes.length || shift > 28) throw damaged('the runs of a page lead beyond it');
      const next = bytes[at++]!;
      head += (next & 0x7f) * 2 ** shift;
      if (next < 0x80) break;
    }
    const isPacked = head % 2 === 1;
    // Packed ones come in eights.
    const times = isPacked ? 4 * (head - 1) : head / 2;
    if (times > count - seen + (isPacked ? 7 : 0)) throw damaged('a run of a page is longer than its values');
    if (isPacked) {
      for (let i = 0; each && i < Math.min(times, count - seen); i++) each(bitsAt(bytes, at, i * width, width), 1);
      at += (times / 8) * width;
    } else {
      each?.(bitsAt(bytes, at, 0, width), times);
      at += Math.ceil(width / 8);
    }
    seen += times;
  }
}

/** The few bits that a level has, the lowest first. */
function bitsAt(bytes: Uint8Array, at: number, bit: number, width: number): number {
  let value = 0;
  for (let i = 0; i < width; i++) value |= ((bytes[at + ((bit + i) >> 3)]! >> ((bit + i) & 7)) & 1) << i;
  return value;
}

const width = (highest: number): number => 32 - Math.clz32(highest);

/**
 * Throws where a frame of Zstandard (RFC 8878, 3.1.1.1) says that it holds more or less than the page: the package makes
 * room for what it says, and without a word for whatever comes.
 */
function requireZstd(frame: Uint8Array, length: number): void {
  const descriptor = frame[4] ?? 0;
  const isSingle = (descriptor & 0x20) !== 0;
  const sizeBytes = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  if (sizeBytes === 0) return;
  const at = 5 + (isSingle ? 0 : 1) + [0, 1, 2, 4][descriptor & 3]!;
  let size = sizeBytes === 2 ? 256 : 0;
  for (let i = 0; i < sizeBytes; i++) size += (frame[at + i] ?? 0) * 2 ** (8 * i);
  if (size !== length) throw damaged('a compressed page is not as long as it says');
}
