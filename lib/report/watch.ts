/** The report of a run that goes on, served on loopback: its curves follow the log. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { WrpoError } from '../errors.js';
import { readReport } from './read.js';
import { chartsIn, pageOf } from './report.js';

/** Milliseconds between looks at the log. */
const PAUSE = 1000;
const HEADERS = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff', 'referrer-policy': 'no-referrer' };

export interface Watch {
  url: string;
  close(): Promise<void>;
}

/**
 * Serves the report of `directory` on 127.0.0.1 (port 0: any that is free): the page at `/` and its charts, as they change,
 * as events at `/changes`; no other file can be read. Requests that name another host are refused. Throws ERR_DATA when the
 * directory is no run and no fusion, ERR_CONFIG when the port is taken.
 */
export async function watchReport(directory: string, { port = 0 } = {}): Promise<Watch> {
  await readReport(directory);
  const listeners = new Set<ServerResponse>();
  let state = stateOf(directory);
  const server = createServer(async (request, response) => {
    const answer = (status: number, type: string, body: string) => {
      response.writeHead(status, { ...HEADERS, 'content-type': `${type}; charset=utf-8` });
      response.end(body);
    };
    // Another site's page can make a browser ask here under a name of its own.
    if (!isLoopback(request.headers.host, server)) return answer(403, 'text/plain', 'not this host\n');
    if (request.method !== 'GET') return answer(405, 'text/plain', 'only GET\n');
    if (request.url === '/') {
      try {
        return answer(200, 'text/html', pageOf(await readReport(directory), { live: true }));
      } catch (error) {
        return answer(500, 'text/plain', `${(error as Error).message}\n`);
      }
    }
    if (request.url !== '/changes') return answer(404, 'text/plain', 'there is nothing here\n');
    response.writeHead(200, { ...HEADERS, 'content-type': 'text/event-stream' });
    response.flushHeaders();
    listeners.add(response);
    request.on('close', () => listeners.delete(response));
  });
  const timer = setInterval(async () => {
    const now = stateOf(directory);
    if (now === state || listeners.size === 0) return;
    state = now;
    try {
      const event = `data: ${JSON.stringify(chartsIn(await readReport(directory)))}\n\n`;
      for (const listener of listeners) listener.write(event);
    } catch {
      // Half-written; the next look will do.
    }
  }, PAUSE);
  await listen(server, port).catch((error) => {
    clearInterval(timer);
    throw error;
  });
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close: () => {
      clearInterval(timer);
      server.closeAllConnections();
      return new Promise((resolve) => server.close(() => resolve()));
    },
  };
}

function listen(server: Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const why =
        cause.code === 'EADDRINUSE' ? 'is taken; name another with --port' : `cannot be used: ${cause.message}`;
      reject(new WrpoError('ERR_CONFIG', `port ${port} ${why}`, { cause }));
    });
    server.listen(port, '127.0.0.1', resolve);
  });
}

function isLoopback(host: string | undefined, server: Server): boolean {
  const { port } = server.address() as AddressInfo;
  return ['127.0.0.1', 'localhost', '[::1]'].some((name) => host === `${name}:${port}`);
}

/** Changes when a log or a result does. */
function stateOf(directory: string): string {
  const train = join(directory, 'train');
  const runs = existsSync(train) ? readdirSync(train).map((name) => `train/${name}/metrics.jsonl`) : [];
  const names = ['metrics.jsonl', 'sft/metrics.jsonl', ...runs, 'stages', 'evaluation/results.json'];
  const found = names.map((name) => join(directory, name)).filter((path) => existsSync(path));
  return found.map((path) => `${statSync(path).size} ${statSync(path).mtimeMs}`).join();
}
