// Not run: `tsc --noEmit` checks that the types serve such a program.
import {
  LimitError, MalformedError, TQCError, decode, decodeStream, download, forget, open, toFloat32,
} from "tqcodec";
import type { Tensor, TensorFile, TransformRecord } from "tqcodec";
import { WorkerFile } from "tqcodec/client";
import { writeSafetensors } from "tqcodec/safetensors";

export async function use(bytes: Uint8Array, blob: Blob, worker: Worker): Promise<number> {
  const tensors: Map<string, Tensor> = decode(bytes, { limit: 1e9 });
  let sum = 0;
  for (const tensor of tensors.values()) sum += toFloat32(tensor)[0] ?? 0;
  const file: TensorFile = await open("model.tqc", { headers: { "x-y": "z" } });
  const record: TransformRecord | null = await file.record(file.keys()[0] ?? "");
  if (record !== null) sum += record.coefficients.length;
  for await (const { name, shape } of decodeStream(blob.stream(), { size: blob.size })) sum += name.length + shape.length;
  try {
    await open({ size: 3, read: async (offset, length) => bytes.subarray(offset, offset + length) });
  } catch (error) {
    if (error instanceof MalformedError || error instanceof LimitError) sum += (error as TQCError).offset ?? 0;
  }
  const whole = await download("https://example.org/m.tqc", { attempts: 2, progress: (done, of) => (sum += done / of) });
  sum += decode(whole).size;
  await forget("https://example.org/m.tqc");
  const remote = new WorkerFile(worker);
  const { infos } = await remote.open(blob);
  sum += infos.length + writeSafetensors([await remote.tensor("w")]).length;
  // @ts-expect-error a tensor has no such property
  sum += (await file.tensor("w")).values;
  return sum;
}
