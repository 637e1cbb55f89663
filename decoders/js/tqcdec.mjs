#!/usr/bin/env node
/**
 * A decoder under test: one .tqc file on standard input, safetensors on standard output.
 *
 * Exit codes: 0 decoded, 1 malformed, 2 usage, 3 unsupported, 4 limit, 70 anything else. With --batch,
 * standard input is a sequence of files, each behind its length as u32, and the answer to each is a u8
 * verdict, a u8 length and the rule, and a u32 length and the safetensors file.
 */

const CODES = { malformed: 1, unsupported: 3, limit: 4 };

async function main(args) {
  const { TQCError } = await import("./src/errors.js");
  const { decodeWhole } = await import("./src/sequence.js");
  const { writeSafetensors } = await import("./src/safetensors.js");

  /** [verdict, rule or "", pieces of the safetensors file, message] of one file. */
  function answer(bytes) {
    try {
      const { tensors, metadata } = decodeWhole(bytes);
      return [0, "", writeSafetensors(tensors.values(), metadata), ""];
    } catch (error) {
      if (!(error instanceof TQCError)) throw error;
      return [CODES[error.constructor.verdict], error.rule, [], error.message];
    }
  }

  if (args.length === 1 && args[0] === "--batch") {
    const input = chunks(process.stdin);
    for (;;) {
      const length = await input(4);
      if (length.length === 0) return 0;
      if (length.length < 4) throw new Error("batch is cut off");
      const size = new DataView(length.buffer, length.byteOffset).getUint32(0, true);
      const bytes = await input(size);
      if (bytes.length < size) throw new Error("batch is cut off");
      const [verdict, rule, pieces] = answer(bytes);
      const total = pieces.reduce((sum, piece) => sum + piece.length, 0);
      const head = Buffer.alloc(6 + rule.length);
      head.writeUInt8(verdict, 0);
      head.writeUInt8(rule.length, 1);
      head.write(rule, 2, "latin1");
      head.writeUInt32LE(total, 2 + rule.length);
      await write([head, ...pieces]);
    }
  }
  if (args.length > 0) {
    process.stderr.write("usage: tqcdec [--batch] < FILE.tqc > FILE.safetensors\n");
    return 2;
  }
  const [verdict, , pieces, message] = answer(await chunks(process.stdin)(Infinity));
  if (verdict !== 0) process.stderr.write(`${message}\n`);
  await write(pieces);
  return verdict;
}

/** A function that gives the next n bytes of a stream, or what is left of it. */
function chunks(stream) {
  const iterator = stream[Symbol.asyncIterator]();
  let held = [];
  let size = 0;
  return async (n) => {
    while (size < n) {
      const { value, done } = await iterator.next();
      if (done) break;
      held.push(value);
      size += value.length;
    }
    const all = held.length === 1 ? held[0] : Buffer.concat(held);
    const end = Math.min(n, size);
    held = end < size ? [all.subarray(end)] : [];
    size -= end;
    return all.subarray(0, end);
  };
}

/** Writes pieces to standard output, and waits until it has taken them. */
async function write(pieces) {
  for (const piece of pieces) {
    await new Promise((resolve, reject) => {
      process.stdout.write(piece, (error) => (error ? reject(error) : resolve()));
    });
  }
}

// Node exits with 1 when an error is not caught, which would look like a verdict.
try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 70;
}
