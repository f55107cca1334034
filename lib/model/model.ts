/** A language model in the engine: its weights, its adapters, its log-probs, its gradients. */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { isHubId } from '../data/hub.js';
import { withGradients } from '../data/pack.js';
import { WrpoError } from '../errors.js';
import {
  type Accumulated,
  type AccumulateOptions,
  type AdapterUse,
  type Batch,
  type ComputeDtype,
  type ContestForm,
  type Device,
  type LogProbs,
  lend,
  type MemoryStats,
  type NamedTensor,
  type NativeAddon,
  type NativeModel,
  type Tensor,
} from '../native/addon.js';
import { loadNative } from '../native/load.js';
import {
  companions,
  configText,
  fileTensors,
  longestShared,
  type ModelConfig,
  parseModelConfig,
  readModelConfig,
} from './config.js';
import { chooseDevice } from './device.js';
import { readAdapterTensors, readModelTensors } from './directory.js';
import { autoDtype } from './dtype.js';
import { FAMILIES, type FileTensor } from './families.js';
import {
  type GeneratedSamples,
  type GenerateOptions,
  type GenerationPrompt,
  Generator,
  type GeneratorOptions,
  generateAll,
  generatorShape,
} from './generator.js';
import { HEAD_CHUNK_BYTES } from './head.js';
import {
  ADAPTER_CONFIG,
  ADAPTER_WEIGHTS,
  adapterConfigOf,
  baseOf,
  isAdapter,
  type Lora,
  type LoraOptions,
  loraShape,
  peftName,
  readAdapterConfig,
  resolveLora,
} from './lora.js';
import { packConversations, placeConversations, type Score, type ScoreOptions, scoresOf } from './reward.js';
import { loadTensors, type StoredTensor, saveModel, saveTogether, wholeTensor } from './safetensors.js';

export interface ModelOptions {
  /**
   * What the engine computes in. `bfloat16` keeps float32 master weights beside the working copy; `float64` is for tests.
   * `auto` is bfloat16 where the processor multiplies it, else float32. Default `float32`.
   */
  dtype?: ComputeDtype | 'auto';
  /** `auto`: the GPU where there is a usable one. On a GPU `dtype` must be bfloat16. Default `cpu`. */
  device?: Device | 'auto';
  /** Upper bound, in bytes, of the logits the head holds at once. Default 256 MiB, on a GPU 1 GiB. */
  headChunkBytes?: number;
  /** Trains fresh adapters beside the weights, which are frozen: see `addAdapters`. */
  lora?: LoraOptions;
  /**
   * Keeps the weights in `dtype` alone, without masters: for log-probs, scores and text, as of a reference. Such a model is
   * not trained, unless adapters are added to it.
   */
  frozen?: boolean;
}

export interface LoadOptions extends ModelOptions {
  /** Where the base of an adapter directory lies. Default: where its adapter_config.json says. */
  baseModel?: string;
}

/** dLoss/dlog π of every response of a batch. */
export interface GivenGradients {
  form: 'gradients';
  dLossDLogp: ArrayLike<number>;
}

type MicrobatchOptions = AccumulateOptions & { objective: ContestForm | GivenGradients };

const DTYPES: readonly ComputeDtype[] = ['float32', 'float64', 'bfloat16'];

export class Model {
  #lora?: Lora;
  #frozen: boolean;

  private constructor(
    private readonly addon: NativeAddon,
    /** The addon's handle, for AdamW. @internal */
    readonly handle: NativeModel,
    readonly config: ModelConfig,
    readonly dtype: ComputeDtype,
    readonly device: Device,
    /** The directory it was loaded from, if any. */
    readonly directory?: string,
    /** The directory of the weights: of an adapter directory, its base's. */
    readonly baseDirectory?: string,
    frozen = false,
  ) {
    this.#frozen = frozen;
  }

