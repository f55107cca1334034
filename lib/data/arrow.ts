import { open } from 'node:fs/promises';
import type { Data } from 'apache-arrow';
import { readMessages } from './arrow-messages.js';
import { type ChooseColumns, type RawRow, readFault, textOf } from './rows.js';

/** The rows of an Arrow file, of either IPC format (what `datasets` writes is a stream), one batch in memory at a time. */
export async function* readArrow(path: string, name: string, choose: ChooseColumns): AsyncGenerator<RawRow> {
  // Imported at the first use: it takes longer than reading most files.
  const arrow = await import('apache-arrow');
  const handle = await open(path).catch((cause) => {
    throw readFault(path, cause);
  });
  try {
    const reader = await arrow.RecordBatchReader.from(readMessages(handle, path, arrow));
    await reader.open();
    const all = reader.schema.fields.map(({ name }) => name);
    const blank = Object.fromEntries(all.map((name) => [name, undefined]));
    const columns = choose(all, path).map((name) => ({ name, index: all.indexOf(name) }));
    let number = 0;
    for await (const batch of reader) {
      const cells = columns.map(({ name, index }) => {
        const data = batch.data.children[index]!;
        requireSound(data, arrow);
        return { name, cell: cellsOf(data, arrow) };
      });
      for (let i = 0; i < batch.numRows; i++) {
        const value: Record<string, unknown> = { ...blank };
        for (const { name, cell } of cells) value[name] = cell(i);
        yield { value, where: `${name} row ${++number}` };
      }
    }
  } catch (cause) {
    throw readFault(path, cause);
  } finally {
    await handle.close();
  }
}

/** Throws unless a column's buffers hold as many values as it has: what is read beyond them is any number. */
function requireSound(data: Data, arrow: typeof import('apache-arrow')): void {
  const { DataType } = arrow;
  const { type, length, stride, nullCount, nullBitmap, values, valueOffsets: offsets, children } = data;
  const require = (holds: boolean) => {
    if (!holds) throw new Error('the lengths of a column do not fit its bytes');
  };
  if (DataType.isNull(type)) return;
  if (nullCount > 0) require(8 * nullBitmap.length >= length);
  if (DataType.isDictionary(type)) {
    const { dictionary } = data;
    require(values.length >= length);
    for (let i = 0; i < length; i++) {
      const index = Number(values[i]);
      if (data.getValid(i)) require(index >= 0 && index < dictionary!.length);
    }
    for (const part of dictionary!.data) requireSound(part, arrow);
  } else if (DataType.isUtf8View(type) || DataType.isBinaryView(type)) {
    requireViews(data, require);
  } else if (DataType.isUnion(type)) {
    require(data.typeIds.length >= length && (!offsets || offsets.length >= length));
    for (let i = 0; i < length; i++) {
      const child = children[type.typeIdToChildIndex[data.typeIds[i]!]!];
      const at = offsets ? offsets[i]! : i;
      require(child !== undefined && at >= 0 && at < child.length);
    }
  } else if (offsets) {
    // Of no values there may be no offsets.
    require(length === 0 || (offsets.length > length && offsets[0]! >= 0));
    for (let i = 0; i < length; i++) require(offsets[i]! <= offsets[i + 1]!);
    if (length > 0) require(offsets[length]! <= (children[0] ?? values).length);
  } else if (DataType.isFixedSizeList(type)) require(stride >= 0 && children[0]!.length >= length * stride);
  else if (DataType.isStruct(type)) require(children.every((child) => child.length >= length));
  else if (DataType.isBool(type)) require(8 * values.length >= length);
  else require(stride > 0 && values.length >= length * stride);
  for (const child of children) requireSound(child, arrow);
}

/** A view is its length and either up to 12 bytes or the number of a buffer and a place in it, as int32. */
function requireViews({ values, length, variadicBuffers }: Data, require: (holds: boolean) => void): void {
  require(values.byteLength >= 16 * length);
  const view = new DataView(values.buffer, values.byteOffset, values.byteLength);
  for (let at = 0; at < 16 * length; at += 16) {
    const size = view.getInt32(at, true);
    const from = view.getInt32(at + 12, true);
    const buffer = variadicBuffers[view.getInt32(at + 8, true)];
    require(size >= 0 && (size <= 12 || (from >= 0 && from + size <= (buffer?.length ?? 0))));
  }
}

type Cells = (row: number) => unknown;

/**
 * Reads the cells of a column as JSON would have them. The package's own accessors are views that are slow to walk, keep
 * 64-bit integers as BigInt and replace what is not UTF-8 silently.
 */
function cellsOf(data: Data, arrow: typeof import('apache-arrow')): Cells {
  const get = valuesOf(data, arrow);
  return (row) => (data.getValid(row) ? get(row) : null);
}

function valuesOf(data: Data, arrow: typeof import('apache-arrow')): Cells {
  const { DataType, Vector } = arrow;
  const { type, values, valueOffsets: offsets, children } = data;
  if (DataType.isNull(type)) return () => null;
  if (DataType.isInt(type)) return (row) => Number(values[row]);
  if (DataType.isUtf8(type) || DataType.isLargeUtf8(type)) {
    return (row) => textOf(values.subarray(Number(offsets[row]), Number(offsets[row + 1])));
  }
  if (DataType.isStruct(type)) {
    const fields = type.children.map(({ name }, i) => [name, cellsOf(children[i]!, arrow)] as const);
    return (row) => Object.fromEntries(fields.map(([name, cell]) => [name, cell(row)]));
  }
  if (DataType.isList(type) || DataType.isLargeList(type)) {
    const [child] = children;
    const cell = cellsOf(child!, arrow);
    return (row) => range(Number(offsets[row]), Number(offsets[row + 1]), cell);
  }
  if (DataType.isFixedSizeList(type)) {
    const [child] = children;
    const cell = cellsOf(child!, arrow);
    return (row) => range(row * type.listSize, (row + 1) * type.listSize, cell);
  }
  const vector = new Vector([data]);
  return (row) => vector.get(row);
}

/** The cells of a list. */
function range(from: number, to: number, cell: Cells): unknown[] {
  return Array.from({ length: to - from }, (_, i) => cell(from + i));
}
