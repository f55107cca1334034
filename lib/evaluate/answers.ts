/** Answers of a model to a benchmark's questions: sampled as for a fusion, so that they can be cut off and begun again. */
import { WrpoError } from '../errors.js';
import { endpointSampler } from '../fuse/endpoint.js';
import { localSampler } from '../fuse/local.js';
import type { Prompt } from '../fuse/prompts.js';
import { sampleModel } from '../fuse/sample.js';
import { Store } from '../fuse/store.js';
import { locate } from '../train/prepare.js';
import type { AnsweringModel } from './config.js';

export interface Asking {
  model: AnsweringModel;
  /** Where the model's own settings say nothing else. */
  settings: { temperature: number; topP: number; maxTokens: number };
  seed: number;
  /** Asks again what failed in an earlier run. */
  retryFailed?: boolean;
  signal?: AbortSignal;
  say?: (line: string) => void;
}

/**
 * One answer a prompt, in order, kept in the store `directory`. Throws ERR_ENDPOINT when some prompts have none; those of
 * the others stay.
 */
export async function answersOf(prompts: readonly Prompt[], directory: string, asking: Asking): Promise<string[]> {
  const { model, settings, seed, retryFailed, signal, say } = asking;
  const { temperature, topP, maxTokens } = { ...settings, ...withoutGaps(model) };
  const drawing = { temperature, topP, maxTokens, say };
  const sampler =
    'baseUrl' in model
      ? endpointSampler({ ...model, ...drawing })
      : await localSampler({
          ...model,
          ...drawing,
          model: await locate(model.model, { say: say ?? (() => {}) }),
          n: 1,
        });
  const store = await Store.create(directory, prompts);
  try {
    const { failed } = await sampleModel(store, sampler, { n: 1, seed, retryFailed, signal });
    if (failed > 0) {
      const what = `${failed} of ${prompts.length} questions have no answer; --retry-failed asks them again`;
      throw new WrpoError('ERR_ENDPOINT', `${model.name}: ${what}`);
    }
  } finally {
    await sampler.close?.();
  }
  const reader = store.readSamples(model.name);
  try {
    return prompts.map((_, i) => reader.at(i)!.samples[0]!.text);
  } finally {
    reader.close();
  }
}

const withoutGaps = <T extends object>(value: T): T =>
  Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined)) as T;
