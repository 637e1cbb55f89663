import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { MalformedError, UnsupportedError, decode, decodeStream, open } from "tqcodec";
import { WorkerFile } from "tqcodec/client";
import { serve } from "../demo/serve.mjs";
import { NAMES, expected, fixture, readSafetensors, summary } from "./helpers.js";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));

async function tensorsOf(file) {
  const tensors = new Map();
  for (const name of file.keys()) tensors.set(name, await file.tensor(name));
  return tensors;
}

const LARGEST = 2 ** 128 - 2 ** 104; // of F32

/** The weight at a place of a tensor, term by term (specification, 10.2). */
function weightAt({ roles, lengths, channels, bases, kept, coefficients, multipliers, rowScales, scale }, shape, place) {
  const position = [0, 0, 0];
  const below = [1, 1, 1];
  for (let d = shape.length - 1; d >= 0; d--) {
    position[roles[d]] += (place % shape[d]) * below[roles[d]];
    below[roles[d]] *= shape[d];
    place = Math.floor(place / shape[d]);
  }
  const at = (axis, row) => bases[axis]?.[row * lengths[axis] + position[axis]] ?? Number(row === position[axis]);
  let sum = 0;
  for (let row = 0; row < channels[0]; row++) {
    for (let k = 0; k < kept.length; k++) {
      const [i, t] = [Math.floor(kept[k] / channels[2]), kept[k] % channels[2]];
      sum += at(0, row) * at(1, i) * at(2, t) * coefficients[row * kept.length + k] * multipliers[kept[k]];
    }
  }
  return (sum + 0) * (scale * rowScales[position[0]]);
}

describe("open", () => {
  it("gives the same tensors from memory, a Blob and a source", async () => {
    for (const name of NAMES) {
      const bytes = fixture(name);
      const source = { size: bytes.length, read: async (at, n) => bytes.slice(at, at + n) };
      const { metadata } = readSafetensors(fixture(name, ".safetensors"));
      for (const from of [bytes, bytes.buffer, new Blob([bytes]), source]) {
        const file = await open(from);
        assert.deepEqual(summary(await tensorsOf(file)), expected(name));
        assert.deepEqual(new Map([...file.metadata].sort()), new Map([...metadata].sort()));
        assert.equal(await file.verify(), [...decode(bytes).values()].reduce((n, { bytes: b }) => n + b.length, 0));
      }
    }
  });

  it("tells what the directory says", async () => {
    const file = await open(fixture("example"));
    assert.deepEqual(file.info("b"), {
      name: "b", dtype: "F32", shape: [3], elements: 3, coding: "planes", bundle: 0, bytes: 16, decodedBytes: 12,
      snr: null, tiedTo: null, supported: true,
    });
    assert.deepEqual([file.info("w").coding, file.info("w").bytes, file.info("t").tiedTo, file.info("t").bytes], ["transform", 52, "w", 0]);
    assert.equal((await open(fixture("range"))).info("range").snr, 20);
    assert.throws(() => file.info("x"), RangeError);
    await assert.rejects(file.tensor("x"), RangeError);
  });

  it("gives records", async () => {
    const file = await open(fixture("example"));
    const record = await file.record("t");
    assert.deepEqual([...record.coefficients], [2, 0, -2, 2, 1, -2, -6, 0, 2, 2]);
    assert.deepEqual([record.rows, [...record.kept], [...record.depths], record.steps], [5, [0, 1], [3, 2], 3]);
    assert.deepEqual([...record.bases[2]], [12, 8, 8, 12, 1, -2, -1, 2]);
    assert.deepEqual([record.bases[0], record.scale, [...record.rowScales]], [null, 3 / 32, [1, 1, 1, 1, 2]]);
    assert.equal(await file.record("b"), null);
  });

  it("gives records from which the weights follow", async () => {
    let seen = 0;
    const vectors = new URL("../../../conformance/accept/", import.meta.url);
    const paths = readdirSync(vectors).filter((path) => path.endsWith(".tqc"));
    const files = [...NAMES.map((name) => fixture(name)), ...paths.map((path) => new Uint8Array(readFileSync(new URL(path, vectors))))];
    for (const bytes of files) {
      const file = await open(bytes);
      for (const name of file.keys()) {
        const record = await file.record(name);
        const { shape, dtype, data } = await file.tensor(name);
        assert.equal(record === null, file.info(file.info(name).tiedTo ?? name).coding !== "transform");
        if (record === null || dtype !== "F32") continue;
        seen++;
        for (let n = 0; n < data.length; n += 1 + Math.floor(data.length / 300)) {
          const weight = Math.max(-LARGEST, Math.min(LARGEST, weightAt(record, shape, n)));
          assert.equal(data[n], Math.fround(weight), `${name} at ${n}`);
        }
      }
    }
    assert.ok(seen > 50, `${seen} records`);
  });

  it("reports damage of one tensor for that tensor alone", async () => {
    const bytes = fixture("example");
    bytes[355] ^= 1;
    const file = await open(bytes);
    await assert.rejects(file.tensor("w"), { rule: "segment.crc", tensor: "w", offset: 308 });
    await assert.rejects(file.tensor("t"), { rule: "segment.crc" });
    assert.equal((await file.tensor("b")).data.length, 3);
    await assert.rejects(file.verify(), MalformedError);
  });

  it("limits one tensor, and lets one array not change another", async () => {
    const file = await open(fixture("example"), { limit: 40 });
    await assert.rejects(file.tensor("w"), { rule: "limit.decoded", tensor: "w" });
    (await file.tensor("b")).data.fill(0);
    assert.deepEqual([...(await file.tensor("b")).data], [-1.5, 0.75, 1.25]);
  });
});

