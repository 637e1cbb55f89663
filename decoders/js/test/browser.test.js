/** The demo in a browser: Chromium at $CHROMIUM or /usr/bin/chromium, with playwright-core. */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
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

  async function load(query = "") {
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
    await page.goto(`${server.url}demo/${query}`);
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
      "File", "360 B", "Decoded", "172 B", "Ratio", "0.48\u00d7", "Bits per weight", (2880 / 23).toFixed(3),
      "Weights", "23", "Tensors", "4",
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
});
