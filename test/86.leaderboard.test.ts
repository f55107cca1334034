/** The Open LLM Leaderboard's tasks against lm-evaluation-harness on the same tiny model (fixtures/evaluate/make_lm_eval.py). */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { encodeRequests, groupSequences, logLikelihoods, type Sequence } from '../lib/evaluate/loglikelihood.ts';
import { mean, pooled, standardError } from '../lib/evaluate/statistics.ts';
import {
  cleanHellaSwag,
  type Doc,
  extractAnswer,
  preambles,
  scoreChoices,
  scoreSolution,
  TASKS,
} from '../lib/evaluate/tasks.ts';
import { readExamples } from '../lib/evaluate/truthfulqa.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { randomIds, randomOf, tinyModel } from './support.ts';
import { expectFailure, FIXTURES, fail, readJson, scratchDirectory, succeed } from './training.ts';

const path = scratchDirectory('leaderboard');
const HARNESS = join(FIXTURES, 'evaluate', 'lm_eval');
const vector = readJson(join(FIXTURES, 'evaluate', 'lm_eval.json'));
const NAMES = Object.keys(TASKS);

function runFile(values: object = {}): string {
  const file = path('run.yaml');
  const data = Object.fromEntries(NAMES.map((name) => [name, join(HARNESS, 'data', name)]));
  const own = { output_dir: path('out'), model: join(HARNESS, 'model'), dtype: 'float64', max_length: 1024, data };
  const prompt = join(HARNESS, 'truthfulqa_prompt.txt');
  const all = { benchmark: 'open_llm_leaderboard', ...own, truthfulqa_prompt: prompt, ...values };
  writeFileSync(file, JSON.stringify(all)); // JSON is YAML
  return file;
}

describe('lm-evaluation-harness', () => {
  it('finds the same numbers on all six tasks, contexts that are cut and groups of subjects included', async () => {
    const { stdout } = await succeed(['evaluate', '--config', runFile(), '--json']);
    const { results, average, ...layout } = JSON.parse(stdout);
    const expected = readJson(join(HARNESS, 'expected.json'));
    const keys = Object.keys(expected);
    expect(Object.keys(results).sort()).toEqual(keys.sort());
    expect(keys).toHaveLength(6 + 4 + 57);
    for (const key of keys) {
      for (const [metric, value] of Object.entries(expected[key] as Record<string, number>)) {
        expect(Math.abs(results[key][metric] - value), `${key} ${metric}`).toBeLessThan(1e-6);
      }
    }
    expect(layout).toMatchObject({
      'n-shot': { arc_challenge: 25, mmlu: 5 },
      'n-samples': { mmlu_anatomy: { original: 2, effective: 2 }, gsm8k: { original: 12, effective: 12 } },
      versions: { gsm8k: 3, mmlu_anatomy: 1, mmlu: '2' },
      higher_is_better: { mmlu_stem: { acc: true }, gsm8k: { exact_match: true } },
      groups: { mmlu_social_sciences: { alias: 'social sciences', sample_len: 24 } },
    });
    expect(results.mmlu_anatomy).toMatchObject({ name: 'mmlu_anatomy', alias: 'anatomy', sample_len: 2 });
    expect(Object.keys(layout.groups)).toHaveLength(5);
    expect(layout.group_subtasks.mmlu).toHaveLength(4);
    expect(layout.group_subtasks.mmlu_stem).toContain('mmlu_anatomy');
    const six = ['arc_challenge', 'hellaswag', 'mmlu', 'truthfulqa_mc2', 'winogrande'].map((name) => {
      return results[name][`${TASKS[name]!.metric},none`];
    });
    expect(average).toBeCloseTo(100 * mean([...six, results.gsm8k['exact_match,strict-match']]), 10);
  });

  it('says in a sentence what rows or settings lack', async () => {
    const run = (values: object) => fail(['evaluate', '--config', runFile(values)], 1);
    expect(await run({ tasks: ['arc'] })).toMatch(/no task "arc"; there is arc_challenge/);
    expect(await run({ truthfulqa_prompt: null })).toMatch(/truthfulqa_mc2 needs truthfulqa_prompt/);
    writeFileSync(path('task.yaml'), 'doc_to_text: "{{question}}"\n');
    expect(await run({ truthfulqa_prompt: path('task.yaml') })).toMatch(
      /task.yaml: expected a task file of TruthfulQA/,
    );
    writeFileSync(
      path('test.jsonl'),
      '{"question": "why?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}\n',
    );
    writeFileSync(
      path('train.jsonl'),
      '{"question": "why?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}\n',
    );
    expect(await run({ tasks: ['arc_challenge'], data: { arc_challenge: path() } })).toMatch(
      /arc_challenge: test.jsonl line 1: "answerKey" must name one of 1 choices/,
    );
    writeFileSync(
      path('test.jsonl'),
      '{"question": "why?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}\n',
    );
    expect(await run({ tasks: ['arc_challenge'], data: { arc_challenge: path() } })).toMatch(
      /the split "train": expected at least 25 examples, found 1/,
    );
  });
});

