/** `wrpo generate`: samples of prompts by a model of this machine, one JSON line a prompt. */
import { createHash } from 'node:crypto';
import { basename, resolve } from 'node:path';
import { isIds, type Message, readContent } from '../data/preferences.js';
import { readSource } from '../data/source.js';
import { promptColumns, promptIdOf, readPrompt } from '../fuse/prompts.js';
import { seedOf } from '../fuse/seeds.js';
import type { GenerationPrompt, SamplingOptions } from '../model/generator.js';
import { Model } from '../model/model.js';
import { encodePrompt } from '../text/prompt.js';
import type { Tokenizer } from '../text/tokenizer.js';
import { locate, requireTokenizer, sourceOf, tokenizerOf } from '../train/prepare.js';
import { readDtype } from './compute.js';
import { interruptible } from './fusion.js';
import { newsOf } from './news.js';
import { say } from './say.js';
import { writeLines } from './stdout.js';

export interface GenerateCommand extends SamplingOptions {
  model: string;
  prompts: string;
  split?: string;
  revision?: string;
  n: number;
  seed: number;
  stop?: string[];
  maxSequences: number;
  logprobs?: boolean;
  dtype: string;
  output?: string;
}

/** A prompt as the file has it. */
interface Asked extends GenerationPrompt {
  promptId: string;
  prompt: Message[] | number[];
}

export async function generate(options: GenerateCommand): Promise<void> {
  const dtype = readDtype(options.dtype);
  const { temperature, topP, topK, minP, repetitionPenalty, maxTokens, maxSequences, stop } = options;
  const sampling = { temperature, topP, topK, minP, repetitionPenalty, maxTokens, maxSequences, stop };
  const directory = await locate(options.model, { say });
  const source = await sourceOf(directory, { say });
  const tokenizer = await tokenizerOf(source);
  // What is wrong with the first prompt is told before the weights are read.
  const prompts = promptsOf(options, () => (tokenizer ? Promise.resolve(tokenizer) : requireTokenizer(source)));
  let first = await prompts.next();
  const asked: Asked[] = [];
  async function* all(): AsyncGenerator<Asked> {
    for (; !first.done; first = await prompts.next()) {
      asked.push(first.value);
      yield first.value;
    }
  }
  const news = newsOf('prompts answered');
  await interruptible(async (signal) => {
    let tokens = 0;
    let began = 0;
    let model: Model | undefined;
    try {
      await writeLines(options.output, async (write) => {
        model = await Model.load(directory, { dtype, baseModel: source.baseDirectory, frozen: true });
        began = performance.now();
        const how = { ...sampling, tokenizer, logProbs: options.logprobs, signal };
        for await (const { samples } of model.generate(all(), how)) {
          const { promptId, prompt, seeds } = asked.shift()!;
          const line = {
            ...{ prompt_id: promptId, prompt: isIds(prompt) ? prompt : plain(prompt) },
            responses: samples.map(({ text, ids }) => (isIds(prompt) ? ids : text)),
            finish_reasons: samples.map(({ finishReason }) => finishReason),
            seeds,
            ...(options.logprobs && { logprobs: samples.map(({ logProbs }) => logProbs) }),
          };
          await write(`${JSON.stringify(line)}\n`);
          tokens += samples.reduce((sum, { ids }) => sum + ids.length, 0);
          news.add(1);
        }
      });
      const seconds = (performance.now() - began) / 1000;
      news.say(`${tokens} tokens in ${seconds.toFixed(1)} s, ${(tokens / seconds).toPrecision(3)} tokens/s`);
    } finally {
      news.end();
      await model?.close();
    }
  });
}

/** Prompts of text or token ids, each with the seeds that a fusion would give it. */
async function* promptsOf(
  { model, prompts, n, seed, split, revision }: GenerateCommand,
  tokenizer: () => Promise<Tokenizer>,
): AsyncGenerator<Asked> {
  const name = basename(resolve(model));
  const onFault = (error: unknown): never => {
    throw error;
  };
  for await (const { value, where } of readSource(prompts, { split, revision, say, onFault }, promptColumns)) {
    const row = (value ?? {}) as Record<string, unknown>;
    const given = row.prompt == null ? undefined : readContent(row.prompt, 'prompt', where);
    const isOfIds = given !== undefined && isIds(given);
    const prompt = isOfIds ? given : readPrompt(row.prompt, where);
    const ids = isIds(prompt) ? prompt : await encodePrompt(prompt, await tokenizer());
    const own = isIds(prompt) ? digest(JSON.stringify(prompt)) : promptIdOf(prompt);
    const promptId = typeof row.prompt_id === 'string' ? row.prompt_id : own;
    const seeds = Array.from({ length: n }, (_, index) => seedOf(seed, promptId, name, index));
    yield { ids, seeds, promptId, prompt };
  }
}

const digest = (text: string): string => createHash('sha256').update(text).digest('hex');

/** A single user turn is written as its text. */
const plain = (messages: Message[]): string | Message[] =>
  messages.length === 1 && messages[0]!.role === 'user' ? messages[0]!.content : messages;
