/** The engine in processes of its own: loading, threads, exit, workers, garbage, queue. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Child, MAIN, POLICY, ROOT, script as run, SCRIPT_BATCHES, scratchDirectory } from './training.ts';

const path = scratchDirectory('engine');
const INDEX = join(ROOT, 'dist', 'index.js');

/**
 * Shared by the scripts: a model of seven million weights, batches (of 8 rows of 200 tokens each: a second or two of
 * work), and what Linux knows of this process.
 */
const PRELUDE = `
import { readFileSync, realpathSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
const { Model, AdamW, Trainer, packRows, withContests, contestsOf, formOf } = wrpo;
const POLICY = ${JSON.stringify(POLICY)};
const create = (changes) => Model.create({ model_type: 'llama', vocab_size: 2000, hidden_size: 256, num_hidden_layers: 8,
  num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 640, max_position_embeddings: 1024,
  rms_norm_eps: 1e-5, rope_theta: 10000, ...changes });
${SCRIPT_BATCHES}const mapped = (pattern) => [...new Set(readFileSync('/proc/self/maps', 'utf8').split('\\n')
  .map((line) => line.slice(line.indexOf('/'))).filter((file) => pattern.test(file)))];
const threads = () => Number(/^Threads:\\s+(\\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
const say = (value) => console.log(JSON.stringify(value));
`;

let scripts = 0;
async function script<T>(source: string, options: Parameters<typeof run>[2] = {}) {
  const result = await run<T>(path(`script-${++scripts}.mjs`), PRELUDE + source, options);
  return result;
}

/** The script must end well. */
async function value<T>(source: string, options: Parameters<typeof run>[2] = {}): Promise<T> {
  const result = await script<T>(source, options);
  expect(result, result.stderr).toMatchObject({ status: 0, signal: null, stderr: '' });
  return result.value;
}

describe('loading', () => {
  const NATIVE = '/libtorch|libc10|libgomp|libiomp|wrpo[^/]*\\\\.node|libwrpo_core/';

  it('importing loads nothing native', async () => {
    expect(await value(`say(mapped(${NATIVE.replaceAll('\\\\', '\\')}))`)).toEqual([]);
  });

  it('importing loads no other package', async () => {
    const hook = 'export const resolve = (name, context, next) => (process._rawDebug(name), next(name, context));';
    const register = `import { register } from 'node:module'; register('data:text/javascript,${encodeURIComponent(hook)}');`;
    const flags = ['--import', `data:text/javascript,${encodeURIComponent(register)}`];
    const { stderr } = await new Child([...flags, INDEX]).done;
    const names = stderr.trim().split('\n');
    expect(names).toContain('./train/trainer.js');
    expect(names.filter((name) => !/^(node:|file:|\.)/.test(name))).toEqual([]);
  });

  it('require() gives the same, and loads nothing either', async () => {
    const file = path('require.cjs');
    writeFileSync(
      file,
      `const wrpo = require(${JSON.stringify(INDEX)});
      const maps = require('node:fs').readFileSync('/proc/self/maps', 'utf8');
      console.log(JSON.stringify({ keys: Object.keys(wrpo).sort(), native: ${NATIVE.replaceAll('\\\\', '\\')}.test(maps) }));`,
    );
    const result = await new Child([file]).done;
    expect(result, result.stderr).toMatchObject({ status: 0, stderr: '' });
    const keys = await value(`say(Object.keys(wrpo).sort())`);
    expect(JSON.parse(result.stdout)).toEqual({ keys, native: false });
    for (const name of ['Trainer', 'Model', 'AdamW', 'Tensor', 'Tokenizer', 'loadPreferences', 'WrpoError', 'info']) {
      expect(keys).toContain(name);
    }
  });

  it('--help loads nothing native', async () => {
    const probe = path('probe.mjs');
    writeFileSync(
      probe,
      `import { readFileSync } from 'node:fs';
      process.on('exit', () => { process.stderr.write(String(${NATIVE.replaceAll('\\\\', '\\')}.test(readFileSync('/proc/self/maps', 'utf8')))); });`,
    );
    const { status, stderr, stdout } = await new Child(['--import', probe, MAIN, '--help']).done;
    expect({ status, stderr }).toEqual({ status: 0, stderr: 'false' });
    expect(stdout).toContain('Usage: wrpo');
  });
});

