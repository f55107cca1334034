/** What the tests of input from anywhere share: inputs near good ones, and what counts as refused. */
import fc from 'fast-check';
import { afterAll, expect } from 'vitest';
import { WrpoError } from '../lib/errors.ts';

/** All executions of the properties of a test file, which it says when it is done. */
let executions = 0;
export const counted = (more: number) => {
  executions += more;
};
afterAll(() => console.log(`${executions} executions of properties`));

function reporter(details: fc.RunDetails<unknown>): void {
  counted(details.numRuns);
  if (details.failed) throw new Error(fc.defaultReportMessage(details));
}
/** Executions of each property. */
export const RUNS = { ...(process.env.TORTURE ? { numRuns: 5_000 } : { numRuns: 200, seed: 1 }), reporter };
export const TIME = process.env.TORTURE ? 1_800_000 : 120_000;

/** What `act` gives, or undefined where it refuses in one sentence; any other end is a finding. */
export async function tried<T>(act: () => T | Promise<T>): Promise<T | undefined> {
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof WrpoError)) throw error;
    expect(error.message).not.toMatch(/\n\s+at |\[object|Cannot read prop/);
    expect(error.code).not.toBe('ERR_INTERNAL');
    return undefined;
  }
}

/** JSON near something: the thing itself with parts of it changed, or cut, or other bytes in it. */
export function near(value: unknown): fc.Arbitrary<Buffer> {
  const text = JSON.stringify(value);
  const odd = fc.oneof(
    fc.constantFrom(
      'null',
      '[]',
      '{}',
      '-1',
      '1e400',
      '1e999999',
      '"\\ud800"',
      '9007199254740993',
      'true',
      '""',
      '0.5',
    ),
    fc.jsonValue({ maxDepth: 2 }).map((any) => JSON.stringify(any)),
    fc.constant(`${'['.repeat(3000)}${']'.repeat(3000)}`),
  );
  const places = [...text.matchAll(/(?<=[:[,])("[^"]*"|-?[\d.]+|true|false|null|\[[^[\]]*\])/g)];
  const changed = fc
    .array(fc.tuple(fc.nat(Math.max(0, places.length - 1)), odd), { minLength: 1, maxLength: 3 })
    .map((changes) => {
      let out = text;
      for (const [i, put] of changes.sort(([a], [b]) => b - a)) {
        const { index, 0: old } = places[i]!;
        out = out.slice(0, index) + put + out.slice(index + old.length);
      }
      return Buffer.from(out);
    });
  const spoilt = fc
    .tuple(fc.nat(text.length - 1), fc.uint8Array({ maxLength: 4 }), fc.nat(8))
    .map(([at, bytes, skip]) =>
      Buffer.concat([Buffer.from(text.slice(0, at)), bytes, Buffer.from(text.slice(at + skip))]),
    );
  return fc.oneof(changed, spoilt, fc.uint8Array({ maxLength: 64 }).map(Buffer.from));
}
