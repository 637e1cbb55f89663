"""Encoding a module or a state dict: its statistics, its inputs held out, the bound on its loss."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import NoneType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from tqcodec import api
from tqcodec.common.atomic import check_writable, replacing
from tqcodec.common.checks import PathLike, need, need_function
from tqcodec.common.progress import Progress
from tqcodec.encoder.findings import EncodeReport, Finding
from tqcodec.encoder.kinds import Origin
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import Statistics
from tqcodec.errors import EncodeError, EncodeWarning
from tqcodec.format.container import EVERYTHING
from tqcodec.torch import folding, search, tuning
from tqcodec.torch import held_out as holding
from tqcodec.torch.calibration.calibrate import calibrate
from tqcodec.torch.checkpoint import decoded, origins, to_arrays
from tqcodec.torch.search import Evaluate
from tqcodec.torch.versions import versions_of

Model = nn.Module | Mapping[str, torch.Tensor]


def encode(
    model: Model,
    settings: Settings | None = None,
    statistics: Statistics | None = None,
    *,
    tune: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    synthetic: Iterable[Any] | None = None,
    target_drop: float | None = None,
    evaluate: Evaluate | None = None,
    progress: Progress | None = None,
    verify: bool = True,
    report: EncodeReport | None = None,
) -> bytes:
    """A `.tqc` file for a module or a state dict; what is not said here is as in `tqcodec.encode`.

    Better a module: it tells weights from buffers, which are exact but for running statistics. A
    model alone is encoded without data. Much better, also where there is no data, are `synthetic`
    inputs; best are `statistics` of real ones.

    With `target_drop` and `evaluate` the smallest file whose network is still good enough is sought
    by measuring about 8 files, each at other bits per weight; the file returned is one of them. The
    settings then hold no other target. Without labels, hold it against the original:

        reference = Reference(model, batches)
        encode(model, target_drop=1, evaluate=lambda m: reference.compare(m).agreement.value)

    Args:
        statistics: of `calibrate`, on the same network.
        tune: batches as for `calibrate`, best the same, in random order: biases and batch
            normalisation are tuned on them to the decoded weights (`tqcodec.torch.tuning`). They
            are in the file anyway, so this costs time only. Needs a module. They are gone through
            once for each file that is made.
        held_out: batches that neither statistics nor tuning had. On them each file is held against
            one of its size by weights alone, and the better one is taken
            (`tqcodec.torch.held_out`); the report says which. Needs a module.
        synthetic: batches of `synthetic_inputs`, in place of `statistics`, `tune` and `held_out`,
            which come from them: every eighth batch is held out. The file says that samples were
            made up. Needs a module.
        target_drop: the most that the number of `evaluate` may fall.
        evaluate: called with the module, then with a copy of it that holds decoded weights; gives a
            number, such as accuracy in per cent: higher is better.

    Raises:
        EncodeError: tensors or settings that cannot be encoded as asked; a drop beyond the bound
            even at 8 bits per weight.
    """
    need("the model", model, (nn.Module, Mapping), "an nn.Module or a state dict")
    need("settings", settings, (Settings, NoneType), "tqcodec.Settings")
    need("statistics", statistics, (Mapping, NoneType), "tqcodec.Statistics")
    for name, batches in (("tune", tune), ("held_out", held_out), ("synthetic", synthetic)):
        need(name, batches, (Iterable, NoneType), "batches")
        if batches is not None and not isinstance(model, nn.Module):
            raise EncodeError(f"{name} needs a network (nn.Module), not a state dict")
    need_function("evaluate", evaluate)
    job = _prepared(model, settings, statistics, tune, held_out, synthetic, progress, verify)
    files: list[holding.Made] = []

    def encoded(settings: Settings) -> bytes:
        files.append(job.file(settings))
        return files[-1][0]

    if target_drop is None and evaluate is None:
        data = encoded(job.settings)
    else:
        data = search.smallest(model, encoded, job.settings, target_drop, evaluate, progress)
    found = next(one for file, one in files if file is data)
    found.warn(stacklevel=3)
    if report is not None:
        vars(report).update(vars(found))
    return data


def save(
    model: Model,
    path: PathLike,
    settings: Settings | None = None,
    statistics: Statistics | None = None,
    *,
    tune: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    synthetic: Iterable[Any] | None = None,
    target_drop: float | None = None,
    evaluate: Evaluate | None = None,
    progress: Progress | None = None,
    verify: bool = True,
    report: EncodeReport | None = None,
) -> None:
    """`encode` into a file, which appears whole or not at all; errors as of `tqcodec.save`."""
    check_writable(path)
    data = encode(
        model,
        settings,
        statistics,
        tune=tune,
        held_out=held_out,
        synthetic=synthetic,
        target_drop=target_drop,
        evaluate=evaluate,
        progress=progress,
        verify=verify,
        report=report,
    )
    with replacing(pathlib.Path(path)) as temporary:
        temporary.write_bytes(data)


@dataclass(frozen=True, eq=False)
class _Job:
    """What is the same for all files that are made of a network.

    Attributes:
        arrays: its state dict, in inference form where that is asked for.
        versions: of its modules, as metadata.
        settings: of the file, before a search chooses its bits.
        statistics: of calibration, None without.
        progress: as of `encode`.
        verify: likewise.
        origins: of the arrays; None for a state dict without a network.
        refine: tunes side tensors to a file, None without.
        judge: compares with a file by weights alone, None without.
        noted: what the inference form says.
    """

    arrays: Mapping[str, NDArray[Any]]
    versions: dict[str, str]
    settings: Settings
    statistics: Statistics | None
    progress: Progress | None
    verify: bool
    origins: Mapping[str, Origin] | None = None
    refine: Callable[[bytes], dict[str, NDArray[Any]]] | None = None
    judge: holding.Judge | None = None
    noted: Finding | None = None

    def file(self, settings: Settings) -> holding.Made:
        """The file of some settings, and its report."""
        if self.judge is None:
            return self._made(settings)
        plain = replace(self, statistics=None, refine=None)
        return self.judge.better(settings, self._made, plain._made)

    def _made(self, settings: Settings) -> holding.Made:
        metadata = self.versions | dict(settings.metadata)
        report = EncodeReport()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EncodeWarning)  # said later, of the file that it is
            data = api.encode(
                self.arrays,
                replace(settings, metadata=tuple(metadata.items())),
                self.statistics,
                origins=self.origins,
                refine=self.refine,
                progress=self.progress,
                verify=self.verify,
                report=report,
            )
        if self.noted is not None:
            report.findings.insert(0, self.noted)
        return data, report


def _prepared(
    model: Model,
    settings: Settings | None,
    statistics: Statistics | None,
    tune: Iterable[Any] | None,
    held_out: Iterable[Any] | None,
    synthetic: Iterable[Any] | None,
    progress: Progress | None,
    verify: bool,
) -> _Job:
    """Calibrate on made-up inputs, fold and take batches apart where that is asked for."""
    settings = settings if settings is not None else Settings()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    arrays, versions = to_arrays(state), versions_of(state)
    if not isinstance(model, nn.Module):  # and so without batches
        return _Job(arrays, versions, settings, statistics, progress, verify)
    if synthetic is not None:
        if any(one is not None for one in (statistics, tune, held_out)):
            raise EncodeError("synthetic stands for statistics, tune and held_out: give either")
        tune, held_out = holding.split(synthetic)
        statistics = calibrate(model, tune, probes=None, progress=progress).made_up()
    judge = holding.Judge(model, held_out) if held_out is not None else None
    known, noted = origins(model), None
    if settings.inference:
        folded = folding.fold(model, arrays, settings)
        arrays, known, noted = folded.arrays, folded.origins(known), folded.finding()
        statistics = folded.statistics(statistics) if statistics is not None else None
        settings = replace(settings, inference=bool(folded.constants))
    refine = None
    if tune is not None:
        made_up = any(one.synthetic for one in (statistics or Statistics({})).values())
        temperatures = tuning.MADE_UP if made_up else tuning.TEMPERATURES
        refine = partial(_tuned, model, tune, temperatures, progress)
    return _Job(
        arrays, versions, settings, statistics, progress, verify, known, refine, judge, noted
    )


def _tuned(
    model: nn.Module,
    batches: Iterable[Any],
    temperatures: Sequence[float],
    progress: Progress | None,
    data: bytes,
) -> dict[str, NDArray[Any]]:
    """The side tensors of a file, tuned to its weights."""
    state = decoded(data, limit=EVERYTHING)
    tuned = tuning.tune(model, state, batches, temperatures=temperatures, progress=progress)
    return to_arrays(tuned)
