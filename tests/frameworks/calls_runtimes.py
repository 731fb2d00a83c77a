# SPDX-License-Identifier: Apache-2.0
"""Runtimes and libraries of other kinds, as tests call them: MLX, OpenVINO, LiteRT, ncnn, SciPy, and Core ML's inference of shapes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np


def mlx(x, w, **words):
    import mlx.core

    layer = getattr(mlx.core, f"conv_transpose{x.ndim - 2}d")
    return layer(mlx.core.array(x.astype(np.float32)), mlx.core.array(w.astype(np.float32)), **words)


def openvino(cases):
    """The results of many layers, compiled as one model; where that fails, of each half."""
    sys.modules["openvino_telemetry"] = None  # else importing openvino starts a process that calls home
    from openvino import Core, Model

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1"}
    try:
        nodes = [openvino_node(x, w, **words) for x, w, words in cases]
        model = Core().compile_model(Model([y for _, y in nodes], [x for x, _ in nodes]), "CPU", settings)
        return [np.array(y) for y in model([x.astype(np.float32) for x, _, _ in cases]).values()]
    except Exception as error:
        if len(cases) == 1:
            return [f"{type(error).__name__}: {str(error)[:300]}"]
        half = len(cases) // 2
        return openvino(cases[:half]) + openvino(cases[half:])


def openvino_node(x, w, output_shape=None, **words):
    """One layer, with its input."""
    from openvino import opset13 as ops

    data = ops.parameter(list(x.shape), np.float32)
    layer = ops.convolution_backprop_data if w.ndim == x.ndim else ops.group_convolution_backprop_data
    size = None if output_shape is None else ops.constant(list(output_shape), np.int64)
    return data, layer(data, ops.constant(w.astype(np.float32)), output_shape=size, **words)


def tflite(x, w, output_shape, padding="SAME", **words):
    """TRANSPOSE_CONV in 2-D, CONV_3D_TRANSPOSE in 3-D; the model is written here."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    flat = x.ndim == 4
    built = schema.ModelT()
    built.version, built.subgraphs, built.buffers = 3, [schema.SubGraphT()], [schema.BufferT()]
    graph = built.subgraphs[0]
    graph.tensors = []
    constants = {"size": np.array(output_shape, np.int32), "w": np.ascontiguousarray(w, np.float32)}
    for name, shape, value in [("size", (len(output_shape),), constants["size"]), ("w", w.shape, constants["w"]), ("x", x.shape, None),
                               ("y", output_shape, None)]:  # fmt: skip
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), 0
        tensor.type = schema.TensorType.INT32 if name == "size" else schema.TensorType.FLOAT32
        if value is not None:
            tensor.buffer = len(built.buffers)
            built.buffers.append(schema.BufferT())
            built.buffers[-1].data = np.frombuffer(value.tobytes(), np.uint8)
        graph.tensors.append(tensor)
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = (
        schema.BuiltinOperator.TRANSPOSE_CONV if flat else schema.BuiltinOperator.CONV_3D_TRANSPOSE)  # fmt: skip
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    options = schema.TransposeConvOptionsT() if flat else schema.Conv3DOptionsT()
    options.padding = getattr(schema.Padding, padding)
    for axis in "hw" if flat else "dhw":
        setattr(options, f"stride{axis.upper()}", words.pop(f"stride_{axis}", 1))
        if not flat:
            setattr(options, f"dilation{axis.upper()}Factor", words.pop(f"dilation_{axis}_factor", 1))
    assert not words, words
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, 2], [3]
    operator.builtinOptions = options
    operator.builtinOptionsType = schema.BuiltinOptions.TransposeConvOptions if flat else schema.BuiltinOptions.Conv3DOptions
    built.operatorCodes, graph.operators, graph.inputs, graph.outputs = [code], [operator], [2], [3]
    builder = flatbuffers.Builder(w.nbytes + 4096)
    builder.Finish(built.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.astype(np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy()


# The numbers of ncnn's parameters; output sizes have other numbers in 3-D.
NCNN = {"kernel_w": 1, "dilation_w": 2, "stride_w": 3, "pad_left": 4, "group": 7, "kernel_h": 11, "dilation_h": 12, "stride_h": 13,
        "pad_top": 14, "pad_right": 15, "pad_bottom": 16, "pad_behind": 17, "output_pad_right": 18, "output_pad_bottom": 19,
        "kernel_d": 21, "dilation_d": 22, "stride_d": 23, "pad_front": 24}  # fmt: skip
NCNN_SIZES = {1: {"output_w": 20}, 2: {"output_w": 20, "output_h": 21},
              3: {"output_pad_behind": 20, "output_w": 25, "output_h": 26, "output_d": 27}}  # fmt: skip


def ncnn(x, w, **words):
    import ncnn

    rank = x.ndim - 2
    numbers = NCNN | NCNN_SIZES[rank]
    settings = {0: w.shape[0], 6: w.size} | {numbers[name]: value for name, value in words.items()}
    kind = ("DeconvolutionDepthWise" if "group" in words else "Deconvolution") + {1: "1D", 2: "", 3: "3D"}[rank]
    layer = f"{kind} layer 1 1 x y " + " ".join(f"{number}={value}" for number, value in settings.items())
    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_fp16_arithmetic, net.opt.use_bf16_storage = 1, False, False
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_vulkan_compute = False
    with tempfile.TemporaryDirectory() as folder:
        model, param = Path(folder, "bin"), Path(folder, "param")
        model.write_bytes(bytes(4) + np.ascontiguousarray(w, np.float32).tobytes())
        param.write_text(f"7767517\n2 2\nInput x 0 1 x\n{layer}\n")
        if net.load_param(str(param)) or net.load_model(str(model)):
            raise ValueError(f"ncnn refuses {layer}")
    samples = []
    for sample in np.ascontiguousarray(x, np.float32):
        run = net.create_extractor()
        run.input("x", ncnn.Mat(sample).clone())
        failed, y = run.extract("y")
        if failed:
            raise ValueError(f"ncnn fails with {failed}: {layer}")
        samples.append(np.array(y))
    return np.stack(samples)


def scipy(x, w, **words):
    from scipy.signal import upfirdn

    return upfirdn(w, x[:, 0], axis=-1, **words)[:, None]


def coreml(x, w, **words):
    """Core ML runs on Apple's machines alone; its tools infer the shape of the output everywhere."""
    from coremltools.converters.mil.mil import Builder, Function

    with Function({"x": Builder.placeholder(x.shape)}) as function:
        y = Builder.conv_transpose(x=function.inputs["x"], weight=w.astype(np.float32), **words)
    return np.zeros(y.shape)
