/** The fused head by itself: log-probs of chosen tokens from hidden states, and their gradient. */
import type { Device, Tensor } from '../native/addon.js';
import { loadNative } from '../native/load.js';

/** Of the logits that are held at once: on a GPU a chunk is meant to hold a few prompts' longest responses whole. */
export const HEAD_CHUNK_BYTES: Readonly<Record<Device, number>> = { cpu: 256 * 2 ** 20, cuda: 2 ** 30 };
/** By itself the head keeps to the smaller bound on every device. */
const headChunkBytes = HEAD_CHUNK_BYTES.cpu;

/**
 * log softmax(hidden · weightᵀ) at `targets`, without ever holding all logits.
 * hidden [R, H] and weight [V, H] of one dtype (float32, float64, bfloat16), targets [R] → logps [R], and lse [R], the
 * log-sum-exp of each row, which the backward needs (float32; float64 for float64).
 * Throws ERR_CONFIG on shapes that do not fit, ERR_DATA on a target beyond the vocabulary.
 */
export function selectedLogProbs(
  hidden: Tensor,
  weight: Tensor,
  targets: Int32Array,
): Promise<{ logps: Tensor; lse: Tensor }> {
  return loadNative().selectedLogProbs({ hidden, weight, targets, headChunkBytes });
}

/** From dLoss/dlogps [R] to dHidden [R, H] and dWeight [V, H] (float32; float64 for float64). */
export function selectedLogProbsBackward(
  hidden: Tensor,
  weight: Tensor,
  targets: Int32Array,
  lse: Tensor,
  dLogps: Tensor,
): Promise<{ dHidden: Tensor; dWeight: Tensor }> {
  return loadNative().selectedLogProbsBackward({ hidden, weight, targets, lse, dLogps, headChunkBytes });
}
