"""What may import what, and the public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tqcodec

PACKAGE = Path(tqcodec.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FORMAT = [path for path in MODULES if path.parent.name == "format"]
HEAVY = ["scipy", "torch", "safetensors", "tqdm", "matplotlib"]


def imports_of(path: Path) -> Iterator[str]:
    """Full names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owners(library: str) -> set[str]:
    """Modules that import a library."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }


@pytest.mark.parametrize("path", FORMAT, ids=lambda p: p.stem)
def test_the_format_layer_stands_alone(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "constriction", "msgpack"}
    own = tuple(f"tqcodec.{name}" for name in ("errors.", "common.", "format.", "native"))
    for name in imports_of(path):
        assert name.split(".")[0] in allowed or name.startswith(own), name


def test_each_library_has_one_owner() -> None:
    assert owners("constriction") == {"format/range_coder.py"}
    assert owners("msgpack") == {"format/directory.py"}
    assert owners("torch") and all(path.startswith("torch/") for path in owners("torch"))
    assert owners("scipy") == {"encoder/matrix/survey.py", "encoder/matrix/transform.py"}
    assert owners("matplotlib") == {"cli/curve.py", "cli/report.py"}


def fresh(code: str, *arguments: str) -> str:
    """Standard output of code in a fresh interpreter; warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_decoding_needs_the_format_layer_only(tmp_path: Path) -> None:
    arrays = {"w": np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32)}
    arrays["b"] = arrays["w"][0, 0, 0]
    tqcodec.save(arrays, tmp_path / "file.tqc", tqcodec.Settings(bits=3))
    code = f"""
import sys
sys.modules.update(dict.fromkeys({[*HEAVY, "ml_dtypes", "tqcodec.encoder"]}))
import tqcodec
tqcodec.verify(sys.argv[1])
sys.stdout.write(" ".join(tqcodec.load(sys.argv[1])))
"""
    assert fresh(code, str(tmp_path / "file.tqc")) == "w b"


def test_importing_the_package_is_light() -> None:
    loaded = fresh("import sys, tqcodec; sys.stdout.write(' '.join(sys.modules))").split()
    assert not {*HEAVY, "numpy", "constriction", "msgpack", "ml_dtypes"} & set(loaded)
    ours = {name for name in loaded if name.startswith("tqcodec")}
    assert ours == {"tqcodec", "tqcodec.errors", "tqcodec.version"}


def test_encoding_needs_no_torch() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["torch", "matplotlib"]))
import numpy, tqcodec
tqcodec.encode({"w": numpy.eye(16)})
sys.stdout.write("done")
"""
    assert fresh(code) == "done"


def test_public_names() -> None:
    errors = ["DecodeError", "EncodeError", "EncodeReport", "EncodeWarning", "EvaluationError"]
    more = ["InternalError", "LimitError", "MalformedError", "Origin"]
    classes = ["Settings", "Statistics", "TQCError", "TensorFile", "UnsupportedError"]
    verbs = ["coding_gain", "decode", "encode", "load", "open", "save", "verify"]
    names = ["FORMAT_VERSION", *errors, *more, *classes, *verbs]
    assert tqcodec.__all__ == names
    assert all(getattr(tqcodec, name) is not None for name in names)
    assert issubclass(tqcodec.EncodeError, (tqcodec.TQCError, ValueError))
    for error in (tqcodec.MalformedError, tqcodec.UnsupportedError, tqcodec.LimitError):
        assert error.__bases__ == (tqcodec.DecodeError,)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tqcodec.nothing
