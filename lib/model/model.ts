/** A language model in the engine: its weights, its log-probs, its gradients. */
import { withGradients } from '../data/pack.js';
import { WrpoError } from '../errors.js';
import {
  type Accumulated,
  type Batch,
  type ComputeDtype,
  type ContestForm,
  callNative,
  type LogProbs,
  lend,
  type MemoryStats,
  type NamedTensor,
  type NativeAddon,
  type NativeModel,
  type Tensor,
} from '../native/addon.js';
import { loadNative } from '../native/load.js';
import { fileTensors, longestShared, type ModelConfig, parseModelConfig, readModelConfig } from './config.js';
import { FAMILIES, type FileTensor } from './families.js';
import { packConversations, placeConversations, type Score, type ScoreOptions, scoresOf } from './reward.js';
import { loadTensors, readModelTensors, type StoredTensor, saveModel } from './safetensors.js';

export interface ModelOptions {
  /**
   * What the engine computes in. `bfloat16` keeps float32 master weights beside the working copy; `float64` is for tests.
   * Default `float32`.
   */
  dtype?: ComputeDtype;
  /** Only `cpu` in this version. */
  device?: 'cpu';
  /** Upper bound, in bytes, of the logits the head holds at once. Default 256 MiB. */
  headChunkBytes?: number;
}

/** dLoss/dlog π of every response of a batch. */
export interface GivenGradients {
  form: 'gradients';
  dLossDLogp: ArrayLike<number>;
}

const DTYPES: readonly ComputeDtype[] = ['float32', 'float64', 'bfloat16'];
const DEFAULT_HEAD_CHUNK_BYTES = 256 * 2 ** 20;

export class Model {
  private constructor(
    private readonly addon: NativeAddon,
    /** The addon's handle, for AdamW. @internal */
    readonly handle: NativeModel,
    readonly config: ModelConfig,
    readonly dtype: ComputeDtype,
    /** The directory it was loaded from, if any. */
    readonly directory?: string,
  ) {}

  /**
   * Loads a Hugging Face model directory (config.json, model.safetensors or shards).
   * Throws ERR_MODEL naming file, key or tensor when it is missing, corrupt or of another shape.
   */
  static async load(directory: string, options: ModelOptions = {}): Promise<Model> {
    const config = readModelConfig(directory);
    const stored = readModelTensors(directory);
    const model = Model.#construct(config, options, directory);
    try {
      await model.#fill(stored, directory);
    } catch (error) {
      await model.close();
      throw error;
    }
    return model;
  }

  /** Replaces the weights by those of a model directory of the same shape, such as a checkpoint. */
  async loadWeights(directory: string): Promise<void> {
    await this.#fill(readModelTensors(directory), directory);
  }

  /**
   * Fresh weights for a Hugging Face config: normal(0, initializer_range), ones for norms; the same for the same seed.
   */
  static async create(config: Record<string, unknown>, options: ModelOptions & { seed?: number } = {}): Promise<Model> {
    const model = Model.#construct(parseModelConfig(config), options);
    await callNative(() => model.handle.initialize(options.seed ?? 42));
    return model;
  }

