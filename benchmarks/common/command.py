"""Command lines of benchmarks."""

from __future__ import annotations

import argparse


def command_parser(name: str, text: str) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.NAME`, with the module's docstring as its help."""
    return argparse.ArgumentParser(
        f"python -m benchmarks.{name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
