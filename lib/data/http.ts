/** Requests of this package: through the proxy that the environment names, and as patient as they are told to be. */

/** Node's own fetch, or one that behaves like it. */
export type Fetch = typeof fetch;

/**
 * A `fetch` that heeds HTTP_PROXY, HTTPS_PROXY and NO_PROXY (or their lower-case forms), which Node 20's own does not; this
 * machine itself is asked directly. It waits `seconds` for an answer to begin, and as long between two pieces of it.
 */
export async function patientFetch(seconds: number): Promise<Fetch> {
  const undici = await import('undici');
  const { NO_PROXY, no_proxy = NO_PROXY } = process.env;
  const dispatcher = new undici.EnvHttpProxyAgent({
    headersTimeout: 1000 * seconds,
    bodyTimeout: 1000 * seconds,
    noProxy: [no_proxy, 'localhost', '127.0.0.1', '::1'].filter(Boolean).join(','),
  });
  // Node's types are those of another version of the same.
  const ask = undici.fetch as unknown as (url: unknown, init: object) => Promise<Response>;
  return (url, init) => ask(url, { ...init, dispatcher });
}
