/**
 * Questions to a judge behind an OpenAI-compatible server: many at a time, each once, whatever happens to process and
 * server; every raw completion is kept.
 */
import { createHash } from 'node:crypto';
import type { Message } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { inParallel } from '../fuse/parallel.js';
import { Malformed, RequestFailed, Server, type ServerOptions, type Usage, usageOf } from '../fuse/requests.js';
import { Shard, type ShardRow } from '../fuse/shard.js';

/** A question, by what it is about: no two have the same id. */
export interface Question {
  id: string;
  messages: Message[];
}

/** A choice of a chat completion, as it came. */
export interface Choice {
  message?: { content?: string | null };
  finish_reason?: string | null;
  logprobs?: { content?: { top_logprobs?: { token: string; logprob: number }[] }[] | null } | null;
  [more: string]: unknown;
}

/** What a completion says: a verdict (null: none that counts), or a conversation to be continued. */
export type Reading<V> = { verdict: V | null } | { again: Message[] };

/** Reads the completions of a question; undefined: the last lacks what `needs` names, and is asked for anew. */
export interface Reader<V> {
  read(completions: readonly Choice[], question: Question): Reading<V> | undefined;
  needs: string;
}

/** A reader of a single completion. */
export const readOnce = <V>(read: (choice: Choice) => Reading<V> | undefined, needs = 'text'): Reader<V> => ({
  read: (completions) => read(completions.at(-1)!),
  needs,
});

/** The text of a completion, if it has one: its shape is what a server made of it. */
export function textOf(choice: Choice): string | undefined {
  const content: unknown = choice.message?.content;
  return typeof content === 'string' ? content : undefined;
}

/** A line of the file of judgments. */
export interface JudgedRow<V> extends ShardRow {
  verdict: V | null;
  /** Why there is no completion; the row counts as one without a verdict. */
  failure?: string;
  completions: Choice[];
  judge: string;
  prompt_sha256: string;
  date: string;
  usage: Usage;
  dollars?: number;
  seconds: number;
}

export interface Prices {
  /** Dollars for a million tokens. */
  input: number;
  output: number;
}

export interface JudgeServer extends ServerOptions {
  prices?: Prices;
  /** Goes into every request over its settings; null takes a key out. */
  extraBody?: Record<string, unknown>;
}

export interface JudgeOptions<V> {
  judge: JudgeServer;
  reader: Reader<V>;
  /** Of a request, beside model and messages. */
  settings: { max_tokens: number; [key: string]: unknown };
  /** Of the texts that questions are made from. */
  promptHash: string;
  /** The file of judgments, which the next run continues. */
  path: string;
  /** Which questions are asked. Default: all. */
  accept?: (id: string) => boolean;
  /** Dollars, over all runs that wrote to the file. */
  maxCost?: number;
  /** Asks again what got no answer in an earlier run. */
  retryFailed?: boolean;
  signal?: AbortSignal;
  onOpen?: (questions: number) => void;
  onJudged?: () => void;
}

/**
 * The judgments by question of those that `accept` lets through; what the file has is not asked again. Throws
 * ERR_ENDPOINT when the judge is out of reach or its answers lack what is needed, ERR_CONFIG when `maxCost` is reached,
 * ERR_CHECKPOINT when the file was made with other questions or settings: all judgments so far stay.
 */
export async function judge<V>(
  questions: readonly Question[],
  options: JudgeOptions<V>,
): Promise<Map<string, JudgedRow<V>>> {
  const { judge: server, settings, path, accept = () => true, maxCost, signal } = options;
  if (maxCost !== undefined && !server.prices) {
    throw new WrpoError(
      'ERR_CONFIG',
      `${server.name}: max_cost needs prices: {input, output}, dollars a million tokens`,
    );
  }
  const byId = new Map(questions.map((question) => [question.id, question]));
  const shard = openShard([...byId.keys()], options);
  try {
    const done = new Map<string, JudgedRow<V>>();
    let spent = 0;
    for (const row of shard.rows()) {
      spent += row.dollars ?? 0;
      if (row.failure === undefined || !options.retryFailed) done.set(row.prompt_id, row);
    }
    const open = [...byId.values()].filter(({ id }) => accept(id) && !done.has(id));
    options.onOpen?.(open.length);
    const budget = new Budget(maxCost, spent);
    const interview = interviewer(options);
    let stopped = false;
    await inParallel(open, server.concurrency, signal, async (question, stop) => {
      const most = costOf(server.prices, { prompt_tokens: tokensIn(question), completion_tokens: settings.max_tokens });
      if (stopped || !(await budget.take(most))) {
        stopped = true;
        return;
      }
      let row: JudgedRow<V>;
      try {
        row = await interview(question, stop);
      } catch (error) {
        budget.settle(most, 0);
        throw error;
      }
      budget.settle(most, row.dollars ?? 0);
      done.set(question.id, row);
      shard.append(row);
      shard.flush(); // it was paid for
      options.onJudged?.();
    });
    if (stopped) {
      const judged = `${done.size} questions are judged for $${budget.spent.toFixed(2)}`;
      throw new WrpoError(
        'ERR_CONFIG',
        `max_cost: another question could go beyond $${maxCost}; ${judged} and stay in ${path}`,
      );
    }
    if (done.size === byId.size && !shard.finished) shard.finish({ judgments: done.size });
    return new Map([...done].filter(([id]) => accept(id)));
  } finally {
    shard.close();
  }
}

