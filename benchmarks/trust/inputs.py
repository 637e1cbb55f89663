"""What is thrown at tqcodec here and in tests/cli/test_trust.py: files of every kind it reads.

Good ones, odd ones, damage, and the words of command lines. Names of files are relative to the
folder that holds all of them.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import damage
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

import tqcodec
import tqcodec.torch
from tqcodec.cli import checkpoints

GOLDEN = damage.golden_files()

Rng = np.random.Generator
How = tuple[str, int, int, bytes]  # of damage: what to do to a file, where, how far, with what

CODE = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 5))

def batches():
    return [(torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 3])) for _ in range(2)]

def broken():
    raise RuntimeError("two\\nlines \\x1b[1mbold\\x1b[0m")

def stops():
    raise SystemExit(3)

def number():
    return 3
"""
ODD_CODE = {
    "wrong.py": "def network(:\n",
    "odd.py": CODE + "\ndef infinite():\n    model = network()\n"
    "    model[1].weight.data[0, 0] = float('nan')\n    return model\n"
    "\ndef empty():\n    return nn.Sequential()\n"
    "\ndef fails():\n    model = network()\n    model.forward = lambda x: x + 'x'\n"
    "    return model\n"
    "\ndef none():\n    return []\n"
    "\ndef strings():\n    return ['a', None, 3]\n"
    "\ndef late():\n    yield torch.rand(4, 3, 4, 4)\n    raise KeyError('x\\n\\x1b[1m')\n",
}
ODD_NAMES = ["", "\x1b[31mred\x1b[0m", "a\nb", "../../x", "ä\u202e", "x" * 2000, "%s{}", "w.npy"]


# ---- files ----


def state() -> dict[str, torch.Tensor]:
    """The weights that all good files hold."""
    rng = np.random.default_rng(0)
    shapes = {"1.weight": (12, 48), "1.bias": (12,), "3.weight": (5, 12), "3.bias": (5,)}
    return {
        name: torch.from_numpy(rng.normal(0, 0.1, shape).astype(np.float32))
        for name, shape in shapes.items()
    }


def make_files(folder: Path) -> None:
    """A good file of every kind that the command line reads."""
    rng, weights = np.random.default_rng(1), state()
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights.items()}
    save_file(arrays, folder / "m.safetensors", {"by": "a test"})
    save_file(arrays, folder / "s-1.safetensors")
    index = {"weight_map": dict.fromkeys(arrays, "s-1.safetensors")}
    (folder / "s.safetensors.index.json").write_text(json.dumps(index))
    np.savez(folder / "a.npz", **arrays)
    torch.save({"state_dict": weights, "epoch": 3}, folder / "c.pt")
    torch.save(weights, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": weights, "b": weights}, folder / "two.bin")
    tqcodec.torch.save(weights, folder / "m.tqc", tqcodec.Settings(quality=80, effort=1))
    tqcodec.torch.save(weights, folder / "exact.tqc", tqcodec.Settings(lossless=True))
    (folder / "net.py").write_text(CODE)
    code: dict[str, Any] = {}
    exec(CODE, code)
    model = code["network"]()
    model.load_state_dict(weights)
    torch.manual_seed(0)
    tqcodec.torch.calibrate(model, [torch.rand(4, 3, 4, 4)] * 2).save(folder / "stats.npz")
    np.savez(folder / "data.npz", images=rng.normal(size=(8, 3, 4, 4)).astype("f4"))
    (folder / "images").mkdir()
    for i in range(3):
        image = Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8))
        image.save(folder / "images" / f"{i}.png")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.write(folder / "images" / "0.png", "0.png")


