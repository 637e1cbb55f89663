import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";
import zlib from "node:zlib";
import { crc32 } from "../src/crc32.js";
import { DTYPES, roundRun } from "../src/dtypes.js";
import { MalformedError } from "../src/errors.js";
import { inflate } from "../src/inflate.js";
import { RangeDecoder } from "../src/range-decoder.js";
import { Reader } from "../src/reader.js";
import { Table } from "../src/tables.js";
import { random } from "./helpers.js";

const VECTORS = new URL("../../../tests/golden/range_coder.json", import.meta.url);
const M64 = (1n << 64n) - 1n;
const M32 = (1n << 32n) - 1n;

/** 5.2 in integers of unlimited size, for weights that sum to 2^bits: the symbols, or null where the words are wrong. */
function decodeWords(words, weights, n, bits) {
  const word = (i) => BigInt(words[i] ?? 0);
  let diff = (word(0) << 32n) | word(1);
  let range = M64;
  let position = 2;
  const symbols = [];
  for (let i = 0; i < n; i++) {
    const scale = (range >> 24n) << BigInt(24 - bits);
    const slot = Number(diff / scale);
    if (slot >= 2 ** bits) return null;
    let number = 0;
    let start = 0;
    while (start + weights[number] <= slot) start += weights[number++];
    diff -= scale * BigInt(start);
    range = scale * BigInt(weights[number]);
    if (range <= M32) {
      range <<= 32n;
      diff = (diff << 32n) | word(position++);
    }
    symbols.push(number);
  }
  const extra = range - diff <= M32 ? 1 : 0;
  const count = n > 0 ? position - 1 + extra : 0;
  if (n > 0 && (diff > M32 || (extra && word(count - 1) !== 0n))) return null;
  return words.length === count ? symbols : null;
}

/** 5.3 in integers of unlimited size. */
function encodeWords(symbols, weights) {
  const starts = weights.map((_, i) => weights.slice(0, i).reduce((a, b) => a + b, 0));
  let lower = 0n; // not reduced: carries need no care
  let range = M64;
  let shifts = 0n;
  for (const symbol of symbols) {
    const scale = (range >> 24n) << 12n;
    range = scale * BigInt(weights[symbol]);
    lower += scale * BigInt(starts[symbol]);
    if (range <= M32) {
      range <<= 32n;
      lower <<= 32n;
      shifts++;
    }
  }
  if (symbols.length === 0) return [];
  const words = [];
  const point = (lower + M32) >> 32n;
  for (let i = shifts; i >= 0n; i--) words.push(Number((point >> (32n * i)) & M32));
  if ((lower + range) >> 32n === point) words.push(0);
  return words;
}

/** The same by the decoder of the package. */
function decodeHere(words, weights, n) {
  const bytes = new Uint8Array(new Uint32Array(words).buffer);
  const decoder = new RangeDecoder(new Reader(bytes, 0), 0, words.length);
  const symbols = new Int32Array(n);
  const order = Uint32Array.from(symbols.keys());
  try {
    decoder.run(new Table(0, weights.length, 0, Float64Array.from(weights)), order, 0, n, symbols, null);
    decoder.end();
  } catch (error) {
    assert.ok(error instanceof MalformedError && /^payload\./.test(error.rule), error);
    return null;
  }
  return [...symbols];
}

function randomWeights(next, size) {
  const cuts = new Set();
  while (cuts.size < size - 1) cuts.add(1 + next(4095));
  const edges = [0, ...[...cuts].sort((a, b) => a - b), 4096];
  return edges.slice(1).map((edge, i) => edge - edges[i]);
}

