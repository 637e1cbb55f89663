/** Payloads and the trellis (specification, chapter 7). */

import { allocate } from "./errors.js";
import { MAX_DEPTH, PayloadKind, Quantizer, TABLE_SUM } from "./registry.js";
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
  const trellis = head.quantizer === Quantizer.TRELLIS;
  const width = head.kept.length;
  const whole = columns === width; // whole rows lie in one piece in the matrix
  const size = rows * columns;
  const values = whole ? matrix.subarray(row * width, row * width + size) : allocate(Int32Array, size);
  if (head.payload_kind === PayloadKind.FIXED) {
    readFixed(reader, rows, depths, values);
    if (trellis) fromIndices(values, rows, columns, head.steps);
  } else {
    const lookup = new ColumnLookup(head, column, columns);
    const levels = head.levels_out.subarray(row, row + rows);
    if (trellis) readTrellis(reader, tables, lookup, levels, head.steps, values);
    else readStream(reader, tables, lookup.tablesOfTile(levels), values);
    checkDepths(reader, start, trellis, depths, values);
  }
  if (whole) return;
  for (let r = 0; r < rows; r++) {
    matrix.set(values.subarray(r * columns, (r + 1) * columns), (row + r) * width + column);
  }
}

/** Index k of depth d is in -2^(d-1) .. 2^(d-1) - 1; with the trellis that is 2k or 2k - sign(k) in -2^d .. 2^d - 2. */
function checkDepths(reader, start, trellis, depths, values) {
  const shift = trellis ? 0 : 1;
  const most = trellis ? 2 : 1;
  let least = MAX_DEPTH;
  for (let c = 0; c < depths.length; c++) least = Math.min(least, depths[c]);
  // Most values are in the range of every column.
  const low = -(1 << (least - shift));
  const high = -low - most;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value >= low && value <= high) continue;
    const depth = depths[i % depths.length];
    const end = 1 << (depth - shift);
    if (value < -end || value > end - most) {
      reader.fail("payload.depth", `coefficient ${value} in a column of depth ${depth}`, start);
    }
  }
}

function readFixed(reader, rows, depths, indices) {
  let bits = 0;
  for (const depth of depths) bits += depth;
  const packed = reader.packed(rows * bits);
  for (let i = 0; i < indices.length; ) {
    for (let c = 0; c < depths.length; c++, i++) {
      const unused = 32 - depths[c];
      indices[i] = (packed.read(depths[c]) << unused) >> unused;
    }
  }
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

/** Tables of the indices of a tile, those of quantizer 0; rows of the same level have the same ones. */
class ColumnLookup {
  constructor(head, column, columns) {
    this.columns = columns;
    this.table_map = head.table_map;
    this.columnLevels = head.columnLevels.subarray(column, column + columns);
    this.rows = new Map();
  }

  /** Tables of a row by column, and its columns sorted by table: a step of one row. */
  row(level) {
    const known = this.rows.get(level);
    if (known !== undefined) return known;
    const { table_map, columnLevels, columns } = this;
    const last = table_map.length - 1;
    const tableOf = new Uint8Array(columns);
    for (let c = 0; c < columns; c++) tableOf[c] = table_map[Math.min(level + columnLevels[c], last)];
    const row = { tableOf, sorted: new Order(tableOf) };
    this.rows.set(level, row);
    return row;
  }

  tablesOfTile(levels) {
    const tableOf = allocate(Uint8Array, levels.length * this.columns);
    levels.forEach((level, r) => tableOf.set(this.row(level).tableOf, r * this.columns));
    return tableOf;
  }
}

/** `stream( )` with a trellis: the coefficients of a tile. All segments of the trellis advance together. */
function readTrellis(reader, tables, lookup, levels, steps, values) {
  const { columns, table_map } = lookup;
  const bases = [...new Set(table_map)].sort((a, b) => a - b);
  const hasLow = bases.some((k) => tables[k].low_bits > 0);
  const stream = new Stream(reader, tables, values.length, hasLow ? lookup.tablesOfTile(levels) : null);
  // Indices of a step are named by the position, in the tile, of the first row of their segment.
  const states = allocate(Uint8Array, values.length);
  const most = Math.ceil(levels.length / steps) * columns;
  const zeros = allocate(Uint32Array, most);
  const merged = allocate(Uint32Array, most);
  let ones = allocate(Uint32Array, most);
  let held = allocate(Uint32Array, most);

  for (let step = 0; step < Math.min(steps, levels.length); step++) {
    const run = (table, list, n) => n > 0 && trellisRun(stream, tables[table], list, n, states, step * columns, values);
    // Table k has the indices of base k with quantizer 0 and, held from before, those of base k - 1 with quantizer 1.
    let heldTable = 0;
    let heldCount = 0;
    for (const base of bases) {
      let zeroCount = 0;
      let oneCount = 0;
      for (let r = step; r < levels.length; r += steps) {
        const { order, starts } = lookup.row(levels[r]).sorted;
        const first = (r - step) * columns;
        for (let i = starts[base]; i < starts[base + 1]; i++) {
          const position = first + order[i];
          const quantizer = states[position] & 1;
          zeros[zeroCount] = position;
          ones[oneCount] = position;
          zeroCount += 1 - quantizer;
          oneCount += quantizer;
        }
      }
      if (heldTable === base && heldCount > 0) {
        run(base, merge(held, heldCount, zeros, zeroCount, merged), heldCount + zeroCount);
      } else {
        run(heldTable, held, heldCount);
        run(base, zeros, zeroCount);
      }
      [held, ones] = [ones, held];
      heldTable = base + 1;
      heldCount = oneCount;
    }
    run(heldTable, held, heldCount);
  }
  stream.end();
}

/** Puts two ascending lists into one. */
function merge(a, aCount, b, bCount, out) {
  for (let i = 0, j = 0, n = 0; n < aCount + bCount; n++) {
    out[n] = j === bCount || (i < aCount && a[i] < b[j]) ? a[i++] : b[j++];
  }
  return out;
}

/**
 * As RangeDecoder.run, for indices of one step that have one table: gives coefficients and the next states.
 *
 * @param {Uint32Array} list what names the n indices; `shift` behind it is where they are in the tile
 */
function trellisRun(stream, table, list, n, states, shift, values) {
  const { decoder, escapes, low } = stream;
  const { low_bits, size, starts, weights, numbers } = table;
  const lowest = table.low;
  const coded = table.members > 1;
  if (coded) decoder.used = true;
  let { d, e, R, position } = decoder;
  for (let i = 0; i < n; i++) {
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
    const at = list[i];
    if (low_bits > 0) k = (k << low_bits) + low[at + shift];
    // No k here is far beyond MAX_VALUE, so that one beyond it still gives a coefficient that no depth allows.
    const state = states[at];
    states[at] = NEXT[2 * state + (k & 1)];
    values[at + shift] = (k << 1) - ((k > 0) - (k < 0)) * (state & 1);
  }
  decoder.d = d;
  decoder.e = e;
  decoder.R = R;
  decoder.position = position;
}
