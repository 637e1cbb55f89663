"""The verbs of `tqcodec` on PyTorch state dicts. The only package that imports torch.

    data = tqcodec.torch.encode(model, tqcodec.Settings(bits=3))
    model.load_state_dict(tqcodec.torch.decode(data))
    print(tqcodec.torch.compare(model, tqcodec.torch.decode(data), batches))

Better, with inputs that are made from the network where there is no data:

    batches = tqcodec.torch.synthetic_inputs(model, size=224, mean=127, std=128)
    data = tqcodec.torch.encode(model, tqcodec.Settings(bits=3), synthetic=batches)

Tied, non-contiguous and parameter tensors on any device just work; inputs are never changed.
Decoded tensors are on the CPU.
"""

from __future__ import annotations

import copy
import pathlib
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from tqcodec import api
from tqcodec.common.atomic import check_writable, replacing
from tqcodec.common.checks import PathLike, need, need_function, path_of
from tqcodec.common.progress import Progress
from tqcodec.encoder.findings import EncodeReport, Finding
from tqcodec.encoder.settings import Settings
from tqcodec.encoder.statistics import Statistics
from tqcodec.errors import EncodeError, EncodeWarning
from tqcodec.format.container import EVERYTHING, Container
from tqcodec.reading import streaming
from tqcodec.reading.file import Reading, TensorFile, need_bytes
from tqcodec.reading.remote.options import Remote
from tqcodec.reading.transform_tensor import TransformTensor
from tqcodec.torch import folding, search, tuning
from tqcodec.torch import held_out as holding
from tqcodec.torch.calibration.calibrate import calibrate
from tqcodec.torch.checkpoint import decoded, origins, to_arrays, to_tensor
from tqcodec.torch.evaluation import Comparison, Reference, compare
from tqcodec.torch.inference.network import network
from tqcodec.torch.retraining.loop import TrainingMoment
from tqcodec.torch.retraining.recipe import TrainingRecipe
from tqcodec.torch.retraining.retrain import retrain
from tqcodec.torch.search import Evaluate
from tqcodec.torch.synthetic.make import synthetic_inputs
from tqcodec.torch.synthetic.steps import SyntheticRecipe
from tqcodec.torch.versions import versions, versions_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Comparison",
    "Reference",
    "StateFile",
    "Statistics",
    "SyntheticRecipe",
    "TrainingMoment",
    "TrainingRecipe",
    "calibrate",
    "compare",
    "decode",
    "encode",
    "load",
    "network",
    "open",
    "retrain",
    "save",
    "stream",
    "synthetic_inputs",
]

