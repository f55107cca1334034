/** The parts of a report, each of what a directory holds; what is not there makes no part. */
import { duration } from '../duration.js';
import { type MeanOf, summariseLogProbs } from '../evaluate/analyses.js';
import { readFinished } from '../evaluate/runs.js';
import { mean } from '../evaluate/statistics.js';
import { tablesOf } from '../evaluate/tables.js';
import type { ComparisonRow } from '../fuse/comparison.js';
import type { Selection } from '../fuse/quadruples.js';
import { allWarnings } from '../train/warnings.js';
import { type Chart, curvesOfRun, curvesOfRuns, marginsOfRuns, ROLE_NAMES } from './curves.js';
import { logProbCharts, quadrupleCharts } from './distributions.js';
import { bytesText } from './headline.js';
import { type Cell, Html, html, type Part, table } from './html.js';
import {
  type AnsweredPrompt,
  type Directory,
  type Fusion,
  QUADRUPLE_ROLES,
  type TrainingRun,
  wordsOf,
} from './read.js';
import { tableHtml } from './tables.js';
import { dataWarnings, resultWarnings } from './warnings.js';

export interface Section {
  title: string;
  body: Html;
}

/** The charts of a page, by the ids that its figures name. */
export class Charts {
  readonly all: Record<string, Chart> = {};

  /** Figures of charts; `group` begins their ids. */
  figures(group: string, charts: readonly Chart[], { small = false } = {}): Html | undefined {
    if (charts.length === 0) return undefined;
    const figures = charts.map((chart, i) => {
      const id = `${group}-${i}`;
      this.all[id] = chart;
      const note = chart.note !== undefined && html`<small>${chart.note}</small>`;
      return html`<figure data-chart="${id}"><figcaption>${chart.title}${note}</figcaption></figure>\n`;
    });
    return html`<div class="charts${small && ' small'}">\n${figures}</div>\n`;
  }
}

export function warningsOf({ runs, tuning, fusion }: Directory): Html | undefined {
  const names = runs.map(({ name }) => name);
  const ofFusion = fusion
    ? [...dataWarnings(fusion.quadruples, fusion.selection), ...resultWarnings(fusion.results?.rows ?? [], names)]
    : [];
  const all: Part[] = [...ofFusion, ...ofLogs([...(tuning ? [tuning] : []), ...runs], fusion !== undefined)];
  return all.length > 0 ? html`<ul class="warnings">\n${all.map((one) => html`<li>${one}</li>\n`)}</ul>\n` : undefined;
}

/** What the runs' logs warn of, each kind once: of the first run in full, then where else. */
function ofLogs(runs: readonly TrainingRun[], areSeveral: boolean): Html[] {
  const found = runs.flatMap((run) => allWarnings(run.lines).map((warning) => ({ ...warning, run: run.name })));
  const kinds = [...new Set(found.map(({ name }) => name))];
  return kinds.map((kind) => {
    const [first, ...others] = found.filter(({ name }) => name === kind);
    const at = ({ run, step }: (typeof found)[number]) => (areSeveral ? `${run} (step ${step})` : `step ${step}`);
    const also = others.length > 0 && html` <small>Also ${others.map(at).join(', ')}.</small>`;
    return html`<b class="at">${at(first!)}:</b> ${first!.message}.${also}`;
  });
}

export function sectionsOf(directory: Directory, charts: Charts): Section[] {
  const { path, runs, tuning, fusion } = directory;
  if (!fusion) {
    return [...some('Training', charts.figures('run', curvesOfRun(runs[0]!))), ...some('Tables', papersTables(path))];
  }
  const { results, selection, quadruples, logProbs, answers, stages } = fusion;
  return [
    ...some('Results', results && resultsTable(results.rows, runs, results.scorer)),
    ...some('Where the responses come from', selection && responses(selection, quadruples, charts)),
    ...some('Training', trainingOf(runs, tuning, charts)),
    ...some('Log-probs before and after', logProbs.length > 0 && before(logProbs, charts)),
    ...some('Tables', papersTables(path)),
    ...some('Samples', answers.length > 0 && samples(answers)),
    ...some('Stages', stages.length > 0 && stagesTable(stages)),
  ];
}

const some = (title: string, body: Html | false | undefined): Section[] => (body ? [{ title, body }] : []);

