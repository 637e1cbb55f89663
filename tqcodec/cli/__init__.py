"""The command line, ``tqcodec COMMAND``: over files of tensors, and networks that are run."""

from tqcodec.cli.commands import main

__all__ = ["main"]
