import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import {
  downloadFile,
  getHFHubCachePath,
  HubApiError,
  type ListFileEntry,
  listFiles,
  modelInfo,
} from '@huggingface/hub';
import { AtMoeError } from './errors.js';
import { CachedRepository, commitHash, indexFile } from './hub-cache.js';

export interface DownloadProgress {
  /** The file being fetched. */
  file: string;
  /** Bytes present and needed, over all files of the model. */
  loadedBytes: number;
  totalBytes: number;
}

export interface ResolveOptions {
  /** Branch, tag or commit; default "main". */
  revision?: string;
  /** The Hugging Face cache; default that of HF_HUB_CACHE, HF_HOME or ~/.cache/huggingface/hub. */
  cacheDir?: string;
  /** Use the cache alone; default true where HF_HUB_OFFLINE is set to 1. */
  offline?: boolean;
  /** Access token; default HF_TOKEN. */
  token?: string;
  onProgress?: (progress: DownloadProgress) => void;
  signal?: AbortSignal;
  /** Default HF_ENDPOINT, else the public Hub. */
  hubUrl?: string;
  fetch?: typeof fetch;
}

const repositoryName = /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/;
const textFiles =
  /^((config|generation_config|special_tokens_map|added_tokens|tokenizer[\w.-]*)\.json|chat_template\.(json|jinja))$/;

/**
 * The folder of a model: `pathOrId` itself where such a folder exists, else a snapshot of the repository "owner/name"
 * in the Hugging Face cache, into which the missing ones of config, tokenizer and safetensors files are fetched. Where
 * the Hub cannot be reached, a complete snapshot in the cache serves.
 * @throws AtMoeError ERR_AT_MOE_NOT_FOUND for no such folder, repository, revision or weights; ERR_AT_MOE_OFFLINE when
 * offline and not in the cache; ERR_AT_MOE_IO for a failed request or write; ERR_AT_MOE_BAD_FILE for a damaged
 * download; ERR_AT_MOE_ABORTED.
 */
export async function resolveModel(pathOrId: string, options: ResolveOptions = {}): Promise<string> {
  if (typeof pathOrId !== 'string' || pathOrId === '')
    throw new TypeError('a model is given by a path or "owner/name"');
  if (await isFolder(pathOrId)) return resolve(pathOrId);
  if (!repositoryName.test(pathOrId)) {
    throw new AtMoeError(
      'ERR_AT_MOE_NOT_FOUND',
      `there is no folder ${pathOrId}, and it is no repository "owner/name"`,
    );
  }
  const { revision = 'main', signal, token = process.env.HF_TOKEN } = options;
  if (token && !token.startsWith('hf_')) throw new TypeError('an access token of the Hub starts with "hf_"');
  if (revision.split('/').includes('..')) throw new RangeError('a revision must not hold ".."');
  const repository = new CachedRepository(options.cacheDir ?? getHFHubCachePath(), pathOrId);
  const cached = await repository.completeSnapshot(revision);
  if (cached && commitHash.test(revision)) return cached;
  if (options.offline ?? process.env.HF_HUB_OFFLINE === '1') {
    if (cached) return cached;
    const message = `${pathOrId} at ${revision} is not in ${repository.folder}, and the Hub may not be used offline`;
    throw new AtMoeError('ERR_AT_MOE_OFFLINE', message);
  }
  try {
    return await download(pathOrId, revision, repository, { ...options, token });
  } catch (error) {
    if (signal?.aborted)
      throw new AtMoeError('ERR_AT_MOE_ABORTED', `fetching ${pathOrId} was aborted`, { cause: error });
    if (cached && isUnreachable(error)) return cached;
    throw codedError(error, pathOrId, revision);
  }
}

async function download(
  name: string,
  revision: string,
  repository: CachedRepository,
  options: ResolveOptions,
): Promise<string> {
  const { onProgress, signal, token } = options;
  const fetchFile: typeof fetch = (input, init) => (options.fetch ?? fetch)(input, { ...init, signal });
  const access = {
    hubUrl: options.hubUrl ?? process.env.HF_ENDPOINT,
    fetch: fetchFile,
    ...(token && { accessToken: token }),
  };
  const { sha: commit } = await modelInfo({ ...access, name, revision, additionalFields: ['sha'] });
  if (!commitHash.test(commit)) throw new AtMoeError('ERR_AT_MOE_IO', `the Hub gave no commit for ${name}`);
  const entries: ListFileEntry[] = [];
  for await (const entry of listFiles({ ...access, repo: name, revision: commit })) entries.push(entry);
  const files = neededFiles(entries);
  if (!files.some(({ path }) => path === 'config.json') || !files.some(({ path }) => path.endsWith('.safetensors'))) {
    throw new AtMoeError('ERR_AT_MOE_NOT_FOUND', `${name} has no config.json with safetensors weights`);
  }
  const totalBytes = files.reduce((sum, { size }) => sum + size, 0);
  let loadedBytes = 0;
  for (const entry of files) {
    const { path } = entry;
    const before = loadedBytes;
    if (!(await repository.has(commit, path))) {
      const blob = await downloadFile({ ...access, repo: name, path, revision: commit });
      if (!blob) throw new AtMoeError('ERR_AT_MOE_NOT_FOUND', `${name} has no file ${path}`);
      await repository.store(commit, entry, blob, signal, (bytes) => {
        loadedBytes += bytes;
        onProgress?.({ file: path, loadedBytes, totalBytes });
      });
    }
    loadedBytes = before + entry.size;
    onProgress?.({ file: path, loadedBytes, totalBytes });
  }
  await repository.setRevision(revision, commit);
  return repository.snapshot(commit);
}

/** Config, tokenizer and weights; not the second copy of the weights that some repositories hold under another name. */
function neededFiles(entries: readonly ListFileEntry[]): ListFileEntry[] {
  const files = entries.filter(({ type, path }) => type === 'file' && !path.includes('/') && !path.includes('\\'));
  const standard = files.some(({ path }) => path === indexFile || path === 'model.safetensors');
  const weights = standard ? /^model(-\d+-of-\d+)?\.safetensors$/ : /\.safetensors$/;
  return files.filter(({ path }) => path === indexFile || textFiles.test(path) || weights.test(path));
}

function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (entry) => entry.isDirectory(),
    () => false,
  );
}

/** No answer at all, or one that says that the server is unwell. */
function isUnreachable(error: unknown): boolean {
  if (error instanceof HubApiError) return error.statusCode >= 500 || error.statusCode === 429;
  return error instanceof TypeError || typeof error === 'string';
}

function codedError(error: unknown, name: string, revision: string): AtMoeError {
  if (error instanceof AtMoeError) return error;
  // A stream of the client library fails with a bare string.
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof HubApiError)) {
    return new AtMoeError('ERR_AT_MOE_IO', `cannot fetch ${name}: ${message}`, { cause: error });
  }
  const status = error.statusCode;
  if (status === 404) {
    const text = `the Hub has no model ${name} at revision ${revision}`;
    return new AtMoeError('ERR_AT_MOE_NOT_FOUND', text, { cause: error });
  }
  const hint = status === 401 || status === 403 ? '; a private or gated model needs an access token' : '';
  return new AtMoeError('ERR_AT_MOE_IO', `the Hub refused ${name} with status ${status}${hint}`, { cause: error });
}
