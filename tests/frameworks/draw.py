# SPDX-License-Identifier: Apache-2.0
"""Random layers of which the guests draw arguments in their own words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class Draw:
    """Random layers, legal or nearly so: kernels below, at and above the stride, odd and even, dilated or not."""

    def __init__(self, seed: int, ranks: tuple[int, ...] = (1, 1, 2, 2, 3)) -> None:
        self.rng = np.random.default_rng(seed)
        self.rank = self.one(*ranks)
        self.size, self.kernel = (self.each(lambda: self.upto({1: 7, 2: 4, 3: 3}[self.rank])) for _ in range(2))
        self.stride = self.each(lambda: self.one(1, 1, 2, 2, 3, 4))
        self.dilation = (1,) * self.rank if self.rng.random() < 0.6 else self.each(lambda: self.upto(3))
        self.groups = self.one(1, 1, 1, 2, 3)
        self.channels = tuple(self.groups * self.upto(2) for _ in range(2))
        self.batch = self.upto(2)

    def one(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def upto(self, most: int, least: int = 1) -> int:
        return int(self.rng.integers(least, most + 1))

    def each(self, draw: Callable[[], int]) -> tuple[int, ...]:
        return tuple(draw() for _ in range(self.rank))

    def some(self, **words) -> dict[str, Any]:
        """A word, or none of it, half of the time each."""
        return {name: value for name, value in words.items() if self.rng.random() < 0.5}

    def short(self, values: tuple[int, ...]) -> int | tuple[int, ...]:
        """One int for all axes, where that says the same."""
        return values[0] if len(set(values)) == 1 and self.rng.random() < 0.5 else values

    @property
    def reach(self) -> list[int]:
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    def sizes(self, least: int, most: int) -> tuple[int, ...]:
        """Output sizes around the full one."""
        full = [(i - 1) * s + reach for i, s, reach in zip(self.size, self.stride, self.reach, strict=True)]
        return tuple(max(1, f + self.upto(most, least)) for f in full)

    def facts(self, kernel: bool = False) -> dict[str, Any]:
        """What the arrays tell; `kernel` for a framework that does not take its size as an argument."""
        known = {"input_size": self.size, "batch": self.batch, "in_channels": self.channels[0], "out_channels": self.channels[1]}
        return known | ({"kernel_size": self.kernel} if kernel else {})


def draw_torch(d: Draw):
    words = {"kernel_size": d.kernel, "stride": d.stride, "dilation": d.dilation}
    padding = d.each(lambda: d.upto(3, -1 if d.upto(30) == 1 else 0))
    words = {name: d.short(value) for name, value in (words | {"padding": padding}).items()} | {"groups": d.groups}
    if d.upto(3) == 1:
        least = [(i - 1) * s + reach - 2 * p for i, s, reach, p in zip(d.size, d.stride, d.reach, padding, strict=True)]
        return d.facts(), words | {"output_size": [m + d.upto(s - d.one(0, 1, 1, 1), 0) for m, s in zip(least, d.stride, strict=True)]}
    extra = tuple(d.upto(max(s, r) - d.one(0, 1, 1, 1), 0) for s, r in zip(d.stride, d.dilation, strict=True))
    return d.facts(), words | d.some(output_padding=extra)


def draw_onnx(d: Draw):
    words = {"kernel_shape": d.kernel, "strides": d.stride, "group": d.groups} | d.some(dilations=d.dilation)
    d.dilation = words.get("dilations", (1,) * d.rank)
    words |= d.some(output_padding=d.each(lambda: d.upto(2, 0)))
    padded = d.one({}, {"pads": [d.upto(3, 0) for _ in range(2 * d.rank)]}, {"auto_pad": d.one("VALID", "SAME_UPPER", "SAME_LOWER")})
    return d.facts(), words | padded | (d.one({}, {"output_shape": list(d.sizes(-4, 2))}))


def draw_tensorflow(d: Draw):
    d.groups, d.channels = 1, (d.upto(3), d.upto(3))
    padding = d.one("SAME", "SAME", "VALID", *[((0, 0), *((d.upto(3, 0), d.upto(3, 0)) for _ in "HW"), (0, 0))] * (d.rank == 2))
    same = tuple(i * s - d.upto(s if d.upto(9) == 1 else s - 1, 0) for i, s in zip(d.size, d.stride, strict=True))
    if padding == "SAME":
        sizes = same
    else:
        pads = [(0, 0)] * d.rank if padding == "VALID" else padding[1:-1]
        sizes = tuple(max(1, f - a - b) for f, (a, b) in zip(d.sizes(0, max(min(d.stride) - d.upto(2), 0)), pads, strict=True))
    words = {"strides": d.short(d.stride), "output_shape": (d.batch, *sizes, d.channels[1]), "padding": padding}
    return d.facts(kernel=True), words | ({"dilations": d.short(d.dilation)} if max(d.dilation) > 1 else {})


def draw_keras(d: Draw):
    d.groups, d.channels = 1, (d.upto(3), d.upto(3))
    if d.upto(9) > 1:
        d.stride, d.dilation = d.one((d.stride, (1,) * d.rank), ((1,) * d.rank, d.dilation))
    words = {"kernel_size": d.kernel, "strides": d.stride, "dilation_rate": d.dilation}
    extra = d.each(lambda: d.upto(3, 0)) if d.upto(9) == 1 else tuple(d.upto(s - 1, 0) for s in d.stride)
    words = {name: d.short(value) for name, value in words.items()} | d.some(output_padding=extra)
    return d.facts(), words | {"padding": d.one("valid", "same")}


def draw_jax(d: Draw):
    d.groups, d.channels = 1, (d.upto(3), d.upto(3))
    pads = [(d.upto(reach + 2, -1), d.upto(reach + 2, -1)) for reach in d.reach]
    words = {"strides": d.stride, "padding": d.one("SAME", "VALID", pads, pads)} | d.some(rhs_dilation=d.dilation)
    words |= d.some(transpose_kernel=True, use_consistent_padding=True)
    spatial = "HWD"[: d.rank]
    numbers = (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
    return d.facts(kernel=True), words | ({"dimension_numbers": numbers} if d.upto(3) == 1 else {})


def one_group(d: Draw, most: int = 3) -> None:
    d.groups, d.channels = 1, (d.upto(most), d.upto(most))


def sizes_of_forward(d: Draw, padding: str) -> tuple[int, ...]:
    """Output sizes which a convolution maps back to the input's, or nearly so."""
    if padding == "SAME":
        return tuple(max(1, i * s - d.upto(s if d.upto(9) == 1 else s - 1, 0)) for i, s in zip(d.size, d.stride, strict=True))
    return d.sizes(0, max(min(d.stride) - d.upto(2), 0))


