/** Bases of the DCT (specification, 10.2). */

/** round(2^10 * cos(pi * j / (2 N))) for j = 0 .. N - 1, by N - 1: numbers of the format, not computed. */
const COSINES = [
  [1024],
  [1024, 724],
  [1024, 887, 512],
  [1024, 946, 724, 392],
  [1024, 974, 828, 602, 316],
  [1024, 989, 887, 724, 512, 265],
  [1024, 998, 923, 801, 638, 444, 228],
  [1024, 1004, 946, 851, 724, 569, 392, 200],
  [1024, 1008, 962, 887, 784, 658, 512, 350, 178],
  [1024, 1011, 974, 912, 828, 724, 602, 465, 316, 160],
  [1024, 1014, 983, 931, 861, 774, 671, 554, 425, 288, 146],
  [1024, 1015, 989, 946, 887, 812, 724, 623, 512, 392, 265, 134],
  [1024, 1017, 994, 957, 907, 843, 766, 679, 582, 476, 363, 245, 123],
  [1024, 1018, 998, 967, 923, 867, 801, 724, 638, 545, 444, 338, 228, 115],
  [1024, 1018, 1002, 974, 935, 887, 828, 761, 685, 602, 512, 416, 316, 213, 107],
  [1024, 1019, 1004, 980, 946, 903, 851, 792, 724, 650, 569, 483, 392, 297, 200, 100],
];

function dctEntry(cosines, k, n) {
  const { length } = cosines;
  if (k === 0) return 724;
  let angle = (k * (2 * n + 1)) % (4 * length);
  angle = Math.min(angle, 4 * length - angle);
  if (angle === length) return 0;
  return angle < length ? cosines[angle] : -cosines[2 * length - angle];
}

/** The DCT of an axis with these dimensions: entry [p, k] is that of channel k at position p. */
export function dctBasis(dimensions) {
  let basis = Float64Array.of(1);
  let size = 1;
  for (const n of dimensions) {
    const cosines = COSINES[n - 1];
    const next = new Float64Array((size * n) ** 2);
    for (let k = 0; k < size * n; k++) {
      for (let p = 0; p < size * n; p++) {
        const outer = basis[Math.floor(p / n) * size + Math.floor(k / n)];
        next[p * size * n + k] = outer * dctEntry(cosines, k % n, p % n);
      }
    }
    basis = next;
    size *= n;
  }
  return basis;
}
