/** Arena-Hard from its run file to a file of judgments and a win rate. */
import { join } from 'node:path';
import { fault } from '../data/rows.js';
import * as arena from './arena-hard.js';
import type { ArenaConfig } from './config.js';
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

/** Answers, two games a question, the win rate. */
export async function evaluateArena(config: ArenaConfig, options: RunOptions): Promise<Results> {
  const { outputDir, rules } = config;
  const all = await rowsOf(config.questions, arena.readQuestion);
  const questions = all.slice(0, config.limit);
  const { text, hash } = readText(config.judgeConfig);
  const prompt = arena.readPrompt(text, config.judgeConfig);
  const baseline = byId(await rowsOf(config.baselineAnswers, arena.readAnswer), all, config.baselineAnswers);
  const model = await arenaAnswers(config, all, options);
  const [{ model: name }] = model.values() as unknown as [arena.ArenaAnswer];
  const [{ model: baselineName }] = baseline.values() as unknown as [arena.ArenaAnswer];
  if (name === baselineName) throw fault(config.answers ?? 'model', `model and baseline have the same name "${name}"`);
  const ask = (question: arena.ArenaQuestion, game: 1 | 2) =>
    arena.questionOf(
      question,
      { baseline: baseline.get(question.id)!.text, model: model.get(question.id)!.text },
      game,
      prompt,
    );
  const gamesOf = (some: arena.ArenaQuestion[]) => some.flatMap((question) => [ask(question, 1), ask(question, 2)]);
  const work = {
    questions: gamesOf(all),
    asked: gamesOf(questions),
    reader: arena.arenaReader(rules),
    settings: { temperature: 0, max_tokens: 4096 },
  };
  if (options.dryRun) return planned(config, name, work);
  const judged = await judgments(config, options, { ...work, promptHash: hash });
  const rows = questions.map((question) => ([1, 2] as const).map((game) => judged.get(ask(question, game).id)!));
  const games = rows.map(([first, second]): arena.Games => [first!.verdict, second!.verdict]);
  const path = join(outputDir, 'model_judgment', config.judge!.model, `${name}.jsonl`);
  const lines = questions.map(({ id, category }, i) => {
    const played = rows[i]!.map((row, k) => ({
      ...(rules === 'v2'
        ? { judgment: { answer: arena.judgmentOf(row.completions) } }
        : { judgment: arena.judgmentOf(row.completions) }),
      ...{ score: row.verdict, ...stampsOf(row) },
      ...(rules === 'v2'
        ? { prompt: ask(questions[i]!, k === 0 ? 1 : 2).messages }
        : { user_prompt: ask(questions[i]!, k === 0 ? 1 : 2).messages[1]!.content }),
    }));
    const key = rules === 'v2' ? { uid: id, category, baseline: baselineName } : { question_id: id };
    return { ...key, model: name, judge: config.judge!.model, games: played };
  });
  writeJsonLines(path, lines);
  const styles = questions.flatMap(({ id }, i) => {
    const [own, other] = [model.get(id)!.style, baseline.get(id)!.style];
    return own && other ? [{ games: games[i]!, model: own, baseline: other }] : [];
  });
  const styled = styles.length === questions.length ? { style_controlled: arena.styleControlled(styles, rules) } : {};
  return {
    benchmark: 'arena_hard',
    model: name,
    baseline: baselineName,
    rules,
    ...arena.rate(games, rules),
    ...styled,
  };
}

async function arenaAnswers(config: ArenaConfig, questions: arena.ArenaQuestion[], options: RunOptions) {
  const { model, outputDir } = config;
  if (config.answers !== undefined)
    return byId(await rowsOf(config.answers, arena.readAnswer), questions, config.answers);
  if (!model) throw lacking(config, 'answers, or model');
  const prompts = questions.map(({ id, prompt }) => ({ promptId: id, messages: [{ role: 'user', content: prompt }] }));
  const texts = await answers(config, options, prompts, 'answers', { temperature: 0, topP: 1, maxTokens: 4096 });
  const rows = questions.map(({ id }, i) => ({
    ...{ question_id: id, answer_id: sha256(`${id} ${texts[i]}`).slice(0, 22), model_id: model.name },
    choices: [{ index: 0, turns: [{ content: texts[i]! }] }],
    tstamp: Date.now() / 1000,
  }));
  writeJsonLines(join(outputDir, 'model_answer', `${model.name}.jsonl`), rows);
  return new Map(questions.map(({ id }, i) => [id, { id, model: model.name, text: texts[i]! } as arena.ArenaAnswer]));
}
