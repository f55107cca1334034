/** Generation: samples of prompts from a model in the engine (native/model/generator.h). */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { WrpoError } from '../errors.js';
import type { GeneratedTokens, GeneratorShape, NativeGenerator } from '../native/addon.js';
import { TextStream } from '../text/text-stream.js';
import type { Tokenizer } from '../text/tokenizer.js';
import type { ModelConfig } from './config.js';

/** How tokens are drawn, as in transformers and in its order: penalty, temperature, top-k, top-p, min-p. */
export interface SamplingOptions {
  /** 0 takes the likeliest token. Default 1. */
  temperature?: number;
  /** The likeliest tokens that have this share together stay in. In (0, 1], default 1: all. */
  topP?: number;
  /** So many of the likeliest tokens stay in. Default 0: all. */
  topK?: number;
  /** Tokens of at least this share of the likeliest one's probability stay in. Default 0: all. */
  minP?: number;
  /** Divides the positive logits of tokens that were there before, and multiplies the negative ones. Default 1. */
  repetitionPenalty?: number;
  /** The longest sample, in tokens. Default 512. */
  maxTokens?: number;
}

export interface GeneratorOptions extends SamplingOptions {
  /** Tokens that end a sample. Default: those of generation_config.json, or else of config.json. */
  stopIds?: readonly number[];
  /** Texts that end a sample and are left out of it; they need `tokenizer`. */
  stop?: readonly string[];
  /** Gives samples their text. */
  tokenizer?: Tokenizer;
  /** The log-prob of every token by the model itself, before penalty, temperature and cuts. Default false. */
  logProbs?: boolean;
  /** So many sequences are continued at a time: more take more memory and less time. Default 64. */
  maxSequences?: number;
}

/** A prompt as token ids, and a seed for each sample of it: whole numbers from 0 to 2^53 - 1. */
export interface GenerationPrompt {
  ids: ArrayLike<number>;
  seeds: readonly number[];
}

export interface GeneratedSample {
  /** With the stop id, if one came. */
  ids: number[];
  /** `stop`: a stop id or a stop string; `length`: maxTokens. */
  finishReason: 'stop' | 'length';
  /** Where there is a tokenizer: without special tokens. */
  text?: string;
  logProbs?: number[];
}

/** All samples of a prompt. */
export interface GeneratedSamples {
  /** Which of the prompts, from 0. */
  prompt: number;
  /** In the order of the seeds. */
  samples: GeneratedSample[];
}

/** A token that came. */
export interface TokenNews {
  /** Which of the prompt's samples, from 0. */
  sample: number;
  id: number;
  /** What it adds to the text, where there is a tokenizer; it may come with a later token, or by the end. */
  text: string;
}

export interface SampleOptions {
  signal?: AbortSignal;
  /** Told of every token, for streaming; once more, with id -1, of a text that was held back until the end. */
  onToken?: (news: TokenNews) => void;
}

export interface GenerateOptions extends GeneratorOptions {
  signal?: AbortSignal;
  onToken?: (news: TokenNews & { prompt: number }) => void;
}

/** Calls of the engine take about so long, so that cancelling and streaming work. */
const MILLISECONDS = 30;

/** The options as the engine takes them, with their defaults. */
export function generatorShape(
  options: GeneratorOptions,
  model: { config: ModelConfig; directory?: string; baseDirectory?: string },
): GeneratorShape {
  const { temperature = 1, topP = 1, topK = 0, minP = 0, repetitionPenalty = 1, maxTokens = 512 } = options;
  const { stopIds = stopIdsOf(model), logProbs = false, maxSequences = 64, stop = [], tokenizer } = options;
  if (stop.length > 0 && !tokenizer) throw new WrpoError('ERR_CONFIG', 'stop strings need a tokenizer');
  if (stop.includes('')) throw new WrpoError('ERR_CONFIG', 'a stop string must not be empty');
  const sampling = { temperature, topP, topK, minP, repetitionPenalty, maxTokens };
  return { ...sampling, stopIds: Int32Array.from(stopIds), logProbs, maxSequences };
}

