"""Golden files of the present version of the format, into a folder of that name beside this file.

    python tests/golden/make.py

A folder that is there is left alone unless `--replace` is given, which is for versions not yet
released only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "encoder")]

from damage import golden_files  # noqa: E402
from example_file import build  # noqa: E402
from strategies import SPECIAL  # noqa: E402
from test_calibrated import network  # noqa: E402
from test_encoder import NETWORKS, WISHES  # noqa: E402

import tqcodec  # noqa: E402
from tqcodec import Settings  # noqa: E402
from tqcodec.arrays import numpy_dtype  # noqa: E402
from tqcodec.format.dtypes import DTYPES  # noqa: E402
from tqcodec.format.registry import MAX_SYMBOLS  # noqa: E402

MANIFEST = "manifest.json"
FROM_NETWORKS = [
    ("convolutions", "bits-3"),
    ("convolutions", "snr-20-fast"),
    ("depthwise", "snr-20"),
    ("transformer", "snr-20-fixed"),
    ("lstm", "snr-20-thorough"),
    ("lstm", "lossless"),
]


def files() -> dict[str, bytes]:
    """Every file by its name without suffix."""
    out = {f"hand-{name}": data for name, data in golden_files().items()}
    out["hand-example"] = build()
    for name, wish in FROM_NETWORKS:
        seed = list(NETWORKS).index(name)
        out[f"{name}-{wish}"] = tqcodec.encode(
            NETWORKS[name](np.random.default_rng(seed)), WISHES[wish]
        )
    calibrated = network()
    out["calibrated"] = tqcodec.encode(calibrated.tensors, Settings(bits=3), calibrated.statistics)
    rng = np.random.default_rng(9)
    mixed = rng.normal(size=(32, 40)) @ rng.normal(size=(40, 40)) * 2.0 ** rng.normal(0, 2, 40)
    klt = Settings(snr=25, transform="klt")
    out["klt"] = tqcodec.encode({"weight": mixed.astype(np.float32)}, klt)
    out["every-type"] = tqcodec.encode(_every_type(rng), Settings(lossless=True))
    out["two-blocks"] = tqcodec.encode(
        {"zeros": np.zeros(MAX_SYMBOLS + 1, np.float16), "count": np.arange(3000) // 1000},
        Settings(lossless=True),
    )
    names = {name: np.arange(4.0) for name in ("../../x", "a\0b", "Gewicht ä", "重み")}
    out["names"] = tqcodec.encode(names, Settings(metadata=(("Schlüssel", "値"), ("", ""))))
    return out


def _every_type(rng: np.random.Generator) -> dict[str, Any]:
    """Tensors of every element type and some odd shapes; all special values of floats."""
    out: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        top = 2 if name == "BOOL" else 1 << 8 * dtype.size
        patterns = rng.integers(0, top, 20, np.uint64, endpoint=False).astype(dtype.pattern)
        if name in SPECIAL:
            patterns[: len(SPECIAL[name])] = SPECIAL[name]
        out[name] = patterns.reshape(4, 1, 5).view(numpy_dtype(dtype))
    return out | {"scalar": np.float32(-0.0), "none": np.zeros((3, 0), np.int8)}


def described(data: bytes) -> dict[str, Any]:
    """The entry of a file in the manifest."""
    with tqcodec.open(data) as file:
        types = {entry.name: entry.dtype.name for entry in file.container.directory.entries}
        tensors = {
            name: {
                "dtype": types[name],
                "shape": list(array.shape),
                "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
            }
            for name, array in file.items()
        }
    return {"sha256": hashlib.sha256(data).hexdigest(), "tensors": tensors}


def main() -> None:
    parser = argparse.ArgumentParser(description="write golden files of the present version")
    parser.add_argument("--replace", action="store_true", help="a folder that is there")
    replace = parser.parse_args().replace
    folder = HERE / tqcodec.FORMAT_VERSION
    if folder.exists() and not replace:
        sys.exit(f"{folder} exists; --replace makes it anew")
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    manifest = {}
    for name, data in files().items():
        (folder / f"{name}.tqc").write_bytes(data)
        manifest[f"{name}.tqc"] = described(data)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
