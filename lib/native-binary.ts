import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AtMoeError } from './errors.js';

/** From dist/lib, where this file and the CommonJS bundle lie. */
const packageRoot = fileURLToPath(new URL('../..', import.meta.url));

function libcName(): string {
  if (process.platform !== 'linux') return 'none';
  const { header } = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  return header.glibcVersionRuntime ? `glibc ${header.glibcVersionRuntime}` : 'musl';
}

function found(folder: string): string {
  if (!existsSync(folder)) return `${folder}: no such folder`;
  const names = readdirSync(folder).filter((name) => name.endsWith('.node'));
  return `${folder}: ${names.length > 0 ? names.join(', ') : 'no .node file'}`;
}

function missing(cause: unknown): AtMoeError {
  const root = process.env.AT_MOE_PREBUILD ?? packageRoot;
  const lines = [
    `the native part of at-moe cannot be loaded: ${cause instanceof Error ? cause.message.trim() : String(cause)}`,
    `  platform ${process.platform}, arch ${process.arch}, libc ${libcName()}, node ${process.version}`,
    '  looked in',
    `    ${found(join(root, 'build', 'Release'))}`,
    `    ${found(join(root, 'prebuilds', `${process.platform}-${process.arch}`))}`,
    '  to use a prebuilt binary:  npm install at-moe --force',
    `  to build it here (CMake, a C++20 compiler):  cd ${packageRoot} && npm run build:native`,
  ];
  return new AtMoeError('ERR_AT_MOE_NATIVE_MISSING', lines.join('\n'), { cause });
}

/** The addon of this platform; throws ERR_AT_MOE_NATIVE_MISSING with what was looked for and how to get one. */
export function loadBinary(): unknown {
  const require = createRequire(import.meta.url);
  try {
    return require('node-gyp-build')(packageRoot);
  } catch (error) {
    throw missing(error);
  }
}
