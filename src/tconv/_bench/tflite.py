# SPDX-License-Identifier: Apache-2.0
"""A LiteRT model of one transposed convolution, written by hand: NHWC, weight as a constant, and a slice where the crop needs one."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layer import Array
from .words import Asked


def model(x_shape: tuple[int, ...], w: Array, stride: tuple[int, ...], asked: Asked) -> bytes:
    """The flat buffer; x_shape (N, H, W, Cin), w (Cout, KH, KW, Cin)."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    batch, channels = x_shape[0], w.shape[0]
    built = s.ModelT()
    built.version, built.subgraphs, built.buffers = 3, [s.SubGraphT()], [s.BufferT()]
    graph = built.subgraphs[0]
    graph.tensors, graph.operators = [], []

    def tensor(name: str, shape: tuple[int, ...], value: Array | None = None) -> int:
        made = s.TensorT()
        made.name, made.shape, made.buffer = name, list(shape), 0
        made.type = s.TensorType.INT32 if value is not None and value.dtype == np.int32 else s.TensorType.FLOAT32
        if value is not None:
            made.buffer = len(built.buffers)
            built.buffers.append(s.BufferT())
            built.buffers[-1].data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def ints(name: str, *values: int) -> int:
        return tensor(name, (len(values),), np.array(values, np.int32))

    x = tensor("x", x_shape)
    full = tensor("full", (batch, *asked.size, channels))
    inputs = [ints("size", batch, *asked.size, channels), tensor("w", w.shape, w), x]
    _operator(s, built, s.BuiltinOperator.TRANSPOSE_CONV, inputs, full, _options(s, stride, asked.padding))
    y = full
    if asked.cut is not None:
        kept = (batch, *(c.stop - c.start for c in asked.cut), channels)
        y = tensor("y", kept)
        begin, size = ints("begin", 0, *(c.start for c in asked.cut), 0), ints("kept", *kept)
        _operator(s, built, s.BuiltinOperator.SLICE, [full, begin, size], y, None)
    graph.inputs, graph.outputs = [x], [y]
    builder = flatbuffers.Builder(w.nbytes + 4096)
    builder.Finish(built.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _options(s: Any, stride: tuple[int, ...], padding: str) -> Any:
    options = s.TransposeConvOptionsT()
    options.strideH, options.strideW = stride
    options.padding = getattr(s.Padding, padding)
    return options


def _operator(s: Any, built: Any, code: int, inputs: list[int], output: int, options: Any) -> None:
    built.operatorCodes = built.operatorCodes or []
    kind = s.OperatorCodeT()
    kind.builtinCode = kind.deprecatedBuiltinCode = code
    kind.version = 1
    built.operatorCodes.append(kind)
    operator = s.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = len(built.operatorCodes) - 1, inputs, [output]
    if options is not None:
        operator.builtinOptionsType, operator.builtinOptions = s.BuiltinOptions.TransposeConvOptions, options
    built.subgraphs[0].operators.append(operator)
