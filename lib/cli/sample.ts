/** `wrpo sample`: the prompts of a fusion to its models. */
import { WrpoError } from '../errors.js';
import { type FusionConfig, type ImportConfig, isEndpoint, isImport, type SourceConfig } from '../fuse/config.js';
import { endpointSampler } from '../fuse/endpoint.js';
import { importSamples } from '../fuse/imports.js';
import { localSampler } from '../fuse/local.js';
import { Limit } from '../fuse/parallel.js';
import { type Prompt, readPrompts } from '../fuse/prompts.js';
import { type Sampler, type SampleTotals, sampleModel } from '../fuse/sample.js';
import { splitPrompts } from '../fuse/split.js';
import { Store } from '../fuse/store.js';
import { locate } from '../train/prepare.js';
import { type ChosenModel, chosenModels, type FusionOptions, interruptible, readFusion } from './fusion.js';
import { newsOf } from './news.js';
import { planSampling } from './sample-plan.js';
import { writeOut } from './stdout.js';

export interface SampleCommand extends FusionOptions {
  /** For the dry run: tokens of an answer, and tokens a second of one request. */
  answerTokens: number;
  speed: number;
}

export async function sample(options: SampleCommand, rest: string[]): Promise<void> {
  const config = readFusion(options.config, rest);
  const models = chosenModels(config, options.only);
  const news = newsOf('prompts answered');
  const prompts = promptsOf(config, news.say);
  if (options.dryRun) return planSampling(config, models, prompts, options);
  // A key that is not set, or a model that is not there, is told before anything is asked.
  const samplers = new Map<SourceConfig, Sampler>();
  for (const { source } of models) {
    if (!isImport(source)) samplers.set(source, await samplerOf(source, config, news.say));
  }
  // Models that are run here take turns: one of them in memory at a time.
  const here = new Limit(1);
  const store = await Store.create(config.outputDir, prompts);
  const accept = learntFrom(store.order.ids, config);
  const run = ({ source, isTarget }: ChosenModel, signal: AbortSignal): Promise<SampleTotals> => {
    if (isImport(source)) {
      const { import: file, ...rest } = source;
      return importSamples(store, { ...rest, source: file, signal, say: news.say });
    }
    const sampler = samplers.get(source)!;
    const work = async () => {
      try {
        return await sampleModel(store, sampler, {
          ...{ n: source.n ?? config.n, seed: config.seed, retryFailed: options.retryFailed, signal },
          ...(isTarget && { accept }),
          onOpen: news.expect,
          onPrompt: () => news.add(1),
        });
      } finally {
        await sampler.close?.();
      }
    };
    return isEndpoint(source) ? work() : here.run(signal, work);
  };
  try {
    const report: (SampleTotals & { model: string; dollars?: number })[] = [];
    const reported = async (model: ChosenModel, signal: AbortSignal) => {
      const totals = await run(model, signal);
      const { source } = model;
      report.push({ model: source.name, ...totals, dollars: dollarsOf(source, totals) });
      news.say(describe(report.at(-1)!));
    };
    await interruptible((signal) => runAll(models, signal, reported));
    if (options.json) await writeOut(`${JSON.stringify(report)}\n`);
  } finally {
    news.end();
  }
}

/** What of the prompts a target is asked: those that preferences are learnt from and tested on. */
export function learntFrom(ids: readonly string[], config: FusionConfig): (id: string) => boolean {
  const parts = splitPrompts(ids, config);
  const learnt = new Set(ids.filter((_, i) => parts[i] !== 'sft'));
  return (id) => learnt.has(id);
}

async function* promptsOf(config: FusionConfig, say: (line: string) => void): AsyncGenerator<Prompt> {
  const { prompts, promptsSplit: split, promptsConfig, promptsRevision: revision, outputDir } = config;
  if (prompts !== undefined) yield* readPrompts(prompts, { split, config: promptsConfig, revision, say });
  else yield* Store.open(outputDir).prompts();
}

async function samplerOf(
  source: Exclude<SourceConfig, ImportConfig>,
  config: FusionConfig,
  say: (line: string) => void,
): Promise<Sampler> {
  const { n, temperature, topP, maxTokens } = { ...config, ...source };
  if (isEndpoint(source)) return endpointSampler({ ...source, temperature, topP, maxTokens, say });
  const model = await locate(source.model, { say });
  return localSampler({ ...source, model, n, temperature, topP, maxTokens, say });
}

/**
 * All models at a time. One that is out of reach stops alone, and is told when the others are done; any other failure
 * stops all.
 */
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

/** Dollars for what a model was asked and answered, where its prices are known. */
export function dollarsOf(
  source: SourceConfig,
  tokens: { promptTokens: number; completionTokens: number },
): number | undefined {
  const prices = isEndpoint(source) ? source.prices : undefined;
  return prices && (tokens.promptTokens * prices.input + tokens.completionTokens * prices.output) / 1e6;
}

function describe(totals: SampleTotals & { model: string; dollars?: number }): string {
  const { model, prompts, samples, failed, cut, promptTokens, completionTokens, dollars } = totals;
  const parts = [
    `${samples} samples of ${prompts} prompts`,
    failed > 0 && `${failed} prompts failed (--retry-failed asks them again)`,
    cut > 0 && `${cut} samples cut at max_tokens`,
    completionTokens > 0 && `${promptTokens} tokens read, ${completionTokens} written`,
    dollars !== undefined && `$${dollars.toFixed(2)}`,
  ];
  return `${model}: ${parts.filter(Boolean).join(', ')}`;
}
