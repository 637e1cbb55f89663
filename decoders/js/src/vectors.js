/** Vectors (specification, 6.2) and the stream at the end of a head that holds the coded ones (6.3). */

import { allocate } from "./errors.js";
import { MAX_HEAD, MAX_VECTOR, VectorKind } from "./registry.js";
import { readStream } from "./stream.js";
import { readTableIndex } from "./tables.js";

/** What the stream of a head codes: filled in the order of the head once the stream is reached. */
export class HeadStream {
  constructor(elements) {
    this.most = Math.min(MAX_HEAD, 2 ** 16 + 4 * elements);
    this.count = 0;
    this.items = [];
  }

  /** Announces n integers, integer i with the table tableAt(i); `take` gets them. */
  add(n, tableAt, take) {
    this.count += n;
    this.items.push({ n, tableAt, take });
  }

  read(reader, tables) {
    if (this.count > this.most) reader.fail("head.size", `${this.count} integers in the head, of ${this.most}`);
    if (this.items.length === 0) return;
    const start = reader.position;
    const tableOf = allocate(Uint8Array, this.count);
    let at = 0;
    for (const { n, tableAt } of this.items) {
      for (let i = 0; i < n; i++) tableOf[at + i] = tableAt(i);
      at += n;
    }
    const values = allocate(Int32Array, this.count);
    readStream(reader, tables, tableOf, values);
    at = 0;
    for (const { n, take } of this.items) {
      take(values.subarray(at, at + n), start);
      at += n;
    }
  }
}

/** `vector(n, most)`; the integers of kind CODED are 0 until the stream of the head has been read. */
export function readVector(reader, n, most, tables, headStream) {
  const start = reader.position;
  const check = (value, at) => {
    if (value < 0 || value > most) reader.fail("vector.range", `${value} in a vector of 0 to ${most}`, at);
  };
  const values = allocate(Uint8Array, n);
  const kind = reader.u8();
  if (kind === VectorKind.CONSTANT) {
    const value = reader.uv(MAX_VECTOR);
    if (n > 0) check(value, start);
    values.fill(value);
  } else if (kind === VectorKind.PACKED) {
    const width = reader.u8();
    if (width < 1 || width > 8) reader.fail("vector.width", `width ${width}`, start + 1);
    reader.packed(n * width).fill(values, width);
    for (let i = 0; i < n; i++) check(values[i], start);
  } else if (kind === VectorKind.CODED) {
    const table = readTableIndex(reader, tables);
    headStream.add(
      n,
      () => table,
      (coded, at) => {
        for (let i = 0; i < n; i++) check(coded[i], at);
        values.set(coded);
      },
    );
  } else {
    reader.fail("vector.kind", `kind ${kind}`, start);
  }
  return values;
}
