"""Whether targets are reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common.tables import print_aligned


@dataclass(frozen=True)
class Verdict:
    """One target on one network, with what was reached."""

    network: str
    target: str
    reached: float
    passed: bool


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print one line for each target, then the count of those reached."""
    print("\nTargets\n")
    lines = [["network", "target", "reached", ""]]
    lines += [
        [v.network, v.target, f"{v.reached:.3f}", "pass" if v.passed else "FAIL"] for v in verdicts
    ]
    print_aligned(lines)
    print(f"\n{sum(v.passed for v in verdicts)} of {len(verdicts)} targets reached")
