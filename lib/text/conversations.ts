/** Rows of text or ids to the conversations that a reward model reads, ids of prompt and answer in one. */
import type { AnswerRow } from '../data/answers.js';
import { isIds, type Message, toMessages } from '../data/preferences.js';
import { naming, requireReadable } from './encode.js';
import { tokenise } from './tokenise.js';
import type { Tokenizer } from './tokenizer.js';
import { toAnswer } from './turns.js';

/** A row, and for each of its answers the conversation that ends in it. */
export interface RowConversations {
  row: AnswerRow;
  conversations: number[][];
}

/**
 * Renders prompt and answer by the chat template, without a generation prompt, with BOS exactly once where the tokenizer
 * has one; rows of ids are used as they are. Nothing is cut. Throws ERR_DATA naming the row that the template refuses or
 * that is text without a tokenizer to read it, ERR_MODEL when the template fails.
 */
export async function* encodeConversations(
  rows: Iterable<AnswerRow> | AsyncIterable<AnswerRow>,
  tokenizer: Tokenizer | undefined,
): AsyncGenerator<RowConversations> {
  const render = (row: AnswerRow) => {
    requireReadable(row, tokenizer);
    if (isIds(row.prompt)) return [];
    const turns = toMessages(row.prompt as string | Message[]);
    return naming(row, () =>
      row.answers.map(({ content }) => tokenizer!.applyChatTemplate([...turns, toAnswer(content)])),
    );
  };
  for await (const { row, ids } of tokenise(rows, render, (texts) => tokenizer!.encodeBatch(texts))) {
    const { prompt, answers } = row;
    const conversations = isIds(prompt)
      ? answers.map(({ content }) => [...prompt, ...(content as number[])])
      : ids.map((one) => withOneBos(one, tokenizer!.bosTokenId));
    yield { row, conversations };
  }
}

function withOneBos(ids: number[], bos: number | undefined): number[] {
  if (bos === undefined) return ids;
  const own = ids.findIndex((id) => id !== bos);
  return [bos, ...ids.slice(own === -1 ? ids.length : own)];
}
