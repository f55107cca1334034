/** Reading values out of a config.json, with errors that name the file and the key. */
import { WrpoError } from '../errors.js';

export type Json = Record<string, unknown>;

/** A value as errors show it. */
export const show = (value: unknown) => JSON.stringify(value) ?? 'none';

/** One object of a configuration. Every reader throws ERR_MODEL when a value is missing (without a fallback) or unfit. */
export class Reader {
  constructor(
    readonly json: Json,
    /** The file, as errors name it. */
    readonly where: string,
  ) {}

  fail(message: string): never {
    throw new WrpoError('ERR_MODEL', `${this.where}: ${message}`);
  }

  /** A positive whole number. */
  whole(key: string, fallback?: number): number {
    const value = this.json[key] ?? fallback;
    if (Number.isInteger(value) && (value as number) >= 1) return value as number;
    return this.fail(`"${key}" must be a positive whole number, found ${show(this.json[key])}`);
  }

  /** A positive number. */
  positive(key: string, fallback?: number): number {
    const value = this.json[key] ?? fallback;
    if (typeof value === 'number' && value > 0 && Number.isFinite(value)) return value;
    return this.fail(`"${key}" must be a positive number, found ${show(this.json[key])}`);
  }

  /** A positive number, or null for none: 0. */
  cap(key: string, fallback = 0): number {
    if (this.json[key] === undefined) return fallback;
    return this.json[key] === null ? 0 : this.positive(key);
  }

  flag(key: string, fallback = false): boolean {
    const value = this.json[key] ?? fallback;
    if (typeof value === 'boolean') return value;
    return this.fail(`"${key}" must be true or false, found ${show(value)}`);
  }

  /** An object inside this one; absent and null give an empty one. */
  object(key: string): Reader {
    const value = this.json[key] ?? {};
    if (typeof value === 'object' && !Array.isArray(value)) return new Reader(value as Json, `${this.where}: "${key}"`);
    return this.fail(`"${key}" must be an object, found ${show(value)}`);
  }

  /** Refuses a value other than `expected`, which is also what absence means. */
  only(key: string, expected: unknown): void {
    const value = this.json[key] ?? expected;
    if (value !== expected) this.fail(`"${key}": ${show(value)} is not supported; expected ${show(expected)}`);
  }
}
