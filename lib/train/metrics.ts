/**
 * What a run reports, under TRL's and the authors' names. Every value is the exact mean over the examples of its interval;
 * sums are kept in plain numbers so that a checkpoint can hold them.
 */
import type { Role } from '../data/preferences.js';
import type { EncodedRow } from '../text/encode.js';
import type { Objective } from './objective.js';

export type Metrics = Record<string, number>;

/** One prompt's log-probs under policy and reference, with what the loss made of them. */
export interface Example {
  loss: number;
  /** Tokens the loss was taken over. */
  tokens: number;
  logps: Partial<Record<Role, number>>;
  reference: Partial<Record<Role, number>>;
}

/** rewards/*, logps/* and loss of one example; rewards are beta · log(π/π_ref). */
export function exampleMetrics(example: Example, objective: Objective): Metrics {
  const { logps, reference, loss } = example;
  if (objective.lossType === 'sft') return { loss, 'logps/completion': logps.completion! };
  const { beta } = objective;
  const reward = (role: Role) => beta * (logps[role]! - reference[role]!);
  const target = reward('target_chosen');
  const rejected = reward('rejected');
  const metrics: Metrics = { loss };
  let chosen = target;
  if (objective.lossType === 'wrpo') {
    const source = reward('source_chosen');
    chosen = objective.alpha * source + (1 - objective.alpha) * target;
    metrics['rewards/source_chosen'] = source;
    metrics['rewards/source_accuracies'] = Number(source > rejected); // the paper's hybrid-policy accuracy
    metrics['logps/source_chosen'] = logps.source_chosen!;
  }
  metrics['rewards/chosen'] = chosen;
  metrics['rewards/target_chosen'] = target;
  metrics['rewards/rejected'] = rejected;
  metrics['rewards/margins'] = chosen - rejected;
  metrics['rewards/accuracies'] = Number(chosen > rejected);
  metrics['rewards/target_accuracies'] = Number(target > rejected);
  metrics['rewards/pivot_accuracies'] = Number(target > rejected); // the same, under the authors' name
  // The authors average over the chosen responses, unweighted.
  metrics['logps/chosen'] =
    objective.lossType === 'wrpo' ? (logps.source_chosen! + logps.target_chosen!) / 2 : logps.target_chosen!;
  metrics['logps/target_chosen'] = logps.target_chosen!;
  metrics['logps/rejected'] = logps.rejected!;
  return metrics;
}

/** Tokens of a row's sequences, as if nothing were shared: one unit for every way of packing. */
export function countTokens({ prompt, responses }: EncodedRow, roles: readonly Role[]): number {
  return roles.reduce((n, role) => n + prompt.length + responses[role]!.length, 0);
}

/** Tokens that a row's loss is taken over. */
export function countResponseTokens({ responses }: EncodedRow, roles: readonly Role[]): number {
  return roles.reduce((n, role) => n + responses[role]!.length, 0);
}

/** Means over an interval. */
export class MetricMeans {
  #sums: Metrics = {};
  #weight = 0;
  #examples = 0;

  /** `loss` of fine-tuning is a mean over tokens, everything else a mean over examples. */
  add(example: Example, objective: Objective): void {
    const perToken = objective.lossType === 'sft';
    for (const [name, value] of Object.entries(exampleMetrics(example, objective))) {
      this.#sums[name] = (this.#sums[name] ?? 0) + value;
    }
    this.#examples += 1;
    this.#weight += perToken ? example.tokens : 1;
  }

  means(): Metrics {
    return Object.fromEntries(
      Object.entries(this.#sums).map(([name, sum]) => [name, sum / (name === 'loss' ? this.#weight : this.#examples)]),
    );
  }

  reset(): void {
    this.#sums = {};
    this.#weight = 0;
    this.#examples = 0;
  }

  toJSON(): { sums: Metrics; weight: number; examples: number } {
    return { sums: this.#sums, weight: this.#weight, examples: this.#examples };
  }

  restore({ sums, weight, examples }: { sums: Metrics; weight: number; examples: number }): void {
    this.#sums = { ...sums };
    this.#weight = weight;
    this.#examples = examples;
  }
}

/** Tokens per second since the last reset, without what is not training. */
export class Rate {
  #tokens = 0;
  #since = performance.now();

  add(tokens: number): void {
    this.#tokens += tokens;
  }

  perSecond(): number {
    return (1000 * this.#tokens) / (performance.now() - this.#since);
  }

  /** Runs something whose time does not count. */
  async without(body: () => Promise<void>): Promise<void> {
    const began = performance.now();
    await body();
    this.#since += performance.now() - began;
  }

  reset(): void {
    this.#tokens = 0;
    this.#since = performance.now();
  }
}
