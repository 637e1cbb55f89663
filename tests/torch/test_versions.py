"""Versions of modules: what `load_state_dict` gets of a decoded file is what it got before."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tqcodec
import tqcodec.torch
from tqcodec.cli import commands
from tqcodec.torch.versions import KEY, versions, versions_of, with_versions

part = st.text("ab_1", min_size=1, max_size=3)
module = st.lists(part, max_size=3).map(".".join)
leaf = st.sampled_from(["weight", "bias", "running_mean", "num_batches_tracked"])
name = st.tuples(module, leaf).map(lambda pair: ".".join(filter(None, pair)))
about = st.one_of(
    st.integers(0, 3).map(lambda number: {"version": number}),
    st.dictionaries(st.sampled_from(["version", "more"]), st.none() | st.booleans() | st.text()),
)


class State(OrderedDict[str, Any]):
    _metadata: Any


def metadata_of(state: Mapping[str, Any]) -> Any:
    """What PyTorch hangs on a state dict, of which its types know nothing."""
    return getattr(state, "_metadata")  # noqa: B009


@given(names=st.lists(name, unique=True, max_size=6), found=st.dictionaries(module, about))
def test_come_back(names: list[str], found: dict[str, Any]) -> None:
    """All of them but those of version 1 without a tensor."""
    state = State(dict.fromkeys(names))
    state._metadata = OrderedDict(found)
    back = versions(names, versions_of(state))
    assert back is not None
    parents = {""} | {n[:i] for n in names for i, c in enumerate(n) if c == "."}
    kept = {m: a for m, a in found.items() if m in parents or a != {"version": 1}}
    assert back == kept


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_string_gives_versions_or_none(text: str) -> None:
    found = versions(["a.weight"], {KEY: text})
    assert found is None or all(isinstance(one, dict) for one in found.values())


def test_strings_that_cannot_be_meant() -> None:
    assert versions(["a"], {}) is None
    assert versions(["a"], {KEY: "[" * 100_000}) is None
    assert versions(["a"], {KEY: "9" * 100_000}) is None
    assert versions(["a"], {KEY: '{"b": 1.5, "c": "x", "d": true}'}) == {"": {"version": 1}}


def test_most_networks_need_two_bytes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 8))
    assert versions_of(model.state_dict()) == {KEY: "{}"}
    assert versions_of({"a": torch.ones(2)}) == {}
    state = tqcodec.torch.decode(tqcodec.torch.encode(model))
    wanted = dict(metadata_of(model.state_dict()))
    del wanted["2"]  # a module of version 1 without tensors
    assert metadata_of(state) == wanted
    plain = tqcodec.torch.decode(tqcodec.torch.encode(dict(model.state_dict())))
    assert not hasattr(plain, "_metadata")


def test_what_json_lacks_is_said_to_be_lost() -> None:
    state = State({"a.weight": torch.ones(2), "b.weight": torch.ones(2)})
    state._metadata = {"a": {"version": torch.ones(1)}, "b": {"version": 7}, "": {"version": 1}}
    with pytest.warns(UserWarning, match="not kept.*'a'"):
        assert json.loads(versions_of(state)[KEY]) == {"b": 7}


class Versioned(nn.Module):
    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(x)
        return found

    def _load_from_state_dict(self, state: Any, prefix: str, about: Any, *rest: Any) -> None:
        if about.get("version") not in (1, 2):
            raise ValueError(f"version should be 1 or 2, not {about.get('version')}")
        super()._load_from_state_dict(state, prefix, about, *rest)


def test_modules_that_look_at_versions(tmp_path: Path) -> None:
    model, path = Versioned(), tmp_path / "m.tqc"
    tqcodec.torch.save(model, path)
    Versioned().load_state_dict(tqcodec.torch.load(path))
    Versioned().load_state_dict(
        tqcodec.torch.decode(tqcodec.torch.encode(model.state_dict(), tqcodec.Settings(quality=80)))
    )
    with tqcodec.torch.open(path) as file:
        Versioned().load_state_dict(file)
    images = [(torch.randn(4, 16), None)]
    assert tqcodec.torch.compare(model, tqcodec.torch.load(path), images).images == 4
    batches = [torch.randn(4, 16), torch.randn(4, 16)]
    assert tqcodec.torch.encode(model, tune=batches)
    assert tqcodec.torch.encode(model, target_drop=1, evaluate=lambda m: 0)
    with pytest.raises(tqcodec.EvaluationError, match="ValueError: version should be 1 or 2"):
        tqcodec.torch.compare(model, dict(tqcodec.torch.load(path)), images)


def test_through_files_of_all_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Versioned().state_dict()}, "a.pth")
    for command in ("encode a.pth", "decode a.tqc", "encode a.safetensors -o b.tqc",
                    "decode b.tqc -o c.pt"):  # fmt: skip
        assert commands.main(command.split()) == 0, capsys.readouterr()
    for state in (torch.load("c.pt", weights_only=True), tqcodec.torch.load("b.tqc")):
        Versioned().load_state_dict(state)
    buffer = io.BytesIO()
    torch.save(tqcodec.torch.load("b.tqc"), buffer)  # nothing but what weights_only takes
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)._metadata[""] == {"version": 2}


def test_metadata_of_the_user_wins() -> None:
    settings = tqcodec.Settings(metadata=((KEY, '{"": 9}'), ("a", "b")))
    data = tqcodec.torch.encode(Versioned(), settings)
    with tqcodec.open(data) as file:
        assert file.metadata() == {KEY: '{"": 9}', "a": "b"}
    assert with_versions({"a": torch.ones(1)}, {KEY: "{}"})["a"] == 1
    assert list(tqcodec.decode(data)) == list(tqcodec.torch.decode(data))
    assert np.array_equal(tqcodec.decode(data)["fc.bias"], tqcodec.torch.decode(data)["fc.bias"])
