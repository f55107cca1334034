/** Run files written for other trainers: what they resolve to, what is said about them, and what is refused. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { evaluates, resolveArgs, toRunFile } from '../lib/train/args.ts';
import { camel, FOREIGN_KEYS } from '../lib/train/compat.ts';
import { intervalOf } from '../lib/train/schedule.ts';
import { Trainer } from '../lib/train/trainer.ts';
import { expectFailure, fail, metricsOf, POLICY, scratchDirectory, succeed, tokenRows, writeRows } from './training.ts';

const path = scratchDirectory('runfiles');

// What nearly all of them share.
const COMMON = `
bf16: true
do_eval: true
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: False
log_level: info
lr_scheduler_type: cosine
num_train_epochs: 1
seed: 42
warmup_ratio: 0.1
`;
/** The WRPO authors' second stage. */
const WRPO = `${COMMON}
model_name_or_path: outputs/Target-SFT
torch_dtype: null
attn_implementation: flash_attention_2
dataset_mixer: your_datapath_for_wrpo
dataset_splits:
- train
- test
preprocessing_num_workers: 12
beta: 0.01
alpha: 0.1
is_dynamic: true
evaluation_strategy: steps
eval_steps: 500
loss_type: wrpo
gradient_accumulation_steps: 8
hub_model_id: wrpo-models
learning_rate: 3.0e-7
logging_steps: 5
max_length: 2048
max_prompt_length: 1800
optim: adamw_torch
output_dir: outputs/Target-SFT-WRPO
run_name: Target-SFT-WRPO
per_device_train_batch_size: 2
per_device_eval_batch_size: 4
push_to_hub: false
save_strategy: "no"
save_steps: 5000
save_total_limit: 1
save_only_model: true
`;
/** Their first stage. */
const SFT = `${COMMON}
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
dataset_mixer: your_datapath_for_sft
dataset_splits: [train, test]
preprocessing_num_workers: 12
evaluation_strategy: steps
eval_steps: 500
gradient_accumulation_steps: 2
hub_strategy: every_save
learning_rate: 7.0e-06
logging_steps: 5
logging_strategy: steps
max_seq_length: 2048
max_steps: -1
output_dir: outputs/Target-SFT
run_name: Target-SFT
overwrite_output_dir: true
per_device_eval_batch_size: 8
per_device_train_batch_size: 8
push_to_hub: false
remove_unused_columns: true
save_strategy: "epoch"
save_total_limit: 20
save_only_model: true
`;
const ZEPHYR_DPO = `${COMMON}
model_name_or_path: alignment-handbook/zephyr-7b-sft-full
torch_dtype: null
dataset_mixer:
  HuggingFaceH4/ultrafeedback_binarized: 1.0
dataset_splits:
- train_prefs
- test_prefs
preprocessing_num_workers: 12
beta: 0.01
eval_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
hub_model_id: zephyr-7b-dpo-full
learning_rate: 5.0e-7
logging_steps: 10
max_length: 1024
max_prompt_length: 512
optim: adamw_torch
output_dir: data/zephyr-7b-dpo-full
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
push_to_hub: true
save_strategy: "steps"
save_steps: 100
save_total_limit: 1
`;
const ZEPHYR_SFT = `${COMMON}
model_name_or_path: mistralai/Mistral-7B-v0.1
model_revision: main
torch_dtype: bfloat16
use_flash_attention_2: true
dataset_mixer:
  HuggingFaceH4/ultrachat_200k: 1.0
dataset_splits: [train_sft, test_sft]
preprocessing_num_workers: 12
evaluation_strategy: epoch
gradient_accumulation_steps: 2
hub_model_id: zephyr-7b-sft-full
hub_strategy: every_save
learning_rate: 2.0e-05
logging_steps: 5
logging_strategy: steps
max_seq_length: 2048
max_steps: -1
output_dir: data/zephyr-7b-sft-full
overwrite_output_dir: true
per_device_eval_batch_size: 16
per_device_train_batch_size: 32
push_to_hub: true
remove_unused_columns: true
report_to:
- tensorboard
save_strategy: "no"
save_total_limit: null
tf32: true
`;
/** A newer file, in TRL's own names. */
const SMOLLM = `${COMMON}
model_name_or_path: HuggingFaceTB/SmolLM2-1.7B
model_revision: main
dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: HuggingFaceTB/smoltalk
dataset_config: all
dataset_train_split: train
dataset_test_split: test
dataset_num_proc: 24
dataset_kwargs:
  add_special_tokens: false
  append_concat_token: false
eval_strategy: epoch
gradient_accumulation_steps: 4
hub_model_id: smollm2-1.7B-sft
learning_rate: 3.0e-04
logging_steps: 5
max_length: 8192
output_dir: data/smollm2-1.7B-sft
per_device_train_batch_size: 4
push_to_hub: true
report_to: [tensorboard, wandb]
save_strategy: "no"
use_liger_kernel: true
ddp_timeout: 18000
`;
/** SimPO's own, which names no loss. */
const SIMPO = `${COMMON}
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
torch_dtype: null
attn_implementation: flash_attention_2
dataset_mixer:
  princeton-nlp/llama3-ultrafeedback-armorm: 1.0
dataset_splits:
- train
- test
preprocessing_num_workers: 12
beta: 10
gamma_beta_ratio: 0.3
evaluation_strategy: steps
eval_steps: 400
gradient_accumulation_steps: 16
hub_model_id: simpo-exps
learning_rate: 1.0e-6
logging_steps: 5
max_length: 2048
max_prompt_length: 1800
optim: adamw_torch
output_dir: outputs/llama-3-8b-instruct-simpo-v2
run_name: llama-3-8b-instruct-simpo-v2
per_device_train_batch_size: 2
per_device_eval_batch_size: 4
push_to_hub: false
save_strategy: "steps"
save_steps: 1000000
report_to:
- wandb
save_total_limit: 20
`;

