import { z } from 'zod';
import { AtMoeError } from './errors.js';
import { formatIssues } from './formats/json.js';

const topP = z.number().min(0).default(0);
const topK = z.int().min(0).default(0);
/** A stage's temperature: 1e-6 is a choice of one already, and what f32 divides by without overflow. */
export const temperatureSchema = z.number().min(1e-6).max(1e6);
const temperature = temperatureSchema.default(1);
const scale = z.number().min(-1e6).max(1e6);

const schema = z.strictObject({
  scope: z.enum(['token', 'sequence']).default('token'),
  within_group: z.enum(['conditional', 'static']).default('conditional'),
  group_top_k: topK,
  expert_top_k: topK,
  group_top_p: topP,
  expert_top_p: topP,
  group_temperature: temperature,
  expert_temperature: temperature,
  renormalize: z.boolean().default(true),
  general_balance: z
    .union([z.literal('learned'), z.number().min(0).max(1)], { error: 'expected a number from 0 to 1, or "learned"' })
    .optional(),
  output_scale: z
    .union([z.literal('learned'), scale], { error: 'expected a number from -1e6 to 1e6, or "learned"' })
    .default(1),
});

/** How a mixture routes; the keys of `routing` in mixture.json. */
export interface RoutingOptions {
  /** Weights for every token, or one set for the sequence from the mean over its instruction. Default token. */
  scope: 'token' | 'sequence';
  /** Scores inside a group from the input, or one learned score per expert. Default conditional. */
  within_group: 'conditional' | 'static';
  /** Keep the k largest; 0 (default) = all. */
  group_top_k: number;
  expert_top_k: number;
  /** Keep the fewest largest entries whose mass reaches p; 0 (default) or 1 and more = all. */
  group_top_p: number;
  expert_top_p: number;
  /** 1e-6 to 1e6; default 1. */
  group_temperature: number;
  expert_temperature: number;
  /** Rescale what is kept to the sum 1. Default true. */
  renormalize: boolean;
  /** λ, the mixture's share against the general adapter: 0 to 1, or learned per layer (default with one); 1 without one. */
  general_balance: number | 'learned';
  /** ρ, a factor on the mixture; a number (default 1), or learned per layer. */
  output_scale: number | 'learned';
}

function problemError(problem: string, range: boolean, file: string | undefined): Error {
  if (file !== undefined) return new AtMoeError('ERR_AT_MOE_BAD_FILE', `${file}: routing: ${problem}`);
  return new (range ? RangeError : TypeError)(`routing: ${problem}`);
}

/**
 * Checks routing options and fills in the defaults. `hasGeneral`: the mixture has a general adapter. `file`: where they were read.
 * Errors: TypeError or RangeError for an argument; BAD_FILE when `file` is given. Unknown keys are errors.
 */
export function parseRoutingOptions(value: unknown, hasGeneral: boolean, file?: string): RoutingOptions {
  const result = schema.safeParse(value);
  if (!result.success) {
    const isRange = ({ code, path }: z.core.$ZodIssue) => {
      const given = (value as Record<PropertyKey, unknown> | null)?.[path[0] ?? ''];
      return code === 'too_small' || code === 'too_big' || (code === 'invalid_union' && typeof given === 'number');
    };
    throw problemError(formatIssues(result.error), result.error.issues.every(isRange), file);
  }
  const { general_balance: balance = hasGeneral ? 'learned' : 1, ...rest } = result.data;
  if (!hasGeneral && balance !== 1) {
    throw problemError(
      `general_balance ${JSON.stringify(balance)} without a general adapter, it is 1 there`,
      true,
      file,
    );
  }
  return { ...rest, general_balance: balance };
}
