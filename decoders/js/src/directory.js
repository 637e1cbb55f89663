/** Header and directory (specification, 4.2 and 4.3). */

import { crc32 } from "./crc32.js";
import { DTYPES } from "./dtypes.js";
import { MalformedError, UnsupportedError, malformed, quote } from "./errors.js";
import { inflate } from "./inflate.js";
import { parse } from "./msgpack.js";
import { Reader } from "./reader.js";
import {
  Coding,
  FLAG_DEFLATED,
  FREE_VALUES,
  HEADER_SIZE,
  MAJOR,
  MAX_DIMENSIONS,
  MAX_DIRECTORY,
  MAX_ELEMENTS,
  MAX_INFLATION,
  MAX_NAME,
  MAX_TABLES_SIZE,
  MINOR,
} from "./registry.js";

const SIGNATURE = [0x89, 0x54, 0x51, 0x43, 0x0d, 0x0a, 0x1a, 0x0a];
const UTF8 = new TextEncoder();

/** `header( )`: whether the directory is deflated, its bytes in the file and inflated, its CRC-32. */
export function readHeader(bytes) {
  const reader = new Reader(bytes.subarray(0, HEADER_SIZE), 0);
  const signature = reader.take(8);
  if (SIGNATURE.some((byte, i) => signature[i] !== byte)) reader.fail("header.signature", "not a .tqc file", 0);
  const major = reader.u8();
  const minor = reader.u8();
  const flags = reader.u16();
  const stored = reader.u32();
  const size = reader.u32();
  const directory_crc = reader.u32();
  const covered = bytes.subarray(0, reader.position);
  if (reader.u32() !== crc32(covered)) reader.fail("header.crc", "checksum of the header is wrong", 24);
  if (major !== MAJOR || minor !== MINOR) {
    throw new UnsupportedError("header.version", `version ${major}.${minor}`, { offset: 8 });
  }
  if ((flags & ~FLAG_DEFLATED) !== 0) {
    throw new UnsupportedError("header.flags", `flags ${flags}`, { offset: 10 });
  }
  const deflated = flags === FLAG_DEFLATED;
  if (size > MAX_DIRECTORY) reader.fail("directory.size", `directory of ${size} bytes`, 16);
  const fits = deflated ? stored < size && size <= 2 ** 16 + MAX_INFLATION * stored : stored === size;
  if (!fits) reader.fail("directory.stored", `directory of ${size} bytes in ${stored}`, 12);
  return { deflated, stored, size, directory_crc };
}

/**
 * @typedef {{ length: number, crc: number, offset: number }} Segment its bytes lie at `offset` of the file
 *
 * @typedef {object} Directory
 * @property {Segment[]} bundles
 * @property {(Segment & { size: number }) | null} tables
 * @property {Entry[]} tensors in the order of the file; those of each bundle name it
 * @property {Map<string, string>} metadata
 * @property {number} end where the last segment ends
 *
 * @typedef {object} Entry
 * @property {string} name
 * @property {number | null} same_as index of the entry that this one is tied to; then the rest is that entry's
 * @property {number} check
 * @property {number} coding
 * @property {object | null} dtype null if this decoder does not know it
 * @property {string} dtypeName
 * @property {number[]} shape
 * @property {number} elements
 * @property {Segment[]} segments
 * @property {number | null} bundle
 * @property {number | null} snr in hundredths of a decibel
 * @property {UnsupportedError | null} unsupported
 */

/** The directory from its bytes in the file. @returns {Directory} */
export function readDirectory(header, stored) {
  const reader = new Reader(stored, HEADER_SIZE);
  if (stored.length < header.stored) reader.fail("segment.short", "directory is cut off", stored.length);
  if (crc32(stored) !== header.directory_crc) reader.fail("directory.crc", "checksum of the directory is wrong");
  const plain = header.deflated
    ? inflate(stored, header.size, (rule, detail) => reader.fail(rule, detail))
    : stored;
  const tree = parse(plain, FREE_VALUES + header.stored);
  if (!(tree instanceof Map)) malformed("directory.type", "directory is not a map");

  const features = array(tree, "features", []);
  if (features.some((feature) => typeof feature !== "string")) {
    malformed("directory.type", "features that are not strings");
  }
  if (features.length > 0) {
    throw new UnsupportedError("directory.features", `feature ${quote(features[0])}`);
  }
  const metadata = tree.has("metadata") ? tree.get("metadata") : new Map();
  if (!(metadata instanceof Map)) malformed("directory.type", "metadata is not a map");
  for (const value of metadata.values()) {
    if (typeof value !== "string") malformed("directory.type", "metadata that is not a string");
  }
  const bundles = array(tree, "bundles", []).map(readSegment);
  const tables = tree.has("tables") ? readTablesSegment(tree.get("tables")) : null;
  const tensors = readEntries(array(tree, "tensors", []), bundles.length);
  return { bundles, tables, tensors, metadata, end: place(header, tables, bundles, tensors) };
}

function isInteger(value) {
  return typeof value === "number" || typeof value === "bigint";
}

/** An integer in low .. high. Up to 2^53 it is exact; a length above is beyond any file, and may round. */
function ranged(value, what, low, high) {
  if (!isInteger(value)) malformed("directory.type", `${what} is not an integer`);
  if (value < low || value > high) malformed("directory.range", `${what} is ${value}`);
  return Number(value);
}

function required(map, key) {
  if (!map.has(key)) malformed("directory.type", `no ${key}`);
  return map.get(key);
}

