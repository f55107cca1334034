/**
 * One run of the miniature, step by step as in the paper's section 3: samples of the sources, Target-SFT on a third of the
 * prompts, its own samples of the others, preference optimisation. Whatever is on disk already is not done again.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { functionScorer, localSampler, Store, sampleModel, scoreModel, selectRows, Trainer } from 'wrpo';
import { promptIdOf } from '../dist/fuse/prompts.js';
import { splitPrompts } from '../dist/fuse/split.js';
import { fusionPrompts, MAX_TOKENS, rewardOf } from './task.mjs';

/** @typedef {import('wrpo').TrainingArgsInput} Args */

export const SOURCES = ['srcA', 'srcB', 'srcC'];
export const modelDir = (/** @type {string} */ name) => fileURLToPath(new URL(`./models/${name}`, import.meta.url));

/** Of all training runs. */
const TRAINING = {
  ...{ perDeviceTrainBatchSize: 32, gradientAccumulationSteps: 1, maxLength: 96, loggingSteps: 4 },
  ...{ microbatchTokens: 4096, disableTqdm: true },
};
export const SFT = { ...TRAINING, lossType: 'sft', learningRate: 3e-5 };
/** The main setting of preference runs; a method's own keys go over it. */
export const PREFERENCE = { ...TRAINING, beta: 0.5, learningRate: 2e-4 };

/** Of a third of the prompts, none held out: results are counted on prompts of another split. */
const splitOf = (/** @type {number} */ seed) => ({ seed, heldOut: 0, sftRatio: 1 / 3 });

/** A run of one seed in a directory of its own. */
export class MiniatureRun {
  /**
   * @param {string} directory @param {number} seed
   * @param {{ count?: number, say?: (line: string) => void }} [options] how many prompts, of which training gets two thirds
   */
  static async open(directory, seed, { count, say = () => {} } = {}) {
    const samples = fusionPrompts(seed, count);
    const asked = samples.map(({ prompt }) => {
      const messages = [{ role: 'user', content: prompt }];
      return { promptId: promptIdOf(messages), messages };
    });
    return new MiniatureRun(directory, seed, samples, await Store.create(directory, asked), say);
  }

  /** @param {string} directory @param {number} seed @param {import('./task.mjs').Sample[]} samples @param {Store} store */
  constructor(directory, seed, samples, store, say = (/** @type {string} */ _line) => {}) {
    this.directory = directory;
    this.seed = seed;
    this.store = store;
    this.say = say;
    this.scorer = functionScorer('gold', rewardOf(samples));
  }

  path(...parts) {
    return join(this.directory, ...parts);
  }

  /** Five answers of a model to each prompt, or to those that preferences are learnt from, and their rewards. */
  async sample(name, dir, { onlyPreferences = false } = {}) {
    const { store, seed, scorer } = this;
    const parts = splitPrompts(store.order.ids, splitOf(seed));
    const preferred = new Set(store.order.ids.filter((_, i) => parts[i] === 'train'));
    const n = 5;
    const sampler = await localSampler({
      ...{ name, model: dir, dtype: 'float32', concurrency: 128, n, maxTokens: MAX_TOKENS },
      ...{ temperature: 0.8, topP: 0.95, topK: 0, minP: 0, repetitionPenalty: 1 },
    });
    try {
      const began = performance.now();
      await sampleModel(store, sampler, { n, seed, ...(onlyPreferences && { accept: (id) => preferred.has(id) }) });
      const { mean } = await scoreModel(store, name, scorer);
      this.say(`${name}: sampled and scored, mean reward ${mean.toFixed(3)} (${seconds(began)})`);
    } finally {
      await sampler.close?.();
    }
  }

  /** Rows to train on, in a directory of this name. */
  select(name, { target, sources = SOURCES, ...options } = {}) {
    const directory = this.path(name);
    const selection = selectRows(this.store, {
      ...{ sources, target, scorer: 'gold', rank: 1, sourceRejected: false, rowSchema: 'flat', format: 'jsonl' },
      ...{ ...splitOf(this.seed), directory, keepTies: true, ...options },
    });
    return { directory, ...selection };
  }

  /** Trains, unless that very run is there already; gives the model's directory. */
  async train(name, { model, rows, args }) {
    const outputDir = this.path(name);
    const job = JSON.stringify({ args, weights: weightsOf(model), rows: sha256(rows) });
    const record = join(outputDir, 'job.json');
    if (existsSync(record) && readFileSync(record, 'utf8') === job) return outputDir;
    rmSync(outputDir, { recursive: true, force: true }); // what is left of another run does not go with this one
    const began = performance.now();
    const trainer = new Trainer({ model, trainDataset: rows, args: { outputDir, seed: this.seed, ...args } });
    const { globalStep, trainingLoss } = await trainer.train();
    await trainer.close();
    writeFileSync(record, job);
    this.say(`${name}: ${globalStep} steps, loss ${trainingLoss.toFixed(3)} (${seconds(began)})`);
    return outputDir;
  }
}

export const seconds = (/** @type {number} */ began) => `${((performance.now() - began) / 1000).toFixed(1)} s`;

const sha256 = (/** @type {string} */ path) => createHash('sha256').update(readFileSync(path)).digest('hex');
/** Of the weights in a model directory. @param {string} directory */
export const weightsOf = (directory) => sha256(join(directory, 'model.safetensors'));
