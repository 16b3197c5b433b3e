import { parseArgs } from 'node:util';
import { z } from 'zod';
import { caseName, findCases } from '../golden/case.js';
import { runCase } from '../golden/run.js';

export const goldenUsage = `at-moe golden [--device auto|cpu|cuda|emulated] [--weights f32|f16|bf16] DIR...

Compares the engine with golden cases. DIR is a case folder, or a folder of case folders.
--weights: what base and adapters are held as; default as they are stored.
Prints one line of JSON per check and one at the end; the exit code is 1 when a check fails or none ran.
`;

const deviceSchema = z.enum(['auto', 'cpu', 'cuda', 'emulated']);
const weightsSchema = z.enum(['f32', 'f16', 'bf16']).optional();

/** Resolves with the exit code: 0 when all checks passed. Wrong arguments throw TypeError. */
export async function golden(argv: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      device: { type: 'string', default: 'auto' },
      weights: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(goldenUsage);
    return 0;
  }
  const device = deviceSchema.safeParse(values.device);
  if (!device.success) throw new TypeError(`--device ${values.device}: auto, cpu, cuda or emulated`);
  const weights = weightsSchema.safeParse(values.weights);
  if (!weights.success) throw new TypeError(`--weights ${values.weights}: f32, f16 or bf16`);
  if (positionals.length === 0) throw new TypeError('a folder of cases is missing');
  const print = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);
  const cases = await findCases(positionals);
  const total = { cases: cases.length, checks: 0, failed: 0 };
  for (const dir of cases) {
    const name = caseName(dir);
    try {
      for await (const result of runCase(dir, device.data, weights.data)) {
        total.checks++;
        if (!result.pass) total.failed++;
        print({ case: name, ...result });
      }
    } catch (error) {
      total.checks++;
      total.failed++;
      print({ case: name, check: 'runs', error: (error as Error).message, tolerance: 0, pass: false });
    }
  }
  print(total);
  return total.checks > 0 && total.failed === 0 ? 0 : 1;
}
