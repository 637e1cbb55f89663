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

/** The elements of `stream( )` for n integers; symbols are for the caller to decode. */
export class Stream {
  /** @param {Uint8Array | null} tableOf index of the table of each integer; null if none has low bits */
  constructor(reader, tables, n, tableOf) {
    const start = reader.position;
    const words = reader.uv();
    const escapes = reader.uv(n);
    const escape_size = escapes > 0 ? reader.u8() : 1;
    if (escape_size !== 1 && escape_size !== 2 && escape_size !== 4) {
      reader.fail("stream.escape_size", `escape_size ${escape_size}`, reader.position - 1);
    }
    this.reader = reader;
    this.start = start;
    this.decoder = new RangeDecoder(reader, reader.skip(4 * words), words);
    this.escapes = new Escapes(reader, reader.skip(escape_size * escapes), escapes, escape_size);
    /** low_bits lowest bits of each integer; null if there are none at all */
    this.low = tableOf === null ? null : readLow(reader, tables, tableOf);
  }

  end() {
    this.decoder.end();
    this.escapes.end();
  }

  outOfRange(value) {
    this.reader.fail("stream.range", `${value} is beyond ${MAX_VALUE}`, this.start);
  }
}

/** `low`: the lowest bits of integers with the given tables. */
function readLow(reader, tables, tableOf) {
  const widths = Uint8Array.from(tables, (table) => table.low_bits);
  const counts = new Uint32Array(tables.length);
  for (let i = 0; i < tableOf.length; i++) counts[tableOf[i]]++;
  const bits = counts.reduce((sum, count, k) => sum + count * widths[k], 0);
  if (bits === 0) return null;
  const packed = reader.packed(bits);
  const low = allocate(Int32Array, tableOf.length);
  for (let i = 0; i < low.length; i++) {
    const width = widths[tableOf[i]];
    if (width > 0) low[i] = packed.read(width);
  }
  return low;
}

/** Positions sorted by table, those of one table in ascending order: a step of a stream. */
export class Order {
  constructor(tableOf) {
    const n = tableOf.length;
    this.order = allocate(Uint32Array, n);
    /** Table k has the positions order[starts[k] .. starts[k + 1] - 1]. */
    this.starts = new Uint32Array(MAX_TABLES + 1);
    for (let i = 0; i < n; i++) this.starts[tableOf[i] + 1]++;
    for (let k = 0; k < MAX_TABLES; k++) this.starts[k + 1] += this.starts[k];
    const next = this.starts.slice();
    for (let i = 0; i < n; i++) this.order[next[tableOf[i]]++] = i;
  }
}

/** `stream( )` without a trellis: puts the integers into values. */
export function readStream(reader, tables, tableOf, values) {
  const n = tableOf.length;
  const hasLow = tables.some((table) => table.low_bits > 0);
  const stream = new Stream(reader, tables, n, hasLow ? tableOf : null);
  const { order, starts } = new Order(tableOf);
  for (let k = 0; k < tables.length; k++) {
    stream.decoder.run(tables[k], order, starts[k], starts[k + 1], values, stream.escapes);
  }
  stream.end();
  const { low, escapes } = stream;
  if (low === null && escapes.count === 0) return;
  for (let i = 0; i < n; i++) {
    const value = values[i] * 2 ** tables[tableOf[i]].low_bits + (low === null ? 0 : low[i]);
    if (Math.abs(value) > MAX_VALUE) stream.outOfRange(value);
    values[i] = value;
  }
}
