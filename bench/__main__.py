# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m bench [options]`, `python -m bench table|memory|mixed|guard|models|jax|tensorflow|torch ...`."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

import tconv
from tconv._bench.measure import Setting
from tconv._bench.peers import PEERS, unknown

from . import guard, in_jax, in_tensorflow, in_torch, layers, memory, mixed, models, run, table
from .checkout import ROOT
from .rows import LAST
from .store import Store
from .view import AVX2, DOUBLE

RESULTS = ROOT / "bench" / "results"
COMMANDS = {"table": table.main, "memory": memory.main, "mixed": mixed.main, "guard": guard.main, "models": models.main, "jax": in_jax.main,
            "tensorflow": in_tensorflow.main, "torch": in_torch.main}  # fmt: skip


def main(words: list[str]) -> int:
    """Run a command; without one, the benchmark itself."""
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    asked = _parser().parse_args(words)
    plan = _plan(asked)
    path = RESULTS / f"{asked.name or _name(asked.resume)}.json"
    run.run(plan, Store(path, run.head(plan), asked.resume))
    print(f"python -m bench table {path.relative_to(ROOT)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench", description="Time our kernels and every installed peer on the layers of bench/layers.csv.",
                                     epilog="Other commands: table, memory, mixed, guard, models, jax, tensorflow, torch (each with --help).")  # fmt: skip
    add = parser.add_argument
    add("--layers", nargs="+", default=["*"], metavar="GLOB", help='names of layers, or problem lines such as "c256:128 i8x8 k4 s2 p1"')
    add("--peers", type=_list, metavar="A,B", help=f"default: {','.join(default_peers())}; ours take options, as in "
        "tconv_op:algorithm=direct_avx2+layout=channels_last; with --quick those without options")  # fmt: skip
    add("--parts", type=_list, metavar="A,B", help=f"of {','.join(run.PARTS)} (default: all; with --quick or --layers only times)")
    add("--threads", type=_numbers, metavar="1,2", help="numbers of threads (default 1,2; with --quick 2)")
    add("--rounds", type=int, help="rounds in which every peer has its turn (default 5)")
    add("--seconds-per-layer", type=float, help="time for the rounds of all peers together (default 5; with --quick 4)")
    add("--quick", action="store_true", help=f"{len(layers.QUICK)} layers of all classes, in under 3 minutes")
    add("--name", help="of the file bench/results/NAME.json (default: the date and time)")
    add("--resume", action="store_true", help="go on with NAME, or with the newest file")
    return parser


def default_peers() -> list[str]:
    """Every peer, and the variants of ours that the rates of this processor are judged by."""
    return [*PEERS, LAST, DOUBLE, *([AVX2] if "direct_avx2" in tconv.kernels() else [])]


def _plan(asked: argparse.Namespace) -> run.Plan:
    peers = asked.peers or (list(PEERS) if asked.quick else default_peers())
    for name in unknown(peers):
        raise SystemExit(f"bench: no peer is called {name!r}; there are {', '.join(PEERS)}")
    some = asked.quick or asked.layers != ["*"]
    parts = asked.parts or (["times"] if some else list(run.PARTS))
    for part in (part for part in parts if part not in run.PARTS):
        raise SystemExit(f"bench: no part is called {part!r}; there are {', '.join(run.PARTS)}")
    names = layers.QUICK if asked.quick and asked.layers == ["*"] else asked.layers
    setting = Setting(asked.rounds or 5, asked.seconds_per_layer or (4.0 if asked.quick else 5.0))
    return run.Plan(layers.select(names, layers.read()), peers, asked.threads or ([2] if asked.quick else [1, 2]), setting, parts)


def _name(resume: bool) -> str:
    newest = sorted(RESULTS.glob("*.json"), key=lambda p: p.stat().st_mtime)
    return newest[-1].stem if resume and newest else f"{datetime.now():%Y-%m-%d-%H%M%S}"


def _list(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _list(text)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
