/**
 * The paths of TypeScript that a step waits for: packing a micro-batch, the contests' terms, a call of the addon that
 * computes nothing. One JSON line a number (median, and the middle half's width relative to it).
 *
 * node bench/host.mjs [--time MS]
 */
import { parseArgs } from 'node:util';
import { Bench } from 'tinybench';
import { packRows, splitMicrobatches, withContests } from '../dist/data/pack.js';
import { info, preferenceLoss, Tensor } from '../dist/index.js';
import { objectiveOf, termsOf } from '../dist/train/objective.js';

const { values } = parseArgs({ options: { time: { type: 'string', default: '1000' } } });
const roles = ['source_chosen', 'target_chosen', 'rejected'];
const ids = (n) => Int32Array.from({ length: n }, (_, i) => (i * 7919) % 32000);
const rows = Array.from({ length: 16 }, (_, i) => ({
  where: `row ${i + 1}`,
  prompt: ids(190),
  responses: { source_chosen: ids(420), target_chosen: ids(417), rejected: ids(422) },
}));
const args = { lossType: 'wrpo', beta: 0.01, alpha: 0.1, labelSmoothing: 0, sftWeight: 0 };
const { contests } = termsOf(objectiveOf(args, 0.1));
const packed = packRows(rows.slice(0, 5), roles);
const policy = { source_chosen: [-9], target_chosen: [-10], rejected: [-12] };

const bench = new Bench({ time: Number(values.time) });
bench
  .add('split 16 quadruples into micro-batches of 8192', () => splitMicrobatches(rows, roles, 8192))
  .add('pack 5 quadruples, 7245 tokens', () => packRows(rows.slice(0, 5), roles))
  .add('contests of 5 quadruples', () => withContests(packed, contests))
  .add('one contest in the addon', () => preferenceLoss({ policy, reference: policy }, args))
  .add('a tensor of 1 number there and back', () => Tensor.from(new Float32Array([1]), [1]).toHost());
await bench.run();
const { cpuCapability, torchVersion } = info();
for (const { name, result } of bench.tasks) {
  if (result.state !== 'completed') throw result.error;
  const { p50, p75, samplesCount } = result.latency;
  const line = { bench: 'host', what: name, value: p50 * 1000, unit: 'us', upperQuartile: p75 * 1000 };
  process.stdout.write(`${JSON.stringify({ ...line, rounds: samplesCount, cpuCapability, torchVersion })}\n`);
}
