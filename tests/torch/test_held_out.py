"""Calibrated files held against weights alone, on inputs that took no part, made up or given."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS, trained
from torch import Tensor, nn
from torch.nn import functional

import tqcodec.torch
from tqcodec import EncodeError, EncodeReport, EncodeWarning, Settings
from tqcodec.encoder.findings import HeldOut
from tqcodec.errors import TargetError
from tqcodec.torch.held_out import EVERY, LEAST, Judge, split
from tqcodec.torch.inputs import DataOptions, load_batches
from tqcodec.torch.synthetic.file import save_inputs

FAST = Settings(bits=5, effort=1)


def about_of(data: bytes) -> str:
    with tqcodec.open(data) as file:
        return file.container.directory.provenance


def outputs(given: Any) -> list[Tensor]:
    if isinstance(given, Tensor):
        return [given]
    values = given.values() if isinstance(given, dict) else given
    return [one for value in values for one in outputs(value)]


def run(model: nn.Module, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        return outputs(model(**batch) if isinstance(batch, dict) else model(batch))


def measured(model: nn.Module, data: bytes, batches: list[Any], what: str) -> float:
    """The measure of `HeldOut`, by other means, of batches of one size."""
    decoded = trained(type(model))
    decoded.load_state_dict(tqcodec.torch.decode(data))
    found = []
    for batch in batches:
        wanted = run(model, batch)
        for y, z in zip(wanted, run(decoded, batch), strict=True):
            if what == "KL":
                logs = z.double().log_softmax(1), y.double().log_softmax(1)
                found.append(functional.kl_div(*logs, log_target=True, reduction="batchmean"))
            else:
                y, z = y.double(), z.double()
                size = y.square().mean() if len(wanted) == 1 else y.var(0).mean()
                found.append((z - y).square().mean() / size)
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_many_kinds(kind: str) -> None:
    model, ways = trained(KINDS[kind].network), KINDS[kind].ways
    batches = tqcodec.torch.synthetic_inputs(model, 24, **ways)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = EncodeReport()
    data = tqcodec.torch.encode(model, FAST, synthetic=batches, report=report)
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    found, (used, held) = report.held_out, split(batches)
    assert found is not None and found.samples == 8 and len(used) == 2
    assert found.measure == KINDS[kind].measure
    best = found.calibrated if found.helped else found.plain
    assert measured(model, data, held, found.measure) == pytest.approx(best, rel=1e-3, abs=1e-12)
    statistics = tqcodec.torch.calibrate(model, used, probes=None).made_up()
    if found.helped:
        assert data == tqcodec.torch.encode(model, FAST, statistics, tune=used)
        assert about_of(data).endswith(" synthetic=16 tuned") and report.findings == []
    else:
        assert data == tqcodec.torch.encode(model, FAST)
        assert report.findings[0].kind == "calibration"


class Wide(nn.Module):
    """Inputs of which calibration sees one half, and those held out are the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 96)
        self.last = nn.Linear(96, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.first(x)))


def halves(misleading: bool) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    torch.manual_seed(5)
    model = Wide().eval()
    used = [torch.randn(32, 64) * (torch.arange(64) < 32) for _ in range(4)]
    held = [torch.randn(256, 64) * ((torch.arange(64) < 32) ^ misleading)]
    return model, used, held


TARGETS: list[dict[str, Any]] = [
    {"bits": 3}, {"max_size": 3000}, {"snr": 18.0}, {"quality": 40}, {},
]  # fmt: skip