Model = torch.nn.Module | Mapping[str, torch.Tensor]


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
    need("the model", model, (torch.nn.Module, Mapping), "an nn.Module or a state dict")
    need("settings", settings, (Settings, NoneType), "tqcodec.Settings")
    need("statistics", statistics, (Mapping, NoneType), "tqcodec.Statistics")
    for name, batches in (("tune", tune), ("held_out", held_out), ("synthetic", synthetic)):
        need(name, batches, (Iterable, NoneType), "batches")
        if batches is not None and not isinstance(model, torch.nn.Module):
            raise EncodeError(f"{name} needs a network (nn.Module), not a state dict")
    need_function("evaluate", evaluate)
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    arrays, kept = to_arrays(state), versions_of(state)
    known = origins(model) if isinstance(model, torch.nn.Module) else None

    if synthetic is not None:
        if any(one is not None for one in (statistics, tune, held_out)):
            raise EncodeError("synthetic stands for statistics, tune and held_out: give either")
        assert isinstance(model, torch.nn.Module), "checked above"
        tune, held_out = holding.split(synthetic)
        statistics = calibrate(model, tune, progress=progress).made_up()
    judge: holding.Judge | None = None
    if held_out is not None:
        assert isinstance(model, torch.nn.Module), "checked above"
        judge = holding.Judge(model, held_out)
    noted: Finding | None = None
    if settings is not None and settings.inference and isinstance(model, torch.nn.Module):
        folded = folding.fold(model, arrays, settings)
        arrays, known, noted = folded.arrays, folded.origins(known or {}), folded.finding()
        statistics = folded.statistics(statistics) if statistics is not None else None
        settings = replace(settings, inference=bool(folded.constants))

    def refine(data: bytes) -> dict[str, NDArray[Any]]:
        assert isinstance(model, torch.nn.Module) and tune is not None, "checked above"
        return to_arrays(
            tuning.tune(model, decode(data, limit=EVERYTHING), tune, progress=progress)
        )

    reports: list[holding.Made] = []

    def made(settings: Settings, calibrated: bool = True) -> holding.Made:
        metadata = {**kept, **dict(settings.metadata)}
        found = EncodeReport()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EncodeWarning)  # said below, of the file that it is
            data = api.encode(
                arrays,
                replace(settings, metadata=tuple(metadata.items())),
                statistics if calibrated else None,
                origins=known,
                refine=refine if calibrated and tune is not None else None,
                progress=progress,
                verify=verify,
                report=found,
            )
        if noted is not None:
            found.findings.insert(0, noted)
        return data, found

    def encoded(settings: Settings | None) -> bytes:
        settings = settings if settings is not None else Settings()
        if judge is None:
            file = made(settings)
        else:
            file = judge.better(settings, made, partial(made, calibrated=False))
        reports.append(file)
        return file[0]

    if target_drop is None and evaluate is None:
        data = encoded(settings)
    else:
        data = search.smallest(model, encoded, settings, target_drop, evaluate, progress)
    found = next(one for file, one in reports if file is data)
    found.warn(stacklevel=3)
    if report is not None:
        vars(report).update(vars(found))
    return data


def decode(data: bytes, **options: Unpack[Reading]) -> dict[str, torch.Tensor]:
    """The state dict of a `.tqc` file, as in `tqcodec.decode`.

    Where it was made of a module, or of a state dict of one, it is an OrderedDict with the versions
    of its modules (`_metadata`), so that `load_state_dict` takes it as it took the original.

    Raises:
        DecodeError: the bytes cannot be decoded.
    """
    need_bytes(data)
    return decoded(data, **options)


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


def load(path: PathLike, **options: Unpack[Reading]) -> dict[str, torch.Tensor]:
    """`decode` of a file. `open` takes less memory: it reads one tensor at a time."""
    return decoded(path_of(path), **options)


def open(source: bytes | PathLike, **options: Unpack[Reading]) -> StateFile:
    """A file whose tensors are decoded when they are asked for, as in `tqcodec.open`."""
    return StateFile(api.open(source, **options))


def stream(
    source: streaming.Source, *, limit: int | None = None, remote: Remote | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """`tqcodec.stream` of tensors of PyTorch."""
    found = streaming.stream(source, "weights", limit=limit, remote=remote)
    return ((name, to_tensor(array)) for name, array in found)


class StateFile(Mapping[str, torch.Tensor]):
    """Read-only mapping from names to tensors, each decoded when it is asked for."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file

    @property
    def container(self) -> Container:
        """The file as the format layer sees it."""
        return self._file.container

    def metadata(self) -> dict[str, str]:
        """The file's free strings."""
        return self._file.metadata()

    @property
    def _metadata(self) -> OrderedDict[str, dict[str, Any]] | None:
        """Versions of the modules, for `load_state_dict`."""
        return versions(self, self.metadata())

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __getitem__(self, name: str) -> torch.Tensor:
        return to_tensor(self._file[name])

    def transform(self, name: str) -> TransformTensor:
        """A tensor in the transform domain, in arrays of numpy, as of `TensorFile`."""
        return self._file.transform(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __copy__(self) -> StateFile:
        return StateFile(copy.copy(self._file))

    def close(self) -> None:
        """Close the file; tensors already decoded stay."""
        self._file.close()

    def __enter__(self) -> StateFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
