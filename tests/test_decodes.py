"""The long run of benchmarks/decodes: that it finds what is wrong, and goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqcodec
from benchmarks import ROOT
from benchmarks.decodes import __main__ as decodes
from benchmarks.decodes import checks
from tqcodec import Settings

Tensors = dict[str, Any]


def network() -> Tensors:
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(16, 8, 3, 3)).astype(np.float32),
        "bn.weight": rng.normal(size=16).astype(np.float32),
        "bn.running_mean": rng.normal(size=16).astype(np.float32),
        "fc.weight": rng.normal(size=(40, 16)).astype(np.float16),
        "fc.bias": rng.normal(size=40),
        "lora.weight": rng.normal(size=(4, 32)).astype(np.float32),
        "steps": np.array(7),
        "mask": np.triu(np.full((8, 8), -np.inf, np.float32)),
    }


def _raised(name: str, by: float) -> Callable[[Tensors], Tensors]:
    return lambda arrays: arrays | {name: arrays[name] + arrays[name].dtype.type(by)}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda arrays: dict(reversed(arrays.items())), "names"),
        (lambda arrays: arrays | {"fc.bias": arrays["fc.bias"][:, None]}, "types"),
        (lambda arrays: arrays | {"fc.bias": arrays["fc.bias"].astype(np.float32)}, "types"),
        (_raised("steps", 1), "exact"),
        (_raised("mask", 1), "exact"),
        (_raised("bn.weight", 0.1), "bound"),
        (_raised("bn.running_mean", np.inf), "finite"),
        (_raised("conv.weight", 0.1), "snr"),
        (_raised("fc.weight", np.nan), "snr"),
        (_raised("lora.weight", 0.3), "snr"),  # in a bundle, with short mantissas
    ],
)
def test_what_differs_from_the_network_is_found(
    change: Callable[[Tensors], Tensors], rule: str
) -> None:
    source, settings = network(), Settings(bits=6)
    arrays, entries, _ = checks.decoded(tqcodec.encode(source, settings))
    corrected = {"bn.running_mean"}
    checks.check_source(arrays, entries, source, settings, corrected)
    with pytest.raises(checks.FaultError) as caught:
        checks.check_source(change(arrays), entries, source, settings, corrected)
    assert caught.value.rule == rule


def test_a_file_that_no_decoder_takes_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = bytearray(tqcodec.encode(network()))
    data[-1] ^= 1
    monkeypatch.setattr(tqcodec, "encode", lambda *_: bytes(data))
    one = decodes.Draw(network(), {"bits": 3}, None)
    line = decodes.run(one, {}, tmp_path / "x.tqc")
    assert (line["outcome"], line["rule"]) == ("failed", "segment.crc")
    assert (tmp_path / "x.tqc").read_bytes() == data


@pytest.mark.parametrize(
    ("options", "outcome"),
    [({"max_size": 300}, "refused"), ({"rules": [("x", "exact")]}, "failed")],
)
def test_only_sizes_may_be_refused(options: dict[str, Any], outcome: str, tmp_path: Path) -> None:
    line = decodes.run(decodes.Draw(network(), options, None), {}, None)
    assert line["outcome"] == outcome
    assert line["message"]


def test_draws_are_the_same_again_and_take_every_card() -> None:
    source = network()
    first, again = (
        [decodes.draw("a", source, 3, number).options for number in range(20)] for _ in range(2)
    )
    assert first == again
    assert first != [decodes.draw("b", source, 3, number).options for number in range(20)]
    assert {options["effort"] for options in first} == set(range(1, 10))
    assert {"bits", "max_size", "snr", "quality", "lossless"} <= set().union(*first)


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **network())
    log = tmp_path / "log"
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.decodes", tmp_path / "x.npz"]

    def run(count: int) -> list[str]:
        arguments: list[str | Path] = ["--no-made", "--log", log, "--count", str(count)]
        subprocess.run([*command, *arguments], cwd=ROOT, check=True, capture_output=True)
        return log.read_text().splitlines()

    two = run(2)
    log.write_text("\n".join([*two, two[0][:40]]))  # the last line was not finished
    three = run(3)
    assert three[:2] == two
    assert [json.loads(line)["draw"] for line in three] == [0, 1, 2]
    assert all(json.loads(line)["outcome"] in ("good", "refused") for line in three)
