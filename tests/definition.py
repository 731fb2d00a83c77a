# SPDX-License-Identifier: Apache-2.0
"""The judge: a transposed convolution and its gradients by their definition, with tolerances. Imports NumPy and nothing of tconv.

Data arrays are (batch, channels, *size), weights (in_channels, out_channels / groups, *kernel), geometry is one number per
axis, crop one (lo, hi) per axis. Every loop below visits the pairs (input i, tap t) of

    y[o] += x[i] * w[t]        o = i * stride + t * dilation - lo        0 <= o < (I - 1) * stride + dilation * (k - 1) + 1 - lo - hi
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from math import gcd, prod
from typing import Any

import numpy as np

# Unit roundoff: half the distance from 1 to the next number. Float16 and bfloat16 are summed in float32 and rounded once.
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SUMMED_IN = {"float64": "float64", "float32": "float32", "float16": "float32", "bfloat16": "float32"}
SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


# ---------------------------------------------------------------------------------------------------------------- the definition


def output_size(size, kernel, stride, dilation, crop):
    return tuple((i - 1) * s + d * (k - 1) + 1 - lo - hi for i, k, s, d, (lo, hi) in zip(size, kernel, stride, dilation, crop, strict=True))


def hits(size, kernel, stride, dilation, crop) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Every (input, tap, output) that meets inside the output."""
    outputs = output_size(size, kernel, stride, dilation, crop)
    for i in product(*map(range, size)):
        for t in product(*map(range, kernel)):
            o = tuple(i[a] * stride[a] + t[a] * dilation[a] - crop[a][0] for a in range(len(size)))
            if all(0 <= o[a] < outputs[a] for a in range(len(size))):
                yield i, t, o


