/** The demo in a browser: Chromium at $CHROMIUM or /usr/bin/chromium, with playwright-core. */

import assert from "node:assert/strict";
import { existsSync, readFileSync, statSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { decode } from "tqcodec";
import { serve } from "../demo/serve.mjs";
import { file, fixture, raw, text } from "./helpers.js";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const playwright = await import("playwright-core").catch(() => null);
const missing =
  playwright === null ? "playwright-core is not installed" : !existsSync(CHROMIUM) && `no Chromium at ${CHROMIUM}`;

describe("demo", { skip: missing }, () => {
  let server;
  let browser;
  let page;
  let problems;
  before(async () => {
    server = await serve();
    browser = await playwright.chromium.launch({ executablePath: CHROMIUM, args: FLAGS, headless: true });
  });
  after(async () => {
    await browser?.close();
    server?.close();
  });

  async function load(query = "", name = "") {
    await page?.close();
    page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
    problems = [];
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) problems.push(message.text());
    });
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("requestfailed", (request) => problems.push(request.url()));
    page.on("request", (request) => {
      if (!request.url().startsWith(server.url) && !request.url().startsWith("data:")) problems.push(request.url());
    });
    await page.goto(`${server.url}demo/${name}${query}`);
  }

  const shown = (selector) => page.locator(selector).innerText();
  const names = () => page.locator("#tensors tbody tr td:first-child").allInnerTexts();
  const choose = (name, bytes) =>
    page.setInputFiles("#file", { name, mimeType: "application/octet-stream", buffer: Buffer.from(bytes) });
  const settled = () => page.locator("#figures[aria-busy=false]").waitFor({ state: "attached" });
  const drawn = (selector) =>
    page.locator(selector).evaluate((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.some((value) => value !== 0);
    });

  it("shows a file that is chosen: numbers, depth map, histograms, values", async () => {
    await load();
    await choose("example.tqc", fixture("example"));
    await page.locator("#verdict.good").waitFor();
    assert.equal(await shown("#file-name"), "example.tqc");
    const summary = (await shown("#summary")).split(/\n+/);
    assert.deepEqual(summary, [
      "File", "360 B", "Decoded", "172 B", "Ratio", "0.48\u00d7", "Bits per element", (2880 / 23).toFixed(3),
      "Elements", "23", "Tensors", "4",
    ]);
    assert.deepEqual(await names(), ["w", "b", "t", "e"]);
    assert.match(await shown("#tensor-facts"), /^F32, 5\u2009\u00d7\u20091\u2009\u00d7\u20092\u2009\u00d7\u20092 \u00b7 transform \u00b7 52 B for 80 B$/);
    assert.match(await shown("#legend"), /2 bits: 1\s+3 bits: 1/);
    assert.match(await shown("#coefficients-caption"), /^10 from -6 to 2, 20.0 % zero$/);
    assert.match(await shown("#preview"), /^\s*2\.250\s+1\.500\n/);
    for (const id of ["#values", "#coefficients", "#depths"]) assert.ok(await drawn(id), id);
    assert.match(await shown("#verdict"), /^well-formed: 172 B decoded/);
    assert.deepEqual(problems, []);
  });

  it("selects tensors and sorts them, by mouse and keyboard", async () => {
    await page.getByRole("button", { name: "b", exact: true }).click();
    await settled();
    assert.equal(await shown("#tensor-name"), "b");
    assert.ok(await page.locator("#depths-figure").isHidden());
    assert.match(await shown("#preview"), /-1\.500\s+0\.7500\s+1\.250/);
    assert.equal(await page.getByRole("button", { name: "b", exact: true }).getAttribute("aria-pressed"), "true");

    await page.getByRole("button", { name: "Name" }).click();
    assert.deepEqual(await names(), ["b", "e", "t", "w"]);
    assert.equal(await page.locator("th").first().getAttribute("aria-sort"), "ascending");
    await page.getByRole("button", { name: "Name" }).press("Enter");
    assert.deepEqual(await names(), ["w", "t", "e", "b"]);
    await page.getByRole("button", { name: "Bytes" }).click();
    assert.deepEqual((await names()).slice(0, 2), ["w", "b"]);
    await page.getByLabel("Filter").fill("T");
    assert.deepEqual(await names(), ["t"]);
    await page.getByRole("button", { name: "t", exact: true }).press("Space");
    await settled();
    assert.match(await shown("#tensor-facts"), /tied to w$/);
    assert.deepEqual(problems, []);
  });

  it("takes a file that is dropped, and one of the address", async () => {
    await load();
    const transfer = await page.evaluateHandle((bytes) => {
      const made = new DataTransfer();
      made.items.add(new File([Uint8Array.from(bytes)], "dtypes.tqc"));
      return made;
    }, [...fixture("dtypes")]);
    await page.dispatchEvent("#drop", "drop", { dataTransfer: transfer });
    await page.locator("#verdict.good").waitFor();
    const tensors = decode(fixture("dtypes"));
    assert.deepEqual(await names(), [...tensors.keys()].map((name) => name.trim()));
    for (const name of tensors.keys()) {
      await page.getByRole("button", { name, exact: true }).click();
      await settled();
      assert.equal(await page.locator("#tensor-name").textContent(), name);
      assert.ok(await page.locator("#tensor-error").isHidden());
    }
    await page.getByText("Metadata").click();
    assert.match(await shown("#metadata-list"), /__proto__\s+x\s+a\s+b/);

    await load("?file=../test/fixtures/range.tqc");
    await page.locator("#verdict.good").waitFor();
    assert.equal(await shown("#file-name"), "range.tqc");
    assert.match((await page.locator("#tensors tbody tr").allInnerTexts())[0], /20\.0$/);
    assert.deepEqual(problems, []);
  });

  it("reports damage in one line, for the file and for the tensor", async () => {
    await load();
    const damaged = fixture("example");
    damaged[355] ^= 1;
    await choose("damaged.tqc", damaged);
    await page.locator("#verdict.bad").waitFor();
    assert.match(await shown("#error"), /^malformed: \[segment\.crc\] at byte 308, tensor 'w': [^\n]+$/);
    assert.match(await shown("#tensor-error"), /segment\.crc/);
    await page.getByRole("button", { name: "b", exact: true }).click();
    await settled();
    assert.ok(await page.locator("#tensor-error").isHidden());
    await choose("not.tqc", Buffer.from("no such file"));
    await page.getByText("malformed: [header.signature]").waitFor();
    assert.ok(await page.locator("#view").isHidden());
    assert.deepEqual(problems, []);
  });

  it("shows names as text, whatever they are", async () => {
    const hostile = "<img src=x onerror=alert()>";
    await load();
    await choose("hostile.tqc", file(raw({ name: text(hostile) })));
    await page.locator("#verdict.good").waitFor();
    assert.deepEqual(await names(), [hostile]);
    assert.equal(await page.locator("#tensor-name").textContent(), hostile);
    await choose("hostile.tqc", file(raw({ name: text(hostile), shape: [0x91, 1] })));
    await page.getByText("malformed: [raw.length]").first().waitFor();
    assert.ok((await page.locator("#error").textContent()).includes(hostile));
    assert.equal(await page.locator("img").count(), 0);
    assert.deepEqual(problems, []);
  });

  const network = (name) => fileURLToPath(new URL(`fixtures/network/${name}`, import.meta.url));
  const wanted = JSON.parse(readFileSync(network("expected.json"), "utf8"));
  const classes = () => page.locator(".picture li").allInnerTexts();
  const read = (rows) => rows.map((row) => row.trim().split(/\s*\n\s*/));

  it("runs a network while its file comes in: filters, layers, classes", async () => {
    let open;
    const gate = new Promise((resolve) => (open = resolve));
    const slow = await serve({ halfway: (path) => (path.endsWith(".tqc") ? gate : null) });
    const usual = server;
    server = slow;
    try {
      await load("?network=../test/fixtures/network/network.json", "classify.html");
      await page.setInputFiles("#file", network("picture.png"));
      await page.getByText("4 of 9 layers computed").waitFor();
      assert.deepEqual(await page.locator("#filters figcaption").allInnerTexts(), ["0.weight"]);
      assert.ok(await drawn("#filters canvas"));
      assert.deepEqual(await classes(), []);
      const size = statSync(network("network.tqc")).size;
      const counts = (await shown("#bytes")).replaceAll(",", "");
      assert.equal(counts, `${Math.ceil(size / 2)} of ${size} bytes`);
      open();
      await page.locator("#verdict.good").waitFor();
      assert.deepEqual(read(await classes()), wanted);
      assert.deepEqual(await page.locator("#filters figcaption").allInnerTexts(), ["0.weight", "4.weight"]);
      assert.match(await shown("#bytes"), /^([\d,]+) of \1 bytes$/);
      assert.match(await shown(".picture"), /computed in \d+ ms$/);
      assert.deepEqual(problems, []);
    } finally {
      open();
      await page.close();
      slow.close();
      server = usual;
    }
  });

  it("takes the files of a network in any order, and another network after it", async () => {
    await load("", "classify.html");
    const picture = readFileSync(network("picture.png"));
    await page.setInputFiles("#file", ["picture.png", "network.tqc", "network.json"].map(network));
    await page.locator(".picture li").first().waitFor();
    assert.deepEqual(read(await classes()), wanted);
    const other = JSON.parse(readFileSync(network("network.json"), "utf8"));
    other.labels = ["A", "B", "C", "D"];
    await page.setInputFiles("#file", { name: "o.json", mimeType: "", buffer: Buffer.from(JSON.stringify(other)) });
    await page.setInputFiles("#file", network("network.tqc"));
    await page.getByText("A", { exact: true }).waitFor();
    await page.setInputFiles("#file", { name: "again.png", mimeType: "image/png", buffer: picture });
    await page.locator(".picture:nth-child(2) li").first().waitFor();
    assert.equal((await classes()).length, 2 * wanted.length);
    assert.deepEqual(problems, []);
  });

  it("says what is wrong with a network in one line", async () => {
    const good = JSON.parse(readFileSync(network("network.json"), "utf8"));
    const tqc = readFileSync(network("network.tqc"));
    const damaged = Uint8Array.from(tqc, (byte, i) => (i === tqc.length - 5 ? byte ^ 1 : byte));
    const change = (at, values) => good.layers.map((layer, i) => (i === at ? { ...layer, ...values } : layer));
    const cases = [
      [{ ...good, layers: change(0, { op: "toString" }) }, tqc, /^layer _0: 'toString' is no operation/],
      [{ ...good, layers: change(1, { inputs: ["x"] }) }, tqc, /^layer _1: its input x is not computed/],
      [{ ...good, output: "x" }, tqc, /^no layer x, which is the output$/],
      [{ ...good, layers: change(0, { weight: "w" }) }, tqc, /^the file has no tensor w, which the network needs$/],
      [{ ...good, layers: change(4, { weight: "0.weight" }) }, tqc, /^layer _4: input 12,13,13 for weights of 3 channels$/],
      [good, damaged, /^malformed: \[segment\.crc\]/],
    ];
    for (const [description, bytes, message] of cases) {
      await load("", "classify.html");
      const json = Buffer.from(JSON.stringify(description));
      await page.setInputFiles("#file", network("picture.png"));
      await page.setInputFiles("#file", { name: "n.json", mimeType: "", buffer: json });
      await page.setInputFiles("#file", { name: "n.tqc", mimeType: "", buffer: Buffer.from(bytes) });
      await page.locator("#error:not([hidden])").waitFor();
      assert.match(await shown("#error"), message);
    }
    await load("", "classify.html");
    await page.setInputFiles("#file", { name: "n.json", mimeType: "", buffer: Buffer.from("{") });
    await page.getByText(/^n\.json: /).waitFor();
    await page.setInputFiles("#file", { name: "n.txt", mimeType: "", buffer: Buffer.from("no picture") });
    await page.getByText(/^n\.txt: /).waitFor();
    await load("?network=https://example.org/n.json", "classify.html");
    await page.getByText("only networks of this server can be run").waitFor();
  });
});
