"""Inference form: what it saves in the file of a network, and what it changes in its outputs.

    python -m benchmarks.folding [--bits 4 3 2] BUILDER ARGUMENT...

BUILDER is one of `subjects.py`. Two files without data for each number of bits, as it is and in
inference form. `shared` are the bytes that are no coefficients (vectors, exact tensors, names,
directory), `saved` is what inference form takes off them, also in per cent of the file. As both
files have the same size, it is spent on the weights: KL is with the float network on test inputs.
The first line holds the float network in inference form against itself.
"""

from __future__ import annotations

import torch

import tqcodec
import tqcodec.torch
from benchmarks.common.command import command_parser
from benchmarks.common.subjects import build
from tqcodec.cli import describe
from tqcodec.torch import folding
from tqcodec.torch.checkpoint import from_arrays, to_arrays


def shared_bytes(data: bytes) -> int:
    """Bytes of a file that are no coefficients of matrices, nor their tables."""
    with tqcodec.open(data) as file:
        found = describe.info(file)
    matrices = sum(t["bytes"] or 0 for t in found["tensors"] if t["weight"])
    return len(data) - matrices - int(found["tables_bytes"])


def main() -> None:
    """Print one row a rate."""
    parser = command_parser("folding", __doc__)
    parser.add_argument("builder", nargs="+", metavar="BUILDER")
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2])
    options = parser.parse_args()
    subject = build(options.builder[0], options.builder[1:])
    reference = tqcodec.torch.Reference(subject.model, subject.test)
    folded = folding.fold(subject.model, to_arrays(subject.model.state_dict()))
    found = reference.compare(from_arrays(folded.arrays))
    count = f"{len(folded.takers)} normalisations folded, {len(folded.left)} left"
    print(f"{count}; outputs {found.snr.value:.1f} dB, KL {found.kl.value:.1e}")
    print("  bits    bytes   shared    saved      %   KL as it is   inference form")
    for bits in options.bits:
        files = [
            tqcodec.torch.encode(subject.model, tqcodec.Settings(bits=bits, inference=form))
            for form in (False, True)
        ]
        shared = [shared_bytes(data) for data in files]
        saved = shared[0] - shared[1]
        divergences = [reference.compare(tqcodec.torch.decode(data)).kl.value for data in files]
        share = 100 * saved / len(files[0])
        line = f"{bits:6g} {len(files[0]):8} {shared[0]:8} {saved:8} {share:6.2f}"
        print(f"{line}   {divergences[0]:11.4f}   {divergences[1]:14.4f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
