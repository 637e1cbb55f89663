/** Version of the format that this decoder reads. */
export const FORMAT_VERSION: "0.9";

/** Element types, by their names in the specification and in safetensors. */
export type DType =
  | "BOOL"
  | "U8"
  | "I8"
  | "U16"
  | "I16"
  | "U32"
  | "I32"
  | "U64"
  | "I64"
  | "F8_E4M3"
  | "F8_E5M2"
  | "F16"
  | "BF16"
  | "F32"
  | "F64";

export type TensorData =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | BigUint64Array
  | BigInt64Array
  | Float32Array
  | Float64Array;

/** A decoded tensor. `data` is row-major; F16, BF16 (Uint16Array) and F8 (Uint8Array) are bit patterns. */
export class Tensor {
  constructor(name: string, dtype: DType, shape: number[], data: TensorData);
  readonly name: string;
  readonly dtype: DType;
  readonly shape: number[];
  readonly data: TensorData;
  /** The elements as bytes, least significant byte first; not a copy. */
  get bytes(): Uint8Array;
}

/** The values as a Float32Array: exact but for integers above 2^24 and F64, which round. Of F32 it is `data` itself. */
export function toFloat32(tensor: Pick<Tensor, "dtype" | "data">): Float32Array;

export interface ErrorPlace {
  offset?: number;
  tensor?: string;
}

/** Base of the errors about a file. `message` is one line: `malformed: [table.sum] at byte 412, tensor 'w': ...`. */
export class TQCError extends Error {
  constructor(rule: string, detail: string, place?: ErrorPlace);
  /** Tag of the rule in the specification, such as `table.sum`. */
  readonly rule: string;
  readonly detail: string;
  /** Byte of the file, where known. */
  readonly offset?: number;
  /** Name of the tensor, where known. It comes from the file: show it as text only. */
  readonly tensor?: string;
}
/** The file breaks a rule of the specification. */
export class MalformedError extends TQCError {}
/** The file is legal as far as this version knows, and needs a newer decoder. */
export class UnsupportedError extends TQCError {}
/** Decoding would take more memory than the caller, or the platform, allows. */
export class LimitError extends TQCError {}

export interface DecodeOptions {
  /** Bytes that all tensors may take together, tied ones included; by default 32 MiB and 1000 times the file's length. */
  limit?: number;
}

/** Decodes a whole file, all of which is checked. Tensors that are tied share one array. */
export function decode(data: ArrayBuffer | ArrayBufferView, options?: DecodeOptions): Map<string, Tensor>;

export interface StreamOptions extends DecodeOptions {
  /** Length of the file, where it is known: checked before anything is decoded, and the base of the default limit. */
  size?: number;
}

/**
 * Yields each tensor as soon as its bytes are there, holding no more than one segment and one tensor. Tensors in
 * bundles come first, tied ones behind the one that they are tied to. When it ends without an error, the whole
 * file is well-formed.
 */
export function decodeStream(
  stream: ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>,
  options?: StreamOptions,
): AsyncGenerator<Tensor, void, void>;

/** Where bytes come from, for `open`: fewer than `length` only where the file ends. */
export interface Source {
  readonly size?: number;
  read(offset: number, length: number): Promise<Uint8Array>;
}

