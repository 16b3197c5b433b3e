import type { RoutingRequest } from './native-mixture-types.js';

export interface BenchRequest {
  kind: 'decode' | 'prefill';
  /** Sequences of a step. */
  rows: number;
  /** decode: keys of each sequence; prefill: tokens of each sequence. */
  context: number;
  steps: number;
  /** What is compared with the base; 'base': the base alone. */
  routing: RoutingRequest;
  /** Base and mixture steps alternate; else all base steps come first. */
  interleave: boolean;
}

/** What was sent to a GPU. A CPU works inside the calls: zeros. */
export interface DeviceWork {
  /** Kernels, those of graphs included. */
  launches: number;
  /** Graphs replayed, and captured. */
  graphs: number;
  captures: number;
  /** Copies to the device, and back. */
  uploads: number;
  downloads: number;
}

/** Seconds per step, measured inside the engine, and the work of all these steps. */
export interface BenchResult {
  base: Float64Array;
  mixture: Float64Array;
  work: DeviceWork;
}

export interface ProbeResult {
  /** Bytes per second. */
  readRate: number;
  /** Fused f32 multiply-adds per second. */
  fmaRate: number;
  /** Multiply-adds per second of one large product with weights stored like the model's, on the CPU. */
  productRate: number;
  /** Bytes per second of mapping the given files and copying them once into fresh memory; 0 without files. */
  copyRate: number;
}
