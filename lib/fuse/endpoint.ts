/** Models behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, hosted ones. */
import type { Message } from '../data/preferences.js';
import { isAboutRoles, Malformed, Refused, RequestFailed, Server, type ServerOptions, usageOf } from './requests.js';
import type { Answer, Sampler } from './sample.js';
import type { Sample } from './store.js';

export interface ChatOptions extends ServerOptions {
  temperature: number;
  topP: number;
  maxTokens: number;
  /** Goes into every request, over what is there; null takes a key out. */
  extraBody?: Record<string, unknown>;
  /** Told once when system messages have to be written into the user's turn. */
  say?: (line: string) => void;
}

/** Of one request. */
export interface Completions {
  samples: Sample[];
  promptTokens: number;
  completionTokens: number;
}

/** `/chat/completions`, where the server applies the model's own chat template. */
export class Chat {
  readonly #server: Server;
  /** Whether the model's template turned out to take no system turn. */
  #foldsSystem = false;

  constructor(readonly options: ChatOptions) {
    this.#server = new Server(options);
  }

  /**
   * Up to `n` answers to a conversation; a server may give fewer. A system turn that the model does not know is put in
   * front of the first user turn, a blank line between. Throws as `Server.post` does.
   */
  async complete(messages: readonly Message[], seed: number, n: number, signal?: AbortSignal): Promise<Completions> {
    const given = this.#foldsSystem ? foldSystem(messages) : messages;
    try {
      return await this.#ask(given, seed, n, signal);
    } catch (error) {
      const folds = error instanceof Refused && isAboutRoles(error.said) && given[0]?.role === 'system';
      if (!folds) throw error;
      if (!this.#foldsSystem) {
        this.options.say?.(`${this.options.name}: the model takes no system turns; they go into the first user turn`);
      }
      this.#foldsSystem = true;
      return this.#ask(foldSystem(messages), seed, n, signal);
    }
  }

  #ask(messages: readonly Message[], seed: number, n: number, signal?: AbortSignal): Promise<Completions> {
    const { model, temperature, topP, maxTokens, extraBody = {} } = this.options;
    const settings = { temperature, top_p: topP, max_tokens: maxTokens, n, seed };
    const body = Object.entries({ model, messages, ...settings, ...extraBody }).filter(([, value]) => value !== null);
    const read = (answer: unknown) => readCompletions(answer, seed);
    return this.#server.post('/chat/completions', Object.fromEntries(body), read, signal);
  }
}

/** A conversation without a system turn: its text stands before the first user's. */
export function foldSystem(messages: readonly Message[]): Message[] {
  const [system, next, ...rest] = messages;
  if (system?.role !== 'system') return [...messages];
  if (next?.role !== 'user') return [{ role: 'user', content: system.content }, ...messages.slice(1)];
  return [{ role: 'user', content: `${system.content}\n\n${next.content}` }, ...rest];
}

interface ChatAnswer {
  choices?: { message?: { content?: unknown }; finish_reason?: unknown }[];
}

function readCompletions(answer: unknown, seed: number): Completions {
  const { choices } = (answer ?? {}) as ChatAnswer;
  if (!Array.isArray(choices) || choices.length === 0) throw new Malformed('the answer has no choices');
  const samples = choices.map((choice): Sample => {
    const text = choice?.message?.content;
    if (typeof text !== 'string') throw new Malformed('a choice of the answer has no text');
    const { finish_reason: reason } = choice;
    return { text, finish_reason: typeof reason === 'string' ? reason : 'unknown', seed };
  });
  const { prompt_tokens: promptTokens, completion_tokens: completionTokens } = usageOf(answer);
  return { samples, promptTokens, completionTokens };
}

export interface EndpointOptions extends ChatOptions {
  /** Up to so many samples are asked for in one request, with the seed of the first. Default 1: each has its own. */
  samplesPerRequest?: number;
}

/** A source of samples. */
export function endpointSampler(options: EndpointOptions): Sampler {
  const { name, concurrency, model, temperature, topP, maxTokens, extraBody, samplesPerRequest = 1 } = options;
  const chat = new Chat(options);
  /** Samples of all these seeds, in order, however many the server gives at a time. */
  const ask = async (messages: readonly Message[], seeds: readonly number[], signal: AbortSignal): Promise<Answer> => {
    const all: Answer = { samples: [], promptTokens: 0, completionTokens: 0 };
    while (all.samples.length < seeds.length) {
      const missing = seeds.slice(all.samples.length);
      const { samples, promptTokens, completionTokens } = await chat
        .complete(messages, missing[0]!, missing.length, signal)
        .catch((error): Completions => {
          if (!(error instanceof RequestFailed)) throw error;
          all.failure = error.message;
          return { samples: [], promptTokens: 0, completionTokens: 0 };
        });
      all.samples.push(...samples.slice(0, missing.length));
      all.promptTokens += promptTokens;
      all.completionTokens += completionTokens;
      if (all.failure !== undefined) break;
    }
    return all;
  };
  return {
    name,
    concurrency,
    depends: {
      ...{ model, temperature, top_p: topP, max_tokens: maxTokens, samples_per_request: samplesPerRequest },
      extra_body: extraBody === undefined ? null : JSON.stringify(extraBody),
    },
    async sample({ messages, seeds }, signal) {
      const parts: Promise<Answer>[] = [];
      for (let i = 0; i < seeds.length; i += samplesPerRequest) {
        parts.push(ask(messages, seeds.slice(i, i + samplesPerRequest), signal));
      }
      const answers = await Promise.all(parts);
      const sum = (of: (answer: Answer) => number) => answers.reduce((total, answer) => total + of(answer), 0);
      const failure = answers.find((answer) => answer.failure !== undefined)?.failure;
      return {
        samples: answers.flatMap(({ samples }) => samples),
        promptTokens: sum((answer) => answer.promptTokens),
        completionTokens: sum((answer) => answer.completionTokens),
        ...(failure !== undefined && { failure }),
      };
    },
  };
}