describe("range decoder", () => {
  it("has a reference that agrees with the vectors of the coder", { skip: !existsSync(VECTORS) && "no vectors here" }, () => {
    for (const { name, freqs, symbols, words_hex } of JSON.parse(readFileSync(VECTORS))) {
      const words = words_hex.map((hex) => Number.parseInt(hex, 16));
      assert.deepEqual(decodeWords(words, freqs, symbols.length, 24), symbols, name);
    }
  });

  it("agrees with integers of unlimited size on streams of an encoder", () => {
    const next = random(1);
    for (let round = 0; round < 400; round++) {
      const weights = randomWeights(next, 2 + next(round % 4 === 0 ? 300 : 6));
      const symbols = Array.from({ length: next(120) }, () => (next(8) > 0 ? next(2) : next(weights.length)));
      const words = encodeWords(symbols, weights);
      assert.deepEqual(decodeHere(words, weights, symbols.length), symbols);
      assert.deepEqual(decodeWords(words, weights, symbols.length, 12), symbols);
    }
  });

  it("agrees on words of any kind", () => {
    const next = random(2);
    const kinds = [0, 0xffffffff, 0x80000000, 1];
    for (let round = 0; round < 4000; round++) {
      const weights = randomWeights(next, 2 + next(5));
      const words = Array.from({ length: next(6) }, () => (next(2) ? kinds[next(4)] : next(2 ** 32)));
      const n = next(40);
      assert.deepEqual(decodeHere(words, weights, n), decodeWords(words, weights, n, 12));
    }
  });

  it("rests on quotients that are exact", () => {
    const next = random(3);
    for (let round = 0; round < 100000; round++) {
      const s = 2 ** 8 + next(2 ** (8 + next(33)) - 2 ** 8) || 1;
      const d = Math.max(0, s * (1 + next(4097)) - next(3));
      if (d < 2 ** 52) assert.equal(BigInt(Math.floor(d / s)), BigInt(d) / BigInt(s));
    }
  });
});

describe("inflate", () => {
  const fail = (rule, detail) => {
    throw new MalformedError(rule, detail);
  };

  /** Bytes by zlib, if it takes all of the stream and gives n bytes. */
  function byZlib(stream, n) {
    try {
      const { buffer, engine } = zlib.inflateRawSync(stream, { info: true, maxOutputLength: n + 1 });
      return engine.bytesWritten === stream.length && buffer.length === n ? Buffer.from(buffer) : null;
    } catch {
      return null;
    }
  }

  function here(stream, n) {
    try {
      return Buffer.from(inflate(stream, n, fail));
    } catch (error) {
      if (!(error instanceof MalformedError)) throw error;
      return null;
    }
  }

  const next = random(4);
  const { Z_FIXED, Z_HUFFMAN_ONLY, Z_DEFAULT_STRATEGY } = zlib.constants;

  /** Bytes with repeats near and far. */
  function plain(n) {
    const bytes = Buffer.alloc(n);
    for (let i = 0; i < n; ) {
      if (i > 4 && next(3) === 0) {
        const from = next(i);
        for (let k = next(300); k > 0 && i < n; k--, i++) bytes[i] = bytes[i - from - 1] ?? 0;
      } else {
        bytes[i++] = next(1 << (1 + next(8)));
      }
    }
    return bytes;
  }

  const streams = Array.from({ length: 60 }, (_, i) => {
    const bytes = plain(i % 10 === 0 ? 70000 : next(600));
    const strategy = [Z_DEFAULT_STRATEGY, Z_FIXED, Z_HUFFMAN_ONLY][i % 3];
    return { bytes, stream: zlib.deflateRawSync(bytes, { level: i % 7 === 0 ? 0 : 9, strategy }) };
  });

  it("gives the bytes of good streams", () => {
    for (const { bytes, stream } of streams) {
      assert.deepEqual(here(stream, bytes.length), bytes);
      assert.equal(here(stream, bytes.length + 1), null);
      if (bytes.length > 0) assert.equal(here(stream, bytes.length - 1), null);
      assert.equal(here(Buffer.concat([stream, Buffer.of(0)]), bytes.length), null);
      assert.equal(here(stream.subarray(0, -1), bytes.length), null);
    }
  });

  it("agrees with zlib on damaged streams", () => {
    let good = 0;
    for (let round = 0; round < 20000; round++) {
      const { bytes, stream } = streams[next(streams.length)];
      const damaged = Buffer.from(stream);
      for (let k = next(3); k >= 0; k--) damaged[next(Math.min(damaged.length, 200))] ^= 1 << next(8);
      const ours = here(damaged, bytes.length);
      assert.deepEqual(ours, byZlib(damaged, bytes.length), damaged.toString("hex"));
      good += ours === null ? 0 : 1;
    }
    assert.ok(good > 100);
  });
});

