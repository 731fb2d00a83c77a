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
from calls_jax import equinox, flax_linen, flax_nnx, haiku, jax, together
from calls_runtimes import mlx, ncnn, openvino, scipy, tflite
from draw import (
    Draw,
    draw_equinox,
    draw_flax,
    draw_haiku,
    draw_jax,
    draw_keras,
    draw_mlx,
    draw_ncnn,
    draw_onnx,
    draw_openvino,
    draw_scipy,
    draw_tensorflow,
    draw_tflite,
    draw_torch,
)

MORE = int(os.environ.get("TCONV_CASES", "1"))  # times as many layers of the libraries on JAX and of the runtimes

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


TRACED = (jax, flax_linen, flax_nnx, haiku, equinox)


def attempt(call: Callable[..., Any], cases: list[Case]) -> list[np.ndarray | str]:
    """The result of every call, or the text of what it raised; a framework that is missing is no refusal."""
    if call in TRACED or (call is keras and os.environ["KERAS_BACKEND"] == "jax"):
        return together(call, cases)
    if call is openvino:
        return [y for start in range(0, len(cases), 20) for y in openvino(cases[start : start + 20])]
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


@dataclass(frozen=True)
class Guest:
    """One framework (Keras: on one backend): `run` calls it on many layers, `draw` makes arguments for it."""

    name: str
    call: Callable[..., Any]
    draw: Callable[[Draw], tuple[dict[str, Any], dict[str, Any]]]
    cases: int
    environment: tuple[tuple[str, str], ...] = ()
    ranks: tuple[int, ...] = (1, 1, 2, 2, 3)

    def __str__(self) -> str:
        return self.name

    @property
    def framework(self) -> str:
        return self.call.__name__.split("_")[0]

    def run(self, cases: list[Case]) -> list[np.ndarray | str]:
        """The results for (x, w, arguments), or the texts of refusals."""
        return process(self.environment).submit(attempt, self.call, cases).result()


def axes(framework: str, words: dict[str, Any], groups: int = 1) -> tuple[str, str, bool]:
    """The letters of the weight's axes (I, O, * for the kernel, G for groups), the one that holds the groups, and whether data is
    channels first, said without tconv."""
    if framework in ("torch", "onnx", "coreml"):
        return "IO*", "I", True
    if framework in ("equinox", "ncnn"):
        return "OI*", "O", True
    if framework == "openvino":
        return ("GIO*", "G", True) if groups > 1 else ("IO*", "I", True)
    if framework == "mlx":
        return "O*I", "O", False
    if framework == "tflite":
        return "O*I" if len(words["output_shape"]) == 4 else "*OI", "I", False
    if framework == "scipy":
        return "*", "I", True
    if framework == "haiku":
        return "*OI", "I", words.get("data_format", "").replace("channels_first", "NC").startswith("NC")
    if framework not in ("jax", "flax"):
        return "*OI", "I", False
    first = "dimension_numbers" in words  # as draw_jax writes it, "OI" + spatial
    letters = "OI" if first else "IO"
    letters = letters[::-1] if words.get("transpose_kernel") else letters
    return letters + "*" if first else "*" + letters, "I", first


@cache
def process(environment: tuple[tuple[str, str], ...]) -> ProcessPoolExecutor:
    """Keras's backends exclude each other, so each environment has its process; it is started at its first use."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare, initargs=(dict(environment),))


def apart(name: str) -> tuple[tuple[str, str], ...]:
    """A process of its own, for those whose native libraries need not get on with all the others'."""
    return (("TCONV_GUEST", name),)


# XLA compiles every shape anew, for 20 to 60 ms; hence the numbers of what runs on it.
GUESTS = [
    Guest("torch", torch, draw_torch, 4000),
    Guest("onnx", onnx, draw_onnx, 4000),
    Guest("tensorflow", tensorflow, draw_tensorflow, 3000),
    Guest("keras-tensorflow", keras, draw_keras, 2000, (("KERAS_BACKEND", "tensorflow"),)),
    Guest("keras-torch", keras, draw_keras, 2000, (("KERAS_BACKEND", "torch"),)),
    Guest("keras-jax", keras, draw_keras, 300, (("KERAS_BACKEND", "jax"),)),
    Guest("jax", jax, draw_jax, 2000),
    Guest("flax-linen", flax_linen, draw_flax, 300 * MORE),
    Guest("flax-nnx", flax_nnx, draw_flax, 300 * MORE),
    Guest("haiku", haiku, draw_haiku, 400 * MORE),
    Guest("equinox", equinox, draw_equinox, 300 * MORE),
    Guest("mlx", mlx, draw_mlx, 2000 * MORE, apart("mlx")),
    Guest("tflite", tflite, draw_tflite, 2000 * MORE, apart("tflite"), (2, 2, 3)),
    Guest("openvino", openvino, draw_openvino, 1000 * MORE, apart("openvino")),
    Guest("ncnn", ncnn, draw_ncnn, 1500 * MORE, apart("ncnn")),
    Guest("scipy", scipy, draw_scipy, 1000 * MORE, ranks=(1,)),
]
