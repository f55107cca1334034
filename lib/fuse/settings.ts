/** What the stages of a fusion depend on, as settings that can be compared and named. */
import { relative } from 'node:path';
import { resolveArgs, type TrainingArgs, toRunFile } from '../train/args.js';
import { snake } from '../train/compat.js';
import type { FusionConfig, RunInput } from './config.js';
import type { Hashes } from './hashes.js';
import { isImport, isLocal, type SourceConfig } from './schema.js';
import type { Inputs } from './stages.js';

/** How a model is talked to, which changes nothing in what it says. */
const TUNING = ['concurrency', 'timeout', 'maxRetries', 'retryDelay', 'apiKeyEnv', 'prices', 'samplesPerRequest'];
/** What of training's arguments changes no result. */
const WATCHING = ['logging_steps', 'disable_tqdm', 'save_strategy', 'save_steps', 'save_total_limit', 'report_to'];

/** Values by the path that leads to them, as a run file spells it. */
export function flat(value: object, prefix = ''): Inputs {
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, one]) => {
      const name = `${prefix}${snake(key)}`;
      if (one === undefined) return [];
      if (Array.isArray(one)) return [[name, JSON.stringify(one)]];
      if (typeof one === 'object' && one !== null) return Object.entries(flat(one, `${name}.`));
      return [[name, one]];
    }),
  );
}

const without = (value: object, keys: readonly string[]): object =>
  Object.fromEntries(Object.entries(value).filter(([key]) => !keys.includes(key)));

/** Of a model or a scorer of the run file, by its name. */
export const settingsOf = (one: { name: string }): Inputs => flat(without(one, ['name', ...TUNING]), `${one.name}.`);

/** What samples of these models depend on. */
export async function samplingSettings(
  config: FusionConfig,
  models: readonly SourceConfig[],
  hashes: Hashes,
  say: (line: string) => void,
): Promise<Inputs> {
  const { promptsSplit, promptsConfig, promptsRevision, seed, n, temperature, topP, maxTokens } = config;
  const prompts = config.prompts && ((await hashes.of(config.prompts)) ?? config.prompts);
  const settings: Inputs = {
    ...flat({ prompts, promptsSplit, promptsConfig, promptsRevision, seed, n, temperature, topP, maxTokens }),
    ...Object.assign({}, ...models.map(settingsOf)),
  };
  for (const model of models) {
    if (isImport(model)) settings[`${model.name}.import`] = (await hashes.of(model.import)) ?? model.import;
    if (!isLocal(model)) continue;
    const place = relative(config.outputDir, model.model);
    // Of what is trained here its stage says more, and it may not be there yet.
    if (!place.startsWith('..')) settings[`${model.name}.model`] = place;
    else settings[`${model.name} weights`] = await hashes.ofModel(model.model, say);
  }
  return settings;
}

/** The arguments of a run, for whatever data. */
export const argsOf = (config: FusionConfig, { selection: _, ...input }: RunInput): TrainingArgs =>
  resolveArgs({ seed: config.seed, ...input, outputDir: '.' }, 'config');

/** What a run's result depends on beside its data and its model. */
export const trainingSettings = (config: FusionConfig, input: RunInput): Inputs =>
  flat(without(toRunFile(argsOf(config, input)), ['output_dir', ...WATCHING]));
