import type { FastifyServerOptions } from 'fastify';
import { z } from 'zod';
import { checkArgument } from '../arguments.js';
import type { LoadedAdapter } from './models.js';

export interface ServerOptions {
  /** Name of the base model; default "base". */
  name?: string;
  /** Mixtures and adapters by name: loaded ones, which stay the caller's, or folders, which the server loads and frees. */
  adapters?: Record<string, LoadedAdapter | string>;
  /** Folder that POST /v1/adapters may load from; without it nothing is loaded or unloaded at run time. */
  adaptersRoot?: string;
  /** Most adapters and mixtures at once; default 64. */
  maxAdapters?: number;
  /** Those of `adapters` that stay on the device, as Mixture.pin(). */
  pinned?: readonly string[];
  /** Keys that clients send as `Authorization: Bearer KEY`; default: none is asked for. */
  apiKeys?: readonly string[];
  /** Bytes of a request's body; default 2 MiB. */
  bodyLimit?: number;
  /** Most new tokens of a text, and what a chat gets that asks for no number; default: the context length. */
  maxTokens?: number;
  /** Milliseconds that a client may take to send a request; default 30,000. */
  requestTimeoutMs?: number;
  /** Milliseconds that a client may take to read what it was sent; default 60,000. */
  stallTimeoutMs?: number;
  /** Milliseconds that open requests get to finish after close(); default 10,000. */
  graceMs?: number;
  /** Fastify's (pino's) logger: true, its options, or false (default). Prompts and texts are never logged. */
  logger?: FastifyServerOptions['logger'];
}

const isAdapter = (value: unknown) =>
  typeof value === 'string' || typeof (value as Partial<LoadedAdapter> | null)?.generate === 'function';
const positive = z.int().min(1);
const milliseconds = z
  .int()
  .min(1)
  .max(2 ** 31 - 1);
const schema = z.strictObject({
  name: z
    .string()
    .regex(/^\S{1,128}$/)
    .default('base'),
  adapters: z
    .record(z.string(), z.custom<LoadedAdapter | string>(isAdapter, 'neither a folder nor loaded'))
    .default({}),
  adaptersRoot: z.string().min(1).optional(),
  maxAdapters: positive.default(64),
  pinned: z.array(z.string()).default([]),
  apiKeys: z.array(z.string().regex(/^\S+$/)).default([]),
  bodyLimit: positive.default(2 ** 21),
  maxTokens: positive.optional(),
  requestTimeoutMs: milliseconds.default(30_000),
  stallTimeoutMs: milliseconds.default(60_000),
  graceMs: z
    .int()
    .min(0)
    .max(2 ** 31 - 1)
    .default(10_000),
  logger: z.custom<FastifyServerOptions['logger']>().default(false),
});

export type CheckedServerOptions = z.infer<typeof schema>;

/** Fills in the defaults. Errors: TypeError, RangeError. */
export function checkServerOptions(options: ServerOptions): CheckedServerOptions {
  return checkArgument('createServer', schema, options);
}
