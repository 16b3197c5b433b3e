#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { AtMoeError } from '../errors.js';
import { UsageError } from './flags.js';

type Run = (argv: string[], signal: AbortSignal) => Promise<number>;

const commands: Record<string, { summary: string; load: () => Promise<Run> }> = {
  train: {
    summary: 'train an expert, the general adapter, a router, a single adapter or a small base',
    load: async () => (await import('./train.js')).train,
  },
  generate: {
    summary: 'generate text with a model, an adapter or a mixture',
    load: async () => (await import('./generate.js')).generate,
  },
  serve: {
    summary: 'serve a model, mixtures and adapters over HTTP as the OpenAI API does',
    load: async () => (await import('./serve.js')).serve,
  },
  inspect: {
    summary: 'show how a prompt is routed, or what a folder holds',
    load: async () => (await import('./inspect.js')).inspect,
  },
  evaluate: {
    summary: 'loss and perplexity on a JSONL file',
    load: async () => (await import('./evaluate.js')).evaluate,
  },
  bench: {
    summary: 'measure speed against what this machine can do at best',
    load: async () => (await import('./bench.js')).bench,
  },
  quantize: {
    summary: 'write a model folder with its weights in 8 bits',
    load: async () => (await import('./quantize.js')).quantize,
  },
  devices: {
    summary: 'list the devices and why one cannot be used',
    load: async () => (await import('./devices.js')).devices,
  },
  golden: {
    summary: 'check folders of reference cases',
    load: async () => (await import('./golden.js')).golden,
  },
};

function help(): string {
  const width = Math.max(...Object.keys(commands).map((name) => name.length));
  const rows = Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`);
  return `usage: at-moe COMMAND [flags]\n\n${rows.join('\n')}\n\nat-moe COMMAND --help says more; at-moe --version prints the version.\n`;
}

function version(): string {
  const text = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

function oneLine(text: string): string {
  return text.replaceAll(/\s*\n\s*/g, ' ');
}

/** Says what went wrong and returns the exit code: 130 after Ctrl-C, 2 for wrong use, else 1. */
function report(error: unknown, command: string, signal: AbortSignal): number {
  if (signal.aborted) {
    process.stderr.write('aborted\n');
    return 130;
  }
  if (!(error instanceof Error)) {
    process.stderr.write(`error: ${oneLine(String(error))}\n`);
    return 1;
  }
  // The library throws these two, and nothing else, for wrong arguments: here they come from flags.
  if (error instanceof UsageError || error instanceof TypeError || error instanceof RangeError) {
    process.stderr.write(`at-moe ${command}: ${oneLine(error.message)} (at-moe ${command} --help says more)\n`);
    return 2;
  }
  const code = error instanceof AtMoeError ? error.code : (error as NodeJS.ErrnoException).code;
  process.stderr.write(`error: ${oneLine(error.message)}${code ? ` [${code}]` : ''}\n`);
  return 1;
}

/** The first Ctrl-C aborts what runs, a second one ends the process. */
function abortOnInterrupt(): AbortSignal {
  const controller = new AbortController();
  const interrupt = () => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort();
  };
  process.on('SIGINT', interrupt);
  process.on('SIGTERM', interrupt);
  return controller.signal;
}

async function main(argv: string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name === '--help' || name === '-h') {
    process.stdout.write(help());
    return 0;
  }
  if (name === '--version') {
    process.stdout.write(`${version()}\n`);
    return 0;
  }
  const command = name !== undefined && Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (!command) {
    const problem = name === undefined ? 'a command is missing' : `no command ${JSON.stringify(name)}`;
    process.stderr.write(`at-moe: ${problem}; there are ${Object.keys(commands).join(', ')}\n`);
    return 2;
  }
  const signal = abortOnInterrupt();
  try {
    return await (await command.load())(rest, signal);
  } catch (error) {
    return report(error, name as string, signal);
  }
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});
process.exitCode = await main(process.argv.slice(2));
