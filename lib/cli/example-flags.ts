import type { ExampleOptions } from '../training/options.js';
import type { Flags, Values } from './flags.js';

/** How rows of data become examples. */
export const exampleFlags = {
  'batch-tokens': { type: 'integer', help: 'most tokens of a micro-batch, which bounds memory; default 2048' },
  'loss-on': { type: 'string', choices: ['completion', 'all'], help: 'tokens that count; default completion' },
  'max-length': { type: 'integer', help: 'longest example in tokens; default the context' },
  'too-long': {
    type: 'string',
    choices: ['error', 'truncate', 'skip'],
    help: 'what happens to a longer one; default error',
  },
  'no-eos': { type: 'boolean', help: 'append no end-of-sequence token to completions' },
} as const satisfies Flags;

export function exampleOptions(values: Values<typeof exampleFlags>): ExampleOptions {
  return {
    batchTokens: values['batch-tokens'],
    lossOn: values['loss-on'] as ExampleOptions['lossOn'],
    maxLength: values['max-length'],
    tooLong: values['too-long'] as ExampleOptions['tooLong'],
    appendEos: values['no-eos'] ? false : undefined,
    onSkip: (source, length) => process.stderr.write(`skipped ${source}: ${length} tokens\n`),
  };
}
