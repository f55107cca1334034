import { editDistance } from '../edit-distance.js';
import { WrpoError } from '../errors.js';
import { fault } from './rows.js';
import { readSource, type SourceOptions } from './source.js';

/** What a response is to its prompt: y_ws, y_wt, y_l and y_ls of the paper, or the answer of a fine-tuning row. */
export type Role = 'source_chosen' | 'target_chosen' | 'rejected' | 'source_rejected' | 'completion';

/** One turn of a conversation. */
export interface Message {
  role: string;
  content: string;
}

/** A text, a conversation, or token ids that are used as they are. */
export type Content = string | Message[] | number[];

/** A prompt and its responses; those written as messages are reduced to the one assistant turn that answers. */
export interface PreferenceRow {
  /** Where the row stands, for errors: `rows.jsonl line 12`. */
  where: string;
  prompt: Content;
  responses: Partial<Record<Role, Content>>;
  /** Keys of the row that mean nothing here, kept so that an error can tell which one was misspelt. */
  otherKeys?: readonly string[];
}

/** The keys under which a role may stand. In a pair, `chosen` is the target's own. */
const NAMES: Record<Role, readonly string[]> = {
  source_chosen: ['source_chosen', 'y_ws'],
  target_chosen: ['target_chosen', 'y_wt'],
  rejected: ['rejected', 'y_l'],
  source_rejected: ['source_rejected', 'y_ls'],
  completion: ['completion'],
};
const ROLES = Object.keys(NAMES) as Role[];
const RESPONSES = [...Object.values(NAMES).flat(), 'chosen'];
const KNOWN = new Set(['prompt', 'messages', ...RESPONSES]);
const EXPECTED = 'expected source_chosen, target_chosen and rejected, or chosen and rejected, or completion';

/** Where rows are read from, beside the name of the source. */
export type ReadOptions = SourceOptions;

/** All rows of a source, as `readPreferences` yields them. */
export async function loadPreferences(source: string, options: ReadOptions = {}): Promise<PreferenceRow[]> {
  const rows: PreferenceRow[] = [];
  for await (const row of readPreferences(source, options)) rows.push(row);
  return rows;
}

/**
 * The rows of a JSONL, Parquet or Arrow file, of a directory that holds some or that `datasets.save_to_disk` wrote, or of a
 * data set on the hub (`owner/name`), one at a time, for sources larger than memory. Throws ERR_DATA naming the file and
 * row of what cannot be read, and when there is nothing to read; with `onFault`, only what is wrong with a whole file.
 */
export async function* readPreferences(source: string, options: ReadOptions = {}): AsyncGenerator<PreferenceRow> {
  let rows = 0;
  const onFault = async (error: unknown) => {
    if (!options.onFault || !(error instanceof WrpoError)) throw error;
    rows++;
    await options.onFault(error);
  };
  for await (const { value, where } of readSource(source, { ...options, onFault }, chooseColumns)) {
    let row: PreferenceRow;
    try {
      row = toPreferenceRow(value, where);
    } catch (error) {
      await onFault(error);
      continue;
    }
    rows++;
    yield row;
  }
  if (rows === 0) throw fault(source, 'holds no rows');
}

/** The columns of a table that make rows. Throws when they make none, before anything of it is read. */
export function chooseColumns(columns: readonly string[], file: string): string[] {
  const responses = columns.filter((name) => RESPONSES.includes(name));
  const others = columns.filter((name) => !KNOWN.has(name));
  const given = `its columns are ${columns.map((name) => `"${name}"`).join(', ')}`;
  if (responses.length === 0 && !columns.includes('messages')) {
    throw fault(file, `no column holds responses; ${EXPECTED}; ${given}${hint(RESPONSES, others)}`);
  }
  if (!columns.includes('prompt') && responses.length > 0 && !responses.includes('chosen')) {
    throw fault(file, `no column "prompt"; ${given}${hint(['prompt'], others)}`);
  }
  // Beside responses, messages are a copy of one of them: reading it would take a third of the time.
  return columns.filter((name) => KNOWN.has(name) && (name !== 'messages' || responses.length === 0));
}

