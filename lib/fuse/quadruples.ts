/** A selection: rows to train on, as a view of the store. Another subset, rank or rule takes no new sampling. */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { PendingFile, writeError } from '../data/files.js';
import type { Message } from '../data/preferences.js';
import { type Columns, type ColumnType, type RowWriter, writeJsonl, writeParquet } from '../data/writers.js';
import { WrpoError } from '../errors.js';
import { yaml } from '../packages.js';
import type { Prompt } from './prompts.js';
import { type Pick, pickTarget, type Reason, rankSources } from './select.js';
import type { ShardReader } from './shard.js';
import { type Part, type SplitRule, splitPrompts } from './split.js';
import { digestOf, type Sample, type SampleRow, type ScoreRow, type Store } from './store.js';

export interface SelectOptions extends SplitRule {
  /** Where y_ws comes from, in the order that ties are decided in. */
  sources: readonly string[];
  /** Where y_wt and y_l come from; without one, only rows for fine-tuning are selected. */
  target?: string;
  scorer: string;
  /** 1: of a prompt's best source; 2: of the second best. */
  rank: 1 | 2;
  /** Adds y_ls. */
  sourceRejected: boolean;
  /** Keeps prompts whose target's, or source's, answers are no better than each other: the rest can still be learnt. Default false. */
  keepTies?: boolean;
  /**
   * `authors`: {prompt: {role, content}, chosen: [y_ws, y_wt], rejected: [y_l, y_ls?]}, for prompts of one turn; `flat`:
   * {prompt: [{role, content}], source_chosen, target_chosen, rejected, source_rejected?}.
   */
  rowSchema: 'authors' | 'flat';
  format: 'jsonl' | 'parquet';
  /** Gets train, test and sft files, and `selection.yaml`; without one nothing is written. */
  directory?: string;
  onPrompt?: () => void;
}

export interface Selection {
  /** Rows of each file. */
  rows: Record<Part, number>;
  /** Prompts of each part. */
  prompts: Record<Part, number>;
  /** Prompts that gave no row, by reason. */
  dropped: Partial<Record<Reason, number>>;
  /** For each source the percentage of all prompts whose y_ws is its own (the paper's Table 1). */
  shares: Record<string, number>;
  /** Mean scores over the rows of train and test; `source_rejected` is y_ls whether it is written or not. */
  scores: Partial<Record<'source_chosen' | 'target_chosen' | 'source_rejected' | 'rejected', number>>;
}

/** A prompt's answers of one model. */
interface Answers {
  model: string;
  samples: Sample[];
  scores: readonly (number | null)[];
}

/**
 * Selects in one pass over the store. Throws ERR_DATA when a model is not sampled or scored to the end, when scores are of
 * other samples, and when a prompt of several turns is to go into the authors' schema.
 */
export function selectRows(store: Store, options: SelectOptions): Selection {
  const { sources, target, scorer, directory, onPrompt } = options;
  if (sources.length === 0) throw new WrpoError('ERR_CONFIG', 'select: there are no sources to take y_ws from');
  const parts = splitPrompts(store.order.ids, options);
  const readers = sources.map((model) => new Answering(store, model, scorer));
  const own = target === undefined ? undefined : new Answering(store, target, scorer);
  const tally = new Tally(sources);
  const writers = directory === undefined ? undefined : openWriters(directory, options);
  try {
    let index = 0;
    for (const prompt of store.prompts()) {
      const part = parts[index]!;
      const answers = readers.map((reader) => reader.at(index));
      const row = rowOf(prompt, part, answers, part === 'sft' ? undefined : own?.at(index), tally, options);
      if (row) writers?.[part].write(row);
      index++;
      onPrompt?.();
    }
    const selection = tally.result(index);
    if (directory !== undefined) {
      for (const part of PARTS) {
        if (selection.rows[part] > 0) writers![part].finish();
        else writers![part].abandon();
      }
      const { onPrompt: _, directory: __, ...rule } = options;
      const manifest = new PendingFile(join(directory, MANIFEST));
      manifest.write(yaml().stringify({ prompts: store.promptsHash, rule, selection }));
      manifest.finish();
    }
    return selection;
  } catch (error) {
    for (const writer of Object.values(writers ?? {})) writer.abandon();
    throw error;
  } finally {
    for (const reader of [...readers, ...(own ? [own] : [])]) reader.close();
  }
}

