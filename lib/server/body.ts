import { ApiError } from './errors.js';

const deepest = 64;
const mostKeys = 1024;

/** Text of a body. @throws ApiError 400 when it is not UTF-8. */
export function decodeBody(body: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(body);
  } catch (cause) {
    throw new ApiError(400, 'the body is not valid UTF-8', { code: 'invalid_utf8', cause });
  }
}

/**
 * Bounds what validation may have to walk through: the depth of the nesting, and the keys of an object.
 * @throws ApiError 400
 */
export function checkShape(body: unknown): void {
  let level: unknown[] = [body];
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > deepest) throw new ApiError(400, `JSON nested deeper than ${deepest}`, { code: 'invalid_json' });
    level = level.flatMap(childrenOf);
  }
}

function childrenOf(value: unknown): unknown[] {
  const isNested = (child: unknown) => typeof child === 'object' && child !== null;
  if (Array.isArray(value)) return value.filter(isNested);
  const children = Object.values(value ?? {});
  if (children.length > mostKeys) {
    throw new ApiError(400, `a JSON object with more than ${mostKeys} keys`, { code: 'invalid_json' });
  }
  return children.filter(isNested);
}
