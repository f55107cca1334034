/** The option `--dtype` of commands that compute. */
import { WrpoError } from '../errors.js';
import { autoDtype } from '../model/dtype.js';
import type { ComputeDtype } from '../native/addon.js';
import { say } from './say.js';

const DTYPES: readonly string[] = ['float32', 'float64', 'bfloat16'] satisfies ComputeDtype[];

/** What it names; `auto` says what it chose. Throws ERR_CONFIG unless it is one of them. */
export function readDtype(dtype: string): ComputeDtype {
  if (DTYPES.includes(dtype)) return dtype as ComputeDtype;
  if (dtype !== 'auto') {
    throw new WrpoError('ERR_CONFIG', `--dtype "${dtype}": expected float32, float64, bfloat16 or auto`);
  }
  const { dtype: chosen, because } = autoDtype();
  say(`dtype: ${because}`);
  return chosen;
}
