/**
 * Arena-Hard v0.1 and the layout of v2: two games a question against one baseline, the second with the answers exchanged;
 * five verdicts, of which a clear one (`>>`) counts three times (Li et al., 2024).
 */
import { createHash } from 'node:crypto';
import type { Message } from '../data/preferences.js';
import { fault, readFault } from '../data/rows.js';
import { yaml } from '../packages.js';
import { type Choice, type Question, type Reader, textOf } from './judge.js';
import { PythonRandom } from './python-random.js';
import {
  bootstrap,
  bradleyTerry,
  eloOf,
  fitRidge,
  mean,
  populationDeviation,
  quantile,
  sigmoid,
} from './statistics.js';

/** Which rules count: those of v0.1, or those of the repository since v2. */
export type Rules = 'v0.1' | 'v2';

export interface ArenaQuestion {
  id: string;
  category: string;
  prompt: string;
}

/** An answer with what style control needs of it, where the file has that. */
export interface ArenaAnswer {
  id: string;
  model: string;
  text: string;
  style?: Style;
}

/** Counts: tokens, headers, list items, bold passages. */
export type Style = readonly [number, number, number, number];

type Row = Record<string, unknown>;

/** A line of `question.jsonl` of either layout. Throws ERR_DATA naming the line. */
export function readQuestion(value: unknown, where: string): ArenaQuestion {
  const row = value as Row;
  const id = row.question_id ?? row.uid;
  const prompt = row.prompt ?? (row.turns as { content?: unknown }[] | undefined)?.[0]?.content;
  if (typeof id !== 'string' || typeof prompt !== 'string') {
    throw fault(where, 'expected question_id and turns: [{content}], or uid and prompt');
  }
  return { id, category: String(row.category ?? 'arena-hard-v0.1'), prompt };
}

/** A line of an answers file of either layout. Throws ERR_DATA naming the line. */
export function readAnswer(value: unknown, where: string): ArenaAnswer {
  const row = value as Row;
  const id = row.question_id ?? row.uid;
  const model = row.model_id ?? row.model;
  const choices = row.choices as { turns: { content: unknown }[] }[] | undefined;
  const last = (row.messages as { content: unknown }[] | undefined)?.at(-1)?.content;
  const text = choices?.[0]?.turns?.[0]?.content ?? (last as { answer?: unknown } | undefined)?.answer ?? last;
  if (typeof id !== 'string' || typeof model !== 'string' || typeof text !== 'string') {
    throw fault(where, 'expected an answer: question_id, model_id and choices, or uid, model and messages');
  }
  return { id, model, text, style: styleOf((row.conv_metadata ?? row.metadata) as Row | undefined) };
}

function styleOf(metadata: Row | undefined): Style | undefined {
  if (typeof metadata?.token_len !== 'number') return undefined;
  const sum = (counts: unknown) => Object.values((counts ?? {}) as Record<string, number>).reduce((a, b) => a + b, 0);
  return [metadata.token_len, sum(metadata.header_count), sum(metadata.list_count), sum(metadata.bold_count)];
}

/** `system_prompt` and `prompt_template` of the judge's configuration. */
export interface ArenaPrompt {
  system: string;
  template: string;
}

/** Reads the judge's configuration, which is YAML. Throws ERR_DATA naming what it lacks. */
export function readPrompt(text: string, file: string): ArenaPrompt {
  let config: Row;
  try {
    config = yaml().parse(text, { logLevel: 'error' }) ?? {};
  } catch (cause) {
    throw readFault(file, cause);
  }
  const { system_prompt: system, prompt_template: given } = config;
  const template = Array.isArray(given) ? given[0] : given;
  if (typeof system !== 'string' || typeof template !== 'string') {
    throw fault(file, 'expected the texts system_prompt and prompt_template');
  }
  return { system, template };
}

/** The question which of a game's answers is better; game 1 shows the baseline's first, game 2 the model's. */
export function questionOf(
  question: ArenaQuestion,
  answers: { baseline: string; model: string },
  game: 1 | 2,
  { system, template }: ArenaPrompt,
): Question {
  const [a, b] = game === 1 ? [answers.baseline, answers.model] : [answers.model, answers.baseline];
  const values: Record<string, string> = {
    ...{ question_1: question.prompt, answer_1: a, answer_2: b },
    ...{ QUESTION: question.prompt, ANSWER_A: a, ANSWER_B: b },
  };
  const content = template.replace(/\{(\w+)\}/g, (whole, key: string) => values[key] ?? whole);
  const about = [question.id, question.prompt, answers.baseline, answers.model, game];
  return {
    id: createHash('sha256').update(JSON.stringify(about)).digest('hex'),
    messages: [
      { role: 'system', content: system },
      { role: 'user', content },
    ],
  };
}

/** The labels that a text holds, by the rules; `again`: there are none, and the judge may be asked to finish. */
export function verdictOf(text: string, rules: Rules = 'v0.1'): { label: string | null; again: boolean } {
  if (rules === 'v2') {
    const find = (pattern: RegExp) => [...text.toUpperCase().matchAll(pattern)].map(([, label]) => label!);
    const label = find(/\[\[([AB<>=]+)\]\]/g).at(-1) ?? find(/\[([AB<>=]+)\]/g).at(-1) ?? null;
    return { label, again: false };
  }
  const labels = new Set([...text.matchAll(/\[\[([AB<>=]+)\]\]/g)].map(([, label]) => label!));
  return { label: labels.size === 1 ? [...labels][0]! : null, again: labels.size === 0 };
}