def make_odd_files(folder: Path) -> None:
    """Files that few people have, and some that nobody should; and one that takes a while."""
    rng = np.random.default_rng(2)
    odd = {n: odd_arrays(np.random.default_rng(n)) for n in range(40)}
    tensors = {name: odd[i] for i, name in enumerate(ODD_NAMES)}
    tensors |= {f"t{i}": array for i, array in odd.items()}
    checkpoints.write(str(folder / "odd.safetensors"), checkpoints.Checkpoint(tensors))
    del tensors[""]  # a name that the format lacks
    (folder / "odd.tqc").write_bytes(tqcodec.encode(tensors, tqcodec.Settings(effort=1)))
    checkpoints.write(str(folder / "empty.safetensors"), checkpoints.Checkpoint({}))
    (folder / "empty.tqc").write_bytes(tqcodec.encode({}))
    layers = {f"l{i}.weight": rng.normal(size=(128, 128)).astype("f4") for i in range(24)}
    save_file(layers, folder / "large.safetensors")
    tqcodec.save(layers, folder / "large.tqc", tqcodec.Settings(bits=4, effort=1))
    huge = '{"w": {"dtype": "F32", "shape": [1152921504606846976, 0], "data_offsets": [0, 0]}}'
    headers = {
        "twins": '{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, '
        '"w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
        "huge": huge,
        "deep": "[" * 100_000,
    }
    for name, text in headers.items():
        data = len(text).to_bytes(8, "little") + text.encode() + b"ab"
        (folder / f"{name}.safetensors").write_bytes(data)
    np.savez(folder / "empty.npz")
    np.savez(folder / "objects.npz", w=np.array([{"a": 1}, None], object))
    np.savez(folder / "kinds.npz", c=np.ones(3, complex), s=np.array(["a"]), t=np.ones(2, "M8[s]"))
    np.save(folder / "one.npy", np.ones((3, 3)))
    with zipfile.ZipFile(folder / "huge.npz", "w") as archive:
        head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 64), }"
        head = head.ljust(117) + b"\n"
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with zipfile.ZipFile(folder / "clash.npz", "w") as archive:
        for name in ("w.npy", "w"):
            archive.writestr(name, (folder / "one.npy").read_bytes())
    _make_odd_checkpoints(folder)
    for name, text in ODD_CODE.items():
        (folder / name).write_text(text)


def _make_odd_checkpoints(folder: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 8)).sum().backward()
    optimizer.step()
    torch.save({"model": state(), "optimizer": optimizer.state_dict()}, folder / "optimizer.pt")
    torch.save(model, folder / "classes.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(folder / "script.pt"))
        sparse = torch.eye(4).to_sparse()
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        quantized = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    torch.save({"w": sparse, "b": torch.ones(3)}, folder / "sparse.pt")
    torch.save({"w": nested}, folder / "nested.pt")
    torch.save({"w": quantized, "m": torch.ones(3, device="meta")}, folder / "quantized.pt")
    torch.save([torch.ones(3)], folder / "list.pt")
    torch.save({}, folder / "empty.pt")
    torch.save({name: torch.ones(3, 3) for name in ODD_NAMES}, folder / "names.pt")


DTYPES = ["?", "u1", "i1", "<u2", ">i2", "<u4", "<i4", "<u8", ">i8", "<f2", "<f4", ">f4", "<f8"]
SHAPES: list[tuple[int, ...]] = [
    (), (0,), (1,), (7,), (0, 5), (1, 1), (8, 8), (3, 70), (64, 1), (1, 64), (12, 3, 3, 3),
    (2, 1, 1, 1, 1, 1, 3), (1,) * 8, (16, 16), (5, 4, 0, 2),
]  # fmt: skip


def odd_arrays(rng: Rng) -> np.ndarray[Any, Any]:
    """An array of any type, shape, order in memory and values, special ones included."""
    import ml_dtypes

    extended = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
    dtype = np.dtype(pick(rng, [*DTYPES, *extended]))
    shape = pick(rng, SHAPES)
    values = rng.normal(0, pick(rng, [1, 1e-3, 1e3]), shape)
    special = pick(rng, [None, None, None, 0.0, np.nan, np.inf, -np.inf, 1e-310, 1e308, -0.0])
    if special is not None:
        values = np.where(rng.random(shape) < pick(rng, [0.1, 1.0]), special, values)
    with np.errstate(all="ignore"):
        array = np.asarray(values).astype(dtype)
    form = rng.integers(5)
    if form == 0:
        array = np.asfortranarray(array)
    elif form == 1:
        array = np.ascontiguousarray(array[..., ::-1]) if array.ndim else array
    elif form == 2:
        array = array[::-1] if array.ndim else array
    array.flags.writeable = bool(form != 3)
    return array


# ---- damage ----


def damaged(data: bytes, how: How) -> bytes:
    """A file of which something is cut off, changed, written over, added or replaced."""
    kind, at, length, new = how
    at %= max(1, len(data))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << length % 8)]) + data[at + 1 :] if data else data
    if kind == "write":
        return data[:at] + new + data[at + len(new) :]
    if kind == "zeros":
        return data[:at] + bytes(length) + data[at + length :]
    return data[:at] + new + data[at:] if kind == "insert" else new


