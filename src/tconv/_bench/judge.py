# SPDX-License-Identifier: Apache-2.0
"""The error of a result: a random sample of outputs against their definition in float64, independent of every kernel."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from .._spec import Axis, Spec
from .layer import Array

SAMPLE = 512


class Error(NamedTuple):
    """Error of a sample relative to the largest |y| in it."""

    max: float
    rms: float


def sample(spec: Spec, count: int = SAMPLE, seed: int = 0) -> Array:
    """`count` random flat positions of the output (N, Cout, *O), and its first and last element."""
    size = prod(spec.output_shape)
    drawn = np.random.default_rng(seed).integers(0, size, count)
    return np.unique(np.concatenate([drawn, [0, size - 1]]))


def expected(spec: Spec, x: Array, w: Array, positions: Array) -> Array:
    """y[n, m, o] = sum over c of the group, i, t with i * stride + t * dilation = o + lo of x[n, c, i] * w[c, m, t], in float64."""
    outputs = zip(*np.unravel_index(positions, spec.output_shape), strict=True)
    return np.array([_one(spec, x, w, [int(i) for i in index]) for index in outputs])


def _one(spec: Spec, x: Array, w: Array, index: list[int]) -> float:
    batch, channel, *at = index
    width, group = w.shape[1], channel // w.shape[1]
    inputs = slice(group * spec.in_channels // spec.groups, (group + 1) * spec.in_channels // spec.groups)
    total = 0.0
    for pairs in product(*(_pairs(axis, o) for axis, o in zip(spec.axes, at, strict=True))):
        i, t = zip(*pairs, strict=True)
        total += float(np.dot(x[batch, inputs, *i].astype(np.float64), w[inputs, channel % width, *t].astype(np.float64)))
    return total


def _pairs(axis: Axis, output: int) -> list[tuple[int, int]]:
    """(input, tap) pairs that meet in one output."""
    return [(i, (output + axis.lo - i * axis.stride) // axis.dilation) for i in axis.inputs_of(output)]


def error(y: Array, true: Array) -> Error:
    """The error of a sampled result; a result that holds NaN has an infinite error."""
    scale = float(np.max(np.abs(true))) or 1.0
    wrong = np.nan_to_num(np.abs(np.asarray(y, np.float64) - true), nan=np.inf) / scale
    return Error(float(wrong.max()), float(np.sqrt(np.mean(wrong**2))))
