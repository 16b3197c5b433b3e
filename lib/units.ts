/** 1536 -> "1.50 KiB". */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const unit = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** unit;
  return unit === 0 ? `${bytes} B` : `${value.toFixed(2)} ${units[unit]}`;
}

/** 12345678 -> "12.3 M". */
export function formatCount(count: number): string {
  const steps = [
    ['G', 1e9],
    ['M', 1e6],
    ['k', 1e3],
  ] as const;
  const step = steps.find(([, size]) => count >= size);
  return step ? `${(count / step[1]).toPrecision(3)} ${step[0]}` : String(count);
}

/** 3725 -> "1:02:05". */
export function formatSeconds(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (value: number) => String(value).padStart(2, '0');
  const minutes = `${Math.floor(whole / 60) % 60}:${two(whole % 60)}`;
  return whole < 3600 ? minutes : `${Math.floor(whole / 3600)}:${minutes.padStart(5, '0')}`;
}