/** Arguments and notices of a file's text. */
function resolved(text: string, changes: Record<string, unknown> = {}) {
  const notices: string[] = [];
  const args = resolveArgs({ ...parse(text), ...changes }, 'run.yaml', (line) => notices.push(line));
  return { args, notices };
}
const refused = (changes: Record<string, unknown>, message: RegExp) =>
  expectFailure(() => resolveArgs({ output_dir: 'o', ...changes }, 'run.yaml'), 'ERR_CONFIG', message);

describe('whole files', () => {
  it("the authors' WRPO", () => {
    const { args, notices } = resolved(WRPO);
    expect(args).toMatchObject({
      ...{
        modelNameOrPath: 'outputs/Target-SFT',
        datasetName: 'your_datapath_for_wrpo',
        outputDir: 'outputs/Target-SFT-WRPO',
      },
      ...{ datasetTrainSplit: 'train', datasetTestSplit: 'test', dtype: 'bfloat16', lossType: 'wrpo' },
      ...{ beta: 0.01, alpha: 0.1, isDynamic: true, learningRate: 3e-7, lrSchedulerType: 'cosine', warmupRatio: 0.1 },
      ...{ perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 8, maxLength: 2048, maxPromptLength: 1800 },
      ...{
        doEval: true,
        evalStrategy: 'steps',
        evalSteps: 500,
        saveStrategy: 'no',
        saveSteps: 5000,
        saveTotalLimit: 1,
      },
    });
    expect(notices).toEqual([
      'run.yaml: ignored gradient_checkpointing_kwargs, per_device_eval_batch_size: microbatch_tokens bounds the memory of a forward and backward, in evaluation too',
      expect.stringMatching(/^run\.yaml: ignored log_level, run_name: metrics\.jsonl/),
      expect.stringMatching(/^run\.yaml: ignored attn_implementation: the native engine/),
      expect.stringMatching(/^run\.yaml: ignored preprocessing_num_workers: rows are read/),
      expect.stringMatching(/^run\.yaml: ignored hub_model_id: nothing is uploaded/),
      expect.stringMatching(/^run\.yaml: ignored save_only_model: checkpoints hold/),
      expect.stringMatching(/template_mode authors/),
      expect.stringMatching(/meant for N processes/),
    ]);
    expect(resolved(WRPO, { template_mode: 'authors' }).notices.join()).not.toContain('template_mode');
  });

  it("the authors' SFT", () => {
    const { args, notices } = resolved(SFT);
    expect(args).toMatchObject({
      ...{ datasetName: 'your_datapath_for_sft', maxLength: 2048, dtype: 'bfloat16', modelRevision: 'main' },
      ...{ saveStrategy: 'epoch', evalStrategy: 'steps', evalSteps: 500, maxSteps: -1, learningRate: 7e-6 },
    });
    expect(notices.join('\n')).toContain('packing true, packing_strategy wrapped and completion_only_loss false');
    expect(resolved(SFT, { packing: true, loss_type: 'sft' }).notices.join('\n')).not.toContain('packing_strategy');
  });

  it('DPO of the handbook', () => {
    const { args, notices } = resolved(ZEPHYR_DPO);
    expect(args).toMatchObject({
      ...{
        datasetName: 'HuggingFaceH4/ultrafeedback_binarized',
        dtype: 'bfloat16',
        saveStrategy: 'steps',
        saveSteps: 100,
      },
      ...{ datasetTrainSplit: 'train_prefs', datasetTestSplit: 'test_prefs', maxLength: 1024, maxPromptLength: 512 },
    });
    expect(notices.length).toBeLessThanOrEqual(7);
  });

  it('SFT of the handbook', () => {
    const { args } = resolved(ZEPHYR_SFT);
    expect(args).toMatchObject({ datasetName: 'HuggingFaceH4/ultrachat_200k', datasetTestSplit: 'test_sft' });
    expect(args).toMatchObject({ evalStrategy: 'epoch', saveStrategy: 'no', learningRate: 2e-5, maxLength: 2048 });
  });

  it("a newer file, in TRL's own names", () => {
    const { args, notices } = resolved(SMOLLM);
    expect(args).toMatchObject({ datasetName: 'HuggingFaceTB/smoltalk', datasetConfig: 'all', dtype: 'bfloat16' });
    expect(args).toMatchObject({ datasetTrainSplit: 'train', datasetTestSplit: 'test', maxLength: 8192 });
    const said = notices.join('\n');
    for (const line of ['ignored ddp_timeout: one process', 'ignored dataset_kwargs: texts get no'])
      expect(said).toContain(line);
  });

  it("SimPO's own", () => {
    const { args } = resolved(SIMPO);
    expect(args).toMatchObject({ lossType: 'simpo', beta: 10, simpoGamma: 3, learningRate: 1e-6 });
    expect(resolved(SIMPO, { loss_type: 'wrpo_simpo' }).args).toMatchObject({ lossType: 'wrpo_simpo', simpoGamma: 3 });
    refused({ ...parse(SIMPO), simpo_gamma: 1 }, /simpo_gamma and gamma_beta_ratio .* say the same/);
    refused(
      { ...parse(SIMPO), loss_type: 'sigmoid' },
      /"gamma_beta_ratio" belongs to loss_type simpo, wrpo_simpo; found "sigmoid"/,
    );
  });
});

