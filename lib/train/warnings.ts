/**
 * What in a run's log should make a person look, in words: pure functions of the lines of metrics.jsonl, so that the run
 * itself and a report of it say the same.
 */
import type { Metrics } from './metrics.js';

export type WarningName =
  | 'loss_spike'
  | 'gradient_norm_jump'
  | 'chosen_collapse'
  | 'margins_by_falling'
  | 'accuracy_at_chance';

export interface Warning {
  name: WarningName;
  /** Of the line with which it began. */
  step: number;
  message: string;
}

/** Lines that the latest is compared with, and how many of them there must be. */
const WINDOW = 20;
const ENOUGH = 5;
/** Lines that a beginning and an end are means of. */
const ENDS = 3;

/** The warnings that begin with the last line of a log. */
export function newWarnings(history: readonly Metrics[]): Warning[] {
  const lines = history.filter((line) => 'loss' in line);
  if (history.at(-1) !== lines.at(-1)) return [];
  return beginning(lines);
}

/** All warnings of a log, each where it begins; one that ended may begin again. */
export function allWarnings(history: readonly Metrics[]): Warning[] {
  const lines = history.filter((line) => 'loss' in line);
  return lines.flatMap((_, i) => beginning(lines.slice(0, i + 1)));
}

function beginning(lines: readonly Metrics[]): Warning[] {
  const step = lines.at(-1)?.step ?? 0;
  const before = lines.slice(0, -1);
  return (Object.entries(RULES) as [WarningName, Rule][]).flatMap(([name, rule]) => {
    const message = rule(lines);
    return message === undefined || rule(before) !== undefined ? [] : [{ name, step, message }];
  });
}

/** What is wrong with the end of a log, if it is. */
type Rule = (lines: readonly Metrics[]) => string | undefined;

const RULES: Record<WarningName, Rule> = {
  loss_spike(lines) {
    const { now, usual, spread } = against(lines, 'loss') ?? {};
    if (now === undefined || !(now > 1.5 * usual! && now > usual! + 6 * spread!)) return undefined;
    return `the loss jumped to ${show(now)} from about ${show(usual!)}: look at the rows of these steps, or lower learning_rate`;
  },
  gradient_norm_jump(lines) {
    const { now, usual } = against(lines, 'grad_norm') ?? {};
    if (now === undefined || !(now > 5 * usual!)) return undefined;
    return `the gradient norm jumped to ${show(now)} from about ${show(usual!)}: max_grad_norm bounds what it can do, a lower learning_rate avoids it`;
  },
  chosen_collapse(lines) {
    const { first, last } = ends(lines, 'logps/chosen') ?? {};
    if (first === undefined || !(last! < 1.5 * first)) return undefined;
    return `the chosen responses become improbable: their mean log-prob fell from ${show(first)} to ${show(last!)}; lower learning_rate, raise beta or add sft_weight`;
  },
  margins_by_falling(lines) {
    const [margins, chosen, rejected] = ['margins', 'chosen', 'rejected'].map((name) => ends(lines, `rewards/${name}`));
    if (!margins || !chosen || !rejected) return undefined;
    const gain = margins.last - margins.first;
    const loss = chosen.first - chosen.last;
    if (!(gain > 0 && loss > 0.1 * gain && rejected.last < rejected.first)) return undefined;
    return `the margins rise to ${show(margins.last)} only because the rejected responses fall faster than the chosen ones (rewards/chosen ${show(chosen.last)}, rewards/rejected ${show(rejected.last)}): sft_weight holds the chosen ones up`;
  },
  accuracy_at_chance(lines) {
    const values = lines.flatMap((line) => line['rewards/accuracies'] ?? []);
    if (values.length < WINDOW) return undefined;
    const recent = mean(values.slice(-WINDOW / 2));
    if (!(recent < 0.55)) return undefined;
    return `after ${values.length} log lines the chosen responses win only ${show(100 * recent)} % of the time, which is chance: are chosen and rejected the right way round, and learning_rate large enough?`;
  },
};

/** The latest value of a metric beside the median of those before it and their median distance from that. */
function against(lines: readonly Metrics[], name: string): { now: number; usual: number; spread: number } | undefined {
  const values = lines.slice(-WINDOW - 1).map((line) => line[name]);
  const now = values.pop();
  const before = values.filter((value) => value !== undefined);
  if (now === undefined || before.length < ENOUGH) return undefined;
  const usual = median(before);
  return { now, usual, spread: median(before.map((value) => Math.abs(value - usual))) };
}

/** A metric at the beginning of a log and at its end. */
function ends(lines: readonly Metrics[], name: string): { first: number; last: number } | undefined {
  const values = lines.flatMap((line) => line[name] ?? []);
  if (values.length < 2 * ENDS) return undefined;
  return { first: mean(values.slice(0, ENDS)), last: mean(values.slice(-ENDS)) };
}

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
}
const show = (value: number) => String(Number(value.toPrecision(3)));
