# SPDX-License-Identifier: Apache-2.0
"""Whole networks in PyTorch, before and after `tconv.torch.swap_`: `python -m bench models`, and tables of its results.

Everything runs in one process, rounds interleaved: in each, every variant runs once, and medians over the rounds are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tconv._bench import machine
from tconv._bench.roofline import geometric_mean

from . import checkout
from .checkout import ROOT
from .regions import fill
from .store import now

FORMAT = "models-1"
MODES = ("eager", "compiled")

Variants = dict[str, Callable[[], object]]


class Settings(NamedTuple):
    """What is run, and how often."""

    networks: list[str]
    modes: list[str]
    threads: int
    rounds: int
    small: bool


def run(settings: Settings) -> dict[str, Any]:
    """All measurements."""
    import torch

    from .networks import NETWORKS

    torch.set_num_threads(settings.threads)
    torch._dynamo.config.recompile_limit = 64  # five variants of a network are compiled from the same code
    data: dict[str, Any] = {"format": FORMAT, "machine": machine.facts(), "commit": checkout.commit(), "torch": torch.__version__,
                            "started": now(), "settings": settings._asdict(), "networks": [], "layers": []}  # fmt: skip
    for name in settings.networks:
        network = NETWORKS[name]
        width, size = network.small if settings.small else network.usual
        torch.manual_seed(0)
        model, inputs = network.build(width), network.inputs(width, size)
        data["layers"] += [{"network": name, **row} for row in _layers(model, inputs, settings.rounds)]
        for mode in settings.modes:
            data["networks"] += [{"network": name, "mode": mode, "width": width, "size": size, "what": what,
                                  "seconds": _timed(variants, settings.rounds)}
                                 for what, variants in _variants(model, inputs, mode).items()]  # fmt: skip
            print(f"{name} {mode}: {data['networks'][-2:]}", flush=True)
    data["overhead"], data["beside"] = _overhead(settings.rounds), _beside(settings.rounds)
    return data | {"load": machine.load()}


def _variants(model: Any, inputs: tuple[Any, ...], mode: str) -> dict[str, Variants]:
    """Inference and a training step of a network as it is, swapped, and folded."""
    import torch

    import tconv.torch

    compiled = torch.compile if mode == "compiled" else lambda model: model
    swapped, folded = copy.deepcopy(model), copy.deepcopy(model).eval()
    tconv.torch.swap_(swapped)
    tconv.torch.fold_(folded)
    inference = {"torch": copy.deepcopy(model).eval(), "swapped": copy.deepcopy(swapped).eval(), "folded": folded}
    training = {"torch": copy.deepcopy(model).train(), "swapped": swapped.train()}
    return {"inference": {name: _inference(compiled(m), inputs) for name, m in inference.items()},
            "training step": {name: _training(compiled(m), inputs) for name, m in training.items()}}  # fmt: skip


def _inference(model: Any, inputs: tuple[Any, ...]) -> Callable[[], object]:
    import torch

    def call() -> None:
        with torch.no_grad():
            model(*inputs)

    return call


def _training(model: Any, inputs: tuple[Any, ...]) -> Callable[[], object]:
    import torch

    from .networks import train

    optimiser = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    return lambda: train(model, inputs, 1, optimiser)


def _layers(model: Any, inputs: tuple[Any, ...], rounds: int) -> list[dict[str, Any]]:
    """Every transposed convolution of a network alone, on the input it gets there: forward, and forward with backward."""
    import torch

    import tconv.torch

    seen: dict[str, Any] = {}
    found = {name: m for name, m in model.named_modules() if type(m).__name__.startswith("ConvTranspose")}
    hooks = [m.register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0].detach())) for name, m in found.items()]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    rows = []
    for name, theirs in found.items():
        mine = copy.deepcopy(theirs)
        tconv.torch.swap_(mine)
        x = seen[name].clone().requires_grad_()
        pairs = {"torch": theirs, "swapped": mine}
        rows.append({"layer": name, "shape": list(x.shape), "module": repr(theirs),
                     "inference": _timed({key: _inference(m, (x,)) for key, m in pairs.items()}, rounds),
                     "training": _timed({key: _both_ways(m, x) for key, m in pairs.items()}, rounds)})  # fmt: skip
    return rows


def _both_ways(layer: Any, x: Any) -> Callable[[], object]:
    import torch

    g = torch.ones_like(layer(x)).cumsum(-1)
    return lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), g)


def _overhead(rounds: int) -> dict[str, float]:
    """Seconds of one call of a tiny layer: the core alone, and by way of PyTorch."""
    import numpy as np
    import torch

    import tconv.torch
    from tconv import _torch_core

    layer, x = tconv.torch.ConvTranspose2d(8, 8, 3, 2, 1), torch.randn(1, 8, 4, 4)
    plan = _torch_core.plan(True, False, x.shape, layer.weight.shape, layer.bias.shape, x.dtype, False, (2, 2), (1,) * 4, (1, 1), 1, 1)
    packed, out = np.empty(plan.stencil.weight_elements, np.float32), np.empty(plan.shape, np.float32)
    arrays = [tensor.numpy(force=True) for tensor in (x, layer.weight, layer.bias)]
    plan.stencil.pack(arrays[1], packed)
    theirs = torch.nn.ConvTranspose2d(8, 8, 3, 2, 1)
    calls: Variants = {"core": lambda: plan.stencil.run(arrays[0], packed, arrays[2], out), "module": lambda: layer(x),
                       "function": lambda: tconv.torch.conv_transpose2d(x, layer.weight, layer.bias, 2, 1),
                       "PyTorch's module": lambda: theirs(x)}  # fmt: skip
    repeated = {name: _repeated(call, 500) for name, call in calls.items()}
    with torch.no_grad():
        seconds = _timed(repeated, rounds, 500)
    return seconds | _timed({f"{name}, gradients wanted": repeated[name] for name in ("module", "PyTorch's module")}, rounds, 500)


def _beside(rounds: int) -> dict[str, float]:
    """Seconds of a convolution of PyTorch's and a layer of ours: each alone, and the two in turns."""
    import torch

    import tconv.torch

    conv, layer = torch.nn.Conv2d(64, 64, 3, padding=1), tconv.torch.ConvTranspose2d(64, 64, 4, 2, 1)
    x = torch.randn(1, 64, 32, 32)
    theirs, mine = _inference(conv, (x,)), _inference(layer, (x,))
    both = _inference(lambda x: (conv(x), layer(x)), (x,))
    return _timed({name: _repeated(call, 20) for name, call in {"PyTorch": theirs, "tconv": mine, "in turns": both}.items()}, rounds, 20)


