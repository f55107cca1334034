/** Rows of text or ids to token ids, one slice at a time, every id checked against the model's vocabulary. */
import { isIds, missingKey, type PreferenceRow, type Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { authorsPromptLength, authorsSplit, authorsTexts, authorsTruncate, requireEos, wholeText } from './authors.js';
import { Blocks } from './blocks.js';
import { type EncodedRow, RowStore } from './store.js';
import { tokenise } from './tokenise.js';
import type { Tokenizer } from './tokenizer.js';
import { Turns } from './turns.js';

export type { EncodedRow } from './store.js';

/** The rows, and what was left out of them. */
export interface EncodeReport {
  rows: EncodedRow[];
  /** Rows that were read. */
  read: number;
  /** Tokens kept, each prompt counted once. */
  tokens: number;
  /** Rows left out: the prompt is longer than `maxPromptLength`, or leaves an answer no room in `maxLength`. */
  dropped: number;
  /** Responses that were cut. */
  truncated: number;
  /** Prompts that were cut (`templateMode: 'authors'` only). */
  truncatedPrompts: number;
  /** Tokens behind the last whole block (`blocks` only). */
  leftOver: number;
}

/** What to encode, and how long a prompt with one response may be. */
export interface EncodeOptions {
  /** Needed for rows of text. */
  tokenizer?: Tokenizer;
  roles: readonly Role[];
  /** In tokens, of a prompt with one response, or of a block. */
  maxLength: number;
  /** In tokens. Default: `maxLength`; with `authors`, 1800 of 2048 in proportion. Not used for one whole text a row. */
  maxPromptLength?: number;
  vocabSize: number;
  /** `authors`: to the token what the paper's own scripts make of a row. Default `default`. */
  templateMode?: 'default' | 'authors';
  /** Which end of a prompt `authors` keeps. Default `keep_end`. */
  truncationMode?: 'keep_end' | 'keep_start';
  /** The authors' rule for conversations without a system message. Default true. */
  autoInsertEmptySystemMsg?: boolean;
  /** One response a row: moves all tokens but the first into it, so that the loss is on all that can be predicted. */
  allTokens?: boolean;
  /** One response a row: joins all texts, an EOS behind each, and cuts them into blocks of `maxLength`; `allTokens`. */
  blocks?: boolean;
  /**
   * Told of every row in turn: all its ids, and what the limits leave of them (undefined when the row is dropped; with
   * `blocks` all, since only the end of the last row may be left over).
   */
  onRow?: (whole: RowIds, kept: RowIds | undefined) => void;
}

/** A prompt and, in the order of `roles`, its responses. */
export interface RowIds {
  prompt: number[];
  responses: number[][];
}

/**
 * Turns rows into token ids; of their text, only a few slices are in memory at once. Rows of ids are used as they are.
 * Throws ERR_DATA naming the first row that lacks what is needed, that the template refuses, or with an id that the model
 * does not have; ERR_MODEL when the tokenizer has no token to end an answer with or its template fails; ERR_CONFIG when
 * `authors` would leave responses no room.
 */
export async function encodeRows(
  rows: Iterable<PreferenceRow> | AsyncIterable<PreferenceRow>,
  options: EncodeOptions,
): Promise<EncodeReport> {
  const { tokenizer, roles, vocabSize } = options;
  const store = new RowStore(roles, vocabSize);
  const report = { rows: store.rows, read: 0, tokens: 0, dropped: 0, truncated: 0, truncatedPrompts: 0, leftOver: 0 };
  const way = await wayOf(options, store, report);
  const encode = (texts: string[]) => tokenizer!.encodeBatch(texts, { addSpecialTokens: way.addSpecialTokens });
  const render = (row: PreferenceRow) => {
    requireUsable(row, options);
    return isIds(row.prompt) ? [] : naming(row, () => way.texts(row));
  };
  for await (const { row, ids } of tokenise(rows, render, encode)) {
    const parts = isIds(row.prompt) ? idsOf(row, roles) : await way.split(row, ids);
    requireIds(parts.prompt, 'prompt', row.where, vocabSize);
    for (const [k, role] of roles.entries()) requireIds(parts.responses[k]!, role, row.where, vocabSize);
    report.read++;
    const kept = way.take(parts, row.where);
    options.onRow?.(parts, kept);
  }
  report.tokens = store.tokens;
  return report;
}

/** One way from rows to ids: which texts the tokenizer reads, how their ids split, and how much of them is kept. */
interface Way {
  addSpecialTokens: boolean;
  texts(row: PreferenceRow): string[];
  split(row: PreferenceRow, ids: number[][]): RowIds | Promise<RowIds>;
  /** Adds what is kept of a row, and returns it. */
  take(row: RowIds, where: string): RowIds | undefined;
}

async function wayOf(options: EncodeOptions, store: RowStore, report: EncodeReport): Promise<Way> {
  const { roles, templateMode, blocks, allTokens } = options;
  // Without a chat template only rows of ids pass, for which no text is ever rendered.
  const tokenizer = options.tokenizer?.hasChatTemplate ? options.tokenizer : undefined;
  if (blocks || (allTokens && templateMode === 'authors')) return wholeWay(options, store, report);
  if (templateMode !== 'authors') {
    const turns = tokenizer && (await Turns.of(tokenizer));
    return {
      addSpecialTokens: false,
      texts: (row) => turns!.texts(row, roles),
      split: (row, ids) => turns!.split(row, roles, ids),
      take: (row, where) => keep(row, where, options, store, report),
    };
  }
  const { maxLength, maxPromptLength = authorsPromptLength(maxLength), truncationMode = 'keep_end' } = options;
  if (maxPromptLength >= maxLength) {
    throw new WrpoError(
      'ERR_CONFIG',
      `templateMode "authors": maxPromptLength (${maxPromptLength}) must be below maxLength (${maxLength}), or responses would be cut to nothing`,
    );
  }
  const rule = { autoInsertEmptySystemMsg: options.autoInsertEmptySystemMsg ?? true };
  const eos = tokenizer && requireEos(tokenizer);
  return {
    addSpecialTokens: false,
    texts: (row) => authorsTexts(row, roles, tokenizer!, rule),
    split: (row, ids) => authorsSplit(row, roles, ids, eos!),
    take(row, where) {
      const kept = authorsTruncate(row, { maxLength, maxPromptLength, truncationMode });
      if (kept.prompt.length < row.prompt.length) report.truncatedPrompts++;
      report.truncated += kept.responses.filter(({ length }, k) => length < row.responses[k]!.length).length;
      store.add(where, kept.prompt, kept.responses);
      return kept;
    },
  };
}

/** The authors' fine-tuning: one text a row, with the special tokens that the tokenizer adds, the loss on all of it. */
function wholeWay(options: EncodeOptions, store: RowStore, report: EncodeReport): Way {
  const { tokenizer, roles, maxLength, templateMode } = options;
  const rule = {
    autoInsertEmptySystemMsg: templateMode === 'authors' && (options.autoInsertEmptySystemMsg ?? true),
  };
  const eos = options.blocks && tokenizer?.hasChatTemplate ? requireEos(tokenizer) : undefined;
  const put = (ids: number[], where: string) => store.add(where, ids.slice(0, 1), [ids.slice(1)]);
  const blocks = options.blocks ? new Blocks(maxLength, put) : undefined;
  return {
    addSpecialTokens: true,
    texts: (row) => [wholeText(row, roles[0]!, tokenizer!, rule)],
    split: (_, [ids]) => ({
      prompt: ids!.slice(0, 1),
      responses: [[...ids!.slice(1), ...(eos === undefined ? [] : [eos])]],
    }),
    take(row, where) {
      const ids = [...row.prompt, ...row.responses[0]!];
      if (blocks) {
        blocks.add(ids, where);
        report.leftOver = blocks.leftOver;
        return row;
      }
      if (Math.min(maxLength, ids.length) < 2) {
        report.dropped++;
        return undefined;
      }
      if (ids.length > maxLength) report.truncated++;
      put(ids.slice(0, maxLength), where);
      return { prompt: ids.slice(0, 1), responses: [ids.slice(1, maxLength)] };
    },
  };
}

/** Adds a row as long as `maxLength` and `maxPromptLength` let it be, and returns that. */
function keep(
  { prompt, responses }: RowIds,
  where: string,
  options: EncodeOptions,
  store: RowStore,
  report: EncodeReport,
): RowIds | undefined {
  const { maxLength, maxPromptLength = maxLength, allTokens } = options;
  const room = maxLength - prompt.length;
  if (room < 1 || prompt.length > maxPromptLength) {
    report.dropped++;
    return undefined;
  }
  report.truncated += responses.filter(({ length }) => length > room).length;
  const cut = responses.map((response) => (response.length > room ? response.slice(0, room) : response));
  if (allTokens) store.add(where, prompt.slice(0, 1), [[...prompt.slice(1), ...cut[0]!]]);
  else store.add(where, prompt, cut);
  return { prompt, responses: cut };
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
  requireReadable(row, tokenizer);
}

/** Throws ERR_DATA naming a row of text that no tokenizer can render. */
export function requireReadable(
  { where, prompt }: Pick<PreferenceRow, 'where' | 'prompt'>,
  tokenizer: Tokenizer | undefined,
): void {
  if (isIds(prompt) || tokenizer?.hasChatTemplate) return;
  const what = tokenizer ? 'the tokenizer has no chat template' : 'there is no tokenizer';
  throw fault(where, `the row is text, but ${what}; expected a tokenizer with a chat template, or token ids`);
}

function requireIds(ids: readonly number[], key: string, where: string, vocabSize: number): void {
  let odd = 0;
  while (odd < ids.length && Number.isInteger(ids[odd]) && ids[odd]! >= 0 && ids[odd]! < vocabSize) odd++;
  if (odd === ids.length) return;
  throw fault(
    where,
    `"${key}" has ${ids[odd]} at position ${odd}; expected an id from 0 to ${vocabSize - 1} (vocabulary size ${vocabSize})`,
  );
}

function idsOf({ prompt, responses }: PreferenceRow, roles: readonly Role[]): RowIds {
  return { prompt: prompt as number[], responses: roles.map((role) => responses[role] as number[]) };
}

/** What the template makes of a row; its complaints name the row. */
export function naming({ where }: { where: string }, texts: () => string[]): string[] {
  try {
    return texts();
  } catch (cause) {
    if (cause instanceof WrpoError) throw new WrpoError(cause.code, `${where}: ${cause.message}`, { cause });
    throw cause;
  }
}

const fault = (where: string, what: string): WrpoError => new WrpoError('ERR_DATA', `${where}: ${what}`);
