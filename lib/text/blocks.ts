/**
 * `packing_strategy: wrapped`: texts joined end to end in file order and cut into blocks of one length, as TRL 0.9's packing
 * does, but for its shuffling: it leaves out a remainder for every 7.5 million characters, this one at the end alone. A
 * block's tokens attend to all before them in the block, across the texts in it.
 */
export class Blocks {
  #ids: number[] = [];
  #first = '';

  /** `take` receives every whole block, with the rows it holds text of. */
  constructor(
    readonly length: number,
    readonly take: (ids: number[], where: string) => void,
  ) {}

  add(ids: readonly number[], where: string): void {
    let start = 0;
    while (start < ids.length) {
      if (this.#ids.length === 0) this.#first = where;
      const end = Math.min(ids.length, start + this.length - this.#ids.length);
      for (; start < end; start++) this.#ids.push(ids[start]!);
      if (this.#ids.length < this.length) return;
      this.take(this.#ids, this.#first === where ? where : `${this.#first} … ${where}`);
      this.#ids = [];
    }
  }

  /** Tokens behind the last whole block. */
  get leftOver(): number {
    return this.#ids.length;
  }
}
