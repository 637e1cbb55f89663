/** The head of a transform-coded tensor (specification, chapter 9). */

import { UnsupportedError, allocate } from "./errors.js";
import { dctBasis } from "./dct.js";
import {
  Axis,
  BasisKind,
  FREE_CHANNELS,
  MAX_BASIS,
  MAX_BASIS_SHIFT,
  MAX_CLASSES,
  MAX_DCT,
  MAX_DCT_DIMENSIONS,
  MAX_DCT_TAPS,
  MAX_DEPTH,
  MAX_SCALE_EXPONENT,
  MAX_SCALE_MANTISSA,
  MAX_STEPS,
  MAX_SYMBOLS,
  MAX_VECTOR,
  MULTIPLIER_MANTISSA,
  PayloadKind,
  Quantizer,
  ROW_SCALE_MANTISSA,
  SUM_BITS,
  WORK_PER_BYTE,
} from "./registry.js";
import { readTableIndex } from "./tables.js";
import { HeadStream, readVector } from "./vectors.js";

const AXES = ["out", "in", "taps"];

/** The integers that codes of 8 bits stand for (9.4), by code; up to 15 * 2^30. */
function expanded(mantissa) {
  return Float64Array.from({ length: 256 }, (_, code) => {
    const exponent = code >> mantissa;
    const fraction = code % 2 ** mantissa;
    return exponent === 0 ? fraction : (2 ** mantissa + fraction) * 2 ** (exponent - 1);
  });
}

const ROW_SCALES = expanded(ROW_SCALE_MANTISSA);
const MULTIPLIERS = expanded(MULTIPLIER_MANTISSA);

/**
 * @typedef {object} Head `transform_head( )`
 * @property {number[]} roles axis of each dimension
 * @property {number[]} lengths O, I and T
 * @property {number[]} channels O', I' and T'
 * @property {number} scale
 * @property {(Float64Array | null)[]} bases entries [n, k] of each axis, for position n and channel k; null without
 * @property {number[]} basisKinds
 * @property {Uint8Array} depths by column
 * @property {number[]} table_map
 * @property {Uint8Array} row_scales codes
 * @property {Uint8Array} multipliers codes
 * @property {number} rows O'
 * @property {Uint32Array} kept columns with a depth above 0
 */

/** `transform_head( )` of a tensor of the given shape whose segments have `stored` bytes. @returns {Head} */
export function readHead(reader, shape, elements, stored, tables) {
  const head = { roles: [], lengths: [1, 1, 1], channels: [], bases: [], basisKinds: [] };
  for (const n of shape) {
    const role = reader.u8();
    if (role > Axis.TAPS) reader.fail("head.role", `role ${role}`, reader.position - 1);
    head.roles.push(role);
    head.lengths[role] *= n;
  }
  head.scale_mantissa = reader.uv(MAX_SCALE_MANTISSA);
  if (head.scale_mantissa === 0) reader.fail("head.scale", "scale of 0", reader.position - 1);
  head.scale_exponent = reader.sv(MAX_SCALE_EXPONENT);
  head.scale = head.scale_mantissa * powerOfTwo(head.scale_exponent);
  head.quantizer = reader.u8();
  if (head.quantizer > Quantizer.TRELLIS) {
    const offset = reader.base + reader.position - 1;
    throw new UnsupportedError("head.quantizer", `quantizer ${head.quantizer}`, { offset });
  }
  head.steps = head.quantizer === Quantizer.TRELLIS ? reader.uv(MAX_STEPS) : 0;
  if (head.quantizer === Quantizer.TRELLIS && head.steps === 0) {
    reader.fail("head.steps", "steps is 0", reader.position - 1);
  }
  head.payload_kind = reader.u8();
  if (head.payload_kind > PayloadKind.FIXED) {
    reader.fail("head.payload_kind", `payload_kind ${head.payload_kind}`, reader.position - 1);
  }
  const tileStart = reader.position;
  head.tile_rows = reader.uv(MAX_SYMBOLS);
  head.tile_columns = reader.uv(MAX_SYMBOLS);
  const tile = head.tile_rows * head.tile_columns;
  if (tile < 1 || tile > MAX_SYMBOLS) {
    reader.fail("head.tile", `tile of ${head.tile_rows} x ${head.tile_columns}`, tileStart);
  }

  const headStream = new HeadStream(elements);
  for (let axis = 0; axis < 3; axis++) readBasis(reader, axis, shape, head, tables, headStream);
  checkWork(reader, head, elements, stored);
  const [rows, inChannels, tapChannels] = head.channels;
  const columns = inChannels * tapChannels;
  head.rows = rows;
  head.depths = readVector(reader, columns, MAX_DEPTH, tables, headStream);
  head.table_map = [];
  if (head.payload_kind === PayloadKind.RANGE) {
    readClasses(reader, head, tables);
    head.levels_out = readVector(reader, rows, MAX_CLASSES, tables, headStream);
    head.levels_in = readVector(reader, inChannels, MAX_CLASSES, tables, headStream);
    head.levels_taps = readVector(reader, tapChannels, MAX_CLASSES, tables, headStream);
  }
  head.row_scales = readVector(reader, head.lengths[Axis.OUT], MAX_VECTOR, tables, headStream);
  head.multipliers = readVector(reader, columns, MAX_VECTOR, tables, headStream);
  headStream.read(reader, tables);
  keepColumns(head);
  checkBound(reader, head);
  return head;
}

/** 2^n for n of the range of scale_exponent, exactly: no library function is trusted with it. */
function powerOfTwo(n) {
  const view = new DataView(new ArrayBuffer(8));
  view.setUint32(0, (n + 1023) << 20);
  return view.getFloat64(0);
}

