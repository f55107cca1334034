import { provideLibtorch } from '../native/libtorch.js';

const HOW = {
  WRPO_LIBTORCH: ', which WRPO_LIBTORCH names',
  LIBTORCH: ', which LIBTORCH names',
  cache: '',
  python: ", the active Python's",
} as const;

/** `wrpo setup`: makes sure that an intact libtorch is there, fetching it if need be, and says where it is. */
export async function setup(options: { cpu?: boolean; cuda?: boolean }): Promise<void> {
  const log = (line: string) => process.stderr.write(`${line}\n`);
  const { dir, version, variant, origin } = await provideLibtorch({
    log,
    variant: options.cuda ? 'cuda' : options.cpu ? 'cpu' : undefined,
  });
  log(`libtorch ${version} (${variant}) is ready in ${dir}${HOW[origin]}.`);
}
