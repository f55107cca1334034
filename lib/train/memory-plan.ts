/**
 * What full training of a model needs of one GPU's memory, counted from its shape: bfloat16 weights whose float32 masters
 * are kept as 16 + 16 bits, float32 gradients and moments, and for every packed token either all that a layer's backward
 * reads or its input alone, from which the layer is computed again. Layers are kept one by one, as many as fit.
 */
import type { ModelShape } from '../native/addon.js';

/** Bytes a parameter: the weight, the rest of its master, the gradient, the two moments. */
const STATE_BYTES = 2 + 2 + 4 + 4 + 4;
/** Logits that the head holds at once: this many rows of them in bfloat16. */
const HEAD_ROWS = 4096;
/** What the matrix and attention libraries take for themselves, and what the allocator cannot use. */
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

/** Of a micro-batch of `tokens`: bytes by what they are for, and how the layers are treated. */
export interface MemoryPlan {
  tokens: number;
  /** Layers of which everything is kept; the others are computed again in backward. */
  keptLayers: number;
  layers: number;
  states: number;
  /** A frozen copy of the weights, where the reference is not computed beforehand. */
  reference: number;
  activations: number;
  /** What one layer's forward and backward write for themselves. */
  workspace: number;
  /** The logits of a chunk of rows. */
  head: number;
  /** Of the libraries: a round number, not a count. */
  reserve: number;
  total: number;
  /** Floating-point operations on top of forward and backward, as a share of these: of the layers computed again. */
  recomputed: number;
}

/** As a person reads it, without the unit. */
export const gib = (bytes: number): string => (bytes / 2 ** 30).toFixed(1);

export function parameterCount(c: ModelShape): number {
  const qkv = (c.heads + 2 * c.kvHeads) * c.headDim;
  const attention = qkv * c.hiddenSize + c.hiddenSize * c.heads * c.headDim;
  const small = (c.branchNorms ? 4 : 2) * c.hiddenSize + (c.qkvBias ? qkv : 0) + (c.headNorm ? 2 * c.headDim : 0);
  const layer = attention + 3 * c.intermediateSize * c.hiddenSize + small;
  return c.vocabSize * c.hiddenSize * (c.tieWordEmbeddings ? 1 : 2) + c.layers * layer + c.hiddenSize;
}

/** Bytes a token and layer: its input alone, all that backward reads, and scratch of one forward and one backward. */
export function layerBytes(c: ModelShape) {
  const width = c.heads * c.headDim;
  const qkv = width + 2 * c.kvHeads * c.headDim;
  const input = 2 * c.hiddenSize;
  const branches = c.branchNorms ? 4 * c.hiddenSize : 0;
  // The input, qkv after the rotation, attention's result and its log-sum-exps, the stream after it, gate | up.
  const kept = input + 2 * qkv + 2 * width + 4 * c.heads + 2 * c.hiddenSize + 4 * c.intermediateSize + branches;
  const rotated = c.headNorm ? 2 * qkv : 0;
  // native/model/decoder.cpp: normed, branch, h; dx, normed, dNormed, dh, h, dOut, dQkv.
  const forward = 4 * c.hiddenSize + 2 * c.intermediateSize + rotated;
  const backward =
    6 * c.hiddenSize + 4 * c.intermediateSize + 2 * width + 2 * qkv + rotated + (c.branchNorms ? 2 * c.hiddenSize : 0);
  return { input, kept, scratch: Math.max(forward, backward) };
}

/**
 * The plan for every size of micro-batch that fits `available` bytes, or for `tokens` alone; each keeps as many layers as
 * it can. Empty where even computing all of them again does not fit.
 */
export function planMemory(
  c: ModelShape,
  available: number,
  options: { tokens?: number; residentReference?: boolean } = {},
): MemoryPlan[] {
  const sizes = options.tokens === undefined ? TOKENS : [options.tokens];
  return sizes.map((tokens) => forecast(c, tokens, available, options)).filter((plan) => plan.total <= available);
}

/** Of plans that fit, the one that computes least again, and of equals the one with the largest micro-batch. */
export function bestPlan(plans: readonly MemoryPlan[]): MemoryPlan | undefined {
  return [...plans].sort((a, b) => a.recomputed - b.recomputed || b.tokens - a.tokens)[0];
}

/** With as many layers kept as fit, even if that is none and too much. */
export function forecast(
  c: ModelShape,
  tokens: number,
  available: number,
  { residentReference = false }: { residentReference?: boolean } = {},
): MemoryPlan {
  const parameters = parameterCount(c);
  const bytes = layerBytes(c);
  const states = STATE_BYTES * parameters;
  const reference = residentReference ? 2 * parameters : 0;
  const head = 2 * c.vocabSize * Math.min(HEAD_ROWS, tokens);
  // The last hidden states, their gradient, and what the final norm reads.
  const ends = 6 * c.hiddenSize * tokens;
  const withKept = (keptLayers: number): MemoryPlan => {
    const again = c.layers - keptLayers;
    const activations = tokens * (keptLayers * bytes.kept + again * bytes.input) + ends;
    // A layer that is computed again needs a place for what the others keep.
    const workspace = tokens * (bytes.scratch + (again > 0 ? bytes.kept - bytes.input : 0));
    const total = states + reference + activations + workspace + head + RESERVE;
    const recomputed = again / c.layers / 3;
    return {
      ...{ tokens, keptLayers, layers: c.layers, states, reference },
      ...{ activations, workspace, head, reserve: RESERVE, total, recomputed },
    };
  };
  let keptLayers = c.layers;
  while (keptLayers > 0 && withKept(keptLayers).total > available) keptLayers--;
  return withKept(keptLayers);
}
