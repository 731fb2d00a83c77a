# SPDX-License-Identifier: Apache-2.0
"""A network that alternates PyTorch's layers with ours, against the sum of its parts (`python -m bench mixed`).

The network repeats: PyTorch's 3-wide convolution on the layer's input, our Operator on the same memory, PyTorch's 3-wide
convolution on its output. Its parts, all convolutions and all Operators, run in processes of their own that hold nothing
of the other library, so that whatever the two take from each other in one process (threads that spin, caches) shows as a
ratio above 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tconv import Spec
from tconv._bench import machine, worker
from tconv._bench.layer import Array, Layer
from tconv._bench.measure import Setting, measure, processes
from tconv._bench.progress import Progress

from . import checkout
from . import layers as listed
from .store import Store
from .view import View, markdown, ms

REPEAT = 4
LIMIT = 1.10  # the largest ratio that passes
SETTING = Setting(rounds=9, seconds=6.0, judged=False)  # the output of convolutions alone is no layer's
LAYERS = ("dcgan64_l2_b1", "dcgan64_l5", "pix2pix_unet256_512_128_32", "unet2d_256_128", "enet_b4", "hifigan_v1_infer5s_up1")


class Whole:
    """Convolution, Operator, convolution, REPEAT times."""

    note, version = "", ""
    convolves, transposes = True, True

    def __init__(self, threads: int) -> None:
        self.threads = threads
        if self.convolves:
            import torch

            if self.transposes:
                from tconv import _torch_team

                _torch_team.join()  # as `import tconv.torch` does

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
    parser.add_argument("--rounds", type=int, default=SETTING.rounds)
    parser.add_argument("--seconds-per-layer", type=float, default=SETTING.seconds)
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"the largest ratio that passes (default {LIMIT})")
    parser.add_argument("--into", type=Path, metavar="RESULT.json", help="keep the figures in a file of results of this commit and machine")
    asked = parser.parse_args(words)
    chosen = layers(asked.layers)
    store = Store.of(asked.into, {"commit": checkout.commit(), "machine": machine.facts()})
    with Progress(len(chosen)) as progress:
        reason = run(
            chosen, asked.threads, SETTING._replace(rounds=asked.rounds, seconds=asked.seconds_per_layer), store, progress, again=True
        )
    if reason:
        raise SystemExit(f"bench: {reason}")
    return int(max(ratio(entry) for entry in store.data["mixed"]) > asked.limit)


def layers(patterns: Sequence[str] = LAYERS) -> list[Layer]:
    """The layers of the measurement."""
    return listed.select(patterns, listed.read())


def run(chosen: Sequence[Layer], threads: int, setting: Setting, store: Store, progress: Progress, again: bool = False) -> str | None:
    """Keep an entry for every layer that the store lacks, or for all `again`; the reason, if something could not be measured."""
    keys = {layer: {"layer": layer.name, "problem": str(layer.spec), "threads": threads} for layer in chosen}
    left = [layer for layer in chosen if again or not store.has("mixed", keys[layer])]
    for layer in chosen:
        if layer not in left:
            progress.done(f"{layer.name}, mixed: there already")
    if not left:
        return None
    with processes(list(MIXED), threads, module="bench.mixed") as (running, said):
        reasons = [f"mixed: {name}: {answer['reason']}" for name, answer in said.items() if "reason" in answer]
        for layer in left if not reasons else ():
            progress.now(f"{layer.name}, mixed")
            cells = measure(layer, running, setting)
            reasons += [f"mixed: {layer.name}: {name}: {cell['reason']}" for name, cell in cells.items() if "reason" in cell]
            if not reasons:
                entry = {name: cells[name]["median"] for name in MIXED}
                store.keep("mixed", keys[layer], entry)
                progress.done(f"{layer.name:28} {_line(entry)}")
    for reason in reasons:
        progress.line(reason)
    return reasons[0] if reasons else None


def ratio(entry: dict[str, float]) -> float:
    """The whole over its parts."""
    return entry["mixed"] / (entry["mixed_torch"] + entry["mixed_tconv"])


def _line(entry: dict[str, float]) -> str:
    whole, torch, ours = (entry[name] * 1e3 for name in MIXED)
    return f"whole {whole:9.3f} ms, parts {torch:9.3f} + {ours:9.3f} ms, ratio {ratio(entry):.3f}"


def table(view: View) -> str:
    """Every layer of the measurement: the whole, its parts, and their ratio."""
    entries = [entry for entry in view.data["mixed"] if entry["threads"] == view.threads]
    if not entries:
        return f"Not measured in this run with {view.threads} threads."
    lines = [[e["layer"], *(ms(e[name]) for name in MIXED), f"{ratio(e):.2f}"] for e in entries]
    return markdown(["layer", "whole, ms", "PyTorch alone", "Operator alone", "whole over parts"], lines)


if __name__ == "__main__":
    peer, count = sys.argv[1:]
    worker.serve(lambda: MIXED[peer](int(count)))
