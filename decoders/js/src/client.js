/** A file that a worker holds open: decoding does not stop the page. */

import { LimitError, MalformedError, UnsupportedError } from "./errors.js";
import { Tensor } from "./tensor.js";

const ERRORS = { LimitError, MalformedError, UnsupportedError };

function rebuilt({ kind, rule, detail, offset, tensor }) {
  const Kind = ERRORS[kind];
  return Kind === undefined ? new Error(detail) : new Kind(rule, detail, { offset, tensor });
}

export class WorkerFile {
  /**
   * @param {Worker | import("node:worker_threads").Worker} worker that runs `tqcodec/worker`; it holds this file alone
   */
  constructor(worker) {
    this.worker = worker;
    this.waiting = new Map();
    this.next = 0;
    const settle = ({ id, result, error }) => {
      const request = this.waiting.get(id);
      if (request === undefined) return; // an answer that was on its way when the file was closed
      const { resolve, reject } = request;
      this.waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(rebuilt(error));
    };
    const fail = (error) => {
      for (const { reject } of this.waiting.values()) reject(new Error(error.message ?? "the worker failed"));
      this.waiting.clear();
    };
    if (typeof worker.on === "function") {
      worker.on("message", settle);
      worker.on("error", fail);
    } else {
      worker.onmessage = (event) => settle(event.data);
      worker.onerror = fail;
    }
  }

  ask(method, ...args) {
    return new Promise((resolve, reject) => {
      const id = this.next++;
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, method, args });
    });
  }

  /** Opens bytes, a Blob or a URL: size, metadata and what the directory says about each tensor. */
  open(file, options = {}) {
    return this.ask("open", file instanceof URL ? file.href : file, options);
  }

  async tensor(name) {
    const { dtype, shape, data } = await this.ask("tensor", name);
    return new Tensor(name, dtype, shape, data);
  }

  record(name) {
    return this.ask("record", name);
  }

  /** Checks the whole file, as `TensorFile.verify`. */
  verify() {
    return this.ask("verify");
  }

  /** Ends the worker; requests without an answer are rejected. */
  close() {
    for (const { reject } of this.waiting.values()) reject(new Error("closed"));
    this.waiting.clear();
    return this.worker.terminate();
  }
}
