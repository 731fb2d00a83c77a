# SPDX-License-Identifier: Apache-2.0
"""Where frameworks part ways, one test a trap: what the framework does, and that we know it.

Each fails when a framework changes its mind, which is the day to change the convention or its note.
"""

from __future__ import annotations

import definition
import numpy as np
import onnx
import pytest
from guests import GUESTS
from onnx.reference import ReferenceEvaluator

from tconv import conventions
from tconv._spec import ArgumentError
from tconv.conventions import convert

GUEST = {guest.name: guest for guest in GUESTS}
X = np.array([[[1.0, 2.0, 3.0, 4.0]]])
K3 = np.array([[[1.0, 10.0, 100.0]]])
K2 = K3[..., :2]
FULL = [1, 10, 102, 20, 203, 30, 304, 40, 400]  # X with K3 at stride 2


def run(name: str, x, w, **arguments):
    """The guest's one result, flat, or the text of its refusal; x and w are as the guest holds them."""
    (y,) = GUEST[name].run([(x, w, arguments)])
    return y if isinstance(y, str) else y.ravel().tolist()


def last(array):
    """(N, C, size) as (N, size, C), (Cin, Cout, k) as (k, Cout, Cin)."""
    return np.ascontiguousarray(array.transpose(0, 2, 1) if array is X else array.transpose(2, 1, 0))


def crop(framework: str, **arguments):
    """Our one (lo, hi) for a 1-D layer of four inputs."""
    (pair,) = getattr(conventions, framework)(input_size=4, **arguments).spec.crop
    return pair


