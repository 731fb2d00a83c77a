# SPDX-License-Identifier: Apache-2.0
"""The frameworks as tests call them: each in a process of its own, taking many layers at once, arrays in its own axes.

A guest is one line of `GUESTS`: the framework's name in `tconv.conventions`, how to call it, how to draw arguments for
it. Data is (N, C, *size) or (N, *size, C) as `layout` says; nothing here uses tconv.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np

Case = tuple[Any, Any, dict[str, Any]]  # x and w in the framework's axes, its arguments

# ---------------------------------------------------------------------------------------------------- in the guest's process


def torch(x, w, output_size=None, groups=1, **words):
    import torch

    name = f"ConvTranspose{x.ndim - 2}d"
    layer = getattr(torch.nn, name)(w.shape[0], w.shape[1] * groups, groups=groups, bias=False, dtype=torch.float64, **words)
    layer.weight.data = torch.from_numpy(w)
    return layer(torch.from_numpy(x), output_size).detach()


def onnx(x, w, **words):
    import onnx.helper as make
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    value = make.make_tensor_value_info
    x, w = x.astype(np.float32), w.astype(np.float32)  # all that onnxruntime has on a CPU
    node = make.make_node("ConvTranspose", ["x", "w"], ["y"], **words)
    graph = make.make_graph([node], "g", [value("x", 1, x.shape), value("w", 1, w.shape)], [value("y", 1, [None] * x.ndim)])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 11)], ir_version=8).SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x, "w": w})[0]


def tensorflow(x, w, dilations=1, **words):
    import tensorflow

    dtype = np.float64 if np.max(dilations) == 1 else np.float32  # float64 has no dilation on a CPU
    return tensorflow.nn.conv_transpose(x.astype(dtype), w.astype(dtype), dilations=dilations, **words)


def keras(x, w, **words):
    import keras

    dilated = np.max(words.get("dilation_rate", 1)) > 1 and keras.backend.backend() == "tensorflow"
    dtype = "float32" if dilated else "float64"
    layer = getattr(keras.layers, f"Conv{x.ndim - 2}DTranspose")(w.shape[-2], **words)
    # what the layer's call does; to build it would compile an initializer for every shape
    return keras.ops.conv_transpose(x.astype(dtype), w.astype(dtype), layer.strides, layer.padding, layer.output_padding,
                                    layer.data_format, layer.dilation_rate)  # fmt: skip


def jax(x, w, **words):
    import jax

    return jax.lax.conv_transpose(x, w, **words)


def attempt(call: Callable[..., Any], cases: list[Case]) -> list[np.ndarray | str]:
    """The result of every call, or the text of what it raised; a framework that is missing is no refusal."""
    results: list[np.ndarray | str] = []
    for x, w, words in cases:
        try:
            results.append(np.asarray(call(x, w, **words)))
        except ImportError:
            raise
        except Exception as error:
            results.append(f"{type(error).__name__}: {str(error)[:300]}")
    return results


def prepare(environment: dict[str, str]) -> None:
    """Before any import of a framework: quiet, one thread, 64-bit floats, quick compilation."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu",
                   "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": "--xla_backend_optimization_level=0", **environment}  # fmt: skip


# -------------------------------------------------------------------------------------------------------- in the test's process


