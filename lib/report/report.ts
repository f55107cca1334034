/** `report.html`: what a training run or a fusion did, as one file that needs no other. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { writeFileAtomic } from '../data/files.js';
import type { Table } from '../evaluate/cells.js';
import type { Chart } from './curves.js';
import { factsOf, headlineOf } from './headline.js';
import { Html, html, jsonForScript, table } from './html.js';
import { readDirectory } from './read.js';
import { Charts, type Section, sectionsOf, warningsOf } from './sections.js';
import { tableHtml } from './tables.js';

/** What a program adds to a report: words, a table, or both. Everything is text. */
export interface ExtraSection {
  title: string;
  text?: string;
  /** The first column names the row. */
  table?: { head: string[]; rows: (string | number)[][] };
}

export interface ReportOptions {
  /** Shown first. */
  sections?: readonly ExtraSection[];
  /** Where to write. Default: `report.html` in the directory. */
  file?: string;
}

/** A report's content: HTML for the page's `main`, the charts that its figures name, and a title in plain text. */
export interface Report {
  title: string;
  main: string;
  charts: Record<string, Chart>;
}

/** Writes tables alone, as one page. */
export function writeTables(tables: readonly Table[], file: string): void {
  const main = html`<h1>${tables.length} tables</h1>
<p class="note">± one standard error, or an interval in parentheses; beside such a value, where they lie on its column's scale.</p>
<section>${tables.map(tableHtml)}</section>`;
  writeFileAtomic(file, pageOf({ title: 'Tables', main: main.text, charts: {} }));
}

/** What `writeReport` writes, before it is a page. */
export async function makeReport(path: string, { sections: extra = [] }: ReportOptions = {}): Promise<Report> {
  const directory = await readDirectory(path);
  const charts = new Charts();
  const sections = [...extra.map(sectionOf), ...sectionsOf(directory, charts)];
  const headline = headlineOf(directory);
  const facts = factsOf(directory).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`);
  const links = sections.map(({ title }, i) => html`<li><a href="#s${i}">${title}</a></li>`);
  const main = html`<h1>${headline}</h1>
<dl class="facts">${facts}</dl>
${warningsOf(directory)}
${sections.length > 1 && html`<nav aria-label="Sections"><ul>${links}</ul></nav>`}
${sections.map(({ title, body }, i) => html`<section><h2 id="s${i}">${title}</h2>\n${body}</section>\n`)}`;
  return { title: `${directory.name}: ${headline}`, main: main.text, charts: charts.all };
}

function sectionOf({ title, text, table: added }: ExtraSection): Section {
  const words = (text ?? '').split(/\n{2,}/).filter(Boolean);
  const isNumber = (column: number) => added?.rows.every((row) => /^[−+-]?[\d.]/.test(String(row[column] ?? '0')));
  const head = added?.head.map((name, i): string | [string] => (i > 0 && isNumber(i) ? [name] : name));
  return { title, body: html`${words.map((one) => html`<p>${one}</p>\n`)}${head && table(head, added!.rows)}` };
}

/** The page's own files lie in the sources, where the package has them too. */
const asset = (name: string): string => readFileSync(new URL(`../../lib/report/page/${name}`, import.meta.url), 'utf8');

/** A report as one HTML file. A `live` page asks `events` beside it for news. */
export function pageOf({ title, main, charts }: Report, { live = false } = {}): string {
  const style = asset('page.css');
  // As one module: what a page of its own would import stands in front.
  const drawing = asset('charts.js').replace(/^export /gm, '');
  const script = `${drawing}\n${asset('page.js').replace(/^import .*;\n/gm, '')}`;
  const hash = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
  const policy = [
    ...["default-src 'none'", "base-uri 'none'", "form-action 'none'"],
    ...[`style-src ${hash(style)}`, `script-src ${hash(script)}`, 'img-src data:'],
    ...(live ? ["connect-src 'self'"] : []),
  ].join('; ');
  return html`<!doctype html>
<html lang="en"${live && new Html(' data-live')}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${new Html(policy)}">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>${title}</title>
<style>${new Html(style)}</style>
</head>
<body>
<header class="top"><span>wrpo report</span>${live && html`<span id="pulse">live</span>`}<button id="theme" type="button" hidden>light / dark</button></header>
<main>
${new Html(main)}
</main>
<noscript><p>The charts are drawn by a script of this page.</p></noscript>
<script type="application/json" id="charts">${jsonForScript(charts)}</script>
<script type="module">${new Html(script)}</script>
</body>
</html>
`.text;
}
