/** `wrpo sample`: the prompts of a fusion to its models. */
import { chosenModels, promptsOf, sampleModels } from '../fuse/models.js';
import type { SampleTotals } from '../fuse/sample.js';
import { dollarsOf } from '../fuse/sampling-plan.js';
import { Store } from '../fuse/store.js';
import { type FusionOptions, interruptible, readFusion } from './fusion.js';
import { newsOf } from './news.js';
import { saySamplingPlan } from './sample-plan.js';
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
  if (options.dryRun) return saySamplingPlan(config, models, prompts, options);
  const report: (SampleTotals & { model: string; dollars?: number })[] = [];
  try {
    await interruptible((signal) =>
      sampleModels(() => Store.create(config.outputDir, prompts), config, models, {
        ...{ retryFailed: options.retryFailed, signal, say: news.say },
        onOpen: news.expect,
        onPrompt: () => news.add(1),
        onModel(source, totals) {
          report.push({ model: source.name, ...totals, dollars: dollarsOf(source, totals) });
          news.say(describe(report.at(-1)!));
        },
      }),
    );
    if (options.json) await writeOut(`${JSON.stringify(report)}\n`);
  } finally {
    news.end();
  }
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