function rowOf(
  prompt: Prompt,
  part: Part,
  answers: readonly Answers[],
  own: Answers | undefined,
  tally: Tally,
  options: SelectOptions,
): object | undefined {
  const { target, rank, sourceRejected, keepTies } = options;
  tally.prompts[part]++;
  const { best, worst } = rankSources(answers);
  const source = best[rank - 1];
  if (!source) return tally.drop(best.length === 0 ? 'no source answer' : 'no second source');
  tally.count(source);
  const textOf = ({ model, index }: Pick) => answers.find((one) => one.model === model)!.samples[index]!.text;
  if (part === 'sft') {
    tally.rows.sft++;
    return completion(prompt, textOf(source), source);
  }
  if (target === undefined) return undefined;
  const picked = pickTarget(own?.samples ?? [], own?.scores ?? [], { keepTies });
  if (typeof picked === 'string') return tally.drop(picked);
  const low = worst[rank - 1]!;
  if (sourceRejected && !keepTies && textOf(low) === textOf(source)) return tally.drop('source answers all alike');
  const scores = {
    source_chosen: source.score,
    target_chosen: picked.best.score,
    rejected: picked.worst.score,
    source_rejected: low.score,
  };
  tally.rows[part]++;
  tally.add(scores);
  const texts = {
    source_chosen: textOf(source),
    target_chosen: own!.samples[picked.best.index]!.text,
    rejected: own!.samples[picked.worst.index]!.text,
    ...(sourceRejected && { source_rejected: textOf(low) }),
  };
  return quadruple(prompt, texts, { source_model: source.model, target_model: target, ...scores }, options);
}

const answer = (content: string): Message => ({ role: 'assistant', content });

/** A row for fine-tuning, as TRL has it: y_ws is the completion. */
function completion({ promptId, messages }: Prompt, text: string, { model, score }: Pick): object {
  const meta = { source_model: model, source_chosen: score };
  return { prompt_id: promptId, prompt: messages, completion: [answer(text)], meta };
}

type Texts = Record<'source_chosen' | 'target_chosen' | 'rejected', string> & { source_rejected?: string };

function quadruple({ promptId, messages }: Prompt, texts: Texts, meta: object, { rowSchema }: SelectOptions): object {
  const { source_chosen, target_chosen, rejected, source_rejected } = texts;
  if (rowSchema === 'flat') return { prompt_id: promptId, prompt: messages, ...texts, meta };
  const [prompt, ...more] = messages;
  if (more.length > 0) {
    throw new WrpoError(
      'ERR_DATA',
      `prompt ${promptId} has ${messages.length} turns, and the authors' schema holds one; select with row_schema: flat`,
    );
  }
  const low = source_rejected === undefined ? [rejected] : [rejected, source_rejected];
  return {
    prompt_id: promptId,
    prompt,
    chosen: [source_chosen, target_chosen].map(answer),
    rejected: low.map(answer),
    meta,
  };
}

/** A model's answers with their scores, prompt by prompt. */
class Answering {
  readonly #samples: ShardReader<SampleRow>;
  readonly #scores: ShardReader<ScoreRow>;

  constructor(
    store: Store,
    readonly model: string,
    scorer: string,
  ) {
    this.#samples = store.readSamples(model);
    this.#scores = store.readScores(scorer, model);
  }

