/** Tensors of a file while it comes in. */

import { decodeSequence, defaultLimit } from "./sequence.js";

const TRUSTED = 2 ** 22; // bytes that a directory may claim to come, where nobody says how long the file is

/** Takes runs of n bytes out of the chunks of a ReadableStream or any other async iterable. */
class Chunks {
  constructor(stream) {
    this.iterator = iterate(stream);
    this.held = [];
    this.size = 0;
  }

  /** The next n bytes, or what is left. */
  async take(n) {
    while (this.size < n) {
      const { value, done } = await this.iterator.next();
      if (done) break;
      this.held.push(value);
      this.size += value.length;
    }
    const length = Math.min(n, this.size);
    if (this.held.length > 0 && this.held[0].length >= length) {
      const bytes = this.held[0].subarray(0, length);
      this.held[0] = this.held[0].subarray(length);
      this.size -= length;
      if (this.held[0].length === 0) this.held.shift();
      return bytes;
    }
    const bytes = new Uint8Array(length);
    let at = 0;
    let used = 0;
    while (at < length) {
      const chunk = this.held[used];
      const part = chunk.subarray(0, length - at);
      bytes.set(part, at);
      at += part.length;
      if (part.length < chunk.length) this.held[used] = chunk.subarray(part.length);
      else used++;
    }
    this.held.splice(0, used);
    this.size -= length;
    return bytes;
  }

  /** Tells the stream that no more is wanted. */
  async close() {
    await this.iterator.return?.();
  }
}

/** Not all browsers let a ReadableStream be iterated over. */
function iterate(stream) {
  if (stream[Symbol.asyncIterator] !== undefined) return stream[Symbol.asyncIterator]();
  const reader = stream.getReader();
  return { next: () => reader.read(), return: () => reader.cancel() };
}

/**
 * Decodes a stream: yields each tensor as soon as its bytes are there. No more is held than one segment and
 * the tensor that it belongs to. Tensors in bundles come first, tied ones behind the one that they are tied to.
 *
 * When the iteration ends without an error the whole file is well-formed; a tensor is yielded only if it
 * breaks no rule itself.
 *
 * @param {ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>} stream
 * @param {{ limit?: number, size?: number }} options size: length of the file, where it is known: it is
 *   checked before anything is decoded, and gives the default limit
 */
export async function* decodeStream(stream, options = {}) {
  const chunks = new Chunks(stream);
  const { limit, size } = options;
  const sequence = decodeSequence(size, (end) => limit ?? defaultLimit(size ?? Math.min(end, TRUSTED)));
  try {
    let step = sequence.next();
    while (!step.done) {
      if (typeof step.value === "number") {
        step = sequence.next(await chunks.take(step.value));
      } else {
        yield step.value;
        step = sequence.next();
      }
    }
  } finally {
    await chunks.close();
  }
}
