import { readFileSync } from 'node:fs';

/** Most bytes that were ever resident of this process. Linux counts a parent's peak into maxRSS, not into VmHWM. */
export function peakResident(): number {
  try {
    const [, kib] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
    if (kib !== undefined) return Number(kib) * 1024;
  } catch {
    // No Linux.
  }
  return process.resourceUsage().maxRSS * 1024;
}
