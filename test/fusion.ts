/** What the tests of the store, scoring and selection share: a store with synthetic answers, and a run file. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Message } from '../lib/data/preferences.ts';
import { type Prompt, promptIdOf } from '../lib/fuse/prompts.ts';
import { type Sampler, sampleModel } from '../lib/fuse/sample.ts';
import { Store } from '../lib/fuse/store.ts';
import { textOf } from './fake-server.ts';
import { filesBelow } from './training.ts';

export const user = (content: string): Message[] => [{ role: 'user', content }];

export const promptsOf = (count: number): Prompt[] =>
  Array.from({ length: count }, (_, i) => {
    const messages = user(`question ${i}`);
    return { promptId: promptIdOf(messages), messages };
  });

/** Answers at once, with what depends on prompt and seed alone. */
export const instantSampler = (name: string, answer = textOf): Sampler => ({
  ...{ name, concurrency: 8, depends: { model: name } },
  async sample({ promptId, seeds }) {
    const samples = seeds.map((seed) => ({ text: answer(name, promptId, seed), finish_reason: 'stop', seed }));
    return { samples, promptTokens: 2, completionTokens: 3 * seeds.length };
  },
});

/** A store with `n` answers of each model to each prompt. */
export async function sampledStore(
  directory: string,
  models: string[],
  prompts = promptsOf(20),
  n = 3,
): Promise<Store> {
  const store = await Store.create(directory, prompts);
  for (const name of models) await sampleModel(store, instantSampler(name), { n, seed: 42 });
  return store;
}

/** Every file of a directory by its name; locks and other things of a running process are no part of it. */
export function contentsOf(directory: string): Record<string, string> {
  const files = filesBelow(directory).filter((name) => /\.\w+$/.test(name));
  return Object.fromEntries(files.map((name) => [name, readFileSync(join(directory, name), 'utf8')]));
}