describe('what a key means', () => {
  const of = (changes: Record<string, unknown>) => resolved('output_dir: o', changes);

  it.each([
    [{ bf16: true, torch_dtype: 'float32' }, { dtype: 'bfloat16' }],
    [{ bf16: false, torch_dtype: 'auto' }, { dtype: 'float32' }],
    [{ bf16: true, dtype: 'bfloat16' }, { dtype: 'bfloat16' }],
    [{ torch_dtype: 'float32' }, { dtype: 'float32' }],
    [
      { dataset_mixer: { 'a/b': 1 }, dataset_configs: ['tiny'] },
      { datasetName: 'a/b', datasetConfig: 'tiny' },
    ],
    [
      {
        dataset_mixture: {
          datasets: [{ id: 'a/b', config: 'c', split: 's', columns: ['prompt'], weight: 1.0 }],
          seed: 0,
        },
      },
      { datasetName: 'a/b', datasetConfig: 'c', datasetTrainSplit: 's' },
    ],
    [{ dataset_splits: ['train_sft'] }, { datasetTrainSplit: 'train_sft' }],
    [
      { learning_rate: '5e-7', max_steps: '3' },
      { learningRate: 5e-7, maxSteps: 3 },
    ],
    [{ save_steps: 0.5 }, { saveSteps: 0.5 }],
    [
      { maxSeqLength: 512, evaluationStrategy: 'epoch' },
      { maxLength: 512, evalStrategy: 'epoch' },
    ],
  ])('%j', (changes, wanted) => expect(of(changes).args).toMatchObject(wanted));

  it.each([
    [{ preset: 'table6/dpo' }, { lossType: 'sigmoid', beta: 0.01, learningRate: 3e-7 }],
    [{ preset: 'table6/simpo' }, { lossType: 'simpo', beta: 10, simpoGamma: 1, learningRate: 6e-7 }],
    [{ preset: 'table6/ipo' }, { lossType: 'ipo', beta: 0.01, learningRate: 1e-6, ipoNormalization: 'sum' }],
    [{ preset: 'table6/wrpo' }, { lossType: 'wrpo', beta: 0.01, alpha: 0.1, isDynamic: true, learningRate: 3e-7 }],
    [
      { preset: 'table6/wrpo-simpo' },
      { lossType: 'wrpo_simpo', beta: 10, simpoGamma: 0, alpha: 0.5, learningRate: 6e-7 },
    ],
    [{ preset: 'table6/wrpo-ipo' }, { lossType: 'wrpo_ipo', beta: 0.01, alpha: 0.1, learningRate: 1e-6 }],
    [
      { preset: 'table6/wrpo', alpha: 0.5, learning_rate: '1e-5' },
      { lossType: 'wrpo', alpha: 0.5, learningRate: 1e-5 },
    ],
    [{ preset: 'table6/simpo', gamma_beta_ratio: 0.5 }, { simpoGamma: 5 }],
    [
      { preset: 'table6/simpo', loss_type: 'dpo' },
      { lossType: 'sigmoid', beta: 10 },
    ],
    [{ loss_type: 'simpo' }, { beta: 10, simpoGamma: 1 }],
    [{ loss_type: 'wrpo_simpo' }, { beta: 10, simpoGamma: 0 }],
    [
      { loss_type: 'simpo', beta: 2, simpo_gamma: 0.5, cpo_alpha: 0 },
      { beta: 2, simpoGamma: 0.5, sftWeight: 0 },
    ],
    [{ simpo_gamma: 0.5 }, { lossType: 'simpo' }],
    [{ loss_type: 'dpo', rpo_alpha: 0.2 }, { sftWeight: 0.2 }],
    [{ loss_type: 'ipo', label_smoothing: 0 }, { lossType: 'ipo' }],
    [{ lr_scheduler_type: 'constant_with_warmup' }, { lrSchedulerType: 'constant_with_warmup' }],
  ])('%j is %j', (changes, wanted) => expect(of(changes).args).toMatchObject(wanted));

  it.each([
    [{ loss_type: 'ipo', label_smoothing: 0.1 }, /"label_smoothing" belongs to loss_type wrpo, .*; found "ipo"/],
    [{ loss_type: 'dpo', alpha: 0.3 }, /"alpha" belongs to loss_type wrpo, wrpo_simpo, wrpo_ipo, wrpo_ls; found "dpo"/],
    [{ loss_type: 'simpo', is_dynamic: true }, /"is_dynamic" belongs to .*; found "simpo"/],
    [{ loss_type: 'sft', beta: 0.1 }, /"beta" belongs to .*; found "sft"/],
    [{ chosen: 'source' }, /"chosen" belongs to loss_type sigmoid, simpo, ipo; found "wrpo"/],
    [{ loss_type: 'dpo', ipo_normalization: 'sum' }, /"ipo_normalization" belongs to loss_type ipo, wrpo_ipo/],
    [{ loss_type: 'ipo', ipo_normalization: 'mean' }, /"ipo_normalization": .*"token_mean".*found "mean"/],
    [{ loss_type: 'dpo', chosen: 'both' }, /"chosen": .*"target"\|"source".*found "both"/],
    [{ loss_type: 'sft', sft_weight: 1 }, /"sft_weight" belongs to .*; found "sft"/],
    [{ preset: 'table6/wrop' }, /unknown preset "table6\/wrop"; did you mean "table6\/wrpo"\?/],
    [{ preset: 'table6-wrpo_simpo' }, /; did you mean "table6\/wrpo-simpo"\?/],
    [{ preset: 'x' }, /unknown preset "x"; expected table6\/dpo, .*table6\/wrpo-ipo$/],
  ])('%j is refused', (changes, message) => refused(changes, message));

  it('what a run writes down means the same again', () => {
    for (const lossType of ['wrpo', 'wrpo_ls', 'wrpo_simpo', 'ipo', 'simpo', 'authors_sigmoid', 'sigmoid', 'sft']) {
      const { args } = of({ loss_type: lossType });
      expect(resolveArgs(toRunFile(args))).toEqual(args);
    }
    const { args } = of({ preset: 'table6/simpo', gamma_beta_ratio: 0.5 });
    expect(resolveArgs(toRunFile(args))).toEqual(args);
  });

  it('adapters: defaults are those of TRL, and without use_peft their keys are named as ignored', () => {
    const { args, notices } = of({ use_peft: true });
    expect(args).toMatchObject({ loraR: 16, loraAlpha: 32, loraDropout: 0.05, useRslora: false });
    expect(args.loraTargetModules).toBeUndefined();
    expect(notices).toEqual([]);
    expect(toRunFile(args)).toMatchObject({ use_peft: true, lora_r: 16, lora_dropout: 0.05 });
    const idle = of({ lora_r: 8, lora_target_modules: ['q_proj'] });
    expect(idle.notices).toEqual(['run.yaml: ignored lora_r, lora_target_modules: only use_peft: true makes adapters']);
    expect(Object.keys(toRunFile(idle.args)).filter((key) => /lora/.test(key))).toEqual([]);
  });

  it('says what an SFT share is a mean over', () =>
    expect(of({ loss_type: 'dpo', rpo_alpha: 0.2 }).notices.join()).toContain("each response's own tokens"));

  it.each([
    { use_peft: false, load_in_4bit: false, push_to_hub: false, fp16: false, deepspeed: null, optim: 'adamw_torch' },
    { gradient_checkpointing: false, report_to: 'none', logging_strategy: 'no', f_divergence_type: 'reverse_kl' },
    { use_peft: true, lora_r: 8, lora_bias: 'none', lora_task_type: 'CAUSAL_LM', lora_target_modules: 'all-linear' },
    { use_peft: false, use_rslora: false, use_dora: false, lora_modules_to_save: null },
    { group_by_length: false, disable_dropout: true, optim: 'adamw_torch_fused', report_to: [], bf16: true },
  ])('%j: nothing to say', (changes) => expect(of(changes).notices).toEqual([]));

  it.each([
    [{ load_in_4bit: true }, /^run\.yaml: "load_in_4bit": weights are not quantised \(found true\)/],
    [{ use_dora: true }, /"use_dora": adapters are plain LoRA/],
    [{ lora_bias: 'all' }, /"lora_bias": adapters have no biases/],
    [{ lora_modules_to_save: ['lm_head'] }, /"lora_modules_to_save": beside the adapters nothing is trained/],
    [{ lora_target_parameters: ['experts'] }, /"lora_target_parameters"/],
    [{ lora_task_type: 'SEQ_CLS' }, /"lora_task_type": models are language models/],
    [{ use_peft: 'yes' }, /"use_peft": .*expected boolean.*found "yes"/],
    [{ lora_r: 0 }, /"lora_r": .*found 0/],
    [{ lora_r: 2.5 }, /"lora_r": .*found 2.5/],
    [{ lora_alpha: 0 }, /"lora_alpha": .*found 0/],
    [{ lora_dropout: 1 }, /"lora_dropout": .*found 1/],
    [{ lora_dropout: -0.1 }, /"lora_dropout": .*found -0.1/],
    [{ lora_target_modules: 7 }, /"lora_target_modules": .*found 7/],
    [{ fp16: true }, /"fp16": float16 is not computed here/],
    [{ bf16: 'yes' }, /"bf16": expected true or false \(found "yes"\)/],
    [{ fp16: 'on' }, /"fp16": expected true or false \(found "on"\)/],
    [{ torch_dtype: 'float16' }, /"torch_dtype": float16 is not computed here/],
    [{ torch_dtype: 'float17' }, /"dtype": .*"bfloat16".*found "float17"/],
    [{ bf16: true, dtype: 'float32' }, /"bf16": it says "bfloat16" where another key says "float32"/],
    [{ max_seq_length: 1, max_length: 2 }, /"max_seq_length": it says 1 where another key says 2/],
    [{ optim: 'rmsprop' }, /"optim": the optimiser is AdamW.*found "rmsprop"/],
    [{ optim: 'adamw_8bit' }, /"optim"/],
    [{ lr_scheduler_type: 'cosine_with_min_lr' }, /"lr_scheduler_type": .*"cosine".*"linear".*"constant"/],
    [{ lr_scheduler_kwargs: { min_lr_rate: 0.1 } }, /"lr_scheduler_kwargs": .*end at 0/],
    [{ loss_type: 'apo_zero' }, /"loss_type": .*"wrpo".*found "apo_zero"/],
    [{ neftune_noise_alpha: 5 }, /"neftune_noise_alpha": no noise/],
    [{ reference_free: true }, /"reference_free"/],
    [{ dataset_mixer: { a: 0.5 } }, /"dataset_mixer": data sets are not mixed here/],
    [{ dataset_mixer: { a: 1, b: 1 } }, /"dataset_mixer": data sets are not mixed here/],
    [{ dataset_mixture: { datasets: [{ id: 'a' }], test_split_size: 9 } }, /"dataset_mixture": .*dataset_test_split/],
    [{ dataset_splits: ['train_a', 'train_b'] }, /"dataset_splits": expected one split/],
    [{ dataset_splits: 'all' }, /"dataset_splits": expected one split/],
    [{ dataset_kwargs: { skip_prepare_dataset: true } }, /"dataset_kwargs": .*expected false for each/],
    [{ chat_template: 7 }, /"chat_template": .*expected string.*found 7/],
    [{ load_best_model_at_end: true }, /load_best_model_at_end needs evaluations before the end: set eval_strategy/],
    [{ eval_steps: 1.5 }, /"eval_steps": expected whole steps/],
    [{ saveSteps: 'often' }, /"save_steps": .*expected number.*found "often"/],
  ])('%j is refused', (changes, message) => refused(changes, message));

  it.each([
    [{ max_seq_lenght: 1 }, 'max_seq_length'],
    [{ gradient_checkpoint: true }, 'gradient_checkpointing'],
    [{ evaluation_stategy: 'no' }, 'evaluation_strategy'],
    [{ load_in_4bits: true }, 'load_in_4bit'],
    [{ beat: 1 }, 'beta'],
    [{ gradientCheckpoint: true }, 'gradientCheckpointing'],
  ])('%j is unknown: the nearest name', (changes, name) =>
    refused(changes, new RegExp(`unknown key "${Object.keys(changes)[0]}"; did you mean "${name}"\\?$`)),
  );

  it('no key has two meanings', () => {
    expect(new Set(FOREIGN_KEYS).size).toBe(FOREIGN_KEYS.length);
    const ours = Object.keys(resolved('output_dir: o').args);
    expect(FOREIGN_KEYS.filter((key) => ours.includes(camel(key)))).toEqual([]);
  });

  it('when to evaluate and to save', () => {
    const run = { usual: 500, stepsPerEpoch: 30, total: 95 };
    expect(intervalOf('no', 5, run)).toBeUndefined();
    expect(intervalOf('epoch', 5, run)).toBe(30);
    expect(intervalOf('steps', undefined, run)).toBe(500);
    expect(intervalOf('steps', 7, run)).toBe(7);
    expect(intervalOf(undefined, 7, run)).toBe(7);
    expect(intervalOf(undefined, undefined, run)).toBeUndefined();
    expect(intervalOf('steps', 0.5, run)).toBe(48);
    for (const [changes, wanted] of [
      [{}, true],
      [{ do_eval: false }, false],
      [{ eval_strategy: 'no' }, false],
      [{ eval_strategy: 'no', do_eval: true }, true],
      [{ eval_strategy: 'epoch', do_eval: false }, true],
    ] as const) {
      expect(evaluates(of(changes).args), JSON.stringify(changes)).toBe(wanted);
    }
  });
});