describe('threads', () => {
  const TRAIN_A_STEP = `
    const rows = rowsOf(4, 40).map(({ prompt, responses }) => ({ prompt: [...prompt],
      ...Object.fromEntries(Object.entries(responses).map(([role, list]) => [role, [...list]])) }));
    const trainer = new Trainer({ model: POLICY, trainDataset: rows, args: { outputDir: process.argv[2], maxSteps: 1 } });
    await trainer.train();
    await trainer.close();
    const runtimes = new Set(mapped(/\\/lib(gomp|iomp5?|omp)[-.\\d][^/]*$/).map((file) => realpathSync(file)));
    say({ runtimes: [...runtimes], policy: process.env.OMP_WAIT_POLICY, threads: wrpo.info().threads });`;

  it('one OpenMP runtime, whose idle threads sleep', async () => {
    const env = { ...process.env, OMP_WAIT_POLICY: undefined };
    const found = await value<{ runtimes: string[]; policy: string; threads: number }>(TRAIN_A_STEP, {
      args: [path('a step')],
      env: env as NodeJS.ProcessEnv,
    });
    expect(found.runtimes).toHaveLength(1);
    expect(found.policy).toBe('passive');
    expect(found.threads).toBeGreaterThanOrEqual(1);
  });

  it('the user’s own OpenMP settings win', async () => {
    const found = await value<{ policy: string; threads: number }>(TRAIN_A_STEP, {
      args: [path('a step alone')],
      env: { OMP_WAIT_POLICY: 'active', OMP_NUM_THREADS: '1' },
    });
    expect(found).toMatchObject({ policy: 'active', threads: 1 });
  });

  it('thirty models opened and closed leave as many threads and no memory', async () => {
    const found = await value<{ threads: number[]; bytes: number }>(
      `
      const open = async () => {
        const model = await Model.load(POLICY);
        const optimizer = new AdamW(model, { learningRate: 1e-3 });
        await accumulate(model, batchOf(1, 20));
        await optimizer.step();
        await optimizer.close();
        await model.close();
        return [model, optimizer];
      };
      const kept = [await open()];
      const before = threads();
      for (let i = 0; i < 30; i++) kept.push(await open());
      const after = threads();
      globalThis.gc(); // the views through which the weights were read
      await sleep(10);
      say({ threads: [before, after], bytes: kept[0][0].memory().current });`,
      { flags: ['--expose-gc'] },
    );
    expect(found.threads[1]).toBe(found.threads[0]);
    expect(found.bytes).toBe(0);
  });

  it('the event loop stays free while a micro-batch is computed', async () => {
    const found = await value<{ busy: number; active: number; ticks: number }>(`
      const model = await create();
      await accumulate(model, batchOf(1, 20));
      let ticks = 0;
      const timer = setInterval(() => ticks++, 5);
      const batch = batchOf(8, 200);
      const began = performance.now();
      const before = performance.eventLoopUtilization();
      await accumulate(model, batch);
      const { active } = performance.eventLoopUtilization(before);
      clearInterval(timer);
      say({ busy: performance.now() - began, active, ticks });`);
    expect(found.busy).toBeGreaterThan(500);
    // All the time it was not waiting, whoever else wants the processor; the ticks themselves take some.
    expect(found.active).toBeLessThan(Math.max(250, found.busy / 20));
    expect(found.ticks).toBeGreaterThan(found.busy / 50);
    console.log(`event loop: active for ${found.active.toFixed(1)} ms in ${found.busy.toFixed(0)} ms of work`);
  });
});

