/** AdamW with clipping and the learning-rate schedule; the arithmetic is in native/train/adamw.cpp. */
import { join } from 'node:path';
import type { Model } from '../model/model.js';
import { loadTensors, readHeader, saveTensorFile, wholeTensor } from '../model/safetensors.js';
import { lend, type NamedTensor, type NativeAdamW } from '../native/addon.js';
import { loadNative } from '../native/load.js';

export interface AdamWOptions {
  learningRate: number;
  /** Steps over which the learning rate rises from 0. Default 0. */
  warmupSteps?: number;
  /** Where the schedule ends. Needed by `cosine` and `linear`. */
  totalSteps?: number;
  /** Default `constant_with_warmup`; `constant` never warms up. */
  schedule?: 'cosine' | 'linear' | 'constant' | 'constant_with_warmup';
  betas?: [number, number];
  eps?: number;
  /** Decoupled; not applied to norms. Default 0. */
  weightDecay?: number;
  /** Clip the global gradient norm to this; 0 or absent = no clipping. */
  maxGradNorm?: number;
}

const FILE = 'optimizer.safetensors';

export class AdamW {
  readonly #handle: NativeAdamW;
  readonly #model: Model;

  constructor(model: Model, options: AdamWOptions) {
    const [beta1, beta2] = options.betas ?? [0.9, 0.999];
    this.#model = model;
    this.#handle = new (loadNative().AdamW)(model.handle, {
      learningRate: options.learningRate,
      beta1,
      beta2,
      eps: options.eps ?? 1e-8,
      weightDecay: options.weightDecay ?? 0,
      maxGradNorm: options.maxGradNorm ?? 0,
      warmupSteps: options.warmupSteps ?? 0,
      totalSteps: options.totalSteps ?? 0,
      schedule: options.schedule ?? 'constant_with_warmup',
    });
  }

  /** Clips, updates, zeroes the gradients. Throws ERR_NON_FINITE, before anything changed, on a gradient norm that is not. */
  step(): Promise<{ gradNorm: number; learningRate: number }> {
    return this.#handle.step();
  }

  /** The learning rate of the update after `step` completed ones. */
  learningRateAt(step: number): number {
    return this.#handle.learningRateAt(step);
  }

  /** Completed updates. */
  get completed(): number {
    return this.#handle.completed;
  }

  /** Writes both moments to `dir/optimizer.safetensors`. */
  save(dir: string): Promise<void> {
    const dtype = this.#model.dtype === 'float64' ? 'float64' : 'float32';
    return lend(this.#state(), (state) => saveTensorFile(loadNative(), join(dir, FILE), state.map(wholeTensor), dtype));
  }

  /** Reads what `save` wrote; `completed` is the number of updates it belongs to. */
  async load(dir: string, completed: number): Promise<void> {
    const where = join(dir, FILE);
    await lend(this.#state(), (state) =>
      loadTensors(loadNative(), state.map(wholeTensor), readHeader(where), { where }),
    );
    this.#handle.completed = completed;
  }

  close(): Promise<void> {
    return this.#handle.close();
  }

  #state(): NamedTensor[] {
    const { m, v } = this.#handle.state();
    const prefixed = (prefix: string, list: NamedTensor[]) =>
      list.map(({ name, tensor }) => ({ name: `${prefix}.${name}`, tensor }));
    return [...prefixed('exp_avg', m), ...prefixed('exp_avg_sq', v)];
  }
}
