/** The command line: what it computes, and that every failure is one sentence with the right exit code. */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packRows } from '../lib/data/pack.ts';
import { loadPreferences, type Role } from '../lib/data/preferences.ts';
import { Model } from '../lib/model/model.ts';
import type { ComputeDtype } from '../lib/native/addon.ts';
import { encodeRows } from '../lib/text/encode.ts';
import { Tokenizer } from '../lib/text/tokenizer.ts';
import { TestHub } from './hub.ts';
import {
  FIXTURES,
  fail,
  filesBelow,
  leftovers,
  MAIN,
  metricsOf,
  POLICY,
  REFERENCE,
  ROOT,
  type Row,
  readJson,
  readTensors,
  scratchDirectory,
  sentence,
  succeed,
  tokenRows,
  weightsOf,
  writeRows,
  writeRunFile,
  wrpo,
} from './training.ts';

const path = scratchDirectory('cli');
const rows = tokenRows(6, 51);
const data = path('rows.jsonl');
const TRAIN = {
  ...{ model_name_or_path: POLICY, dataset_name: data, per_device_train_batch_size: 2, gradient_accumulation_steps: 1 },
  ...{ logging_steps: 1, learning_rate: 1e-3, output_dir: path('out') },
};

beforeAll(() => {
  writeRows(data, rows);
});

let files = 0;
const runFile = (changes: Record<string, unknown>) =>
  writeRunFile(path(`run-${++files}.yaml`), { ...TRAIN, ...changes });
const train = (changes: Record<string, unknown> = {}, ...more: string[]) => [
  'train',
  '--config',
  runFile(changes),
  ...more,
];

describe('usage', () => {
  const COMMANDS = [
    'train',
    'sft',
    'logprobs',
    'sample',
    'score',
    'select',
    'merge',
    'data',
    'plan',
    'setup',
    'doctor',
  ];

  it('help and version', async () => {
    const { stdout, stderr } = await succeed(['--help']);
    for (const command of COMMANDS) expect(stdout).toMatch(new RegExp(`^ {2}${command}\\b`, 'm'));
    expect(stderr).toBe('');
    const helps = await Promise.all(COMMANDS.map((command) => succeed([command, '--help'])));
    for (const [i, help] of helps.entries()) expect(help.stdout).toContain(`Usage: wrpo ${COMMANDS[i]}`);
    expect((await succeed(['--version'])).stdout.trim()).toBe(readJson(join(ROOT, 'package.json')).version);
  });

  it('help of every command fits a screen of 24 lines by 100 columns, with an example that is one', async () => {
    const listed = (await succeed(['--help'])).stdout;
    expect(listed.split('\n').length).toBeLessThanOrEqual(34);
    expect(listed).toContain('Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage.');
    const names = [...listed.matchAll(/^ {2}([a-z]+) /gm)].map((match) => match[1]!).filter((name) => name !== 'help');
    expect(names.length).toBeGreaterThan(15);
    await Promise.all(
      names.map(async (name) => {
        const command = name === 'data' ? ['data', 'check'] : [name];
        const { stdout } = await succeed([...command, '--help'], { env: { COLUMNS: '100' } });
        const lines = stdout.trimEnd().split('\n');
        expect(lines.length, stdout).toBeLessThanOrEqual(24);
        for (const line of lines) expect(line.length, line).toBeLessThanOrEqual(100);
        const example = /^Example: wrpo (.+)$/m.exec(stdout)?.[1] ?? '';
        expect(example, stdout).toMatch(new RegExp(`^${command.join(' ')}\\b`));
        for (const [option] of example.matchAll(/--[a-z][a-z-]*(?=[ =]|$)/g)) {
          if (!stdout.includes('Any key')) expect(stdout, `${name} has ${option}`).toContain(`  ${option}`);
        }
      }),
    );
  });

  it('completes commands, options and files in bash', async () => {
    const { stdout: code } = await succeed(['completion', 'bash']);
    writeFileSync(path('completion.bash'), code);
    const completions = (...words: string[]) => {
      const shell = `source ${path('completion.bash')}; COMP_WORDS=(wrpo ${words.map((word) => `"${word}"`).join(' ')}); COMP_CWORD=${words.length}; _wrpo; echo "\${COMPREPLY[*]}"`;
      return execFileSync('bash', ['-c', shell], { encoding: 'utf8' }).trim();
    };
    expect(completions('tra')).toBe('train');
    expect(completions('train', '--res')).toBe('--resume-from-checkpoint');
    expect(completions('data', 'ch')).toBe('check');
    expect(completions('data', 'check', '--ro')).toBe('--row');
    expect(completions('train', '--config', 'r')).toBe('');
    for (const shell of ['zsh', 'fish']) {
      const { stdout } = await succeed(['completion', shell]);
      for (const word of ['train', 'resume-from-checkpoint', 'completion', 'check']) expect(stdout).toContain(word);
    }
    expect(await fail(['completion', 'tcsh'], 2)).toMatch(/Allowed choices are bash, zsh, fish/);
  });

  it('has no colours where nobody looks', async () => {
    const { stdout } = await wrpo(['doctor'], { env: { NO_COLOR: '', CI: 'true' } });
    expect(stdout).not.toContain('\x1b');
    const coloured = await wrpo(['doctor'], { env: { NO_COLOR: '', FORCE_COLOR: '1' } });
    expect(coloured.stdout).toContain('\x1b[32mok');
  });

  it('prints what a machine reads with --json, and nothing beside it', async () => {
    const trained = await succeed(train({ max_steps: 1, output_dir: path('json') }, '--json'));
    expect(JSON.parse(trained.stdout)).toMatchObject({ outputDir: path('json'), globalStep: 1, metrics: { step: 1 } });
    const ready = await succeed(['setup', '--json']);
    expect(JSON.parse(ready.stdout)).toMatchObject({ version: '2.13.0', dir: expect.any(String) });
  });

  it('asks what was meant by a mistyped option, where any key may be one', async () => {
    const { stderr, status } = await wrpo(['train', '--confg', 'run.yaml']);
    expect(status).toBe(2);
    expect(stderr).toContain('(Did you mean --config by --confg?)');
  });

  it.each([
    ['an unknown command', ['trian'], /unknown command 'trian'.*/],
    ['a sum of no archive', ['setup', '--sha256', 'a'], /'--sha256' has no meaning without '--from'/],
    [
      'an unknown option',
      ['logprobs', '--model', POLICY, '--data', 'x.jsonl', '--bogus', '1'],
      /unknown option '--bogus'/,
    ],
    ['an unknown option of doctor', ['doctor', '--jsno'], /unknown option '--jsno'/],
    ['a missing option', ['logprobs', '--model', POLICY], /required option '--data <file>'/],
    ['no run file', ['train'], /required option '--config <file>'/],
    ['an option without its value', ['train', '--config'], /argument missing/],
  ])('%s: exit 2', async (_, args, message) => {
    expect(await fail(args, 2)).toMatch(message);
  });

  it('without a command it shows the help and fails', async () => {
    const { status, stdout, stderr } = await wrpo([]);
    expect(status).toBe(2);
    expect(stdout + stderr).toContain('Usage: wrpo');
  });
});

