/** `wrpo plan`: what full training of a model would need of one GPU, from its config.json alone. */
import { basename, dirname } from 'node:path';
import { WrpoError } from '../errors.js';
import { readModelConfig } from '../model/config.js';
import { bestPlan, forecast, GPUS, gib, type MemoryPlan, parameterCount, planMemory } from '../train/memory-plan.js';

interface PlanOptions {
  model: string;
  gpu: string;
  memory?: number;
  tokens?: number;
  residentReference?: boolean;
  json?: boolean;
}

/** Throws ERR_CONFIG for a GPU it does not know, ERR_OUT_OF_MEMORY where nothing fits. */
export function plan(options: PlanOptions): void {
  const config = readModelConfig(basename(options.model) === 'config.json' ? dirname(options.model) : options.model);
  const name = Object.keys(GPUS).find((gpu) => gpu.toLowerCase() === options.gpu.toLowerCase());
  if (options.memory === undefined && name === undefined) {
    const known = Object.keys(GPUS).join(', ');
    throw new WrpoError('ERR_CONFIG', `--gpu "${options.gpu}": expected ${known}, or its usable GiB as --memory`);
  }
  const available = options.memory === undefined ? GPUS[name!]! : options.memory * 2 ** 30;
  const plans = planMemory(config, available, options);
  const best = bestPlan(plans);
  if (!best) {
    const least = forecast(config, options.tokens ?? 4096, available, options);
    throw new WrpoError(
      'ERR_OUT_OF_MEMORY',
      `full training needs ${gib(least.total)} GiB of ${gib(available)} with ${least.tokens} tokens a micro-batch and all but the last layer computed again, ${gib(least.states)} of it for weights and optimizer: train adapters (use_peft)${least.reference > 0 ? ', compute the reference beforehand' : ''} or take a GPU with more memory`,
    );
  }
  const report = { gpu: name ?? options.gpu, available, parameters: parameterCount(config), best, plans };
  process.stdout.write(options.json ? `${JSON.stringify(report, null, 2)}\n` : text(report));
}

function text(report: { gpu: string; available: number; parameters: number; best: MemoryPlan; plans: MemoryPlan[] }) {
  const { gpu, available, parameters, best, plans } = report;
  const lines = [
    `${(parameters / 1e9).toFixed(2)} billion parameters on one ${gpu}: needs ${gib(best.total)} GiB of ${gib(available)}`,
    '',
    ...parts(best).map(([bytes, what]) => `${gib(bytes).padStart(8)} GiB  ${what}`),
    '',
    'tokens a micro-batch  layers kept  needs GiB  computed again',
    ...plans.map((p) =>
      [
        String(p.tokens).padEnd(20),
        `${p.keptLayers} of ${p.layers}`.padEnd(11),
        gib(p.total).padStart(9),
        `+${(100 * p.recomputed).toFixed(1)} % of the step's operations`,
      ].join('  '),
    ),
  ];
  return `${lines.join('\n')}\n`;
}

function parts(p: MemoryPlan): [number, string][] {
  const all: [number, string][] = [
    [p.states, 'weights 2, rest of the masters 2, gradients 4, moments 8 bytes a parameter'],
    [p.reference, 'the reference, resident'],
    [p.activations, `activations of ${p.tokens} tokens, ${p.keptLayers} of ${p.layers} layers kept whole`],
    [p.workspace, 'one layer at work, or the logits of a chunk'],
    [p.reserve, 'left to the libraries'],
  ];
  return all.filter(([bytes]) => bytes > 0);
}
