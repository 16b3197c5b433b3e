import { z } from 'zod';

const octet = '(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)';
const leapYear = '(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)';
const date =
  '(?:\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)' +
  `|02-(?:0[1-9]|1\\d|2[0-8]))|${leapYear}-02-29)`;
const time = '(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)';
const label = '[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?';
const atom = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+";
const hex = '[0-9a-fA-F]';
const group = `${hex}{1,4}`;
/** All eight groups, or fewer around "::". */
const ipv6 = [
  `(?:${group}:){7}${group}`,
  `(?:${group}:){1,7}:`,
  `:(?::${group}){1,7}`,
  '::',
  ...[1, 2, 3, 4, 5, 6].map((before) => `(?:${group}:){${before}}(?::${group}){1,${7 - before}}`),
].join('|');
const base64 = (letters: string, pairs: string, triples: string) =>
  `^(?:[${letters}]{4})*(?:[${letters}]{2}${pairs}|[${letters}]{3}${triples})?$`;
/** What neither a parser of URLs nor one of international names objects to. */
const urlLabel = '[a-z0-9]+(?:-[a-z0-9]+)*';
const urlLetter = `(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%${hex}{2})`;

/** The formats that strings can be held to, as patterns of whole strings; some leave rare forms out. */

export const formats: Readonly<Record<string, string>> = {
  date: `^${date}$`,
  time: `^${time}$`,
  'date-time': `^${date}T${time}$`,
  duration:
    '^P(?:\\d{1,9}W|(?:\\d{1,9}Y(?:\\d{1,9}M)?(?:\\d{1,9}D)?|\\d{1,9}M(?:\\d{1,9}D)?|\\d{1,9}D)' +
    '(?:T(?:\\d{1,9}H(?:\\d{1,9}M)?(?:\\d{1,9}S)?|\\d{1,9}M(?:\\d{1,9}S)?|\\d{1,9}S))?' +
    '|T(?:\\d{1,9}H(?:\\d{1,9}M)?(?:\\d{1,9}S)?|\\d{1,9}M(?:\\d{1,9}S)?|\\d{1,9}S))$',
  email: `^${atom}(?:\\.${atom})*@${label}(?:\\.${label})+$`,
  hostname: `^${label}(?:\\.${label}){0,2}$`,
  ipv4: `^${octet}(?:\\.${octet}){3}$`,
  ipv6: `^(?:${ipv6})$`,
  uuid: `^${hex}{8}-${hex}{4}-${hex}{4}-${hex}{4}-${hex}{12}$`,
  uri:
    `^https?://(?:${urlLabel}\\.)+[a-z]{2,}(?::[1-9]\\d{0,3})?(?:/${urlLetter}*)*` +
    `(?:\\?(?:${urlLetter}|[/?])*)?(?:#(?:${urlLetter}|[/?])*)?$`,
  base64: base64('a-zA-Z0-9+/', '==', '='),
  base64url: base64('a-zA-Z0-9_-', '', ''),
};

const { duration, emoji, hostname } = z.core.regexes;

/** Patterns with look-ahead or classes by property that zod writes, each with one whose texts all match it. */
export const knownPatterns: ReadonlyMap<string, string> = new Map([
  [duration.source, formats.duration as string],
  [hostname.source, formats.hostname as string],
  [emoji().source, '^[\\u{1F600}-\\u{1F64F}]+$'],
]);