def draw_flax(d: Draw):
    one_group(d)
    pads = [(d.upto(reach + 2, -1), d.upto(reach + 2, -1)) for reach in d.reach]
    ints = [d.upto(reach + 1, 0) for reach in d.reach]
    padding = d.one("SAME", "VALID", pads, pads, ints, ints[0], *["CIRCULAR", "same"] * (d.upto(5) == 1))
    words = {"kernel_size": d.kernel if d.rank > 1 and d.upto(30) > 1 else d.short(d.kernel), "padding": padding}
    return d.facts(), words | d.some(strides=d.short(d.stride), kernel_dilation=d.short(d.dilation), transpose_kernel=True)


def draw_haiku(d: Draw):
    one_group(d)
    d.dilation = (1,) * d.rank
    pads = [(d.upto(reach + 2, -1), d.upto(reach + 2, -1)) for reach in d.reach]
    words = {"kernel_shape": d.short(d.kernel), "stride": d.short(d.stride), "padding": d.one("SAME", "VALID", pads)}
    if words["padding"] != pads or d.upto(20) == 1:
        words |= d.some(output_shape=d.short(sizes_of_forward(d, words["padding"])))
    spatial = "DHW"[-d.rank :]
    formats = ("channels_first", "NC...", f"NC{spatial}", "channels_last", f"N{spatial}C", "N...C")
    return d.facts(), words | d.some(data_format=d.one(*formats))


def draw_equinox(d: Draw):
    words = {"kernel_size": d.kernel, "stride": d.stride, "dilation": d.dilation}
    pads = [(d.upto(3, -2), d.upto(3, -2)) for _ in d.size]
    ints = d.short(d.each(lambda: d.upto(3, 0)))
    words = {name: d.short(value) for name, value in words.items()} | {"groups": d.groups}
    words["padding"] = d.one(pads, pads, ints, "SAME", "same", "SAME_LOWER", "VALID", *["FULL"] * (d.upto(9) == 1))
    return d.facts(), words | d.some(output_padding=tuple(d.upto(s - d.one(0, 1, 1, 1, 1), 0) for s in d.stride))


