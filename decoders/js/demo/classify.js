/** The page that runs a network: filters as they arrive, classes of pictures. */

import { acceptFiles, byId, count, element, showError } from "./page.js";

const FIRST = 5; // classes that are shown
const MOST_CHANNELS = 64; // of a layer's filters that are drawn, on each side
const SCALE = { colour: 8, plain: 2 }; // pixels of the page for a weight

/** What is on the page. Pictures stay when another network is opened. */
const state = { worker: null, description: null, tensors: 0, pictures: [], waiting: {} };

// ---- a network

/** Opens a network: its description, and its file as a Blob or a URL. */
function open(description, file) {
  state.worker?.terminate();
  const worker = new Worker(new URL("classify-worker.js", import.meta.url), { type: "module" });
  Object.assign(state, { worker, description, tensors: 0 });
  worker.onmessage = ({ data }) => answers[data.kind](data);
  worker.onerror = (event) => showError(new Error(event.message ?? "the worker failed"));
  showError(null);
  state.start = performance.now();
  byId("arrived").removeAttribute("value");
  byId("verdict").className = "";
  byId("verdict").textContent = "";
  byId("filters").replaceChildren();
  byId("view").hidden = false;
  byId("file-name").textContent = description.file;
  worker.postMessage({ kind: "open", description, file });
  for (const picture of state.pictures) classify(picture);
}

/** What the worker says. */
const answers = {
  bytes({ received, size }) {
    const progress = byId("arrived");
    if (size > 0) progress.value = received / size;
    const of = size === undefined ? "" : ` of ${count.format(size)}`;
    byId("bytes").textContent = `${count.format(received)}${of} bytes`;
  },
  tensor({ name, shape, data }) {
    state.tensors++;
    byId("verdict").textContent = `${count.format(state.tensors)} tensors`;
    if (shape.length === 4) byId("filters").append(filters(name, shape, data));
  },
  whole() {
    const ms = Math.max(1, Math.round(performance.now() - state.start));
    byId("verdict").className = "good";
    byId("verdict").textContent = `${count.format(state.tensors)} tensors, all there after ${count.format(ms)} ms`;
  },
  layers({ id, done, of }) {
    state.pictures[id].status.textContent = `${done} of ${of} layers computed`;
  },
  classes({ id, probabilities, time }) {
    const { classes, status } = state.pictures[id];
    status.textContent = `computed in ${Math.max(1, Math.round(time))} ms`;
    const best = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, FIRST);
    classes.replaceChildren(
      ...best.map((index) => {
        const row = element("li");
        const share = `${(100 * probabilities[index]).toFixed(1)} %`;
        const bar = element("span", "", { class: "bar" });
        bar.style.width = `${100 * probabilities[index]}%`;
        const label = state.description.labels[index] ?? `class ${index}`;
        row.append(bar, element("span", label), element("span", share, { class: "number" }));
        return row;
      }),
    );
  },
  error({ message }) {
    showError(new Error(message));
  },
};

/** A drawing of the filters of a convolution, a row for each output: in colour where the inputs are colours. */
function filters(name, [outputs, inputs, height, width], data) {
  const colour = inputs === 3;
  const rows = Math.min(outputs, MOST_CHANNELS);
  const across = colour ? Math.ceil(Math.sqrt(2 * rows)) : Math.min(inputs, MOST_CHANNELS);
  const down = colour ? Math.ceil(rows / across) : rows;
  const canvas = element("canvas", "", { role: "img", "aria-label": `filters of ${name}` });
  canvas.width = across * (width + 1) - 1;
  canvas.height = down * (height + 1) - 1;
  canvas.style.width = `${canvas.width * (colour ? SCALE.colour : SCALE.plain)}px`;
  const drawing = canvas.getContext("2d");
  const picture = drawing.createImageData(canvas.width, canvas.height);
  const most = data.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
  const weight = (o, i, y, x) => data[((o * inputs + i) * height + y) * width + x] / most;
  for (let cell = 0; cell < (colour ? rows : rows * across); cell++) {
    const [left, top] = [(cell % across) * (width + 1), Math.floor(cell / across) * (height + 1)];
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const rgb = colour
          ? [0, 1, 2].map((i) => 127.5 + 127.5 * weight(cell, i, y, x))
          : tint(weight(Math.floor(cell / across), cell % across, y, x));
        picture.data.set([...rgb, 255], 4 * ((top + y) * canvas.width + left + x));
      }
    }
  }
  drawing.putImageData(picture, 0, 0);
  const figure = element("figure");
  figure.append(element("figcaption", name), canvas);
  return figure;
}

