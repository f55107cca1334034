/** What a run is expected to take of its device's memory, and how many layers it therefore keeps. */
import { freemem } from 'node:os';
import { packedLength } from '../data/pack.js';
import type { Role } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import { loadNative } from '../native/load.js';
import type { EncodedRow } from '../text/encode.js';
import type { TrainingArgs } from './args.js';
import { forecast, gib, type MemoryPlan } from './memory-plan.js';

/** Of models that are loaded, and rows that are encoded. `free`: bytes that nobody uses. */
export function planRun(
  { model, refModel, rows, roles }: { model: Model; refModel?: Model; rows: EncodedRow[]; roles: readonly Role[] },
  args: TrainingArgs,
  free: number,
): MemoryPlan {
  // What this process' tensors take already is part of what the run needs.
  return forecast(model.config, largestMicrobatch(model, rows, roles, args), free + model.memory().current, {
    ...{ dtype: model.dtype, device: model.device, sharePrompt: args.sharePrompt },
    ...{
      checkpointing: args.gradientCheckpointing,
      residentReference: refModel && (refModel.frozen || 'with masters'),
    },
    adapters: model.lora && { parameters: adapterParameters(model), rank: model.lora.r },
  });
}

function adapterParameters(model: Model): number {
  let count = 0;
  for (const [name, tensor] of model.parameters()) {
    if (name.includes('.lora_')) count += tensor.shape.reduce((product, size) => product * size);
    tensor.dispose();
  }
  return count;
}

/** The most tokens that a forward and backward can have: those of the longest row, or of as many as fit. */
function largestMicrobatch(
  { longestShared }: Pick<Model, 'longestShared'>,
  rows: EncodedRow[],
  roles: readonly Role[],
  args: Pick<
    TrainingArgs,
    'microbatchTokens' | 'sharePrompt' | 'perDeviceTrainBatchSize' | 'gradientAccumulationSteps'
  >,
): number {
  const { microbatchTokens: limit, sharePrompt, perDeviceTrainBatchSize, gradientAccumulationSteps } = args;
  const most = Math.min(rows.length, perDeviceTrainBatchSize * gradientAccumulationSteps);
  let [longest, filled] = [0, 0];
  for (const row of rows) {
    const counted = packedLength(row, roles);
    const prompt = row.prompt.length;
    const shares = sharePrompt && roles.every((role) => prompt + row.responses[role]!.length <= longestShared);
    // Micro-batches are filled as if prompts were shared.
    const tokens = shares ? counted : counted + (roles.length - 1) * (prompt - 1);
    longest = Math.max(longest, tokens);
    filled = Math.max(filled, (limit * tokens) / counted);
  }
  return Math.max(longest, Math.min(Math.ceil(filled), most * longest));
}

/** On the CPU what the system calls available, within the limit of a container, of which other processes are not counted. */
export function freeMemory({ device }: Model): number {
  if (device === 'cuda') return loadNative().info().gpu?.free ?? 0;
  const limit = process.constrainedMemory();
  return Math.min(freemem(), limit > 0 ? limit - process.memoryUsage.rss() : Number.POSITIVE_INFINITY);
}

/** The line before the run: on a GPU always, on the CPU where memory is not enough to keep all layers. */
export function describePlan(plan: MemoryPlan, model: Model, args: TrainingArgs, free: number) {
  const available = free + model.memory().current;
  const again = plan.layers - plan.keptLayers;
  const name = (model.device === 'cuda' && loadNative().info().gpu?.name) || 'memory';
  const fits = plan.total <= available;
  if (model.device === 'cpu' && fits && (again === 0 || args.gradientCheckpointing === true)) return undefined;
  const needs = `${name}: needs ${gib(plan.total)} GiB of ${gib(available)}`;
  const layers = again > 0 ? `, with ${again} of ${plan.layers} layers computed again in backward` : '';
  return `${needs}${layers}${fits ? '' : `: it will probably run out; ${remedy(args)}`}`;
}

// A forecast does not count what is left over in slabs of 16 MiB (native/memory.h): of a tiny model the most.
const LEFT_OVER = 64 * 2 ** 20;

/** The line after a run on a GPU whose forecast was wrong by more than a twentieth. */
export function describePeak(plan: MemoryPlan, model: Pick<Model, 'device' | 'memory'>): string | undefined {
  if (model.device !== 'cuda') return undefined;
  const [tensors, { peak }] = [plan.total - plan.reserve, model.memory()];
  const off = Math.round((100 * peak) / tensors - 100);
  if (Math.abs(peak - tensors) <= Math.max(tensors / 20, LEFT_OVER)) return undefined;
  return `memory: ${gib(peak)} GiB of tensors were in use at most, ${Math.abs(off)} % ${off > 0 ? 'more' : 'less'} than the ${gib(tensors)} forecast`;
}

/**
 * An error of the run, which, where the GPU's memory was not enough, says how much was forecast and what to change. `run`
 * is undefined before the weights are loaded and there is a forecast.
 */
export function explainOutOfMemory(
  error: unknown,
  args: TrainingArgs,
  run?: { model: Pick<Model, 'device' | 'memory'>; memory: MemoryPlan },
): unknown {
  if (!(error instanceof WrpoError) || error.code !== 'ERR_OUT_OF_MEMORY') return error;
  if ((run ? run.model.device : args.device) === 'cpu') return error;
  const { peak } = run?.model.memory() ?? loadNative().memory({ device: 'cuda' });
  const message = run
    ? `the GPU's memory is not enough: ${gib(peak)} GiB were in use at most, ${gib(run.memory.total)} GiB were forecast; ${remedy(args)}`
    : `the GPU's memory is not enough for the model's weights: ${gib(peak)} GiB were in use at most${args.usePeft ? '' : '; train adapters (use_peft)'}`;
  return new WrpoError('ERR_OUT_OF_MEMORY', message, { cause: error });
}

function remedy({ microbatchTokens, gradientCheckpointing, usePeft }: TrainingArgs): string {
  const again = gradientCheckpointing === true ? '' : ', set gradient_checkpointing: true';
  return `lower microbatch_tokens (${microbatchTokens})${again}${usePeft ? '' : ' or train adapters (use_peft)'}`;
}
