/** Models in this process: directories in Hugging Face layout. */
import type { Message } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import type { Generator, SamplingOptions } from '../model/generator.js';
import { Model } from '../model/model.js';
import type { ComputeDtype } from '../native/addon.js';
import { encodePrompt } from '../text/prompt.js';
import { requireTokenizer, sourceOf } from '../train/prepare.js';
import { foldSystem } from './endpoint.js';
import type { Answer, Sampler } from './sample.js';

export interface LocalOptions extends Required<SamplingOptions> {
  name: string;
  /** A model directory, or one of PEFT's with an adapter. */
  model: string;
  dtype: ComputeDtype;
  /** Sequences that are continued at a time. */
  concurrency: number;
  /** How many samples of a prompt will be asked for. */
  n: number;
  /** Told of downloads, and once when system messages have to be written into the user's turn. */
  say?: (line: string) => void;
}

/**
 * A source of samples. The weights are read when the first prompt comes. Throws ERR_MODEL when there is no such model, or
 * it has no tokenizer with a chat template.
 */
export async function localSampler(options: LocalOptions): Promise<Sampler> {
  const { name, model: directory, dtype, concurrency, n, say = () => {}, ...sampling } = options;
  const source = await sourceOf(directory, { say });
  const tokenizer = await requireTokenizer(source);
  let loading: Promise<{ model: Model; generator: Generator }> | undefined;
  const load = async () => {
    const model = await Model.load(directory, { dtype, baseModel: source.baseDirectory, frozen: true });
    try {
      return { model, generator: model.generator({ ...sampling, tokenizer, maxSequences: concurrency }) };
    } catch (error) {
      await model.close();
      throw error;
    }
  };
  let foldsSystem = false;
  /** A system turn that the template does not take is put in front of the first user turn. */
  const encode = async (messages: readonly Message[]): Promise<number[]> => {
    if (foldsSystem) return encodePrompt(foldSystem(messages), tokenizer);
    try {
      return await encodePrompt(messages, tokenizer);
    } catch (error) {
      if (!isAboutPrompt(error) || messages[0]?.role !== 'system') throw error;
      const ids = await encodePrompt(foldSystem(messages), tokenizer);
      foldsSystem = true;
      say(`${name}: the model takes no system turns; they go into the first user turn`);
      return ids;
    }
  };
  return {
    name,
    // So many that sequences which end are followed by others at once.
    concurrency: Math.ceil((1.5 * concurrency) / n),
    depends: {
      ...{ model: directory, dtype, concurrency, temperature: sampling.temperature, top_p: sampling.topP },
      ...{ top_k: sampling.topK, min_p: sampling.minP, repetition_penalty: sampling.repetitionPenalty },
      max_tokens: sampling.maxTokens,
    },
    async sample({ messages, seeds }, signal): Promise<Answer> {
      loading ??= load();
      const { generator } = await loading;
      let ids: number[];
      try {
        ids = await encode(messages);
      } catch (error) {
        if (!isAboutPrompt(error)) throw error;
        return { samples: [], promptTokens: 0, completionTokens: 0, failure: (error as Error).message };
      }
      const made = await generator.sample({ ids, seeds }, { signal });
      return {
        samples: made.map(({ text, finishReason }, i) => ({
          text: text!,
          finish_reason: finishReason,
          seed: seeds[i]!,
        })),
        promptTokens: ids.length,
        completionTokens: made.reduce((sum, one) => sum + one.ids.length, 0),
      };
    },
    async close() {
      const loaded = await loading?.catch(() => undefined);
      await loaded?.generator.close();
      await loaded?.model.close();
    },
  };
}

/** Whether the template refuses a prompt; others may do better. */
const isAboutPrompt = (error: unknown): boolean => error instanceof WrpoError && error.code === 'ERR_DATA';
