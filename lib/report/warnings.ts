/** What in a fusion should make a person look, in words; of single runs see train/warnings.ts. */
import { allWarnings } from '../train/warnings.js';
import type { ReportData } from './read.js';

/** All of a directory's, the run's name in front where there are several. */
export function warningsOf(data: ReportData): string[] {
  const ofRuns = data.runs.flatMap(({ name, lines }) =>
    allWarnings(lines).map(({ step, message }) => `${data.runs.length > 1 ? `${name}, ` : ''}step ${step}: ${message}`),
  );
  return [...ofData(data), ...ofRuns];
}

/** Longer by so much, chosen responses may be chosen for their length. */
const LONGER = 1.3;
/** Of the prompts that one source gives y_ws for: the others are hardly there. */
const MOST = 60;

function ofData({ quadruples, shares, results }: ReportData): string[] {
  const of = (role: string) => quadruples?.roles.find((one) => one.role === role);
  const [ws, wt, l] = ['source_chosen', 'target_chosen', 'rejected'].map(of);
  const found: string[] = [];
  for (const [name, role] of [
    ['y_ws', ws],
    ['y_wt', wt],
  ] as const) {
    if (!role || !l || !(role.length > LONGER * l.length)) continue;
    const longer = (role.length / l.length).toPrecision(2);
    found.push(
      `length: ${name} is ${longer} times as long as y_l on average: what is learnt may be to write more; a length-normalised loss (simpo, wrpo_simpo) or a scorer that does not like length avoids it`,
    );
  }
  if (ws?.score !== undefined && wt?.score !== undefined && ws.score < wt.score) {
    found.push(
      `the sources: y_ws has a lower score than y_wt on average (${show(ws.score)} against ${show(wt.score)}): they have little to teach this target`,
    );
  }
  const most = shares.reduce((a, b) => (b.share > a.share ? b : a), { source: '', share: 0 });
  if (shares.length > 1 && most.share > MOST) {
    found.push(
      `the sources: ${most.source} gives y_ws for ${show(most.share)} % of the prompts, so the others add little`,
    );
  }
  const target = results.find(({ name }) => name === 'target');
  for (const { name, reward, mean_length: length } of results) {
    if (!target || !(reward > target.reward && length > 1.5 * target.mean_length)) continue;
    const longer = (length / target.mean_length).toPrecision(2);
    found.push(
      `length: the answers of ${name} are ${longer} times as long as the target's: its reward may be that of length`,
    );
  }
  return found;
}

const show = (value: number) => String(Number(value.toPrecision(3)));
