// Ready-made training files, for demonstrations that leave out the sampling of five responses per model and prompt.

import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { drawExample, fnv1a, MODELS, prompts, Rng, wrap } from './skills.mjs';

/**
 * @typedef {import('./skills.mjs').Split} Split
 * @typedef {{ prompt: string, source_chosen: string, target_chosen: string, rejected: string }} Quadruple
 * @typedef {{ prompt: string, completion: string }} SftRow
 */

/** @param {string} char @param {Rng} rng */
function otherOfItsKind(char, rng) {
  const [first, size] = /\d/.test(char) ? ['0', 10] : /[A-Z]/.test(char) ? ['A', 26] : ['a', 26];
  const start = first.charCodeAt(0);
  return String.fromCharCode(start + ((char.charCodeAt(0) - start + 1 + rng.int(size - 1)) % size));
}

/**
 * The gold with one wrong character: a digit where there is one, since a wrong month or unit would be told by its form.
 * @param {string} gold @param {Rng} rng
 */
function nearMiss(gold, rng) {
  const place = rng.pick([...gold.matchAll(/\d/.test(gold) ? /\d/g : /[A-Za-z]/g)]).index;
  return gold.slice(0, place) + otherOfItsKind(gold[place], rng) + gold.slice(place + 1);
}

/**
 * About n rows: those of n prompts whose skill is of one of the families.
 * @param {{ seed: number, n: number, split?: Split, families?: string }} options
 * @returns {Quadruple[]}
 */
export function quadruples({ seed, n, split = 'po', families = 'SNF' }) {
  // Not the seed itself: the choices would follow the very numbers that drew the prompts.
  const rng = new Rng(fnv1a(`quadruples|${seed}`));
  const sources = [MODELS.srcA, MODELS.srcB, MODELS.srcC];
  const drawn = prompts(seed, n, split).filter(({ skill }) => families.includes(skill.family));
  return drawn.map(({ skill, args: [arg], gold, prompt }) => {
    const expert = sources.find((source) => source.family === skill.family) ?? MODELS.target;
    // Some inputs are their own answer (letters already sorted), where the parrot would be right.
    const parrots = rng.int(2) === 1 && arg !== gold;
    return {
      prompt,
      source_chosen: wrap(expert.style, gold),
      target_chosen: wrap(MODELS.target.style, gold),
      rejected: wrap(MODELS.target.style, parrots ? arg : nearMiss(gold, rng)),
    };
  });
}

/**
 * The target's pre-training stream from its start, in which it parrots its input in a share `habit` of the answers.
 * Skills of other families are passed over.
 * @param {{ n: number, seed?: number, split?: Split, habit?: number, families?: string }} options
 * @returns {SftRow[]}
 */
export function sftRows({ n, seed = MODELS.target.seed, split = 'pre', habit = 0.7, families = 'SNF' }) {
  const rng = new Rng(seed);
  const good = 1000 - Math.round(1000 * habit);
  const rows = [];
  while (rows.length < n) {
    const { skill, prompt, response } = drawExample(rng, MODELS.target, () => good, split);
    if (families.includes(skill.family)) rows.push({ prompt, completion: response });
  }
  return rows;
}

/** @param {string} file @param {object[]} rows */
function writeJsonl(file, rows) {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
}

/** @param {string} file @param {Parameters<typeof quadruples>[0]} options */
export function writeQuadruples(file, options) {
  writeJsonl(file, quadruples(options));
}

/** @param {string} file @param {Parameters<typeof sftRows>[0]} options */
export function writeSft(file, options) {
  writeJsonl(file, sftRows(options));
}
