import { access } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import type { Adapter } from '../adapter.js';
import { checkMixtureFolder } from '../formats/mixture-folder.js';
import { checkAdapterFolder } from '../formats/peft.js';
import type { Mixture } from '../mixture.js';
import type { Model } from '../model.js';
import type { TrainingProgress } from '../training/run.js';
import { type Command, type Flags, parseCommand, required, UsageError, type Values } from './flags.js';
import { modelFlags, openMixture, openModel } from './open.js';
import {
  checkShape,
  groupNames,
  learningFlags,
  loraOptions,
  mixtureOptions,
  newFlags,
  shapeFlags,
  trainingOptions,
} from './train-flags.js';
import { progressView } from './train-progress.js';

const targets = ['expert', 'general', 'router', 'joint', 'adapter', 'base'] as const;
type Target = (typeof targets)[number];

const command = {
  name: 'train',
  usage: `${targets.join('|')} --model DIR|NAME --data FILE [flags]`,
  summary:
    'Trains one expert of a mixture alone, its general adapter, its router, or experts and router together (joint); or ' +
    'one adapter without a mixture; or all parameters of a small base. The result is saved at the end, and after ' +
    'Ctrl-C with the steps done so far.',
  positionals: 1,
  flags: {
    ...modelFlags,
    mixture: { type: 'string', value: 'DIR', help: 'the mixture; made by --group when there is no such folder' },
    adapter: {
      type: 'string',
      value: 'DIR',
      help: 'the adapter to go on with; a fresh one when there is no such folder',
    },
    expert: { type: 'string', value: 'GROUP/NAME', help: 'the expert to train' },
    data: { type: 'string', short: 'd', value: 'FILE', help: 'JSONL of {prompt, completion} or {messages}' },
    output: { type: 'string', short: 'o', value: 'DIR', help: 'where the result goes; default --mixture or --adapter' },
    ...newFlags,
    ...learningFlags,
    json: { type: 'boolean', help: 'one JSON object per step on stdout' },
  },
  examples: [
    'train expert --model ./model --mixture ./mixture --group function=diagnosis,triage --group style=brief,formal \\\n' +
      '      --expert function/triage --data triage.jsonl --rank 8 --epochs 3',
    'train router --model ./model --mixture ./mixture --data compound.jsonl --group-balance 0.01 --eval held-out.jsonl',
    'train adapter --model owner/name --data rows.jsonl --output ./adapter --learning-rate 2e-4',
    'train base --model ./tiny --data corpus.jsonl --output ./trained --checkpoint ./state --resume ./state',
  ],
} as const satisfies Command<Flags>;

type TrainValues = Values<typeof command.flags>;

/** A run that is ready to start. `save` is called after its last step. */
interface Run {
  steps: AsyncGenerator<TrainingProgress>;
  output: string;
  save: () => Promise<void>;
}

async function isFolder(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}

/** @throws UsageError when --general or --routing ask for what a mixture that is there already has not. */
function checkRouting(mixture: Mixture, values: TrainValues, dir: string): void {
  const there = 'which is there already';
  if (values.general && !mixture.hasGeneral)
    throw new UsageError(`--general: ${dir}, ${there}, has no general adapter`);
  const { routing = {} } = mixtureOptions(values);
  for (const [key, value] of Object.entries(routing)) {
    const own = mixture.routing[key as keyof typeof mixture.routing];
    if (own !== value)
      throw new UsageError(`--routing ${key}=${value}: ${dir}, ${there}, has ${own ?? 'no such option'}`);
  }
}

/** @throws UsageError when what is trained has not the shape that --rank and the like ask for. */
function checkShapes(mixture: Mixture, values: TrainValues, dir: string): void {
  for (const [path, config] of mixture.adapterConfigs) {
    const meant = values.expert === undefined || path === values.expert || path.endsWith(`/${values.expert}`);
    if (meant) checkShape(values, config, `${path} of ${dir}`);
  }
}

