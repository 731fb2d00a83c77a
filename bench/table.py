# SPDX-License-Identifier: Apache-2.0
"""Markdown tables from a file of results: `python -m bench table RESULT.json [--write FILE | --check FILE]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tconv._bench.roofline import geometric_mean

from . import memory, mixed, targets
from .regions import fill
from .rows import EITHER, FIRST, LAST, Row, peer_names, rates, thread_counts
from .store import load
from .view import OURS, View, is_ours, markdown, ms, percent, times


def machine(view: View) -> str:
    """Where, when and of what the numbers are."""
    data, facts = view.data, view.data["machine"]
    peaks = [f"{t} thread{'s' * (t > 1)}: {_limits(rates(data, t))}" for t in thread_counts(data)]
    loads = [unit["load"] for unit in data["units"] if unit["load"] is not None]
    lines = [
        ("machine", f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}, Python {facts['python']}"),
        ("measured limits", "; ".join(peaks)),
        ("commit", f"{data['commit']}, {data['started'][:10]}"),
        ("settings", f"{data['settings']['rounds']} rounds, {data['settings']['seconds_per_layer']:g} s a layer for all; float32; no bias"),
        ("load", f"1-minute average between {min(loads):.1f} and {max(loads):.1f}" if loads else "unknown"),
    ]
    peers = [[name, version, data["notes"][name]] for name, version in data["versions"].items()]
    return markdown(["", ""], [list(line) for line in lines]) + "\n\n" + markdown(["peer", "version", "how it is run"], peers)


def _limits(found: dict[str, float]) -> str:
    if not found:
        return "not measured"
    named = {"gflops_float64": "in float64", "gflops_avx2": "by AVX2"}
    more = [f"{found[name]:.0f} {words}" for name, words in named.items() if name in found]
    return f"{found['gflops']:.0f} GFLOP/s{''.join(f' ({text})' for text in [', '.join(more)] if text)}, {found['gbytes']:.1f} GB/s written"


def short(view: View) -> str:
    """Two lines for who reads nothing else: geometric means against every peer and the best, and how far single layers range."""
    labels = {FIRST: "`Operator`", EITHER: "`Operator`, the faster of its layouts", "tconv": "`conv_transpose`"}
    held = {FIRST, LAST} <= set(view.mine)
    lines = []
    for ours in (name for name in labels if name in view.mine or (name == EITHER and held)):
        means = [geometric_mean(row.ratio(peer, ours) for row in view.rows) for peer in view.others]
        best = geometric_mean(row.against_best(ours) for row in view.rows)
        lines.append([labels[ours], *(f"{mean:.1f}" if mean else "-" for mean in means), f"{best:.2f}" if best else "-"])
    heads = ["", *(LABELS.get(name, name) for name in view.others), "the best of them"]
    every = [ratio for row in view.rows if (ratio := row.against_best(view.ours))]
    span = (
        f"Against the best peer of a layer, `Operator` ranges from {min(every):.2f} to {max(every):.1f} times its speed." if every else ""
    )
    return f"{markdown(heads, lines)}\n\n{span}".rstrip()


def summary(view: View) -> str:
    """Geometric means by class: against the best peer, each peer, and the roofline."""
    kinds = dict.fromkeys(["all", *sorted({row.kind for row in view.rows})])
    heads = ["class", "layers", "against the best peer", "least", *view.others, "of the roofline"]
    return markdown(heads, [_summary_line(view, kind, [r for r in view.rows if kind in ("all", r.kind)]) for kind in kinds])


def _summary_line(view: View, kind: str, members: list[Row]) -> list[str]:
    best = {row.layer: ratio for row in members if (ratio := row.against_best(view.ours))}
    least = min(best, key=best.__getitem__, default=None)
    shown = [times(geometric_mean(row.ratio(peer, view.ours) for row in members)) for peer in view.others]
    return [kind, str(len(members)), times(geometric_mean(best.values())), f"{times(best[least])} {least}" if least else "-", *shown,
            percent(geometric_mean(row.share(view.ours) for row in members))]  # fmt: skip


def layers(view: View) -> str:
    """Every layer: our times, the roofline, and each peer's time with its ratio to ours."""
    lines = []
    for row in view.rows:
        best = row.best()
        cells = [f"{ms(row.time(p))} ({times(row.ratio(p, view.ours))})" if row.time(p) else "-" for p in view.others]
        cells = [f"**{cell}**" if peer == best else cell for peer, cell in zip(view.others, cells, strict=True)]
        lines.append([row.layer, f"`{row.problem}`", *(ms(row.time(name)) for name in view.mine), f"{ms(least.seconds)} {least.bound[0]}" if (least := row.roofline()) else "-",
                      percent(row.share(view.ours)), *cells])  # fmt: skip
    heads = ["layer", "problem", *view.mine, "roofline", "reached", *view.others]
    legend = "Milliseconds, medians; in brackets how many times longer than ours; m and b: multiply-adds or bytes limit."
    return f"{legend}\n\n{markdown(heads, lines)}"


