/** Devices that model tests run on: AT_MOE_TEST_DEVICES, comma-separated, else the CPU alone. */
export const devices: readonly string[] = (process.env.AT_MOE_TEST_DEVICES ?? 'cpu').split(',').filter(Boolean);

/** Those of op tests: a device that computes in several types once for each, as device/type. */
export const opDevices: readonly string[] = devices.flatMap((device) =>
  device === 'cpu' ? [device] : [device, `${device}/bf16`, `${device}/f16`],
);

/** Relative to the largest value, where activations are f32, bf16 or f16. */
export const activationTolerance = (device: string): number => {
  if (device.endsWith('/bf16')) return 2e-2;
  return device.endsWith('/f16') ? 3e-3 : 1e-5;
};