def draw_damage(rng: Rng, name: str, originals: dict[str, bytes]) -> tuple[str, bytes]:
    """The kind of damage, and what a file is with it."""
    data = originals[name]
    kind = pick(rng, ["cut", "flip", "flip", "write", "zeros", "insert", "whole", "swap", "text"])
    if kind == "swap":
        return kind, originals[pick(rng, list(originals))]
    if kind == "text":
        return kind, pick(rng, TEXTS).encode()
    if name.endswith(".tqc") and rng.random() < 0.6:
        # Checksums are right again, so that the damage reaches the depths of the decoder.
        found = next(damage.mutants([data], 1, int(rng.integers(1 << 32))), None)
        if found is not None:
            return "repaired", found
    where = int(rng.integers(1 << 20)) if rng.random() < 0.7 else int(rng.integers(200))
    far, what = int(rng.integers(65)), rng.bytes(int(rng.integers(17)))
    return kind, damaged(data, (kind, where, far, what))


TEXTS = [
    "",
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "<!DOCTYPE html>",
    "\0" * 5000,
    "PK\x05\x06" + "\0" * 18,  # an archive of nothing
]


def pick(rng: Rng, items: Any) -> Any:
    """One of several, without numpy making an array of them."""
    return items[int(rng.integers(len(items)))]


