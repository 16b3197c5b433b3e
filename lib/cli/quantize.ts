import { quantizeModel } from '../quantize.js';
import { type Command, type Flags, parseCommand, UsageError } from './flags.js';

const command = {
  name: 'quantize',
  usage: 'MODEL OUT',
  summary:
    'Writes the folder MODEL to OUT with linears and head in 8 bits: int8 in blocks of 32 inputs with one f16 scale. ' +
    'OUT is loaded as any model is; embedding, norms and the tokenizer stay.',
  positionals: 2,
  flags: {},
  examples: ['quantize ./model ./model-q8'],
} as const satisfies Command<Flags>;

export async function quantize(argv: string[], signal: AbortSignal): Promise<number> {
  const parsed = parseCommand(command, argv);
  if (!parsed) return 0;
  const [model, out] = parsed.positionals;
  if (model === undefined || out === undefined)
    throw new UsageError('two folders are wanted: of the model, and to write');
  await quantizeModel(model, out, { signal });
  return 0;
}
