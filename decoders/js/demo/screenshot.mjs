/** Takes the screenshot of the README: `node demo/screenshot.mjs FILE.tqc [TENSOR] [OUT.png] [light|dark]`. */

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { serve } from "./serve.mjs";

const [path, tensor, out, colorScheme] = process.argv.slice(2);
const server = await serve();
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: colorScheme ?? "light" });
await page.goto(`${server.url}demo/`);
await page.setInputFiles("#file", { name: basename(path), mimeType: "", buffer: readFileSync(path) });
await page.locator("#verdict.good").waitFor();
await page.getByRole("button", { name: "Bytes" }).click();
if (tensor) {
  await page.getByRole("button", { name: tensor, exact: true }).click();
  await page.locator("#figures[aria-busy=false]").waitFor();
}
await page.screenshot({ path: out || fileURLToPath(new URL("screenshot.png", import.meta.url)) });
await browser.close();
server.close();