  /**
   * Loads a Hugging Face model directory (config.json, model.safetensors or shards), or one of PEFT's with a LoRA adapter
   * (adapter_config.json, adapter_model.safetensors) together with its base, ready to train the adapter further.
   * Throws ERR_MODEL naming file, key or tensor when it is missing, corrupt or of another shape.
   */
  static async load(directory: string, { baseModel, ...options }: LoadOptions = {}): Promise<Model> {
    const adapter = isAdapter(directory) ? readAdapterConfig(directory) : undefined;
    if (adapter && options.lora) {
      throw new WrpoError('ERR_CONFIG', `lora: ${directory} holds an adapter already, which is trained as it is`);
    }
    // A path is saved as what it leads to; an id is the base's name wherever that lies.
    const isId = baseModel !== undefined && isHubId(adapter?.baseModelNameOrPath ?? '');
    if (adapter && !isId) adapter.baseModelNameOrPath = undefined;
    const base = adapter ? (baseModel ?? baseOf(directory)) : directory;
    if (adapter && !existsSync(base)) {
      throw new WrpoError('ERR_MODEL', `the base of ${directory}, "${base}", is no local directory; say where it is`);
    }
    const config = readModelConfig(base);
    const stored = readModelTensors(base);
    const adapterTensors = adapter && readAdapterTensors(directory);
    const lora = adapter ?? options.lora;
    const model = Model.#construct(config, options, { directory, base, frozen: options.frozen || lora !== undefined });
    try {
      // Whatever is wrong with the adapters is told before the weights are read.
      if (lora) await model.#adapt(lora, adapter ? join(directory, ADAPTER_CONFIG) : 'lora');
      if (adapterTensors) await model.#fillAdapters(adapterTensors, directory);
      await model.#fill(stored, base);
    } catch (error) {
      await model.close();
      throw error;
    }
    return model;
  }

  /** Replaces what is trained, the weights or the adapters, by that of a directory of the same shape, such as a checkpoint. */
  async loadWeights(directory: string): Promise<void> {
    if (this.#lora) await this.#fillAdapters(readAdapterTensors(directory), directory);
    else await this.#fill(readModelTensors(directory), directory);
  }

  /**
   * Fresh weights for a Hugging Face config: normal(0, initializer_range), ones for norms; the same for the same seed.
   */
  static async create(config: Record<string, unknown>, options: ModelOptions & { seed?: number } = {}): Promise<Model> {
    const model = Model.#construct(parseModelConfig(config), options, { frozen: options.frozen });
    await model.handle.initialize(options.seed ?? 42);
    if (options.lora) await model.addAdapters(options.lora);
    return model;
  }

  static #construct(
    config: ModelConfig,
    options: ModelOptions,
    { directory, base, frozen = false }: { directory?: string; base?: string; frozen?: boolean } = {},
  ): Model {
    const { dtype = 'float32', device = 'cpu' } = options;
    const addon = loadNative();
    if (dtype !== 'auto' && !DTYPES.includes(dtype)) {
      throw new WrpoError('ERR_CONFIG', `dtype "${dtype}": expected ${DTYPES.join(', ')} or auto`);
    }
    const on = chooseDevice(device).device;
    const chosen = dtype === 'auto' ? autoDtype(on).dtype : dtype;
    const { headChunkBytes = HEAD_CHUNK_BYTES[on] } = options;
    const handle = new addon.Model(config, { dtype: chosen, headChunkBytes, frozen, device: on });
    return new Model(addon, handle, config, chosen, on, directory, base, frozen);
  }

  /**
   * For `packRows`: the longest sequence that may share its prompt. Without bound, but where a sequence's length decides
   * its rotary embedding (dynamic, longrope), or on a GPU is longer than a sliding window.
   */
  get longestShared(): number {
    const windows = this.device === 'cuda' ? this.config.windows.filter((window) => window > 0) : [];
    return Math.min(longestShared(this.config), ...windows);
  }

  /** Whether its weights have no masters and are not trained: loaded so, or since adapters were added. */
  get frozen(): boolean {
    return this.#frozen;
  }

  /** Its adapters, if it has any. */
  get lora(): Lora | undefined {
    return this.#lora;
  }

  /**
   * Adds LoRA adapters, which change nothing at first and are all that is trained from now on: the weights are frozen, and
   * kept in `dtype` alone. Optimizers made before are of no use any more.
   * Throws ERR_CONFIG naming a setting at fault, or a target that the model does not have and those that it has.
   */
  async addAdapters(options: LoraOptions = {}): Promise<void> {
    await this.#adapt(options, 'lora');
  }

  /** Adds the adapters' products to the weights, which can be trained and saved whole from then on. */
  async mergeAdapters(): Promise<void> {
    await this.handle.mergeAdapters();
    this.#lora = undefined;
    this.#frozen = false;
  }

