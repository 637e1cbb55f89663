"""Encoding with statistics: every piece against a slow reference, then all together."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from strategies import Array, Rng, coders, trellis_path, using

import tqcodec
from tqcodec import EncodeError, Settings
from tqcodec.encoder.matrix import feedback
from tqcodec.encoder.matrix import metric as metrics
from tqcodec.encoder.matrix.feedback import quantize_with_feedback
from tqcodec.encoder.matrix.grid import MOST_COLUMN, MOST_ROW, Steps, _steps, grid_of
from tqcodec.encoder.matrix.metric import Metric, metric_of
from tqcodec.encoder.matrix.quantizer import Method
from tqcodec.encoder.matrix.transform import ELT_REGULARISATION, elt, klt
from tqcodec.encoder.statistics import ARRAYS, FORMAT, Statistics, WeightStatistics
from tqcodec.format.reconstruct import MULTIPLIER_MANTISSA, ROW_SCALE_MANTISSA, expand
from tqcodec.format.registry import Axis
from tqcodec.format.trellis import indices_of


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer's weight as it was used: what it saw and the gradients of its outputs.

    Attributes:
        shape, rows: of the weight.
        parts: rows and columns of each block of the statistics.
        size: columns of a block, padded.
        inputs: (images, positions, groups, columns).
        gradients: (images, positions, rows).
    """

    shape: tuple[int, ...]
    rows: int
    parts: list[tuple[slice, slice]]
    size: int
    inputs: Array
    gradients: Array

    def seen(self, block: int) -> Array:
        """Inputs of a block, padded: (images, positions, size)."""
        rows, columns = self.parts[block]
        group = rows.start * self.inputs.shape[2] // self.shape[self.rows]
        x = self.inputs[:, :, group, columns]
        return np.pad(x, ((0, 0), (0, 0), (0, self.size - x.shape[2])))

    def matrix(self, weights: Array) -> Array:
        """A weight as rows and columns, float64."""
        return np.moveaxis(weights.astype(np.float64), self.rows, 0).reshape(
            self.shape[self.rows], -1
        )

    def outputs(self, weights: Array) -> Array:
        """Outputs at every position of every image: (n, rows)."""
        groups = self.inputs.shape[2]
        apart = self.matrix(weights).reshape(groups, -1, self.inputs.shape[3])
        found = np.einsum("ipgc,grc->ipgr", self.inputs, apart)
        return found.reshape(-1, self.shape[self.rows])

    def statistics(self, **more: Any) -> WeightStatistics:
        """Its statistics, position by position."""
        images, positions = self.inputs.shape[:2]
        blocks, n, m = len(self.parts), self.size, self.shape[self.rows]
        inputs, gradients = np.zeros((2, blocks, n, n))
        sums, outputs = np.zeros((blocks, n)), np.zeros((1, m, m))
        for b, (rows, _) in enumerate(self.parts):
            x = self.seen(b)
            for i in range(images):
                change = np.zeros((rows.stop - rows.start, n))
                for p in range(positions):
                    inputs[b] += np.outer(x[i, p], x[i, p])
                    sums[b] += x[i, p]
                    change += np.outer(self.gradients[i, p, rows], x[i, p])
                gradients[b] += change.T @ change
        for g in self.gradients.reshape(-1, m):
            outputs[0] += np.outer(g, g)
        return WeightStatistics(
            shape=self.shape,
            rows=self.rows,
            images=images,
            vectors=images * positions,
            probes=images,
            inputs=inputs,
            sums=sums,
            outputs=outputs,
            gradients=gradients,
            **more,
        )


