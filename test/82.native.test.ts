/** Handles, buffers, threads and memory of the native half, in processes of their own; `npm run torture` goes on for longer. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, it } from 'vitest';
import { POLICY, ROOT, script as run, SCRIPT_BATCHES, scratchDirectory } from './training.ts';

const path = scratchDirectory('native');
const LONG = process.env.TORTURE !== undefined;
const MODELS = LONG ? 100 : 20;
const PRELUDE = `
import { fork } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
const { Model, AdamW, Trainer, packRows, withContests, contestsOf, formOf } = wrpo;
const INDEX = ${JSON.stringify(pathToFileURL(join(ROOT, 'dist', 'index.js')).href)};
const POLICY = ${JSON.stringify(POLICY)};
const create = () => Model.create({ model_type: 'llama', vocab_size: 2000, hidden_size: 256, num_hidden_layers: 6,
  num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 640, max_position_embeddings: 1024,
  rms_norm_eps: 1e-5, rope_theta: 10000 });
${SCRIPT_BATCHES}const outcome = async (act) => { try { await act(); return 'done'; } catch (error) { return error.code + ': ' + error.message; } };
const rss = () => Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]) * 4096;
const say = (value) => console.log(JSON.stringify(value));
`;

/**
 * For a resident set that shows what the engine keeps, where other things would hide it: V8 doubles its young generation
 * somewhere on the way, each thread's arena of the C library keeps what was freed and so does AddressSanitizer.
 */
