/** A hub of the test's own: the few routes of its API that are used, over a repository held in memory. */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export const COMMIT = '0123456789abcdef0123456789abcdef01234567';
const PAGE = 3;

export class TestHub {
  /** `datasets/owner/name` or `owner/name` to its files. */
  readonly repositories = new Map<string, Map<string, Buffer>>();
  readonly tokens = new Map<string, string>();
  /** What was asked: method, path and range. */
  readonly requests: string[] = [];
  /** Paths that are cut off after so many bytes, as often as there are numbers. */
  readonly cuts = new Map<string, number[]>();
  /** Answers every request with this status. */
  status?: number;
  /** Where the bytes of files lie, when not here. */
  store?: TestHub;
  readonly tokensSeen = new Set<string>();
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
    server.on('request', (request, response) => this.#answer(request, response));
  }

  static async start(): Promise<TestHub> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new TestHub(server);
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  add(name: string, files: Record<string, string | Buffer>, token?: string): void {
    this.repositories.set(name, new Map(Object.entries(files).map(([path, text]) => [path, Buffer.from(text)])));
    if (token) this.tokens.set(name, token);
  }

  #answer(request: IncomingMessage, response: ServerResponse): unknown {
    const url = new URL(request.url!, this.url);
    const path = decodeURIComponent(url.pathname);
    const { range, authorization } = request.headers;
    this.requests.push(`${path}${range ? ` ${range}` : ''}`);
    const fail = (status: number, error: string) => {
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify({ error }));
    };
    if (this.status) return fail(this.status, 'out of order');
    const api = /^\/api\/(models|datasets)\/([^/]+\/[^/]+)\/(revision|tree)\/([^/]+)$/.exec(path);
    const file = /^\/(datasets\/)?([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(path);
    const name = api ? `${api[1] === 'datasets' ? 'datasets/' : ''}${api[2]}` : `${file?.[1] ?? ''}${file?.[2]}`;
    const files = this.repositories.get(name);
    const given = authorization?.replace('Bearer ', '');
    if (given) this.tokensSeen.add(given);
    if (!files) return given ? fail(404, 'Repository not found') : fail(401, 'Invalid username or password.');
    const token = this.tokens.get(name);
    if (token && given !== token) return fail(given ? 403 : 401, 'Access to it is restricted');
    const revision = api?.[4] ?? file?.[3];
    if (!['main', 'v1', COMMIT].includes(revision!)) return fail(404, `Invalid rev id: ${revision}`);
    if (api?.[3] === 'revision') return response.end(JSON.stringify({ id: name, sha: COMMIT }));
    if (api) {
      const entries = [...files].map(([path, bytes]) => ({
        type: 'file',
        path,
        size: bytes.length,
        oid: oidOf(bytes),
      }));
      const from = Number(url.searchParams.get('cursor') ?? 0);
      url.searchParams.set('cursor', String(from + PAGE));
      if (from + PAGE < entries.length) response.setHeader('link', `<${url}>; rel="next"`);
      response.setHeader('content-type', 'application/json');
      return response.end(
        JSON.stringify([{ type: 'directory', path: 'data', size: 0, oid: 'd' }, ...entries.slice(from, from + PAGE)]),
      );
    }
    const bytes = files.get(file![4]!);
    if (!bytes) return fail(404, 'Entry not found');
    if (this.store) return response.writeHead(302, { location: `${this.store.url}${url.pathname}` }).end();
    const start = Number(/^bytes=(\d+)-/.exec(range ?? '')?.[1] ?? 0);
    const body = bytes.subarray(start);
    response.writeHead(start > 0 ? 206 : 200, {
      'content-length': body.length,
      'x-repo-commit': COMMIT,
      etag: `"${oidOf(bytes)}"`,
    });
    const cut = this.cuts.get(file![4]!)?.shift();
    if (cut === undefined) return response.end(body);
    response.write(body.subarray(0, cut), () => setTimeout(() => response.destroy(), 20));
  }
}

export const oidOf = (bytes: Buffer): string => createHash('sha1').update(bytes).digest('hex');
