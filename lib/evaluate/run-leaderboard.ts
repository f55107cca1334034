/** The Open LLM Leaderboard's tasks by a model of this process; results as lm-evaluation-harness writes them. */
import { mkdirSync, readFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { fault, readFault } from '../data/rows.js';
import { readSource } from '../data/source.js';
import { WrpoError } from '../errors.js';
import { Model } from '../model/model.js';
import type { Tokenizer } from '../text/tokenizer.js';
import { locate, requireTokenizer, sourceOf } from '../train/prepare.js';
import type { LeaderboardConfig } from './config.js';
import { encodeRequests, logLikelihoods, type Request } from './loglikelihood.js';
import { mean, pooled, standardError } from './statistics.js';
import {
  ANSWER_TOKENS,
  type Doc,
  preambles,
  type Row,
  STOPS,
  scoreChoices,
  scoreSolution,
  TASKS,
  type Task,
  type TaskTexts,
} from './tasks.js';
import { type Results, type RunOptions, writeJson } from './work.js';

/** Metrics by name with the filter that made them (`acc,none`), and their errors (`acc_stderr,none`). */
export type TaskResult = Record<string, number | string>;

/** A row with everything that stands before its context. */
interface Asked {
  doc: Doc;
  preamble: string;
  where: string;
}

/** Evaluates and writes `results.json`. Throws ERR_CONFIG for a task that is none, ERR_DATA for rows that are none. */
export async function evaluateLeaderboard(config: LeaderboardConfig, options: RunOptions): Promise<Results> {
  const { say, signal } = options;
  const tasks = namedTasks(config);
  const texts = textsOf(config, tasks);
  const asked = new Map<string, Asked[]>();
  for (const [name, task] of tasks) asked.set(name, await readTask(name, task, config, texts, say));
  const directory = await locate(config.model, { say });
  const source = await sourceOf(directory, { say });
  const tokenizer = await requireTokenizer(source);
  const model = await Model.load(directory, { dtype: config.dtype, baseModel: source.baseDirectory });
  const maxLength = config.maxLength ?? source.config.maxPositions;
  const results: Record<string, TaskResult> = {};
  const seconds: Record<string, number> = {};
  const samples: Record<string, number> = {};
  try {
    for (const [name, task] of tasks) {
      const began = performance.now();
      const rows = asked.get(name)!;
      const run = { model, tokenizer, maxLength, microbatchTokens: config.microbatchTokens, signal };
      options.onOpen?.(rows.length);
      const scores = task.kind === 'generation' ? await solve(rows, run) : await choose(task, rows, run);
      for (const _ of rows) options.onJudged?.();
      Object.assign(results, resultsOf(name, rows, scores));
      seconds[name] = (performance.now() - began) / 1000;
      samples[name] = rows.length;
    }
  } finally {
    await model.close();
  }
  const names = [...tasks.keys()];
  const reported = names.map((name) => {
    const { metric } = TASKS[name]!;
    return results[name]![metric === 'exact_match' ? 'exact_match,strict-match' : `${metric},none`] as number;
  });
  const all: Results = {
    ...{ benchmark: 'open_llm_leaderboard', model: basename(resolve(directory)), results },
    versions: Object.fromEntries(names.map((name) => [name, TASKS[name]!.version])),
    'n-shot': Object.fromEntries(names.map((name) => [name, TASKS[name]!.shots])),
    'n-samples': samples,
    config: {
      model: 'wrpo',
      model_args: { pretrained: config.model, dtype: config.dtype, max_length: maxLength },
      limit: config.limit ?? null,
    },
    // A plain mean, which says something of the leaderboard only when all six are there.
    ...(names.length === Object.keys(TASKS).length && { average: 100 * mean(reported) }),
    seconds,
  };
  mkdirSync(config.outputDir, { recursive: true });
  writeJson(join(config.outputDir, 'results.json'), all);
  return all;
}

function namedTasks({ tasks, data }: LeaderboardConfig): Map<string, Task> {
  const names = tasks ?? Object.keys(data);
  return new Map(
    names.map((name) => {
      const known = Object.keys(TASKS).join(', ');
      if (!(name in TASKS)) throw new WrpoError('ERR_CONFIG', `there is no task "${name}"; there is ${known}`);
      if (!(name in data)) throw new WrpoError('ERR_CONFIG', `data: where the rows of "${name}" are is not said`);
      return [name, TASKS[name]!];
    }),
  );
}

function textsOf({ truthfulqaPrompt: path }: LeaderboardConfig, tasks: ReadonlyMap<string, Task>): TaskTexts {
  if (!tasks.has('truthfulqa_mc2')) return {};
  if (path === undefined) {
    const what = 'a file with the six questions and answers that stand before every question';
    throw new WrpoError('ERR_CONFIG', `truthfulqa_mc2 needs truthfulqa_prompt, ${what}`);
  }
  try {
    return { truthfulqaPrompt: readFileSync(path, 'utf8').trim() };
  } catch (cause) {
    throw readFault(path, cause);
  }
}

async function readTask(
  name: string,
  task: Task,
  { data, limit }: LeaderboardConfig,
  texts: TaskTexts,
  say: RunOptions['say'],
): Promise<Asked[]> {
  const docsOf = async (split: string) => {
    const docs: { doc: Doc; where: string }[] = [];
    const onFault = (error: unknown): never => {
      throw error;
    };
    const rows = readSource(data[name]!, { split, say, onFault }, (columns) => columns);
    for await (const { value, where } of rows)
      docs.push({ doc: task.read((value ?? {}) as Row, `${name}: ${where}`, texts), where });
    return docs;
  };
  const shots = task.shotSplit === undefined ? [] : (await docsOf(task.shotSplit)).map(({ doc }) => doc);
  const all = await docsOf(task.split);
  if (all.length === 0) throw fault(data[name]!, `holds no rows of ${name}`);
  // The first of each group; few-shot examples are drawn for these alone.
  const taken = new Map<string | undefined, number>();
  const rows = all.filter(({ doc: { group } }) => {
    taken.set(group, (taken.get(group) ?? 0) + 1);
    return limit === undefined || taken.get(group)! <= limit;
  });
  // Neighbours that begin alike are computed together.
  if (task.drawn === 'first')
    rows.sort((a, b) => (a.doc.group! < b.doc.group! ? -1 : Number(a.doc.group! > b.doc.group!)));
  const before = preambles(
    task,
    rows.map(({ doc }) => doc),
    shots,
  );
  return rows.map(({ doc, where }, i) => ({ doc, preamble: before[i]!, where: `${name}: ${where}` }));
}

interface Run {
  model: Model;
  tokenizer: Tokenizer;
  maxLength: number;
  microbatchTokens: number;
  signal?: AbortSignal;
}

type Scores = Record<string, number>[];

async function choose(
  task: Task,
  rows: readonly Asked[],
  { model, tokenizer, maxLength, microbatchTokens, signal }: Run,
): Promise<Scores> {
  const requests = rows.flatMap(({ doc, preamble, where }) =>
    doc.continuations.map(
      (continuation, i): Request => ({ context: preamble + doc.contexts[i]!, continuation: ` ${continuation}`, where }),
    ),
  );
  const sequences = await encodeRequests(requests, tokenizer, maxLength);
  const sums = await logLikelihoods(model, sequences, { microbatchTokens, signal });
  return rows.map(({ doc }) => scoreChoices(task, doc, sums.splice(0, doc.continuations.length)));
}

async function solve(rows: readonly Asked[], { model, tokenizer, maxLength, signal }: Run): Promise<Scores> {
  const room = maxLength - ANSWER_TOKENS;
  if (room < 1)
    throw new WrpoError(
      'ERR_CONFIG',
      `max_length ${maxLength} leaves no room before ${ANSWER_TOKENS} tokens of an answer`,
    );
  const ids = await tokenizer.encodeBatch(
    rows.map(({ doc, preamble }) => preamble + doc.contexts[0]!),
    { addSpecialTokens: true },
  );
  const prompts = ids.map((one) => ({ ids: one.slice(-room), seeds: [0] }));
  const scores: Scores = [];
  for await (const { samples } of model.generate(prompts, {
    temperature: 0,
    maxTokens: ANSWER_TOKENS,
    stop: STOPS,
    tokenizer,
    signal,
  })) {
    scores.push(scoreSolution(rows[scores.length]!.doc, samples[0]!.text!));
  }
  return scores;
}

/** Means and errors of a task; of one with groups, also of these, whose sizes weight them. */
function resultsOf(name: string, rows: readonly Asked[], scores: Scores): Record<string, TaskResult> {
  const groups = new Map<string, number[]>();
  for (const [i, { doc }] of rows.entries()) {
    const key = doc.group === undefined ? name : `${name}_${doc.group}`;
    groups.set(key, [...(groups.get(key) ?? []), i]);
  }
  const results: Record<string, TaskResult> = {};
  const spell = (metric: string) => (metric.includes(',') ? metric : `${metric},none`);
  const errorOf = (metric: string) => spell(metric).replace(',', '_stderr,');
  const metrics = Object.keys(scores[0]!);
  for (const [key, members] of groups) {
    const entries = metrics.flatMap((metric) => {
      const values = members.map((i) => scores[i]![metric]!);
      return [
        [spell(metric), mean(values)],
        [errorOf(metric), standardError(values)],
      ];
    });
    results[key] = { alias: key, ...Object.fromEntries(entries) };
  }
  if (results[name]) return results;
  const [metric] = metrics as [string];
  const parts = [...groups].map(([key, { length: size }]) => {
    return { value: results[key]![spell(metric)] as number, stderr: results[key]![errorOf(metric)] as number, size };
  });
  const { value, stderr } = pooled(parts);
  return { [name]: { alias: name, [spell(metric)]: value, [errorOf(metric)]: stderr }, ...results };
}
