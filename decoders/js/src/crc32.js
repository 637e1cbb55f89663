/** CRC-32 of ISO 3309 (the one of zlib and PNG), sixteen bytes a turn. */

/** Table k: what a byte does to the CRC when k bytes follow it. */
const TABLES = Array.from({ length: 16 }, () => new Int32Array(256));

for (let n = 0; n < 256; n++) {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
  TABLES[0][n] = c;
}
for (let k = 1; k < 16; k++) {
  for (let n = 0; n < 256; n++) {
    const c = TABLES[k - 1][n];
    TABLES[k][n] = (c >>> 8) ^ TABLES[0][c & 255];
  }
}
const NONE = new Int32Array(0);
const [T0, T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14, T15] = TABLES;

/** CRC-32 of bytes, which may go on from the CRC of what came before them. */
export function crc32(bytes, before = 0) {
  let c = ~before;
  let i = 0;
  const start = -bytes.byteOffset & 3; // where words begin
  const count = Math.max(0, bytes.length - start) >> 2;
  for (; count > 0 && i < start; i++) c = (c >>> 8) ^ T0[(c ^ bytes[i]) & 255];
  const words = count > 0 ? new Int32Array(bytes.buffer, bytes.byteOffset + start, count) : NONE;
  let w = 0;
  for (; w + 4 <= words.length; w += 4) {
    const p = words[w] ^ c;
    const q = words[w + 1];
    const r = words[w + 2];
    const s = words[w + 3];
    c =
      (T15[p & 255] ^ T14[(p >>> 8) & 255] ^ T13[(p >>> 16) & 255] ^ T12[p >>> 24]) ^
      (T11[q & 255] ^ T10[(q >>> 8) & 255] ^ T9[(q >>> 16) & 255] ^ T8[q >>> 24]) ^
      (T7[r & 255] ^ T6[(r >>> 8) & 255] ^ T5[(r >>> 16) & 255] ^ T4[r >>> 24]) ^
      (T3[s & 255] ^ T2[(s >>> 8) & 255] ^ T1[(s >>> 16) & 255] ^ T0[s >>> 24]);
  }
  for (i += 4 * w; i < bytes.length; i++) c = (c >>> 8) ^ T0[(c ^ bytes[i]) & 255];
  return ~c >>> 0;
}