  /**
   * Summed log-prob and token count of every response of a packed batch; `adapters: false` are those of the base alone.
   */
  logProbs(batch: Batch, options?: AdapterUse & { perToken?: boolean; greedy?: boolean }): Promise<LogProbs> {
    return this.handle.logProbs(batch, options);
  }

  /**
   * Forward, loss and backward of a packed batch with contests: adds to the gradients. A loss that is computed elsewhere is
   * given by its derivative with respect to the log-prob of every response (`form: 'gradients'`), instead of contests.
   * `keptLayers`, from 1, default all: of how many layers everything is kept for backward, which computes the others again.
   */
  accumulate(batch: Batch, options: MicrobatchOptions): Promise<Accumulated> {
    return this.handle.accumulate(...asContests(batch, options));
  }

  /**
   * The same, but a GPU is only given its work, so that more can be queued behind it: what this gives reads the results.
   * Of a loss that is not finite `accumulate` throws ERR_NON_FINITE, here the reading does, or on the CPU this; an update
   * that is queued meanwhile throws it, too, and changes nothing.
   */
  enqueue(batch: Batch, options: MicrobatchOptions): Promise<() => Promise<Accumulated>> {
    return this.handle.enqueue(...asContests(batch, options));
  }

  /**
   * The reward of every conversation (token ids, its last token included), by a reward model; neither their order nor
   * what else is scored with them matters beyond rounding. Throws ERR_MODEL for a language model, ERR_DATA naming a
   * conversation that is empty, has an id the model does not have or no gating position.
   */
  async score(conversations: readonly ArrayLike<number>[], options: ScoreOptions = {}): Promise<Score[]> {
    const scores: Score[] = [];
    const placed = placeConversations(conversations, this.config, options, this.directory);
    for (const batch of packConversations(placed, options.microbatchTokens)) {
      const names = placed.slice(scores.length).map(({ where }) => where);
      scores.push(...scoresOf(await this.handle.score(batch), names));
    }
    return scores;
  }

  /**
   * A generator, which samples go through together; several prompts at a time, added at any moment. Close it when done.
   * Throws ERR_CONFIG naming an option out of range, ERR_MODEL for a reward model.
   */
  generator(options: GeneratorOptions = {}): Generator {
    const shape = generatorShape(options, this);
    return new Generator(new this.addon.Generator(this.handle, shape), options);
  }

  /**
   * Samples of prompts, in the order of the prompts, which are read as they are needed. A sample depends on its prompt, its
   * seed and the options alone. Throws as `generator` and `Generator.sample` do, and what aborted `signal`.
   */
  generate(
    prompts: Iterable<GenerationPrompt> | AsyncIterable<GenerationPrompt>,
    options: GenerateOptions = {},
  ): AsyncGenerator<GeneratedSamples> {
    return generateAll(this.generator(options), prompts, options);
  }

  /**
   * Views of the weights by Hugging Face name (of InternLM2, which stores its projections interleaved, by Llama's names), and
   * of the adapters (`… .q_proj.lora_A.weight`): the working values, or the float32 masters, which frozen weights lack.
   * Refused (ERR_CLOSED) while calls are queued. After writing to masters call `syncWork`.
   */
  parameters({ master = false } = {}): Map<string, Tensor> {
    return asMap([...this.handle.parameters({ master }), ...this.handle.adapters({ master })]);
  }

  /** Views of the accumulated gradients by name: of the adapters, or without any of the weights. */
  gradients(): Map<string, Tensor> {
    return asMap(this.handle.gradients());
  }

  zeroGradients(): Promise<void> {
    return this.handle.zeroGradients();
  }

  syncWork(): Promise<void> {
    return this.handle.syncWork();
  }

  /** A hash of the master weights and the adapters, or of the weights alone. */
  fingerprint(options?: Pick<AdapterUse, 'adapters'>): Promise<string> {
    return this.handle.fingerprint(options);
  }