/** Reads one row, of whichever shape; `where` names it in errors. */
export function toPreferenceRow(value: unknown, where: string): PreferenceRow {
  if (!isRecord(value)) throw fault(where, `expected an object, got ${kindOf(value)}`);
  const fields = readFields(value, where);
  const otherKeys = Object.keys(value).filter((key) => !KNOWN.has(key));
  if (fields.length === 0 && has(value, 'messages')) return fromMessages(value.messages, where);
  const prompt = has(value, 'prompt') ? readContent(value.prompt, 'prompt', where) : sharedTurns(value, where);
  if (prompt === undefined) throw fault(where, `missing key "prompt"${hint(['prompt'], otherKeys)}`);
  if (fields.length === 0) throw fault(where, `no response; ${EXPECTED}${hint(RESPONSES, otherKeys)}`);
  const row: PreferenceRow = { where, prompt, responses: {} };
  for (const field of fields) row.responses[field.role] = readResponse(field, row);
  if (otherKeys.length > 0) row.otherKeys = otherKeys;
  return row;
}

/** Whether a content is token ids rather than text. */
export function isIds(content: Content): content is number[] {
  return typeof content[0] === 'number';
}

/** A conversation that a text stands for: one user turn, unless it is a conversation already. */
export function toMessages(prompt: string | Message[]): Message[] {
  return typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt;
}

/** The error of a row that lacks a response which the run needs. */
export function missingKey({ where, otherKeys = [] }: PreferenceRow, role: Role, needed: readonly Role[]): WrpoError {
  const names = role === 'target_chosen' ? [...NAMES[role], 'chosen'] : NAMES[role];
  return fault(where, `missing key "${role}"; this run needs ${needed.join(', ')}${hint(names, otherKeys)}`);
}

interface Field {
  role: Role;
  key: string;
  value: unknown;
}

function readFields(row: Record<string, unknown>, where: string): Field[] {
  const flat = ROLES.flatMap((role): Field[] => {
    const given = NAMES[role].filter((key) => has(row, key));
    if (given.length > 1) throw fault(where, `"${given[0]}" and "${given[1]}" are two names of one response`);
    return given.map((key) => ({ role, key, value: row[key] }));
  });
  if (!has(row, 'chosen') || flat.some(({ role }) => role === 'source_chosen' || role === 'target_chosen')) return flat;
  if (isAnswers(row.chosen) && row.chosen.length > 1) return readQuadruple(row, where);
  return [{ role: 'target_chosen', key: 'chosen', value: row.chosen }, ...flat];
}

/**
 * The authors' quadruple: `chosen` is [y_ws, y_wt] and `rejected` [y_l] or [y_l, y_ls], where a pair has one conversation
 * in each. Assistant turns alone tell them apart, and no conversation has two in a row.
 */
function readQuadruple({ prompt, chosen, rejected }: Record<string, unknown>, where: string): Field[] {
  if (!isRecord(prompt)) {
    throw fault(
      where,
      `"chosen" is a list of assistant messages, so "prompt" must be one message, got ${kindOf(prompt)}`,
    );
  }
  return [
    ...spread('chosen', chosen, ['source_chosen', 'target_chosen'], 2),
    ...spread('rejected', rejected, ['rejected', 'source_rejected'], 1),
  ];

  function spread(key: string, value: unknown, roles: Role[], least: number): Field[] {
    if (value === undefined || value === null) return [];
    if (!isAnswers(value) || value.length < least || value.length > roles.length) {
      throw fault(where, `"${key}" must be a list of assistant messages: ${roles.join(', ')}`);
    }
    return value.map((answer, i) => ({ role: roles[i]!, key: `${key}[${i}]`, value: answer }));
  }
}

/** The prompt of a pair that has none of its own: the turns before the answer, the same in both its conversations. */
function sharedTurns({ chosen, rejected }: Record<string, unknown>, where: string): Message[] | undefined {
  if (!Array.isArray(chosen) || chosen.length < 2 || !isRecord(chosen[0])) return undefined;
  const turns = (value: unknown[], key: string) => readContent(value.slice(0, -1), key, where) as Message[];
  const prompt = turns(chosen, 'chosen');
  if (!Array.isArray(rejected) || rejected.length < 2) return prompt;
  if (!sameTurns(prompt, turns(rejected, 'rejected'))) {
    throw fault(where, 'without "prompt", "chosen" and "rejected" must have all turns in common but the last');
  }
  return prompt;
}

