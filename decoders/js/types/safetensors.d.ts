import type { Tensor } from "./index.js";

/** The bytes of a safetensors file of these tensors, in pieces. */
export function writeSafetensors(tensors: Iterable<Tensor>, metadata?: Map<string, string>): Uint8Array[];
