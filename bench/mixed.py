# SPDX-License-Identifier: Apache-2.0
"""A network that alternates PyTorch's layers with ours, against the sum of its parts (`python -m bench mixed`).

The network repeats: PyTorch's 3-wide convolution on the layer's input, our Operator on the same memory, PyTorch's 3-wide
convolution on its output. Its parts, all convolutions and all Operators, run in processes of their own that hold nothing
of the other library, so that whatever the two take from each other in one process (threads that spin, caches) shows as a
ratio above 1.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from tconv import Spec

from . import layers
from .layers import Array
from .measure import measure, processes

REPEAT = 4
LAYERS = ("dcgan64_l2_b1", "dcgan64_l5", "pix2pix_unet256_512_128_32", "unet2d_256_128", "enet_b4", "hifigan_v1_infer5s_up1")


class Whole:
    """Convolution, Operator, convolution, REPEAT times."""

    note, version = "", ""
    convolves, transposes = True, True

    def __init__(self, threads: int) -> None:
        self.threads = threads
        if self.convolves:
            import torch

            torch.set_num_threads(threads)
            torch.set_grad_enabled(False)
            self.torch = torch

    def prepare(self, spec: Spec, x: Array, w: Array) -> Any:
        before, ours, after = self._before(spec, x), self._ours(spec, w), self._after(spec)
        middle = ours(x)

        def whole() -> Any:
            for _ in range(REPEAT):
                y = after(ours(before()))
            return y

        def convolutions() -> Any:
            for _ in range(REPEAT):
                before()
                after(middle)
            return middle

        def operators() -> Any:
            for _ in range(REPEAT):
                y = ours(x)
            return y

        self.y = middle
        return whole if self.convolves and self.transposes else convolutions if self.convolves else operators

    def _before(self, spec: Spec, x: Array) -> Any:
        if not self.convolves:
            return lambda: x
        layer, data = self._convolution(spec.rank, spec.in_channels), self.torch.from_numpy(x)
        return lambda: layer(data).numpy()

    def _after(self, spec: Spec) -> Any:
        if not self.convolves:
            return lambda y: y
        layer = self._convolution(spec.rank, spec.out_channels)
        return lambda y: layer(self.torch.from_numpy(y))

    def _ours(self, spec: Spec, w: Array) -> Any:
        if not self.transposes:
            y = np.ones(spec.output_shape, np.float32)
            return lambda x: y
        import tconv

        return tconv.Operator(w, stride=spec.stride, padding=spec.crop, dilation=spec.dilation, groups=spec.groups, threads=self.threads)

    def _convolution(self, rank: int, channels: int) -> Any:
        return getattr(self.torch.nn, f"Conv{rank}d")(channels, channels, 3, padding=1)

    def result(self, y: Any) -> Array:
        return np.asarray(self.y)


class Convolutions(Whole):
    transposes = False


class Operators(Whole):
    convolves = False


MIXED = {"mixed": Whole, "mixed_torch": Convolutions, "mixed_tconv": Operators}


def main(words: list[str]) -> int:
    """Print the ratio of the whole to its parts, layer by layer; the exit status tells whether all are within --limit."""
    parser = argparse.ArgumentParser(
        "python -m bench mixed", description="PyTorch's layers alternating with ours, against the sum of the parts."
    )
    parser.add_argument("--layers", nargs="+", default=list(LAYERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds-per-layer", type=float, default=6.0)
    parser.add_argument("--limit", type=float, default=1.10, help="the largest ratio that passes (default 1.10)")
    asked = parser.parse_args(words)
    ratios = []
    with processes(list(MIXED), asked.threads) as (running, said):
        for name, answer in said.items():
            if "reason" in answer:
                raise SystemExit(f"bench: {name}: {answer['reason']}")
        for layer in layers.select(asked.layers, layers.read()):
            cells = measure(layer, running, asked.rounds, asked.seconds_per_layer)
            for name, cell in cells.items():
                if "reason" in cell:
                    raise SystemExit(f"bench: {layer.name}: {name}: {cell['reason']}")
            ratios.append(_print(layer.name, *(cells[name]["median"] for name in MIXED)))
    return int(max(ratios) > asked.limit)


def _print(name: str, whole: float, torch: float, ours: float) -> float:
    ratio = whole / (torch + ours)
    print(f"{name:28} whole {whole * 1e3:9.3f} ms, parts {torch * 1e3:9.3f} + {ours * 1e3:9.3f} ms, ratio {ratio:.3f}", flush=True)
    return ratio
