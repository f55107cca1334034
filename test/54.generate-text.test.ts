/** Generated text: streaming, stop strings, `wrpo generate`, `wrpo chat`, and a model of this machine as a source. */
import { cpSync, existsSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { resolveFusion } from '../lib/fuse/config.ts';
import { localSampler } from '../lib/fuse/local.ts';
import { sampleModel } from '../lib/fuse/sample.ts';
import { Store } from '../lib/fuse/store.ts';
import { Model } from '../lib/model/model.ts';
import { encodePrompt } from '../lib/text/prompt.ts';
import { TextStream } from '../lib/text/text-stream.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { contentsOf, promptsOf, user } from './fusion.ts';
import { expectSentence } from './support.ts';
import {
  expectFailure,
  FIXTURES,
  fail,
  leftovers,
  POLICY,
  readJsonLines,
  scratchDirectory,
  sentence,
  start,
  succeed,
  writeRows,
  writeRunFile,
} from './training.ts';

const path = scratchDirectory('text');
const LLAMA3 = join(FIXTURES, 'text', 'llama3');
const MODEL = path('model');
let tokenizer: Tokenizer;
let model: Model;

/** A tiny model with the Llama-3 tokenizer of the fixtures. */
beforeAll(async () => {
  tokenizer = await Tokenizer.load(LLAMA3);
  model = await Model.create({
    ...{ model_type: 'llama', vocab_size: tokenizer.vocabSize, hidden_size: 32, num_hidden_layers: 2 },
    ...{ num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 512, initializer_range: 0.1 },
    ...{ tie_word_embeddings: true, eos_token_id: tokenizer.eosTokenId },
  });
  await model.save(MODEL);
  for (const name of ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja']) {
    cpSync(join(LLAMA3, name), join(MODEL, name));
  }
  return () => model.close();
});

async function streamed(text: string, stop: string[]) {
  const stream = new TextStream(tokenizer, stop);
  const parts: string[] = [];
  for (const id of await tokenizer.encode(text)) {
    if (stream.stopped) break;
    parts.push(await stream.push(id));
  }
  parts.push(await stream.end());
  return { parts, text: stream.text, stopped: stream.stopped };
}

describe('a stream of text', () => {
  const text = 'Grüße, 世界! 🙂👩‍👩‍👧 The end is near.\n\nEND of it';

  it('tells all of it, and never half a character', async () => {
    const { parts, text: whole, stopped } = await streamed(text, []);
    expect(parts.join('')).toBe(text);
    expect([whole, stopped]).toEqual([text, false]);
    expect(parts.filter((part) => part !== '').length).toBeGreaterThan(10);
    for (const part of parts) expect(part).not.toContain('\ufffd');
  });

  it.each([
    ['END', text.slice(0, text.indexOf('END'))],
    ['世', 'Grüße, '],
    ['end is', text.slice(0, text.indexOf('end is'))],
    ['\n\n', text.slice(0, text.indexOf('\n\n'))],
  ])('ends before the stop string %j and tells nothing of it', async (stop, expected) => {
    const { parts, text: whole, stopped } = await streamed(text, ['never', stop]);
    expect([whole, stopped]).toEqual([expected, true]);
    expect(parts.join('')).toBe(expected);
  });

  it('gives back what only looked like a stop string', async () => {
    expect(await streamed('The enx', ['end'])).toMatchObject({ text: 'The enx', stopped: false });
    expect(await streamed('The en', ['end'])).toMatchObject({ text: 'The en', stopped: false });
  });

  it('leaves out special tokens', async () => {
    const stream = new TextStream(tokenizer);
    for (const id of [...(await tokenizer.encode('Yes.')), tokenizer.eosTokenId!]) await stream.push(id);
    await stream.end();
    expect(stream.text).toBe('Yes.');
  });
});

describe('Model.generate with a tokenizer', () => {
  it('gives samples their text, told while it comes, and ends them at stop strings', async () => {
    const prompt = { ids: await encodePrompt(user('Hello?'), tokenizer), seeds: [1, 2, 3, 4, 5, 6, 7, 8] };
    const options = { maxTokens: 60, tokenizer };
    const told = new Map<number, string>();
    const onToken = ({ sample, text }: { sample: number; text: string }) => {
      told.set(sample, (told.get(sample) ?? '') + text);
    };
    const whole: string[] = [];
    for await (const { samples } of model.generate([prompt], { ...options, onToken })) {
      for (const [i, { ids, text }] of samples.entries()) {
        expect(text).toBe(await tokenizer.decode(ids, { skipSpecialTokens: true }));
        expect(told.get(i)).toBe(text);
        whole.push(text!);
      }
    }
    // Something that stands in one of them, and maybe in others.
    const stop = whole[0]!.slice(40, 42);
    for await (const { samples } of model.generate([prompt], { ...options, stop: [stop] })) {
      for (const [i, { text, finishReason, ids }] of samples.entries()) {
        const at = whole[i]!.indexOf(stop);
        expect(text).toBe(at === -1 ? whole[i] : whole[i]!.slice(0, at));
        if (at !== -1) expect(finishReason).toBe('stop');
        if (at !== -1 && at < 40) expect(ids.length).toBeLessThan(60);
      }
      expect(samples[0]!.finishReason).toBe('stop');
    }
  });
});

const generate = (...args: string[]) => ['generate', '--model', MODEL, ...args];
const PROMPTS = () =>
  existsSync(path('prompts.jsonl'))
    ? path('prompts.jsonl')
    : writeRows(path('prompts.jsonl'), [
        { prompt: 'What is 1 and 1?' },
        { prompt: user('Name a colour.'), prompt_id: 'mine' },
        { prompt: [{ role: 'system', content: 'Be brief.' }, ...user('Hello!')] },
      ]);
interface Line {
  prompt_id: string;
  prompt: unknown;
  responses: string[];
  finish_reasons: string[];
  seeds: number[];
  logprobs?: number[][];
}

describe('wrpo generate', () => {
  it('writes a line a prompt, in order; the same again, another by another seed', async () => {
    const args = generate('--prompts', PROMPTS(), '--n', '4', '--max-tokens', '12', '--logprobs');
    const file = path('out.jsonl');
    const { stderr } = await succeed([...args, '--output', file]);
    expect(stderr).toMatch(/\d+ tokens in \d+\.\d s, .* tokens\/s/);
    const lines = readJsonLines<Line>(file);
    expect(lines.map(({ prompt }) => prompt)).toEqual([
      'What is 1 and 1?',
      'Name a colour.',
      [{ role: 'system', content: 'Be brief.' }, ...user('Hello!')],
    ]);
    expect(lines[1]!.prompt_id).toBe('mine');
    for (const { responses, finish_reasons, seeds, logprobs } of lines) {
      for (const list of [responses, finish_reasons, seeds, logprobs!]) expect(list).toHaveLength(4);
      expect(new Set(responses).size).toBeGreaterThan(1);
      for (const list of logprobs!) for (const value of list) expect(value).toBeLessThan(0);
    }
    const again = await succeed(args);
    expect(
      again.stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    ).toEqual(lines);
    // More samples begin with the same ones.
    const more = await succeed(generate('--prompts', PROMPTS(), '--n', '6', '--max-tokens', '12'));
    const longer = more.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Line);
    expect(longer.map(({ responses }) => responses.slice(0, 4))).toEqual(lines.map(({ responses }) => responses));
    const other = await succeed([...args, '--seed', '7']);
    expect(other.stdout).not.toContain(JSON.stringify(lines[0]!.responses));
    expect(leftovers(path())).toEqual([]);
  });

  it('token ids, by a model without a tokenizer', async () => {
    const rows = writeRows(path('ids.jsonl'), [{ prompt: [1, 5, 9] }, { prompt: [7] }]);
    const { stdout } = await succeed([
      'generate',
      '--model',
      POLICY,
      '--prompts',
      rows,
      '--temperature',
      '0',
      '--max-tokens',
      '6',
    ]);
    const loaded = await Model.load(POLICY);
    const expected: number[][] = [];
    const asked = [[1, 5, 9], [7]].map((ids) => ({ ids, seeds: [0] }));
    for await (const { samples } of loaded.generate(asked, { temperature: 0, maxTokens: 6 })) {
      expected.push(samples[0]!.ids);
    }
    await loaded.close();
    expect(
      stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line).responses[0]),
    ).toEqual(expected);
  });

  it('one sentence for what is wrong', async () => {
    const text = generate('--prompts', PROMPTS());
    expect(await fail([...text, '--top-p', '1.5'], 1)).toMatch(/top_p must be above 0 and at most 1/);
    expect(await fail([...text, '--max-tokens', '0'], 1)).toMatch(/max_tokens must be at least 1/);
    expect(await fail([...text, '--temperature', 'hot'], 2)).toMatch(/'hot'.*expected a number/);
    const empty = writeRows(path('empty.jsonl'), [{ prompt: 'good' }, { prompt: ' ' }]);
    expect(await fail(generate('--prompts', empty), 1)).toMatch(/empty.jsonl line 2: "prompt" is empty/);
    const none = writeRows(path('none.jsonl'), [{ prompt: [] }]);
    expect(await fail(generate('--prompts', none), 1)).toMatch(/no tokens|empty/);
    const outside = writeRows(path('outside.jsonl'), [{ prompt: [1, 99_999] }]);
    expect(await fail(generate('--prompts', outside), 1)).toMatch(/token 1 has the id 99999/);
    const noTokenizer = ['generate', '--model', POLICY, '--prompts', PROMPTS()];
    expect(await fail(noTokenizer, 1)).toMatch(/no tokenizer.json/);
  });

  it.each([
    ['while the model is read', () => true],
    ['between its answers', (bytes: number) => bytes > 0],
  ])('Ctrl-C %s ends it without a file', async (_, reached) => {
    const many = Array.from({ length: 3000 }, (_, i) => ({ prompt: `question ${i}` }));
    const file = path('stopped.jsonl');
    const args = generate('--prompts', writeRows(path('many.jsonl'), many), '--max-tokens', '40', '--output', file);
    const child = start(args);
    const temporary = `${file}.${child.process.pid}.tmp`;
    expect(await child.until(() => existsSync(temporary) && reached(statSync(temporary).size))).toBe(true);
    const result = await child.kill('SIGINT');
    expect(result).toMatchObject({ status: 1, stderr: expect.stringContaining('wrpo: stopped') });
    expect(existsSync(file)).toBe(false);
    expect(leftovers(path())).toEqual([]);
  });
});