describe('run files and options', () => {
  it.each([
    [
      'an unknown key',
      { learning_rat: 1 },
      /\.yaml line 8: unknown key "learning_rat"; did you mean "learning_rate"\?/,
    ],
    ['a key of another library', { deepspeed_config_path: 1 }, /unknown key "deepspeed_config_path"/],
    ['an unknown loss_type', { loss_type: 'dop' }, /\.yaml line 8: "loss_type".*"wrpo".*"sigmoid".*"sft".*found "dop"/],
    ['a value of another kind', { learning_rate: 'fast' }, /"learning_rate": .*expected number.*found "fast"/],
    ['a value out of range', { alpha: 1.5 }, /"alpha": .*found 1\.5/],
    ['no model', { model_name_or_path: null }, /missing key "model_name_or_path"/],
    ['no data', { dataset_name: null }, /missing key "dataset_name"/],
    ['no output directory', { output_dir: null }, /"output_dir"/],
    ['a model that is not there', { model_name_or_path: path('no-model') }, /no model in .*no-model.*config\.json/],
    ['data that are not there', { dataset_name: path('no-data.jsonl') }, /no-data\.jsonl: no such file/],
    [
      'data of another kind',
      { dataset_name: join(POLICY, 'model.safetensors') },
      /model\.safetensors: is no \.jsonl, /,
    ],
    ['held-out data that are not there', { eval_dataset_name: path('no-eval.jsonl') }, /no-eval\.jsonl: no such file/],
    ['a reference that is not there', { ref_model_name_or_path: path('no-ref') }, /no model in .*no-ref/],
    ['prompts that are all too long', { max_prompt_length: 1 }, /no row is left: the prompts of all 6 are too long/],
  ])('%s', async (_, changes, message) => {
    expect(await fail(train(changes), 1)).toMatch(message);
    expect(existsSync(path('out'))).toBe(false);
  });

  it.each([
    ['bad YAML', 'loss_type: wrpo\nbeta: 0.1\n  alpha: 0.2\n', /bad\.yaml: .*line 2, column 7$/],
    ['an unclosed quote', 'loss_type: "wrpo\nbeta: 0.1\n', /bad\.yaml: .*line [23]/],
    ['the same key twice', 'beta: 0.1\nbeta: 0.2\n', /bad\.yaml: .*unique.*line 2/],
    ['a list', '- beta\n', /bad\.yaml must hold keys and values/],
    ['nothing', '', /bad\.yaml must hold keys and values/],
  ])('%s', async (_, text, message) => {
    writeFileSync(path('bad.yaml'), text);
    expect(await fail(['train', '--config', path('bad.yaml')], 1)).toMatch(message);
  });

  it('a run file that is not there', async () => {
    expect(await fail(['train', '--config', path('no.yaml')], 1)).toMatch(/cannot read the run file .*no\.yaml/);
  });

  it.each([
    [
      'an unknown key',
      ['--learning_rat', '1'],
      /command line: unknown key "learning_rat"; did you mean "learning_rate"\?/,
    ],
    ['a value that is no YAML', ['--beta', '[1'], /command line: --beta .*\[1/],
    ['a bad value', ['--beta=-1'], /"beta": .*found -1/],
    ['something that is no option', ['rows.jsonl'], /unexpected argument "rows\.jsonl": expected --key value/],
  ])('on the command line: %s', async (_, args, message) => {
    expect(await fail(train({}, ...args), 1)).toMatch(message);
  });

  it('options override the run file, in every spelling', async () => {
    const options = [
      '--learning-rate=2e-3',
      '--maxSteps',
      '1',
      '--shuffle',
      'false',
      '--beta',
      '0.5',
      '--disable_tqdm',
    ];
    const out = path('overridden');
    await succeed(train({ beta: 0.1, shuffle: true }, ...options, '--output_dir', out));
    const config = readFileSync(join(out, 'config.yaml'), 'utf8');
    for (const line of ['learning_rate: 0.002', 'max_steps: 1', 'shuffle: false', 'beta: 0.5', 'disable_tqdm: true']) {
      expect(config).toContain(`${line}\n`);
    }
    expect(metricsOf(out)).toHaveLength(1);
  });

  it('says which chosen response a loss of pairs takes of a quadruple', async () => {
    const said = async (changes: object) =>
      (await succeed(train({ output_dir: path(`pairs-${++files}`), ...changes }))).stderr;
    expect(await said({ loss_type: 'sigmoid' })).toContain('loss_type sigmoid takes target_chosen of rows');
    expect(await said({ loss_type: 'ipo', chosen: 'source' })).toContain('loss_type ipo takes source_chosen of rows');
    expect(await said({ loss_type: 'wrpo' })).not.toContain('takes');
  });

  it('talks on stderr alone: the log lines, and what was done', async () => {
    const { stdout, stderr } = await succeed(train({ output_dir: path('talk') }));
    expect(stdout).toBe('');
    const lines = stderr.trim().split('\n');
    expect(lines.filter((line) => /^step \d epoch|^step \d {2}epoch/.test(line))).toHaveLength(3);
    expect(lines.at(-1)).toMatch(/^done: 3 steps, loss 0\.\d{4}; model and metrics in .*talk$/);
  });
});

describe('rows', () => {
  const [good] = rows as [Row];
  const cases: [string, unknown, RegExp][] = [
    [
      'an id beyond the vocabulary',
      { ...good, rejected: [3, 199] },
      /rows-\d+\.jsonl line 3: "rejected" has 199 at position 1.*vocabulary size 199/,
    ],
    ['a negative id', { ...good, prompt: [-1] }, /line 3: "prompt" has -1/],
    ['an empty response', { ...good, target_chosen: [] }, /line 3: "target_chosen" is empty/],
    ['an empty prompt', { ...good, prompt: [] }, /line 3: "prompt" is empty/],
    [
      'a missing key',
      { ...good, rejected: undefined },
      /rows-\d+\.jsonl line 3: missing key "rejected"; this run needs source_chosen, target_chosen, rejected/,
    ],
    [
      'a key misspelt',
      { ...good, source_chosen: undefined, source_chosn: [1] },
      /line 3: missing key "source_chosen".*"source_chosn"/,
    ],
    [
      'text without a tokenizer',
      { prompt: 'a', source_chosen: 'b', target_chosen: 'c', rejected: 'd' },
      /line 3: the row is text, but there is no tokenizer/,
    ],
    ['text and ids', { ...good, rejected: 'text' }, /line 3: "prompt" is token ids but "rejected" is text/],
    ['a number', 7, /line 3: expected an object, got a number/],
  ];

  it.each(cases)('%s: the file, the line and the key', async (_, row, message) => {
    const file = writeRows(path(`rows-${++files}.jsonl`), [good, good, row, good]);
    expect(await fail(train({ dataset_name: file }), 1)).toMatch(message);
    expect(existsSync(path('out'))).toBe(false);
  });

  it('a line that was cut off', async () => {
    const file = path(`rows-${++files}.jsonl`);
    const line = JSON.stringify(good);
    writeFileSync(file, `${line}\n\n${line.slice(0, 40)}`);
    expect(await fail(train({ dataset_name: file }), 1)).toMatch(/line 3: expected one JSON object on the line/);
  });

  it('a model that is damaged', async () => {
    const model = path('damaged');
    cpSync(POLICY, model, { recursive: true });
    const file = join(model, 'model.safetensors');
    writeFileSync(file, readFileSync(file).subarray(0, 200_000));
    expect(await fail(train({ model_name_or_path: model }), 1)).toMatch(/model\.safetensors is truncated/);
    writeFileSync(join(model, 'config.json'), JSON.stringify({ model_type: 'bert' }));
    expect(await fail(train({ model_name_or_path: model }), 1)).toMatch(/model family "bert" is not supported/);
  });
});

describe('logprobs', () => {
  const ALL: Role[] = ['source_chosen', 'target_chosen', 'rejected', 'source_rejected', 'completion'];
  const mixed = path('mixed.jsonl');

  beforeAll(() => {
    const [a, b, c, d, e] = tokenRows(5, 52) as [Row, Row, Row, Row, Row];
    const pair = ({ prompt, target_chosen, rejected }: Row) => ({ prompt, chosen: target_chosen, rejected });
    writeRows(mixed, [
      ...[
        a,
        pair(b),
        pair(c),
        { prompt: d.prompt, completion: d.rejected },
        { ...e, y_ls: a.rejected },
        ...tokenRows(40, 53),
      ],
    ]);
  });

  /** The same, row by row, in this process. */
  async function expected(file: string, dtype: ComputeDtype, directory = POLICY) {
    await using model = await Model.load(directory, { dtype });
    const tokenizer = existsSync(join(directory, 'tokenizer.json')) ? await Tokenizer.load(directory) : undefined;
    const lines: Record<string, number>[] = [];
    for (const row of await loadPreferences(file)) {
      const roles = ALL.filter((role) => row.responses[role] !== undefined);
      const limits = { maxLength: 512, vocabSize: model.config.vocabSize };
      const encoded = await encodeRows([row], { tokenizer, roles, ...limits });
      const { sums } = await model.logProbs(packRows(encoded.rows, roles, { sharePrompt: false }));
      lines.push(Object.fromEntries(roles.map((role, k) => [role, sums[k]!])));
    }
    return lines;
  }

  const parse = (text: string) =>
    text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Record<string, number>);

  function expectClose(found: Record<string, number>[], wanted: Record<string, number>[], digits: number) {
    expect(found.map((line) => Object.keys(line).sort())).toEqual(wanted.map((line) => Object.keys(line).sort()));
    for (const [i, line] of wanted.entries()) {
      for (const [role, value] of Object.entries(line)) expect(found[i]![role]! / value).toBeCloseTo(1, digits);
    }
  }

  it('one line a row, with the keys the row has, on standard output', async () => {
    const { stdout, stderr } = await succeed(['logprobs', '--model', POLICY, '--data', mixed]);
    expect(stderr).toBe('');
    expectClose(parse(stdout), await expected(mixed, 'float32'), 5);
    expect(Object.keys(parse(stdout)[1]!)).toEqual(['target_chosen', 'rejected']);
    expect(Object.keys(parse(stdout)[4]!)).toContain('source_rejected');
  });

  it('in each dtype, to a file', async () => {
    const exact = await expected(mixed, 'float64');
    for (const [dtype, digits] of [
      ['float64', 12],
      ['bfloat16', 1],
    ] as const) {
      const output = path(`${dtype}.jsonl`);
      const options = ['--model', POLICY, '--data', mixed, '--dtype', dtype, '--output', output];
      const { stdout } = await succeed(['logprobs', ...options]);
      expect(stdout).toBe('');
      expectClose(parse(readFileSync(output, 'utf8')), exact, digits);
      expect(leftovers(path())).toEqual([]);
    }
    const auto = path('auto.jsonl');
    const { stderr } = await succeed([
      ...['logprobs', '--model', POLICY, '--data', mixed, '--dtype', 'auto', '--output', auto],
    ]);
    const chosen = /^dtype: auto chose (bfloat16|float32)/m.exec(stderr)![1]!;
    expect(chosen).toBe(readFileSync('/proc/cpuinfo', 'utf8').includes('avx512_bf16') ? 'bfloat16' : 'float32');
    expectClose(parse(readFileSync(auto, 'utf8')), exact, 1);
    const [high, low] = ['float64', 'bfloat16'].map((dtype) => readFileSync(path(`${dtype}.jsonl`), 'utf8'));
    expect(high).not.toBe(low);
    expect(await fail(['logprobs', '--model', POLICY, '--data', mixed, '--dtype', 'float8'], 1)).toMatch(
      /--dtype "float8": expected float32, float64, bfloat16 or auto/,
    );
  });

  it('of tables and splits; bad rows are told before any weights are loaded', async () => {
    const model = await textModel();
    const saved = join(FIXTURES, 'data', 'saved_pairs');
    for (const [data, more, same] of [
      [join(FIXTURES, 'data', 'flat.zstd.parquet'), [], join(FIXTURES, 'data', 'flat.jsonl')],
      [saved, ['--split', 'test'], join(saved, 'test')],
    ] as const) {
      const { stdout } = await succeed(['logprobs', '--model', model, '--data', data, ...more]);
      expectClose(parse(stdout), await expected(same, 'float32', model), 5);
    }
    const [test, all] = await Promise.all([loadPreferences(join(saved, 'test')), loadPreferences(saved)]);
    expect(test.length).not.toBe(all.length);

    const weightless = path('weightless');
    cpSync(model, weightless, { recursive: true });
    truncateSync(join(weightless, 'model.safetensors'), 10);
    const bad = writeRows(path('late.jsonl'), [...Array(600).fill({ prompt: 'a', completion: 'b' }), { prompt: 'a' }]);
    const options = ['logprobs', '--model', weightless, '--data'];
    expect(await fail([...options, bad], 1)).toMatch(/late\.jsonl line 601: no response/);
    expect(await fail([...options, data], 1)).toMatch(/model\.safetensors is truncated/);
  });

  it('the output appears whole or not at all', async () => {
    const output = path('kept.jsonl');
    writeFileSync(output, 'earlier\n');
    const bad = writeRows(path('bad-rows.jsonl'), [...tokenRows(3, 54), { prompt: [1], chosen: [500], rejected: [2] }]);
    const options = ['--model', POLICY, '--data', bad, '--output', output];
    expect(await fail(['logprobs', ...options], 1)).toMatch(/bad-rows\.jsonl line 4: "target_chosen" has 500/);
    expect(readFileSync(output, 'utf8')).toBe('earlier\n');
    expect(leftovers(path())).toEqual([]);
    const nowhere = ['--model', POLICY, '--data', mixed, '--output', path('no-directory', 'x.jsonl')];
    expect(await fail(['logprobs', ...nowhere], 1)).toMatch(/cannot write .*x\.jsonl: its directory does not exist/);
    for (const [option, value, message] of [
      ['--model', path('no-model'), /no model in .*no-model/],
      ['--data', path('no.jsonl'), /no\.jsonl: no such file/],
    ] as const) {
      const given = { '--model': POLICY, '--data': mixed, [option]: value };
      expect(await fail(['logprobs', ...Object.entries(given).flat()], 1)).toMatch(message);
    }
  });

  it('to a disk that takes only a part of it: nothing', async () => {
    const output = path('limited.jsonl');
    const command = `ulimit -f 1; exec "$0" "$@"`;
    const args = [
      '-c',
      command,
      process.execPath,
      MAIN,
      'logprobs',
      '--model',
      POLICY,
      '--data',
      mixed,
      '--output',
      output,
    ];
    const { status, stderr } = spawnSync('bash', args, { encoding: 'utf8' });
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr: expect.stringMatching(/^wrpo: cannot write .*limited\.jsonl: .*\n$/),
    });
    expect(readdirSync(path()).filter((name) => name.startsWith('limited'))).toEqual([]);
  });

  it('a reader that goes away is no crash', () => {
    const long = writeRows(path('long.jsonl'), tokenRows(400, 55));
    const shell = ['-c', '"$0" "$@" | head -n 1; exit $PIPESTATUS', process.execPath, MAIN];
    const { status, stdout, stderr } = spawnSync('bash', [...shell, 'logprobs', '--model', POLICY, '--data', long], {
      encoding: 'utf8',
    });
    expect({ status, stderr }).toEqual({ status: 1, stderr: '' });
    expect(Object.keys(JSON.parse(stdout))).toHaveLength(3);
  });

  it('text rows, by the tokenizer of the model', async () => {
    const model = await textModel();
    const { stdout } = await succeed(['logprobs', '--model', model, '--data', textRows()]);
    expectClose(parse(stdout), await expected(textRows(), 'float32', model), 5);
  });
});

