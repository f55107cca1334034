/** `template_mode: default`: where an answer begins in a rendered conversation, and which token ends it. */
import { type Content, type Message, type PreferenceRow, type Role, toMessages } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { RowIds } from './encode.js';
import type { Tokenizer } from './tokenizer.js';

/** A tokenizer and its chat template. */
export class Turns {
  readonly #blank = new Map<number, boolean>();
  /** Where in the tail the turn ends; -1 where no special token ends it. */
  readonly #end: number;
  /** The rows of which the tokenizer reads each response from the cut on only. */
  readonly #cut = new WeakSet<PreferenceRow>();

  private constructor(
    readonly tokenizer: Tokenizer,
    /** What the template writes behind an answer, up to the header of the next if it writes that too. */
    readonly tail: readonly number[],
    /** What the template ends every prompt with, from its last special token on, if a text may be cut behind that. */
    readonly header?: { separator: string; text: string; ids: readonly number[] },
  ) {
    this.#end = tail.findIndex((id) => tokenizer.isSpecial(id));
  }

  /** Learns the end of a turn from what the template writes after an answer. */
  static async of(tokenizer: Tokenizer): Promise<Turns> {
    const answer = 'answer';
    let text = '';
    try {
      text = tokenizer.applyChatTemplate([...toMessages('question'), { role: 'assistant', content: answer }]);
    } catch {
      // A template that refuses these turns will say so for the rows, or accept what they have.
    }
    const at = text.lastIndexOf(answer);
    const tail = at === -1 ? [] : await tokenizer.encode(text.slice(at + answer.length));
    return new Turns(tokenizer, tail, at === -1 ? undefined : await headerOf(tokenizer));
  }

  /** The prompt up to the answer, then the whole conversation with each response. */
  conversations({ prompt, responses }: PreferenceRow, roles: readonly Role[]): string[] {
    const turns = toMessages(prompt as string | Message[]);
    return [
      this.tokenizer.applyChatTemplate(turns, { addGenerationPrompt: true }),
      ...roles.map((role) => this.tokenizer.applyChatTemplate([...turns, toAnswer(responses[role]!)])),
    ];
  }

  /** What of them the tokenizer has to read: behind the prompt's last special token, where that can be told apart. */
  texts(row: PreferenceRow, roles: readonly Role[]): string[] {
    const [prompt, ...wholes] = this.conversations(row, roles);
    if (!this.header || !prompt!.endsWith(this.header.text)) return [prompt!, ...wholes];
    const cut = prompt!.length - this.header.text.length + this.header.separator.length;
    const before = prompt!.slice(0, cut);
    if (!wholes.every((whole) => whole.startsWith(before))) return [prompt!, ...wholes];
    this.#cut.add(row);
    return [prompt!, ...wholes.map((whole) => whole.slice(cut))];
  }

  /** The ids of `texts` as a prompt and what follows it in each conversation, ended once. */
  async split(row: PreferenceRow, roles: readonly Role[], [prompt, ...read]: number[][]): Promise<RowIds> {
    const responses: number[][] = [];
    const before = this.#cut.has(row) ? prompt!.slice(0, prompt!.length - this.header!.ids.length + 1) : [];
    for (const [k, role] of roles.entries()) {
      const whole = before.length > 0 ? before.concat(read[k]!) : read[k]!;
      const start = lengthOfPrompt(prompt!, whole, role, row.where);
      const end = await this.#endOf(whole, start);
      const response = end === -1 ? [...whole.slice(start), this.#eos()] : whole.slice(start, end);
      if (response.length === 1 && toAnswer(row.responses[role]!).content.trim() !== '') {
        throw new WrpoError('ERR_DATA', `${row.where}: the chat template writes nothing of "${role}"`);
      }
      responses.push(response);
    }
    return { prompt: prompt!, responses };
  }

  /**
   * Where the response that begins at `start` ends, with exactly one end of turn; -1 where the template writes none.
   * Templates write more behind it (a line end, a second special token, the header of the next answer), which no sampler
   * ever reaches.
   */
  async #endOf(whole: readonly number[], start: number): Promise<number> {
    let last = -1;
    let end = -1;
    for (let i = this.#withoutTail(whole) - 1; i >= start; i--) {
      const id = whole[i]!;
      if (this.tokenizer.isSpecial(id)) {
        if (last === -1) last = i + 1;
        if (id === this.tail[this.#end]) end = i + 1;
      } else if (!(this.#blank.get(id) ?? (await this.#isBlank(id)))) break;
    }
    return end === -1 ? last : end;
  }

  /** Where the turn ends, if what is behind it is what the template always writes there. */
  #withoutTail(whole: readonly number[]): number {
    const start = whole.length - this.tail.length;
    if (this.#end === -1 || this.tail.some((id, i) => id !== whole[start + i])) return whole.length;
    return start + this.#end + 1;
  }

  #eos(): number {
    const { eosTokenId } = this.tokenizer;
    if (eosTokenId !== undefined) return eosTokenId;
    throw new WrpoError(
      'ERR_MODEL',
      'the chat template ends an answer with no special token; expected "eos_token" in tokenizer_config.json to end it',
    );
  }

  async #isBlank(id: number): Promise<boolean> {
    const blank = (await this.tokenizer.decode([id])).trim() === '';
    this.#blank.set(id, blank);
    return blank;
  }
}

/** What ends a prompt, from its last special token on, if that separates texts. */
async function headerOf(tokenizer: Tokenizer): Promise<Turns['header']> {
  let prompt: string;
  try {
    prompt = tokenizer.applyChatTemplate(toMessages('question'), { addGenerationPrompt: true });
  } catch {
    return undefined;
  }
  const ids = await tokenizer.encode(prompt);
  const last = ids.lastIndexOf(ids.filter((id) => tokenizer.isSpecial(id)).at(-1) ?? -1);
  const separator = last === -1 ? undefined : tokenizer.separator(ids[last]!);
  if (separator === undefined) return undefined;
  return { separator, text: prompt.slice(prompt.lastIndexOf(separator)), ids: ids.slice(last) };
}

/** The one turn that a response is. */
export function toAnswer(response: Content): Message {
  return typeof response === 'string' ? { role: 'assistant', content: response } : (response.at(-1) as Message);
}

/**
 * How many tokens the prompt has in the whole: all its own, which must not have merged with those behind them; or one less
 * with `mayMerge`, when only the last has. Throws ERR_DATA with the tokens of both around the split.
 */
export function lengthOfPrompt(
  prompt: readonly number[],
  whole: readonly number[],
  role: Role,
  where: string,
  { mayMerge = false } = {},
): number {
  const split = prompt.findIndex((id, i) => id !== whole[i]);
  if (split === -1) return prompt.length;
  if (mayMerge && split === prompt.length - 1) return split;
  const near = (ids: readonly number[]): string => `[${ids.slice(Math.max(0, split - 3), split + 4).join(', ')}]`;
  throw new WrpoError(
    'ERR_DATA',
    `${where}: the prompt alone and with "${role}" part at token ${split}, before the answer begins: around it ${near(prompt)} alone and ${near(whole)} with it; expected the same tokens`,
  );
}