def by_reference(x, w, bias=None, **words):
    """What ONNX's reference implementation computes, flat, and the model."""
    arrays = {"x": x, "w": w} | ({} if bias is None else {"b": bias})
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("ConvTranspose", list(arrays), ["y"], **words)
    inputs = [value(name, 1, array.shape) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([node], "g", inputs, [value("y", 1, [None] * x.ndim)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    return ReferenceEvaluator(model).run(None, {name: a.astype(np.float32) for name, a in arrays.items()})[0].ravel().tolist(), model


def test_output_padding_of_stride_and_more_runs_in_torch_and_not_in_onnxruntime():
    words = {"kernel_size": 3, "dilation": 2, "padding": 1, "output_padding": 1}
    expected = run("torch", X, K3, **words)
    refusal = run("onnx", X, K3, kernel_shape=[3], dilations=[2], pads=[1, 1], output_padding=[1])
    assert "output_padding (1) may be too large for stride (1)" in refusal
    answer = convert("torch", "onnx", input_size=4, **words)
    assert answer.arguments == {"kernel_shape": (3,), "pads": (1, 0), "dilations": (2,)}
    assert any("output_padding >= stride" in note for note in answer.notes)
    assert run("onnx", X, K3, **answer.arguments) == expected


def test_output_padding_beyond_the_padding_needs_appended_zeros_in_onnx():
    answer = convert("torch", "onnx", input_size=4, kernel_size=3, dilation=2, output_padding=1)
    assert not answer.exists and answer.instead.zeros == ((0, 1),)
    y = run("onnx", X, K3, **answer.instead.arguments)
    assert [*y, 0] == run("torch", X, K3, kernel_size=3, dilation=2, output_padding=1)


def test_same_of_a_kernel_below_the_stride_has_its_zeros_in_tensorflow_keras_jax_but_not_in_onnxruntime():
    y = [1, 10, 0, 2, 20, 0, 3, 30, 0, 4, 40, 0]
    assert run("tensorflow", last(X), last(K2), output_shape=[1, 12, 1], strides=3, padding="SAME") == y
    assert run("keras-torch", last(X), last(K2), kernel_size=2, strides=3, padding="same") == y
    assert run("jax", last(X), last(K2), strides=(3,), padding="SAME", transpose_kernel=True) == y
    assert crop("keras", kernel_size=2, strides=3, padding="same") == (0, -1)
    assert run("onnx", X, K2, strides=[3], auto_pad="SAME_UPPER") == run("onnx", X, K2, strides=[3], auto_pad="SAME_LOWER") == y[:-1]
    assert by_reference(X, K2, strides=[3], auto_pad="SAME_UPPER")[0] == [0, *y[:-1]]
    assert by_reference(X, K2, strides=[3], auto_pad="SAME_LOWER")[0] == y
    for auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        with pytest.raises(ArgumentError, match="where runtimes differ; write pads and output_padding"):
            conventions.onnx(input_size=4, kernel_shape=2, strides=3, auto_pad=auto_pad)
    answer = convert("keras", "onnx", input_size=4, kernel_size=2, strides=3, padding="same")
    assert run("onnx", X, K2, **answer.arguments) == y


def test_output_shape_above_the_largest_is_appended_once_and_then_runtimes_differ():
    for auto_pad in ("NOTSET", "VALID", "SAME_LOWER"):
        assert run("onnx", X, K3, strides=[2], output_shape=[10], auto_pad=auto_pad) == [*FULL, 0]
        assert crop("onnx", kernel_shape=3, strides=2, output_shape=10, auto_pad=auto_pad) == (0, -1)
    assert run("onnx", X, K3, strides=[2], output_shape=[10], auto_pad="SAME_UPPER") == [*FULL, 0]
    assert by_reference(X, K3, strides=[2], output_shape=[10], auto_pad="SAME_UPPER")[0] == [0, *FULL]
    assert "inconsistent" in run("onnx", X, K3, strides=[2], output_shape=[11])
    for words in ({"output_shape": 10, "auto_pad": "SAME_UPPER"}, {"output_shape": 11}):
        with pytest.raises(ArgumentError, match="where runtimes differ"):
            conventions.onnx(input_size=4, kernel_shape=3, strides=2, **words)


def test_shape_inference_of_onnx_adds_output_padding_to_same():
    y, model = by_reference(X, K3, strides=[2], auto_pad="SAME_UPPER", output_padding=[1])
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[2].dim_value
    assert (inferred, len(y)) == (9, 8)
    words = {"strides": [2], "auto_pad": "SAME_UPPER", "output_padding": [1]}
    assert run("onnx", X, K3, **words) == FULL[1:]
    layer = conventions.onnx(input_size=4, kernel_shape=3, **words)
    assert layer.spec.output_size == (8,) and layer.spec.crop == ((1, 0),)
    assert any("shape inference" in note for note in layer.notes)


def test_reference_of_onnx_is_no_judge_of_groups_with_bias():
    rng = np.random.default_rng(0)
    x, w, bias = (rng.integers(1, 9, shape).astype(float) for shape in ((1, 2, 4), (2, 1, 3), (2,)))
    expected = definition.conv_transpose(x, w, (2,), (1,), [(0, 0)], 2)
    assert run("onnx", x, w, strides=[2], group=2) == expected.ravel().tolist()
    assert by_reference(x, w, strides=[2], group=2)[0] == expected.ravel().tolist()
    assert by_reference(x, w, bias, strides=[2], group=2)[0] != (expected + bias[:, None]).ravel().tolist()


def test_output_shape_of_onnx_is_spatial_only():
    assert "output_shape has incorrect size" in run("onnx", X, K3, strides=[2], output_shape=[1, 1, 8])
    with pytest.raises(ArgumentError, match="output_shape"):
        conventions.onnx(input_size=4, kernel_shape=3, strides=2, output_shape=(1, 1, 8))


def test_pads_exclude_auto_pad_even_when_zero():
    assert "cannot be used simultaneously" in run("onnx", X, K3, strides=[2], pads=[0, 0], auto_pad="VALID")
    with pytest.raises(ArgumentError, match="together with auto_pad"):
        conventions.onnx(input_size=4, kernel_shape=3, strides=2, pads=(0, 0), auto_pad="VALID")


def test_the_odd_pixel_of_onnx_goes_to_the_end_under_upper_and_to_the_start_otherwise():
    """OpenVINO's frontend does the reverse under SAME_UPPER with output_shape, which the note says."""
    assert run("onnx", X, K3, strides=[2], auto_pad="SAME_UPPER", output_shape=[8]) == FULL[:-1]
    assert run("onnx", X, K3, strides=[2], auto_pad="SAME_LOWER", output_shape=[8]) == FULL[1:]
    assert run("onnx", X, K3, strides=[2], output_shape=[8]) == FULL[1:]
    assert crop("onnx", kernel_shape=3, strides=2, auto_pad="SAME_UPPER", output_shape=8) == (0, 1)
    assert crop("onnx", kernel_shape=3, strides=2, auto_pad="SAME_LOWER", output_shape=8) == (1, 0)
    assert crop("onnx", kernel_shape=3, strides=2, output_shape=8) == (1, 0)
    layer = conventions.onnx(input_size=4, kernel_shape=3, strides=2, auto_pad="SAME_UPPER", output_shape=8)
    assert any("OpenVINO" in note for note in layer.notes)


def test_keras_same_with_output_padding_zero_and_an_even_kernel_fails_on_tensorflow_only():
    words = {"kernel_size": 2, "strides": 2, "padding": "same", "output_padding": 0}
    assert run("keras-torch", last(X), last(K2), **words) == run("keras-jax", last(X), last(K2), **words) == [10, 2, 20, 3, 30, 4]
    assert "InvalidArgumentError" in run("keras-tensorflow", last(X), last(K2), **words)
    layer = conventions.keras(input_size=4, **words)
    assert layer.spec.crop == ((1, 1),)
    assert any("TensorFlow backend refuses" in note for note in layer.notes)


def test_keras_same_crops_unevenly_on_every_backend():
    """Before 3.15 the torch backend shifted an odd kernel at stride 2 by one pixel."""
    for backend in ("keras-tensorflow", "keras-torch", "keras-jax"):
        assert run(backend, last(X), last(K3), kernel_size=3, strides=2, padding="same") == FULL[:-1], backend
    assert crop("keras", kernel_size=3, strides=2, padding="same") == (0, 1)
    answer = convert("keras", "torch", input_size=4, kernel_size=3, strides=2, padding="same")
    assert not answer.exists and "output_padding=-1" in answer.reason
    assert run("torch", X, K3, **answer.instead.arguments)[answer.instead.slices[0]] == FULL[:-1]


def test_jax_pairs_pad_the_dilated_input_unless_asked_to_be_consistent():
    words = {"strides": (2,), "padding": [(1, 1)], "transpose_kernel": True}
    assert run("jax", last(X), last(K3), **words) == run("jax", last(X), last(K3), **words, use_consistent_padding=True) == FULL[1:-1]
    words["padding"] = [(2, 1)]
    assert run("jax", last(X), last(K3), **words) == FULL[:-1]
    assert run("jax", last(X), last(K3), **words, use_consistent_padding=True) == FULL[2:-1]
    assert crop("jax", kernel_size=3, **words) == (0, 1)
    assert crop("jax", kernel_size=3, **words, use_consistent_padding=True) == (2, 1)


def test_jax_does_not_flip_the_kernel_unless_asked():
    words = {"strides": (2,), "padding": "VALID"}
    kernel = np.ascontiguousarray(K3.transpose(2, 0, 1))
    assert run("jax", last(X), kernel, **words) == [100, 10, 201, 20, 302, 30, 403, 40, 4]
    assert run("jax", last(X), kernel[::-1], **words) == run("jax", last(X), kernel, **words, transpose_kernel=True) == FULL
    assert conventions.jax(input_size=4, kernel_size=3, **words).weight == conventions.WeightLayout("*IO", flip=True)


def test_jax_names_its_padding_in_capitals():
    assert isinstance(run("jax", last(X), last(K3), strides=(2,), padding="same"), str)
    with pytest.raises(ArgumentError, match="in capitals"):
        conventions.jax(input_size=4, kernel_size=3, strides=2, padding="same")


def test_torch_output_size_reaches_stride_not_dilation():
    for size in range(11, 17):
        words = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 3, "output_size": [size]}
        x = np.ones((1, 1, 5))
        accepted = not isinstance(run("torch", x, K3, **words), str)
        try:
            conventions.torch(input_size=5, **words)
            ours = True
        except ArgumentError:
            ours = False
        assert accepted == ours == (size in (13, 14))


def test_tensorflow_dilates_on_a_cpu_only_in_float32_and_without_explicit_pads():
    x, w = last(X)[:, None], last(K3)[None]
    words = {"output_shape": [1, 1, 6, 1], "strides": 1, "padding": ((0, 0), (0, 0), (1, 1), (0, 0)), "dilations": [1, 2]}
    assert "dilation" in run("tensorflow", x, w, **words)
    assert any("explicit pads" in note for note in conventions.tensorflow(input_size=(1, 4), kernel_size=(1, 3), **words).notes)
