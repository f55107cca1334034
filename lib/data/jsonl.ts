import { isUtf8 } from 'node:buffer';
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { pipeline } from 'node:stream';
import { createGunzip } from 'node:zlib';
import type { WrpoError } from '../errors.js';
import { fault, type OnFault, type RawRow, readFault, textOf } from './rows.js';

/**
 * The rows of a `.jsonl`, `.jsonl.gz` or `.json` file: one object a line, or in `.json` one array of objects. A line that
 * is no JSON goes to `onFault`.
 */
export async function* readJsonl(path: string, name: string, onFault: OnFault): AsyncGenerator<RawRow> {
  let number = 0;
  let blank = true;
  for await (const line of lines(path)) {
    const where = `${name} line ${++number}`;
    const text = textOf(line);
    if (typeof text !== 'string') {
      await onFault(fault(where, 'not valid UTF-8'));
      continue;
    }
    if (text.trim() === '') continue;
    if (blank && text.trimStart().startsWith('[') && /\.json$/i.test(path)) {
      yield* readArray(path, name);
      return;
    }
    blank = false;
    let value: unknown;
    try {
      value = parse(text, where, 'one JSON object on the line');
    } catch (error) {
      await onFault(error as WrpoError);
      continue;
    }
    yield { value, where };
  }
}

/** One array cannot be read in pieces: all of it is held in memory. */
async function* readArray(path: string, name: string): AsyncGenerator<RawRow> {
  const bytes = await readFile(path);
  if (!isUtf8(bytes)) throw fault(path, 'not valid UTF-8');
  const values = parse(bytes.toString().replace(/^\ufeff/, ''), path, 'one JSON array of objects') as unknown[];
  for (const [i, value] of values.entries()) yield { value, where: `${name} row ${i + 1}` };
}

function parse(text: string, where: string, expected: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw fault(where, `expected ${expected}, but ${(cause as Error).message}`, cause);
  }
}

// Not node:readline, which also splits at U+2028 and U+2029: both may stand inside a JSON string.
async function* lines(path: string): AsyncGenerator<Buffer> {
  const BOM = Buffer.from([0xef, 0xbb, 0xbf]);
  let open: Buffer[] = [];
  let first = true;
  const close = (end: Buffer): Buffer => {
    const line = open.length === 0 ? end : Buffer.concat([...open, end]);
    const skip = first && line.subarray(0, 3).equals(BOM) ? 3 : 0;
    open = [];
    first = false;
    return line.subarray(skip);
  };
  const file = createReadStream(path, { highWaterMark: 1 << 20 });
  const zipped = /\.gz$/i.test(path);
  // The callback does nothing: pipeline() is here because, unlike pipe(), it passes errors on and closes the file.
  const content = zipped ? pipeline(file, createGunzip(), () => {}) : file;
  try {
    for await (const chunk of content as AsyncIterable<Buffer>) {
      let start = 0;
      for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, start)) {
        yield close(chunk.subarray(start, end));
        start = end + 1;
      }
      if (start < chunk.length) open.push(chunk.subarray(start));
    }
  } catch (cause) {
    throw readFault(path, cause);
  }
  if (open.length > 0) yield close(Buffer.alloc(0));
}
