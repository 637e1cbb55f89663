/** Whole files over HTTP, which outlive the page: what has come is kept in IndexedDB, the rest is asked for. */

import { crc32 } from "./crc32.js";
import { readDirectory, readHeader } from "./directory.js";
import { MalformedError } from "./errors.js";
import { HEADER_SIZE } from "./registry.js";
import { checkLength } from "./sequence.js";
import { HTTPSource } from "./source.js";

const FIRST_READ = 2 ** 16; // header and, of most files, the directory
const PIECE = 2 ** 16; // bytes that are kept together, and lost at most
const FIRST_WAIT = 500; // milliseconds before the second attempt; doubled after each

const STORE = "pieces";

/**
 * Pieces of files, by address and offset, in IndexedDB.
 *
 * @typedef {object} Store
 * @property {(url: string) => Promise<[number, Uint8Array][]>} all
 * @property {(url: string, offset: number, bytes: Uint8Array) => Promise<void>} put
 * @property {(url: string) => Promise<void>} clear
 */
class IndexedStore {
  constructor(name = "tqcodec") {
    this.name = name;
    this.database = null;
  }

  open() {
    this.database ??= new Promise((resolve, reject) => {
      const request = indexedDB.open(this.name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE);
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    return this.database;
  }

  /** Results of some requests of one transaction, when it is done. */
  async run(mode, ask) {
    const transaction = (await this.open()).transaction(STORE, mode);
    const requests = ask(transaction.objectStore(STORE));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(requests.map((request) => request.result));
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }

  async all(url) {
    // Keys are [url, offset]; arrays come behind all numbers.
    const range = IDBKeyRange.bound([url], [url, []]);
    const [keys, values] = await this.run("readonly", (store) => [store.getAllKeys(range), store.getAll(range)]);
    return keys.map((key, i) => [key[1], values[i]]);
  }

  async put(url, offset, bytes) {
    await this.run("readwrite", (store) => [store.put(bytes, [url, offset])]);
  }

  async clear(url) {
    await this.run("readwrite", (store) => [store.delete(IDBKeyRange.bound([url], [url, []]))]);
  }
}

/** Nothing outlives the page where there is no IndexedDB. */
const NOWHERE = { all: async () => [], put: async () => {}, clear: async () => {} };

const usual = () => (globalThis.indexedDB === undefined ? NOWHERE : new IndexedStore());

/** A file of which some bytes are there. */
class Pieces {
  constructor(bytes) {
    this.bytes = bytes;
    this.there = []; // [start, end], in ascending order, apart from each other
  }

  add(start, bytes) {
    const part = bytes.subarray(0, Math.max(0, this.bytes.length - start));
    if (part.length === 0) return;
    this.bytes.set(part, start);
    let span = [start, start + part.length];
    const others = [];
    for (const other of this.there) {
      if (other[1] < span[0] || other[0] > span[1]) others.push(other);
      else span = [Math.min(span[0], other[0]), Math.max(span[1], other[1])];
    }
    this.there = [...others, span].sort((a, b) => a[0] - b[0]);
  }

  /** Takes bytes away again. */
  drop(start, end) {
    this.there = this.there
      .flatMap(([from, to]) => [[from, Math.min(to, start)], [Math.max(from, end), to]])
      .filter(([from, to]) => from < to);
  }

  /** [start, end] of what is missing. */
  holes() {
    const edges = [0, ...this.there.flat(), this.bytes.length];
    const found = [];
    for (let i = 0; i < edges.length; i += 2) if (edges[i] < edges[i + 1]) found.push([edges[i], edges[i + 1]]);
    return found;
  }

  get missing() {
    return this.holes().reduce((sum, [start, end]) => sum + end - start, 0);
  }
}

/** One download: a source, and where its bytes go. */
class Download {
  constructor(url, { store = usual(), attempts = 5, progress = () => {}, ...options }) {
    this.url = String(url);
    this.source = new HTTPSource(this.url, options);
    this.store = store;
    this.attempts = attempts;
    this.progress = progress;
    this.signal = options.signal;
  }

  /** Bytes start .. end - 1, given to `take` with their offsets as they come, and kept in the store. */
  async read(start, end, take, store = this.store) {
    let failed = 0;
    while (start < end) {
      const from = start;
      try {
        start = await this.attempt(start, end, take, store);
        if (start === from) return; // the file ends here
      } catch (error) {
        if (this.signal?.aborted || !passes(error)) throw error;
        start = error.reached ?? start;
        failed = start - from >= PIECE ? 1 : failed + 1;
        if (failed >= this.attempts) throw error;
        await new Promise((resolve) => setTimeout(resolve, FIRST_WAIT * 2 ** (failed - 1)));
      }
    }
  }

  /** One request; gives the offset that it has reached. */
  async attempt(start, end, take, store) {
    const response = await this.source.ask(start, end);
    if (response === null) return start;
    let at = start;
    if (response.status === 200) {
      at = 0;
      const length = response.headers.get("content-length");
      if (length !== null) this.source.size = Number(length);
    }
    const reader = response.body.getReader();
    let held = [];
    let size = 0;
    const keep = async () => {
      const bytes = new Uint8Array(size);
      let to = 0;
      for (const chunk of held) {
        bytes.set(chunk, to);
        to += chunk.length;
      }
      held = [];
      size = 0;
      take(at, bytes);
      // What cannot be kept, as the browser gives no more room, is there all the same.
      await store.put(this.url, at, bytes).catch(() => {});
      at += bytes.length;
    };
    try {
      while (at + size < end) {
        const { value, done } = await reader.read();
        if (done) break;
        held.push(value);
        size += value.length;
        if (size >= PIECE) await keep();
      }
      if (size > 0) await keep();
    } catch (error) {
      if (size > 0) await keep();
      throw Object.assign(error, { reached: Math.max(start, at) });
    } finally {
      reader.cancel().catch(() => {});
    }
    return Math.max(start, at);
  }

  async run() {
    let pieces = await this.begun();
    if (pieces === null) {
      await this.store.clear(this.url);
      pieces = await this.begin();
    }
    const { directory } = pieces;
    const total = pieces.bytes.length;
    const fill = async () => {
      for (const [start, end] of pieces.holes()) {
        await this.read(start, end, (offset, bytes) => {
          pieces.add(offset, bytes);
          this.progress(total - pieces.missing, total);
        });
      }
    };
    this.progress(total - pieces.missing, total);
    await fill();
    const own = ({ offset, length }) => pieces.bytes.subarray(offset, offset + length);
    const wrong = () => segmentsOf(directory).filter((segment) => crc32(own(segment)) !== segment.crc);
    for (const { offset, length } of wrong()) pieces.drop(offset, offset + length);
    await fill();
    const [damaged] = pieces.missing > 0 ? [{ offset: pieces.holes()[0][0] }] : wrong();
    if (damaged !== undefined) {
      await this.store.clear(this.url);
      throw new MalformedError("segment.crc", "damaged segment", { offset: damaged.offset });
    }
    return pieces.bytes;
  }

  /** What is kept of the file as it is now; null if nothing is, or of another one. */
  async begun() {
    const kept = await this.store.all(this.url).catch(() => []);
    if (kept.length === 0) return null;
    const head = assembled(kept);
    let directory;
    try {
      directory = directoryOf(head);
    } catch {
      return null;
    }
    const header = new Pieces(new Uint8Array(HEADER_SIZE));
    await this.read(0, HEADER_SIZE, (offset, bytes) => header.add(offset, bytes), NOWHERE);
    if (header.missing > 0 || !header.bytes.every((byte, i) => byte === head[i])) return null;
    const pieces = this.pieces(directory);
    for (const [offset, bytes] of kept) pieces.add(offset, bytes);
    return pieces;
  }

  /** The file of a directory, none of it there yet. */
  pieces(directory) {
    if (this.source.size !== undefined) checkLength(directory, this.source.size);
    return Object.assign(new Pieces(new Uint8Array(directory.end)), { directory });
  }

  async begin() {
    const head = new Pieces(new Uint8Array(FIRST_READ));
    await this.read(0, FIRST_READ, (offset, bytes) => head.add(offset, bytes));
    let first = head.bytes.subarray(0, head.there[0]?.[1] ?? 0);
    const end = HEADER_SIZE + readHeader(first).stored;
    if (end > first.length) {
      const longer = new Pieces(new Uint8Array(end));
      longer.add(0, first);
      await this.read(first.length, end, (offset, bytes) => longer.add(offset, bytes));
      first = longer.bytes.subarray(0, longer.there[0][1]);
    }
    const pieces = this.pieces(directoryOf(first));
    pieces.add(0, first);
    return pieces;
  }
}

/** True of what another attempt may do away with: what fetch throws, and some answers. */
function passes(error) {
  if (error.status !== undefined) return error.status === 429 || error.status >= 500;
  return error instanceof TypeError || error.reached !== undefined;
}

function directoryOf(head) {
  const header = readHeader(head);
  return readDirectory(header, head.subarray(HEADER_SIZE, HEADER_SIZE + header.stored));
}

/** The bytes from the start of a file on, as far as they are there without a hole. */
function assembled(kept) {
  const end = Math.max(...kept.map(([offset, bytes]) => offset + bytes.length));
  const pieces = new Pieces(new Uint8Array(end));
  for (const [offset, bytes] of kept) pieces.add(offset, bytes);
  const first = pieces.there[0];
  return pieces.bytes.subarray(0, first?.[0] === 0 ? first[1] : 0);
}

function segmentsOf(directory) {
  const { tables, bundles, tensors } = directory;
  const own = tensors.flatMap((tensor) => (tensor.same_as === null ? tensor.segments : []));
  return [...(tables === null ? [] : [tables]), ...bundles, ...own];
}

/**
 * Downloads a whole file. What has come outlives the page, in IndexedDB: whoever asks again, after a connection
 * that broke, a page that was closed or a browser that was killed, gets the rest of it alone; and of a file that is
 * all there and has not changed only its header is asked for. All segments are checked.
 *
 * @param {string | URL} url
 * @param {{ store?: Store, attempts?: number, progress?: (done: number, of: number) => void, fetch?: typeof fetch,
 *   headers?: Record<string, string>, signal?: AbortSignal }} options store: where pieces are kept
 * @returns {Promise<Uint8Array>} for `decode` or `open`
 */
export function download(url, options = {}) {
  return new Download(url, options).run();
}

/** Lets go of what is kept of a file. */
export async function forget(url, { store = usual() } = {}) {
  await store.clear(String(url));
}
