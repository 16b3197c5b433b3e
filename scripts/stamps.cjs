// Is a product older than its inputs? Each product has a stamp under build/stamps with the fingerprint of the inputs it
// was made from (path, size and time of every file), so a removed file counts as a change too.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');

function* walk(relative) {
  const absolute = path.join(root, relative);
  const stat = fs.statSync(absolute, { throwIfNoEntry: false });
  if (!stat) return;
  if (!stat.isDirectory()) {
    yield `${relative} ${stat.size} ${stat.mtimeMs}`;
    return;
  }
  for (const name of fs.readdirSync(absolute).sort()) {
    if (name !== 'fixtures') yield* walk(path.join(relative, name));
  }
}

function fingerprint(inputs, extra = '') {
  const hash = crypto.createHash('sha256').update(extra);
  for (const input of inputs) for (const line of walk(input)) hash.update(`${line}\n`);
  return hash.digest('hex');
}

const stampFile = (product) => path.join(root, 'build', 'stamps', product);

function isCurrent(product, print) {
  const file = stampFile(product);
  return fs.existsSync(file) && fs.readFileSync(file, 'utf8') === print;
}

function writeStamp(product, print) {
  const file = stampFile(product);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, print);
}

module.exports = { root, fingerprint, isCurrent, writeStamp };
