/**
 * Speed of decoding: `node bench.mjs FILE.tqc...`. The fastest of repeated runs in this process, in millions
 * of weights a second; `payload` is range decoding of transform-coded tensors alone, `weights` the sums and
 * rounding of chapter 10, `whole` everything from bytes to tensors, checksums included.
 */

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { readDirectory, readHeader } from "./src/directory.js";
import { Coding, HEADER_SIZE } from "./src/registry.js";
import { decodeWhole } from "./src/sequence.js";
import { readTables } from "./src/tables.js";
import { TensorDecoder } from "./src/tensor.js";

const SECONDS = 2; // of runs for each file

/** Milliseconds of range decoding and of reconstruction, and the weights, of all transform-coded tensors. */
function transformed(bytes) {
  const header = readHeader(bytes);
  const directory = readDirectory(header, bytes.subarray(HEADER_SIZE, HEADER_SIZE + header.stored));
  const at = ({ offset, length }) => bytes.subarray(offset, offset + length);
  const tables = directory.tables === null ? [] : readTables(directory.tables, at(directory.tables));
  const times = { payload: 0, weights: 0, elements: 0 };
  for (const entry of directory.tensors) {
    if (entry.same_as !== null || entry.coding !== Coding.TRANSFORM) continue;
    const decoder = new TensorDecoder(entry, tables);
    const start = performance.now();
    for (const segment of entry.segments) decoder.push(at(segment));
    const between = performance.now();
    decoder.finish();
    times.payload += between - start;
    times.weights += performance.now() - between;
    times.elements += entry.elements;
  }
  return times;
}

const speed = (elements, ms) => (elements > 0 ? (elements / ms / 1000).toFixed(1) : "-").padStart(8);

process.stdout.write(`${"file".padEnd(24)}    weights  bits/w  payload  weights    whole  M weights/s\n`);
for (const path of process.argv.slice(2)) {
  const bytes = new Uint8Array(readFileSync(path));
  const runs = { payload: [], weights: [], whole: [] };
  let elements = 0;
  let coded = 0;
  for (const start = performance.now(); runs.whole.length < 3 || performance.now() - start < SECONDS * 1000; ) {
    const before = performance.now();
    const { tensors } = decodeWhole(bytes);
    runs.whole.push(performance.now() - before);
    elements = 0;
    for (const { data } of tensors.values()) elements += data.length;
    const times = transformed(bytes);
    runs.payload.push(times.payload);
    runs.weights.push(times.weights);
    coded = times.elements;
  }
  const bits = ((8 * bytes.length) / elements).toFixed(3).padStart(7);
  const columns = [
    speed(coded, Math.min(...runs.payload)),
    speed(coded, Math.min(...runs.weights)),
    speed(elements, Math.min(...runs.whole)),
  ];
  process.stdout.write(`${basename(path).padEnd(24)} ${String(elements).padStart(10)} ${bits} ${columns.join(" ")}\n`);
}
