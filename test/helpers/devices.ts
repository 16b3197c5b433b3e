/** Devices that op and model tests run on: AT_MOE_TEST_DEVICES, comma-separated, else the CPU alone. */
export const devices: readonly string[] = (process.env.AT_MOE_TEST_DEVICES ?? 'cpu').split(',').filter(Boolean);

/** Activations are bf16 on GPUs and f32 on the CPU: errors relative to the largest value. */
export const activationTolerance = (device: string): number => (device === 'cpu' ? 1e-5 : 2e-2);
