import {
  type Content,
  isIds,
  type Message,
  missingKey,
  type PreferenceRow,
  type Role,
  toMessages,
} from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { Tokenizer } from './tokenizer.js';

/** A row as token ids: the prompt up to where the answer begins, and what follows it in each response. */
export interface EncodedRow {
  where: string;
  prompt: Int32Array;
  responses: Partial<Record<Role, Int32Array>>;
}

/** `dropped` counts rows whose prompt is too long, `truncated` responses that were cut. */
export interface EncodeReport {
  rows: EncodedRow[];
  dropped: number;
  truncated: number;
}

/** What to encode, and how long a prompt with one response may be. */
export interface EncodeOptions {
  tokenizer?: Tokenizer;
  roles: readonly Role[];
  maxLength: number;
  maxPromptLength?: number;
  vocabSize: number;
}

interface RowIds {
  prompt: number[];
  /** In the order of `roles`. */
  responses: number[][];
}

// Rows per call of the tokenizer: enough to fill all cores, few enough not to hold up the event loop.
const SLICE = 16;

/** Turns rows of text or ids into token ids, every one of them checked against the model's vocabulary. */
export async function encodeRows(rows: PreferenceRow[], options: EncodeOptions): Promise<EncodeReport> {
  for (const row of rows) requireUsable(row, options);
  const { tokenizer, roles } = options;
  const chat = tokenizer?.hasChatTemplate ? await Chat.with(tokenizer) : undefined;
  const report: EncodeReport = { rows: [], dropped: 0, truncated: 0 };
  for (let start = 0; start < rows.length; start += SLICE) {
    const slice = rows.slice(start, start + SLICE);
    const encoded = await idsOf(slice, roles, chat);
    for (const [i, ids] of encoded.entries()) addRow(ids, slice[i]!.where, options, report);
  }
  return report;
}

/** Adds a row to the report, as long as `maxLength` and `maxPromptLength` let it be. */
function addRow({ prompt, responses }: RowIds, where: string, options: EncodeOptions, report: EncodeReport): void {
  const { roles, maxLength, maxPromptLength = maxLength, vocabSize } = options;
  requireIds(prompt, 'prompt', where, vocabSize);
  for (const [k, role] of roles.entries()) requireIds(responses[k]!, role, where, vocabSize);
  const room = maxLength - prompt.length;
  if (room < 1 || prompt.length > maxPromptLength) {
    report.dropped++;
    return;
  }
  report.truncated += responses.filter((response) => response.length > room).length;
  const cut = roles.map((role, k) => [role, Int32Array.from(responses[k]!.slice(0, room))]);
  report.rows.push({ where, prompt: Int32Array.from(prompt), responses: Object.fromEntries(cut) });
}

function requireUsable(row: PreferenceRow, { roles, tokenizer }: EncodeOptions): void {
  const { where, prompt, responses } = row;
  if (prompt.length === 0) throw fault(where, '"prompt" is empty');
  for (const role of roles) {
    const response = responses[role];
    if (response === undefined) throw missingKey(row, role, roles);
    // An empty text still is a token, its end of turn.
    if (response.length === 0 && typeof response !== 'string') throw fault(where, `"${role}" is empty`);
  }
  if (isIds(prompt) || tokenizer?.hasChatTemplate) return;
  const what = tokenizer ? 'the tokenizer has no chat template' : 'there is no tokenizer';
  throw fault(where, `the row is text, but ${what}; expected a tokenizer with a chat template, or token ids`);
}

function requireIds(ids: number[], key: string, where: string, vocabSize: number): void {
  const odd = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (odd === -1) return;
  throw fault(
    where,
    `"${key}" has ${ids[odd]} at position ${odd}; expected an id from 0 to ${vocabSize - 1} (vocabulary size ${vocabSize})`,
  );
}

async function idsOf(rows: PreferenceRow[], roles: readonly Role[], chat: Chat | undefined): Promise<RowIds[]> {
  const texts = await chat?.encode(
    rows.filter(({ prompt }) => !isIds(prompt)),
    roles,
  );
  let next = 0;
  return rows.map(({ prompt, responses }) =>
    isIds(prompt) ? { prompt, responses: roles.map((role) => responses[role] as number[]) } : texts![next++]!,
  );
}

