const months = 'January February March April May June July August September October November December'.split(' ');
const days = 'Sunday Monday Tuesday Wednesday Thursday Friday Saturday'.split(' ');

/**
 * Python's strftime in the C locale and local time, for the codes that chat templates use; other codes stay as they
 * are.
 */
export function strftime(date: Date, format: string): string {
  const pad = (value: number, width = 2): string => String(value).padStart(width, '0');
  const month = months[date.getMonth()] as string;
  const day = days[date.getDay()] as string;
  const hour12 = date.getHours() % 12 || 12;
  const startOfYear = Date.UTC(date.getFullYear(), 0, 1);
  const dayOfYear = (Date.UTC(date.getFullYear(), date.getMonth(), date.getDate()) - startOfYear) / 86_400_000 + 1;
  const codes: Record<string, string> = {
    Y: String(date.getFullYear()),
    y: pad(date.getFullYear() % 100),
    m: pad(date.getMonth() + 1),
    d: pad(date.getDate()),
    e: String(date.getDate()).padStart(2, ' '),
    B: month,
    b: month.slice(0, 3),
    h: month.slice(0, 3),
    A: day,
    a: day.slice(0, 3),
    H: pad(date.getHours()),
    I: pad(hour12),
    p: date.getHours() < 12 ? 'AM' : 'PM',
    M: pad(date.getMinutes()),
    S: pad(date.getSeconds()),
    j: pad(dayOfYear, 3),
    '%': '%',
  };
  codes.F = `${codes.Y}-${codes.m}-${codes.d}`;
  codes.T = `${codes.H}:${codes.M}:${codes.S}`;
  // "%-d" is glibc's way to leave out the padding.
  return format.replace(/%(-?)([a-zA-Z%])/g, (whole, bare: string, code: string) => {
    const text = codes[code];
    if (text === undefined) return whole;
    return bare ? text.replace(/^[0 ]+(?=.)/, '') : text;
  });
}
