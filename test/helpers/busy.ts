/** A process or worker that is in the middle of something when it ends: `node busy.js <mode>`. */
import { parentPort } from 'node:worker_threads';
import { modelDescriptor } from '../../lib/formats/model-folder.js';
import { createEngine } from '../../lib/native.js';
import { goldenBase, microBatch, openEngine, startGeneration } from './engine.js';

const mode = process.argv[2];

async function train() {
  const engine = await openEngine({ trainable: true });
  const trainer = await engine.beginTraining(null, { target: 'base' });
  for (;;) {
    parentPort?.postMessage('training');
    await engine.microBatch(trainer, microBatch(40, 40));
  }
}

async function generate() {
  const engine = await openEngine();
  for (;;) await startGeneration(engine, { maxTokens: 400 }, (token) => parentPort?.postMessage(token)).done;
}

if (mode === 'exit-loading') {
  const { descriptor } = await modelDescriptor(goldenBase);
  void createEngine({ device: 'cpu', threads: 2 }).loadModel(descriptor, { weights: 'f32' });
  process.exit(7);
} else if (mode === 'idle') {
  await startGeneration(await openEngine(), {}).done;
} else if (mode === 'tokens') {
  const generation = startGeneration(await openEngine(), {});
  await generation.done;
  parentPort?.postMessage(generation.tokens);
} else {
  if (mode?.startsWith('exit-')) setTimeout(() => process.exit(7), 150);
  await (mode?.endsWith('training') ? train() : generate());
}
