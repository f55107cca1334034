/**
 * Reward models behind vLLM's `/pooling` and `/classify`.
 *
 * A request is `{model, messages}` for one conversation, which the server renders by the model's own template, or with a
 * tokenizer at hand `{model, input: [text, …]}` for several that are rendered here. An answer is
 * `{data: [{index, data: [number] | [[number], …]}]}` from `/pooling` (of values for every token the last counts), or
 * `{data: [{index, probs: [number]}]}` from `/classify`.
 */
import { Tokenizer } from '../text/tokenizer.js';
import { toAnswer } from '../text/turns.js';
import { Malformed, RequestFailed, Server, type ServerOptions } from './requests.js';
import type { Scored, Scorer } from './score.js';

export interface HttpScorerOptions extends ServerOptions {
  api: 'pooling' | 'classify';
  /** Which of the numbers is the score. */
  output: number;
  /** A directory with a tokenizer, to render conversations here. */
  tokenizer?: string;
  /** Conversations a request, with `tokenizer`. */
  batch: number;
}

export async function httpScorer(options: HttpScorerOptions): Promise<Scorer> {
  const { name, model, api, output, tokenizer: directory, batch, concurrency } = options;
  // Both are beside the OpenAI part of the server.
  const server = new Server({ ...options, baseUrl: options.baseUrl.replace(/\/v1\/*$/, '') });
  const tokenizer = directory === undefined ? undefined : await Tokenizer.load(directory);
  const ask = (body: object, count: number, signal: AbortSignal): Promise<Scored[]> =>
    server
      .post(`/${api}`, { model, ...body }, (answer) => readScores(answer, count, output), signal)
      .catch((error): Scored[] => {
        if (!(error instanceof RequestFailed)) throw error;
        return Array.from({ length: count }, () => ({ failure: error.message }));
      });
  return {
    ...{ name, batch: directory === undefined ? 1 : batch, concurrency },
    depends: { kind: 'http', model, api, output, rendered: directory === undefined ? 'by the server' : 'here' },
    async score(items, signal) {
      const conversations = items.map(({ messages, response }) => [...messages, toAnswer(response)]);
      if (tokenizer) {
        const input = conversations.map((turns) => tokenizer.applyChatTemplate(turns));
        return ask({ input, add_special_tokens: false }, items.length, signal);
      }
      const one = (messages: ReturnType<typeof toAnswer>[]) =>
        ask({ messages, add_generation_prompt: false }, 1, signal);
      return (await Promise.all(conversations.map(one))).flat();
    },
  };
}

interface PoolingAnswer {
  data?: ({ index?: unknown; data?: unknown; probs?: unknown } | null)[];
}

function readScores(answer: unknown, count: number, output: number): number[] {
  const { data } = (answer ?? {}) as PoolingAnswer;
  if (!Array.isArray(data) || data.length !== count) throw new Malformed(`the answer has not ${count} results`);
  const scores = new Map<unknown, number>();
  for (const [i, result] of data.entries()) {
    const { index, data: pooled, probs } = result ?? {};
    let values: unknown = probs ?? pooled;
    while (Array.isArray(values) && Array.isArray(values[0])) values = values.at(-1);
    const score = Array.isArray(values) ? values[output] : undefined;
    if (typeof score !== 'number' && score !== null)
      throw new Malformed(`result ${i + 1} of the answer has no number ${output + 1}`);
    scores.set(index ?? i, score ?? Number.NaN); // no JSON, but Python's writer writes it
  }
  return Array.from({ length: count }, (_, index) => {
    const score = scores.get(index);
    if (score === undefined) throw new Malformed(`the answer has no result with the index ${index}`);
    return score;
  });
}
