import { readJson } from '../formats/json.js';
import type { GenerateResult, Piece } from '../generation.js';
import type { GenerateOptions } from '../generation-options.js';
import type { ResponseFormat } from '../response-format.js';
import { renderTrace } from '../routing-trace.js';
import { type Command, type Flags, parseCommand, UsageError, type Values } from './flags.js';
import { modelFlags, targetFlags, withTarget } from './open.js';
import { controlsOf, promptFlags, promptOf, routingFlags } from './prompt.js';

const command = {
  name: 'generate',
  usage: '[PROMPT] --model DIR|NAME [--mixture DIR | --adapter DIR] [flags]',
  summary: 'Writes text after a prompt, as it is generated. Without PROMPT it is read from stdin.',
  positionals: 1,
  flags: {
    ...modelFlags,
    ...targetFlags,
    ...promptFlags,
    'max-tokens': { type: 'integer', help: 'new tokens at most; default 256' },
    temperature: { type: 'number', help: '0 (default) = greedy' },
    'top-k': { type: 'integer', help: 'keep the k likeliest tokens; 0 = all' },
    'top-p': { type: 'number', help: 'keep the likeliest tokens of this mass; 1 = all' },
    'min-p': { type: 'number', help: 'keep tokens at least this fraction as likely as the likeliest' },
    'repetition-penalty': { type: 'number', help: '1 = off' },
    seed: { type: 'integer', help: 'the same seed gives the same text' },
    stop: { type: 'each', help: 'a string that ends the text; may be repeated' },
    'ignore-eos': { type: 'boolean', help: 'go on after an end-of-sequence token' },
    schema: { type: 'string', value: 'FILE', help: 'the text is a JSON value of the JSON Schema in the file' },
    'json-object': { type: 'boolean', help: 'the text is a JSON object' },
    ...routingFlags,
    trace: { type: 'boolean', help: 'print the routing after the text' },
    json: { type: 'boolean', help: 'one JSON object with text, tokens, usage, seed (and routing with --trace)' },
  },
  examples: [
    'generate "Once upon a time" --model ./model --max-tokens 100',
    'generate "I have a rash" --model ./model --mixture ./mixture --chat --trace',
    'generate "I have a rash" --model ./model --mixture ./mixture --set style=0.5 --deny function/advice',
    'generate "I have a rash" --model ./model --schema triage.schema.json',
    'echo "Hello" | at-moe generate --model owner/name --temperature 0.7 --top-p 0.9 --seed 1',
  ],
} as const satisfies Command<Flags>;

async function formatOf(values: Values<typeof command.flags>): Promise<ResponseFormat | undefined> {
  const { schema, 'json-object': jsonObject } = values;
  if (schema !== undefined && jsonObject) throw new UsageError('give --schema or --json-object');
  if (schema !== undefined) return { type: 'json_schema', schema: (await readJson(schema)) as object };
  return jsonObject ? { type: 'json_object' } : undefined;
}

async function optionsOf(values: Values<typeof command.flags>, signal: AbortSignal): Promise<GenerateOptions> {
  return {
    maxTokens: values['max-tokens'],
    temperature: values.temperature,
    topK: values['top-k'],
    topP: values['top-p'],
    minP: values['min-p'],
    repetitionPenalty: values['repetition-penalty'],
    seed: values.seed,
    stop: values.stop,
    ignoreEos: values['ignore-eos'],
    responseFormat: await formatOf(values),
    routing: controlsOf(values),
    trace: values.trace,
    signal,
  };
}

/** Streams to stdout; ids where there is no tokenizer to make text of them. */
async function stream(pieces: AsyncGenerator<Piece, GenerateResult>, asText: boolean, quiet: boolean) {
  for (;;) {
    const step = await pieces.next();
    if (step.done) return step.value;
    if (!quiet) process.stdout.write(asText ? step.value.text : step.value.tokens.map((id) => `${id} `).join(''));
  }
}

export async function generate(argv: string[], signal: AbortSignal): Promise<number> {
  const parsed = parseCommand(command, argv);
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  const prompt = await promptOf(positionals[0], values);
  const options = await optionsOf(values, signal);
  return await withTarget(values, signal, async (target, model) => {
    const json = values.json === true;
    const result = await stream(target.generate(prompt, options), model.tokenizer !== undefined, json);
    if (json) process.stdout.write(`${JSON.stringify(result)}\n`);
    else process.stdout.write('\n');
    if (!json && result.routing) process.stdout.write(`\n${renderTrace(result.routing)}`);
    return 0;
  });
}
