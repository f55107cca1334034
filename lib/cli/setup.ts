import { fetchLibtorch, libtorchCache, provideLibtorch, verifyLibtorch } from '../native/libtorch.js';
import { writeOut } from './stdout.js';

const HOW = {
  WRPO_LIBTORCH: ', which WRPO_LIBTORCH names',
  LIBTORCH: ', which LIBTORCH names',
  cache: '',
  python: ", the active Python's",
} as const;

export interface SetupOptions {
  cpu?: boolean;
  cuda?: boolean;
  /** An archive to take libtorch from: a file, or an http(s) address. */
  from?: string;
  sha256?: string;
  json?: boolean;
}

/** `wrpo setup`: makes sure that an intact libtorch is there, fetching it if need be, and says where it is. */
export async function setup(options: SetupOptions): Promise<void> {
  const log = (line: string) => process.stderr.write(`${line}\n`);
  if (options.from !== undefined) await takeArchive(options.from, options.sha256, log);
  const { dir, version, variant, origin } = await provideLibtorch({
    log,
    variant: options.cuda ? 'cuda' : options.cpu ? 'cpu' : undefined,
  });
  log(`libtorch ${version} (${variant}) is ready in ${dir}${HOW[origin]}.`);
  if (options.json) await writeOut(`${JSON.stringify({ version, variant, dir, origin })}\n`);
}

/** Fills the cache from an archive, unless it is filled and intact: other projects use it. */
async function takeArchive(from: string, sha256: string | undefined, log: (line: string) => void): Promise<void> {
  const { ok } = await verifyLibtorch(libtorchCache());
  if (ok) log(`${libtorchCache()} is there and intact; ${from} is not looked at`);
  else await fetchLibtorch({ log, from, ...(sha256 === undefined ? {} : { sha256 }) });
}
