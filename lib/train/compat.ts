/**
 * Keys of TRL's, transformers' and the alignment handbook's run files that are not arguments here, and what becomes of
 * each, so that such files run unedited: mapped to an argument, refused when they would change the result, or else
 * ignored with a notice that says what does their work.
 */

/** Our arguments that a key stands for; a string is the sentence that refuses the value. */
type Meaning = Record<string, unknown> | string;

interface Mapped {
  /** The argument it gives before all. Where that is given elsewhere, the key is not looked at. */
  to: string;
  read(value: unknown, all: Record<string, unknown>): Meaning;
}

const renamed = (to: string): Mapped => ({ to, read: (value) => ({ [to]: value }) });

const HALF = 'float16 is not computed here; use bf16: true (dtype bfloat16, whose master weights are float32)';
// To YAML 1.2 yes, no, on and off are words.
const SWITCH = 'expected true or false';
const ONE_SET = 'data sets are not mixed here; name one with dataset_name, dataset_config and dataset_train_split';

const MAPPED: Record<string, Mapped> = {
  evaluation_strategy: renamed('evalStrategy'),
  max_seq_length: renamed('maxLength'),
  rpo_alpha: renamed('sftWeight'),
  cpo_alpha: renamed('sftWeight'),
  bf16: { to: 'dtype', read: (value) => (typeof value !== 'boolean' ? SWITCH : value ? { dtype: 'bfloat16' } : {}) },
  fp16: { to: 'dtype', read: (value) => (typeof value !== 'boolean' ? SWITCH : value ? HALF : {}) },
  torch_dtype: {
    to: 'dtype',
    // float32 weights under bf16 are what our bfloat16 is.
    read: (value, { bf16 }) => {
      if (value === 'auto' || (value === 'float32' && bf16 === true)) return {};
      return value === 'float16' ? HALF : { dtype: value };
    },
  },
  dataset_mixer: {
    to: 'datasetName',
    read: (value) => {
      if (typeof value === 'string') return { datasetName: value }; // the WRPO authors' files
      const [first, ...more] = Object.entries(value as object);
      return first && more.length === 0 && Number(first[1]) === 1 ? { datasetName: first[0] } : ONE_SET;
    },
  },
  dataset_mixture: {
    to: 'datasetName',
    read: (value) => {
      const { datasets, test_split_size: held } = value as {
        datasets?: Record<string, unknown>[];
        test_split_size?: unknown;
      };
      const [first, ...more] = datasets ?? [];
      if (!first || more.length > 0 || Number(first.weight ?? 1) !== 1) return ONE_SET;
      if (held !== undefined) return 'no part is split off here; name the evaluation data with dataset_test_split';
      return { datasetName: first.id, datasetConfig: first.config, datasetTrainSplit: first.split };
    },
  },
  dataset_splits: {
    to: 'datasetTrainSplit',
    read: (value) => {
      const names = Array.isArray(value) ? value.map(String) : [];
      const [train, test] = ['train', 'test'].map((kind) => names.filter((name) => name.includes(kind)));
      const odd = names.length === 0 || train!.length + test!.length !== names.length;
      if (odd || train!.length > 1 || test!.length > 1)
        return 'expected one split with "train" in its name, and one with "test"';
      return { datasetTrainSplit: train![0], datasetTestSplit: test![0] };
    },
  },
  dataset_configs: {
    to: 'datasetConfig',
    read: (value) => (Array.isArray(value) && value.length === 1 ? { datasetConfig: value[0] } : ONE_SET),
  },
};

