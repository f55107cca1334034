/**
 * Stages of a fusion: each is done once, and says in `stages/<stage>.json` what it was made from and what it wrote. One of
 * which nothing has changed is passed over.
 */
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { writeFileAtomic } from '../data/files.js';
import { WrpoError } from '../errors.js';
import type { Hashes } from './hashes.js';

/** What a stage depends on, each by a name that an error can say. */
export type Inputs = Record<string, string | number | boolean | null>;

export interface Stage {
  name: string;
  /** The stages whose files it reads. */
  reads: readonly string[];
  /** Stages that come before it for another reason. */
  after?: readonly string[];
  /** What else its result depends on: settings, and hashes of what is no stage's. */
  settings(): Promise<Inputs> | Inputs;
  /** Does the work, or what is left of it, and gives the files that later stages read, relative to the directory. */
  run(signal: AbortSignal): Promise<readonly string[]>;
  /** Takes away what an earlier run left, so that the work is done anew. */
  forget(): void;
  /** Whether it is done again by itself when something changed: it costs little, and nothing of it can be lost. */
  isView?: boolean;
}

/** What is written of a stage that is done. */
export interface StageRecord {
  stage: string;
  /** ISO 8601. */
  started: string;
  seconds: number;
  /** Of the process until the stage's end. */
  peak_rss_bytes: number;
  inputs: Inputs;
  /** SHA-256 of each file. */
  outputs: Record<string, string>;
}

export type StageState = 'done' | 'open' | 'changed';

export class Stages {
  readonly #names: Set<string>;

  constructor(
    readonly directory: string,
    readonly stages: readonly Stage[],
    readonly hashes: Hashes,
  ) {
    this.#names = new Set(stages.map(({ name }) => name));
  }

  /** The stage of a name. Throws ERR_CONFIG. */
  named(name: string, option: string): Stage {
    const found = this.stages.find((stage) => stage.name === name);
    if (found) return found;
    throw new WrpoError(
      'ERR_CONFIG',
      `${option} ${name}: there is no such stage; there is ${[...this.#names].join(', ')}`,
    );
  }

  /** A stage and all that follow from it. */
  from(name: string): Set<string> {
    const meant = new Set([this.named(name, '--from').name]);
    for (const stage of this.stages) {
      if ([...stage.reads, ...(stage.after ?? [])].some((one) => meant.has(one))) meant.add(stage.name);
    }
    return meant;
  }

  /** What an earlier run made of these stages is taken away. */
  forget(names: ReadonlySet<string>): void {
    // The last first: what is killed here is left with a beginning that is whole.
    for (const stage of [...this.stages].reverse().filter(({ name }) => names.has(name))) {
      rmSync(this.#path(stage.name), { force: true });
      stage.forget();
    }
  }

  /**
   * Whether a stage is done, of what there is now. Throws ERR_CHECKPOINT naming what changed: a setting or an input of a
   * stage that is no view, or a file that the stage wrote.
   */
  async stateOf(stage: Stage): Promise<StageState> {
    const record = this.record(stage.name);
    if (!record) return 'open';
    for (const [path, sha256] of Object.entries(record.outputs)) {
      const now = await this.hashes.of(join(this.directory, path));
      if (now === sha256) continue;
      const what = now === undefined ? 'is gone' : 'is not as that stage left it';
      throw new WrpoError(
        'ERR_CHECKPOINT',
        `${join(this.directory, path)} of the stage ${stage.name} ${what}: put it back, or do the stage again with --from ${stage.name}`,
      );
    }
    const inputs = await this.#inputsOf(stage);
    const changed = [...new Set([...Object.keys(record.inputs), ...Object.keys(inputs)])].find(
      (name) => (record.inputs[name] ?? null) !== (inputs[name] ?? null),
    );
    if (changed === undefined) return 'done';
    if (stage.isView) return 'changed';
    const was = describeChange(record.inputs[changed] ?? null, inputs[changed] ?? null);
    throw new WrpoError(
      'ERR_CHECKPOINT',
      `the stage ${stage.name} was done with another ${changed}${was}: set it back, take another output_dir, or do it again with --from ${stage.name}`,
    );
  }

  /** Does a stage, and writes down that it is done. */
  async do(stage: Stage, signal: AbortSignal): Promise<StageRecord> {
    const missing = stage.reads.find((name) => this.#names.has(name) && !this.record(name));
    if (missing !== undefined) {
      throw new WrpoError('ERR_CONFIG', `the stage ${stage.name} needs what ${missing} makes, which is not done yet`);
    }
    const started = new Date();
    rmSync(this.#path(stage.name), { force: true });
    const inputs = await this.#inputsOf(stage);
    const written = await stage.run(signal);
    const outputs: Record<string, string> = {};
    for (const path of written) outputs[path] = (await this.hashes.of(join(this.directory, path)))!;
    const record: StageRecord = {
      ...{ stage: stage.name, started: started.toISOString(), seconds: (Date.now() - started.getTime()) / 1000 },
      ...{ peak_rss_bytes: process.resourceUsage().maxRSS * 1024, inputs, outputs },
    };
    mkdirSync(join(this.directory, 'stages'), { recursive: true });
    writeFileAtomic(this.#path(stage.name), `${JSON.stringify(record, null, 1)}\n`);
    return record;
  }

  /** What was written of a stage, if it is done. Throws ERR_CHECKPOINT. */
  record(name: string): StageRecord | undefined {
    const path = this.#path(name);
    if (!existsSync(path)) return undefined;
    try {
      const record = JSON.parse(readFileSync(path, 'utf8'));
      if (typeof record.inputs !== 'object' || typeof record.outputs !== 'object')
        throw new Error('it says too little');
      return record;
    } catch (cause) {
      const what = `${path} is damaged: ${(cause as Error).message}; do the stage again with --from ${name}`;
      throw new WrpoError('ERR_CHECKPOINT', what, { cause });
    }
  }

  #path(stage: string): string {
    return join(this.directory, 'stages', `${stage.replace('/', '-')}.json`);
  }

  async #inputsOf(stage: Stage): Promise<Inputs> {
    const files = stage.reads.map((name) => this.record(name)?.outputs ?? {});
    return { ...(await stage.settings()), ...Object.assign({}, ...files) };
  }
}

/** Values as far as a person can compare them. */
function describeChange(before: Inputs[string], now: Inputs[string]): string {
  const isHash = (value: Inputs[string]) => /^[0-9a-f]{64}$/.test(String(value));
  if (isHash(before) || isHash(now)) return '';
  return `, ${JSON.stringify(before)} then and ${JSON.stringify(now)} now`;
}
