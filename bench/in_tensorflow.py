# SPDX-License-Identifier: Apache-2.0
"""Times inside TensorFlow: `tconv.tensorflow` beside `tf.nn.conv_transpose` on the same tensors, in one process and in turns.

With --keras, `tconv.keras` beside Keras's own layer, on TensorFlow. These are the tables of docs/design.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from tconv import Spec

from . import layers
from .turns import medians

# One call each: layers "same" with channels last, of which the first is all overhead.
PROBLEMS = ("c1:1 i2x2 k2 p0:1", "c64:64 i32x32 k4 s2 p1", "c32:16 i64x64 k3 s2 p0:1", "n4 c128:64 i16x16 k4 s2 p1",
            "c16:3 i128x128 k4 s2 p1", "c256:128 i16x16 k2 s2")  # fmt: skip
Call = Callable[[], Any]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench tensorflow", description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), metavar="LINE")
    parser.add_argument(
        "--listed", action="store_true", help="the layers of bench/layers.csv that TensorFlow has, up to 2 billion multiply-adds"
    )
    parser.add_argument("--rounds", type=int, default=200, help="turns of each side at most, of which the medians are told (default 200)")
    parser.add_argument("--threads", type=int, default=2, help="processors that the process may use (default 2)")
    parser.add_argument("--keras", action="store_true", help="Keras's layers and ours, on TensorFlow")
    asked = parser.parse_args(words)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.threads])
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow"}
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(asked.threads)
    sides = _keras_sides if asked.keras else _sides
    columns = ["graph", "gradients"] if asked.keras else ["eager", "graph", "gradients"]
    theirs = "Keras" if asked.keras else "TensorFlow"
    print(f"| problem | core | {' | '.join(f'{column}: {theirs} | ours' for column in columns)} |\n|{'---|' * (2 + 2 * len(columns))}")
    ratios: list[list[float]] = []
    for line in listed() if asked.listed else asked.problems:
        core, *pairs = sides(Spec.parse(line))
        times = medians(asked.rounds, core, *(call for pair in pairs for call in pair))
        print(f"| {line} | {' | '.join(f'{time:.3g}' for time in times)} |", flush=True)
        if Spec.parse(line).macs > 1000:
            ratios.append([stock / ours for stock, ours in zip(times[1::2], times[2::2], strict=True)])
    means = [statistics.geometric_mean(column) for column in zip(*ratios, strict=True)]
    said = ", ".join(f"{column} {mean:.2f}" for column, mean in zip(columns, means, strict=True))
    print(f"geometric means of {len(ratios)} layers, {theirs}'s time over ours: {said}")
    return 0


def listed() -> list[str]:
    """The layers of the list without groups and dilation, as "same", each once."""
    found = [layer.spec for layer in layers.read()]
    fit = [s for s in found if s.groups == 1 and set(s.dilation) == {1} and s.macs <= 2e9]
    same = (Spec.build(s.input_size, s.kernel_size, stride=s.stride, padding="same", batch=s.batch, in_channels=s.in_channels,
                       out_channels=s.out_channels) for s in fit)  # fmt: skip
    return list(dict.fromkeys(map(str, same)))


def _arrays(spec: Spec) -> list[Any]:
    """x (N, *I, Cin), w (*k, Cout, Cin), and a gradient by the output."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    shapes = ((spec.batch, *spec.input_size, spec.in_channels), (*spec.kernel_size, spec.out_channels, spec.in_channels),
              (spec.batch, *spec.output_size, spec.out_channels))  # fmt: skip
    return [tf.constant(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]


def _core(spec: Spec, x: Any, w: Any) -> Call:
    """The core alone, on NumPy's arrays, where the result is new memory too."""
    import tconv

    array, weight = x.numpy(), np.moveaxis(w.numpy(), (-1, -2), (0, 1))
    return lambda: tconv.conv_transpose(array, weight, stride=spec.stride, padding=spec.crop, layout="channels_last")


def _sides(spec: Spec) -> list[Any]:
    """The core, and then TensorFlow's call and ours: eager, in a graph, and in a graph with both gradients."""
    import tensorflow as tf

    import tconv.tensorflow

    x, w, g = _arrays(spec)
    shape = tuple(g.shape)

    def theirs(x: Any, w: Any) -> Any:
        return tf.nn.conv_transpose(x, w, shape, spec.stride, "SAME")

    def ours(x: Any, w: Any) -> Any:
        return tconv.tensorflow.conv_transpose(x, w, strides=spec.stride, padding="same")

    _check(spec, theirs(x, w), ours(x, w))
    eager = [lambda one=one: one(x, w) for one in (theirs, ours)]  # type: ignore[misc]
    graph = [_call(tf.function(one, autograph=False), x, w) for one in (theirs, ours)]
    gradients = [_call(tf.function(_step(one), autograph=False), x, w, g) for one in (theirs, ours)]
    return [_core(spec, x, w), eager, graph, gradients]


def _keras_sides(spec: Spec) -> list[Any]:
    """The core, and then Keras's layer and ours: in a graph, and in a graph with the gradients by x, kernel and bias."""
    import keras
    import tensorflow as tf

    import tconv.keras

    x, w, g = _arrays(spec)
    graph, gradients, values = [], [], []
    for made in (keras.layers.Conv2DTranspose, tconv.keras.Conv2DTranspose):
        layer = made(spec.out_channels, spec.kernel_size, spec.stride, "same")
        layer.build(x.shape)
        layer.kernel.assign(w)
        values.append(layer(x))
        graph.append(_call(tf.function(layer, autograph=False), x))

        def step(x: Any, g: Any, layer: Any = layer) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            return y, tape.gradient(y, [x, *layer.trainable_variables], g)

        gradients.append(_call(tf.function(step, autograph=False), x, g))
    _check(spec, *values)
    return [_core(spec, x, w), graph, gradients]


def _call(function: Any, *arrays: Any) -> Call:
    return lambda: function(*arrays)


def _step(function: Any) -> Any:
    import tensorflow as tf

    def step(x: Any, w: Any, g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = function(x, w)
        return y, *tape.gradient(y, [x, w], g)

    return step


def _check(spec: Spec, theirs: Any, ours: Any) -> None:
    theirs, ours = theirs.numpy(), ours.numpy()
    close = abs(theirs - ours).max() / abs(theirs).max()
    if not close < 1e-4:
        raise SystemExit(f"bench: {spec}: the two differ by {close:.2g} of the largest value")
