/**
 * What training of a model needs of a device's memory, counted from its shape: weights, float32 masters (on a GPU as
 * 16 + 16 bits), gradients and moments, and for every packed token either all that a layer's backward reads or its input
 * alone, from which the layer is computed again. Layers are kept one by one, as many as fit; the last one always is, since
 * the others are computed again in its place (native/model/decoder.h).
 */
import { HEAD_CHUNK_BYTES } from '../model/head.js';
import type { ComputeDtype, Device, ModelShape } from '../native/addon.js';

/** On a GPU: what the matrix libraries take for themselves, and what the allocator cannot use. */
const RESERVE = 0.5e9;
/** Packed tokens of a micro-batch that are tried. */
const TOKENS = [4096, 6144, 8192, 16384];

/** Bytes that a process can use; what the driver and CUDA's context take is left out. */
export const GPUS: Readonly<Record<string, number>> = {
  H200: 139 * 2 ** 30,
  H100: 79 * 2 ** 30,
  A100: 79 * 2 ** 30,
  A800: 79 * 2 ** 30,
};

/** How a model is trained, as far as it takes memory. The defaults are those of `wrpo plan`. */
export interface MemoryOptions {
  dtype?: ComputeDtype;
  device?: Device;
  /** As in training arguments: `true` keeps the last layer alone, `false` all, `auto` as many as fit. */
  checkpointing?: boolean | 'auto';
  /** A second model, where the reference is not computed beforehand: loaded frozen, or with masters that it never needs. */
  residentReference?: boolean | 'with masters';
  /** The adapters' parameters, where only they are trained, and their rank. */
  adapters?: { parameters: number; rank: number };
  /** Unshared prompts' rows predict nothing: the head works on copies of the others. */
  sharePrompt?: boolean;
}

/** Of a micro-batch of `tokens`: bytes by what they are for, and how the layers are treated. */
export interface MemoryPlan {
  tokens: number;
  /** Layers of which everything is kept; the others are computed again in backward. */
  keptLayers: number;
  layers: number;
  states: number;
  /** A resident reference, with what its forward takes. */
  reference: number;
  activations: number;
  /** What one layer's backward writes for itself or, where they are more, the logits of a chunk of rows. */
  workspace: number;
  /** Of the libraries: a round number, not a count. */
  reserve: number;
  total: number;
  /** Matrix products on top of forward and backward, as a share of these: of the layers computed again. */
  recomputed: number;
}

/** As a person reads it, without the unit. */
export const gib = (bytes: number): string => (bytes / 2 ** 30).toFixed(1);

const elementBytes = (dtype: ComputeDtype) => ({ bfloat16: 2, float32: 4, float64: 8 })[dtype];
/** Of norms' statistics, log-sum-exps, gradients and moments. */
const wideBytes = (dtype: ComputeDtype) => (dtype === 'float64' ? 8 : 4);

/** Weights and products of one layer, those of its norms left out. */
function layerWeights(c: ModelShape) {
  const qkv = (c.heads + 2 * c.kvHeads) * c.headDim;
  const down = c.intermediateSize * c.hiddenSize;
  return { down, all: (qkv + c.heads * c.headDim) * c.hiddenSize + 3 * down };
}

export function parameterCount(c: ModelShape): number {
  const qkv = (c.heads + 2 * c.kvHeads) * c.headDim;
  const small = (c.branchNorms ? 4 : 2) * c.hiddenSize + (c.qkvBias ? qkv : 0) + (c.headNorm ? 2 * c.headDim : 0);
  const layer = layerWeights(c).all + small;
  return c.vocabSize * c.hiddenSize * (c.tieWordEmbeddings ? 1 : 2) + c.layers * layer + c.hiddenSize;
}