  at(index: number): Answers {
    const { model } = this;
    const row = this.#samples.at(index);
    if (!row || row.samples.length === 0) return { model, samples: [], scores: [] };
    const scored = this.#scores.at(index);
    if (scored?.of === digestOf(row.samples)) return { model, samples: row.samples, scores: scored.scores };
    const what = scored ? 'are of other samples than there are now' : 'lack those';
    throw new WrpoError(
      'ERR_DATA',
      `${this.#scores.path} ${what} of prompt ${row.prompt_id}; run \`wrpo score\` again`,
    );
  }

  close(): void {
    this.#samples.close();
    this.#scores.close();
  }
}

/** What a selection counts. */
class Tally {
  readonly rows = { train: 0, test: 0, sft: 0 };
  readonly prompts = { train: 0, test: 0, sft: 0 };
  readonly #dropped: Partial<Record<Reason, number>> = {};
  readonly #wins: Map<string, number>;
  readonly #sums: Record<string, number> = {};

  constructor(sources: readonly string[]) {
    this.#wins = new Map(sources.map((model) => [model, 0]));
  }

  drop(reason: Reason): undefined {
    this.#dropped[reason] = (this.#dropped[reason] ?? 0) + 1;
  }

  count({ model }: Pick): void {
    this.#wins.set(model, this.#wins.get(model)! + 1);
  }

  add(scores: Record<string, number>): void {
    for (const [name, score] of Object.entries(scores)) this.#sums[name] = (this.#sums[name] ?? 0) + score;
  }

  result(count: number): Selection {
    const { rows, prompts } = this;
    const means = Object.entries(this.#sums).map(([name, sum]) => [name, sum / (rows.train + rows.test)]);
    const shares = [...this.#wins].map(([model, wins]) => [model, (100 * wins) / count]);
    return {
      ...{ rows, prompts, dropped: this.#dropped },
      shares: Object.fromEntries(shares),
      scores: Object.fromEntries(means),
    };
  }
}

const PARTS: readonly Part[] = ['train', 'test', 'sft'];
/** Of a kind that no reader of data takes for rows. */
const MANIFEST = 'selection.yaml';

const MESSAGE: ColumnType = { struct: { role: 'string', content: 'string' } };
const MESSAGES: ColumnType = { list: MESSAGE };

/** The columns of the rows of a part. */
function columnsOf(part: Part, { rowSchema, sourceRejected }: SelectOptions): Columns {
  const source: Columns = { source_model: 'string', source_chosen: 'double' };
  if (part === 'sft') {
    return { prompt_id: 'string', prompt: MESSAGES, completion: MESSAGES, meta: { struct: source } };
  }
  const scores: Columns = { target_chosen: 'double', rejected: 'double', source_rejected: 'double' };
  const meta: ColumnType = { struct: { ...source, target_model: 'string', ...scores } };
  if (rowSchema === 'authors') {
    return { prompt_id: 'string', prompt: MESSAGE, chosen: MESSAGES, rejected: MESSAGES, meta };
  }
  const texts: Columns = { source_chosen: 'string', target_chosen: 'string', rejected: 'string' };
  const low: Columns = sourceRejected ? { source_rejected: 'string' } : {};
  return { prompt_id: 'string', prompt: MESSAGES, ...texts, ...low, meta };
}

function openWriters(directory: string, options: SelectOptions): Record<Part, RowWriter> {
  const { format } = options;
  try {
    mkdirSync(directory, { recursive: true });
    // What is left of another selection, maybe in the other format, would be read as part of this one.
    const files = PARTS.flatMap((part) => ['jsonl', 'parquet'].map((kind) => `${part}.${kind}`));
    for (const file of [MANIFEST, ...files].flatMap((name) => [name, `${name}.tmp`])) {
      rmSync(join(directory, file), { force: true });
    }
  } catch (cause) {
    throw writeError(directory, cause);
  }
  const open = (part: Part) => {
    const path = join(directory, `${part}.${format}`);
    return format === 'jsonl' ? writeJsonl(path) : writeParquet(path, columnsOf(part, options));
  };
  return { train: open('train'), test: open('test'), sft: open('sft') };
}
