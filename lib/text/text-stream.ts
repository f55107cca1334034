/** The text of a sample while its tokens come, and where a stop string ends it. */
import type { Tokenizer } from './tokenizer.js';

export class TextStream {
  readonly #ids: number[] = [];
  /** Tokens before `#read` are told; those from `#from` on decide how the next ones are written. */
  #from = 0;
  #read = 0;
  /** What may be the beginning of a stop string. */
  #held = '';
  #text = '';
  #stopped = false;

  constructor(
    readonly tokenizer: Tokenizer,
    readonly stop: readonly string[] = [],
  ) {}

  /** Without special tokens and what follows a stop string, which is left out itself. */
  get text(): string {
    return this.#text;
  }

  /** Whether a stop string came. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** Takes a token; returns what can be told now: whole characters that are no beginning of a stop string. */
  async push(id: number): Promise<string> {
    this.#ids.push(id);
    const written = await this.#written();
    // Half a character: its other bytes come with the next tokens.
    if (written.endsWith('\ufffd')) return '';
    this.#from = this.#read;
    this.#read = this.#ids.length;
    return this.#tell(written, false);
  }

  /** What was held back, when no further token comes. */
  async end(): Promise<string> {
    return this.#stopped ? '' : this.#tell(await this.#written(), true);
  }

  /** What the tokens from `#read` on add to the text. */
  async #written(): Promise<string> {
    const decode = (ids: number[]) => this.tokenizer.decode(ids, { skipSpecialTokens: true });
    const before = await decode(this.#ids.slice(this.#from, this.#read));
    return (await decode(this.#ids.slice(this.#from))).slice(before.length);
  }

  #tell(written: string, isEnd: boolean): string {
    const text = this.#held + written;
    const ends = this.stop.map((stop) => text.indexOf(stop)).filter((at) => at !== -1);
    this.#stopped = ends.length > 0;
    const length = this.#stopped ? Math.min(...ends) : isEnd ? text.length : text.length - this.#beginning(text);
    this.#held = text.slice(length);
    const told = text.slice(0, length);
    this.#text += told;
    return told;
  }

  /** The length of the longest end of a text that is the beginning of a stop string. */
  #beginning(text: string): number {
    const longest = Math.max(0, ...this.stop.map((stop) => stop.length - 1));
    for (let length = Math.min(longest, text.length); length > 0; length--) {
      const end = text.slice(text.length - length);
      if (this.stop.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }
}
