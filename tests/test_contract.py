"""What may import what, and the public names."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import tqcodec

PACKAGE = Path(tqcodec.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ["scipy", "torch", "safetensors", "tqdm", "matplotlib", "urllib3", "fsspec"]


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


# What the two halves of the encoder share; it knows neither of them.
SHARED = ("settings", "statistics", "kinds", "tensor", "histograms", "tables", "side", "effort")
MATRIX = ("errors", "common", "format", *(f"encoder.{name}" for name in SHARED))
TOP = ("errors", "version", "common", "native", "format", "encoder", "arrays", "reading", "api")
# Each layer: what of the package it may import besides itself, and which libraries besides numpy.
LAYERS: dict[str, tuple[Sequence[str], set[str]]] = {
    "version": ((), set()),
    "errors": (("version",), set()),
    "common": (("errors",), set()),
    "native": ((), set()),
    "format": (("errors", "common", "native"), {"constriction", "msgpack"}),
    **{f"encoder.{name}": (MATRIX, set()) for name in SHARED},
    "encoder.matrix": ((*MATRIX, "native"), {"scipy"}),
    "encoder": (("errors", "version", "common", "format"), {"scipy", "typing_extensions"}),
    "arrays": (("errors", "common", "format"), {"ml_dtypes"}),
    "reading": (("errors", "common", "format", "arrays"), set()),
    "reading.remote": (("common", "format"), {"urllib3", "fsspec"}),
    "api": (TOP, {"typing_extensions"}),  # for type checkers only
    "torch": (TOP, {"torch", "PIL", "ml_dtypes", "typing_extensions"}),
    "cli": ((*TOP, "torch", ""), {"matplotlib", "safetensors", "tqdm", "ml_dtypes"}),
    "__main__": (("cli",), set()),
    "": (TOP, set()),
}


def layer_of(path: Path) -> str:
    """The layer of a module: the longest prefix of its name that is one."""
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__")
    parts = module.rstrip(".").split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next(name for name in names if name in LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_layers_import_what_lies_below_them(path: Path) -> None:
    layer = layer_of(path)
    own, libraries = LAYERS[layer]
    for name in imports_of(path):
        root, _, inner = name.partition(".")
        if root != "tqcodec":
            assert root in {*sys.stdlib_module_names, "numpy", *libraries}, name
            continue
        allowed = [layer, *own]
        public = inner.partition(".")[0] in tqcodec.__all__ and "" in own
        assert public or any(inner == a or inner.startswith(f"{a}.") for a in allowed if a), name


def test_each_library_has_one_owner() -> None:
    assert owners("constriction") == {"format/range_coder.py"}
    assert owners("msgpack") == {"format/directory.py"}
    assert owners("torch") and all(path.startswith("torch/") for path in owners("torch"))
    assert owners("urllib3") == {"reading/remote/http.py"}
    assert owners("fsspec") == {"reading/remote/filesystem.py"}
    matrix = {"encoder/matrix/metric.py", "encoder/matrix/transform.py"}
    assert owners("scipy") == {*matrix, "encoder/weighing.py"}
    assert owners("matplotlib") == {"cli/curve.py", "cli/report.py"}


FACES = [p for p in MODULES if p.name == "__init__.py" and p.parent.name != "native"]


@pytest.mark.parametrize("path", FACES, ids=lambda p: p.parent.relative_to(PACKAGE).as_posix())
def test_faces_hold_names_only(path: Path) -> None:
    """`native` is left out: what it says of the compiled code is all that it has."""
    code = ast.parse(path.read_text()).body
    bodies = [node for node in code if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert [node.name for node in bodies] == (["__getattr__"] if path.parent == PACKAGE else [])


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


def test_importing_for_torch_takes_little_beside_torch() -> None:
    loaded = fresh("import sys, tqcodec.torch; sys.stdout.write(' '.join(sys.modules))").split()
    assert not {"torch._dynamo", "torch._inductor", "matplotlib", "sympy"} & set(loaded)


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
    more = ["InternalError", "LimitError", "MalformedError", "Operations", "Origin", "Remote"]
    classes = ["Settings", "Statistics", "TQCError", "TensorFile", "TransformTensor"]
    classes += ["UnsupportedError"]
    verbs = [
        "coding_gain",
        "decode",
        "encode",
        "fetch",
        "load",
        "open",
        "operations",
        "save",
        "stream",
    ]
    verbs += ["verify"]
    names = ["FORMAT_VERSION", *errors, *more, *classes, *verbs]
    assert tqcodec.__all__ == names
    assert all(getattr(tqcodec, name) is not None for name in names)
    assert issubclass(tqcodec.EncodeError, (tqcodec.TQCError, ValueError))
    for error in (tqcodec.MalformedError, tqcodec.UnsupportedError, tqcodec.LimitError):
        assert error.__bases__ == (tqcodec.DecodeError,)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tqcodec.nothing


def test_options_of_reading_are_stated_once() -> None:
    """What type checkers are told of the verbs is what the one door takes."""
    from tqcodec.reading.file import Reading, TensorFile

    parameters = list(inspect.signature(TensorFile).parameters)
    assert parameters == ["source", *Reading.__annotations__]
    for verb in (tqcodec.decode, tqcodec.load, tqcodec.verify, tqcodec.open):
        *_, last = inspect.signature(verb).parameters.values()
        assert (last.kind, last.annotation) == (last.VAR_KEYWORD, "Unpack[Reading]")
    with pytest.raises(TypeError, match="worker"):
        tqcodec.decode(b"", worker=2)  # type: ignore[call-arg]
