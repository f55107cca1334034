import type { Message } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { jinja, type Template } from '../packages.js';

/** How a conversation is rendered: with the header of the answer to come, and with the tokenizer's special tokens. */
export interface RenderOptions {
  addGenerationPrompt?: boolean;
  specials?: Readonly<Record<string, string>>;
}

/** A Hugging Face chat template, compiled once; it renders as Python's Jinja does under `transformers`. */
export class ChatTemplate {
  readonly #template: Template;

  /** `where` (a path) names the template in errors. */
  constructor(
    source: string,
    readonly where = 'the chat template',
  ) {
    try {
      // Python's Jinja reads every line end as \n; trim_blocks and lstrip_blocks are what the package always applies.
      this.#template = new (jinja().Template)(source.replace(/\r\n?/g, '\n'));
    } catch (cause) {
      throw new WrpoError('ERR_MODEL', `${where}: the chat template does not compile: ${reason(cause)}`, { cause });
    }
    cure(this.#template.parsed.body);
    bound(this.#template.parsed.body);
  }

  /** The text of a conversation. */
  render(messages: readonly Message[], { addGenerationPrompt = false, specials = {} }: RenderOptions = {}): string {
    messages.forEach(requireText);
    const context = {
      ...specials,
      ...PYTHON,
      ...bounds(),
      messages,
      tools: null,
      documents: null,
      add_generation_prompt: addGenerationPrompt,
    };
    try {
      const text = this.#template.render(context);
      requireSmall(text);
      return text;
    } catch (cause) {
      const turns = messages.map(({ role }) => role).join(', ');
      if (cause instanceof Refusal) {
        throw new WrpoError('ERR_DATA', `${this.where} refuses the turns (${turns}): ${cause.message}`, { cause });
      }
      throw new WrpoError('ERR_MODEL', `${this.where} fails on the turns (${turns}): ${reason(cause)}`, { cause });
    }
  }
}

function requireText({ role, content }: Message, index: number): void {
  if (typeof role !== 'string' || typeof content !== 'string') {
    const key = typeof role === 'string' ? 'content' : 'role';
    throw new WrpoError('ERR_DATA', `message ${index + 1}: "${key}" must be a string`);
  }
}

/** A failure in words; the package's own missteps over a template that is none say nothing of it. */
function reason(cause: unknown): string {
  if (cause instanceof TypeError && /^Cannot read|is not (a function|iterable)/.test(cause.message)) {
    return 'it is cut off or malformed';
  }
  return cause instanceof Error ? cause.message : String(cause);
}

/** A template's own `raise_exception`: the conversation is at fault, not the template. */
class Refusal extends Error {}

// What str.strip() removes, which is not what String.prototype.trim() removes: \x1c to \x1f and \x85 too, U+FEFF not.
const WHITESPACE = new Set(
  '\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a' +
    '\u2028\u2029\u202f\u205f\u3000',
);

function strip(text: unknown, chars: unknown, sides: 'left' | 'right' | 'both'): string {
  if (typeof text !== 'string') throw new TypeError(`cannot strip ${text === undefined ? 'what is undefined' : text}`);
  const removed = typeof chars === 'string' ? new Set(chars) : WHITESPACE;
  let start = 0;
  let end = text.length;
  if (sides !== 'right') {
    for (const char of text) {
      if (!removed.has(char)) break;
      start += char.length;
    }
  }
  while (sides !== 'left' && end > start) {
    const width = text.codePointAt(end - 2)! > 0xffff ? 2 : 1;
    if (!removed.has(text.slice(end - width, end))) break;
    end -= width;
  }
  return text.slice(start, end);
}

/** Whether nothing of a text is left where a template strips it. */
export const isBlank = (text: string): boolean => strip(text, undefined, 'both') === '';

const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
const MONTHS = 'January February March April May June July August September October November December'.split(' ');
const two = (value: number): string => String(value).padStart(2, '0');

const DIRECTIVES: Record<string, (now: Date) => string> = {
  '%Y': (now) => String(now.getFullYear()),
  '%y': (now) => two(now.getFullYear() % 100),
  '%m': (now) => two(now.getMonth() + 1),
  '%d': (now) => two(now.getDate()),
  '%b': (now) => MONTHS[now.getMonth()]!.slice(0, 3),
  '%B': (now) => MONTHS[now.getMonth()]!,
  '%a': (now) => DAYS[now.getDay()]!.slice(0, 3),
  '%A': (now) => DAYS[now.getDay()]!,
  '%H': (now) => two(now.getHours()),
  '%I': (now) => two(now.getHours() % 12 || 12),
  '%p': (now) => (now.getHours() < 12 ? 'AM' : 'PM'),
  '%M': (now) => two(now.getMinutes()),
  '%S': (now) => two(now.getSeconds()),
  '%%': () => '%',
};

/** Python's `datetime.now().strftime` in the C locale: a machine's own locale must not change what a model reads. */
function strftimeNow(format: string): string {
  const now = new Date();
  return format.replace(/%[\s\S]?/g, (directive) => {
    const write = DIRECTIVES[directive];
    if (!write) throw new Error(`strftime_now does not know "${directive}"`);
    return write(now);
  });
}

// The interpreter lets nobody replace its own globals, and its strip, lstrip and rstrip ignore their argument. So calls
// of these are sent to functions of the render context, whose names no template can spell.
const PYTHON = {
  'python strip': (text: unknown, chars: unknown) => strip(text, chars, 'both'),
  'python lstrip': (text: unknown, chars: unknown) => strip(text, chars, 'left'),
  'python rstrip': (text: unknown, chars: unknown) => strip(text, chars, 'right'),
  'python trim': (text: unknown = '', chars?: unknown) => strip(text, chars, 'both'),
  'python strftime_now': strftimeNow,
  'python raise_exception': (message: unknown) => {
    throw new Refusal(String(message));
  },
};

/** As Python's sandbox has it. */
const LONGEST_RANGE = 100_000;
/** Rounds of loops and calls of macros in one rendering, which takes a second or two then. */
const MOST_ROUNDS = 100_000;
const LONGEST_TEXT = 1 << 24;
const LONGEST_LIST = 1 << 20;

function requireSmall(value: unknown): void {
  const [limit, what] = Array.isArray(value) ? [LONGEST_LIST, 'elements'] : [LONGEST_TEXT, 'characters'];
  const { length = 0 } = (value ?? {}) as { length?: number };
  if (length > limit) throw new RangeError(`a value of ${length} ${what} is longer than ${limit}`);
}

/** Counts and measures for one rendering, which the nodes of `bound` call. */
function bounds(): Record<string, (...values: never[]) => unknown> {
  let rounds = 0;
  return {
    'python round': () => {
      if (++rounds > MOST_ROUNDS) throw new RangeError(`it is still looping after ${MOST_ROUNDS} rounds`);
      return '';
    },
    'python measure': (value: unknown) => {
      requireSmall(value);
      return '';
    },
    'python range': (first: number, second?: number, step = 1) => {
      const [start, stop] = second === undefined ? [0, first] : [first, second];
      const length = Math.max(0, Math.ceil((stop - start) / step));
      if (step === 0) throw new RangeError('range() step must not be zero');
      if (!(length <= LONGEST_RANGE)) throw new RangeError(`a range of ${length} is longer than ${LONGEST_RANGE}`);
      return Array.from({ length }, (_, i) => start + i * step);
    },
  };
}

const python = (name: string) => ({ type: 'Identifier', value: `python ${name}` });

interface Node {
  type?: string;
  assignee?: Node;
  body?: Node[];
  value?: unknown;
  callee?: Node & { object?: Node; property?: Node; computed?: boolean };
  args?: Node[];
  operand?: Node;
  filter?: Node & { callee?: Node; args?: Node[] };
}

/** Redirects, in place and at any depth, the calls in which the interpreter departs from Python. */
function cure(tree: unknown): void {
  if (typeof tree !== 'object' || tree === null) return;
  const node = tree as Node;
  if (node.type === 'CallExpression') cureCall(node);
  if (node.type === 'FilterExpression') cureTrim(node);
  const children: Iterable<unknown> = tree instanceof Map ? [...tree].flat() : Object.values(tree);
  for (const child of children) cure(child);
}

function cureCall(node: Node): void {
  const { callee, args = [] } = node;
  const name = String(callee?.value);
  if (callee?.type === 'Identifier' && /^(strftime_now|raise_exception|range)$/.test(name)) node.callee = python(name);
  if (callee?.type !== 'MemberExpression' || callee.computed) return;
  const method = String(callee.property?.value);
  if (/^[lr]?strip$/.test(method)) Object.assign(node, { callee: python(method), args: [callee.object, ...args] });
}

function cureTrim(node: Node): void {
  const { operand, filter } = node;
  const name = filter?.type === 'CallExpression' ? filter.callee?.value : filter?.value;
  if (name !== 'trim') return;
  const args = (filter?.args ?? []).map((arg) =>
    arg.type === 'KeywordArgumentExpression' ? (arg.value as Node) : arg,
  );
  Object.assign(node, { type: 'CallExpression', callee: python('trim'), args: [operand, ...args] });
}

/**
 * Puts bounds into a template, which may come from anywhere: every round of a loop and every call of a macro is counted, and
 * what a variable is set to is measured, since only so can a value grow from round to round.
 */
function bound(tree: unknown): void {
  if (typeof tree !== 'object' || tree === null) return;
  const call = (name: string, ...args: Node[]): Node => ({ type: 'CallExpression', callee: python(name), args });
  const children: unknown[] = tree instanceof Map ? [...tree].flat() : Object.values(tree);
  for (const child of children) bound(child);
  const { type, body } = tree as Node;
  if ((type === 'For' || type === 'Macro') && body) body.unshift(call('round'));
  if (!Array.isArray(tree)) return;
  for (let i = tree.length - 1; i >= 0; i--) {
    const { type: kind, assignee } = (tree[i] ?? {}) as Node;
    if (kind === 'Set' && /^(Identifier|MemberExpression)$/.test(String(assignee?.type))) {
      tree.splice(i + 1, 0, call('measure', assignee!));
    }
  }
}
