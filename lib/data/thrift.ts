/**
 * Structs of Thrift's compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md),
 * in which Parquet describes itself: read here first, since the package that decodes them believes whatever length it reads.
 */

/** What a struct has by the ids of its fields: numbers (of 64 bits rounded) and structs; the rest is passed over. */
export interface Struct {
  [id: number]: number | boolean | Struct | undefined;
}

const [TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, STRUCT] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12];
const DEEPEST = 32;

/** The struct that begins at `start`, and where it ends; throws where it leads beyond `bytes`. */
export function readStruct(bytes: Uint8Array, start: number): { struct: Struct; end: number } {
  let at = start;
  const refuse = (): never => {
    throw new Error('its description leads beyond its bytes');
  };
  const byte = () => (at < bytes.length ? bytes[at++]! : refuse());
  const skip = (length: number) => {
    if (length > bytes.length - at) refuse();
    at += length;
  };
  function varint(): number {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const next = byte();
      value += (next & 0x7f) * 2 ** shift;
      if (next < 0x80) return value;
    }
    return refuse();
  }
  function zigzag(): number {
    const value = varint();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }

  function element(type: number, depth: number): Struct[number] {
    if (type === TRUE || type === FALSE) return type === TRUE;
    if (type === BYTE) return byte();
    if (type === I16 || type === I32 || type === I64) return zigzag();
    if (type === STRUCT) return fields(depth + 1);
    if (type === DOUBLE) skip(8);
    else if (type === BINARY) skip(varint());
    else if (type === LIST) list(depth + 1);
    else refuse();
    return undefined;
  }
  function list(depth: number): void {
    if (depth > DEEPEST) refuse();
    const head = byte();
    const count = head >> 4 === 15 ? varint() : head >> 4;
    const type = head & 15;
    // Each takes a byte at least.
    if (count > bytes.length - at) refuse();
    for (let i = 0; i < count; i++) element(type === TRUE || type === FALSE ? BYTE! : type, depth);
  }
  function fields(depth: number): Struct {
    if (depth > DEEPEST) refuse();
    const struct: Struct = {};
    for (let id = 0; ; ) {
      const head = byte();
      if (head === 0) return struct;
      id = head >> 4 === 0 ? zigzag() : id + (head >> 4);
      struct[id] = element(head & 15, depth);
    }
  }
  const struct = fields(0);
  return { struct, end: at };
}