const STILL = {
  flags: ['--expose-gc', '--max-semi-space-size=2'],
  env: {
    ...{ MALLOC_ARENA_MAX: '1', MALLOC_TRIM_THRESHOLD_: '65536' },
    ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:quarantine_size_mb=0`,
  },
};

let scripts = 0;
async function value<T>(source: string, options: Parameters<typeof run>[2] = {}): Promise<T> {
  const result = await run<T>(path(`script-${++scripts}.mjs`), PRELUDE + source, options);
  expect(result, result.stderr).toMatchObject({ status: 0, signal: null, stderr: '' });
  return result.value;
}

const CLOSED = /^ERR_CLOSED: the (model|optimizer|generator) was closed$/;

it('handles closed twice, used after close, and closed in the middle of a step', async () => {
  const found = await value<{ twice: string[]; after: string[]; middle: string[]; bytes: number }>(
    `
    const model = await Model.load(POLICY);
    const optimizer = new AdamW(model, { learningRate: 1e-3 });
    const batch = batchOf(2, 20);
    await accumulate(model, batch);
    // Closed in the middle: what was asked before is done, and the weights live as long as it takes.
    const middle = [accumulate(model, batch), optimizer.step(), accumulate(model, batch), model.close(), optimizer.close()];
    const settled = (await Promise.allSettled(middle)).map(({ status }) => status);
    const twice = [await outcome(() => model.close()), await outcome(() => optimizer.close()), await outcome(() => model.close())];
    const after = [];
    for (const call of [() => model.logProbs(batch), () => accumulate(model, batch), () => model.parameters(),
      () => model.gradients(), () => model.zeroGradients(), () => model.fingerprint(), () => model.syncWork(),
      () => model.loadWeights(POLICY), () => model.save(process.argv[1] + '.never'), () => model.addAdapters(),
      () => model.generator(), () => new AdamW(model, { learningRate: 1 }), () => optimizer.step(),
      () => optimizer.learningRateAt(1), () => optimizer.completed, () => optimizer.save(process.argv[1] + '.never'),
    ]) after.push(await outcome(call));
    globalThis.gc();
    await sleep(20);
    say({ middle: settled, twice, after, bytes: model.memory().current });`,
    { flags: ['--expose-gc'] },
  );
  expect(found.middle).toEqual(Array(5).fill('fulfilled'));
  expect(found.twice).toEqual(['done', 'done', 'done']);
  for (const answer of found.after) expect(answer).toMatch(CLOSED);
  expect(found.bytes).toBe(0);
});

it('a generator closed in the middle, and twice; its model closed under it', async () => {
  const found = await value<string[]>(`
    const model = await Model.load(POLICY);
    const prompt = { ids: ids(20, 1), seeds: [1, 2, 3] };
    const generator = model.generator({ maxTokens: 400, stopIds: [] });
    const sampled = outcome(() => generator.sample(prompt));
    await sleep(20);
    const answers = [await outcome(() => generator.close()), await outcome(() => generator.close())];
    answers.push(await sampled, await outcome(() => generator.sample(prompt)));
    const other = model.generator({ maxTokens: 20, stopIds: [] });
    const late = outcome(() => other.sample(prompt));
    await model.close();
    answers.push(await late);
    await other.close();
    say(answers);`);
  expect(found.slice(0, 2)).toEqual(['done', 'done']);
  for (const answer of found.slice(2)) expect(answer).toMatch(/^done$|^ERR_CLOSED: /);
});

it('handles and views that nobody holds, collected in the middle of steps', async () => {
  const found = await value<{ losses: number[]; bytes: number }>(
    `
    const batch = batchOf(2, 30);
    const losses = [];
    for (let i = 0; i < ${LONG ? 30 : 8}; i++) {
      const work = (async () => {
        const model = await Model.load(POLICY);
        const optimizer = new AdamW(model, { learningRate: 1e-3 });
        const views = [...model.parameters().values()].map((tensor) => tensor.view());
        const done = [accumulate(model, batch), optimizer.step(), accumulate(model, batch)];
        return { done: Promise.all(done), first: views[0] };
      })();
      const { done, first } = await work;
      globalThis.gc();
      losses.push((await done)[0].loss);
      globalThis.gc();
      if (!Number.isFinite(first.reduce((sum, x) => sum + x))) throw new Error('a view of freed memory');
    }
    globalThis.gc();
    await sleep(50);
    globalThis.gc();
    const probe = await Model.load(POLICY);
    await probe.close();
    say({ losses, bytes: probe.memory().current });`,
    { flags: ['--expose-gc'] },
  );
  expect(new Set(found.losses).size).toBe(1);
});

it('typed arrays that are changed or detached right after the call, or before it', async () => {
  const found = await value<{ same: boolean[]; refused: string[] }>(`
    const model = await Model.load(POLICY);
    const expected = await accumulate(model, batchOf(3, 25));
    await model.zeroGradients();
    const same = [];
    const refused = [];
    for (const key of Object.keys(batchOf(3, 25)).filter((name) => ArrayBuffer.isView(batchOf(3, 25)[name]))) {
      for (const spoil of [(array) => array.fill(2 ** 30), (array) => structuredClone(array, { transfer: [array.buffer] })]) {
        const batch = batchOf(3, 25);
        const queued = accumulate(model, batch);
        spoil(batch[key]);
        same.push(JSON.stringify(await queued) === JSON.stringify(expected));
        await model.zeroGradients();
        // Spoilt before, it must be refused or change nothing (a weight may be any number), and lead nowhere.
        const spoilt = batchOf(3, 25);
        spoil(spoilt[key]);
        refused.push(key + ' ' + await outcome(() => accumulate(model, spoilt)));
        await model.zeroGradients();
      }
    }
    same.push(JSON.stringify(await accumulate(model, batchOf(3, 25))) === JSON.stringify(expected));
    say({ same, refused });`);
  expect(found.same.every(Boolean)).toBe(true);
  for (const answer of found.refused) {
    // Of these numbers any is one; those of the others are places in memory.
    if (/^(reference|contestCoefficients|contestWeights) /.test(answer)) {
      expect(answer).toMatch(/ (done|ERR_(CONFIG|DATA|NON_FINITE|MODEL): [^\n]+)$/);
    } else expect(answer).toMatch(/ ERR_(CONFIG|DATA|MODEL): [^\n]+$/);
  }
});

it('the main thread and four workers, terminated in the middle of their steps', async () => {
  const rounds = LONG ? 8 : 2;
  const found = await value<{ losses: number[]; terminated: number }>(`
    const source = \`
      import { parentPort } from 'node:worker_threads';
      const wrpo = await import(\${JSON.stringify(INDEX)});
      const { Model, AdamW } = wrpo;
      const model = await Model.load(\${JSON.stringify(POLICY)});
      const optimizer = new AdamW(model, { learningRate: 1e-4 });
      parentPort.once('message', async ({ batch, form }) => {
        parentPort.postMessage('going');
        for (;;) { await model.accumulate(batch, { objective: form, normalizer: 4 }); await optimizer.step(); }
      });
      parentPort.postMessage('ready');\`;
    const url = new URL('data:text/javascript,' + encodeURIComponent(source));
    const model = await Model.load(POLICY);
    const batch = batchOf(4, 60);
    const losses = [];
    let terminated = 0;
    for (let round = 0; round < ${rounds}; round++) {
      const workers = Array.from({ length: 4 }, () => new Worker(url));
      const heard = (worker) => new Promise((resolve, reject) => { worker.once('message', resolve); worker.once('error', reject); });
      await Promise.all(workers.map(heard));
      const going = workers.map(heard);
      for (const worker of workers) worker.postMessage({ batch, form: formOf(objective) });
      await Promise.all(going);
      const own = accumulate(model, batch);
      await sleep(5 * round);
      await Promise.all(workers.map((worker) => worker.terminate()));
      terminated += workers.length;
      losses.push((await own).loss);
      await model.zeroGradients();
    }
    await model.close();
    say({ losses, terminated });`);
  expect(found.terminated).toBe(4 * rounds);
  expect(new Set(found.losses).size).toBe(1);
}, 300_000);

