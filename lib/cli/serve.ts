import { once } from 'node:events';
import { stat } from 'node:fs/promises';
import { isIP } from 'node:net';
import { AtMoeError } from '../errors.js';
import type { Model } from '../model.js';
import { createServer, type ServerOptions } from '../server/index.js';
import { type Command, type Flags, parseCommand, UsageError, type Values } from './flags.js';
import { modelFlags, openModel } from './open.js';

const logLevels = ['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'] as const;

/** Of a timer: 2^31 - 1 milliseconds. */
const mostSeconds = 2_147_483;

const command = {
  name: 'serve',
  usage: '[MODEL] [--mixture NAME=DIR ...] [--adapter NAME=DIR ...] [flags]',
  summary:
    'Serves a model, its mixtures and adapters over HTTP as the OpenAI API does, until Ctrl-C or SIGTERM. The address goes ' +
    'to stdout, the log to stderr. MODEL is the same as --model.',
  positionals: 1,
  flags: {
    ...modelFlags,
    mixture: { type: 'each', value: 'NAME=DIR', help: 'a mixture as the model NAME, its experts as NAME/GROUP/EXPERT' },
    adapter: { type: 'each', value: 'NAME=DIR', help: 'a PEFT LoRA adapter as the model NAME' },
    name: { type: 'string', help: 'of the base model; default base' },
    host: { type: 'string', help: 'default 127.0.0.1' },
    port: { type: 'integer', least: 0, most: 65_535, help: 'default 8080; 0: any that is free' },
    'api-key-env': { type: 'string', value: 'VARIABLE', help: 'environment variable with the keys, by commas' },
    'adapters-root': { type: 'string', value: 'DIR', help: 'clients may load adapters from there, and unload them' },
    'max-adapters': { type: 'integer', least: 1, help: 'most adapters and mixtures at once; default 64' },
    'adapter-bytes': {
      type: 'integer',
      least: 1,
      help: 'device memory for experts, others wait in host memory; default any',
    },
    pin: { type: 'each', value: 'NAME', help: 'a mixture or adapter that stays on the device' },
    'max-batch': { type: 'integer', least: 1, help: 'most sequences worked on at once; default 16' },
    'max-queue': {
      type: 'integer',
      least: 0,
      help: 'texts that may wait for a place, others get 429; default any number',
    },
    'kv-tokens': { type: 'integer', least: 1, help: 'tokens of the KV cache, all sequences together' },
    'max-tokens': { type: 'integer', least: 1, help: 'most new tokens of a text; default the context length' },
    'body-limit': { type: 'integer', least: 1, help: 'bytes of a request; default 2097152' },
    'request-timeout': {
      type: 'number',
      least: 0.001,
      most: mostSeconds,
      value: 'SECONDS',
      help: 'for sending a request; default 30',
    },
    'stall-timeout': {
      type: 'number',
      least: 0.001,
      most: mostSeconds,
      value: 'SECONDS',
      help: 'for reading what was sent; default 60',
    },
    grace: {
      type: 'number',
      least: 0,
      most: mostSeconds,
      value: 'SECONDS',
      help: 'open requests get it to finish at the end; default 10',
    },
    'log-level': { type: 'string', choices: logLevels, help: 'default info: a line for each request' },
  },
  examples: [
    'serve ./model --mixture medical=./mixture --port 8080',
    'serve ./model --adapter legal=./peft-adapter --adapters-root ./adapters',
    'API_KEYS=secret at-moe serve owner/name --host 0.0.0.0 --api-key-env API_KEYS',
  ],
} as const satisfies Command<Flags>;

type Given = Values<typeof command.flags>;

/** "medical=./mixture" as a name and a folder. @throws UsageError */
function named(flag: string, parts: readonly string[] = []): [name: string, dir: string][] {
  return parts.map((part) => {
    const at = part.indexOf('=');
    if (at < 1 || at === part.length - 1) {
      throw new UsageError(`--${flag} takes NAME=DIR, not ${JSON.stringify(part)}`);
    }
    return [part.slice(0, at), part.slice(at + 1)];
  });
}

