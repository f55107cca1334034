/** How many steps there are, which rows each takes, what happens after it, and where alpha stands. */
import type { TrainingArgs } from './args.js';

export interface Plan {
  /** Training rows, and how many of them make up a step. */
  rows: number;
  globalBatch: number;
  epochSteps: number;
  /** Steps of the run. */
  total: number;
  /** Steps between evaluations and between checkpoints; undefined for never. */
  evalEvery?: number;
  saveEvery?: number;
}

/** The steps of a run over so many rows. */
export function planOf(rows: number, args: TrainingArgs): Plan {
  const epochSteps = stepsPerEpoch(rows, args);
  const total = totalSteps(epochSteps, args.numTrainEpochs, args.maxSteps);
  const within = { stepsPerEpoch: epochSteps, total };
  return {
    rows,
    globalBatch: args.perDeviceTrainBatchSize * args.gradientAccumulationSteps,
    epochSteps,
    total,
    evalEvery: intervalOf(args.evalStrategy, args.evalSteps, { usual: args.loggingSteps, ...within }),
    saveEvery: intervalOf(args.saveStrategy, args.saveSteps, { usual: 500, ...within }),
  };
}

/** Whether what happens `every` so many steps does after `step` of them. */
export const isDue = (every: number | undefined, step: number): boolean =>
  every !== undefined && step > 0 && step % every === 0;

/** Which rows the step after `step` completed ones takes. */
export function batchIndices({ rows, globalBatch, epochSteps }: Plan, step: number, args: TrainingArgs): number[] {
  const order = epochOrder(rows, args.shuffle, args.seed, Math.floor(step / epochSteps));
  const start = (step % epochSteps) * globalBatch;
  return [...order.subarray(start, start + globalBatch)];
}

/**
 * Steps of an epoch: ceil(rows / global batch). The authors' trainer counts whole accumulation windows of its loader only,
 * so that an incomplete last one is left out, unless it is the only one.
 */
export function stepsPerEpoch(
  rows: number,
  args: { perDeviceTrainBatchSize: number; gradientAccumulationSteps: number; templateMode: 'default' | 'authors' },
): number {
  const { perDeviceTrainBatchSize: batch, gradientAccumulationSteps: window, templateMode } = args;
  if (templateMode === 'default') return Math.ceil(rows / (batch * window));
  return Math.max(1, Math.floor(Math.ceil(rows / batch) / window));
}

/** Steps of a run: `maxSteps`, or epochs × steps of an epoch. */
export function totalSteps(stepsPerEpoch: number, epochs: number, maxSteps: number): number {
  return maxSteps > 0 ? maxSteps : Math.ceil(epochs * stepsPerEpoch);
}

/**
 * Steps between two occurrences of something, undefined for never. `every` below 1 is a part of the run; `usual` is what
 * the strategy `steps` means by itself.
 */
export function intervalOf(
  strategy: 'no' | 'steps' | 'epoch' | 'best' | undefined,
  every: number | undefined,
  { usual, stepsPerEpoch, total }: { usual: number; stepsPerEpoch: number; total: number },
): number | undefined {
  if (strategy === 'no' || strategy === 'best') return undefined;
  if (strategy === 'epoch') return stepsPerEpoch;
  const steps = every ?? (strategy === 'steps' ? usual : undefined);
  return steps !== undefined && steps < 1 ? Math.ceil(steps * total) : steps;
}

/** alpha(t) = alpha_end · t / T after t completed steps (section 3.3 of the paper); constant when it is not dynamic. */
export function alphaAt(step: number, total: number, alphaEnd: number, isDynamic: boolean): number {
  return isDynamic ? alphaEnd * Math.min(1, step / total) : alphaEnd;
}

/**
 * The order of the rows in an epoch: file order, or a permutation that depends only on seed and epoch, so that a resumed
 * run continues it without any stored state.
 */
export function epochOrder(rows: number, shuffle: boolean, seed: number, epoch: number): Int32Array {
  const order = Int32Array.from({ length: rows }, (_, i) => i);
  if (!shuffle) return order;
  let state = (Math.imul(seed, 0x9e3779b1) ^ Math.imul(epoch + 1, 0x85ebca6b)) >>> 0;
  const random = () => {
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  for (let i = rows - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
