/** A language model that rates answers on a scale. */
import { createHash } from 'node:crypto';
import type { Message } from '../data/preferences.js';
import { Chat, type ChatOptions } from './endpoint.js';
import { RequestFailed } from './requests.js';
import type { Scored, ScoreItem, Scorer } from './score.js';
import { seedOf } from './seeds.js';

export interface JudgeOptions extends ChatOptions {
  /** With {prompt}, {response}, {min} and {max}; must lead to a rating in double brackets. Default: `TEMPLATE`. */
  template?: string;
  scale: readonly [min: number, max: number];
  /** How often an answer without a rating is asked for again, with another seed. */
  attempts: number;
  seed: number;
}

const TEMPLATE = `Below are a request and one answer to it. Judge how well the answer serves the person who asked: whether it \
does what was asked, is correct and complete, and is clear. Length is no merit by itself.

<request>
{prompt}
</request>

<answer>
{response}
</answer>

Give your reasons in a few sentences. Then end with your rating, a number from {min} (useless) to {max} (could not be \
better), in double square brackets, like this: [[{max}]]`;

export function judgeScorer(options: JudgeOptions): Scorer {
  const { name, model, concurrency, template = TEMPLATE, scale, attempts, seed } = options;
  const { temperature, topP, maxTokens, extraBody } = options;
  const chat = new Chat(options);
  const judge = async (item: ScoreItem, signal: AbortSignal): Promise<Scored> => {
    const messages: Message[] = [{ role: 'user', content: fill(template, item, scale) }];
    const about = createHash('sha256').update(item.response).digest('hex');
    let said = '';
    try {
      for (let attempt = 0; attempt < attempts; attempt++) {
        const own = seedOf(seed, item.promptId, `${name} ${about}`, attempt);
        said = (await chat.complete(messages, own, 1, signal)).samples[0]!.text;
        const rating = ratingOf(said, scale);
        if (rating !== undefined) return rating;
      }
    } catch (error) {
      if (!(error instanceof RequestFailed)) throw error;
      return { failure: error.message };
    }
    const end = said.replace(/\s+/g, ' ').trim().slice(-60);
    return { failure: `no rating [[${scale[0]}…${scale[1]}]] in ${attempts} answers, of which the last ends "${end}"` };
  };
  return {
    ...{ name, batch: 1, concurrency },
    depends: {
      ...{
        kind: 'judge',
        model,
        template: createHash('sha256').update(template).digest('hex'),
        scale: scale.join(' to '),
      },
      ...{ temperature, top_p: topP, max_tokens: maxTokens, seed },
      extra_body: extraBody === undefined ? null : JSON.stringify(extraBody),
    },
    score: (items, signal) => Promise.all(items.map((item) => judge(item, signal))),
  };
}

/** The last number in double brackets, if it is on the scale. */
export function ratingOf(text: string, [min, max]: readonly [number, number]): number | undefined {
  const last = [...text.matchAll(/\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]/g)].at(-1);
  const rating = Number(last?.[1] ?? Number.NaN);
  return rating >= min && rating <= max ? rating : undefined;
}

function fill(template: string, { messages, response }: ScoreItem, [min, max]: readonly [number, number]): string {
  const single = messages.length === 1;
  const prompt = single
    ? messages[0]!.content
    : messages.map(({ role, content }) => `${role}: ${content}`).join('\n\n');
  const values: Record<string, string> = { prompt, response, min: String(min), max: String(max) };
  return template.replace(/\{(prompt|response|min|max)\}/g, (_, key: string) => values[key]!);
}