def layer(
    rng: Rng,
    shape: tuple[int, ...],
    rows: int = 0,
    groups: int = 1,
    width: int | None = None,
    images: int = 40,
) -> Layer:
    """A layer with correlated inputs and gradients of very different strength."""
    count = shape[rows]
    columns = math.prod(shape) // count
    mix = rng.normal(size=(groups, columns, columns)) / math.sqrt(columns)
    mix = (mix + np.eye(columns)) * 2.0 ** rng.normal(0, 1, columns)
    inputs = np.einsum("ipgc,gcd->ipgd", rng.normal(0.3, 1, (images, 4, groups, columns)), mix)
    gradients = rng.normal(size=(images, 4, count)) * 2.0 ** rng.normal(0, 0.7, count)
    if width is None:
        edges = [count * g // groups for g in range(groups + 1)]
        parts = [(slice(a, b), slice(0, columns)) for a, b in itertools.pairwise(edges)]
    else:
        starts = range(0, columns, width)
        parts = [(slice(0, count), slice(s, min(s + width, columns))) for s in starts]
    return Layer(shape, rows, parts, width or columns, inputs, gradients)


KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "dense": ((24, 32), {}),
    "conv": ((16, 6, 3, 3), {}),
    "depthwise": ((12, 1, 3, 3), {"groups": 12}),
    "grouped": ((16, 4, 2, 2), {"groups": 4}),
    "transposed": ((6, 16, 2, 2), {"rows": 1}),
    "blocks": ((20, 50), {"width": 16}),
    "conv blocks": ((12, 10, 3, 3), {"width": 36}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def layer_of(kind: str, seed: int = 0) -> Layer:
    shape, options = KINDS[kind]
    return layer(np.random.default_rng(seed), shape, **options)


def equal(one: WeightStatistics, other: WeightStatistics) -> bool:
    plain = [f for f in vars(one) if f not in ARRAYS]
    return all(getattr(one, f) == getattr(other, f) for f in plain) and all(
        np.array_equal(getattr(one, f), getattr(other, f)) for f in ARRAYS
    )


# Statistics


def some_statistics(seed: int = 0) -> Statistics:
    named = {kind: layer_of(kind, seed).statistics() for kind in ("dense", "depthwise", "blocks")}
    named["conv"] = layer_of("conv", seed).statistics(shift="mean", shift_sign=-1, gain="bn")
    return Statistics(named, {"odd": "called twice"})


def test_statistics_in_a_file(tmp_path: Path) -> None:
    path, wanted = tmp_path / "file.npz", some_statistics()
    wanted.save(path)
    found = Statistics.load(path)
    assert list(found) == list(wanted) and dict(found.without) == dict(wanted.without)
    assert all(equal(found[name], one) for name, one in wanted.items())
    assert [p.name for p in tmp_path.iterdir()] == ["file.npz"]


def test_statistics_add() -> None:
    one, other = some_statistics(0), some_statistics(1)
    both = one + other
    for name, found in both.items():
        assert equal(found, other[name] + one[name])
        for field in ("images", "vectors", "probes", *ARRAYS):
            parts = getattr(one[name], field), getattr(other[name], field)
            assert np.array_equal(getattr(found, field), parts[0] + parts[1])
    # Sums over images: those of two halves are those of the whole.
    whole = layer_of("grouped")
    halves = [
        replace(whole, inputs=whole.inputs[s], gradients=whole.gradients[s]).statistics()
        for s in (slice(0, 15), slice(15, None))
    ]
    for field in ARRAYS:
        found, wanted = getattr(halves[0] + halves[1], field), getattr(whole.statistics(), field)
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-9)


def test_statistics_of_different_layers_do_not_add() -> None:
    one = replace(layer_of("dense").statistics(), shift="bias", gain="bn", sketch=(1.0, 2.0))
    others = {
        "different layers": [
            layer_of("conv").statistics(),
            replace(one, shift="other"),
            replace(one, gain="other"),
            replace(one, shift_sign=-1),
        ],
        "differ by": [replace(one, sketch=(1.0, 1.5)), replace(one, sketch=(1.0,))],
    }
    for message, wrong in others.items():
        for other in wrong:
            with pytest.raises(EncodeError, match=f"{message}.*'a'"):
                Statistics({"a": one}) + Statistics({"a": other})


def test_a_vector_that_one_part_does_not_know_takes_up_nothing() -> None:
    plain = layer_of("dense").statistics()
    one = replace(plain, shift="mean", shift_sign=-1, gain="bn", sketch=(1.0, 2.0))
    for found in (one + plain, plain + one):
        assert (found.shift, found.shift_sign, found.gain) == (None, 1, None)
        assert found.sketch == (1.0, 2.0)
    assert (one + one).shift_sign == -1


def test_a_weight_that_one_part_lacks_saw_nothing_of_its_data() -> None:
    dense, conv = layer_of("dense").statistics(), layer_of("conv").statistics()
    one = Statistics({"a": dense, "b": conv}, {"c": "unused", "d": "unused"})
    other = Statistics({"a": dense, "c": dense}, {"b": "unused", "d": "unused"})
    found = one + other
    assert list(found) == ["a", "b", "c"]
    assert found.without == {"d": "unused"}
    for name, seen in (("b", conv), ("c", dense)):
        more = {"images": dense.images, "probes": dense.probes}
        wanted = {f: getattr(seen, f) + n for f, n in more.items()}
        assert equal(found[name], replace(seen, **wanted))
    assert equal((one + Statistics({}))["b"], conv)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (24, 31)},
        {"shape": (24,)},
        {"shape": ()},
        {"shape": (0, 32)},
        {"rows": 2},
        {"rows": -1},
        {"sums": np.zeros(32)},
        {"sums": np.zeros((1, 33))},
        {"sums": np.zeros((0, 32)), "inputs": np.zeros((0, 32, 32))},
        {"inputs": np.zeros((2, 32, 32))},
        {"inputs": np.zeros((1, 32, 31))},
        {"gradients": np.zeros((32, 32))},
        {"outputs": np.zeros((24, 24))},
        {"outputs": np.zeros((1, 24, 23))},
        {"outputs": np.zeros((1, 23, 23))},
        {"outputs": np.zeros((0, 24, 24))},
        {"inputs": np.full((1, 32, 32), np.nan)},
        {"outputs": np.full((1, 24, 24), np.inf)},
    ],
    ids=str,
)
def test_sums_that_do_not_fit(change: dict[str, Any]) -> None:
    one = layer_of("dense").statistics()
    with pytest.raises(EncodeError, match="statistics"):
        replace(one, **change)


def test_blocks_that_do_not_fit() -> None:
    one = layer_of("blocks").statistics()
    for count in (3, 5):
        arrays = {
            f: np.resize(getattr(one, f), (count, *getattr(one, f).shape[1:])) for f in ARRAYS
        }
        with pytest.raises(EncodeError):
            replace(one, **arrays | {"outputs": one.outputs})
    grouped = layer_of("grouped").statistics()
    arrays = {f: getattr(grouped, f)[:3] for f in ARRAYS}
    with pytest.raises(EncodeError):
        replace(grouped, **arrays | {"outputs": grouped.outputs})


