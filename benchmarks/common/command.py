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


def parse_networks(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse with an option `--network`: a list of (name, builder, arguments...), at least one."""
    parser.add_argument(
        "--network",
        action="append",
        required=True,
        nargs="+",
        metavar=("NAME", "BUILDER"),
        help="a name, a builder and its arguments; may be given several times",
    )
    options = parser.parse_args()
    if any(len(network) < 2 for network in options.network):
        parser.error("--network takes a name, a builder and its arguments")
    return options
