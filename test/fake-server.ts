/**
 * An OpenAI-compatible server with vLLM's scoring routes, whose answers depend on the request alone, and that can be told
 * to misbehave.
 */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Message } from '../lib/data/preferences.ts';
import { randomOf, sleep } from './training.ts';

/** A request as the server saw it. */
export interface Seen {
  path: string;
  authorization: string | undefined;
  body: {
    model: string;
    messages: Message[];
    input?: string[];
    seed: number;
    n: number;
    [key: string]: unknown;
  };
}

/** What is wrong with an answer: nothing, or one of these. */
export type Trouble = 429 | 500 | 503 | 'hang' | 'cut' | 'cut in the middle' | 'malformed' | 'empty' | 'no text';
export const TROUBLES: Trouble[] = [429, 500, 503, 'hang', 'cut', 'cut in the middle', 'malformed', 'empty', 'no text'];

export interface FakeOptions {
  /**
   * How often an answer is troubled, by which troubles, drawn with which seed: for each request and attempt at it, so that
   * the order in which requests arrive changes nothing.
   */
  chaos?: { share: number; seed: number; troubles?: Trouble[] };
  /** Whether answers wait still, asked again and again. */
  held?: (server: FakeServer) => boolean;
  /** Milliseconds to an answer, from then on. */
  latency?: number;
  /** Decides about a request before all else: a status with a message, or undefined. */
  refuse?: (seen: Seen) => { status: number; body: unknown; headers?: Record<string, string> } | undefined;
  /** Choices of an answer, however many were asked for. */
  choices?: number;
  /** The text of an answer. */
  text?: (seen: Seen, seed: number) => string;
  /** What a choice holds beside its text, such as log-probs. */
  more?: (seen: Seen) => object;
  /** The score of a conversation. */
  score?: (conversation: string) => number;
  models?: string[];
}

const digest = (...parts: unknown[]) => createHash('sha256').update(JSON.stringify(parts)).digest();
/** A number in [0, 1) that depends on the text alone. */
export const scoreOf = (text: string): number => digest(text).readUInt32BE() / 2 ** 32;

const WORDS = 'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu'.split(' ');
/** A text of a few words. */
export const textOf = (...parts: unknown[]): string => {
  const bytes = digest(...parts);
  return Array.from({ length: 3 + (bytes[0]! % 6) }, (_, i) => WORDS[bytes[i + 1]! % WORDS.length]).join(' ');
};

export class FakeServer {
  readonly seen: Seen[] = [];
  /** Requests that got what they asked for. */
  answered = 0;
  /** The most requests at one time. */
  peak = 0;
  readonly #server: Server;
  /** How often each request was made. */
  readonly #attempts = new Map<string, number>();
  #running = 0;

  private constructor(readonly options: FakeOptions) {
    this.#server = createServer((request, response) => {
      this.#running++;
      this.peak = Math.max(this.peak, this.#running);
      response.on('close', () => {
        this.#running--;
      });
      this.#handle(request, response).catch(() => response.destroy());
    });
  }

  static async start(options: FakeOptions = {}): Promise<FakeServer> {
    const fake = new FakeServer(options);
    await new Promise<void>((resolve) => fake.#server.listen(0, '127.0.0.1', resolve));
    return fake;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}/v1`;
  }

  /** Waits until nobody is connected, and all that they asked is seen: what a process sent arrives after its end. */
  async left(): Promise<void> {
    const connections = () => new Promise<number>((resolve) => this.#server.getConnections((_, n) => resolve(n)));
    while ((await connections()) > 0) await sleep(1);
  }

  close(): Promise<void> {
    this.#server.closeAllConnections();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = JSON.parse(Buffer.concat(chunks).toString()) as Seen['body'];
    const one: Seen = { path: request.url!, authorization: request.headers.authorization, body };
    this.seen.push(one);
    const send = (status: number, value: unknown, headers: Record<string, string> = {}) => {
      response.writeHead(status, { 'content-type': 'application/json', ...headers });
      response.end(typeof value === 'string' ? value : JSON.stringify(value));
    };
    while (this.options.held?.(this)) await sleep(1);
    await sleep(this.options.latency ?? 0);
    const refusal = this.options.refuse?.(one);
    if (refusal) return send(refusal.status, refusal.body, refusal.headers);
    const { models } = this.options;
    if (models && !models.includes(body.model)) {
      return send(404, { error: { message: `The model ${body.model} does not exist.`, code: 404 } });
    }
    const trouble = this.#trouble(one);
    if (trouble === 429) return send(429, { error: { message: 'slow down' } }, { 'retry-after': '0.01' });
    if (trouble === 500 || trouble === 503) return send(trouble, 'it is broken');
    if (trouble === 'hang') return;
    if (trouble === 'cut') return void response.destroy();
    const answer = this.#answer(one);
    if (trouble === 'cut in the middle') {
      response.writeHead(200, { 'content-length': '1000' });
      response.write('{"choices": [{"mess');
      setTimeout(() => response.destroy(), 2);
      return;
    }
    if (trouble === 'malformed') return send(200, JSON.stringify(answer).slice(0, -7));
    if (trouble === 'empty') return send(200, { choices: [], data: [] });
    if (trouble === 'no text') return send(200, { choices: [{ message: { content: null } }], data: [{}] });
    this.answered++;
    send(200, answer);
  }

  #trouble({ path, body }: Seen): Trouble | undefined {
    const { share = 0, seed = 1, troubles = TROUBLES } = this.options.chaos ?? {};
    const request = digest(path, body).toString('hex');
    const attempt = this.#attempts.get(request) ?? 0;
    this.#attempts.set(request, attempt + 1);
    const random = randomOf(digest(seed, request, attempt).readUInt32BE());
    return random() < share ? troubles[Math.floor(random() * troubles.length)] : undefined;
  }

  #answer(seen: Seen): object {
    const { path, body } = seen;
    const { score = scoreOf, text, more, choices } = this.options;
    if (path === '/v1/chat/completions') {
      const texts = Array.from({ length: choices ?? body.n ?? 1 }, (_, i) =>
        text ? text(seen, body.seed + i) : textOf(body.model, body.messages, body.seed + i),
      );
      return {
        choices: texts.map((content, index) => ({
          index,
          message: { role: 'assistant', content },
          finish_reason: 'stop',
          ...more?.(seen),
        })),
        usage: {
          prompt_tokens: body.messages.reduce((sum, { content }) => sum + content.split(' ').length, 0),
          completion_tokens: texts.reduce((sum, one) => sum + one.split(' ').length, 0),
        },
      };
    }
    const conversations = body.input ?? [body.messages.map(({ content }) => content).join('\n')];
    const values = conversations.map(score);
    // Not in order, as no protocol promises one.
    if (path === '/pooling') {
      return { data: values.map((value, index) => ({ index, data: [[-1], [value]] })).reverse() };
    }
    return { data: values.map((value, index) => ({ index, label: 'good', probs: [value] })).reverse() };
  }
}
