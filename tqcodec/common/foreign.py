"""What other libraries and the user's code raise, for our messages. Imports no library."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

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


def code_behind(error: BaseException) -> list[traceback.FrameSummary]:
    """Code of others that the last of ours had called, which raised it; empty if ours did."""
    package = str(Path(__file__).parents[1]) + os.sep
    frames = traceback.extract_tb(error.__traceback__)
    ours = [i for i, frame in enumerate(frames) if frame.filename.startswith(package)]
    return frames[ours[-1] + 1 :]
