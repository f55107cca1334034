/** The prompts of a fusion: read from any data set, each once, under an id. */
import { createHash } from 'node:crypto';
import { isIds, type Message, readContent, toMessages } from '../data/preferences.js';
import { fault } from '../data/rows.js';
import { readSource, type SourceOptions } from '../data/source.js';
import { isBlank } from '../text/chat.js';

/** A conversation that ends in a user turn. */
export interface Prompt {
  promptId: string;
  messages: Message[];
}

export interface ReadPromptsOptions extends Omit<SourceOptions, 'onFault'> {
  /** Told of downloads and of prompts that stand more than once. */
  say?: (line: string) => void;
}

/**
 * Lower-case hex SHA-256: of the text of a single user turn, as UltraFeedback's `prompt_id` is, or of the JSON of
 * `[role, content]` pairs of a longer conversation.
 */
export function promptIdOf(messages: readonly Message[]): string {
  const single = messages.length === 1 && messages[0]!.role === 'user';
  const text = single ? messages[0]!.content : JSON.stringify(messages.map(({ role, content }) => [role, content]));
  return createHash('sha256').update(text).digest('hex');
}

/**
 * The prompts of a file, directory or data set (column `prompt`, and `prompt_id` where there is one), in order; one that
 * comes again is left out and counted aloud. Throws ERR_DATA naming the row that is empty, holds token ids or ends in
 * another turn than a user's, two prompts under one id, and a source without prompts.
 */
export async function* readPrompts(source: string, options: ReadPromptsOptions = {}): AsyncGenerator<Prompt> {
  const seen = new Map<string, { hash: string; where: string }>();
  const repeated: string[] = [];
  const onFault = (error: unknown): never => {
    throw error;
  };
  for await (const { value, where } of readSource(source, { ...options, onFault }, promptColumns)) {
    const { prompt: given, prompt_id: id } = (value ?? {}) as Record<string, unknown>;
    const messages = readPrompt(given, where);
    const hash = promptIdOf(messages);
    if (id != null && (typeof id !== 'string' || id === '')) throw fault(where, '"prompt_id" must be a text');
    const promptId = id ?? hash;
    const before = seen.get(promptId);
    if (before && before.hash !== hash) {
      throw fault(where, `"prompt_id" is that of ${before.where}, whose prompt is another ("${promptId}")`);
    }
    if (before) repeated.push(`${where} repeats ${before.where}`);
    else {
      seen.set(promptId, { hash, where });
      yield { promptId, messages };
    }
  }
  if (seen.size === 0) throw fault(source, 'holds no prompts');
  if (repeated.length > 0) {
    const count = repeated.length === 1 ? 'one prompt stands' : `${repeated.length} prompts stand`;
    options.say?.(`${source}: ${count} there before and is sampled once (${repeated[0]})`);
  }
}

/** A prompt as a row has it. */
export function readPrompt(value: unknown, where: string): Message[] {
  if (value == null) throw fault(where, 'missing key "prompt"');
  const content = readContent(value, 'prompt', where);
  if (isIds(content)) throw fault(where, '"prompt" is token ids; models are asked in text');
  const messages = toMessages(content);
  const last = messages.at(-1)!;
  if (last.role !== 'user') throw fault(where, `"prompt" must end in a user turn, got the role "${last.role}"`);
  if (isBlank(last.content)) throw fault(where, '"prompt" is empty');
  return messages;
}

/** Of a table of prompts. Throws ERR_DATA when it is of something else. */
export function promptColumns(columns: readonly string[], file: string): readonly string[] {
  if (columns.includes('prompt')) return columns.filter((name) => /^prompt(_id)?$/.test(name));
  throw fault(file, `no column "prompt"; its columns are ${columns.map((name) => `"${name}"`).join(', ')}`);
}

/** How many letters each prompt has. */
export async function lettersOf(prompts: Iterable<Prompt> | AsyncIterable<Prompt>): Promise<Map<string, number>> {
  const letters = new Map<string, number>();
  for await (const { promptId, messages } of prompts) {
    letters.set(
      promptId,
      messages.reduce((sum, { content }) => sum + content.length, 0),
    );
  }
  return letters;
}
