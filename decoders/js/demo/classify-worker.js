/** Decodes a file while it comes in, and runs its network as far as its tensors are there: for classify.js. */

import { decodeStream, toFloat32 } from "../src/index.js";
import { Network, softmax } from "./network.js";

let network;
const pictures = new Map(); // pixels, or a pass over them, of the pictures that have no classes yet

/** Bytes of a file as they come: a Blob's, or those of a URL. */
async function coming(file) {
  if (file instanceof Blob) return { stream: file.stream(), size: file.size };
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${new URL(file).pathname}: the server answers ${response.status}`);
  const length = response.headers.has("Content-Encoding") ? null : response.headers.get("Content-Length");
  return { stream: response.body, size: length === null ? undefined : Number(length) };
}

async function open({ description, file }) {
  network = new Network(description);
  const { stream, size } = await coming(file);
  let received = 0;
  const count = (chunk, controller) => {
    received += chunk.byteLength;
    postMessage({ kind: "bytes", received, size });
    controller.enqueue(chunk);
  };
  advance();
  for await (const tensor of decodeStream(stream.pipeThrough(new TransformStream({ transform: count })), { size })) {
    if (!network.needed.includes(tensor.name)) continue;
    const { name, shape } = tensor;
    const data = toFloat32(tensor);
    network.give(name, { shape, data });
    postMessage({ kind: "tensor", name, shape, data });
    advance();
  }
  const missing = network.missing();
  if (missing !== undefined) throw new Error(`the file has no tensor ${missing}, which the network needs`);
  postMessage({ kind: "whole" });
}

/** Takes every picture as far as it gets. */
function advance() {
  if (network === undefined) return;
  for (const [id, known] of pictures) {
    const pass = known instanceof Float32Array ? network.start(known) : known;
    pictures.set(id, pass);
    const start = performance.now();
    const output = pass.advance();
    pass.time = (pass.time ?? 0) + performance.now() - start;
    const { next: done, time } = pass;
    if (output === null) {
      postMessage({ kind: "layers", id, done, of: network.layers.length });
    } else {
      pictures.delete(id);
      postMessage({ kind: "classes", id, probabilities: softmax(output.data), time });
    }
  }
}

const requests = {
  open,
  classify({ id, pixels }) {
    pictures.set(id, pixels);
    advance();
  },
};

onmessage = async ({ data: { kind, ...request } }) => {
  try {
    await requests[kind](request);
  } catch (error) {
    postMessage({ kind: "error", message: error.message });
  }
};
