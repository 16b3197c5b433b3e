import { z } from 'zod';

/** `response_format`: what the engine can hold an answer to. */
export const responseFormat = z.looseObject({
  type: z.string().refine((type) => type === 'text', 'only "text" is supported by this server'),
});
