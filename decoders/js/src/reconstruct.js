/** Weights from coefficients (specification, chapter 10): sums of integers, exact in doubles in any order. */

import { roundRun } from "./dtypes.js";
import { allocate } from "./errors.js";
import { multipliers, rowScales } from "./record.js";
import { Axis } from "./registry.js";

const BLOCK = 2 ** 14; // numbers that a block of rows should have: they stay in the fast caches

/**
 * out[r, c] = SUM over k of a[r, k] * b[c, k]: both factors lie with k varying fastest.
 *
 * Four rows and two columns at a time: eight sums that wait for nobody. At the edges the last
 * row or column stands in for those that are not there.
 */
function multiply(a, rows, b, columns, inner, out, outFrom = 0) {
  for (let r = 0; r < rows; r += 4) {
    const last = rows - 1;
    const r1 = Math.min(r + 1, last);
    const r2 = Math.min(r + 2, last);
    const r3 = Math.min(r + 3, last);
    const a0 = r * inner;
    const a1 = r1 * inner;
    const a2 = r2 * inner;
    const a3 = r3 * inner;
    const o0 = outFrom + r * columns;
    const o1 = outFrom + r1 * columns;
    const o2 = outFrom + r2 * columns;
    const o3 = outFrom + r3 * columns;
    for (let c = 0; c < columns; c += 2) {
      const d = Math.min(c + 1, columns - 1);
      const bc = c * inner;
      const bd = d * inner;
      let s0 = 0;
      let s1 = 0;
      let s2 = 0;
      let s3 = 0;
      let t0 = 0;
      let t1 = 0;
      let t2 = 0;
      let t3 = 0;
      for (let k = 0; k < inner; k++) {
        const x = b[bc + k];
        const y = b[bd + k];
        const v0 = a[a0 + k];
        const v1 = a[a1 + k];
        const v2 = a[a2 + k];
        const v3 = a[a3 + k];
        s0 += v0 * x;
        s1 += v1 * x;
        s2 += v2 * x;
        s3 += v3 * x;
        t0 += v0 * y;
        t1 += v1 * y;
        t2 += v2 * y;
        t3 += v3 * y;
      }
      out[o0 + d] = t0;
      out[o1 + d] = t1;
      out[o2 + d] = t2;
      out[o3 + d] = t3;
      out[o0 + c] = s0;
      out[o1 + c] = s1;
      out[o2 + c] = s2;
      out[o3 + c] = s3;
    }
  }
}

/** out[c, r] = a[from + r * columns + c]. */
function transpose(a, from, rows, columns, out, stride = rows, to = 0) {
  for (let r = 0, i = from; r < rows; r++) {
    for (let c = 0; c < columns; c++) out[to + c * stride + r] = a[i++];
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
    this.steps = rowScales(head);
    for (let o = 0; o < this.steps.length; o++) this.steps[o] *= head.scale;
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
  const factors = allocate(Float64Array, kept.length);
  for (let k = 0; k < kept.length; k++) factors[k] = m[kept[k]];
  const target = new Target(head, dtype, shape, elements);
  const { width } = target;

  const most = Math.max(columns, inChannels * T, width);
  const block = Math.max(1, Math.min(outChannels, Math.floor(BLOCK / Math.max(1, most))));
  let current = allocate(Float64Array, block * most);
  let other = allocate(Float64Array, block * most);
  const turned = inBasis !== null && T > 1 ? allocate(Float64Array, inChannels * T) : null;
  /** Sums before the basis of `out`, its channels varying fastest. */
  const sums = outBasis === null ? null : allocate(Float64Array, outChannels * width);
  const swap = () => ([current, other] = [other, current]);

  for (let first = 0; first < outChannels; first += block) {
    const rows = Math.min(block, outChannels - first);
    if (kept.length < columns) current.fill(0, 0, rows * columns);
    for (let r = 0; r < rows; r++) {
      const from = (first + r) * kept.length;
      const to = r * columns;
      // Adding 0 makes 0 of -0, which is 0 * m for a negative coefficient and m of 0.
      for (let k = 0; k < kept.length; k++) current[to + kept[k]] = coefficients[from + k] * factors[k] + 0;
    }
    if (tapBasis !== null) {
      multiply(current, rows * inChannels, tapBasis, T, tapChannels, other);
      swap();
    }
    if (turned !== null) {
      for (let r = 0; r < rows; r++) {
        transpose(current, r * inChannels * T, inChannels, T, turned);
        multiply(inBasis, I, turned, T, inChannels, other, r * width);
      }
      swap();
    } else if (inBasis !== null) {
      multiply(current, rows, inBasis, I, inChannels, other);
      swap();
    }
    if (sums === null) {
      for (let r = 0; r < rows; r++) target.put(first + r, current, r * width);
    } else {
      transpose(current, 0, rows, width, sums, outChannels, first);
    }
  }
  if (sums !== null) {
    const group = 4; // as many rows as `multiply` takes at a time
    const weights = allocate(Float64Array, group * width);
    for (let first = 0; first < O; first += group) {
      const rows = Math.min(group, O - first);
      const basis = outBasis.subarray(first * outChannels, (first + rows) * outChannels);
      multiply(basis, rows, sums, width, outChannels, weights);
      for (let r = 0; r < rows; r++) target.put(first + r, weights, r * width);
    }
  }
  return target.out;
}