function string(map, key) {
  const value = required(map, key);
  if (typeof value !== "string") malformed("directory.type", `${key} is not a string`);
  return value;
}

function array(map, key, otherwise) {
  const value = map.has(key) ? map.get(key) : otherwise;
  if (!Array.isArray(value)) malformed("directory.type", `${key} is not an array`);
  return value;
}

function readSegment(value) {
  if (!Array.isArray(value) || value.length !== 2) {
    malformed("directory.type", "segment is not an array of two integers");
  }
  const length = ranged(value[0], "length of a segment", 0, 2n ** 63n - 1n);
  return { length, crc: ranged(value[1], "checksum of a segment", 0, 2 ** 32 - 1), offset: 0 };
}

function readTablesSegment(value) {
  if (!Array.isArray(value) || value.length !== 3) {
    malformed("directory.type", "tables is not an array of three integers");
  }
  return {
    length: ranged(value[0], "length of the tables", 0, 2 ** 32),
    crc: ranged(value[1], "checksum of the tables", 0, 2 ** 32 - 1),
    size: ranged(value[2], "size of the tables", 0, MAX_TABLES_SIZE),
    offset: 0,
  };
}

function readEntries(items, bundleCount) {
  const names = new Set();
  const entries = [];
  const bundleUsed = new Uint8Array(bundleCount);
  for (const item of items) {
    if (!(item instanceof Map)) malformed("directory.type", "entry is not a map");
    const name = string(item, "name");
    try {
      const size = UTF8.encode(name).length;
      if (size < 1 || size > MAX_NAME) malformed("directory.name", `name of ${size} bytes`);
      if (names.has(name)) malformed("directory.name", "name of an earlier tensor");
      names.add(name);
      const entry = item.has("same_as") ? readTied(item, name, entries) : readEntry(item, name, bundleCount);
      if (entry.same_as === null && entry.bundle !== null) bundleUsed[entry.bundle] = 1;
      entries.push(entry);
    } catch (error) {
      throw error instanceof MalformedError ? error.about(name) : error;
    }
  }
  if (bundleUsed.includes(0)) malformed("directory.bundle", `no tensor is in bundle ${bundleUsed.indexOf(0)}`);
  spreadUnsupported(entries);
  return entries;
}

function readTied(item, name, entries) {
  const same_as = ranged(item.get("same_as"), "same_as", 0, entries.length - 1);
  const target = entries[same_as];
  if (target.same_as !== null) malformed("directory.same_as", "tied to a tensor that is tied itself");
  return { ...target, name, same_as };
}

function readEntry(item, name, bundleCount) {
  const bundle = item.has("bundle") ? ranged(item.get("bundle"), "bundle", 0, bundleCount - 1) : null;
  const check = ranged(required(item, "check"), "check", 0, 2 ** 32 - 1);
  const coding = ranged(required(item, "coding"), "coding", 0, 255);
  const dtypeName = string(item, "dtype");
  const segments = array(item, "segments", []).map(readSegment);
  const shape = array({ has: () => true, get: () => required(item, "shape") }, "shape");
  const dimensions = shape.map((n) => ranged(n, "dimension", 0, 2 ** 48));
  const snr = item.has("snr") ? ranged(item.get("snr"), "snr", -(2 ** 20), 2 ** 20) : null;

  if (dimensions.length > MAX_DIMENSIONS) malformed("directory.shape", `${dimensions.length} dimensions`);
  let product = 1;
  for (const n of dimensions) {
    if (n > 0) product *= n;
    if (product > MAX_ELEMENTS) malformed("directory.shape", `more than ${MAX_ELEMENTS} elements`);
  }
  const elements = dimensions.includes(0) ? 0 : product;
  const dtype = DTYPES.get(dtypeName) ?? null;
  let unsupported = null;
  if (dtype === null) {
    unsupported = new UnsupportedError("directory.dtype", `element type ${quote(dtypeName)}`, { tensor: name });
  } else if (!Object.values(Coding).includes(coding)) {
    unsupported = new UnsupportedError("directory.coding", `coding ${coding}`, { tensor: name });
  } else {
    if (bundle !== null && (coding !== Coding.PLANES || segments.length > 0)) {
      malformed("directory.bundle", "tensor of a bundle with another coding or with segments");
    }
    if (coding === Coding.TRANSFORM && (!dtype.isFloat || elements === 0)) {
      malformed("directory.transform", `transform of ${elements} elements ${dtype.name}`);
    }
  }
  return {
    name, same_as: null, check, coding, dtype, dtypeName, shape: dimensions, elements, segments, bundle, snr, unsupported,
  };
}

/** A bundle that a tensor of unknown type or coding names is unsupported, and so are all tensors tied to such ones. */
function spreadUnsupported(entries) {
  const bundles = new Map();
  for (const { same_as, bundle, unsupported } of entries) {
    if (same_as === null && bundle !== null && unsupported !== null) bundles.set(bundle, unsupported);
  }
  for (const entry of entries) {
    if (entry.bundle !== null) entry.unsupported ??= bundles.get(entry.bundle) ?? null;
  }
}

/** Gives every segment its place (4.4) and returns where the last one ends. */
function place(header, tables, bundles, tensors) {
  let end = HEADER_SIZE + header.stored;
  const put = (segment) => {
    segment.offset = end;
    end += segment.length;
  };
  if (tables !== null) put(tables);
  bundles.forEach(put);
  for (const entry of tensors) {
    if (entry.same_as === null) entry.segments.forEach(put);
  }
  return end;
}
