# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]

class Problem:
    def __init__(
        self,
        batch: int,
        in_channels: int,
        out_channels: int,
        groups: int,
        size: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        crop: Sequence[tuple[int, int]],
        channels_last: bool,
        batched: bool,
    ) -> None: ...

class Stencil:
    def __init__(self, problem: Problem, forward: bool, double: bool, kernel: str, threads: int) -> None: ...
    @property
    def weight_elements(self) -> int: ...
    @property
    def kernel(self) -> str: ...
    @property
    def candidates(self) -> list[tuple[str, float | None, str]]: ...
    @property
    def threads(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def signature(self) -> list[int]: ...
    def apply(
        self, x: _Array, weight: _Array, bias: _Array | None, out: _Array, activation: int = 0, slope: float = 0.0
    ) -> None: ...
    def pack(self, weight: _Array, packed: _Array) -> None: ...
    def run(
        self, x: _Array, packed: _Array, bias: _Array | None, out: _Array, activation: int = 0, slope: float = 0.0
    ) -> None: ...

def grad_weight(problem: Problem, kernel: str, x: _Array, dy: _Array, grad: _Array, threads: int) -> None: ...
def isas() -> list[tuple[str, bool]]: ...
