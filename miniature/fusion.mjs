/** The miniature as fusions: what of the methods is a run, a selection, a start, in the words of a run file. */
import { fileURLToPath } from 'node:url';
import { SELECTIONS } from './methods.mjs';
import { MAX_TOKENS } from './task.mjs';

export const SOURCES = ['srcA', 'srcB', 'srcC'];
const modelDir = (/** @type {string} */ name) => fileURLToPath(new URL(`./models/${name}`, import.meta.url));

/** Of all training runs. */
const TRAINING = {
  ...{ perDeviceTrainBatchSize: 32, gradientAccumulationSteps: 1, maxLength: 96, loggingSteps: 4 },
  ...{ microbatchTokens: 4096, disableTqdm: true },
};
const SFT = { ...TRAINING, learningRate: 3e-5 };
/** The main setting of preference runs; a method's own keys go over it. */
const PREFERENCE = { ...TRAINING, beta: 0.5, learningRate: 2e-4 };

/** A name that files can have. @param {string} name */
export const slug = (name) =>
  name
    .replaceAll('+', '-and-')
    .replace(/[^A-Za-z0-9.-]+/g, '-')
    .replace(/-$/, '');

/**
 * One fusion, of all methods with the same start; without Target-SFT the target itself is sampled for the same prompts.
 * @param {import('./methods.mjs').Method[]} methods
 * @param {{ outputDir: string, seed: number, prompts: string, heldOut: string, fineTunes: boolean }} run
 * @returns {import('wrpo').FusionInput}
 */
export function fusionOf(methods, { outputDir, seed, prompts, heldOut, fineTunes }) {
  const views = [...new Set(methods.map(({ rows = 'all' }) => rows))].filter((rows) => rows !== 'all');
  const runs = methods.map(({ name, rows = 'all', args }) => {
    const { beta, ...rest } = PREFERENCE;
    const keys = { ...rest, ...(args.lossType !== 'sft' && { beta }), ...args };
    return [slug(name), { ...keys, ...(rows !== 'all' && { selection: slug(rows) }) }];
  });
  const target = fineTunes
    ? { name: 'target-sft', model: `${outputDir}/sft` }
    : { name: 'target', model: modelDir('target') };
  return {
    ...{ outputDir, prompts, seed, maxTokens: MAX_TOKENS, modelNameOrPath: modelDir('target') },
    sources: SOURCES.map((name) => ({ name, model: modelDir(name), concurrency: 128 })),
    targets: [{ ...target, concurrency: 128 }],
    // Results are counted on prompts of another split.
    ...{ heldOut: 0, sftRatio: 1 / 3, rowSchema: 'flat', keepTies: true },
    ...(fineTunes && { sft: SFT }),
    selections: Object.fromEntries(views.map((rows) => [slug(rows), SELECTIONS[rows]])),
    train: Object.fromEntries(runs),
    evaluate: { prompts: heldOut },
  };
}