describe('from the command line', () => {
  const quadruples = writeRows(path('quadruples.jsonl'), tokenRows(10, 7));
  const pairs = writeRows(
    path('pairs.jsonl'),
    tokenRows(10, 8).map(({ prompt, target_chosen, rejected }) => ({ prompt, chosen: target_chosen, rejected })),
  );
  const answers = writeRows(
    path('answers.jsonl'),
    tokenRows(10, 9).map(({ prompt, rejected }) => ({ prompt, completion: rejected })),
  );
  let runs = 0;
  /** Trains by an unedited file on other data, and returns the run directory and what was said. */
  async function run(command: string, text: string, data: string, ...more: string[]) {
    const out = path(`out-${++runs}`);
    const file = path(`run-${runs}.yaml`);
    writeFileSync(file, text);
    const options = ['--model_name_or_path', POLICY, '--dataset_name', data, '--output_dir', out, '--max_steps', '4'];
    const { stderr } = await succeed([
      command,
      '--config',
      file,
      ...options,
      '--per_device_train_batch_size=1',
      ...more,
    ]);
    return { out, stderr, config: parse(readFileSync(join(out, 'config.yaml'), 'utf8')) };
  }

  it("the authors' WRPO trains", async () => {
    const more = ['--gradient_accumulation_steps', '2', '--eval_steps', '2', '--eval_dataset_name', quadruples];
    const { out, stderr, config } = await run('train', WRPO, quadruples, ...more);
    expect(config).toMatchObject({ loss_type: 'wrpo', beta: 0.01, dtype: 'bfloat16', dataset_name: quadruples });
    expect(metricsOf(out).filter((line) => 'eval_loss' in line)).toHaveLength(2);
    expect(existsSync(join(out, 'checkpoint-4'))).toBe(false); // save_strategy: no, whatever save_steps says
    expect(stderr.split('\n').filter((line) => /run-\d+\.yaml: ignored/.test(line))).toHaveLength(6);
  });

  it("the authors' SFT trains, and saves every epoch", async () => {
    const more = ['--gradient_accumulation_steps', '5'];
    const { out, stderr } = await run('sft', SFT, answers, ...more);
    for (const step of [2, 4]) expect(existsSync(join(out, `checkpoint-${step}`))).toBe(true);
    expect(existsSync(join(out, 'checkpoint-1'))).toBe(false);
    expect(stderr).toMatch(/no evaluation: .*answers\.jsonl is one file without splits/);
    expect(stderr).not.toContain('leaves out');
  });

  it('DPO of the handbook trains with sigmoid, and says so', async () => {
    const more = ['--dtype', 'float32', '--save_strategy', 'no'];
    const { stderr, config } = await run('train', ZEPHYR_DPO, pairs, ...more);
    expect(stderr).toMatch(/run-\d+\.yaml has no loss_type: dpo, by what the rows hold/);
    expect(config).toMatchObject({ loss_type: 'sigmoid', dtype: 'float32', dataset_train_split: 'train_prefs' });
  });

  it("SimPO's own trains, without a reference", async () => {
    const more = ['--dtype', 'float32', '--save_strategy', 'no', '--gamma_beta_ratio', '0.1'];
    const { out, config } = await run('train', SIMPO, pairs, ...more);
    expect(config).toMatchObject({ loss_type: 'simpo', beta: 10, simpo_gamma: 1 });
    expect(existsSync(join(out, 'reference-train.jsonl'))).toBe(false);
    // The command line's name for it stands alone.
    const other = await run(
      'train',
      SIMPO,
      quadruples,
      '--simpo_gamma',
      '2',
      '--loss_type',
      'wrpo_simpo',
      '--save_strategy',
      'no',
    );
    expect(other.config).toMatchObject({ loss_type: 'wrpo_simpo', simpo_gamma: 2 });
  });

  it('a preset names the loss, whatever the rows hold', async () => {
    const { config } = await run('train', 'preset: table6/ipo', quadruples);
    expect(config).toMatchObject({ loss_type: 'ipo', learning_rate: 1e-6 });
  });

  it('an option outweighs every key that means the same, and a refused one', async () => {
    const text = `${ZEPHYR_DPO.replace('HuggingFaceH4/ultrafeedback_binarized: 1.0', 'a: 0.5\n  b: 0.5')}\nload_in_4bit: true`;
    const { config } = await run(
      'train',
      text,
      pairs,
      '--load_in_4bit',
      'false',
      '--max_seq_length',
      '64',
      '--fp16',
      'false',
    );
    expect(config).toMatchObject({ max_length: 64, dtype: 'bfloat16', dataset_name: pairs });
    writeFileSync(path('4bit.yaml'), 'output_dir: o\n\nload_in_4bit: true\n');
    expect(await fail(['train', '--config', path('4bit.yaml')], 1)).toMatch(
      /4bit\.yaml line 3: "load_in_4bit": weights/,
    );
  });

  it('says which defaults a file for another trainer does not get', async () => {
    const left = (text: string, ...more: string[]) => run('sft', text, answers, ...more).then(({ stderr }) => stderr);
    const text = ZEPHYR_SFT.replace('warmup_ratio: 0.1', '').replace('gradient_accumulation_steps: 2', '');
    expect(await left(text)).toMatch(
      /run-\d+\.yaml leaves out gradient_accumulation_steps, warmup_ratio: the defaults/,
    );
    expect(await left(text, '--warmup_steps', '1')).toMatch(/leaves out gradient_accumulation_steps: /);
    expect(await left('save_strategy: "no"\n')).not.toContain('leaves out'); // a file of our own
  });

  it('errors name the line of the file, or the command line', async () => {
    const file = path('lines.yaml');
    writeFileSync(file, `output_dir: o\n# a comment\nbeta: -1\nalpha: 2\ndataset_name: ${quadruples}\n`);
    expect(await fail(['train', '--config', file], 1)).toMatch(/lines\.yaml line 3: "beta": .*found -1/);
    const options = ['train', '--config', file, '--beta', '1'];
    expect(await fail(options, 1)).toMatch(/lines\.yaml line 4: "alpha": .*found 2/);
    expect(await fail([...options, '--alpha', '3'], 1)).toMatch(/^wrpo: command line: "alpha": .*found 3/);
  });
});

