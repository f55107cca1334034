/**
 * What a run reports, under TRL's and the authors' names. Every value is the exact mean over the examples of its interval;
 * sums are kept in plain numbers so that a checkpoint can hold them.
 */
import type { Role } from '../data/preferences.js';
import type { EncodedRow } from '../text/encode.js';
import type { PromptLogProbs, Terms } from './objective.js';

export type Metrics = Record<string, number>;

/** One prompt's log-probs under policy and reference, with what the loss made of them. */
export interface Example extends PromptLogProbs {
  loss: number;
}

/** A row's log-probs, once they are known, with the tokens they are sums over. */
export function logProbsOfRow(
  { responses }: EncodedRow,
  roles: readonly Role[],
  policy: Partial<Record<Role, number>>,
  reference: Partial<Record<Role, number>>,
): PromptLogProbs {
  const lengths = Object.fromEntries(roles.map((role) => [role, responses[role]!.length]));
  return { policy, reference, lengths } as PromptLogProbs;
}

/**
 * rewards/*, logps/* and loss of one example. A reward is beta · log(π/π_ref), without a reference beta · log π, and where
 * the loss is length-normalised divided by the response's length. `chosen` and `rejected` are the two sides of the margin.
 */
export function exampleMetrics({ loss, policy, reference, lengths }: Example, terms: Terms): Metrics {
  const { roles, contests, form } = terms;
  const metrics: Metrics = { loss };
  for (const role of roles) metrics[`logps/${role}`] = policy[role];
  if (terms.perToken) return metrics;
  // The authors average over the chosen responses, unweighted.
  const chosen = roles.filter((role) => role.endsWith('_chosen')).map((role) => policy[role]);
  if (chosen.length > 0) metrics['logps/chosen'] = chosen.reduce((sum, logp) => sum + logp) / chosen.length;
  if (terms.loss && !terms.reference) return metrics;

  const rewardOf = (role: Role) =>
    (form.beta * (policy[role] - (terms.reference ? reference[role] : 0))) /
    (form.lengthNormalized ? lengths[role] : 1);
  const rewards = Object.fromEntries(roles.map((role) => [role, rewardOf(role)])) as Partial<Record<Role, number>>;
  for (const role of roles) metrics[`rewards/${role}`] = rewards[role]!;
  if (rewards.rejected !== undefined) {
    const beats = (role: Role) => Number(rewards[role]! > rewards.rejected!);
    if (rewards.source_chosen !== undefined) metrics['rewards/source_accuracies'] = beats('source_chosen'); // the paper's hybrid-policy accuracy
    if (rewards.target_chosen !== undefined) {
      metrics['rewards/target_accuracies'] = beats('target_chosen');
      metrics['rewards/pivot_accuracies'] = beats('target_chosen'); // the same, under the authors' name
    }
  }
  if (contests.length === 0) return metrics;
  // Of the two rejected responses of Eq. 9, the target's own makes way for the name of both together.
  if (rewards.source_rejected !== undefined && rewards.rejected !== undefined)
    metrics['rewards/target_rejected'] = rewards.rejected;
  const side = (sign: number, of: Partial<Record<Role, number>>) =>
    contests.reduce((sum, { weight, coefficients }) => {
      const taking = (Object.entries(coefficients) as [Role, number][]).filter(([, c]) => sign * c > 0);
      return sum + weight * taking.reduce((part, [role, c]) => part + sign * c * of[role]!, 0);
    }, 0);
  metrics['rewards/chosen'] = side(1, rewards);
  metrics['rewards/rejected'] = side(-1, rewards);
  metrics['rewards/margins'] = metrics['rewards/chosen'] - metrics['rewards/rejected'];
  metrics['rewards/accuracies'] = Number(metrics['rewards/margins'] > 0);
  if (form.sftWeight)
    metrics.nll_loss = side(1, Object.fromEntries(roles.map((role) => [role, -policy[role] / lengths[role]])));
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
  add(example: Example, terms: Terms): void {
    for (const [name, value] of Object.entries(exampleMetrics(example, terms))) {
      this.#sums[name] = (this.#sums[name] ?? 0) + value;
    }
    this.#examples += 1;
    this.#weight += terms.perToken ? Object.values(example.lengths).reduce((sum, length) => sum + length) : 1;
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
