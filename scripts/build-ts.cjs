// Compiles TypeScript into dist/, and makes the CommonJS entries, dist/lib/index.cjs and dist/lib/server/index.cjs, and
// their types, one .d.cts beside each .d.ts. Output whose source is gone is removed, so a deleted test is not run again.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const dist = path.join(root, 'dist');

function files(folder) {
  if (!fs.existsSync(folder)) return [];
  return fs
    .readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name));
}

function compile() {
  const tsc = path.join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const { status } = spawnSync(process.execPath, [tsc, '-p', root], { cwd: root, stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}

function prune() {
  for (const file of files(dist)) {
    const stem = path.relative(dist, file).replace(/(\.d)?\.c?[jt]s$/, '');
    if (!fs.existsSync(path.join(root, `${stem}.ts`))) fs.rmSync(file);
  }
}

function commonjsEntries() {
  const entries = [path.join(dist, 'lib'), path.join(dist, 'lib', 'server')].filter((folder) =>
    fs.existsSync(path.join(folder, 'index.js')),
  );
  for (const folder of entries) bundle(folder);
  for (const file of files(path.join(dist, 'lib'))) {
    if (!file.endsWith('.d.ts')) continue;
    const text = fs.readFileSync(file, 'utf8').replace(/((?:from|import) ?\(?['"]\.[^'"]*)\.js(['"])/g, '$1.cjs$2');
    fs.writeFileSync(file.replace(/\.ts$/, '.cts'), text);
  }
}

// A bundle lies beside its index.js: import.meta.url means the same in both for the files directly in lib/. That of the
// server holds no loading of models: its model comes from the main entry.
function bundle(folder) {
  require('esbuild').buildSync({
    entryPoints: [path.join(folder, 'index.js')],
    outfile: path.join(folder, 'index.cjs'),
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    packages: 'external',
    define: { 'import.meta.url': 'importMetaUrl' },
    banner: { js: "'use strict';\nconst importMetaUrl = require('node:url').pathToFileURL(__filename).href;" },
    logLevel: 'warning',
  });
}

compile();
prune();
commonjsEntries();
