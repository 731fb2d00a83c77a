# SPDX-License-Identifier: Apache-2.0
"""Markdown tables from a file of results: `python -m bench table RESULT.json [--write FILE | --check FILE]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from .peers import is_ours
from .regions import fill
from .rows import Row, geometric_mean, peer_names, rates, rows, thread_counts
from .store import load

OURS = "tconv_op"


class View(NamedTuple):
    """What a table shows: the data, the number of threads, and which of ours the others are compared with."""

    data: dict[str, Any]
    threads: int
    ours: str

    @property
    def rows(self) -> list[Row]:
        return rows(self.data, self.threads)

    @property
    def others(self) -> list[str]:
        return [name for name in peer_names(self.data) if not is_ours(name)]

    @property
    def mine(self) -> list[str]:
        return [name for name in peer_names(self.data) if is_ours(name)]


def machine(view: View) -> str:
    """Where, when and of what the numbers are."""
    data, facts = view.data, view.data["machine"]
    limits = {t: [rate / 1e9 for rate in rates(data, t)] for t in thread_counts(data)}
    peaks = [f"{t} thread{'s' * (t > 1)}: {flops:.0f} GFLOP/s, {width:.1f} GB/s written" for t, (flops, width) in limits.items()]
    loads = [unit["load"] for unit in data["units"] if unit["load"] is not None]
    lines = [
        ("machine", f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}, Python {facts['python']}"),
        ("measured limits", "; ".join(peaks)),
        ("commit", f"{data['commit']}, {data['started'][:10]}"),
        ("settings", f"{data['settings']['rounds']} rounds, {data['settings']['seconds_per_layer']:g} s a layer for all; float32; no bias"),
        ("load", f"1-minute average between {min(loads):.1f} and {max(loads):.1f}" if loads else "unknown"),
    ]
    peers = [[name, version, data["notes"][name]] for name, version in data["versions"].items()]
    return _table(["", ""], [list(line) for line in lines]) + "\n\n" + _table(["peer", "version", "how it is run"], peers)


def summary(view: View) -> str:
    """Geometric means by class: against the best peer, each peer, and the roofline."""
    kinds = dict.fromkeys(["all", *sorted({row.kind for row in view.rows})])
    heads = ["class", "layers", "against the best peer", "least", *view.others, "of the roofline"]
    return _table(heads, [_summary_line(view, kind, [r for r in view.rows if kind in ("all", r.kind)]) for kind in kinds])


def _summary_line(view: View, kind: str, members: list[Row]) -> list[str]:
    best = {row.layer: ratio for row in members if (peer := row.best()) and (ratio := row.ratio(peer, view.ours))}
    least = min(best, key=best.__getitem__, default=None)
    shown = [_times(geometric_mean(row.ratio(peer, view.ours) for row in members)) for peer in view.others]
    return [kind, str(len(members)), _times(geometric_mean(best.values())), f"{_times(best[least])} {least}" if least else "-", *shown,
            _percent(geometric_mean(row.share(view.ours) for row in members))]  # fmt: skip


def layers(view: View) -> str:
    """Every layer: our times, the roofline, and each peer's time with its ratio to ours."""
    lines = []
    for row in view.rows:
        best = row.best()
        cells = [f"{_ms(row.time(p))} ({_times(row.ratio(p, view.ours))})" if row.time(p) else "-" for p in view.others]
        cells = [f"**{cell}**" if peer == best else cell for peer, cell in zip(view.others, cells, strict=True)]
        lines.append([row.layer, f"`{row.problem}`", *(_ms(row.time(name)) for name in view.mine), _ms(row.roofline) + " " + row.bound[0],
                      _percent(row.share(view.ours)), *cells])  # fmt: skip
    heads = ["layer", "problem", *view.mine, "roofline", "reached", *view.others]
    legend = "Milliseconds, medians; in brackets how many times longer than ours; m and b: multiply-adds or bytes limit."
    return f"{legend}\n\n{_table(heads, lines)}"


def errors(view: View) -> str:
    """Largest error of a sample of outputs over the largest output, and beyond the slash its root mean square, which judges."""

    def line(row: Row) -> list[str]:
        mine = row.cells.get(view.ours, {}).get("error_rms")
        judged = "-" if mine is None or not row.best() else "no" if mine <= row.worst_error() else "yes"
        return [row.layer, *(_error(row.cells.get(name, {})) for name in [*view.mine, *view.others]), judged]

    heads = ["layer", *view.mine, *view.others, f"{view.ours} worse than the worst"]
    return _table(heads, [line(row) for row in view.rows])


def reasons(view: View) -> str:
    """Which peers lack which layers, and why."""
    found: dict[tuple[str, str], list[str]] = {(name, why): [] for name, why in view.data["absent"].items()}
    for row in view.rows:
        for name, cell in row.cells.items():
            if "reason" in cell:
                found.setdefault((name, cell["reason"]), []).append(row.layer)
    return _table(["peer", "reason", "layers"], [[name, why, ", ".join(names) or "all"] for (name, why), names in sorted(found.items())])


SECTIONS = {"machine": machine, "summary": summary, "layers": layers, "errors": errors, "reasons": reasons}


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


def _table(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.{4 if seconds < 1e-4 else 3 if seconds < 1e-3 else 2 if seconds < 0.1 else 0}f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _error(cell: dict[str, Any]) -> str:
    return f"{cell['error_max']:.1e} / {cell['error_rms']:.1e}" if "error_max" in cell else "-"
