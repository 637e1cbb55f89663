/** Where the bytes of a file are: in memory, in a Blob, behind a URL, or wherever a caller can read from. */

import { MalformedError } from "./errors.js";

/** The bytes of an ArrayBuffer or of any view of one, not copied. */
export function asBytes(data) {
  if (data instanceof Uint8Array) return data;
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  throw new TypeError("bytes must be an ArrayBuffer or a view of one");
}

/**
 * @typedef {object} Source
 * @property {number | undefined} size length of the file; of a URL it is known after the first read
 * @property {(offset: number, length: number) => Promise<Uint8Array>} read bytes, fewer only where the file ends
 */

/** Reads byte ranges over HTTP; a server that knows none sends the file once, and it is kept. */
export class HTTPSource {
  constructor(url, { fetch = globalThis.fetch, headers = {}, signal } = {}) {
    this.url = url;
    this.fetch = fetch;
    this.headers = headers;
    this.signal = signal;
    this.size = undefined;
    this.whole = null;
    this.tag = null;
  }

  async read(offset, length) {
    if (this.whole === null) {
      const end = this.size === undefined ? offset + length : Math.min(offset + length, this.size);
      if (end <= offset) return new Uint8Array(0);
      const range = await this.request(offset, end);
      if (range !== null) return range;
    }
    return this.whole.subarray(Math.min(offset, this.whole.length), Math.min(offset + length, this.whole.length));
  }

  /** Bytes offset .. end - 1, or null if the whole file has come instead. */
  async request(offset, end) {
    const response = await this.ask(offset, end);
    const bytes = response === null ? new Uint8Array(0) : new Uint8Array(await response.arrayBuffer());
    if (response !== null && response.status === 206) return bytes;
    this.whole = bytes;
    this.size = bytes.length;
    return null;
  }

  /**
   * The answer to a request for bytes offset .. end - 1, its body not yet read: 206 with bytes from `offset` on, or
   * 200 with the whole file; null of an empty one.
   *
   * @throws {Error & { status?: number }} any other answer, or one of another file than before
   */
  async ask(offset, end) {
    const headers = { ...this.headers, Range: `bytes=${offset}-${end - 1}` };
    // The bare function: a browser's fetch must not be called as a method.
    const { fetch } = this;
    const response = await fetch(this.url, { headers, signal: this.signal });
    if (response.status === 200) return response;
    if (response.status === 416 && offset === 0) return null;
    const match = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(response.headers.get("content-range") ?? "");
    if (response.status !== 206 || match === null || Number(match[1]) !== offset) {
      const error = new Error(`${this.url}: the server answers ${response.status} to a request for a range`);
      throw Object.assign(error, { status: response.status });
    }
    const tag = response.headers.get("etag");
    if (this.tag !== null && tag !== this.tag) throw new Error(`${this.url}: the file has changed while it was read`);
    this.tag = tag;
    if (match[3] !== "*") this.size = Number(match[3]);
    return response;
  }
}

class BlobSource {
  constructor(blob) {
    this.blob = blob;
    this.size = blob.size;
  }

  async read(offset, length) {
    return new Uint8Array(await this.blob.slice(offset, Math.min(offset + length, this.size)).arrayBuffer());
  }
}

class MemorySource {
  constructor(bytes) {
    this.bytes = bytes;
    this.size = bytes.length;
  }

  async read(offset, length) {
    return this.bytes.subarray(Math.min(offset, this.size), Math.min(offset + length, this.size));
  }
}

/** The source of bytes, a Blob, a URL or an object that is a source already. @returns {Source} */
export function sourceOf(file, options) {
  if (typeof file === "string" || file instanceof URL) return new HTTPSource(file, options);
  if (typeof Blob !== "undefined" && file instanceof Blob) return new BlobSource(file);
  if (typeof file?.read === "function") return file;
  return new MemorySource(asBytes(file));
}

/** Reads a range that has to be there in full. */
export async function readExactly(source, offset, length) {
  const bytes = await source.read(offset, length);
  if (bytes.length < length) {
    throw new MalformedError("container.length", "file is cut off", { offset: offset + bytes.length });
  }
  return bytes;
}
