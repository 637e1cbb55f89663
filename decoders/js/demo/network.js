/**
 * Runs a network on one picture at a time: what graph.py describes, with the tensors of a file.
 *
 * A value is `{ shape, data }`: [channels, height, width], or [n], and a Float32Array.
 */

/** A network whose tensors come in one by one. */
export class Network {
  /** @param {{ layers: object[], output: string, input: object }} description as graph.py writes it */
  constructor(description) {
    this.description = description;
    this.layers = description.layers;
    this.tensors = new Map();
    const known = new Set(["input"]);
    for (const { name, op, inputs } of this.layers) {
      if (!Object.hasOwn(OPERATIONS, op)) throw new Error(`layer ${name}: '${op}' is no operation of this page`);
      for (const input of inputs) {
        if (!known.has(input)) throw new Error(`layer ${name}: its input ${input} is not computed before it`);
      }
      known.add(name);
    }
    if (!known.has(description.output)) throw new Error(`no layer ${description.output}, which is the output`);
    /** Names of the tensors that are needed, in the order in which they are. */
    this.needed = [...new Set(this.layers.flatMap(tensorsOf))];
    this.last = new Map(); // the last layer that reads a value
    this.layers.forEach(({ inputs }, at) => inputs.forEach((input) => this.last.set(input, at)));
  }

  /** Takes a tensor of the file. */
  give(name, { shape, data }) {
    this.tensors.set(name, { shape, data });
  }

  /** The first tensor that is needed and not there, or undefined. */
  missing() {
    return this.needed.find((name) => !this.tensors.has(name));
  }

  /** Pixels, 0 to 255 in the order (channels, height, width), as the network wants them. */
  input(pixels) {
    const { shape, mean, std } = this.description.input;
    const size = shape[1] * shape[2];
    if (pixels.length !== shape[0] * size) throw new Error(`a picture of ${pixels.length} numbers, not ${shape}`);
    const of = (numbers, channel) => numbers[numbers.length === 1 ? 0 : channel];
    const data = Float32Array.from(pixels, (value, i) => {
      const channel = Math.floor(i / size);
      return (value - of(mean, channel)) / of(std, channel);
    });
    return { shape, data };
  }

  /** A pass over one picture. */
  start(pixels) {
    return new Pass(this, this.input(pixels));
  }
}

/** Names of the tensors that a layer reads. */
function tensorsOf(layer) {
  return ["weight", "bias", "mean", "variance"].filter((part) => part in layer).map((part) => layer[part]);
}

/** One picture on its way through a network, as far as the tensors are there. */
class Pass {
  constructor(network, input) {
    this.network = network;
    this.values = new Map([["input", input]]);
    this.next = 0;
  }

  /** Runs all layers whose tensors are there; the output of the network, or null while some are not. */
  advance() {
    const { layers, tensors, last, description } = this.network;
    for (; this.next < layers.length; this.next++) {
      const layer = layers[this.next];
      if (!tensorsOf(layer).every((name) => tensors.has(name))) return null;
      const get = (part) => (part in layer ? tensors.get(layer[part]) : undefined);
      const inputs = layer.inputs.map((name) => this.values.get(name));
      try {
        this.values.set(layer.name, OPERATIONS[layer.op](layer, get, ...inputs));
      } catch (error) {
        throw new Error(`layer ${layer.name}: ${error.message}`);
      }
      for (const name of layer.inputs) {
        if (last.get(name) === this.next && name !== description.output) this.values.delete(name);
      }
    }
    return this.values.get(description.output);
  }
}

function need(condition, message) {
  if (!condition) throw new Error(message);
}

