/** `wrpo score`: one JSON line a row, with the reward of each of its answers. */
import { readAnswers } from '../data/answers.js';
import { Model } from '../model/model.js';
import { requireRewardHead, type Score } from '../model/reward.js';
import { encodeConversations, type RowConversations } from '../text/conversations.js';
import { locate, sourceOf, tokenizerOf } from '../train/prepare.js';
import { readCompute } from './compute.js';
import { newsOf } from './news.js';
import { say } from './say.js';
import { writeLines } from './stdout.js';

const MICROBATCH_TOKENS = 2048;

export async function score(options: {
  model: string;
  data: string;
  split?: string;
  revision?: string;
  dtype: string;
  device: string;
  output?: string;
  rewards?: boolean;
}): Promise<void> {
  const compute = readCompute(options);
  // What is wrong with the model's kind or with the first rows is told before the weights are read.
  const { split, revision } = options;
  const directory = await locate(options.model, { say });
  const source = await sourceOf(directory, { say });
  requireRewardHead(source.config, options.model);
  const tokenizer = await tokenizerOf(source);
  const parts = batches(encodeConversations(readAnswers(options.data, { split, revision, say }), tokenizer));
  let part = await parts.next();
  const news = newsOf('rows scored');
  let model: Model | undefined;
  try {
    await writeLines(options.output, async (write) => {
      model = await Model.load(directory, { ...compute, baseModel: source.baseDirectory, frozen: true });
      for (; !part.done; part = await parts.next()) {
        const rows = part.value;
        const where = rows.flatMap(({ row }) => row.answers.map(({ key }) => `${row.where} ("${key}")`));
        const conversations = rows.flatMap(({ conversations }) => conversations);
        const scores = await model.score(conversations, { where, microbatchTokens: MICROBATCH_TOKENS });
        const lines = rows.map(({ row }) => lineOf(row, scores.splice(0, row.answers.length), options.rewards));
        await write(lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
        news.add(rows.length);
      }
    });
  } finally {
    news.end();
    await model?.close();
  }
}

/** Rows, in order, as many at a time as fill a batch. */
async function* batches(rows: AsyncIterable<RowConversations>): AsyncGenerator<RowConversations[]> {
  let part: RowConversations[] = [];
  let filled = 0;
  for await (const row of rows) {
    const length = row.conversations.reduce((sum, ids) => sum + ids.length, 0);
    if (part.length > 0 && filled + length > MICROBATCH_TOKENS) {
      yield part;
      part = [];
      filled = 0;
    }
    part.push(row);
    filled += length;
  }
  if (part.length > 0) yield part;
}

/** What is written of a row: `{score}`, `{scores: […]}` or, of a preference row, a score for each role it has. */
function lineOf({ shape, answers }: RowConversations['row'], scores: Score[], everything = false): unknown {
  const column = <T>(of: (score: Score) => T) => {
    if (shape === 'response') return of(scores[0]!);
    return shape === 'responses'
      ? scores.map(of)
      : Object.fromEntries(answers.map(({ key }, i) => [key, of(scores[i]!)]));
  };
  const values = column(({ score }) => score);
  return {
    ...(shape === 'roles' ? (values as object) : { [shape === 'response' ? 'score' : 'scores']: values }),
    ...(everything && { rewards: column(({ rewards }) => rewards), gates: column(({ gates }) => gates) }),
  };
}