  /**
   * Saves in Hugging Face layout, or where there are adapters these alone, as PEFT does; `dtype` defaults to float32, the
   * masters (bfloat16 rounds them, sharded above `maxShardBytes`, 5 GB). Existing files of `directory` stay whole if writing
   * fails.
   */
  async save(directory: string, options: { dtype?: ComputeDtype; maxShardBytes?: number } = {}): Promise<void> {
    const { dtype = this.dtype === 'float64' ? 'float64' : 'float32', maxShardBytes } = options;
    if (!DTYPES.includes(dtype)) {
      throw new WrpoError('ERR_CONFIG', `save: dtype "${dtype}"; expected ${DTYPES.join(', ')}`);
    }
    if (this.#lora) {
      const texts = { [ADAPTER_CONFIG]: JSON.stringify(adapterConfigOf(this.#lora), null, 2) };
      await lend(this.#adapterMasters(), (adapters) =>
        saveTogether(this.addon, directory, { [ADAPTER_WEIGHTS]: adapters.map(wholeTensor) }, dtype, texts),
      );
      return;
    }
    const texts = { ...companions(this.config, this.baseDirectory), 'config.json': configText(this.config, dtype) };
    await this.#withFileTensors((tensors) => saveModel(this.addon, directory, tensors, dtype, texts, maxShardBytes));
  }

  /** Bytes of tensors in this process, on the model's device. */
  memory(options?: { resetPeak?: boolean }): MemoryStats {
    return this.addon.memory({ ...options, device: this.device });
  }

  /** Frees the weights after everything queued has finished. Calls made later are refused (ERR_CLOSED). */
  async close(): Promise<void> {
    await this.handle.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #fill(stored: Map<string, StoredTensor>, where: string): Promise<void> {
    const unused = (name: string) =>
      (this.config.tieWordEmbeddings && name === 'lm_head.weight') || name.endsWith('.rotary_emb.inv_freq');
    await this.#withFileTensors((tensors) => loadTensors(this.addon, tensors, stored, { where, ignore: unused }));
    await this.syncWork();
  }

  /** The masters as a checkpoint stores them, for the addon to read or write in its turn, whatever is queued before. */
  #withFileTensors(body: (tensors: FileTensor[]) => Promise<void>): Promise<void> {
    const masters = this.#masters();
    return lend(masters, async () => {
      const tensors = fileTensors(this.config, masters);
      try {
        await body(tensors);
      } finally {
        for (const piece of tensors.flatMap(({ pieces }) => pieces)) piece.dispose();
      }
    });
  }

  /** `where` names the options in errors. */
  async #adapt(options: LoraOptions, where: string): Promise<void> {
    const { family } = this.config;
    if (FAMILIES[family]!.stored) {
      throw new WrpoError('ERR_CONFIG', `${where}: no adapters for ${family}, whose files interleave the projections`);
    }
    const weights = this.#masters().map(({ name, tensor }) => {
      const { shape } = tensor;
      tensor.dispose();
      return { name, shape };
    });
    const projections = weights
      .filter(({ name, shape }) => shape.length === 2 && /^model\.layers\..*\.weight$/.test(name))
      .map(({ name }) => name.replace(/\.weight$/, ''));
    const lora = resolveLora(options, projections, where);
    await this.handle.addAdapters(loraShape(lora), options.seed ?? 42);
    const { baseModelNameOrPath = this.baseDirectory && resolve(this.baseDirectory) } = lora;
    this.#lora = { ...lora, baseModelNameOrPath };
    this.#frozen = true;
  }

  async #fillAdapters(stored: Map<string, StoredTensor>, directory: string): Promise<void> {
    const how = { where: join(directory, ADAPTER_WEIGHTS), by: `${ADAPTER_CONFIG} with its base` };
    await lend(this.#adapterMasters(), (adapters) => loadTensors(this.addon, adapters.map(wholeTensor), stored, how));
    await this.syncWork();
  }

  /** For the addon to read or write in its turn, whatever is queued before. */
  #masters(): NamedTensor[] {
    return this.handle.parameters({ master: true, queued: true });
  }

  /** The same of the adapters, under PEFT's names. */
  #adapterMasters(): NamedTensor[] {
    const adapters = this.handle.adapters({ master: true, queued: true });
    return adapters.map(({ name, tensor }) => ({ name: peftName(name), tensor }));
  }
}

function asContests(batch: Batch, { objective, ...options }: MicrobatchOptions): Parameters<NativeModel['accumulate']> {
  if (objective.form !== 'gradients') return [batch, { ...options, objective }];
  // Whatever the loss is, its gradient is that of a linear one.
  const linear = { form: 'linear', beta: 1, gamma: 0, labelSmoothing: 0, lengthNormalized: false } as const;
  const given = { ...withGradients(batch, objective.dLossDLogp), reference: undefined };
  return [given, { ...options, objective: linear }];
}

function asMap(tensors: NamedTensor[]): Map<string, Tensor> {
  return new Map(tensors.map(({ name, tensor }) => [name, tensor]));
}
