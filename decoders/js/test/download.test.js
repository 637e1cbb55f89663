/** Downloads that break off and are gone on with: in Node with a store in memory, in Chromium with IndexedDB. */

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, beforeEach, describe, it } from "node:test";
import { MalformedError, decode, download, forget } from "tqcodec";
import { crc32 } from "../src/crc32.js";
import { file, fixture, random, raw } from "./helpers.js";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"];
const playwright = await import("playwright-core").catch(() => null);
const missing =
  playwright === null ? "playwright-core is not installed" : !existsSync(CHROMIUM) && `no Chromium at ${CHROMIUM}`;

/** An unsigned integer above 65535 in MessagePack. */
const u32 = (value) => [0xce, value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];

/** A file of one raw tensor in segments of the given lengths. */
function large(lengths, seed = 1) {
  const next = random(seed);
  const segments = lengths.map((length) => Uint8Array.from({ length }, () => next(256)));
  const bytes = Buffer.concat(segments);
  const pairs = segments.flatMap((segment) => [0x92, ...u32(segment.length), ...u32(crc32(segment))]);
  const shape = [0x91, ...u32(bytes.length)];
  const changes = { segments: [0x90 + segments.length, ...pairs], shape, check: u32(crc32(bytes)) };
  return file(raw(changes), bytes);
}

/** A server of one file that counts bytes and may fail; `cut` breaks a connection after so many bytes, once. */
function failing() {
  const state = { data: null, cut: Infinity, ranges: true, statuses: [], sent: 0, requests: [], flip: -1 };
  const server = createServer((request, response) => {
    const path = new URL(request.url, "http://localhost").pathname;
    if (path !== "/m.tqc") {
      if (path === "/favicon.ico") return void response.writeHead(404).end();
      const body = path === "/" ? "<!doctype html>" : readFileSync(new URL(`..${path}`, import.meta.url));
      response.writeHead(200, { "Content-Type": path === "/" ? "text/html" : "text/javascript" }).end(body);
      return;
    }
    state.requests.push(request.headers.range);
    const status = state.statuses.shift();
    if (status !== undefined) {
      response.writeHead(status).end();
      return;
    }
    const headers = { ETag: `"${crc32(state.data)}"`, "Cache-Control": "no-store" };
    const match = state.ranges ? /^bytes=(\d+)-(\d+)$/.exec(request.headers.range) : null;
    const start = match === null ? 0 : Number(match[1]);
    const end = match === null ? state.data.length : Math.min(Number(match[2]) + 1, state.data.length);
    const body = state.data.slice(start, end);
    if (state.flip >= start && state.flip < end) body[state.flip - start] ^= 1;
    headers["Content-Length"] = body.length;
    if (match !== null) headers["Content-Range"] = `bytes ${start}-${end - 1}/${state.data.length}`;
    response.writeHead(match === null ? 200 : 206, headers);
    const part = body.subarray(0, Math.max(0, state.cut));
    state.cut = part.length < body.length ? Infinity : state.cut - body.length;
    state.sent += part.length;
    const end_ = part.length < body.length ? () => setTimeout(() => response.destroy(), 50) : () => response.end();
    response.write(part, end_);
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      state.url = `http://127.0.0.1:${server.address().port}/`;
      state.close = () => {
        server.closeAllConnections();
        server.close();
      };
      resolve(state);
    });
  });
}

const DATA = large([100_000, 300_000, 70_000, 250_000]);

