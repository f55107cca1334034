/** Sampling: every prompt to a model, every answer into the store. */
import type { Message } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { inParallel } from './parallel.js';
import { seedOf } from './seeds.js';
import type { Depends } from './shard.js';
import type { Sample, SampleRow, Store } from './store.js';

/** A prompt to be answered once for each seed. */
export interface SampleRequest {
  promptId: string;
  messages: readonly Message[];
  seeds: readonly number[];
}

/** What a model answered. */
export interface Answer {
  /** In the order of the seeds, without those that failed. */
  samples: Sample[];
  promptTokens: number;
  completionTokens: number;
  /** Why there are fewer samples than seeds; other prompts may do better. */
  failure?: string;
}

/**
 * Anything that answers prompts: a server, or a model in this process. A sample may depend on its prompt and seed alone,
 * so that neither order nor company changes what is sampled.
 */
export interface Sampler {
  /** Names the model in files and errors. */
  readonly name: string;
  /** How many prompts it wants at a time. */
  readonly concurrency: number;
  /** What its answers depend on beside prompt and seed: model, temperature, … */
  readonly depends: Depends;
  /** Throws only when no prompt would be answered, or when aborted. */
  sample(request: SampleRequest, signal: AbortSignal): Promise<Answer>;
  /** Lets go of what it holds. */
  close?(): Promise<void>;
}

export interface SampleOptions {
  /** Samples a prompt. */
  n: number;
  /** Of the run; see `seedOf`. */
  seed: number;
  /** Which prompts are asked. Default: all. */
  accept?: (promptId: string) => boolean;
  /** Asks prompts again that failed in an earlier run. */
  retryFailed?: boolean;
  signal?: AbortSignal;
  /** Told at first how many prompts are to be asked. */
  onOpen?: (prompts: number) => void;
  /** Told of every prompt that is done. */
  onPrompt?: (row: SampleRow) => void;
}

/** Of all rows of a model. */
export interface SampleTotals {
  prompts: number;
  samples: number;
  /** Prompts with a failure. */
  failed: number;
  /** Samples that ended because they were as long as they may be. */
  cut: number;
  promptTokens: number;
  completionTokens: number;
}

/** A model that has answered nothing after so many prompts is not asked further. */
const HOPELESS = 20;

/**
 * Samples what of the prompts is not in the store yet. However often it is cut off and begun again, no prompt is answered
 * twice; of the latest ones as many may be lost as are written at a time (32). Throws ERR_ENDPOINT when the model is out
 * of reach, ERR_CHECKPOINT when the store has samples of other settings or cannot be written: all rows that were sampled
 * stay.
 */
export async function sampleModel(store: Store, sampler: Sampler, options: SampleOptions): Promise<SampleTotals> {
  const { n, seed, accept = () => true, retryFailed = false, signal, onOpen, onPrompt } = options;
  const shard = store.samples(sampler.name, { n, seed, ...sampler.depends });
  try {
    /** Prompts that are asked again, with how many samples they have. */
    const failed = new Map<string, number>();
    if (retryFailed) {
      for (const row of shard.rows()) if (row.failure !== undefined) failed.set(row.prompt_id, row.samples.length);
    }
    const asks = (id: string, index: number) => accept(id) && (!shard.has(index) || failed.has(id));
    const open = new Set(store.order.ids.filter(asks));
    onOpen?.(open.size);
    if (open.size === 0 && shard.finished) return totalsOf(shard.rows());

    // Failures of a model that has answered nothing yet: they say something of it, not of the prompts.
    let held: SampleRow[] | undefined = [];
    const keep = (row: SampleRow) => {
      // What another try got less of does not replace what is there.
      if (row.samples.length >= (failed.get(row.prompt_id) ?? 0)) shard.append(row);
      onPrompt?.(row);
    };
    const add = (row: SampleRow) => {
      if (held && row.samples.length === 0) {
        held.push(row);
        if (held.length < HOPELESS) return;
        const what = `the first ${HOPELESS} prompts have no answer; ${row.failure}`;
        throw new WrpoError('ERR_ENDPOINT', `${sampler.name}: ${what}`);
      }
      for (const one of [...(held ?? []), row]) keep(one);
      held = undefined;
    };
    const asked = filter(store.prompts(), ({ promptId }) => open.has(promptId));
    await inParallel(asked, sampler.concurrency, signal, async ({ promptId, messages }, stop) => {
      const seeds = Array.from({ length: n }, (_, index) => seedOf(seed, promptId, sampler.name, index));
      const { samples, promptTokens, completionTokens, failure } = await sampler.sample(
        { promptId, messages, seeds },
        stop,
      );
      const usage = { prompt_tokens: promptTokens, completion_tokens: completionTokens };
      add({ prompt_id: promptId, ...(failure !== undefined && { failure }), samples, usage });
    });
    for (const row of held ?? []) keep(row);
    shard.flush();
    const totals = totalsOf(shard.rows());
    shard.finish(totals);
    return totals;
  } finally {
    shard.close();
  }
}

export function totalsOf(rows: Iterable<SampleRow>): SampleTotals {
  const totals = { prompts: 0, samples: 0, failed: 0, cut: 0, promptTokens: 0, completionTokens: 0 };
  for (const { failure, samples, usage } of rows) {
    totals.prompts++;
    totals.samples += samples.length;
    totals.failed += Number(failure !== undefined);
    totals.cut += samples.filter(({ finish_reason }) => finish_reason === 'length').length;
    totals.promptTokens += usage.prompt_tokens;
    totals.completionTokens += usage.completion_tokens;
  }
  return totals;
}

function* filter<T>(items: Iterable<T>, accept: (item: T) => boolean): Generator<T> {
  for (const item of items) if (accept(item)) yield item;
}
