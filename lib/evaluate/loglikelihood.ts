/** Log-likelihoods of continuations by a model in the engine; what several contexts begin with is computed once. */
import { WrpoError } from '../errors.js';
import type { Model } from '../model/model.js';
import type { Batch } from '../native/addon.js';
import type { Tokenizer } from '../text/tokenizer.js';

/** A context and a continuation as ids; those of the continuation begin at `context`. */
export interface Sequence {
  ids: Int32Array;
  context: number;
}

/** A context and what continues it. */
export interface Request {
  context: string;
  continuation: string;
  /** Names it in errors. */
  where: string;
}

/**
 * Requests as ids, as lm-evaluation-harness makes them: spaces that end a context belong to the continuation, which is what
 * the whole has more than the context; of what is longer than `maxLength` + 1 the beginning is cut. Throws ERR_DATA naming
 * a request whose continuation has no tokens.
 */
export async function encodeRequests(
  requests: readonly Request[],
  tokenizer: Tokenizer,
  maxLength: number,
): Promise<Sequence[]> {
  const contexts = requests.map(({ context }) => context.replace(/\s+$/u, ''));
  const distinct = [...new Set(contexts)];
  const lengths = new Map<string, number>();
  for (const [i, ids] of (await encodeAll(distinct, tokenizer)).entries()) lengths.set(distinct[i]!, ids.length);
  const wholes = await encodeAll(
    requests.map(({ context, continuation }) => context + continuation),
    tokenizer,
  );
  return wholes.map((ids, i) => {
    const context = lengths.get(contexts[i]!)!;
    const cut = Math.max(0, ids.length - maxLength - 1);
    const most = ids.length - context;
    if (context > 0 && most > 0 && context > cut)
      return { ids: Int32Array.from(ids.slice(cut)), context: context - cut };
    const what = most > 0 && context > 0 ? `is longer than ${maxLength} tokens` : 'has no tokens of its own';
    throw new WrpoError('ERR_DATA', `${requests[i]!.where}: the continuation ${what}`);
  });
}

/** With special tokens, but for a text that begins with the first of them. */
async function encodeAll(texts: readonly string[], tokenizer: Tokenizer): Promise<number[][]> {
  const { bosToken } = tokenizer;
  const has = (text: string) => bosToken !== undefined && bosToken !== '' && text.startsWith(bosToken);
  const plain = await tokenizer.encodeBatch([...texts], { addSpecialTokens: true });
  return Promise.all(texts.map((text, i) => (has(text) ? tokenizer.encode(text) : plain[i]!)));
}

/** Sequences that are computed together behind what all of them begin with. */
interface Group {
  members: Sequence[];
  /** So many ids. */
  shared: number;
}

/** How many ids both begin with. */
function common(a: Int32Array, b: Int32Array, most: number): number {
  let count = 0;
  while (count < most && a[count] === b[count]) count++;
  return count;
}

/** The ids of a group that go through the model. */
const costOf = ({ members, shared }: Group): number =>
  members.reduce((sum, { ids }) => sum + ids.length - 1 - shared, shared);

/**
 * Groups neighbours, in order, wherever that is less work; a group holds no more than `limit` ids unless it is a single
 * sequence. The row that predicts a continuation's first id is always the sequence's own.
 */
export function groupSequences(sequences: readonly Sequence[], limit: number, longestShared: number): Group[] {
  const groups: Group[] = [];
  for (const sequence of sequences) {
    const last = groups.at(-1);
    const alone: Group = {
      members: [sequence],
      shared: sequence.ids.length > longestShared ? 0 : sequence.context - 1,
    };
    if (last && last.shared > 0 && alone.shared > 0) {
      const shared = common(last.members[0]!.ids, sequence.ids, Math.min(last.shared, alone.shared));
      const joined = { members: [...last.members, sequence], shared };
      if (shared > 0 && costOf(joined) < costOf(last) + costOf(alone) && costOf(joined) <= limit) {
        groups[groups.length - 1] = joined;
        continue;
      }
    }
    groups.push(alone);
  }
  return groups;
}

/** Groups as a batch of native/model/batch.h: only continuations have targets. */
function pack(groups: readonly Group[]): Batch {
  const promptTokens = groups.reduce((sum, { shared }) => sum + shared, 0);
  const total = groups.reduce((sum, group) => sum + costOf(group), 0);
  const tokens = new Int32Array(total);
  const positions = new Int32Array(total);
  const targets = new Int32Array(total - promptTokens).fill(-1);
  const promptOffsets = [0];
  const responseOffsets = [0];
  const groupOffsets = [0];
  let at = 0;
  const put = (ids: Int32Array, first: number, end: number) => {
    tokens.set(ids.subarray(first, end), at);
    for (let t = first; t < end; t++) positions[at++] = t;
  };
  for (const { members, shared } of groups) {
    put(members[0]!.ids, 0, shared);
    promptOffsets.push(at);
  }
  for (const { members, shared } of groups) {
    for (const { ids, context } of members) {
      targets.set(ids.subarray(context), at - promptTokens + context - 1 - shared);
      put(ids, shared, ids.length - 1);
      responseOffsets.push(at - promptTokens);
    }
    groupOffsets.push(responseOffsets.length - 1);
  }
  return {
    ...{ tokens, positions, targets, promptOffsets: Int32Array.from(promptOffsets) },
    ...{ responseOffsets: Int32Array.from(responseOffsets), groupOffsets: Int32Array.from(groupOffsets) },
  };
}

export interface LogLikelihoodOptions {
  /** Ids that go through the model at a time. */
  microbatchTokens: number;
  signal?: AbortSignal;
  /** Told of every batch: so many sequences are done. */
  onDone?: (sequences: number) => void;
}

/** The summed log-prob of every sequence's continuation, in order; the same whatever stands beside it, to rounding. */
export async function logLikelihoods(
  model: Model,
  sequences: readonly Sequence[],
  options: LogLikelihoodOptions,
): Promise<number[]> {
  const { microbatchTokens, signal, onDone } = options;
  const sums: number[] = [];
  let batch: Group[] = [];
  let filled = 0;
  const run = async () => {
    if (batch.length === 0) return;
    signal?.throwIfAborted();
    const found = await model.logProbs(pack(batch));
    sums.push(...found.sums);
    onDone?.(found.sums.length);
    batch = [];
    filled = 0;
  };
  for (const group of groupSequences(sequences, microbatchTokens, model.longestShared)) {
    const cost = costOf(group);
    if (filled + cost > microbatchTokens) await run();
    batch.push(group);
    filled += cost;
  }
  await run();
  return sums;
}
