/** Errors: what a decoder may answer besides tensors (specification, 3.1 and 12.1). */

/** A tensor's name as text of one line: names come from the file and may hold anything. */
export function quote(name) {
  const short = name.length > 120 ? `${name.slice(0, 120)}...` : name;
  const escaped = short.replace(/[\\'\p{C}\p{Zl}\p{Zp}]/gu, (c) =>
    c === "\\" || c === "'" ? `\\${c}` : `\\u{${c.codePointAt(0).toString(16)}}`,
  );
  return `'${escaped}'`;
}

/** Base of all errors; `rule` is the specification's tag, `offset` a byte of the file, `tensor` a name. */
export class TQCError extends Error {
  static verdict = "error";

  constructor(rule, detail, { offset, tensor } = {}) {
    super(detail);
    this.name = new.target.name;
    this.rule = rule;
    this.detail = detail;
    this.offset = offset;
    this.tensor = tensor;
    this.update();
  }

  /** Names the tensor, unless a check nearer to the fault has done so. */
  about(tensor) {
    this.tensor ??= tensor;
    this.update();
    return this;
  }

  update() {
    const places = [];
    if (this.offset !== undefined) places.push(`at byte ${this.offset}`);
    if (this.tensor !== undefined) places.push(`tensor ${quote(this.tensor)}`);
    const where = places.length > 0 ? ` ${places.join(", ")}` : "";
    this.message = `${this.constructor.verdict}: [${this.rule}]${where}: ${this.detail}`;
  }
}

/** The file breaks a rule of the specification. */
export class MalformedError extends TQCError {
  static verdict = "malformed";
}

/** The file is legal as far as this version knows, and needs a newer decoder. */
export class UnsupportedError extends TQCError {
  static verdict = "unsupported";
}

/** Decoding would take more memory than the caller, or the platform, allows. */
export class LimitError extends TQCError {
  static verdict = "limit";
}

/** `fail(rule, detail, offset)` for checks that have no reader at hand. */
export function malformed(rule, detail, offset) {
  throw new MalformedError(rule, detail, { offset });
}

/** A typed array of n elements; that the platform has no room for it is the caller's limit. */
export function allocate(TypedArray, n) {
  try {
    return new TypedArray(n);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new LimitError("limit.decoded", `no memory for ${n * TypedArray.BYTES_PER_ELEMENT} bytes`);
  }
}
