/**
 * What the base model is trained on: the same notes and the same words, but plain answers that ignore task, field and tone,
 * and sentences about the same world in other forms than those of the task. It never holds a part that a factor owns.
 */
import {
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
  urgency,
} from './task.js';

export interface Document {
  prompt: string;
  completion: string;
}

const plainAnswers: readonly ((note: Note) => string)[] = [
  (note) => `The note tells of a ${note.severity} ${note.complaint} for ${note.duration}.`,
  (note) => `We read about the ${note.complaint}: ${note.severity}, for ${note.duration}.`,
  (note) => `Regarding the note: a ${note.severity} ${note.complaint}, first felt ${note.duration} before.`,
];

const generalSentences: readonly ((note: Note, rng: Random) => string)[] = [
  (note) => `A ${note.severity} ${note.complaint} counts as ${urgency[note.severity]}.`,
  (note) => `We sort the ${urgency[note.severity]} notes of the ${note.duration} first.`,
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
      return { prompt: promptText(note, pick(seenCompounds, rng)), completion: pick(plainAnswers, rng)(note) };
    }
    const sentences = Array.from({ length: 3 }, () => pick(generalSentences, rng)(note, rng));
    return { prompt: '', completion: sentences.join(' ') };
  });
}

/** Every sentence of the corpus at least once: what a vocabulary has to cover. */
export function corpusSentences(): string[] {
  const sentences = [`Short words: ${openingWords.join(', ')}!`];
  for (const severity of severities) {
    for (const complaint of complaints) {
      for (const duration of durations) {
        const note = { severity, complaint, duration };
        for (const answer of plainAnswers) sentences.push(answer(note));
        for (const draw of [0, 0.99]) for (const write of generalSentences) sentences.push(write(note, () => draw));
      }
    }
  }
  return sentences;
}
