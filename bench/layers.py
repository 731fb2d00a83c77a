# SPDX-License-Identifier: Apache-2.0
"""The layers that are timed: names, geometries, classes, and the arrays they run on."""

from __future__ import annotations

import csv
import fnmatch
import zlib
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tconv import ArgumentError, Spec

LIST = Path(__file__).with_name("layers.csv")
Array = np.ndarray[Any, np.dtype[Any]]

# One or two of every class, none so large that a slow peer takes the three minutes for itself.
QUICK = (
    "dcgan64_l2_b1", "dcgan64_l5", "pix2pix_unet256_512_128_32", "cyclegan256_up1", "fsrcnn_x2", "lapsrn_img", "unet2d_256_128",
    "centernet_dla_dw_f2", "hifigan_v1_infer5s_up1", "htdemucs_time_48", "istft_pt120982", "monai_unet3d_128_64",
)  # fmt: skip


class Layer(NamedTuple):
    """A geometry with a name and where it comes from."""

    name: str
    spec: Spec
    source: str = ""

    @property
    def bytes(self) -> int:
        """Bytes that must move: input, weight and output once, in float32."""
        return 4 * sum(prod(s) for s in (self.spec.input_shape, self.spec.weight_shape, self.spec.output_shape))

    @property
    def kind(self) -> str:
        """The class of shape that a table groups by."""
        return classify(self.spec)

    def arrays(self) -> tuple[Array, Array]:
        """x (N, Cin, *I) and w (Cin, Cout / groups, *k), float32, the same numbers in every process."""
        random = np.random.default_rng(zlib.crc32(str(self.spec).encode()))
        return random.standard_normal(self.spec.input_shape, np.float32), random.standard_normal(self.spec.weight_shape, np.float32)


def classify(spec: Spec) -> str:
    """The first class of docs/design.md that a geometry belongs to; what limits a kernel differs between classes.

    >>> classify(Spec.parse("n16 c256:128 i8x8 k4 s2 p1")), classify(Spec.parse("c1026:1 i224 k1024 s256"))
    ('small maps', 'long kernels')
    """
    tests = (
        ("tiny", spec.macs < 1e5),
        ("depthwise, small groups", spec.groups > 1 and max(spec.in_channels, spec.out_channels) <= 4 * spec.groups),
        ("long kernels", spec.rank == 1 and spec.kernel_size[0] >= 64),
        ("few outputs", spec.out_channels <= 8 * spec.groups),
        ("small maps", spec.input_size[-1] < 16),
        ("non-overlapping", all(a.extent <= a.stride for a in spec.axes)),
    )
    return next((name for name, holds in tests if holds), "overlapping")


def read(path: Path = LIST) -> list[Layer]:
    """The layers of a list in PyTorch's words, one a row."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_layer(row) for row in csv.DictReader(file)]


def select(patterns: Iterable[str], layers: list[Layer]) -> list[Layer]:
    """The layers whose name fits a pattern, or whose geometry a pattern spells out as a problem line ("c3:8 i5 k4 s2")."""
    chosen: list[Layer] = []
    for pattern in patterns:
        found = [layer for layer in layers if fnmatch.fnmatchcase(layer.name, pattern)]
        if not found:
            found = [_own(pattern, layers)]
        chosen += [layer for layer in found if layer not in chosen]
    return chosen


def _own(problem: str, layers: list[Layer]) -> Layer:
    try:
        spec = Spec.parse(problem)
    except ArgumentError as error:
        raise SystemExit(f"bench: no layer is called {problem!r} and it is no problem line: {error}\n"
                         f"layers: {' '.join(layer.name for layer in layers)}") from None  # fmt: skip
    return Layer(str(spec), spec, "your own")


def _layer(row: dict[str, str]) -> Layer:
    numbers = {key: tuple(int(n) for n in row[key].split("x")) for key in ("in_spatial", "kernel", "stride", "padding", "output_padding", "dilation")}  # fmt: skip
    spec = Spec.build(numbers.pop("in_spatial"), numbers.pop("kernel"), **numbers, groups=int(row["groups"]), batch=int(row["N"]),
                      in_channels=int(row["Cin"]), out_channels=int(row["Cout"]))  # fmt: skip
    return Layer(row["name"], spec, row["source"])