def foreign(path: Path) -> Iterator[Callable[[], Any]]:
    """Writers of files that hold no statistics."""
    named = Statistics({"dense": layer_of("dense").statistics()})
    about = {"format": FORMAT, "weights": {"dense": {}}, "without": {}}
    yield lambda: path.write_bytes(b"")
    yield lambda: path.write_bytes(b"no file of numpy arrays")
    yield lambda: path.write_bytes(tqcodec.encode({"w": np.ones(3)}))
    yield lambda: np.save(path.open("wb"), np.ones(3))
    yield lambda: np.save(path.open("wb"), np.array([{}]), allow_pickle=True)
    yield lambda: np.savez(path.open("wb"), other=np.ones(3))
    for text in ("", "null", "3", "[]", "{}", '"about"', json.dumps(about)):
        yield lambda text=text: np.savez(path.open("wb"), about=np.array(text))
    for wrong in ([], 3, {"dense": 3}, {"dense": None}):
        document = json.dumps(about | {"weights": wrong})
        yield lambda document=document: np.savez(path.open("wb"), about=np.array(document))
    named.save(path)
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    for key in arrays:
        yield lambda key=key: np.savez(
            path.open("wb"), **{k: a for k, a in arrays.items() if k != key}
        )
        if key != "about":
            yield lambda key=key: np.savez(path.open("wb"), **arrays | {key: np.array("text")})
    for wrong in (None, 3, "text"):
        document = json.dumps({"format": FORMAT, "weights": {}, "without": wrong})
        yield lambda document=document: np.savez(path.open("wb"), about=np.array(document))
    later = str(arrays["about"]).replace(FORMAT, "tqcodec statistics 2")
    yield lambda: np.savez(path.open("wb"), **arrays | {"about": np.array(later)})


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_foreign_files_are_encode_errors(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    for write in foreign(path):
        write()
        with pytest.raises(EncodeError, match=r"file\.npz|statistics"):
            Statistics.load(path)
    with pytest.raises(FileNotFoundError):
        Statistics.load(tmp_path / "nothing")


def test_damaged_files_are_encode_errors(tmp_path: Path) -> None:
    path, rng = tmp_path / "file.npz", np.random.default_rng(0)
    wanted = Statistics({"depthwise": layer_of("depthwise").statistics()})
    wanted.save(path)
    data = path.read_bytes()
    for length in [*range(0, 60, 7), *rng.integers(0, len(data), 30)]:
        path.write_bytes(data[:length])
        with pytest.raises(EncodeError):
            Statistics.load(path)
    ends = [*range(400), *range(len(data) - 600, len(data)), *rng.integers(0, len(data), 100)]
    for position in ends[::6]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = Statistics.load(path)
        except EncodeError:
            continue
        # Dates and the like may change; sums may not.
        assert all(equal(found[name], one) for name, one in wanted.items()), position


def test_statistics_of_another_network() -> None:
    one = Statistics({"dense.weight": layer_of("dense").statistics()})
    for tensors in (
        {"other": np.zeros((24, 32), np.float32)},
        {"dense.weight": np.zeros((32, 24), np.float32)},
        {"dense.weight": np.zeros((24, 32, 1, 1), np.float32)},
    ):
        with pytest.raises(EncodeError, match=r"dense\.weight"):
            tqcodec.encode(tensors, Settings(bits=4), one)


# Metric


def reference_blocks(given: Layer) -> list[Array]:
    """The metric by its definition: what each probe says of each row, one by one."""
    count, positions = given.inputs.shape[:2]
    n = given.size
    share = count / (count + metrics.SHRINKAGE * n)
    found = []
    for b, (rows, _) in enumerate(given.parts):
        x, height = given.seen(b), rows.stop - rows.start
        measured, second = np.zeros((2, n, n))
        power = 0.0
        for i in range(count):
            for o in range(rows.start, rows.stop):
                gradient = sum(given.gradients[i, p, o] * x[i, p] for p in range(positions))
                measured += np.outer(gradient, gradient) / (count * height)
                power += sum(given.gradients[i, :, o] ** 2) / (count * height)
            second += sum(np.outer(v, v) for v in x[i]) / (count * positions)
        found.append(share * measured + (1 - share) * power * second)
    means = [np.trace(block) / n for block in found]
    relative = metrics.DAMPING[0] + metrics.DAMPING[1] * min(1, n / count)
    return [
        block + (relative * mean + metrics.FLOOR * np.mean(means)) * np.eye(n)
        for block, mean in zip(found, means, strict=True)
    ]


def reference_error(given: Layer, blocks: list[Array], difference: Array) -> float:
    total = 0.0
    for (rows, columns), block in zip(given.parts, blocks, strict=True):
        for row in difference[rows, columns]:
            e = np.pad(row, (0, given.size - len(row)))
            total += e @ block @ e
    return total


@kinds
def test_metric_by_its_definition(kind: str) -> None:
    given = layer_of(kind)
    found, blocks = metric_of(given.statistics()), reference_blocks(given)
    np.testing.assert_allclose(found.blocks, blocks, rtol=1e-9, atol=1e-12)
    assert found.by_rows == ("blocks" not in kind)
    assert found.columns == math.prod(given.shape) // given.shape[given.rows]
    assert found.taps == math.prod(given.shape[2:])
    rng = np.random.default_rng(1)
    weights, other = rng.normal(size=(2, *given.shape))
    difference = given.matrix(weights)
    assert found.error(difference) == pytest.approx(reference_error(given, blocks, difference))
    products = found.products(difference, given.matrix(other))
    assert products.shape == (given.shape[given.rows],)
    plus, minus = (found.error(given.matrix(weights + s * other)) for s in (1, -1))
    assert products.sum() == pytest.approx((plus - minus) / 4)
    wanted = given.outputs(weights).mean(axis=0)
    np.testing.assert_allclose(found.mean_output(difference), wanted, rtol=1e-9, atol=1e-12)
    assert found.power == pytest.approx(np.mean([np.trace(b) / len(b) for b in blocks]))


@kinds
def test_split_and_join(kind: str) -> None:
    given = layer_of(kind)
    found = metric_of(given.statistics())
    shape = given.shape[given.rows], found.columns
    array = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    apart = found.split(array)
    for part, (rows, columns) in zip(apart, given.parts, strict=True):
        own = array[rows, columns]
        assert np.array_equal(part[:, : own.shape[1]], own) and not part[:, own.shape[1] :].any()
    again = found.join(apart)
    assert again.dtype == array.dtype and np.array_equal(again, array)


@kinds
def test_moments(kind: str) -> None:
    found = metric_of(layer_of(kind).statistics())
    taps, mean = found.taps, found.blocks.mean(axis=0)
    inner = len(mean) // taps
    for axis, length, others in ((Axis.IN, inner, taps), (Axis.TAPS, taps, inner)):
        wanted = np.zeros((length, length))
        for a in range(length):
            for b in range(length):
                for c in range(others):
                    i, j = (a * taps + c, b * taps + c)
                    if axis == Axis.TAPS:
                        i, j = (c * taps + a, c * taps + b)
                    wanted[a, b] += mean[i, j] / others
        np.testing.assert_allclose(found.moment(axis), wanted, rtol=1e-12, atol=1e-15)


@kinds
@pytest.mark.parametrize("axes", [(Axis.TAPS,), (Axis.IN,), (Axis.IN, Axis.TAPS), (Axis.OUT,)])
def test_metric_of_coefficients(kind: str, axes: tuple[Axis, ...]) -> None:
    found = metric_of(layer_of(kind).statistics())
    if not all(found.can_have(axis) for axis in axes):
        assert found.blocks.shape[1] < found.columns or (Axis.OUT in axes and len(found.blocks) > 1)
        return
    rng = np.random.default_rng(2)
    inner = found.blocks.shape[1] // found.taps
    lengths = {Axis.OUT: 5, Axis.IN: inner, Axis.TAPS: found.taps}
    rows = [rng.normal(size=(lengths[a],) * 2) if a in axes else None for a in Axis]
    parts = [np.eye(lengths[a]) if rows[a] is None else rows[a] for a in (Axis.IN, Axis.TAPS)]
    synthesis = np.kron(*parts)
    moved = found.transformed(rows)
    for block, before in zip(moved.blocks, found.blocks, strict=True):
        np.testing.assert_allclose(block, synthesis @ before @ synthesis.T, rtol=1e-9, atol=1e-9)
    assert (moved.columns, moved.taps) == (found.columns, found.taps)
    if found.by_rows and Axis.OUT not in axes:
        e = rng.normal(size=(2 * len(found.blocks), found.columns))
        assert moved.error(e) == pytest.approx(found.error(e @ synthesis))


@kinds
def test_factor(kind: str) -> None:
    found = metric_of(layer_of(kind).statistics())
    diagonal, filters = found.factor()
    for block, d, f in zip(found.blocks, diagonal, filters, strict=True):
        assert (d > 0).all() and (np.diag(f) == 1).all() and not np.tril(f, -1).any()
        upper = f * d
        np.testing.assert_allclose(upper @ upper.T, block, rtol=1e-9, atol=1e-12)


def test_factor_of_a_singular_metric() -> None:
    """Coarse rows of a basis may depend on each other, or vanish."""
    rows = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 1]])
    for blocks in (rows @ rows.T, np.zeros((3, 3))):
        diagonal, filters = Metric(blocks[None], np.zeros((1, 3)), 1, 3, 1.0).factor()
        assert (diagonal > 0).all() and np.isfinite(filters).all()


