/** The miniature's task as a fusion sees it: prompts, and a reward model. */
import { prompts, reward } from './skills.mjs';

/** Samples end here, whatever the model. */
export const MAX_TOKENS = 24;

/**
 * @typedef {import('./skills.mjs').Sample} Sample
 * @typedef {{ text: string, reward: number }} Answer
 */

/** The prompts that results are counted on, 100 of each skill; no model is trained, sampled or tuned on them. */
export const testPrompts = (n = 1200) => prompts(900, n, 'test');
/** Those that settings were chosen on. */
export const devPrompts = (n = 480) => prompts(901, n, 'dev');
/** Of the runs whose results are shown, fixed before any was seen; settings were chosen with others, on dev prompts. */
export const SEEDS = [21, 22, 23, 24, 25];

/** Of one run: each seed has its own. @param {number} seed */
export const fusionPrompts = (seed, n = 3072) => prompts(5000 + seed, n, 'po');

/**
 * The reward model: the right answers are known. @param {Sample[]} samples
 * @returns {(item: { messages: readonly { content: string }[], response: string, finishReason: string }) => number}
 */
export function rewardOf(samples) {
  const golds = new Map(samples.map(({ prompt, gold }) => [prompt, gold]));
  return ({ messages, response, finishReason }) =>
    reward(response, golds.get(messages[0].content), finishReason === 'stop');
}

/** @param {number[]} values */
export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Of the mean. @param {number[]} values */
export function standardError(values) {
  if (values.length < 2) return undefined;
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - 1) / values.length);
}

/** How often answers beat the others', ties counting half. @param {Answer[]} mine @param {Answer[]} others */
export const wins = (mine, others) => mine.map(({ reward }, i) => (1 + Math.sign(reward - others[i].reward)) / 2);