describe('the Trainer', () => {
  it.each([
    ...[{ lossType: 'wrpo' }, { lossType: 'dpo' }, { lossType: 'sigmoid', chosen: 'source' }, { lossType: 'sft' }],
    ...[
      { lossType: 'dpo', templateMode: 'authors' },
      { lossType: 'authors_sigmoid', templateMode: 'authors' },
    ],
    ...[{ lossType: 'simpo', gammaBetaRatio: 0.5 }, { preset: 'table6/wrpo-simpo' }, { lossType: 'ipo' }],
    { lossType: 'sft', packing: true, packingStrategy: 'wrapped' },
    { usePeft: true, loraR: 4, loraTargetModules: 'q_proj,k_proj' },
  ] as const)('takes the arguments of another: %j', (changes) => {
    const { args } = new Trainer({ model: 'm', trainDataset: [], args: { outputDir: 'o', ...changes } });
    const again = new Trainer({ model: 'm', trainDataset: [], args });
    expect(again.args).toEqual(args);
    const changed = new Trainer({ model: 'm', trainDataset: [], args: { ...args, learningRate: 1 } });
    expect(changed.args).toEqual({ ...args, learningRate: 1 });
  });

  it('takes the same keys in camelCase, and evaluates when asked', async () => {
    const rows = tokenRows(4, 3);
    const args = {
      gradientCheckpointing: true,
      bf16: false,
      saveStrategy: 'epoch',
      evalStrategy: 'no',
      disableTqdm: true,
    };
    const options = {
      model: POLICY,
      trainDataset: rows,
      evalDataset: rows,
      callbacks: { evaluate: () => expect.fail() },
    };
    const outputDir = path('trainer');
    await using trainer = new Trainer({
      ...options,
      args: { outputDir, perDeviceTrainBatchSize: 1, ...args } as never,
    });
    await trainer.train();
    expect(existsSync(join(outputDir, 'checkpoint-1'))).toBe(true);
    await expectFailure(
      () => new Trainer({ ...options, args: { outputDir, loadIn4bit: true } as never }),
      'ERR_CONFIG',
      /^args: "loadIn4bit": weights/,
    );
  });
});
