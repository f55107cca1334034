/**
 * The six tasks of the first Open LLM Leaderboard, as lm-evaluation-harness v0.4.3 asks them: what of a row is context,
 * what continues it, which few-shot examples stand before, and what counts as right.
 */
import { fault } from '../data/rows.js';
import { lengthOf } from './alpaca-eval.js';
import { PythonRandom } from './python-random.js';

export type Row = Record<string, unknown>;

/** A row as a question with its choices. */
export interface Doc {
  /** What stands before each choice: one text, or one for each. */
  contexts: string[];
  /** What continues each context, without the space before it. */
  continuations: string[];
  gold: number;
  /** The whole as a few-shot example. */
  example: string;
  /** Of several true answers: 1, others 0. */
  labels?: number[];
  /** Tasks are asked by group, such as MMLU's subjects; the text before the examples is the group's. */
  group?: string;
}

export interface Task {
  shots: number;
  split: string;
  shotSplit?: string;
  /**
   * `first`: the first examples of the group; else drawn by Python's Random(1234), anew for each row. Of a task without a
   * test split the harness draws one more, and leaves out the row itself should it be among them.
   */
  drawn: 'random' | 'random and one more' | 'first' | 'none';
  kind: 'choices' | 'mass' | 'generation';
  /** What the leaderboard counts. */
  metric: string;
  version: number;
  /** Throws ERR_DATA naming the row that has not what the task needs. */
  read(row: Row, where: string, texts: TaskTexts): Doc;
}

/** Texts that the user brings along. */
export interface TaskTexts {
  /** The six questions and answers that stand before every question of TruthfulQA. */
  truthfulqaPrompt?: string;
}

const text = (row: Row, key: string, where: string): string => {
  const value = row[key];
  if (typeof value === 'string') return value;
  throw fault(where, `"${key}" must be a text`);
};

const texts = (value: unknown, what: string, where: string): string[] => {
  if (Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === 'string')) return value;
  throw fault(where, `"${what}" must be a list of texts`);
};

/** The index of the right choice, which must be one. */
const goldOf = (value: unknown, choices: readonly string[], what: string, where: string): number => {
  const gold = Number(value);
  if (value !== '' && value != null && Number.isInteger(gold) && gold >= 0 && gold < choices.length) return gold;
  throw fault(where, `"${what}" must name one of ${choices.length} choices, found ${JSON.stringify(value)}`);
};

/** One context and several choices. */
const ask = (context: string, choices: string[], gold: number): Doc => ({
  contexts: choices.map(() => context),
  continuations: choices,
  gold,
  example: `${context} ${choices[gold]}`,
});

/** HellaSwag's texts without the marks of where they come from. */
export function cleanHellaSwag(given: string): string {
  return given
    .trim()
    .replaceAll(' [title]', '. ')
    .replace(/\[.*?\]/g, '')
    .replaceAll('  ', ' ');
}

const capitalize = (given: string): string => {
  const [first = ''] = given;
  return first.toUpperCase() + given.slice(first.length).toLowerCase();
};

export const TASKS: Readonly<Record<string, Task>> = {
  arc_challenge: {
    ...{
      shots: 25,
      split: 'test',
      shotSplit: 'train',
      drawn: 'random',
      kind: 'choices',
      metric: 'acc_norm',
      version: 1,
    },
    read(row, where) {
      const { text: choices, label } = (row.choices ?? {}) as { text?: unknown; label?: unknown };
      const names = texts(label, 'choices.label', where);
      const given = texts(choices, 'choices.text', where);
      const gold = goldOf(names.indexOf(text(row, 'answerKey', where)), given, 'answerKey', where);
      return ask(`Question: ${text(row, 'question', where)}\nAnswer:`, given, gold);
    },
  },
  hellaswag: {
    ...{
      shots: 10,
      split: 'validation',
      shotSplit: 'train',
      drawn: 'random and one more',
      kind: 'choices',
      metric: 'acc_norm',
      version: 1,
    },
    read(row, where) {
      const of = (key: string) => text(row, key, where);
      const context = cleanHellaSwag(`${of('activity_label')}: ${of('ctx_a')} ${capitalize(of('ctx_b'))}`);
      const endings = texts(row.endings, 'endings', where).map(cleanHellaSwag);
      return ask(context, endings, goldOf(row.label, endings, 'label', where));
    },
  },
  mmlu: {
    ...{ shots: 5, split: 'test', shotSplit: 'dev', drawn: 'first', kind: 'choices', metric: 'acc', version: 1 },
    read(row, where) {
      const given = texts(row.choices, 'choices', where);
      const letters = ['A', 'B', 'C', 'D'];
      const lines = letters.map((letter, i) => `${letter}. ${given[i]}\n`).join('');
      const context = `${text(row, 'question', where).trim()}\n${lines}Answer:`;
      return {
        ...ask(context, letters, goldOf(row.answer, letters, 'answer', where)),
        group: text(row, 'subject', where),
      };
    },
  },
  truthfulqa_mc2: {
    ...{ shots: 0, split: 'validation', drawn: 'none', kind: 'mass', metric: 'acc', version: 3 },
    read(row, where, { truthfulqaPrompt }) {
      const { choices, labels } = (row.mc2_targets ?? {}) as { choices?: unknown; labels?: unknown };
      const given = texts(choices, 'mc2_targets.choices', where);
      const context = `${truthfulqaPrompt}\n\nQ: ${text(row, 'question', where)}\nA:`;
      return { ...ask(context, given, 0), labels: (labels as unknown[]).map(Number) };
    },
  },
  winogrande: {
    ...{
      shots: 5,
      split: 'validation',
      shotSplit: 'train',
      drawn: 'random and one more',
      kind: 'choices',
      metric: 'acc',
      version: 1,
    },
    read(row, where) {
      const sentence = text(row, 'sentence', where);
      const at = sentence.indexOf('_');
      if (at === -1) throw fault(where, '"sentence" has no gap "_"');
      const contexts = [text(row, 'option1', where), text(row, 'option2', where)].map(
        (one) => sentence.slice(0, at) + one,
      );
      const rest = sentence.slice(at + 1).trim();
      const gold = goldOf(Number(row.answer) - 1, contexts, 'answer', where);
      return { contexts, continuations: [rest, rest], gold, example: `${contexts[gold]} ${rest}` };
    },
  },
  gsm8k: {
    ...{
      shots: 5,
      split: 'test',
      shotSplit: 'train',
      drawn: 'random',
      kind: 'generation',
      metric: 'exact_match',
      version: 3,
    },
    read: (row, where) => ask(`Question: ${text(row, 'question', where)}\nAnswer:`, [text(row, 'answer', where)], 0),
  },
};

