/**
 * Whether all that a FlatBuffer refers to lies in its bytes (https://flatbuffers.dev/internals). The package that decodes
 * them follows any offset and believes any count.
 */

/** What a field of a table leads to; a number in place leads nowhere. */
export type Slot =
  | 'number'
  | 'string'
  | { table: string }
  /** Elements of so many bytes each, or tables. */
  | { list: number | string }
  /** A table whose name the number in the field before decides; undefined where there is none of that number. */
  | { oneOf: (choice: number) => string | undefined };

/** The fields of each table in their order. */
export type Tables = Record<string, readonly Slot[]>;

const DEEPEST = 128;
// Objects may be shared, which no writer of tables does much: what was seen so many times over is one that multiplies.
const SHARED = 16;

/** Throws unless `bytes` is a `root` throughout. */
export function requireFlatBuffer(bytes: Uint8Array, root: string, tables: Tables): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let left = SHARED * bytes.length;

  /** Throws unless `size` bytes begin at `at`. */
  function claim(at: number, size: number): void {
    left -= size;
    if (!(at >= 0 && size >= 0 && at + size <= bytes.length && left >= 0)) {
      throw new Error('its description leads beyond its bytes');
    }
  }
  const int32 = (at: number): number => {
    claim(at, 4);
    return view.getInt32(at, true);
  };
  const uint16 = (at: number): number => {
    claim(at, 2);
    return view.getUint16(at, true);
  };

  function visitTable(at: number, name: string, depth: number): void {
    if (depth > DEEPEST) throw new Error('its description is nested too deeply');
    const offsets = at - int32(at);
    const count = (uint16(offsets) - 4) / 2;
    claim(at, uint16(offsets + 2));
    let previous = 0;
    for (const [i, slot] of tables[name]!.entries()) {
      const offset = i < count ? uint16(offsets + 4 + 2 * i) : 0;
      if (offset !== 0 && slot !== 'number') visitSlot(at + offset, slot, previous, depth + 1);
      if (offset === 0) previous = 0;
      else {
        claim(at + offset, 1);
        previous = view.getUint8(at + offset);
      }
    }
  }

  function visitSlot(at: number, slot: Exclude<Slot, 'number'>, choice: number, depth: number): void {
    const target = at + int32(at);
    if (slot === 'string') claim(target + 4, int32(target));
    else if ('table' in slot) visitTable(target, slot.table, depth);
    else if ('oneOf' in slot) {
      const name = slot.oneOf(choice);
      if (name === undefined) throw new Error(`its description has something of an unknown kind, ${choice}`);
      visitTable(target, name, depth);
    } else {
      const { list } = slot;
      const count = int32(target);
      claim(target + 4, count * (typeof list === 'number' ? list : 4));
      if (typeof list === 'number') return;
      for (let i = 0; i < count; i++) {
        const element = target + 4 + 4 * i;
        visitTable(element + int32(element), list, depth);
      }
    }
  }

  visitTable(int32(0), root, 0);
}
