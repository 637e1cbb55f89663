/**
 * Raw DEFLATE (RFC 1951), strictly as the specification's 3.3 has it.
 *
 * The platform's own DecompressionStream is not used: versions differ in what they take at the end
 * of a stream, and none says where the last block ended.
 */

import { allocate } from "./errors.js";

const FAST = 10; // bits of the table that gives a symbol at once
const LENGTH_ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
const LENGTH_BASE = new Uint16Array(29);
const LENGTH_EXTRA = new Uint8Array(29);
const DISTANCE_BASE = new Uint16Array(30);
const DISTANCE_EXTRA = new Uint8Array(30);

for (let i = 0, base = 3; i < 28; i++) {
  LENGTH_EXTRA[i] = i < 8 ? 0 : (i >> 2) - 1;
  LENGTH_BASE[i] = base;
  base += 1 << LENGTH_EXTRA[i];
}
LENGTH_BASE[28] = 258;
for (let i = 0, base = 1; i < 30; i++) {
  DISTANCE_EXTRA[i] = i < 4 ? 0 : (i >> 1) - 1;
  DISTANCE_BASE[i] = base;
  base += 1 << DISTANCE_EXTRA[i];
}

/** A prefix code from the lengths of its codes; lengths are checked by `isComplete`. */
class Code {
  constructor(lengths) {
    this.counts = new Uint16Array(16);
    for (const length of lengths) this.counts[length]++;
    this.used = lengths.length - this.counts[0];
    const starts = new Uint16Array(17);
    const next = new Uint16Array(17);
    let code = 0;
    this.space = 1 << 15; // what the codes leave of 2^15
    for (let length = 1; length < 16; length++) {
      starts[length + 1] = starts[length] + this.counts[length];
      next[length] = code;
      code = (code + this.counts[length]) << 1;
      this.space -= this.counts[length] << (15 - length);
    }
    this.symbols = new Uint16Array(this.used); // in the order of their codes
    this.fast = new Uint16Array(1 << FAST); // symbol << 4 | length, 0 for none
    if (this.space < 0) return;
    for (let symbol = 0; symbol < lengths.length; symbol++) {
      const length = lengths[symbol];
      if (length === 0) continue;
      this.symbols[starts[length]++] = symbol;
      const forward = next[length]++;
      if (length > FAST) continue;
      let reversed = 0;
      for (let i = 0; i < length; i++) reversed |= ((forward >> i) & 1) << (length - 1 - i);
      for (let i = reversed; i < 1 << FAST; i += 1 << length) this.fast[i] = (symbol << 4) | length;
    }
  }

  get isComplete() {
    return this.space === 0;
  }

  get isSingle() {
    return this.used === 1 && this.counts[1] === 1;
  }
}

const FIXED_LENGTHS = new Uint8Array(288).fill(8, 0, 144).fill(9, 144, 256).fill(7, 256, 280).fill(8, 280);
const FIXED_LITERALS = new Code(FIXED_LENGTHS);
const FIXED_DISTANCES = new Code(new Uint8Array(32).fill(5));

class Inflater {
  constructor(bytes, size, fail) {
    this.bytes = bytes;
    this.fail = fail;
    this.position = 0; // may run past the end by a few bytes, which count as 0 until one is used
    this.held = 0;
    this.count = 0;
    this.output = allocate(Uint8Array, size);
    this.size = 0;
  }

  need(n) {
    while (this.count < n) {
      this.held |= (this.position < this.bytes.length ? this.bytes[this.position] : 0) << this.count;
      this.position++;
      this.count += 8;
    }
  }

  drop(n) {
    this.held >>>= n;
    this.count -= n;
    // Bytes held but not used yet are none of the stream's.
    if (this.position - (this.count >> 3) > this.bytes.length) this.fail("deflate.size", "stream is cut off");
  }

  bits(n) {
    this.need(n);
    const value = this.held & ((1 << n) - 1);
    this.drop(n);
    return value;
  }

  symbol(code) {
    this.need(15);
    const entry = code.fast[this.held & ((1 << FAST) - 1)];
    if (entry !== 0) {
      this.drop(entry & 15);
      return entry >> 4;
    }
    let value = 0;
    let first = 0;
    let index = 0;
    for (let length = 1; length < 16; length++) {
      value |= (this.held >> (length - 1)) & 1;
      const count = code.counts[length];
      if (value - first < count) {
        this.drop(length);
        return code.symbols[index + value - first];
      }
      index += count;
      first = (first + count) << 1;
      value <<= 1;
    }
    return this.fail("deflate.stream", "code that is missing");
  }