it(`${MODELS} models opened and closed leave no memory, and a fork in the middle of a step both whole`, async () => {
  const found = await value<{ bytes: number; growth: number; losses: number[] }>(
    `
    const open = async () => {
      const model = await Model.load(POLICY);
      const optimizer = new AdamW(model, { learningRate: 1e-3 });
      const { loss } = await accumulate(model, batchOf(1, 20));
      await optimizer.step();
      await optimizer.close();
      await model.close();
      return loss;
    };
    if (process.argv[2] === 'child') {
      process.send(await open());
      process.disconnect();
    } else {
      for (let i = 0; i < ${MODELS / 5}; i++) await open();
      globalThis.gc();
      const before = rss();
      for (let i = 0; i < ${MODELS}; i++) await open();
      globalThis.gc();
      await sleep(20);
      const growth = rss() - before;
      const own = open();
      const child = fork(process.argv[1], ['child']);
      const theirs = await new Promise((resolve) => child.once('message', resolve));
      const probe = await Model.load(POLICY);
      await probe.close();
      globalThis.gc();
      await sleep(20);
      say({ bytes: probe.memory().current, growth, losses: [await own, theirs] });
    }`,
    STILL,
  );
  console.log(`${MODELS} models: ${(found.growth / 1e6).toFixed(1)} MB more`);
  expect(found.bytes).toBe(0);
  expect(found.losses[0]).toBe(found.losses[1]);
  // Of a model that is kept 3.5 MB a piece; AddressSanitizer's own lists grow by 3 MB before they stay as they are.
  expect(found.growth).toBeLessThan(5e6);
});

// Too long for every day.
if (LONG) {
  it('a thousand steps: the resident set stays flat', async () => {
    // What is set up late, once, is no leak, which would grow in the next thousand as well.
    const spans = await value<[number, number][]>(
      `
    const rows = rowsOf(64, 24).map(({ prompt, responses }) => ({ prompt: [...prompt],
      ...Object.fromEntries(Object.entries(responses).map(([role, list]) => [role, [...list]])) }));
    const trainer = new Trainer({ model: POLICY, trainDataset: rows, args: { outputDir: ${JSON.stringify(path('thousand'))},
      maxSteps: 3450, perDeviceTrainBatchSize: 4, gradientAccumulationSteps: 1, saveSteps: 250, saveTotalLimit: 1,
      loggingSteps: 10, disableTqdm: true } });
    const samples = [];
    const around = (step) => samples.slice(step / 10 - 13, step / 10 + 12).sort((a, b) => a - b)[12];
    const spans = [];
    for await (const { step } of trainer.steps()) {
      if (step % 10 !== 0) continue;
      globalThis.gc();
      samples.push(rss());
      if (step < 1000 || step % 1000 !== 450) continue;
      const [early, late] = [around(step - 1120), around(step - 120)];
      spans.push([early, late]);
      if (late - early < 2e6) break;
    }
    await trainer.close();
    say(spans);`,
      STILL,
    );
    const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
    for (const [i, [early, late]] of spans.entries()) {
      console.log(
        `resident: ${megabytes(early)} around step ${1000 * i + 330}, ${megabytes(late)} around step ${1000 * i + 1330}`,
      );
    }
    const growth = Math.min(...spans.map(([early, late]) => late - early));
    expect(growth).toBeLessThan(2e6);
  }, 600_000);
}
