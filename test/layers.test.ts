// The include rule: a file includes its own layer or one further down, never up; nobody includes a device's folder.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, it } from 'node:test';

const root = path.join(import.meta.dirname, '..', '..');

interface SourceFile {
  path: string; // from the root, with slashes
  text: string;
}

const mayInclude: Record<string, string[]> = {
  addon: ['engine', 'training', 'model', 'mixture', 'grammar', 'backend', 'core'],
  engine: ['training', 'model', 'mixture', 'grammar', 'backend', 'core'],
  grammar: ['core'],
  training: ['model', 'mixture', 'backend', 'core'],
  model: ['mixture', 'backend', 'core'],
  mixture: ['backend', 'core'],
  backend: ['core'],
  cpu: ['backend', 'core'],
  cuda: ['backend', 'core'],
  core: [],
};

const reserved: { header: RegExp; folder: string }[] = [
  { header: /^(napi|node_api|js_native_api|uv)\b.*\.h$/, folder: 'native/addon/' },
  { header: /^(cuda|cublas|curand|nv)[^/]*\.h$|^cuda\/std\//, folder: 'cuda/' },
  { header: /^hwy\//, folder: 'native/cpu/simd/' },
];

function layerOf(file: string): string | undefined {
  return /^(?:native\/)?([a-z]+)\//.exec(file)?.[1];
}

function includeBreaches(files: SourceFile[]): string[] {
  const breaches: string[] = [];
  for (const file of files) {
    const own = layerOf(file.path) ?? '';
    if (!(own in mayInclude)) breaches.push(`${file.path}: '${own}' is not a layer`);
    for (const [, open, header] of file.text.matchAll(/^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]/gm)) {
      const report = (why: string) => breaches.push(`${file.path} includes ${header}: ${why}`);
      const owner = reserved.find((rule) => rule.header.test(header!));
      if (owner) {
        if (!file.path.startsWith(owner.folder)) report(`only ${owner.folder} may`);
      } else if (open === '"') {
        const layer = layerOf(header!);
        if (header!.includes('..')) report('write it from the include root');
        else if (!layer || !(layer in mayInclude)) report('name the layer first');
        else if (layer !== own && !mayInclude[own]?.includes(layer)) report(`${own} may not see ${layer}`);
      }
    }
  }
  return breaches;
}

function importBreaches(files: SourceFile[]): string[] {
  const breaches: string[] = [];
  for (const file of files) {
    for (const [, specifier] of file.text.matchAll(/(?:from|import)[ (]*['"](\.[^'"]+)['"]/g)) {
      const target = path.posix.join(path.posix.dirname(file.path), specifier!);
      if (!target.startsWith('lib/')) breaches.push(`${file.path} imports ${specifier}: outside lib`);
    }
    // The CommonJS entry is one file beside lib/index.js, so only there import.meta.url means the same in both; the commands
    // are no part of it.
    if (/import\.meta/.test(file.text) && !/^lib\/([^/]+|(bench|cli|server)\/.*)$/.test(file.path)) {
      breaches.push(`${file.path} uses import.meta: only files directly in lib, and those of commands, may`);
    }
  }
  return breaches;
}

function read(folder: string, pattern: RegExp): SourceFile[] {
  return readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => pattern.test(name))
    .map((name) => path.posix.join(folder, name.split(path.sep).join('/')))
    .map((file) => ({ path: file, text: readFileSync(path.join(root, file), 'utf8') }));
}

describe('layers', () => {
  it('native code includes only downwards', () => {
    const files = [...read('native', /\.(h|cc)$/), ...read('cuda', /\.(h|cc|cu|cuh)$/)];
    assert.ok(files.length > 20);
    assert.deepEqual(includeBreaches(files), []);
  });

  it('lib imports only lib', () => {
    const files = read('lib', /\.c?ts$/);
    assert.ok(files.length > 0);
    assert.deepEqual(importBreaches(files), []);
  });

  const planted: [file: string, include: string][] = [
    ['native/core/shape.h', '#include "backend/backend.h"'],
    ['native/backend/registry.cc', '#include "cpu/pool.h"'],
    ['native/backend/registry.cc', '#include "cuda/device.h"'],
    ['native/mixture/mixture.cc', '#include "model/model.h"'],
    ['native/engine/engine.cc', '  #  include "addon/addon.h"'],
    ['native/addon/addon.cc', '#include "cpu/pool.h"'],
    ['native/cpu/router.cc', '#include "mixture/mixture.h"'],
    ['native/cpu/router.cc', '#include "cuda/router.cuh"'],
    ['cuda/router.cu', '#include "cpu/router.h"'],
    ['native/engine/engine.cc', '#include <napi.h>'],
    ['native/core/status.h', '#include <cuda_runtime.h>'],
    ['native/model/model.cc', '#include <hwy/highway.h>'],
    ['native/model/model.cc', '#include "../core/status.h"'],
    ['native/model/model.cc', '#include "decoder.h"'],
    ['native/extra/extra.cc', '#include <string>'],
  ];
  for (const [file, include] of planted) {
    it(`a breach is found: ${file} ${include.trim()}`, () => {
      assert.equal(includeBreaches([{ path: file, text: `#include <vector>\n${include}\n` }]).length, 1);
    });
  }

  it('what the rule allows passes', () => {
    const allowed = [
      {
        path: 'native/addon/addon.cc',
        text: '#include <napi.h>\n#include "addon/args.h"\n#include "engine/engine.h"\n',
      },
      {
        path: 'native/cpu/simd/dot.cc',
        text: '#include <hwy/highway.h>\n#include "cpu/pool.h"\n#include "core/dtype.h"\n',
      },
      {
        path: 'cuda/router.cu',
        text: '#include <cuda_bf16.h>\n#include "cuda/tile.cuh"\n#include "backend/ops/router.h"\n',
      },
      { path: 'native/core/log.h', text: '// #include "engine/engine.h"\n' },
    ];
    assert.deepEqual(includeBreaches(allowed), []);
  });

  it('a planted import breach is found', () => {
    const planted = [
      { path: 'lib/model.ts', text: "import { x } from '../test/helper.js';\n" },
      { path: 'lib/text/a.ts', text: "export * from '../../bench/a.js';\n" },
      { path: 'lib/text/b.ts', text: 'createRequire(import.meta.url);\n' },
    ];
    assert.equal(importBreaches(planted).length, 3);
    assert.deepEqual(importBreaches([{ path: 'lib/text/c.ts', text: "import '../errors.js';\n" }]), []);
  });
});
