/**
 * The range decoder (specification, 5.2) in doubles.
 *
 * After the first symbol `range` is a multiple of 2^12, for `scale` is one. So range = 2^12 * R and
 * diff = 2^12 * d + e with e below 2^12, where R and d are below 2^52 and exact in doubles. With
 * s = floor(R / 2^12) it is scale = 2^12 * s and slot = floor(diff / scale) = floor(d / s). The quotient is
 * below 2^13 and s at most 2^40: were it less than a whole number, it would be so by 2^-40 at least,
 * which no rounding of the division closes. The first range, 2^64 - 1, gives s = 2^40 - 1 as R = 2^52 - 1 does.
 *
 * The two loops that decode runs hold d, e, R and position in local variables; nothing else about them differs
 * from the text.
 */

import { TABLE_SUM } from "./registry.js";

const SLOTS = 2 ** -12; // from R to s
const RENORMALISE = 2 ** 20; // R of a range of 2^32

export class RangeDecoder {
  /** Words are `count` u32 from byte `start` of the reader on. */
  constructor(reader, start, count) {
    this.reader = reader;
    this.start = start;
    this.count = count;
    const first = this.word(0);
    const second = this.word(1);
    this.d = first * 2 ** 20 + (second >>> 12);
    this.e = second & 0xfff;
    this.R = 2 ** 52 - 1;
    this.position = 2;
    this.used = false;
  }

  word(i) {
    return i < this.count ? this.reader.u32At(this.start + 4 * i) : 0;
  }

  invalid() {
    this.reader.fail("payload.invalid", "words give a symbol beyond the table", this.start);
  }

  /**
   * Decodes the numbers of positions order[from .. to - 1], all with one table, into symbols.
   *
   * @param {{ next(table: object): number }} escapes where the symbols of escapes come from
   */
  run(table, order, from, to, symbols, escapes) {
    const { low, size, starts, weights } = table;
    if (table.members === 1) {
      for (let i = from; i < to; i++) symbols[order[i]] = low;
      return;
    }
    if (from < to) this.used = true;
    const { numbers } = table;
    let { d, e, R, position } = this;
    for (let i = from; i < to; i++) {
      const s = Math.floor(R * SLOTS);
      const slot = (d / s) | 0;
      if (slot >= TABLE_SUM) this.invalid();
      const number = numbers[slot];
      d -= s * starts[number];
      R = s * weights[number];
      if (R < RENORMALISE) {
        const word = this.word(position++);
        d = d * 2 ** 32 + e * 2 ** 20 + (word >>> 12);
        e = word & 0xfff;
        R *= 2 ** 32;
      }
      symbols[order[i]] = number < size ? low + number : escapes.next(table);
    }
    this.d = d;
    this.e = e;
    this.R = R;
    this.position = position;
  }

  /** The canonical end. */
  end() {
    let count = 0;
    let clean = true;
    if (this.used) {
      // range - diff and diff against 2^32, in units of 2^12 and the rest.
      const extra = this.R - this.d < RENORMALISE || (this.R - this.d === RENORMALISE && this.e > 0);
      count = this.position - 1 + (extra ? 1 : 0);
      clean = this.d < RENORMALISE && !(extra && this.word(count - 1) !== 0);
    }
    if (!clean || this.count !== count) {
      this.reader.fail("payload.end", `words do not end as an encoder's would: ${this.count} of ${count}`, this.start);
    }
  }
}