const FINISH = 'Go on with your assessment, and end it with the label of your final verdict.';

/** For `judge`: a text without any label is continued once. */
export function arenaReader(rules: Rules): Reader<string> {
  return {
    needs: 'text',
    read(completions, { messages }) {
      if (textOf(completions.at(-1)!) === undefined) return undefined;
      const text = judgmentOf(completions);
      const { label, again } = verdictOf(text, rules);
      if (!again || completions.length > 1) return { verdict: label };
      const turns: Message[] = [
        { role: 'assistant', content: text },
        { role: 'user', content: FINISH },
      ];
      return { again: [...messages, ...turns] };
    },
  };
}

/** The whole of what a judge wrote. */
export const judgmentOf = (completions: readonly Choice[]): string => completions.map(textOf).join('\n');

/** The labels of a question's games, null where there is none. */
export type Games = readonly [game1: string | null, game2: string | null];

/** What a game counts for the model: its share of a win, and a weight; undefined for a game without a known verdict. */
function outcomeOf(label: string | null, modelIsA: boolean): { won: number; weight: number } | undefined {
  if (label === 'A=B') return { won: 0.5, weight: 1 };
  if (label === null || !/^(A>{1,2}B|B>{1,2}A)$/.test(label)) return undefined;
  return { won: Number(label.startsWith('A') === modelIsA), weight: label.includes('>>') ? 3 : 1 };
}

/** Every battle's share of a win, a weighted one as often as its weight; a null game takes its question along in v2 alone. */
export function battlesOf(all: readonly Games[], rules: Rules = 'v0.1'): number[] {
  return all.flatMap(([first, second]) => {
    const games = [outcomeOf(first, false), outcomeOf(second, true)];
    if (rules === 'v2' && games.includes(undefined)) return [];
    return games.flatMap((game) => (game ? Array.from({ length: game.weight }, () => game.won) : []));
  });
}

export interface ArenaResult {
  /** In percent, rounded to two decimals as the public tool does. */
  score: number;
  lower: number;
  upper: number;
  elo: number;
  wins: number;
  ties: number;
  /** Battles, a clear one three times. */
  total: number;
  /** Games without a verdict. */
  nulls: number;
}

const ROUNDS = 100;

/**
 * The win rate against the baseline with a bootstrap interval over the model's own battles: of 95 % in v0.1; in v2 of 90 %,
 * and the score is the mean of the resamples. The resamples are our own draws: the public tool's depend on the other
 * models of its directory.
 */
export function rate(all: readonly Games[], rules: Rules = 'v0.1'): ArenaResult {
  const battles = battlesOf(all, rules);
  const wins = battles.filter((won) => won === 1).length;
  const ties = battles.filter((won) => won === 0.5).length;
  const exact = bradleyTerry({ wins, ties, total: battles.length });
  const random = new PythonRandom(42);
  const rounds = battles.length === 0 ? [] : bootstrap(battles, ROUNDS, (bound) => random.below(bound), mean);
  const tail = rules === 'v2' ? 0.05 : 0.025;
  const percent = (value: number) => Math.round(1e4 * value) / 100;
  return {
    score: percent(rules === 'v2' ? mean(rounds) : exact),
    lower: percent(quantile(rounds, tail)),
    upper: percent(quantile(rounds, 1 - tail)),
    elo: eloOf(exact),
    ...{ wins, ties, total: battles.length },
    nulls: all.flat().filter((label) => outcomeOf(label ?? null, false) === undefined).length,
  };
}

/** A question's games with the styles of both answers. */
export interface StyledGames {
  games: Games;
  baseline: Style;
  model: Style;
}

/**
 * The win rate, in percent, at equal style: a logistic regression of the battles, each counted twice, on a rating of the
 * model and one of the baseline (ln 10, with either sign) and on four style features, (a - b)/(a + b + 1) standardised over
 * the battles, with a ridge of strength 1 on all weights; predicted with the style features at zero. The public tool fits
 * all models of its directory together, which share the weights of style. Source: arena-hard-auto,
 * `construct_style_matrices`.
 */
export function styleControlled(all: readonly StyledGames[], rules: Rules = 'v0.1'): number {
  const battles = all.flatMap(({ games, baseline, model }) =>
    battlesOf([games], rules).map((won) => ({
      won,
      style: model.map((value, k) => (value - baseline[k]!) / (value + baseline[k]! + 1)),
    })),
  );
  const columns = [0, 1, 2, 3].map((k) => battles.map(({ style }) => style[k]!));
  const scales = columns.map((values) => ({ centre: mean(values), sd: populationDeviation(values) }));
  const rows = battles.map(({ won, style }) => ({
    weight: 2,
    features: [
      ...[Math.LN10, -Math.LN10],
      ...style.map((value, k) => (scales[k]!.sd > 0 ? (value - scales[k]!.centre) / scales[k]!.sd : 0)),
    ],
    target: won,
  }));
  const [model, baseline] = fitRidge(rows) as [number, number];
  return 100 * sigmoid((model - baseline) * Math.LN10);
}
