/** `wrpo data check`: what a training run would make of some rows, without loading any weights. */
import { isUtf8 } from 'node:buffer';
import { createHash } from 'node:crypto';
import { createReadStream, existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import {
  type Content,
  isIds,
  type PreferenceRow,
  type Role,
  readPreferences,
  toMessages,
  toPreferenceRow,
} from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { readModelConfig } from '../model/config.js';
import { type EncodedRow, encodeRows } from '../text/encode.js';
import { Tokenizer } from '../text/tokenizer.js';
import { fittingLoss, type LossType, type NamedObjective, rolesOf } from '../train/objective.js';
import { print } from './data-view.js';
import { writeOut } from './stdout.js';

export interface CheckOptions {
  model: string;
  lossType?: LossType;
  maxLength: number;
  maxPromptLength?: number;
  templateMode: 'default' | 'authors';
  /** Which row to show, from 1. */
  row: number;
  json?: boolean;
}

/** How many rows something holds for, and where the first of them stand. */
export interface Found {
  count: number;
  first: string[];
}

export interface Lengths {
  count: number;
  mean: number;
  max: number;
  /** Rows with at most `upTo` tokens, and more than the bucket before. */
  histogram: { upTo: number; count: number }[];
}

/** Token ids as they would be without limits, and the stretch of them that is kept. */
export interface Part {
  ids: number[];
  kept: [from: number, to: number];
}

/** What is found; as it stands, the output of `--json`. */
export interface DataReport {
  file: string;
  lossType?: LossType;
  templateMode: string;
  maxLength: number;
  maxPromptLength?: number;
  rows: number;
  /** Rows that cannot be used, as sentences. */
  bad: Found;
  /** Rows by what they hold: `text: prompt, chosen …`. */
  shapes: Record<string, number>;
  dropped: Found;
  cutPrompts: Found;
  cutResponses: Found;
  duplicatePrompts: Found;
  duplicateRows: Found;
  /** Rows whose chosen response is the rejected one. */
  chosenIsRejected: Found;
  sourceIsTarget: Found;
  /** Of the prompt and of each role, in tokens, before anything is cut. */
  lengths: Record<string, Lengths>;
  row?: { where: string; dropped: boolean; parts: Record<string, Part> };
}

const LISTED = 20;
// Rows per call of the tokenizer.
const SLICE = 64;

/** Prints what it finds; returns whether every row can be used, and one is left. */
export async function checkData(file: string, options: CheckOptions): Promise<boolean> {
  const { vocabSize } = readModelConfig(options.model);
  const hasTokenizer = existsSync(join(options.model, 'tokenizer.json'));
  const tokenizer = hasTokenizer ? await Tokenizer.load(options.model) : undefined;
  const report = await examine(file, options, tokenizer, vocabSize);
  if (options.json) await writeOut(`${JSON.stringify(report)}\n`);
  else await print(report, options.row, tokenizer);
  return report.bad.count === 0 && report.dropped.count < report.rows;
}

async function examine(
  file: string,
  options: CheckOptions,
  tokenizer: Tokenizer | undefined,
  vocabSize: number,
): Promise<DataReport> {
  const found = (): Found => ({ count: 0, first: [] });
  const { lossType, templateMode, maxLength, maxPromptLength } = options;
  const report: DataReport = {
    ...{ file, lossType, templateMode, maxLength, maxPromptLength, rows: 0, bad: found(), shapes: {} },
    ...{ dropped: found(), cutPrompts: found(), cutResponses: found(), duplicatePrompts: found() },
    ...{ duplicateRows: found(), chosenIsRejected: found(), sourceIsTarget: found(), lengths: {} },
  };
  const prompts = new Set<string>();
  const rows = new Set<string>();
  let shown: string | undefined;

  const take = async (slice: (PreferenceRow | WrpoError)[]) => {
    const roles = rolesOf({ lossType: report.lossType ?? 'wrpo' } as NamedObjective);
    const common = { tokenizer, roles, vocabSize, templateMode };
    const free = { ...common, maxLength: Number.MAX_SAFE_INTEGER };
    const readable = slice.filter((row) => !(row instanceof WrpoError)) as PreferenceRow[];
    const whole = await encodeEach(readable, async (part) => (await encodeRows(part, free)).rows);
    const over = readable.filter(({ where }) => {
      const row = whole.get(where)!;
      if (row instanceof WrpoError) return false;
      return longest(row) > maxLength || row.prompt.length > (maxPromptLength ?? maxLength);
    });
    const limits = { ...common, maxLength, maxPromptLength };
    const limited = byPlace(over.length === 0 ? [] : (await encodeRows(over, limits)).rows);
    const overPlaces = new Set(over.map(({ where }) => where));
    for (const item of slice) {
      const row = item instanceof WrpoError ? item : whole.get(item.where)!;
      if (row instanceof WrpoError) {
        note(report.bad, row.message);
        continue;
      }
      const kept = overPlaces.has(row.where) ? limited.get(row.where) : row;
      tally(report, row, kept);
      if (row.where !== shown || report.row) continue;
      report.row = { where: shown, dropped: kept === undefined, parts: partsOf(row, kept ?? row) };
    }
  };

  let slice: (PreferenceRow | WrpoError)[] = [];
  for await (const row of rowsOf(file)) {
    report.rows++;
    if (row instanceof WrpoError) slice.push(row);
    else {
      if (report.rows === options.row) shown = row.where;
      report.lossType ??= fittingLoss(row);
      const shape = shapeOf(row);
      report.shapes[shape] = (report.shapes[shape] ?? 0) + 1;
      compare(report, row, prompts, rows);
      slice.push(report.lossType === 'sft' ? asCompletion(row) : row);
    }
    if (slice.length < SLICE) continue;
    await take(slice);
    slice = [];
  }
  await take(slice);
  return report;
}

/** Encodes together, or after a fault one by one, so that each bad row gets its own. */
async function encodeEach(
  rows: PreferenceRow[],
  encode: (rows: PreferenceRow[]) => Promise<EncodedRow[]>,
): Promise<Map<string, EncodedRow | WrpoError>> {
  if (rows.length === 0) return new Map();
  try {
    return byPlace(await encode(rows));
  } catch (error) {
    if (!(error instanceof WrpoError) || error.code !== 'ERR_DATA') throw error;
    if (rows.length === 1) return new Map([[rows[0]!.where, error]]);
    const each: [string, EncodedRow | WrpoError][] = [];
    for (const row of rows) each.push(...(await encodeEach([row], encode)));
    return new Map(each);
  }
}

const byPlace = (rows: EncodedRow[]) => new Map(rows.map((row) => [row.where, row]));
const longest = ({ prompt, responses }: EncodedRow) =>
  prompt.length + Math.max(...Object.values(responses).map((ids) => ids.length));

/** The rows of a file, or in their place what is wrong with them; lines of JSON stand alone, so that reading goes on. */
async function* rowsOf(file: string): AsyncGenerator<PreferenceRow | WrpoError> {
  if (!/\.jsonl$/i.test(file) || !existsSync(file)) {
    try {
      yield* readPreferences(file);
    } catch (error) {
      // Without a row number it is no row's fault.
      if (!(error instanceof WrpoError) || error.code !== 'ERR_DATA' || !/^\S.* (line|row) \d+: /.test(error.message))
        throw error;
      yield new WrpoError('ERR_DATA', `${error.message}; what follows was not read`);
    }
    return;
  }
  let number = 0;
  let rows = 0;
  for await (const line of linesOf(file)) {
    const where = `${basename(file)} line ${++number}`;
    const text = line.toString().trim();
    if (text === '') continue;
    rows++;
    try {
      if (!isUtf8(line)) throw new WrpoError('ERR_DATA', `${where}: not valid UTF-8`);
      yield toPreferenceRow(JSON.parse(text), where);
    } catch (error) {
      const sentence = `${where}: expected one JSON object on the line, but ${(error as Error).message}`;
      yield error instanceof WrpoError ? error : new WrpoError('ERR_DATA', sentence);
    }
  }
  if (rows === 0) throw new WrpoError('ERR_DATA', `${file}: the file holds no rows`);
}

async function* linesOf(file: string): AsyncGenerator<Buffer> {
  let rest: Buffer = Buffer.alloc(0);
  for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>) {
    let start = 0;
    const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    for (let end = bytes.indexOf(10); end !== -1; end = bytes.indexOf(10, start)) {
      yield bytes.subarray(start, end);
      start = end + 1;
    }
    rest = bytes.subarray(start);
  }
  yield rest;
}

