/** Payloads and the trellis (specification, chapter 7). */

import { allocate } from "./errors.js";
import { PayloadKind, Quantizer, TABLE_SUM } from "./registry.js";
import { Order, Stream, readStream } from "./stream.js";

/** Next state by state * 2 + parity; the quantizer of state s is s mod 2. */
const NEXT = Uint8Array.of(0, 2, 5, 7, 1, 3, 4, 6, 2, 0, 7, 5, 3, 1, 6, 4);

/** Number of tiles of the matrix of coefficients; may be more than there are segments. */
export function countTiles(head) {
  const { rows, kept } = head;
  return Math.ceil(rows / head.tile_rows) * Math.ceil(kept.length / head.tile_columns);
}

/** Calls visit(row, column, rows, columns) for each tile in the order of the file. */
export function eachTile(head, visit) {
  for (let row = 0; row < head.rows; row += head.tile_rows) {
    for (let column = 0; column < head.kept.length; column += head.tile_columns) {
      const rows = Math.min(head.tile_rows, head.rows - row);
      visit(row, column, rows, Math.min(head.tile_columns, head.kept.length - column));
    }
  }
}

/**
 * `payload( )` of the tile whose upper left corner is (row, column): its coefficients go into the matrix.
 *
 * @param {Int32Array} matrix coefficients, head.rows x head.kept.length
 */
export function readPayload(reader, head, tables, matrix, row, column, rows, columns) {
  const start = reader.position;
  const depths = head.keptDepths.subarray(column, column + columns);
  const fixed = head.payload_kind === PayloadKind.FIXED;
  const trellis = head.quantizer === Quantizer.TRELLIS;
  let values;
  if (fixed) {
    values = readFixed(reader, rows, depths);
    if (trellis) fromIndices(values, rows, columns, head.steps);
  } else {
    const tableOf = tablesOfTile(head, row, column, rows, columns);
    values = trellis
      ? readTrellis(reader, tables, tableOf, rows, columns, head.steps)
      : readStream(reader, tables, tableOf);
  }
  // Index k of depth d is in -2^(d-1) .. 2^(d-1) - 1; with the trellis that is 2k or 2k - sign(k) in -2^d .. 2^d - 2.
  const lowest = Int32Array.from(depths, (depth) => -(2 ** (trellis ? depth : depth - 1)));
  const highest = lowest.map((low) => -low - (trellis ? 2 : 1));
  const width = head.kept.length;
  for (let r = 0, i = 0; r < rows; r++) {
    let at = (row + r) * width + column;
    for (let c = 0; c < columns; c++, i++) {
      const value = values[i];
      if (value < lowest[c] || value > highest[c]) {
        reader.fail("payload.depth", `coefficient ${value} in a column of depth ${depths[c]}`, start);
      }
      matrix[at++] = value;
    }
  }
}

function readFixed(reader, rows, depths) {
  let bits = 0;
  for (const depth of depths) bits += depth;
  const packed = reader.packed(rows * bits);
  const indices = allocate(Int32Array, rows * depths.length);
  for (let i = 0; i < indices.length; ) {
    for (let c = 0; c < depths.length; c++, i++) {
      const unused = 32 - depths[c];
      indices[i] = (packed.read(depths[c]) << unused) >> unused;
    }
  }
  return indices;
}

/** Turns the indices of a tile into coefficients. */
function fromIndices(values, rows, columns, steps) {
  for (let c = 0; c < columns; c++) {
    let state = 0;
    for (let r = 0; r < rows; r++) {
      if (r % steps === 0) state = 0;
      const at = r * columns + c;
      const k = values[at];
      values[at] = 2 * k - (state & 1 ? Math.sign(k) : 0);
      state = NEXT[2 * state + (k & 1)];
    }
  }
}

/** Index of the table of each index of a tile, that of quantizer 0. */
function tablesOfTile(head, row, column, rows, columns) {
  const { table_map, levels_out, columnLevels } = head;
  const tableOf = allocate(Uint8Array, rows * columns);
  const known = new Map(); // start of a row with the same level
  for (let r = 0; r < rows; r++) {
    const level = levels_out[row + r];
    const at = r * columns;
    const same = known.get(level);
    if (same !== undefined) {
      tableOf.copyWithin(at, same, same + columns);
      continue;
    }
    known.set(level, at);
    for (let c = 0; c < columns; c++) {
      tableOf[at + c] = table_map[Math.min(level + columnLevels[column + c], table_map.length - 1)];
    }
  }
  return tableOf;
}

/** `stream( )` with a trellis: the coefficients of a tile. All segments of the trellis advance together. */
function readTrellis(reader, tables, tableOf, rows, columns, steps) {
  const stream = new Stream(reader, tables, tableOf);
  const values = allocate(Int32Array, rows * columns);
  const most = Math.ceil(rows / steps) * columns; // indices of step 0
  const states = new Uint8Array(most);
  const keys = new Uint8Array(most);
  const places = new Uint32Array(most); // positions of step 0
  for (let i = 0; i < most; i++) places[i] = i + Math.floor(i / columns) * (steps - 1) * columns;
  const sorted = new Order(most);
  for (let step = 0; step < Math.min(steps, rows); step++) {
    const n = Math.ceil((rows - step) / steps) * columns;
    const shift = step * columns;
    for (let i = 0; i < n; i++) keys[i] = tableOf[places[i] + shift] + (states[i] & 1);
    sorted.sort(keys, n);
    for (let k = 0; k < tables.length; k++) {
      const from = sorted.starts[k];
      const to = sorted.starts[k + 1];
      if (from < to) trellisRun(stream, tables[k], sorted.order, from, to, states, places, shift, values);
    }
  }
  stream.end();
  return values;
}

/** As RangeDecoder.run, for the indices order[from .. to - 1] of one step: gives coefficients and the next states. */
function trellisRun(stream, table, order, from, to, states, places, shift, values) {
  const { decoder, escapes, low } = stream;
  const { low_bits, size, starts, weights } = table;
  const lowest = table.low;
  const { numbers } = table;
  const coded = table.members > 1;
  if (coded) decoder.used = true;
  let { d, e, R, position } = decoder;
  for (let i = from; i < to; i++) {
    let k = lowest;
    if (coded) {
      const s = Math.floor(R * 2 ** -12);
      const slot = (d / s) | 0;
      if (slot >= TABLE_SUM) decoder.invalid();
      const number = numbers[slot];
      d -= s * starts[number];
      R = s * weights[number];
      if (R < 2 ** 20) {
        const word = decoder.word(position++);
        d = d * 2 ** 32 + e * 2 ** 20 + (word >>> 12);
        e = word & 0xfff;
        R *= 2 ** 32;
      }
      k = number < size ? lowest + number : escapes.next(table);
    }
    const j = order[i];
    const at = places[j] + shift;
    if (low_bits > 0) k = (k << low_bits) + low[at];
    // No k here is far beyond MAX_VALUE, so that one beyond it still gives a coefficient that no depth allows.
    const state = states[j];
    states[j] = NEXT[2 * state + (k & 1)];
    values[at] = (k << 1) - ((k > 0) - (k < 0)) * (state & 1);
  }
  decoder.d = d;
  decoder.e = e;
  decoder.R = R;
  decoder.position = position;
}
