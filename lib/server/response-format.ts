import { z } from 'zod';
import type { ResponseFormat } from '../response-format.js';

const namedSchema = z.strictObject({
  name: z.string().nullish(),
  description: z.string().nullish(),
  schema: z.custom<object | boolean>(
    (value) => typeof value === 'boolean' || (typeof value === 'object' && value !== null),
    'a schema is an object or a boolean',
  ),
  strict: z.boolean().nullish(),
});

/** `response_format` as the OpenAI API words it, to what the library takes. The schema itself is checked there. */
export const responseFormat = z
  .discriminatedUnion(
    'type',
    [
      z.strictObject({ type: z.literal('text') }),
      z.strictObject({ type: z.literal('json_object') }),
      z.strictObject({ type: z.literal('json_schema'), json_schema: namedSchema }),
    ],
    { error: ({ code }) => (code === 'invalid_union' ? 'is "text", "json_object" or "json_schema"' : undefined) },
  )
  .transform((format): ResponseFormat => {
    if (format.type !== 'json_schema') return format;
    const { schema, strict } = format.json_schema;
    return { type: 'json_schema', schema, ...(strict != null && { strict }) };
  });
