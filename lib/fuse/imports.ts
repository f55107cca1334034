/** Answers that others have sampled, and maybe scored, taken into the store. */
import { createHash } from 'node:crypto';
import { createReadStream, statSync } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { fault } from '../data/rows.js';
import { readSource, type SourceOptions } from '../data/source.js';
import { promptIdOf, readPrompt } from './prompts.js';
import { type SampleTotals, totalsOf } from './sample.js';
import type { Depends, Shard } from './shard.js';
import { digestOf, type ScoreRow, type Store } from './store.js';

/** Where in a row things are: a column, or what is in it, as `column.key.0`. Several are taken one after the other. */
export interface ColumnMap {
  /** Default `prompt`. */
  prompt?: string;
  /** Default `prompt_id`, where there is one. */
  promptId?: string;
  /** Texts, assistant messages, conversations that end in one, or lists of them. */
  responses: string | readonly string[];
  scores?: string | readonly string[];
}

export interface ImportOptions extends Omit<SourceOptions, 'onFault'> {
  /** Names the model in files and errors. */
  name: string;
  /** A file, directory or data set. */
  source: string;
  /** Default: by what columns there are. */
  columns?: ColumnMap;
  /** As whose scores they are kept. Default `imported`. */
  scorer?: string;
  signal?: AbortSignal;
  say?: (line: string) => void;
}

/** The shapes of well-known data sets, the first one that fits. */
const SHAPES: readonly ColumnMap[] = [
  // The SimPO scripts' all_outputs.json and all_outputs_rm.json, llama3-ultrafeedback-armorm.
  { responses: 'all_generated_responses', scores: 'all_rm_scores' },
  // The SimPO scripts' output_<seed>.json.
  { responses: 'generated_text' },
  // ultrafeedback_binarized.
  { responses: ['chosen', 'rejected'], scores: ['score_chosen', 'score_rejected'] },
  { responses: 'responses', scores: 'scores' },
  { responses: 'response', scores: 'score' },
];

/**
 * Takes the answers to the store's prompts; of a prompt that is not there that is recorded, of several rows of a prompt
 * the first counts. Throws ERR_DATA naming the row that cannot be read, ERR_CHECKPOINT as `sampleModel` does.
 */
export async function importSamples(store: Store, options: ImportOptions): Promise<SampleTotals> {
  const { name, source, columns, scorer = 'imported', say, signal } = options;
  const depends: Depends = {
    import: statSync(source, { throwIfNoEntry: false })?.isFile() ? await hashOf(source) : source,
    ...{ split: options.split ?? null, config: options.config ?? null, revision: options.revision ?? null },
    columns: columns === undefined ? null : JSON.stringify(columns),
  };
  const samples = store.samples(name, depends);
  let scores: Shard<ScoreRow> | undefined;
  try {
    if (samples.finished) return totalsOf(samples.rows());
    const seen = new Set<string>();
    let strangers = 0;
    let repeated = 0;
    for await (const { id, texts, values } of answersOf(store, options)) {
      signal?.throwIfAborted();
      if (id === undefined) strangers++;
      else if (seen.has(id)) repeated++;
      else {
        seen.add(id);
        const row = texts.map((text) => ({ text, finish_reason: 'unknown' }));
        if (values) {
          scores ??= store.scores(scorer, name, depends);
          scores.append({ prompt_id: id, of: digestOf(row), scores: values });
        }
        samples.append({ prompt_id: id, samples: row, usage: { prompt_tokens: 0, completion_tokens: 0 } });
      }
    }
    for (const id of store.order.ids.filter((id) => !seen.has(id))) {
      const usage = { prompt_tokens: 0, completion_tokens: 0 };
      samples.append({ prompt_id: id, failure: `${source} has no answer to it`, samples: [], usage });
    }
    if (strangers > 0) say?.(`${name}: ${strangers} rows of ${source} answer other prompts and are left out`);
    if (repeated > 0) say?.(`${name}: ${repeated} rows of ${source} answer a prompt again and are left out`);
    // The scores first: finished samples are not read again.
    scores?.finish({ prompts: seen.size });
    samples.flush();
    const totals = totalsOf(samples.rows());
    samples.finish(totals);
    return totals;
  } finally {
    scores?.close();
    samples.close();
  }
}