/** The mixture of --mixture, or a new one of --group. @throws UsageError when both are there and differ. */
async function mixtureOf(model: Model, values: TrainValues): Promise<Mixture> {
  const dir = values.mixture ?? required('mixture', values.output);
  const groups = values.group && groupNames(values.group);
  if (values.mixture !== undefined && (!groups || (await isFolder(dir)))) {
    const mixture = await openMixture(model, dir);
    if (groups && !isDeepStrictEqual(groups, mixture.groups)) {
      throw new UsageError(`--group differs from the groups of ${dir}, which is there already`);
    }
    checkRouting(mixture, values, dir);
    checkShapes(mixture, values, dir);
    return mixture;
  }
  if (!groups) throw new UsageError('--mixture, or --group for a new one, is missing');
  return await model.createMixture(mixtureOptions(values));
}

async function adapterOf(model: Model, values: TrainValues): Promise<Adapter> {
  if (values.adapter !== undefined && (await isFolder(values.adapter))) {
    const adapter = await model.loadAdapter(values.adapter);
    checkShape(values, adapter.adapter.config, values.adapter);
    return adapter;
  }
  return await model.createAdapter(loraOptions(values), values.seed);
}

async function prepare(target: Target, model: Model, values: TrainValues, signal: AbortSignal): Promise<Run> {
  const data = required('data', values.data);
  const options = trainingOptions(values, signal);
  if (target === 'base') {
    const output = required('output', values.output);
    return { steps: model.train(data, { ...options, saveTo: output }), output, save: async () => {} };
  }
  if (target === 'adapter') {
    const output = required('output', values.output ?? values.adapter);
    await checkAdapterFolder(output);
    const adapter = await adapterOf(model, values);
    return { steps: adapter.train(data, options), output, save: () => adapter.save(output) };
  }
  const output = required('mixture', values.output ?? values.mixture);
  await checkMixtureFolder(output);
  const mixture = await mixtureOf(model, values);
  const steps = {
    expert: () => mixture.trainExpert(required('expert', values.expert), data, options),
    general: () => mixture.trainGeneral(data, options),
    router: () => mixture.trainRouter(data, options),
    joint: () => mixture.trainJoint(data, options),
  }[target]();
  return { steps, output, save: () => mixture.save(output) };
}

/** Runs to the end or to an abort, and saves what was learnt. Rethrows the abort after saving. */
async function runAndSave({ steps, output, save }: Run, json: boolean, signal: AbortSignal): Promise<void> {
  const view = progressView(json);
  let last: TrainingProgress | undefined;
  let aborted: unknown;
  try {
    for await (const progress of steps) {
      last = progress;
      view.show(progress);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
    aborted = error;
  } finally {
    view.stop();
  }
  if (last) {
    await save();
    const message = `saved ${output} after ${last.step} steps, loss ${last.loss.toFixed(4)}`;
    if (json) process.stdout.write(`${JSON.stringify({ saved: output, step: last.step, loss: last.loss })}\n`);
    else process.stdout.write(`${message}\n`);
  }
  if (signal.aborted) throw aborted ?? signal.reason;
}

function checkFlags(target: Target, values: TrainValues): void {
  if (target !== 'expert' && values.expert !== undefined) throw new UsageError('--expert is for train expert');
  if (target === 'expert') required('expert', values.expert);
  const alone = target === 'adapter' || target === 'base';
  if (alone && (values.mixture !== undefined || values.group || values.general || values.routing)) {
    throw new UsageError(`train ${target} takes no mixture`);
  }
  groupNames(values.group ?? []);
  const [shape] = shapeFlags(values);
  if (target === 'base' && shape) throw new UsageError(`--${shape} is for adapters`);
  if (target !== 'adapter' && values.adapter !== undefined) throw new UsageError('--adapter is for train adapter');
  required('data', values.data);
  if (target === 'base') required('output', values.output);
  else if (target === 'adapter') required('output', values.output ?? values.adapter);
  else required('mixture', values.mixture ?? values.output);
}

export async function train(argv: string[], signal: AbortSignal): Promise<number> {
  const parsed = parseCommand(command, argv);
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  const target = targets.find((name) => name === positionals[0]);
  if (!target) throw new UsageError(`what to train is one of ${targets.join(', ')}`);
  checkFlags(target, values);
  const model = await openModel(values, signal, { trainable: target === 'base' });
  try {
    await runAndSave(await prepare(target, model, values, signal), values.json === true, signal);
    return 0;
  } finally {
    await model.dispose();
  }
}
