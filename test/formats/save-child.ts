import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { AtMoeError } from '../../lib/errors.js';
import { replaceFolder } from '../../lib/formats/atomic.js';
import { writeMixture } from '../../lib/formats/mixture-folder.js';
import { tinyBase, tinyMixture } from './support.js';

const [mode, dir] = process.argv.slice(2) as [string, string];

async function saveForever(): Promise<never> {
  for (let fill = 1; ; fill++) {
    await writeMixture(dir, tinyBase, tinyMixture(fill));
    if (fill === 1) process.send?.('saved');
  }
}

async function saveTooMuch(): Promise<void> {
  const write = (folder: string) => writeFile(join(folder, 'file'), Buffer.alloc(1 << 20));
  const outcome = await replaceFolder(dir, ['file'], write).catch((error: AtMoeError) => error);
  const cause = (outcome?.cause ?? {}) as NodeJS.ErrnoException;
  process.stdout.write(JSON.stringify({ code: outcome?.code, cause: cause.code }));
}

await (mode === 'forever' ? saveForever() : saveTooMuch());
