/** The native sources as clang-format writes them: `node test/clang-format.mjs` checks, `--write` rewrites them. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { format } from '@wasm-fmt/clang-format';

const native = fileURLToPath(new URL('../native', import.meta.url));
const style = `{${readFileSync(join(native, '../.clang-format'), 'utf8').trim().split('\n').join(', ')}}`;
const write = process.argv.includes('--write');

for (const name of readdirSync(native, { recursive: true })) {
  if (!/\.(cpp|h|c|cuh?)$/.test(name)) continue;
  const path = join(native, name);
  const text = readFileSync(path, 'utf8');
  const formatted = format(text, path, style);
  if (formatted === text) continue;
  if (write) writeFileSync(path, formatted);
  else {
    process.stdout.write(`native/${name} is not formatted: run \`npm run format\`\n`);
    process.exitCode = 1;
  }
}
