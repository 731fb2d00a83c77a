# SPDX-License-Identifier: Apache-2.0
"""Whole networks in PyTorch, before and after `tconv.torch.swap_`: `python -m bench models`, and tables of its results.

Every variant of a network runs in a process of its own (in_networks.py), rounds interleaved, and medians over the rounds are kept. What the
transposed convolutions of a network take is measured where they are, between hooks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from tconv._bench import machine
from tconv._bench.measure import processes
from tconv._bench.roofline import geometric_mean

from . import checkout
from .checkout import ROOT
from .in_networks import inference
from .regions import fill
from .store import now

FORMAT = "models-3"
MODES = ("eager", "compiled")

VARIANTS = {"inference": ("torch", "swapped", "folded"), "training step": ("torch", "swapped")}
SHARED = ("torch", "swapped")  # whose layers are timed
# For all variants alike: GNU's C library gives large arrays back to the system after every call, or not, as its heap happens to lie; the page
# faults were up to 7 % of a network, of this variant or that.
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}


class Settings(NamedTuple):
    """What is run, and how often."""

    networks: list[str]
    modes: list[str]
    threads: int
    starts: int
    rounds: int
    small: bool


def run(settings: Settings) -> dict[str, Any]:
    """All measurements."""
    import torch

    data: dict[str, Any] = {"format": FORMAT, "machine": machine.facts(), "commit": checkout.commit(), "torch": torch.__version__,
                            "started": now(), "settings": settings._asdict(), "networks": []}  # fmt: skip
    for name in settings.networks:
        for mode in settings.modes:
            for what in VARIANTS:
                data["networks"].append(_network(name, mode, what, settings))
                print(f"{name} {mode} {what}: {data['networks'][-1]['seconds']}", flush=True)
    torch.set_num_threads(settings.threads)
    turns = settings.starts * settings.rounds
    data["overhead"], data["beside"] = _overhead(turns), _beside(turns)
    return data | {"load": machine.load()}


def _network(name: str, mode: str, what: str, settings: Settings) -> dict[str, Any]:
    """Medians of every variant over several starts of its process: where a process's memory lies makes some per cent of difference."""
    starts = [_start(name, mode, what, settings) for _ in range(settings.starts)]
    seconds = {variant: statistics.median(second for start in starts for second in start["seconds"][variant]) for variant in VARIANTS[what]}
    layers = [{**alike[0], "seconds": {variant: statistics.median(layer["seconds"][variant] for layer in alike) for variant in SHARED}}
              for alike in zip(*(start["layers"] for start in starts), strict=True)]  # fmt: skip
    return {"network": name, "mode": mode, "what": what, **starts[0]["made"], "seconds": seconds, "layers": layers}


def _start(name: str, mode: str, what: str, settings: Settings) -> dict[str, Any]:
    """Rounds of every variant, each in a process of its own that stands still while the others run; and its layers, where it is not compiled."""
    limit = 900.0
    asked = {"network": name, "mode": mode, "what": what, "sizes": "small" if settings.small else "usual"}
    with patch.dict(os.environ, KEEPS_MEMORY), processes(VARIANTS[what], settings.threads, "bench.in_networks") as (running, said):
        if wrong := {variant: answer["reason"] for variant, answer in said.items() if "reason" in answer}:
            raise SystemExit(f"bench: {wrong}")
        made = [process.ask(limit, do="prepare", variant=variant, **asked) for variant, process in running.items()]
        seconds: dict[str, list[float]] = {variant: [] for variant in running}
        for _ in range(settings.rounds):
            for variant, process in running.items():
                seconds[variant] += process.ask(limit, do="time", warm=1, inner=1, count=1, within=limit)["seconds"]
        shares = [running[variant].ask(limit, do="layers", count=settings.rounds)["layers"] for variant in SHARED if mode == "eager"]
    layers = [{"network": name, **alike[0], "seconds": {variant: layer["seconds"] for variant, layer in zip(SHARED, alike, strict=True)}}
              for alike in zip(*shares, strict=True)]  # fmt: skip
    return {"made": made[0], "seconds": seconds, "layers": layers}


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
    calls: dict[str, Callable[[], object]] = {"core": lambda: plan.stencil.run(arrays[0], packed, arrays[2], out), "module": lambda: layer(x),
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
    theirs, mine = inference(conv, (x,)), inference(layer, (x,))
    both = inference(lambda x: (conv(x), layer(x)), (x,))
    return _timed({name: _repeated(call, 20) for name, call in {"PyTorch": theirs, "tconv": mine, "in turns": both}.items()}, rounds, 20)


def _repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def _timed(variants: dict[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, float]:
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
            f"{data['started'][:10]}, commit {data['commit']}, medians of {settings['rounds']} interleaved rounds in each of {settings['starts']} start{'s' * (settings['starts'] > 1)}, float32"
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
    """The transposed convolutions where they are in every network, added up, and the geometric mean over all layers."""
    rows = {what: [layer for row in data["networks"] if row["what"] == what for layer in row["layers"]] for what in VARIANTS}
    lines = []
    for name in [*dict.fromkeys(row["network"] for row in rows["inference"]), "all layers"]:
        cells = [name, str(sum(name in (row["network"], "all layers") for row in rows["inference"]))]
        for members in rows.values():
            pairs = [row["seconds"] for row in members if name in (row["network"], "all layers")]
            theirs, mine = (sum(pair[key] for pair in pairs) for key in ("torch", "swapped"))
            cells += [_ms(theirs), _ms(mine), f"{geometric_mean(pair['torch'] / pair['swapped'] for pair in pairs) or 0.0:.2f}x"]
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
    add("--starts", type=int, default=3, help="of every process (default: %(default)s)")
    add("--rounds", type=int, default=5, help="in every start (default: %(default)s)")
    add("--small", action="store_true", help="networks of a few channels: a test of this program")
    add("--name", default="models", help="of the file bench/results/NAME.json")
    add("--table", type=Path, metavar="RESULT", help="measure nothing: the tables of a file of results")
    add("--write", type=Path, metavar="FILE", help="with --table: renew the regions <!-- bench SECTION --> of a document")
    asked = parser.parse_args(words)
    if asked.table:
        return _show(json.loads(asked.table.read_text(encoding="utf-8")), asked.write)
    data = run(Settings(asked.networks.split(","), asked.modes.split(","), asked.threads, asked.starts, asked.rounds, asked.small))
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
