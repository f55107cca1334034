/** The report of `wrpo data check`: rows read as training reads them, and counted. */
import { createHash } from 'node:crypto';
import {
  type Content,
  isIds,
  type PreferenceRow,
  type Role,
  readPreferences,
  toMessages,
} from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { type EncodeOptions, encodeRows, type RowIds } from '../text/encode.js';
import type { Tokenizer } from '../text/tokenizer.js';
import { readsWholeTexts, type TrainingArgs } from '../train/args.js';
import { fittingLoss, objectiveOf, rolesOf } from '../train/objective.js';
import { encodingOf, rowFor, trainSplit } from '../train/prepare.js';

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
  /** The run's, or what the first row has the responses for. */
  lossType?: string;
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
  /** With `packing_strategy: wrapped`: of how many tokens the blocks are made, and how many are left out at the end. */
  blocks?: { count: number; leftOver: number };
  duplicatePrompts: Found;
  duplicateRows: Found;
  /** Rows whose chosen response is the rejected one. */
  chosenIsRejected: Found;
  sourceIsTarget: Found;
  /** Of the prompt and of each role, or where whole texts are read of `text`; in tokens, before anything is cut. */
  lengths: Record<string, Lengths>;
  row?: { where: string; dropped: boolean; parts: Record<string, Part> };
}

export interface Examination {
  vocabSize: number;
  tokenizer?: Tokenizer;
  /** The row to tell the tokens of, from 1. */
  shown: number;
  say: (line: string) => void;
}

type Run = Omit<TrainingArgs, 'lossType'> & { lossType?: TrainingArgs['lossType'] };
/** A row's ids, and what the limits leave of them. */
type Encoded = { whole: RowIds; kept: RowIds | undefined };

const LISTED = 20;
// Rows per call of the tokenizer.
const SLICE = 64;

/** Reads all rows that a run would train on; without a loss of its own the run has the one that fits its first row. */
export async function examine(file: string, run: Run, examination: Examination): Promise<DataReport> {
  const { vocabSize, tokenizer, shown, say } = examination;
  const { templateMode, maxLength, maxPromptLength } = run;
  const found = (): Found => ({ count: 0, first: [] });
  const report: DataReport = {
    ...{ file, lossType: run.lossType, templateMode, maxLength, maxPromptLength, rows: 0, bad: found(), shapes: {} },
    ...{ dropped: found(), cutPrompts: found(), cutResponses: found(), duplicatePrompts: found() },
    ...{ duplicateRows: found(), chosenIsRejected: found(), sourceIsTarget: found(), lengths: {} },
  };
  const prompts = new Set<string>();
  const rows = new Set<string>();
  let args: TrainingArgs | undefined;
  let slice: (PreferenceRow | WrpoError)[] = [];
  let tokens = 0;

  const take = async () => {
    const first = report.rows - slice.length + 1;
    const roles = args && rolesOf(objectiveOf(args, args.alpha));
    const encoding = args && { ...encodingOf(args, vocabSize, roles!), tokenizer };
    const readable = slice.filter((item) => !(item instanceof WrpoError)) as PreferenceRow[];
    const encoded = encoding && (await encodeEach(readable, encoding));
    for (const [i, item] of slice.entries()) {
      const row = item instanceof WrpoError ? item : encoded!.get(item)!;
      if (row instanceof WrpoError) {
        note(report.bad, row.message);
        continue;
      }
      const { where } = item as PreferenceRow;
      const parts = partsOf(row, args!, encoding!.roles);
      tally(report, where, parts, row.kept === undefined);
      for (const { ids } of Object.values(parts)) tokens += ids.length;
      if (first + i === shown) report.row = { where, dropped: row.kept === undefined, parts };
    }
    slice = [];
  };
  const put = async (item: PreferenceRow | WrpoError) => {
    report.rows++;
    slice.push(item);
    if (slice.length === SLICE) await take();
  };

  const options = { ...trainSplit(run as TrainingArgs), say, onFault: put };
  for await (const row of readPreferences(file, options)) {
    args ??= { ...run, lossType: run.lossType ?? fittingLoss(row) };
    const shape = shapeOf(row);
    report.shapes[shape] = (report.shapes[shape] ?? 0) + 1;
    compare(report, row, prompts, rows);
    await put(rowFor(args.lossType, row));
  }
  await take();
  if (args) report.lossType = args.lossType;
  if (run.packing && run.packingStrategy === 'wrapped') {
    report.blocks = { count: Math.floor(tokens / maxLength), leftOver: tokens % maxLength };
  }
  return report;
}

/** What encoding makes of each row. A bad one ends it, after all rows before: it is begun again behind that. */
async function encodeEach(
  rows: readonly PreferenceRow[],
  encoding: EncodeOptions,
): Promise<Map<PreferenceRow, Encoded | WrpoError>> {
  const found = new Map<PreferenceRow, Encoded | WrpoError>();
  while (found.size < rows.length) {
    const rest = rows.slice(found.size);
    let next = 0;
    const onRow = (whole: RowIds, kept: RowIds | undefined) => found.set(rest[next++]!, { whole, kept });
    try {
      await encodeRows(rest, { ...encoding, onRow });
    } catch (error) {
      const row = rest[next];
      // What does not begin with the row is no fault of it.
      if (!(error instanceof WrpoError) || !row || !error.message.startsWith(`${row.where}: `)) throw error;
      found.set(row, error);
    }
  }
  return found;
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

/** The prompt and each response of a row, or its one text where whole texts are read. */
function partsOf({ whole, kept = whole }: Encoded, args: TrainingArgs, roles: readonly Role[]): Record<string, Part> {
  const all = [whole, kept].map(({ prompt, responses }) =>
    readsWholeTexts(args) ? [[...prompt, ...responses[0]!]] : [prompt, ...responses],
  );
  const names = readsWholeTexts(args) ? ['text'] : ['prompt', ...roles];
  const part = (ids: number[], some: number[]): Part => {
    // Of a prompt either end may be kept, of a response the beginning.
    const from = some.every((id, i) => id === ids[i]) ? 0 : ids.length - some.length;
    return { ids, kept: [from, from + some.length] };
  };
  return Object.fromEntries(names.map((name, k) => [name, part(all[0]![k]!, all[1]![k]!)]));
}

/** Counts a row's lengths, and what the limits take of it. */
function tally(report: DataReport, where: string, parts: Record<string, Part>, dropped: boolean): void {
  if (dropped) note(report.dropped, where);
  for (const [name, { ids, kept }] of Object.entries(parts)) {
    addLength(report.lengths, name, ids.length);
    if (kept[1] - kept[0] === ids.length) continue;
    if (name === 'prompt') note(report.cutPrompts, where);
    else note(report.cutResponses, `${where}: ${name}`);
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
