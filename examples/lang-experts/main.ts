/**
 * Nine language experts in three families over stories260K, a real 260K-parameter Llama: PEFT's experts are read and
 * checked against PEFT's own losses, experts are trained here from scratch, and a grouped router is trained over PEFT's.
 *
 *   npm run build && node dist/examples/lang-experts/main.js [--data DIR] [--only matrix,experts,routers] [--threads N]
 *     [--epochs 12] [--seeds 3] [--router-epochs 8] [--seed 0]
 *
 * `--data` is a folder with models/stories260K, adapters/lang-experts and tasks/tatoeba.jsonl. `--seeds` is how often the
 * experts are trained, `--seed` the router's.
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { loadModel } from '../../lib/index.js';
import { readSentences, type Split } from './data.js';
import { checkMatrix, readReference, trainExperts } from './experts.js';
import { compareRouters } from './routers.js';

const { values: flags } = parseArgs({
  options: {
    data: { type: 'string', default: '../shared/data' },
    only: { type: 'string', default: 'matrix,experts,routers' },
    threads: { type: 'string' },
    epochs: { type: 'string', default: '12' },
    seeds: { type: 'string', default: '3' },
    'router-epochs': { type: 'string', default: '8' },
    seed: { type: 'string', default: '0' },
  },
});
const parts = flags.only.split(',');
const adapters = join(flags.data, 'adapters/lang-experts');
const model = await loadModel(join(flags.data, 'models/stories260K'), {
  ...(flags.threads && { threads: Number(flags.threads) }),
});
const sentences = await readSentences(flags.data, model);
const of = (wanted: Split) => sentences.filter(({ split }) => split === wanted);
const splits = { train: of('train'), valid: of('valid'), test: of('test') };
const reference = await readReference(adapters);
if (parts.includes('matrix')) await checkMatrix(model, adapters, reference, splits.test);
if (parts.includes('experts')) {
  const options = { epochs: Number(flags.epochs), seeds: Number(flags.seeds) };
  await trainExperts(model, reference, splits.train, splits.test, options);
}
if (parts.includes('routers')) {
  await compareRouters(model, adapters, splits, {
    epochs: Number(flags['router-epochs']),
    seed: Number(flags.seed),
  });
}
await model.dispose();
