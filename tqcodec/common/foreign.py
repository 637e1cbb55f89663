"""What other libraries and the user's code raise, for our messages. Imports nothing else."""

from __future__ import annotations

import re

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")


def message(error: BaseException) -> str:
    """All that an error says, in one line and without codes for a terminal; its type if nothing."""
    text = ESCAPES.sub("", str(error))
    text = "".join(c if c.isprintable() or c.isspace() else " " for c in text)
    return " ".join(text.split()) or type(error).__name__


def described(error: BaseException) -> str:
    """Its type and all that it says, in one line."""
    name, text = type(error).__name__, message(error)
    return name if text == name else f"{name}: {text}"
