/**
 * `npm run docs:api`: the API's reference, made of the docstrings, in build/api. typedoc is fetched when it is called, with
 * the TypeScript that it can read and a plugin for types that only signatures name, which is found beside it alone.
 */
import { spawnSync } from 'node:child_process';

const packages = ['typedoc@0.28.20', 'typescript@6.0.3', 'typedoc-plugin-missing-exports@4.1.4'];
const plugin = '$(dirname "$(command -v typedoc)")/../typedoc-plugin-missing-exports/index.js';
const args = ['--yes', ...packages.flatMap((name) => ['-p', name]), '-c', `typedoc --plugin "${plugin}"`];
process.exitCode = spawnSync('npx', args, { stdio: 'inherit' }).status ?? 1;
