import { type FileHandle, open } from 'node:fs/promises';
import type { Data } from 'apache-arrow';
import { type ChooseColumns, fault, type RawRow, readFault, textOf } from './rows.js';

/** The rows of an Arrow file, of either IPC format (what `datasets` writes is a stream), one batch in memory at a time. */
export async function* readArrow(path: string, name: string, choose: ChooseColumns): AsyncGenerator<RawRow> {
  // Imported at the first use: it takes longer than reading most files.
  const arrow = await import('apache-arrow');
  const handle = await open(path).catch((cause) => {
    throw readFault(path, cause);
  });
  try {
    await requireWhole(handle, path);
    const reader = await arrow.RecordBatchReader.from(await bounded(handle));
    await reader.open();
    const all = reader.schema.fields.map(({ name }) => name);
    const blank = Object.fromEntries(all.map((name) => [name, undefined]));
    const columns = choose(all, path).map((name) => ({ name, index: all.indexOf(name) }));
    let number = 0;
    for await (const batch of reader) {
      const cells = columns.map(({ name, index }) => ({ name, cell: cellsOf(batch.data.children[index]!, arrow) }));
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

/** Throws unless the file ends as it should: to the reader, a stream cut between two batches is only a shorter one. */
async function requireWhole(handle: FileHandle, path: string): Promise<void> {
  const { size } = await handle.stat();
  const at = async (position: number) => (await handle.read(Buffer.alloc(8), 0, 8, Math.max(0, position))).buffer;
  const [head, tail] = [await at(0), await at(size - 8)];
  const [first, last] = [head.toString('latin1', 0, 6), tail.toString('latin1', 2)];
  const isStream = head.readInt32LE() === -1;
  if (first !== 'ARROW1' && !isStream) throw fault(path, 'not an Arrow file');
  const whole = isStream ? tail.readInt32LE() === -1 && tail.readInt32LE(4) === 0 : last === 'ARROW1';
  if (!whole) throw fault(path, 'the file is cut short');
}

/** The file as the package may read it: a length that leads backwards would have it read the same for ever. */
async function bounded(handle: FileHandle): Promise<FileHandle> {
  const { size } = await handle.stat();
  let left = 2 * size + 4096;
  const read = async (buffer: Uint8Array, offset: number, length: number, position: number) => {
    left -= length;
    if (left < 0) throw new Error('its lengths lead backwards');
    return handle.read(buffer, offset, length, position);
  };
  return { fd: handle.fd, stat: () => handle.stat(), read, close: async () => {} } as unknown as FileHandle;
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
    return (row) => range(Number(offsets[row]), Number(offsets[row + 1]), child!.length, cell);
  }
  if (DataType.isFixedSizeList(type)) {
    const [child] = children;
    const cell = cellsOf(child!, arrow);
    return (row) => range(row * type.listSize, (row + 1) * type.listSize, child!.length, cell);
  }
  const vector = new Vector([data]);
  return (row) => vector.get(row);
}

/** The cells of a list; `length` is how many there are in all. */
function range(from: number, to: number, length: number, cell: Cells): unknown[] {
  if (!(from >= 0 && to >= from && to <= length)) throw new Error('a list leads beyond its values');
  return Array.from({ length: to - from }, (_, i) => cell(from + i));
}
