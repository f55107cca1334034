/** The parts of a report, each absent where there is nothing to tell. */
import type { Role } from '../data/preferences.js';
import { wasserstein } from '../evaluate/statistics.js';
import type { Table } from '../evaluate/tables.js';
import type { Chart } from './curves.js';
import { bars, type Distribution, distributions, rangeOf, short } from './figures.js';
import { type Html, html } from './html.js';
import { mean, type ReportData } from './read.js';

/** What a program adds to a report of its own. */
export interface ExtraSection {
  title: string;
  text?: string;
  table?: { columns: readonly string[]; rows: readonly (readonly string[])[] };
}

const ROLE_NAMES: Record<Role, string> = {
  source_chosen: 'y_ws, the best of the sources',
  target_chosen: "y_wt, the target's best",
  rejected: "y_l, the target's worst",
  source_rejected: "y_ls, the source's worst",
  completion: 'completion',
};
const ROLE_SIGNS: Record<Role, string> = {
  ...{
    source_chosen: 'y_ws',
    target_chosen: 'y_wt',
    rejected: 'y_l',
    source_rejected: 'y_ls',
    completion: 'completion',
  },
};

/** What happened, in a sentence. */
export function headline({ isFusion, results, runs, shares, selection }: ReportData): string {
  const target = results.find(({ name }) => name === 'target');
  const trained = results.filter(({ name }) => runs.some((run) => run.name === name));
  const best = [...trained].sort((a, b) => b.reward - a.reward)[0];
  if (isFusion && best && target) {
    const won = `${best.name} wins ${percent(best.win_rate, best.win_rate_stderr)} against the target on ${best.n} held-out prompts`;
    return `${won}: mean reward ${plusMinus(best.reward, best.reward_stderr)}, the target's ${plusMinus(target.reward, target.reward_stderr)}.`;
  }
  if (isFusion) {
    const rows = selection?.rows.train ? `${selection.rows.train} quadruples` : 'quadruples to come';
    return `A fusion of ${shares.length} sources: ${rows}, ${runs.length} runs so far.`;
  }
  const [run] = runs;
  const [first, last] = [run?.lines[0], run?.lines.at(-1)];
  if (!first || !last) return 'Nothing is logged yet.';
  const accuracy = last['rewards/accuracies'];
  const wins = accuracy === undefined ? '' : `; the chosen responses win ${percent(accuracy, null)} of the time`;
  return `${run!.lossType || 'Training'}: after ${last.step} steps the loss is ${short(last.loss!)}, from ${short(first.loss!)} at step ${first.step}${wins}.`;
}

export function warningSection(warnings: readonly string[]): Html | undefined {
  if (warnings.length === 0) return undefined;
  return html`<section class="warnings"><h2>Worth a look</h2><ul>${warnings.map((one) => html`<li>${one}</li>`)}</ul></section>`;
}

export function resultSection({ results, scorer }: ReportData): Html | undefined {
  if (results.length === 0) return undefined;
  const rows = results.map((row) => [
    ...[row.name, plusMinus(row.reward, row.reward_stderr)],
    row.name === 'target' ? '' : percent(row.win_rate, row.win_rate_stderr),
    ...[row.mean_length.toFixed(0), String(row.n)],
  ]);
  return section(
    'Results on held-out prompts',
    html`<p>Greedy answers, scored by ${scorer}; mean ± standard error over prompts. Wins are against the target, ties count half.</p>
${table({ columns: ['model', 'reward', 'wins', 'characters', 'prompts'], rows })}`,
  );
}

export function sourceSection({ shares, selection }: ReportData): Html | undefined {
  if (shares.length === 0) return undefined;
  const sorted = [...shares].sort((a, b) => b.share - a.share);
  const rows = sorted.map(({ source, share }) => ({ name: source, value: share, words: `${share.toFixed(2)} %` }));
  const dropped = Object.entries(selection?.dropped ?? {}).map(([reason, count]) => `${count} × ${reason}`);
  return section(
    'Where y_ws comes from',
    html`<p>Share of the prompts whose best answer is a source's (the paper's Table 1).${
      dropped.length > 0 && ` Prompts without a row: ${dropped.join(', ')}.`
    }</p>${bars(rows)}`,
  );
}

export function quadrupleSection({ quadruples }: ReportData): Html | undefined {
  if (!quadruples) return undefined;
  const { count, roles, unit, gaps } = quadruples;
  const rows = roles.map(({ role, score, length }) => [
    ...[ROLE_NAMES[role], score === undefined ? '' : short(score), length.toFixed(1)],
  ]);
  const figures = gaps.map(({ name, values }, i) =>
    distributions([{ name, values }], {
      title: `Score gap ${name}`,
      unit: `in ${count} rows`,
      range: rangeOf(gaps.slice(i, i + 1)),
    }),
  );
  return section(
    'The quadruples',
    html`${table({ columns: ['response', 'mean score', unit], rows })}<div class="figures">${figures}</div>`,
  );
}

