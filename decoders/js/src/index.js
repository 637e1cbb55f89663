/** What the package offers. */

import { decodeWhole } from "./sequence.js";
import { asBytes } from "./source.js";

export { download, forget } from "./download.js";
export { toFloat32 } from "./dtypes.js";
export { LimitError, MalformedError, TQCError, UnsupportedError } from "./errors.js";
export { TensorFile, open } from "./file.js";
export { decodeStream } from "./incremental.js";
export { Tensor } from "./tensor.js";

/** Version of the format that this decoder reads. */
export const FORMAT_VERSION = "0.9";

/**
 * Decodes a whole file, all of which is checked. Tensors that are tied share one array.
 *
 * @param {Uint8Array | ArrayBuffer | ArrayBufferView} data
 * @param {{ limit?: number }} options limit: bytes that all tensors may take together, tied ones included, by
 *   default 32 MiB and 1000 times the length of the file
 * @returns {Map<string, import("./tensor.js").Tensor>} tensors by name, in the order of the file
 */
export function decode(data, options = {}) {
  return decodeWhole(asBytes(data), options.limit).tensors;
}