/** Keys that change the result: the values that mean what is done here anyway, and why it can be nothing else. */
const FIXED: Record<string, [same: readonly unknown[], why: string]> = {
  optim: [
    ['adamw_torch', 'adamw_torch_fused', 'adamw_apex_fused', 'paged_adamw', 'paged_adamw_32bit'],
    'the optimiser is AdamW with float32 state; expected "adamw_torch"',
  ],
  optim_args: [[], 'the optimiser takes adam_beta1, adam_beta2, adam_epsilon and weight_decay alone'],
  optim_target_modules: [[], 'AdamW updates all that is trained'],
  lr_scheduler_kwargs: [[], 'the schedules take no further settings; cosine and linear end at 0'],
  use_dora: [[false], 'adapters are plain LoRA, or with use_rslora rank-stabilised'],
  lora_bias: [['none', false], 'adapters have no biases'],
  lora_modules_to_save: [[], 'beside the adapters nothing is trained'],
  lora_target_parameters: [[], 'adapters belong to modules: lora_target_modules'],
  lora_task_type: [['CAUSAL_LM'], 'models are language models'],
  load_in_4bit: [[false], 'weights are not quantised'],
  load_in_8bit: [[false], 'weights are not quantised'],
  neftune_noise_alpha: [[0], 'no noise is added to embeddings'],
  trainer_type: [['wrpo', 'dpo', 'sft'], 'loss_type names the objective: wrpo, sigmoid (DPO), sft or another'],
  ld_alpha: [[1], 'every token of a response counts alike'],
  loss_weights: [[], 'a run has one loss_type'],
  use_weighting: [[false], 'all rows have the same weight'],
  f_divergence_type: [['reverse_kl'], 'the divergence is the reverse KL'],
  reference_free: [[false], 'the loss compares with the reference'],
  sync_ref_model: [[false], 'the reference stays what it is'],
  disable_dropout: [[true], 'there is no dropout'],
  is_encoder_decoder: [[false], 'models are decoders'],
  label_pad_token_id: [[-100], 'nothing is padded'],
  max_target_length: [[], 'max_length bounds prompt and response together'],
  max_completion_length: [[], 'max_length bounds prompt and response together'],
  truncation_side: [['right'], 'a response is cut at its end; truncation_mode says which end of a prompt is kept'],
  assistant_only_loss: [
    [false],
    'of a conversation the last answer is trained, or with completion_only_loss: false all tokens',
  ],
  eos_token: [[], "the tokenizer's own is used: set it in tokenizer_config.json in the model's directory"],
  dataloader_drop_last: [[false], 'the last batch of an epoch is used, however small'],
  group_by_length: [[false], 'batches are drawn without regard to length'],
  train_sampling_strategy: [['random'], 'shuffle says how rows are drawn'],
  shuffle_dataset: [[false], 'shuffle says how rows are drawn'],
  resume_from_checkpoint: [[false], 'give it on the command line: --resume-from-checkpoint'],
};

/** Keys that change speed, memory or where things are kept, but not the result: what does their work here. */
const IGNORED: readonly [instead: string, keys: string][] = [
  [
    'microbatch_tokens bounds the memory of a forward and backward, in evaluation too',
    `gradient_checkpointing_kwargs gradient_checkpointing_use_reentrant padding_free use_liger_kernel
     use_liger_loss liger_kernel_config use_logits_to_keep activation_offloading torch_empty_cache_steps auto_find_batch_size
     per_device_eval_batch_size eval_accumulation_steps precompute_ref_batch_size eval_packing padding_value pad_token
     pad_to_multiple_of dataset_streaming streaming`,
  ],
  [
    'one process holds the whole state',
    `deepspeed ds3_gather_for_generation fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap local_rank
     ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers accelerator_config
     parallelism_config average_tokens_across_devices split_batches dispatch_batches ignore_bias_buffers device_map
     low_cpu_mem_usage no_cuda use_cpu use_mps_device save_on_each_node log_on_each_node`,
  ],
  [
    'the native engine computes attention and the rest in one exact way, in the precision of dtype',
    `attn_implementation use_flash_attention_2 tf32 torch_compile torch_compile_backend torch_compile_mode use_cache
     half_precision_backend bf16_full_eval fp16_full_eval fp16_opt_level jit_mode_eval use_ipex full_determinism
     model_init_kwargs trust_remote_code model_code_revision token use_auth_token`,
  ],
  [
    'nothing is uploaded; output_dir holds the model in Hugging Face layout',
    `push_to_hub push_to_hub_model_id push_to_hub_organization push_to_hub_revision push_to_hub_token hub_model_id
     hub_model_revision hub_revision hub_strategy hub_token hub_private_repo hub_always_push`,
  ],
  [
    'metrics.jsonl in output_dir holds a line of metrics every logging_steps',
    `run_name logging_dir logging_strategy logging_first_step logging_nan_inf_filter log_level log_level_replica
     include_tokens_per_second include_num_input_tokens_seen project trackio_space_id wandb_project wandb_entity
     wandb_log_unique_prompts skip_memory_metrics debug`,
  ],
  [
    'rows are read and encoded as they come, on all cores',
    `preprocessing_num_workers dataset_num_proc dataset_batch_size dataloader_num_workers dataloader_pin_memory
     dataloader_prefetch_factor dataloader_persistent_workers remove_unused_columns overwrite_cache label_names
     length_column_name dataset_text_field text_column data_seed`,
  ],
  [
    'checkpoints hold all that a run needs to go on, as safetensors, and --resume-from-checkpoint goes on from them',
    `save_only_model save_safetensors overwrite_output_dir ignore_data_skip restore_callback_states_from_checkpoint do_train
     do_predict`,
  ],
  [
    'evaluation gives the metrics of training, on all rows, and nothing else',
    `generate_during_eval prediction_loss_only eval_on_start eval_delay eval_do_concat_batches batch_eval_metrics
     include_for_metrics include_inputs_for_metrics`,
  ],
  [
    "the reference's log-probs are computed once, before training, by the same engine",
    `precompute_ref_log_probs ref_model_init_kwargs ref_model_mixup_alpha ref_model_sync_steps force_use_ref_model`,
  ],
  ['weights are not quantised', 'bnb_4bit_quant_type bnb_4bit_quant_storage use_bnb_nested_quant'],
  [
    'a model has one adapter, without a name, and the reference is the model without it',
    'base_model_revision model_adapter_name ref_adapter_name',
  ],
  [
    'texts get no special tokens but those of the chat template, and the tokenizer of the model is used',
    'dataset_kwargs tokenizer_name_or_path use_fast_tokenizer',
  ],
];