const TOKENIZER = ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'];

let made: Promise<string> | undefined;
/** A tiny model with the Llama-3 tokenizer of the fixtures. */
function textModel(): Promise<string> {
  made ??= (async () => {
    const dir = path('text-model');
    const from = join(FIXTURES, 'text', 'llama3');
    const { vocabSize } = await Tokenizer.load(from);
    await using model = await Model.create({
      ...{ model_type: 'llama', vocab_size: vocabSize, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2 },
      ...{ intermediate_size: 64, max_position_embeddings: 512, rms_norm_eps: 1e-5, initializer_range: 0.1 },
      tie_word_embeddings: true,
    });
    await model.save(dir);
    for (const name of TOKENIZER) cpSync(join(from, name), join(dir, name));
    return dir;
  })();
  return made;
}

const say = (role: string, content: string) => ({ role, content });
/** Every shape in which a row may be text. */
function textRows(): string {
  const file = path('text.jsonl');
  if (existsSync(file)) return file;
  return writeRows(file, [
    ...Array.from({ length: 4 }, (_, i) => ({
      prompt: `What is ${i} and ${i}?`,
      source_chosen: `The sum of ${i} and ${i} is ${2 * i}.`,
      target_chosen: `${2 * i}`,
      rejected: `I do not know, perhaps ${i}.`,
    })),
    {
      prompt_id: 'x',
      prompt: say('user', 'Name a colour.'),
      chosen: [say('assistant', 'Blue is a colour.'), say('assistant', 'Blue.')],
      rejected: [say('assistant', 'No.')],
    },
    {
      prompt: [say('system', 'Be brief.'), say('user', 'Hello!')],
      source_chosen: [say('assistant', 'Good day to you.')],
      target_chosen: [say('assistant', 'Hello.')],
      rejected: 'Go away…  ü 🙂',
    },
  ]);
}

