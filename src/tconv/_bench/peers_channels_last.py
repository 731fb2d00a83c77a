# SPDX-License-Identifier: Apache-2.0
"""Peers whose data is (N, ..., C): TensorFlow, JAX, LiteRT."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import numpy as np

from .._spec import Spec
from . import tflite, words
from .arrays import Run, channels_last, first, to_2d
from .layer import Array
from .words import Cannot


class TensorFlow:
    """tf.nn.conv2d_transpose and conv3d_transpose; 1-D as 2-D of height 1, as tf.nn.conv1d_transpose does; depthwise in 2-D."""

    note = "(N, ..., C); weight a captured constant; output new"

    def __init__(self, threads: int) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.tf, self.version = tf, tf.__version__

    def prepare(self, spec: Spec, x: Array, w: Array) -> Run:
        tf, rank = self.tf, max(spec.rank, 2)
        self.squeeze = spec.rank == 1
        axes, x, w = to_2d(spec, x, w)
        data, weight = tf.constant(x.transpose(channels_last(rank))), tf.constant(w.transpose(*range(2, rank + 2), 1, 0))
        asked = words.tensorflow(axes, explicit=rank == 2)
        shape, layer = (spec.batch, *asked.size, spec.out_channels), self.layer(spec)
        strides, dilations = [a.stride for a in axes], [a.dilation for a in axes]

        @tf.function  # type: ignore[untyped-decorator]
        def forward(data: Any) -> Any:
            y = layer(data, weight, shape, strides, asked.padding, dilations)
            return y if asked.cut is None else y[(slice(None), *asked.cut)]

        compiled = forward.get_concrete_function(data)
        return lambda: compiled(data)

    def layer(self, spec: Spec) -> Any:
        """A function of data, weight, output shape, strides, padding, dilations."""
        nn = self.tf.nn
        if spec.groups == 1:
            layer = nn.conv3d_transpose if spec.rank == 3 else nn.conv2d_transpose
            return lambda x, w, shape, strides, padding, dilations: layer(x, w, shape, strides, padding, dilations=dilations)
        if spec.rank == 2 and spec.groups == spec.in_channels == spec.out_channels:
            turn = self.tf.transpose
            return lambda x, w, shape, strides, padding, dilations: nn.depthwise_conv2d_backprop_input(
                shape, turn(w, (0, 1, 3, 2)), x, [1, *strides, 1], padding, dilations=dilations)  # fmt: skip
        raise Cannot("TensorFlow: no groups, but 2-D depthwise as the gradient of tf.nn.depthwise_conv2d")

    def result(self, y: Any) -> Array:
        return first(y.numpy(), self.squeeze)


class Jax:
    """lax.conv_general_dilated with lhs_dilation, compiled: lax.conv_transpose, with groups and any crop.

    XLA has no switch for its threads: it takes as many as processors the process may run on.
    """

    note = "(N, ..., C); weight an argument; output new"

    def __init__(self, threads: int) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax

        self.jax, self.version = jax, jax.__version__

    def prepare(self, spec: Spec, x: Array, w: Array) -> Run:
        if x.dtype == np.float64:
            self.jax.config.update("jax_enable_x64", True)  # without it JAX makes them float32
        letters = "DHW"[-spec.rank :]
        numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        flipped = np.flip(w, tuple(range(2, w.ndim))).reshape(spec.groups, -1, *w.shape[1:])  # (g, Cin / g, Cout / g, *k)
        kernel = np.moveaxis(flipped, 0, 1).reshape(flipped.shape[1], -1, *w.shape[2:])  # (Cin / g, Cout, *k)
        padding = [(a.extent - 1 - a.lo, a.extent - 1 - a.hi) for a in spec.axes]

        def forward(data: Any, weight: Any) -> Any:
            return self.jax.lax.conv_general_dilated(
                data, weight, [1] * spec.rank, padding, lhs_dilation=spec.stride, rhs_dilation=spec.dilation, dimension_numbers=numbers,
                feature_group_count=spec.groups)  # fmt: skip

        a = self.jax.numpy.asarray(x.transpose(channels_last(spec.rank)))
        b = self.jax.numpy.asarray(kernel.transpose(*range(2, w.ndim), 0, 1))
        compiled = self.jax.jit(forward).lower(a, b).compile()
        return lambda: compiled(a, b).block_until_ready()

    def result(self, y: Any) -> Array:
        return first(y)


class LiteRT:
    """TRANSPOSE_CONV with XNNPACK, 1-D as 2-D of height 1."""

    note = "(N, H, W, C); weight a constant; output reused"

    def __init__(self, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter, self.threads, self.version = Interpreter, threads, version("ai-edge-litert")

    def prepare(self, spec: Spec, x: Array, w: Array) -> Run:
        lacks = {
            "no float64": x.dtype == np.float64,
            "no groups": spec.groups > 1,
            "no 3-D in XNNPACK": spec.rank == 3,
            "no dilation": max(spec.dilation) > 1,
        }
        for reason in (text for text, holds in lacks.items() if holds):
            raise Cannot(f"LiteRT: {reason}")
        self.squeeze = spec.rank == 1
        axes, x, w = to_2d(spec, x, w)
        data = x.transpose(channels_last(2))
        asked = words.tensorflow(axes, explicit=False)
        made = tflite.model(data.shape, w.transpose(1, 2, 3, 0), tuple(a.stride for a in axes), asked)
        self.model = self.interpreter(model_content=made, num_threads=self.threads)
        self.model.allocate_tensors()
        if not any("DELEGATE" in op["op_name"].upper() for op in self.model._get_ops_details()):
            raise Cannot("LiteRT: XNNPACK refuses this layer")
        self.model.set_tensor(self.model.get_input_details()[0]["index"], data)
        return self.model.invoke  # type: ignore[no-any-return]

    def result(self, y: Any) -> Array:
        return first(self.model.get_tensor(self.model.get_output_details()[0]["index"]), self.squeeze)
