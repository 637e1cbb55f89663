"""The tour: what stands in docs/tour.md runs, and prints what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_serving import DOCUMENT, NGINX, Nginx

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text("utf-8")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
PLAYWRIGHT = ROOT / "decoders" / "js" / "node_modules" / "playwright-core"
SLOW = "location /slow/ { alias FOLDER/files/; limit_rate 20k; }"
BLOCKS = re.compile(r"```(\w+)\n(.*?)```|((?:^    [^\n]*\n)+)", re.M | re.S)


def printed(command: list[str], folder: Path, site: str) -> str:
    """What a command prints, its messages too; the end of a line is not looked at."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {"SITE": site, "PATH": f"{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.skipif(not PLAYWRIGHT.exists(), reason="playwright-core is not installed")
def test_the_tour(tmp_path: Path) -> None:
    (location,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
    server = Nginx(tmp_path, SLOW.replace("FOLDER", str(tmp_path)) + location)
    (tmp_path / "www").symlink_to(tmp_path / "files")
    shutil.copytree(ROOT / "decoders" / "js" / "src", tmp_path / "www" / "src")
    outputs: list[str] = []
    checked = 0
    try:
        for language, text, expected in BLOCKS.findall(TOUR):
            if text.startswith("# network.py"):
                (tmp_path / "network.py").write_text(text)
            elif language == "python":
                outputs.append(printed([sys.executable, "-c", text], tmp_path, server.url))
            elif language == "sh":
                outputs.append(printed(["bash", "-c", text], tmp_path, server.url))
            elif language == "html":
                (tmp_path / "www" / "index.html").write_text(text)
                outputs.append(shown(f"{server.url}/index.html"))
            else:
                for line in expected.splitlines():
                    assert line.strip() in outputs[-1], outputs
                    checked += 1
    finally:
        server.close()
    assert len(outputs) == 7, outputs
    assert checked >= 8


BROWSE = """
import { chromium } from "playwright-core";
const [executablePath, url] = process.argv.slice(-2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage();
await page.goto(url);
await page.waitForFunction(() => /tensors|Error/.test(document.getElementById("out").textContent));
console.log(await page.locator("#out").innerText());
await browser.close();
"""


def shown(url: str) -> str:
    """The text of the page, when its script is done."""
    assert CHROMIUM is not None
    command = ["node", "--input-type=module", "-e", BROWSE, "--", CHROMIUM, url]
    return printed(command, ROOT / "decoders" / "js", url)
