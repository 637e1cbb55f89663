/** What several tests need. */

import { readFileSync, readdirSync } from "node:fs";
import { crc32 } from "../src/crc32.js";

const FIXTURES = new URL("fixtures/", import.meta.url);

/** Names of all fixtures. */
export const NAMES = readdirSync(FIXTURES)
  .filter((name) => name.endsWith(".tqc"))
  .map((name) => name.slice(0, -4));

/** Bytes of a fixture, in a buffer of their own. */
export function fixture(name, suffix = ".tqc") {
  return new Uint8Array(readFileSync(new URL(name + suffix, FIXTURES)));
}

/** Tensors and metadata of a safetensors file. */
export function readSafetensors(bytes) {
  const size = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  const tensors = new Map();
  let metadata = {};
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") {
      metadata = value;
      continue;
    }
    const [from, to] = value.data_offsets;
    tensors.set(name, { dtype: value.dtype, shape: value.shape, bytes: bytes.subarray(8 + size + from, 8 + size + to) });
  }
  return { tensors, metadata: new Map(Object.entries(metadata)) };
}

/** [name, dtype, shape, hex of the elements] of tensors, for comparing, by name. */
export function summary(tensors) {
  const rows = [...tensors].map(([name, { dtype, shape, bytes }]) => [
    name,
    dtype,
    shape,
    Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex"),
  ]);
  return rows.sort((a, b) => (a[0] < b[0] ? -1 : 1));
}

/** What a fixture holds, by the reference implementation. */
export function expected(name) {
  return summary(readSafetensors(fixture(name, ".safetensors")).tensors);
}

/** A header and a directory, their checksums right, and what follows. */
export function file(directory, rest = [], { minor = 9, flags = 0 } = {}) {
  const header = new Uint8Array([0x89, 0x54, 0x51, 0x43, 13, 10, 26, 10, 0, minor, flags, 0, ...new Array(16).fill(0)]);
  const view = new DataView(header.buffer);
  view.setUint32(12, directory.length, true);
  view.setUint32(16, directory.length, true);
  view.setUint32(20, crc32(Uint8Array.from(directory)), true);
  view.setUint32(24, crc32(header.subarray(0, 24)), true);
  return Uint8Array.from([...header, ...directory, ...rest]);
}

/** A short string of MessagePack. */
export const text = (string) => [0xa0 + Buffer.from(string).length, ...Buffer.from(string)];

/** A directory of one raw tensor; values of keys are bytes of MessagePack. */
export function raw(changes = {}) {
  const entry = {
    check: [0], coding: [0], dtype: text("U8"), name: text("w"), segments: [0x90], shape: [0x91, 0], ...changes,
  };
  const pairs = Object.entries(entry).filter(([, value]) => value !== null);
  return [0x81, ...text("tensors"), 0x91, 0x80 + pairs.length, ...pairs.flatMap(([key, value]) => [...text(key), ...value])];
}

/** Numbers from a seed: mulberry32. next(n) is in 0 .. n - 1. */
export function random(seed) {
  let a = seed >>> 0;
  return (n) => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = a;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * n);
  };
}