describe("open of a URL", () => {
  const asked = [];
  let server;
  let plain;
  before(async () => {
    server = await serve({ seen: ({ headers }) => asked.push(headers.range) });
    plain = await serve({ ranges: false, seen: ({ headers }) => asked.push(headers.range) });
  });
  after(() => {
    server.close();
    plain.close();
  });

  it("asks for ranges", async () => {
    for (const name of NAMES) {
      const file = await open(`${server.url}test/fixtures/${name}.tqc`);
      assert.deepEqual(summary(await tensorsOf(file)), expected(name));
    }
    asked.length = 0;
    const file = await open(new URL("test/fixtures/example.tqc", server.url));
    await file.tensor("w");
    await file.tensor("t");
    assert.deepEqual(asked.sort(), ["bytes=0-65535", "bytes=256-291", "bytes=308-359", "bytes=308-359"]);
  });

  it("takes the whole file from a server without ranges, once", async () => {
    asked.length = 0;
    const file = await open(`${plain.url}test/fixtures/dtypes.tqc`);
    assert.deepEqual(summary(await tensorsOf(file)), expected("dtypes"));
    assert.equal(asked.length, 1);
  });

  it("reports what is not there, and a file that changes", async () => {
    await assert.rejects(open(`${server.url}test/fixtures/none.tqc`), /404/);
    await assert.rejects(open(`${server.url}package.json`), MalformedError);
    let tag = 0;
    const changing = async (url, options) => {
      const response = await fetch(url, options);
      const headers = new Headers(response.headers);
      headers.set("etag", `"${tag++}"`);
      return new Response(response.body, { status: response.status, headers });
    };
    const file = await open(`${server.url}test/fixtures/example.tqc`, { fetch: changing });
    await assert.rejects(file.tensor("w"), /changed/);
  });
});

describe("decodeStream", () => {
  async function* pieces(bytes, n) {
    for (let i = 0; i < bytes.length; i += n) {
      yield bytes.subarray(i, i + n);
      yield new Uint8Array(0);
    }
  }

  it("gives the same tensors from pieces of any size", async () => {
    for (const name of NAMES) {
      const bytes = fixture(name);
      for (const size of [1, 2, 3, 7, 29, 100, 4096]) {
        const tensors = new Map();
        for await (const tensor of decodeStream(pieces(bytes, size))) tensors.set(tensor.name, tensor);
        assert.deepEqual(summary(tensors), expected(name));
      }
      const tensors = new Map();
      for await (const tensor of decodeStream(new Blob([bytes]).stream())) tensors.set(tensor.name, tensor);
      assert.deepEqual(summary(tensors), expected(name));
    }
  });

  it("gives a tensor as soon as its bytes are there", async () => {
    const bytes = fixture("example");
    let sent = 0;
    const slow = new ReadableStream({
      pull(controller) {
        if (sent === bytes.length) controller.close();
        else controller.enqueue(bytes.slice(sent, ++sent));
      },
    }, { highWaterMark: 0 });
    const seen = [];
    for await (const { name } of decodeStream(slow, { size: bytes.length })) seen.push([name, sent]);
    assert.deepEqual(seen, [["b", 308], ["w", 360], ["t", 360], ["e", 360]]);
  });

  it("has the verdict at the end, and cancels the stream when it stops", async () => {
    const bytes = fixture("example");
    const names = async (stream) => {
      const seen = [];
      try {
        for await (const { name } of decodeStream(stream)) seen.push(name);
      } catch (error) {
        seen.push(error.rule);
      }
      return seen;
    };
    assert.deepEqual(await names(pieces(bytes.subarray(0, 350), 9)), ["b", "container.length"]);
    assert.deepEqual(await names(pieces(Uint8Array.from([...bytes, 0]), 9)), ["b", "w", "t", "e", "container.length"]);
    let cancelled = false;
    const stream = new ReadableStream({
      start: (controller) => controller.enqueue(bytes),
      cancel: () => (cancelled = true),
    });
    for await (const { name } of decodeStream(stream)) if (name === "b") break;
    assert.ok(cancelled);
  });
});

