import { z } from 'zod';
import type { GenerateOptions, Prompt } from '../generation-options.js';
import type { RoutingControls } from '../routing-controls.js';
import type { ChatMessage } from '../text/chat-template.js';
import { ApiError, schemaError } from './errors.js';
import { responseFormat } from './response-format.js';

/** A request for text, whichever of the two routes it came by. */
export interface GenerationRequest {
  model: string;
  prompts: Prompt[];
  /** Texts for each prompt. */
  n: number;
  /** Without `n` and `routing`. */
  options: GenerateOptions;
  /** Routing of the request, without `trace`. */
  controls: RoutingControls;
  stream: boolean;
  includeUsage: boolean;
  tokenIds: boolean;
}

export interface RequestLimits {
  /** Most new tokens of a text, and what a chat gets that asks for no number. */
  maxTokens: number;
}

const mostChoices = 128;

/** Elements are looked at only when there are few enough: a megabyte of wrong ones would make as many errors. */
const list = <T extends z.ZodType>(element: T, most: number) => z.array(z.unknown()).max(most).pipe(z.array(element));

/** A parameter of the OpenAI API that is taken only with the value that changes nothing. */
const neutral = (...values: unknown[]) =>
  z
    .unknown()
    .refine(
      (value) => value === null || values.some((one) => JSON.stringify(one) === JSON.stringify(value)),
      'is not supported by this server',
    )
    .optional();

const ignored = z.unknown().optional();

const shared = {
  model: z.string(),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  n: z.int().min(1).max(mostChoices).nullish(),
  max_tokens: z.int().min(0).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().gt(0).max(1).nullish(),
  stop: z.union([z.string().min(1), list(z.string().min(1), 16)]).nullish(),
  seed: z.int().min(0).nullish(),
  response_format: responseFormat.nullish(),

  top_k: z.int().min(0).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repetition_penalty: z.number().min(1e-3).max(1e3).nullish(),
  ignore_eos: z.boolean().nullish(),
  return_token_ids: z.boolean().nullish(),
  priority: z.int().min(-1_000_000).max(1_000_000).nullish(),
  timeout_ms: z
    .int()
    .min(1)
    .max(2 ** 31 - 1)
    .nullish(),
  routing: z
    .looseObject({
      trace: z.boolean().optional(),
      deny: list(z.string(), 1024).optional(),
      allow: list(z.string(), 1024).optional(),
    })
    .nullish(),

  frequency_penalty: neutral(0),
  presence_penalty: neutral(0),
  logit_bias: neutral({}),

  user: ignored,
  metadata: ignored,
  store: ignored,
  service_tier: ignored,
  safety_identifier: ignored,
  prompt_cache_key: ignored,
  prompt_cache_retention: ignored,
  prompt_cache_options: ignored,
};

const completionSchema = z.strictObject({
  ...shared,
  prompt: z
    .unknown()
    .refine(isPrompts, 'must be a text, an array of texts, an array of token ids, or an array of those'),
  logprobs: z
    .int()
    .min(0)
    .refine((count) => count === 0, 'only 0, the log-probabilities of the tokens of the text, is supported')
    .nullish(),
  echo: neutral(false),
  suffix: neutral(''),
  best_of: neutral(1),
});

const textPart = z.strictObject({
  type: z.string().refine((type) => type === 'text', 'only parts of type "text" are supported'),
  text: z.string(),
});
const content = z.union([z.string(), list(textPart, 1024)], {
  error: 'must be a text, or an array of parts of type "text"',
});
/** A call that the model made before: what its chat template writes of it. The arguments are an object there, not its JSON. */
const toolCall = z.strictObject({
  id: z.string(),
  type: z.literal('function'),
  function: z.strictObject({
    name: z.string(),
    arguments: z.string().transform((text, context): unknown => {
      try {
        return JSON.parse(text);
      } catch {
        context.addIssue({ code: 'custom', message: 'must be JSON' });
        return z.NEVER;
      }
    }),
  }),
});
const roles = ['system', 'developer', 'user', 'assistant', 'tool'] as const;
const message = z
  .strictObject({
    role: z.enum(roles, { error: `must be one of ${roles.map((role) => JSON.stringify(role)).join(', ')}` }),
    content: content.nullish(),
    name: z.string().nullish(),
    refusal: neutral(),
    tool_calls: list(toolCall, 128).nullish(),
    tool_call_id: z.string().nullish(),
    function_call: neutral(),
    audio: neutral(),
    annotations: ignored,
  })
  .refine(
    ({ role, content, tool_calls }) => content != null || (role === 'assistant' && (tool_calls ?? []).length > 0),
    {
      path: ['content'],
      error: 'must be a text, or an array of parts of type "text"; only a message with tool_calls has none',
    },
  );

