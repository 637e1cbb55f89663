/** Element types and rounding (specification, 4.6). Elements travel as bit patterns, least significant byte first. */

function integer(name, bytes, TypedArray) {
  return Object.freeze({ name, bytes, TypedArray, isFloat: false, exponent: 0, mantissa: 0 });
}

function float(name, exponent, mantissa, infinities, TypedArray) {
  const bytes = (1 + exponent + mantissa) / 8;
  const bias = 2 ** (exponent - 1) - 1;
  /** pattern of the largest finite number */
  const largest = (2 ** exponent - 1) * 2 ** mantissa + (infinities ? -1 : 2 ** mantissa - 2);
  return Object.freeze({ name, bytes, TypedArray, isFloat: true, exponent, mantissa, infinities, bias, largest });
}

const ALL = [
  integer("BOOL", 1, Uint8Array),
  integer("U8", 1, Uint8Array),
  integer("I8", 1, Int8Array),
  integer("U16", 2, Uint16Array),
  integer("I16", 2, Int16Array),
  integer("U32", 4, Uint32Array),
  integer("I32", 4, Int32Array),
  integer("U64", 8, BigUint64Array),
  integer("I64", 8, BigInt64Array),
  float("F8_E4M3", 4, 3, false, Uint8Array),
  float("F8_E5M2", 5, 2, true, Uint8Array),
  float("F16", 5, 10, true, Uint16Array),
  float("BF16", 8, 7, true, Uint16Array),
  float("F32", 8, 23, true, Float32Array),
  float("F64", 11, 52, true, Float64Array),
];

/** Element types by name; those of 16 and 8 bits in floating point are arrays of bit patterns. */
export const DTYPES = new Map(ALL.map((dtype) => [dtype.name, dtype]));

if (new Uint8Array(new Uint16Array([1]).buffer)[0] !== 1) {
  throw new Error("tqcodec needs a platform whose least significant byte is first");
}

const LARGEST_F32 = (2 - 2 ** -23) * 2 ** 127;
const number = new Float64Array(1);
const words = new Uint32Array(number.buffer);

/**
 * Puts patterns of values[i] * step, rounded to a type of at most 16 bits; beyond the largest finite number, that
 * number (10.1, step 6).
 */
function roundSmall({ exponent, mantissa, bias, largest }, values, from, n, step, out, at) {
  // Kept bits are all in the upper word of the double; a carry out of them goes on into the exponent.
  const drop = 20 - mantissa;
  const mask = (1 << drop) - 1;
  const half = 1 << (drop - 1);
  const top = exponent + mantissa;
  const units = Float64Array.of(2 ** (bias - 1 + mantissa)); // in 1; an array lest the power stays in the loop
  for (let i = 0; i < n; i++) {
    number[0] = values[from + i] * step;
    const high = words[1];
    const power = ((high >>> 20) & 0x7ff) - 1023 + bias;
    let pattern;
    if (power > 0) {
      const rest = high & mask;
      pattern = (power << mantissa) | ((high & 0xfffff) >>> drop);
      if (rest > half || (rest === half && (words[0] !== 0 || (pattern & 1) === 1))) pattern++;
    } else {
      // Subnormal: a whole number of the smallest units. Adding 2^52 rounds it to even.
      pattern = Math.abs(number[0]) * units[0] + 2 ** 52 - 2 ** 52;
    }
    out[at + i] = ((high >>> 31) << top) | Math.min(pattern, largest);
  }
}

/** Puts round(values[i] * step) for n values at out[at], out[at + 1], ... of a floating-point type. */
export function roundRun(dtype, values, from, n, step, out, at) {
  if (dtype.name === "F32") {
    for (let i = 0; i < n; i++) {
      const v = Math.fround(values[from + i] * step);
      out[at + i] = v > LARGEST_F32 ? LARGEST_F32 : v < -LARGEST_F32 ? -LARGEST_F32 : v;
    }
  } else if (dtype.name === "F64") {
    for (let i = 0; i < n; i++) out[at + i] = values[from + i] * step;
  } else {
    roundSmall(dtype, values, from, n, step, out, at);
  }
}

/** Value of a pattern of a floating-point type of at most 16 bits. */
function smallValue(pattern, { exponent, mantissa, infinities, bias }) {
  const x = (pattern >> mantissa) & (2 ** exponent - 1);
  const y = pattern & (2 ** mantissa - 1);
  const sign = pattern >> (exponent + mantissa) ? -1 : 1;
  if (x === 2 ** exponent - 1) {
    if (infinities) return y === 0 ? sign * Infinity : NaN;
    if (y === 2 ** mantissa - 1) return NaN;
  }
  return sign * (x === 0 ? y * 2 ** (1 - bias - mantissa) : (2 ** mantissa + y) * 2 ** (x - bias - mantissa));
}

/** The values of a tensor as a Float32Array: exact but for integers above 2^24 and F64, which round. */
export function toFloat32(tensor) {
  const { data } = tensor;
  const dtype = DTYPES.get(tensor.dtype);
  if (data instanceof Float32Array) return data;
  const out = new Float32Array(data.length);
  if (dtype.isFloat && dtype.bytes <= 2) {
    const values = new Float32Array(2 ** (8 * dtype.bytes));
    for (let i = 0; i < values.length; i++) values[i] = smallValue(i, dtype);
    for (let i = 0; i < out.length; i++) out[i] = values[data[i]];
  } else {
    for (let i = 0; i < out.length; i++) out[i] = Number(data[i]);
  }
  return out;
}
