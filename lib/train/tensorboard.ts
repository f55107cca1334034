/**
 * Metrics as a TensorBoard event file: TFRecords (length, its masked CRC-32C, data, its masked CRC-32C, little-endian) of
 * the protocol buffer `tensorflow.Event`, of which the few fields that scalars need are written here.
 */
import { writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { makeDirectory, writeError } from '../data/files.js';
import type { Metrics } from './metrics.js';

export class EventFile {
  readonly path: string;

  /** A new file in `dir`, which says that what earlier files hold of `firstStep` and later is void. */
  constructor(dir: string, firstStep: number, now = Date.now()) {
    const seconds = Math.floor(now / 1000);
    this.path = join(dir, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}.0`);
    makeDirectory(dir);
    this.#append([string(3, 'brain.Event:2')], now, 0);
    const START = 1;
    this.#append([bytes(7, varintField(1, START))], now, firstStep);
  }

  /** One line of the log; `step` is its x axis, `epoch` one of its values. */
  add({ step, ...values }: Metrics, now = Date.now()): void {
    const scalars = Object.entries(values).map(([tag, value]) => bytes(1, string(1, tag), float(2, value)));
    this.#append([bytes(5, ...scalars)], now, step!);
  }

  #append(fields: Buffer[], now: number, step: number): void {
    const event = Buffer.concat([double(1, now / 1000), varintField(2, step), ...fields]);
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(event.length));
    try {
      writeFileSync(this.path, Buffer.concat([length, masked(length), event, masked(event)]), { flag: 'a' });
    } catch (cause) {
      throw writeError(this.path, cause);
    }
  }
}

// ---- protocol buffers: a field is a key (number and wire type), then its value

const VARINT = 0;
const DOUBLE = 1;
const BYTES = 2;
const FLOAT = 5;

function varint(value: number): Buffer {
  const out: number[] = [];
  for (; value >= 0x80; value = Math.floor(value / 0x80)) out.push((value % 0x80) | 0x80);
  out.push(value);
  return Buffer.from(out);
}

const key = (field: number, type: number) => varint(field * 8 + type);
const varintField = (field: number, value: number) => Buffer.concat([key(field, VARINT), varint(value)]);

function bytes(field: number, ...parts: Buffer[]): Buffer {
  const value = Buffer.concat(parts);
  return Buffer.concat([key(field, BYTES), varint(value.length), value]);
}

const string = (field: number, text: string) => bytes(field, Buffer.from(text));

function double(field: number, value: number): Buffer {
  const out = Buffer.alloc(8);
  out.writeDoubleLE(value);
  return Buffer.concat([key(field, DOUBLE), out]);
}

function float(field: number, value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeFloatLE(value);
  return Buffer.concat([key(field, FLOAT), out]);
}

// ---- CRC-32C (Castagnoli, reflected 0x1EDC6F41), masked as TFRecord does: rotated right by 15, plus a constant

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0x82f63b78 : byte >>> 1;
  return byte;
});

export function crc32c(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) crc = TABLE[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function masked(data: Uint8Array): Buffer {
  const crc = crc32c(data);
  const out = Buffer.alloc(4);
  out.writeUInt32LE((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0);
  return out;
}
