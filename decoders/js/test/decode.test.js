import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { FORMAT_VERSION, LimitError, MalformedError, TQCError, UnsupportedError, decode, toFloat32 } from "tqcodec";
import { NAMES, expected, file, fixture, raw, summary, text } from "./helpers.js";

function refused(bytes, Kind, rule) {
  assert.throws(() => decode(bytes), (error) => {
    assert.ok(error instanceof Kind, `${error}`);
    assert.equal(error.rule, rule);
    assert.match(error.message, /^(malformed|unsupported|limit): \[[a-z0-9_.]+\][^\n\r\u2028]*: [^\n\r\u2028]+$/);
    return true;
  });
}

describe("decode", () => {
  it("gives the elements of the example of chapter 13", () => {
    const tensors = decode(fixture("example"));
    assert.deepEqual([...tensors.keys()], ["w", "b", "t", "e"]);
    const w = tensors.get("w");
    assert.deepEqual([w.dtype, w.shape, w.data.constructor], ["F32", [5, 1, 2, 2], Float32Array]);
    assert.deepEqual(
      [...w.data],
      [2.25, 1.5, 1.5, 2.25, -2.0625, -1.875, -1.6875, -1.875, 0.9375, 1.125, 0.9375, 0.75, -6.75, -4.5, -4.5, -6.75, 4.875, 2.25, 2.625, 5.25],
    );
    assert.deepEqual([...tensors.get("b").data], [-1.5, 0.75, 1.25]);
    assert.equal(tensors.get("t").data, w.data);
    assert.deepEqual([tensors.get("e").shape, tensors.get("e").data], [[0, 2], new BigInt64Array(0)]);
  });

  for (const name of NAMES) {
    it(`gives what the reference implementation gives: ${name}`, () => {
      assert.deepEqual(summary(decode(fixture(name))), expected(name));
    });
  }

  it("takes bytes at any place of a buffer", () => {
    const bytes = fixture("dtypes");
    for (let shift = 0; shift < 8; shift++) {
      const moved = new Uint8Array(bytes.length + shift).subarray(shift);
      moved.set(bytes);
      assert.deepEqual(summary(decode(moved)), expected("dtypes"));
    }
    assert.equal(decode(bytes.buffer).size, decode(bytes).size);
    assert.throws(() => decode("bytes"), TypeError);
  });

  it("refuses every prefix of every fixture", () => {
    for (const name of NAMES) {
      const bytes = fixture(name);
      for (let n = 0; n < bytes.length; n++) {
        assert.throws(() => decode(bytes.subarray(0, n)), MalformedError, `${name} ${n}`);
      }
      assert.throws(() => decode(Uint8Array.from([...bytes, 0])), { rule: "container.length" });
    }
  });

  it("refuses every bit flip of every fixture", () => {
    for (const name of NAMES) {
      const bytes = fixture(name);
      for (let bit = 0; bit < 8 * bytes.length; bit++) {
        bytes[bit >> 3] ^= 1 << (bit & 7);
        assert.throws(() => decode(bytes), TQCError, `${name} ${bit}`);
        bytes[bit >> 3] ^= 1 << (bit & 7);
      }
    }
  });

  it("has the verdict on the whole file", () => {
    assert.equal(FORMAT_VERSION, "0.9");
    assert.deepEqual([...decode(file(raw())).keys()], ["w"]);
    assert.equal(decode(file([0x80])).size, 0);
    refused(file([0x80], [], { minor: 10 }), UnsupportedError, "header.version");
    refused(file([0x80], [], { flags: 2 }), UnsupportedError, "header.flags");
    refused(file([0x81, ...text("features"), 0x91, ...text("x")], [1, 2, 3]), UnsupportedError, "directory.features");
    refused(file(raw({ coding: [3] })), UnsupportedError, "directory.coding");
    refused(file(raw({ dtype: text("F7") })), UnsupportedError, "directory.dtype");
    // Malformed wins, also when it is found later.
    refused(file(raw({ coding: [3] }), [0]), MalformedError, "container.length");
    refused(file(raw({ coding: [3], segments: [0x91, 0x92, 1, 0] }), [1]), MalformedError, "segment.crc");
  });

  it("refuses directories that are not canonical", () => {
    refused(file([0xcc, 1]), MalformedError, "directory.canonical");
    refused(file([0x81, ...text("x"), 0xcb, 0, 0, 0, 0, 0, 0, 0, 0]), MalformedError, "directory.canonical");
    refused(file([0x82, ...text("b"), 0, ...text("a"), 0]), MalformedError, "directory.canonical");
    refused(file([0x82, ...text("a"), 0, ...text("a"), 0]), MalformedError, "directory.canonical");
    refused(file([0x81, ...text("a"), 0xa1, 0xff]), MalformedError, "directory.canonical");
    refused(file([0x80, 0]), MalformedError, "directory.msgpack");
    refused(file([0xc1]), MalformedError, "directory.msgpack");
    refused(file([0x81, ...text("a"), ...new Array(9).fill(0x91), 0]), MalformedError, "directory.nesting");
    assert.equal(decode(file([0x81, ...text("a"), ...new Array(8).fill(0x91), 0])).size, 0);
    refused(file([0x81, ...text("tensors"), 0xdd, 255, 255, 255, 255]), MalformedError, "directory.values");
    refused(file([0]), MalformedError, "directory.type");
    refused(file(raw({ check: null })), MalformedError, "directory.type");
    refused(file(raw({ check: [0xff] })), MalformedError, "directory.range");
  });

  it("keeps byte order marks, and keys and names that mean something to JavaScript", () => {
    assert.deepEqual([...decode(file(raw({ name: [0xa4, 0xef, 0xbb, 0xbf, 0x61] }))).keys()], ["\ufeffa"]);
    const tensors = decode(fixture("dtypes"));
    assert.deepEqual([...tensors.get("__proto__").data], [0, 1, 2]);
    assert.deepEqual([...tensors.get("7").data], [0, 1, 2]);
  });

  it("knows integers above 2^53", () => {
    const u64 = (...bytes) => [0xcf, ...bytes];
    const segments = [0x91, 0x92, ...u64(0x7f, 255, 255, 255, 255, 255, 255, 255), 0];
    refused(file(raw({ segments })), MalformedError, "container.length");
    segments[3] = 0x80;
    refused(file(raw({ segments })), MalformedError, "directory.range");
    refused(file(raw({ shape: [0x91, ...u64(0, 1, 0, 0, 0, 0, 0, 1)] })), MalformedError, "directory.range");
    refused(file(raw({ shape: [0x92, ...u64(0, 1, 0, 0, 0, 0, 0, 0), 2] })), MalformedError, "directory.shape");
  });

  it("refuses what would take too much memory", () => {
    const shape = [0x91, 0xcf, 0, 1, 0, 0, 0, 0, 0, 0];
    refused(file(raw({ shape })), LimitError, "limit.decoded");
    refused(file(raw({ shape }), [1, 2, 3]), MalformedError, "container.length");
    const bytes = fixture("example");
    assert.equal(decode(bytes, { limit: 80 + 80 + 12 }).size, 4);
    assert.throws(() => decode(bytes, { limit: 80 + 80 + 11 }), LimitError);
    // What the platform has no room for is a limit as well.
    const plane = { coding: [1], dtype: text("F64"), segments: [0xdd, 0x10, 0, 0, 0] };
    assert.throws(() => decode(file(raw({ ...plane, shape })), { limit: Infinity }), TQCError);
  });

  it("shows hostile names as text of one line", () => {
    const name = [0xa4, 0x0a, 0x1b, 0x27, 0x5c];
    try {
      decode(file(raw({ name, shape: [0x91, 1] })));
      assert.fail();
    } catch (error) {
      assert.equal(error.tensor, "\n\u001b'\\");
      assert.equal(error.message, "malformed: [raw.length] tensor '\\u{a}\\u{1b}\\'\\\\': 0 bytes for a tensor of 1");
    }
  });
});