/** As fine-tuning takes it. */
function asCompletion(row: PreferenceRow): PreferenceRow {
  const { completion, source_chosen, target_chosen } = row.responses;
  return { ...row, responses: { completion: completion ?? source_chosen ?? target_chosen } };
}

function shapeOf({ prompt, responses }: PreferenceRow): string {
  const kind = isIds(prompt) ? 'token ids' : typeof prompt === 'string' ? 'text' : 'messages';
  return `${kind}: ${['prompt', ...Object.keys(responses)].join(', ')}`;
}

/** Looks for the row among those before it, and for its responses among each other. */
function compare(report: DataReport, row: PreferenceRow, prompts: Set<string>, rows: Set<string>): void {
  const { where, prompt, responses } = row;
  const seen = (set: Set<string>, value: unknown, into: Found) => {
    const key = createHash('sha256').update(JSON.stringify(value)).digest().toString('latin1', 0, 12);
    if (set.has(key)) note(into, where);
    set.add(key);
  };
  const asked = isIds(prompt) ? prompt : toMessages(prompt);
  seen(prompts, asked, report.duplicatePrompts);
  seen(
    rows,
    [asked, Object.entries(responses).map(([role, content]) => [role, answerOf(content)])],
    report.duplicateRows,
  );
  const same = (a: Role, b: Role) => {
    const [one, other] = [answerOf(responses[a]), answerOf(responses[b])];
    return one !== undefined && one === other;
  };
  if (same('source_chosen', 'rejected') || same('target_chosen', 'rejected')) note(report.chosenIsRejected, where);
  if (same('source_chosen', 'target_chosen')) note(report.sourceIsTarget, where);
}

