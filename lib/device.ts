import { z } from 'zod';

/**
 * 'auto': a GPU when there is one, else the CPU. 'cuda': the first GPU that can be used; 'cuda:1': the second that
 * `devices()` lists. 'emulated': the kernels of the GPU on the CPU, in builds for tests.
 */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | 'emulated';

/** What helps and messages name; `unlistedDevice` is taken beside it. */
export const listedDevices = ['auto', 'cpu', 'cuda'] as const;
export const unlistedDevice = /^(emulated|cuda:\d{1,4})$/;

export const isDevice = (value: unknown): value is Device =>
  listedDevices.some((device) => device === value) || (typeof value === 'string' && unlistedDevice.test(value));

export const deviceSchema = z.custom<Device>(isDevice, 'expected auto, cpu, cuda or cuda:N');