interface Answers {
  /** Undefined for a prompt that the store does not have. */
  id: string | undefined;
  texts: string[];
  values: number[] | undefined;
}

async function* answersOf(store: Store, options: ImportOptions): AsyncGenerator<Answers> {
  const { source, columns } = options;
  const onFault = (error: unknown): never => {
    throw error;
  };
  let map = columns;
  const choose = (names: readonly string[], file: string) => {
    map ??= shapeOf(names, file);
    const { prompt = 'prompt', promptId = 'prompt_id', responses, scores = [] } = map;
    const wanted = [prompt, promptId, ...[responses, scores].flat()];
    return names.filter((name) => wanted.some((path) => path === name || path.startsWith(`${name}.`)));
  };
  for await (const { value, where } of readSource(source, { ...options, onFault }, choose)) {
    if (typeof value !== 'object' || value === null) throw fault(where, 'expected an object');
    map ??= shapeOf(Object.keys(value), where);
    const { prompt = 'prompt', promptId = 'prompt_id', responses, scores = [] } = map;
    const paths = [responses].flat();
    const texts = paths.flatMap((path) => textsOf(at(value, path), path, where));
    const given = [scores].flat().map((path) => at(value, path));
    const values = given.length > 0 && given.every((one) => one != null) ? given.flat() : undefined;
    if (values && values.length !== texts.length) {
      throw fault(where, `${values.length} scores of ${texts.length} responses; expected one for each`);
    }
    const odd = values?.find((score) => typeof score !== 'number' || !Number.isFinite(score));
    if (odd !== undefined) throw fault(where, `a score is ${JSON.stringify(odd)}; expected a number`);
    const own = at(value, promptId);
    let id = typeof own === 'string' && store.order.indexOf.has(own) ? own : undefined;
    if (id === undefined && (at(value, prompt) != null || own == null)) {
      const hash = promptIdOf(readPrompt(at(value, prompt), where));
      const known = store.aliases.get(hash) ?? hash;
      id = store.order.indexOf.has(known) ? known : undefined;
    }
    yield { id, texts, values: values as number[] | undefined };
  }
}

function shapeOf(names: readonly string[], where: string): ColumnMap {
  const shape = SHAPES.find(({ responses }) => [responses].flat().every((name) => names.includes(name)));
  if (shape) return shape;
  const there = names.map((name) => `"${name}"`).join(', ');
  throw fault(where, `no column is known to hold responses; name it with columns: {responses: …}; there is ${there}`);
}

function at(row: unknown, path: string): unknown {
  const own = (row as Record<string, unknown>)[path];
  if (own !== undefined) return own;
  return path.split('.').reduce<unknown>((value, key) => (value as Record<string, unknown> | undefined)?.[key], row);
}

interface Turn {
  role?: unknown;
  content?: unknown;
}
const isTurn = (value: unknown): value is Turn => typeof value === 'object' && value !== null && 'content' in value;

/** The responses that a value holds: see `ColumnMap`. */
function textsOf(value: unknown, path: string, where: string): string[] {
  if (typeof value === 'string') return [value];
  if (isTurn(value) && typeof value.content === 'string') return [value.content];
  if (!Array.isArray(value) || value.length === 0) {
    throw fault(where, `"${path}" must hold responses: texts, assistant messages or conversations`);
  }
  const conversation = value.every(isTurn) && value.some(({ role }) => role !== 'assistant');
  if (!conversation) return value.flatMap((one, i) => textsOf(one, `${path}.${i}`, where));
  const last = value.at(-1) as Turn;
  if (last.role === 'assistant') return textsOf(last, path, where);
  throw fault(where, `"${path}" must end in an assistant message, got the role ${JSON.stringify(last.role)}`);
}

async function hashOf(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}
