# SPDX-License-Identifier: Apache-2.0
"""Peers whose data is (N, C, ...): PyTorch, which also takes channels_last memory, ONNX Runtime, OpenVINO, and tconv."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .._runtime import fresh
from .._spec import Spec
from . import words
from .arrays import Run, channels_last, first
from .layer import Array, placed
from .words import Cannot


class Torch:
    """torch.nn.functional.conv_transpose*d."""

    note = "contiguous (N, C, ...); weight an argument; output new"

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        torch.set_grad_enabled(False)
        self.torch, self.version = torch, torch.__version__

    def format(self, rank: int) -> Any:
        return self.torch.contiguous_format

    def prepare(self, spec: Spec, x: Array, w: Array) -> Run:
        layer = getattr(self.torch.nn.functional, f"conv_transpose{spec.rank}d")
        a, b = (self.torch.from_numpy(v).to(memory_format=self.format(spec.rank)) for v in (x, w))
        asked = words.torch(spec.axes)
        if asked:
            return lambda: layer(a, b, None, spec.stride, *asked, spec.groups, spec.dilation)
        cut = (..., *words.slices(spec.axes))
        return lambda: layer(a, b, None, spec.stride, 0, 0, spec.groups, spec.dilation)[cut]

    def result(self, y: Any) -> Array:
        return np.asarray(y.contiguous().numpy())


class TorchChannelsLast(Torch):
    note = "memory format channels_last of data and weight; weight an argument; output new"

    def format(self, rank: int) -> Any:
        if rank == 1:
            raise Cannot("PyTorch: no channels_last memory format in 1-D")
        return self.torch.channels_last if rank == 2 else self.torch.channels_last_3d


class OnnxRuntime:
    """One ConvTranspose node; input and output bound, so that nothing is copied."""

    note = "(N, C, ...); weight an initializer; output reused"

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self.onnx, self.ort, self.threads, self.version = onnx, onnxruntime, threads, onnxruntime.__version__

    def prepare(self, spec: Spec, x: Array, w: Array) -> Run:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        session = self.ort.InferenceSession(self.model(spec, w), options, providers=["CPUExecutionProvider"])
        bound, of = session.io_binding(), self.ort.OrtValue.ortvalue_from_numpy
        self.y = of(fresh(spec.output_shape, x.dtype))
        bound.bind_ortvalue_input("x", of(x))
        bound.bind_ortvalue_output("y", self.y)
        return lambda: session.run_with_iobinding(bound)

    def model(self, spec: Spec, w: Array) -> bytes:
        helper, numpy_helper = self.onnx.helper, self.onnx.numpy_helper
        begin, end, extra = words.onnx(spec.axes)
        arguments: dict[str, Any] = {"kernel_shape": spec.kernel_size, "strides": spec.stride, "dilations": spec.dilation, "group": spec.groups,
                                     "pads": [*begin, *end], "output_padding": extra}  # fmt: skip
        kind = helper.np_dtype_to_tensor_dtype(w.dtype)
        x, y = (helper.make_tensor_value_info(n, kind, s) for n, s in (("x", spec.input_shape), ("y", spec.output_shape)))
        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **arguments)
        graph = helper.make_graph([node], "layer", [x], [y], [numpy_helper.from_array(w, "w")])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return bytes(made.SerializeToString())

    def result(self, y: Any) -> Array:
        return np.asarray(self.y.numpy())


class OpenVino:
    """(Group)ConvolutionBackpropData in a compiled model; float32 is forced, where AMX would make it bfloat16."""

    note = "(N, C, ...); weight a constant; output reused"

    def __init__(self, threads: int) -> None:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else importing openvino starts a process that calls home
        import openvino

        self.ov, self.threads, self.version = openvino, threads, openvino.__version__.split("-")[0]

    def prepare(self, spec: Spec, x: Array, w: Array) -> Run:
        from openvino import opset13 as ops

        begin, end, extra = words.onnx(spec.axes)
        arguments = {"strides": list(spec.stride), "pads_begin": begin, "pads_end": end, "dilations": list(spec.dilation),
                     "output_padding": extra}  # fmt: skip
        data = ops.parameter(list(spec.input_shape), x.dtype)
        if spec.groups == 1:
            node = ops.convolution_backprop_data(data, ops.constant(w), **arguments)
        else:
            grouped = w.reshape(spec.groups, -1, *w.shape[1:])
            node = ops.group_convolution_backprop_data(data, ops.constant(grouped), **arguments)
        settings = {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32",
                    "PERFORMANCE_HINT": "LATENCY"}  # fmt: skip
        request = self.ov.Core().compile_model(self.ov.Model([node], [data]), "CPU", settings).create_infer_request()
        request.set_input_tensor(self.ov.Tensor(x))
        self.request = request
        return request.infer  # type: ignore[no-any-return]

    def result(self, y: Any) -> Array:
        return np.array(self.request.get_output_tensor().data)


class Ours:
    """tconv.conv_transpose, called as the functions of the frameworks are."""

    how = "weight an argument, packed in every call; output new"

    def __init__(self, threads: int, layout: str = "channels_first", algorithm: str = "auto", dtype: str | None = None) -> None:
        import tconv

        self.tconv, self.version, self.dtype, self.layout = tconv, tconv.__version__, dtype, layout
        self.note = f"{'contiguous (N, C, ...)' if layout == 'channels_first' else '(N, ..., C)'}; {self.how}"
        self.options: dict[str, Any] = {"layout": layout, "algorithm": algorithm, "threads": threads}

    def arrays(self, spec: Spec, x: Array, w: Array) -> tuple[Array, Array, dict[str, Any]]:
        arguments = {"stride": spec.stride, "padding": spec.crop, "dilation": spec.dilation, "groups": spec.groups, **self.options}
        x = x if self.layout == "channels_first" else x.transpose(channels_last(spec.rank))
        return placed(x, self.dtype), placed(w, self.dtype), arguments

    def prepare(self, spec: Spec, x: Array, w: Array) -> Run:
        a, b, arguments = self.arrays(spec, x, w)
        return lambda: self.tconv.conv_transpose(a, b, **arguments)

    def result(self, y: Any) -> Array:
        return np.asarray(y) if self.layout == "channels_first" else first(y)


class OurOperator(Ours):
    """tconv.Operator, the weight packed once."""

    how = "weight packed once; output reused"

    def prepare(self, spec: Spec, x: Array, w: Array) -> Run:
        a, b, arguments = self.arrays(spec, x, w)
        operator = self.tconv.Operator(b, **arguments)
        out = operator(a)
        return lambda: operator(a, out=out)