/** A tokenizer and its chat template: where an answer begins, and which token ends it. */
class Chat {
  readonly #blank = new Map<number, boolean>();

  private constructor(
    readonly tokenizer: Tokenizer,
    readonly endOfTurn: number | undefined,
  ) {}

  /** Learns the end of a turn from what the template writes after an answer. */
  static async with(tokenizer: Tokenizer): Promise<Chat> {
    const answer = 'answer';
    let text = '';
    try {
      text = tokenizer.applyChatTemplate([...toMessages('question'), { role: 'assistant', content: answer }]);
    } catch {
      // A template that refuses these turns will say so for the rows, or accept what they have.
    }
    const tail = await tokenizer.encode(text.slice(text.lastIndexOf(answer) + answer.length));
    const end = tail.find((id) => tokenizer.isSpecial(id));
    return new Chat(tokenizer, end);
  }

  async encode(rows: PreferenceRow[], roles: readonly Role[]): Promise<RowIds[]> {
    const ids = await this.tokenizer.encodeBatch(rows.flatMap((row) => this.#render(row, roles)));
    return Promise.all(
      rows.map(async ({ where }, i) => {
        const [prompt, ...wholes] = ids.slice(i * (1 + roles.length), (i + 1) * (1 + roles.length));
        const responses = wholes.map((whole, k) => after(prompt!, whole, roles[k]!, where));
        return { prompt: prompt!, responses: await Promise.all(responses.map((response) => this.#close(response))) };
      }),
    );
  }

  /** The prompt up to the answer, then the whole conversation with each response. */
  #render({ where, prompt, responses }: PreferenceRow, roles: readonly Role[]): string[] {
    const turns = toMessages(prompt as string | Message[]);
    try {
      return [
        this.tokenizer.applyChatTemplate(turns, { addGenerationPrompt: true }),
        ...roles.map((role) => this.tokenizer.applyChatTemplate([...turns, toAnswer(responses[role]!)])),
      ];
    } catch (cause) {
      if (cause instanceof WrpoError) throw new WrpoError(cause.code, `${where}: ${cause.message}`, { cause });
      throw cause;
    }
  }

  /**
   * Ends a response with exactly one end of turn. Templates write more behind it (a line end, a second special token),
   * which no sampler ever reaches; and some write none at all.
   */
  async #close(response: number[]): Promise<number[]> {
    let last = -1;
    let end = -1;
    for (let i = response.length - 1; i >= 0; i--) {
      const id = response[i]!;
      if (this.tokenizer.isSpecial(id)) {
        if (last === -1) last = i;
        if (id === this.endOfTurn) end = i;
      } else if (!(await this.#isBlank(id))) break;
    }
    if (last !== -1) return response.slice(0, (end === -1 ? last : end) + 1);
    const { eosTokenId } = this.tokenizer;
    if (eosTokenId !== undefined) return [...response, eosTokenId];
    throw new WrpoError(
      'ERR_MODEL',
      'the chat template ends an answer with no special token; expected "eos_token" in tokenizer_config.json to end it',
    );
  }

  async #isBlank(id: number): Promise<boolean> {
    let blank = this.#blank.get(id);
    if (blank === undefined) {
      blank = (await this.tokenizer.decode([id])).trim() === '';
      this.#blank.set(id, blank);
    }
    return blank;
  }
}

function toAnswer(response: Content): Message {
  return typeof response === 'string' ? { role: 'assistant', content: response } : (response.at(-1) as Message);
}

/** The tokens of the whole that follow the prompt, which must not have merged with them. */
function after(prompt: number[], whole: number[], role: Role, where: string): number[] {
  const split = prompt.findIndex((id, i) => id !== whole[i]);
  if (split === -1) return whole.slice(prompt.length);
  const near = (ids: number[]): string => `[${ids.slice(Math.max(0, split - 3), split + 4).join(', ')}]`;
  throw fault(
    where,
    `the prompt alone and with "${role}" part at token ${split}, before the answer begins: around it ${near(prompt)} alone and ${near(whole)} with it; expected the same tokens`,
  );
}

const fault = (where: string, what: string): WrpoError => new WrpoError('ERR_DATA', `${where}: ${what}`);
