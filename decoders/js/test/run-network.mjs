/**
 * Runs networks for tests/decoders/test_js_network.py: `node test/run-network.mjs FOLDER...`. In a folder are
 * network.json, network.tqc and pixels (float32, one picture behind the other); a line of JSON for each is printed.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Network } from "../demo/network.js";
import { decode, toFloat32 } from "../src/index.js";

for (const folder of process.argv.slice(2)) {
  const read = (name) => readFileSync(join(folder, name));
  const network = new Network(JSON.parse(read("network.json")));
  const { buffer, byteOffset, byteLength } = read("pixels");
  const pixels = new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
  const size = network.description.input.shape.reduce((a, b) => a * b);
  const passes = Array.from({ length: pixels.length / size }, (_, i) =>
    network.start(pixels.subarray(i * size, (i + 1) * size)),
  );
  for (const [name, tensor] of decode(read("network.tqc"))) {
    network.give(name, { shape: tensor.shape, data: toFloat32(tensor) });
    passes.forEach((pass) => pass.advance());
  }
  const outputs = passes.map((pass) => pass.advance());
  console.log(JSON.stringify(outputs.map(({ shape, data }) => ({ shape, data: [...data] }))));
}
