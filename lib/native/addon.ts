/**
 * The addon's whole surface, typed once; native/addon.cpp and the handles beside it implement it. What it throws, and
 * what its promises end in, are WrpoErrors.
 */

export type ComputeDtype = 'float32' | 'float64' | 'bfloat16';
/** `cuda`: the first GPU, with the core for a CUDA libtorch. */
export type Device = 'cpu' | 'cuda';
export type Dtype = ComputeDtype | 'float16' | 'int32' | 'int64' | 'uint8';
export type TensorData = Float32Array | Float64Array | Uint16Array | Int32Array | BigInt64Array | Uint8Array;

/** A tensor whose memory libtorch owns. */
export interface Tensor {
  readonly shape: number[];
  readonly dtype: Dtype;
  readonly device: Device;
  /** A typed array over the tensor's own memory, without a copy (bfloat16: its bits, as Uint16Array). Not of a GPU's. */
  view(): TensorData;
  /** A copy of the values. */
  toHost(): TensorData;
  to(device: Device): Tensor;
  /** Rows [first, first + count) of the leading dimension, over the same memory. */
  rows(first: number, count: number): Tensor;
  /** Lets go of the memory; views that JavaScript still holds keep it alive. */
  dispose(): void;
}

export interface TensorConstructor {
  /** Uninitialised memory. */
  empty(shape: number[], options?: { dtype?: Dtype; device?: Device }): Tensor;
  /** A copy of a typed array; bfloat16 is given as its bits in a Uint16Array. */
  from(data: TensorData, shape: number[], options?: { dtype?: Dtype; device?: Device }): Tensor;
}

export interface NamedTensor {
  name: string;
  tensor: Tensor;
}

/** What native/model/config.h needs to know of a model. */
export interface ModelShape {
  vocabSize: number;
  hiddenSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  intermediateSize: number;
  maxPositions: number;
  rmsNormEps: number;
  initializerRange: number;
  tieWordEmbeddings: boolean;
  qkvBias: boolean;
  headNorm: boolean;
  branchNorms: boolean;
  fusedProjections: boolean;
  normPlus: number;
  activation: 'silu' | 'gelu_tanh';
  embeddingScale: number;
  queryScale: number;
  attentionSoftcap: number;
  finalSoftcap: number;
  windows: Int32Array;
  rope: RopeShape;
  localRope?: RopeShape;
  /** Of a reward model, in the place of a language-model head. */
  rewardHead?: RewardShape;
}

/** RopeSettings of native/kernels/kernels.h. */
export interface RopeShape {
  type: 'default' | 'linear' | 'llama3' | 'yarn' | 'dynamic' | 'longrope';
  dim: number;
  theta: number;
  factor: number;
  attentionFactor: number;
  originalMaxPosition: number;
  lowFrequencyFactor: number;
  highFrequencyFactor: number;
  rampLow: number;
  rampHigh: number;
  shortFactors?: Float64Array;
  longFactors?: Float64Array;
}

/** The head of native/model/reward.h. */
export interface RewardShape {
  objectives: number;
  gatingHidden: number;
  /** Layers of the gating network before its output. */
  gatingLayers: number;
  temperature: number;
}

/** A packed micro-batch; the layout is described in native/model/batch.h and made by data/pack.ts. */
export interface Batch {
  tokens: Int32Array;
  positions: Int32Array;
  targets: Int32Array;
  promptOffsets: Int32Array;
  responseOffsets: Int32Array;
  groupOffsets: Int32Array;
  contestGroups?: Int32Array;
  contestOffsets?: Int32Array;
  contestResponses?: Int32Array;
  contestCoefficients?: Float64Array;
  contestWeights?: Float64Array;
  /** Summed reference log-prob of every response. */
  reference?: Float64Array;
}

/** The scalar part of an objective; native/train/objective.h has the formulas. */
export interface ContestForm {
  form: 'sigmoid' | 'ipo' | 'linear';
  beta: number;
  gamma: number;
  labelSmoothing: number;
  lengthNormalized: boolean;
  sftWeight?: number;
}

