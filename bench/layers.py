# SPDX-License-Identifier: Apache-2.0
"""The layers of layers.csv, and how they are chosen."""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterable
from pathlib import Path

from tconv import ArgumentError, Spec
from tconv._bench.layer import Layer

LIST = Path(__file__).with_name("layers.csv")

# One or two of every class, none so large that a slow peer takes the three minutes for itself.
QUICK = (
    "dcgan64_l2_b1", "dcgan64_l5", "pix2pix_unet256_512_128_32", "cyclegan256_up1", "fsrcnn_x2", "lapsrn_img", "unet2d_256_128",
    "centernet_dla_dw_f2", "hifigan_v1_infer5s_up1", "htdemucs_time_48", "istft_pt120982", "monai_unet3d_128_64",
)  # fmt: skip


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