  stored() {
    this.drop(this.count & 7);
    const length = this.bits(16);
    if (this.bits(16) !== (length ^ 0xffff)) this.fail("deflate.stream", "lengths of a stored block differ");
    this.position -= this.count >> 3;
    this.held = this.count = 0;
    if (length > this.bytes.length - this.position) this.fail("deflate.size", "stream is cut off");
    if (length > this.output.length - this.size) this.fail("deflate.size", "too many bytes");
    this.output.set(this.bytes.subarray(this.position, this.position + length), this.size);
    this.position += length;
    this.size += length;
  }

  codes() {
    const literals = this.bits(5) + 257;
    const distances = this.bits(5) + 1;
    const count = this.bits(4) + 4;
    if (literals > 286 || distances > 30) this.fail("deflate.stream", "too many codes");
    const first = new Uint8Array(19);
    for (let i = 0; i < count; i++) first[LENGTH_ORDER[i]] = this.bits(3);
    const code = new Code(first);
    if (!code.isComplete) this.fail("deflate.stream", "code for code lengths is not complete");
    const lengths = new Uint8Array(literals + distances);
    for (let i = 0; i < lengths.length; ) {
      const symbol = this.symbol(code);
      if (symbol < 16) {
        lengths[i++] = symbol;
        continue;
      }
      if (symbol === 16 && i === 0) this.fail("deflate.stream", "no code length to repeat");
      const value = symbol === 16 ? lengths[i - 1] : 0;
      const repeat = symbol === 16 ? 3 + this.bits(2) : symbol === 17 ? 3 + this.bits(3) : 11 + this.bits(7);
      if (repeat > lengths.length - i) this.fail("deflate.stream", "too many code lengths");
      lengths.fill(value, i, i + repeat);
      i += repeat;
    }
    if (lengths[256] === 0) this.fail("deflate.stream", "no code for the end of a block");
    const literalCode = new Code(lengths.subarray(0, literals));
    const distanceCode = new Code(lengths.subarray(literals));
    if (!literalCode.isComplete && !literalCode.isSingle) {
      this.fail("deflate.stream", "code for literals and lengths is not complete");
    }
    if (!distanceCode.isComplete && !distanceCode.isSingle && distanceCode.used > 0) {
      this.fail("deflate.stream", "code for distances is not complete");
    }
    this.block(literalCode, distanceCode);
  }

  block(literals, distances) {
    const output = this.output;
    for (;;) {
      const symbol = this.symbol(literals);
      if (symbol < 256) {
        if (this.size === output.length) this.fail("deflate.size", "too many bytes");
        output[this.size++] = symbol;
        continue;
      }
      if (symbol === 256) return;
      if (symbol > 285) this.fail("deflate.stream", `length code ${symbol}`);
      const length = LENGTH_BASE[symbol - 257] + this.bits(LENGTH_EXTRA[symbol - 257]);
      const code = this.symbol(distances);
      if (code > 29) this.fail("deflate.stream", `distance code ${code}`);
      const distance = DISTANCE_BASE[code] + this.bits(DISTANCE_EXTRA[code]);
      if (distance > this.size) this.fail("deflate.stream", "distance reaches behind the first byte");
      if (length > output.length - this.size) this.fail("deflate.size", "too many bytes");
      for (let i = 0, at = this.size; i < length; i++, at++) output[at] = output[at - distance];
      this.size += length;
    }
  }

  run() {
    let last = 0;
    while (last === 0) {
      last = this.bits(1);
      const kind = this.bits(2);
      if (kind === 0) this.stored();
      else if (kind === 1) this.block(FIXED_LITERALS, FIXED_DISTANCES);
      else if (kind === 2) this.codes();
      else this.fail("deflate.stream", "block of kind 3");
    }
    const end = this.position - (this.count >> 3);
    if (this.size !== this.output.length) {
      this.fail("deflate.size", `${this.size} bytes, not ${this.output.length}`);
    }
    if (end !== this.bytes.length) {
      this.fail("deflate.size", `stream ends ${this.bytes.length - end} bytes early`);
    }
    return this.output;
  }
}

/**
 * The `size` bytes that a stream inflates to; the stream has to fill its bytes to the last.
 *
 * @param {(rule: string, detail: string) => never} fail
 */
export function inflate(bytes, size, fail) {
  return new Inflater(bytes, size, fail).run();
}
