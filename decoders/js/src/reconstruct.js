/** Weights from coefficients (specification, chapter 10): sums of integers, exact in doubles in any order. */

import { roundRun } from "./dtypes.js";
import { allocate } from "./errors.js";
import { multipliers, rowScales } from "./record.js";
import { Axis } from "./registry.js";

const BLOCK = 2 ** 14; // numbers that a block of rows should have: they stay in the fast caches

/** out[r, n] = SUM over k of matrix[r, k] * basis[k, n], for `rows` rows. */
function multiplyRight(matrix, rows, basis, inner, columns, out) {
  out.fill(0, 0, rows * columns);
  for (let k = 0; k < inner; k++) {
    const row = k * columns;
    for (let r = 0; r < rows; r++) {
      const factor = matrix[r * inner + k];
      if (factor === 0) continue;
      const at = r * columns;
      for (let n = 0; n < columns; n++) out[at + n] += factor * basis[row + n];
    }
  }
}

/** out[n, x] = SUM over k of basis[k, n] * matrix[k, x] for n = 0 .. columns - 1, matrix from `from` and out from `to` on. */
function multiplyLeft(basis, inner, columns, matrix, from, width, out, to) {
  out.fill(0, to, to + columns * width);
  for (let k = 0; k < inner; k++) {
    const row = from + k * width;
    for (let n = 0; n < columns; n++) {
      const factor = basis[k * columns + n];
      const at = to + n * width;
      for (let x = 0; x < width; x++) out[at + x] += factor * matrix[row + x];
    }
  }
}

/** Row-major places in the tensor of the positions of one axis (10.3). */
function placesOf(axis, shape, roles) {
  const strides = new Array(shape.length);
  for (let i = shape.length - 1, stride = 1; i >= 0; stride *= shape[i--]) strides[i] = stride;
  let places = allocate(Float64Array, 1);
  for (let i = 0; i < shape.length; i++) {
    if (roles[i] !== axis) continue;
    const next = allocate(Float64Array, places.length * shape[i]);
    for (let p = 0, at = 0; p < places.length; p++) {
      for (let x = 0; x < shape[i]; x++) next[at++] = places[p] + x * strides[i];
    }
    places = next;
  }
  return places;
}

/** Writes rows of weights to their places in the tensor. */
class Target {
  constructor(head, dtype, shape, elements) {
    this.dtype = dtype;
    this.out = allocate(dtype.TypedArray, elements);
    this.width = head.lengths[Axis.IN] * head.lengths[Axis.TAPS];
    this.steps = rowScales(head).map((r) => head.scale * r);
    // Dimensions of length 1 may have any role. If the others are in the order of the axes, so are the elements.
    const roles = head.roles.filter((_, i) => shape[i] > 1);
    this.places = null;
    if (roles.some((role, i) => i > 0 && role < roles[i - 1])) {
      this.places = [Axis.OUT, Axis.IN, Axis.TAPS].map((axis) => placesOf(axis, shape, head.roles));
      this.row = allocate(dtype.TypedArray, this.width);
    }
  }

  /** Row o of the weights from its sums, which begin at values[from]. */
  put(o, values, from) {
    const { dtype, out, width, places } = this;
    if (places === null) {
      roundRun(dtype, values, from, width, this.steps[o], out, o * width);
      return;
    }
    roundRun(dtype, values, from, width, this.steps[o], this.row, 0);
    const [outs, ins, taps] = places;
    for (let i = 0, at = 0; i < ins.length; i++) {
      const place = outs[o] + ins[i];
      for (let t = 0; t < taps.length; t++) out[place + taps[t]] = this.row[at++];
    }
  }
}

/**
 * The elements of a tensor, as an array of its type.
 *
 * @param {import("./record.js").Head} head
 * @param {Int32Array} coefficients rows x kept columns
 */
export function reconstruct(head, coefficients, dtype, shape, elements) {
  const [O, I, T] = head.lengths;
  const [outChannels, inChannels, tapChannels] = head.channels;
  const [outBasis, inBasis, tapBasis] = head.bases;
  const { kept } = head;
  const columns = inChannels * tapChannels;
  const m = multipliers(head);
  const factors = Float64Array.from(kept, (column) => m[column]);
  const target = new Target(head, dtype, shape, elements);
  const { width } = target;

  const most = Math.max(columns, inChannels * T, width);
  const block = Math.max(1, Math.min(outChannels, Math.floor(BLOCK / Math.max(1, most))));
  let current = allocate(Float64Array, block * most);
  let other = allocate(Float64Array, block * most);
  const sums = outBasis === null ? null : allocate(Float64Array, outChannels * width);
  const swap = () => ([current, other] = [other, current]);

  for (let first = 0; first < outChannels; first += block) {
    const rows = Math.min(block, outChannels - first);
    if (kept.length < columns) current.fill(0, 0, rows * columns);
    for (let r = 0; r < rows; r++) {
      const from = (first + r) * kept.length;
      // Adding 0 makes 0 of -0, which is 0 * m for a negative coefficient and m of 0.
      for (let k = 0; k < kept.length; k++) current[r * columns + kept[k]] = coefficients[from + k] * factors[k] + 0;
    }
    if (tapBasis !== null) {
      multiplyRight(current, rows * inChannels, tapBasis, tapChannels, T, other);
      swap();
    }
    if (inBasis !== null) {
      if (T === 1) {
        multiplyRight(current, rows, inBasis, inChannels, I, other);
      } else {
        for (let r = 0; r < rows; r++) {
          multiplyLeft(inBasis, inChannels, I, current, r * inChannels * T, T, other, r * width);
        }
      }
      swap();
    }
    if (sums === null) {
      for (let r = 0; r < rows; r++) target.put(first + r, current, r * width);
    } else {
      sums.set(current.subarray(0, rows * width), first * width);
    }
  }
  if (sums !== null) {
    const row = allocate(Float64Array, width);
    for (let o = 0; o < O; o++) {
      row.fill(0);
      for (let k = 0; k < outChannels; k++) {
        const factor = outBasis[k * O + o];
        if (factor === 0) continue;
        const at = k * width;
        for (let x = 0; x < width; x++) row[x] += factor * sums[at + x];
      }
      target.put(o, row, 0);
    }
  }
  return target.out;
}
