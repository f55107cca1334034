/** A directory's report: one HTML file that holds everything and asks nothing of a network. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { writeFileAtomic } from '../data/files.js';
import { chartsOf, marginChartsOf } from './curves.js';
import { Html, html, json } from './html.js';
import { type ReportData, readReport } from './read.js';
import {
  benchmarkSections,
  chartSection,
  type ExtraSection,
  exampleSection,
  extraSection,
  headline,
  likelihoodSection,
  quadrupleSection,
  resultSection,
  sourceSection,
  stageSection,
  warningSection,
} from './sections.js';
import { warningsOf } from './warnings.js';

export type { ExtraSection } from './sections.js';

export interface ReportOptions {
  /** Where the file is written. Default: `report.html` in the directory. */
  output?: string;
  /** In place of the directory's name. */
  title?: string;
  /** Before everything else that is told. */
  sections?: readonly ExtraSection[];
}

/**
 * Writes the report of a training run or a fusion and gives the file's path. Throws ERR_DATA when the directory is neither,
 * or something in it is damaged (named).
 */
export async function writeReport(directory: string, options: ReportOptions = {}): Promise<string> {
  const { output = join(directory, 'report.html') } = options;
  writeFileAtomic(output, pageOf(await readReport(directory), options));
  return output;
}

/** The charts of a report, as the page's script takes them. */
export const chartsIn = (data: ReportData) => ({
  margins: marginChartsOf(data.runs),
  curves: chartsOf(data.runs),
  runs: data.runs.map(({ name }) => name),
});

/** The whole page; with `live` its script asks for changes. */
export function pageOf(
  data: ReportData,
  { title = data.name, sections = [], live = false }: ReportOptions & { live?: boolean } = {},
): string {
  const charts = chartsIn(data);
  const body = [
    warningSection(warningsOf(data)),
    ...sections.map(extraSection),
    resultSection(data),
    sourceSection(data),
    quadrupleSection(data),
    likelihoodSection(data),
    chartSection(
      'margins',
      'Reward margins',
      "What training does to the margins of the policy's own responses, of the sources', and of both weighted (the paper's Fig. 3).",
      charts.margins,
    ),
    chartSection(
      'curves',
      'Curves',
      'Drag over a chart to look closer, double-click to see all of it again; dashed lines are of held-out rows.',
      charts.curves,
    ),
    exampleSection(data),
    ...benchmarkSections(data),
    stageSection(data),
  ];
  const drawn = [...charts.margins, ...charts.curves].length > 0 || live;
  const script = ['theme.js', ...(drawn ? ['uplot', 'curves.js'] : [])].map(asset).join('\n');
  const policy = [
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    `script-src 'sha256-${createHash('sha256').update(script).digest('base64')}'`,
    ...(live ? ["connect-src 'self'"] : []),
    "base-uri 'none'; form-action 'none'",
  ];
  return html`<!doctype html>
<html lang="en"${live && html` data-live`}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${policy.join('; ')}">
<title>${title}</title>
<style>${new Html(asset('page.css'))}</style>
</head>
<body>
<header><p class="kind">${data.isFusion ? 'Fusion' : 'Training run'}</p><h1>${title}</h1><p class="headline">${headline(data)}</p>
<button type="button" id="theme">Light or dark</button></header>
<main>${body}</main>
<footer><p>${data.directory}</p></footer>
<script type="application/json" id="charts">${json(charts)}</script>
<script>${new Html(script)}</script>
</body>
</html>
`.toString();
}

/** Part of the page as it is shipped. */
function asset(name: string): string {
  if (name === 'uplot') {
    const { resolve } = createRequire(import.meta.url);
    const file = resolve('uplot/dist/uPlot.iife.min.js');
    return readFileSync(file, 'utf8').replace(/\n?\/\/# sourceMappingURL.*$/m, '');
  }
  // Beside the sources, from where dist/ lies as in a package.
  const text = readFileSync(new URL(`../../lib/report/page/${name}`, import.meta.url), 'utf8');
  return name === 'page.css'
    ? `${readFileSync(createRequire(import.meta.url).resolve('uplot/dist/uPlot.min.css'), 'utf8')}${text}`
    : text;
}
