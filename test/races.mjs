/**
 * Everything of the native half that two threads see, at the same time, for ThreadSanitizer (test/sanitize.mjs): the
 * JavaScript thread asks, reads and closes while the engine computes, in the main thread and in workers that are ended in
 * the middle of it. What it computes must be the same everywhere.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker } from 'node:worker_threads';
import { AdamW, contestsOf, formOf, Model, packRows, withContests } from '../dist/index.js';

const POLICY = fileURLToPath(new URL('fixtures/llama/policy', import.meta.url));
const roles = ['source_chosen', 'target_chosen', 'rejected'];
const objective = { lossType: 'wrpo', beta: 0.1, alpha: 0.3 };
const ids = (length, seed) => Int32Array.from({ length }, (_, i) => (i * 31 + seed * 17 + 3) % 190);

function batchOf(rows) {
  const list = Array.from({ length: rows }, (_, i) => ({
    ...{ where: `row ${i}`, prompt: ids(12, i) },
    responses: Object.fromEntries(roles.map((role, k) => [role, ids(12, i + k + 1)])),
  }));
  return { ...withContests(packRows(list, roles), contestsOf(objective)), reference: new Float64Array(3 * rows) };
}
const accumulate = (model, batch) => model.accumulate(batch, { objective: formOf(objective), normalizer: 4 });

/** Asks for much at once, and looks at what may be looked at meanwhile. */
async function once(directory) {
  const model = await Model.load(POLICY);
  const optimizer = new AdamW(model, { learningRate: 1e-3, totalSteps: 10 });
  const batch = batchOf(2);
  const losses = [];
  const asked = [];
  for (let i = 0; i < 3; i++) {
    asked.push(accumulate(model, batch).then(({ loss }) => losses.push(loss)));
    // The call has copied them.
    for (const list of Object.values(batch)) if (ArrayBuffer.isView(list)) list.fill(list[0]);
    Object.assign(batch, batchOf(2));
    asked.push(optimizer.step(), model.logProbs(batchOf(1)), model.fingerprint());
    if (directory) asked.push(model.save(join(directory, `${i}`)), optimizer.save(join(directory, `${i}`)));
    // At once: it must not change what is being written.
    asked.push(optimizer.step());
  }
  const generator = model.generator({ maxTokens: 20, stopIds: [] });
  asked.push(generator.sample({ ids: [...ids(9, 1)], seeds: [1, 2] }));
  let open = true;
  const all = Promise.all(asked).finally(() => {
    open = false;
  });
  while (open) {
    // What waits for nobody.
    model.memory();
    assert(optimizer.completed <= 6);
    optimizer.learningRateAt(2);
    await turn();
  }
  await all;
  for (const tensor of model.parameters().values()) tensor.view();
  await generator.close();
  // Closed while there is work: what was asked is done.
  const last = accumulate(model, batchOf(1));
  await Promise.all([model.close(), optimizer.close(), last]);
  return losses;
}

if (!isMainThread) {
  for (;;) parentPort.postMessage(await once());
} else {
  const directory = mkdtempSync(join(tmpdir(), 'wrpo-races-'));
  const workers = [1, 2].map(() => new Worker(fileURLToPath(import.meta.url)));
  const first = workers.map((worker) => new Promise((resolve) => worker.once('message', resolve)));
  const own = await once(directory);
  for (const losses of await Promise.all(first)) assert.deepEqual(losses, own);
  const going = once();
  await sleep(30);
  await Promise.all(workers.map((worker) => worker.terminate()));
  assert.deepEqual(await going, own);
  rmSync(directory, { recursive: true });
  console.log('the main thread and two workers agree');
}
