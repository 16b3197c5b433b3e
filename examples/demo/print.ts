/** What the demo prints. */
import type { Mixture, RoutingControls, RoutingTrace, TrainingProgress } from '../../lib/index.js';
import { maxTokens, type Success } from './evaluate.js';
import { type Example, factors } from './task.js';

/** One line that shows training under way: overwritten on a terminal, now and then on its own line elsewhere. */
export class StepLine {
  readonly #on: boolean;
  #last = 0;

  constructor(on: boolean) {
    this.#on = on;
  }

  say(text: string): void {
    if (this.#on) console.log(text);
  }

  show(label: string, { step, totalSteps, loss, tokensPerSecond, etaSeconds }: TrainingProgress): void {
    if (!this.#on) return;
    const text = `  ${label.padEnd(36)} step ${step}/${totalSteps}  loss ${loss.toFixed(3)}  ${tokensPerSecond.toFixed(0)} tokens/s  ${(etaSeconds ?? 0).toFixed(0)} s to go`;
    if (process.stdout.isTTY) process.stdout.write(`\r\x1b[K${text}`);
    else if (step === totalSteps || performance.now() - this.#last > 10_000) {
      this.#last = performance.now();
      console.log(text);
    }
  }

  clear(): void {
    if (this.#on && process.stdout.isTTY) process.stdout.write('\r\x1b[K');
  }
}

const percent = (share: number) => `${Math.round(share * 100)} %`.padStart(9);

export class ResultTable {
  readonly #json: boolean;

  constructor(json: boolean) {
    this.#json = json;
  }

  head(): void {
    if (this.#json) return;
    console.log(`${''.padEnd(46)}${['all three', ...factors].map((title) => title.padStart(10)).join('')}`);
  }

  add(label: string, { joint, factors: parts }: Success): void {
    if (this.#json) console.log(JSON.stringify({ label, joint, ...parts }));
    else
      console.log(
        `${label.padEnd(46)}${[joint, ...factors.map((factor) => parts[factor])].map((share) => ` ${percent(share)}`).join('')}`,
      );
  }
}

function meanWeights(trace: RoutingTrace): number[] {
  return trace.experts.map(
    (_, e) => trace.layers.reduce((sum, layer) => sum + (layer.expertWeights[e] as number), 0) / trace.layers.length,
  );
}

/** The expert weights of two prompts, side by side, means over the layers. */
export async function printRouting(mixture: Mixture, first: Example, second: Example): Promise<void> {
  const traces = [await mixture.explain(first.prompt), await mixture.explain(second.prompt)] as const;
  const [left, right] = traces.map(meanWeights) as [number[], number[]];
  console.log('\nHow two prompts are routed (expert weight, mean over the layers)');
  console.log(`  A  ${first.prompt.trim()}\n  B  ${second.prompt.trim()}\n`);
  const bar = (weight: number) => '█'.repeat(Math.round(weight * 40)).padEnd(16);
  for (const [e, path] of traces[0].experts.entries()) {
    const mark = (example: Example) => (example.experts.includes(path) ? '*' : ' ');
    const cell = (weights: number[], example: Example) =>
      `${(weights[e] as number).toFixed(2)}${mark(example)} ${bar(weights[e] as number)}`;
    console.log(`  ${path.padEnd(24)} A ${cell(left, first)}  B ${cell(right, second)}`);
  }
  console.log('  * named by the prompt');
}

/** One prompt as routed, with a style forced, and with its domain expert denied. */
export async function printControls(mixture: Mixture, example: Example): Promise<void> {
  const [, domain, style] = example.experts as [string, string, string];
  const other = mixture.groups
    .find(({ name }) => name === 'style')
    ?.experts.find((name) => `style/${name}` !== style) as string;
  const cases: [string, RoutingControls | undefined][] = [
    ['as routed', undefined],
    [`style/${other} forced`, { weight: { [`style/${other}`]: 1 } }],
    [`${domain} denied`, { deny: [domain] }],
  ];
  console.log(`\nWhat controls do\n  prompt: ${example.prompt.trim()}`);
  for (const [label, routing] of cases) {
    const { text } = await mixture.complete(example.prompt, { maxTokens, ...(routing && { routing }) });
    console.log(`  ${label.padEnd(28)} ${text.trim()}`);
  }
}
