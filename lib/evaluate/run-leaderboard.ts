/** The Open LLM Leaderboard's tasks by a model of this process; results as lm-evaluation-harness writes them. */
import { mkdirSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { fault } from '../data/rows.js';
import { readSource } from '../data/source.js';
import { WrpoError } from '../errors.js';
import { Model } from '../model/model.js';
import type { Tokenizer } from '../text/tokenizer.js';
import { locate, requireTokenizer, sourceOf } from '../train/prepare.js';
import type { LeaderboardConfig } from './config.js';
import { harnessResults, reportedMetric, type ScoredTask, type Scores } from './harness-results.js';
import { encodeRequests, logLikelihoods, type Request } from './loglikelihood.js';
import { mean } from './statistics.js';
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
import { readExamples } from './truthfulqa.js';
import { type Results, type RunOptions, writeJson } from './work.js';

/** A row with everything that stands before its context. */
interface Asked {
  doc: Doc;
  preamble: string;
  where: string;
}

interface AskedTask {
  rows: Asked[];
  /** Rows that there are of each group, asked or not. */
  sizes: ReadonlyMap<string | undefined, number>;
}

/** Evaluates and writes `results.json`. Throws ERR_CONFIG for a task that is none, ERR_DATA for rows that are none. */
export async function evaluateLeaderboard(config: LeaderboardConfig, options: RunOptions): Promise<Results> {
  const { say, signal } = options;
  const tasks = namedTasks(config);
  const texts = textsOf(config, tasks, say);
  const asked = new Map<string, AskedTask>();
  for (const [name, task] of tasks) asked.set(name, await readTask(name, task, config, texts, say));
  const directory = await locate(config.model, { say });
  const source = await sourceOf(directory, { say });
  const tokenizer = await requireTokenizer(source);
  const model = await Model.load(directory, { dtype: config.dtype, baseModel: source.baseDirectory, frozen: true });
  const maxLength = config.maxLength ?? source.config.maxPositions;
  const scored = new Map<string, ScoredTask>();
  const seconds: Record<string, number> = {};
  try {
    for (const [name, task] of tasks) {
      const began = performance.now();
      const { rows, sizes } = asked.get(name)!;
      const run = { model, tokenizer, maxLength, microbatchTokens: config.microbatchTokens, signal };
      options.onOpen?.(rows.length);
      const scores = task.kind === 'generation' ? await solve(rows, run) : await choose(task, rows, run);
      for (const _ of rows) options.onJudged?.();
      scored.set(name, { task, docs: rows.map(({ doc }) => doc), scores, sizes });
      seconds[name] = (performance.now() - began) / 1000;
    }
  } finally {
    await model.close();
  }
  const names = [...tasks.keys()];
  const layout = harnessResults(scored);
  const reported = names.map((name) => layout.results[name]![reportedMetric(TASKS[name]!)] as number);
  const all: Results = {
    ...{ benchmark: 'open_llm_leaderboard', model: basename(resolve(directory)), ...layout },
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

function textsOf(
  { truthfulqaPrompt: path }: LeaderboardConfig,
  tasks: ReadonlyMap<string, Task>,
  say: RunOptions['say'],
): TaskTexts {
  if (!tasks.has('truthfulqa_mc2')) return {};
  if (path === undefined) {
    const what = "truthfulqa_mc1.yaml of lm-evaluation-harness, or a text file with the prompt's questions and answers";
    throw new WrpoError('ERR_CONFIG', `truthfulqa_mc2 needs truthfulqa_prompt: ${what}`);
  }
  const { text, isOfficial } = readExamples(path);
  if (!isOfficial)
    say(`${path} has not the questions and answers of lm-evaluation-harness: truthfulqa_mc2 is another task`);
  return { truthfulqaPrompt: text };
}

async function readTask(
  name: string,
  task: Task,
  { data, limit }: LeaderboardConfig,
  texts: TaskTexts,
  say: RunOptions['say'],
): Promise<AskedTask> {
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
  const sizes = new Map<string | undefined, number>();
  const taken = all.filter(({ doc: { group } }) => {
    sizes.set(group, (sizes.get(group) ?? 0) + 1);
    return limit === undefined || sizes.get(group)! <= limit;
  });
  // Neighbours that begin alike are computed together.
  if (task.drawn === 'first')
    taken.sort((a, b) => (a.doc.group! < b.doc.group! ? -1 : Number(a.doc.group! > b.doc.group!)));
  const before = preambles(
    task,
    taken.map(({ doc }) => doc),
    shots,
  );
  const rows = taken.map(({ doc, where }, i) => ({ doc, preamble: before[i]!, where: `${name}: ${where}` }));
  return { rows, sizes };
}

interface Run {
  model: Model;
  tokenizer: Tokenizer;
  maxLength: number;
  microbatchTokens: number;
  signal?: AbortSignal;
}

async function choose(
  task: Task,
  rows: readonly Asked[],
  { model, tokenizer, maxLength, microbatchTokens, signal }: Run,
): Promise<Scores[]> {
  const requests = rows.flatMap(({ doc, preamble, where }) =>
    doc.continuations.map(
      (continuation, i): Request => ({ context: preamble + doc.contexts[i]!, continuation: ` ${continuation}`, where }),
    ),
  );
  const sequences = await encodeRequests(requests, tokenizer, maxLength);
  const sums = await logLikelihoods(model, sequences, { microbatchTokens, signal });
  return rows.map(({ doc }) => scoreChoices(task, doc, sums.splice(0, doc.continuations.length)));
}

async function solve(rows: readonly Asked[], { model, tokenizer, maxLength, signal }: Run): Promise<Scores[]> {
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
  const scores: Scores[] = [];
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