describe("toFloat32", () => {
  it("gives the values of all types", () => {
    const of = (dtype, data) => [...toFloat32({ dtype, data })];
    const f16 = Uint16Array.of(0, 0x8000, 1, 0x3c00, 0xc000, 0x7bff, 0x7c00, 0xfc00, 0x7c01);
    assert.deepEqual(of("F16", f16), [0, -0, 2 ** -24, 1, -2, 65504, Infinity, -Infinity, NaN]);
    assert.deepEqual(of("BF16", Uint16Array.of(0x3f80, 0xff80, 0x0001)), [1, -Infinity, 2 ** -133]);
    assert.deepEqual(of("F8_E4M3", Uint8Array.of(0x38, 0x7e, 0x7f, 1, 0x80)), [1, 448, NaN, 2 ** -9, -0]);
    assert.deepEqual(of("F8_E5M2", Uint8Array.of(0x3c, 0x7b, 0x7c, 1)), [1, 57344, Infinity, 2 ** -16]);
    assert.deepEqual(of("I64", BigInt64Array.of(-3n)), [-3]);
    assert.deepEqual(of("F64", Float64Array.of(0.5)), [0.5]);
    assert.deepEqual(of("BOOL", Uint8Array.of(1, 0)), [1, 0]);
  });
});
