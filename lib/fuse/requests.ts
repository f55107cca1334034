/** JSON requests to a server that may be busy, broken or gone. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Fetch, patientFetch } from '../data/http.js';
import { WrpoError } from '../errors.js';
import { Limit } from './parallel.js';

export interface ServerOptions {
  /** What errors call it. */
  name: string;
  /** Such as `http://localhost:8000/v1`. */
  baseUrl: string;
  model: string;
  /** The environment variable that holds the key. The key goes into the Authorization header and nowhere else. */
  apiKeyEnv?: string;
  /** Requests at a time. */
  concurrency: number;
  /** Seconds until a request counts as lost. */
  timeout: number;
  /** How often a request is made again after 408, 425, 429, 5xx, a timeout, a cut connection or an answer that is none. */
  maxRetries: number;
  /** Seconds before the first retry; twice as many before each further one, up to a minute, the half of it random. */
  retryDelay: number;
}

/** This request has no answer; others may have. */
export class RequestFailed extends Error {}

/** The answer is not what it should be: asking again may help. Thrown by the readers of answers. */
export class Malformed extends Error {}

/** The status and message of an answer that refuses the request itself. */
export class Refused extends RequestFailed {
  constructor(
    readonly status: number,
    readonly said: string,
  ) {
    super(`the server answers ${status}: ${said}`);
  }
}

/** Tokens that an answer took. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

/** What an answer says of its tokens; what is no count of them is none. */
export function usageOf(answer: unknown): Usage {
  const { usage } = (answer ?? {}) as { usage?: Record<string, unknown> | null };
  const count = (value: unknown) => (typeof value === 'number' && value >= 0 && value <= 1e9 ? Math.trunc(value) : 0);
  return { prompt_tokens: count(usage?.prompt_tokens), completion_tokens: count(usage?.completion_tokens) };
}

const LONGEST_DELAY = 60;
/** Characters that a key has at least which is one. */
const SECRET = 16;
const LONGEST_WAIT = 3600;

/** One attempt's end: an answer, or why another attempt should be made. */
type Outcome<T> = { value: T } | { reason: string; after?: number; unreachable?: boolean };

export class Server {
  readonly #options: ServerOptions;
  readonly #headers: Record<string, string>;
  readonly #key: string | undefined;
  readonly #limit: Limit;
  #fetch: Promise<Fetch> | undefined;
  /** Whether it has answered anything: one that never did is not waited for. */
  #answered = false;

  /** Throws ERR_CONFIG when the key's environment variable is not set or no key. */
  constructor(options: ServerOptions) {
    this.#options = options;
    this.#limit = new Limit(options.concurrency);
    this.#key = keyOf(options);
    this.#headers = {
      'content-type': 'application/json',
      ...(this.#key !== undefined && { authorization: `Bearer ${this.#key}` }),
    };
  }

