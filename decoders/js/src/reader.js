/** Descriptors (specification, 3.3) and packed integers (6.1). */

import { MalformedError } from "./errors.js";

/** Reads the elements of one segment, head or header from its first byte to its last. */
export class Reader {
  /**
   * @param {Uint8Array} bytes all that may be read
   * @param {number | undefined} base place of the first byte in the file; undefined for inflated bytes
   */
  constructor(bytes, base) {
    this.bytes = bytes;
    this.base = base;
    this.position = 0;
  }

  get left() {
    return this.bytes.length - this.position;
  }

  fail(rule, detail, position = this.position) {
    const offset = this.base === undefined ? undefined : this.base + position;
    throw new MalformedError(rule, detail, { offset });
  }

  /** Moves on by n bytes and returns where they begin. */
  skip(n) {
    if (n > this.left) this.fail("segment.short", `${n} bytes needed, ${this.left} left`);
    const start = this.position;
    this.position += n;
    return start;
  }

  /** The next n bytes, not copied. */
  take(n) {
    const start = this.skip(n);
    return this.bytes.subarray(start, start + n);
  }

  /** Nothing may be left over. */
  end() {
    if (this.left > 0) this.fail("segment.surplus", `${this.left} bytes left over`);
  }

  u8() {
    return this.bytes[this.skip(1)];
  }

  u16() {
    const at = this.skip(2);
    return this.bytes[at] | (this.bytes[at + 1] << 8);
  }

  u32() {
    return this.u32At(this.skip(4));
  }

  u32At(at) {
    const b = this.bytes;
    return (b[at] | (b[at + 1] << 8) | (b[at + 2] << 16) | (b[at + 3] << 24)) >>> 0;
  }

  /**
   * `uv(most)`. A number above 2^53 is rounded, which keeps it above every `most`.
   */
  uv(most = Infinity) {
    const start = this.position;
    let value = 0;
    let byte = 0;
    for (let i = 0; i === 0 || byte >= 128; i++) {
      byte = this.u8();
      if (i === 9 && byte > 1) this.fail("integer.size", "integer of 2^64 or more", start);
      value += (byte & 127) * 2 ** (7 * i);
    }
    if (byte === 0 && this.position > start + 1) {
      this.fail("integer.shortest", "integer with a last byte of 0", start);
    }
    if (value > most) this.fail("integer.range", `${value} is above ${most}`, start);
    return value;
  }

  /** `sv(most)`. */
  sv(most) {
    const code = this.uv(2 * most + 1);
    return code % 2 === 0 ? code / 2 : -(code + 1) / 2;
  }

  /** The next `bits` bits, packed; the bytes that they take are passed over. */
  packed(bits) {
    const size = Math.ceil(bits / 8);
    const spare = size * 8 - bits;
    const start = this.skip(size);
    if (spare > 0 && this.bytes[start + size - 1] >> (8 - spare) !== 0) {
      this.fail("bits.spare", "spare bits are not 0", start + size - 1);
    }
    return new Bits(this.bytes, start);
  }
}

/** Packed integers, taken one after the other; how many there are is the caller's care. */
class Bits {
  constructor(bytes, position) {
    this.bytes = bytes;
    this.position = position;
    this.held = 0;
    this.count = 0;
  }

  /** The next integer of `width` bits, 0 to 24. */
  read(width) {
    while (this.count < width) {
      this.held |= this.bytes[this.position++] << this.count;
      this.count += 8;
    }
    const value = this.held & ((1 << width) - 1);
    this.held >>>= width;
    this.count -= width;
    return value;
  }

  /** Fills values with the next integers of `width` bits. */
  fill(values, width) {
    if (width === 8 && this.count === 0) {
      values.set(this.bytes.subarray(this.position, this.position + values.length));
      this.position += values.length;
      return;
    }
    for (let i = 0; i < values.length; i++) values[i] = this.read(width);
  }
}
