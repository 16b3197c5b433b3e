import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import fc from 'fast-check';
import { type JsonlLine, maxLineBytes, readJsonl } from '../../lib/data/jsonl.js';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'at-moe-jsonl-'));
});
after(() => rm(folder, { recursive: true }));

async function read(content: string | Uint8Array): Promise<JsonlLine[]> {
  const file = join(folder, 'rows.jsonl');
  await writeFile(file, content);
  return collect(readJsonl(file));
}

async function collect<T>(source: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of source) all.push(item);
  return all;
}

test('byte order mark, CRLF, blank lines, no final line feed', async () => {
  const lines = await read('\uFEFF{"a":1}\r\n\r\n   \n{"a":2}\n[3]');
  assert.deepEqual(lines, [
    { line: 1, value: { a: 1 } },
    { line: 4, value: { a: 2 } },
    { line: 5, value: [3] },
  ]);
  assert.deepEqual(await read(''), []);
});

test('values survive the round trip, across chunk borders too', async () => {
  const value = fc.record({ text: fc.string({ unit: 'grapheme', maxLength: 40 }), n: fc.nat() });
  await fc.assert(
    fc.asyncProperty(fc.array(value, { maxLength: 20 }), async (values) => {
      const lines = await read(values.map((v) => `${JSON.stringify(v)}\n`).join(''));
      assert.deepEqual(
        lines.map((l) => l.value),
        JSON.parse(JSON.stringify(values)),
      );
    }),
    { numRuns: 30 },
  );
  const long = { text: 'é€😀'.repeat(50_000) };
  assert.deepEqual(
    (await read(`1\n${JSON.stringify(long)}\n2`)).map((l) => l.value),
    [1, long, 2],
  );
});

test('errors name file and line', async () => {
  const bad = (content: string | Uint8Array, message: RegExp) =>
    assert.rejects(read(content), { code: 'ERR_AT_MOE_BAD_DATA', message });
  await bad('{}\n{"a":\n', /rows\.jsonl:2: not JSON/);
  await bad(Buffer.from([0x7b, 0x7d, 10, 0x22, 0xff, 0x22]), /rows\.jsonl:2: not valid UTF-8/);
  await bad(Buffer.alloc(maxLineBytes + 1, 0x20), /rows\.jsonl:1: the line is longer/);
  await assert.rejects(collect(readJsonl(join(folder, 'none.jsonl'))), { code: 'ERR_AT_MOE_NOT_FOUND' });
  await assert.rejects(collect(readJsonl(folder)), { code: 'ERR_AT_MOE_IO' });
});
