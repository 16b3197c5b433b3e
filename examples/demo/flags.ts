/** The demo's command line. Wrong use ends the process with code 2 and one line. */
import { parseArgs } from 'node:util';

const usage = `npm run demo [-- --model NAME] [--expert-steps 80] [--router-steps 150] [--examples 72] [--seed 0] [--json]

  --model NAME       a folder or a Hub name instead of the demo's own base
  --expert-steps N   training steps of each expert and of the general adapter
  --router-steps N   training steps of each router
  --examples N       prompts of unseen compounds that are answered
  --seed N           of data, order and initial weights
  --json             one line per result, nothing else`;

export interface Flags {
  model?: string;
  expertSteps: number;
  routerSteps: number;
  examples: number;
  seed: number;
  json: boolean;
}

class UsageError extends Error {}

function integer(name: string, text: string, least: number): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isSafeInteger(value) || value < least) {
    throw new UsageError(`--${name} takes an integer from ${least} on, not ${JSON.stringify(text)}`);
  }
  return value;
}

function parse(argv: string[]): Flags | undefined {
  const { values } = parseArgs({
    args: argv,
    options: {
      model: { type: 'string' },
      'expert-steps': { type: 'string', default: '80' },
      'router-steps': { type: 'string', default: '150' },
      examples: { type: 'string', default: '72' },
      seed: { type: 'string', default: '0' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) return undefined;
  return {
    ...(values.model !== undefined && { model: values.model }),
    expertSteps: integer('expert-steps', values['expert-steps'], 1),
    routerSteps: integer('router-steps', values['router-steps'], 1),
    examples: integer('examples', values.examples, 1),
    seed: integer('seed', values.seed, 0),
    json: values.json,
  };
}

export function readFlags(argv: string[]): Flags {
  try {
    const flags = parse(argv);
    if (flags) return flags;
    console.log(usage);
    process.exit(0);
  } catch (error) {
    const wrong = error instanceof UsageError || (error as NodeJS.ErrnoException).code?.startsWith('ERR_PARSE_ARGS');
    if (!wrong) throw error;
    console.error(`demo: ${(error as Error).message.split('\n')[0]} (--help shows the flags)`);
    process.exit(2);
  }
}
