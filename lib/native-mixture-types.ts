/** Mixtures and their routing, as native code takes them (lib/native-types.ts). */
import type { AdapterModule, TensorSource } from './descriptors.js';

export interface RouterOptions {
  withinGroup: 'conditional' | 'static';
  groupTopK: number;
  expertTopK: number;
  groupTopP: number;
  expertTopP: number;
  groupTemperature: number;
  expertTemperature: number;
  renormalize: boolean;
}

/** Per request; arrays are as long as the mixture has groups or experts (in group order). Absent = no such control. */
export interface RouterControls {
  groupBias?: Float32Array;
  expertBias?: Float32Array;
  /** 1 = denied. */
  groupDenied?: Uint8Array;
  expertDenied?: Uint8Array;
  /** NaN where nothing is set. */
  groupWeight?: Float32Array;
  expertWeight?: Float32Array;
}

export interface MixtureDescriptor {
  /** Number of experts of each group. */
  groups: number[];
  /** Modules of every expert, in group order. */
  experts: AdapterModule[][];
  general?: AdapterModule[];
  scope: 'token' | 'sequence';
  options: RouterOptions;
  /** λ: a constant, or learned per layer (mixture-spec: general_balance). 1 without a general adapter. */
  balance: number | 'learned';
  /** ρ: a constant, or learned per layer (output_scale). */
  scale: number | 'learned';
  /** By their names in router.safetensors; absent tensors start at zero. No `router`: explicit weights only (an adapter alone). */
  router?: TensorSource[];
}

/** A handle of a mixture in an engine. Requests in flight keep theirs after `releaseMixture`. */
export type MixtureHandle = number;

export interface MixtureInfo {
  mixture: MixtureHandle;
  /** Of its experts and routers, while they are on the device. */
  deviceBytes: number;
  /** Floats of a routing record: 2G + 3E + 1. */
  recordWidth: number;
}

export type RoutingRequest =
  | { kind: 'base' }
  /** By the mixture's router; `options` replace the mixture's own as a whole. */
  | {
      kind: 'mixture';
      mixture: MixtureHandle;
      options?: RouterOptions;
      controls?: RouterControls;
      /** Tests, token scope: [layers, rows, G + E] 1 for what the rows keep, instead of top-k and top-p. */
      selection?: Uint8Array;
    }
  /** The same weights in every layer, one per expert. `alone`: λ = ρ = 1 and no general adapter. */
  | { kind: 'fixed'; mixture: MixtureHandle; weights: Float32Array; alone: boolean };
