/** Packages that take long to load, loaded when they are first needed, so that importing this one stays quick. */
import { createRequire } from 'node:module';

const load = createRequire(import.meta.url);

export const zod = (): typeof import('zod') => load('zod');
export const yaml = (): typeof import('yaml') => load('yaml');
export const mlMatrix = (): typeof import('ml-matrix') => load('ml-matrix');
export const hyparquetWriter = (): typeof import('hyparquet-writer') => load('hyparquet-writer');
export const cliProgress = (): typeof import('cli-progress') => load('cli-progress');

/** Its own declarations do not compile under `skipLibCheck: false`; these are the members in use. */
export const jinja = (): { Template: new (source: string) => Template } => load('@huggingface/jinja');
export interface Template {
  parsed: { body: unknown[] };
  render(context: Record<string, unknown>): string;
}
