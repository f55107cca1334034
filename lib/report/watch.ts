/** A report over HTTP on loopback that is made anew whenever its directory has news. */
import { type Dirent, readdirSync, statSync } from 'node:fs';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { WrpoError } from '../errors.js';
import { makeReport, pageOf, type Report } from './report.js';

const HOST = '127.0.0.1';
const MILLISECONDS_BETWEEN_LOOKS = 1000;
/** Of directories: a fusion's runs lie two below it. */
const DEPTH = 2;
/** What a report is made of; models and checkpoints change without news for it. */
const TELLING =
  /^(metrics\.jsonl|trainer_state\.json|config\.yaml|selection\.yaml|results\.json|answers\.jsonl|logps\.jsonl)$/;

export interface Watch {
  url: string;
  close(): Promise<void>;
}

export interface WatchOptions {
  /** Default: one that is free. */
  port?: number;
  /** Told why the report is not made anew; the last one stays. */
  onError?: (error: Error) => void;
}

/**
 * Serves the report of a directory, and nothing else, until it is closed. Throws as `writeReport`, and ERR_CONFIG when the
 * port cannot be had.
 */
export async function watch(directory: string, { port = 0, onError = () => {} }: WatchOptions = {}): Promise<Watch> {
  let state = stateOf(directory);
  let report = await makeReport(directory);
  const readers = new Set<ServerResponse>();
  const server = createServer((request, response) => {
    const { method, url, headers } = request;
    const { port: own } = server.address() as AddressInfo;
    // A page elsewhere may let its own name lead here; its requests carry that name.
    if (headers.host !== `${HOST}:${own}` && headers.host !== `localhost:${own}`) return refuse(response, 403);
    if (method !== 'GET' && method !== 'HEAD') return refuse(response, 405);
    if (url === '/') return send(response, pageOf(report, { live: true }), method);
    if (url !== '/events' || method === 'HEAD') return refuse(response, 404);
    response.writeHead(200, { ...HEADERS, 'Content-Type': 'text/event-stream' });
    response.write(eventOf(report)); // it may be newer than the page
    readers.add(response);
    response.on('close', () => readers.delete(response));
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const why = cause.code === 'EADDRINUSE' ? 'another program uses it' : cause.message;
      reject(new WrpoError('ERR_CONFIG', `port ${port} cannot be had: ${why}`, { cause }));
    });
    server.listen(port, HOST, resolve);
  });

  let isClosed = false;
  let timer: NodeJS.Timeout;
  const look = async () => {
    const now = stateOf(directory);
    if (now !== state) {
      state = now;
      try {
        report = await makeReport(directory);
        for (const reader of readers) reader.write(eventOf(report));
      } catch (error) {
        onError(error as Error);
      }
    }
    if (!isClosed) timer = setTimeout(look, MILLISECONDS_BETWEEN_LOOKS);
  };
  timer = setTimeout(look, MILLISECONDS_BETWEEN_LOOKS);
  return {
    url: `http://${HOST}:${(server.address() as AddressInfo).port}/`,
    close() {
      isClosed = true;
      clearTimeout(timer);
      for (const reader of readers) reader.end();
      return new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      });
    },
  };
}

const HEADERS = { 'Cache-Control': 'no-store', 'X-Content-Type-Options': 'nosniff' };

function send(response: ServerResponse, page: string, method: string): void {
  response.writeHead(200, { ...HEADERS, 'Content-Type': 'text/html; charset=utf-8' });
  response.end(method === 'HEAD' ? undefined : page);
}

function refuse(response: ServerResponse, status: number): void {
  response.writeHead(status, { ...HEADERS, 'Content-Type': 'text/plain' });
  response.end();
}

const eventOf = (report: Report): string => `data: ${JSON.stringify(report)}\n\n`;

/** What changes when there is news: sizes and times of the files that a report tells of. */
function stateOf(directory: string): string {
  const found: string[] = [];
  const visit = (path: string, depth: number) => {
    for (const entry of entriesOf(path)) {
      const inner = join(path, entry.name);
      if (entry.isDirectory()) {
        if (depth < DEPTH && !entry.name.startsWith('checkpoint-')) visit(inner, depth + 1);
      } else if (TELLING.test(entry.name) || path.endsWith('stages')) {
        const { size, mtimeMs } = statSync(inner, { throwIfNoEntry: false }) ?? {};
        found.push(`${inner} ${size} ${mtimeMs}`);
      }
    }
  };
  visit(directory, 0);
  return found.join('\n');
}

function entriesOf(path: string): Dirent[] {
  try {
    return readdirSync(path, { withFileTypes: true });
  } catch {
    return []; // gone since
  }
}
