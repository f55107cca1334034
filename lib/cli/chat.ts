/** `wrpo chat`: a conversation with a model of this machine, to look at it by hand. */
import { createInterface } from 'node:readline';
import type { Message } from '../data/preferences.js';
import type { SamplingOptions } from '../model/generator.js';
import { Model } from '../model/model.js';
import { encodePrompt } from '../text/prompt.js';
import { locate, requireTokenizer, sourceOf } from '../train/prepare.js';
import { readDtype } from './compute.js';
import { say } from './say.js';
import { writeOut } from './stdout.js';

export interface ChatCommand extends SamplingOptions {
  model: string;
  system?: string;
  seed: number;
  dtype: string;
}

/** A line is a turn; Ctrl-C ends an answer, or the conversation where there is none under way. */
export async function chat({ model: name, system, seed, dtype, ...sampling }: ChatCommand): Promise<void> {
  const directory = await locate(name, { say });
  const source = await sourceOf(directory, { say });
  const tokenizer = await requireTokenizer(source);
  await using model = await Model.load(directory, {
    dtype: readDtype(dtype),
    baseModel: source.baseDirectory,
    frozen: true,
  });
  await using generator = model.generator({ ...sampling, tokenizer, maxSequences: 1 });
  const turns: Message[] = system === undefined ? [] : [{ role: 'system', content: system }];
  const lines = createInterface({ input: process.stdin, output: process.stderr, prompt: '> ' });
  let answering: AbortController | undefined;
  lines.on('SIGINT', () => (answering ? answering.abort() : lines.close()));
  lines.prompt();
  let count = 0;
  for await (const line of lines) {
    if (line.trim() !== '') {
      turns.push({ role: 'user', content: line });
      answering = new AbortController();
      turns.push({ role: 'assistant', content: await answer(answering.signal) });
      answering = undefined;
    }
    lines.prompt();
  }

  /** Says the answer while it comes; what there is of one that was ended. */
  async function answer(signal: AbortSignal): Promise<string> {
    let text = '';
    let told = Promise.resolve();
    const onToken = (news: { text: string }) => {
      text += news.text;
      told = told.then(() => writeOut(news.text));
    };
    const ids = await encodePrompt(turns, tokenizer);
    try {
      await generator.sample({ ids, seeds: [seed + count++] }, { signal, onToken });
    } catch (error) {
      if (!signal.aborted) throw error;
    }
    await told;
    await writeOut('\n');
    return text;
  }
}