def _repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def _timed(variants: Variants, rounds: int, calls: int = 1) -> dict[str, float]:
    """Median seconds of every variant, whose rounds alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for call in variants.values():
        call(), call(), call()  # compiles, plans, packs
    for _ in range(rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(times) for name, times in seconds.items()}


# ---------------------------------------------------------------------------------------------------- tables


def settings_table(data: dict[str, Any]) -> str:
    """Where, when and of what the numbers are."""
    facts, settings = data["machine"], data["settings"]
    return (f"{facts['cpu']}, {settings['threads']} thread{'s' * (settings['threads'] > 1)}, PyTorch {data['torch']}, "
            f"{data['started'][:10]}, commit {data['commit']}, medians of {settings['rounds']} interleaved rounds, float32"
            f"{', small networks, for a test of the program alone' if settings['small'] else ''}.")  # fmt: skip


def networks_table(data: dict[str, Any]) -> str:
    """End to end: milliseconds, and how many times as fast."""
    lines = []
    for row in data["networks"]:
        theirs, mine, folded = (row["seconds"].get(name) for name in ("torch", "swapped", "folded"))
        lines.append([row["network"], row["mode"], row["what"], _ms(theirs), _ms(mine), f"{theirs / mine:.2f}x",
                      _ms(folded) if folded else "-", f"{theirs / folded:.2f}x" if folded else "-"])  # fmt: skip
    return _table(["network", "mode", "what", "torch.nn, ms", "swapped, ms", "", "folded, ms", ""], lines)


def shares_table(data: dict[str, Any]) -> str:
    """The transposed convolutions of every network alone, added up, and the geometric mean over all layers."""
    lines = []
    for name in [*dict.fromkeys(row["network"] for row in data["layers"]), "all layers"]:
        members = [row for row in data["layers"] if name in (row["network"], "all layers")]
        cells = [name, str(len(members))]
        for what in ("inference", "training"):
            theirs, mine = (sum(row[what][key] for row in members) for key in ("torch", "swapped"))
            mean = geometric_mean(row[what]["torch"] / row[what]["swapped"] for row in members) or 0.0
            cells += [_ms(theirs), _ms(mine), f"{mean:.2f}x"]
        lines.append(cells)
    heads = ["network", "layers", "forward, torch.nn, ms", "ours, ms", "geometric mean", "with backward, torch.nn, ms", "ours, ms",
             "geometric mean"]  # fmt: skip
    return _table(heads, lines)


def overhead_table(data: dict[str, Any]) -> str:
    """Microseconds of one call of a layer so small that nothing else counts."""
    core = data["overhead"]["core"]
    return _table(["call", "us", "over the core's"], [[name, f"{s * 1e6:.1f}", "" if name == "core" else f"{(s - core) * 1e6:.1f}"]
                                                      for name, s in data["overhead"].items()])  # fmt: skip


def beside_table(data: dict[str, Any]) -> str:
    """A convolution of PyTorch's and a layer of ours, milliseconds: alone, added, and in turns."""
    theirs, mine, both = (data["beside"][name] for name in ("PyTorch", "tconv", "in turns"))
    return _table(["PyTorch alone", "ours alone", "sum", "in turns"], [[_ms(theirs), _ms(mine), _ms(theirs + mine), _ms(both)]])


