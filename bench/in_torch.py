# SPDX-License-Identifier: Apache-2.0
"""Gradients and half precision beside PyTorch, on the same numbers in one process and in turns. Two tables of docs/performance.md.

`python -m bench torch gradients`: by the input, by the weight, and both in one call, against the operator that PyTorch's autograd calls, each
side in the faster of its two memory formats, and ours on contiguous arrays alone. `python -m bench torch bfloat16` (or float16): the layer in
the same way, also against ours in float32.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import tconv
from tconv import Spec
from tconv._bench import words
from tconv._bench.layer import Layer, placed

from . import layers
from .turns import medians
from .view import markdown

Call = Callable[[], Any]
WRONG = {"gradients": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}  # of the largest value: more is another layer
WIDE = 64  # channels in and out and one group: what the tables call layers of many channels


class Turn(NamedTuple):
    """What is timed in turns: our calls and PyTorch's in their formats, which must all give the exact result, and further ones of ours.

    Our calls are those on contiguous arrays and, if there are any, on channels-last ones; of `others`, in the same formats, the faster counts.
    """

    ours: list[Call]
    torch: list[Call]
    others: list[list[Call]]
    exact: Any


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench torch", description=__doc__)
    parser.add_argument("what", choices=list(WRONG))
    parser.add_argument("--layers", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side at most, of which the medians are told (default 9)")
    parser.add_argument("--seconds", type=float, default=1.5, help="for all turns of a column, once there were three (default 1.5)")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(arguments)
    import torch

    import tconv.torch

    torch.set_num_threads(asked.threads)
    tconv.set_num_threads(asked.threads)
    turns, heads, goals = TABLES["gradients" if asked.what == "gradients" else "half"]
    print(markdown(["layer", *heads], []), flush=True)
    ratios: list[dict[str, float]] = []
    wide: list[bool] = []
    for layer in layers.select(asked.layers, layers.read()):
        with torch.no_grad():
            cells, found = _row(layer, list(turns(layer, asked.what)), asked)
        print(f"| {layer.name} | {' | '.join(cells)} |", flush=True)
        ratios.append(dict(zip(goals, found, strict=True)))
        wide.append(layer.spec.groups == 1 and min(layer.spec.in_channels, layer.spec.out_channels) >= WIDE)
    for goal in goals:
        print(f"{goal}: {_told([ratio[goal] for ratio in ratios], wide)}")
    return 0


def _told(values: list[float], wide: list[bool]) -> str:
    said = f"geometric mean {statistics.geometric_mean(values):.2f}, {sum(v < 1 for v in values)} of {len(values)} below 1"
    some = [value for value, large in zip(values, wide, strict=True) if large]
    return said + (f" ({statistics.geometric_mean(some):.2f} on {len(some)} layers of {WIDE} channels and more)" if some else "")


def _row(layer: Layer, columns: list[Turn], asked: argparse.Namespace) -> tuple[list[str], list[float]]:
    cells, ratios = [], []
    for column in columns:
        errors = [_error(call(), column.exact) for call in (*column.ours, *column.torch)]
        if not max(errors) < WRONG[asked.what]:
            raise SystemExit(f"bench: {layer.name}: errors of {errors} of the largest value")
        groups = [column.ours, column.torch, *column.others]
        times = iter(medians(asked.rounds, *(call for group in groups for call in group), seconds=asked.seconds, settle=True))
        mine, *rest = ([next(times) for _ in group] for group in groups)
        best, *others = (min(group) for group in rest)
        found = [best / min(mine), *(other / min(mine) for other in others)]
        ratios += [*found, best / mine[0]]
        shown = [f"{time:.3g}" for time in mine] + ["-"] * (len(mine) == 1)
        cells += [f"{best:.3g}", *shown, *(f"{other:.3g}" for other in others), *(f"{ratio:.2f}" for ratio in found),
                  f"{max(errors[: len(mine)]):.0e} / {max(errors[len(mine) :]):.0e}"]  # fmt: skip
    return cells, ratios


def _error(found: Any, exact: Any) -> float:
    """Root mean square, of the largest value; of several arrays the worst."""
    if isinstance(found, tuple):
        return max(_error(a, b) for a, b in zip(found, exact, strict=True))
    found = found.double().numpy() if hasattr(found, "double") else np.asarray(found, np.float64)
    return float(np.sqrt(np.mean((found - exact) ** 2)) / np.abs(exact).max())


# ---------------------------------------------------------------------------------------------------- what is timed


def _gradients(layer: Layer, what: str) -> Iterator[Turn]:
    spec, (x, w) = layer.spec, layer.arrays()
    grad = placed(np.random.default_rng(1).standard_normal(spec.output_shape, np.float32))
    told = _words(spec)
    double = _backward(spec, *(a.astype(np.float64) for a in (grad, x, w)))[0]((True, True))
    exact = tuple(a.numpy() for a in double)
    formats = [_our_gradients(spec, x, w, grad, told)]
    if len(_formats(spec)) > 1:
        last = [placed(np.moveaxis(a, 1, -1)) for a in (x, grad)]
        formats.append(_our_gradients(spec, last[0], w, last[1], {**told, "layout": "channels_last"}))
    theirs = _backward(spec, grad, x, w)
    for ours, mask, wanted in zip(zip(*formats, strict=True), ((True, False), (False, True), (True, True)), (exact[0], exact[1], exact),
                                  strict=True):  # fmt: skip
        yield Turn(list(ours), [_masked(run, mask) for run in theirs], [], wanted)


def _our_gradients(spec: Spec, x: Any, w: Any, grad: Any, told: dict[str, Any]) -> tuple[Call, ...]:
    """By input, by weight, and both; channels come second in the results."""

    def seen(found: Any) -> Any:
        return np.moveaxis(found, -1, 1) if "layout" in told else found

    def both() -> Any:
        by = tconv.conv_transpose_grads(x, w, grad, grads=("input", "weight"), **told)
        return seen(by[0]), by[1]

    return (lambda: seen(tconv.conv_transpose_grad_input(grad, w, spec.input_size, **told)),
            lambda: tconv.conv_transpose_grad_weight(x, grad, spec.kernel_size, **told), both)  # fmt: skip


def _masked(run: Callable[[tuple[bool, bool]], Any], mask: tuple[bool, bool]) -> Call:
    return lambda: found if len(found := run(mask)) > 1 else found[0]


def _backward(spec: Spec, grad: Any, x: Any, w: Any) -> list[Callable[[tuple[bool, bool]], Any]]:
    """The operator behind PyTorch's autograd on arrays in each of its formats; it takes what of input and weight is asked."""
    import torch

    padding, extra = _torch_words(spec)

    def call(tensors: list[Any]) -> Callable[[tuple[bool, bool]], Any]:
        def run(mask: tuple[bool, bool]) -> Any:
            found = torch.ops.aten.convolution_backward(*tensors, [0], spec.stride, padding, spec.dilation, True, extra, spec.groups,
                                                        (*mask, False))  # fmt: skip
            return tuple(a for a in found if a is not None)

        return run

    return [call([torch.from_numpy(a).to(memory_format=kept) for a in (grad, x, w)]) for kept in _formats(spec)]


