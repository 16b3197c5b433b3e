export type { AdapterCard, LoadedAdapter, ModelCard } from './models.js';
export type { ServerOptions } from './options.js';
export { createServer, type ListenOptions, type Server } from './server.js';
