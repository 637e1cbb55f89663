import type { OpenOptions, Tensor, TensorInfo, TransformRecord } from "./index.js";

/** What of a Worker is used: those of browsers and of node:worker_threads have it. */
export interface WorkerLike {
  postMessage(message: unknown): void;
  terminate(): unknown;
}

export interface OpenedFile {
  size: number;
  metadata: Map<string, string>;
  infos: TensorInfo[];
}

/** A file that a worker, which runs `tqcodec/worker`, holds open: decoding does not stop the page. */
export class WorkerFile {
  constructor(worker: WorkerLike);
  open(
    file: ArrayBuffer | ArrayBufferView | Blob | URL | string,
    options?: Pick<OpenOptions, "limit" | "headers">,
  ): Promise<OpenedFile>;
  tensor(name: string): Promise<Tensor>;
  record(name: string): Promise<TransformRecord | null>;
  /** Checks the whole file, as `TensorFile.verify`. */
  verify(): Promise<number>;
  /** Ends the worker; requests without an answer are rejected. */
  close(): unknown;
}