function resultsTable(rows: readonly ComparisonRow[], runs: readonly TrainingRun[], scorer?: string): Html {
  const names = runs.map(({ name }) => name);
  const kind = ({ name }: ComparisonRow) =>
    names.includes(name) ? '' : name === 'target' ? '' : name === 'target-sft' ? 'fine-tuned' : 'source';
  const lows = rows.map(({ reward, reward_stderr }) => reward - (reward_stderr ?? 0));
  const highs = rows.map(({ reward, reward_stderr }) => reward + (reward_stderr ?? 0));
  const scale = scaleTo(Math.min(...lows), Math.max(...highs));
  const percent = (share: number) => (100 * share).toFixed(1);
  const body = rows.map((row): (Cell | Part)[] => {
    const { name, reward, reward_stderr: error, win_rate, win_rate_stderr, mean_length, n } = row;
    return [
      html`${name}${kind(row) && html` <small>${kind(row)}</small>`}`,
      {
        value: html`${reward.toFixed(3)}${error !== null && html` ± ${error.toFixed(3)}`}`,
        mark: { at: scale(reward), low: scale(reward - (error ?? 0)), high: scale(reward + (error ?? 0)) },
      },
      name === 'target'
        ? ''
        : {
            value: html`${percent(win_rate)}${win_rate_stderr !== null && html` ± ${percent(win_rate_stderr)}`}`,
            mark: {
              ...{ at: win_rate, low: win_rate - (win_rate_stderr ?? 0), high: win_rate + (win_rate_stderr ?? 0) },
            },
          },
      mean_length.toFixed(0),
      n,
    ];
  });
  const by = scorer === undefined ? '' : ` by ${scorer}`;
  return html`<p class="note">Answers to held-out prompts, scored${by}; mean ± standard error over prompts. The win rate is
against the target, ties counting half; its marks run from 0 to 100 %, those of the reward from ${Math.min(...lows).toFixed(2)} to
${Math.max(...highs).toFixed(2)}.</p>
${table(['model', ['reward'], ['win rate, %'], ['length, characters'], ['prompts']], body)}`;
}

function responses(selection: Selection, quadruples: Fusion['quadruples'], charts: Charts): Html {
  const { shares, scores, rows, dropped } = selection;
  const largest = Math.max(...Object.values(shares), 1);
  const ofSources = Object.entries(shares).map(([name, share]): (Cell | Part)[] => [
    name,
    { value: share.toFixed(1), mark: { at: share / largest, isBar: true } },
  ]);
  const lengths = (role: (typeof QUADRUPLE_ROLES)[number]) =>
    quadruples.length === 0 ? '' : mean(quadruples.map(({ lengths }) => lengths[role])).toFixed(0);
  const ofRoles = QUADRUPLE_ROLES.filter((role) => scores[role] !== undefined).map((role) => [
    `${ROLE_NAMES[role]} (${role})`,
    scores[role]!.toFixed(3),
    lengths(role),
  ]);
  const lost = Object.entries(dropped).map(([reason, count]) => `${count} without one (${reason})`);
  return html`<p class="note">${[`${rows.train} quadruples to train on`, ...lost].join('; ')}.</p>
<h3>Whose answer is y_ws (Table 1)</h3>
${table(['source', ['share of prompts, %']], ofSources)}
${ofRoles.length > 0 && html`<h3>The responses of a quadruple</h3>\n${table(['response', ['mean score'], ['mean length, characters']], ofRoles)}`}
${charts.figures('responses', quadrupleCharts(quadruples), { small: true })}`;
}

function trainingOf(runs: readonly TrainingRun[], tuning: TrainingRun | undefined, charts: Charts): Html | undefined {
  const preferences = runs.filter(({ config }) => config.loss_type !== 'sft');
  const completions = runs.filter(({ config }) => config.loss_type === 'sft');
  const margins = charts.figures('margins', marginsOfRuns(preferences), { small: preferences.length > 2 });
  const parts = [
    margins &&
      html`<h3>Reward margins over training (Fig. 3)</h3>
<p class="note">Hybrid: r(y_ws) − r(y_l). On-policy: r(y_wt) − r(y_l). Total: what the loss sees.</p>\n${margins}`,
    preferences.length > 0 &&
      html`<h3>Runs that learn preferences</h3>\n${charts.figures('preferences', curvesOfRuns(preferences))}`,
    ...[...(tuning ? [tuning] : []), ...completions].map(
      (run, i) =>
        html`<h3>${run.name}: fine-tuning</h3>\n${charts.figures(`tuning${i}`, curvesOfRun(run), { small: true })}`,
    ),
  ].filter((part) => part !== undefined && part !== false);
  return parts.length > 0 ? html`${parts}` : undefined;
}

