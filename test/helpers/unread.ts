/** Leaves a text of `generate` unread, without return(), and does nothing more: `node unread.js`. */
import { loadModel } from '../../lib/index.js';
import { goldenBase } from './engine.js';

const model = await loadModel(goldenBase, { device: 'cpu', threads: 1 });
const pieces = model.generate([1, 2, 3], { maxTokens: 400, ignoreEos: true });
for (let i = 0; i < 3; i++) await pieces.next();
// Not to be collected: that the process ends is not the collector's doing.
Object.assign(globalThis, { pieces });
