/** Canonical MessagePack, as the directory has it (specification, 4.3). Maps are Maps: a key may be `__proto__`. */

import { MAX_NESTING } from "./registry.js";
import { malformed } from "./errors.js";

// A byte order mark is a character like any other, and stays in the name.
const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

class Parser {
  constructor(bytes, most) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.position = 0;
    this.left = most;
  }

  /** Moves on by n bytes and returns where they begin. */
  skip(n) {
    const start = this.position;
    if (n > this.bytes.length - start) malformed("directory.msgpack", "directory is cut off");
    this.position += n;
    return start;
  }

  /** The unsigned integer of n bytes, which a shorter form may not hold: below `least` it could. */
  unsigned(n, least) {
    const at = this.skip(n);
    let value;
    if (n === 1) value = this.view.getUint8(at);
    else if (n === 2) value = this.view.getUint16(at);
    else if (n === 4) value = this.view.getUint32(at);
    else value = exact(this.view.getBigUint64(at));
    if (value < least) malformed("directory.canonical", `${value} is not in its shortest form`);
    return value;
  }

  /** Likewise for negative integers, which are below `most` in this form only. */
  negative(n, most) {
    const at = this.skip(n);
    let value;
    if (n === 1) value = this.view.getInt8(at);
    else if (n === 2) value = this.view.getInt16(at);
    else if (n === 4) value = this.view.getInt32(at);
    else value = exact(this.view.getBigInt64(at));
    if (value >= most) malformed("directory.canonical", `${value} is not in its shortest form`);
    return value;
  }

  value(depth) {
    if (--this.left < 0) malformed("directory.values", "too many values");
    const byte = this.bytes[this.skip(1)];
    if (byte < 0x80) return byte;
    if (byte >= 0xe0) return byte - 256;
    if (byte < 0x90) return this.map(byte & 15, depth);
    if (byte < 0xa0) return this.array(byte & 15, depth);
    if (byte < 0xc0) return this.string(byte & 31);
    switch (byte) {
      case 0xc0:
        return null;
      case 0xc1:
        return malformed("directory.msgpack", "byte c1 stands for nothing");
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xcc:
        return this.unsigned(1, 2 ** 7);
      case 0xcd:
        return this.unsigned(2, 2 ** 8);
      case 0xce:
        return this.unsigned(4, 2 ** 16);
      case 0xcf:
        return this.unsigned(8, 2 ** 32);
      case 0xd0:
        return this.negative(1, -(2 ** 5));
      case 0xd1:
        return this.negative(2, -(2 ** 7));
      case 0xd2:
        return this.negative(4, -(2 ** 15));
      case 0xd3:
        return this.negative(8, -(2 ** 31));
      case 0xd9:
        return this.string(this.unsigned(1, 32));
      case 0xda:
        return this.string(this.unsigned(2, 2 ** 8));
      case 0xdb:
        return this.string(this.unsigned(4, 2 ** 16));
      case 0xdc:
        return this.array(this.unsigned(2, 16), depth);
      case 0xdd:
        return this.array(this.unsigned(4, 2 ** 16), depth);
      case 0xde:
        return this.map(this.unsigned(2, 16), depth);
      case 0xdf:
        return this.map(this.unsigned(4, 2 ** 16), depth);
      default:
        return malformed("directory.canonical", "floating-point number, binary string or extension type");
    }
  }

  string(length) {
    const start = this.skip(length);
    try {
      return UTF8.decode(this.bytes.subarray(start, start + length));
    } catch {
      return malformed("directory.canonical", "string that is not UTF-8");
    }
  }

  array(length, depth) {
    this.enter(length, depth);
    const items = [];
    for (let i = 0; i < length; i++) items.push(this.value(depth + 1));
    return items;
  }

  map(length, depth) {
    this.enter(2 * length, depth);
    const map = new Map();
    let before = null;
    for (let i = 0; i < length; i++) {
      const start = this.position;
      const key = this.value(depth + 1);
      if (typeof key !== "string") malformed("directory.canonical", "key that is not a string");
      const head = stringHead(this.bytes[start]);
      const bytes = this.bytes.subarray(start + head, this.position);
      if (before !== null && !isBelow(before, bytes)) {
        malformed("directory.canonical", "keys are not in ascending order");
      }
      before = bytes;
      map.set(key, this.value(depth + 1));
    }
    return map;
  }

  enter(values, depth) {
    if (depth > MAX_NESTING) malformed("directory.nesting", `arrays and maps deeper than ${MAX_NESTING}`);
    if (values > this.left) malformed("directory.values", "too many values");
  }
}

/** A number if it can hold the integer, a BigInt otherwise. */
function exact(integer) {
  const number = Number(integer);
  return Number.isSafeInteger(number) ? number : integer;
}

/** Bytes before the text of a string that begins with this byte. */
function stringHead(byte) {
  return byte < 0xc0 ? 1 : byte === 0xd9 ? 2 : byte === 0xda ? 3 : 5;
}

/** Whether the bytes a stand before b. */
function isBelow(a, b) {
  const n = Math.min(a.length, b.length);
  for (let i = 0; i < n; i++) {
    if (a[i] !== b[i]) return a[i] < b[i];
  }
  return a.length < b.length;
}

/** The one value in bytes, of at most `most` values: null, boolean, number or BigInt, string, Array or Map. */
export function parse(bytes, most) {
  const parser = new Parser(bytes, most);
  const value = parser.value(0);
  if (parser.position < bytes.length) malformed("directory.msgpack", "bytes behind the directory's value");
  return value;
}
