/** Conversations for a reward model: where each of them is gated, how they are packed, and what comes out. */
import { WrpoError } from '../errors.js';
import type { Batch, Scores } from '../native/addon.js';
import type { ModelConfig, RewardConfig } from './config.js';

/** What a reward model says of one conversation: score = Σ gates[j] · (rewards · transform)[j]. */
export interface Score {
  score: number;
  rewards: number[];
  gates: number[];
}

export interface ScoreOptions {
  /** What errors call each conversation. Default: `conversation 1`, … */
  where?: readonly string[];
  /** The tokens of a batch; a longer conversation gets one of its own. Default 2048. */
  microbatchTokens?: number;
}

/** A conversation, and the index of the token whose state decides its gates. */
export interface Conversation {
  where: string;
  ids: Int32Array;
  gate: number;
}

/**
 * Where the last occurrence of `pattern` begins: the token that ends the last user turn.
 * Throws ERR_DATA naming the conversation where there is none.
 */
export function gatingPosition(ids: ArrayLike<number>, pattern: readonly number[], where: string): number {
  let at = ids.length - pattern.length;
  while (at >= 0 && !pattern.every((id, i) => ids[at + i] === id)) at--;
  if (at >= 0) return at;
  throw new WrpoError(
    'ERR_DATA',
    `${where}: no gating position: the tokens [${pattern.join(', ')}] between prompt and answer do not occur; expected a conversation in the reward model's own chat template`,
  );
}

/** The reward head of a model; `name` is what the error calls a model that has none. */
export function requireRewardHead({ rewardHead }: ModelConfig, name = 'this model'): RewardConfig {
  if (rewardHead) return rewardHead;
  throw new WrpoError(
    'ERR_MODEL',
    `${name} is a language model, without a reward head to score with; expected the architecture "LlamaForRewardModelWithGating" (ArmoRM)`,
  );
}

/** The conversations as a reward model of this config reads them. Throws as `Model.score` does. */
export function placeConversations(
  conversations: readonly ArrayLike<number>[],
  config: ModelConfig,
  { where: names = [] }: ScoreOptions,
  directory?: string,
): Conversation[] {
  const { pattern } = requireRewardHead(config, directory);
  const { vocabSize } = config;
  return conversations.map((given, i) => {
    const where = names[i] ?? `conversation ${i + 1}`;
    if (given.length === 0) throw new WrpoError('ERR_DATA', `${where}: the conversation has no tokens`);
    const odd = Array.prototype.findIndex.call(given, (id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
    if (odd !== -1) {
      throw new WrpoError(
        'ERR_DATA',
        `${where}: ${given[odd]} at position ${odd}; expected an id from 0 to ${vocabSize - 1} (vocabulary size ${vocabSize})`,
      );
    }
    return { where, ids: Int32Array.from(given), gate: gatingPosition(given, pattern, where) };
  });
}

/**
 * Packs conversations, in order, into batches of at most `limit` tokens; a longer one gets one of its own. What comes
 * before the gate is the prompt segment, shared by neighbours that have it in common; gate and answer are the response.
 */
export function* packConversations(conversations: readonly Conversation[], limit = 2048): Generator<Batch> {
  let groups: Conversation[][] = [];
  let filled = 0;
  for (const one of conversations) {
    const { ids, gate } = one;
    let shares = groups.length > 0 && samePrompt(groups.at(-1)![0]!, one);
    if (groups.length > 0 && filled + ids.length - (shares ? gate : 0) > limit) {
      yield pack(groups);
      groups = [];
      filled = 0;
      shares = false;
    }
    if (shares) groups.at(-1)!.push(one);
    else groups.push([one]);
    filled += ids.length - (shares ? gate : 0);
  }
  if (groups.length > 0) yield pack(groups);
}

function samePrompt(a: Conversation, b: Conversation): boolean {
  return a.gate === b.gate && a.ids.subarray(0, a.gate).every((id, i) => id === b.ids[i]);
}

function pack(groups: readonly Conversation[][]): Batch {
  const prompts = groups.map(([first]) => ({ ids: first!.ids.subarray(0, first!.gate), from: 0 }));
  const responses = groups.flat().map(({ ids, gate }) => ({ ids: ids.subarray(gate), from: gate }));
  const lengths = (parts: readonly { ids: Int32Array }[]) => parts.map(({ ids }) => ids.length);
  const promptOffsets = offsets(lengths(prompts));
  const responseOffsets = offsets(lengths(responses));
  const tokens = new Int32Array(promptOffsets.at(-1)! + responseOffsets.at(-1)!);
  const positions = new Int32Array(tokens.length);
  let at = 0;
  for (const { ids, from } of [...prompts, ...responses]) {
    tokens.set(ids, at);
    for (let i = 0; i < ids.length; i++) positions[at++] = from + i;
  }
  return {
    tokens,
    positions,
    targets: new Int32Array(responseOffsets.at(-1)!).fill(-1),
    promptOffsets,
    responseOffsets,
    groupOffsets: offsets(groups.map(({ length }) => length)),
  };
}

/** Where each part begins, and where the last one ends. */
function offsets(lengths: readonly number[]): Int32Array {
  const sums = new Int32Array(lengths.length + 1);
  lengths.forEach((length, i) => {
    sums[i + 1] = sums[i]! + length;
  });
  return sums;
}

/** One score a conversation; throws ERR_NON_FINITE naming the one (of `names`, in order) that has none. */
export function scoresOf({ scores, rewards, gates }: Scores, names: readonly string[]): Score[] {
  const objectives = rewards.length / scores.length;
  return Array.from(scores, (score, k) => {
    if (!Number.isFinite(score)) throw new WrpoError('ERR_NON_FINITE', `${names[k]}: the score is ${score}`);
    const own = (values: Float64Array) => Array.from(values.subarray(k * objectives, (k + 1) * objectives));
    return { score, rewards: own(rewards), gates: own(gates) };
  });
}
