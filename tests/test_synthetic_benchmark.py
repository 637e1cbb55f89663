"""The benchmark of made-up inputs starts and does its work once on something tiny."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ROOT / "benchmarks" / "synthetic" / "compare.py"

BUILDER = """
import torch
from torch import nn
from cases import Case, Loss

def tiny():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64)).eval()
    batches = [torch.randn(16, 3, 16, 16) for _ in range(2)]

    def judge(state):
        with torch.no_grad():
            there = model(batches[0])
            now = torch.func.functional_call(model, dict(state), batches[0])
        return Loss(float((now - there).square().mean()), 0.0, 100.0)

    return Case(model, {"size": 16}, batches, batches, judge)
"""


def test_compare(tmp_path: Path) -> None:
    (tmp_path / "builder.py").write_text(BUILDER)
    done = subprocess.run(
        [
            *(sys.executable, str(COMMAND), "--network", "tiny", "builder.py:tiny"),
            *("--bits", "6", "--out", "rows.csv"),
            *("--made", "leaves", "steps=0", "count=8"),
            *("--made", "moved", "steps=2", "count=8", "batch=4", "probes=2", "size=18"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["weights alone", "real inputs", "leaves", "moved"]
    assert [row["contender"] for row in rows] == names
    assert all(float(row["divergence"]) > 0 for row in rows)
    for name in names:
        assert name in done.stdout
