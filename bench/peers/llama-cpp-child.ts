// One measurement of node-llama-cpp in a process of its own: node llama-cpp-child.js PACKAGE JSON, where PACKAGE is the
// file of an installed node-llama-cpp. Prints one line of JSON: seconds of the prompt and of each token after it.
import { pathToFileURL } from 'node:url';

export interface PeerRequest {
  model: string;
  adapters: string[];
  threads: number;
  prompt: number;
  tokens: number;
}

export interface PeerTimes {
  promptSeconds: number;
  tokenSeconds: number[];
}

const [entry = '', request = '{}'] = process.argv.slice(2);
const { model: modelPath, adapters, threads, prompt, tokens } = JSON.parse(request) as PeerRequest;
const { getLlama } = await import(pathToFileURL(entry).href);
const llama = await getLlama({ gpu: false, build: 'never', progressLogs: false, maxThreads: threads });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
  contextSize: prompt + tokens + 8,
  batchSize: prompt,
  threads,
  ...(adapters.length > 0 && {
    lora: { adapters: adapters.map((filePath) => ({ filePath, scale: 1 / adapters.length })) },
  }),
});
const sequence = context.getSequence();
const ids = Array.from({ length: prompt }, (_, i) => 300 + (i % 1000));
// The first pass touches the weights; the second is timed.
await sequence.evaluateWithoutGeneratingNewTokens(ids);
await sequence.clearHistory();
const start = performance.now();
await sequence.evaluateWithoutGeneratingNewTokens(ids);
const times: PeerTimes = { promptSeconds: (performance.now() - start) / 1000, tokenSeconds: [] };
let last = performance.now();
for await (const _ of sequence.evaluate([400], { temperature: 0, yieldEogToken: true })) {
  const now = performance.now();
  times.tokenSeconds.push((now - last) / 1000);
  last = now;
  if (times.tokenSeconds.length === tokens) break;
}
process.stdout.write(`${JSON.stringify(times)}\n`);
process.exit(0);
