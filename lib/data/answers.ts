/** Rows to be scored: a prompt and any number of answers, of whichever shape. */
import { type Content, chooseColumns, readContent, readResponse, toPreferenceRow } from './preferences.js';
import { fault } from './rows.js';
import { readSource, type SourceOptions } from './source.js';

/** A prompt and its answers, each under the key that says it in the row. */
export interface AnswerRow {
  /** Where the row stands, for errors: `rows.jsonl line 12`. */
  where: string;
  /** `responses` and `response` as the row spells them, or the roles of a preference row. */
  shape: 'responses' | 'response' | 'roles';
  prompt: Content;
  answers: { key: string; content: Content }[];
}

/**
 * The rows of a file, directory or data set (see `readPreferences`) one at a time: `{prompt, responses: […]}`,
 * `{prompt, response}`, or preference rows. Throws ERR_DATA naming the file and row of what cannot be read, and when
 * there is nothing to read.
 */
export async function* readAnswers(
  source: string,
  options: Omit<SourceOptions, 'onFault'> = {},
): AsyncGenerator<AnswerRow> {
  const onFault = (error: unknown): never => {
    throw error;
  };
  let rows = 0;
  for await (const { value, where } of readSource(source, { ...options, onFault }, columnsOf)) {
    rows++;
    yield toAnswerRow(value, where);
  }
  if (rows === 0) throw fault(source, 'holds no rows');
}

function columnsOf(columns: readonly string[], file: string): readonly string[] {
  const own = ['prompt', 'responses', 'response'].filter((name) => columns.includes(name));
  return own.includes('prompt') && own.length > 1 ? own : chooseColumns(columns, file);
}

/** Reads one row; `where` names it in errors. */
export function toAnswerRow(value: unknown, where: string): AnswerRow {
  const { prompt: given, responses, response } = (value ?? {}) as Record<string, unknown>;
  const shape = responses != null ? 'responses' : response != null ? 'response' : 'roles';
  if (shape === 'roles') {
    const { prompt, responses: byRole } = toPreferenceRow(value, where);
    const answers = Object.entries(byRole).filter(([, content]) => content !== undefined);
    return { where, shape, prompt, answers: answers.map(([key, content]) => ({ key, content })) };
  }
  if (given == null) throw fault(where, 'missing key "prompt"');
  if (response != null && responses != null) throw fault(where, '"responses" and "response" both hold answers');
  if (shape === 'responses' && (!Array.isArray(responses) || responses.length === 0)) {
    throw fault(where, '"responses" must be a list of at least one response');
  }
  const prompt = readContent(given, 'prompt', where);
  const list = shape === 'responses' ? (responses as unknown[]) : [response];
  const answers = list.map((value, i) => {
    const key = shape === 'responses' ? `responses[${i}]` : 'response';
    const content = readResponse({ key, value }, { where, prompt });
    return { key, content };
  });
  return { where, shape, prompt, answers };
}
