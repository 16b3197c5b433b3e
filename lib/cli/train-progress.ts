import { SingleBar } from 'cli-progress';
import type { TrainingProgress } from '../training/run.js';
import { formatSeconds } from '../units.js';

/** Shows a training run as it goes: steps, then the end. */
export interface ProgressView {
  show(progress: TrainingProgress): void;
  stop(): void;
}

const lossNames: Record<string, string> = {
  languageModel: 'lm',
  baseKl: 'kl',
  groupBalance: 'group balance',
  expertBalance: 'expert balance',
  zLoss: 'z',
  entropy: 'entropy',
  supervision: 'supervision',
};

/** The parts of the loss; nothing where the language model's is the only one. */
function partsOf({ losses }: TrainingProgress): string {
  const parts = Object.entries(losses).filter(([, value]) => value !== undefined);
  if (parts.length === 1) return '';
  return ` (${parts.map(([name, value]) => `${lossNames[name]} ${value.toFixed(3)}`).join(', ')})`;
}

function evaluationOf({ evaluation }: TrainingProgress): string {
  return evaluation ? `eval loss ${evaluation.loss.toFixed(4)}, perplexity ${evaluation.perplexity.toFixed(3)}` : '';
}

function paceOf({ learningRate, tokensPerSecond }: TrainingProgress): string {
  return `lr ${learningRate.toExponential(2)}  ${tokensPerSecond.toFixed(0)} tok/s`;
}

function etaOf({ etaSeconds }: TrainingProgress): string {
  return etaSeconds === null ? '' : `ETA ${formatSeconds(etaSeconds)}`;
}

class Bar implements ProgressView {
  readonly #bar = new SingleBar({
    // A narrow terminal cuts the end off.
    format: '[{bar}] {value}/{total} {remaining}  {state}{evaluation}{parts}',
    barsize: 16,
    stream: process.stderr,
    hideCursor: true,
    linewrap: true,
    stopOnComplete: false,
    gracefulExit: false,
  });

  show(progress: TrainingProgress): void {
    const { step, totalSteps, evaluation } = progress;
    const payload = {
      remaining: etaOf(progress),
      state: `loss ${progress.loss.toFixed(4)}  ${paceOf(progress)}`,
      parts: partsOf(progress),
      ...(evaluation && { evaluation: `  eval ${evaluation.loss.toFixed(4)}` }),
    };
    if (!this.#bar.isActive) this.#bar.start(totalSteps ?? step, step, { evaluation: '', ...payload });
    if (totalSteps === null) this.#bar.setTotal(step);
    this.#bar.update(step, payload);
  }

  stop(): void {
    this.#bar.stop();
  }
}

const lineEveryMs = 5000;

/** The first step, then one line every few seconds, every evaluation, and the last step. */
class Lines implements ProgressView {
  #next = 0;
  #unsaid: TrainingProgress | undefined;

  show(progress: TrainingProgress): void {
    this.#unsaid = progress;
    if (performance.now() < this.#next && !progress.evaluation) return;
    this.#next = performance.now() + lineEveryMs;
    this.#say(progress);
  }

  stop(): void {
    if (this.#unsaid) this.#say(this.#unsaid);
  }

  #say(progress: TrainingProgress): void {
    this.#unsaid = undefined;
    const { step, totalSteps, loss } = progress;
    const parts = [
      `step ${step}/${totalSteps ?? '?'}`,
      `loss ${loss.toFixed(4)}${partsOf(progress)}`,
      paceOf(progress),
      etaOf(progress),
      evaluationOf(progress),
    ];
    process.stderr.write(`${parts.filter((part) => part !== '').join('  ')}\n`);
  }
}

class JsonLines implements ProgressView {
  show(progress: TrainingProgress): void {
    process.stdout.write(`${JSON.stringify(progress)}\n`);
  }

  stop(): void {}
}

export function progressView(json: boolean): ProgressView {
  if (json) return new JsonLines();
  return process.stderr.isTTY ? new Bar() : new Lines();
}
