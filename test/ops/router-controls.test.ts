import assert from 'node:assert/strict';
import { type Controls, type Options, route } from './reference/router.js';
import { compare, routeRows } from './router-support.js';
import { onDevices, Random } from './support.js';

const gap = Number.NaN;
const controlCases: [name: string, controls: Controls, options: Options][] = [
  ['bias', { groupBias: [1, -2, 0], expertBias: [0, 3, 0, 0, -1, 0] }, {}],
  ['bias before the temperature', { groupBias: [1, -2, 0] }, { groupTemperature: 0.5 }],
  ['a denied expert', { expertDenied: [0, 1, 0, 0, 0, 0] }, {}],
  ['a denied group', { groupDenied: [0, 1, 0] }, { groupTopK: 2 }],
  ['a group whose experts are all denied', { expertDenied: [1, 1, 0, 0, 0, 0] }, {}],
  ['the only expert of a group denied', { expertDenied: [0, 0, 0, 0, 0, 1] }, { expertTopK: 1 }],
  ['one set group', { groupSet: [0.25, gap, gap] }, {}],
  ['a set group that was not selected', { groupSet: [gap, gap, 0.6] }, { groupTopK: 1 }],
  ['set groups that leave nothing', { groupSet: [0.5, gap, 0.5] }, {}],
  ['set groups below 1 and no other kept', { groupSet: [0.1, 0.2, gap], groupDenied: [0, 0, 1] }, {}],
  ['a set expert', { expertSet: [gap, gap, gap, 0.9, gap, gap] }, { expertTopK: 1 }],
  ['a set expert of a group of one', { expertSet: [gap, gap, gap, gap, gap, 0.3] }, {}],
  ['zero set', { groupSet: [0, gap, gap], expertSet: [0, gap, gap, gap, gap, gap] }, {}],
  ['set without rescaling', { groupSet: [0.5, gap, gap] }, { groupTopK: 2, renormalize: false }],
  [
    'static: scores see the group softmax before weight',
    { groupSet: [0.9, gap, gap], groupBias: [0, 1, 0] },
    { conditional: false },
  ],
  [
    'all of it',
    { groupBias: [0, 1, 0], groupSet: [gap, 0.2, gap], expertDenied: [0, 0, 1, 0, 0, 0] },
    { groupTopP: 0.6, expertTopK: 2 },
  ],
];

onDevices('router: controls', (device) => {
  const groupStart = [0, 2, 5, 6];
  const random = new Random(6);
  for (const [name, controls, options] of controlCases) {
    const logits = random.array(11 * 9, 1.5);
    const score = random.array(6);
    routeRows(device, { groupStart }, logits, options, controls, { score }).forEach((routed, n) => {
      const expected = route({ groupStart }, logits.subarray(n * 9, n * 9 + 9), options, controls, { score });
      compare(routed, expected, `${name}, row ${n}`);
    });
  }
});

onDevices('router: impossible controls are routing errors', (device) => {
  const logits = new Float32Array(5);
  const wrong: Controls[] = [
    { expertDenied: [1, 1, 1] },
    { groupDenied: [1, 1] },
    { groupDenied: [1, 0], expertDenied: [0, 0, 1] },
    { groupSet: [0.8, 0.3] },
    { expertSet: [0.8, 0.3, gap] },
    { groupSet: [-0.1, gap] },
    { groupSet: [0.5, gap], groupDenied: [1, 0] },
  ];
  for (const controls of wrong) {
    assert.throws(() => routeRows(device, { groupStart: [0, 2, 3] }, logits, {}, controls), {
      code: 'ERR_AT_MOE_ROUTING',
    });
  }
});