/** The ids that end a turn of a model: `eos_token_id` of generation_config.json, or else of config.json. */
export function stopIdsOf({
  config,
  directory,
  baseDirectory,
}: {
  config: ModelConfig;
  directory?: string;
  baseDirectory?: string;
}): number[] {
  const places = [directory, baseDirectory].filter((dir) => dir !== undefined);
  const path = places.map((dir) => join(dir, 'generation_config.json')).find((file) => existsSync(file));
  let given: unknown;
  try {
    given = path && JSON.parse(readFileSync(path, 'utf8'))?.eos_token_id;
  } catch (cause) {
    throw new WrpoError('ERR_MODEL', `${path} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
  const ids = [given ?? config.huggingFace.eos_token_id ?? []].flat();
  const odd = ids.find((id) => !Number.isInteger(id));
  if (odd === undefined) return ids as number[];
  throw new WrpoError('ERR_MODEL', `${path ?? 'config.json'}: "eos_token_id" must be token ids, found ${odd}`);
}

/** One sample on its way. */
interface Running {
  readonly sample: GeneratedSample;
  readonly stream?: TextStream;
  took(id: number, text: string): void;
  done(): void;
  fail(error: unknown): void;
}

/** A generator; see `Model.generator`. */
export class Generator {
  readonly #running = new Map<number, Running>();
  #nextId = 0;
  #isBusy = false;
  /** Rows that the next call of the engine computes. */
  #rows = 1;

  constructor(
    private readonly handle: NativeGenerator,
    private readonly options: GeneratorOptions,
  ) {}

  /**
   * A sample of the prompt for each seed; the prompt is read once. Any number of calls may wait at a time: they are
   * computed together. Throws ERR_DATA when the prompt is empty or holds an id that the model does not have, ERR_CONFIG
   * naming a seed that is none, ERR_CLOSED after `close`, and what aborted `signal`.
   */
  async sample({ ids: prompt, seeds }: GenerationPrompt, options: SampleOptions = {}): Promise<GeneratedSample[]> {
    const { signal, onToken } = options;
    signal?.throwIfAborted();
    const odd = seeds.find((seed) => !Number.isSafeInteger(seed) || seed < 0);
    if (odd !== undefined) throw new WrpoError('ERR_CONFIG', `seed ${odd}: expected a whole number from 0 to 2^53 - 1`);
    const tokens = Array.from(prompt);
    const at = tokens.findIndex((id) => !Number.isInteger(id) || Math.abs(id) >= 2 ** 31);
    if (at !== -1) throw new WrpoError('ERR_DATA', `the prompt's token ${at} is no token id: ${tokens[at]}`);
    const ids = seeds.map(() => this.#nextId++);
    const abort = () => this.#cancel(ids, signal!.reason);
    signal?.addEventListener('abort', abort);
    try {
      const all = Promise.all(ids.map((id, sample) => this.#begin(id, sample, onToken)));
      all.catch(() => {}); // told below, unless adding fails
      await this.handle.add({
        prompt: Int32Array.from(tokens),
        ids: Int32Array.from(ids),
        seeds: Float64Array.from(seeds),
      });
      if (!this.#isBusy) void this.#run();
      return await all;
    } catch (error) {
      for (const id of ids) this.#running.delete(id);
      throw error;
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  /** Ends all samples (ERR_CLOSED) and frees the memory of their sequences. */
  async close(): Promise<void> {
    this.#failAll(new WrpoError('ERR_CLOSED', 'the generator was closed'));
    await this.handle.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #begin(id: number, sample: number, onToken: SampleOptions['onToken']): Promise<GeneratedSample> {
    const { tokenizer, stop, logProbs } = this.options;
    return new Promise((resolve, reject) => {
      const made: GeneratedSample = { ids: [], finishReason: 'length', ...(logProbs && { logProbs: [] }) };
      this.#running.set(id, {
        sample: made,
        ...(tokenizer && { stream: new TextStream(tokenizer, stop) }),
        took: (token, text) => onToken?.({ sample, id: token, text }),
        done: () => resolve(made),
        fail: reject,
      });
    });
  }

  /** Calls the engine until there is no sample left. */
  async #run(): Promise<void> {
    this.#isBusy = true;
    try {
      while (this.#running.size > 0) {
        const began = performance.now();
        const tokens = await this.handle.advance(this.#rows);
        const rate = tokens.rows / Math.max(performance.now() - began, 0.01);
        this.#rows = Math.min(2 ** 16, Math.max(1, Math.round(rate * MILLISECONDS)));
        await this.#take(tokens);
      }
    } catch (error) {
      this.#failAll(error);
    } finally {
      this.#isBusy = false;
    }
  }

  async #take({ ids, tokens, finishes, logProbs }: GeneratedTokens): Promise<void> {
    const stopped: number[] = [];
    for (const [i, id] of ids.entries()) {
      const running = this.#running.get(id);
      if (!running) continue; // ended by a stop string or cancelled, while the engine went on
      const { sample, stream, took } = running;
      sample.ids.push(tokens[i]!);
      if (logProbs) sample.logProbs!.push(logProbs[i]!);
      took(tokens[i]!, (await stream?.push(tokens[i]!)) ?? '');
      const isStopped = stream?.stopped ?? false;
      if (isStopped && finishes[i] === 0) stopped.push(id);
      if (!isStopped && finishes[i] === 0) continue;
      const rest = (await stream?.end()) ?? '';
      if (rest !== '') took(-1, rest);
      if (isStopped || stream?.stopped || finishes[i] === 1) sample.finishReason = 'stop';
      if (stream) sample.text = stream.text;
      this.#running.delete(id);
      running.done();
    }
    if (stopped.length > 0) await this.handle.cancel({ ids: Int32Array.from(stopped) });
  }

  #cancel(ids: readonly number[], reason: unknown): void {
    const mine = ids.filter((id) => this.#running.has(id));
    const running = mine.map((id) => this.#running.get(id)!);
    for (const id of mine) this.#running.delete(id);
    const tell = async () => this.handle.cancel({ ids: Int32Array.from(mine) });
    tell().catch(() => {}); // a generator that is closed has nothing to cancel
    for (const { fail } of running) fail(reason);
  }

  #failAll(error: unknown): void {
    const all = [...this.#running.values()];
    this.#running.clear();
    for (const { fail } of all) fail(error);
  }
}

/** Samples of all prompts, so many at a time that the generator has enough to do; closes it. */
export async function* generateAll(
  generator: Generator,
  prompts: Iterable<GenerationPrompt> | AsyncIterable<GenerationPrompt>,
  { signal, onToken, maxSequences = 64 }: GenerateOptions,
): AsyncGenerator<GeneratedSamples> {
  const waiting: { samples: Promise<GeneratedSample[]>; count: number }[] = [];
  let open = 0;
  let index = 0;
  let done = 0;
  const next = async (): Promise<GeneratedSamples> => {
    const { samples, count } = waiting.shift()!;
    open -= count;
    return { prompt: done++, samples: await samples };
  };
  try {
    for await (const prompt of prompts) {
      const own = index++;
      const samples = generator.sample(prompt, {
        signal,
        ...(onToken && { onToken: (news) => onToken({ ...news, prompt: own }) }),
      });
      samples.catch(() => {}); // told when it is its turn
      waiting.push({ samples, count: prompt.seeds.length });
      open += prompt.seeds.length;
      while (open >= 2 * maxSequences && waiting.length > 1) yield await next();
    }
    while (waiting.length > 0) yield await next();
  } finally {
    await generator.close();
  }
}