describe("download", () => {
  let server;
  let store;
  before(async () => {
    server = await failing();
  });
  after(() => server.close());
  beforeEach(() => {
    Object.assign(server, { data: DATA, cut: Infinity, ranges: true, statuses: [], sent: 0, requests: [], flip: -1 });
    const kept = new Map();
    store = {
      kept,
      all: async () => [...kept].sort((a, b) => a[0] - b[0]),
      put: async (url, offset, bytes) => void kept.set(offset, bytes),
      clear: async () => kept.clear(),
    };
  });
  const get = (options) => download(`${server.url}m.tqc`, { store, attempts: 1, ...options });

  it("gives the file, and asks for its header alone the next time", async () => {
    const calls = [];
    assert.deepEqual(await get({ progress: (...call) => calls.push(call) }), DATA);
    assert.equal(server.sent, DATA.length);
    assert.deepEqual(calls.at(-1), [DATA.length, DATA.length]);
    server.sent = 0;
    assert.deepEqual(await get(), DATA);
    assert.equal(server.sent, 28);
    await forget(`${server.url}m.tqc`, { store });
    assert.equal(store.kept.size, 0);
  });

  it("goes on with what has come", async () => {
    for (let breaks = 1; ; breaks++) {
      server.cut = 90_000;
      const found = await get().catch((error) => error);
      if (!(found instanceof Error)) {
        assert.deepEqual(found, DATA);
        break;
      }
      assert.ok(breaks < 10, found);
    }
    assert.ok(server.requests.length > 8);
    assert.ok(server.sent < DATA.length + 28 * server.requests.length, `${server.sent} bytes`);
  });

  it("tries again by itself what may pass", async () => {
    server.cut = 100_000;
    server.statuses = [503, 429];
    assert.deepEqual(await get({ attempts: 4 }), DATA);
    assert.equal(server.sent, DATA.length);
    for (const status of [404, 403, 400]) {
      server.statuses = [status];
      store.kept.clear();
      server.requests = [];
      await assert.rejects(get({ attempts: 4 }), new RegExp(`answers ${status}`));
      assert.equal(server.requests.length, 1);
    }
  });

  it("takes a server without ranges", async () => {
    server.ranges = false;
    assert.deepEqual(await get(), DATA);
    for (const name of ["example", "dtypes"]) {
      store.kept.clear();
      server.data = fixture(name);
      assert.deepEqual(await get(), server.data);
    }
  });

  it("begins anew where the file is another one", async () => {
    server.cut = 90_000;
    await assert.rejects(get());
    server.cut = Infinity;
    server.data = large([100_000, 300_000, 70_000, 250_000], 2);
    assert.deepEqual(await get(), server.data);
    store.kept.clear();
    const other = large([70_000, 90_000], 3);
    const progress = () => {
      server.data = other;
    };
    await assert.rejects(get({ progress }), /has changed while it was read/);
  });

  it("asks again for what is damaged, and says so where it stays so", async () => {
    assert.deepEqual(await get(), DATA);
    for (const bytes of store.kept.values()) if (bytes.length > 1000) bytes[900] ^= 1;
    const [[, first]] = store.kept;
    first[900] ^= 1;
    assert.deepEqual(await get(), DATA);
    store.kept.clear();
    server.flip = DATA.length - 9;
    await assert.rejects(get(), (error) => error instanceof MalformedError && error.rule === "segment.crc");
    server.flip = 30;
    await assert.rejects(get(), MalformedError);
    server.flip = -1;
    server.data = Uint8Array.from(Buffer.from("<!doctype html>".repeat(10)));
    await assert.rejects(get(), /not a \.tqc|header.signature/);
  });

  it("can be given up", async () => {
    const stop = new AbortController();
    await assert.rejects(get({ signal: stop.signal, progress: () => stop.abort() }), { name: "AbortError" });
  });
});

describe("download in a browser", { skip: missing }, () => {
  it("goes on after a connection that is cut and a page that is closed", async () => {
    const server = await failing();
    server.data = DATA;
    const browser = await playwright.chromium.launch({ executablePath: CHROMIUM, args: FLAGS, headless: true });
    try {
      const context = await browser.newContext();
      const visit = async () => {
        const page = await context.newPage();
        await page.goto(server.url);
        const found = await page.evaluate(async () => {
          const { download } = await import("/src/index.js");
          try {
            const bytes = await download("/m.tqc", { attempts: 1 });
            return [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))];
          } catch (error) {
            return String(error);
          }
        });
        await page.close();
        return found;
      };
      server.cut = 250_000;
      assert.equal(typeof (await visit()), "string");
      server.cut = 150_000;
      assert.equal(typeof (await visit()), "string");
      server.cut = Infinity;
      const digest = await crypto.subtle.digest("SHA-256", DATA);
      assert.deepEqual(await visit(), [...new Uint8Array(digest)]);
      // A cut loses what lies in buffers of the browser.
      assert.ok(server.sent < DATA.length + 2 * (28 + 65_536), `${server.sent} of ${DATA.length} bytes`);
      server.sent = 0;
      assert.deepEqual(await visit(), [...new Uint8Array(digest)]);
      assert.equal(server.sent, 28);
      assert.equal(decode(DATA).get("w").data.length, 720_000);
    } finally {
      await browser.close();
      server.close();
    }
  });
});