describe("CRC-32", () => {
  it("is that of zlib", () => {
    assert.equal(crc32(Buffer.from("123456789")), 0xcbf43926);
    const bytes = Uint8Array.from({ length: 300 }, (_, i) => (i * 89) & 255);
    const bitwise = (part) => {
      let c = -1;
      for (const byte of part) for (let k = 0, b = byte; k < 8; k++, b >>= 1) c = (c ^ b) & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
      return ~c >>> 0;
    };
    for (let from = 0; from < 9; from++) {
      for (let to = from; to < 120; to++) assert.equal(crc32(bytes.subarray(from, to)), bitwise(bytes.subarray(from, to)));
    }
    assert.equal(crc32(bytes.subarray(77), crc32(bytes.subarray(0, 77))), crc32(bytes));
  });
});

describe("reader", () => {
  const uv = (bytes, most) => new Reader(Uint8Array.from(bytes), 0).uv(most);

  it("reads integers of base 128", () => {
    assert.equal(uv([0]), 0);
    assert.equal(uv([0x80, 1]), 128);
    assert.equal(uv([...new Array(9).fill(255), 1]), 2 ** 64);
    assert.throws(() => uv([...new Array(9).fill(255), 2]), { rule: "integer.size" });
    assert.throws(() => uv([...new Array(9).fill(255), 0x81, 0]), { rule: "integer.size" });
    assert.throws(() => uv([0x80, 0]), { rule: "integer.shortest" });
    assert.throws(() => uv([6], 5), { rule: "integer.range" });
    assert.throws(() => uv([0x80]), { rule: "segment.short" });
    assert.equal(new Reader(Uint8Array.of(7), 0).sv(3), -4);
    assert.throws(() => new Reader(Uint8Array.of(8), 0).sv(3), { rule: "integer.range" });
  });

  it("reads packed integers and wants their spare bits to be 0", () => {
    const reader = new Reader(Uint8Array.of(0b10110101, 0b0110, 9), 0);
    const bits = reader.packed(11);
    assert.deepEqual([bits.read(3), bits.read(0), bits.read(8)], [5, 0, 0b11010110]);
    assert.equal(reader.u8(), 9);
    assert.throws(() => new Reader(Uint8Array.of(0b100), 0).packed(2), { rule: "bits.spare" });
  });
});

describe("rounding", () => {
  /** The pattern of a finite type that is nearest to v, by search. */
  function nearest(dtype, v) {
    const { exponent, mantissa, bias, largest } = dtype;
    const value = (p) => {
      const x = p >> mantissa;
      const y = p & (2 ** mantissa - 1);
      return x === 0 ? y * 2 ** (1 - bias - mantissa) : (2 ** mantissa + y) * 2 ** (x - bias - mantissa);
    };
    const size = Math.abs(v);
    let [low, high] = [0, largest];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (value(middle) <= size) low = middle;
      else high = middle;
    }
    const [below, above] = [size - value(low), value(high) - size];
    const pattern = above < below || (above === below && high % 2 === 0) ? high : low;
    return pattern + (v < 0 || Object.is(v, -0) ? 2 ** (exponent + mantissa) : 0);
  }

  for (const name of ["F16", "BF16", "F8_E4M3", "F8_E5M2"]) {
    it(`is to the nearest, ties to even: ${name}`, () => {
      const dtype = DTYPES.get(name);
      const next = random(5);
      const values = [0, -0, 1e300, -1e300];
      for (let i = 0; i < 4000; i++) {
        const base = (1 + next(2 ** 12) / 2 ** 12) * 2 ** (next(2 * dtype.bias + 20) - dtype.bias - 12);
        values.push(next(2) ? base : -base, base * (1 + 2 ** -45));
      }
      const out = new dtype.TypedArray(values.length);
      roundRun(dtype, Float64Array.from(values), 0, values.length, 1, out, 0);
      values.forEach((v, i) => assert.equal(out[i], nearest(dtype, v), `${v}`));
    });
  }
});
