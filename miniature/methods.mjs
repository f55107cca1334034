/** What is compared: training runs, as data. Each starts from a model, on a selection of rows, with keys over PREFERENCE. */

/**
 * @typedef {object} Method
 * @property {string} name
 * @property {'target' | 'target-sft'} [start] default Target-SFT; its own samples are y_wt and y_l
 * @property {string} [rows] a selection of SELECTIONS; default all three sources
 * @property {import('wrpo').TrainingArgsInput} args
 */

/** Views of the same samples: where y_ws comes from. */
export const SELECTIONS = {
  all: {},
  A: { subset: ['srcA'] },
  B: { subset: ['srcB'] },
  C: { subset: ['srcC'] },
  'A+B': { subset: ['srcA', 'srcB'] },
  'A+C': { subset: ['srcA', 'srcC'] },
  'B+C': { subset: ['srcB', 'srcC'] },
  'rank 2': { rank: 2 },
  'with y_ls': { sourceRejected: true },
};

const dpo = { lossType: 'dpo' };
/** Only y_ws is preferred: alpha = 1 from the start. */
const hybrid = { lossType: 'dpo', chosen: 'source' };
const wrpo = { lossType: 'wrpo', alpha: 0.5 };
const lowBeta = { beta: 0.1, learningRate: 1e-4 };

/** Table 2 in miniature, and behind it what does as well or better here. @type {Method[]} */
export const MAIN = [
  { name: 'SFT-DPO', args: dpo },
  { name: 'SFT-WRPO', args: wrpo },
  { name: 'SFT-hybrid', args: hybrid },
  { name: 'static alpha 0.5', args: { ...wrpo, isDynamic: false } },
  { name: 'more SFT on all y_ws', args: { lossType: 'sft', learningRate: 2e-4 } },
];

/** The ablations, most wanted first. @type {Method[]} */
export const STUDY = [
  ...MAIN,
  ...['A', 'A+B'].map((rows) => ({ name: `sources ${rows}`, rows, args: wrpo })),
  { name: 'rank 2', rows: 'rank 2', args: wrpo },
  { name: 'with y_ls (Eq. 9)', rows: 'with y_ls', args: { ...wrpo, lossType: 'wrpo_ls' } },
  { name: 'from Target: DPO', start: 'target', args: dpo },
  { name: 'from Target: hybrid', start: 'target', args: hybrid },
  { name: 'from Target: WRPO', start: 'target', args: wrpo },
  { name: 'SimPO', args: { lossType: 'simpo', beta: 10, simpoGamma: 0, learningRate: 1e-4 } },
  { name: 'WRPO_SimPO', args: { lossType: 'wrpo_simpo', beta: 10, alpha: 0.5, learningRate: 1e-4 } },
  { name: 'IPO', args: { lossType: 'ipo', beta: 0.1, learningRate: 1e-4 } },
  { name: 'WRPO_IPO', args: { lossType: 'wrpo_ipo', beta: 0.1, alpha: 0.5, learningRate: 1e-4 } },
  ...[0.1, 0.3, 0.7, 0.9].map((alpha) => ({ name: `alpha ${alpha}`, args: { ...wrpo, alpha } })),
  ...[0.1, 0.3, 0.7, 0.9].map((alpha) => ({
    name: `static alpha ${alpha}`,
    args: { ...wrpo, alpha, isDynamic: false },
  })),
  ...['B', 'C', 'A+C', 'B+C'].map((rows) => ({ name: `sources ${rows}`, rows, args: wrpo })),
  { name: 'low beta: DPO', args: { ...dpo, ...lowBeta } },
  { name: 'low beta: hybrid', args: { ...hybrid, ...lowBeta } },
  { name: 'low beta: WRPO', args: { ...wrpo, ...lowBeta } },
];

/** Pairs whose difference says whether a finding of the paper shows; it does where the first is the better. */
export const FINDINGS = [
  ['Table 2', 'WRPO beats on-policy DPO', 'SFT-WRPO', 'SFT-DPO'],
  ['Table 2', 'Target-SFT beats Target', 'Target-SFT', 'Target'],
  ['Fig. 4', 'WRPO beats the hybrid without y_wt', 'SFT-WRPO', 'SFT-hybrid'],
  ['Fig. 4', 'WRPO from Target-SFT beats WRPO from Target', 'SFT-WRPO', 'from Target: WRPO'],
  ['Fig. 4', 'from Target: WRPO beats DPO', 'from Target: WRPO', 'from Target: DPO'],
  ['Fig. 4', 'from Target: the hybrid is worse than DPO', 'from Target: DPO', 'from Target: hybrid'],
  ['Fig. 4', 'low beta: WRPO beats DPO', 'low beta: WRPO', 'low beta: DPO'],
  ['Fig. 4', 'low beta: WRPO beats the hybrid', 'low beta: WRPO', 'low beta: hybrid'],
  ['Table 3', 'WRPO_SimPO beats SimPO', 'WRPO_SimPO', 'SimPO'],
  ['Table 3', 'WRPO_IPO beats IPO', 'WRPO_IPO', 'IPO'],
  ['Table 4', 'A and B beat A alone', 'sources A+B', 'sources A'],
  ['Table 4', 'three sources beat A and B', 'SFT-WRPO', 'sources A+B'],
  ['Table 4', 'three sources beat B alone', 'SFT-WRPO', 'sources B'],
  ['Table 4', 'three sources beat C alone', 'SFT-WRPO', 'sources C'],
  ['Table 9', 'all sources beat the group A+C', 'SFT-WRPO', 'sources A+C'],
  ['Table 9', 'all sources beat the group B+C', 'SFT-WRPO', 'sources B+C'],
  ['Table 9', 'the best sources beat the second best', 'SFT-WRPO', 'rank 2'],
  ['Table 10', 'WRPO beats Eq. 9 with y_ls', 'SFT-WRPO', 'with y_ls (Eq. 9)'],
  ['Fig. 6', 'dynamic alpha 0.5 beats static', 'SFT-WRPO', 'static alpha 0.5'],
  ...[0.1, 0.3, 0.7, 0.9].map((alpha) => [
    'Fig. 6',
    `dynamic alpha ${alpha} beats static`,
    `alpha ${alpha}`,
    `static alpha ${alpha}`,
  ]),
  ...[0.1, 0.3, 0.7, 0.9].map((alpha) => ['Fig. 5', `alpha 0.5 beats ${alpha}`, 'SFT-WRPO', `alpha ${alpha}`]),
  ['beside', 'WRPO beats fine-tuning on the same y_ws', 'SFT-WRPO', 'more SFT on all y_ws'],
];
