import { availableParallelism } from 'node:os';
import { z } from 'zod';

// Beyond it threads only take turns.
const most = 4 * availableParallelism();

export const threadsSchema = z.int().min(1).max(most, `at most ${most}, 4 for each logical processor`);
