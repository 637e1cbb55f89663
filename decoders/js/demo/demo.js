/** The viewer: what the page shows of a file that a worker holds open. */

import { WorkerFile } from "../src/client.js";
import { toFloat32 } from "../src/dtypes.js";
import { acceptFiles, byId, count, element, showError } from "./page.js";

const BINS = 96;
const PREVIEW_ROWS = 6;
const PREVIEW_COLUMNS = 8;

function formatBytes(n) {
  if (n < 1000) return `${Math.round(n)} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let i = -1;
  for (; n >= 999.5 && i < units.length - 1; i++) n /= 1000;
  return `${n.toPrecision(3)} ${units[i]}`;
}

const formatValue = (v) => (Number.isInteger(v) && Math.abs(v) < 1e6 ? String(v) : v.toPrecision(4));
const formatShape = (shape) => (shape.length === 0 ? "scalar" : shape.join("\u2009\u00d7\u2009"));
const bitsPerElement = (info) => (info.elements > 0 && info.tiedTo === null ? (8 * info.bytes) / info.elements : null);

/** Columns of the table: title, what is shown, what it is sorted by, whether it is a number. */
const COLUMNS = [
  { title: "Name", text: (info) => info.name, key: (info) => info.name },
  { title: "Shape", text: (info) => formatShape(info.shape), key: (info) => info.elements, number: true },
  { title: "Type", text: (info) => info.dtype, key: (info) => info.dtype },
  { title: "Coding", text: codingText, key: codingText },
  { title: "Bytes", text: (info) => count.format(Math.round(info.bytes)), key: (info) => info.bytes, number: true },
  { title: "Bits/element", text: (info) => fixed(bitsPerElement(info), 2), key: bitsPerElement, number: true },
  { title: "SNR dB", text: (info) => fixed(info.snr, 1), key: (info) => info.snr, number: true },
];

function codingText(info) {
  if (info.tiedTo !== null) return `tied to ${info.tiedTo}`;
  if (!info.supported) return "unsupported";
  return info.bundle === null ? info.coding : "bundle";
}

function fixed(value, digits) {
  return value === null ? "\u2013" : value.toFixed(digits);
}

/** What is on the page. */
const state = { remote: null, infos: [], sort: { column: -1, descending: false }, selected: null, shown: null };

// ---- opening a file

/** Shows a file: a File, a Blob or a URL. */
async function show(file, name) {
  state.remote?.close();
  const remote = new WorkerFile(new Worker(new URL("../src/worker.js", import.meta.url), { type: "module" }));
  Object.assign(state, { remote, infos: [], selected: null, shown: null, sort: { column: -1, descending: false } });
  showError(null);
  byId("view").hidden = true;
  byId("detail").hidden = true;
  try {
    const opened = await remote.open(file);
    if (state.remote !== remote) return;
    state.infos = opened.infos;
    byId("filter").value = "";
    showSummary(name, opened);
    showTable();
    byId("view").hidden = false;
    const first = opened.infos.find((info) => info.coding === "transform" && info.supported) ?? opened.infos[0];
    if (first !== undefined) await select(first.name);
    await verify(remote);
  } catch (error) {
    if (state.remote === remote) showError(error);
  }
}

async function verify(remote) {
  const verdict = byId("verdict");
  verdict.className = "";
  verdict.textContent = "checking the whole file\u2026";
  const start = performance.now();
  try {
    const bytes = await remote.verify();
    if (state.remote !== remote) return;
    const ms = Math.max(1, Math.round(performance.now() - start));
    verdict.className = "good";
    verdict.textContent = `well-formed: ${formatBytes(bytes)} decoded and checked in ${count.format(ms)} ms`;
  } catch (error) {
    if (state.remote !== remote) return;
    verdict.className = "bad";
    verdict.textContent = "not decodable as a whole";
    throw error;
  }
}

function showSummary(name, { size, infos, metadata }) {
  byId("file-name").textContent = name;
  const decoded = infos.reduce((sum, info) => sum + (info.decodedBytes ?? 0), 0);
  const elements = infos.reduce((sum, info) => sum + (info.tiedTo === null ? info.elements : 0), 0);
  const facts = [
    ["File", formatBytes(size)],
    ["Decoded", formatBytes(decoded)],
    ["Ratio", `${(decoded / size).toFixed(2)}\u00d7`],
    ["Bits per element", elements > 0 ? ((8 * size) / elements).toFixed(3) : "\u2013"],
    ["Elements", count.format(elements)],
    ["Tensors", count.format(infos.length)],
  ];
  byId("summary").replaceChildren(
    ...facts.map(([term, text]) => {
      const pair = element("div");
      pair.append(element("dt", term), element("dd", text));
      return pair;
    }),
  );
  byId("metadata").hidden = metadata.size === 0;
  byId("metadata-list").replaceChildren(
    ...[...metadata].flatMap(([key, text]) => [element("dt", key), element("dd", text)]),
  );
}

// ---- the table

function makeHead() {
  const row = byId("tensors").tHead.rows[0];
  COLUMNS.forEach(({ title, number }, column) => {
    const cell = element("th", "", { scope: "col", "aria-sort": "none" });
    if (number) cell.className = "number";
    const button = element("button", title, { type: "button" });
    button.addEventListener("click", () => sortBy(column));
    cell.append(button);
    row.append(cell);
  });
}

/** First click: ascending, numbers descending; then the other way round; then the order of the file. */
function sortBy(column) {
  const first = COLUMNS[column].number === true;
  if (state.sort.column !== column) state.sort = { column, descending: first };
  else if (state.sort.descending === first) state.sort = { column, descending: !first };
  else state.sort = { column: -1, descending: false };
  showTable();
}

function sorted(infos) {
  const { column, descending } = state.sort;
  if (column < 0) return infos;
  const { key } = COLUMNS[column];
  const sign = descending ? -1 : 1;
  return [...infos].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
}

function showTable() {
  const table = byId("tensors");
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const { sort } = state;
    cell.setAttribute("aria-sort", sort.column !== column ? "none" : sort.descending ? "descending" : "ascending");
  });
  const wanted = byId("filter").value.toLowerCase();
  const rows = sorted(state.infos.filter(({ name }) => name.toLowerCase().includes(wanted))).map((info) => {
    const row = element("tr");
    row.className = info.supported ? "" : "unsupported";
    COLUMNS.forEach(({ text, number }, column) => {
      const cell = element("td", column === 0 ? "" : text(info));
      if (number) cell.className = "number";
      if (column === 0) {
        const button = element("button", info.name, { type: "button", title: info.name });
        button.addEventListener("click", () => select(info.name));
        cell.append(button);
      }
      row.append(cell);
    });
    row.dataset.name = info.name;
    return row;
  });
  table.tBodies[0].replaceChildren(...rows);
  markSelected();
}

function markSelected() {
  for (const row of byId("tensors").tBodies[0].rows) {
    const selected = row.dataset.name === state.selected;
    row.classList.toggle("selected", selected);
    row.querySelector("button").setAttribute("aria-pressed", String(selected));
  }
}

// ---- one tensor

async function select(name) {
  const { remote } = state;
  const info = state.infos.find((item) => item.name === name);
  state.selected = name;
  state.shown = null;
  markSelected();
  byId("detail").hidden = false;
  byId("tensor-name").textContent = name;
  byId("tensor-facts").textContent = [
    `${info.dtype}, ${formatShape(info.shape)}`,
    codingText(info),
    info.tiedTo === null ? `${formatBytes(info.bytes)} for ${formatBytes(info.decodedBytes ?? 0)}` : "",
  ].filter(Boolean).join(" \u00b7 ");
  showError(null, byId("tensor-error"));
  byId("figures").hidden = false;
  byId("figures").setAttribute("aria-busy", "true");
  try {
    const [tensor, record] = await Promise.all([remote.tensor(name), remote.record(name)]);
    if (state.remote !== remote || state.selected !== name) return;
    state.shown = { tensor, values: toFloat32(tensor), record };
    draw();
  } catch (error) {
    if (state.remote !== remote || state.selected !== name) return;
    byId("figures").hidden = true;
    showError(error, byId("tensor-error"));
  } finally {
    byId("figures").setAttribute("aria-busy", "false");
  }
}

function draw() {
  if (state.shown === null) return;
  const { tensor, values, record } = state.shown;
  byId("values-figure").hidden = values.length === 0;
  if (values.length > 0) drawValues(values);
  byId("coefficients-figure").hidden = record === null || record.coefficients.length === 0;
  if (!byId("coefficients-figure").hidden) drawCoefficients(record);
  byId("depths-figure").hidden = record === null || record.depths.length === 0;
  if (!byId("depths-figure").hidden) drawDepths(record);
  byId("preview-figure").hidden = values.length === 0;
  byId("preview").textContent = preview(tensor);
}

function preview({ shape, data, dtype }) {
  const values = ["U64", "I64"].includes(dtype) ? data : toFloat32({ dtype, data: data.subarray(0, 1e5) });
  const width = shape.length > 0 ? shape[shape.length - 1] : 1;
  const lines = [];
  for (let at = 0; at < values.length && lines.length < PREVIEW_ROWS; at += width) {
    const run = [...values.subarray(at, at + Math.min(width, PREVIEW_COLUMNS))];
    const cells = run.map((v) => (typeof v === "bigint" ? String(v) : formatValue(v)).padStart(12));
    lines.push(cells.join("") + (width > PREVIEW_COLUMNS ? "  \u2026" : ""));
  }
  if (values.length > PREVIEW_ROWS * width) lines.push("          \u2026");
  return lines.join("\n");
}

/** A canvas of its size on the screen in pixels of the device, cleared. */
function context(canvas, height) {
  const ratio = globalThis.devicePixelRatio || 1;
  if (height !== undefined) canvas.style.height = `${height}px`;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const drawing = canvas.getContext("2d");
  drawing.scale(ratio, ratio);
  return drawing;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Bars over an axis with a label at each end and one at 0 if that is between them. */
function drawBars(canvas, bars, low, high, fill) {
  const drawing = context(canvas);
  const { clientWidth: width, clientHeight: height } = canvas;
  const floor = height - 18;
  const most = bars.reduce((a, b) => Math.max(a, b), 1);
  const step = width / bars.length;
  const gap = step > 6 ? 1 : 0;
  drawing.fillStyle = colour(fill);
  bars.forEach((n, i) => {
    // A bar that is there at all can be seen.
    const size = n === 0 ? 0 : Math.max(1, (n / most) * (floor - 2));
    drawing.fillRect(i * step, floor - size, step - gap, size);
  });
  drawing.fillStyle = colour("--line");
  drawing.fillRect(0, floor, width, 1);
  drawing.fillStyle = colour("--quiet");
  drawing.font = "11.5px system-ui, 'DejaVu Sans', sans-serif";
  drawing.fillText(formatValue(low), 0, height - 4);
  drawing.textAlign = "right";
  drawing.fillText(formatValue(high), width, height - 4);
  const zero = (-low / (high - low)) * width;
  if (zero > 60 && zero < width - 60) {
    drawing.textAlign = "center";
    drawing.fillText("0", zero, height - 4);
  }
}

function drawValues(values) {
  let [low, high, sum, squares, finite] = [Infinity, -Infinity, 0, 0, 0];
  for (const v of values) {
    if (!Number.isFinite(v)) continue;
    low = Math.min(low, v);
    high = Math.max(high, v);
    sum += v;
    squares += v * v;
    finite++;
  }
  if (finite === 0) [low, high] = [0, 0];
  if (low === high) [low, high] = [low - 1, high + 1];
  const bars = new Array(BINS).fill(0);
  for (const v of values) {
    if (Number.isFinite(v)) bars[Math.min(BINS - 1, Math.floor(((v - low) / (high - low)) * BINS))]++;
  }
  const mean = finite > 0 ? sum / finite : 0;
  const deviation = finite > 0 ? Math.sqrt(Math.max(0, squares / finite - mean * mean)) : 0;
  const special = values.length - finite;
  byId("values-caption").textContent =
    `${count.format(values.length)} of mean ${formatValue(mean)}, deviation ${formatValue(deviation)}` +
    (special > 0 ? `; ${count.format(special)} not finite` : "");
  drawBars(byId("values"), bars, low, high, "--bar");
}

function drawCoefficients({ coefficients }) {
  let [low, high, zeros] = [0, 0, 0];
  for (const q of coefficients) {
    low = Math.min(low, q);
    high = Math.max(high, q);
    if (q === 0) zeros++;
  }
  // One bar for each integer while they can be told apart.
  const width = Math.ceil((high - low + 1) / BINS);
  const bars = new Array(Math.ceil((high - low + 1) / width)).fill(0);
  for (const q of coefficients) bars[Math.floor((q - low) / width)]++;
  byId("coefficients-caption").textContent =
    `${count.format(coefficients.length)} from ${low} to ${high}, ${((100 * zeros) / coefficients.length).toFixed(1)} % zero`;
  drawBars(byId("coefficients"), bars, low, high, "--bar-second");
}

/** Colour of a depth: light to dark, turned round on dark pages; absent columns are grey. */
function depthColour(depth, most) {
  if (depth === 0) return colour("--absent");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const t = most > 1 ? (depth - 1) / (most - 1) : 1;
  const lightness = dark ? 28 + 52 * t : 84 - 54 * t;
  return `hsl(${Math.round(200 + 50 * t)} 70% ${Math.round(lightness)}%)`;
}

/** i' across, t' down; an axis too long for the width is broken into rows. */
function drawDepths({ depths, channels }) {
  const [, inChannels, taps] = channels;
  const canvas = byId("depths");
  const available = canvas.parentElement.clientWidth;
  const cell = Math.max(3, Math.min(14, Math.floor(available / inChannels)));
  const across = Math.max(1, Math.min(inChannels, Math.floor(available / cell)));
  const bands = Math.min(Math.ceil(inChannels / across), Math.max(1, Math.floor(600 / (taps * cell + 4))));
  const tall = taps === 1 ? Math.max(cell, 10) : cell;
  const drawing = context(canvas, bands * (taps * tall + 4));
  const counts = new Map();
  for (const depth of depths) counts.set(depth, (counts.get(depth) ?? 0) + 1);
  const most = Math.max(...counts.keys());
  const colours = new Map([...counts.keys()].map((depth) => [depth, depthColour(depth, most)]));
  depths.forEach((depth, column) => {
    const i = Math.floor(column / taps);
    const band = Math.floor(i / across);
    if (band >= bands) return;
    drawing.fillStyle = colours.get(depth);
    const gap = cell > 5 ? 1 : 0;
    drawing.fillRect((i % across) * cell, band * (taps * tall + 4) + (column % taps) * tall, cell - gap, tall - gap);
  });
  const shown = Math.min(inChannels, across * bands);
  byId("depths-caption").textContent =
    `${count.format(inChannels)} inputs across, ${count.format(taps)} taps down` +
    (shown < inChannels ? `; the first ${count.format(shown)} inputs` : "");
  byId("legend").replaceChildren(
    ...[...counts].sort((a, b) => a[0] - b[0]).map(([depth, n]) => {
      const item = element("li", `${depth === 0 ? "absent" : `${depth} bits`}: ${count.format(n)}`);
      item.style.setProperty("--colour", colours.get(depth));
      return item;
    }),
  );
}

// ---- events

makeHead();
byId("filter").addEventListener("input", showTable);
acceptFiles(([file]) => {
  if (file !== undefined) show(file, file.name);
});

addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

const path = new URLSearchParams(location.search).get("file");
if (path !== null) {
  const url = new URL(path, location.href);
  if (url.origin === location.origin) show(url, decodeURIComponent(url.pathname.split("/").pop()));
  else showError(new Error("only files of this server can be shown"));
}
