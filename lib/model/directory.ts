/** Which files of a model directory hold its tensors, and which are not read. */
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { WrpoError } from '../errors.js';
import { readHeader, type StoredTensor } from './safetensors.js';

/** Of a model directory, where its `name` is missing: says that another program's file cannot take its place. */
function refusePickled(dir: string, name: string): void {
  const pickled = [name.replace(/^model\.safetensors$/, 'pytorch_model.bin'), name.replace(/safetensors$/, 'bin')].find(
    (other) => existsSync(join(dir, other)) || existsSync(join(dir, `${other}.index.json`)),
  );
  if (pickled === undefined || existsSync(join(dir, name))) return;
  throw new WrpoError(
    'ERR_MODEL',
    `${dir} holds ${pickled}, a pickle, which can run any code when it is read; expected ${name}: save the model with transformers again, as safetensors`,
  );
}

/**
 * The file `name` of a model directory. It may be a link within the directory, or in a cache of the hub to its `blobs`; one
 * that leads anywhere else is refused.
 */
function fileOf(dir: string, name: string): string {
  const path = join(dir, name);
  refusePickled(dir, name);
  if (!existsSync(path)) return path;
  const [home, real] = [realpathSync(dir), realpathSync(path)];
  const blobs = basename(dirname(home)) === 'snapshots' ? join(dirname(dirname(home)), 'blobs') : home;
  if ([home, blobs].includes(dirname(real))) return path;
  throw new WrpoError('ERR_MODEL', `${path} is a link out of its directory, to ${real}: put the file itself there`);
}

/** The tensors of the adapter in a directory of PEFT's layout. */
export const readAdapterTensors = (dir: string): Map<string, StoredTensor> =>
  readHeader(fileOf(dir, 'adapter_model.safetensors'));

/** All tensors of a Hugging Face model directory, from `model.safetensors` or the shards that its index names. */
export function readModelTensors(dir: string): Map<string, StoredTensor> {
  const index = join(dir, 'model.safetensors.index.json');
  if (!existsSync(index)) return readHeader(fileOf(dir, 'model.safetensors'));
  let weightMap: Record<string, string>;
  try {
    weightMap = JSON.parse(readFileSync(index, 'utf8')).weight_map;
    if (typeof weightMap !== 'object' || weightMap === null) throw new Error('no "weight_map"');
  } catch (cause) {
    throw new WrpoError('ERR_MODEL', `${index} is not a valid index: ${(cause as Error).message}`, { cause });
  }
  const tensors = new Map<string, StoredTensor>();
  for (const [name, shard] of Object.entries(weightMap)) {
    if (typeof shard !== 'string') {
      throw new WrpoError('ERR_MODEL', `${index} names no shard for ${name}, found ${JSON.stringify(shard)}`);
    }
    if (basename(shard) !== shard || ['', '.', '..'].includes(shard)) {
      throw new WrpoError('ERR_MODEL', `${index} names a shard outside its directory: "${shard}"`);
    }
  }
  for (const shard of new Set(Object.values(weightMap))) {
    for (const [name, tensor] of readHeader(fileOf(dir, shard))) tensors.set(name, tensor);
  }
  for (const name of Object.keys(weightMap)) {
    if (!tensors.has(name))
      throw new WrpoError('ERR_MODEL', `${index} names ${name}, which ${weightMap[name]} does not hold`);
  }
  return tensors;
}
