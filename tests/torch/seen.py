"""What tests give for `outputs`: it keeps what comes, and is false for as long as nothing has."""

from __future__ import annotations

from torch import Tensor


class Seen(list[Tensor]):
    def __call__(self, outputs: Tensor) -> Tensor:
        self.append(outputs)
        return outputs