describe('the end of a process', () => {
  it('an idle engine lets it exit', async () => {
    const {
      value: last,
      status,
      signal,
    } = await script<{ at: number; upTo: number }>(`
      const model = await Model.load(POLICY);
      const tensor = wrpo.Tensor.empty([1000]);
      await model.logProbs(packRows(rowsOf(1, 10), roles));
      say({ at: Date.now(), upTo: performance.now() });
      globalThis.kept = [model, tensor, tensor.view(), model.parameters()];`);
    expect({ status, signal }).toEqual({ status: 0, signal: null });
    // On a machine that is busy, what starts slowly ends slowly.
    expect(Date.now() - last.at).toBeLessThan(Math.max(2000, last.upTo));
  });

  it('queued work keeps it alive until it is done', async () => {
    const { stdout, status } = await script(`
      const model = await Model.load(POLICY);
      for (let i = 0; i < 3; i++) accumulate(model, batchOf(2, 50)).then(({ loss }) => say({ i, finite: Number.isFinite(loss) }));`);
    expect(status).toBe(0);
    expect(
      stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    ).toEqual([0, 1, 2].map((i) => ({ i, finite: true })));
  });

  it.each([
    ['process.exit', 'process.exit(7)', 7, /^$/],
    ['an uncaught error', 'throw new Error("mine")', 1, /^Error: mine$/m],
  ])('%s in the middle of long queued work ends it at once', async (_, end, code, words) => {
    const {
      value: last,
      status,
      signal,
      stderr,
    } = await script<{ at: number; one: number }>(`
      const model = await create();
      const began = performance.now();
      await accumulate(model, batchOf(8, 200));
      const one = performance.now() - began;
      for (let i = 0; i < 40; i++) accumulate(model, batchOf(8, 200)).catch(() => {});
      setTimeout(() => { say({ at: Date.now(), one }); ${end}; }, 300);`);
    const waited = Date.now() - last.at;
    expect({ status, signal }, stderr).toEqual({ status: code, signal: null });
    expect(stderr).toMatch(words);
    // Not even what was under way is finished, however busy the machine is.
    expect(waited).toBeLessThan(Math.max(1500, last.one));
    console.log(`${end}: gone after ${waited} ms`);
  });

  it('workers terminated in the middle of their work, six rounds', async () => {
    const worker = path('worker.mjs');
    writeFileSync(
      worker,
      `import * as wrpo from ${JSON.stringify(INDEX)};
      import { parentPort, workerData } from 'node:worker_threads';
      ${PRELUDE}
      const model = await create({ num_hidden_layers: 2 });
      const { sums } = await model.logProbs(packRows(rowsOf(1, 10), roles));
      if (workerData === 'queue') for (let i = 0; i < 20; i++) accumulate(model, batchOf(8, 200)).catch(() => {});
      parentPort.postMessage(sums[0]);
      // Stopped inside a call, whose failure then nobody can be told.
      while (workerData === 'calls') {
        wrpo.Tensor.from(Float32Array.of(1, 2), [2]).view();
        wrpo.preferenceLoss({ policy: { target_chosen: [1], rejected: [2] }, reference: { target_chosen: [1], rejected: [2] } },
          { lossType: 'sigmoid', beta: 0.1 });
        if (Math.random() < 0.01) { try { new AdamW(model, { learningRate: 1 }).step().catch(() => {}); } catch {} }
      }`,
    );
    const found = await value<{ longest: number; sums: number[]; threads: number[] }>(
      `
      import { Worker } from 'node:worker_threads';
      import { once } from 'node:events';
      let longest = 0;
      const sums = [];
      const counts = [];
      for (let round = 0; round < 6; round++) {
        const workers = ['queue', 'calls'].map((workerData) => new Worker(process.argv[2], { workerData }));
        const messages = workers.map((worker) => once(worker, 'message'));
        // In every other round one of them still starts.
        for (const [sum] of round % 2 ? await Promise.all(messages) : [await Promise.race(messages)]) sums.push(sum);
        await sleep(10 * round);
        const began = performance.now();
        await Promise.all(workers.map((worker) => worker.terminate()));
        longest = Math.max(longest, performance.now() - began);
        counts.push(threads());
      }
      await sleep(100); // a team of threads ends a moment after its master
      counts.push(threads());
      // The process itself works as before.
      const model = await create({ num_hidden_layers: 2 });
      sums.push((await model.logProbs(packRows(rowsOf(1, 10), roles))).sums[0]);
      say({ longest, sums, threads: counts });`,
      { args: [worker] },
    );
    expect(found.sums).toHaveLength(10);
    expect(new Set(found.sums).size, String(found.sums)).toBe(1);
    expect(found.threads.at(-1)).toBeLessThanOrEqual(found.threads[0]!);
    expect(found.longest).toBeLessThan(2500);
    console.log(
      `workers: longest terminate() ${found.longest.toFixed(0)} ms, threads after each round ${found.threads}`,
    );
  });

  it('a worker that has done its work ends by itself', async () => {
    const worker = path('short-worker.mjs');
    writeFileSync(
      worker,
      `import * as wrpo from ${JSON.stringify(INDEX)};
      ${PRELUDE}
      const model = await Model.load(POLICY);
      await accumulate(model, batchOf(1, 10));`,
    );
    const code = await value(
      `import { Worker } from 'node:worker_threads';
      import { once } from 'node:events';
      const [code] = await once(new Worker(process.argv[2]), 'exit');
      say(code);`,
      { args: [worker] },
    );
    expect(code).toBe(0);
  });
});

