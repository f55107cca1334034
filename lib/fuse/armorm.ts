/** ArmoRM in this process as a scorer. */
import type { AnswerRow } from '../data/answers.js';
import type { Message } from '../data/preferences.js';
import { readModelConfig } from '../model/config.js';
import { chooseDevice } from '../model/device.js';
import { Model } from '../model/model.js';
import { requireRewardHead } from '../model/reward.js';
import type { ComputeDtype, Device } from '../native/addon.js';
import { encodeConversations } from '../text/conversations.js';
import { tokenizerOf } from '../train/prepare.js';
import type { ScoreItem, Scorer } from './score.js';

export interface ArmormOptions {
  name: string;
  /** A model directory whose architecture is `LlamaForRewardModelWithGating`. */
  model: string;
  dtype: ComputeDtype;
  /** Default `cpu`; a GPU takes bfloat16. */
  device?: Device | 'auto';
}

/**
 * The weights are read when the first answers come. Throws ERR_MODEL when the model has no reward head, and ERR_DEVICE where
 * there is no GPU and one is meant.
 */
export async function armormScorer({
  name,
  model: directory,
  dtype,
  device: wanted = 'cpu',
}: ArmormOptions): Promise<Scorer> {
  const { device } = chooseDevice(wanted);
  const config = readModelConfig(directory);
  requireRewardHead(config, directory);
  const tokenizer = await tokenizerOf({ directory });
  let loading: Promise<Model> | undefined;
  return {
    ...{ name, batch: 64, concurrency: 1 },
    depends: { kind: 'armorm', model: directory, dtype, ...(device !== 'cpu' && { device }) },
    async score(items) {
      loading ??= Model.load(directory, { dtype, device, frozen: true });
      const model = await loading;
      const conversations: number[][] = [];
      for await (const row of encodeConversations(rowsOf(items), tokenizer)) conversations.push(...row.conversations);
      const scores = await model.score(conversations, { where: items.map(({ where }) => where) });
      return scores.map(({ score }) => score);
    },
    async close() {
      const model = await loading?.catch(() => undefined);
      await model?.close();
    },
  };
}

/** Answers of one prompt in one row, so that the prompt is tokenised and computed once. */
function rowsOf(items: readonly ScoreItem[]): AnswerRow[] {
  const rows: AnswerRow[] = [];
  let last: ScoreItem | undefined;
  for (const item of items) {
    if (item.promptId !== last?.promptId) {
      const where = `${item.source}: prompt ${item.promptId}`;
      rows.push({ where, shape: 'responses', prompt: item.messages as Message[], answers: [] });
    }
    rows.at(-1)!.answers.push({ key: item.where, content: item.response });
    last = item;
  }
  return rows;
}
