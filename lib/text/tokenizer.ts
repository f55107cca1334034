import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import type { Message } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { ChatTemplate } from './chat.js';

interface Encoding {
  getIds(): number[];
}

interface NativeTokenizer {
  encodeBatch(texts: string[], options: { addSpecialTokens: boolean }): Promise<Encoding[]>;
  decode(ids: number[], skipSpecialTokens: boolean): Promise<string>;
  disableTruncation(): void;
  disablePadding(): void;
  getVocabSize(withAddedTokens: boolean): number;
  tokenToId(token: string): number | null;
}

// The package's own declarations do not compile under `skipLibCheck: false`; these are the members in use.
interface Native {
  Tokenizer: { fromString(json: string): NativeTokenizer };
}

interface TokenizerJson {
  added_tokens?: { id: number; content: string; special?: boolean; lstrip?: boolean; rstrip?: boolean }[];
  normalizer?: unknown;
  pre_tokenizer?: unknown;
}

interface TokenizerConfig {
  added_tokens_decoder?: unknown;
  chat_template?: string | { name: string; template: string }[];
}

const REQUIRED = ['tokenizer.json', 'tokenizer_config.json'];
/** What else belongs to a tokenizer where it is there; the last four are read by other programs only. */
const OPTIONAL = [
  'special_tokens_map.json',
  'chat_template.jinja',
  'added_tokens.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
];

/** The tokenizer of a model in Hugging Face layout, with its chat template. */
export class Tokenizer {
  readonly #dir: string;
  readonly #native: NativeTokenizer;
  readonly #specials: Readonly<Record<string, string>>;
  readonly #specialIds: ReadonlySet<number>;
  readonly #separators: ReadonlyMap<number, string>;
  readonly #templateSource: string | undefined;
  readonly #foreignTemplate: boolean;
  #template: ChatTemplate | undefined;

  /** The id that `bos_token` names, where the tokenizer has one. */
  readonly bosTokenId: number | undefined;
  /** The id that `eos_token` names, where the tokenizer has one. */
  readonly eosTokenId: number | undefined;

  private constructor(dir: string, native: NativeTokenizer, files: TokenizerFiles, foreignTemplate: boolean) {
    this.#dir = dir;
    this.#foreignTemplate = foreignTemplate;
    this.#native = native;
    this.#specials = files.specials;
    this.#templateSource = files.template;
    this.bosTokenId = this.#idOf('bos_token');
    this.eosTokenId = this.#idOf('eos_token');
    const named = Object.values(files.specials).map((token) => native.tokenToId(token));
    this.#separators = files.separators;
    this.#specialIds = new Set([...files.specialIds, ...named.filter((id) => id !== null)]);
  }

  /** Reads the tokenizer of a model directory; `chatTemplate` stands in for its own, here and wherever it is saved to. */
  static async load(dir: string, { chatTemplate }: { chatTemplate?: string } = {}): Promise<Tokenizer> {
    const files = { ...(await readTokenizerFiles(dir)), ...(chatTemplate !== undefined && { template: chatTemplate }) };
    const { Tokenizer: native } = loadNative();
    try {
      const tokenizer = native.fromString(files.json);
      // Some files carry the cut and the padding of whoever saved them last.
      tokenizer.disableTruncation();
      tokenizer.disablePadding();
      return new Tokenizer(dir, tokenizer, files, chatTemplate !== undefined);
    } catch (cause) {
      if (cause instanceof WrpoError) throw cause;
      throw unreadable(join(dir, 'tokenizer.json'), cause);
    }
  }

  /** How many tokens there are, added ones included. A model's own vocabulary may be larger. */
  get vocabSize(): number {
    return this.#native.getVocabSize(true);
  }

  /** The text of `bos_token`, where the tokenizer has one. */
  get bosToken(): string | undefined {
    return this.#specials.bos_token;
  }

  /** The source of the chat template, where there is one. */
  get chatTemplate(): string | undefined {
    return this.#templateSource;
  }

