/** What `dtype: auto` means. */
import type { ComputeDtype, Device } from '../native/addon.js';
import { loadNative } from '../native/load.js';

/**
 * bfloat16, with float32 master weights, where the processor multiplies it (avx512_bf16, which processors with AMX have,
 * too): a step takes about three quarters of the time and half the memory of activations. float32 elsewhere, where
 * bfloat16 would be slower. On a GPU bfloat16, the only one.
 */
export function autoDtype(device: Device = 'cpu'): { dtype: ComputeDtype; because: string } {
  if (device === 'cuda') return { dtype: 'bfloat16', because: 'auto chose bfloat16, in which a GPU computes' };
  return loadNative().info().bfloat16
    ? { dtype: 'bfloat16', because: 'auto chose bfloat16, which this processor multiplies (avx512_bf16)' }
    : { dtype: 'float32', because: 'auto chose float32: this processor has no bfloat16 instructions (avx512_bf16)' };
}
