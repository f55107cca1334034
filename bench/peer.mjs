/**
 * `npm run bench:peer`: this package and Python peers (peer/bench_peer.py) train the same token ids from the same weights,
 * alternating, every run in a fresh process; ratios of real tokens per second and of peak memory are printed as median,
 * worst and spread, one JSON line a comparison. Without options: on the CPU every comparison of SUITE, and where there is
 * a GPU those of peer/arms.mjs.
 *
 * node bench/peer.mjs [--preset nano|tiny|small] [--mode wrpo|trl-dpo] [--flat] [--dtype float32|bfloat16] [--rounds 5]
 *   [--rows N]
 * node bench/peer.mjs --device cuda | --arms --preset nano|tiny|small|llama-3.2-1b|llama-3.2-3b [--no-checkpointing]
 *   [--flat] [--dtype float32|bfloat16] [--rounds 3] [--rows N] [--max-length N]
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { info } from '../dist/index.js';
import { compareArms, GPU_SUITE } from './peer/arms.mjs';
import { fail, ownRun, peerPython, print, pythonPeer, summary } from './peer/process.mjs';

const { values } = parseArgs({
  options: {
    device: { type: 'string' },
    arms: { type: 'boolean', default: false },
    preset: { type: 'string' },
    mode: { type: 'string', default: 'wrpo' },
    flat: { type: 'boolean', default: false },
    'no-checkpointing': { type: 'boolean', default: false },
    dtype: { type: 'string' },
    rounds: { type: 'string' },
    rows: { type: 'string' },
    'max-length': { type: 'string' },
    threads: { type: 'string', default: '2' },
  },
});
const ROWS = { nano: 96, tiny: 32, small: 16 };
const SUITE = [
  { preset: 'nano', mode: 'wrpo' },
  { preset: 'tiny', mode: 'wrpo' },
  { preset: 'small', mode: 'wrpo' },
  { preset: 'nano', mode: 'trl-dpo' },
  { preset: 'tiny', mode: 'trl-dpo' },
  { preset: 'small', mode: 'trl-dpo' },
  { preset: 'tiny', mode: 'trl-dpo', flat: true },
  { preset: 'tiny', mode: 'wrpo', dtype: 'bfloat16' },
];

const gpu = info().gpu;
const device = values.device ?? (gpu && !values.preset ? 'cuda' : 'cpu');
if (device === 'cuda' && !gpu)
  fail('--device cuda: there is no usable GPU, or no core for it: `wrpo doctor` says which');
const arms = values.arms || device === 'cuda';
if (arms && device === 'cpu' && !values.preset) fail('--arms on the CPU needs a --preset, such as nano');
const python = peerPython(device);
const { threads } = values;
const dtype = values.dtype ?? (device === 'cuda' ? 'bfloat16' : 'float32');
const rounds = Number(values.rounds ?? (arms ? 3 : 5));

let scratch = '';
process.on('exit', () => rmSync(scratch, { recursive: true, force: true })); // also of a comparison that fails

for (const one of values.preset ? [values] : arms ? GPU_SUITE : SUITE) {
  scratch = mkdtempSync(join(tmpdir(), 'wrpo-peer-'));
  const rows = values.rows ?? (arms && device === 'cuda' ? 96 : ROWS[one.preset]);
  if (arms) {
    const { preset, 'no-checkpointing': kept = false } = one;
    const maxLength = values['max-length'] ?? (device === 'cuda' ? '2048' : '1024');
    const given = { python, preset, device, dtype, rows, maxLength, rounds, threads };
    compareArms({ ...given, flat: values.flat, checkpointing: !kept }, scratch);
  } else compare({ flat: false, rows, ...one, dtype: one.dtype ?? dtype }, scratch);
  rmSync(scratch, { recursive: true, force: true });
}

function compare({ preset, mode, flat, dtype, rows }, scratch) {
  const data = join(scratch, 'rows.jsonl');
  const model = join(scratch, 'model');
  const peer = pythonPeer({ python, preset, threads });
  peer('--make-data', data, '--rows', String(rows), ...(flat ? ['--flat'] : []));
  peer('--make-model', model, '--dtype', dtype);

  const ratios = { speed: [], memory: [] };
  const settings = ['--data', data, '--mode', mode, '--dtype', dtype, '--model', model, '--tmp', join(scratch, 'trl')];
  for (let round = 0; round < rounds; round++) {
    const theirs = peer(...settings, ...(mode === 'trl-dpo' ? ['--precompute'] : []));
    const mine = ownRun({ data, model, mode, dtype, threads, out: join(scratch, `run${round}`) });
    // The authors' recipe computes the reference within every step, TRL before training: ours is counted with the former.
    const rate = mode === 'wrpo' ? mine.tokens_per_s_with_reference : mine.tokens_per_s;
    ratios.speed.push(rate / theirs.tokens_per_s);
    ratios.memory.push(mine.peak_rss_mb / theirs.peak_rss_mb);
    const drift = Math.max(...mine.losses.map((loss, i) => Math.abs(loss - theirs.losses[i])));
    print({
      ...{ round, preset, mode, dtype, wrpo: rate, peer: theirs.tokens_per_s },
      ...{ wrpo_rss_mb: mine.peak_rss_mb, peer_rss_mb: theirs.peak_rss_mb },
      ...(mode === 'wrpo' && { loss_drift: drift }), // TRL takes the rows in another order
    });
  }
  print({
    ...{ preset, mode, flat, dtype, rows: Number(rows) },
    ...{ speed_ratio: summary(ratios.speed, 'min'), memory_ratio: summary(ratios.memory, 'max') },
  });
}