/** Bytes a token and layer: its input alone, all that backward reads, and what forward and backward write for themselves. */
export function layerBytes(c: ModelShape, { dtype = 'bfloat16', device = 'cuda', adapters }: MemoryOptions = {}) {
  const [element, wide] = [elementBytes(dtype), wideBytes(dtype)];
  const [hidden, inner] = [c.hiddenSize, c.intermediateSize];
  const width = c.heads * c.headDim;
  const kv = 2 * c.kvHeads * c.headDim;
  const branches = c.branchNorms ? 2 * hidden : 0;
  // The struct Saved of native/model/decoder.h: x, qkv, out, x2, gate | up, and what norms of branches read; rstd twice, lse.
  const kept = element * (2 * hidden + width + kv + width + 2 * inner + branches) + wide * (2 + c.heads);
  const rotated = c.headNorm ? width + kv : 0;
  // The struct Scratch beside it: normed, branch, h, rotated; rstd.
  let forward = element * (2 * hidden + inner + rotated) + wide;
  // backward() of native/model/decoder.cpp: dx, normed, dNormed, dh, h, dOut, dQkv, rotated, dRaw; rstd.
  const raw = c.branchNorms ? hidden : 0;
  let scratch = element * (3 * hidden + 2 * inner + 2 * width + kv + rotated + raw) + wide;
  // native/model/lora.cpp: an input with some of its elements dropped, and the low-rank product.
  if (adapters) scratch += element * (Math.max(hidden, inner, width) + adapters.rank);
  // ATen's flash attention backward: dq, dk and dv, the last two for every query head, too, and dq's sums in float32.
  if (device === 'cuda') scratch += element * (3 * width + kv) + 4 * width;
  // native/model/blocked_attention.cpp works on float32 copies of what is bfloat16: qkv and out; dOut, qkv and its gradient.
  if (device === 'cpu' && dtype === 'bfloat16') {
    forward += wide * (2 * width + kv);
    scratch += wide * (3 * width + 2 * kv);
  }
  return { input: element * hidden, kept, forward, scratch };
}

/** Bytes a parameter: the weight, what its float32 master takes beside it, and where it is trained gradient and moments. */
function stateBytes({ dtype = 'bfloat16', device = 'cuda' }: MemoryOptions) {
  const [element, wide] = [elementBytes(dtype), wideBytes(dtype)];
  const master = element === wide ? 0 : device === 'cuda' ? wide - element : wide;
  return { frozen: element, mastered: element + master, trained: element + master + 3 * wide };
}

/**
 * The plan for every size of micro-batch that fits `available` bytes, or for `tokens` alone. Empty where none fits.
 */
export function planMemory(
  c: ModelShape,
  available: number,
  { tokens, ...options }: MemoryOptions & { tokens?: number } = {},
): MemoryPlan[] {
  const sizes = tokens === undefined ? TOKENS : [tokens];
  return sizes.map((size) => forecast(c, size, available, options)).filter((plan) => plan.total <= available);
}

/** Of plans that fit, the one that computes least again, and of equals the one with the largest micro-batch. */
export function bestPlan(plans: readonly MemoryPlan[]): MemoryPlan | undefined {
  return [...plans].sort((a, b) => a.recomputed - b.recomputed || b.tokens - a.tokens)[0];
}

/** With as many layers kept as fit or as `checkpointing` says, even if that is one and too much. */
export function forecast(c: ModelShape, tokens: number, available: number, options: MemoryOptions = {}): MemoryPlan {
  const { dtype = 'bfloat16', device = 'cuda', checkpointing = 'auto', adapters, sharePrompt = true } = options;
  const element = elementBytes(dtype);
  const parameters = parameterCount(c);
  const bytes = layerBytes(c, options);
  const { frozen, mastered, trained } = stateBytes(options);
  const states = adapters ? frozen * parameters + trained * adapters.parameters : trained * parameters;
  const logits = Math.min(HEAD_CHUNK_BYTES[device], element * c.vocabSize * tokens);
  const held = options.residentReference === 'with masters' ? mastered : frozen;
  // A second model has a workspace of its own: of one layer and the last hidden states, and of logits that fit in none of
  // the places that the layer wrote to, for which the first of these gives way (native/memory.h).
  const more = logits > tokens * element * c.intermediateSize ? logits - tokens * bytes.input : 0;
  const pass = tokens * (bytes.kept + bytes.forward + bytes.input * (sharePrompt ? 2 : 3)) + more;
  const reference = options.residentReference ? held * parameters + pass : 0;
  const workspace = Math.max(tokens * bytes.scratch, logits);
  // The last hidden states, their gradient, and what the final norm reads; of some rows copies of the first two.
  const ends = tokens * (element * c.hiddenSize * (sharePrompt ? 3 : 5) + wideBytes(dtype));
  const reserve = device === 'cuda' ? RESERVE : 0;
  const { down, all } = layerWeights(c);
  const withKept = (keptLayers: number): MemoryPlan => {
    const again = c.layers - keptLayers;
    const activations = tokens * (keptLayers * bytes.kept + again * bytes.input) + ends;
    const total = states + reference + activations + workspace + reserve;
    // As far as what backward reads: the last product only where a norm reads it.
    const recomputed = ((again / c.layers) * (c.branchNorms ? 1 : 1 - down / all)) / 3;
    return {
      ...{ tokens, keptLayers, layers: c.layers, states, reference },
      ...{ activations, workspace, reserve, total, recomputed },
    };
  };
  let keptLayers = checkpointing === true ? 1 : c.layers;
  while (checkpointing === 'auto' && keptLayers > 1 && withKept(keptLayers).total > available) keptLayers--;
  return withKept(keptLayers);
}
