/**
 * A small static server with byte ranges, for the demo and the tests: `node demo/serve.mjs [PORT]`.
 * It serves this package's folder to this computer alone.
 */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { Readable } from "node:stream";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".png": "image/png",
  ".json": "application/json",
};

/** A file in chunks, between whose halves something is waited for. */
async function* halves(path, half, between) {
  if (half > 0) yield* createReadStream(path, { end: half - 1 });
  await between();
  yield* createReadStream(path, { start: half });
}

/**
 * Answers a request with a file below root, in part if a range is asked for and `ranges` are wanted. Of a whole file
 * the second half waits for `halfway`.
 */
async function answer(request, response, root, ranges, halfway) {
  const { pathname } = new URL(request.url, "http://localhost");
  const path = join(root, normalize(decodeURIComponent(pathname)), pathname.endsWith("/") ? "index.html" : "");
  const info = await stat(path).catch(() => null);
  if (!path.startsWith(root) || info === null || !info.isFile()) {
    response.writeHead(404).end("not found\n");
    return;
  }
  const headers = {
    "Content-Type": TYPES[extname(path)] ?? "application/octet-stream",
    "Cache-Control": "no-cache",
    ETag: `"${info.size}-${info.mtimeMs}"`,
  };
  const match = ranges ? /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") : null;
  if (match === null) {
    response.writeHead(200, { ...headers, "Content-Length": info.size });
    Readable.from(halves(path, Math.ceil(info.size / 2), () => halfway(pathname))).pipe(response);
    return;
  }
  const start = Number(match[1]);
  const end = Math.min(Number(match[2]), info.size - 1);
  if (start > end) {
    response.writeHead(416, { "Content-Range": `bytes */${info.size}` }).end();
    return;
  }
  const range = { "Content-Range": `bytes ${start}-${end}/${info.size}`, "Content-Length": end - start + 1 };
  response.writeHead(206, { ...headers, ...range });
  createReadStream(path, { start, end }).pipe(response);
}

/**
 * Starts a server; port 0 takes a free one. `seen` is called with each request; the second half of each file that is
 * asked for as a whole waits for what `halfway` gives for its path.
 */
export function serve({ root = ROOT, port = 0, ranges = true, seen = () => {}, halfway = () => {} } = {}) {
  const server = createServer((request, response) => {
    seen(request);
    answer(request, response, root, ranges, halfway).catch(() => response.writeHead(400).end("bad request\n"));
  });
  return new Promise((resolve, reject) => {
    server.on("error", reject);
    server.listen(port, "127.0.0.1", () => {
      resolve({ url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() });
    });
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await serve({ port: Number(process.argv[2] ?? 8080) });
  process.stdout.write(`${url}demo/\n`);
}
