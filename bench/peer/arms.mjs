/**
 * This package and every peer on the same rows and weights, in turn: what `bench:peer` runs on a GPU, and on the CPU with
 * --arms. First the gate: losses of ln 2, and gradients that agree with those of the plain recipe in float32. Then rounds,
 * a line a run; then a line for every pair, and one for what WRPO costs beside DPO.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fail, here, lastLine, ownRun, print, pythonPeer, summary } from './process.mjs';

export const GPU_SUITE = [
  { preset: 'llama-3.2-1b' },
  { preset: 'llama-3.2-3b' },
  { preset: 'llama-3.2-1b', 'no-checkpointing': true },
  { preset: 'llama-3.2-3b', 'no-checkpointing': true },
];

const BOTH = ['wrpo', 'dpo'];
/** `everyStep`: it computes the reference within every step, and this package's is then counted with it. */
const ARMS = [
  { name: 'authors', run: authors, losses: ['wrpo'], everyStep: true, checkpointed: true },
  { name: 'trl', run: trl, losses: ['dpo'], needs: 'trl', checkpointed: true },
  { name: 'trl-liger', run: trlLiger, losses: ['dpo'], needs: 'liger_kernel', everyStep: true, checkpointed: true },
  { name: 'packed', run: packed, losses: BOTH },
  { name: 'ours-unshared', run: (...args) => ours(false, ...args), losses: BOTH, own: true },
  { name: 'ours', run: (...args) => ours(true, ...args), losses: BOTH, own: true },
];

/** `setting`: python, preset, device, dtype, rows, flat, maxLength, rounds, threads, checkpointing. */
export function compareArms(setting, scratch) {
  const { python, preset, device, dtype, checkpointing, rounds } = setting;
  const context = {
    ...setting,
    peer: pythonPeer(setting),
    ...{ data: join(scratch, 'rows.jsonl'), model: join(scratch, 'model'), scratch },
    ...(device === 'cuda' ? { microbatchTokens: 8192, accumulate: 8 } : { microbatchTokens: 2048, accumulate: 4 }),
  };
  const step = 2 * context.accumulate;
  if (setting.rows < 2 * step || setting.rows % step !== 0) {
    fail(`--rows ${setting.rows}: expected a multiple of ${step}, the rows of a step, and two steps at least`);
  }
  const versions = lastLine(python, [here('bench_peer.py'), '--versions']);
  const arms = ARMS.filter(({ checkpointed }) => checkpointing || !checkpointed).filter(({ name, needs }) => {
    const there = !needs || (versions.trl && versions[needs]);
    if (!there) print({ preset, arm: name, not_run: `${versions.trl ? needs : 'trl'} is not installed in ${python}` });
    return there;
  });
  const losses = checkpointing ? BOTH : ['wrpo'];
  print({ preset, device, dtype, gradient_checkpointing: checkpointing, ...versions, ...makeRows(context) });
  context.peer('--make-model', context.model, '--dtype', dtype);
  for (const loss of losses) gate(context, loss);

  const runs = losses.flatMap((loss) =>
    arms.filter((arm) => arm.losses.includes(loss)).map((arm) => ({ ...arm, loss, results: [] })),
  );
  for (let round = 0; round < rounds; round++) {
    if (device === 'cuda') print({ preset, round, gpu: gpuState() });
    for (const { name, loss, run, results } of runs) {
      const result = run(context, loss, round);
      requireStart(context, `${name}, ${loss}`, result.losses[0]);
      results.push({ ...result, peak: result.peak_gpu_mb ?? result.peak_rss_mb });
      const { tokens, tokens_per_s, tokens_per_s_with_reference } = result;
      const rates = { tokens_per_s, tokens_per_s_with_reference };
      print({ preset, loss, arm: name, round, step_tokens: tokens, ...rates, peak_mb: results.at(-1).peak });
    }
  }
  for (const mine of runs.filter(({ own }) => own)) {
    for (const other of runs.filter(({ own, loss }) => !own && loss === mine.loss)) printRatio(context, mine, other);
  }
  for (const dpo of runs.filter(({ own, loss }) => own && loss === 'dpo')) {
    const wrpo = runs.find(({ name, loss }) => name === dpo.name && loss === 'wrpo');
    printCost(context, wrpo, dpo);
  }
}

/** (a) The authors' recipe: padded, all logits at once, the reference in every step. */
function authors({ peer, ...context }, loss) {
  return peer(...common(context), '--mode', loss, '--masters');
}

/** (b) TRL's DPO with a precomputed reference. */
function trl({ peer, scratch, ...context }) {
  return peer(...common(context), '--mode', 'trl-dpo', '--masters', '--precompute', '--tmp', join(scratch, 'trl'));
}

/** (c) TRL's DPO with Liger's kernels and loss, which refuses a precomputed reference. */
function trlLiger({ peer, scratch, ...context }) {
  return peer(...common(context), '--mode', 'trl-dpo', '--masters', '--liger', '--tmp', join(scratch, 'trl'));
}

/** (d) Without padding, with a chunked head and the reference computed once. */
function packed({ peer, microbatchTokens, ...context }, loss) {
  const limit = ['--microbatch-tokens', String(microbatchTokens)];
  return peer(...common(context), '--mode', `packed-${loss}`, '--masters', ...limit);
}

function common({ data, model, dtype, accumulate, checkpointing }) {
  const flags = ['--data', data, '--model', model, '--dtype', dtype, '--accumulate', String(accumulate)];
  return [...flags, ...(checkpointing ? ['--gradient-checkpointing'] : [])];
}