class Draw:
    """Random layers, legal or nearly so: kernels below, at and above the stride, odd and even, dilated or not."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rank = self.one(1, 1, 2, 2, 3)
        self.size, self.kernel = (self.each(lambda: self.upto({1: 7, 2: 4, 3: 3}[self.rank])) for _ in range(2))
        self.stride = self.each(lambda: self.one(1, 1, 2, 2, 3, 4))
        self.dilation = (1,) * self.rank if self.rng.random() < 0.6 else self.each(lambda: self.upto(3))
        self.groups = self.one(1, 1, 1, 2, 3)
        self.channels = tuple(self.groups * self.upto(2) for _ in range(2))
        self.batch = self.upto(2)

    def one(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def upto(self, most: int, least: int = 1) -> int:
        return int(self.rng.integers(least, most + 1))

    def each(self, draw: Callable[[], int]) -> tuple[int, ...]:
        return tuple(draw() for _ in range(self.rank))

    def some(self, **words) -> dict[str, Any]:
        """A word, or none of it, half of the time each."""
        return {name: value for name, value in words.items() if self.rng.random() < 0.5}

    def short(self, values: tuple[int, ...]) -> int | tuple[int, ...]:
        """One int for all axes, where that says the same."""
        return values[0] if len(set(values)) == 1 and self.rng.random() < 0.5 else values

    @property
    def reach(self) -> list[int]:
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    def sizes(self, least: int, most: int) -> tuple[int, ...]:
        """Output sizes around the full one."""
        full = [(i - 1) * s + reach for i, s, reach in zip(self.size, self.stride, self.reach, strict=True)]
        return tuple(max(1, f + self.upto(most, least)) for f in full)

    def facts(self, kernel: bool = False) -> dict[str, Any]:
        """What the arrays tell; `kernel` for a framework that does not take its size as an argument."""
        known = {"input_size": self.size, "batch": self.batch, "in_channels": self.channels[0], "out_channels": self.channels[1]}
        return known | ({"kernel_size": self.kernel} if kernel else {})


def draw_torch(d: Draw):
    words = {"kernel_size": d.kernel, "stride": d.stride, "dilation": d.dilation}
    padding = d.each(lambda: d.upto(3, -1 if d.upto(30) == 1 else 0))
    words = {name: d.short(value) for name, value in (words | {"padding": padding}).items()} | {"groups": d.groups}
    if d.upto(3) == 1:
        least = [(i - 1) * s + reach - 2 * p for i, s, reach, p in zip(d.size, d.stride, d.reach, padding, strict=True)]
        return d.facts(), words | {"output_size": [m + d.upto(s - d.one(0, 1, 1, 1), 0) for m, s in zip(least, d.stride, strict=True)]}
    extra = tuple(d.upto(max(s, r) - d.one(0, 1, 1, 1), 0) for s, r in zip(d.stride, d.dilation, strict=True))
    return d.facts(), words | d.some(output_padding=extra)


def draw_onnx(d: Draw):
    words = {"kernel_shape": d.kernel, "strides": d.stride, "group": d.groups} | d.some(dilations=d.dilation)
    d.dilation = words.get("dilations", (1,) * d.rank)
    words |= d.some(output_padding=d.each(lambda: d.upto(2, 0)))
    padded = d.one({}, {"pads": [d.upto(3, 0) for _ in range(2 * d.rank)]}, {"auto_pad": d.one("VALID", "SAME_UPPER", "SAME_LOWER")})
    return d.facts(), words | padded | (d.one({}, {"output_shape": list(d.sizes(-4, 2))}))


def draw_tensorflow(d: Draw):
    d.groups, d.channels = 1, (d.upto(3), d.upto(3))
    padding = d.one("SAME", "SAME", "VALID", *[((0, 0), *((d.upto(3, 0), d.upto(3, 0)) for _ in "HW"), (0, 0))] * (d.rank == 2))
    same = tuple(i * s - d.upto(s if d.upto(9) == 1 else s - 1, 0) for i, s in zip(d.size, d.stride, strict=True))
    if padding == "SAME":
        sizes = same
    else:
        pads = [(0, 0)] * d.rank if padding == "VALID" else padding[1:-1]
        sizes = tuple(max(1, f - a - b) for f, (a, b) in zip(d.sizes(0, max(min(d.stride) - d.upto(2), 0)), pads, strict=True))
    words = {"strides": d.short(d.stride), "output_shape": (d.batch, *sizes, d.channels[1]), "padding": padding}
    return d.facts(kernel=True), words | ({"dilations": d.short(d.dilation)} if max(d.dilation) > 1 else {})


def draw_keras(d: Draw):
    d.groups, d.channels = 1, (d.upto(3), d.upto(3))
    if d.upto(9) > 1:
        d.stride, d.dilation = d.one((d.stride, (1,) * d.rank), ((1,) * d.rank, d.dilation))
    words = {"kernel_size": d.kernel, "strides": d.stride, "dilation_rate": d.dilation}
    extra = d.each(lambda: d.upto(3, 0)) if d.upto(9) == 1 else tuple(d.upto(s - 1, 0) for s in d.stride)
    words = {name: d.short(value) for name, value in words.items()} | d.some(output_padding=extra)
    return d.facts(), words | {"padding": d.one("valid", "same")}


def draw_jax(d: Draw):
    d.groups, d.channels = 1, (d.upto(3), d.upto(3))
    pads = [(d.upto(reach + 2, -1), d.upto(reach + 2, -1)) for reach in d.reach]
    words = {"strides": d.stride, "padding": d.one("SAME", "VALID", pads, pads)} | d.some(rhs_dilation=d.dilation)
    words |= d.some(transpose_kernel=True, use_consistent_padding=True)
    spatial = "HWD"[: d.rank]
    numbers = (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
    return d.facts(kernel=True), words | ({"dimension_numbers": numbers} if d.upto(3) == 1 else {})


@dataclass(frozen=True)
class Guest:
    """One framework (Keras: on one backend): `run` calls it on many layers, `draw` makes arguments for it."""

    name: str
    call: Callable[..., Any]
    draw: Callable[[Draw], tuple[dict[str, Any], dict[str, Any]]]
    cases: int
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def framework(self) -> str:
        return self.call.__name__

    def run(self, cases: list[Case]) -> list[np.ndarray | str]:
        """The results for (x, w, arguments), or the texts of refusals."""
        return process(self.environment).submit(attempt, self.call, cases).result()


def axes(framework: str, words: dict[str, Any]) -> tuple[str, bool]:
    """The letters of the weight's axes (I, O, * for the kernel) and whether data is channels first, said without tconv."""
    if framework in ("torch", "onnx"):
        return "IO*", True
    if framework != "jax":
        return "*OI", False
    first = "dimension_numbers" in words  # as draw_jax writes it, "OI" + spatial
    letters = "OI" if first else "IO"
    letters = letters[::-1] if words.get("transpose_kernel") else letters
    return (letters + "*" if first else "*" + letters), first


@cache
def process(environment: tuple[tuple[str, str], ...]) -> ProcessPoolExecutor:
    """Keras's backends exclude each other, so each environment has its process; it is started at its first use."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare, initargs=(dict(environment),))


# JAX compiles every shape anew, for 30 ms, and Keras on JAX twice as long; hence their numbers.
GUESTS = [
    Guest("torch", torch, draw_torch, 4000),
    Guest("onnx", onnx, draw_onnx, 4000),
    Guest("tensorflow", tensorflow, draw_tensorflow, 3000),
    Guest("keras-tensorflow", keras, draw_keras, 2000, (("KERAS_BACKEND", "tensorflow"),)),
    Guest("keras-torch", keras, draw_keras, 2000, (("KERAS_BACKEND", "torch"),)),
    Guest("keras-jax", keras, draw_keras, 300, (("KERAS_BACKEND", "jax"),)),
    Guest("jax", jax, draw_jax, 2000),
]
