"""Files of tensors: what is read is what was written, and nothing else is touched."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save, save_file

from tqcodec.arrays import numpy_dtype
from tqcodec.cli import checkpoints
from tqcodec.cli.checkpoints import Checkpoint
from tqcodec.common.atomic import replacing
from tqcodec.errors import EncodeError
from tqcodec.format.dtypes import DTYPES

ALL_DTYPES = [numpy_dtype(dtype) for dtype in DTYPES.values()]


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def some_tensors() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "fc.weight": rng.normal(size=(8, 4)).astype(np.float32),
        "half": rng.normal(size=6).astype(ml_dtypes.bfloat16),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float16),
        "flags": np.array([True, False, True]),
    }


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_safetensors_keeps_every_dtype(dtype: np.dtype[Any], tmp_path: Path) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    path = str(tmp_path / "x.safetensors")
    checkpoints.write(path, Checkpoint({"a": array, "transposed": array.T}, {"by": "a test"}))
    found = checkpoints.read(path)
    assert_same(found.tensors, {"a": array, "transposed": array.T.copy()})
    assert found.metadata == {"by": "a test"}


@given(
    arrays=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.sampled_from(ALL_DTYPES).flatmap(
            lambda dtype: hnp.arrays(np.uint8, hnp.array_shapes(min_dims=0, min_side=0)).map(
                lambda array: array.astype(dtype)
            )
        ),
        max_size=4,
    ).filter(lambda arrays: checkpoints.METADATA not in arrays)
)
def test_reads_what_the_library_writes(arrays: dict[str, Any]) -> None:
    data = np.frombuffer(save(arrays), np.uint8)
    assert_same(checkpoints.parse_safetensors(data, "test").tensors, arrays)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda body: bytes([9] * 8) + body))
def test_any_bytes_give_tensors_or_an_error(data: bytes) -> None:
    try:
        checkpoints.parse_safetensors(np.frombuffer(data, np.uint8), "test")
    except EncodeError as error:
        assert "test" in str(error)


FIELD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 3},
        {"a": {}},
        {"a": FIELD | {"dtype": "C64"}},
        {"a": FIELD | {"dtype": ["F32"]}},
        {"a": FIELD | {"shape": [3]}},
        {"a": FIELD | {"shape": [-1]}},
        {"a": FIELD | {"shape": [2.0]}},
        {"a": FIELD | {"data_offsets": [0, 12]}},
        {"a": FIELD | {"data_offsets": [-8, 8]}},
        {"a": FIELD | {"data_offsets": [8, 0]}},
        {"a": FIELD | {"data_offsets": [0]}},
        {"a": FIELD, "__metadata__": 5},
    ],
    ids=str,
)
def test_damaged_safetensors(header: Any) -> None:
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(8)
    with pytest.raises(EncodeError):
        checkpoints.parse_safetensors(np.frombuffer(data, np.uint8), "test")


def test_unaligned_safetensors() -> None:
    text = json.dumps({"a": FIELD}).encode()
    text += b" " * ((1 - len(text)) % 8)
    data = len(text).to_bytes(8, "little") + text + np.array([1, 2], np.float32).tobytes()
    array = checkpoints.parse_safetensors(np.frombuffer(data, np.uint8), "test").tensors["a"]
    assert array.flags.aligned
    assert array.tolist() == [1, 2]


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(EncodeError, match="empty"):
        checkpoints.read(str(tmp_path / "x.safetensors"))


def test_standard_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    checkpoints.write("-", Checkpoint(some_tensors(), {"k": "v"}))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out.getvalue())))
    found = checkpoints.read("-")
    assert_same(found.tensors, some_tensors())
    assert found.metadata == {"k": "v"}


def write_shards(folder: Path, places: dict[str, Any]) -> str:
    tensors = some_tensors()
    save_file({"fc.weight": tensors["fc.weight"]}, folder / "m-00001-of-00002.safetensors")
    rest = {name: array for name, array in tensors.items() if name != "fc.weight"}
    save_file(rest, folder / "m-00002-of-00002.safetensors", {"format": "np"})
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return str(index)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    names = list(some_tensors())
    places = {name: f"m-0000{1 + (i > 0)}-of-00002.safetensors" for i, name in enumerate(names)}
    index = write_shards(tmp_path, places)
    found = checkpoints.read(index)
    assert_same(found.tensors, some_tensors())
    assert list(found.tensors) == names
    assert found.metadata == {"format": "np"}
    shard = checkpoints.read(str(tmp_path / "m-00001-of-00002.safetensors"))
    assert list(shard.tensors) == ["fc.weight"]
    assert checkpoints.with_suffix(index, ".tqc") == str(tmp_path / "m.tqc")


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "..\\secret.safetensors",
        "sub/secret.safetensors",
        "C:secret.safetensors",
        "nul\0.safetensors",
        "..",
        "",
        "secret.pt",
        7,
        None,
    ],
)
def test_index_opens_nothing_elsewhere(shard: Any, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    (inner / "sub").mkdir(parents=True)
    for place in (tmp_path, inner / "sub"):
        save_file({"w": np.zeros(3, np.float32)}, place / "secret.safetensors")
    with pytest.raises(EncodeError, match="not the name of a file beside"):
        checkpoints.read(write_shards(inner, {"w": shard}))
    absolute = str(tmp_path / "secret.safetensors")
    with pytest.raises(EncodeError, match="not the name of a file beside"):
        checkpoints.read(write_shards(inner, {"w": absolute}))


def test_wrong_index(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="'gone' is not in"):
        checkpoints.read(write_shards(tmp_path, {"gone": "m-00001-of-00002.safetensors"}))
    for text in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": ["x"]}}'):
        (tmp_path / "m.safetensors.index.json").write_text(text)
        with pytest.raises(EncodeError):
            checkpoints.read(str(tmp_path / "m.safetensors.index.json"))


def test_npz(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")
    tensors = {"file": np.arange(3), "a/b": np.array(1.5), "../up": np.zeros((0, 2))}
    checkpoints.write(path, Checkpoint(tensors))
    assert_same(checkpoints.read(path).tensors, tensors)
    with pytest.raises(EncodeError, match="bfloat16"):
        checkpoints.write(path, Checkpoint(some_tensors()))
    assert_same(checkpoints.read(path).tensors, tensors)
    np.savez(path, pickled=np.array([{}], object))
    with pytest.raises(EncodeError, match="plain arrays"):
        checkpoints.read(path)
    with Path(path).open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(EncodeError, match="npz"):
        checkpoints.read(path)
    Path(path).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(EncodeError, match="npz"):
        checkpoints.read(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_torch_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    checkpoints.write(str(path), Checkpoint(some_tensors()))
    state = torch.load(path, weights_only=True)
    assert state["half"].dtype == torch.bfloat16
    assert_same(checkpoints.read(str(path)).tensors, some_tensors())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
    ],
)
def test_wrapped_state_dicts(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(wrap({"w": torch.ones(2, 3)}), tmp_path / "x.bin")
    assert_same(
        checkpoints.read(str(tmp_path / "x.bin")).tensors, {"w": np.ones((2, 3), np.float32)}
    )


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_refused_torch_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": Evil(tmp_path / "evil")}, path)
    with pytest.raises(EncodeError, match="weights_only"):
        checkpoints.read(str(path))
    assert not (tmp_path / "evil").exists()
    torch.save({"w": torch.ones(2), "epoch": 3}, path)
    with pytest.raises(EncodeError, match="'epoch' is an int"):
        checkpoints.read(str(path))
    torch.save([torch.ones(2)], path)
    with pytest.raises(EncodeError, match="not a state dict"):
        checkpoints.read(str(path))
    path.write_bytes(b"no checkpoint")
    with pytest.raises(EncodeError, match=r"x\.pt"):
        checkpoints.read(str(path))


def test_unknown_formats(tmp_path: Path) -> None:
    for name in ("x.onnx", "x", "x.tqc"):
        with pytest.raises(EncodeError, match="known format"):
            checkpoints.read(name)
        with pytest.raises(EncodeError, match="can be written"):
            checkpoints.write(str(tmp_path / name), Checkpoint(some_tensors()))
    with pytest.raises(EncodeError, match="__metadata__"):
        checkpoints.write(str(tmp_path / "x.safetensors"), Checkpoint({"__metadata__": np.ones(1)}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_replacing_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.write(str(tmp_path / "x.safetensors"), Checkpoint(some_tensors()))
    assert list(tmp_path.iterdir()) == []


def test_replacing_follows_links_and_spares_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    checkpoints.write_bytes(str(link), b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    checkpoints.write_bytes(os.devnull, b"gone")
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="no files without names")
@pytest.mark.parametrize("without", ["a name", "links"])
def test_files_appear_also_where_names_or_links_are_lacking(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    if without == "links":
        monkeypatch.setattr(os, "link", no_link)
    else:
        monkeypatch.delattr(os, "O_TMPFILE")
    path = tmp_path / "x"
    for content in (b"one", b"two"):
        checkpoints.write_bytes(str(path), content)
        assert path.read_bytes() == content
        path.chmod(0o640)
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_check_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old"
    old.touch()
    with pytest.raises(EncodeError, match="-f overwrites"):
        checkpoints.check_output(str(old), overwrite=False)
    checkpoints.check_output(str(old), overwrite=True)
    checkpoints.check_output(os.devnull, overwrite=False)
    with pytest.raises(FileNotFoundError):
        checkpoints.check_output(str(tmp_path / "no" / "folder"), overwrite=True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(EncodeError, match="terminal"):
        checkpoints.check_output("-", overwrite=True)


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    usual, ours = tmp_path / "usual", tmp_path / "ours.safetensors"
    usual.touch()
    checkpoints.write(str(ours), Checkpoint(some_tensors()))
    assert ours.stat().st_mode == usual.stat().st_mode
    ours.chmod(0o640)
    checkpoints.write(str(ours), Checkpoint(some_tensors()))
    assert ours.stat().st_mode & 0o777 == 0o640
    with safe_open(ours, "numpy") as file:
        assert file.metadata() is None


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("llama-3.1.safetensors.index.json", "llama-3.1.tqc"),
        ("llama-3.1.safetensors", "llama-3.1.tqc"),
        ("a/v1.2/x.PT", "a/v1.2/x.tqc"),
        ("https://host/a/llama-3.1.safetensors?x=1", "llama-3.1.tqc"),
        ("-", "-"),
    ],
)
def test_dots_of_names_stay(name: str, output: str) -> None:
    assert checkpoints.with_suffix(name, ".tqc") == output
    if name != "-":
        assert checkpoints.with_suffix(output, ".html") == output.removesuffix("tqc") + "html"


def test_an_index_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(EncodeError, match="it names no tensor"):
        checkpoints.read(str(tmp_path / "x.safetensors.index.json"))
