# SPDX-License-Identifier: Apache-2.0
"""What we set out to reach, and what a run says of it: sections `targets` and `rates`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tconv._bench.roofline import geometric_mean

from . import memory, mixed
from .rows import EITHER, LAST, Row
from .view import AVX2, DOUBLE, View, markdown, mib, ms, percent, times

BEST, TORCH = 1.5, 3.0  # geometric means against the best peer of each layer and against PyTorch
HEAVY, WIDE, AVX2_SHARE = 0.85, 0.75, 0.80  # parts of the roofline: of multiply-adds, of bytes, of multiply-adds by AVX2
DOUBLE_RATE = 0.5  # of float64, with float32 as 1


class Verdict(NamedTuple):
    """One target: what was measured, and the layers that fall short of it; None where the run did not measure it."""

    target: str
    measured: str | None
    met: bool
    short: list[str]


def targets(view: View) -> str:
    """Every target of the project beside what this run measured."""
    lines = []
    for verdict in (judge(view) for judge in TARGETS):
        met = "-" if verdict.measured is None else "yes" if verdict.met else "no"
        lines.append([verdict.target, verdict.measured or "not measured", met, ", ".join(verdict.short) or "-"])
    return markdown([f"target, {view.threads} thread{'s' * (view.threads > 1)}", "measured", "met", "layers that fall short"], lines)


def _mean(target: str, values: Iterable[float | None], least: float) -> Verdict:
    mean = geometric_mean(values)
    return Verdict(target, mean and times(mean), mean is not None and mean >= least, [])


def _best(view: View) -> Verdict:
    return _mean(f"against the best peer, geometric mean: at least {BEST}", (row.against_best(view.ours) for row in view.rows), BEST)


def _best_layout(view: View) -> Verdict:
    found = {row.layer: ratio for row in view.rows if row.time(LAST) and (ratio := row.against_best(EITHER))}  # where both were timed
    verdict = _mean(f"the same, ours in the faster of its layouts: at least {BEST}", found.values(), BEST)
    return verdict._replace(short=[f"{name} {times(found[name])}" for name in sorted(found, key=found.__getitem__) if found[name] < 1])


def _torch(view: View) -> Verdict:
    return _mean(f"against PyTorch, geometric mean: at least {TORCH}", (row.ratio("torch", view.ours) for row in view.rows), TORCH)


def _each(target: str, rows: Iterable[Row], value: Callable[[Row], float | None], least: float, show: Callable[[float], str]) -> Verdict:
    """A target that every layer must reach; those that do not, the worst first."""
    found = {row.layer: number for row in rows if (number := value(row)) is not None}
    short = sorted((name for name, number in found.items() if number < least), key=found.__getitem__)
    measured = f"{len(found) - len(short)} of {len(found)} layers" if found else None
    return Verdict(target, measured, not short, [f"{name} {show(found[name])}" for name in short])


def _none_slower(view: View) -> Verdict:
    return _each("no layer slower than its best peer", view.rows, lambda row: row.against_best(view.ours), 1.0, times)


def _heavy(view: View) -> Verdict:
    rows = [row for row in view.rows if row.is_heavy()]
    return _each(f"at least {HEAVY:.0%} of the roofline, where there are 0.2 GFLOP and 32 channels in and out of a group", rows,
                 lambda row: row.share(view.ours), HEAVY, percent)  # fmt: skip


def _wide(view: View) -> Verdict:
    rows = [row for row in view.rows if (least := row.roofline()) and least.bound == "bytes"]
    return _each(f"at least {WIDE:.0%} of the roofline, where bytes limit", rows, lambda row: row.share(view.ours), WIDE, percent)


def _errors(view: View) -> Verdict:
    judged = [row for row in view.rows if row.is_worse(view.ours) is not None]
    short = [f"{row.layer} {row.cells[view.ours]['error_rms']:.1e} (worst peer {row.worst_error():.1e})" for row in judged
             if row.is_worse(view.ours)]  # fmt: skip
    measured = f"{len(judged) - len(short)} of {len(judged)} layers" if judged else None
    return Verdict("no error (root mean square) above that of the worst peer", measured, not short, short)


def _double(view: View) -> Verdict:
    target = f"float64 at {percent(DOUBLE_RATE)} of the rate of float32 or more"
    return _each(target, view.rows, lambda row: _double_rate(row, view.ours), DOUBLE_RATE, percent)


def _avx2(view: View) -> Verdict:
    rows = [row for row in view.rows if row.is_heavy()]
    return _each(f"AVX2 kernels at {AVX2_SHARE:.0%} of the roofline of AVX2 or more, on the same layers as {HEAVY:.0%}", rows,
                 lambda row: row.share(AVX2, "gflops_avx2"), AVX2_SHARE, percent)  # fmt: skip


def _memory(view: View) -> Verdict:
    target = f"at most {mib(memory.LIMIT)} MiB a thread beyond arrays and packed weight"
    entries = [entry for entry in view.data["memory"] if entry["threads"] == view.threads]
    over = sorted((e for e in entries if memory.excess(e) > memory.LIMIT), key=memory.excess, reverse=True)
    most = f"{mib(max(map(memory.excess, entries)))} MiB at most" if entries else None
    return Verdict(target, most, not over, [f"{e['layer']} {mib(memory.excess(e))} ({e['call']})" for e in over])


def _mixed(view: View) -> Verdict:
    found = {e["layer"]: mixed.ratio(e) for e in view.data["mixed"] if e["threads"] == view.threads}
    over = [f"{name} {value:.2f}" for name, value in found.items() if value > mixed.LIMIT]
    most = f"{max(found.values()):.2f} at most" if found else None
    return Verdict(f"alternating with PyTorch: at most {mixed.LIMIT:.2f} times the sum of the parts", most, not over, over)


TARGETS = (_best, _none_slower, _best_layout, _torch, _heavy, _wide, _errors, _double, _avx2, _memory, _mixed)


def _double_rate(row: Row, ours: str) -> float | None:
    """The rate in float64 over that in float32, of the same kernels in the same rounds."""
    single, double = row.time(ours), row.time(DOUBLE)
    return single / double if single and double else None


def rates(view: View) -> str:
    """Variants of ours beside each other, and each beside what the machine can do in its numbers or instructions."""
    lines = []
    for row in (row for row in view.rows if row.time(DOUBLE) or row.time(AVX2)):
        lines.append([row.layer, "yes" if row.is_heavy() else "no", ms(row.time(view.ours)), ms(row.time(DOUBLE)),
                      percent(_double_rate(row, view.ours)), percent(row.share(DOUBLE, "gflops_float64", 8)), ms(row.time(AVX2)),
                      percent(row.share(AVX2, "gflops_avx2"))])  # fmt: skip
    if not lines:
        return f"Neither {DOUBLE} nor {AVX2} was measured in this run."
    heads = ["layer", "judged by rate", view.ours, "float64", "its rate, float32 being 100%", "of its roofline", "direct_avx2",
             "of its roofline"]  # fmt: skip
    legend = ("Milliseconds, medians; judged by rate: 0.2 GFLOP or more, and at least 32 channels in and out of each group. Each roofline "
              "by the rate of a matrix product in float64, or in float32 without AVX-512, measured in the same run.")  # fmt: skip
    return f"{legend}\n\n{markdown(heads, lines)}"
