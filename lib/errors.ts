/** What went wrong, for programs; the message says it for people. */
export type WrpoErrorCode =
  | 'ERR_CONFIG'
  | 'ERR_DATA'
  | 'ERR_CHECKPOINT'
  | 'ERR_MODEL'
  | 'ERR_NATIVE_LOAD'
  | 'ERR_CLOSED'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_DEVICE'
  | 'ERR_NON_FINITE'
  | 'ERR_ENDPOINT'
  | 'ERR_INTERNAL';

/**
 * Every failure a user can meet. `message` is one sentence that names the file, line, key or shape at fault and what
 * was expected; the native addon's errors arrive in the same form.
 */
export class WrpoError extends Error {
  override readonly name = 'WrpoError';

  constructor(
    readonly code: WrpoErrorCode,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }
}
