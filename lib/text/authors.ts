/**
 * `template_mode: authors`: text to token ids as the paper's own scripts do it, to the token. The answer's header counts as
 * part of the answer, and every answer ends in EOS, also where its turn ends in that already.
 */
import { type Message, type PreferenceRow, type Role, toMessages } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { RowIds } from './encode.js';
import type { Tokenizer } from './tokenizer.js';
import { lengthOfPrompt, toAnswer } from './turns.js';

/** Whether a conversation without a system message gets an empty one first, where the template could write it. */
export interface SystemRule {
  autoInsertEmptySystemMsg: boolean;
}

/** The prompt without the header of the answer, then the prompt with each response as a conversation of its own. */
export function authorsTexts(row: PreferenceRow, roles: readonly Role[], tokenizer: Tokenizer, rule: SystemRule) {
  const prompt = render(row, [], tokenizer, rule);
  return [
    prompt,
    ...roles.map((role) => {
      const answer = tokenizer.applyChatTemplate([toAnswer(row.responses[role]!)]);
      const { bosToken } = tokenizer;
      return prompt + (bosToken && answer.startsWith(bosToken) ? answer.slice(bosToken.length) : answer);
    }),
  ];
}

/** The whole conversation, on which the authors fine-tune. */
export function wholeText(row: PreferenceRow, role: Role, tokenizer: Tokenizer, rule: SystemRule): string {
  return render(row, [toAnswer(row.responses[role]!)], tokenizer, rule);
}

/** A prompt, and what follows it, as text; a refusal says where the system message comes from that the row does not have. */
function render(row: PreferenceRow, answer: Message[], tokenizer: Tokenizer, rule: SystemRule): string {
  const turns = conversation(row, tokenizer, rule);
  try {
    return tokenizer.applyChatTemplate([...turns, ...answer]);
  } catch (cause) {
    if (!(cause instanceof WrpoError) || turns[0]?.content !== '' || turns[0].role !== 'system') throw cause;
    const whence = 'template_mode authors adds the empty system message; auto_insert_empty_system_msg false does not';
    throw new WrpoError(cause.code, `${cause.message} (${whence})`, { cause });
  }
}

// Their rule as it is: words in the template's source decide, not what the template does.
function conversation({ prompt }: PreferenceRow, { chatTemplate = '' }: Tokenizer, rule: SystemRule): Message[] {
  const turns = toMessages(prompt as string | Message[]);
  const writable = chatTemplate.includes('system') || chatTemplate.includes('<|im_start|>');
  if (!rule.autoInsertEmptySystemMsg || !writable || turns[0]?.role === 'system') return turns;
  return [{ role: 'system', content: '' }, ...turns];
}

/**
 * The ids of `authorsTexts` as a prompt and answers. Where the prompt's last token has merged with an answer, the answer
 * begins one token earlier; as all answers share one prompt here, it does so in all of them.
 */
export function authorsSplit(
  row: PreferenceRow,
  roles: readonly Role[],
  [prompt, ...wholes]: number[][],
  eos: number,
): RowIds {
  const starts = roles.map((role, k) => lengthOfPrompt(prompt!, wholes[k]!, role, row.where, { mayMerge: true }));
  const start = Math.min(...starts);
  return { prompt: prompt!.slice(0, start), responses: wholes.map((whole) => [...whole.slice(start), eos]) };
}

/** EOS, which the authors write after every text. */
export function requireEos({ eosTokenId }: Tokenizer): number {
  if (eosTokenId !== undefined) return eosTokenId;
  throw new WrpoError(
    'ERR_MODEL',
    'template_mode authors and packing end each text with the tokenizer\'s EOS; expected "eos_token" in tokenizer_config.json',
  );
}

/** Limits of a row: `maxPromptLength` tokens are kept of a prompt that is too long with its longest response. */
export interface AuthorsLimits {
  maxLength: number;
  maxPromptLength: number;
  truncationMode: 'keep_end' | 'keep_start';
}

/**
 * The authors' truncation, which drops no row: when the prompt with the longest response is over `maxLength`, the prompt is
 * cut to `maxPromptLength`; if it still is, every response is cut to `maxLength - maxPromptLength`.
 */
export function authorsTruncate({ prompt, responses }: RowIds, limits: AuthorsLimits): RowIds {
  const { maxLength, maxPromptLength, truncationMode } = limits;
  const longest = Math.max(...responses.map(({ length }) => length));
  if (prompt.length + longest <= maxLength) return { prompt, responses };
  const kept = truncationMode === 'keep_start' ? prompt.slice(0, maxPromptLength) : prompt.slice(-maxPromptLength);
  if (kept.length + longest <= maxLength) return { prompt: kept, responses };
  return { prompt: kept, responses: responses.map((response) => response.slice(0, maxLength - maxPromptLength)) };
}

/** The authors' 1800 of 2048, in proportion. */
export function authorsPromptLength(maxLength: number): number {
  return Math.max(1, Math.floor((maxLength * 1800) / 2048));
}