export interface OpenOptions {
  /** Bytes that one tensor may take; by default 32 MiB and 1000 times the length of the file. */
  limit?: number;
  /** For URLs: instead of the global `fetch`. */
  fetch?: typeof fetch;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export interface TensorInfo {
  name: string;
  /** Of a tensor that is not supported, it may be any string. */
  dtype: DType | (string & {});
  shape: number[];
  elements: number;
  /** `raw`, `planes`, `transform`, or the number of a coding that this decoder does not know. */
  coding: string;
  /** Index of the bundle that holds the tensor. */
  bundle: number | null;
  /** Bytes in the file: of a bundle the tensor's share by elements, of a tied tensor 0. */
  bytes: number;
  /** Bytes of the decoded elements; null of an unknown type. */
  decodedBytes: number | null;
  /** Signal-to-noise ratio in decibels that the encoder stated. */
  snr: number | null;
  /** Name of the tensor that this one is tied to. */
  tiedTo: string | null;
  supported: boolean;
}

/** A transform-coded tensor before its reconstruction; names are those of the specification, chapter 9. */
export interface TransformRecord {
  /** 0 UNIFORM, 1 TRELLIS */
  quantizer: number;
  /** Rows of a segment of the trellis; 0 without. */
  steps: number;
  /** 0 RANGE, 1 FIXED */
  payload_kind: number;
  tile_rows: number;
  tile_columns: number;
  scale_mantissa: number;
  scale_exponent: number;
  scale: number;
  /** Axis of each dimension: 0 OUT, 1 IN, 2 TAPS. */
  roles: number[];
  /** O, I and T. */
  lengths: number[];
  /** O', I' and T'. */
  channels: number[];
  /** Of each axis: 0 NONE, 1 DCT, 2 EXPLICIT. */
  basisKinds: number[];
  /** Of each axis the synthesis rows, channels x positions; null without a basis. */
  bases: (Float64Array | null)[];
  /** Of each column i' * T' + t'. */
  depths: Uint8Array;
  table_map: number[];
  levels_out: Uint8Array | null;
  levels_in: Uint8Array | null;
  levels_taps: Uint8Array | null;
  /** r[o] of each position of `out`. */
  rowScales: Float64Array;
  /** m[i',t'] of each column. */
  multipliers: Float64Array;
  /** O' */
  rows: number;
  /** The columns of a depth above 0, which are those of `coefficients`. */
  kept: Uint32Array;
  /** rows x kept.length, row-major. */
  coefficients: Int32Array;
}

/** A file that is open: its directory is read and checked, its tensors come one at a time. */
export class TensorFile {
  private constructor();
  /** Length of the file. */
  get size(): number;
  get metadata(): Map<string, string>;
  /** Names of the tensors in the order of the file. */
  keys(): string[];
  /** What the directory says about a tensor. */
  info(name: string): TensorInfo;
  tensor(name: string): Promise<Tensor>;
  /** The record of a transform-coded tensor; null of others. */
  record(name: string): Promise<TransformRecord | null>;
  /** Reads and checks the whole file, keeping nothing; throws what `decode` would. Gives the bytes of all tensors. */
  verify(): Promise<number>;
}

/** Where `download` keeps pieces of files, by their address and offset. */
export interface Store {
  all(url: string): Promise<[number, Uint8Array][]>;
  put(url: string, offset: number, bytes: Uint8Array): Promise<void>;
  clear(url: string): Promise<void>;
}

export interface DownloadOptions extends Omit<OpenOptions, "limit"> {
  /** Instead of IndexedDB; without either, nothing outlives the page. */
  store?: Store;
  /** How often bytes are asked for before an error, where another attempt may help; by default 5. */
  attempts?: number;
  /** Called with bytes done, of how many. */
  progress?: (done: number, of: number) => void;
}

/**
 * Downloads a whole file and checks all its segments. What has come outlives the page: whoever asks again gets the
 * rest alone; of a file that is all there and has not changed only the header is asked for.
 */
export function download(url: string | URL, options?: DownloadOptions): Promise<Uint8Array>;

/** Lets go of what is kept of a file. */
export function forget(url: string | URL, options?: Pick<DownloadOptions, "store">): Promise<void>;

/**
 * Opens a file of which single tensors are wanted. Of a URL only the bytes that are needed are asked for; a server
 * that does not know ranges sends the whole file once.
 */
export function open(
  file: ArrayBuffer | ArrayBufferView | Blob | URL | string | Source,
  options?: OpenOptions,
): Promise<TensorFile>;
