/** How models compare on prompts that nothing was trained on: greedy answers, scored, against the target's. */
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { PendingFile, writeFileAtomic } from '../data/files.js';
import { mean, standardError } from '../evaluate/statistics.js';
import type { FusionConfig } from './config.js';
import type { Hashes } from './hashes.js';
import { samplerOf } from './models.js';
import type { Prompt } from './prompts.js';
import { sampleModel } from './sample.js';
import type { LocalConfig } from './schema.js';
import { type Scorer, scoreModel } from './score.js';
import { readManifest, shardFiles } from './shard.js';
import { Store } from './store.js';

export interface HeldOut {
  prompts(): Iterable<Prompt> | AsyncIterable<Prompt>;
  maxTokens: number;
  temperature: number;
}

export interface Compared {
  name: string;
  source: LocalConfig;
}

/** A line of `results.json`; standard errors are over prompts. */
export interface ComparisonRow {
  name: string;
  /** Mean score. */
  reward: number;
  reward_stderr: number | null;
  /** How often it is better than the target, ties counting half. */
  win_rate: number;
  win_rate_stderr: number | null;
  /** Prompts that it and the target have scores for. */
  n: number;
  /** Of its answers, in characters. */
  mean_length: number;
}

interface Options {
  signal: AbortSignal;
  say: (line: string) => void;
  onOpen: (prompts: number) => void;
  onPrompt: () => void;
}

/**
 * Writes `results.json` ({rows, scorer}) and `answers.jsonl` ({prompt_id, prompt, answers: {name: {text, reward}}}) into
 * `directory`, which keeps every answer: only models whose weights have changed are asked again. The first model is the
 * target.
 */
export async function compareModels(
  directory: string,
  models: readonly Compared[],
  heldOut: HeldOut,
  scorer: Scorer,
  config: FusionConfig,
  hashes: Hashes,
  { signal, say, onOpen, onPrompt }: Options,
): Promise<void> {
  const store = await openStore(directory, heldOut);
  const { temperature, maxTokens } = heldOut;
  for (const { name, source } of models) {
    const sampler = await samplerOf({ ...source, name, n: 1, temperature, topP: 1, maxTokens }, config, say);
    const depends = { ...sampler.depends, weights: await hashes.ofModel(source.model, say) };
    forgetOther(store.samplesPath(name), depends);
    try {
      await sampleModel(store, { ...sampler, depends }, { n: 1, seed: config.seed, signal, onOpen, onPrompt });
    } finally {
      await sampler.close?.();
    }
    forgetOther(store.scoresPath(scorer.name, name), scorer.depends);
    await scoreModel(store, name, scorer, { signal });
  }
  const answers = new PendingFile(join(directory, 'answers.jsonl'));
  const tables = models.map(({ name }) => new Map(answersOf(store, scorer.name, name)));
  for (const { promptId, messages } of store.prompts()) {
    const given = models.flatMap(({ name }, k) => {
      const answer = tables[k]!.get(promptId);
      return answer ? [[name, answer]] : [];
    });
    answers.write(`${JSON.stringify({ prompt_id: promptId, prompt: messages, answers: Object.fromEntries(given) })}\n`);
  }
  answers.finish();
  const rows = models.map(({ name }, k) => rowOf(name, tables[k]!, tables[0]!));
  writeFileAtomic(join(directory, 'results.json'), `${JSON.stringify({ scorer: scorer.name, rows }, null, 1)}\n`);
}

/** What was written of a comparison. */
export const readComparison = (directory: string): ComparisonRow[] =>
  JSON.parse(readFileSync(join(directory, 'results.json'), 'utf8')).rows;

/** The store of the answers; other prompts begin another one. */
async function openStore(directory: string, heldOut: HeldOut): Promise<Store> {
  const prompts: Prompt[] = [];
  for await (const prompt of heldOut.prompts()) prompts.push(prompt);
  if (existsSync(join(directory, 'prompts.jsonl'))) {
    const { ids } = Store.open(directory).order;
    const same = ids.length === prompts.length && prompts.every(({ promptId }, i) => promptId === ids[i]);
    if (!same) rmSync(directory, { recursive: true });
  }
  return Store.create(directory, prompts);
}

/** Takes away a shard that was made from something else. */
function forgetOther(path: string, depends: object): void {
  const files = shardFiles(path);
  if (!files.some((file) => existsSync(file))) return;
  const before = readManifest(path).depends;
  if (Object.entries(depends).every(([name, value]) => (before[name] ?? null) === (value ?? null))) return;
  for (const file of files) rmSync(file, { force: true });
}

function* answersOf(
  store: Store,
  scorer: string,
  model: string,
): Generator<[string, { text: string; reward: number | null }]> {
  const samples = store.readSamples(model);
  const scores = store.readScores(scorer, model);
  try {
    for (const [index, id] of store.order.ids.entries()) {
      const sample = samples.at(index)?.samples[0];
      const score = scores.at(index)?.scores[0];
      if (sample) yield [id, { text: sample.text, reward: score ?? null }];
    }
  } finally {
    samples.close();
    scores.close();
  }
}

type Answers = ReadonlyMap<string, { text: string; reward: number | null }>;

function rowOf(name: string, mine: Answers, target: Answers): ComparisonRow {
  const both = [...mine].flatMap(([id, { text, reward }]) => {
    const other = target.get(id)?.reward ?? null;
    return reward === null || other === null ? [] : [{ reward, other, length: [...text].length }];
  });
  const rewards = both.map(({ reward }) => reward);
  const wins = both.map(({ reward, other }) => (1 + Math.sign(reward - other)) / 2);
  const spread = (values: number[]) => (values.length > 1 ? standardError(values) : null);
  return {
    ...{ name, reward: mean(rewards), reward_stderr: spread(rewards) },
    ...{ win_rate: mean(wins), win_rate_stderr: spread(wins), n: both.length },
    mean_length: mean(both.map(({ length }) => length)),
  };
}
