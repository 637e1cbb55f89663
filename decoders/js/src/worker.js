/** The decoder in a worker, of a browser or of Node: answers what client.js asks. */

import { TQCError } from "./errors.js";
import { open } from "./file.js";

const port = typeof process === "object" && process.versions?.node ? await nodePort() : globalThis;

async function nodePort() {
  const { parentPort } = await import("node:worker_threads");
  return parentPort;
}

let opened = Promise.reject(new Error("no file is open"));
opened.catch(() => {}); // each request that needs it says so

/** What each request is answered with. */
const answers = {
  async open(source, options) {
    opened = open(source, options);
    const file = await opened;
    return { size: file.size, metadata: file.metadata, infos: file.keys().map((name) => file.info(name)) };
  },
  async tensor(name) {
    const { dtype, shape, data } = await (await opened).tensor(name);
    return { name, dtype, shape, data };
  },
  async record(name) {
    return (await opened).record(name);
  },
  async verify() {
    return (await opened).verify();
  },
};

/** Buffers of a result, which go over without being copied. */
function buffersOf(result) {
  const arrays = Object.values(result ?? {}).flat().filter((value) => ArrayBuffer.isView(value));
  return [...new Set(arrays.map((array) => array.buffer))];
}

function describe(error) {
  if (!(error instanceof TQCError)) return { kind: "Error", detail: error.message };
  const { rule, detail, offset, tensor } = error;
  return { kind: error.name, rule, detail, offset, tensor };
}

async function answer({ id, method, args }) {
  try {
    const result = await answers[method](...args);
    port.postMessage({ id, result }, buffersOf(result));
  } catch (error) {
    port.postMessage({ id, error: describe(error) });
  }
}

if (port === globalThis) globalThis.onmessage = (event) => answer(event.data);
else port.on("message", answer);