const chatSchema = z.strictObject({
  ...shared,
  messages: list(message, 4096).refine((messages) => messages.length > 0, 'must not be empty'),
  max_completion_tokens: z.int().min(0).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z
    .int()
    .min(0)
    .refine((count) => count === 0, 'only 0 is supported: the log-probability of the token itself')
    .nullish(),
  tools: neutral([]),
  tool_choice: neutral('none', 'auto'),
  parallel_tool_calls: ignored,
  functions: neutral([]),
  function_call: neutral('none', 'auto'),
  modalities: neutral(['text']),
  audio: neutral(),
  prediction: neutral(),
  moderation: neutral(),
  reasoning_effort: neutral('none'),
  verbosity: neutral('medium'),
  web_search_options: neutral(),
});

function isPrompts(value: unknown): boolean {
  if (typeof value === 'string') return true;
  if (!Array.isArray(value) || value.length === 0) return false;
  const isIds = (part: unknown) => Array.isArray(part) && part.every((id) => typeof id === 'number');
  return value.every((part) => typeof part === 'string') || isIds(value) || value.every(isIds);
}

function toPrompts(value: string | string[] | number[] | number[][]): Prompt[] {
  return Array.isArray(value) && typeof value[0] !== 'number' ? (value as Prompt[]) : [value as Prompt];
}

/** As chat templates know it: text contents, and no developer. */
function toMessage({ role, content, name, tool_calls, tool_call_id }: z.infer<typeof message>): ChatMessage {
  return {
    role: role === 'developer' ? 'system' : role,
    content: typeof content === 'string' ? content : (content ?? []).map(({ text }) => text).join(''),
    ...(name && { name }),
    ...(tool_calls && tool_calls.length > 0 && { tool_calls }),
    ...(tool_call_id && { tool_call_id }),
  };
}

function parse<T extends z.ZodType>(schema: T, body: unknown): z.infer<T> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  throw schemaError(result.error);
}

type Shared = z.infer<z.ZodObject<typeof shared>>;

function toRequest(
  body: Shared,
  prompts: Prompt[],
  { param, maxTokens, logProbs }: { param: string; maxTokens: number; logProbs: boolean },
  limits: RequestLimits,
): GenerationRequest {
  const n = body.n ?? 1;
  if (prompts.length * n > mostChoices) {
    throw new ApiError(400, `n: at most ${mostChoices} texts of a request`, { code: 'invalid_value', param: 'n' });
  }
  if (maxTokens > limits.maxTokens) {
    throw new ApiError(400, `${param}: at most ${limits.maxTokens}`, { code: 'invalid_value', param });
  }
  const { trace = false, ...controls } = body.routing ?? {};
  return {
    model: body.model,
    prompts,
    n,
    options: {
      maxTokens,
      temperature: body.temperature ?? 1,
      topP: body.top_p ?? 1,
      topK: body.top_k ?? 0,
      minP: body.min_p ?? 0,
      repetitionPenalty: body.repetition_penalty ?? 1,
      ...(body.seed != null && { seed: body.seed }),
      stop: body.stop ?? [],
      ignoreEos: body.ignore_eos ?? false,
      trace,
      logProbs,
      ...(body.response_format && { responseFormat: body.response_format }),
      ...(body.priority != null && { priority: body.priority }),
      ...(body.timeout_ms != null && { timeoutMs: body.timeout_ms }),
    },
    controls: controls as RoutingControls,
    stream: body.stream ?? false,
    includeUsage: body.stream_options?.include_usage ?? false,
    tokenIds: body.return_token_ids ?? false,
  };
}

/** A body of /v1/completions. @throws ApiError 400 */
export function parseCompletion(body: unknown, limits: RequestLimits): GenerationRequest {
  const checked = parse(completionSchema, body);
  const prompts = toPrompts(checked.prompt as string);
  const maxTokens = checked.max_tokens ?? Math.min(16, limits.maxTokens);
  return toRequest(checked, prompts, { param: 'max_tokens', maxTokens, logProbs: checked.logprobs != null }, limits);
}

/** A body of /v1/chat/completions. @throws ApiError 400 */
export function parseChat(body: unknown, limits: RequestLimits): GenerationRequest {
  const checked = parse(chatSchema, body);
  const param = checked.max_completion_tokens == null ? 'max_tokens' : 'max_completion_tokens';
  if (checked.max_tokens != null && param === 'max_completion_tokens') {
    const message = 'max_tokens: must not be given beside max_completion_tokens';
    throw new ApiError(400, message, { code: 'invalid_value', param: 'max_tokens' });
  }
  const maxTokens = checked[param] ?? limits.maxTokens;
  const prompt = checked.messages.map(toMessage);
  return toRequest(checked, [prompt], { param, maxTokens, logProbs: checked.logprobs ?? false }, limits);
}
