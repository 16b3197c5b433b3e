import { saveCheckpoint } from '../../lib/training/checkpoint.js';

const [dir] = process.argv.slice(2) as [string];

for (let step = 1; ; step++) {
  const values = new Float32Array(20_000).fill(step);
  await saveCheckpoint(dir, {
    target: 'adapter',
    fingerprint: 'tiny',
    data: null,
    options: {},
    step,
    tokens: step,
    next: { epoch: 0, index: step },
    state: { step, tensors: [{ name: 'adapters.parameters', shape: [values.length], values }] },
  });
  if (step === 1) process.send?.('saved');
}
