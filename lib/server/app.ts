import { randomUUID } from 'node:crypto';
import type { Socket } from 'node:net';
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest, LogController } from 'fastify';
import { bearerCheck } from './auth.js';
import { checkShape, decodeBody } from './body.js';
import { ApiError, logFault, shuttingDown, toApiError } from './errors.js';
import type { Metrics } from './metrics.js';
import type { OpenRequests } from './open-requests.js';
import type { CheckedServerOptions } from './options.js';

const methods = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'] as const;

/** Without a key. */
const publicRoutes = ['/healthz'];

export type Handler = (request: FastifyRequest, reply: FastifyReply) => Promise<unknown>;
export type Routes = Record<string, Partial<Record<(typeof methods)[number], Handler>>>;

interface Parts {
  open: OpenRequests;
  metrics: Metrics;
  isClosing(): boolean;
}

/** Answers bytes that are no request the parser takes. */
function refuseConnection(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy();
  const [status, reason, message] =
    error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
      ? [408, 'Request Timeout', 'the request did not come in time']
      : error.code === 'HPE_HEADER_OVERFLOW'
        ? [431, 'Request Header Fields Too Large', 'the header is too large']
        : [400, 'Bad Request', 'malformed HTTP'];
  const body = JSON.stringify(new ApiError(status as number, message as string).body);
  const head = `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close`;
  socket.end(`HTTP/1.1 ${status} ${reason}\r\n${head}\r\n\r\n${body}`);
}

function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const known = toApiError(error);
  logFault(request, known);
  void reply.code(known.status).headers(known.headers).send(known.body);
}

const noRoute = ({ method, url }: FastifyRequest) =>
  new ApiError(404, `no route ${method} ${url.split('?')[0]}`, { code: 'unknown_url' });

/** A client's request id goes on when it is fit for a header and a log. */
function requestId(given: string | string[] | undefined): string {
  return typeof given === 'string' && /^[\w.:-]{1,128}$/.test(given) ? given : randomUUID();
}

/** A fastify instance that reads bodies, words errors, asks for keys and keeps account of requests, without routes. */
export function createApp(options: CheckedServerOptions, parts: Parts): FastifyInstance {
  const app = fastify({
    logger: options.logger ?? false,
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: options.bodyLimit,
    requestTimeout: options.requestTimeoutMs,
    http: {
      headersTimeout: options.requestTimeoutMs,
      connectionsCheckingInterval: Math.min(5_000, options.requestTimeoutMs),
    },
    // Both are the business of Server.close().
    return503OnClosing: false,
    forceCloseConnections: false,
    genReqId: ({ headers }) => requestId(headers['x-request-id']),
    clientErrorHandler: refuseConnection,
    frameworkErrors: sendError,
  });
  readBodies(app);
  account(app, options, parts);
  app.setErrorHandler(sendError);
  app.setNotFoundHandler((request) => {
    throw noRoute(request);
  });
  return app;
}

function readBodies(app: FastifyInstance): void {
  const parseJson = app.getDefaultJsonParser('error', 'error');
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, bytes, done) => {
    // The OpenAI clients name the type of a body that a DELETE does not have.
    if ((bytes as Buffer).length === 0 && request.method === 'DELETE') return done(null);
    const finish = (error: Error | null, body?: unknown) => {
      if (error) return done(notParsed(bytes as Buffer, error));
      try {
        checkShape(body);
      } catch (cause) {
        return done(cause as Error);
      }
      done(null, body);
    };
    try {
      parseJson(request, decodeBody(bytes as Buffer), finish);
    } catch (error) {
      done(error as Error);
    }
  });
}

/** Why the parser refused a body: no JSON, or keys that reach for a prototype. */
function notParsed(bytes: Buffer, cause: Error): ApiError {
  let message = 'the body has a key "__proto__", or "prototype" in "constructor", which are not taken';
  try {
    JSON.parse(bytes.toString());
  } catch {
    message = 'the body is not valid JSON';
  }
  return new ApiError(400, message, { code: 'invalid_json', cause });
}

function account(app: FastifyInstance, options: CheckedServerOptions, { open, metrics, isClosing }: Parts): void {
  const checkKey = options.apiKeys.length > 0 ? bearerCheck(options.apiKeys) : undefined;
  app.addHook('onRequest', async (request, reply) => {
    const started = performance.now();
    const route = request.routeOptions.url ?? 'unknown';
    void reply.header('x-request-id', request.id);
    open.add(request.raw, reply.raw, (left, fields) => {
      const status = left ? 499 : reply.raw.statusCode;
      const ms = performance.now() - started;
      metrics.ended(route, status, ms);
      request.log.info({ method: request.method, route, status, ms: Math.round(ms), ...fields }, 'request');
    });
    if (isClosing() && !publicRoutes.includes(route)) throw shuttingDown();
    if (!publicRoutes.includes(route)) checkKey?.(request.headers.authorization);
    // Before its body is looked at.
    if (request.is404) throw noRoute(request);
    checkEncoding(request.headers['content-encoding']);
  });
}

/** @throws ApiError 415 for a body that is compressed. */
function checkEncoding(encoding: string | undefined): void {
  if (encoding === undefined || encoding.toLowerCase() === 'identity') return;
  const message = `content-encoding ${JSON.stringify(encoding)} is not taken: send the body as it is`;
  throw new ApiError(415, message, { code: 'unsupported_encoding' });
}

/** Adds routes; their other methods are refused with 405. */
export function addRoutes(app: FastifyInstance, routes: Routes): void {
  for (const [url, handlers] of Object.entries(routes)) {
    const allow = Object.keys(handlers).join(', ');
    // Before the body is looked at.
    const refuse = async () => {
      throw new ApiError(405, `${url} takes ${allow}`, { code: 'method_not_allowed', headers: { allow } });
    };
    for (const method of methods) {
      const handler = handlers[method];
      app.route({ method, url, handler: handler ?? refuse, ...(!handler && { onRequest: refuse }) });
    }
  }
}
