/** What users see of the addon as it is: tensors, and what it says of itself. Loads it at the first use. */
import type { NativeInfo, TensorConstructor, Tensor as TensorInstance } from './addon.js';
import { loadNative } from './load.js';

/** A tensor whose memory libtorch owns. Create one with `Tensor.empty` or `Tensor.from`. */
export type Tensor = TensorInstance;

export const Tensor: TensorConstructor = {
  empty: (shape, options) => loadNative().Tensor.empty(shape, options),
  from: (data, shape, options) => loadNative().Tensor.from(data, shape, options),
};

/** Versions, devices and threads of the loaded engine. */
export function info(): NativeInfo {
  return loadNative().info();
}