function before(logProbs: Fusion['logProbs'], charts: Charts): Html {
  const shown = logProbCharts(logProbs);
  const first = logProbs.filter(({ model }) => model === logProbs[0]!.model).length;
  const rows = summariseLogProbs(logProbs).map(({ model, means, difference, wasserstein }) => [
    ...[model, ...QUADRUPLE_ROLES.map((role) => signed(means[role]))],
    ...[signed(difference), wasserstein.toFixed(3)],
  ]);
  const head = ['model', ...QUADRUPLE_ROLES.map((role): [string] => [ROLE_NAMES[role]]), ['y_ws − y_l'], ['distance']];
  return html`<p class="note">Fig. 1: how likely each model finds y_ws, y_wt and y_l, in nats per token, over ${first} quadruples
that were trained on; all on one scale, whose outermost bins hold what lies beyond.</p>
${charts.figures('logps', shown, { small: shown.length > 2 })}
<h3>In numbers</h3>
<p class="note">Means ± standard error over quadruples, and the 1-Wasserstein distance between y_ws and y_l.</p>
${table(head as (string | [string])[], rows)}`;
}

const signed = ({ mean, stderr }: MeanOf): string => `${mean.toFixed(3)} ± ${stderr.toFixed(3)}`.replace('-', '−');

/** What `wrpo tables` has to tell of the runs, with the benchmarks that were measured below the directory. */
function papersTables(path: string): Html | undefined {
  const faults: string[] = [];
  // What is ambiguous there is no reason to tell nothing of all else.
  const { runs } = readFinished([path], ({ message }) => faults.push(message));
  // What is the fusion's own has sections of its own.
  const parts = tablesOf({ runs, fusions: [] }).map(tableHtml);
  parts.push(...faults.map((fault) => html`<p class="note">${fault}.</p>\n`));
  return parts.length > 0 ? html`${parts}` : undefined;
}

const MOST_SAMPLES = 8;
const MOST_CHARACTERS = 1200;

/** Some prompts, evenly out of all, with every model's answer. */
function samples(answers: readonly AnsweredPrompt[]): Html {
  const count = Math.min(MOST_SAMPLES, answers.length);
  const chosen = Array.from({ length: count }, (_, i) => answers[Math.floor((i * answers.length) / count)]!);
  const one = ({ prompt, answers }: AnsweredPrompt, i: number) => {
    const cards = Object.entries(answers).map(([name, { text, reward }]) => {
      const score = reward === null ? 'no score' : `reward ${Number(reward.toPrecision(3))}`;
      return html`<article><h4><span>${name}</span><span>${score}</span></h4><p class="text">${cut(text)}</p></article>\n`;
    });
    const asked = cut(wordsOf(prompt));
    return html`<details${i === 0 && new Html(' open')}><summary>${asked.split('\n')[0]!.slice(0, 120)}</summary>
${asked.length > 120 || asked.includes('\n') ? html`<p class="text prompt">${asked}</p>` : ''}<div class="answers">\n${cards}</div></details>\n`;
  };
  return html`<p class="note">${count} of ${answers.length} held-out prompts, evenly spaced in their file, not picked.</p>\n${chosen.map(one)}`;
}

function cut(text: string): string {
  const more = text.length - MOST_CHARACTERS;
  return more > 0 ? `${text.slice(0, MOST_CHARACTERS)}… (${more} characters more)` : text;
}

function stagesTable(stages: Fusion['stages']): Html {
  const longest = Math.max(...stages.map(({ seconds }) => seconds));
  const body = stages.map(({ stage, started, seconds, peak_rss_bytes }): (Cell | Part)[] => [
    stage,
    `${started.slice(0, 19).replace('T', ' ')}`,
    { value: duration(seconds), mark: { at: seconds / longest, isBar: true } },
    bytesText(peak_rss_bytes),
  ]);
  const all = duration(stages.reduce((sum, { seconds }) => sum + seconds, 0));
  return html`<p class="note">${all} in all. Memory is the process's peak until the stage's end.</p>
${table(['stage', 'begun (UTC)', ['time'], ['peak memory']], body)}`;
}

/** Into [0, 1]. */
const scaleTo = (low: number, high: number) => (value: number) => (high > low ? (value - low) / (high - low) : 0.5);
