import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { AtMoeError } from '../../lib/errors.js';
import { replaceFolder } from '../../lib/formats/atomic.js';
import { writeMixture } from '../../lib/formats/mixture-folder.js';
import { writeSafetensors } from '../../lib/formats/safetensors.js';
import { tinyBase, tinyMixture } from './support.js';

const [mode, dir, source] = process.argv.slice(2) as [string, string, string];

async function saveForever(): Promise<never> {
  for (let fill = 1; ; fill++) {
    await writeMixture(dir, tinyBase, tinyMixture(fill));
    if (fill === 1) process.send?.('saved');
  }
}

const tooMuch = 1 << 20;
const writers: Record<string, (folder: string) => Promise<void>> = {
  write: (folder) => writeFile(join(folder, 'file'), Buffer.alloc(tooMuch)),
  copy: (folder) =>
    writeSafetensors(join(folder, 'file'), [
      { name: 'a', dtype: 'f32', shape: [tooMuch / 4], file: source, offset: 0 },
    ]),
};

async function saveTooMuch(): Promise<void> {
  const outcome = await replaceFolder(dir, ['file'], writers[mode] as never).catch((error: AtMoeError) => error);
  const cause = (outcome?.cause ?? {}) as NodeJS.ErrnoException;
  process.stdout.write(JSON.stringify({ code: outcome?.code, cause: cause.code, message: outcome?.message }));
}

await (mode === 'forever' ? saveForever() : saveTooMuch());