  /**
   * Posts `body` and returns what `read` makes of the answer (it throws Malformed on what it cannot read). Throws
   * RequestFailed when this request gets no answer, and ERR_ENDPOINT when none would: the server cannot be reached,
   * does not have the model, or refuses the key.
   */
  post<T>(path: string, body: object, read: (answer: unknown) => T, signal?: AbortSignal): Promise<T> {
    const url = `${this.#options.baseUrl.replace(/\/+$/, '')}${path}`;
    const { maxRetries, retryDelay } = this.#options;
    return this.#limit.run(signal, async () => {
      for (let attempt = 0; ; attempt++) {
        const outcome = await this.#attempt(url, body, read, signal);
        if ('value' in outcome) return outcome.value;
        const { reason, after = 0, unreachable } = outcome;
        if (unreachable && !this.#answered) throw this.#fault(`${url} cannot be reached: ${reason}`);
        if (after > LONGEST_WAIT) throw this.#fault(`${url} asks to wait ${Math.round(after)} s: ${reason}`);
        if (attempt >= maxRetries) {
          const times = attempt === 0 ? 'once' : `${attempt + 1} times`;
          if (unreachable) throw this.#fault(`${url} can no longer be reached (tried ${times}): ${reason}`);
          throw new RequestFailed(`${reason} (tried ${times})`);
        }
        const delay = Math.min(LONGEST_DELAY, retryDelay * 2 ** attempt);
        await sleep(1000 * (after + delay * (after > 0 ? Math.random() / 2 : 0.5 + Math.random() / 2)), undefined, {
          signal,
        });
      }
    });
  }

  async #attempt<T>(
    url: string,
    body: object,
    read: (answer: unknown) => T,
    signal: AbortSignal | undefined,
  ): Promise<Outcome<T>> {
    // Not AbortSignal.any: of a signal that lives as long as a run it would hold every request's.
    const controller = new AbortController();
    const stop = () => controller.abort();
    const timer = setTimeout(stop, this.#options.timeout * 1000);
    signal?.addEventListener('abort', stop);
    let response: Response;
    let text: string;
    try {
      const request = { method: 'POST', headers: this.#headers, body: JSON.stringify(body) };
      this.#fetch ??= patientFetch(this.#options.timeout);
      response = await (await this.#fetch)(url, { ...request, redirect: 'manual', signal: controller.signal });
      text = this.#withoutKey(await response.text());
    } catch (error) {
      signal?.throwIfAborted();
      if (controller.signal.aborted) return { reason: `no answer within ${this.#options.timeout} s` };
      return describeFailure(error);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', stop);
    }
    this.#answered = true;
    if (response.ok) return this.#read(text, read);
    return this.#refusal(response, text, url);
  }

  #read<T>(text: string, read: (answer: unknown) => T): Outcome<T> {
    try {
      return { value: read(parse(text)) };
    } catch (error) {
      if (error instanceof Malformed) return { reason: error.message };
      if (error instanceof SyntaxError) return { reason: 'the answer is not JSON' };
      throw error;
    }
  }

  #refusal(response: Response, text: string, url: string): Outcome<never> {
    const { status } = response;
    const { message, code } = this.#messageOf(text);
    if (status === 401 || status === 403) {
      const { apiKeyEnv } = this.#options;
      // What the server says may quote the key.
      const key = apiKeyEnv === undefined ? 'no key: name its variable with api_key_env' : `the key in ${apiKeyEnv}`;
      throw this.#fault(`${url} refuses access (${status}) with ${key}`);
    }
    if (status === 404) {
      const hint = /\/v1\b/.test(url) ? '' : ' (a base_url mostly ends in /v1)';
      const expected = `expected the model "${this.#options.model}" to be served there${hint}`;
      throw this.#fault(`${url} answers 404 (${message}); ${expected}`);
    }
    if (status === 402 || code === 'insufficient_quota') {
      throw this.#fault(`${url} answers ${status}: ${message}`);
    }
    if (status >= 300 && status < 400) {
      const location = this.#withoutKey(response.headers.get('location') ?? 'where it is');
      throw this.#fault(`${url} is elsewhere (${status}): set base_url to ${location}`);
    }
    if (status === 500 && isAboutRoles(message)) throw new Refused(status, message); // a template's refusal, in llama.cpp
    if (status === 408 || status === 425 || status === 429 || status >= 500) {
      return { reason: `the server answers ${status}: ${message}`, after: waitOf(response.headers.get('retry-after')) };
    }
    throw new Refused(status, message);
  }

  /** What a server says, which may repeat the key; a short one, such as `EMPTY`, is no secret and may be a word. */
  #withoutKey(text: string): string {
    return this.#key === undefined || this.#key.length < SECRET ? text : text.replaceAll(this.#key, '***');
  }

  /** What an answer says is wrong, on one line and without the key. */
  #messageOf(text: string): { message: string; code?: unknown } {
    let said: unknown = text;
    let code: unknown;
    try {
      const { error, message, detail } = JSON.parse(text);
      said = error?.message ?? (typeof error === 'string' ? error : (message ?? detail ?? text));
      code = error?.code ?? error?.type;
    } catch {
      // Then the text itself is what it says.
    }
    let line = (typeof said === 'string' ? said : JSON.stringify(said)).replace(/\s+/g, ' ').trim();
    if (this.#key !== undefined) line = line.replaceAll(this.#key, '***');
    return { message: line === '' ? 'without a message' : line.length > 200 ? `${line.slice(0, 199)}…` : line, code };
  }

  #fault(what: string): WrpoError {
    return new WrpoError('ERR_ENDPOINT', `${this.#options.name}: ${what}`);
  }
}

/** Whether a server says that it is the turns' roles which the model's chat template does not take. */
export const isAboutRoles = (message: string): boolean =>
  /system[\s_-]*(role|message|prompt)|roles?\b.{0,60}\bsystem|\broles? must alternate/i.test(message);

function keyOf({ name, apiKeyEnv }: ServerOptions): string | undefined {
  if (apiKeyEnv === undefined) return undefined;
  const key = process.env[apiKeyEnv]?.trim();
  if (!key) throw new WrpoError('ERR_CONFIG', `${name}: api_key_env names ${apiKeyEnv}, which is not set`);
  if (/[^\x21-\x7e]/.test(key)) {
    throw new WrpoError('ERR_CONFIG', `${name}: ${apiKeyEnv} holds characters that no HTTP header can`);
  }
  return key;
}

const UNREACHABLE =
  /^(ECONNREFUSED|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_CONNECT_TIMEOUT|CERT_|ERR_TLS|ERR_SSL|.*CERT)/;

/** What `fetch` failed of. */
function describeFailure(error: unknown): Outcome<never> {
  const cause = (error as Error).cause as
    | (Error & { code?: string; errors?: (Error & { code?: string })[] })
    | undefined;
  const code = cause?.code ?? cause?.errors?.[0]?.code;
  if (code !== undefined && UNREACHABLE.test(code)) {
    return { reason: cause!.message || cause!.errors?.[0]?.message || code, unreachable: true };
  }
  const what = cause?.message ?? (error as Error).message;
  return { reason: `the connection was cut (${what})`, unreachable: what === 'bad port' };
}

/** JSON, in which Python may have written NaN: null then. */
function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const plain = text.replace(/([:[,]\s*)(?:NaN|-?Infinity)(?=\s*[,\]}])/g, '$1null');
    if (plain === text) throw error;
    return JSON.parse(plain);
  }
}

/** Seconds that a Retry-After header asks for: a number, or a date. */
function waitOf(header: string | null): number | undefined {
  if (header === null) return undefined;
  const seconds = Number(header);
  const wait = Number.isFinite(seconds) ? seconds : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(0, wait) : undefined;
}
