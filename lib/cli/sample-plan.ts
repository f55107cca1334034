/** `wrpo sample --dry-run`: what would be asked, and about what it takes. */
import type { FusionConfig } from '../fuse/config.js';
import { type ChosenModel, learntFrom } from '../fuse/models.js';
import type { Prompt } from '../fuse/prompts.js';
import { isEndpoint, isImport } from '../fuse/schema.js';
import { idsIn } from '../fuse/shard.js';
import { pathOfSamples } from '../fuse/store.js';
import { table } from './fusion.js';
import { duration } from './news.js';
import { dollarsOf, type SampleCommand } from './sample.js';
import { writeOut } from './stdout.js';

/** A token of text is about so many letters. */
const LETTERS = 4;

interface Plan {
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

export async function planSampling(
  config: FusionConfig,
  models: readonly ChosenModel[],
  prompts: AsyncIterable<Prompt>,
  { answerTokens, speed, json }: SampleCommand,
): Promise<void> {
  const letters = new Map<string, number>();
  for await (const { promptId, messages } of prompts) {
    letters.set(
      promptId,
      messages.reduce((sum, { content }) => sum + content.length, 0),
    );
  }
  const accept = learntFrom([...letters.keys()], config);
  const planOf = ({ source, isTarget }: ChosenModel): Plan => {
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
  };
  const plans = models.map(planOf);
  // All are asked at the same time.
  const seconds = Math.max(...plans.map((plan) => plan.seconds));
  if (json)
    return writeOut(`${JSON.stringify({ prompts: letters.size, seconds, answerTokens, speed, models: plans })}\n`);
  const rows = plans.map((plan) => [
    ...[plan.model, plan.prompts, plan.requests, plan.promptTokens, plan.completionTokens].map(String),
    ...[String(plan.mostCompletionTokens), duration(plan.seconds)],
    plan.dollars === undefined ? '' : `$${plan.dollars.toFixed(2)}`,
  ]);
  const head = ['model', 'prompts', 'requests', 'tokens read', 'tokens written', 'at most', 'time', 'cost'];
  const assumed = `${answerTokens} tokens an answer and ${speed} tokens/s a request (--answer-tokens, --speed)`;
  await writeOut(`${table([head, ...rows])}${letters.size} prompts, ${duration(seconds)}, assuming ${assumed}\n`);
}

const NOTHING = { requests: 0, promptTokens: 0, completionTokens: 0, mostCompletionTokens: 0, seconds: 0 };
