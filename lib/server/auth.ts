import { createHash, timingSafeEqual } from 'node:crypto';
import { ApiError } from './errors.js';

const digest = (text: string) => createHash('sha256').update(text).digest();

/**
 * Checks `Authorization: Bearer KEY` against the keys in a time that depends on their number alone.
 * @throws ApiError 401
 */
export function bearerCheck(keys: readonly string[]): (authorization: string | undefined) => void {
  const digests = keys.map(digest);
  return (authorization) => {
    const given = /^Bearer +(\S+)$/i.exec(authorization ?? '')?.[1];
    const actual = digest(given ?? '');
    const matches = digests.map((expected) => timingSafeEqual(expected, actual)).includes(true);
    if (given !== undefined && matches) return;
    const problem = given === undefined ? 'an API key is missing: send Authorization: Bearer KEY' : 'invalid API key';
    throw new ApiError(401, problem, { code: 'invalid_api_key', headers: { 'www-authenticate': 'Bearer' } });
  };
}