function answerOf(content: Content | undefined): string | undefined {
  if (content === undefined || typeof content === 'string') return content;
  return isIds(content) ? content.join() : content.at(-1)?.content;
}

function note(found: Found, what: string): void {
  found.count++;
  if (found.first.length < LISTED) found.first.push(what);
}

/** Counts a row's lengths, and what the limits take of it; `kept` is undefined when that is the whole row. */
function tally(report: DataReport, row: EncodedRow, kept: EncodedRow | undefined): void {
  addLength(report.lengths, 'prompt', row.prompt.length);
  for (const [role, ids] of Object.entries(row.responses)) addLength(report.lengths, role, ids.length);
  if (!kept) {
    note(report.dropped, row.where);
    return;
  }
  if (kept.prompt.length < row.prompt.length) note(report.cutPrompts, row.where);
  for (const [role, ids] of Object.entries(row.responses)) {
    if (kept.responses[role as Role]!.length < ids.length) note(report.cutResponses, `${row.where}: ${role}`);
  }
}

function addLength(all: Record<string, Lengths>, name: string, length: number): void {
  all[name] ??= { count: 0, mean: 0, max: 0, histogram: [] };
  const lengths = all[name];
  lengths.count++;
  lengths.mean += (length - lengths.mean) / lengths.count;
  lengths.max = Math.max(lengths.max, length);
  const bucket = Math.max(0, Math.ceil(Math.log2(length)) - 3);
  for (let k = lengths.histogram.length; k <= bucket; k++) lengths.histogram.push({ upTo: 8 << k, count: 0 });
  lengths.histogram[bucket]!.count++;
}

function partsOf(row: EncodedRow, kept: EncodedRow): Record<string, Part> {
  const part = (whole: Int32Array, some: Int32Array): Part => {
    // Of a prompt either end may be kept, of a response the beginning.
    const from = some.every((id, i) => id === whole[i]) ? 0 : whole.length - some.length;
    return { ids: [...whole], kept: [from, from + some.length] };
  };
  const responses = Object.entries(row.responses).map(([role, ids]) => [
    role,
    part(ids, kept.responses[role as Role]!),
  ]);
  return { prompt: part(row.prompt, kept.prompt), ...Object.fromEntries(responses) };
}
