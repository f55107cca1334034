/** The messages of an Arrow file, each looked at before the package decodes it: it believes whatever length it reads. */
import type { FileHandle } from 'node:fs/promises';
import type { DataType, Message, Schema } from 'apache-arrow';
import { requireFlatBuffer, type Tables } from './flatbuffers.js';
import { fault } from './rows.js';

/** Format: https://github.com/apache/arrow/tree/main/format (Message.fbs and Schema.fbs). */
const TABLES: Tables = {
  Message: ['number', 'number', { oneOf: (kind) => MESSAGES[kind] }, 'number', { list: 'KeyValue' }],
  KeyValue: ['string', 'string'],
  Schema: ['number', { list: 'Field' }, { list: 'KeyValue' }, { list: 8 }],
  Field: [
    ...(['string', 'number', 'number', { oneOf: (kind: number) => TYPES[kind] ?? 'Type' }] as const),
    ...([{ table: 'DictionaryEncoding' }, { list: 'Field' }, { list: 'KeyValue' }] as const),
  ],
  Type: [],
  Timestamp: ['number', 'string'],
  Union: ['number', { list: 4 }],
  DictionaryEncoding: ['number', { table: 'Type' }],
  DictionaryBatch: ['number', { table: 'RecordBatch' }],
  RecordBatch: ['number', { list: 16 }, { list: 16 }, { table: 'Type' }, { list: 8 }],
};
const MESSAGES: Record<number, string> = { 1: 'Schema', 2: 'DictionaryBatch', 3: 'RecordBatch' };
/** Those types whose description leads further. */
const TYPES: Record<number, string> = { 10: 'Timestamp', 14: 'Union' };

/** A file's messages as a stream of bytes has them, without its end: a description, then the body that it is of. */
export async function* readMessages(
  handle: FileHandle,
  path: string,
  arrow: typeof import('apache-arrow'),
): AsyncGenerator<Uint8Array> {
  const { size } = await handle.stat();
  const read = async (position: number, length: number) => {
    if (!(length >= 0 && position >= 0 && position + length <= size)) throw fault(path, 'the file is cut short');
    const bytes = new Uint8Array(length);
    const { bytesRead } = await handle.read(bytes, 0, length, position);
    if (bytesRead < length) throw fault(path, 'the file is cut short');
    return bytes;
  };
  const int32 = async (position: number) => new DataView((await read(position, 4)).buffer).getInt32(0, true);

  let position = 0;
  let end = size;
  const isFile = size >= 18 && Buffer.from(await read(0, 6)).toString('latin1') === 'ARROW1';
  if (isFile) {
    // A stream between its name and a table of its parts, which reading from the front does not need.
    if (Buffer.from(await read(size - 6, 6)).toString('latin1') !== 'ARROW1')
      throw fault(path, 'the file is cut short');
    position = 8;
    end = size - 10 - (await int32(size - 10));
    if (!(end >= position && end <= size - 10)) throw fault(path, 'the file is cut short');
  } else if (size < 8 || (await int32(0)) !== -1) throw fault(path, 'not an Arrow file');

  let schema: Schema | undefined;
  for (;;) {
    if (position === end && isFile) return;
    let length = await int32(position);
    position += 4;
    // Files of before 2019 lack the mark.
    if (length === -1) {
      length = await int32(position);
      position += 4;
    }
    if (length === 0) break;
    if (length < 0 || position + length > end) throw fault(path, 'the file is cut short');
    const description = await read(position, length);
    requireFlatBuffer(description, 'Message', TABLES);
    const message = arrow.Message.decode(description);
    if (message.isSchema() !== (schema === undefined)) throw new Error('its first message alone must be its schema');
    if (message.isSchema()) schema = message.header() as unknown as Schema;
    else requireFit(message, schema!);
    position += length;
    if (!(position + message.bodyLength <= end)) throw fault(path, 'the file is cut short');
    yield prefixed(description);
    if (message.bodyLength > 0) yield await read(position, message.bodyLength);
    position += message.bodyLength;
  }
  // What ends it earlier is a length that was damaged; before the table there may be padding.
  if (position > end || end - position >= (isFile ? 64 : 1)) throw fault(path, 'the file ends before its bytes do');
}

function prefixed(description: Uint8Array): Uint8Array {
  const bytes = Buffer.alloc(8 + description.length);
  bytes.writeInt32LE(-1);
  bytes.writeInt32LE(description.length, 4);
  bytes.set(description, 8);
  return bytes;
}

interface Batch {
  length: number;
  nodes: { length: number; nullCount: number }[];
  buffers: { offset: number; length: number }[];
  compression: unknown;
}

/** Throws unless a batch is one of this schema and its columns lie in its body. */
function requireFit(message: Message, schema: Schema): void {
  const header = message.header() as unknown as Batch & { id: number; data: Batch };
  const isDictionary = message.isDictionaryBatch();
  const { length, nodes, buffers, compression } = isDictionary ? header.data : header;
  const types = isDictionary ? [schema.dictionaries.get(header.id)] : schema.fields.map(({ type }) => type);
  if (compression) throw new Error('its batches are compressed: write it uncompressed');
  let fits = types.every((type) => type !== undefined) && message.bodyLength >= 0;
  // A row takes a bit of its column at least.
  const most = 8 * message.bodyLength;
  for (const node of nodes) fits &&= node.length >= 0 && node.length <= most && node.nullCount <= node.length;
  for (const { offset, length } of buffers) {
    fits &&= offset >= 0 && length >= 0 && offset + length <= message.bodyLength;
  }
  let first = 0;
  for (const type of types as DataType[]) {
    if (!fits) break;
    fits = nodes[first]?.length === length;
    first += nodesOf(type);
  }
  if (!fits || first !== nodes.length) throw new Error('the lengths of a batch do not fit its schema or its bytes');
}

/** A column's own node and those of its children; those of a dictionary's values are in the dictionary's batch. */
function nodesOf(type: DataType): number {
  const children = type.typeId === -1 ? [] : (type.children ?? []);
  return children.reduce((sum, field) => sum + nodesOf(field.type), 1);
}