describe("TruthfulQA's prompt", () => {
  it("comes from a text file or from the harness's task file, and is told apart from the harness's own", () => {
    const text = readFileSync(join(HARNESS, 'truthfulqa_prompt.txt'), 'utf8').trim();
    expect(readExamples(join(HARNESS, 'truthfulqa_prompt.txt'))).toEqual({ text, isOfficial: false });
    // As the harness's file is written, with its folded lines and what it has beside the prompt.
    const folded = text.replaceAll('\n', '\\n\\\n  ');
    const rest = "'%}\\\n  {{prompt_qa + '\\n\\nQ: ' + question + '\\nA:'}}\"\nprocess: !function utils.of\n";
    writeFileSync(path('mc1.yaml'), `doc_to_text: "\\\n  {% set prompt_qa = '\\\n  ${folded}\\\n  ${rest}`);
    writeFileSync(path('mc2.yaml'), 'include: mc1.yaml\ntask: truthfulqa_mc2\n');
    for (const name of ['mc1', 'mc2']) expect(readExamples(path(`${name}.yaml`)).text).toBe(text);
  });
});

describe('tasks', () => {
  it('count as the vectors do', () => {
    const { choices, lls, gold, acc, acc_norm } = vector.multiple_choice;
    const doc = { contexts: [], continuations: choices, gold, example: '' };
    expect(scoreChoices(TASKS.arc_challenge!, doc, lls)).toEqual({ acc, acc_norm });
    const mc2 = vector.truthfulqa_mc2;
    const found = scoreChoices(TASKS.truthfulqa_mc2!, { ...doc, labels: mc2.labels }, mc2.lls);
    expect(found.acc).toBeCloseTo(mc2.acc, 12);
    for (const { response, strict, flexible, ...extracted } of vector.gsm8k.cases) {
      const solution: Doc = { ...doc, continuations: [vector.gsm8k.gold] };
      expect(extractAnswer(response)).toEqual({
        strict: extracted.strict_extracted,
        flexible: extracted.flexible_extracted,
      });
      expect(scoreSolution(solution, response)).toEqual({
        ...{ 'exact_match,strict-match': strict, 'exact_match,flexible-extract': flexible },
      });
    }
    expect(standardError(vector.mean_stderr.values)).toBeCloseTo(vector.mean_stderr.stderr, 14);
    const { metrics, sizes, stderrs, weighted_acc, pooled_stderr } = vector.group;
    const groups = metrics.map((value: number, i: number) => ({ value, stderr: stderrs[i], size: sizes[i] }));
    expect(pooled(groups).value).toBeCloseTo(weighted_acc, 12);
    expect(pooled(groups).stderr).toBeCloseTo(pooled_stderr, 12);
  });

  it('read rows as the vectors do', () => {
    const { input, output } = vector.hellaswag_preprocess;
    expect(cleanHellaSwag(input)).toBe(output);
    const { doc, contexts, continuation, gold } = vector.winogrande;
    const found = TASKS.winogrande!.read(doc, 'row', {});
    expect(found).toMatchObject({ contexts, gold });
    expect(found.continuations.map((one) => ` ${one}`)).toEqual([continuation, continuation]);
  });

  it('leave a row out of its own examples, where the harness does', () => {
    const docs = Array.from(
      { length: 12 },
      (_, i): Doc => ({ contexts: [], continuations: [], gold: 0, example: `<${i}>` }),
    );
    const task = { ...TASKS.winogrande!, shots: 11 };
    for (const [i, preamble] of preambles(task, docs, docs).entries()) expect(preamble).not.toContain(`<${i}>`);
  });
});

describe('log-likelihoods', () => {
  it('of continuations do not depend on what is shared, packed or beside them', async () => {
    const random = randomOf(5);
    const model = await tinyModel({}, { dtype: 'float64' });
    const stem = randomIds(random, 20);
    const sequences: Sequence[] = Array.from({ length: 14 }, (_, i) => {
      const tail = randomIds(random, 1 + (i % 5));
      const head = i < 8 ? stem : i < 11 ? stem.subarray(0, 6) : randomIds(random, 4);
      return { ids: Int32Array.from([...head, ...tail]), context: head.length - (i % 3) };
    });
    const together = await logLikelihoods(model, sequences, { microbatchTokens: 64 });
    expect(groupSequences(sequences, 64, Number.POSITIVE_INFINITY).length).toBeLessThan(sequences.length);
    for (const [i, sequence] of sequences.entries()) {
      const [alone] = await logLikelihoods(model, [{ ...sequence }], { microbatchTokens: 1 });
      expect(together[i]).toBeCloseTo(alone!, 10);
    }
    await model.close();
  });

  it('move the spaces that end a context, cut from the left, and refuse what is nothing', async () => {
    const tokenizer = await Tokenizer.load(join(HARNESS, 'model'));
    const encode = (context: string, continuation: string, maxLength = 999) =>
      encodeRequests([{ context, continuation, where: 'row 1' }], tokenizer, maxLength);
    const { context, continuation, context_used, continuation_used } = vector.encode_pair;
    const [moved] = await encode(context, continuation);
    expect(moved).toEqual((await encode(context_used, continuation_used))[0]);
    expect(await tokenizer.decode(moved!.ids.subarray(moved!.context))).toBe(continuation_used);
    const [whole] = await encode('one two three four', ' five');
    const [cut] = await encode('one two three four', ' five', 4);
    expect(cut!.ids).toEqual(whole!.ids.slice(-5));
    await expectFailure(() => encode('one', ''), 'ERR_DATA', /row 1: the continuation has no tokens/);
    await expectFailure(() => encode('one', ' two three four five six', 3), 'ERR_DATA', /longer than 3 tokens/);
  });
});