/** The paper's Fig. 1, with our own summary of it. */
export function likelihoodSection({ likelihoods }: ReportData): Html | undefined {
  if (likelihoods.length === 0) return undefined;
  const named = (roles: ReportData['likelihoods'][number]['roles']): Distribution[] =>
    roles.map(({ role, values }) => ({ name: ROLE_SIGNS[role], values }));
  const range = rangeOf(likelihoods.flatMap(({ roles }) => named(roles)));
  const figures = likelihoods.map(({ model, roles }) =>
    distributions(named(roles), { title: model, unit: 'mean log-prob of a token', range }),
  );
  const rows = likelihoods.flatMap(({ model, roles }) => {
    const [ws, l] = (['source_chosen', 'rejected'] as const).map(
      (role) => roles.find((one) => one.role === role)?.values,
    );
    if (!ws || !l) return [];
    return [[model, short(mean(ws)), short(mean(l)), short(mean(ws) - mean(l)), short(wasserstein(ws, l))]];
  });
  return section(
    'How likely the responses are, before and after',
    html`<p>Mean log-prob of a token of each response, under each model (the paper's Fig. 1). Lines are means.</p>
<div class="figures">${figures}</div>
${table({ columns: ['model', 'y_ws', 'y_l', 'y_ws − y_l', '1-Wasserstein'], rows })}`,
  );
}

/** Places that the page's script draws charts into. */
export function chartSection(id: string, title: string, words: string, charts: readonly Chart[]): Html | undefined {
  if (charts.length === 0) return undefined;
  return section(
    title,
    html`<p>${words}</p><div class="charts" id="${id}">${charts.map(
      (chart) =>
        html`<figure class="chart"><figcaption><b>${chart.title}</b> ${chart.words}</figcaption><div class="plot"></div></figure>`,
    )}</div>`,
  );
}

export function exampleSection({ examples }: ReportData): Html | undefined {
  if (examples.length === 0) return undefined;
  return section(
    'Answers side by side',
    html`<p>The first held-out prompts, with every model's answer and its score.</p>${examples.map(
      ({ prompt, answers }, i) => html`<details${i === 0 ? html` open` : ''}><summary>${prompt}</summary>
<div class="answers">${answers.map(
        ({ model, text, reward }) =>
          html`<article><h3>${model} <span>${reward === undefined ? '' : short(reward)}</span></h3><pre>${text}</pre></article>`,
      )}</div></details>`,
    )}`,
  );
}

export function stageSection({ stages }: ReportData): Html | undefined {
  if (stages.length === 0) return undefined;
  const rows = stages.map(({ stage, started, seconds, peak_rss_bytes: bytes }) => [
    ...[stage, started.replace('T', ' ').slice(0, 19), duration(seconds), `${(bytes / 2 ** 20).toFixed(0)} MiB`],
  ]);
  return section(
    'Stages',
    html`<p>Times are UTC; memory is the most that the process had held until then.</p>
${table({ columns: ['stage', 'began', 'took', 'memory'], rows })}`,
  );
}

export const benchmarkSections = ({ tables }: ReportData): Html[] =>
  tables.map(({ title, columns, rows }: Table) => section(title, table({ columns, rows })));

export const extraSection = ({ title, text, table: extra }: ExtraSection): Html =>
  section(title, html`${text !== undefined && html`<p>${text}</p>`}${extra && table(extra)}`);

const section = (title: string, body: Html): Html => html`<section><h2>${title}</h2>${body}</section>`;

const table = ({ columns, rows }: { columns: readonly string[]; rows: readonly (readonly string[])[] }): Html =>
  html`<div class="wide" tabindex="0"><table><thead><tr>${columns.map((one) => html`<th>${one}</th>`)}</tr></thead><tbody>${rows.map(
    (row) =>
      html`<tr>${row.map((cell, i) => (i === 0 ? html`<th scope="row">${cell}</th>` : html`<td>${cell}</td>`))}</tr>`,
  )}</tbody></table></div>`;

const plusMinus = (value: number, error: number | null) =>
  `${value.toFixed(3)}${error === null ? '' : ` ± ${error.toFixed(3)}`}`;
const percent = (share: number, error: number | null) =>
  `${(100 * share).toFixed(1)}${error === null ? '' : ` ± ${(100 * error).toFixed(1)}`} %`;

function duration(seconds: number): string {
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
