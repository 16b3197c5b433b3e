/**
 * What the base model is trained on: the same notes and the same words, but plain answers that ignore task, field and tone,
 * and running text without a prompt. The running text holds the parts of answers one at a time and out of order, so the base
 * knows their forms; nothing tells it when to use one, and no document holds a whole answer.
 */
import {
  allParts,
  type Compound,
  causes,
  complaints,
  drawNote,
  durations,
  type Note,
  pick,
  promptText,
  type Random,
  random,
  remedies,
  seenCompounds,
  severities,
  shuffled,
  urgency,
} from './task.js';

export interface Document {
  prompt: string;
  completion: string;
}

const plainAnswers: readonly ((note: Note, compound: Compound) => string)[] = [
  (note) => `The note tells of a ${note.severity} ${note.complaint} for ${note.duration}.`,
  (note) => `We read about the ${note.complaint}: ${note.severity}, for ${note.duration}.`,
  (note) => `Regarding the note: a ${note.severity} ${note.complaint}, first felt ${note.duration} before.`,
  (note, { function: task, domain, style }) =>
    `The task is ${task}, the field is ${domain} and the tone is ${style}, for a ${note.complaint}.`,
];

const generalSentences: readonly ((note: Note, rng: Random) => string)[] = [
  (note) => `A ${note.severity} ${note.complaint} counts as ${urgency[note.complaint]}.`,
  (note) => `We sort the ${urgency[note.complaint]} notes on a ${note.complaint} first, as we read on.`,
  (note) => `The ${note.complaint} often has ${causes[note.complaint]} as a cause.`,
  (note) => `With ${causes[note.complaint]} a ${note.complaint} is likely, for ${note.duration} or so.`,
  (note) => `For a ${note.complaint} people try ${remedies[note.complaint]}.`,
  (note) => `We look after ${note.duration} of ${remedies[note.complaint]} at the ${note.complaint} again.`,
  (note) => `The pulse of the heart: a desk counts, and the ${note.complaint} is on the files.`,
  (note) => `A nurse checks the skin on both arms for a ${note.complaint}.`,
  (note) => `Before the tests of the nerve, two notes follow about the ${note.complaint}.`,
  (note) => `The breaths of the lung are slow, then come a team and your ${note.complaint}.`,
  (note) => `In the letter of a reader, a ${note.complaint} is first.`,
  (note) => `Dear is a word for a reader with a ${note.complaint}.`,
  (note) => `Hello is a word for a friend with a ${note.complaint}.`,
  (note) => `Sorry, a short letter regarding your ${note.complaint} is on file, dear friend, and we are sorry.`,
  (_, rng) => `Short words: ${pick(openingWords, rng)}, ${pick(openingWords, rng)}, ${pick(openingWords, rng)}!`,
];

/** What the tags are about: without a use of their own, the base would not tell one tag from another, and no router could. */
const tagSentences = [
  'In triage we sort the notes.',
  'A diagnosis is a likely cause.',
  'With advice we try to look again.',
  'The word cardiology is for the heart and the pulse.',
  'The word dermatology is for the skin of both arms.',
  'The word neurology is for the tests of a nerve.',
  'The word pneumology is for slow breaths and the lung.',
  'A brief letter is short.',
  'A formal letter is for a dear reader.',
  'A friendly letter is for a friend, with a hello.',
];

const openingWords = ['In', 'Dear', 'Hello', 'Sort', 'Likely', 'Try', 'The', 'A', 'Two', 'Slow', 'Sorry', 'We', 'For'];

/**
 * `count` documents by seed: two thirds are prompts (of seen compounds only) with a plain answer,
 * one third is running text about one note. Both reward looking words up in what came before.
 */
export function baseCorpus(count: number, seed: number): Document[] {
  const rng = random(seed);
  return Array.from({ length: count }, () => {
    const note = drawNote(rng);
    if (rng() < 2 / 3) {
      const compound = pick(seenCompounds, rng);
      return { prompt: promptText(note, compound), completion: pick(plainAnswers, rng)(note, compound) };
    }
    const parts = allParts(note);
    const general = pick(generalSentences, rng)(note, rng);
    const sentences = shuffled([pick(parts, rng), general, pick(parts, rng), pick(tagSentences, rng)], rng);
    return { prompt: '', completion: sentences.join(' ') };
  });
}

/** Every sentence of the corpus at least once: what a vocabulary has to cover. */
export function corpusSentences(): string[] {
  const sentences = [`Short words: ${openingWords.join(', ')}!`, ...tagSentences];
  for (const severity of severities) {
    for (const complaint of complaints) {
      for (const duration of durations) {
        const note = { severity, complaint, duration };
        for (const answer of plainAnswers) for (const compound of seenCompounds) sentences.push(answer(note, compound));
        for (const draw of [0, 0.99]) for (const write of generalSentences) sentences.push(write(note, () => draw));
      }
    }
  }
  return sentences;
}
