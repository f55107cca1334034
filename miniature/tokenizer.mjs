// A byte-level BPE tokenizer, small enough to train in a second, as a Hugging Face tokenizer directory.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pretrainStream, TOKENIZER_EXAMPLES, take } from './skills.mjs';

/** @typedef {[left: string, right: string]} Merge */

export const SPECIALS = ['<pad>', '<user>', '<bot>', '<end>'];

// Digits stay single, so that numbers are spelled the same wherever they stand.
const PRE_SPLIT = ' ?[A-Za-z]+|[0-9]| ?[^A-Za-z0-9 ]+| +';

const ASCII = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i));

// No spaces between the turns: prompt and response are tokenized exactly as they are alone.
const CHAT_TEMPLATE = [
  '{% for message in messages %}',
  "{% if message['role'] == 'user' %}<user>{{ message['content'] }}",
  "{% else %}<bot>{{ message['content'] }}<end>{% endif %}",
  '{% endfor %}',
  '{% if add_generation_prompt %}<bot>{% endif %}',
].join('');

// Sorts below every character of a text, so that joined pairs compare as the pairs do.
const JOINT = '\0';

/** @param {string[]} pieces @param {Merge} merge */
function applyMerge(pieces, [left, right]) {
  /** @type {string[]} */
  const merged = [];
  for (let i = 0; i < pieces.length; i++) {
    const fits = pieces[i] === left && pieces[i + 1] === right;
    merged.push(fits ? left + right : pieces[i]);
    if (fits) i++;
  }
  return merged;
}

/**
 * @param {Iterable<string>} texts ASCII only
 * @param {number} size number of merges
 * @returns {Merge[]}
 */
export function trainBpe(texts, size) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const text of texts) {
    for (const word of text.match(new RegExp(PRE_SPLIT, 'g')) ?? []) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const words = [...counts].map(([word, count]) => ({ pieces: [...word], count }));
  /** @type {Merge[]} */
  const merges = [];
  while (merges.length < size) {
    /** @type {Map<string, number>} */
    const pairs = new Map();
    for (const { pieces, count } of words) {
      for (let i = 1; i < pieces.length; i++) {
        const pair = pieces[i - 1] + JOINT + pieces[i];
        pairs.set(pair, (pairs.get(pair) ?? 0) + count);
      }
    }
    if (pairs.size === 0) break;
    const [best] = [...pairs].reduce((a, b) => (b[1] > a[1] || (b[1] === a[1] && b[0] > a[0]) ? b : a));
    const merge = /** @type {Merge} */ (best.split(JOINT));
    merges.push(merge);
    for (const word of words) word.pieces = applyMerge(word.pieces, merge);
  }
  return merges;
}

/** The merges of a model's own tokenizer. @param {import('./skills.mjs').Model} model */
export function trainTokenizer(model) {
  const examples = take(pretrainStream(model), TOKENIZER_EXAMPLES);
  return trainBpe(
    examples.flatMap(({ prompt, response }) => [prompt, response]),
    model.merges,
  );
}

/**
 * Writes tokenizer.json and tokenizer_config.json. Ids: the specials, printable ASCII, then the merges in their order.
 * @param {string} dir
 * @param {Merge[]} merges
 */
export function writeTokenizer(dir, merges) {
  // Byte-level BPE writes the space as U+0120; the other printable ASCII bytes stand for themselves.
  const spell = (/** @type {string} */ text) => text.replaceAll(' ', '\u0120');
  // Two merges may spell the same token, which then keeps its first id.
  const tokens = new Set([...SPECIALS, ...ASCII.map(spell), ...merges.map((merge) => spell(merge.join('')))]);
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: SPECIALS.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: PRE_SPLIT }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries([...tokens].map((token, id) => [token, id])),
      merges: merges.map((merge) => merge.map(spell).join(' ')),
    },
  };
  const config = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    pad_token: '<pad>',
    eos_token: '<end>',
    additional_special_tokens: ['<user>', '<bot>'],
    clean_up_tokenization_spaces: false,
    model_max_length: 96,
    chat_template: CHAT_TEMPLATE,
  };
  mkdirSync(dir, { recursive: true });
  for (const [name, content] of Object.entries({ tokenizer, tokenizer_config: config })) {
    writeFileSync(join(dir, `${name}.json`), `${JSON.stringify(content, null, 2)}\n`);
  }
}