describe('the queue', () => {
  it('a model and an optimiser that nobody holds any more finish what they were asked', async () => {
    const found = await value<{ losses: number[]; norms: number[]; bytes: number }>(
      `
      const losses = [];
      const norms = [];
      for (let i = 0; i < 4; i++) {
        const pending = (() => {
          const work = (async () => {
            let held = await Model.load(POLICY);
            let optimizer = new AdamW(held, { learningRate: 1e-3 });
            const all = [accumulate(held, batchOf(4, 100)), optimizer.step(), accumulate(held, batchOf(4, 100))];
            held = optimizer = undefined;
            return all;
          })();
          return work;
        })();
        const all = await pending.then((list) => { const settled = Promise.all(list); return [settled]; });
        for (let k = 0; k < 5; k++) { globalThis.gc(); await sleep(1); }
        const [first, step, second] = await all[0];
        losses.push(first.loss, second.loss);
        norms.push(step.gradNorm);
      }
      for (let k = 0; k < 20; k++) { globalThis.gc(); await sleep(5); }
      const probe = await Model.load(POLICY);
      await probe.close();
      say({ losses, norms, bytes: probe.memory().current });`,
      { flags: ['--expose-gc'] },
    );
    expect(found.losses).toHaveLength(8);
    expect([...found.losses, ...found.norms].every(Number.isFinite)).toBe(true);
    expect(new Set(found.norms).size).toBe(1);
    expect(found.losses[1]).not.toBe(found.losses[0]);
    expect(found.bytes).toBeLessThan(1e6); // nothing of the four is left
  });

  it('close() waits for what is queued, and what comes later is refused', async () => {
    const order = await value<unknown[]>(`
      const model = await Model.load(POLICY);
      const optimizer = new AdamW(model, { learningRate: 1e-3 });
      const order = [];
      const note = (name) => () => order.push(name);
      const refused = (act) => Promise.resolve().then(act).then(() => 'done', (error) => [error.name, error.code, error.message]);
      const work = [accumulate(model, batchOf(4, 100)).then(note('accumulate')), optimizer.step().then(note('step')),
        model.logProbs(packRows(rowsOf(1, 10), roles)).then(note('logProbs'))];
      const views = await refused(() => model.parameters());
      const closing = [optimizer.close().then(note('optimizer closed')), model.close().then(note('closed'))];
      const later = await Promise.all([() => accumulate(model, batchOf(1, 10)), () => model.logProbs(packRows(rowsOf(1, 10), roles)),
        () => model.fingerprint(), () => optimizer.step(), () => new AdamW(model, { learningRate: 1 })].map(refused));
      await Promise.all([...work, ...closing]);
      const again = await refused(() => model.close());
      say([order, views, later, again]);`);
    const closed = (what: string) => ['WrpoError', 'ERR_CLOSED', `the ${what} was closed`];
    expect(order[0]).toEqual(['accumulate', 'step', 'logProbs', 'optimizer closed', 'closed']);
    expect(order[1]).toEqual(['WrpoError', 'ERR_CLOSED', expect.stringContaining('await them first')]);
    expect(order[2]).toEqual([closed('model'), closed('model'), closed('model'), closed('optimizer'), closed('model')]);
    expect(order[3]).toBe('done');
  });

  it('computes while a file is written, and changes nothing before it is', async () => {
    const found = await value<{ order: string[]; same: boolean; moved: boolean }>(`
      import { execFileSync } from 'node:child_process';
      import { loadNative } from ${JSON.stringify(join(ROOT, 'dist', 'native', 'load.js'))};
      const model = await Model.load(POLICY);
      const optimizer = new AdamW(model, { learningRate: 1e-2 });
      const weights = [...model.parameters().values()];
      const bytes = () => Buffer.concat(weights.map((tensor) => Buffer.from(tensor.view().slice().buffer)));
      const before = bytes();
      const pipe = ${JSON.stringify(path('pipe'))};
      execFileSync('mkfifo', [pipe]);
      const order = [];
      const note = (name) => () => order.push(name);
      // Is written when somebody reads, and not before.
      const written = loadNative().writeTensors(pipe, Buffer.alloc(8), weights, 'float32').then(note('written'));
      const accumulated = accumulate(model, batchOf(1, 20)).then(note('accumulate'));
      const stepped = optimizer.step().then(note('step'));
      const asked = accumulate(model, batchOf(1, 20)).then(note('accumulate'));
      await accumulated;
      await sleep(100);
      note('read')();
      const read = readFileSync(pipe).subarray(8);
      await Promise.all([written, stepped, asked]);
      say({ order, same: read.equals(before), moved: !bytes().equals(before) });`);
    expect(found).toEqual({ order: ['accumulate', 'read', 'written', 'step', 'accumulate'], same: true, moved: true });
  });

  it('answers in the order of the calls, with the models mixed, the same every time', async () => {
    const found = await value<{ order: number[]; same: boolean }>(`
      const models = [await Model.load(POLICY), await Model.load(POLICY)];
      const order = [];
      const results = await Promise.all(Array.from({ length: 12 }, async (_, i) => {
        const { loss } = await accumulate(models[i % 2], batchOf(1 + (i % 3), 10 + 10 * (i % 4)));
        order.push(i);
        return loss;
      }));
      const again = [];
      for (let i = 0; i < 12; i++) again.push((await accumulate(models[0], batchOf(1 + (i % 3), 10 + 10 * (i % 4)))).loss);
      say({ order, same: results.every((loss, i) => loss === again[i]) });`);
    expect(found).toEqual({ order: Array.from({ length: 12 }, (_, i) => i), same: true });
  });

  it('refuses batches that would lead it outside its memory', async () => {
    const found = await value<[string, string, string][]>(`
      const model = await Model.load(POLICY);
      const good = batchOf(2, 10);
      const bad = {
        'no rows': { ...withContests(packRows([], roles), contestsOf(objective)), reference: new Float64Array(0) },
        'an id beyond the vocabulary': { ...good, tokens: good.tokens.with(3, 199) },
        'a negative id': { ...good, tokens: good.tokens.with(0, -1) },
        'a target beyond the vocabulary': { ...good, targets: good.targets.with(0, 5000) },
        'a negative position': { ...good, positions: good.positions.with(0, -1) },
        'falling offsets': { ...good, responseOffsets: good.responseOffsets.with(1, 1000) },
        'positions that are too few': { ...good, positions: good.positions.slice(1) },
        'a contest of strangers': { ...good, contestResponses: good.contestResponses.with(0, 5) },
        'a contest beyond the batch': { ...good, contestResponses: good.contestResponses.with(0, 500) },
        'references that are too few': { ...good, reference: new Float64Array(5) },
        'the wrong kind of array': { ...good, tokens: [...good.tokens] },
        'nothing': undefined,
      };
      const found = [];
      for (const [name, batch] of Object.entries(bad)) {
        for (const act of [() => model.logProbs(batch), () => accumulate(model, batch)]) {
          const error = await Promise.resolve().then(act).then(() => ({}), (reason) => reason);
          found.push([name, error.code, error.message]);
        }
      }
      const { sums } = await model.logProbs(packRows(rowsOf(1, 10), roles));
      found.push(['and still answers', String(Number.isFinite(sums[0])), '']);
      say(found);`);
    expect(found.at(-1)).toEqual(['and still answers', 'true', '']);
    for (const [name, code, message] of found.slice(0, -1)) {
      expect(code, `${name}: ${message}`).toMatch(/^ERR_(DATA|CONFIG)$/);
      expect(message).not.toMatch(/\n|Exception|\.cpp/);
    }
  });
});
