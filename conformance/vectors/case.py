"""What a vector is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from layout.file import File, Tensor


@dataclass(frozen=True)
class Case:
    """One vector.

    Attributes:
        verdict: "accept", "reject" or "unsupported".
        name: name of the file without its ending.
        section: of the specification.
        description: one line.
        data: the file.
        rule: tag of the rule that the file breaks, or that says that it is unsupported.
        tensors: what an accepted file holds; None where nobody can decode it.
        metadata: likewise.
        limit: True where a decoder is likely to decline, which is as right as the verdict.
    """

    verdict: str
    name: str
    section: str
    description: str
    data: bytes
    rule: str | None = None
    tensors: Sequence[Tensor] | None = None
    metadata: dict[str, str] | None = None
    limit: bool = False

    @property
    def path(self) -> str:
        """Folder and name, without the ending."""
        return f"{'limit' if self.limit else self.verdict}/{self.name}"


def accept(
    name: str, section: str, description: str, file: File, data: bytes | None = None
) -> Case:
    """A file that every decoder decodes; `data` where it is not just `file.build()`."""
    return Case(
        verdict="accept",
        name=f"{section}-{name}",
        section=section,
        description=description,
        data=file.build() if data is None else data,
        tensors=[_untied(file.tensors, tensor) for tensor in file.tensors],
        metadata=dict(file.metadata),
    )


def _untied(tensors: Sequence[Tensor], tensor: Tensor) -> Tensor:
    if tensor.same_as is None:
        return tensor
    return replace(tensors[tensor.same_as], name=tensor.name)


def reject(name: str, section: str, description: str, file: File | bytes) -> Case:
    """A malformed file. The name is the rule's tag, with @ and a variant if there are several."""
    return Case("reject", name, section, description, _data(file), name.partition("@")[0])


def unsupported(name: str, rule: str, section: str, description: str, file: File | bytes) -> Case:
    """A legal file that is beyond a decoder of this version."""
    return Case("unsupported", name, section, description, _data(file), rule)


def _data(file: File | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.build()
