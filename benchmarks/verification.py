"""What it costs that every file is decoded and compared before it is handed out.

    python -m benchmarks.verification [--before PYTHON] FILE.safetensors...

CPU seconds of `tqcodec.encode` with one thread, best of several runs, in processes that take turns:
with verification, without it, and, for `--before`, by the tqcodec of another environment's Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common.command import command_parser
from benchmarks.workers.process import ONE_THREAD

RUNS = 3
WISHES: tuple[dict[str, object], ...] = (
    {"bits": 4},
    {"bits": 2},
    {"bits": 4, "effort": 1},
    {"lossless": True},
)
WORKER = """
import json, sys, time, tqcodec
path, wish, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
if path.endswith(".safetensors"):
    from safetensors.numpy import load_file
    tensors = load_file(path)
else:
    import torch
    tensors = {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()}
tqcodec.encode({"w": tensors[max(tensors, key=lambda n: tensors[n].size)][:16]})  # late imports
start = time.process_time()
data = tqcodec.encode(tensors, tqcodec.Settings(**wish), **options)
print(json.dumps([time.process_time() - start, len(data)]))
"""


def encode(python: str, path: Path, wish: dict[str, object], verify: bool) -> tuple[float, int]:
    """CPU seconds of one encoding in a process of its own, and the bytes of the file."""
    options: dict[str, object] = {} if verify else {"verify": False}
    # Isolated: the tqcodec of that environment, not the one of the folder one stands in.
    command = [python, "-I", "-c", WORKER, str(path), json.dumps(wish), json.dumps(options)]
    environment = os.environ | ONE_THREAD
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, size = json.loads(done.stdout)
    return seconds, size


def main() -> None:
    """Print one line a file and setting."""
    parser = command_parser("verification", __doc__)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument("--before", metavar="PYTHON", help="of an environment with another tqcodec")
    arguments = parser.parse_args()
    ways = {"with": (sys.executable, True), "without": (sys.executable, False)}
    if arguments.before:
        ways["before"] = (arguments.before, True)  # whatever it does by itself
    print(f"{'':32s}{'':20s}" + "".join(f"{way:>10s}" for way in ways) + "      ratios")
    for path in arguments.files:
        for wish in WISHES:
            best = dict.fromkeys(ways, float("inf"))
            sizes = {}
            for _ in range(RUNS):
                for way, (python, verify) in ways.items():
                    seconds, sizes[way] = encode(python, path, wish, verify)
                    best[way] = min(best[way], seconds)
            name = " ".join(f"{key}={value}" for key, value in wish.items())
            line = f"{path.name:32s}{name:20s}" + "".join(f"{s:9.2f}s" for s in best.values())
            others = [way for way in ways if way != "with"]
            line += "".join(f"   {best['with'] / best[way]:.3f} of {way}" for way in others)
            if arguments.before:
                line += f"   {sizes['with'] - sizes['before']:+d} bytes"
            print(line, flush=True)


if __name__ == "__main__":
    main()