export interface LogProbs {
  /** Summed log-prob of every response, and how many tokens it predicts. */
  sums: Float64Array;
  counts: Int32Array;
  /** One value a predicted token, responses in order. */
  perToken?: Float64Array;
  /** Whether each predicted token was the arg max. */
  greedy?: Uint8Array;
}

export interface Accumulated {
  /** Sum of weight × loss over the contests, divided by the normalizer. */
  loss: number;
  logps: Float64Array;
  counts: Int32Array;
  /** Per contest. */
  losses: Float64Array;
  margins: Float64Array;
}

/** Of K conversations and n objectives. */
export interface Scores {
  scores: Float64Array;
  /** [K * n], conversation by conversation, as are `gates`. */
  rewards: Float64Array;
  gates: Float64Array;
}

/** The adapters of native/model/lora.h; `modules` are paths such as `model.layers.0.self_attn.q_proj`. */
export interface LoraShape {
  rank: number;
  scale: number;
  dropout: number;
  modules: string[];
}

/** The part of adapters in a pass, where there are any. */
export interface AdapterUse {
  /** `false`: the base alone. Default true. */
  adapters?: boolean;
  /**
   * Drops inputs of the adapters, as training does: the masks are those of the rows `firstRow`, `firstRow + 1`, … of a step,
   * however they are packed. Without it nothing is dropped.
   */
  dropout?: { seed: number; step: number; firstRow: number };
}

export interface AccumulateOptions extends AdapterUse {
  normalizer: number;
  /** Of the layers, how many keep all that backward reads; the same bits with fewer. Default all. */
  keptLayers?: number;
}

export interface NativeModel {
  initialize(seed: number): Promise<void>;
  logProbs(batch: Batch, options?: AdapterUse & { perToken?: boolean; greedy?: boolean }): Promise<LogProbs>;
  accumulate(batch: Batch, options: AccumulateOptions & { objective: ContestForm }): Promise<Accumulated>;
  /** Ends when all is queued, where a GPU computes; what it gives waits for the results. */
  enqueue(batch: Batch, options: AccumulateOptions & { objective: ContestForm }): Promise<() => Promise<Accumulated>>;
  /** Every response of the batch begins at the token whose state gates and ends in the conversation's last token. */
  score(batch: Batch): Promise<Scores>;
  /** Freezes the weights and trains fresh adapters beside them. Other calls are refused until it is done. */
  addAdapters(shape: LoraShape, seed: number): Promise<void>;
  /** Adds the adapters to the weights and drops them; as above. */
  mergeAdapters(): Promise<void>;
  /** Refused while calls are queued, unless the tensors are only handed to further calls, which queue behind them. */
  parameters(options?: { master?: boolean; queued?: boolean }): NamedTensor[];
  /** The same of the adapters; empty without. */
  adapters(options?: { master?: boolean; queued?: boolean }): NamedTensor[];
  /** Of what is trained: the adapters, or without any the weights. */
  gradients(): NamedTensor[];
  zeroGradients(): Promise<void>;
  /** Rounds the masters of what is trained into the working values, after they were written by hand. */
  syncWork(): Promise<void>;
  /** A 64-bit hash of the master weights, in hexadecimal. */
  fingerprint(options?: Pick<AdapterUse, 'adapters'>): Promise<string>;
  close(): Promise<void>;
}

export interface NativeAdamW {
  step(): Promise<{ gradNorm: number; learningRate: number }>;
  learningRateAt(step: number): number;
  /** Only to be handed to further calls. */
  state(): { m: NamedTensor[]; v: NamedTensor[] };
  completed: number;
  close(): Promise<void>;
}

/** Options of native/model/generator.h. */
export interface GeneratorShape {
  temperature: number;
  topP: number;
  topK: number;
  minP: number;
  repetitionPenalty: number;
  maxTokens: number;
  stopIds: Int32Array;
  logProbs: boolean;
  maxSequences: number;
}

