/** Takes the other screenshot of the README: `node demo/classify-screenshot.mjs DESCRIPTION.json FILE.tqc PICTURE...`. */

import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { serve } from "./serve.mjs";

const files = process.argv.slice(2);
const server = await serve();
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
page.on("console", (message) => process.stderr.write(`${message.text()}\n`));
await page.goto(`${server.url}demo/classify.html`);
await page.setInputFiles("#file", files);
await page.locator("#verdict.good").waitFor();
await page.locator(".picture:last-child li").first().waitFor();
await page.screenshot({ path: fileURLToPath(new URL("classify.png", import.meta.url)) });
await browser.close();
server.close();
