/** The results as one HTML file without scripts. */
import { writeFileSync } from 'node:fs';
import { against, tableOfDifferences, tableOfRows } from './results.mjs';

const STYLE = `
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }`;

const escaped = (text) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
const line = (tag) => (cells) => `<tr>${cells.map((cell) => `<${tag}>${escaped(cell)}</${tag}>`).join('')}</tr>`;
const table = ({ head, body }) =>
  `<div class="wide"><table><thead>${line('th')(head)}</thead><tbody>${body.map(line('td')).join('\n')}</tbody></table></div>`;

/** @param {string} path @param {{ rows: any[], differences: any[], seeds: number[], seconds: number }} summary */
export function writePage(path, { rows, differences, seeds, seconds }) {
  const errors = seeds.length > 1 ? `over the seeds ${seeds.join(', ')}` : `over prompts (one seed, ${seeds[0]})`;
  writeFileSync(
    path,
    `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>WRPO in miniature</title><style>${STYLE}</style></head><body>
<h1>WRPO in miniature</h1>
<p>Greedy answers to ${rows[0].n} held-out prompts; mean ± standard error ${errors}. The win rate is against Target, ties
counting half. Made in ${seconds} s.</p>
${table(tableOfRows(rows))}
<h2>Findings of the paper, whatever their sign</h2>
<p>Paired differences of mean reward and of win rate; “seeds” is in how many the reward has the finding's sign. A verdict
other than “not distinguishable” has p &lt; 0.05 in mean reward by Student's t over the seeds (of one seed: over prompts).
No correction for their number.</p>
${table(tableOfDifferences(differences))}
<p>${escaped(against(differences))}</p>
<p>One fixed set of checkpoints, made so that the mechanism the paper describes is there: this compares preference objectives
and is no evidence about real models.</p>
</body></html>
`,
  );
}
