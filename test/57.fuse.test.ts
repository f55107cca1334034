/** A whole fusion in one call: its stages, what makes them be done again, and what becomes of one that is killed. */
import { appendFileSync, cpSync, existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { parse, stringify } from 'yaml';
import { fuse } from '../lib/fuse/call.ts';
import { type FusionInput, resolveFusion } from '../lib/fuse/config.ts';
import { type FuseOptions, runFusion } from '../lib/fuse/fuse.ts';
import { functionScorer } from '../lib/fuse/score.ts';
import { FakeServer, scoreOf } from './fake-server.ts';
import { contentsOf } from './fusion.ts';
import { TestHub } from './hub.ts';
import {
  Child,
  expectFailure,
  fail,
  filesBelow,
  MAIN,
  ROOT,
  randomOf,
  readJson,
  readJsonLines,
  scratchDirectory,
  sleep,
  succeed,
  writeRows,
  writeRunFile,
} from './training.ts';

const path = scratchDirectory('fuse');
const model = (name: string) => join(ROOT, 'miniature', 'models', name);
const TRAINING = {
  ...{ perDeviceTrainBatchSize: 4, gradientAccumulationSteps: 1, maxLength: 96, loggingSteps: 1 },
  disableTqdm: true,
};
const PROMPTS = Array.from({ length: 40 }, (_, i) => ({ prompt: `Add one to ${i}` }));
const prompts = writeRows(path('prompts.jsonl'), PROMPTS);
/** Liking what is short, and telling every text from another. */
const liking = functionScorer('liking', ({ response }) => scoreOf(response) - response.length / 100);

const config = (outputDir: string, more: Partial<FusionInput> = {}): FusionInput => ({
  ...{ outputDir, prompts, modelNameOrPath: model('target'), n: 2, maxTokens: 12, heldOut: 6, rowSchema: 'flat' },
  sources: ['srcA', 'srcB'].map((name) => ({ name, model: model(name) })),
  sft: { ...TRAINING, learningRate: 1e-4 },
  train: {
    wrpo: { ...TRAINING, lossType: 'wrpo', alpha: 0.5, beta: 0.5, learningRate: 1e-4 },
    dpo: { ...TRAINING, lossType: 'dpo', beta: 0.5, learningRate: 1e-4 },
  },
  ...more,
});
const STAGES = [
  ...['sample-sources', 'score-sources', 'select-sft', 'sft', 'sample-target', 'score-target', 'select', 'reference'],
  ...['train/wrpo', 'train/dpo', 'evaluate'],
];
const run = async (input: FusionInput, options: FuseOptions = {}) => {
  const said: string[] = [];
  const result = await fuse(input, { scorers: [liking], say: (line) => said.push(line), ...options });
  const done = said.filter((line) => STAGES.includes(line.split(':')[0]!) && !line.endsWith(': done before'));
  return { ...result, said, done: [...new Set(done.map((line) => line.split(':')[0]!))] };
};
const rowsIn = (file: string) => readFileSync(file, 'utf8').trimEnd().split('\n').length;
const fresh = (() => {
  let count = 0;
  return () => {
    const directory = path(`copy-${++count}`);
    cpSync(path('first'), directory, { recursive: true, preserveTimestamps: true });
    return directory;
  };
})();

describe('a fusion', () => {
  let first: Awaited<ReturnType<typeof run>>;
  beforeAll(async () => {
    first = await run(config(path('first')));
  });

  it('goes through all its stages, and each says what it was made from and what it wrote', () => {
    expect(first.done).toEqual(STAGES);
    expect(first.stages.map(({ stage }) => stage)).toEqual(STAGES);
    expect(rowsIn(path('first/selected-sft/sft.jsonl'))).toBe(11); // a third of what is not held out
    const quadruples = readJsonLines<Record<string, string>>(path('first/selected/train.jsonl'));
    expect(quadruples.length).toBeGreaterThan(8);
    for (const row of quadruples) expect(Object.keys(row)).toContain('source_chosen');
    const { inputs, outputs, seconds, peak_rss_bytes } = readJson(path('first/stages/train-wrpo.json'));
    expect(inputs).toMatchObject({ loss_type: 'wrpo', alpha: 0.5, learning_rate: 1e-4 });
    expect(inputs['sft/model.safetensors']).toMatch(/^[0-9a-f]{64}$/);
    expect(outputs['train/wrpo/model.safetensors']).toMatch(/^[0-9a-f]{64}$/);
    expect([seconds > 0, peak_rss_bytes > 1e7]).toEqual([true, true]);
    expect(filesBelow(path('first')).filter((name) => /lock|\.tmp$|\.part$/.test(name))).toEqual([]);
  });

  it('compares the models on the prompts that were held out', () => {
    const rows = first.results!;
    expect(rows.map(({ name }) => name)).toEqual(['target', 'srcA', 'srcB', 'target-sft', 'wrpo', 'dpo']);
    expect(readJson(path('first/evaluation/results.json'))).toEqual({ scorer: 'liking', rows });
    const answers = readJsonLines<{ answers: Record<string, { text: string; reward: number }> }>(
      path('first/evaluation/answers.jsonl'),
    );
    expect(answers).toHaveLength(6);
    for (const { name, reward, win_rate, n, mean_length } of rows) {
      const own = answers.map((row) => row.answers[name]!);
      for (const { text, reward } of own) expect(reward).toBeCloseTo(scoreOf(text) - text.length / 100, 12);
      expect(n).toBe(6);
      expect(reward).toBeCloseTo(own.reduce((sum, one) => sum + one.reward, 0) / 6, 12);
      expect(mean_length).toBeCloseTo(own.reduce((sum, { text }) => sum + text.length, 0) / 6, 12);
      const wins = answers.map((row) => (1 + Math.sign(row.answers[name]!.reward - row.answers.target!.reward)) / 2);
      expect(win_rate).toBeCloseTo(wins.reduce((sum, win) => sum + win, 0) / 6, 12);
    }
    const logps = readJsonLines<{ model: string; row: number; rejected: number; lengths: object }>(
      path('first/evaluation/logps.jsonl'),
    );
    const count = rowsIn(path('first/selected/train.jsonl'));
    for (const name of ['target', 'target-sft', 'wrpo', 'dpo']) {
      expect(logps.filter((row) => row.model === name)).toHaveLength(count);
    }
    for (const row of logps) expect(row.rejected).toBeLessThan(0);
  });

  it('does nothing twice', async () => {
    const before = Object.fromEntries(filesBelow(path('first')).map((name) => [name, statSync(path('first', name))]));
    const began = performance.now();
    const again = await run(config(path('first')));
    expect(performance.now() - began).toBeLessThan(2000);
    expect(again.done).toEqual([]);
    expect(again.results).toEqual(first.results);
    for (const [name, { mtimeMs }] of Object.entries(before)) {
      if (!/^(config\.yaml|report\.html)$/.test(name))
        expect(statSync(path('first', name)).mtimeMs, name).toBe(mtimeMs);
    }
  });

  it('trains what is new alone, and asks nobody twice to compare it', async () => {
    const outputDir = fresh();
    const { train } = config(outputDir);
    const simpo = { ...TRAINING, lossType: 'simpo', learningRate: 1e-4 } as const;
    const more = await run(config(outputDir, { train: { ...train, simpo } }));
    expect(more.said).toContain('train/simpo');
    expect(more.done).toEqual(['reference', 'evaluate']);
    expect(more.results!.slice(0, 6)).toEqual(first.results);
    expect(more.results![6]!.name).toBe('simpo');
  });

  it('learns from another view of the same samples where a run names one', async () => {
    const outputDir = fresh();
    const input = config(outputDir, { selections: { 'of-b': { subset: ['srcB'] } } });
    input.train = { ...input.train, 'wrpo-of-b': { ...input.train!.wrpo, selection: 'of-b' } };
    await run(input);
    const rows = readJsonLines<{ meta: { source_model: string } }>(join(outputDir, 'selections/of-b/train.jsonl'));
    expect(new Set(rows.map(({ meta }) => meta.source_model))).toEqual(new Set(['srcB']));
    const { inputs } = readJson(join(outputDir, 'stages/train-wrpo-of-b.json'));
    expect(Object.keys(inputs)).toContain('selections/of-b/train.jsonl');
  });

  it('refuses a changed setting, naming it, until it is told from where to do it again', async () => {
    const outputDir = fresh();
    const changed = config(outputDir, { sft: { ...TRAINING, learningRate: 2e-4 } });
    await expectFailure(
      () => run(changed),
      'ERR_CHECKPOINT',
      /^the stage sft was done with another learning_rate, 0\.0001 then and 0\.0002 now: set it back, take another output_dir, or do it again with --from sft$/,
    );
    const old = readFileSync(join(outputDir, 'samples/target-sft.jsonl'));
    const again = await run(changed, { from: 'sft' });
    expect(again.done).toEqual(STAGES.slice(STAGES.indexOf('sft')));
    // What was sampled is not thrown away.
    expect(readFileSync(join(outputDir, 'superseded/1/samples/target-sft.jsonl'))).toEqual(old);
    expect(existsSync(join(outputDir, 'superseded/1/samples/srcA.jsonl'))).toBe(false);
    expect((await run(changed)).done).toEqual([]);
  });

  it.each<[string, (input: FusionInput) => FusionInput, RegExp]>([
    ['n', (input) => ({ ...input, n: 3 }), /^the stage sample-sources was done with another n, 2 then and 3 now/],
    [
      'a source that is new',
      (input) => ({ ...input, sources: [...input.sources!, { name: 'srcC', model: model('srcC') }] }),
      /^the stage sample-sources was done with another srcC\.model, null then and ".*srcC" now/,
    ],
    [
      'the reward',
      (input) => input,
      /^the stage score-sources was done with another liking\.version, 1 then and 2 now/,
    ],
    [
      'alpha',
      (input) => ({ ...input, train: { ...input.train, wrpo: { ...input.train!.wrpo, alpha: 0.1 } } }),
      /^the stage train\/wrpo was done with another alpha, 0\.5 then and 0\.1 now.*--from train\/wrpo$/,
    ],
  ])('names what changed: %s', async (what, change, sentence) => {
    const scorers = what === 'the reward' ? [functionScorer('liking', () => 0, 2)] : [liking];
    await expectFailure(() => run(change(config(path('first'))), { scorers }), 'ERR_CHECKPOINT', sentence);
  });

  it('is not troubled by what changes no result', async () => {
    const { train } = config('');
    const watched = { ...train!.wrpo, loggingSteps: 2, saveTotalLimit: 3 };
    expect((await run(config(path('first'), { train: { ...train, wrpo: watched } }))).done).toEqual(['reference']);
  });

  it.each([
    ['samples/srcA.jsonl', 'sample-sources'],
    ['selected/train.jsonl', 'select'],
    ['train/dpo/model.safetensors', 'train/dpo'],
  ])('names a file that was changed by hand: %s', async (file, stage) => {
    const outputDir = fresh();
    appendFileSync(join(outputDir, file), '\n');
    const failure = (what: string) =>
      new RegExp(`/${file} of the stage ${stage} ${what}: put it back, or do the stage again with --from ${stage}$`);
    await expectFailure(() => run(config(outputDir)), 'ERR_CHECKPOINT', failure('is not as that stage left it'));
    rmSync(join(outputDir, file));
    await expectFailure(() => run(config(outputDir)), 'ERR_CHECKPOINT', failure('is gone'));
  });

  it('does the stages that are named, when what they need is there', async () => {
    const outputDir = path('parts');
    const only = (...names: string[]) => run(config(outputDir), { only: names });
    await expectFailure(
      () => only('select-sft'),
      'ERR_CONFIG',
      /^the stage select-sft needs what sample-sources makes, which is not done yet$/,
    );
    expect((await only('sample-sources', 'score-sources')).done).toEqual(['sample-sources', 'score-sources']);
    expect((await only('select-sft')).done).toEqual(['select-sft']);
    expect(existsSync(join(outputDir, 'sft'))).toBe(false);
    await expectFailure(
      () => only('train/ppo'),
      'ERR_CONFIG',
      /^--only train\/ppo: there is no such stage; there is sample-sources, /,
    );
  });

  it('learns from the target itself without fine-tuning', async () => {
    const outputDir = path('untuned');
    const { sft: _, ...input } = config(outputDir, { evaluate: false });
    const { stages } = await run(input);
    expect(stages.map(({ stage }) => stage)).toEqual(
      STAGES.filter((stage) => !/sft|evaluate/.test(stage)), // and all prompts are for preferences
    );
    expect(rowsIn(join(outputDir, 'samples/target.jsonl'))).toBe(40);
  });
});

describe('says in a sentence', () => {
  const small = (more: Partial<FusionInput>) => config(path(`bad-${Math.random()}`), more);

  it('that a reward is constant', async () => {
    await expectFailure(
      () => run(small({}), { scorers: [functionScorer('flat', () => 0.5)] }),
      'ERR_DATA',
      /^flat: all 160 scores of srcA, srcB are 0\.5; a constant reward tells no answer from another$/,
    );
  });

  it('that a source has no tokenizer, before anything is asked', async () => {
    const bare = path('bare');
    cpSync(model('srcB'), bare, { recursive: true });
    rmSync(join(bare, 'tokenizer.json'));
    const input = small({
      sources: [
        { name: 'srcA', model: model('srcA') },
        { name: 'bare', model: bare },
      ],
    });
    await expectFailure(() => run(input), 'ERR_MODEL', /\/bare: there is no tokenizer\.json, which text needs$/);
    expect(existsSync(join(input.outputDir, 'samples'))).toBe(false);
  });

  it.each<[string, Partial<FusionInput>, RegExp]>([
    ['no sources', { sources: [] }, /^a fusion needs sources: models that answer its prompts$/],
    ['no runs', { train: {} }, /^a fusion needs train: at least one run/],
    ['no model', { modelNameOrPath: undefined }, /^a fusion needs model_name_or_path: the model that is fused into$/],
    [
      'a run of a bad value',
      { train: { wrpo: { alpha: 2 } } },
      /^config\.train\.wrpo\.alpha: "alpha": .* \(found 2\)$/,
    ],
    [
      'a run with an unknown key',
      { train: { wrpo: { betta: 2 } as object } },
      /^config\.train\.wrpo\.betta: unknown key "betta"; did you mean "beta"\?$/,
    ],
    [
      'a key that a fusion gives',
      { sft: { outputDir: 'x' } as object },
      /^config\.sft\.outputDir: "output_dir" is not for a run of a fusion, which gives it$/,
    ],
    ['a run named as a model', { train: { srcA: {} } }, /^config\.train\.srcA: a model has the name "srcA"/],
    [
      'a selection that is not there',
      { train: { wrpo: { selection: 'x' } } },
      /^config\.train\.wrpo\.selection: there is no selection "x"; there is none$/,
    ],
    [
      'fine-tuning by another loss',
      { sft: { lossType: 'dpo' } },
      /^config\.sft\.lossType: fine-tuning has loss_type "sft" \(found "dpo"\)$/,
    ],
  ])('%s', async (_, more, message) => {
    await expectFailure(() => run(small(more)), 'ERR_CONFIG', message);
  });
});

describe('wrpo fuse', () => {
  let server: FakeServer;
  let file: string;
  /** With a server that scores, and paths that are the same wherever it runs. */
  beforeAll(async () => {
    server = await FakeServer.start();
    const snake = { per_device_train_batch_size: 4, gradient_accumulation_steps: 1, max_length: 96, logging_steps: 1 };
    file = writeRunFile(path('fusion.yaml'), {
      ...{ output_dir: 'out', prompts, model_name_or_path: model('target'), n: 2, max_tokens: 12, held_out: 6 },
      sources: ['srcA', 'srcB'].map((name) => ({ name, model: model(name) })),
      scorers: [{ name: 'rm', kind: 'http', base_url: server.url, model: 'rm', api: 'classify', retry_delay: 0.01 }],
      sft: { ...snake, learning_rate: 1e-4 },
      train: { wrpo: { ...snake, alpha: 0.5, beta: 0.5, learning_rate: 1e-4, save_steps: 2, save_total_limit: 1 } },
    });
    return () => server.close();
  });
  const cwd = (name: string) => {
    const directory = path(name);
    writeFileSync(path(`${name}.made`), '');
    cpSync(path(`${name}.made`), join(directory, '.made'), { recursive: true });
    return directory;
  };
  /** Everything but times, and the checkpoints of runs that go on. */
  const results = (directory: string) =>
    Object.fromEntries(
      Object.entries(contentsOf(join(directory, 'out'))).filter(
        ([name]) => !/^stages\/|metrics\.jsonl$|trainer_state\.json$|\/checkpoint-|\.made$|report\.html$/.test(name),
      ),
    );

  it('goes on wherever it was killed, to the same bytes', async () => {
    const whole = cwd('whole');
    const began = performance.now();
    const { stdout } = await succeed(['fuse', '--config', file], { cwd: whole });
    const took = performance.now() - began;
    expect(stdout).toMatch(/^model +reward +win rate against target/);
    expect(stdout).toMatch(/^wrpo +\S+ ± /m);

    const killed = cwd('killed');
    const random = randomOf(3);
    let kills = 0;
    for (let i = 0; i < 6; i++) {
      const child = new Child([MAIN, 'fuse', '--config', file], { cwd: killed });
      await sleep(300 + random() * 0.6 * took);
      if (child.running) kills++;
      await child.kill();
    }
    expect(kills).toBeGreaterThan(0);
    await succeed(['fuse', '--config', file], { cwd: killed });
    expect(results(killed)).toEqual(results(whole));
  });

  it('fuses into a model of the hub', async () => {
    const hub = await TestHub.start();
    const names = ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'];
    hub.add('owner/target', Object.fromEntries(names.map((name) => [name, readFileSync(join(model('target'), name))])));
    const env = { HF_ENDPOINT: hub.url, HF_HOME: path('hub home') };
    const options = { cwd: cwd('hub'), env };
    try {
      const args = ['fuse', '--config', file, '--model_name_or_path', 'owner/target'];
      const { stdout } = await succeed(args, options);
      expect(stdout).toMatch(/^target-sft +\S+ ± /m);
      const ofHub = readFileSync(join(options.cwd, 'out/sft/model.safetensors'));
      expect(ofHub).toEqual(readFileSync(join(path('whole'), 'out/sft/model.safetensors')));
      expect((await succeed(args, options)).stderr).not.toMatch(/^(sft|evaluate)$/m);
    } finally {
      hub.close();
    }
  });

  it('stops when it is asked to, and says how to go on', async () => {
    const stopped = cwd('stopped');
    const child = new Child([MAIN, 'fuse', '--config', file], { cwd: stopped });
    await child.until(() => existsSync(join(stopped, 'out/samples/srcA.jsonl')));
    const { status, stderr } = await child.kill('SIGTERM');
    expect(status).toBe(1);
    expect(stderr.trimEnd().split('\n').at(-1)).toBe('wrpo: stopped');
    expect(stderr).not.toMatch(/^\s+at /m);
    await succeed(['fuse', '--config', file], { cwd: stopped });
    expect(results(stopped)).toEqual(results(path('whole')));
  });

  it('leaves a key in no file, word or report, though a source repeats it', async () => {
    const key = 'sk-MARKED-9876543210';
    const telling = await FakeServer.start({ text: (_, seed) => `it is ${seed} by ${key}` });
    const { sources, ...rest } = parse(readFileSync(file, 'utf8'));
    const asked = { base_url: telling.url, api_key_env: 'MARKED_KEY' };
    const keyed = writeRunFile(path('keyed.yaml'), {
      ...rest,
      sources: [sources[0], { name: 'telling', model: 'm', ...asked }],
      scorers: [{ ...rest.scorers[0], ...asked }],
    });
    const options = { cwd: cwd('keyed'), env: { MARKED_KEY: key } };
    const words = [];
    for (const args of [
      ['fuse', '--config', keyed],
      ['report', 'out'],
      ['tables', 'out'],
    ]) {
      const { stdout, stderr } = await succeed(args, options);
      words.push(stdout, stderr);
    }
    await telling.close();
    expect(telling.seen.some(({ authorization }) => authorization === `Bearer ${key}`)).toBe(true);
    const out = join(options.cwd, 'out');
    expect(readFileSync(join(out, 'samples/telling.jsonl'), 'utf8')).toContain('by ***');
    expect(filesBelow(out)).toContain('report.html');
    const holding = filesBelow(out).filter(
      (name) => statSync(join(out, name)).isFile() && readFileSync(join(out, name)).includes(key),
    );
    expect(holding).toEqual([]);
    expect(words.join('')).not.toContain(key);
  });

  it('writes down a run file that does the same', async () => {
    const outputDir = path('first');
    const written = parse(readFileSync(join(outputDir, 'config.yaml'), 'utf8'));
    written.train['SFT-WRPO'] = written.train.wrpo;
    const again = path('again.yaml');
    writeFileSync(again, stringify({ ...written, scorers: [], output_dir: path('again') }));
    const resolved = resolveFusion(parse(readFileSync(again, 'utf8')), (...at) => at.join('.'));
    expect(Object.keys(resolved.train)).toContain('SFT-WRPO');
    await expectFailure(() => runFusion(resolved, { scorers: [liking], only: ['sft'] }), 'ERR_CONFIG', /needs what/);
    const { train } = parse(readFileSync(path('again/config.yaml'), 'utf8'));
    expect(train['SFT-WRPO']).toEqual(written.train.wrpo);
  });

  it('takes the run file by its name alone, and keys over it', async () => {
    const dryRun = ['--dry-run', '--json'];
    const by = async (...args: string[]) => JSON.parse((await succeed(['fuse', ...args, ...dryRun])).stdout);
    const named = await by('--config', file, '--n', '3');
    expect(await by(file, '--n', '3')).toEqual(named);
    expect(await by(file)).not.toEqual(named);
    expect(await fail(['fuse', ...dryRun], 2)).toBe("error: missing argument '<run.yaml>', or option '--config'");
  });

  it('names the line of a bad key', async () => {
    const bad = path('bad.yaml');
    writeFileSync(bad, readFileSync(file, 'utf8').replace('"alpha":0.5', '"alpha":5'));
    const line =
      readFileSync(bad, 'utf8')
        .split('\n')
        .findIndex((one) => one.includes('"alpha":5')) + 1;
    expect(await fail(['fuse', '--config', bad], 1)).toContain(`bad.yaml line ${line}: "alpha": `);
    expect(await fail(['fuse', '--config', file, '--from', 'tuning'], 1)).toMatch(
      /--from tuning: there is no such stage/,
    );
  });
});

describe('wrpo fuse --dry-run', () => {
  it('of the paper: ten sources, ArmoRM, Table 6', async () => {
    // Of the target only the configuration is looked at.
    const target = path('llama-3-8b');
    cpSync(model('target'), target, { recursive: true });
    const shape = { vocab_size: 128256, hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32 };
    const more = { num_key_value_heads: 8, intermediate_size: 14336, head_dim: 128, tie_word_embeddings: false };
    writeFileSync(join(target, 'config.json'), JSON.stringify({ model_type: 'llama', ...shape, ...more }));
    const example = ['fuse', '--config', join(ROOT, 'examples', 'paper.yaml'), '--prompts', prompts, '--dry-run'];
    const args = [...example, '--output_dir', path('paper'), '--model_name_or_path', target];
    const { stdout } = await succeed([...args, '--json']);
    const { prompts: count, stages } = JSON.parse(stdout);
    expect(count).toBe(40);
    const of = (name: string) => stages.find(({ stage }: { stage: string }) => stage === name);
    expect(stages.every(({ state }: { state: string }) => state === 'open')).toBe(true);
    expect(of('sample-sources')).toMatchObject({ count: 10 * 40 * 5, tokensWritten: 10 * 40 * 5 * 400 });
    expect(of('score-sources').count).toBe(2000);
    expect(of('sft').count).toBe(13);
    expect(of('sample-target').count).toBe(5 * 27);
    for (const run of ['dpo', 'simpo', 'ipo', 'wrpo', 'wrpo-simpo', 'wrpo-ipo', 'wrpo-rank-2', 'wrpo-with-y-ls']) {
      expect(of(`train/${run}`).count).toBe(26);
    }
    // 8.03 billion parameters, 16 bytes each, and what a micro-batch takes.
    expect(of('train/wrpo').bytes / 2 ** 30).toBeGreaterThan(119);
    expect(of('train/wrpo').bytes / 2 ** 30).toBeLessThan(140);
    expect((await succeed(args)).stdout).toMatch(/^train\/wrpo +to do +26 .* GiB/m);
    expect(existsSync(path('paper'))).toBe(false);
  });
});
