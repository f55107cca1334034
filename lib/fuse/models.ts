/** The models of a fusion: which are meant, how each is asked, all of them at a time. */
import { WrpoError } from '../errors.js';
import { locate } from '../train/prepare.js';
import type { FusionConfig } from './config.js';
import { endpointSampler } from './endpoint.js';
import { importSamples } from './imports.js';
import { localSampler } from './local.js';
import { Limit } from './parallel.js';
import { type Prompt, readPrompts } from './prompts.js';
import { type SampleOptions, type Sampler, type SampleTotals, sampleModel } from './sample.js';
import { type ImportConfig, isEndpoint, isImport, type SourceConfig } from './schema.js';
import { splitPrompts } from './split.js';
import { Store } from './store.js';

/** A model of the run, and whether it is a target. */
export interface ChosenModel {
  source: SourceConfig;
  isTarget: boolean;
}

/** The models that `only` names (`sources` and `targets` mean all of these), or all. Throws ERR_CONFIG when there is none. */
export function chosenModels({ sources, targets }: FusionConfig, only?: string): ChosenModel[] {
  const all = [
    ...sources.map((source) => ({ source, isTarget: false })),
    ...targets.map((source) => ({ source, isTarget: true })),
  ];
  if (all.length === 0)
    throw new WrpoError('ERR_CONFIG', 'the run file names no models: sources and targets are empty');
  if (only === undefined) return all;
  const wanted = only.split(',').map((name) => name.trim());
  const groups: Record<string, ChosenModel[]> = {
    sources: all.filter(({ isTarget }) => !isTarget),
    targets: all.filter(({ isTarget }) => isTarget),
  };
  const chosen = wanted.flatMap((name) => {
    const found = all.filter(({ source }) => source.name === name);
    const meant = found.length > 0 ? found : (groups[name] ?? []);
    if (meant.length > 0) return meant;
    const names = all.map(({ source }) => source.name).join(', ');
    throw new WrpoError('ERR_CONFIG', `--only ${name}: there is no such model; there is ${names}`);
  });
  return [...new Set(chosen)];
}

/** The prompts of the run file or, without, of the store that is there. */
export async function* promptsOf(config: FusionConfig, say: (line: string) => void): AsyncGenerator<Prompt> {
  const { prompts, promptsSplit: split, promptsConfig, promptsRevision: revision, outputDir } = config;
  if (prompts !== undefined) yield* readPrompts(prompts, { split, config: promptsConfig, revision, say });
  else yield* Store.open(outputDir).prompts();
}

/** What of the prompts a target is asked: those that preferences are learnt from and tested on. */
export function learntFrom(ids: readonly string[], config: FusionConfig): (id: string) => boolean {
  const parts = splitPrompts(ids, config);
  const learnt = new Set(ids.filter((_, i) => parts[i] !== 'sft'));
  return (id) => learnt.has(id);
}

/** How a model is asked. Throws ERR_CONFIG or ERR_MODEL: a key that is not set, a model that is not there. */
export async function samplerOf(
  source: Exclude<SourceConfig, ImportConfig>,
  config: FusionConfig,
  say: (line: string) => void,
): Promise<Sampler> {
  const { n, temperature, topP, maxTokens } = { ...config, ...source };
  if (isEndpoint(source)) return endpointSampler({ ...source, temperature, topP, maxTokens, say });
  const model = await locate(source.model, { say });
  return localSampler({ ...source, model, n, temperature, topP, maxTokens, say });
}

export interface SampleModelsOptions extends Pick<SampleOptions, 'retryFailed' | 'onOpen' | 'onPrompt'> {
  signal: AbortSignal;
  say: (line: string) => void;
  /** Told of every model that is done. */
  onModel?: (source: SourceConfig, totals: SampleTotals) => void;
}

/**
 * Asks all models at a time, those that are run here in turns; `openStore` is called when all of them can be asked. One that
 * is out of reach stops alone, and is told when the others are done; any other failure stops all.
 */
export async function sampleModels(
  openStore: () => Promise<Store>,
  config: FusionConfig,
  models: readonly ChosenModel[],
  options: SampleModelsOptions,
): Promise<void> {
  const { retryFailed, onOpen, onPrompt, say, onModel } = options;
  const samplers = new Map<SourceConfig, Sampler>();
  for (const { source } of models) {
    if (!isImport(source)) samplers.set(source, await samplerOf(source, config, say));
  }
  const here = new Limit(1);
  const store = await openStore();
  const accept = learntFrom(store.order.ids, config);
  const run = ({ source, isTarget }: ChosenModel, signal: AbortSignal): Promise<SampleTotals> => {
    if (isImport(source)) {
      const { import: file, ...rest } = source;
      return importSamples(store, { ...rest, source: file, signal, say });
    }
    const sampler = samplers.get(source)!;
    const work = async () => {
      try {
        return await sampleModel(store, sampler, {
          ...{ n: source.n ?? config.n, seed: config.seed, retryFailed, signal, onOpen, onPrompt },
          ...(isTarget && { accept }),
        });
      } finally {
        await sampler.close?.();
      }
    };
    return isEndpoint(source) ? work() : here.run(signal, work);
  };
  await runAll(models, options.signal, async (model, signal) => onModel?.(model.source, await run(model, signal)));
}

async function runAll(
  models: readonly ChosenModel[],
  signal: AbortSignal,
  run: (model: ChosenModel, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const controller = new AbortController();
  const stop = () => controller.abort();
  signal.addEventListener('abort', stop);
  const failures: unknown[] = [];
  const guarded = (model: ChosenModel) =>
    run(model, controller.signal).catch((error) => {
      failures.push(error);
      if (!(error instanceof WrpoError && error.code === 'ERR_ENDPOINT')) controller.abort();
    });
  await Promise.all(models.map(guarded));
  signal.removeEventListener('abort', stop);
  signal.throwIfAborted();
  const [first, ...more] = failures.filter((error) => !isAbort(error));
  if (first === undefined) return;
  if (more.length === 0) throw first;
  const said = [first, ...more].map((error) => (error as Error).message).join('; ');
  throw new WrpoError('ERR_ENDPOINT', `${1 + more.length} of ${models.length} models stopped: ${said}`);
}

const isAbort = (error: unknown): boolean => (error as Error)?.name === 'AbortError';
