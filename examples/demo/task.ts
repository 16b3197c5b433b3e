/**
 * The demo's task family: an answer to a fictional note is made of three parts, and each part is owned by one factor.
 * Style owns the opening, function the middle, domain the end. Everything is generated from the templates below.
 */

export const notice = 'Fictional texts made from templates to show how experts compose. Not medical advice.';

export const factors = ['function', 'domain', 'style'] as const;
export type Factor = (typeof factors)[number];

export const levels = {
  function: ['triage', 'diagnosis', 'advice'],
  domain: ['cardiology', 'dermatology', 'neurology', 'pneumology'],
  style: ['brief', 'formal', 'friendly'],
} as const satisfies Record<Factor, readonly string[]>;

export type FunctionLevel = (typeof levels.function)[number];
export type DomainLevel = (typeof levels.domain)[number];
export type StyleLevel = (typeof levels.style)[number];

export interface Compound {
  function: FunctionLevel;
  domain: DomainLevel;
  style: StyleLevel;
}

/** Start and end in characters of the completion. The spans follow one another and cover it whole. */
export type Span = [start: number, end: number];

export interface Example {
  prompt: string;
  completion: string;
  spans: Record<Factor, Span>;
  groups: Factor[];
  experts: string[];
}

export interface Note {
  severity: Severity;
  complaint: Complaint;
  duration: Duration;
}

export const severities = ['mild', 'clear', 'strong'] as const;
export const durations = ['two days', 'one week', 'three weeks', 'one month'] as const;
export const complaints = ['cough', 'headache', 'rash', 'dizziness', 'fever', 'backache', 'tremor', 'itching'] as const;
export type Severity = (typeof severities)[number];
export type Duration = (typeof durations)[number];
export type Complaint = (typeof complaints)[number];

export const urgency: Record<Complaint, string> = {
  cough: 'routine',
  headache: 'soon',
  rash: 'routine',
  dizziness: 'urgent',
  fever: 'soon',
  backache: 'routine',
  tremor: 'urgent',
  itching: 'soon',
};

export const causes: Record<Complaint, string> = {
  cough: 'dry air',
  headache: 'bright screens',
  rash: 'new soap',
  dizziness: 'skipped meals',
  fever: 'late nights',
  backache: 'heavy bags',
  tremor: 'cold rooms',
  itching: 'rough wool',
};

export const remedies: Record<Complaint, string> = {
  cough: 'warm tea',
  headache: 'dim light',
  rash: 'plain water',
  dizziness: 'regular meals',
  fever: 'early sleep',
  backache: 'light bags',
  tremor: 'thick gloves',
  itching: 'soft cotton',
};

const functionPart: Record<FunctionLevel, (note: Note) => string> = {
  triage: (note) => `Sort the ${note.complaint} as ${urgency[note.complaint]}, then read on.`,
  diagnosis: (note) => `Likely cause of the ${note.complaint}: ${causes[note.complaint]}.`,
  advice: (note) => `Try ${remedies[note.complaint]} and look at the ${note.complaint} again.`,
};

const domainPart: Record<DomainLevel, (note: Note) => string> = {
  cardiology: (note) => `The heart desk counts the pulse and files the ${note.complaint}.`,
  dermatology: (note) => `A skin nurse checks both arms and files the ${note.complaint}.`,
  neurology: (note) => `Two nerve tests follow before we file the ${note.complaint}.`,
  pneumology: (note) => `Slow breaths come first, then the lung team files the ${note.complaint}.`,
};

const stylePart: Record<StyleLevel, (note: Note) => string> = {
  brief: () => 'In short:',
  formal: (note) => `Dear reader, regarding your ${note.complaint}:`,
  friendly: (note) => `Hello friend, sorry about the ${note.complaint}!`,
};

/** The answer's parts for a note, level by level: what each expert has to say. */
export function allParts(note: Note): string[] {
  return [stylePart, functionPart, domainPart].flatMap((parts) => Object.values(parts).map((write) => write(note)));
}

export type Random = () => number;

/** Mulberry32: a uniform draw from [0, 1) per call, the same sequence for the same seed on every machine. */
export function random(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

export function pick<T>(values: readonly T[], rng: Random): T {
  return values[Math.floor(rng() * values.length)] as T;
}

export function drawNote(rng: Random): Note {
  return { severity: pick(severities, rng), complaint: pick(complaints, rng), duration: pick(durations, rng) };
}

export function promptText(note: Note, { function: task, domain, style }: Compound): string {
  const words = `${note.severity} ${note.complaint} for ${note.duration}`;
  return `note: ${words} | task: ${task} | field: ${domain} | tone: ${style}\n`;
}

/** The example of a compound for a given note. */
export function render(compound: Compound, note: Note): Example {
  const style = stylePart[compound.style](note);
  const body = `${style} ${functionPart[compound.function](note)}`;
  const completion = `${body} ${domainPart[compound.domain](note)}`;
  return {
    prompt: promptText(note, compound),
    completion,
    spans: {
      style: [0, style.length],
      function: [style.length, body.length],
      domain: [body.length, completion.length],
    },
    groups: [...factors],
    experts: factors.map((factor) => `${factor}/${compound[factor]}`),
  };
}

export function compound(fn: FunctionLevel, domain: DomainLevel, style: StyleLevel, rng: Random): Example {
  return render({ function: fn, domain, style }, drawNote(rng));
}

export const compounds: readonly Compound[] = levels.function.flatMap((fn) =>
  levels.domain.flatMap((domain) => levels.style.map((style) => ({ function: fn, domain, style }))),
);

/** One compound in three is held out, on the diagonals of the cube, so that every pair of levels stays among the seen ones. */
export function isUnseen({ function: fn, domain, style }: Compound): boolean {
  const sum = levels.function.indexOf(fn) + levels.domain.indexOf(domain) + levels.style.indexOf(style);
  return sum % 3 === 0;
}

export const seenCompounds: readonly Compound[] = compounds.filter((c) => !isUnseen(c));
export const unseenCompounds: readonly Compound[] = compounds.filter(isUnseen);

/** `count` examples that go through the given compounds in turn, in a new random order each round. */
export function examplesOf(among: readonly Compound[], count: number, seed: number): Example[] {
  const rng = random(seed);
  const examples: Example[] = [];
  while (examples.length < count) {
    for (const next of shuffled(among, rng)) examples.push(render(next, drawNote(rng)));
  }
  return examples.slice(0, count);
}

/** Training data of one expert: its level is fixed, the other factors vary over the seen compounds. Train on `spans[factor]`. */
export function expertExamples(factor: Factor, level: string, count: number, seed: number): Example[] {
  return examplesOf(
    seenCompounds.filter((c) => c[factor] === level),
    count,
    seed,
  );
}

export function routerExamples(count: number, seed: number): Example[] {
  return examplesOf(seenCompounds, count, seed);
}

/** Per factor: does the text hold the part that the factor owns, word for word? */
export function factorsRight(text: string, example: Example): Record<Factor, boolean> {
  const right = (factor: Factor) => text.includes(example.completion.slice(...example.spans[factor]).trim());
  return { function: right('function'), domain: right('domain'), style: right('style') };
}

/** All parts right, in order and with nothing between them. */
export function allRight(text: string, example: Example): boolean {
  return text.startsWith(example.completion);
}

export function shuffled<T>(values: readonly T[], rng: Random): T[] {
  const result = [...values];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(rng() * (i + 1));
    [result[i], result[j]] = [result[j] as T, result[i] as T];
  }
  return result;
}
