/** `wrpo merge`: a LoRA adapter and its base as one model. */
import { WrpoError } from '../errors.js';
import { isAdapter } from '../model/lora.js';
import { Model } from '../model/model.js';
import { locate, sourceOf, tokenizerOf } from '../train/prepare.js';
import { readDtype } from './compute.js';
import { say } from './say.js';

export async function merge(options: { model: string; base?: string; output: string; dtype: string }): Promise<void> {
  const dtype = readDtype(options.dtype);
  const { model: directory } = options;
  if (!isAdapter(directory)) {
    throw new WrpoError('ERR_MODEL', `${directory} holds no adapter to merge: it has no adapter_config.json`);
  }
  const baseDirectory = options.base === undefined ? undefined : await locate(options.base, { say });
  const source = await sourceOf(directory, { say }, baseDirectory);
  const tokenizer = await tokenizerOf(source);
  // In float32 whatever is saved: the sum is rounded once.
  const model = await Model.load(directory, {
    dtype: dtype === 'float64' ? dtype : 'float32',
    baseModel: source.baseDirectory,
  });
  try {
    await model.mergeAdapters();
    await model.save(options.output, { dtype });
    await tokenizer?.saveTo(options.output);
  } finally {
    await model.close();
  }
  say(`done: ${options.output} holds the model`);
}
