import { run } from '../helpers/ops.js';
import { close, doubles, onDevices, Random, sameBits } from './support.js';

const names = ['parameter', 'moment1', 'moment2'] as const;

onDevices('adamw: ten steps against torch.optim.AdamW in double', (device) => {
  const random = new Random(1);
  const options = { learningRate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.1, gradientScale: 0.3 };
  for (const count of [1, 17, 20002, 0]) {
    let state = { parameter: random.array(count), moment1: new Float32Array(count), moment2: new Float32Array(count) };
    const p = doubles(state.parameter);
    const m = new Float64Array(count);
    const v = new Float64Array(count);
    for (let step = 1; step <= 10; ++step) {
      const gradient = random.array(count, 0.1);
      const args = { ...options, ...state, gradient, step };
      const out = run('adamw', device, args) as typeof state;
      const two = run('adamw', device, args, 2) as typeof state;
      for (const name of names) sameBits(two[name], out[name], name);
      state = out;
      for (let i = 0; i < count; ++i) {
        const g = gradient[i]! * options.gradientScale;
        p[i]! *= 1 - options.learningRate * options.weightDecay;
        m[i] = options.beta1 * m[i]! + (1 - options.beta1) * g;
        v[i] = options.beta2 * v[i]! + (1 - options.beta2) * g * g;
        const denominator = Math.sqrt(v[i]! / (1 - options.beta2 ** step)) + options.epsilon;
        p[i]! -= (options.learningRate * (m[i]! / (1 - options.beta1 ** step))) / denominator;
      }
    }
    close(state.parameter, p, 2e-6, 'parameter');
    close(state.moment1, m, 2e-6, 'moment1');
    close(state.moment2, v, 2e-6, 'moment2', 1e-9);
  }
});

onDevices('squared_norm: in double, the same on two threads, zero for nothing', (device) => {
  const values = new Random(2).array(100003);
  const expected = values.reduce((sum, v) => sum + v * v, 0);
  const one = run('squaredNorm', device, { values }).norm;
  close([one / expected], [1], 1e-12, 'norm');
  close([run('squaredNorm', device, { values }, 2).norm], [one], 0, 'two threads');
  close([run('squaredNorm', device, { values: new Float32Array(0) }).norm], [0], 0, 'nothing');
});