def conv_transpose(x, w, stride, dilation, crop, groups, bias=None):
    """y (batch, out_channels, *output), in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    outputs = output_size(x.shape[2:], w.shape[2:], stride, dilation, crop)
    inside, outside = w.shape[0] // groups, w.shape[1]
    y = np.zeros((x.shape[0], outside * groups, *outputs))
    for i, t, o in hits(x.shape[2:], w.shape[2:], stride, dilation, crop):
        for g in range(groups):
            rows, columns = slice(g * inside, (g + 1) * inside), slice(g * outside, (g + 1) * outside)
            y[(slice(None), columns, *o)] += x[(slice(None), rows, *i)] @ w[(rows, slice(None), *t)]
    return y if bias is None else y + np.asarray(bias, np.float64).reshape(-1, *[1] * len(outputs))


def grad_input(grad, w, size, stride, dilation, crop, groups):
    """The gradient of sum(y * grad) by x: dx[i] = sum over t of grad[o] * w[t]."""
    grad, w = np.asarray(grad, np.float64), np.asarray(w, np.float64)
    inside, outside = w.shape[0] // groups, w.shape[1]
    dx = np.zeros((grad.shape[0], w.shape[0], *size))
    for i, t, o in hits(size, w.shape[2:], stride, dilation, crop):
        for g in range(groups):
            rows, columns = slice(g * inside, (g + 1) * inside), slice(g * outside, (g + 1) * outside)
            dx[(slice(None), rows, *i)] += grad[(slice(None), columns, *o)] @ w[(rows, slice(None), *t)].T
    return dx


def grad_weight(x, grad, kernel, stride, dilation, crop, groups):
    """The gradient of sum(y * grad) by w: dw[t] = sum over i of x[i] * grad[o]."""
    x, grad = np.asarray(x, np.float64), np.asarray(grad, np.float64)
    inside, outside = x.shape[1] // groups, grad.shape[1] // groups
    dw = np.zeros((x.shape[1], outside, *kernel))
    for i, t, o in hits(x.shape[2:], kernel, stride, dilation, crop):
        for g in range(groups):
            rows, columns = slice(g * inside, (g + 1) * inside), slice(g * outside, (g + 1) * outside)
            dw[(rows, slice(None), *t)] += x[(slice(None), rows, *i)].T @ grad[(slice(None), columns, *o)]
    return dw


# -------------------------------------------------------------------------------------------------------------- random problems


@dataclass(frozen=True)
class Problem:
    """A geometry with its channels, and a seed that fixes the values of its arrays."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    crop: tuple[tuple[int, int], ...]
    batch: int = 1
    cin: int = 1
    cout: int = 1
    groups: int = 1
    dtype: Any = "float32"
    layout: str = "channels_first"
    batched: bool = True
    biased: bool = False
    seed: int = field(default=0, compare=False)

    def __str__(self) -> str:
        """The one-line text, every field written, and how to get the values back."""
        words = [f"n{self.batch}", f"c{self.cin}:{self.cout}", f"g{self.groups}"]
        words += [
            letter + "x".join(map(str, v)) for letter, v in zip("iksd", (self.size, self.kernel, self.stride, self.dilation), strict=True)
        ]
        words.append("p" + "x".join(f"{lo}:{hi}" for lo, hi in self.crop))
        return f"{' '.join(words)} | {self.name} {self.layout} batched={self.batched} bias={self.biased} seed={self.seed}"

    @property
    def name(self) -> str:
        return np.dtype(self.dtype).name

    @property
    def output(self) -> tuple[int, ...]:
        return output_size(self.size, self.kernel, self.stride, self.dilation, self.crop)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """The trailing arguments of the three definitions."""
        return self.stride, self.dilation, self.crop, self.groups

    @property
    def words(self) -> dict[str, Any]:
        """The same as keyword arguments of the operators."""
        return {"stride": self.stride, "padding": list(self.crop), "dilation": self.dilation, "groups": self.groups, "layout": self.layout}

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """x, w, grad, bias in canonical order: asymmetric random values, away from zero mean so that errors cannot cancel."""
        rng = np.random.default_rng([self.seed, 7])
        shapes = ((self.batch, self.cin, *self.size), (self.cin, self.cout // self.groups, *self.kernel),
                  (self.batch, self.cout, *self.output), (self.cout,))  # fmt: skip
        x, w, grad, bias = ((rng.standard_normal(shape) + 0.25).astype(self.dtype) for shape in shapes)
        return x, w, grad, bias if self.biased else None

    def arranged(self, array: np.ndarray) -> np.ndarray:
        """A canonical data array as the operators take it: layout, and batch axis dropped where the problem is unbatched."""
        array = np.moveaxis(array, 1, -1) if self.layout == "channels_last" else array
        return np.ascontiguousarray(array if self.batched else array[0])

    def canonical(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `arranged`."""
        array = array if self.batched else array[None]
        return np.moveaxis(array, -1, 1) if self.layout == "channels_last" else array

    @property
    def terms(self) -> dict[str, int]:
        """The most products that one element of each result sums: taps of one phase, all taps, all positions."""
        spaced = zip(self.kernel, self.stride, self.dilation, strict=True)
        taps = prod(-(-k // (s // gcd(s, d))) for k, s, d in spaced)
        return {"forward": self.cin // self.groups * taps + self.biased, "grad_input": self.cout // self.groups * prod(self.kernel),
                "grad_weight": self.batch * prod(self.size)}  # fmt: skip


def random_problem(seed: int, *, dtypes=("float32",), budget: int = 2_000) -> Problem:
    """A small problem with any geometry: k below, at and above the stride, crops from appended zeros to all but one output.

    `budget` bounds the pairs (input, tap) that the definition visits.
    """
    rng = np.random.default_rng([seed, 1])
    while True:
        rank = int(rng.choice([1, 2, 2, 3]))
        most = {1: 12, 2: 7, 3: 4}[rank]
        size, kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, top + 1, rank)) for top in (most, 5, 4, 3))
        if prod(size) * prod(kernel) <= budget:
            break
    crop = tuple(_random_crop(rng, *axis) for axis in zip(size, kernel, stride, dilation, strict=True))
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    cin, cout = (groups * int(rng.choice([1, 1, 2, 3, 5])) for _ in range(2))
    batch, batched = int(rng.choice([1, 1, 2, 3])), bool(rng.random() < 0.8)
    return Problem(size, kernel, stride, dilation, crop, batch if batched else 1, cin, cout, groups, dtypes[rng.integers(len(dtypes))],
                   str(rng.choice(["channels_first", "channels_last"])), batched, bool(rng.random() < 0.5), seed)  # fmt: skip


def _random_crop(rng, size, kernel, stride, dilation) -> tuple[int, int]:
    """(lo, hi) that leaves at least one output: none, the usual ones, more than K - 1, negative ones."""
    reach = dilation * (kernel - 1) + 1
    full = (size - 1) * stride + reach
    lo, hi = (int(v) for v in rng.integers(-3, reach + 3, 2)) if rng.random() < 0.7 else (0, 0)
    return (lo, min(hi, full - lo - 1))


# -------------------------------------------------------------------------------------------------------------------- assertions


def tolerance(magnitude, terms: int, dtype, expected):
    """The error allowed elementwise: a sum of `terms` products in any order, with or without FMA, then one rounding.

    |error| <= n u sum|x||w| always, and <= 8 sqrt(n) u sum|x||w| for rounding errors of mean zero but for one sum in 10^12
    (Higham and Mary 2019, theorem 2.4); `magnitude` is sum|x||w|, which the definition gives on absolute values.
    """
    name = np.dtype(dtype).name
    summed = ROUNDOFF[SUMMED_IN[name]] * min(terms + 1, 8 * np.sqrt(terms + 1)) * magnitude * 1.01
    rounded = ROUNDOFF[name] * (np.abs(expected) + summed) * 1.01 if name != SUMMED_IN[name] else 0
    return summed + rounded + SMALLEST[name] * (terms + 1)


def assert_close(actual, expected, magnitude, terms: int, dtype, problem: object = "") -> None:
    """Shape, dtype and every value within `tolerance`; NaN counts as wrong."""
    assert isinstance(actual, np.ndarray), f"{problem}: got {type(actual).__name__}, no array"
    assert actual.dtype == np.dtype(dtype), f"{problem}: dtype {actual.dtype}, expected {np.dtype(dtype)}"
    assert actual.shape == expected.shape, f"{problem}: shape {actual.shape}, expected {expected.shape}"
    error, allowed = np.abs(actual.astype(np.float64) - expected), tolerance(magnitude, terms, dtype, expected)
    wrong = ~(error <= allowed)
    if wrong.any():
        at = np.unravel_index(int(np.argmax(np.where(wrong, np.nan_to_num(error, nan=np.inf), 0))), error.shape)
        at = tuple(map(int, at))
        raise AssertionError(f"{problem}: {int(wrong.sum())} of {error.size} values wrong, worst at {at}: got {float(actual[at])!r}, "
                             f"expected {expected[at]!r}, error {error[at]:.3g}, allowed {allowed[at]:.3g}")  # fmt: skip


def assert_same_bits(actual, expected, problem: object = "") -> None:
    """Equal dtype, shape and bytes: tells -0.0 from 0.0 and compares NaN."""
    assert actual.dtype == expected.dtype, f"{problem}: dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{problem}: shape {actual.shape}, expected {expected.shape}"
    a, e = (np.ascontiguousarray(v).reshape(-1).view(np.uint8).reshape(v.size, v.dtype.itemsize) for v in (actual, expected))
    wrong = (a != e).any(axis=1)
    assert not wrong.any(), f"{problem}: {int(wrong.sum())} of {actual.size} values differ in bits, first at {int(np.argmax(wrong))}"


def assert_adjoint(y, ax, aty, x, terms: int, dtype, problem: object = "", slack: float = 0.0) -> None:
    """The dot test <y, A x> = <A^T y, x>; `slack` is sum |y| |A| |x|, which bounds the rounding of both sides."""
    y, ax, aty, x = (np.asarray(v, np.float64).ravel() for v in (y, ax, aty, x))
    name = np.dtype(dtype).name
    left, right = float(y @ ax), float(aty @ x)
    allowed = 2 * slack * (ROUNDOFF[SUMMED_IN[name]] * (terms + 2) + (ROUNDOFF[name] if name != SUMMED_IN[name] else 0))
    assert abs(left - right) <= allowed, f"{problem}: <y, Ax> = {left!r}, <A'y, x> = {right!r}, allowed difference {allowed:.3g}"


class Judge:
    """Expected values of the three operators for one problem, computed once, and the assertions on them."""

    def __init__(self, problem: Problem, arrays=None) -> None:
        self.problem = problem
        self.x, self.w, self.grad, self.bias = problem.arrays() if arrays is None else arrays
        self._exact: dict[str, np.ndarray] = {}
        self._magnitude: dict[str, np.ndarray] = {}

    def _define(self, operator: str, x, w, grad, bias) -> np.ndarray:
        if operator == "forward":
            return conv_transpose(x, w, *self.problem.geometry, bias)
        if operator == "grad_input":
            return grad_input(grad, w, self.problem.size, *self.problem.geometry)
        return grad_weight(x, grad, self.problem.kernel, *self.problem.geometry)

    def expected(self, operator: str) -> tuple[np.ndarray, np.ndarray]:
        """The values, and the same sums over absolute values."""
        if operator not in self._exact:
            arrays = [None if a is None else a.astype(np.float64) for a in (self.x, self.w, self.grad, self.bias)]
            self._exact[operator] = self._define(operator, *arrays)
            self._magnitude[operator] = self._define(operator, *(None if a is None else np.abs(a) for a in arrays))
        return self._exact[operator], self._magnitude[operator]

    def check(self, operator: str, actual, note: object = "", *, mixes: bool = False) -> None:
        """`actual` as the operator returned it (weights and data in the problem's layout).

        A kernel that `mixes` the outputs of a tile is allowed everywhere the error of the longest sum of the largest values.
        """
        expected, magnitude = self.expected(operator)
        if mixes and magnitude.size:
            values, w = (np.abs(a.astype(np.float64)).max(initial=0.0) for a in (self.x if operator == "forward" else self.grad, self.w))
            magnitude = np.full_like(magnitude, self.problem.terms[operator] * values * w + magnitude.max())
        if operator != "grad_weight":
            expected, magnitude = self.problem.arranged(expected), self.problem.arranged(magnitude)
        assert_close(actual, expected, magnitude, self.problem.terms[operator], self.problem.dtype, f"{operator} {note} {self.problem}")

    def run(self, operator: str, functions, **extra):
        """Call one operator of `functions` (tconv or tconv.reference) on this problem's arrays, laid out as it asks."""
        p, x, grad = self.problem, self.problem.arranged(self.x), self.problem.arranged(self.grad)
        if operator == "forward":
            return functions.conv_transpose(x, self.w, self.bias, **p.words, **extra)
        if operator == "grad_input":
            return functions.conv_transpose_grad_input(grad, self.w, p.size, **p.words, **extra)
        return functions.conv_transpose_grad_weight(x, grad, p.kernel, **p.words, **extra)


OPERATORS = ("forward", "grad_input", "grad_weight")