  /** Whether `applyChatTemplate` has a template to apply. */
  get hasChatTemplate(): boolean {
    return this.#templateSource !== undefined;
  }

  /** Whether an id is a control token (an end of turn, a header) rather than text. */
  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  /**
   * The text of a special token behind which any text has the ids that it has alone, so that what comes after need not be
   * tokenised with what came before; undefined for other tokens.
   */
  separator(id: number): string | undefined {
    return this.#separators.get(id);
  }

  /** The token ids of a text. Half of a surrogate pair, which no encoding can hold, is read as U+FFFD. */
  async encode(text: string, { addSpecialTokens = false } = {}): Promise<number[]> {
    const [encoding] = await this.#native.encodeBatch([text], { addSpecialTokens });
    return encoding!.getIds();
  }

  /** The token ids of many texts at once, on all cores. */
  async encodeBatch(texts: string[], { addSpecialTokens = false } = {}): Promise<number[][]> {
    const encodings = await this.#native.encodeBatch(texts, { addSpecialTokens });
    return encodings.map((encoding) => encoding.getIds());
  }

  /** The text of token ids; an id beyond the vocabulary has none. */
  async decode(ids: ArrayLike<number>, { skipSpecialTokens = false } = {}): Promise<string> {
    const list = Array.from(ids);
    const odd = list.findIndex((id) => !Number.isInteger(id) || id < 0 || id > 0xffffffff);
    if (odd !== -1) throw new WrpoError('ERR_DATA', `token ${odd} to decode: expected an id, got ${list[odd]}`);
    return this.#native.decode(list, skipSpecialTokens);
  }

  /** The text of a conversation as the model was trained to read it, special tokens included. */
  applyChatTemplate(messages: readonly Message[], { addGenerationPrompt = false } = {}): string {
    if (this.#templateSource === undefined) {
      throw new WrpoError(
        'ERR_MODEL',
        `${this.#dir}: no chat template; expected chat_template.jinja, or "chat_template" in tokenizer_config.json (one named "default" where it is a list)`,
      );
    }
    this.#template ??= new ChatTemplate(this.#templateSource, `the chat template of ${this.#dir}`);
    return this.#template.render(messages, { addGenerationPrompt, specials: this.#specials });
  }

