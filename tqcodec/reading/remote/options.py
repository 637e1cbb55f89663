"""Options of reading over networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tqcodec.common.checks import need, need_number


@dataclass(frozen=True)
class Remote:
    """How files with an address are read.

    Attributes:
        timeout: seconds after which a connection that gives no byte is given up.
        attempts: how often bytes are asked for before an error, where another attempt is worth it:
            the connection breaks or is not answered, an answer is too short, or the server says
            429 or 5xx. Waiting times double, from half a second.
        connections: requests at once.
        memory: bytes of the file that are held, or those of one tensor, where they are more.
        storage: options of the file system in fsspec, such as `key` and `secret` of an S3 store;
            of http and https the one option `headers`, a mapping.
    """

    timeout: float = 30.0
    attempts: int = 5
    connections: int = 4
    memory: int = 64 << 20
    storage: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need("timeout", self.timeout, (int, float), "a number of seconds")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"tqcodec: timeout is {self.timeout}, not a positive number")
        need_number("attempts", self.attempts, 1)
        need_number("connections", self.connections, 1)
        need_number("memory", self.memory, 0)
        need("storage", self.storage, Mapping, "a mapping")
