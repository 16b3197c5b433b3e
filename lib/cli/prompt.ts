import { text as readAll } from 'node:stream/consumers';
import type { Prompt } from '../generation-options.js';
import type { RoutingControls } from '../routing-controls.js';
import { type Flags, parseIds, parsePairs, parseSettings, UsageError, type Values } from './flags.js';

export const promptFlags = {
  chat: { type: 'boolean', help: 'the prompt is the message of a user, put through the chat template' },
  system: { type: 'string', help: 'system message before it; implies --chat' },
  ids: { type: 'list', value: '1,2,3', help: 'the prompt as token ids' },
} as const satisfies Flags;

/** Controls of the routing of one request. */
export const routingFlags = {
  expert: { type: 'string', value: 'GROUP/NAME', help: 'one expert alone, at weight 1' },
  weights: {
    type: 'list',
    value: 'NAME=X,...',
    help: 'exactly these expert weights in every layer; the router is bypassed',
  },
  set: {
    type: 'list',
    value: 'NAME=X,...',
    help: 'weight of a group, or of an expert inside its group; the others share the rest',
  },
  bias: { type: 'list', value: 'NAME=X,...', help: 'added to the scores of groups or experts' },
  deny: { type: 'list', value: 'NAME,...', help: 'groups and experts that get weight 0' },
  allow: { type: 'list', value: 'NAME,...', help: 'only these groups and experts' },
  routing: {
    type: 'list',
    value: 'KEY=VALUE,...',
    help: 'selection for this request: group_top_k, expert_temperature, ...',
  },
} as const satisfies Flags;

/** What of the controls was given. @throws UsageError */
export function controlsOf(values: Values<typeof routingFlags>): RoutingControls {
  const controls = {
    ...(parseSettings('routing', values.routing) as RoutingControls | undefined),
    only: values.expert,
    experts: parsePairs('weights', values.weights),
    weight: parsePairs('set', values.set),
    bias: parsePairs('bias', values.bias),
    deny: values.deny,
    allow: values.allow,
  };
  return Object.fromEntries(Object.entries(controls).filter(([, value]) => value !== undefined));
}

/** The prompt of argument or flags; '-' or nothing reads stdin. @throws UsageError when that is a terminal. */
export async function promptOf(given: string | undefined, values: Values<typeof promptFlags>): Promise<Prompt> {
  if (values.ids) {
    if (given !== undefined) throw new UsageError('give the prompt as text or as --ids');
    return parseIds('ids', values.ids);
  }
  const text = given === undefined || given === '-' ? await readStdin() : given;
  if (!values.chat && values.system === undefined) return text;
  const system = values.system === undefined ? [] : [{ role: 'system', content: values.system }];
  return [...system, { role: 'user', content: text }];
}

async function readStdin(): Promise<string> {
  if (process.stdin.isTTY) throw new UsageError('a prompt is missing: as an argument, by --ids or on stdin');
  return (await readAll(process.stdin)).replace(/\r?\n$/, '');
}
