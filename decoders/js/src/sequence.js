/** A whole file in the order of its bytes (specification, 4.1 and 12.1). */

import { readDirectory, readHeader } from "./directory.js";
import { LimitError, UnsupportedError, malformed } from "./errors.js";
import { HEADER_SIZE } from "./registry.js";
import { readTables } from "./tables.js";
import { TensorDecoder, checkSegment, decodeBundle, naming, tensorOf } from "./tensor.js";

/** Bytes that the tensors of a file may take by default. */
export function defaultLimit(size) {
  return 32 * 2 ** 20 + 1000 * size;
}

/** The segments fill the file, whose length is known. */
export function checkLength(directory, size) {
  if (size !== directory.end) {
    malformed("container.length", `${size} bytes, not ${directory.end}`, Math.min(size, directory.end));
  }
}

/** Refuses a directory whose tensors take more than `limit` bytes, tied ones included. */
export function checkLimit(directory, limit) {
  let total = 0;
  for (const { dtype, elements } of directory.tensors) total += dtype === null ? 0 : elements * dtype.bytes;
  if (total > limit) throw new LimitError("limit.decoded", `tensors take ${total} bytes, above ${limit}`);
}

/** For each bundle the entries that it holds, ties not counted. */
export function entriesOfBundles(directory) {
  const entries = directory.bundles.map(() => []);
  for (const entry of directory.tensors) {
    if (entry.same_as === null && entry.bundle !== null) entries[entry.bundle].push(entry);
  }
  return entries;
}

/** Names an error of a function after a tensor that is unsupported, and is otherwise thrown on. */
function unsupportedOf(run) {
  try {
    run();
    return null;
  } catch (error) {
    if (error instanceof UnsupportedError) return error;
    throw error;
  }
}

/**
 * Decodes a file as its bytes come in: asks for bytes by yielding their number, and gets them, or what
 * is left of the file, in return; yields each tensor as soon as it is decoded. Tensors of bundles come
 * first, tied tensors right behind the one that they are tied to.
 *
 * Ends in the verdict on the whole file: a malformed file stops it at once, what is unsupported only
 * when everything else has been checked.
 *
 * @param {number | undefined} size length of the file; without it, that is checked at the end
 * @param {(end: number) => number} limitOf bytes that tensors may take, by the length that the file should have
 * @returns {Generator<number | import("./tensor.js").Tensor, import("./directory.js").Directory, Uint8Array>}
 */
export function* decodeSequence(size, limitOf) {
  const header = readHeader(yield HEADER_SIZE);
  const directory = readDirectory(header, yield header.stored);
  if (size !== undefined) checkLength(directory, size);
  checkLimit(directory, limitOf(directory.end));
  const { tensors } = directory;
  const ties = new Map();
  for (const entry of tensors) {
    if (entry.same_as === null) continue;
    const target = tensors[entry.same_as];
    if (!ties.has(target)) ties.set(target, []);
    ties.get(target).push(entry);
  }
  function* give(entry, data) {
    yield tensorOf(entry, data);
    for (const tied of ties.get(entry) ?? []) yield tensorOf(tied, data);
  }
  function* read(segment) {
    const bytes = yield segment.length;
    checkSegment(segment, bytes);
    return bytes;
  }

  let tables = [];
  if (directory.tables !== null) tables = readTables(directory.tables, yield* read(directory.tables));
  const bundled = entriesOfBundles(directory);
  let unsupported = null;
  for (let i = 0; i < bundled.length; i++) {
    const bytes = yield* read(directory.bundles[i]);
    const refused = bundled[i].find((entry) => entry.unsupported !== null);
    if (refused === undefined) {
      const decoded = decodeBundle(directory.bundles[i], bytes, bundled[i], tables);
      for (let k = 0; k < decoded.length; k++) yield* give(bundled[i][k], decoded[k]);
    } else {
      unsupported ??= refused.unsupported;
    }
  }
  for (const entry of tensors) {
    if (entry.same_as !== null || entry.bundle !== null) continue;
    let refused = entry.unsupported;
    const decoder = refused === null ? naming(entry, () => new TensorDecoder(entry, tables)) : null;
    for (const segment of entry.segments) {
      const bytes = yield segment.length;
      naming(entry, () => {
        checkSegment(segment, bytes);
        if (refused === null) refused = unsupportedOf(() => decoder.push(bytes));
      });
    }
    if (refused === null) yield* give(entry, naming(entry, () => decoder.finish()));
    else unsupported ??= refused.about(entry.name);
  }
  const surplus = yield 1;
  if (surplus.length > 0) malformed("container.length", "bytes behind the last segment", directory.end);
  if (unsupported !== null) throw unsupported;
  return directory;
}

/** All tensors of a file in memory, in the order of the file. */
export function decodeWhole(bytes, limit) {
  const sequence = decodeSequence(bytes.length, () => limit ?? defaultLimit(bytes.length));
  const tensors = new Map();
  let position = 0;
  let step = sequence.next();
  while (!step.done) {
    if (typeof step.value === "number") {
      const start = position;
      position = Math.min(bytes.length, start + step.value);
      step = sequence.next(bytes.subarray(start, position));
    } else {
      tensors.set(step.value.name, step.value);
      step = sequence.next();
    }
  }
  const directory = step.value;
  return {
    metadata: directory.metadata,
    tensors: new Map(directory.tensors.map(({ name }) => [name, tensors.get(name)])),
  };
}