/** Before the model is loaded, which may take long. @throws AtMoeError ERR_AT_MOE_NOT_FOUND */
async function checkFolders({ adapters = {}, adaptersRoot }: ServerOptions): Promise<void> {
  for (const folder of [...Object.values(adapters), adaptersRoot]) {
    if (typeof folder !== 'string') continue;
    const found = await stat(folder).catch(() => undefined);
    if (!found?.isDirectory()) throw new AtMoeError('ERR_AT_MOE_NOT_FOUND', `there is no folder ${folder}`);
  }
}

function adaptersOf(values: Given): Record<string, string> {
  const pairs = [...named('mixture', values.mixture), ...named('adapter', values.adapter)];
  const twice = pairs.find(([name], i) => pairs.findIndex(([other]) => other === name) !== i);
  if (twice) throw new UsageError(`two mixtures or adapters are named ${JSON.stringify(twice[0])}`);
  const base = values.name ?? 'base';
  if (pairs.some(([name]) => name === base)) throw new UsageError(`${JSON.stringify(base)} is the base model`);
  return Object.fromEntries(pairs);
}

function keysOf(variable: string | undefined): string[] {
  if (variable === undefined) return [];
  const keys = (process.env[variable] ?? '').split(/[\s,]+/).filter((key) => key !== '');
  if (keys.length === 0) throw new UsageError(`--api-key-env: the environment variable ${variable} is not set`);
  return keys;
}

const milliseconds = (seconds: number | undefined) => (seconds === undefined ? undefined : Math.round(seconds * 1000));

function serverOptions(values: Given): ServerOptions {
  const level = values['log-level'] ?? 'info';
  return {
    name: values.name,
    adapters: adaptersOf(values),
    adaptersRoot: values['adapters-root'],
    maxAdapters: values['max-adapters'],
    pinned: values.pin,
    apiKeys: keysOf(values['api-key-env']),
    bodyLimit: values['body-limit'],
    maxTokens: values['max-tokens'],
    requestTimeoutMs: milliseconds(values['request-timeout']),
    stallTimeoutMs: milliseconds(values['stall-timeout']),
    graceMs: milliseconds(values.grace),
    logger: { level, stream: process.stderr },
  };
}

const isLoopback = (host: string) =>
  host === 'localhost' || host === '::1' || (isIP(host) === 4 && /^127\./.test(host));

async function serveUntil(signal: AbortSignal, model: Model, options: ServerOptions, values: Given): Promise<void> {
  const { host = '127.0.0.1', port } = values;
  const server = await createServer(model, options);
  try {
    const url = await server.listen({ host, ...(port !== undefined && { port }) });
    process.stdout.write(`listening on ${url}\n`);
    if (!signal.aborted) await once(signal, 'abort');
  } finally {
    await server.close();
  }
}

export async function serve(argv: string[], signal: AbortSignal): Promise<number> {
  const parsed = parseCommand(command, argv);
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  if (values.model !== undefined && positionals.length > 0) throw new UsageError('give either MODEL or --model');
  const options = serverOptions(values);
  if (!isLoopback(values.host ?? '127.0.0.1') && options.apiKeys?.length === 0) {
    process.stderr.write('warning: no API key is asked for, of anyone who reaches this host\n');
  }
  await checkFolders(options);
  const place = {
    maxBatch: values['max-batch'],
    maxQueue: values['max-queue'],
    kvTokens: values['kv-tokens'],
    adapterBytes: values['adapter-bytes'],
  };
  const model = await openModel({ ...values, model: values.model ?? positionals[0] }, signal, place);
  try {
    await serveUntil(signal, model, options, values);
  } finally {
    await model.dispose();
  }
  return 0;
}