/** Blue for a negative weight, red for a positive one, white for 0; the root shows small ones too. */
function tint(weight) {
  const rest = 255 * (1 - Math.sqrt(Math.abs(weight)));
  return weight < 0 ? [rest, rest, 255] : [255, rest, rest];
}

// ---- pictures

function classify({ id, image, status, classes }) {
  status.textContent = "";
  classes.replaceChildren();
  const { shape } = state.description.input;
  state.worker.postMessage({ kind: "classify", id, pixels: pixelsOf(image, shape) });
}

/** The middle of a picture as [channels, height, width], 0 to 255, on white; channels are 3, or 1 of grey. */
function pixelsOf(image, [channels, height, width]) {
  const canvas = new OffscreenCanvas(width, height);
  const drawing = canvas.getContext("2d");
  const scale = Math.min(image.width / width, image.height / height);
  const [w, h] = [width * scale, height * scale];
  drawing.imageSmoothingQuality = "high";
  drawing.fillStyle = "white";
  drawing.fillRect(0, 0, width, height);
  drawing.drawImage(image, (image.width - w) / 2, (image.height - h) / 2, w, h, 0, 0, width, height);
  const { data } = drawing.getImageData(0, 0, width, height);
  const size = width * height;
  return Float32Array.from({ length: channels * size }, (_, i) => {
    const at = 4 * (i % size);
    if (channels === 1) return 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
    return data[at + Math.floor(i / size)];
  });
}

async function addPicture(blob, name) {
  const image = await createImageBitmap(blob);
  const figure = element("figure", "", { class: "picture" });
  const canvas = element("canvas", "", { role: "img", "aria-label": name });
  const side = Math.min(image.width, image.height);
  canvas.width = canvas.height = Math.min(side, 224);
  const { width } = canvas;
  canvas.getContext("2d").drawImage(
    image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, width, width,
  );
  const classes = element("ol");
  const status = element("p", "waits for a network");
  figure.append(canvas, element("figcaption", name), classes, status);
  byId("pictures").append(figure);
  const picture = { id: state.pictures.length, image, classes, status };
  state.pictures.push(picture);
  if (state.description !== null) classify(picture);
}

// ---- files

/** Takes files in any order: a network is opened when its description and its weights are there. */
async function take(files) {
  showError(null);
  for (const file of files) {
    try {
      if (file.name.endsWith(".json")) state.waiting.description = JSON.parse(await file.text());
      else if (file.name.endsWith(".tqc")) state.waiting.file = file;
      else await addPicture(file, file.name);
    } catch (error) {
      showError(new Error(`${file.name}: ${error.message}`));
    }
  }
  const { description, file } = state.waiting;
  if (description === undefined || file === undefined) return;
  state.waiting = {};
  open(description, file);
}

/** A network of this server, by the address of its description. */
async function openAddress(path) {
  const url = new URL(path, location.href);
  if (url.origin !== location.origin) throw new Error("only networks of this server can be run");
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname}: the server answers ${response.status}`);
  const description = await response.json();
  open(description, new URL(description.file, url).href);
}

acceptFiles(take);

const path = new URLSearchParams(location.search).get("network");
if (path !== null) openAddress(path).catch(showError);
