/** Scoring: a number for every sample in the store. */
import type { Message } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { inParallel } from './parallel.js';
import { type Depends, idsIn } from './shard.js';
import { digestOf, type SampleRow, type ScoreRow, type Store } from './store.js';

/** An answer to be scored. */
export interface ScoreItem {
  /** Names it in errors: model, prompt and sample. */
  where: string;
  promptId: string;
  source: string;
  messages: readonly Message[];
  response: string;
  /** `length`: it was cut off. */
  finishReason: string;
}

/** A score, or why there is none. */
export type Scored = number | { failure: string };

/** Anything that scores answers, each by itself. */
export interface Scorer {
  /** Names it in files and errors. */
  readonly name: string;
  /** About how many answers it wants at a time; those of a prompt come together. */
  readonly batch: number;
  /** How many batches it wants at a time. */
  readonly concurrency: number;
  /** What its scores depend on beside the answers. */
  readonly depends: Depends;
  /** One result an item, in order. Throws when it cannot score at all, or when aborted. */
  score(items: readonly ScoreItem[], signal: AbortSignal): Promise<Scored[]>;
  close?(): Promise<void>;
}

/** Scores by a function of one answer. What else its scores depend on goes into `version`. */
export function functionScorer(
  name: string,
  score: (item: ScoreItem) => number | Promise<number>,
  version: string | number = 1,
): Scorer {
  const all = (items: readonly ScoreItem[]) => Promise.all(items.map(score));
  return { name, batch: 64, concurrency: 1, depends: { kind: 'function', version }, score: all };
}

export interface ScoreStageOptions {
  /** Scores again what has no score from an earlier run. */
  retryFailed?: boolean;
  signal?: AbortSignal;
  /** Told of the answers of every batch that is done. */
  onScored?: (count: number) => void;
}

/** Of all scores of a model. */
export interface ScoreTotals {
  prompts: number;
  scores: number;
  /** Answers without a score. */
  failed: number;
  mean: number;
  /** Absent where there is no score. */
  lowest?: number;
  highest?: number;
}

interface Task {
  row: SampleRow;
  of: string;
  items: ScoreItem[];
}

/**
 * Scores the samples of a model that have no score yet, or that were sampled anew since. May be cut off and begun again as
 * `sampleModel`. Throws ERR_NON_FINITE naming model, prompt and sample of a score that is no number; scores that are on
 * disk stay.
 */
export async function scoreModel(
  store: Store,
  model: string,
  scorer: Scorer,
  options: ScoreStageOptions = {},
): Promise<ScoreTotals> {
  const { retryFailed = false, signal, onScored } = options;
  const shard = store.scores(scorer.name, model, scorer.depends);
  try {
    const known = new Map<string, string>();
    for (const { prompt_id, of, failure } of shard.rows()) {
      if (failure === undefined || !retryFailed) known.set(prompt_id, of);
    }
    const tasks = tasksOf(store, model, (id, of) => known.get(id) === of);
    await inParallel(batches(tasks, scorer.batch), scorer.concurrency, signal, async (batch, stop) => {
      const items = batch.flatMap((task) => task.items);
      const scored = await scorer.score(items, stop);
      const rows = batch.map(({ row, of, items }) =>
        rowOf(row.prompt_id, of, items, scored.splice(0, items.length), scorer),
      );
      for (const row of rows) shard.append(row);
      onScored?.(items.length);
    });
    shard.flush();
    const totals = totalsOf(shard.rows());
    shard.finish(totals);
    return totals;
  } finally {
    shard.close();
  }
}

/** How many answers of a model have no score yet, and the letters of conversations with them. */
export function openAnswers(store: Store, model: string, scorer: string): { answers: number; letters: number } {
  const scored = new Set(idsIn(store.scoresPath(scorer, model)));
  const open = { answers: 0, letters: 0 };
  for (const { items } of tasksOf(store, model, (id) => scored.has(id))) {
    open.answers += items.length;
    for (const { messages, response } of items) {
      open.letters += messages.reduce((sum, { content }) => sum + content.length, response.length);
    }
  }
  return open;
}

function* tasksOf(store: Store, source: string, isKnown: (id: string, of: string) => boolean): Generator<Task> {
  const reader = store.readSamples(source);
  try {
    let index = 0;
    for (const { promptId, messages } of store.prompts()) {
      const row = reader.at(index++);
      if (!row || row.samples.length === 0) continue;
      const of = digestOf(row.samples);
      if (isKnown(promptId, of)) continue;
      const items = row.samples.map(({ text: response, finish_reason: finishReason }, k) => {
        const where = `${source}: sample ${k + 1} of prompt ${promptId}`;
        return { where, promptId, source, messages, response, finishReason };
      });
      yield { row, of, items };
    }
  } finally {
    reader.close();
  }
}

function* batches(tasks: Iterable<Task>, size: number): Generator<Task[]> {
  let batch: Task[] = [];
  let filled = 0;
  for (const task of tasks) {
    batch.push(task);
    filled += task.items.length;
    if (filled < size) continue;
    yield batch;
    batch = [];
    filled = 0;
  }
  if (batch.length > 0) yield batch;
}

function rowOf(id: string, of: string, items: ScoreItem[], scored: Scored[], { name }: Scorer): ScoreRow {
  const failures: string[] = [];
  const scores = items.map(({ where }, k) => {
    const one = scored[k];
    if (typeof one === 'object') {
      failures.push(`sample ${k + 1}: ${one.failure}`);
      return null;
    }
    if (Number.isFinite(one)) return one!;
    throw new WrpoError('ERR_NON_FINITE', `${where}: the score by "${name}" is ${one}; expected a finite number`);
  });
  return { prompt_id: id, ...(failures.length > 0 && { failure: failures.join('; ') }), of, scores };
}

function totalsOf(rows: Iterable<ScoreRow>): ScoreTotals {
  const totals: ScoreTotals = { prompts: 0, scores: 0, failed: 0, mean: 0 };
  let sum = 0;
  for (const { scores } of rows) {
    totals.prompts++;
    for (const score of scores) {
      if (score === null) totals.failed++;
      else {
        totals.scores++;
        sum += score;
        totals.lowest = Math.min(totals.lowest ?? score, score);
        totals.highest = Math.max(totals.highest ?? score, score);
      }
    }
  }
  return { ...totals, mean: totals.scores > 0 ? sum / totals.scores : 0 };
}
