/** Tensors as a safetensors file: its element types have the names that they have here. */

const UTF8 = new TextEncoder();

/** A JSON object, its keys in the order given; a JavaScript object would sort keys that look like numbers. */
function object(pairs) {
  return `{${pairs.map(([key, json]) => `${JSON.stringify(key)}:${json}`).join(",")}}`;
}

/**
 * @param {Iterable<import("./tensor.js").Tensor>} tensors
 * @param {Map<string, string>} metadata
 * @returns {Uint8Array[]} the bytes of the file in pieces
 */
export function writeSafetensors(tensors, metadata = new Map()) {
  const pairs = [];
  const pieces = [];
  let end = 0;
  if (metadata.size > 0) {
    pairs.push(["__metadata__", object([...metadata].map(([key, text]) => [key, JSON.stringify(text)]))]);
  }
  for (const { name, dtype, shape, bytes } of tensors) {
    const data_offsets = [end, (end += bytes.length)];
    pairs.push([name, JSON.stringify({ dtype, shape, data_offsets })]);
    pieces.push(bytes);
  }
  const json = UTF8.encode(object(pairs));
  const padded = Math.ceil(json.length / 8) * 8;
  const head = new Uint8Array(8 + padded).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(padded), true);
  head.set(json, 8);
  return [head, ...pieces];
}