/** GSM8K's answers end here too. */
export const STOPS = ['Question:', '</s>', '<|im_end|>'];
export const ANSWER_TOKENS = 256;

const SEED = 1234;

/** What stands before each row's own context: the description of its group and the few-shot examples. */
export function preambles(task: Task, docs: readonly Doc[], shots: readonly Doc[]): string[] {
  const random = new PythonRandom(SEED);
  const byGroup = new Map<string | undefined, Doc[]>();
  for (const shot of shots) byGroup.set(shot.group, [...(byGroup.get(shot.group) ?? []), shot]);
  const draw = (pool: readonly Doc[], doc: Doc): readonly Doc[] => {
    if (task.drawn === 'first') return pool.slice(0, task.shots);
    if (task.drawn === 'random') return random.sample(pool, task.shots);
    const itself = JSON.stringify(doc);
    const others = random.sample(pool, task.shots + 1).filter((shot) => JSON.stringify(shot) !== itself);
    return others.slice(0, task.shots);
  };
  return docs.map((doc) => {
    const { group } = doc;
    if (task.drawn === 'none') return '';
    const pool = task.drawn === 'first' ? (byGroup.get(group) ?? []) : shots;
    const least = task.shots + Number(task.drawn === 'random and one more');
    if (pool.length < least) {
      const where = `the split "${task.shotSplit}"${group === undefined ? '' : ` of ${group}`}`;
      throw fault(where, `expected at least ${least} examples, found ${pool.length}`);
    }
    const chosen = draw(pool, doc);
    const about = group?.replaceAll('_', ' ');
    const head =
      about === undefined ? '' : `The following are multiple choice questions (with answers) about ${about}.\n\n`;
    return head + chosen.map(({ example }) => `${example}\n\n`).join('');
  });
}

const argMax = (values: readonly number[]): number => values.indexOf(Math.max(...values));

/** A row's metrics, from the summed log-probs of its choices; `acc_norm` divides them by the choices' characters. */
export function scoreChoices(task: Task, doc: Doc, sums: readonly number[]): Record<string, number> {
  if (task.kind === 'mass') {
    const masses = sums.map(Math.exp);
    const all = masses.reduce((a, b) => a + b, 0);
    return { acc: masses.reduce((sum, mass, i) => sum + (doc.labels![i] === 1 ? mass / all : 0), 0) };
  }
  const perLetter = sums.map((sum, i) => sum / lengthOf(doc.continuations[i]!));
  const acc = Number(argMax(sums) === doc.gold);
  return { acc, ...(task.metric === 'acc_norm' && { acc_norm: Number(argMax(perLetter) === doc.gold) }) };
}

/** The number that a solution of GSM8K ends in, by the harness's two filters. */
export function extractAnswer(response: string): { strict: string; flexible: string } {
  const strict = /#### (-?[0-9.,]+)/.exec(response)?.[1]?.trim();
  const last = [...response.matchAll(/(-?[$0-9.,]{2,})|(-?[0-9]+)/g)].at(-1)?.[0]?.trim();
  return { strict: strict ?? '[invalid]', flexible: last ?? '[invalid]' };
}

/** Whether two answers agree without commas, dollars, what stands before `#### `, a final dot and case. */
export function isExactMatch(answer: string, gold: string): boolean {
  const plain = (given: string) =>
    given
      .replace(/,/g, '')
      .replace(/\$/g, '')
      .replace(/.*#### /gs, '')
      .replace(/\.$/, '')
      .toLowerCase();
  return plain(answer) === plain(gold);
}

/** Of a generated solution. */
export function scoreSolution(doc: Doc, response: string): Record<string, number> {
  const { strict, flexible } = extractAnswer(response);
  const match = (answer: string) => Number(isExactMatch(answer, doc.continuations[0]!));
  return { 'exact_match,strict-match': match(strict), 'exact_match,flexible-extract': match(flexible) };
}