/** `basis(axis)`. */
function readBasis(reader, axis, shape, head, tables, headStream) {
  const start = reader.position;
  const length = head.lengths[axis];
  const kind = reader.u8();
  head.basisKinds.push(kind);
  if (kind === BasisKind.NONE) {
    head.channels.push(length);
    head.bases.push(null);
  } else if (kind === BasisKind.DCT) {
    const dimensions = shape.filter((_, i) => head.roles[i] === axis);
    const fits = dimensions.length <= MAX_DCT_DIMENSIONS && dimensions.every((n) => n <= MAX_DCT);
    if (axis !== Axis.TAPS || !fits || length > MAX_DCT_TAPS) {
      reader.fail("basis.dct", `DCT on ${AXES[axis]} of [${dimensions}]`, start);
    }
    head.channels.push(length);
    head.bases.push(dctBasis(dimensions));
  } else if (kind === BasisKind.EXPLICIT) {
    const rows = reader.uv(length);
    if (rows * length > MAX_BASIS) reader.fail("basis.size", `basis of ${rows} x ${length}`, start);
    const tableOf = Array.from({ length: Math.min(rows, reader.left + 1) }, () => readTableIndex(reader, tables));
    const shifts = readVector(reader, rows, MAX_BASIS_SHIFT, tables, headStream);
    head.channels.push(rows);
    head.bases.push(null);
    headStream.add(
      rows * length,
      (i) => tableOf[Math.floor(i / length)],
      (entries) => {
        const basis = allocate(Float64Array, rows * length);
        for (let k = 0, i = 0; k < rows; k++) {
          const unit = 1 << shifts[k];
          for (let n = 0; n < length; n++) basis[n * rows + k] = entries[i++] * unit;
        }
        head.bases[axis] = basis;
      },
    );
  } else {
    reader.fail("basis.kind", `kind ${kind}`, start);
  }
}

function readClasses(reader, head, tables) {
  const class_count = reader.uv(MAX_CLASSES);
  if (class_count < 1) reader.fail("class.count", "no classes", reader.position - 1);
  const last = head.quantizer === Quantizer.TRELLIS ? 1 : 0; // the table after it serves quantizer 1
  for (let i = 0; i < class_count; i++) {
    const at = reader.position;
    const index = reader.u8();
    if (index + last >= tables.length) reader.fail("class.table", `table ${index + last} of ${tables.length}`, at);
    if (tables[index].low_bits !== tables[index + last].low_bits) {
      reader.fail("class.low_bits", `tables ${index} and ${index + 1} differ in low_bits`, at);
    }
    head.table_map.push(index);
  }
}

/** The columns that are coded, with what a payload wants to know of each. */
function keepColumns(head) {
  const { depths } = head;
  const taps = head.channels[Axis.TAPS];
  let count = 0;
  for (const depth of depths) count += depth > 0 ? 1 : 0;
  head.kept = allocate(Uint32Array, count);
  head.keptDepths = new Uint8Array(count);
  head.columnLevels = new Uint8Array(count); // levels_in + levels_taps
  for (let column = 0, k = 0; column < depths.length; column++) {
    if (depths[column] === 0) continue;
    head.kept[k] = column;
    head.keptDepths[k] = depths[column];
    if (head.payload_kind === PayloadKind.RANGE) {
      head.columnLevels[k] = head.levels_in[Math.floor(column / taps)] + head.levels_taps[column % taps];
    }
    k++;
  }
}

/** E * N is at most FREE_CHANNELS * E + WORK_PER_BYTE * S (10.1, Work); exact in doubles for S below 2^39. */
function checkWork(reader, head, elements, stored) {
  const used = head.channels.filter((_, axis) => head.basisKinds[axis] !== BasisKind.NONE);
  const channels = used.reduce((sum, n) => sum + n, 0);
  if (elements * (channels - FREE_CHANNELS) > WORK_PER_BYTE * stored) {
    reader.fail("reconstruct.work", `bases of ${channels} channels for ${stored} bytes`);
  }
}

/** The bound of 10.1. In doubles: what is below 2^53 is exact, and what is not stays at 2^53 or above. */
function checkBound(reader, head) {
  const depth = largest(head.keptDepths);
  let bound = Math.max(1, 2 ** (head.quantizer === Quantizer.TRELLIS ? depth : depth - 1));
  bound *= Math.max(1, largest(multipliers(head)));
  head.bases.forEach((basis, axis) => {
    if (basis === null) return;
    const rows = head.channels[axis];
    let most = 1;
    for (let n = 0, i = 0; n < head.lengths[axis]; n++) {
      let sum = 0;
      for (let k = 0; k < rows; k++) sum += Math.abs(basis[i++]);
      most = Math.max(most, sum);
    }
    bound *= most;
  });
  if (bound >= 2 ** SUM_BITS) reader.fail("reconstruct.bound", `sums up to ${bound}`, 0);
}

function largest(values) {
  let most = 0;
  for (let i = 0; i < values.length; i++) most = Math.max(most, values[i]);
  return most;
}

function expandAll(codes, numbers) {
  const out = allocate(Float64Array, codes.length);
  for (let i = 0; i < codes.length; i++) out[i] = numbers[codes[i]];
  return out;
}

/** r[o] of each position of `out`. */
export function rowScales(head) {
  return expandAll(head.row_scales, ROW_SCALES);
}

/** m[i',t'] of each column. */
export function multipliers(head) {
  return expandAll(head.multipliers, MULTIPLIERS);
}