  /** Puts the tokenizer's own files into another directory, each of them whole or not at all. */
  async saveTo(dir: string): Promise<void> {
    if (resolve(dir) === resolve(this.#dir)) return;
    for (const name of [...REQUIRED, ...OPTIONAL]) {
      const replaced = name === 'chat_template.jinja' && this.#foreignTemplate;
      const bytes = replaced ? Buffer.from(this.#templateSource!) : await bytesIfThere(join(this.#dir, name));
      if (bytes !== undefined) await writeWhole(dir, name, bytes);
      else if (REQUIRED.includes(name)) throw missing(join(this.#dir, name));
    }
  }

  #idOf(name: 'bos_token' | 'eos_token'): number | undefined {
    const token = this.#specials[name];
    if (token === undefined) return undefined;
    const id = this.#native.tokenToId(token);
    if (id === null) {
      throw new WrpoError('ERR_MODEL', `${this.#dir}: ${name} ${JSON.stringify(token)} is not in tokenizer.json`);
    }
    return id;
  }
}

interface TokenizerFiles {
  json: string;
  specialIds: number[];
  separators: Map<number, string>;
  specials: Record<string, string>;
  template: string | undefined;
}

async function readTokenizerFiles(dir: string): Promise<TokenizerFiles> {
  const path = (name: string): string => join(dir, name);
  const json = await read(path('tokenizer.json'));
  const { added_tokens, normalizer, pre_tokenizer } = parse<TokenizerJson>(json, path('tokenizer.json'));
  const added = addedTokens(added_tokens, path('tokenizer.json'));
  const config = parse<TokenizerConfig>(await read(path('tokenizer_config.json')), path('tokenizer_config.json'));
  const mapJson = await readIfThere(path('special_tokens_map.json'));
  const map = mapJson === undefined ? {} : parse<object>(mapJson, path('special_tokens_map.json'));
  // As transformers does: the map speaks for tokenizers saved before the configuration held the added tokens.
  const named = config.added_tokens_decoder === undefined ? { ...config, ...map } : { ...map, ...config };
  return {
    json,
    specialIds: added.filter(({ special }) => special).map(({ id }) => id),
    separators: new Map(separators(added, JSON.stringify([normalizer, pre_tokenizer]))),
    specials: Object.fromEntries(Object.entries(named).flatMap(specialToken)),
    template: (await readIfThere(path('chat_template.jinja'))) ?? defaultTemplate(config),
  };
}

function addedTokens(list: unknown, path: string): Required<TokenizerJson>['added_tokens'] {
  const tokens = list ?? [];
  const isToken = (one: { id?: unknown; content?: unknown } | null) =>
    Number.isInteger(one?.id) && typeof one?.content === 'string';
  if (Array.isArray(tokens) && tokens.every(isToken)) return tokens;
  throw unreadable(path, new TypeError('expected "added_tokens" to be a list of {id, content}'));
}

/**
 * Text is taken apart at special tokens before anything else happens to it. Two kinds of tokenizers still treat the
 * beginning of a text in a way of its own; and a token may eat the white space beside it.
 */
function separators(tokens: Required<TokenizerJson>['added_tokens'], rules: string): [number, string][] {
  if (/"(Metaspace|Prepend)"/.test(rules)) return [];
  return tokens.flatMap(({ id, content, special, lstrip, rstrip }) =>
    special && !lstrip && !rstrip ? [[id, content]] : [],
  );
}

/** `bos_token: "<s>"` or `bos_token: {content: "<s>", …}`; what else a configuration holds is none. */
function specialToken([key, value]: [string, unknown]): [string, string][] {
  if (!key.endsWith('_token')) return [];
  const token = typeof value === 'object' && value !== null ? (value as { content?: unknown }).content : value;
  return typeof token === 'string' ? [[key, token]] : [];
}

function defaultTemplate({ chat_template: template }: TokenizerConfig): string | undefined {
  const chosen = Array.isArray(template) ? template.find((one) => one?.name === 'default')?.template : template;
  return typeof chosen === 'string' ? chosen : undefined;
}

function loadNative(): Native {
  try {
    return createRequire(import.meta.url)('tokenizers');
  } catch (cause) {
    const what = `the package "tokenizers" does not load on this platform: ${(cause as Error).message}`;
    throw new WrpoError('ERR_NATIVE_LOAD', what, { cause });
  }
}

async function read(path: string): Promise<string> {
  const text = await readIfThere(path);
  if (text === undefined) throw missing(path);
  return text;
}

async function readIfThere(path: string): Promise<string | undefined> {
  return (await bytesIfThere(path))?.toString();
}

async function bytesIfThere(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw unreadable(path, cause);
  }
}

function parse<T extends object>(json: string, path: string): T {
  try {
    const value: unknown = JSON.parse(json);
    if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new TypeError('expected an object');
    return value as T;
  } catch (cause) {
    throw unreadable(path, cause);
  }
}

async function writeWhole(dir: string, name: string, bytes: Buffer): Promise<void> {
  const path = join(dir, name);
  const partial = `${path}.${process.pid}.tmp`;
  try {
    await mkdir(dir, { recursive: true });
    const file = await open(partial, 'w');
    try {
      await file.writeFile(bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(partial, path);
  } catch (cause) {
    await rm(partial, { force: true }).catch(() => {});
    throw new WrpoError('ERR_MODEL', `${path}: cannot be written: ${(cause as Error).message}`, { cause });
  }
}

const missing = (path: string): WrpoError =>
  new WrpoError('ERR_MODEL', `${path}: no such file; a tokenizer directory needs it`);

const unreadable = (path: string, cause: unknown): WrpoError =>
  new WrpoError('ERR_MODEL', `${path}: cannot be read as part of a tokenizer: ${(cause as Error).message}`, { cause });
