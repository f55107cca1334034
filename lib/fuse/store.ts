/**
 * The directory of a fusion: everything sampled, with its scores, one shard a stage and model.
 *
 *     prompts.jsonl                     {prompt_id, prompt}, the order of all shards
 *     samples/<model>.jsonl             {prompt_id, samples: [{text, finish_reason, seed}], usage, failure?}
 *     scores/<scorer>/<model>.jsonl     {prompt_id, of, scores: [number], failure?}
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { PendingFile, writeError } from '../data/files.js';
import { type Message, toMessages } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { linesOf } from './lines.js';
import { lock } from './lock.js';
import { type Prompt, promptIdOf } from './prompts.js';
import { type Depends, isFinished, type PromptOrder, Shard, ShardReader, type ShardRow } from './shard.js';

/** One answer to a prompt. `seed` is absent where it is not known, as of imported ones. */
export interface Sample {
  text: string;
  finish_reason: string;
  seed?: number;
}

/** All answers of one model to a prompt; fewer than were asked for, or none, where `failure` says why. */
export interface SampleRow extends ShardRow {
  failure?: string;
  samples: Sample[];
  usage: { prompt_tokens: number; completion_tokens: number };
}

/** What a scorer says of a row's samples, in their order; null where `failure` says why there is no score. */
export interface ScoreRow extends ShardRow {
  failure?: string;
  /** `digestOf` the samples. */
  of: string;
  scores: (number | null)[];
}

export class Store {
  private constructor(
    readonly directory: string,
    readonly order: PromptOrder,
    /** SHA-256 of `prompts.jsonl`. */
    readonly promptsHash: string,
    /** Prompts by `promptIdOf`, where their own id is another. */
    readonly aliases: ReadonlyMap<string, string>,
  ) {}

  /**
   * The store in `directory`, begun with these prompts unless it has them already. Throws ERR_CHECKPOINT when it has
   * others, saying which is the first that differs.
   */
  static async create(directory: string, prompts: AsyncIterable<Prompt> | Iterable<Prompt>): Promise<Store> {
    const path = join(directory, 'prompts.jsonl');
    if (!existsSync(path)) await writePrompts(path, prompts);
    else {
      rmSync(`${path}.lock`, { force: true }); // of a process that was killed when it had all but finished
      await requireSame(path, prompts);
    }
    return Store.open(directory);
  }

  /** The store that is in `directory`. Throws ERR_DATA when there is none. */
  static open(directory: string): Store {
    const path = join(directory, 'prompts.jsonl');
    if (!existsSync(path)) {
      throw new WrpoError('ERR_DATA', `${directory} holds no prompts.jsonl: nothing was sampled there yet`);
    }
    const ids: string[] = [];
    const aliases = new Map<string, string>();
    const hash = createHash('sha256');
    for (const { promptId, messages, line } of promptsOf(path)) {
      hash.update(line);
      ids.push(promptId);
      const own = promptIdOf(messages);
      if (own !== promptId) aliases.set(own, promptId);
    }
    const indexOf = new Map(ids.map((id, index) => [id, index]));
    return new Store(directory, { ids, indexOf }, hash.digest('hex'), aliases);
  }

  /** All prompts, in order. */
  prompts(): Generator<Prompt> {
    return promptsOf(join(this.directory, 'prompts.jsonl'));
  }

  samplesPath(model: string): string {
    return pathOfSamples(this.directory, model);
  }

  scoresPath(scorer: string, model: string): string {
    return join(this.directory, 'scores', scorer, `${model}.jsonl`);
  }

  /** To write a model's samples. `depends` is beside the prompts what they depend on. */
  samples(model: string, depends: Depends): Shard<SampleRow> {
    return new Shard(this.samplesPath(model), { prompts: this.promptsHash, ...depends }, this.order);
  }

  /** To write the scores of a model's samples. */
  scores(scorer: string, model: string, depends: Depends): Shard<ScoreRow> {
    return new Shard(this.scoresPath(scorer, model), { prompts: this.promptsHash, ...depends }, this.order);
  }

  /** To read a model's samples. Throws ERR_DATA when they are not all there. */
  readSamples(model: string): ShardReader<SampleRow> {
    return this.#reader(this.samplesPath(model), `"${model}" is not sampled yet`, 'sample');
  }

  /** To read the scores of a model's samples. Throws ERR_DATA when they are not all there. */
  readScores(scorer: string, model: string): ShardReader<ScoreRow> {
    return this.#reader(this.scoresPath(scorer, model), `"${model}" is not scored by "${scorer}" yet`, 'score');
  }

  #reader<Row extends ShardRow>(path: string, what: string, command: string): ShardReader<Row> {
    if (isFinished(path)) return new ShardReader(path, this.order);
    const state = existsSync(`${path}.part`) ? `${path} is not finished` : `there is no ${path}`;
    throw new WrpoError('ERR_DATA', `${what}: ${state}; run \`wrpo ${command}\` first`);
  }
}

export const pathOfSamples = (directory: string, model: string): string => join(directory, 'samples', `${model}.jsonl`);

/** By which scores know the samples that they are of. */
export function digestOf(samples: readonly Sample[]): string {
  const hash = createHash('sha256');
  for (const { text } of samples) hash.update(`${text.length}:`).update(text);
  return hash.digest('hex').slice(0, 16);
}

function* promptsOf(path: string): Generator<Prompt & { line: Buffer }> {
  let number = 0;
  for (const { line } of linesOf(path)) {
    number++;
    let row: { prompt_id: string; prompt: string | Message[] };
    try {
      row = JSON.parse(`${line}`);
    } catch (cause) {
      const what = `${path} line ${number} is damaged: ${(cause as Error).message}`;
      throw new WrpoError('ERR_CHECKPOINT', what, { cause });
    }
    yield { promptId: row.prompt_id, messages: toMessages(row.prompt), line };
  }
}

function lineOf({ promptId, messages }: Prompt): string {
  const single = messages.length === 1 && messages[0]!.role === 'user';
  return `${JSON.stringify({ prompt_id: promptId, prompt: single ? messages[0]!.content : messages })}\n`;
}

async function writePrompts(path: string, prompts: AsyncIterable<Prompt> | Iterable<Prompt>): Promise<void> {
  let file: PendingFile | undefined;
  let unlock = () => {};
  try {
    mkdirSync(dirname(path), { recursive: true });
    unlock = lock(`${path}.lock`, path);
    file = new PendingFile(path);
    for await (const prompt of prompts) file.write(lineOf(prompt));
    file.finish();
  } catch (cause) {
    file?.abandon();
    throw writeError(path, cause);
  } finally {
    unlock();
  }
}

/** Throws unless the file holds just these prompts. */
async function requireSame(path: string, prompts: AsyncIterable<Prompt> | Iterable<Prompt>): Promise<void> {
  const before = linesOf(path);
  let number = 0;
  try {
    const differ = () =>
      new WrpoError(
        'ERR_CHECKPOINT',
        `${path} holds the prompts of what was sampled, and those given now differ from prompt ${number} on; set prompts back, or take another output_dir`,
      );
    for await (const prompt of prompts) {
      number++;
      const { done, value } = before.next();
      if (done || !value.line.equals(Buffer.from(lineOf(prompt)))) throw differ();
    }
    number++;
    if (!before.next().done) throw differ();
  } finally {
    before.return(undefined);
  }
}
