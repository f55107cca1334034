/** The option `--dtype` of commands that compute. */
import { WrpoError } from '../errors.js';
import type { ComputeDtype } from '../native/addon.js';

const DTYPES: readonly string[] = ['float32', 'float64', 'bfloat16'] satisfies ComputeDtype[];

/** Throws ERR_CONFIG unless it is one of them. */
export function readDtype(dtype: string): ComputeDtype {
  if (DTYPES.includes(dtype)) return dtype as ComputeDtype;
  throw new WrpoError('ERR_CONFIG', `--dtype "${dtype}": expected float32, float64 or bfloat16`);
}
