import { devices as listDevices } from '../native.js';
import { formatBytes } from '../units.js';
import { type Command, type Flags, parseCommand } from './flags.js';
import { table } from './text.js';

const command = {
  name: 'devices',
  usage: '[--json]',
  summary: 'The devices this build knows, what they offer, and the reason when one cannot be used.',
  flags: { json: { type: 'boolean', help: 'one JSON array' } },
  examples: ['devices', 'devices --json'],
} as const satisfies Command<Flags>;

export async function devices(argv: string[]): Promise<number> {
  const parsed = parseCommand(command, argv);
  if (!parsed) return 0;
  const found = listDevices();
  if (parsed.values.json) {
    process.stdout.write(`${JSON.stringify(found)}\n`);
    return 0;
  }
  const rows = found.map(({ name, description, memoryBytes, available, reason }) => [
    name,
    available ? 'yes' : 'no',
    memoryBytes > 0 ? formatBytes(memoryBytes) : '',
    available ? description : reason || description,
  ]);
  process.stdout.write(table([['device', 'usable', 'memory', ''], ...rows]));
  return 0;
}