@pytest.mark.parametrize("misleading", [False, True])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_better_file_is_written_for_every_target(
    target: dict[str, Any], misleading: bool
) -> None:
    model, used, held = halves(misleading)
    wish, report = Settings(**target, effort=1), EncodeReport()
    statistics = tqcodec.torch.calibrate(model, used)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        data = tqcodec.torch.encode(model, wish, statistics, held_out=held, report=report)
    found = report.held_out
    assert found is not None and found.helped == (not misleading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = tqcodec.torch.encode(model, wish)
        calibrated = tqcodec.torch.encode(model, wish, statistics)
    assert data == (plain if misleading else calibrated)
    said = [str(one.message) for one in warned if "weights alone" in str(one.message)]
    assert len(said) == misleading and (not said or str(found) in said[0])
    assert ("samples=128" in about_of(data)) == (not misleading)
    # By a ratio the two differ in size, so what is compared is a plain file as large.
    as_large = plain
    if "bits" not in target and "max_size" not in target:
        limit = Settings(max_size=len(calibrated), effort=1)
        as_large = tqcodec.torch.encode(model, limit)
        assert len(as_large) <= len(calibrated) < 1.1 * len(as_large)
    assert Judge(model, held).compare(calibrated, as_large) == found


def test_each_file_of_a_search_is_held_against_weights_alone() -> None:
    for misleading in (False, True):
        model, used, held = halves(misleading)
        statistics = tqcodec.torch.calibrate(model, used)
        reference = tqcodec.torch.Reference(model, [(batch, None) for batch in held])
        report = EncodeReport()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = tqcodec.torch.encode(
                model,
                Settings(effort=1),
                statistics,
                held_out=held,
                target_drop=5,
                evaluate=lambda m, r=reference: r.compare(m).agreement.value,  # type: ignore[misc]
                report=report,
            )
        assert report.held_out is not None
        assert report.held_out.helped == (not misleading) == ("samples=128" in about_of(data))


def judge() -> tuple[Judge, bytes, Callable[[Settings], tuple[bytes, EncodeReport]]]:
    model, _, held = halves(misleading=False)
    data = tqcodec.torch.encode(model, FAST)

    def fails(_: Settings) -> Any:
        raise TargetError("cannot")

    return Judge(model, held), data, fails


def test_a_file_that_cannot_be_made_is_no_better() -> None:
    one, data, fails = judge()
    chosen, report = one.better(FAST, fails, lambda _: (data, EncodeReport()))
    assert chosen is data and report.held_out is None
    assert "calibration failed: cannot" in report.findings[0].message
    chosen, report = one.better(FAST, lambda _: (data, EncodeReport()), fails)
    assert chosen is data and report.findings == []
    assert report.held_out is not None and report.held_out.plain == math.inf
    with pytest.raises(EncodeError, match="cannot"):
        one.better(FAST, fails, fails)
    exact = Settings(lossless=True)
    chosen, report = one.better(exact, lambda _: (data, EncodeReport()), fails)
    assert chosen is data and report.held_out is None


class Boxes(nn.Module):
    """Scores, and as many boxes as are found, which depends on the weights; bits that count not."""

    def __init__(self, scored: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 96)
        self.scored = scored

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        found = {"boxes": y[y > y.flatten()[0]], "kept": y > 0}
        return [y, found] if self.scored else [found]


def test_outputs_that_are_not_as_many_as_the_originals() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(4, 32) for _ in range(3)]
    model, wish = Boxes().eval(), Settings(bits=3, effort=1)
    data = tqcodec.torch.encode(model, wish)
    found = Judge(model, batches).compare(data)
    decoded = Boxes().eval()
    decoded.load_state_dict(tqcodec.torch.decode(data))
    y, z = (torch.cat([m(batch)[0] for batch in batches]) for m in (model, decoded))
    wanted = float(((y - z).square().sum() / y.square().sum()).detach())
    assert found.measure == "error" and found.calibrated == pytest.approx(wanted, rel=0.1)
    with pytest.raises(EncodeError, match="no outputs that can be compared"):
        Judge(Boxes(scored=False), batches).compare(data)


class Finds(nn.Module):
    """Gives what it finds in each sample: nothing in some, and more or less after quantization."""

    def __init__(self, least: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.least = nn.Linear(32, 96), least

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"scores": y[y > self.least]} for y in self.linear(x)]


@pytest.mark.parametrize("least", [0.0, 1e3])
def test_detectors_whose_outputs_cannot_be_compared(least: float) -> None:
    """Are encoded all the same, and that nothing was checked is said."""
    report, batches = EncodeReport(), list(torch.randn(4, 8, 32))
    with pytest.warns(EncodeWarning, match="calibration was not checked: held_out"):
        data = tqcodec.torch.encode(
            Finds(least), Settings(bits=3, effort=1), synthetic=batches, report=report
        )
    assert report.held_out is None
    assert set(tqcodec.torch.decode(data)) == {"linear.weight", "linear.bias"}