function openShard<V>(ids: readonly string[], options: JudgeOptions<V>): Shard<JudgedRow<V>> {
  const { judge: server, settings, promptHash, path } = options;
  const depends = {
    judge: server.model,
    prompt: promptHash,
    settings: JSON.stringify({ ...settings, ...server.extraBody }),
    questions: createHash('sha256').update(ids.join('\n')).digest('hex'),
  };
  return new Shard<JudgedRow<V>>(path, depends, { ids, indexOf: new Map(ids.map((id, index) => [id, index])) });
}

/** What judging would take: requests, tokens (four letters each, answers at their longest) and dollars. */
export function estimate(
  questions: readonly Question[],
  { settings, judge: { prices } }: Pick<JudgeOptions<unknown>, 'settings' | 'judge'>,
): { requests: number; promptTokens: number; completionTokens: number; dollars?: number } {
  const promptTokens = questions.reduce((sum, question) => sum + tokensIn(question), 0);
  const completionTokens = questions.length * settings.max_tokens;
  const dollars = costOf(prices, { prompt_tokens: promptTokens, completion_tokens: completionTokens });
  return { requests: questions.length, promptTokens, completionTokens, ...(prices && { dollars }) };
}

const tokensIn = ({ messages }: Question): number =>
  Math.ceil(messages.reduce((sum, { content }) => sum + content.length, 0) / 4);

const costOf = (prices: Prices | undefined, usage: Usage): number =>
  prices ? (usage.prompt_tokens * prices.input + usage.completion_tokens * prices.output) / 1e6 : 0;

/** Dollars that are not to be gone beyond, by requests under way at their dearest. */
class Budget {
  #reserved = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(
    readonly most: number | undefined,
    public spent: number,
  ) {}

  /** Sets `amount` aside, when need be after others have turned out cheaper; false when there is not so much. */
  async take(amount: number): Promise<boolean> {
    while (this.most !== undefined && this.spent + this.#reserved + amount > this.most) {
      if (this.#reserved <= 0) return false;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    this.#reserved += amount;
    return true;
  }

  settle(reserved: number, amount: number): void {
    this.#reserved = Math.max(0, this.#reserved - reserved);
    if (this.#reserved < 1e-12) this.#reserved = 0;
    this.spent += amount;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** Lets a question be answered, in as many requests as its reader wants. */
function interviewer<V>({ judge: server, reader, settings, promptHash }: JudgeOptions<V>) {
  const requests = new Server(server);
  const { name, model, extraBody = {}, prices } = server;
  const lack = `the answer has no ${reader.needs}`;
  /** Whether any answer had what is needed. */
  let complete = false;
  return async (question: Question, signal: AbortSignal): Promise<JudgedRow<V>> => {
    const began = performance.now();
    const completions: Choice[] = [];
    const usage = { prompt_tokens: 0, completion_tokens: 0 };
    let reading: Reading<V> = { again: question.messages };
    let failure: string | undefined;
    while ('again' in reading) {
      const messages: Message[] = reading.again;
      const body: [string, unknown][] = Object.entries({ model, messages, ...settings, ...extraBody }).filter(
        ([, value]) => value !== null,
      );
      const read = (answer: unknown): Reading<V> => {
        const { choices } = (answer ?? {}) as { choices?: Choice[] };
        const used = usageOf(answer);
        usage.prompt_tokens += used.prompt_tokens;
        usage.completion_tokens += used.completion_tokens;
        const choice = choices?.[0];
        if (!choice) throw new Malformed('the answer has no choices');
        const found = reader.read([...completions, choice], question);
        if (!found) throw new Malformed(lack);
        completions.push(choice);
        return found;
      };
      try {
        reading = await requests.post('/chat/completions', Object.fromEntries(body), read, signal);
        complete = true;
      } catch (error) {
        if (!(error instanceof RequestFailed)) throw error;
        if (!complete && error.message.startsWith(lack)) {
          const what = `the judge "${model}" gives no ${reader.needs}, which this benchmark needs`;
          throw new WrpoError('ERR_ENDPOINT', `${name}: ${what}`);
        }
        failure = error.message;
        reading = { verdict: null };
      }
    }
    return {
      prompt_id: question.id,
      verdict: reading.verdict,
      ...(failure !== undefined && { failure }),
      ...{ completions, judge: model, prompt_sha256: promptHash, date: new Date().toISOString(), usage },
      ...(prices && { dollars: costOf(prices, usage) }),
      seconds: Math.round(performance.now() - began) / 1000,
    };
  };
}
