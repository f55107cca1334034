/** `wrpo sample --dry-run`: what would be asked, and about what it takes. */

import { duration } from '../duration.js';
import type { FusionConfig } from '../fuse/config.js';
import type { ChosenModel } from '../fuse/models.js';
import { lettersOf, type Prompt } from '../fuse/prompts.js';
import { planSampling } from '../fuse/sampling-plan.js';
import { table } from './fusion.js';
import type { SampleCommand } from './sample.js';
import { writeOut } from './stdout.js';

export async function saySamplingPlan(
  config: FusionConfig,
  models: readonly ChosenModel[],
  prompts: AsyncIterable<Prompt>,
  { answerTokens, speed, json }: SampleCommand,
): Promise<void> {
  const letters = await lettersOf(prompts);
  const plans = planSampling(config, models, letters, { answerTokens, speed });
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
