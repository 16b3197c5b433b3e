/**
 * The one way to native code. The addon is loaded at the first use; loading it starts no thread and touches no device.
 * Native code never calls into the caller's code: results settle promises, events come through one dispatcher.
 */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { existsSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import nodeGypBuild from 'node-gyp-build';
import type { ModelDescriptor } from './descriptors.js';
import { AtMoeError, type AtMoeErrorCode } from './errors.js';
import type {
  BenchRequest,
  BenchResult,
  DeviceDescription,
  EngineOptions,
  GenerateRequest,
  JobOptions,
  LoadOptions,
  MemoryStatement,
  MergeRequest,
  MicroBatch,
  MicroBatchResult,
  MixtureDescriptor,
  MixtureHandle,
  MixtureInfo,
  ModelInfo,
  NamedTensor,
  NativeEngine,
  ProbeResult,
  ScoreRequest,
  SequenceEvent,
  TrainerState,
  TrainOptions,
} from './native-types.js';
