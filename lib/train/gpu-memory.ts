/** What a run on a GPU is expected to take of its memory, said before it begins and where it was not enough. */
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import type { ModelShape, NativeInfo } from '../native/addon.js';
import type { TrainingArgs } from './args.js';
import { forecast, gib, type MemoryPlan } from './memory-plan.js';

/** Of full training, whose layers are all kept: none is computed again. Adapters are not counted here. */
export function forecastRun(
  config: ModelShape,
  args: Pick<TrainingArgs, 'microbatchTokens' | 'usePeft' | 'refModelNameOrPath'>,
): MemoryPlan | undefined {
  if (args.usePeft) return undefined;
  const residentReference = args.refModelNameOrPath !== undefined;
  return forecast(config, args.microbatchTokens, Number.POSITIVE_INFINITY, { residentReference });
}

/** The line before the run. */
export function describeForecast(plan: MemoryPlan, gpu: NonNullable<NativeInfo['gpu']>): string {
  const needs = `${gpu.name}: needs ${gib(plan.total)} GiB of ${gib(gpu.free)} free`;
  return plan.total <= gpu.free
    ? needs
    : `${needs}: it will probably run out; lower microbatch_tokens (${plan.tokens}) or train adapters (use_peft)`;
}

/** An error of the run, which, where a GPU's memory was not enough, says how much was forecast and what to change. */
export function explainOutOfMemory(error: unknown, model: Model, args: TrainingArgs): unknown {
  if (!(error instanceof WrpoError) || error.code !== 'ERR_OUT_OF_MEMORY' || model.device !== 'cuda') return error;
  const plan = forecastRun(model.config, args);
  const expected = plan ? `, ${gib(plan.total)} GiB were forecast` : '';
  const message = `the GPU's memory is not enough: ${gib(model.memory().peak)} GiB were in use at most${expected}; lower microbatch_tokens (${args.microbatchTokens})${args.usePeft ? '' : ' or train adapters (use_peft)'}`;
  return new WrpoError('ERR_OUT_OF_MEMORY', message, { cause: error });
}
