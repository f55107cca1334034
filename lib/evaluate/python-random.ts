/**
 * CPython's `random.Random`, for the draws that public evaluation tools make with it: the Mersenne Twister MT19937 of
 * Matsumoto and Nishimura (1998), seeded as CPython does.
 */
import { createHash } from 'node:crypto';

const N = 624;
const M = 397;

export class PythonRandom {
  readonly #state = new Uint32Array(N);
  #index = N;

  /** `Random(seed)` of a text (seeding version 2) or of a whole number from 0 to 2^53 - 1. */
  constructor(seed: string | number) {
    this.#seed(typeof seed === 'string' ? keyOfText(seed) : keyOfNumber(seed));
  }

  /** The next 32 bits. */
  #next(): number {
    if (this.#index === N) this.#twist();
    let y = this.#state[this.#index++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** In [0, 1), of 53 bits. */
  random(): number {
    const high = this.#next() >>> 5;
    const low = this.#next() >>> 6;
    return (high * 2 ** 26 + low) / 2 ** 53;
  }

  /** A whole number below `bound`, at most 2^32, as `_randbelow` draws it. */
  below(bound: number): number {
    const bits = 32 - Math.clz32(bound);
    for (;;) {
      const value = this.#next() >>> (32 - bits);
      if (value < bound) return value;
    }
  }

  /** `count` different items, as `sample` draws them. */
  sample<T>(items: readonly T[], count: number): T[] {
    const { length } = items;
    if (count > length) throw new RangeError(`cannot sample ${count} of ${length}`);
    let setSize = 21;
    if (count > 5) setSize += 4 ** Math.ceil(Math.log(count * 3) / Math.log(4));
    if (length <= setSize) {
      const pool = [...items];
      return Array.from({ length: count }, (_, i) => {
        const j = this.below(length - i);
        const drawn = pool[j]!;
        pool[j] = pool[length - i - 1]!;
        return drawn;
      });
    }
    const taken = new Set<number>();
    return Array.from({ length: count }, () => {
      let j = this.below(length);
      while (taken.has(j)) j = this.below(length);
      taken.add(j);
      return items[j]!;
    });
  }

  /** `init_by_array` of the reference implementation. */
  #seed(key: Uint32Array): void {
    const state = this.#state;
    state[0] = 19650218;
    for (let i = 1; i < N; i++) state[i] = Math.imul(1812433253, state[i - 1]! ^ (state[i - 1]! >>> 30)) + i;
    let i = 1;
    let j = 0;
    const mixed = (factor: number) => state[i]! ^ Math.imul(state[i - 1]! ^ (state[i - 1]! >>> 30), factor);
    const advance = () => {
      if (++i < N) return;
      state[0] = state[N - 1]!;
      i = 1;
    };
    for (let k = Math.max(N, key.length); k > 0; k--) {
      state[i] = mixed(1664525) + key[j]! + j;
      advance();
      j = (j + 1) % key.length;
    }
    for (let k = N - 1; k > 0; k--) {
      state[i] = mixed(1566083941) - i;
      advance();
    }
    state[0] = 0x80000000;
  }

  #twist(): void {
    const state = this.#state;
    for (let k = 0; k < N; k++) {
      const y = (state[k]! & 0x80000000) | (state[(k + 1) % N]! & 0x7fffffff);
      state[k] = state[(k + M) % N]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.#index = 0;
  }
}

/** The 32-bit words, lowest first, of the number that the text's UTF-8 bytes and their SHA-512 spell, highest first. */
function keyOfText(text: string): Uint32Array {
  const bytes = Buffer.from(text);
  const all = Buffer.concat([bytes, createHash('sha512').update(bytes).digest()]);
  const padded = Buffer.concat([Buffer.alloc((4 - (all.length % 4)) % 4), all]);
  const words = Uint32Array.from({ length: padded.length / 4 }, (_, i) =>
    padded.readUInt32BE(padded.length - 4 * (i + 1)),
  );
  return trimmed(words);
}

const keyOfNumber = (seed: number): Uint32Array => trimmed(Uint32Array.of(seed % 2 ** 32, Math.floor(seed / 2 ** 32)));

/** Without leading zeros, but for the last. */
function trimmed(words: Uint32Array): Uint32Array {
  let { length } = words;
  while (length > 1 && words[length - 1] === 0) length--;
  return words.subarray(0, length);
}
