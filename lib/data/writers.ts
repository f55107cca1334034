/** Rows written one after another to a file. */
import type { SchemaElement } from 'hyparquet';
import { hyparquetWriter } from '../packages.js';
import { PendingFile } from './files.js';

export interface RowWriter {
  write(row: object): void;
  /** Puts the file in its place, durably. */
  finish(): void;
  /** Leaves what was there before. */
  abandon(): void;
}

/** What a column of a Parquet file holds; everything may be null. */
export type ColumnType = 'string' | 'double' | { list: ColumnType } | { struct: Columns };
export type Columns = Readonly<Record<string, ColumnType>>;

const JSONL_BUFFER = 1 << 18;
const ROW_GROUP = 1000;

/** JSON lines. */
export function writeJsonl(path: string): RowWriter {
  const file = new PendingFile(path);
  let lines = '';
  const drain = () => {
    file.write(lines);
    lines = '';
  };
  return {
    write(row) {
      lines += `${JSON.stringify(row)}\n`;
      if (lines.length > JSONL_BUFFER) drain();
    },
    finish() {
      drain();
      file.finish();
    },
    abandon: () => file.abandon(),
  };
}

/** Parquet with a schema of its own for what is nested, a group of rows in memory at a time. */
export function writeParquet(path: string, columns: Columns): RowWriter {
  const { ByteWriter, ParquetWriter } = hyparquetWriter();
  const file = new PendingFile(path);
  const bytes = new ByteWriter();
  const schema = [{ name: 'root', num_children: Object.keys(columns).length }, ...elementsOf(columns)];
  const parquet = new ParquetWriter({ writer: bytes, schema, createdBy: 'wrpo' });
  let rows: Record<string, unknown>[] = [];
  const drain = () => {
    if (rows.length > 0) {
      const columnData = Object.keys(columns).map((name) => ({ name, data: rows.map((row) => row[name]) }));
      parquet.write({ columnData, rowGroupSize: ROW_GROUP });
    }
    rows = [];
    file.write(bytes.getBytes());
    bytes.index = 0;
  };
  return {
    write(row) {
      rows.push(row as Record<string, unknown>);
      if (rows.length >= ROW_GROUP) drain();
    },
    finish() {
      drain();
      parquet.finish();
      drain();
      file.finish();
    },
    abandon: () => file.abandon(),
  };
}

/** The columns, depth first, as Parquet's flat list of elements. */
function elementsOf(columns: Columns): SchemaElement[] {
  return Object.entries(columns).flatMap(([name, type]): SchemaElement[] => {
    const optional = { name, repetition_type: 'OPTIONAL' } as const;
    if (type === 'string') return [{ ...optional, type: 'BYTE_ARRAY', converted_type: 'UTF8' }];
    if (type === 'double') return [{ ...optional, type: 'DOUBLE' }];
    if ('struct' in type) {
      return [{ ...optional, num_children: Object.keys(type.struct).length }, ...elementsOf(type.struct)];
    }
    return [
      { ...optional, num_children: 1, converted_type: 'LIST' },
      { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
      ...elementsOf({ element: type.list }),
    ];
  });
}