describe('training', () => {
  it('text rows from end to end', async () => {
    const model = await textModel();
    const out = path('text-run');
    await succeed(
      train(
        { model_name_or_path: model, dataset_name: textRows(), eval_dataset_name: textRows(), output_dir: out },
        ...[
          '--save_steps',
          '2',
          '--num_train_epochs',
          '4',
          '--learning_rate',
          '5e-3',
          '--alpha',
          '0.5',
          '--beta',
          '0.1',
        ],
      ),
    );
    const losses = metricsOf(out).filter((line) => 'loss' in line);
    expect(losses[0]!.loss).toBeCloseTo(Math.log(2), 5);
    expect(losses.at(-1)!.loss).toBeLessThan(0.6);
    for (const dir of [out, join(out, 'checkpoint-2'), join(out, 'checkpoint-12')]) {
      for (const name of TOKENIZER) expect(readFileSync(join(dir, name))).toEqual(readFileSync(join(model, name)));
      await using loaded = await Model.load(dir);
      expect(loaded.config.tieWordEmbeddings).toBe(true);
    }
    // Its own output is a model like any other.
    const before = await succeed(['logprobs', '--model', model, '--data', textRows()]);
    const after = await succeed(['logprobs', '--model', out, '--data', textRows()]);
    const margins = [before, after].map(({ stdout }) => {
      const lines = stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line));
      return lines.reduce((sum, line) => sum + line.target_chosen - line.rejected, 0) / lines.length;
    });
    expect(margins[1]! - margins[0]!).toBeGreaterThan(1);
  });

  it('with the chat template of the run file, as files of the alignment handbook have it', async () => {
    const model = await textModel();
    const template = '{% for m in messages %}{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}';
    const chat_template = `${template}{% if add_generation_prompt %}assistant<|end_header_id|>{% endif %}`;
    const out = path('own-template');
    const run = { model_name_or_path: model, dataset_name: textRows(), chat_template, output_dir: out };
    await succeed(train({ ...run, learning_rate: 0, loss_type: 'sft', completion_only_loss: false }));
    // The model that is saved has it, and is checked and trained with it alike.
    expect((await Tokenizer.load(out)).applyChatTemplate([say('user', 'a')])).toBe('user<|end_header_id|>a<|eot_id|>');
    const check = async (...args: string[]) =>
      JSON.parse((await succeed(['data', 'check', textRows(), '--json', ...args])).stdout).row.parts.prompt.ids;
    const [own, given, saved] = [
      await check('--model', model),
      await check('--model', model, '--chat_template', JSON.stringify(chat_template)),
      await check('--model', out),
    ];
    expect(given).toEqual(saved);
    expect(given).not.toEqual(own);
    const again = { model_name_or_path: out, dataset_name: textRows(), output_dir: path('own-template-again') };
    await succeed(train({ ...again, learning_rate: 0, loss_type: 'sft', completion_only_loss: false }));
    expect(metricsOf(again.output_dir)[0]!.loss).toBe(metricsOf(out)[0]!.loss);
  });

  it('Parquet, and the splits of a saved data set, with evaluation', async () => {
    const model = await textModel();
    const table = join(FIXTURES, 'data', 'flat.zstd.parquet');
    const saved = join(FIXTURES, 'data', 'saved_pairs');
    const sources = {
      table: { dataset_name: table, eval_dataset_name: table },
      dict: { dataset_name: saved, dataset_train_split: 'train', dataset_test_split: 'test', loss_type: 'sigmoid' },
    };
    for (const [name, keys] of Object.entries(sources)) {
      const run = { model_name_or_path: model, output_dir: path(`run-${name}`), eval_strategy: 'epoch', beta: 0.1 };
      await succeed(train({ ...keys, ...run, learning_rate: 5e-3, num_train_epochs: 4 }));
      const metrics = metricsOf(run.output_dir);
      const rows = await loadPreferences(keys.dataset_name);
      expect(metrics.filter((line) => 'loss' in line)).toHaveLength(4 * Math.ceil(rows.length / 2));
      const evaluated = metrics.filter((line) => 'eval_loss' in line).map((line) => line.eval_loss!);
      expect(evaluated).toHaveLength(4);
      expect(evaluated.at(-1)).toBeLessThan(evaluated[0]!);
    }
  });

  it('models and data of the hub, each of its own revision, and again without the network', async () => {
    const hub = await TestHub.start();
    const files = ['config.json', 'model.safetensors'];
    for (const [name, dir] of Object.entries({ policy: POLICY, ref: REFERENCE })) {
      hub.add(`owner/${name}`, Object.fromEntries(files.map((file) => [file, readFileSync(join(dir, file))])));
    }
    hub.add('datasets/owner/rows', { 'one/train.jsonl': readFileSync(data), 'two/train.jsonl': '' });
    hub.add('datasets/owner/held', { 'train.jsonl': '', 'test.jsonl': readFileSync(data) });
    const keys = {
      ...{ model_name_or_path: 'owner/policy', model_revision: 'v1', ref_model_name_or_path: 'owner/ref' },
      ...{ dataset_name: 'owner/rows', dataset_revision: 'v1', dataset_config: 'one', eval_dataset_name: 'owner/held' },
    };
    const env = { HF_HOME: path('hub'), HF_ENDPOINT: hub.url };
    await succeed(train({ ...keys, output_dir: path('of-the-hub') }), { env });
    hub.close();
    const asked = hub.requests.filter((request) => request.includes('/revision/'));
    expect(new Set(asked)).toEqual(
      new Set([
        ...['/api/models/owner/policy/revision/v1', '/api/models/owner/ref/revision/main'],
        ...['/api/datasets/owner/rows/revision/v1', '/api/datasets/owner/held/revision/main'],
      ]),
    );
    const local = { model_name_or_path: POLICY, ref_model_name_or_path: REFERENCE, eval_dataset_name: data };
    await succeed(train({ ...local, output_dir: path('of-the-disk') }));
    const offline = { ...env, HF_HUB_OFFLINE: '1' };
    await succeed(train({ ...keys, output_dir: path('offline') }), { env: offline });
    for (const name of ['of-the-hub', 'offline']) expect(metricsOf(path(name))).toEqual(metricsOf(path('of-the-disk')));
  });

  it('wrpo sft', async () => {
    const out = path('sft');
    const { beta: _, ...keys } = { ...TRAIN, beta: 1, output_dir: out };
    await succeed(['sft', '--config', writeRunFile(path('sft.yaml'), keys), '--num_train_epochs', '5']);
    const metrics = metricsOf(out);
    expect(metrics).toHaveLength(15);
    expect(metrics.at(-1)!.loss).toBeLessThan(metrics[0]!.loss!);
    expect(readFileSync(join(out, 'config.yaml'), 'utf8')).toContain('loss_type: sft\n');
    expect(existsSync(join(out, 'reference-train.jsonl'))).toBe(false);
    const other = writeRunFile(path('sft-other.yaml'), { ...keys, loss_type: 'wrpo' });
    expect(await fail(['sft', '--config', other], 1)).toMatch(/sft-other\.yaml: loss_type is "wrpo".*use `wrpo train`/);
    // What it writes runs again.
    await succeed(['sft', '--config', join(out, 'config.yaml'), '--output_dir', path('sft-again')]);
    expect(weightsOf(path('sft-again')).equals(weightsOf(out))).toBe(true);
  });
});

