/** Token ids of many rows, held small: 60,000 quadruples are some 90 million ids. */
import type { Role } from '../data/preferences.js';

/** A row as token ids: the prompt up to where the answer begins, and what follows it in each response. */
export interface EncodedRow {
  where: string;
  prompt: Int32Array;
  responses: Partial<Record<Role, Int32Array>>;
}

/** Ids side by side: the lower 16 bits of each and, where the vocabulary needs them, 8 more. */
interface Slab {
  low: Uint16Array;
  high?: Uint8Array;
}

const SLAB = 2 ** 20;

/** Takes rows in, two or three bytes an id, and shows them as ordinary rows. */
export class RowStore {
  readonly rows: EncodedRow[] = [];
  /** Of all rows together. */
  tokens = 0;
  #slab: Slab = { low: new Uint16Array(0) };
  #filled = 0;

  constructor(
    readonly roles: readonly Role[],
    readonly vocabSize: number,
  ) {}

  /** Responses in the order of `roles`; every id must be below `vocabSize`. */
  add(where: string, prompt: readonly number[], responses: readonly (readonly number[])[]): void {
    const parts = [prompt, ...responses];
    const count = parts.reduce((sum, { length }) => sum + length, 0);
    if (this.#filled + count > this.#slab.low.length) {
      const length = Math.max(SLAB, count);
      this.#slab = {
        low: new Uint16Array(length),
        high: this.vocabSize > 2 ** 16 ? new Uint8Array(length) : undefined,
      };
      this.#filled = 0;
    }
    const { low, high } = this.#slab;
    let at = this.#filled;
    for (const part of parts) {
      for (const id of part) {
        low[at] = id;
        if (high) high[at] = id >>> 16;
        at++;
      }
    }
    const lengths = parts.map(({ length }) => length);
    this.rows.push(new StoredRow(where, this.roles, this.#slab, this.#filled, lengths) as unknown as EncodedRow);
    this.#filled = at;
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
    const length = this.#lengths[part]!;
    const { low, high } = this.#slab;
    const ids = new Int32Array(length);
    for (let i = 0; i < length; i++) ids[i] = high ? low[start + i]! | (high[start + i]! << 16) : low[start + i]!;
    return ids;
  }
}
