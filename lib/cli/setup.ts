import { WrpoError } from '../errors.js';
import { provideLibtorch } from '../native/libtorch.js';

const HOW = {
  WRPO_LIBTORCH: ', which WRPO_LIBTORCH names',
  LIBTORCH: ', which LIBTORCH names',
  cache: '',
  python: ", the active Python's",
} as const;

/** `wrpo setup`: makes sure that an intact libtorch is there, fetching it if need be, and says where it is. */
export async function setup(options: { cpu?: boolean; cuda?: boolean }): Promise<void> {
  if (options.cuda) {
    throw new WrpoError(
      'ERR_NATIVE_LOAD',
      'The CUDA core is not part of this version of wrpo: run `wrpo setup --cpu`; every command then computes on the CPU.',
    );
  }
  const log = (line: string) => process.stderr.write(`${line}\n`);
  const { dir, version, variant, origin } = await provideLibtorch({ log });
  log(`libtorch ${version} (${variant}) is ready in ${dir}${HOW[origin]}.`);
}
