/**
 * Every failure that is not a wrong argument rejects with an AtMoeError; `code` is stable, the message is for people.
 * Wrong arguments throw TypeError or RangeError at once. docs/errors.md lists the codes.
 */
export type AtMoeErrorCode =
  | 'ERR_AT_MOE_ABORTED'
  | 'ERR_AT_MOE_BAD_DATA'
  | 'ERR_AT_MOE_BAD_FILE'
  | 'ERR_AT_MOE_BUSY'
  | 'ERR_AT_MOE_CONTEXT_LENGTH'
  | 'ERR_AT_MOE_DEADLINE'
  | 'ERR_AT_MOE_DEVICE_LOST'
  | 'ERR_AT_MOE_DEVICE_UNAVAILABLE'
  | 'ERR_AT_MOE_DISPOSED'
  | 'ERR_AT_MOE_EMPTY_PROMPT'
  | 'ERR_AT_MOE_INTERNAL'
  | 'ERR_AT_MOE_IO'
  | 'ERR_AT_MOE_MISMATCH'
  | 'ERR_AT_MOE_NATIVE_MISSING'
  | 'ERR_AT_MOE_NOT_FINITE'
  | 'ERR_AT_MOE_NOT_FOUND'
  | 'ERR_AT_MOE_OFFLINE'
  | 'ERR_AT_MOE_OUT_OF_MEMORY'
  | 'ERR_AT_MOE_QUEUE_FULL'
  | 'ERR_AT_MOE_ROUTING'
  | 'ERR_AT_MOE_UNKNOWN_NAME'
  | 'ERR_AT_MOE_UNSUPPORTED';

export class AtMoeError extends Error {
  readonly code: AtMoeErrorCode;

  constructor(code: AtMoeErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'AtMoeError';
    this.code = code;
  }
}
