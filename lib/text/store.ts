/** Token ids of many rows, held small: 60,000 quadruples are some 90 million ids. */
import type { Role } from '../data/preferences.js';

/** A row as token ids: the prompt up to where the answer begins, and what follows it in each response. */
export interface EncodedRow {
  where: string;
  prompt: Int32Array;
  responses: Partial<Record<Role, Int32Array>>;
}

/** Ids side by side: the lower 16 bits of each and, apart from them, those above, as many as the vocabulary needs. */
class Slab {
  readonly #low: Uint16Array;
  readonly #high: Uint8Array;
  /** 0, 1, 2, 4 or 8, so that none cross a byte. */
  readonly #width: number;

  constructor(
    readonly length: number,
    vocabSize: number,
  ) {
    this.#width = [0, 1, 2, 4, 8].find((width) => vocabSize <= 2 ** (16 + width))!;
    this.#low = new Uint16Array(length);
    this.#high = new Uint8Array(Math.ceil((length * this.#width) / 8));
  }

  write(ids: readonly number[], start: number): void {
    const width = this.#width;
    for (let i = 0; i < ids.length; i++) {
      const bit = (start + i) * width;
      this.#low[start + i] = ids[i]!;
      if (width > 0) this.#high[bit >> 3]! |= (ids[i]! >> 16) << (bit & 7);
    }
  }

  read(start: number, length: number): Int32Array {
    const width = this.#width;
    const mask = 2 ** width - 1;
    const ids = new Int32Array(length);
    for (let i = 0; i < length; i++) {
      const bit = (start + i) * width;
      ids[i] = this.#low[start + i]! | (width > 0 ? ((this.#high[bit >> 3]! >> (bit & 7)) & mask) << 16 : 0);
    }
    return ids;
  }
}

// Of ids: small for a few rows, then twice the last one up to a size at which slabs are few.
const SLABS = { least: 2 ** 12, most: 2 ** 20 };

/** Takes rows in, some two bytes an id, and shows them as ordinary rows. */
export class RowStore {
  readonly rows: EncodedRow[] = [];
  /** Of all rows together. */
  tokens = 0;
  #slab: Slab;
  #filled = 0;

  /** `vocabSize` is at most 2^24. */
  constructor(
    readonly roles: readonly Role[],
    readonly vocabSize: number,
  ) {
    this.#slab = new Slab(0, vocabSize);
  }

  /** Responses in the order of `roles`; every id must be below `vocabSize`. */
  add(where: string, prompt: readonly number[], responses: readonly (readonly number[])[]): void {
    const parts = [prompt, ...responses];
    const lengths = parts.map(({ length }) => length);
    const count = lengths.reduce((sum, length) => sum + length);
    if (this.#filled + count > this.#slab.length) {
      const usual = Math.min(SLABS.most, Math.max(SLABS.least, 2 * this.#slab.length));
      this.#slab = new Slab(Math.max(usual, count), this.vocabSize);
      this.#filled = 0;
    }
    const row = new StoredRow(where, this.roles, this.#slab, this.#filled, lengths);
    for (const part of parts) {
      this.#slab.write(part, this.#filled);
      this.#filled += part.length;
    }
    this.rows.push(row as unknown as EncodedRow);
    this.tokens += count;
  }
}

class StoredRow {
  readonly #roles: readonly Role[];
  readonly #slab: Slab;
  readonly #start: number;
  readonly #lengths: readonly number[];

  constructor(
    readonly where: string,
    roles: readonly Role[],
    slab: Slab,
    start: number,
    lengths: readonly number[],
  ) {
    this.#roles = roles;
    this.#slab = slab;
    this.#start = start;
    this.#lengths = lengths;
    // Its own rather than its class's, so that a row can be compared, spread and written down like any object.
    Object.defineProperties(this, StoredRow.#properties);
  }

  // Copies, made when they are asked for.
  static readonly #properties: PropertyDescriptorMap & ThisType<StoredRow> = {
    prompt: {
      enumerable: true,
      get() {
        return this.#read(0);
      },
    },
    responses: {
      enumerable: true,
      get() {
        const responses: EncodedRow['responses'] = {};
        for (const [k, role] of this.#roles.entries()) responses[role] = this.#read(1 + k);
        return responses;
      },
    },
  };

  #read(part: number): Int32Array {
    let start = this.#start;
    for (let i = 0; i < part; i++) start += this.#lengths[i]!;
    return this.#slab.read(start, this.#lengths[part]!);
  }
}
