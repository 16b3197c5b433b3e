import type { RoutingRequest } from './native-mixture-types.js';

export interface BenchRequest {
  kind: 'decode' | 'prefill';
  /** Sequences of a step. */
  rows: number;
  /** decode: keys of each sequence; prefill: tokens of each sequence. */
  context: number;
  /** Of each routing. */
  steps: number;
  /** What is compared, over the same rows. */
  routings: readonly RoutingRequest[];
  /** In turns, which begin with the first routing, and where each other one follows each as often; else one by one. */
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

/** Seconds of each step by routing, measured inside the engine, and the work of all these steps. */
export interface BenchResult {
  seconds: Float64Array[];
  work: DeviceWork;
}

export interface ProbeResult {
  /** Bytes per second. */
  readRate: number;
  /** Fused f32 multiply-adds per second. */
  fmaRate: number;
  /** Multiply-adds per second of one large product with weights stored like the model's, on the CPU. */
  productRate: number;
}

/** A copy of files into fresh memory. */
export interface FileCopy {
  bytes: number;
  seconds: number;
  /** Of the whole process meanwhile. */
  processorSeconds: number;
}