/** New tokens, in the order in which they came. */
export interface GeneratedTokens {
  /** Of which sample each is. */
  ids: Int32Array;
  tokens: Int32Array;
  /** 0 where the sample goes on, 1 after a stop id, 2 at maxTokens. */
  finishes: Uint8Array;
  logProbs?: Float64Array;
  /** That the model computed. */
  rows: number;
}

export interface NativeGenerator {
  /** Samples of one prompt, a seed each; the ids are the caller's. */
  add(request: { prompt: Int32Array; ids: Int32Array; seeds: Float64Array }): Promise<void>;
  /** Computes about so many rows; fewer when there is nothing left to do. */
  advance(rows: number): Promise<GeneratedTokens>;
  /** These samples get no further token. */
  cancel(request: { ids: Int32Array }): Promise<void>;
  close(): Promise<void>;
}

export interface AdamWShape {
  learningRate: number;
  beta1: number;
  beta2: number;
  eps: number;
  weightDecay: number;
  maxGradNorm: number;
  warmupSteps: number;
  totalSteps: number;
  schedule: 'cosine' | 'linear' | 'constant' | 'constant_with_warmup';
}

export interface MemoryStats {
  current: number;
  peak: number;
  /** The largest single allocation since the last reset. */
  largest: number;
}

interface HeadArguments {
  hidden: Tensor;
  weight: Tensor;
  targets: Int32Array;
  headChunkBytes: number;
}

export interface NativeInfo {
  torchVersion: string;
  cpuCapability: string;
  /** Whether the processor multiplies bfloat16 (avx512_bf16). */
  bfloat16: boolean;
  threads: number;
  devices: Device[];
  /** The first GPU: bytes of its memory, and of what is free. Absent without a usable one, and then `noGpu` says why. */
  gpu?: { name: string; total: number; free: number };
  noGpu?: string;
}

export interface NativeAddon {
  info(): NativeInfo;
  /** Bytes of a device's tensors in this process; `largest` of the CPU's only. */
  memory(options?: { resetPeak?: boolean; device?: Device }): MemoryStats;
  Tensor: TensorConstructor;
  /** `frozen`: without float32 masters beside bfloat16 weights, which neither adapters nor a reference need. */
  Model: new (
    shape: ModelShape,
    options: { dtype: ComputeDtype; headChunkBytes: number; frozen?: boolean; device?: Device },
  ) => NativeModel;
  AdamW: new (model: NativeModel, options: AdamWShape) => NativeAdamW;
  Generator: new (model: NativeModel, options: GeneratorShape) => NativeGenerator;
  selectedLogProbs(options: HeadArguments): Promise<{ logps: Tensor; lse: Tensor }>;
  selectedLogProbsBackward(
    options: HeadArguments & { lse: Tensor; dLogps: Tensor },
  ): Promise<{ dHidden: Tensor; dWeight: Tensor }>;
  contestLoss(
    contest: { policy: Float64Array; reference?: Float64Array; lengths?: Int32Array; coefficients: Float64Array },
    form: ContestForm,
  ): { loss: number; margin: number; gradient: Float64Array };
  readTensors(
    path: string,
    ranges: { name: string; tensor: Tensor; dtype: Dtype; offset: number; bytes: number }[],
  ): Promise<void>;
  /** Beside what only reads weights: `accumulate`, `logProbs`, `score`, a generator. Everything else waits for it. */
  writeTensors(path: string, header: Uint8Array, tensors: Tensor[], dtype: Dtype): Promise<void>;
}

/**
 * Runs `body` on tensors that nobody else holds, then lets go of them: a handle left to the garbage collector keeps a
 * whole model's memory.
 */
export async function lend<T>(tensors: NamedTensor[], body: (tensors: NamedTensor[]) => Promise<T>): Promise<T> {
  try {
    return await body(tensors);
  } finally {
    for (const { tensor } of tensors) tensor.dispose();
  }
}
