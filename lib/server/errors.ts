import type { FastifyRequest } from 'fastify';
import type { z } from 'zod';

const longestMessage = 1000;

/** A failure as the client is told of it: HTTP status, and the fields of an error of the OpenAI API. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string | null;
  readonly param: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    message: string,
    more: { code?: string; param?: string; headers?: Record<string, string>; cause?: unknown } = {},
  ) {
    super(message, { cause: more.cause });
    this.name = 'ApiError';
    this.status = status;
    this.code = more.code ?? null;
    this.param = more.param ?? null;
    this.headers = more.headers ?? {};
  }

  /** The body of the response, or the data of the last event of a stream. */
  get body(): object {
    const { status, param, code } = this;
    const message = this.message.length > longestMessage ? `${this.message.slice(0, longestMessage)} …` : this.message;
    return { error: { message, type: errorType(status), param, code } };
  }
}

function errorType(status: number): string {
  if (status === 401) return 'authentication_error';
  if (status === 403) return 'permission_error';
  if (status === 429) return 'rate_limit_error';
  return status >= 500 ? 'server_error' : 'invalid_request_error';
}

export const shuttingDown = () =>
  new ApiError(503, 'the server is shutting down', { code: 'shutting_down', headers: { connection: 'close' } });

/** What work ends with when nobody waits for it any more; the status is that of the log and the metrics. */
export const clientLeft = () => new ApiError(499, 'the client left', { code: 'client_left' });

/** What each code of docs/errors.md means to a client; codes that are not named are faults of the server. */
const statusOfCode: Record<string, { status: number; code: string; param?: string; headers?: Record<string, string> }> =
  {
    ERR_AT_MOE_BAD_DATA: { status: 400, code: 'invalid_prompt' },
    ERR_AT_MOE_BUSY: { status: 409, code: 'busy' },
    ERR_AT_MOE_CONTEXT_LENGTH: { status: 400, code: 'context_length_exceeded' },
    ERR_AT_MOE_DEADLINE: { status: 504, code: 'deadline_exceeded' },
    ERR_AT_MOE_DISPOSED: { status: 503, code: 'model_disposed', param: 'model' },
    ERR_AT_MOE_EMPTY_PROMPT: { status: 400, code: 'empty_prompt' },
    ERR_AT_MOE_OUT_OF_MEMORY: { status: 503, code: 'out_of_memory' },
    ERR_AT_MOE_QUEUE_FULL: { status: 429, code: 'queue_full', headers: { 'retry-after': '1' } },
    ERR_AT_MOE_ROUTING: { status: 400, code: 'invalid_routing', param: 'routing' },
    ERR_AT_MOE_UNKNOWN_NAME: { status: 400, code: 'unknown_expert', param: 'routing' },
    ERR_AT_MOE_UNSUPPORTED: { status: 400, code: 'unsupported' },
  };

function codeOf(error: unknown): string | undefined {
  const { code } = (error ?? {}) as { code?: unknown };
  return typeof code === 'string' ? code : undefined;
}

/** What a client may know of any error: those that are not its own doing say no more than that there was one. */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (codeOf(error) === 'ERR_AT_MOE_SCHEMA') {
    const message = `response_format: ${(error as Error).message}`;
    return new ApiError(400, message, { code: 'invalid_schema', param: 'response_format', cause: error });
  }
  const code = codeOf(error) ?? '';
  const known = statusOfCode[code];
  if (known) {
    const { status, ...more } = known;
    return new ApiError(status, (error as Error).message, { ...more, cause: error });
  }
  const { statusCode, message } = (error ?? {}) as { statusCode?: unknown; message?: string };
  if (code.startsWith('FST_ERR_') && typeof statusCode === 'number' && statusCode < 500) {
    return new ApiError(statusCode, message ?? '', { cause: error });
  }
  return new ApiError(500, 'internal error', { code: 'internal_error', cause: error });
}

/** Logs what went wrong on this side, with its cause. */
export function logFault(request: FastifyRequest, error: ApiError): void {
  const isFault = ['internal_error', 'out_of_memory', 'engine_failed'].includes(error.code ?? '');
  if (isFault) request.log.error({ err: error.cause ?? error }, 'request failed');
}

/** The library's errors of wrong arguments, thrown at a call: the client's doing. */
export function argumentError(error: unknown): unknown {
  if (!(error instanceof TypeError || error instanceof RangeError)) return error;
  if (codeOf(error) === 'ERR_AT_MOE_SCHEMA') return error; // told as such wherever it comes from
  const param = error.message.includes('routing') && { param: 'routing' };
  return new ApiError(400, error.message, { code: 'invalid_value', ...param, cause: error });
}

/** `messages[0].content` of a path. */
function paramOf(path: readonly PropertyKey[]): string {
  return path.reduce<string>((text, key) => {
    if (typeof key === 'number') return `${text}[${key}]`;
    return text === '' ? String(key) : `${text}.${String(key)}`;
  }, '');
}

const typeNames: Readonly<Record<string, string>> = {
  array: 'an array',
  boolean: 'true or false',
  int: 'an integer',
  number: 'a number',
  object: 'an object',
  record: 'an object',
  string: 'a text',
};

/** What a value must be, in one sentence. */
function requirement(issue: z.core.$ZodIssue): string {
  switch (issue.code) {
    case 'invalid_type':
      return `must be ${typeNames[issue.expected] ?? issue.expected}`;
    case 'invalid_value':
      return `must be ${issue.values.map((value) => JSON.stringify(value)).join(' or ')}`;
    case 'too_small':
    case 'too_big': {
      const [bound, word] =
        issue.code === 'too_small'
          ? [issue.minimum, issue.inclusive ? 'at least' : 'more than']
          : [issue.maximum, issue.inclusive ? 'at most' : 'less than'];
      if (issue.origin === 'string') return `must have ${word} ${bound} characters`;
      return issue.origin === 'array' ? `must have ${word} ${bound} elements` : `must be ${word} ${bound}`;
    }
    case 'invalid_union': {
      const types = issue.errors.flatMap(([first]) => (first ? [requirement(first)] : []));
      return types.length > 0 ? [...new Set(types)].join(', or ') : issue.message;
    }
    default:
      return issue.message;
  }
}

/** The first problem of a request body. */
export function schemaError(error: z.ZodError): ApiError {
  const [issue] = error.issues;
  if (issue?.code === 'unrecognized_keys') {
    const param = paramOf([...issue.path, issue.keys[0] ?? '']);
    return new ApiError(400, `unknown parameter: ${param}`, { code: 'unknown_parameter', param });
  }
  const param = paramOf(issue?.path ?? []);
  // Messages of our own stand: those of zod begin so.
  const isWorded = !/^(Invalid|Too (small|big)|Unrecognized)/.test(issue?.message ?? '');
  const message = issue ? (isWorded ? issue.message : requirement(issue)) : 'is invalid';
  if (param === '') return new ApiError(400, `the body ${message}`, { code: 'invalid_value' });
  return new ApiError(400, `${param}: ${message}`, { code: 'invalid_value', param });
}