def draw_mlx(d: Draw):
    if d.rank == 3 and d.upto(9) > 1:
        one_group(d)
    most = [reach - d.one(0, 1, 1, 1) for reach in d.reach]
    padding = tuple(d.upto(m, -2) for m in most)
    words = {"stride": d.stride, "padding": padding, "dilation": d.dilation} | d.some(output_padding=d.each(lambda: d.upto(4, -2)))
    return d.facts(kernel=True), {n: d.short(v) if d.rank > 1 else v[0] for n, v in words.items()} | {"groups": d.groups}


def draw_tflite(d: Draw):
    one_group(d)
    if d.rank == 2:
        d.dilation = (1, 1)
    padding = d.one("SAME", "VALID")
    words = {"output_shape": (d.batch, *sizes_of_forward(d, padding), d.channels[1]), "padding": padding}
    letters = "dhw"[-d.rank :]
    words |= {f"stride_{letter}": step for letter, step in zip(letters, d.stride, strict=True)}
    dilations = {f"dilation_{letter}_factor": step for letter, step in zip(letters, d.dilation, strict=True)}
    return d.facts(kernel=True), words | (dilations if d.rank == 3 else {})


def draw_openvino(d: Draw):
    words = {"strides": d.stride} | d.some(dilations=d.dilation)
    d.dilation = words.get("dilations", (1,) * d.rank)
    words |= d.some(output_padding=d.each(lambda: d.upto(4, 0)), auto_pad=d.one("explicit", "same_upper", "SAME_LOWER", "valid"))
    least = -1 if d.upto(100) == 1 else 0
    pads = {"pads_begin": d.each(lambda: d.upto(3, least)), "pads_end": d.each(lambda: d.upto(3, 0))}
    words |= pads if d.upto(2) == 1 else {}
    facts = d.facts(kernel=True) | {"groups": d.groups}
    return facts, words | (d.one({}, {"output_shape": list(d.sizes(-4, 3))}))


def draw_ncnn(d: Draw):
    d.channels = tuple(d.groups * d.one(1, 2, 3, 4, 8, 16) for _ in range(2))  # multiples of what it packs together
    letters = "dhw"[-d.rank :]
    named = {"kernel": d.kernel, "stride": d.stride, "dilation": d.dilation}
    words = {f"{name}_{a}": value for name, values in named.items() for a, value in zip(letters, values, strict=True)}
    ends = [
        name
        for a in letters
        for name in {"d": ("pad_front", "pad_behind"), "h": ("pad_top", "pad_bottom"), "w": ("pad_left", "pad_right")}[a]
    ]
    extra = dict.fromkeys([{"d": "output_pad_behind", "h": "output_pad_bottom", "w": "output_pad_right"}[a] for a in letters])
    extra = d.one({}, {name: d.upto(3, 0) for name in extra})
    if d.upto(3) == 1:
        words["pad_left"] = d.one(-233, -234)
        words |= {f"output_{a}": max(1, size + min(extra.values(), default=0)) for a, size in zip(letters, d.sizes(-3, 0), strict=True)}
    elif d.upto(8) > 1:
        words |= {name: d.upto(3, -1 if d.upto(60) == 1 else 0) for name in ends}
    return d.facts(), words | extra | ({"group": d.groups} if d.groups > 1 else {})


def draw_coreml(d: Draw):
    words = {"strides": d.stride, "groups": d.groups} | d.some(dilations=d.dilation)
    d.dilation = words.get("dilations", (1,) * d.rank)
    kind = d.one("custom", "custom", "valid", "same")
    words |= {"pad_type": kind} | ({"pad": [d.upto(2, 0) for _ in range(2 * d.rank)]} if kind == "custom" else {})
    return d.facts(kernel=True), words


def draw_scipy(d: Draw):
    one_group(d, 1)
    d.dilation = (1,)
    return d.facts(kernel=True), {"up": d.stride[0]} | ({"down": d.upto(2)} if d.upto(20) == 1 else {})