const positions = (length, kernel, stride, padding, dilation = 1) =>
  Math.floor((length + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1;

/** A value with zeros (or other numbers) around it: by[axis] = [before, behind]. */
function pad({ shape, data }, by, filling = 0) {
  if (by.flat().every((n) => n === 0)) return { shape, data };
  const [channels, height, width] = shape.map((n, axis) => n + by[axis][0] + by[axis][1]);
  const out = new Float32Array(channels * height * width).fill(filling);
  for (let c = 0; c < shape[0]; c++) {
    for (let y = 0; y < shape[1]; y++) {
      const from = (c * shape[1] + y) * shape[2];
      const to = ((c + by[0][0]) * height + y + by[1][0]) * width + by[2][0];
      out.set(data.subarray(from, from + shape[2]), to);
    }
  }
  return { shape: [channels, height, width], data: out };
}

function conv({ stride, padding, dilation, groups }, get, x) {
  const { shape: [outputs, inputs, kernelHeight, kernelWidth], data: w } = get("weight");
  need(x.shape.length === 3 && x.shape[0] === inputs * groups, `input ${x.shape} for weights of ${inputs} channels`);
  const height = positions(x.shape[1], kernelHeight, stride[0], padding[0], dilation[0]);
  const width = positions(x.shape[2], kernelWidth, stride[1], padding[1], dilation[1]);
  need(height > 0 && width > 0, `input ${x.shape} is smaller than the kernel`);
  const around = padding.map((n) => [n, n]);
  const { shape: [, rows, columns], data } = pad(x, [[0, 0], ...around]);
  const out = new Float32Array(outputs * height * width);
  const bias = get("bias")?.data;
  // Without a stride all rows are one run, with sums between them that nobody reads: long loops are fast ones.
  const together = Math.max(...stride) === 1 ? height : 1;
  const sums = new Float32Array((together - 1) * columns + width);
  for (let o = 0; o < outputs; o++) {
    const first = Math.floor(o / (outputs / groups)) * inputs;
    for (let top = 0; top < height; top += together) {
      sums.fill(bias === undefined ? 0 : bias[o]);
      let at = o * inputs * kernelHeight * kernelWidth;
      for (let i = 0; i < inputs; i++) {
        for (let ky = 0; ky < kernelHeight; ky++) {
          const row = ((first + i) * rows + top * stride[0] + ky * dilation[0]) * columns;
          let kx = 0;
          for (; kx + 2 < kernelWidth; kx += 3, at += 3) {
            accumulateThree(sums, w, at, data, row + kx * dilation[1], stride[1], dilation[1]);
          }
          for (; kx < kernelWidth; kx++) accumulate(sums, w[at++], data, row + kx * dilation[1], stride[1]);
        }
      }
      for (let y = 0; y < together; y++) {
        out.set(sums.subarray(y * columns, y * columns + width), (o * height + top + y) * width);
      }
    }
  }
  return { shape: [outputs, height, width], data: out };
}

/** sums[i] += factor * data[start + i * step] */
function accumulate(sums, factor, data, start, step) {
  for (let i = 0, at = start; i < sums.length; i++, at += step) sums[i] += factor * data[at];
}

/** The same of three neighbours in a row of a kernel, which takes less than half of the time. */
function accumulateThree(sums, w, from, data, start, step, apart) {
  const [a, b, c] = [w[from], w[from + 1], w[from + 2]];
  for (let i = 0, at = start; i < sums.length; i++, at += step) {
    sums[i] += a * data[at] + b * data[at + apart] + c * data[at + 2 * apart];
  }
}

function norm({ eps }, get, x) {
  const [weight, bias, mean, variance] = ["weight", "bias", "mean", "variance"].map((part) => get(part)?.data);
  const size = x.data.length / x.shape[0];
  need(mean.length === x.shape[0], `${mean.length} means for ${x.shape[0]} channels`);
  const out = new Float32Array(x.data.length);
  for (let c = 0; c < x.shape[0]; c++) {
    const scale = (weight?.[c] ?? 1) / Math.sqrt(variance[c] + eps);
    const shift = (bias?.[c] ?? 0) - mean[c] * scale;
    for (let i = c * size; i < (c + 1) * size; i++) out[i] = x.data[i] * scale + shift;
  }
  return { shape: x.shape, data: out };
}

function linear(layer, get, x) {
  const { shape: [outputs, inputs], data: w } = get("weight");
  need(x.data.length === inputs, `input ${x.shape} for weights of ${inputs}`);
  const bias = get("bias")?.data;
  const data = new Float32Array(outputs);
  for (let o = 0; o < outputs; o++) {
    let sum = bias?.[o] ?? 0;
    for (let i = 0; i < inputs; i++) sum += w[o * inputs + i] * x.data[i];
    data[o] = sum;
  }
  return { shape: [outputs], data };
}

function relu({ most = Infinity }, get, x) {
  return { shape: x.shape, data: x.data.map((value) => Math.min(Math.max(value, 0), most)) };
}

function add(layer, get, x, y) {
  need(String(x.shape) === String(y.shape), `a sum of ${x.shape} and ${y.shape}`);
  return { shape: x.shape, data: x.data.map((value, i) => value + y.data[i]) };
}

function pool({ of, kernel, stride, padding }, get, x) {
  const height = positions(x.shape[1], kernel[0], stride[0], padding[0]);
  const width = positions(x.shape[2], kernel[1], stride[1], padding[1]);
  const around = padding.map((n) => [n, n]);
  const { shape: [, rows, columns], data } = pad(x, [[0, 0], ...around], of === "max" ? -Infinity : 0);
  const out = new Float32Array(x.shape[0] * height * width);
  let at = 0;
  for (let c = 0; c < x.shape[0]; c++) {
    for (let y = 0; y < height; y++) {
      for (let left = 0; left < width; left++) {
        let [most, sum] = [-Infinity, 0];
        for (let ky = 0; ky < kernel[0]; ky++) {
          for (let kx = 0; kx < kernel[1]; kx++) {
            const value = data[(c * rows + y * stride[0] + ky) * columns + left * stride[1] + kx];
            most = Math.max(most, value);
            sum += value;
          }
        }
        out[at++] = of === "max" ? most : sum / (kernel[0] * kernel[1]);
      }
    }
  }
  return { shape: [x.shape[0], height, width], data: out };
}

/** The mean of each channel. */
function mean({ keep }, get, x) {
  const size = x.shape[1] * x.shape[2];
  const data = new Float32Array(x.shape[0]);
  for (let c = 0; c < data.length; c++) {
    let sum = 0;
    for (let i = c * size; i < (c + 1) * size; i++) sum += x.data[i];
    data[c] = sum / size;
  }
  return { shape: keep ? [data.length, 1, 1] : [data.length], data };
}

/** Every n-th channel, row and column. */
function step({ by }, get, x) {
  const [channels, height, width] = x.shape.map((n, axis) => Math.ceil(n / by[axis]));
  const data = new Float32Array(channels * height * width);
  let at = 0;
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      const row = (c * by[0] * x.shape[1] + y * by[1]) * x.shape[2];
      for (let left = 0; left < width; left++) data[at++] = x.data[row + left * by[2]];
    }
  }
  return { shape: [channels, height, width], data };
}

const OPERATIONS = {
  conv,
  norm,
  linear,
  relu,
  add,
  pool,
  mean,
  step,
  pad: ({ by }, get, x) => pad(x, by),
  flatten: (layer, get, x) => ({ shape: [x.data.length], data: x.data }),
};

/** Probabilities of the classes from the output of a network. */
export function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Float64Array.from(logits, (value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}
