/** Streams of range-coded integers (specification, 5.4); the steps of a trellis are in payload.js. */

import { allocate } from "./errors.js";
import { RangeDecoder } from "./range-decoder.js";
import { MAX_TABLES, MAX_VALUE } from "./registry.js";

/** Escaped symbols in the order of decoding. */
class Escapes {
  constructor(reader, start, count, size) {
    this.reader = reader;
    this.start = start;
    this.count = count;
    this.size = size;
    this.taken = 0;
  }

  next(table) {
    if (this.taken === this.count) this.reader.fail("stream.escapes", `more escapes than ${this.count}`, this.start);
    const at = this.start + this.size * this.taken++;
    const { bytes } = this.reader;
    let symbol;
    if (this.size === 1) symbol = (bytes[at] << 24) >> 24;
    else if (this.size === 2) symbol = ((bytes[at] << 16) | (bytes[at + 1] << 24)) >> 16;
    else symbol = this.reader.u32At(at) | 0;
    if (symbol >= table.low && symbol < table.low + table.size) {
      this.reader.fail("stream.escape", `escape of ${symbol}, which the table has`, at);
    }
    // Low bits can still take an integer out of range; here only what no low bits can mend.
    const unit = 2 ** table.low_bits;
    if (symbol * unit > MAX_VALUE || (symbol + 1) * unit - 1 < -MAX_VALUE) {
      this.reader.fail("stream.range", `escape of ${symbol} with ${table.low_bits} low bits`, at);
    }
    return symbol;
  }

  end() {
    if (this.taken !== this.count) {
      this.reader.fail("stream.escapes", `${this.taken} escapes decoded of ${this.count}`, this.start);
    }
  }
}

/** The elements of `stream( )` for integers with the given tables; symbols are for the caller to decode. */
export class Stream {
  /** @param {Uint8Array} tableOf index of the table of each integer */
  constructor(reader, tables, tableOf) {
    const start = reader.position;
    const words = reader.uv();
    const escapes = reader.uv(tableOf.length);
    const escape_size = escapes > 0 ? reader.u8() : 1;
    if (escape_size !== 1 && escape_size !== 2 && escape_size !== 4) {
      reader.fail("stream.escape_size", `escape_size ${escape_size}`, reader.position - 1);
    }
    this.reader = reader;
    this.start = start;
    this.decoder = new RangeDecoder(reader, reader.skip(4 * words), words);
    this.escapes = new Escapes(reader, reader.skip(escape_size * escapes), escapes, escape_size);
    /** low_bits lowest bits of each integer; null if no table has any */
    this.low = this.readLow(tables, tableOf);
  }

  readLow(tables, tableOf) {
    const widths = Uint8Array.from(tables, (table) => table.low_bits);
    if (widths.every((width) => width === 0)) return null;
    let bits = 0;
    for (let i = 0; i < tableOf.length; i++) bits += widths[tableOf[i]];
    const packed = this.reader.packed(bits);
    if (bits === 0) return null;
    const low = allocate(Int32Array, tableOf.length);
    for (let i = 0; i < low.length; i++) low[i] = packed.read(widths[tableOf[i]]);
    return low;
  }

  end() {
    this.decoder.end();
    this.escapes.end();
  }

  outOfRange(value) {
    this.reader.fail("stream.range", `${value} is beyond ${MAX_VALUE}`, this.start);
  }
}

/** Sorts positions by table, those of one table in ascending order: a step of a stream. */
export class Order {
  constructor(most) {
    this.order = allocate(Uint32Array, most);
    /** Table k has the positions order[starts[k] .. starts[k + 1] - 1]. */
    this.starts = new Uint32Array(MAX_TABLES + 1);
    this.next = new Uint32Array(MAX_TABLES + 1);
  }

  /** Sorts positions 0 .. n - 1 by keys, which are tables. */
  sort(keys, n) {
    const { order, starts, next } = this;
    starts.fill(0);
    for (let i = 0; i < n; i++) starts[keys[i] + 1]++;
    for (let k = 0; k < MAX_TABLES; k++) {
      starts[k + 1] += starts[k];
      next[k] = starts[k];
    }
    for (let i = 0; i < n; i++) order[next[keys[i]]++] = i;
  }
}

/** `stream( )` without a trellis: the integers. */
export function readStream(reader, tables, tableOf) {
  const n = tableOf.length;
  const stream = new Stream(reader, tables, tableOf);
  const values = allocate(Int32Array, n);
  const sorted = new Order(n);
  sorted.sort(tableOf, n);
  for (let k = 0; k < tables.length; k++) {
    stream.decoder.run(tables[k], sorted.order, sorted.starts[k], sorted.starts[k + 1], values, stream.escapes);
  }
  stream.end();
  const { low, escapes } = stream;
  if (low === null && escapes.count === 0) return values;
  for (let i = 0; i < n; i++) {
    const value = values[i] * 2 ** tables[tableOf[i]].low_bits + (low === null ? 0 : low[i]);
    if (Math.abs(value) > MAX_VALUE) stream.outOfRange(value);
    values[i] = value;
  }
  return values;
}