@given(count=st.integers(0, 40))
def test_a_part_is_held_out(count: int) -> None:
    batches = list(range(count))
    if count < LEAST:
        with pytest.raises(EncodeError, match="3 at least"):
            split(iter(batches))
        return
    with pytest.raises(EncodeError, match="one Tensor in place of batches"):
        split(torch.ones(4, 3))
    used, held = split(iter(batches))
    assert sorted(used + held) == batches == sorted(set(batches))
    assert len(held) == max(1, count // EVERY) and len(used) >= 2


def test_what_goes_together() -> None:
    model, used, held = halves(misleading=False)
    statistics = tqcodec.torch.calibrate(model, used)
    given: dict[str, Any] = {"statistics": statistics, "tune": used, "held_out": held}
    for name, value in given.items():
        with pytest.raises(EncodeError, match="give either"):
            tqcodec.torch.encode(model, FAST, synthetic=used, **{name: value})
    odd: dict[str, Any]
    for name in ("synthetic", "held_out"):
        odd = {name: used}
        with pytest.raises(EncodeError, match=f"{name} needs a network"):
            tqcodec.torch.encode(model.state_dict(), FAST, **odd)
        odd = {name: 3}
        with pytest.raises(TypeError, match=name):
            tqcodec.torch.encode(model, FAST, **odd)
    with pytest.raises(EncodeError, match="3 at least"):
        tqcodec.torch.encode(model, FAST, synthetic=used[:2])
    with pytest.raises(EncodeError, match="no batch"):
        tqcodec.torch.encode(model, FAST, held_out=[])
    torch.manual_seed(6)
    with pytest.raises(EncodeError, match="of another network"):
        tqcodec.torch.encode(Wide().eval(), FAST, statistics, held_out=held)


def test_made_up_samples_are_counted() -> None:
    model, used, _ = halves(misleading=False)
    real = tqcodec.torch.calibrate(model, used[:1])
    made = tqcodec.torch.calibrate(model, used[1:]).made_up()
    both = real + made
    assert {(one.images, one.synthetic) for one in both.values()} == {(128, 96)}
    assert " samples=32 synthetic=96" in about_of(tqcodec.torch.encode(model, FAST, both))
    assert " samples=32 " in about_of(tqcodec.torch.encode(model, FAST, real)) + " "


def test_made_up_samples_are_counted_in_a_file_of_statistics(tmp_path: Path) -> None:
    model, used, _ = halves(misleading=False)
    tqcodec.torch.calibrate(model, used).made_up().save(tmp_path / "s.npz")
    found = tqcodec.Statistics.load(tmp_path / "s.npz")
    assert {one.synthetic for one in found.values()} == {128}


# Files of made-up inputs.

NAMES = st.text(st.characters(codec="utf-8"), max_size=5)
TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES
TENSORS = st.builds(
    lambda kind, shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(
        kind
    ),
    TYPES,
    st.lists(st.integers(0, 3), max_size=4),
    st.integers(0, 9),
)
BATCHES = st.lists(
    TENSORS | st.dictionaries(NAMES.filter(bool), TENSORS | VALUES, max_size=3), max_size=4
)


@settings(max_examples=50)
@given(batches=BATCHES)
def test_saved_inputs_come_back(tmp_path_factory: pytest.TempPathFactory, batches: Any) -> None:
    path = tmp_path_factory.mktemp("inputs") / "i.npz"
    save_inputs(path, batches)
    data = load_batches(str(path), DataOptions())
    assert data.synthetic and len(data) == len(batches)
    for (back, labels), batch in zip(data, batches, strict=True):
        assert labels is None
        assert isinstance(back, dict) == isinstance(batch, dict)
        pairs = zip(*(x if isinstance(x, dict) else {"": x} for x in (back, batch)), strict=True)
        assert all(one == other for one, other in pairs)
        for name in batch if isinstance(batch, dict) else ():
            assert type(back[name]) is type(batch[name])
        one, other = (list(x.values()) if isinstance(x, dict) else [x] for x in (back, batch))
        for value, wanted in zip(one, other, strict=True):
            if isinstance(wanted, Tensor):
                assert value.dtype == wanted.dtype and value.equal(wanted)
            else:
                assert value == wanted


def test_saved_inputs_may_be_cut_short(tmp_path: Path) -> None:
    batches = [{"x": torch.full((4, 2), float(i)), "n": i} for i in range(3)]
    save_inputs(tmp_path / "i.npz", batches)
    found = list(load_batches(str(tmp_path / "i.npz"), DataOptions(images=6)))
    assert [len(batch["x"]) for batch, _ in found] == [4, 2]


def test_files_of_inputs_that_are_not_right(tmp_path: Path) -> None:
    path = tmp_path / "i.npz"
    with pytest.raises(EncodeError, match="'x' is a list, which a file cannot hold"):
        save_inputs(path, [{"x": [torch.ones(2)]}])
    assert not path.exists()
    save_inputs(path, [torch.ones(3, 2), torch.ones(3, 2)])
    with np.load(path) as file:
        arrays: dict[str, Any] = dict(file)
    for name, damage in (("0.0", None), ("1.0", np.ones((3, 1), np.float16))):
        left = {**arrays, name: damage}
        np.savez(path, **{name: array for name, array in left.items() if array is not None})
        with pytest.raises(EncodeError, match=r"i\.npz: a damaged file of made-up inputs"):
            load_batches(str(path), DataOptions())
    other = str(arrays["about"]).replace("inputs 1", "inputs 2")
    np.savez(path, about=np.array(other))
    with pytest.raises(EncodeError, match="array 'about' is of type"):
        load_batches(str(path), DataOptions())


def test_types_that_numpy_lacks_are_read_as_such(tmp_path: Path) -> None:
    save_inputs(tmp_path / "i.npz", [torch.arange(4).to(torch.bfloat16)])
    with np.load(tmp_path / "i.npz") as file:
        assert file["0.0"].view(ml_dtypes.bfloat16).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("what", ["KL", "error"])
def test_what_is_by_chance_does_not_count(what: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 96).eval()
    batches = [torch.randn(n, 32) for n in (5, 3)]
    if what == "error":
        batches = [batch[:, None] for batch in batches]  # no classes
    files = [tqcodec.torch.encode(model, Settings(bits=bits, effort=1)) for bits in (3, 3.01)]
    found = Judge(model, batches).compare(*files)
    each = []
    for data in files:
        decoded = copy.deepcopy(model)
        decoded.load_state_dict(tqcodec.torch.decode(data))
        parts = []
        for batch in batches:
            y, z = (one(batch).double().detach() for one in (model, decoded))
            if what == "KL":
                logs = z.log_softmax(1), y.log_softmax(1)
                parts.append(functional.kl_div(*logs, log_target=True, reduction="none").sum(1))
            else:
                parts.append((y - z).square().mean((1, 2)) / y.square().mean())
        each.append(torch.cat(parts))
    apart = each[0] - each[1]
    assert (found.samples, found.measure) == (8, what)
    assert found.calibrated == pytest.approx(float(each[0].mean()))
    assert found.plain == pytest.approx(float(each[1].mean()))
    assert found.chance == pytest.approx(float(apart.std()) / math.sqrt(8))
    assert HeldOut(8, what, 1.1, 1.0, 0.1001).helped
    assert not HeldOut(8, what, 1.1, 1.0, 0.0999).helped


def test_what_is_said() -> None:
    found = HeldOut(32, "KL", 0.01234, math.inf)
    assert str(found) == "KL 0.0123 calibrated, inf by weights alone on 32 inputs held out"


class Divided(nn.Module):
    """A network that divides by what a coarse file makes zero."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.layer, self.small = nn.Linear(32, 32), nn.Linear(32, 32)
        self.broken = broken
        with torch.no_grad():
            self.small.weight *= 1e-4

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) / self.small.weight.abs().sum(1)
        return y * math.nan if self.broken else y


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.filterwarnings("ignore::tqcodec.EncodeWarning")
def test_outputs_that_become_no_numbers_are_told(broken: bool) -> None:
    torch.manual_seed(0)
    model, report = Divided(broken).eval(), EncodeReport()
    batches = [torch.randn(8, 32)]
    rules = [("small.weight", "step:1000")]
    settings = Settings(bits=8, rules=rules)
    tqcodec.torch.encode(model, settings, held_out=batches, report=report)
    told = [finding for finding in report.findings if "not finite" in finding.message]
    assert bool(told) is not broken


class LooksLike(nn.Module):
    """Has the names of weight normalisation, and adds in place of dividing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.randn(32, 48))
        self.weight_g = nn.Parameter(torch.randn(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight_v + self.weight_g)


@pytest.mark.filterwarnings("ignore::tqcodec.EncodeWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_normalisation_is_known_by_the_module() -> None:
    torch.manual_seed(0)
    models = [
        nn.utils.parametrizations.weight_norm(nn.Linear(48, 32)),
        nn.utils.weight_norm(nn.Linear(48, 32)),
        nn.utils.weight_norm(nn.ConvTranspose1d(32, 48, 3), dim=1),
        LooksLike(),
    ]
    for model in models:
        for parameter in model.parameters():  # short slices, which a low rate makes zeros
            if parameter.ndim > 1 and 1 not in parameter.shape:
                parameter.data[:, :3] *= 1e-3
                parameter.data[:3] *= 1e-3
        report = EncodeReport()
        data = tqcodec.torch.encode(model.eval(), Settings(bits=6), report=report)
        told = [finding.kind for finding in report.findings if finding.kind == "directions"]
        assert bool(told) is not isinstance(model, LooksLike)
        x = torch.randn(4, 32, 5) if isinstance(model, nn.ConvTranspose1d) else torch.randn(4, 48)
        wanted = model(x).detach()
        model.load_state_dict(tqcodec.torch.decode(data))
        assert (model(x) - wanted).square().sum() < 0.1 * wanted.square().sum()
