/** Tables (specification, 5.1). */

import { inflate } from "./inflate.js";
import { Reader } from "./reader.js";
import {
  ESCAPE,
  MAX_ALPHABET,
  MAX_LOW_BITS,
  MAX_TABLES,
  MAX_TABLE_LOW,
  MAX_VALUE,
  MAX_WEIGHTS,
  SYMMETRIC,
  TABLE_SUM,
} from "./registry.js";

/** Integer weights of consecutive integers, and what the range decoder looks up in them. */
export class Table {
  constructor(low, size, low_bits, weights) {
    this.low = low;
    this.size = size;
    this.low_bits = low_bits;
    this.weights = weights; // of the members in the order of their numbers; the escape is the last
    this.starts = new Float64Array(weights.length);
    for (let i = 1; i < weights.length; i++) this.starts[i] = this.starts[i - 1] + weights[i - 1];
    this.slots = null;
  }

  get members() {
    return this.weights.length;
  }

  /** Number of the member in whose interval a slot of 0 .. TABLE_SUM - 1 is; made when it is first needed. */
  get numbers() {
    if (this.slots === null) {
      this.slots = new Uint16Array(TABLE_SUM);
      for (let n = 0; n < this.members; n++) {
        this.slots.fill(n, this.starts[n], this.starts[n] + this.weights[n]);
      }
    }
    return this.slots;
  }
}

function readTable(reader, left) {
  const start = reader.position;
  const flags = reader.u8();
  if ((flags & ~(SYMMETRIC | ESCAPE)) !== 0) reader.fail("table.flags", `flags ${flags}`, start);
  const low_bits = reader.u8();
  if (low_bits > MAX_LOW_BITS) reader.fail("table.low_bits", `${low_bits} low bits`, start + 1);
  const symmetric = (flags & SYMMETRIC) !== 0;
  const half = symmetric ? reader.uv(MAX_ALPHABET) : 0;
  const low = symmetric ? -half : reader.sv(MAX_TABLE_LOW);
  const size = symmetric ? 2 * half + 1 : reader.uv(MAX_ALPHABET);
  if (size < 1 || size >= MAX_ALPHABET) reader.fail("table.size", `${size} symbols`, start);
  if (size > left) reader.fail("table.total", `more than ${MAX_WEIGHTS} symbols in all tables`, start);
  if (Math.max(-low, low + size) * 2 ** low_bits > MAX_VALUE) {
    reader.fail("table.range", `symbols from ${low} on with ${low_bits} low bits`, start);
  }
  const weights = new Float64Array(size + (flags & ESCAPE ? 1 : 0));
  let sum = 0;
  const readWeight = () => {
    const weight = reader.uv();
    if (weight < 1) reader.fail("table.weight", "weight of 0");
    return weight;
  };
  for (let n = half; n < size; n++) {
    weights[n] = readWeight();
    if (symmetric) weights[2 * half - n] = weights[n];
  }
  if (flags & ESCAPE) weights[size] = readWeight();
  for (const weight of weights) sum += weight;
  if (sum !== TABLE_SUM) reader.fail("table.sum", `weights sum to ${sum}, not ${TABLE_SUM}`, start);
  return new Table(low, size, low_bits, weights);
}

/** The tables of a file from the bytes of their segment. */
export function readTables(segment, bytes) {
  const outer = new Reader(bytes, segment.offset);
  const fail = (rule, detail) => outer.fail(rule, detail);
  const reader = segment.size > 0 ? new Reader(inflate(bytes, segment.size, fail)) : outer;
  const count = reader.uv();
  if (count > MAX_TABLES) reader.fail("table.count", `${count} tables`, 0);
  const tables = [];
  let left = MAX_WEIGHTS;
  for (let i = 0; i < count; i++) {
    tables.push(readTable(reader, left));
    left -= tables[i].size;
  }
  reader.end();
  return tables;
}

/** `u8` of a table's index. */
export function readTableIndex(reader, tables) {
  const index = reader.u8();
  if (index >= tables.length) {
    reader.fail("table.index", `table ${index} of ${tables.length}`, reader.position - 1);
  }
  return index;
}
