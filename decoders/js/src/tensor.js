/** One tensor from its segments (specification, 4.4 and 4.5). */

import { crc32 } from "./crc32.js";
import { DTYPES } from "./dtypes.js";
import { MalformedError, allocate } from "./errors.js";
import { countTiles, eachTile, readPayload } from "./payload.js";
import { readBlock } from "./planes.js";
import { Reader } from "./reader.js";
import { multipliers, readHead, rowScales } from "./record.js";
import { reconstruct } from "./reconstruct.js";
import { Coding, MAX_SYMBOLS } from "./registry.js";

/** A decoded tensor: `data` is an array of its type, or of bit patterns for floating point of 16 and 8 bits. */
export class Tensor {
  constructor(name, dtype, shape, data) {
    this.name = name;
    this.dtype = dtype;
    this.shape = shape;
    this.data = data;
  }

  /** The elements as bytes, least significant byte first; not a copy. */
  get bytes() {
    return new Uint8Array(this.data.buffer, this.data.byteOffset, this.data.byteLength);
  }
}

/** The tensor of an entry, which may be tied to the one that the data are of. */
export function tensorOf(entry, data) {
  return new Tensor(entry.name, entry.dtypeName, entry.shape, data);
}

/** Checks that all bytes of a segment are there and undamaged. */
export function checkSegment(segment, bytes) {
  if (bytes.length < segment.length) {
    const offset = segment.offset + bytes.length;
    throw new MalformedError("container.length", `segment of ${segment.length} bytes is cut off`, { offset });
  }
  const crc = crc32(bytes);
  if (crc !== segment.crc) {
    const detail = `CRC-32 of the segment is ${crc}, not ${segment.crc}`;
    throw new MalformedError("segment.crc", detail, { offset: segment.offset });
  }
}

/** The array of elements of a tensor from its bytes, if they are what its entry says. */
function checked(entry, bytes) {
  if (entry.dtype === DTYPES.get("BOOL") && bytes.some((byte) => byte > 1)) {
    throw new MalformedError("tensor.bool", "element that is neither 0 nor 1");
  }
  const check = crc32(bytes);
  if (check !== entry.check) {
    throw new MalformedError("tensor.check", `CRC-32 of the elements is ${check}, not ${entry.check}`);
  }
  return new entry.dtype.TypedArray(bytes.buffer, bytes.byteOffset, entry.elements);
}

/** Runs a function; errors of the format that it throws get the tensor's name. */
export function naming(entry, run) {
  try {
    return run();
  } catch (error) {
    throw typeof error.about === "function" ? error.about(entry.name) : error;
  }
}

/** Decodes the tensors of a bundle: the arrays of elements of the entries. */
export function decodeBundle(segment, bytes, entries, tables) {
  const total = entries.reduce((sum, entry) => sum + entry.elements, 0);
  if (total > MAX_SYMBOLS) {
    throw new MalformedError("bundle.size", `bundle of ${total} elements`, { offset: segment.offset });
  }
  const parts = entries.map(({ dtype, elements }) => ({ dtype, bytes: allocate(Uint8Array, elements * dtype.bytes) }));
  readBlock(new Reader(bytes, segment.offset), tables, parts);
  return entries.map((entry, i) => naming(entry, () => checked(entry, parts[i].bytes)));
}

/** Rows of channels over positions, as the specification has them, of a basis by position. */
function synthesisRows(basis, rows) {
  const length = basis.length / rows;
  const out = allocate(Float64Array, basis.length);
  for (let i = 0; i < out.length; i++) out[(i % rows) * length + Math.floor(i / rows)] = basis[i];
  return out;
}

/** Takes the segments of one tensor in their order, each as soon as it is there. */
export class TensorDecoder {
  constructor(entry, tables) {
    this.entry = entry;
    this.tables = tables;
    this.index = 0;
    this.head = null;
    const { coding, dtype, elements, segments } = entry;
    const size = elements * (dtype?.bytes ?? 0);
    if (coding === Coding.RAW) {
      const length = segments.reduce((sum, segment) => sum + segment.length, 0);
      if (length !== size) throw new MalformedError("raw.length", `${length} bytes for a tensor of ${size}`);
      this.bytes = allocate(Uint8Array, size);
      this.filled = 0;
    } else if (coding === Coding.PLANES) {
      const blocks = Math.ceil(elements / MAX_SYMBOLS);
      if (segments.length !== blocks) this.wrongSegments(blocks);
      this.bytes = allocate(Uint8Array, size);
    } else if (segments.length === 0) {
      this.wrongSegments("at least 1");
    }
  }

  wrongSegments(needed) {
    throw new MalformedError("tensor.segments", `${this.entry.segments.length} segments, not ${needed}`);
  }

  /** The next segment, its checksum checked. */
  push(bytes) {
    const { coding, dtype } = this.entry;
    const index = this.index++;
    const reader = new Reader(bytes, this.entry.segments[index].offset);
    if (coding === Coding.RAW) {
      this.bytes.set(bytes, this.filled);
      this.filled += bytes.length;
    } else if (coding === Coding.PLANES) {
      const from = index * MAX_SYMBOLS * dtype.bytes;
      const part = this.bytes.subarray(from, from + MAX_SYMBOLS * dtype.bytes);
      readBlock(reader, this.tables, [{ dtype, bytes: part }]);
    } else {
      if (index === 0) this.readHead(reader);
      if (this.tiles.length > 0) {
        readPayload(reader, this.head, this.tables, this.coefficients, ...this.tiles[index]);
      }
      reader.end();
    }
  }

  readHead(reader) {
    const { shape, elements, segments } = this.entry;
    const stored = segments.reduce((sum, segment) => sum + segment.length, 0);
    this.head = readHead(reader, shape, elements, stored, this.tables);
    const needed = Math.max(1, countTiles(this.head));
    if (needed !== segments.length) this.wrongSegments(needed);
    this.tiles = [];
    eachTile(this.head, (...tile) => this.tiles.push(tile));
    this.coefficients = allocate(Int32Array, this.head.rows * this.head.kept.length);
  }

  /** The array of elements, once all segments are in. */
  finish() {
    const { coding, dtype, shape, elements } = this.entry;
    if (coding !== Coding.TRANSFORM) return checked(this.entry, this.bytes);
    const data = reconstruct(this.head, this.coefficients, dtype, shape, elements);
    return checked(this.entry, new Uint8Array(data.buffer));
  }

  /** The record of a transform-coded tensor, once all segments are in. */
  record() {
    const { head } = this;
    const { quantizer, steps, payload_kind, tile_rows, tile_columns, scale_mantissa, scale_exponent, scale } = head;
    return {
      ...{ quantizer, steps, payload_kind, tile_rows, tile_columns, scale_mantissa, scale_exponent, scale },
      roles: head.roles,
      lengths: head.lengths,
      channels: head.channels,
      basisKinds: head.basisKinds,
      bases: head.bases.map((basis, axis) => basis && synthesisRows(basis, head.channels[axis])),
      depths: head.depths,
      table_map: head.table_map,
      levels_out: head.levels_out ?? null,
      levels_in: head.levels_in ?? null,
      levels_taps: head.levels_taps ?? null,
      rowScales: rowScales(head),
      multipliers: multipliers(head),
      rows: head.rows,
      kept: head.kept,
      coefficients: this.coefficients,
    };
  }
}