def silent(one: WeightStatistics) -> WeightStatistics:
    return replace(one, **{f: np.zeros_like(getattr(one, f)) for f in ARRAYS})


@kinds
def test_a_dead_layer(kind: str) -> None:
    one = silent(layer_of(kind).statistics())
    found = metric_of(one)
    assert (np.linalg.eigvalsh(found.blocks) > 0).all()
    weights = np.random.default_rng(0).normal(size=one.shape).astype(np.float32)
    awake = layer_of("dense")
    tensors = {"dead": weights, "awake": np.ones((24, 32), np.float32)}
    for one_of_two in (one, replace(one, images=0, vectors=0, probes=0)):
        both = Statistics({"dead": one_of_two, "awake": awake.statistics()})
        tqcodec.verify(tqcodec.encode(tensors, Settings(quality=80, effort=1), both))


# Feedback

LAYOUTS = {"dense": ((12, 80), {}), "grouped": KINDS["grouped"], "blocks": KINDS["blocks"]}


def problem(layout: str, seed: int = 0) -> tuple[Layer, Metric, Array]:
    rng = np.random.default_rng(seed)
    shape, options = LAYOUTS[layout]
    given = layer(rng, shape, **options)
    return given, metric_of(given.statistics()), rng.normal(size=shape).astype(np.float32)


def fed(found: Metric, weights: Array, step: float, method: Method) -> feedback.Fed:
    cube = weights.reshape(*weights.shape[:2], -1)
    classes = np.zeros((len(weights), found.columns), np.uint8)
    free = np.zeros((1, method.contexts, 1), np.float32)
    return quantize_with_feedback(cube, found, classes, method, step, free)


def gptq(weights: Array, block: Array, steps: Array) -> Array:
    """Frantar et al. 2022, algorithm 1, row by row with the inverse; weights (rows, n)."""
    upper = np.linalg.cholesky(np.linalg.inv(block)).T
    out = np.zeros(weights.shape, np.int64)
    for r, row in enumerate(weights.astype(np.float64)):
        left = row.copy()
        for j in range(len(row)):
            out[r, j] = math.copysign(math.floor(abs(left[j] / steps[r, j]) + 0.5), left[j])
            error = (left[j] - out[r, j] * steps[r, j]) / upper[j, j]
            left[j + 1 :] -= error * upper[j, j + 1 :]
    return out


