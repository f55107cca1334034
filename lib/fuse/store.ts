/**
 * The directory of a fusion: everything sampled, with its scores, one shard a stage and model.
 *
 *     prompts.jsonl                     {prompt_id, prompt}, the order of all shards
 *     samples/<model>.jsonl             {prompt_id, samples: [{text, finish_reason, seed}], usage, failure?}
 *     scores/<scorer>/<model>.jsonl     {prompt_id, of, scores: [number], failure?}
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { syncDirectory, writeError } from '../data/files.js';
import { type Message, toMessages } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { type Prompt, promptIdOf } from './prompts.js';
import { type Depends, isFinished, linesOf, type PromptOrder, Shard, ShardReader, type ShardRow } from './shard.js';

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
    const temporary = `${path}.tmp`;
    try {
      mkdirSync(directory, { recursive: true });
      const handle = openSync(temporary, 'w');
      try {
        for await (const { promptId, messages } of prompts) {
          const single = messages.length === 1 && messages[0]!.role === 'user';
          const row = { prompt_id: promptId, prompt: single ? messages[0]!.content : messages };
          writeFileSync(handle, `${JSON.stringify(row)}\n`);
        }
        fsyncSync(handle);
      } finally {
        closeSync(handle);
      }
      if (existsSync(path)) requireSame(path, temporary);
      renameSync(temporary, path);
      syncDirectory(directory);
    } catch (cause) {
      rmSync(temporary, { force: true });
      throw writeError(path, cause);
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
    for (const { promptId, messages } of promptsOf(path)) {
      ids.push(promptId);
      const hash = promptIdOf(messages);
      if (hash !== promptId) aliases.set(hash, promptId);
    }
    const indexOf = new Map(ids.map((id, index) => [id, index]));
    const hash = createHash('sha256').update(readFileSync(path)).digest('hex');
    return new Store(directory, { ids, indexOf }, hash, aliases);
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

function* promptsOf(path: string): Generator<Prompt> {
  let number = 0;
  for (const { line } of linesOf(path)) {
    number++;
    let row: { prompt_id: string; prompt: string | Message[] };
    try {
      row = JSON.parse(`${line}`);
    } catch (cause) {
      throw new WrpoError('ERR_CHECKPOINT', `${path} line ${number} is damaged: ${(cause as Error).message}`, {
        cause,
      });
    }
    yield { promptId: row.prompt_id, messages: toMessages(row.prompt) };
  }
}

/** Throws unless both files hold the same prompts. */
function requireSame(path: string, other: string): void {
  const [before, now] = [linesOf(path), linesOf(other)];
  for (let number = 1; ; number++) {
    const [a, b] = [before.next(), now.next()];
    if (a.done && b.done) return;
    if (!a.done && !b.done && a.value.line.equals(b.value.line)) continue;
    before.return(undefined);
    now.return(undefined);
    throw new WrpoError(
      'ERR_CHECKPOINT',
      `${path} holds the prompts of what was sampled, and those given now differ from prompt ${number} on; set prompts back, or take another output_dir`,
    );
  }
}