describe("worker", () => {
  it("answers as the file itself does", async () => {
    const worker = new Worker(new URL("../src/worker.js", import.meta.url));
    const remote = new WorkerFile(worker);
    try {
      const opened = await remote.open(fixture("example"));
      assert.deepEqual([opened.size, opened.infos.map(({ name }) => name)], [360, ["w", "b", "t", "e"]]);
      const tensors = new Map();
      for (const { name } of opened.infos) tensors.set(name, await remote.tensor(name));
      assert.deepEqual(summary(tensors), expected("example"));
      assert.equal((await remote.record("w")).coefficients.length, 10);
      assert.equal(await remote.record("b"), null);
      assert.equal(await remote.verify(), 172);
      await assert.rejects(remote.tensor("x"), /no tensor/);
      const damaged = fixture("example");
      damaged[9] = 1;
      await assert.rejects(remote.open(damaged), MalformedError);
      await assert.rejects(remote.tensor("w"), { rule: "header.crc" });
      const last = remote.record("w");
      remote.close();
      await assert.rejects(last, /closed/);
    } finally {
      await worker.terminate();
    }
  });
});

describe("tqcdec", () => {
  const run = (input, ...args) => spawnSync(process.execPath, [`${PACKAGE}tqcdec.mjs`, ...args], { input });

  it("writes safetensors", () => {
    for (const name of ["example", "dtypes", "empty"]) {
      const { status, stdout, stderr } = run(fixture(name));
      assert.deepEqual([status, stderr.length], [0, 0]);
      const { tensors, metadata } = readSafetensors(stdout);
      assert.deepEqual(summary(tensors), expected(name));
      const reference = readSafetensors(fixture(name, ".safetensors"));
      assert.deepEqual([...metadata].sort(), [...reference.metadata].sort());
    }
  });

  it("has an exit code and a line for each verdict", () => {
    const damaged = fixture("example");
    damaged[355] ^= 1;
    const { status, stdout, stderr } = run(damaged);
    assert.deepEqual([status, stdout.length], [1, 0]);
    assert.match(String(stderr), /^malformed: \[segment\.crc\] at byte 308, tensor 'w': .+\n$/);
    assert.equal(run(new Uint8Array(0)).status, 1);
    assert.equal(run(new Uint8Array(0), "--help").status, 2);
  });

  it("decodes one file after the other with --batch", () => {
    const damaged = fixture("example");
    damaged[355] ^= 1;
    const files = [fixture("example"), damaged, new Uint8Array(0), ...NAMES.map((name) => fixture(name))];
    const input = Buffer.concat(files.flatMap((file) => {
      const size = Buffer.alloc(4);
      size.writeUInt32LE(file.length);
      return [size, file];
    }));
    const { status, stdout } = run(input, "--batch");
    assert.equal(status, 0);
    const answers = [];
    for (let at = 0; at < stdout.length; ) {
      const rule = stdout.toString("latin1", at + 2, at + 2 + stdout[at + 1]);
      const size = stdout.readUInt32LE(at + 2 + rule.length);
      const start = at + 6 + rule.length;
      answers.push([stdout[at], rule, stdout.subarray(start, start + size)]);
      at = start + size;
    }
    assert.deepEqual(answers.slice(1, 3).map(([verdict, rule, { length }]) => [verdict, rule, length]), [[1, "segment.crc", 0], [1, "segment.short", 0]]);
    assert.deepEqual(summary(readSafetensors(answers[0][2]).tensors), expected("example"));
    NAMES.forEach((name, i) => {
      assert.deepEqual([answers[3 + i][0], answers[3 + i][1]], [0, ""]);
      assert.deepEqual(summary(readSafetensors(answers[3 + i][2]).tensors), expected(name));
    });
    assert.equal(answers.length, files.length);
    assert.equal(run(input.subarray(0, -1), "--batch").status, 70);
  });
});

describe("types", () => {
  const tsc = `${PACKAGE}node_modules/typescript/bin/tsc`;
  it("serve a program", { skip: !existsSync(tsc) && "typescript is not installed" }, () => {
    const { status, stdout } = spawnSync(process.execPath, [tsc, "--project", `${PACKAGE}test`]);
    assert.equal(status, 0, String(stdout));
  });

  it("of errors are one tree", () => {
    assert.ok(Object.getPrototypeOf(MalformedError) === Object.getPrototypeOf(UnsupportedError));
  });
});