  static #construct(config: ModelConfig, options: ModelOptions, directory?: string): Model {
    const { dtype = 'float32', device = 'cpu', headChunkBytes = DEFAULT_HEAD_CHUNK_BYTES } = options;
    if (device !== 'cpu') throw new WrpoError('ERR_DEVICE', `device "${device}": this version computes on "cpu" only`);
    const addon = loadNative();
    const handle = callNative(() => new addon.Model(config, { dtype, headChunkBytes }));
    return new Model(addon, handle, config, dtype, directory);
  }

  /**
   * For `packRows`: the longest sequence that may share its prompt. Without bound, but where a sequence's length decides
   * its rotary embedding (dynamic, longrope).
   */
  get longestShared(): number {
    return longestShared(this.config);
  }

  /** Summed log-prob and token count of every response of a packed batch. */
  logProbs(batch: Batch, options?: { perToken?: boolean; greedy?: boolean }): Promise<LogProbs> {
    return callNative(() => this.handle.logProbs(batch, options));
  }

  /**
   * Forward, loss and backward of a packed batch with contests: adds to the gradients. A loss that is computed elsewhere is
   * given by its derivative with respect to the log-prob of every response (`form: 'gradients'`), instead of contests.
   */
  accumulate(
    batch: Batch,
    { objective, normalizer }: { objective: ContestForm | GivenGradients; normalizer: number },
  ): Promise<Accumulated> {
    if (objective.form !== 'gradients')
      return callNative(() => this.handle.accumulate(batch, { objective, normalizer }));
    // Whatever the loss is, its gradient is that of a linear one.
    const linear = { form: 'linear', beta: 1, gamma: 0, labelSmoothing: 0, lengthNormalized: false } as const;
    const given = { ...withGradients(batch, objective.dLossDLogp), reference: undefined };
    return callNative(() => this.handle.accumulate(given, { objective: linear, normalizer }));
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
      scores.push(...scoresOf(await callNative(() => this.handle.score(batch)), names));
    }
    return scores;
  }

  /**
   * Views of the weights by Hugging Face name (of InternLM2, which stores its projections interleaved, by Llama's names):
   * the working weights, or the float32 masters. Refused (ERR_CLOSED) while calls are queued. After writing to masters
   * call `syncWork`.
   */
  parameters({ master = false } = {}): Map<string, Tensor> {
    return asMap(callNative(() => this.handle.parameters({ master })));
  }

  /** Views of the accumulated gradients by Hugging Face name. */
  gradients(): Map<string, Tensor> {
    return asMap(callNative(() => this.handle.gradients()));
  }

  zeroGradients(): Promise<void> {
    return callNative(() => this.handle.zeroGradients());
  }

  syncWork(): Promise<void> {
    return callNative(() => this.handle.syncWork());
  }

  /** A hash of the master weights. */
  fingerprint(): Promise<string> {
    return callNative(() => this.handle.fingerprint());
  }

  /**
   * Saves in Hugging Face layout; `dtype` defaults to float32, the masters (bfloat16 rounds them, sharded above
   * `maxShardBytes`, 5 GB). Existing files of `directory` stay whole if writing fails.
   */
  async save(directory: string, options: { dtype?: ComputeDtype; maxShardBytes?: number } = {}): Promise<void> {
    const { dtype = this.dtype === 'float64' ? 'float64' : 'float32', maxShardBytes } = options;
    if (!DTYPES.includes(dtype)) {
      throw new WrpoError('ERR_CONFIG', `save: dtype "${dtype}"; expected ${DTYPES.join(', ')}`);
    }
    const { torch_dtype: v4, dtype: v5, ...rest } = this.config.huggingFace;
    const key = v4 !== undefined && v5 === undefined ? 'torch_dtype' : 'dtype';
    const { architecture } = FAMILIES[this.config.family]!;
    const config = { architectures: [architecture], ...rest, [key]: dtype };
    await this.#withFileTensors((tensors) => saveModel(this.addon, directory, tensors, dtype, config, maxShardBytes));
  }

  /** Bytes of tensors in this process. */
  memory(options?: { resetPeak?: boolean }): MemoryStats {
    return this.addon.memory(options);
  }

  /** Frees the weights after everything queued has finished. Calls made later are refused (ERR_CLOSED). */
  async close(): Promise<void> {
    await callNative(() => this.handle.close());
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
    const masters = callNative(() => this.handle.parameters({ master: true, queued: true }));
    return lend(masters, async () => {
      const tensors = fileTensors(this.config, masters);
      try {
        await body(tensors);
      } finally {
        for (const piece of tensors.flatMap(({ pieces }) => pieces)) piece.dispose();
      }
    });
  }
}

function asMap(tensors: NamedTensor[]): Map<string, Tensor> {
  return new Map(tensors.map(({ name, tensor }) => [name, tensor]));
}
