// Facts of the package as users get it: what the tarball holds, both entries, and what the binary needs and exports.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';

const root = path.join(import.meta.dirname, '..', '..');
const binary = path.join(root, 'build', 'Release', 'at_moe.node');
const require = createRequire(import.meta.url);
const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));

function toolMissing(name: string): string | false {
  return spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0 ? false : `${name} is not installed`;
}

describe('tarball', () => {
  let files: string[] = [];
  before(() => {
    const options = { cwd: root, encoding: 'utf8', shell: process.platform === 'win32' } as const;
    const output = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], options);
    files = JSON.parse(output)[0].files.map((file: { path: string }) => file.path);
  });

  it('holds what a build from source needs, and what the README links', () => {
    const needed = [
      'CONTRIBUTING.md',
      'CHANGELOG.md',
      'CMakeLists.txt',
      'binding.gyp',
      'scripts/build-native.cjs',
      'LICENSE',
      'cuda/stub.cc',
    ];
    for (const name of needed) assert.ok(files.includes(name), name);
    const sources = readdirSync(path.join(root, 'native'), { recursive: true, encoding: 'utf8' })
      .filter((name) => /\.(h|cc)$/.test(name))
      .map((name) => `native/${name.split(path.sep).join('/')}`);
    const cmake = readdirSync(path.join(root, 'cmake')).map((name) => `cmake/${name}`);
    for (const name of [...sources, ...cmake]) assert.ok(files.includes(name), name);
  });

  it('holds the entries that package.json names', () => {
    const both = [manifest.exports['.'], manifest.exports['./server']];
    const paths = both.flatMap(({ import: esm, require: cjs }) => [esm.types, esm.default, cjs.types, cjs.default]);
    const entries: string[] = [manifest.main, manifest.types, ...paths];
    for (const entry of [...entries, ...Object.values<string>(manifest.bin)]) {
      assert.ok(files.includes(entry.replace('./', '')), entry);
    }
  });

  it('holds no tests, fixtures, build trees or data', () => {
    const unwanted = files.filter((name) =>
      /^(test|bench|examples|data|build|dist\/(test|bench|examples|scripts))\//.test(name),
    );
    assert.deepEqual(unwanted, []);
  });
});

describe('lockfile', () => {
  it('names no registry', () => {
    assert.doesNotMatch(readFileSync(path.join(root, 'package-lock.json'), 'utf8'), /"resolved": "http/);
  });
});

describe('entries', () => {
  // A folder with node_modules/at-moe, as a user's project has it.
  let project = '';
  before(() => {
    project = mkdtempSync(path.join(tmpdir(), 'at-moe-user-'));
    mkdirSync(path.join(project, 'node_modules'));
    symlinkSync(root, path.join(project, 'node_modules', 'at-moe'), 'junction');
  });
  after(() => rmSync(project, { recursive: true }));

  const run = (inputType: 'module' | 'commonjs', source: string) =>
    execFileSync(process.execPath, [`--input-type=${inputType}`, '-e', source], { cwd: project, encoding: 'utf8' });
  const loading = {
    module: (name: string) => `await import('${name}')`,
    commonjs: (name: string) => `require('${name}')`,
  };

  for (const [entry, name] of [
    ['at-moe', 'loadModel'],
    ['at-moe/server', 'createServer'],
  ] as const) {
    it(`import and require of ${entry} give the same API`, () => {
      const namesOf = (inputType: 'module' | 'commonjs'): string[] => {
        const keys = `Object.keys(${loading[inputType](entry)}).filter((name) => name !== 'default').sort()`;
        return JSON.parse(run(inputType, `console.log(JSON.stringify(${keys}))`));
      };
      const names = namesOf('module');
      assert.ok(names.includes(name), names.join());
      assert.deepEqual(namesOf('commonjs'), names);
    });

    it(`loading ${entry} starts no thread`, { skip: process.platform !== 'linux' && '/proc only' }, () => {
      const count = "require('fs').readdirSync('/proc/self/task').length";
      const source = `const before = ${count}; ${loading.commonjs(entry)}; console.log(${count} - before)`;
      assert.equal(run('commonjs', source).trim(), '0');
    });
  }

  it('a server by require serves a model by require', {
    skip: existsSync(binary) ? false : 'the addon is not built',
  }, () => {
    const base = path.join(root, 'test', 'fixtures', 'golden', 'llama-token-dense', 'base');
    const source = `
      const [{ loadModel }, { createServer }] = [require('at-moe'), require('at-moe/server')];
      (async () => {
        const model = await loadModel(${JSON.stringify(base)}, { threads: 1 });
        const server = await createServer(model);
        const url = await server.listen({ port: 0 });
        const ask = (prompt) => fetch(url + '/v1/completions', {
          method: 'POST', headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ model: 'base', prompt, max_tokens: 2, return_token_ids: true }),
        }).then((response) => response.json());
        const [answer, refused] = [await ask([1, 2, 3]), await ask('text')];
        console.log(answer.choices[0].token_ids.length, refused.error.code);
        await server.close();
        await model.dispose();
      })();`;
    assert.equal(run('commonjs', source), '2 unsupported\n');
  });
});

describe('binary', { skip: existsSync(binary) ? false : 'the addon is not built' }, () => {
  const linuxOnly = process.platform !== 'linux' && 'ELF only';

  it('is at most 25 MB', () => {
    assert.ok(statSync(binary).size <= 25e6);
  });

  it('loads without starting a thread', { skip: linuxOnly }, () => {
    const count = "require('fs').readdirSync('/proc/self/task').length";
    const source = `const before = ${count}; require(process.argv[1]); console.log(${count} - before)`;
    assert.equal(execFileSync(process.execPath, ['-e', source, binary], { encoding: 'utf8' }).trim(), '0');
  });

  it('needs nothing but the C library', { skip: linuxOnly || toolMissing('readelf') }, () => {
    const dynamic = execFileSync('readelf', ['-d', binary], { encoding: 'utf8' });
    const needed = [...dynamic.matchAll(/\(NEEDED\).*\[(.+)\]/g)].map(([, name]) => name!);
    const allowed = /^(libc|libm|libpthread|libdl|librt|ld-linux.*|libc\.musl.*)\.so/;
    assert.deepEqual(
      needed.filter((name) => !allowed.test(name)),
      [],
    );
  });

  it('exports only the Node-API entry points', { skip: linuxOnly || toolMissing('nm') }, () => {
    const table = execFileSync('nm', ['-D', '--defined-only', binary], { encoding: 'utf8' });
    const names = table
      .trim()
      .split('\n')
      .map((line) => line.split(' ').at(-1)!.split('@')[0]!);
    assert.deepEqual(
      names.filter((name) => !/^(napi_register_module_v1|node_api_module_get_api_version_v1)$/.test(name)),
      [],
    );
  });

  it('leaves only Node-API and C library symbols open', { skip: linuxOnly || toolMissing('nm') }, () => {
    const table = execFileSync('nm', ['-D', '--undefined-only', binary], { encoding: 'utf8' });
    assert.doesNotMatch(table, /hwy|\b_Z|\bcuda/);
  });

  it('is found by node-gyp-build', () => {
    const resolve: { resolve(folder: string): string } = require('node-gyp-build');
    assert.equal(path.extname(resolve.resolve(root)), '.node');
  });
});
