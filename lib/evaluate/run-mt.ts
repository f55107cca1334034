/** MT-Bench from its run file to a file of judgments and mean ratings. */
import { join } from 'node:path';
import { fault } from '../data/rows.js';
import type { MtConfig } from './config.js';
import { type JudgedRow, type Reader, textOf } from './judge.js';
import * as mt from './mt-bench.js';
import {
  answers,
  byId,
  judgments,
  lacking,
  planned,
  type Results,
  type RunOptions,
  readText,
  rowsOf,
  sha256,
  stampsOf,
  writeJsonLines,
} from './work.js';

/** Answers of two turns, a judgment of each, the mean ratings; or a comparison of two models. */
export async function evaluateMt(config: MtConfig, options: RunOptions): Promise<Results> {
  const all = await rowsOf(config.questions, mt.readQuestion);
  const questions = all.slice(0, config.limit);
  const { text, hash } = readText(config.judgePrompts);
  const prompts: mt.JudgePrompts = new Map(
    text
      .split('\n')
      .flatMap((line) => (line.trim() === '' ? [] : [JSON.parse(line) as mt.JudgePrompt]))
      .map((one) => [one.name, one]),
  );
  const answered = await mtAnswers(config, all, options);
  const other = config.against ? byId(await rowsOf(config.against, mt.readAnswer), all, config.against) : undefined;
  const references = new Map(
    (config.references ? await rowsOf(config.references, mt.readAnswer) : []).map((row) => [row.id, row]),
  );
  const [{ model: name }] = answered.values() as unknown as [mt.MtAnswer];
  const otherName = other && ([...other.values()][0] as mt.MtAnswer).model;
  if (name === otherName) throw fault(config.against!, `both models have the name "${name}"`);
  const task = (question: mt.MtQuestion, turn: 1 | 2, swapped = false) => {
    const [answer, second] = [answered.get(question.id)!, other?.get(question.id)];
    const sides = swapped ? { answer: second!, other: answer } : { answer, other: second };
    return mt.taskOf(question, turn, prompts, { ...sides, reference: references.get(question.id) });
  };
  const slots = questions.flatMap((question) => ([1, 2] as const).map((turn) => ({ question, turn })));
  const tasksOf = (some: readonly mt.MtQuestion[]) =>
    some.flatMap((question) =>
      ([1, 2] as const).flatMap((turn) => [task(question, turn), ...(other ? [task(question, turn, true)] : [])]),
    );
  const tasks = tasksOf(questions);
  const work = { questions: tasksOf(all), asked: tasks, settings: { temperature: 0, max_tokens: 2048 } };
  const reader = (other ? mt.readWinner : mt.readRating) as Reader<unknown>;
  if (options.dryRun) return planned(config, name, work);
  const judged = await judgments(config, options, { ...work, reader, promptHash: hash });
  const judgeName = config.judge!.model;
  const rowOf = (one: mt.MtTask) => judged.get(one.id)!;
  const saidOf = (row: JudgedRow<unknown>) => (row.completions[0] ? (textOf(row.completions[0]) ?? '') : '$ERROR$');
  if (!other) {
    const rows = tasks.map((one) => {
      const row = rowOf(one);
      const key = { question_id: one.question.id, model: name, judge: [judgeName, one.promptName] };
      const said = {
        user_prompt: one.messages[1]!.content,
        judgment: saidOf(row),
        score: (row.verdict as number) ?? -1,
      };
      return { ...key, ...said, turn: one.turn, tstamp: Date.parse(row.date) / 1000, ...stampsOf(row) };
    });
    writeJsonLines(join(config.outputDir, 'model_judgment', `${judgeName}_single.jsonl`), rows);
    const category = new Map(questions.map((question) => [question.id, question.category]));
    const scored = rows.map(({ question_id, turn, score }) => ({ turn, score, category: category.get(question_id) }));
    return { benchmark: 'mt_bench', model: name, ...mt.summarise(scored) };
  }
  const winner = (row: JudgedRow<unknown>, swapped: boolean): mt.PairWinner => {
    const said = row.verdict;
    if (said !== 'A' && said !== 'B') return said === 'tie' ? 'tie' : 'error';
    return (said === 'A') !== swapped ? 'model_1' : 'model_2';
  };
  const rows = slots.map(({ question, turn }) => {
    const one = task(question, turn);
    const [g1, g2] = [rowOf(one), rowOf(task(question, turn, true))];
    return {
      ...{
        question_id: question.id,
        model_1: name,
        model_2: otherName,
        g1_winner: winner(g1, false),
        g2_winner: winner(g2, true),
      },
      ...{ judge: [judgeName, one.promptName], g1_judgment: saidOf(g1), g2_judgment: saidOf(g2), turn },
      ...stampsOf(g1),
    };
  });
  writeJsonLines(join(config.outputDir, 'model_judgment', `${judgeName}_pair.jsonl`), rows);
  const pairs = rows.map(({ g1_winner: g1, g2_winner: g2 }) => ({ g1, g2 }));
  return { benchmark: 'mt_bench', model: name, against: otherName, ...mt.comparePairs(pairs) };
}

async function mtAnswers(config: MtConfig, questions: mt.MtQuestion[], options: RunOptions) {
  const { model } = config;
  if (config.answers !== undefined) return byId(await rowsOf(config.answers, mt.readAnswer), questions, config.answers);
  if (!model) throw lacking(config, 'answers, or model');
  const turns = new Map<number, [string, string]>();
  const temperatureOf = ({ category }: mt.MtQuestion) => mt.TEMPERATURES[category] ?? mt.DEFAULT_TEMPERATURE;
  for (const temperature of new Set(questions.map(temperatureOf))) {
    const group = questions.filter((question) => temperatureOf(question) === temperature);
    const settings = { temperature, topP: 1, maxTokens: 1024 };
    const ask = (turn: 1 | 2, first: string[] = []) => {
      const prompts = group.map(({ id, turns: [one, two] }, i) => {
        const opening = [{ role: 'user', content: one }];
        const rest = [
          { role: 'assistant', content: first[i]! },
          { role: 'user', content: two },
        ];
        return { promptId: String(id), messages: turn === 1 ? opening : [...opening, ...rest] };
      });
      return answers(config, options, prompts, join('answers', `turn-${turn}-temperature-${temperature}`), settings);
    };
    const first = await ask(1);
    const second = await ask(2, first);
    for (const [i, { id }] of group.entries()) turns.set(id, [first[i]!, second[i]!]);
  }
  const rows = questions.map(({ id }) => ({
    ...{ question_id: id, answer_id: sha256(`${id} ${turns.get(id)!.join(' ')}`).slice(0, 22), model_id: model.name },
    choices: [{ index: 0, turns: turns.get(id)! }],
    tstamp: Date.now() / 1000,
  }));
  writeJsonLines(join(config.outputDir, 'model_answer', `${model.name}.jsonl`), rows);
  return new Map(questions.map(({ id }) => [id, { id, model: model.name, turns: turns.get(id)! } as mt.MtAnswer]));
}