@pytest.mark.parametrize("width", [64, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_feedback_is_that_of_gptq(layout: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "WIDTH", width)
    given, found, weights = problem(layout)
    step = 0.4 * math.sqrt(found.power)
    result = fed(found, weights, step, Method(0, 0.0))
    matrix, steps = given.matrix(weights), step * result.grid.steps
    wanted = np.zeros(matrix.shape, np.int64)
    for (rows, columns), block in zip(given.parts, found.blocks, strict=True):
        used = columns.stop - columns.start  # what is padded has no errors
        own = block[:used, :used]
        wanted[rows, columns] = gptq(matrix[rows, columns], own, steps[rows, columns])
    assert np.array_equal(result.coefficients, wanted)
    # The step is mended so that what is decoded is as long as it should be.
    rebuilt = wanted * steps
    both = sum(found.products(matrix, rebuilt)) / found.error(rebuilt)
    assert result.step / step == pytest.approx(np.clip(both, *feedback.GAINS))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relative", [0.2, 1.0])
def test_feedback_is_better_than_rounding(layout: str, relative: float) -> None:
    for seed in range(3):
        given, found, weights = problem(layout, seed)
        step = relative * math.sqrt(found.power)
        result = fed(found, weights, step, Method(0, 0.0))
        matrix, steps = given.matrix(weights), step * result.grid.steps
        rounded = np.rint(matrix / steps) * steps
        with_feedback = found.error(matrix - result.coefficients * steps)
        assert with_feedback < found.error(matrix - rounded)
        mended = result.coefficients * result.grid.steps * result.step
        assert found.error(matrix - mended) <= with_feedback * (1 + 1e-9)


@coders
@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_feedback_stays_on_the_trellis(layout: str, steps: int, coder: str) -> None:
    given, found, weights = problem(layout)
    step = 0.3 * math.sqrt(found.power)
    with using(coder):
        result = fed(found, weights, step, Method(steps, 0.0))
        indices, _ = indices_of(result.coefficients, steps)
    assert np.array_equal(trellis_path(indices.astype(np.int64), steps), result.coefficients)
    matrix = given.matrix(weights)
    rebuilt = result.coefficients * result.grid.steps * result.step
    assert found.error(matrix - rebuilt) < 0.5 * found.error(matrix)


# Grid


def integers_of(steps: Steps, mantissa: int) -> Array:
    integers = expand(steps.codes, mantissa)
    np.testing.assert_allclose(steps.values, integers * steps.unit)
    return integers


@pytest.mark.parametrize(
    ("mantissa", "most"), [(ROW_SCALE_MANTISSA, MOST_ROW), (MULTIPLIER_MANTISSA, MOST_COLUMN)]
)
def test_steps_are_two_or_three_times_a_power_of_two(mantissa: int, most: int) -> None:
    spread = np.arange(most + 1) / 2
    wanted = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192]
    assert integers_of(_steps(spread, mantissa, most), mantissa)[:14].tolist() == wanted
    for octaves in (spread, spread[::-1] - 7, np.random.default_rng(0).uniform(-3, 3, 200)):
        steps = _steps(octaves, mantissa, most)
        assert set(integers_of(steps, mantissa)) <= {m << k for m in (2, 3) for k in range(20)}
        assert np.abs(np.log2(steps.values) - octaves).max() <= 0.5
        assert np.log2(steps.values).mean() == pytest.approx(octaves.mean())
    flat = _steps(np.full(9, 3.25), mantissa, most)
    assert (flat.codes == 1).all() and flat.values == pytest.approx(2**3.25)


@pytest.mark.parametrize(
    ("mantissa", "most"), [(ROW_SCALE_MANTISSA, MOST_ROW), (MULTIPLIER_MANTISSA, MOST_COLUMN)]
)
def test_extreme_steps_are_clipped(mantissa: int, most: int) -> None:
    octaves = np.random.default_rng(0).normal(0, 1, 100)
    octaves[:2] = -200, 300
    steps = _steps(octaves, mantissa, most)
    integers = integers_of(steps, mantissa)
    assert integers.min() >= 2 and integers.max() / integers.min() <= 2 ** (most / 2 + 0.1)
    assert np.isfinite(steps.values).all() and (steps.values > 0).all()
    middle = np.abs(octaves) < most / 4 - 0.5
    inner = np.log2(steps.values)[middle] - octaves[middle]
    assert np.ptp(inner) <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_grid_equals_the_slopes(layout: str) -> None:
    given, found, _ = problem(layout)
    rows = given.shape[0]
    diagonal = found.factor()[0]
    grid = grid_of(diagonal, replace(found, share=1.0), rows)
    assert grid.steps.shape == (rows, found.columns)
    assert grid.unit == grid.rows.unit * grid.columns.unit
    for part, own in zip(found.split(grid.steps), diagonal, strict=True):
        products = np.log2(np.where(part > 0, part * own, 1.0))
        # The blocks of a grouped layer share the steps of the columns.
        assert np.abs(products).max() <= (0.5 if len(found.blocks) == 1 or not found.by_rows else 3)
    flat = grid_of(np.full_like(diagonal, 0.3), found, rows)
    assert (flat.rows.codes == 1).all() and (flat.columns.codes == 1).all()
    assert flat.steps == pytest.approx(1 / 0.3)
    blind = grid_of(diagonal, replace(found, share=0.0), rows)  # no data, no steps of columns
    assert (blind.columns.codes == 1).all()


@pytest.mark.parametrize("effort", [1, 5])
def test_extreme_layers_can_be_encoded(effort: int) -> None:
    given = layer_of("grouped")
    for spread in (0, 3, 20):
        inputs = given.inputs * 2.0 ** np.linspace(-spread, spread, 16)
        gradients = given.gradients * 2.0 ** np.linspace(spread, -spread, 16)
        one = replace(given, inputs=inputs, gradients=gradients).statistics()
        weights = np.random.default_rng(0).normal(size=given.shape).astype(np.float32)
        settings = Settings(quality=50, effort=effort)
        data = tqcodec.encode({"w": weights}, settings, Statistics({"w": one}))
        tqcodec.verify(data)
        found, metric = tqcodec.decode(data)["w"], metric_of(one)
        errors = metric.error(given.matrix(weights)), metric.error(given.matrix(weights - found))
        if spread < 20:
            assert 10 * math.log10(errors[0] / errors[1]) == pytest.approx(20, abs=0.6)


# ELT


def moment(rng: Rng, n: int) -> Array:
    factor = rng.normal(size=(n, 3 * n)) * 2.0 ** rng.normal(0, 1, (n, 1))
    return factor @ factor.T


def off_diagonal(matrix: Array) -> float:
    """Largest correlation."""
    scale = np.sqrt(np.diag(matrix))
    return float(np.abs(matrix / np.outer(scale, scale) - np.eye(len(matrix))).max())


@pytest.mark.parametrize("n", [1, 2, 9, 30])
def test_elt_makes_both_moments_diagonal(n: int) -> None:
    rng = np.random.default_rng(n)
    weights, gradients = moment(rng, n), moment(rng, n)
    rows = elt(weights, gradients)
    analysis = np.linalg.inv(rows)  # U; W = W' U^-1
    regular = gradients + ELT_REGULARISATION * np.linalg.norm(gradients) * np.eye(n)
    assert off_diagonal(analysis.T @ weights @ analysis) < 1e-8
    assert off_diagonal(rows @ regular @ rows.T) < 1e-8
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    largest = np.abs(rows).argmax(axis=1)
    assert (rows[np.arange(n), largest] > 0).all()
    kept = np.diag(analysis.T @ weights @ analysis) * np.diag(rows @ regular @ rows.T)
    assert (np.diff(kept) <= 1e-9 * kept.max()).all()
    assert np.array_equal(rows, elt(weights.copy(), gradients.copy()))


def test_elt_without_correlated_gradients_is_the_klt() -> None:
    weights = moment(np.random.default_rng(0), 9)
    np.testing.assert_allclose(elt(weights, 4 * np.eye(9)), klt(weights), atol=1e-9)


# Corrections


def toy(
    names: dict[str, Any], kind: str = "dense", bias: float = 0.5, dtype: Any = np.float32
) -> tuple[Layer, dict[str, Array], Statistics]:
    """A layer and the side tensors behind it."""
    given, rng = layer_of(kind), np.random.default_rng(5)
    rows = given.shape[given.rows]
    tensors = {"weight": rng.normal(size=given.shape).astype(dtype)}
    for name in ("bias", "mean", "gamma"):
        tensors[name] = rng.normal(bias, 0.2, rows).astype(dtype)
    return given, tensors, Statistics({"weight": given.statistics(**names)})


def mean_output(given: Layer, tensors: dict[str, Array]) -> Array:
    return given.outputs(tensors["weight"]).mean(axis=0)


@pytest.mark.parametrize("kind", ["dense", "grouped", "transposed", "blocks"])
@pytest.mark.parametrize("effort", [1, 5])
def test_the_bias_takes_up_a_shift(kind: str, effort: int) -> None:
    given, tensors, statistics = toy({"shift": "bias"}, kind)
    settings = Settings(quality=50, side_bits=None, effort=effort)
    found = tqcodec.decode(tqcodec.encode(tensors, settings, statistics))
    wanted = mean_output(given, tensors) + tensors["bias"]
    np.testing.assert_allclose(mean_output(given, found) + found["bias"], wanted, atol=1e-5)
    assert not np.allclose(mean_output(given, found) + tensors["bias"], wanted, atol=1e-3)
    for name in ("mean", "gamma"):
        assert np.array_equal(found[name], tensors[name])


def test_without_a_bias_or_statistics_nothing_changes() -> None:
    for names in ({}, {"gain": "gamma"}, {"shift": "absent"}, {"shift": "weight"}):
        _, tensors, statistics = toy(names)
        settings = Settings(quality=50, side_bits=None)
        found = tqcodec.decode(tqcodec.encode(tensors, settings, statistics))
        assert all(np.array_equal(found[n], tensors[n]) for n in tensors if n != "weight")


@pytest.mark.parametrize("kind", ["dense", "grouped", "transposed", "blocks"])
def test_a_batch_normalisation_takes_up_a_shift_and_a_gain(kind: str) -> None:
    given, tensors, statistics = toy({"shift": "mean", "shift_sign": -1, "gain": "gamma"}, kind)
    found = tqcodec.decode(
        tqcodec.encode(tensors, Settings(quality=50, side_bits=None), statistics)
    )

    def output(named: dict[str, Array]) -> Array:
        return named["gamma"] * (mean_output(given, named) - named["mean"])

    np.testing.assert_allclose(output(found), output(tensors), atol=1e-5)
    metric = metric_of(statistics["weight"])
    before, after = given.matrix(tensors["weight"]), given.matrix(found["weight"])
    gains = [
        (old @ a @ new) / (new @ a @ new) if new.any() else 1.0
        for (old, new), a in rows_and_metrics(given, metric, before, after)
    ]
    wanted = np.clip(gains, *feedback.GAINS) * tensors["gamma"]
    np.testing.assert_allclose(found["gamma"], wanted, rtol=1e-5)
    # Each row is nearer to the original with its gain than without.
    scale = (found["gamma"] / tensors["gamma"])[:, None].astype(np.float64)
    assert metric.error(before - scale * after) < metric.error(before - after)


def rows_and_metrics(
    given: Layer, metric: Metric, before: Array, after: Array
) -> Iterator[tuple[tuple[Array, Array], Array]]:
    """Rows before and after, and the whole matrix that weighs their errors."""
    for r in range(len(before)):
        whole = np.zeros((metric.columns, metric.columns))
        for (rows, columns), block in zip(given.parts, metric.blocks, strict=True):
            if rows.start <= r < rows.stop:
                width = columns.stop - columns.start
                whole[columns, columns] = block[:width, :width]
        yield (before[r], after[r]), whole


def test_a_running_mean_without_its_weight_takes_up_a_shift() -> None:
    given, tensors, statistics = toy({"shift": "mean", "shift_sign": -1, "gain": "absent"})
    found = tqcodec.decode(
        tqcodec.encode(tensors, Settings(quality=50, side_bits=None), statistics)
    )
    wanted = mean_output(given, tensors) - tensors["mean"]
    np.testing.assert_allclose(mean_output(given, found) - found["mean"], wanted, atol=1e-5)


@pytest.mark.parametrize("side_bits", [4, 9])
def test_corrections_keep_side_bits(side_bits: int) -> None:
    _given, tensors, statistics = toy({"shift": "bias"})
    exact, rounded = (
        tqcodec.decode(tqcodec.encode(tensors, Settings(quality=60, side_bits=n), statistics))
        for n in (None, side_bits)
    )
    assert np.array_equal(exact["weight"], rounded["weight"])
    relative = np.abs(rounded["bias"] / exact["bias"].astype(np.float64) - 1)
    assert relative.max() <= 2.0 ** -(side_bits + 1)
    mantissas = rounded["bias"].view(np.uint32) & ((1 << 23) - 1)
    assert not (mantissas & ((1 << (23 - side_bits)) - 1)).any()


def test_what_must_be_exact_is_not_corrected() -> None:
    names = {"shift": "mean", "shift_sign": -1, "gain": "gamma"}
    given, tensors, statistics = toy(names)
    for rules in ([("mean", "lossless")], [("*a*", "lossless")]):
        wish = Settings(quality=50, side_bits=None, rules=rules)
        found = tqcodec.decode(tqcodec.encode(tensors, wish, statistics))
        assert np.array_equal(found["mean"], tensors["mean"])
        assert np.array_equal(found["gamma"], tensors["gamma"])
    wish = Settings(quality=50, side_bits=None, rules=[("gamma", "lossless")])
    found = tqcodec.decode(tqcodec.encode(tensors, wish, statistics))
    assert np.array_equal(found["gamma"], tensors["gamma"])
    wanted = mean_output(given, tensors) - tensors["mean"]
    np.testing.assert_allclose(mean_output(given, found) - found["mean"], wanted, atol=1e-5)
    exact = tqcodec.decode(tqcodec.encode(tensors, Settings(lossless=True), statistics))
    assert all(np.array_equal(exact[name], tensors[name]) for name in tensors)


def test_tied_side_tensors_are_not_corrected() -> None:
    given = layer(np.random.default_rng(0), (80, 20))
    rng = np.random.default_rng(1)
    bias = rng.normal(size=80).astype(np.float32)
    tensors = {
        "weight": rng.normal(size=(80, 20)).astype(np.float32),
        "bias": bias,
        "twin.bias": bias,
    }
    for shift in ("bias", "twin.bias"):
        statistics = Statistics({"weight": given.statistics(shift=shift)})
        data = tqcodec.encode(tensors, Settings(quality=50, side_bits=None), statistics)
        found = tqcodec.decode(data)
        assert np.array_equal(found["bias"], bias) and np.array_equal(found["twin.bias"], bias)


def test_a_side_tensor_of_another_shape_or_type_is_not_corrected() -> None:
    _, tensors, statistics = toy({"shift": "bias"})
    for other in (np.zeros(23, np.float32), np.zeros((1, 24), np.float32), np.arange(24)):
        found = tqcodec.decode(
            tqcodec.encode(tensors | {"bias": other}, Settings(bits=5), statistics)
        )
        assert np.array_equal(found["bias"], other)


def test_a_bias_of_two_layers_takes_up_both_shifts() -> None:
    """As of an LSTM, whose two products are added."""
    layers = {name: layer(np.random.default_rng(i), (24, 32)) for i, name in enumerate("ab")}
    rng = np.random.default_rng(2)
    tensors = {name: rng.normal(size=(24, 32)).astype(np.float32) for name in "ab"}
    tensors["bias"] = rng.normal(size=24).astype(np.float32)
    statistics = Statistics({n: one.statistics(shift="bias") for n, one in layers.items()})
    found = tqcodec.decode(tqcodec.encode(tensors, Settings(bits=4, side_bits=None), statistics))
    before, after = (
        named["bias"] + sum(one.outputs(named[n]).mean(axis=0) for n, one in layers.items())
        for named in (tensors, found)
    )
    np.testing.assert_allclose(after, before, atol=1e-5)


# All together

NETWORK: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "embedding": ((100, 8), {}),
    "dense": ((48, 40), {}),
    "conv": ((24, 8, 3, 3), {}),
    "depthwise": ((24, 1, 3, 3), {"groups": 24}),
    "transposed": ((12, 24, 2, 2), {"rows": 1}),
    "blocks": ((24, 70), {"width": 32}),
}


