import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));

export interface CliResult {
  status: number | null;
  stdout: string;
  stderr: string;
}

export interface CliOptions {
  input?: string;
  /** Sent SIGINT when stderr or stdout first matches. */
  interruptAt?: RegExp;
}

/** Runs `at-moe` in a process of its own. */
export async function cli(args: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  const child = spawn(process.execPath, [main, ...args], { stdio: 'pipe' });
  const result: CliResult = { status: null, stdout: '', stderr: '' };
  let interrupted = false;
  const hear = (name: 'stdout' | 'stderr') => (chunk: string) => {
    result[name] += chunk;
    if (interrupted || !options.interruptAt?.test(result[name])) return;
    interrupted = true;
    child.kill('SIGINT');
  };
  child.stdout.setEncoding('utf8').on('data', hear('stdout'));
  child.stderr.setEncoding('utf8').on('data', hear('stderr'));
  child.stdin.on('error', () => undefined);
  child.stdin.end(options.input ?? '');
  result.status = await new Promise((resolve, reject) => child.on('error', reject).on('close', resolve));
  return result;
}