def _half(layer: Layer, what: str) -> Iterator[Turn]:
    import ml_dtypes
    import torch

    spec, kind = layer.spec, np.dtype(ml_dtypes.bfloat16 if what == "bfloat16" else np.float16)
    x, w = (placed(a, kind) for a in layer.arrays())
    wide = [placed(a, np.float32) for a in (x, w)]
    ours, single, converted = zip(*(_our_half(spec, x, w, last) for last in range(len(_formats(spec)))), strict=True)
    padding, extra = _torch_words(spec)
    run = getattr(torch.nn.functional, f"conv_transpose{spec.rank}d")
    pairs = [[torch.from_numpy(a).to(getattr(torch, what), memory_format=kept) for a in wide] for kept in _formats(spec)]

    def called(a: Any, b: Any) -> Call:
        return lambda: run(a, b, None, spec.stride, padding, extra, spec.groups, spec.dilation)

    exact = run(
        *(torch.from_numpy(a.astype(np.float64)) for a in wide), None, spec.stride, padding, extra, spec.groups, spec.dilation
    ).numpy()
    yield Turn(list(ours), [called(*pair) for pair in pairs], [list(single), list(converted)], exact)


def _our_half(spec: Spec, x: Any, w: Any, last: bool) -> tuple[Call, Call, Call]:
    """In half precision, in float32, and that with both conversions; channels come second in the results."""
    told = {**_words(spec), "layout": "channels_last" if last else "channels_first"}
    x = placed(np.moveaxis(x, 1, -1), x.dtype) if last else x
    wide = placed(x, np.float32)
    ours, single = tconv.Operator(w, **told), tconv.Operator(w.astype(np.float32), **told)
    out, out_single = ours(x), single(wide)

    def seen(found: Any) -> Any:
        return np.moveaxis(found, -1, 1) if last else found

    return (lambda: seen(ours(x, out=out)), lambda: seen(single(wide, out=out_single)),
            lambda: seen(single(x.astype(np.float32)).astype(x.dtype)))  # fmt: skip


def _words(spec: Spec) -> dict[str, Any]:
    return {"stride": spec.stride, "padding": spec.crop, "dilation": spec.dilation, "groups": spec.groups}


def _torch_words(spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found = words.torch(spec.axes)
    if found is None:
        raise SystemExit(f"bench: PyTorch has no words for {spec}")
    return found


def _formats(spec: Spec) -> list[Any]:
    import torch

    last = {2: torch.channels_last, 3: torch.channels_last_3d}
    return [torch.contiguous_format, *([last[spec.rank]] if spec.rank in last else [])]


_OF_EACH = ["{}: PyTorch, ms", "ours, ms", "ours channels last, ms", "ratio", "errors"]
TABLES: dict[str, tuple[Callable[[Layer, str], Iterator[Turn]], list[str], list[str]]] = {
    "gradients": (_gradients, [head.format(by) for by in ("by input", "by weight", "both") for head in _OF_EACH],
                  [goal + alone for goal in ("by input", "by weight", "both in one call") for alone in ("", ", contiguous alone")]),
    "half": (_half, ["PyTorch, ms", "ours, ms", "ours channels last, ms", "ours in float32, ms", "converted, ms", "PyTorch / ours",
                     "float32 / ours", "converted / ours", "errors"],
             ["against PyTorch", "against ours in float32", "against converting to float32 and back",
              "against PyTorch, contiguous alone"]),
}  # fmt: skip
