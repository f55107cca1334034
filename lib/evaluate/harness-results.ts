/** Scores of rows as lm-evaluation-harness lays out its results. */
import { type Field, fieldOf } from './mmlu.js';
import { mean, pooled, standardError } from './statistics.js';
import type { Doc, Task } from './tasks.js';

/** A row's metrics by name, some with the filter that made them (`exact_match,strict-match`). */
export type Scores = Record<string, number>;

/** A task's rows as they were asked, with their scores. */
export interface ScoredTask {
  task: Task;
  docs: readonly Doc[];
  scores: readonly Scores[];
  /** Rows that there are of each group, asked or not. */
  sizes: ReadonlyMap<string | undefined, number>;
}

/** Metrics with their filters (`acc,none`), errors (`acc_stderr,none`), and what they are of. */
export interface TaskResult {
  name: string;
  alias: string;
  sample_len: number;
  [metric: string]: number | string;
}

export interface HarnessResults {
  /** Of tasks, and of groups of tasks. */
  results: Record<string, TaskResult>;
  groups: Record<string, TaskResult>;
  group_subtasks: Record<string, string[]>;
  versions: Record<string, number | string>;
  'n-shot': Record<string, number>;
  higher_is_better: Record<string, Record<string, boolean>>;
  'n-samples': Record<string, { original: number; effective: number }>;
}

const GROUP_VERSION = '2';

/** What the leaderboard counts of a task, as results have it. */
export const reportedMetric = ({ metric }: Task): string =>
  metric === 'exact_match' ? 'exact_match,strict-match' : `${metric},none`;

const spell = (metric: string) => (metric.includes(',') ? metric : `${metric},none`);
const errorOf = (metric: string) => spell(metric).replace(',', '_stderr,');

/**
 * Means and standard errors of tasks; of one that is asked by group (MMLU's subjects) those of each, and of its fields and
 * the whole, whose sizes weight them.
 */
export function harnessResults(tasks: ReadonlyMap<string, ScoredTask>): HarnessResults {
  const all: HarnessResults = {
    ...{ results: {}, groups: {}, group_subtasks: {}, versions: {} },
    ...{ 'n-shot': {}, higher_is_better: {}, 'n-samples': {} },
  };
  for (const [name, scored] of tasks) {
    const parts = partsOf(scored);
    const isGrouped = !parts.has(undefined);
    if (isGrouped) addGroups(all, name, scored, parts);
    for (const [group, members] of parts) {
      const key = group === undefined ? name : `${name}_${group}`;
      all.results[key] = resultOf(key, group ?? name, members);
      all.versions[key] = scored.task.version;
      all['n-samples'][key] = { original: scored.sizes.get(group)!, effective: members.length };
      describe(all, key, scored);
    }
  }
  return all;
}

/** Scores by group. */
function partsOf({ docs, scores }: ScoredTask): Map<string | undefined, Scores[]> {
  const parts = new Map<string | undefined, Scores[]>();
  for (const [i, { group }] of docs.entries()) parts.set(group, [...(parts.get(group) ?? []), scores[i]!]);
  return parts;
}

function resultOf(name: string, alias: string, scores: readonly Scores[]): TaskResult {
  const entries = Object.keys(scores[0]!).flatMap((metric) => {
    const values = scores.map((one) => one[metric]!);
    return [
      [spell(metric), mean(values)],
      [errorOf(metric), standardError(values)],
    ];
  });
  return { name, alias, sample_len: scores.length, ...Object.fromEntries(entries) };
}

function describe(all: HarnessResults, key: string, { task, scores }: ScoredTask): void {
  all['n-shot'][key] = task.shots;
  const metrics = Object.keys(scores[0]!).map((metric) => metric.split(',')[0]!);
  all.higher_is_better[key] = Object.fromEntries(metrics.map((metric) => [metric, true]));
}

/** The whole, and the fields that there are subjects of. */
function addGroups(
  all: HarnessResults,
  name: string,
  scored: ScoredTask,
  parts: ReadonlyMap<string | undefined, Scores[]>,
): void {
  const subjects = [...parts.keys()] as string[];
  const fields = [...new Set(subjects.flatMap((subject) => fieldOf(subject) ?? []))];
  const loose = subjects.filter((subject) => fieldOf(subject) === undefined);
  const add = (key: string, alias: string, below: readonly string[], subtasks: string[]) => {
    const result = pooledResult(
      key,
      alias,
      below.map((subject) => parts.get(subject)!),
    );
    all.results[key] = result;
    all.groups[key] = result;
    all.group_subtasks[key] = subtasks;
    all.versions[key] = GROUP_VERSION;
    describe(all, key, scored);
  };
  const named = (some: readonly string[]) => some.map((one) => `${name}_${one}`);
  add(name, name, subjects, named([...fields, ...loose]));
  const isOf = (field: Field) => subjects.filter((subject) => fieldOf(subject) === field);
  for (const field of fields) add(`${name}_${field}`, field.replace('_', ' '), isOf(field), named(isOf(field)));
}

function pooledResult(name: string, alias: string, parts: readonly (readonly Scores[])[]): TaskResult {
  const entries = Object.keys(parts[0]![0]!).flatMap((metric) => {
    const groups = parts.map((scores) => {
      const values = scores.map((one) => one[metric]!);
      return { value: mean(values), stderr: standardError(values), size: values.length };
    });
    const { value, stderr } = pooled(groups);
    return [
      [spell(metric), value],
      [errorOf(metric), stderr],
    ];
  });
  const size = parts.reduce((sum, { length }) => sum + length, 0);
  return { name, alias, sample_len: size, ...Object.fromEntries(entries) };
}
