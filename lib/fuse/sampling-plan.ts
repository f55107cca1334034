/** What sampling would ask, and about what it takes. */
import type { FusionConfig } from './config.js';
import { type ChosenModel, learntFrom } from './models.js';
import { isEndpoint, isImport, type SourceConfig } from './schema.js';
import { idsIn } from './shard.js';
import { pathOfSamples } from './store.js';

/** A token of text is about so many letters. */
export const LETTERS = 4;

export interface SamplingPlan {
  model: string;
  /** That have no answer yet. */
  prompts: number;
  requests: number;
  promptTokens: number;
  /** With answers as long as is assumed, and at most. */
  completionTokens: number;
  mostCompletionTokens: number;
  seconds: number;
  dollars?: number;
}

/** The prompts of each id, in letters. */
export type PromptLengths = ReadonlyMap<string, number>;

/** A plan for each model, of what is not in the store yet: `answerTokens` an answer, `speed` tokens a second of a request. */
export function planSampling(
  config: FusionConfig,
  models: readonly ChosenModel[],
  letters: PromptLengths,
  { answerTokens, speed }: { answerTokens: number; speed: number },
): SamplingPlan[] {
  const accept = learntFrom([...letters.keys()], config);
  return models.map(({ source, isTarget }) => {
    const there = new Set(idsIn(pathOfSamples(config.outputDir, source.name)));
    const open = [...letters].filter(([id]) => !there.has(id) && (!isTarget || accept(id)));
    if (isImport(source)) return { ...NOTHING, model: source.name, prompts: open.length };
    const { concurrency, n = config.n, maxTokens = config.maxTokens } = source;
    // A model that is run here reads a prompt once for all samples of it.
    const samplesPerRequest = isEndpoint(source) ? source.samplesPerRequest : n;
    const sequences = isEndpoint(source) ? concurrency * samplesPerRequest : concurrency;
    const times = Math.ceil(n / samplesPerRequest);
    const answers = open.length * n;
    const tokens = {
      promptTokens: Math.ceil((times * open.reduce((sum, [, count]) => sum + count, 0)) / LETTERS),
      completionTokens: answers * Math.min(answerTokens, maxTokens),
    };
    return {
      ...{ model: source.name, prompts: open.length, requests: open.length * times, ...tokens },
      mostCompletionTokens: answers * maxTokens,
      seconds: Math.ceil(tokens.completionTokens / (speed * Math.min(sequences, answers || 1))),
      dollars: dollarsOf(source, tokens),
    };
  });
}

const NOTHING = { requests: 0, promptTokens: 0, completionTokens: 0, mostCompletionTokens: 0, seconds: 0 };

/** Dollars for what a model was asked and answered, where its prices are known. */
export function dollarsOf(
  source: SourceConfig,
  tokens: { promptTokens: number; completionTokens: number },
): number | undefined {
  const prices = isEndpoint(source) ? source.prices : undefined;
  return prices && (tokens.promptTokens * prices.input + tokens.completionTokens * prices.output) / 1e6;
}
