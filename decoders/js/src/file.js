/** Single tensors of a file (specification, 12.1: what a decoder that does not read all need not check). */

import { readDirectory, readHeader } from "./directory.js";
import { LimitError, quote } from "./errors.js";
import { decodeStream } from "./incremental.js";
import { Coding, HEADER_SIZE } from "./registry.js";
import { checkLength, defaultLimit, entriesOfBundles } from "./sequence.js";
import { readExactly, sourceOf } from "./source.js";
import { readTables } from "./tables.js";
import { TensorDecoder, checkSegment, decodeBundle, naming, tensorOf } from "./tensor.js";

const FIRST_READ = 2 ** 16; // header and, of most files, the directory

const CHUNK = 2 ** 20; // read at a time when all is read

const CODINGS = new Map(Object.entries(Coding).map(([name, coding]) => [coding, name.toLowerCase()]));

/** A file that is open: its directory is read and checked, its tensors come one at a time. */
export class TensorFile {
  constructor(source, directory, limit) {
    this.source = source;
    this.directory = directory;
    this.limit = limit;
    this.entries = new Map(directory.tensors.map((entry) => [entry.name, entry]));
    this.bundled = entriesOfBundles(directory);
    this.tables = null; // promise of the tables
    this.bundle = null; // the bundle that was decoded last: { index, arrays }, a promise
  }

  /** Length of the file, as its directory has it. */
  get size() {
    return this.directory.end;
  }

  /** Free text of the file. @returns {Map<string, string>} */
  get metadata() {
    return this.directory.metadata;
  }

  /** Names of the tensors in the order of the file. */
  keys() {
    return [...this.entries.keys()];
  }

  entry(name) {
    const entry = this.entries.get(name);
    if (entry === undefined) throw new RangeError(`no tensor ${quote(name)}`);
    return entry;
  }

  /** What the directory says about a tensor. */
  info(name) {
    const entry = this.entry(name);
    const { dtype, dtypeName, shape, elements, coding, bundle, snr, same_as, segments, unsupported } = entry;
    const tiedTo = same_as === null ? null : this.directory.tensors[same_as].name;
    // A bundle's bytes belong to its tensors as their elements do.
    let bytes = segments.reduce((sum, segment) => sum + segment.length, 0);
    if (bundle !== null) {
      const total = this.bundled[bundle].reduce((sum, other) => sum + other.elements, 0);
      bytes = total === 0 ? 0 : (this.directory.bundles[bundle].length * elements) / total;
    }
    return {
      name,
      dtype: dtypeName,
      shape,
      elements,
      coding: CODINGS.get(coding) ?? String(coding),
      bundle,
      bytes: same_as === null ? bytes : 0,
      decodedBytes: dtype === null ? null : elements * dtype.bytes,
      snr: snr === null ? null : snr / 100,
      tiedTo,
      supported: unsupported === null,
    };
  }

  async readTables() {
    const segment = this.directory.tables;
    if (segment === null) return [];
    const bytes = await readExactly(this.source, segment.offset, segment.length);
    checkSegment(segment, bytes);
    return readTables(segment, bytes);
  }

  needTables() {
    // A failure may be the network's: the next one who asks tries again.
    this.tables ??= this.readTables().catch((error) => {
      this.tables = null;
      throw error;
    });
    return this.tables;
  }

  async readBundle(index) {
    const segment = this.directory.bundles[index];
    const [tables, bytes] = await Promise.all([
      this.needTables(),
      readExactly(this.source, segment.offset, segment.length),
    ]);
    checkSegment(segment, bytes);
    return decodeBundle(segment, bytes, this.bundled[index], tables);
  }

  needBundle(index) {
    if (this.bundle?.index !== index) {
      const arrays = this.readBundle(index).catch((error) => {
        this.bundle = null;
        throw error;
      });
      this.bundle = { index, arrays };
    }
    return this.bundle.arrays;
  }

  /** The decoder of a tensor with all its segments read, which lie in one piece. */
  async decoder(entry) {
    const { segments } = entry;
    const offset = segments.length > 0 ? segments[0].offset : 0;
    const length = segments.reduce((sum, segment) => sum + segment.length, 0);
    const [tables, bytes] = await Promise.all([
      entry.coding === Coding.RAW ? [] : this.needTables(),
      readExactly(this.source, offset, length),
    ]);
    const decoder = naming(entry, () => new TensorDecoder(entry, tables));
    for (const segment of segments) {
      const from = segment.offset - offset;
      naming(entry, () => {
        const own = bytes.subarray(from, from + segment.length);
        checkSegment(segment, own);
        decoder.push(own);
      });
    }
    return decoder;
  }

  /** The entry whose bytes a name stands for, if this decoder can decode it within the limit. */
  decodable(name) {
    const entry = this.entry(name);
    if (entry.unsupported !== null) throw entry.unsupported;
    const size = entry.elements * entry.dtype.bytes;
    if (size > this.limit) {
      throw new LimitError("limit.decoded", `tensor takes ${size} bytes, above ${this.limit}`, { tensor: name });
    }
    return entry.same_as === null ? entry : this.directory.tensors[entry.same_as];
  }

  /** Decodes one tensor. @returns {Promise<import("./tensor.js").Tensor>} */
  async tensor(name) {
    const entry = this.decodable(name);
    if (entry.bundle === null) {
      const decoder = await this.decoder(entry);
      return tensorOf(this.entry(name), naming(entry, () => decoder.finish()));
    }
    const arrays = await this.needBundle(entry.bundle);
    // A copy, lest one who changes or transfers the array changes what the next one gets.
    return tensorOf(this.entry(name), arrays[this.bundled[entry.bundle].indexOf(entry)].slice());
  }

  /**
   * Reads the whole file and checks all of it; throws what `decode` would throw, and keeps nothing.
   *
   * @returns {Promise<number>} bytes of all tensors
   */
  async verify() {
    let bytes = 0;
    for await (const tensor of decodeStream(this.chunks(), { limit: this.limit })) bytes += tensor.data.byteLength;
    return bytes;
  }

  async *chunks() {
    for (let offset = 0; ; ) {
      const bytes = await this.source.read(offset, CHUNK);
      if (bytes.length > 0) yield bytes;
      offset += bytes.length;
      if (bytes.length < CHUNK) return;
    }
  }

  /** The record of a transform-coded tensor: its coefficients and all that turns them into weights; null of others. */
  async record(name) {
    const entry = this.decodable(name);
    if (entry.coding !== Coding.TRANSFORM) return null;
    return (await this.decoder(entry)).record();
  }
}

/**
 * Opens a file of which single tensors are wanted.
 *
 * @param {Uint8Array | ArrayBuffer | Blob | URL | string | import("./source.js").Source} file
 * @param {{ limit?: number, fetch?: typeof fetch, headers?: Record<string, string>, signal?: AbortSignal }} options
 *   limit: bytes that one tensor may take, by default 32 MiB and 1000 times the length of the file
 */
export async function open(file, options = {}) {
  const source = sourceOf(file, options);
  const first = await source.read(0, FIRST_READ);
  const header = readHeader(first);
  const end = HEADER_SIZE + header.stored;
  const stored = end <= first.length ? first.subarray(HEADER_SIZE, end) : await source.read(HEADER_SIZE, header.stored);
  const directory = readDirectory(header, stored);
  if (source.size !== undefined) checkLength(directory, source.size);
  return new TensorFile(source, directory, options.limit ?? defaultLimit(source.size ?? 0));
}