def errors(view: View) -> str:
    """Largest error of a sample of outputs over the largest output, and beyond the slash its root mean square, which judges."""

    def line(row: Row) -> list[str]:
        judged = {None: "-", False: "no", True: "yes"}[row.is_worse(view.ours)]
        return [row.layer, *(_error(row.cells.get(name, {})) for name in [*view.mine, *view.others]), judged]

    heads = ["layer", *view.mine, *view.others, f"{view.ours} worse than the worst"]
    return markdown(heads, [line(row) for row in view.rows])


def reasons(view: View) -> str:
    """Which peers lack which layers, and why."""
    found: dict[tuple[str, str], list[str]] = {(name, why): [] for name, why in view.data["absent"].items()}
    for row in view.rows:
        for name, cell in row.cells.items():
            if "reason" in cell:
                found.setdefault((name, cell["reason"]), []).append(row.layer)
    return markdown(["peer", "reason", "layers"], [[name, why, ", ".join(names) or "all"] for (name, why), names in sorted(found.items())])


SECTIONS = {
    "machine": machine, "short": short, "targets": targets.targets, "summary": summary, "layers": layers, "rates": targets.rates,
    "memory": memory.table, "mixed": mixed.table, "errors": errors, "reasons": reasons,
}  # fmt: skip
LABELS = {"torch": "PyTorch", "torch_cl": "PyTorch channels-last", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO",
          "tensorflow": "TensorFlow", "jax": "JAX", "litert": "LiteRT"}  # fmt: skip


def render(data: dict[str, Any], section: str, threads: int | None = None, ours: str | None = None) -> str:
    """One section as Markdown; by default with the most threads, and with our first peer in the file."""
    mine = [name for name in peer_names(data) if is_ours(name)]
    return SECTIONS[section](View(data, threads or max(thread_counts(data)), ours or (OURS if OURS in mine else next(iter(mine), OURS))))


def main(words: list[str]) -> int:
    """Print the tables, write them into the regions of a document, or check that the document holds them."""
    parser = argparse.ArgumentParser("python -m bench table", description="Markdown tables from a file of results.")
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, help="default: the most there are")
    parser.add_argument("--ours", help=f"which of ours the peers are compared with (default {OURS})")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="renew the regions <!-- bench SECTION threads=2 --> ... <!-- /bench -->")
    parser.add_argument("--check", type=Path, metavar="FILE", help="fail where FILE's regions are not what --write would make them")
    asked = parser.parse_args(words)
    data = load(asked.result)
    document = asked.write or asked.check
    if document:
        old = document.read_text(encoding="utf-8")
        new = fill(old, lambda section, options: render(data, section, **options))
        if asked.write:
            document.write_text(new, encoding="utf-8")
        elif new != old:
            raise SystemExit(f"bench: {document} is not current: python -m bench table {asked.result} --write {document}")
        return 0
    for section in asked.section or SECTIONS:
        print(f"## {section}\n\n{render(data, section, asked.threads, asked.ours)}\n")
    return 0


def _error(cell: dict[str, Any]) -> str:
    return f"{cell['error_max']:.1e} / {cell['error_rms']:.1e}" if "error_max" in cell else "-"