@dataclass(frozen=True, eq=False)
class Network:
    layers: dict[str, Layer]
    tensors: dict[str, Array]
    statistics: Statistics

    def matrices(self, name: str, found: dict[str, Array]) -> tuple[Array, Array]:
        one = self.layers[name]
        return one.matrix(self.tensors[name]), one.matrix(found[name])

    def error(self, found: dict[str, Array], name: str | None = None) -> float:
        """Of the logits, of one layer or all, by the metric."""
        total = 0.0
        for layer in [name] if name is not None else self.layers:
            before, after = self.matrices(layer, found)
            total += metric_of(self.statistics[layer]).error(before - after)
        return total

    @property
    def energy(self) -> float:
        return self.error({name: np.zeros_like(array) for name, array in self.tensors.items()})

    @property
    def count(self) -> int:
        return sum(a.size for a in self.tensors.values() if a.ndim > 1)


@cache
def network(dtype: Any = np.float32, without: tuple[str, ...] = ()) -> Network:
    rng = np.random.default_rng(7)
    layers = {name: layer(rng, shape, **more) for name, (shape, more) in NETWORK.items()}
    tensors: dict[str, Array] = {}
    named: dict[str, WeightStatistics] = {}
    for name, one in layers.items():
        rows = one.shape[one.rows]
        tensors[name] = (0.05 * rng.normal(size=one.shape)).astype(dtype)
        tensors[f"{name}.bias"] = rng.normal(0.2, 0.1, rows).astype(dtype)
        named[name] = one.statistics(shift=f"{name}.bias")
    kept = {name: one for name, one in named.items() if name not in without}
    return Network(
        {name: one for name, one in layers.items() if name not in without},
        tensors | {"steps": np.arange(3)},
        Statistics(kept, dict.fromkeys(without, "left out")),
    )


