/** What happened, in a sentence, and the facts beside it. */
import type { ComparisonRow } from '../fuse/comparison.js';
import type { Directory, TrainingRun } from './read.js';

/** The sentence that a report begins with. */
export function headlineOf({ runs, fusion }: Directory): string {
  if (!fusion) return headlineOfRun(runs[0]!);
  const rows = fusion.results?.rows ?? [];
  const best = bestOf(
    rows,
    runs.map(({ name }) => name),
  );
  if (best) {
    const rewards = `mean reward ${best.reward.toFixed(3)} against ${rows[0]!.reward.toFixed(3)}`;
    const verb = best.win_rate > 0.5 ? 'beats' : 'does not beat';
    return `${best.name} ${verb} the target on held-out prompts: it wins ${percent(best)} of ${best.n}, with ${rewards}.`;
  }
  const last = fusion.stages.at(-1);
  if (!last) return 'A fusion of which no stage is done yet.';
  return `A fusion under way: ${fusion.stages.length} stages are done, the last is ${last.stage}.`;
}

/** The run that wins most. */
export function bestOf(rows: readonly ComparisonRow[], runs: readonly string[]): ComparisonRow | undefined {
  const own = rows.filter(({ name }) => runs.includes(name));
  return own.length === 0 ? undefined : own.reduce((a, b) => (b.win_rate > a.win_rate ? b : a));
}

const percent = ({ win_rate, win_rate_stderr }: ComparisonRow): string =>
  `${(100 * win_rate).toFixed(1)}${win_rate_stderr === null ? '' : ` ± ${(100 * win_rate_stderr).toFixed(1)}`} %`;

function headlineOfRun({ config, lines, isFinished }: TrainingRun): string {
  const logged = lines.filter((line) => line.loss !== undefined);
  const [first, last] = [logged[0], logged.at(-1)];
  const what =
    config.loss_type === 'sft' ? 'Fine-tuning' : `Preference optimisation (${config.loss_type ?? 'loss unknown'})`;
  if (!first || !last) return `${what} that has not logged a step yet.`;
  const epochs =
    isFinished || last.epoch === undefined
      ? ''
      : `, epoch ${last.epoch.toFixed(2)} of ${config.num_train_epochs ?? '?'}`;
  const when = isFinished ? `over ${last.step} steps` : `at step ${last.step}${epochs}`;
  const loss = `the loss ${first === last ? 'is' : `went from ${first.loss!.toFixed(3)} to`} ${last.loss!.toFixed(3)}`;
  const accuracy = last['rewards/accuracies'];
  const wins =
    accuracy === undefined ? '' : `, and the chosen side wins ${(100 * accuracy).toFixed(0)} % of the examples`;
  return `${what} ${when}: ${loss}${wins}.`;
}

/** Names and values, the most telling first. */
export function factsOf({ runs, fusion, name }: Directory): [string, string][] {
  if (fusion) {
    const { rows, prompts } = fusion.selection ?? {};
    const asked = prompts && Object.values(prompts).reduce((sum, count) => sum + count, 0);
    const facts: [string, unknown][] = [
      ['prompts', asked],
      ['quadruples', rows?.train],
      ['rows for fine-tuning', rows?.sft],
      ['scorer', fusion.results?.scorer],
      ['runs', runs.length],
    ];
    return [...known(facts), ['directory', name]];
  }
  const { config, lines } = runs[0]!;
  const memory = Math.max(...lines.map((line) => line.peak_memory_bytes ?? 0));
  const speed = lines.flatMap((line) => line.tokens_per_second ?? []).at(-1);
  const facts: [string, unknown][] = [
    ['model', config.model_name_or_path],
    ['data', config.dataset_name],
    ['loss', config.loss_type],
    ['β', config.beta],
    [
      'α',
      config.alpha === undefined
        ? undefined
        : `${config.alpha}${config.is_dynamic === false ? ', static' : ', rising'}`,
    ],
    ['learning rate', config.learning_rate],
    ['epochs', config.num_train_epochs],
    ['speed', speed && `${Math.round(speed)} tokens/s`],
    ['peak memory of the engine', memory > 0 && bytesText(memory)],
  ];
  return [...known(facts), ['directory', name]];
}

const known = (facts: [string, unknown][]): [string, string][] =>
  facts.flatMap(([name, value]): [string, string][] => (value || value === 0 ? [[name, String(value)]] : []));

export const bytesText = (bytes: number): string =>
  bytes < 2 ** 30 ? `${Math.round(bytes / 2 ** 20)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`;
