/**
 * MT-Bench (Zheng et al., 2023): eighty questions of two turns, each answer rated from 1 to 10, or two models compared.
 * Files are those of FastChat's llm_judge.
 */
import { createHash } from 'node:crypto';
import type { Message } from '../data/preferences.js';
import { fault } from '../data/rows.js';
import { type Question, readOnce, textOf } from './judge.js';
import { mean } from './statistics.js';

/** Of the answers, by category. */
export const TEMPERATURES: Readonly<Record<string, number>> = {
  ...{ writing: 0.7, roleplay: 0.7, extraction: 0, math: 0, coding: 0, reasoning: 0, stem: 0.1, humanities: 0.1 },
};
/** Where a category has none. */
export const DEFAULT_TEMPERATURE = 0.7;
const WITH_REFERENCE = new Set(['math', 'reasoning', 'coding']);

export interface MtQuestion {
  id: number;
  category: string;
  turns: readonly [string, string];
}

export interface MtAnswer {
  id: number;
  model: string;
  turns: readonly [string, string];
}

type Row = Record<string, unknown>;

const twoTexts = (value: unknown): readonly [string, string] | undefined =>
  Array.isArray(value) && value.length === 2 && value.every((turn) => typeof turn === 'string')
    ? (value as [string, string])
    : undefined;

/** A line of `question.jsonl`. Throws ERR_DATA naming the line. */
export function readQuestion(value: unknown, where: string): MtQuestion {
  const { question_id: id, category, turns: given } = value as Row;
  const turns = twoTexts(given);
  if (typeof id === 'number' && typeof category === 'string' && turns) return { id, category, turns };
  throw fault(where, 'expected question_id, category and turns: [text, text]');
}

/** A line of an answers file, or of one with references. Throws ERR_DATA naming the line. */
export function readAnswer(value: unknown, where: string): MtAnswer {
  const { question_id: id, model_id: model, choices } = value as Row;
  const turns = twoTexts((choices as { turns?: unknown }[] | undefined)?.[0]?.turns);
  if (typeof id === 'number' && turns) return { id, model: String(model), turns };
  throw fault(where, 'expected question_id, model_id and choices: [{turns: [text, text]}]');
}

/** A line of `judge_prompts.jsonl`. */
export interface JudgePrompt {
  name: string;
  system_prompt: string;
  prompt_template: string;
}

/** By name. */
export type JudgePrompts = ReadonlyMap<string, JudgePrompt>;

export type Mode = 'single' | 'pair';

/** The name of the prompt for a question's turn. */
export function promptNameOf(mode: Mode, category: string, turn: 1 | 2): string {
  const base = WITH_REFERENCE.has(category) ? `${mode}-math-v1` : mode === 'single' ? 'single-v1' : 'pair-v2';
  return turn === 1 ? base : `${base}-multi-turn`;
}

/** A judgment to be made, with the prompt that it is made by. */
export interface MtTask extends Question {
  question: MtQuestion;
  turn: 1 | 2;
  promptName: string;
}

/**
 * The question how good a turn's answer is or, with `other`, which of two answers is better. Throws ERR_DATA when there is
 * no prompt or reference for it.
 */
export function taskOf(
  question: MtQuestion,
  turn: 1 | 2,
  prompts: JudgePrompts,
  answers: { answer: MtAnswer; other?: MtAnswer; reference?: MtAnswer },
): MtTask {
  const { answer, other, reference } = answers;
  const promptName = promptNameOf(other ? 'pair' : 'single', question.category, turn);
  const prompt = prompts.get(promptName);
  if (!prompt) throw fault('the judge prompts', `no prompt "${promptName}", for category "${question.category}"`);
  if (WITH_REFERENCE.has(question.category) && !reference) {
    throw fault('the reference answers', `none for question ${question.id}; "${question.category}" is judged with one`);
  }
  const values: Record<string, string | undefined> = {
    ...{ question: question.turns[0], question_1: question.turns[0], question_2: question.turns[1] },
    ...{ answer: answer.turns[0], answer_1: answer.turns[0], answer_2: answer.turns[1] },
    ...{ answer_a: answer.turns[0], answer_a_1: answer.turns[0], answer_a_2: answer.turns[1] },
    ...{ answer_b: other?.turns[0], answer_b_1: other?.turns[0], answer_b_2: other?.turns[1] },
    ...{ ref_answer_1: reference?.turns[0], ref_answer_2: reference?.turns[1] },
  };
  const content = prompt.prompt_template.replace(/\{(\w+)\}/g, (whole, key: string) => values[key] ?? whole);
  const messages: Message[] = [
    { role: 'system', content: prompt.system_prompt },
    { role: 'user', content },
  ];
  const id = createHash('sha256')
    .update(JSON.stringify([question.id, turn, promptName, messages]))
    .digest('hex');
  return { id, messages, question, turn, promptName };
}

/** The first `[[number]]` of a text, else its first `[number]`, else -1. */
export function ratingOf(text: string): number {
  const found = /\[\[(\d+\.?\d*)\]\]/.exec(text) ?? /\[(\d+\.?\d*)\]/.exec(text);
  return found ? Number(found[1]) : -1;
}

/** For `judge`. */
export const readRating = readOnce((choice) => {
  const text = textOf(choice);
  return text === undefined ? undefined : { verdict: ratingOf(text) };
});

/** Which of two answers a text names: the first mark that it holds, in this order. */
export function winnerOf(text: string): 'A' | 'B' | 'tie' | 'error' {
  if (text.includes('[[A]]')) return 'A';
  if (text.includes('[[B]]')) return 'B';
  return text.includes('[[C]]') ? 'tie' : 'error';
}

/** For `judge`. */
export const readWinner = readOnce((choice) => {
  const text = textOf(choice);
  return text === undefined ? undefined : { verdict: winnerOf(text) };
});

export interface MtResult {
  first_turn: number;
  second_turn: number;
  /** Over all ratings, not the mean of the two. */
  average: number;
  by_category: Record<string, number>;
  /** Answers without a rating, which count nowhere. */
  dropped: number;
}

/** Means of ratings; -1 is none. */
export function summarise(rows: readonly { turn: number; score: number; category?: string }[]): MtResult {
  const rated = rows.filter(({ score }) => score !== -1);
  const of = (accept: (row: (typeof rows)[number]) => boolean) => mean(rated.filter(accept).map(({ score }) => score));
  const categories = [...new Set(rated.flatMap(({ category }) => category ?? []))];
  return {
    first_turn: of(({ turn }) => turn === 1),
    second_turn: of(({ turn }) => turn === 2),
    average: of(() => true),
    by_category: Object.fromEntries(categories.map((name) => [name, of(({ category }) => category === name)])),
    dropped: rows.length - rated.length,
  };
}

export type PairWinner = 'model_1' | 'model_2' | 'tie' | 'error';

export interface PairResult {
  win: number;
  loss: number;
  tie: number;
  win_rate_adjusted: number;
}

/** Of model_1: a win is one in both orders, anything else a tie; rows with an error count nowhere. */
export function comparePairs(rows: readonly { g1: PairWinner; g2: PairWinner }[]): PairResult {
  const known = rows.filter(({ g1, g2 }) => g1 !== 'error' && g2 !== 'error');
  const both = (winner: PairWinner) => known.filter(({ g1, g2 }) => g1 === winner && g2 === winner).length;
  const win = both('model_1');
  const loss = both('model_2');
  const tie = known.length - win - loss;
  return { win, loss, tie, win_rate_adjusted: (win + tie / 2) / known.length };
}
