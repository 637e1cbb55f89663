"""Files of the user: they are modules as any other, whatever their names are."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tqcodec import EncodeError
from tqcodec.torch import user_code

CODE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

LOADED = []

@dataclass
class Widths:  # which looks for its module where annotations are not evaluated
    inside: int = 4

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, Widths().inside)

    def forward(self, x):
        from beside_{name} import activation  # found when it runs
        return activation(self.first(x))

def network():
    LOADED.append(1)
    return Network()

def calls():
    return len(LOADED)
"""
BESIDE = "import torch\n\ndef activation(x):\n    return torch.relu(x)\n"


@pytest.fixture(params=("net_of_user", "json", "types", "with-dash", "torch", "net.v2"))
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name = f"{request.param}_{tmp_path.name}".replace("-", "_").replace(".", "_")
    (tmp_path / f"beside_{name}.py").write_text(BESIDE)
    path = tmp_path / f"{request.param}.py"
    path.write_text(CODE.replace("{name}", name))
    return path


def test_a_file_is_a_module(file: Path) -> None:
    standard = sys.modules.get(file.stem)
    model = user_code.load_model(f"{file}:network")
    assert model(torch.ones(2, 8)).shape == (2, 4)
    # Anew each time, as what is global may be drawn or used up.
    assert user_code.call(f"{file}:calls") == 0
    # By its name, as pickle and torch.compile look for it.
    copy = pickle.loads(pickle.dumps(model))
    assert type(copy) is type(model)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(torch.ones(2, 8)), model(torch.ones(2, 8)))
    # The modules of others stay what they are.
    assert standard is None or sys.modules[file.stem] is standard
    assert json.loads("1") == 1 and nn.Module is torch.nn.Module


def test_a_file_that_changes_is_loaded_again(file: Path) -> None:
    assert user_code.call(f"{file}:calls") == 0
    file.write_text("def calls():\n    return 'again'\n")
    assert user_code.call(f"{file}:calls") == "again"
    file.write_text("def calls():\n    return 1 / 0\n\nimport nothing_of_this_name\n")
    with pytest.raises(EncodeError, match="nothing_of_this_name"):
        user_code.call(f"{file}:calls")
    # Two files of one name.
    other = file.parent / "deeper" / file.name
    other.parent.mkdir()
    other.write_text("def calls():\n    return 'other'\n")
    file.write_text("def calls():\n    return 'first, once more'\n")
    os.utime(file, (1, 1))
    for _ in range(2):
        assert user_code.call(f"{other}:calls") == "other"
        assert user_code.call(f"{file}:calls") == "first, once more"


def test_files_that_import_others_of_the_same_name(tmp_path: Path) -> None:
    for number, folder in enumerate(("one", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net_beside.py").write_text(f"def number():\n    return {number}\n")
        code = "from net_beside import number\n\ndef again():\n    return number()\n"
        (tmp_path / folder / f"data_{folder}.py").write_text(code)
    assert user_code.call(f"{tmp_path}/one/net_beside.py:number") == 0
    assert user_code.call(f"{tmp_path}/other/data_other.py:again") == 1
    assert user_code.call(f"{tmp_path}/one/data_one.py:again") == 0
    assert sys.modules["net_beside"].__dict__["number"]() == 0


def test_a_file_that_another_one_has_imported(tmp_path: Path) -> None:
    """It stays the module that was imported, whose classes pickle."""
    (tmp_path / "net_of_both.py").write_text(
        "class Sample:\n    pass\n\ndef net():\n    return 1\n"
    )
    code = "from net_of_both import Sample\n\ndef data():\n    return [Sample()]\n"
    (tmp_path / "data_of_both.py").write_text(code)
    (sample,) = user_code.call(f"{tmp_path}/data_of_both.py:data")
    assert user_code.call(f"{tmp_path}/net_of_both.py:net") == 1
    assert type(pickle.loads(pickle.dumps(sample))) is type(sample)


def test_what_is_global_is_new_each_time(tmp_path: Path) -> None:
    file = tmp_path / "drawn_once.py"
    file.write_text(
        "import torch\ntorch.manual_seed(0)\nnumbers = iter([1, 2])\n\n"
        "def drawn():\n    return torch.randn(())\n\ndef used():\n    return list(numbers)\n"
    )
    assert user_code.call(f"{file}:drawn") == user_code.call(f"{file}:drawn")
    assert user_code.call(f"{file}:used") == user_code.call(f"{file}:used") == [1, 2]


def test_links(tmp_path: Path) -> None:
    """A link has its own name and folder, whatever it leads to."""
    (tmp_path / "store").mkdir()
    (tmp_path / "here").mkdir()
    code = "from pathlib import Path\n\ndef beside():\n    return Path(__file__).parent.name\n"
    (tmp_path / "store" / "0a1b").write_text(code)
    link = tmp_path / "here" / "linked_net.py"
    link.symlink_to(tmp_path / "store" / "0a1b")
    assert user_code.call(f"{link}:beside") == "here"


def test_classes_pickle_while_a_function_runs(file: Path) -> None:
    """Also where the file was loaded before."""
    with file.open("a") as text:
        text.write("\ndef copied():\n    import pickle\n")
        text.write("    return pickle.loads(pickle.dumps(network()))\n")
    user_code.call(f"{file}:calls")
    assert isinstance(user_code.call(f"{file}:copied"), nn.Module)
