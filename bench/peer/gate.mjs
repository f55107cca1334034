/**
 * This package's side of the gate before any time is printed: the loss and gradients of all rows as one batch, with the
 * final alpha, held against gradients that bench_peer.py wrote. Its one argument is JSON, it prints {loss, cosine} as such.
 */
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { packRows, splitMicrobatches, withContests } from '../../dist/data/pack.js';
import { Model } from '../../dist/index.js';
import { readHeader } from '../../dist/model/safetensors.js';
import { termsOf } from '../../dist/train/objective.js';

const {
  data,
  model: directory,
  gradients,
  loss,
  dtype,
  device,
  sharePrompt,
  microbatchTokens,
} = JSON.parse(process.argv[2]);
const { roles, form, contests } = termsOf({ lossType: loss === 'wrpo' ? 'wrpo' : 'sigmoid', alpha: 0.1, beta: 0.01 });
const rows = readFileSync(data, 'utf8').trim().split('\n').map(encoded);
const model = await Model.load(directory, { dtype, device });
let total = 0;
for (const part of splitMicrobatches(rows, roles, microbatchTokens)) {
  const packed = packRows(part, roles, { sharePrompt, longestShared: model.longestShared });
  const { sums } = await model.logProbs(packed);
  const batch = { ...withContests(packed, contests), reference: Float64Array.from(sums) };
  total += (await model.accumulate(batch, { objective: form, normalizer: rows.length })).loss;
}
console.log(JSON.stringify({ loss: total, cosine: cosine(model.gradients(), readHeader(gradients)) }));

function encoded(line, i) {
  const { prompt, ...responses } = JSON.parse(line);
  const ids = Object.entries(responses).map(([role, values]) => [role, Int32Array.from(values)]);
  return { where: `row ${i + 1}`, prompt: Int32Array.from(prompt), responses: Object.fromEntries(ids) };
}

/** Of all parameters as one vector. */
function cosine(ours, theirs) {
  let [both, mine, other] = [0, 0, 0];
  for (const [name, tensor] of ours) {
    const g = tensor.toHost();
    tensor.dispose();
    const h = floats(theirs.get(name));
    for (let i = 0; i < g.length; i++) {
      both += g[i] * h[i];
      mine += g[i] * g[i];
      other += h[i] * h[i];
    }
  }
  return both / Math.sqrt(mine * other);
}

function floats({ file, offset, bytes }) {
  const values = new Float32Array(bytes / 4);
  const handle = openSync(file, 'r');
  readSync(handle, values, 0, bytes, offset);
  closeSync(handle);
  return values;
}