SECTIONS = {"settings": settings_table, "networks": networks_table, "shares": shares_table, "overhead": overhead_table,
            "beside": beside_table}  # fmt: skip


def _table(heads: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def main(words: list[str]) -> int:
    """Measure, or print or write the tables of what was measured."""
    parser = argparse.ArgumentParser("python -m bench models", description="Networks in PyTorch before and after tconv.torch.swap_.")
    add = parser.add_argument
    add("--networks", default="dcgan,unet,hifigan,vnet", help="default: %(default)s")
    add("--modes", default=",".join(MODES), help="default: %(default)s")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=15)
    add("--small", action="store_true", help="networks of a few channels: a test of this program")
    add("--name", default="models", help="of the file bench/results/NAME.json")
    add("--table", type=Path, metavar="RESULT", help="measure nothing: the tables of a file of results")
    add("--write", type=Path, metavar="FILE", help="with --table: renew the regions <!-- bench SECTION --> of a document")
    asked = parser.parse_args(words)
    if asked.table:
        return _show(json.loads(asked.table.read_text(encoding="utf-8")), asked.write)
    data = run(Settings(asked.networks.split(","), asked.modes.split(","), asked.threads, asked.rounds, asked.small))
    path = ROOT / "bench" / "results" / f"{asked.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"python -m bench models --table {path.relative_to(ROOT)}")
    return 0


def _show(data: dict[str, Any], document: Path | None) -> int:
    if data.get("format") != FORMAT:
        raise SystemExit(f"bench: these are no results of `python -m bench models`, format {FORMAT}: {data.get('format')}")
    if document is None:
        for name, section in SECTIONS.items():
            print(f"## {name}\n\n{section(data)}\n")
        return 0
    text = document.read_text(encoding="utf-8")
    document.write_text(fill(text, lambda section, options: SECTIONS[section](data)), encoding="utf-8")
    return 0