def decoded(data: bytes) -> dict[str, Array]:
    tqcodec.verify(data)
    return tqcodec.decode(data)


@pytest.mark.parametrize("payload", ["range", "fixed"])
@pytest.mark.parametrize("effort", [1, 5])
def test_targets_are_met(effort: int, payload: str) -> None:
    net = network()

    def run(**target: Any) -> tuple[int, dict[str, Array]]:
        settings = Settings(effort=effort, payload=payload, **target)
        data = tqcodec.encode(net.tensors, settings, net.statistics)
        found = decoded(data)
        assert list(found) == list(net.tensors)
        assert all(found[n].dtype == a.dtype for n, a in net.tensors.items())
        assert np.array_equal(found["steps"], net.tensors["steps"])
        return len(data), found

    size, _ = run(bits=5)
    assert 8 * size / net.count == pytest.approx(5, rel=0.02)
    size, _ = run(max_size=4500)
    assert 0.97 * 4500 <= size <= 4500
    _, found = run(quality=50)
    assert 10 * math.log10(net.energy / net.error(found)) == pytest.approx(20, abs=0.11)
    _, found = run(snr=15)
    matrices = [net.matrices(name, found) for name in net.layers]
    energy = sum(float((a**2).sum()) for a, _ in matrices)
    error = sum(float(((a - b) ** 2).sum()) for a, b in matrices)
    assert 10 * math.log10(energy / error) == pytest.approx(15, abs=0.11)


@pytest.mark.parametrize("effort", [1, 5])
def test_statistics_make_the_output_better(effort: int) -> None:
    net = network()
    for bits in (3, 5):
        settings = Settings(bits=bits, effort=effort)
        without = decoded(tqcodec.encode(net.tensors, settings))
        found = decoded(tqcodec.encode(net.tensors, settings, net.statistics))
        assert net.error(found) < 0.6 * net.error(without)


def test_the_same_bytes_again_and_with_any_number_of_workers() -> None:
    net = network(without=("blocks",))
    files = {
        tqcodec.encode(net.tensors, Settings(bits=4, workers=n), net.statistics) for n in (1, 1, 2)
    }
    assert len(files) == 1


@pytest.mark.parametrize("effort", [1, 5])
def test_the_same_bytes_with_and_without_native_loops(effort: int) -> None:
    net, files = network(), set()
    for coder in ("native", "portable"):
        with using(coder):
            settings = Settings(bits=4, effort=effort)
            files.add(tqcodec.encode(net.tensors, settings, net.statistics))
    assert len(files) == 1


def test_the_order_of_statistics_does_not_matter(tmp_path: Path) -> None:
    net = network()
    turned = Statistics(dict(reversed(net.statistics.weights.items())))
    turned.save(tmp_path / "file.npz")
    again = Statistics.load(tmp_path / "file.npz")
    files = {
        tqcodec.encode(net.tensors, Settings(bits=4, effort=1), statistics)
        for statistics in (net.statistics, turned, again)
    }
    assert len(files) == 1


@pytest.mark.parametrize("transform", ["none", "dct", "klt", "elt"])
@pytest.mark.parametrize("effort", [1, 5])
def test_every_transform(transform: str, effort: int) -> None:
    net = network()
    settings = Settings(quality=60, transform=transform, effort=effort)
    found = decoded(tqcodec.encode(net.tensors, settings, net.statistics))
    assert 10 * math.log10(net.energy / net.error(found)) == pytest.approx(24, abs=0.2)


