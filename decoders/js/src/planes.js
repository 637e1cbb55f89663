/** Tensors coded in planes (specification, chapter 8). */

import { allocate } from "./errors.js";
import { inflate } from "./inflate.js";
import { Reader } from "./reader.js";
import { CODED, MAX_OFFSET, MAX_PART_HEAD, PlaneKind, UNSIGNED } from "./registry.js";
import { readStream } from "./stream.js";
import { readTableIndex } from "./tables.js";

/**
 * `block( )`: puts the elements of each part into its bytes.
 *
 * @param {{ dtype: object, bytes: Uint8Array }[]} parts bytes aligned to the element
 */
export function readBlock(reader, tables, parts) {
  const blocks = parts.map(({ dtype, bytes }) => ({ dtype, bytes, n: bytes.length / dtype.bytes }));
  const head_size = reader.uv(MAX_PART_HEAD * parts.length);
  const headStart = reader.position;
  const head = new Uint8Array(head_size);
  readPlane(reader, [{ values: head, bits: 8 }]);
  // A head that is stored as it is keeps its place in the file.
  const packed = reader.bytes[headStart] === PlaneKind.PACKED;
  const headReader = new Reader(head, packed && reader.base !== undefined ? reader.base + headStart + 1 : undefined);
  for (const block of blocks) readPart(headReader, tables, block);
  headReader.end();

  if (blocks.some((block) => block.coded)) readExponents(reader, tables, blocks);
  readRests(reader, blocks);
  reader.end();
  for (const block of blocks) compose(reader, block);
}

function readPart(reader, tables, block) {
  const { dtype } = block;
  const start = reader.position;
  block.kept = reader.u8();
  if (block.kept > (dtype.isFloat ? dtype.mantissa : 8 * dtype.bytes)) {
    reader.fail("block.kept", `${block.kept} bits kept of ${dtype.name}`, start);
  }
  const flags = reader.u8();
  if ((flags & ~(dtype.isFloat ? UNSIGNED | CODED : 0)) !== 0) {
    reader.fail("block.flags", `flags ${flags} for ${dtype.name}`, start + 1);
  }
  block.coded = (flags & CODED) !== 0;
  block.signed = dtype.isFloat && (flags & UNSIGNED) === 0;
  block.width = block.kept + (block.signed ? 1 : 0);
  block.table = block.coded ? readTableIndex(reader, tables) : 0;
  block.offset = dtype.isFloat ? reader.sv(MAX_OFFSET) : 0;
  block.integers = null;
}

/** The stream of all parts with CODED. */
function readExponents(reader, tables, blocks) {
  const coded = blocks.filter((block) => block.coded);
  const tableOf = allocate(Uint8Array, coded.reduce((sum, block) => sum + block.n, 0));
  let at = 0;
  for (const { n, table } of coded) tableOf.fill(table, at, (at += n));
  const integers = allocate(Int32Array, tableOf.length);
  readStream(reader, tables, tableOf, integers);
  at = 0;
  for (const block of coded) block.integers = integers.subarray(at, (at += block.n));
}

/** The rests of all parts, as bits 0 to 31 and those above. */
function readRests(reader, blocks) {
  const filled = blocks.filter((block) => block.n > 0);
  for (const block of filled) {
    block.low = allocate(Uint32Array, block.n);
    block.high = allocate(Uint32Array, block.width > 32 ? block.n : 0);
  }
  const planes = Math.ceil(filled.reduce((most, block) => Math.max(most, block.width), 0) / 8);
  for (let j = 0; j < planes; j++) {
    const wide = filled.filter((block) => block.width > 8 * j);
    const runs = wide.map(({ n, width }) => ({ values: allocate(Uint8Array, n), bits: Math.min(8, width - 8 * j) }));
    readPlane(reader, runs);
    wide.forEach((block, index) => {
      const { values } = runs[index];
      const rest = j < 4 ? block.low : block.high;
      const shift = (8 * j) & 31;
      for (let i = 0; i < values.length; i++) rest[i] |= values[i] << shift;
    });
  }
}

/** `plane( )`: fills runs of values, each of its own number of bits. */
function readPlane(reader, runs) {
  const start = reader.position;
  const kind = reader.u8();
  if (kind === PlaneKind.PACKED) {
    const packed = reader.packed(runs.reduce((sum, { values, bits }) => sum + values.length * bits, 0));
    for (const { values, bits } of runs) packed.fill(values, bits);
  } else if (kind === PlaneKind.DEFLATED) {
    const size = reader.uv();
    const total = runs.reduce((sum, { values }) => sum + values.length, 0);
    const at = reader.position;
    const plain = inflate(reader.take(size), total, (rule, detail) => reader.fail(rule, detail, at));
    let from = 0;
    for (const { values, bits } of runs) {
      values.set(plain.subarray(from, (from += values.length)));
      for (let i = 0; i < values.length; i++) {
        if (values[i] >> bits !== 0) reader.fail("plane.range", `${values[i]} in a plane of ${bits} bits`, at);
      }
    }
  } else {
    reader.fail("plane.kind", `kind ${kind}`, start);
  }
}

/** Puts a part's elements together. */
function compose(reader, block) {
  const { dtype, bytes, n, low, high } = block;
  if (n === 0) return;
  if (dtype.bytes === 8) {
    const out = new Uint32Array(bytes.buffer, bytes.byteOffset, 2 * n);
    if (dtype.isFloat) {
      composeF64(reader, block, out);
      return;
    }
    for (let i = 0; i < n; i++) {
      out[2 * i] = low[i];
      if (high.length > 0) out[2 * i + 1] = high[i];
    }
    return;
  }
  if (dtype.isFloat) composeFloats(reader, block);
  const View = dtype.bytes === 4 ? Uint32Array : dtype.bytes === 2 ? Uint16Array : Uint8Array;
  new View(bytes.buffer, bytes.byteOffset, n).set(low);
}

function exponentFails(reader, dtype, x) {
  reader.fail("block.exponent", `exponent ${x} of ${dtype.name}`, 0);
}

/** Makes patterns of at most 32 bits of the rests. */
function composeFloats(reader, { dtype, n, kept, signed, offset, coded, integers, low }) {
  const rests = new Int32Array(low.buffer); // signed integers are the faster ones
  const { exponent, mantissa } = dtype;
  const most = (1 << exponent) - 1; // not 2 ** exponent, which engines leave in the loop
  const signBit = signed ? 1 : 0;
  const dropped = mantissa - kept;
  for (let i = 0; i < n; i++) {
    const x = (coded ? integers[i] : 0) + offset;
    if (x < 0 || x > most) exponentFails(reader, dtype, x);
    const rest = rests[i];
    rests[i] = ((rest & signBit) << (exponent + mantissa)) | (x << mantissa) | ((rest >>> signBit) << dropped);
  }
}

function composeF64(reader, { dtype, n, kept, signed, offset, coded, integers, low, high }, out) {
  const most = (1 << dtype.exponent) - 1;
  const signBit = signed ? 1 : 0;
  const unit = Float64Array.of(2 ** (dtype.mantissa - kept - signBit))[0];
  for (let i = 0; i < n; i++) {
    const x = (coded ? integers[i] : 0) + offset;
    if (x < 0 || x > most) exponentFails(reader, dtype, x);
    const sign = low[i] & signBit;
    const rest = (high.length > 0 ? high[i] : 0) * 2 ** 32 + low[i];
    const y = (rest - sign) * unit;
    out[2 * i] = y % 2 ** 32;
    out[2 * i + 1] = (sign << 31) | (x << 20) | Math.floor(y / 2 ** 32);
  }
}