def read_all(folder: Path) -> dict[str, bytes]:
    """Contents of all files under a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- words of command lines ----

NAMES = [
    "m.safetensors", "s.safetensors.index.json", "s-1.safetensors", "a.npz", "c.pt", "old.pth",
    "two.bin", "m.tqc", "exact.tqc", "stats.npz", "data.npz", "images", "images.zip", "net.py",
    "-", "", ".", "..", "no/such", "no.tqc", "new.safetensors", "new.npz", "new.pt", "new.html",
    "new.png", "new.tqc", "m.tqc/x", "/dev/null", "a\0b", "\udcff.npz", "x" * 300, "images/0.png",
    "net.py:network", "net.py:batches", "net.py:broken", "net.py:stops", "net.py:number",
    "net.py:nothing", "no.py:network", "images.safetensors", "-x", "--", "ä\n.tqc", "synthetic",
    "none", "inputs.npz",
]  # fmt: skip
NUMBERS = ["0", "1", "2", "-1", "nan", "inf", "1e400", "3.5", "", "x", "9" * 30, "500", "2k", "1Ki"]
VERBS = [
    "encode", "decode", "info", "verify", "dump", "report", "calibrate", "eval", "sweep", "nothing",
    "--version", "--help",
]  # fmt: skip
FLAGS = [
    "-f", "--json", "--lossless", "--dry-run", "--no-tune", "--help", "--unknown", "--quiet",
    "--all",
]  # fmt: skip
WITH_NUMBER = [
    "--bits", "--max-size", "-q", "--snr", "--side-bits", "-e", "--limit", "--images", "--batch",
    "--size", "--mean", "--std", "--probes", "--tokens",
]  # fmt: skip
WITH_NAME = [
    "-o", "--statistics", "--model", "--data", "--key", "--device", "--metadata", "--rule",
    "--example", "--save-inputs",
]  # fmt: skip
OTHERS = [
    ["--rule", "*=lossless"], ["--rule", "*=bits:2"], ["--metadata", "a=b"], ["-j", "0"],
    ["--metadata", "=\udcff"], ["--key", "a"], ["--transform", "dct"], ["--payload", "fixed"],
]  # fmt: skip

COMMANDS = {
    "m.safetensors": ["encode m.safetensors -o new.tqc -e 1", "encode - -o new.tqc -e 1"],
    "s.safetensors.index.json": ["encode s.safetensors.index.json -o new.tqc -e 1"],
    "s-1.safetensors": ["encode s.safetensors.index.json -o new.tqc -e 1"],
    "a.npz": ["encode a.npz -o new.tqc -e 1"],
    "c.pt": ["encode c.pt -o new.tqc -e 1", "encode c.pt --key state_dict -o new.tqc -e 1"],
    "old.pth": ["encode old.pth -o new.tqc -e 1"],
    "two.bin": ["encode two.bin --key a -o new.tqc -e 1"],
    "m.tqc": [
        "decode m.tqc -o new.npz", "decode m.tqc -o new.pt", "decode - -o new.safetensors",
        "info m.tqc", "info m.tqc --json", "dump m.tqc", "verify m.tqc --json", "verify - m.tqc",
        "report m.tqc -o new.png", "info m.tqc --statistics stats.npz",
        "eval m.tqc --model net.py:network --data data.npz",
    ],
    "exact.tqc": ["decode exact.tqc -o new.safetensors", "info exact.tqc", "dump exact.tqc"],
    "stats.npz": [
        "encode c.pt --statistics stats.npz -o new.tqc -e 1", "info m.tqc --statistics stats.npz",
    ],
    "data.npz": ["calibrate --model net.py:network --data data.npz -o new.npz"],
    "images/1.png": ["calibrate --model net.py:network --data images --size 4 -o new.npz"],
    "images.zip": ["calibrate --model net.py:network --data images.zip --size 4 -o new.npz"],
}  # fmt: skip
"""By the file that is damaged in them."""


def odd_commands(name: str) -> list[str]:
    """Commands that read an odd file of `make_odd_files`."""
    kind = name[name.index(".") :]
    network, data = "--model net.py:network", "--data data.npz"
    return {
        ".tqc": [
            f"decode {name} -o new.safetensors", f"decode {name} -o new.npz", f"info {name}",
            f"dump {name} --json", f"verify {name} -j 2", f"report {name} -o new.html",
            f"decode {name} -o -", f"eval {name} {network} {data}", f"decode {name}",
        ],
        ".npz": [
            f"encode {name} -o new.tqc -e 1", f"calibrate {network} --data {name} -o new.npz",
            f"encode m.safetensors --statistics {name} -o new.tqc -e 1",
        ],
        ".py": [
            f"calibrate --model {name}:{function} {data} -o new.npz"
            for function in ("network", "infinite", "empty", "fails")
        ] + [
            f"calibrate {network} --data {name}:{function} -o new.npz"
            for function in ("batches", "none", "strings", "late")
        ],
    }.get(kind, [f"encode {name} -o new.tqc -e 1 -j 2", f"encode {name} -e 1"])  # fmt: skip


WORK = [
    "encode large.safetensors -o new.tqc --bits 3 -e 3 -j 2", "verify large.tqc -j 2",
    "encode large.safetensors -o new.tqc -e 3 -j 2", "encode large.safetensors -e 5 -o new.tqc",
    "decode large.tqc -o new.safetensors -j 2", "decode large.tqc -o -",
    "encode --model net.py:network --data net.py:batches -o new.tqc -e 1 -j 2",
    "sweep --model net.py:network --data data.npz --bits 4,6 -e 1 -o new.png",
    "report large.tqc -o new.html",
]  # fmt: skip
"""Commands that take long enough to be ended in their midst."""
