import { open } from 'node:fs/promises';
import type { AsyncBuffer, FileMetaData } from 'hyparquet';
import { type ChooseColumns, fault, type RawRow, readFault, reasonOf, textOf } from './rows.js';

/** The rows of a Parquet file, one row group (which its writer chose: mostly 1,000 rows) in memory at a time. */
export async function* readParquet(path: string, name: string, choose: ChooseColumns): AsyncGenerator<RawRow> {
  // Imported at the first use: most runs read JSONL, or know their rows already.
  const { parquetMetadata, parquetReadObjects, parquetSchema } = await import('hyparquet');
  const { checkedGroup, footerOf } = await import('./parquet-pages.js');
  const { compressors } = await import('hyparquet-compressors');
  const handle = await open(path).catch((cause) => {
    throw readFault(path, cause);
  });
  try {
    const { size } = await handle.stat();
    const file: AsyncBuffer = {
      byteLength: size,
      async slice(start, end = size) {
        if (!(start >= 0 && end >= start && end <= size)) throw new Error('the file is cut short');
        const bytes = new Uint8Array(end - start);
        const { bytesRead } = await handle.read(bytes, 0, bytes.length, start);
        if (bytesRead < bytes.length) throw new Error('the file is cut short');
        return bytes.buffer;
      },
    };
    let metadata: FileMetaData;
    let all: string[];
    try {
      metadata = parquetMetadata(await footerOf(file), { geoparquet: false });
      all = parquetSchema(metadata).children.map(({ element }) => element.name);
    } catch (cause) {
      throw fault(path, 'not a Parquet file, or one that is cut short', cause);
    }
    // Whatever hyparquet's types say.
    if (metadata.schema.some(({ name }) => typeof name !== 'string')) {
      throw fault(path, 'cannot be read: it is damaged: a column has no name');
    }
    const blank = Object.fromEntries(all.map((name) => [name, undefined]));
    const columns = [...choose(all, path)];
    let rowStart = 0;
    for (const group of metadata.row_groups) {
      const rowEnd = rowStart + Number(group.num_rows);
      if (!(Number(group.num_rows) >= 0)) throw fault(path, 'cannot be read: it is damaged: a row group has no rows');
      const refuse = (cause: unknown): never => {
        throw fault(`${name} rows ${rowStart + 1} to ${rowEnd}`, `cannot be read: ${reasonOf(cause)}`, cause);
      };
      const checked = await checkedGroup(file, metadata, group, { columns, compressors }).catch(refuse);
      const only = { ...metadata, row_groups: [checked] };
      const rows = await parquetReadObjects({ file, metadata: only, columns, parsers: PARSERS }).catch(refuse);
      for (const [i, row] of rows.entries()) {
        // What is none is null: undefined is a value that should be there.
        if (columns.some((column) => row[column] === undefined)) refuse(new Error('it is damaged: a value is missing'));
        yield { value: { ...blank, ...plainFields(row) }, where: `${name} row ${rowStart + i + 1}` };
      }
      rowStart = rowEnd;
    }
  } finally {
    await handle.close();
  }
}

const PARSERS = { stringFromBytes: (bytes?: Uint8Array) => bytes && textOf(bytes) };

/** Integers of 64 bits as numbers, and typed arrays as arrays. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value);
  if (value instanceof Uint8Array || typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value) || ArrayBuffer.isView(value)) return Array.from(value as unknown[], plain);
  return plainFields(value);
}

const plainFields = (row: object): Record<string, unknown> =>
  Object.fromEntries(Object.entries(row).map(([key, value]) => [key, plain(value)]));