/** (e), (f) This package, with prompts in every one of their sequences, or shared. */
function ours(sharePrompt, context, loss, round) {
  const { device, accumulate, microbatchTokens, checkpointing, scratch } = context;
  const out = join(scratch, `run-${loss}-${sharePrompt}-${round}`);
  return ownRun(
    { ...context, mode: loss, out },
    {
      device,
      gradientAccumulationSteps: accumulate,
      microbatchTokens,
      gradientCheckpointing: checkpointing,
      sharePrompt,
    },
  );
}

/** Ends the program unless all that is written here, in the dtype of the comparison, has the plain recipe's gradients. */
function gate({ peer, device, dtype, microbatchTokens, scratch, model, ...context }, loss) {
  const data = join(scratch, 'gate.jsonl');
  const gradients = join(scratch, 'gradients.safetensors');
  const rows = ['--data', data, '--model', model, '--gradient-checkpointing', '--batch', '1'];
  const checks = { 'plain, float32': peer(...rows, '--mode', loss, '--gradients', gradients) };
  const limit = ['--microbatch-tokens', String(microbatchTokens)];
  checks.packed = peer(...rows, ...limit, '--mode', `packed-${loss}`, '--dtype', dtype, '--against', gradients);
  for (const sharePrompt of [false, true]) {
    const asked = { data, model, gradients, loss, dtype, device, sharePrompt, microbatchTokens };
    const script = [here('gate.mjs'), JSON.stringify(asked)];
    checks[sharePrompt ? 'ours' : 'ours-unshared'] = lastLine(process.execPath, script);
  }
  rmSync(gradients);
  for (const [arm, { loss: start, cosine }] of Object.entries(checks)) {
    print({ preset: context.preset, loss, gate: arm, step_0_loss: start, ...(cosine && { gradient_cosine: cosine }) });
    requireStart({ dtype }, `${arm}, ${loss}`, start);
    if (cosine !== undefined && !(cosine > 0.999)) {
      fail(
        `${arm}, ${loss}: the gradient's cosine with the plain float32 recipe is ${cosine}, expected more than 0.999`,
      );
    }
  }
}

/** The policy begins as its own reference. In bfloat16 padding and packing round sums by up to a nat, of which β is left. */
function requireStart({ dtype }, what, loss) {
  if (Math.abs(loss - Math.LN2) <= (dtype === 'bfloat16' ? 1e-2 : 1e-4)) return;
  fail(`${what}: the first loss is ${loss}, expected ln 2`);
}

/** Rows to train on and for the gate; what there is to save with them. */
function makeRows({ peer, rows, flat, maxLength, data, scratch }) {
  peer('--make-data', data, '--rows', String(rows), '--max-length', maxLength, ...(flat ? ['--flat'] : []));
  peer('--make-data', join(scratch, 'gate.jsonl'), '--rows', '4', '--seed', '1', '--max-length', maxLength);
  const all = readRows(data);
  const deciles = (list) =>
    [1, 5, 9].map((tenth) => list.sort((a, b) => a - b)[Math.floor((tenth * list.length) / 10)]);
  const [prompts, responses] = [all.map(({ prompt }) => prompt), all.flatMap((row) => row.responses)];
  return { rows: all.length, prompt_deciles_1_5_9: deciles(prompts), response_deciles_1_5_9: deciles(responses) };
}

/** Lengths. */
function readRows(data) {
  const lines = readFileSync(data, 'utf8').trim().split('\n');
  return lines.map((line) => {
    const { prompt, source_chosen, target_chosen, rejected } = JSON.parse(line);
    return { prompt: prompt.length, responses: [source_chosen, target_chosen, rejected].map((ids) => ids.length) };
  });
}

/** Name, driver, clock and temperature, as nvidia-smi says them. */
function gpuState() {
  const query = '--query-gpu=name,driver_version,clocks.sm,temperature.gpu';
  const { stdout } = spawnSync('nvidia-smi', ['-i', '0', query, '--format=csv,noheader'], { encoding: 'utf8' });
  return stdout?.trim() ?? 'nvidia-smi is not there';
}

function printRatio({ preset, checkpointing }, mine, other) {
  const rate = other.everyStep ? 'tokens_per_s_with_reference' : 'tokens_per_s';
  const pairs = mine.results.map((result, round) => [result, other.results[round]]);
  for (const [{ tokens }, { tokens: theirs }] of pairs) {
    if (Math.abs(tokens - theirs) > 1) fail(`${mine.name} counts ${tokens} tokens a step, ${other.name} ${theirs}`);
  }
  print({
    ...{ preset, loss: mine.loss, gradient_checkpointing: checkpointing, arm: mine.name, peer: other.name },
    speed_ratio: summary(
      pairs.map(([a, b]) => a[rate] / b.tokens_per_s),
      'min',
    ),
    memory_ratio: summary(
      pairs.map(([a, b]) => a.peak / b.peak),
      'max',
    ),
  });
}

/** The step of WRPO beside that of DPO on the same rows, and how many tokens go through the model in each. */
function printCost({ preset, data, accumulate }, wrpo, dpo) {
  const timed = readRows(data).slice(2 * accumulate); // as all after the first step
  const shared = wrpo.name === 'ours';
  const tokens = (first) => {
    const lengths = timed.map(({ prompt, responses }) => {
      const some = responses.slice(first);
      return some.reduce((sum, length) => sum + length, (shared ? 1 : some.length) * (prompt - 1));
    });
    return lengths.reduce((sum, length) => sum + length, 0);
  };
  const time = summary(
    wrpo.results.map(({ seconds }, round) => seconds / dpo.results[round].seconds),
    'max',
  );
  const ratio = tokens(0) / tokens(1);
  const quotient = Number((time.median / ratio).toFixed(3));
  print({ preset, arm: wrpo.name, wrpo_over_dpo: { time, tokens: Number(ratio.toFixed(3)), quotient } });
}