function fromMessages(value: unknown, where: string): PreferenceRow {
  const messages = readContent(value, 'messages', where);
  if (typeof messages === 'string' || isIds(messages)) throw fault(where, '"messages" must be a list of messages');
  const last = messages.map(({ role }) => role).lastIndexOf('assistant');
  if (last < 1) throw fault(where, '"messages" must hold an assistant message after the turns it answers');
  return { where, prompt: messages.slice(0, last), responses: { completion: [messages[last]!] } };
}

/** A response to the row's prompt; `key` names it in errors. */
export function readResponse(
  { key, value }: Pick<Field, 'key' | 'value'>,
  { where, prompt }: Pick<PreferenceRow, 'where' | 'prompt'>,
): Content {
  const content = readContent(value, key, where);
  if (isIds(content) !== isIds(prompt)) {
    const [ids, text] = isIds(content) ? [key, 'prompt'] : ['prompt', key];
    throw fault(where, `"${ids}" is token ids but "${text}" is text; a row is all of one kind`);
  }
  if (typeof content === 'string' || isIds(content)) return content;
  const answer = content.at(-1)!;
  if (answer.role !== 'assistant') {
    throw fault(where, `"${key}" must end in an assistant message, got the role "${answer.role}"`);
  }
  const before = content.slice(0, -1);
  if (before.length > 0 && !sameTurns(before, toMessages(prompt as string | Message[]))) {
    throw fault(where, `"${key}" must be one assistant message, or "prompt" repeated and then that message`);
  }
  return [answer];
}

/** A text, a conversation or token ids, checked; `key` names it in errors. */
export function readContent(value: unknown, key: string, where: string): Content {
  if (key === 'prompt' && value === '') throw fault(where, '"prompt" is empty');
  if (typeof value === 'string') return value;
  if (isRecord(value) && !(value instanceof Uint8Array)) return [readMessage(value, key, where)];
  if (!Array.isArray(value)) {
    throw fault(where, `"${key}" must be a string, a list of messages or a list of token ids, got ${kindOf(value)}`);
  }
  if (value.length === 0) throw fault(where, `"${key}" is empty`);
  if (typeof value[0] !== 'number') return value.map((item, i) => readMessage(item, `${key}[${i}]`, where));
  const odd = value.findIndex((id) => typeof id !== 'number');
  if (odd !== -1)
    throw fault(where, `"${key}[${odd}]" must be a token id like those before, got ${kindOf(value[odd])}`);
  return value;
}

function readMessage(value: unknown, key: string, where: string): Message {
  if (!isRecord(value)) throw fault(where, `"${key}" must be a message {role, content}, got ${kindOf(value)}`);
  const { role, content } = value;
  if (typeof role !== 'string') throw fault(where, `"${key}.role" must be a string, got ${kindOf(role)}`);
  if (typeof content !== 'string') throw fault(where, `"${key}.content" must be a string, got ${kindOf(content)}`);
  return { role, content };
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

// A table with columns writes null where a row lacks a key.
const has = (row: Record<string, unknown>, key: string): boolean => row[key] !== undefined && row[key] !== null;

const isAnswers = (value: unknown): value is unknown[] =>
  Array.isArray(value) && value.every((item) => isRecord(item) && item.role === 'assistant');

const sameTurns = (a: Message[], b: Message[]): boolean =>
  a.length === b.length &&
  a.every(({ role, content }, i) => role === b[i]!.role && content.trim() === b[i]!.content.trim());

function kindOf(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'an array';
  if (value instanceof Uint8Array) return 'bytes that are not UTF-8';
  return typeof value === 'object' ? 'an object' : `a ${typeof value}`;
}

/** Names the key that was probably meant by one of `names`, for the end of an error. */
function hint(names: readonly string[], keys: readonly string[]): string {
  const near = keys.find((key) => names.some((name) => isNear(key, name)));
  return near === undefined ? '' : ` (is "${near}" meant for it?)`;
}

function isNear(key: string, name: string): boolean {
  const [a, b] = [key, name].map((text) => text.toLowerCase().replace(/[^a-z0-9]/g, '')) as [string, string];
  return (a.length >= 4 && b.startsWith(a)) || editDistance(a, b) <= Math.min(2, Math.floor(b.length / 4));
}