describe('doctor', () => {
  it('finds nothing wrong here, in words and as JSON', async () => {
    const [words, json] = await Promise.all([succeed(['doctor']), succeed(['doctor', '--json'])]);
    const lines = words.stdout.trim().split('\n');
    for (const line of lines) expect(line).toMatch(/^(ok {6}\S| {19}- )/);
    const { ok, checks } = JSON.parse(json.stdout);
    expect(ok).toBe(true);
    const named = lines.filter((line) => !line.startsWith(' '));
    expect(Object.keys(checks)).toEqual(named.map((line) => line.split(/\s+/)[1]));
    for (const name of ['node', 'cpu', 'libtorch', 'core', 'addon', 'openmp', 'threads']) {
      expect(checks[name]).toMatchObject({ ok: true, detail: expect.any(String) });
    }
  });

  it('says what is wrong, and how to cure it', async () => {
    const env = { ...process.env, WRPO_LIBTORCH: path('no-libtorch') };
    const { status, stdout, stderr } = await wrpo(['doctor', '--json'], { env });
    expect({ status, stderr }).toEqual({ status: 1, stderr: '' });
    const { ok, checks } = JSON.parse(stdout);
    expect(ok).toBe(false);
    expect(checks.libtorch).toMatchObject({
      ok: false,
      detail: expect.stringMatching(/no-libtorch holds no lib\/libtorch_cpu\.so/),
    });
    expect(checks.libtorch.places[0]).toMatch(/^WRPO_LIBTORCH=.*no-libtorch: not there$/);
    const words = await wrpo(['doctor'], { env: { ...process.env, OMP_WAIT_POLICY: 'active' } });
    expect(words.status).toBe(1);
    expect(words.stdout).toMatch(/^problem threads .*OMP_WAIT_POLICY=active/m);
    expect(await fail(train(), 1, { env })).toMatch(/no-libtorch holds no lib\/libtorch_cpu\.so/);
  });

  it('describes a model', async () => {
    const { stdout } = await succeed(['doctor', '--model', POLICY]);
    expect(stdout).toMatch(/^ok {6}model .*llama/im);
    const { status, stdout: bad } = await wrpo(['doctor', '--model', path('no-model')]);
    expect(status).toBe(1);
    expect(bad).toMatch(/^problem model .*no-model/m);
  });
});

