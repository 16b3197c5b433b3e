/** A schema that cannot be followed: a TypeError, or a RangeError for a limit, with the place in the schema. */
export interface SchemaError extends Error {
  code: 'ERR_AT_MOE_SCHEMA';
  /** JSON pointer as a URI fragment: '#', '#/properties/a' … */
  pointer: string;
}

function schemaError(kind: typeof TypeError | typeof RangeError, pointer: string, message: string): SchemaError {
  return Object.assign(new kind(`schema at ${pointer}: ${message}`), { code: 'ERR_AT_MOE_SCHEMA' as const, pointer });
}

/** What the schema says is wrong, or not supported. */
export function refuse(pointer: string, message: string): never {
  throw schemaError(TypeError, pointer, message);
}

/** The schema is larger than it may be. */
export function exceeds(pointer: string, message: string): never {
  throw schemaError(RangeError, pointer, message);
}

/** The place of a member below another. */
export function below(pointer: string, ...keys: (string | number)[]): string {
  const escaped = keys.map((key) => encodeURI(String(key)).replaceAll('~', '~0').replaceAll('/', '~1'));
  return [pointer, ...escaped].join('/');
}