@pytest.mark.parametrize("transform", ["auto", "klt", "elt"])
@pytest.mark.parametrize(
    "target", [{"bits": 20}, {"quality": 0}, {"quality": 100}, {"snr": 0}], ids=str
)
def test_extreme_targets(transform: str, target: dict[str, Any]) -> None:
    net = network()
    settings = Settings(transform=transform, effort=3, **target)
    found = decoded(tqcodec.encode(net.tensors, settings, net.statistics))
    assert all(np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize("transform", ["auto", "klt", "elt"])
def test_a_kernel_too_long_to_be_taps(transform: str) -> None:
    rng = np.random.default_rng(0)
    given = layer(rng, (24, 1, 520), images=8)
    tensors = {"w": rng.normal(size=given.shape).astype(np.float32)}
    settings = Settings(bits=4, transform=transform, effort=3)
    decoded(tqcodec.encode(tensors, settings, Statistics({"w": given.statistics()})))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
def test_other_types(dtype: Any) -> None:
    net = network(dtype)
    data = tqcodec.encode(net.tensors, Settings(quality=50), net.statistics)
    found = decoded(data)
    assert all(found[name].dtype == array.dtype for name, array in net.tensors.items())
    assert 10 * math.log10(net.energy / net.error(found)) == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("target", [{"bits": 4}, {"quality": 55}], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_weights_without_statistics_get_a_fair_share(target: dict[str, Any], scale: float) -> None:
    """Whatever the units of the logits."""
    whole, net = network(), network(without=("dense",))
    named = {
        name: replace(one, outputs=scale**2 * one.outputs, gradients=scale**2 * one.gradients)
        for name, one in net.statistics.items()
    }
    found = decoded(tqcodec.encode(net.tensors, Settings(**target), Statistics(named)))
    errors = {name: whole.error(found, name) for name in whole.layers}
    others = [error for name, error in errors.items() if name != "dense"]
    assert np.mean(others) / 30 < errors["dense"] < 30 * np.mean(others)


def test_a_rule_gives_a_matrix_its_bits() -> None:
    layers = {name: layer(np.random.default_rng(i), (96, 64)) for i, name in enumerate("abc")}
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(96, 64)).astype(np.float32) for name in layers}
    statistics = Statistics({name: one.statistics() for name, one in layers.items()})
    settings = Settings(quality=40, rules=[("a", "bits:2"), ("b", "bits:5"), ("c", "step:4")])
    with tqcodec.open(tqcodec.encode(tensors, settings, statistics)) as file:
        a, b, _ = (
            8 * sum(s.length for s in e.segments) / e.elements
            for e in file.container.directory.entries
        )
    assert a == pytest.approx(2, abs=0.25)
    assert b == pytest.approx(5, abs=0.25)


def test_equal_weights_with_statistics_are_stored_once() -> None:
    given = layer_of("dense")
    weights = np.random.default_rng(0).normal(size=given.shape).astype(np.float32)
    statistics = Statistics({"a": given.statistics(), "b": given.statistics()})
    settings = Settings(quality=40)
    found = decoded(tqcodec.encode({"a": weights, "b": weights}, settings, statistics))
    assert np.array_equal(found["a"], found["b"])


@pytest.mark.parametrize("effort", [1, 5])
def test_networks_of_zeros(effort: int) -> None:
    statistics = Statistics({"w": layer_of("dense").statistics(shift="bias")})
    tensors = {"w": np.zeros((24, 32), np.float32), "bias": np.ones(24, np.float32)}
    for known in (statistics, None):
        for target in ({"bits": 2}, {"quality": 50}, {"snr": 20}, {"max_size": 900}):
            settings = Settings(effort=effort, **target)
            found = decoded(tqcodec.encode(tensors, settings, known))
            assert not found["w"].any() and np.array_equal(found["bias"], tensors["bias"])


# Refinement


@pytest.mark.parametrize("target", [{"bits": 5}, {"quality": 50}, {"max_size": 6000}], ids=str)
def test_refined_side_tensors_are_in_the_file(target: dict[str, Any]) -> None:
    net, calls = network(), []

    def refine(data: bytes) -> dict[str, Array]:
        calls.append(decoded(data))
        wanted = {f"{name}.bias": np.full(48, 2.0, np.float32) for name in ("dense",)}
        ignored = {"conv": np.zeros((24, 8, 3, 3), np.float32), "nothing": np.zeros(3)}
        locked = {"blocks.bias": np.zeros(24, np.float32), "steps": np.zeros(3, np.int64)}
        return wanted | ignored | locked

    settings = Settings(rules=[("blocks.bias", "lossless")], **target)
    data = tqcodec.encode(net.tensors, settings, net.statistics, refine=refine)
    found = decoded(data)
    assert len(calls) == 1
    for name, array in calls[0].items():
        wanted = np.full(48, 2.0, np.float32) if name == "dense.bias" else array
        assert np.array_equal(found[name], wanted), name
    assert np.array_equal(found["blocks.bias"], net.tensors["blocks.bias"])
    assert list(found) == list(net.tensors)


def test_refined_side_tensors_keep_side_bits_and_the_largest_size() -> None:
    net = network()
    noise = {
        name: np.random.default_rng(1).lognormal(0, 9, a.shape).astype(np.float32)
        for name, a in net.tensors.items()
        if name.endswith(".bias")
    }
    settings = Settings(quality=40, side_bits=5)
    data = tqcodec.encode(net.tensors, settings, net.statistics, refine=lambda _: noise)
    found = decoded(data)
    for name, wanted in noise.items():
        error = np.abs(found[name] / wanted.astype(np.float64) - 1)
        assert error.max() <= 2.0**-6
    limited = Settings(max_size=4000, side_bits=23)
    first: list[bytes] = []
    data = tqcodec.encode(
        net.tensors, limited, net.statistics, refine=lambda given: first.append(given) or noise
    )
    assert len(data) <= 4000 and data == first[0]


def test_refining_without_statistics() -> None:
    tensors = {"w": np.random.default_rng(0).normal(size=(32, 32)), "bias": np.zeros(32)}
    found = decoded(
        tqcodec.encode(tensors, Settings(bits=5), refine=lambda _: {"bias": np.ones(32)})
    )
    assert np.array_equal(found["bias"], np.ones(32))


@pytest.mark.parametrize(
    "wrong", [np.zeros(3, np.float32), np.zeros((1, 48), np.float32), np.zeros(48, np.int64)]
)
def test_refined_side_tensors_of_another_shape_or_type(wrong: Array) -> None:
    net = network()
    with pytest.raises(EncodeError, match=r"dense\.bias"):
        tqcodec.encode(
            net.tensors,
            Settings(quality=40, effort=1),
            net.statistics,
            refine=lambda _: {"dense.bias": wrong},
        )