describe('places that cannot be written', () => {
  it('below a file', async () => {
    writeFileSync(path('a-file'), '');
    const message = await fail(train({ output_dir: path('a-file', 'out') }), 1);
    expect(message).toMatch(/^wrpo: cannot write .*a-file\/out: /);
  });

  it('without permission', async () => {
    // Root may write everywhere but where the kernel itself refuses.
    const dir = process.getuid!() === 0 ? '/sys/wrpo' : path('read-only', 'out');
    if (process.getuid!() !== 0) {
      mkdirSync(path('read-only'));
      chmodSync(path('read-only'), 0o555);
    }
    expect(await fail(train({ output_dir: dir }), 1)).toMatch(new RegExp(`^wrpo: cannot write ${dir}: `));
    expect(await fail(['logprobs', '--model', POLICY, '--data', data, '--output', dir], 1)).toMatch(
      new RegExp(`^wrpo: cannot write ${dir}: `),
    );
  });
});

describe('a full disk', () => {
  const mounts: string[] = [];
  afterAll(() => {
    for (const dir of mounts) execFileSync('umount', [dir]);
  });
  const options = ['--save_steps', '1'];
  const whole = path('enough space');
  beforeAll(() => succeed(train({ output_dir: whole }, ...options)).then(() => undefined), 30_000);

  function expectIntact(out: string) {
    expect(leftovers(out)).toEqual([]);
    expect(readdirSync(out).filter((name) => name.startsWith('checkpoint-'))).toEqual(['checkpoint-1']);
    for (const name of filesBelow(join(whole, 'checkpoint-1')).filter((file) => file.endsWith('.safetensors'))) {
      const [found, wanted] = [out, whole].map((dir) => readFileSync(join(dir, 'checkpoint-1', name)));
      expect(found!.equals(wanted!), name).toBe(true);
    }
    expect(readTensors(join(out, 'checkpoint-1', 'model.safetensors')).size).toBe(21);
    expect(existsSync(join(out, 'model.safetensors'))).toBe(false);
  }

  /** Runs the command where no file may grow beyond so many KiB, for which Linux has the same answers as a full disk. */
  const limited = (kilobytes: number, args: string[]) => {
    const shell = ['-c', `ulimit -f ${kilobytes}; exec "$0" "$@"`, process.execPath, MAIN, ...args];
    const result = spawnSync('bash', shell, { encoding: 'utf8', env: { ...process.env, NO_COLOR: '1' } });
    return sentence({ ...result, signal: result.signal }, 1);
  };

  it('saving a checkpoint: one sentence, and the one before is whole', async () => {
    const out = path('limited');
    await succeed(train({ output_dir: out }, ...options, '--save_total_limit', '1'));
    for (const name of readdirSync(out))
      if (name !== 'reference-train.jsonl') rmSync(join(out, name), { recursive: true });
    cpSync(join(whole, 'checkpoint-1'), join(out, 'checkpoint-1'), { recursive: true });
    const resume = [...options, '--resume-from-checkpoint'];
    // The optimizer's moments take 686 KiB, the weights 343.
    expect(limited(500, train({ output_dir: out }, ...resume))).toMatch(
      /^wrpo: cannot write .*checkpoint-2.*[Ff]ile too large/,
    );
    expectIntact(out);
    expect(limited(100, train({ output_dir: out }, '--resume-from-checkpoint'))).toMatch(
      /^wrpo: cannot write .*model\.safetensors/,
    );
    expectIntact(out);
    await succeed(train({ output_dir: out }, ...resume));
    expect(weightsOf(out).equals(weightsOf(whole))).toBe(true);
    expect(metricsOf(out)).toEqual(metricsOf(whole));
  });

  it('small files too are written whole or not at all', async () => {
    const file = path('limited-files.mjs');
    writeFileSync(
      file,
      `import { appendLines, writeFileAtomic } from ${JSON.stringify(join(ROOT, 'dist', 'data', 'files.js'))};
      const failure = (act) => { try { act(); } catch (error) { return [error.code, error.message]; } };
      const [whole, lines] = process.argv.slice(2);
      console.log(JSON.stringify([failure(() => writeFileAtomic(whole, 'x'.repeat(5000))),
        failure(() => appendLines(lines, ['y'.repeat(5000)]))]));`,
    );
    const [text, lines] = [path('text.json'), path('lines.jsonl')];
    writeFileSync(text, 'earlier');
    const shell = ['-c', 'ulimit -f 1; exec "$0" "$@"', process.execPath, file, text, lines];
    const { stdout } = spawnSync('bash', shell, { encoding: 'utf8' });
    for (const failure of JSON.parse(stdout))
      expect(failure).toEqual(['ERR_CHECKPOINT', expect.stringMatching(/^cannot write/)]);
    expect(readFileSync(text, 'utf8')).toBe('earlier');
  });

  const mount = (dir: string, size: string) => {
    mkdirSync(dir, { recursive: true });
    return spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', dir]).status === 0;
  };

  it('a file system without space (where one can be mounted; else as above)', async () => {
    const out = path('small disk');
    if (!mount(out, '1600k')) {
      console.log('no tmpfs can be mounted here: the file size limit stands in for it');
      expect(limited(500, train({ output_dir: out }, ...options))).toMatch(/^wrpo: cannot write .*checkpoint-1/);
      return;
    }
    mounts.push(out);
    // Room for one checkpoint of 1034 KiB, not for two.
    const message = await fail(train({ output_dir: out }, ...options), 1);
    expect(message).toMatch(/^wrpo: cannot write .*checkpoint-2.*[Nn]o space left on/);
    expectIntact(out);
    execFileSync('mount', ['-o', 'remount,size=16m', out]);
    await succeed(train({ output_dir: out }, ...options, '--resume-from-checkpoint'));
    expect(weightsOf(out).equals(weightsOf(whole))).toBe(true);
  });
});