describe('wrpo chat', () => {
  it('answers every line', async () => {
    const child = start(['chat', '--model', MODEL, '--max-tokens', '8', '--system', 'Be brief.'], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    child.process.stdin!.end('hello\n\nand again\n');
    const { status, stdout, stderr } = await child.done;
    expect(status, stderr).toBe(0);
    const [generated] = await answersOf(['hello']);
    expect(stdout.startsWith(`${generated}\n`)).toBe(true);
    expect(stdout.length).toBeGreaterThan(generated!.length + 2);
  });

  async function answersOf([first]: string[]) {
    const turns = [{ role: 'system', content: 'Be brief.' }, ...user(first!)];
    const asked = { ids: await encodePrompt(turns, tokenizer), seeds: [42] };
    const options = { temperature: 0.8, topP: 0.95, maxTokens: 8, tokenizer, maxSequences: 1 };
    const texts: string[] = [];
    for await (const { samples } of model.generate([asked], options)) texts.push(samples[0]!.text!);
    return texts;
  }

  it('says what it needs', async () => {
    const child = start(['chat', '--model', POLICY]);
    expect(sentence(await child.done, 1)).toMatch(/no tokenizer.json/);
  });
});

describe('a model of this machine as a source', () => {
  const options = {
    ...{ name: 'here', model: MODEL, dtype: 'float32' as const, concurrency: 8, n: 3 },
    ...{ temperature: 0.8, topP: 0.95, topK: 0, minP: 0, repetitionPenalty: 1, maxTokens: 10 },
  };

  it('samples into the store, the same however the work is cut', async () => {
    const whole = await Store.create(path('store-whole'), promptsOf(20));
    const one = await localSampler(options);
    const totals = await sampleModel(whole, one, { n: 3, seed: 42 });
    await one.close!();
    expect(totals).toMatchObject({ prompts: 20, samples: 60, failed: 0 });
    expect(totals.completionTokens).toBeLessThanOrEqual(600);

    const cut = await Store.create(path('store-cut'), promptsOf(20));
    for (const until of [3, 9, Number.POSITIVE_INFINITY]) {
      const controller = new AbortController();
      const again = await localSampler(options);
      let done = 0;
      const run = { n: 3, seed: 42, signal: controller.signal };
      await sampleModel(cut, again, { ...run, onPrompt: () => ++done === until && controller.abort() }).catch(
        (error) => {
          if (error.name !== 'AbortError') throw error;
        },
      );
      await again.close!();
    }
    expect(contentsOf(cut.directory)).toEqual(contentsOf(whole.directory));
  });

  it('is a source of a run file', async () => {
    const run = writeRunFile(path('fusion.yaml'), {
      ...{ output_dir: path('fused'), prompts: PROMPTS(), n: 2, max_tokens: 6 },
      sources: [
        { name: 'warm', model: MODEL },
        { name: 'hot', model: MODEL, temperature: 2, top_k: 50 },
      ],
    });
    const plan = JSON.parse((await succeed(['sample', '--config', run, '--dry-run', '--json'])).stdout);
    expect(plan.models[0]).toMatchObject({ model: 'warm', prompts: 3, requests: 3, completionTokens: 36 });
    const { stdout } = await succeed(['sample', '--config', run, '--json']);
    for (const totals of JSON.parse(stdout)) expect(totals).toMatchObject({ prompts: 3, samples: 6, failed: 0 });
    const texts = (name: string) =>
      readJsonLines<{ samples: { text: string }[] }>(path('fused', 'samples', `${name}.jsonl`)).map(
        ({ samples }) => samples,
      );
    expect(texts('warm')).not.toEqual(texts('hot'));
  });

  it('a template without a system role gets it in the first user turn; what it refuses fails alone', async () => {
    const directory = path('no-system');
    cpSync(MODEL, directory, { recursive: true });
    const template = `{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}{% if 'forbidden' in m.content %}{{ raise_exception('not that') }}{% endif %}{{ m.content }}{% endfor %}`;
    writeFileSync(join(directory, 'chat_template.jinja'), template);
    const said: string[] = [];
    const sampler = await localSampler({ ...options, model: directory, say: (line) => said.push(line) });
    const ask = (messages: { role: string; content: string }[]) =>
      sampler.sample({ promptId: 'p', messages, seeds: [1] }, new AbortController().signal);
    const system = { role: 'system', content: 'Be brief.' };
    const folded = await ask([system, ...user('Hi')]);
    expect(folded).toEqual(await ask(user('Be brief.\n\nHi')));
    expect(said).toEqual([expect.stringMatching(/here: the model takes no system turns/)]);
    expect(await ask(user('forbidden'))).toMatchObject({ samples: [], failure: expect.stringContaining('not that') });
    await sampler.close!();
  });

  it('one sentence for what is wrong', async () => {
    await expectSentence(() => localSampler({ ...options, model: path('nowhere') }), 'ERR_MODEL', 'no model in');
    await expectSentence(() => localSampler({ ...options, model: POLICY }), 'ERR_MODEL', 'no tokenizer.json');
    const where = (...keys: PropertyKey[]) => keys.map(String).join(' ');
    const resolve = (source: object) => resolveFusion({ output_dir: 'x', sources: [source] }, where);
    await expectFailure(
      () => resolve({ name: 'a', model: 'm', top_kk: 3 }),
      'ERR_CONFIG',
      /unknown key "top_kk".*"top_k"/,
    );
    await expectFailure(() => resolve({ name: 'a' }), 'ERR_CONFIG', /base_url .* model .* import/);
  });
});
