"""The tree of errors.

    TQCError
      EncodeError(ValueError)      these tensors or settings cannot be encoded as asked
        TargetError                no file of theirs is as small as asked
      DecodeError(ValueError)      these bytes cannot be decoded
        MalformedError             a rule of the specification is broken
        UnsupportedError           legal, but needs a newer decoder
        LimitError                 more than the caller's limits allow
      EvaluationError              a network, weights and data that do not go together
      InternalError                a fault of tqcodec: it made a file that is not right

and one warning, EncodeWarning(UserWarning): it is done, and there is something to know of it.

Imports the version alone, so that every layer may import it.
"""

from __future__ import annotations

from tqcodec.version import VERSION


class TQCError(Exception):
    """Base of every error that tqcodec raises on purpose."""


class EncodeError(TQCError, ValueError):
    """These tensors or settings cannot be encoded as asked."""


class TargetError(EncodeError):
    """No file of these tensors is as small as asked."""


class DecodeError(TQCError, ValueError):
    """These bytes cannot be decoded.

    Attributes:
        rule: tag of the rule of `spec/tqc.md` that is broken, such as ``table.sum``.
        offset: position in bytes from the start of the file, or None where it is not known.
        tensor: name of the tensor concerned, or None.
    """

    verdict = "cannot decode"

    def __init__(
        self, rule: str, message: str, offset: int | None = None, tensor: str | None = None
    ) -> None:
        super().__init__(rule, message, offset, tensor)
        self.rule = rule
        self.message = message
        self.offset = offset
        self.tensor = tensor

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at byte {self.offset}"
        if self.tensor is not None:
            place += f"{',' if place else ''} tensor {self.tensor!r}"
        return f"{self.verdict}: [{self.rule}]{place}: {self.message}"


class MalformedError(DecodeError):
    """A rule of the specification is broken."""

    verdict = "malformed"


class UnsupportedError(DecodeError):
    """Legal, but this decoder does not know the feature."""

    verdict = "unsupported"


class LimitError(DecodeError):
    """Decoding would take more than the caller's limits allow."""

    verdict = "limit"


class EvaluationError(TQCError):
    """A network, decoded weights and data that do not go together."""


class InternalError(TQCError):
    """A fault of tqcodec: what it made breaks a rule, or does not decode to what went in.

    Attributes:
        rule: tag of the rule of `spec/tqc.md` that is broken, or ``source.names``, ``.type``,
            ``.tie``, ``.metadata``, ``.exact``, ``.bound``, ``.snr``, ``.decoders`` for what is not
            as it went in.
        tensor: name of the tensor concerned, or None.
    """

    def __init__(self, rule: str, message: str, tensor: str | None = None) -> None:
        super().__init__(rule, message, tensor)
        self.rule = rule
        self.message = message
        self.tensor = tensor

    def __str__(self) -> str:
        place = "" if self.tensor is None else f" tensor {self.tensor!r}:"
        return f"internal error: [{self.rule}]{place} {self.message} (a fault of tqcodec {VERSION})"


class EncodeWarning(UserWarning):
    """What was asked for is done, and there is something that its user should know."""
