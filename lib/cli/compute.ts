/** The options `--dtype` and `--device` of commands that compute. */
import { WrpoError } from '../errors.js';
import { chooseDevice } from '../model/device.js';
import { autoDtype } from '../model/dtype.js';
import type { ComputeDtype, Device } from '../native/addon.js';
import { say } from './say.js';

const DTYPES: readonly string[] = ['float32', 'float64', 'bfloat16'] satisfies ComputeDtype[];

/** What it names; `auto` says what it chose. Throws ERR_CONFIG unless it is one of them. */
export function readDtype(dtype: string, device: Device = 'cpu'): ComputeDtype {
  if (DTYPES.includes(dtype)) return dtype as ComputeDtype;
  if (dtype !== 'auto') {
    throw new WrpoError('ERR_CONFIG', `--dtype "${dtype}": expected float32, float64, bfloat16 or auto`);
  }
  const { dtype: chosen, because } = autoDtype(device);
  say(`dtype: ${because}`);
  return chosen;
}

/** Both; a device of `auto` says what it chose. Throws ERR_DEVICE where there is no GPU and one is meant. */
export function readCompute(options: { dtype: string; device: string }): { dtype: ComputeDtype; device: Device } {
  const { device, because } = chooseDevice(options.device as Device | 'auto');
  if (options.device === 'auto') say(`device: ${because}`);
  return { dtype: readDtype(options.dtype, device), device };
}
