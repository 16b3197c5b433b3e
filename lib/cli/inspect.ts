import { renderTrace } from '../routing-trace.js';
import { describe, renderDescription } from './describe.js';
import { type Command, type Flags, parseCommand, UsageError } from './flags.js';
import { modelFlags, targetFlags, withTarget } from './open.js';
import { controlsOf, promptFlags, promptOf, routingFlags } from './prompt.js';

const command = {
  name: 'inspect',
  usage: '[PROMPT | DIR] [--model DIR|NAME] [--mixture DIR | --adapter DIR] [flags]',
  summary:
    'With a prompt (- reads stdin): how the mixture weighs its experts for it, per layer, and per token with token scope. ' +
    'Without one: what the folders of model, mixture or adapter hold.',
  positionals: 1,
  flags: {
    ...modelFlags,
    ...targetFlags,
    ...promptFlags,
    ...routingFlags,
    tokens: { type: 'integer', help: 'tokens to show with token scope; default 32, 0 = none' },
    json: { type: 'boolean', help: 'one JSON object' },
  },
  examples: [
    'inspect "I have a rash" --model ./model --mixture ./mixture',
    'inspect "I have a rash" --model ./model --mixture ./mixture --deny style --json',
    'inspect --model ./model --mixture ./mixture',
    'inspect ./mixture',
  ],
} as const satisfies Command<Flags>;

export async function inspect(argv: string[], signal: AbortSignal): Promise<number> {
  const parsed = parseCommand(command, argv);
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  const [given] = positionals;
  const folders = [values.model, values.mixture, values.adapter].filter((folder) => folder !== undefined);
  const write = (json: unknown, text: string) => process.stdout.write(values.json ? `${JSON.stringify(json)}\n` : text);
  if (values.model === undefined && given !== undefined) folders.push(given);
  if (values.model === undefined || (given === undefined && !values.ids)) {
    if (folders.length === 0) throw new UsageError('a folder, or a prompt with --model and --mixture, is missing');
    const found = [];
    for (const folder of folders) found.push(await describe(folder, values));
    write(found.length === 1 ? found[0] : found, found.map(renderDescription).join('\n'));
    return 0;
  }
  if (values.mixture === undefined && values.adapter === undefined) {
    throw new UsageError('a base model routes nothing: a prompt needs --mixture');
  }
  const prompt = await promptOf(given, values);
  const routing = controlsOf(values);
  return await withTarget(values, signal, async (target) => {
    const trace = await target.explain(prompt, { routing, signal });
    write(trace, renderTrace(trace, { tokens: values.tokens ?? 32 }));
    return 0;
  });
}
