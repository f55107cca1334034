/** The lines of a store's files, as bytes: most of what is done with rows needs no parsing. */
import { closeSync, openSync, readSync } from 'node:fs';

const CHUNK = 1 << 20;

export interface Line {
  /** With the line end, unless the file ends without one. */
  line: Buffer;
  offset: number;
}

/** The lines of a file, a piece of it in memory at a time. */
export function* linesOf(path: string): Generator<Line> {
  const handle = openSync(path, 'r');
  try {
    let rest = Buffer.alloc(0);
    let offset = 0;
    for (;;) {
      const chunk = Buffer.allocUnsafe(CHUNK);
      const count = readSync(handle, chunk, 0, CHUNK, null);
      if (count === 0) break;
      const bytes = rest.length > 0 ? Buffer.concat([rest, chunk.subarray(0, count)]) : chunk.subarray(0, count);
      let start = 0;
      for (let end = bytes.indexOf(10); end !== -1; end = bytes.indexOf(10, start)) {
        yield { line: bytes.subarray(start, end + 1), offset: offset + start };
        start = end + 1;
      }
      rest = bytes.subarray(start);
      offset += start;
    }
    if (rest.length > 0) yield { line: rest, offset };
  } finally {
    closeSync(handle);
  }
}

// Every row is written by append() and begins with its prompt's id: finding its place takes no parsing of its texts.
const HEAD = Buffer.from('{"prompt_id":"');

/** Whether it is the line of a row, all of it. */
export const isWhole = (line: Buffer): boolean =>
  line.length > HEAD.length + 2 &&
  line.subarray(0, HEAD.length).equals(HEAD) &&
  line[line.length - 2] === 125 &&
  line[line.length - 1] === 10;

/** The prompt that a row's line is of. */
export function idOf(line: Buffer): string {
  const end = line.indexOf(34, HEAD.length);
  const id = line.toString('utf8', HEAD.length, end);
  // An id with a quote or a backslash in it is spelt with escapes.
  return id.includes('\\') ? JSON.parse(`${line}`).prompt_id : id;
}
