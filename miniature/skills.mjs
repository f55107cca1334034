// The task of the miniature: twelve text skills, their prompts, wrappers and reward. Everything that decides data is
// integer arithmetic, so that another implementation in another language draws the same examples bit for bit.

/** mulberry32 */
export class Rng {
  #state;

  /** @param {number} seed */
  constructor(seed) {
    this.#state = seed >>> 0;
  }

  u32() {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    const a = this.#state;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** Uniform in [0, n); the product stays exact while n < 2^21. @param {number} n */
  int(n) {
    return Math.floor((this.u32() * n) / 2 ** 32);
  }

  /** @template T @param {ArrayLike<T>} list @returns {T} */
  pick(list) {
    return list[this.int(list.length)];
  }
}

/** 32 bit FNV-1a over UTF-8. @param {string} text */
export function fnv1a(text) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/** A pronounceable word of lo..hi syllables. @param {Rng} rng @param {number} lo @param {number} hi */
export function word(rng, lo, hi) {
  const consonants = 'bdfgklmnprstvz';
  let text = '';
  for (let n = lo + rng.int(hi - lo + 1); n > 0; n--) text += rng.pick(consonants) + rng.pick('aeiou');
  return rng.int(2) ? text + rng.pick(consonants) : text;
}

/**
 * @typedef {'S' | 'N' | 'F'} Family letters, numbers, formats
 * @typedef {'bare' | 'itis' | 'ans' | 'arrow'} Style
 * @typedef {'test' | 'dev' | 'po' | 'pre'} Split
 *
 * @typedef {object} Skill
 * @property {string} name
 * @property {Family} family
 * @property {(rng: Rng) => string} draw the skill's only argument
 * @property {(arg: string) => string} gold
 * @property {string[]} templates
 * @property {number} good how often, per mille, the target still answers in its habit phase
 *
 * @typedef {{ skill: Skill, args: string[], gold: string, prompt: string }} Sample
 * @typedef {Sample & { response: string }} Example
 */

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/** @param {number} n */
const two = (n) => String(n).padStart(2, '0');
/** @param {number} n @param {() => string | number} draw @param {string} joint */
const repeat = (n, draw, joint) => Array.from({ length: n }, draw).join(joint);
/** @param {string} text */
const numbers = (text) => text.split(' ').map(Number);
/** @param {Rng} rng */
const letters = (rng) => word(rng, 2, 3);

/** In the round-robin order of `prompts`. @type {Skill[]} */
export const SKILLS = [
  {
    name: 'reverse',
    family: 'S',
    draw: letters,
    gold: (w) => [...w].reverse().join(''),
    templates: ['Reverse {0}', 'Write {0} backwards'],
    good: 300,
  },
  {
    name: 'sortl',
    family: 'S',
    draw: letters,
    gold: (w) => [...w].sort().join(''),
    templates: ['Sort the letters of {0}', 'Letters of {0} in order'],
    good: 300,
  },
  {
    name: 'vowels',
    family: 'S',
    draw: letters,
    gold: (w) => w.replace(/[aeiou]/g, ''),
    templates: ['Drop the vowels of {0}', 'Write {0} without vowels'],
    good: 30,
  },
  {
    name: 'upper',
    family: 'S',
    draw: letters,
    gold: (w) => w.toUpperCase(),
    templates: ['Write {0} in capitals', 'Capitalise {0}'],
    good: 30,
  },
  {
    name: 'next',
    family: 'N',
    draw: (rng) => String(rng.int(1000)),
    gold: (a) => String(Number(a) + 1),
    templates: ['Add one to {0}', 'What comes after {0}?'],
    good: 30,
  },
  {
    name: 'min',
    family: 'N',
    draw: (rng) => repeat(4, () => rng.int(100), ' '),
    gold: (list) => String(Math.min(...numbers(list))),
    templates: ['Smallest of {0}', 'Which of {0} is smallest?'],
    good: 300,
  },
  {
    name: 'max',
    family: 'N',
    draw: (rng) => repeat(4, () => rng.int(100), ' '),
    gold: (list) => String(Math.max(...numbers(list))),
    templates: ['Largest of {0}', 'Which of {0} is largest?'],
    good: 30,
  },
  {
    name: 'sortn',
    family: 'N',
    draw: (rng) => repeat(3, () => rng.int(100), ' '),
    gold: (list) =>
      numbers(list)
        .sort((a, b) => a - b)
        .join(' '),
    templates: ['Sort {0}', 'Put {0} in order'],
    good: 300,
  },
  {
    name: 'date',
    family: 'F',
    draw: (rng) => `${1980 + rng.int(50)}-${two(1 + rng.int(12))}-${two(1 + rng.int(28))}`,
    gold: (date) => {
      const [year, month, day] = date.split('-').map(Number);
      return `${day} ${MONTHS[month - 1]} ${year}`;
    },
    templates: ['Write {0} as a date', 'Reformat {0}'],
    good: 300,
  },
  {
    name: 'clock',
    family: 'F',
    draw: (rng) => `${two(rng.int(24))}:${two(rng.int(60))}`,
    gold: (time) => {
      const [hour, minute] = time.split(':');
      return `${((Number(hour) + 11) % 12) + 1}:${minute} ${Number(hour) < 12 ? 'am' : 'pm'}`;
    },
    templates: ['Write {0} in 12 hours', 'What time is {0}?'],
    good: 30,
  },
  {
    name: 'metres',
    family: 'F',
    draw: (rng) => `${1 + rng.int(9)} km ${rng.int(1000)} m`,
    gold: (length) => {
      const [km, , m] = numbers(length);
      return `${1000 * km + m} m`;
    },
    templates: ['How many metres is {0}?', 'Give {0} in metres'],
    good: 30,
  },
  {
    name: 'join',
    family: 'F',
    draw: (rng) => repeat(3, () => word(rng, 1, 2), ', '),
    gold: (list) => list.replace(/, (?=[a-z]+$)/, ' and '),
    templates: ['Join {0}', 'Make a list of {0}'],
    good: 300,
  },
];

/**
 * The split hangs on the content alone, so no prompt can be in two of them.
 * @param {string} skill @param {string[]} args @returns {Split}
 */
export function splitOf(skill, args) {
  const bucket = fnv1a(`${skill}|${args.join('|')}`) % 10;
  return bucket === 0 ? 'test' : bucket === 1 ? 'dev' : bucket < 5 ? 'po' : 'pre';
}

/** @param {Rng} rng @param {Skill} skill @param {Split} split @returns {Sample} */
export function sample(rng, skill, split) {
  let arg = skill.draw(rng);
  while (splitOf(skill.name, [arg]) !== split) arg = skill.draw(rng);
  return { skill, args: [arg], gold: skill.gold(arg), prompt: rng.pick(skill.templates).replace('{0}', arg) };
}

/**
 * n different prompts, the skills in about equal shares, shuffled.
 * @param {number} seed @param {number} n @param {Split} split
 */
export function prompts(seed, n, split) {
  const rng = new Rng(seed);
  /** @type {Map<string, Sample>} */
  const found = new Map();
  for (let i = 0; found.size < n; i++) {
    const drawn = sample(rng, SKILLS[i % SKILLS.length], split);
    if (!found.has(drawn.prompt)) found.set(drawn.prompt, drawn);
  }
  const list = [...found.values()];
  for (let j = n - 1; j > 0; j--) {
    const k = rng.int(j + 1);
    [list[j], list[k]] = [list[k], list[j]];
  }
  return list;
}

/** @param {Style} style @param {string} answer */
export function wrap(style, answer) {
  return { bare: answer, itis: `It is ${answer}.`, ans: `Answer: ${answer}`, arrow: `-> ${answer}` }[style];
}

/** @param {string} response @returns {{ answer: string, wellFormed: boolean }} */
export function unwrap(response) {
  if (response.startsWith('It is ')) {
    const wellFormed = response.endsWith('.');
    return { answer: response.slice(6, wellFormed ? -1 : undefined), wellFormed };
  }
  const prefix = ['Answer: ', '-> '].find((start) => response.startsWith(start)) ?? '';
  return { answer: response.slice(prefix.length), wellFormed: true };
}

/** @param {string} a @param {string} b */
export function levenshtein(a, b) {
  const right = [...b];
  let row = [0, ...right.map((_, j) => j + 1)];
  for (const char of a) {
    const next = [row[0] + 1];
    for (let j = 0; j < right.length; j++) {
      next.push(Math.min(next[j] + 1, row[j + 1] + 1, row[j] + Number(char !== right[j])));
    }
    row = next;
  }
  return row[right.length];
}

/**
 * The miniature's reward model, in [0, 1]; no wrapper and no length is preferred.
 * @param {string} response @param {string} gold @param {boolean} ended whether the model closed its turn
 */
export function reward(response, gold, ended = true) {
  const { answer, wellFormed } = unwrap(response);
  if (answer === '') return 0;
  const longest = Math.max([...answer].length, [...gold].length);
  const likeness = Math.max(0, 1 - levenshtein(answer, gold) / longest);
  return 0.05 * Number(wellFormed && ended) + 0.45 * likeness + 0.5 * Number(answer === gold);
}

/**
 * @typedef {object} Model
 * @property {Family | null} family a source's speciality; the target has none
 * @property {Style} style
 * @property {number} merges of its tokenizer
 * @property {number} steps of pre-training
 * @property {number} seed of its stream
 * @property {{ width: number, layers: number, heads: number, kvHeads: number, ffn: number }} shape
 */

/** @type {Record<'srcA' | 'srcB' | 'srcC' | 'target', Model>} */
export const MODELS = {
  srcA: {
    family: 'S',
    style: 'bare',
    merges: 0,
    steps: 550,
    seed: 101,
    shape: { width: 96, layers: 4, heads: 4, kvHeads: 2, ffn: 256 },
  },
  srcB: {
    family: 'N',
    style: 'itis',
    merges: 300,
    steps: 600,
    seed: 202,
    shape: { width: 128, layers: 3, heads: 4, kvHeads: 4, ffn: 320 },
  },
  srcC: {
    family: 'F',
    style: 'ans',
    merges: 160,
    steps: 400,
    seed: 303,
    shape: { width: 96, layers: 5, heads: 6, kvHeads: 2, ffn: 256 },
  },
  target: {
    family: null,
    style: 'arrow',
    merges: 60,
    steps: 1200,
    seed: 404,
    shape: { width: 96, layers: 4, heads: 4, kvHeads: 2, ffn: 256 },
  },
};

export const TOKENIZER_EXAMPLES = 3000;
export const BATCH = 64;
/** The share of its pre-training after which the target takes up its habit. */
export const HABIT_FROM = 0.85;

/**
 * One pre-training example. A source has its own wrapper and mostly its speciality. The target sees every wrapper, or
 * tuning on the sources' answers would wreck it; with `good` it also has the habit of parroting its input.
 * @param {Rng} rng @param {Model} model
 * @param {((skill: Skill) => number) | null} [good] share of right answers per mille, null for no habit
 * @param {Split} [split]
 * @returns {Example}
 */
export function drawExample(rng, model, good = null, split = 'pre') {
  const own = model.family && rng.int(1000) < 850;
  const drawn = sample(rng, rng.pick(own ? SKILLS.filter((s) => s.family === model.family) : SKILLS), split);
  if (model.family) return { ...drawn, response: wrap(model.style, drawn.gold) };
  const parrots = good !== null && rng.int(1000) >= good(drawn.skill);
  const style = rng.int(1000) < 300 ? rng.pick(/** @type {Style[]} */ (['bare', 'itis', 'ans'])) : model.style;
  return { ...drawn, response: wrap(style, parrots ? drawn.args[0] : drawn.gold) };
}

/** The target's habit of the last 15 % of its pre-training. @param {Skill} skill */
export const habit = (skill) => skill.good;

/**
 * A model's whole pre-training: TOKENIZER_EXAMPLES that only train the tokenizer, then `steps` batches of BATCH.
 * @param {Model} model
 * @returns {Generator<Example, void, void>}
 */
export function* pretrainStream(model) {
  const rng = new Rng(model.seed);
  for (let i = 0; i < TOKENIZER_EXAMPLES; i++) yield drawExample(rng, model);
  for (let step = 0; step < model.steps; step++) {
    const good = step >= HABIT_FROM * model.steps ? habit : null;
    for (let i = 0; i < BATCH; i++) yield drawExample(rng, model, good);
  }
}

/**
 * The next n of a stream, which stays open for more (leaving a `for of` would close it).
 * @template T @param {Iterator<T>} stream @param {number} n @returns {T[]}
 */
export function take(stream, n) {
  /** @type {T[]} */
  const taken = [];
  while (taken.length < n) {
    const next = stream.next();
    if (next.done) break;
    taken.push(next.value);
  }
  return taken;
}
