/**
 * Reads a file of rows again and again, each time with other bytes in it: `spoilt.mjs FILE SCRATCH_FILE RUNS`, the last as
 * fast-check's parameters in JSON. Says on standard output how many were tried and refused and how many milliseconds the
 * slowest took. A process of its own, since what it looks for is a reader that never ends or takes all memory.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import fc from 'fast-check';
import { readPreferences } from '../dist/data/preferences.js';
import { WrpoError } from '../dist/errors.js';

const [source, file, runs] = process.argv.slice(2);
const whole = readFileSync(source);

const int32 = (n) => [n & 255, (n >> 8) & 255, (n >> 16) & 255, n >> 24];
const wild = fc.constantFrom(
  ...[-1, 0, 1, 0x7fffffff, -0x80000000, 0x10000, 0x1000000].map(int32),
  ...[
    [255, 255, 255, 255, 255, 255, 255, 255],
    [0, 0, 0, 0, 1, 0, 0, 0],
    [255, 255, 255, 255, 15],
    [254, 255, 255, 255, 7],
  ],
);
const change = fc.oneof(
  // Others in place of as many, mostly: where what follows is moved, little else is tried.
  fc.record({ at: fc.nat(whole.length - 1), put: fc.oneof(wild, fc.uint8Array({ minLength: 1, maxLength: 8 })) }),
  fc.record({ at: fc.nat(whole.length >> 2).map((at) => 4 * at), put: wild }),
  fc.record({ at: fc.nat(Math.min(600, whole.length - 1)).map((at) => whole.length - 1 - at), put: wild }),
  fc.record({ at: fc.nat(whole.length - 1), flip: fc.nat(7) }),
  fc.record({ at: fc.nat(whole.length - 1), put: fc.uint8Array({ maxLength: 8 }), skip: fc.nat(8) }),
  fc.record({ end: fc.nat(whole.length) }),
);

function apply(bytes, { at, put, flip, skip, end }) {
  if (end !== undefined) return bytes.subarray(0, end);
  if (skip !== undefined)
    return Buffer.concat([bytes.subarray(0, at), Uint8Array.from(put), bytes.subarray(at + skip)]);
  const other = Buffer.from(bytes);
  if (at < other.length && flip !== undefined) other[at] ^= 1 << flip;
  for (let i = 0; put && i < put.length && at + i < other.length; i++) other[at + i] = put[i];
  return other;
}

let executions = 0;
let refused = 0;
let slowest = 0;
const property = fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 3 }), async (changes) => {
  const bytes = changes.reduce(apply, whole);
  writeFileSync(file, bytes);
  executions++;
  let rows = 0;
  const began = performance.now();
  try {
    for await (const { responses } of readPreferences(file)) {
      assert(++rows <= whole.length, 'more rows than bytes');
      assert(Object.keys(responses).length > 0);
    }
  } catch (error) {
    if (!(error instanceof WrpoError)) throw error;
    assert.equal(error.code, 'ERR_DATA');
    assert.doesNotMatch(error.message, /\n|\[object|Cannot read prop|undefined|NaN/);
    refused++;
  }
  slowest = Math.max(slowest, performance.now() - began);
});
await fc.assert(property, JSON.parse(runs));
console.log(JSON.stringify({ executions, refused, slowest }));