const PER_RESPONSE =
  "sft_weight adds the mean over each response's own tokens, as in the paper of RPO; TRL's is over all of a micro-batch";

/** What the scripts of such files do without a key saying so: said where the key stands, unless the argument is given. */
const HINTS: readonly [key: string, unless: string, line: string][] = [
  [
    'max_seq_length',
    'packing',
    'the scripts of such files pack their texts and train on all tokens: packing true, packing_strategy wrapped and completion_only_loss false do the same',
  ],
  ['rpo_alpha', 'sftWeight', PER_RESPONSE],
  ['cpo_alpha', 'sftWeight', PER_RESPONSE],
  [
    'dataset_mixer',
    'templateMode',
    "the WRPO authors' scripts tokenise prompt and response apart: template_mode authors does the same",
  ],
];

/** Arguments that change the result, and whose default is another in transformers or TRL. */
export const OTHER_DEFAULTS: readonly string[] = [
  ...['learningRate', 'numTrainEpochs', 'perDeviceTrainBatchSize', 'gradientAccumulationSteps', 'warmupRatio'],
  ...['maxLength', 'beta'],
];

/** `max_length` as `maxLength`. */
export const camel = (key: string) => key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());

const byName = <T>(table: Record<string, T>) =>
  new Map(Object.entries(table).map(([key, value]) => [camel(key), value]));
const mapped = byName(MAPPED);
const fixed = byName(FIXED);
const ignored = new Map(IGNORED.flatMap(([instead, keys]) => keys.split(/\s+/).map((key) => [camel(key), instead])));

/** All keys that are known here, as files spell them. */
export const FOREIGN_KEYS: readonly string[] = [
  ...[...Object.keys(MAPPED), ...Object.keys(FIXED)],
  ...IGNORED.flatMap(([, keys]) => keys.split(/\s+/)),
];

export interface Translation {
  values: Record<string, unknown>;
  notices: string[];
}

/**
 * What foreign keys (in camelCase, without nulls) mean. `given` holds our own arguments beside them; keys of arguments in
 * `overridden` are passed over. `refuse` throws.
 */
export function translate(
  foreign: Record<string, unknown>,
  given: Record<string, unknown>,
  overridden: ReadonlySet<string>,
  refuse: (key: string, sentence: string) => never,
): Translation {
  const values: Record<string, unknown> = {};
  const without = new Map<string, string[]>();
  for (const [key, value] of Object.entries(foreign)) {
    const rule = mapped.get(key);
    if (rule) {
      if (overridden.has(rule.to)) continue;
      const meaning = rule.read(value, foreign);
      if (typeof meaning === 'string') refuse(key, meaning);
      for (const [name, wanted] of Object.entries(meaning)) {
        if (wanted === undefined || overridden.has(name)) continue;
        const other = given[name] ?? values[name];
        if (other !== undefined && other !== wanted)
          refuse(key, `it says ${show(wanted)} where another key says ${show(other)}`);
        values[name] = wanted;
      }
    }
    const [same, why] = fixed.get(key) ?? [];
    if (same && !same.includes(value) && !isNothing(value)) refuse(key, why!);
    const instead = ignored.get(key);
    if (instead === undefined) continue;
    if (key === 'datasetKwargs' && !Object.values(value as object).every((one) => one === false)) {
      refuse(key, `${instead}; expected false for each`);
    }
    // What is switched off is not missed.
    if (value !== false && !isNothing(value)) without.set(instead, [...(without.get(instead) ?? []), key]);
  }
  const notices = [...without].map(([instead, keys]) => `ignored ${keys.map(snake).join(', ')}: ${instead}`);
  for (const [key, unless, line] of HINTS) if (camel(key) in foreign && !(unless in given)) notices.push(line);
  if (notices.length > 0 && 'perDeviceTrainBatchSize' in given) {
    notices.push(
      'one process trains, so a step takes per_device_train_batch_size × gradient_accumulation_steps rows: for a file that was meant for N processes, multiply gradient_accumulation_steps by N',
    );
  }
  return { values, notices };
}

const spelt = new Map(FOREIGN_KEYS.map((key) => [camel(key), key]));
/** `maxLength` as `max_length`. */
export const snake = (name: string) =>
  spelt.get(name) ?? name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

const show = (value: unknown) => JSON.stringify(value);
const isNothing = (value: unknown) =>
  value === 'none' ||
  value === 'no' ||
  (typeof value === 'object' && value !== null && Object.keys(value).length === 0);
