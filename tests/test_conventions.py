# SPDX-License-Identifier: Apache-2.0
"""The words of the frameworks without the frameworks: formulas, ways back, what to write instead, error texts."""

import doctest
import importlib
import inspect
import json
import pkgutil
import re

import definition
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tconv import conventions
from tconv._spec import ArgumentError, Axis, Spec
from tconv.conventions import FRAMEWORKS, WeightLayout, convert

# Arguments of a 1-D layer of 5 inputs, and the crop they mean: F = 4 * stride + K, counted by hand.
CROPS = [
    ("torch", {"kernel_size": 3, "stride": 2}, (0, 0)),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, (1, 0)),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 0, "output_padding": 1}, (0, -1)),
    ("torch", {"kernel_size": 3, "stride": 1, "dilation": 3, "output_padding": 2, "padding": 3}, (3, 1)),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "output_size": [2, 7, 10]}, (1, 0)),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "output_size": 9, "output_padding": 1}, (1, 1)),
    ("onnx", {"kernel_shape": [4], "strides": [2], "pads": [1, 2]}, (1, 2)),
    ("onnx", {"kernel_shape": [4], "strides": [3], "pads": [0, 1], "output_padding": [2]}, (0, -1)),
    ("onnx", {"kernel_shape": [3], "strides": [2], "auto_pad": "VALID", "output_padding": [1]}, (0, -1)),
    ("onnx", {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}, (0, 1)),
    ("onnx", {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_LOWER"}, (1, 0)),
    ("onnx", {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER", "output_padding": [1]}, (1, 0)),
    ("onnx", {"kernel_shape": [3], "strides": [2], "output_shape": [8], "pads": [3, 3]}, (2, 1)),
    ("onnx", {"kernel_shape": [3], "strides": [2], "output_shape": [12]}, (0, -1)),
    ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": [1, 10, 4]}, (0, 1)),
    ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": [1, 9, 4]}, (1, 1)),
    ("tensorflow", {"kernel_size": 2, "strides": 3, "output_shape": [15], "padding": "SAME"}, (0, -1)),
    ("tensorflow", {"kernel_size": 3, "strides": [1, 2, 1], "output_shape": [1, 12, 4], "padding": "VALID"}, (0, -1)),
    ("keras", {"kernel_size": 3, "strides": 2}, (0, 0)),
    ("keras", {"kernel_size": 2, "strides": 3}, (0, -1)),
    ("keras", {"kernel_size": 2, "strides": 3, "output_padding": 0}, (0, 0)),
    ("keras", {"kernel_size": 3, "strides": 2, "padding": "SAME"}, (0, 1)),
    ("keras", {"kernel_size": 4, "strides": 2, "padding": "same", "output_padding": 0}, (2, 2)),
    ("keras", {"kernel_size": 5, "strides": 2, "padding": "same", "output_padding": 1}, (1, 2)),
    ("keras", {"kernel_size": 2, "strides": 4, "padding": "same"}, (0, -2)),
    ("jax", {"kernel_size": 5, "strides": 2, "padding": "SAME"}, (1, 2)),
    ("jax", {"kernel_size": 2, "strides": 4, "padding": "VALID"}, (0, -2)),
    ("jax", {"kernel_size": 4, "strides": 2, "padding": [(2, 1)]}, (1, 2)),
    ("jax", {"kernel_size": 4, "strides": 2, "padding": [(2, 1)], "use_consistent_padding": True}, (2, 1)),
    ("jax", {"kernel_size": 3, "strides": 1, "rhs_dilation": 2, "padding": [(5, 0)]}, (-1, 4)),
    ("flax", {"kernel_size": 5, "strides": 2}, (1, 2)),
    ("flax", {"kernel_size": (4,), "strides": (2,), "padding": 2}, (1, 1)),
    ("flax", {"kernel_size": (4,), "padding": [1]}, (2, 2)),
    ("flax", {"kernel_size": 2, "kernel_dilation": 3, "padding": [(0, 4)]}, (3, -1)),
    ("haiku", {"kernel_shape": 2, "stride": 4, "padding": "VALID"}, (0, -2)),
    ("haiku", {"kernel_shape": 3, "stride": 2, "output_shape": 9}, (1, 1)),
    ("haiku", {"kernel_shape": 3, "stride": 2, "output_shape": 12, "padding": "VALID"}, (0, -1)),
    ("haiku", {"kernel_shape": 4, "stride": 2, "padding": [(2, 1)]}, (1, 2)),
    ("equinox", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, (1, 0)),
    ("equinox", {"kernel_size": 3, "stride": 2, "padding": [(-1, 2)]}, (-1, 2)),
    ("equinox", {"kernel_size": 3, "stride": 2, "padding": "same"}, (0, 1)),
    ("equinox", {"kernel_size": 3, "stride": 2, "padding": "SAME_LOWER"}, (1, 0)),
    ("equinox", {"kernel_size": 3, "stride": 2, "padding": "SAME", "output_padding": 1}, (1, 1)),
    ("equinox", {"kernel_size": 2, "stride": 4, "padding": "SAME"}, (0, -2)),
    ("equinox", {"kernel_size": 3, "stride": 2, "padding": "VALID", "output_padding": 1}, (0, -1)),
    ("mlx", {"kernel_size": 3, "stride": 2, "padding": 2, "output_padding": 3}, (2, -1)),
    ("mlx", {"kernel_size": 3, "dilation": 2, "padding": 4}, (4, 4)),
    ("mlx", {"kernel_size": 3, "padding": -1, "output_padding": -2}, (-1, 1)),
    ("openvino", {"kernel_size": 3, "strides": 2, "pads_begin": 1, "output_padding": 3}, (1, -3)),
    ("openvino", {"kernel_size": 3, "strides": 2, "pads_begin": 1, "pads_end": 1, "auto_pad": "same_upper"}, (0, 0)),
    ("openvino", {"kernel_size": 3, "strides": 2, "output_shape": 10, "auto_pad": "same_upper"}, (1, 0)),
    ("openvino", {"kernel_size": 3, "strides": 2, "output_shape": 10, "auto_pad": "SAME_LOWER"}, (0, 1)),
    ("openvino", {"kernel_size": 3, "strides": 2, "output_shape": 14, "auto_pad": "same_upper"}, (0, -3)),
    ("openvino", {"kernel_size": 3, "strides": 2, "output_shape": 12, "pads_begin": 1, "pads_end": 1}, (1, -2)),
    ("ncnn", {"kernel_w": 3, "stride_w": 2, "pad_left": 1}, (1, 1)),
    ("ncnn", {"kernel_w": 3, "stride_w": 2, "pad_left": 1, "pad_right": 0, "output_pad_right": 2}, (1, -2)),
    ("ncnn", {"kernel_w": 3, "stride_w": 2, "pad_left": -233, "output_w": 10}, (0, 1)),
    ("ncnn", {"kernel_w": 3, "stride_w": 2, "pad_left": -234, "output_w": 10}, (1, 0)),
    ("ncnn", {"kernel_w": 3, "stride_w": 2, "pad_left": -233, "output_w": 10, "output_pad_right": 1}, (1, 0)),
    ("coreml", {"kernel_size": 3, "strides": 2, "pad_type": "custom", "pad": [2, 0]}, (2, 0)),
    ("coreml", {"kernel_size": 3, "strides": 2, "pad_type": "same"}, (0, 1)),
    ("coreml", {"kernel_size": 3, "strides": 2, "pad_type": "same", "output_shape": [1, 4, 9]}, (1, 1)),
    ("coreml", {"kernel_size": 3, "strides": 2, "output_shape": [1, 4, 12]}, (0, -1)),
    ("scipy", {"kernel_size": 3, "up": 2}, (0, 0)),
]

# Illegal arguments of the same layer, the argument blamed and a piece of the rule.
REFUSALS = [
    ("torch", {"kernel_size": 3, "stride": 2, "output_padding": 2}, "output_padding", r"below max\(stride, dilation\)=2"),
    ("torch", {"kernel_size": 3, "padding": -1}, "padding", "at least 0"),
    ("torch", {"kernel_size": 3, "padding": "same"}, "padding", "integer"),
    ("torch", {"kernel_size": 3, "padding": 4}, "padding", "at least 1 must remain"),
    ("torch", {"kernel_size": 3, "stride": 2, "dilation": 3, "output_size": 17}, "output_size", r"must lie in \[15, 16\]"),
    ("torch", {"kernel_size": 3, "groups": 2, "in_channels": 3}, "groups", "must divide in_channels=3"),
    ("torch", {"kernel_size": 3, "groups": 0}, "groups", "at least 1"),
    ("torch", {"kernel_size": 0}, "kernel_size", "at least 1"),
    ("torch", {"kernel_size": (3, 3)}, "kernel_size", "one int per spatial axis, here 1"),
    ("torch", {"kernel_size": 3, "strides": 2}, "strides", "is no argument of torch; those are input_size, kernel_size, stride"),
    ("torch", {"stride": 2}, "kernel_size", "is missing"),
    ("onnx", {"kernel_shape": 3, "pads": [1, -1]}, "pads", "at least 0"),
    ("onnx", {"kernel_shape": 3, "pads": [1, 1, 1]}, "pads", "2 ints of at least 0: all begins"),
    ("onnx", {"kernel_shape": 3, "pads": [0, 0], "auto_pad": "VALID"}, "pads", "auto_pad='VALID'"),
    ("onnx", {"kernel_shape": 3, "auto_pad": "SAME"}, "auto_pad", "NOTSET, VALID, SAME_UPPER, SAME_LOWER"),
    ("onnx", {"kernel_shape": 3, "output_padding": 1}, "output_padding", "below"),
    ("onnx", {"kernel_shape": 2, "strides": 3, "auto_pad": "SAME_UPPER"}, "auto_pad", "where runtimes differ"),
    ("onnx", {"kernel_shape": 3, "strides": 3, "output_shape": 17}, "output_shape", "2 above the largest, 15, where runtimes differ"),
    ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": 11}, "output_shape", r"ceil\(O / stride\) = 6 .* the input's 5"),
    ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": 10, "padding": "VALID"}, "output_shape", r"\+ 1 = 4 "),
    ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": 10, "padding": "same"}, "padding", '"SAME" or "VALID"'),
    ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": 9, "padding": [(1, 1)]}, "padding", "only 2-D"),
    ("tensorflow", {"kernel_size": 3, "strides": [2, 2, 1], "output_shape": 10}, "strides", "1 along batch and channels"),
    ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": [2, 10, 4], "batch": 3}, "output_shape", "batch"),
    ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": 10, "data_format": "NHWC"}, "data_format", "NWC or NCW"),
    ("keras", {"kernel_size": 3, "strides": 2, "output_padding": 2}, "output_padding", "below stride=2"),
    ("keras", {"kernel_size": 3, "strides": 2, "dilation_rate": 2}, "dilation_rate", "must be 1 where strides=2"),
    ("keras", {"kernel_size": 3, "padding": "causal"}, "padding", '"valid" or "same"'),
    ("keras", {"kernel_size": 3, "groups": 2}, "groups", "is no argument of keras"),
    ("jax", {"kernel_size": 3, "strides": 2, "padding": "same"}, "padding", "in capitals"),
    ("jax", {"kernel_size": 3, "strides": 2, "padding": [1]}, "padding", "one .before, after. pair"),
    ("jax", {"kernel_size": 3, "strides": 2, "padding": 1}, "padding", "one .before, after. pair"),
    ("jax", {"kernel_size": 3, "strides": 2, "padding": "SAME", "dimension_numbers": ("NWC", "WIO", "NCW")}, "dimension_numbers", "alike"),
    ("jax", {"kernel_size": 3, "strides": 2, "padding": "SAME", "dimension_numbers": ("NWC", "WIO")}, "dimension_numbers", "'NHC', 'HIO'"),
    ("jax", {"kernel_size": 3, "strides": 2, "padding": "SAME", "dimension_numbers": ("NWC", "WII", "NWC")}, "dimension_numbers", "side"),
    ("flax", {"kernel_size": 3, "padding": "CIRCULAR"}, "padding", "wraps the output around"),
    ("flax", {"kernel_size": 3, "padding": "same"}, "padding", "in capitals"),
    ("flax", {"kernel_size": 3, "groups": 2}, "groups", "is no argument of flax"),
    ("haiku", {"kernel_shape": 3, "padding": 1}, "padding", "one .before, after. pair"),
    ("haiku", {"kernel_shape": 3, "stride": 2, "output_shape": 11}, "output_shape", r"ceil\(O / stride\) = 6"),
    ("haiku", {"kernel_shape": 3, "output_shape": 5, "padding": [(1, 1)]}, "padding", "beside output_shape"),
    ("haiku", {"kernel_shape": 3, "data_format": "NHWC"}, "data_format", "NCW, NWC"),
    ("equinox", {"kernel_size": 3, "stride": 2, "output_padding": 2}, "output_padding", "below stride=2"),
    ("equinox", {"kernel_size": 3, "padding": "FULL"}, "padding", "SAME_LOWER"),
    ("equinox", {"kernel_size": 3, "padding_mode": "CIRCULAR"}, "padding_mode", "ZEROS"),
    ("mlx", {"kernel_size": 3, "padding": 3}, "padding", "more than K - 1 = 2"),
    ("mlx", {"kernel_size": 3, "padding": 2, "output_padding": -1}, "padding", "more than K - 1 = 2"),
    ("tflite", {"kernel_size": 3, "output_shape": 5}, "input_size", "a 2-D layer of height 1"),
    ("openvino", {"kernel_size": 3, "strides": 1, "pads_begin": -1}, "pads_begin", "at least 0"),
    ("openvino", {"kernel_size": 3, "strides": 1, "auto_pad": "same"}, "auto_pad", "explicit, same_upper"),
    ("openvino", {"kernel_size": 3}, "strides", "is missing"),
    ("openvino", {"kernel_size": 1, "strides": 1, "pads_begin": 1, "output_padding": 1}, "pads_begin", "takes for a matrix product"),
    ("ncnn", {"kernel_w": 3, "pad_left": -1}, "pad_left", "at least 0"),
    ("ncnn", {"kernel_w": 3, "output_w": 8}, "output_w", "beside pad_left=-233"),
    ("ncnn", {"kernel_w": 3, "pad_left": -233}, "output_w", "at least 1"),
    ("ncnn", {"kernel_w": 3, "pad_left": -233, "pad_right": 0, "output_w": 5}, "pad_left", "the same for all pads"),
    ("ncnn", {"kernel_w": 3, "pad_left": -234, "output_w": 8}, "output_w", "beyond its buffer"),
    ("ncnn", {"kernel_w": 3, "output_pad_right": -1}, "output_pad_right", "at least 0"),
    ("coreml", {"kernel_size": 3, "pad": [1, 1]}, "pad", "only with pad_type"),
    ("coreml", {"kernel_size": 3, "pad_type": "custom", "pad": [1]}, "pad", "2 ints of at least 0"),
    ("coreml", {"kernel_size": 3, "pad_type": "custom", "output_shape": [1, 1, 5]}, "output_shape", "which end"),
    ("coreml", {"kernel_size": 3, "pad_type": "SAME"}, "pad_type", "valid, custom or same"),
    ("scipy", {"kernel_size": 3, "down": 2}, "down", "every down-th value"),
    ("scipy", {"kernel_size": 3, "in_channels": 2}, "in_channels", "every pair of channels"),
]


@pytest.mark.parametrize(("framework", "arguments", "crop"), CROPS)
def test_crop(framework, arguments, crop):
    assert getattr(conventions, framework)(input_size=5, **arguments).spec.crop == (crop,)


@pytest.mark.parametrize(("framework", "arguments", "argument", "rule"), REFUSALS)
def test_refusal_names_argument_and_rule(framework, arguments, argument, rule):
    with pytest.raises(ArgumentError, match=rule) as caught:
        convert(framework, "torch", input_size=5, **arguments)
    assert caught.value.argument == argument


def test_an_unknown_framework_is_refused_by_name():
    for words in (("pytorch", "onnx"), ("onnx", "pytorch")):
        with pytest.raises(ArgumentError, match="must be one of torch, onnx, tensorflow, keras, jax, flax, haiku"):
            convert(*words, input_size=5)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_to_three_axes(framework, rank):
    needed = {"strides": 1, "output_shape": 5, "padding": "SAME", "kernel_w": 3}
    words = {name: needed[name] for name, word in inspect.signature(FRAMEWORKS[framework].words).parameters.items()
             if word.default is word.empty and name in needed}  # fmt: skip
    kernel = {FRAMEWORKS[framework].kernel: 3} if FRAMEWORKS[framework].kernel else {}
    with pytest.raises(ArgumentError, match="1, 2 or 3 spatial axes"):
        getattr(conventions, framework)(input_size=(5,) * rank, **kernel, **words)


def test_errors_carry_the_problem_line():
    for framework, words in (("torch", {"kernel_size": 3, "stride": 2, "output_padding": 2}), ("tensorflow", {
            "kernel_size": 3, "strides": 2, "output_shape": 11}), ("torch", {"kernel_size": 3, "stride": 2, "padding": 9})):  # fmt: skip
        with pytest.raises(ArgumentError, match=r"\[problem: .*i5 k3 s2.*\]$"):
            getattr(conventions, framework)(input_size=5, **words)


def test_explicit_padding_of_tensorflow_is_two_dimensional():
    layer = conventions.tensorflow(input_size=(5, 5), kernel_size=3, strides=2, output_shape=[2, 9, 10, 4],
                                   padding=[[0, 0], [1, 1], [1, 0], [0, 0]])  # fmt: skip
    assert (layer.spec.crop, layer.spec.batch, layer.spec.out_channels) == (((1, 1), (1, 0)), 2, 4)
    first = conventions.tensorflow(input_size=(5, 5), kernel_size=3, strides=2, output_shape=[2, 4, 9, 10], data_format="NCHW",
                                   padding=[[0, 0], [0, 0], [1, 1], [1, 0]])  # fmt: skip
    assert (first.spec, first.layout) == (layer.spec, "channels_first")


@pytest.mark.parametrize(("numbers", "transposed", "axes"), [
    (None, False, "*IO"), (None, True, "*OI"), (("NCHW", "OIHW", "NCHW"), False, "OI*"), (("NCHW", "OIHW", "NCHW"), True, "IO*"),
    (("NXYC", "XYIO", "NXYC"), True, "*OI"), (("NHWC", "IHWO", "NHWC"), False, "I*O"),
])  # fmt: skip
def test_dimension_numbers_of_jax_order_the_weight(numbers, transposed, axes):
    layer = conventions.jax(input_size=(5, 5), kernel_size=3, strides=2, padding="SAME", dimension_numbers=numbers,
                            transpose_kernel=transposed)  # fmt: skip
    assert layer.weight == WeightLayout(axes, flip=not transposed)
    assert layer.layout == ("channels_first" if numbers and numbers[0][1] == "C" else "channels_last")


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("axes", ["IO*", "*OI", "*IO", "O*I", "OI*"])
def test_weight_layout_there_and_back(axes, flip, rank):
    w = np.random.default_rng(rank).standard_normal((2, 3, 4, 5, 6)[: rank + 2])
    layout = WeightLayout(axes, flip)
    held = layout.from_canonical(w)
    at = {"I": (1,), "O": (2,), "*": (0, 3, 2)[:rank]}
    there = {"I": (1,), "O": (2,), "*": tuple(n - 1 - a if flip else a for a, n in zip((0, 3, 2), w.shape[2:], strict=False))}
    assert held[tuple(a for letter in axes for a in there[letter])] == w[1, 2][at["*"]]
    np.testing.assert_array_equal(layout.to_canonical(held), w)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("axes", "by"), [("OI*", "O"), ("O*I", "O"), ("GIO*", "G"), ("IO*", "I"), ("*OI", "I")])
def test_weight_layout_of_groups_there_and_back(axes, by, flip, rank):
    """Input channel i of group g meets output channel o of that group, wherever a framework keeps the two."""
    groups, inside, outside = 3, 2, 4
    w = np.random.default_rng(rank).standard_normal((groups * inside, outside, 4, 5, 6)[: rank + 2])
    layout = WeightLayout(axes, flip, groups, by)
    held = layout.from_canonical(w)
    tap = (0, 3, 2)[:rank]
    there = tuple(n - 1 - a if flip else a for a, n in zip(tap, w.shape[2:], strict=True))
    for g, i, o in np.ndindex(groups, inside, outside):
        at = {"G": (g,), "I": (g * inside + i if by == "I" else i,), "O": (g * outside + o if by == "O" else o,), "*": there}
        assert held[sum((at[letter] for letter in axes), ())] == w[(g * inside + i, o, *tap)]
    np.testing.assert_array_equal(layout.to_canonical(held), w)


def test_weight_without_channels():
    w = np.arange(3.0).reshape(1, 1, 3)
    assert WeightLayout("*").from_canonical(w).tolist() == [0, 1, 2]
    assert WeightLayout("*").to_canonical(np.arange(3.0)).tolist() == w.tolist()


@st.composite
def specs(draw):
    rank = draw(st.integers(1, 3))
    axes = []
    for _ in range(rank):
        axis = Axis(*(draw(st.integers(1, most)) for most in (4, 4, 4, 3)))
        lo = draw(st.integers(-3, axis.full + 2))
        axes.append(Axis(axis.size, axis.kernel, axis.stride, axis.dilation, lo, draw(st.integers(-3 - max(lo, 0), axis.full - lo - 1))))
    groups = draw(st.sampled_from([1, 1, 2]))
    return Spec(tuple(axes), draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), groups)


def compute(x, w, spec):
    return definition.conv_transpose(x, w, spec.stride, spec.dilation, spec.crop, spec.groups)


@pytest.mark.parametrize("target", FRAMEWORKS)
@given(spec=specs())
def test_any_geometry_is_written_exactly_or_with_what_to_do_instead(target, spec):
    """The answer's steps, done by the definition with the answer's weight, give the values of the geometry itself."""
    source = conventions.Framework(lambda: conventions.Convention("canonical", spec, WeightLayout(), "channels_first"), lambda _: [], "")
    answer = conventions._convert.convert({"canonical": source, **FRAMEWORKS}, "canonical", target, {})
    if answer.target is None:
        assert target == "scipy" and answer.reason and (spec.rank > 1 or spec.in_channels * spec.out_channels > 1)
        return
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 10, spec.input_shape).astype(float), rng.integers(-9, 10, spec.weight_shape).astype(float)
    steps = answer.instead or conventions.Instead({})
    weights = [answer.target.weight.to_canonical(answer.weight(w, j)) for j in range(steps.groups)]
    shares = np.split(x[:, :, None] if steps.lifted else x, steps.groups, axis=1)
    y = np.concatenate([compute(share, weight, answer.target.spec) for share, weight in zip(shares, weights, strict=True)], axis=1)
    y = y.squeeze(axis=2) if steps.lifted else y
    if steps.slices:
        y = np.pad(y[(..., *steps.slices)], [(0, 0), (0, 0), *steps.zeros])
    np.testing.assert_array_equal(y, compute(x, w, spec))
    assert answer.exists == (answer.reason is None) == (answer.instead is None)
    facts = FRAMEWORKS[target].facts(answer.target.spec)
    assert FRAMEWORKS[target].read({**facts, **(answer.arguments or steps.arguments)}) == answer.target, "what is shown means what it says"


@pytest.mark.parametrize(("source", "arguments", "target", "expected"), [
    ("torch", {"kernel_size": 4, "stride": 2, "padding": 1}, "keras", {"kernel_size": 4, "strides": 2, "padding": "same"}),
    ("torch", {"kernel_size": 3, "stride": 2}, "keras", {"kernel_size": 3, "strides": 2, "padding": "valid"}),
    ("torch", {"kernel_size": 3, "stride": 2, "output_padding": 1}, "keras",
     {"kernel_size": 3, "strides": 2, "padding": "valid", "output_padding": 1}),
    ("torch", {"kernel_size": 5, "stride": 3, "padding": 2}, "keras",
     {"kernel_size": 5, "strides": 3, "padding": "same", "output_padding": 0}),
    ("torch", {"kernel_size": 4, "stride": 2, "padding": 1}, "tensorflow", {"output_shape": (1, 10, 1), "strides": 2, "padding": "SAME"}),
    ("torch", {"kernel_size": 4, "stride": 2, "padding": 1}, "jax", {"strides": (2,), "padding": "SAME", "transpose_kernel": True}),
    ("torch", {"kernel_size": 4, "stride": 1, "padding": 1}, "jax", {"strides": (1,), "padding": ((2, 2),), "transpose_kernel": True}),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, "onnx",
     {"kernel_shape": (3,), "strides": (2,), "pads": (1, 0), "group": 2}),
    ("onnx", {"kernel_shape": 3, "strides": 2, "auto_pad": "SAME_LOWER"}, "torch",
     {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}),
    ("keras", {"kernel_size": 2, "strides": 3, "padding": "same"}, "onnx",
     {"kernel_shape": (2,), "strides": (3,), "output_padding": (1,)}),
    ("torch", {"kernel_size": 4, "stride": 2, "padding": 1}, "flax",
     {"kernel_size": (4,), "strides": (2,), "padding": "SAME", "transpose_kernel": True}),
    ("torch", {"kernel_size": 4, "stride": 1, "padding": 1}, "haiku", {"kernel_shape": 4, "padding": ((2, 2),)}),
    ("keras", {"kernel_size": 3, "strides": 2, "padding": "same"}, "equinox", {"kernel_size": 3, "stride": 2, "padding": "SAME"}),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, "equinox",
     {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}, "mlx", {"stride": 2, "padding": 1, "groups": 2}),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, "openvino", {"strides": (2,), "pads_begin": (1,)}),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, "ncnn",
     {"kernel_w": 3, "stride_w": 2, "pad_left": 1, "pad_right": 0, "group": 2}),
    ("torch", {"kernel_size": 3, "stride": 2, "padding": 1}, "coreml", {"pad_type": "custom", "pad": (1, 1), "strides": (2,)}),
    ("torch", {"kernel_size": 3, "stride": 2}, "scipy", {"up": 2}),
])  # fmt: skip
def test_simplest_words(source, arguments, target, expected):
    answer = convert(source, target, input_size=5, **arguments)
    assert answer.arguments == expected
    assert convert(target, source, input_size=5, **({"kernel_size": answer.spec.kernel_size} | expected if FRAMEWORKS[target].kernel == "kernel_size"
                                                    else expected)).spec == answer.spec  # fmt: skip


def test_text_of_an_answer_that_needs_every_step():
    answer = convert("torch", "keras", input_size=(8, 8), kernel_size=3, stride=2, padding=(1, 0), output_padding=(1, 2), dilation=3,
                     groups=2, in_channels=4, out_channels=6)  # fmt: skip
    assert str(answer).splitlines() == [
        "torch -> keras: c4:6 g2 i8x8 k3 s2 d3 p1:0x0:-2 -> 20x23",
        "  arguments  none",
        "  reason     " + answer.reason,
        "  instead    2 calls, j = 0..1, on equal shares of the input channels with weight(w, j); join their outputs",
        "             a kernel with zeros between its taps, 7x7 in all: weight(w) has them",
        "             y = keras(kernel_size=7, strides=2, padding='valid')",
        "             y = y[:, 1:21, 0:21, :]",
        "             pad y with zeros, (before, after) per axis: (0, 0), (0, 2)",
        "             add the bias last",
        "  weight     transpose(2, 3, 1, 0), (Cin, Cout/groups, *k) -> (*k, Cout/groups, Cin)",
        "  data       (N, C, *size) -> (N, *size, C)",
        "  note       exported as it is, onnxruntime refuses output_padding >= stride: give ONNX pads_end = padding - output_padding",
    ]
    assert answer.reason.startswith("keras has no groups, and the layer has 2; keras crops")
    assert "dilation_rate=3 must be 1 where strides=2 are above 1" in answer.reason


def test_weight_sentence_tells_the_flip():
    answer = convert("torch", "jax", input_size=4, kernel_size=3)
    assert answer.weight_text == "transpose(2, 1, 0), (Cin, Cout/groups, *k) -> (*k, Cout/groups, Cin)"
    back = convert("jax", "torch", input_size=4, kernel_size=3, strides=1, padding="VALID")
    assert back.weight_text == "transpose(1, 2, 0), (*k, Cin, Cout/groups) -> (Cin, Cout/groups, *k); reverse every kernel axis"
    w = np.arange(6.0).reshape(3, 2, 1)
    np.testing.assert_array_equal(back.weight(w), w.transpose(1, 2, 0)[..., ::-1])
    assert convert("torch", "onnx", input_size=4, kernel_size=3).weight_text == "as it is, (Cin, Cout/groups, *k)"


@pytest.mark.parametrize(("source", "target", "text"), [
    ("torch", "mlx", "reshape(groups, Cin/groups, Cout/groups, *k), transpose(0, 2, 3, 4, 1), reshape(Cout, *k, Cin/groups)"),
    ("torch", "openvino", "reshape(groups, Cin/groups, Cout/groups, *k)"),
    ("equinox", "mlx", "transpose(0, 2, 3, 1), (Cout, Cin/groups, *k) -> (Cout, *k, Cin/groups); reverse every kernel axis"),
    ("torch", "coreml", "as it is, (Cin, Cout/groups, *k)"),
    ("equinox", "torch", "reshape(groups, Cout/groups, Cin/groups, *k), transpose(0, 2, 1, 3, 4), reshape(Cin, Cout/groups, *k); "
                         "reverse every kernel axis"),
])  # fmt: skip
def test_weight_sentence_of_groups(source, target, text):
    """The steps of the sentence, done as they are written, are what `weight` does."""
    words = {"kernel_size": (3, 2), "groups": 2, "in_channels": 4, "out_channels": 6}
    answer = convert(source, target, input_size=(4, 5), **words)
    assert answer.weight_text == text
    w = np.arange(72.0).reshape((4, 3, 3, 2) if source == "torch" else (6, 2, 3, 2))
    names = {"groups": (2,), "Cin/groups": (2,), "Cout/groups": (3,), "Cin": (4,), "Cout": (6,), "*k": (3, 2)}
    done = w
    for step, inside in re.findall(r"(reshape|transpose)\(([^)]*)\)", text):
        sizes = sum((names.get(part, (part,)) for part in inside.split(", ")), ())
        done = getattr(done, step)(tuple(map(int, sizes)))
    done = (
        np.flip(done, [n for n, size in enumerate(done.shape) if n >= done.ndim - 2] if target != "mlx" else [1, 2])
        if "reverse" in text
        else done
    )
    np.testing.assert_array_equal(answer.weight(w), done)


def test_text_of_a_layer_with_nothing_to_write():
    answer = convert("torch", "scipy", input_size=8, kernel_size=3, in_channels=2)
    assert str(answer).splitlines() == [
        "torch -> scipy: c2:1 i8 k3 -> 10",
        "  arguments  none",
        "  reason     " + answer.reason,
        "  weight     none, (Cin, Cout/groups, *k)",
        "  data       (N, C, *size)",
    ]
    assert "in_channels=2 must be 1: upfirdn filters one signal" in answer.reason
    with pytest.raises(ArgumentError, match="has no weight for this layer"):
        answer.weight(np.ones((2, 1, 3)))
    assert convert("torch", "scipy", input_size=(8, 8), kernel_size=3).reason == "scipy has 1-D alone, and the layer is 2-D"


def test_text_of_a_lifted_layer():
    answer = convert("torch", "tflite", input_size=8, kernel_size=3, stride=2)
    assert str(answer).splitlines()[2:7] == [
        "  reason     tflite has 2-D and 3-D alone, and the layer is 1-D",
        "  instead    x with an axis of length 1 before its spatial one; weight(w) has it too",
        "             y = tflite(output_shape=(1, 1, 17, 1), padding='VALID', stride_w=2)",
        "             y without that axis",
        "  weight     transpose(1, 2, 0), (Cin, Cout/groups, *k) -> (Cout/groups, *k, Cin)",
    ]
    assert answer.weight(np.ones((2, 5, 3))).shape == (5, 1, 3, 2)
    dilated = convert("torch", "haiku", input_size=8, kernel_size=3, dilation=2)
    assert dilated.reason == "haiku has no dilation, and the layer has 2" and dilated.instead.spread


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_answer_survives_json(target):
    for words in ({"kernel_size": 4, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": 3, "dilation": 4, "output_padding": 3}):
        answer = convert("torch", target, input_size=(5, 6), **words)
        read = json.loads(json.dumps(answer.to_dict()))
        assert (read["exists"], read["problem"], read["target"]) == (answer.exists, str(answer.spec), target)
        assert read["notes"] == list(answer.notes)
        assert (read["instead"] is None) == (answer.exists or target == "scipy")


def test_batch_and_channels_reach_the_shapes():
    answer = convert("torch", "tensorflow", input_size=5, kernel_size=4, stride=2, padding=1, batch=3, in_channels=2, out_channels=7)
    assert answer.arguments["output_shape"] == (3, 10, 7)
    assert conventions.torch(input_size=5, kernel_size=3, groups=4).spec.weight_shape == (4, 1, 3)


def test_a_convention_prints_its_geometry_and_axes():
    assert str(conventions.keras(input_size=8, kernel_size=4, strides=2, padding="same")) == (
        "keras: c1:1 i8 k4 s2 p1 -> 16\n  weight  (*k, Cout/groups, Cin)\n  data    (N, *size, C)")  # fmt: skip


def test_examples_in_the_docstrings():
    names = ["tconv.conventions", *(f"tconv.conventions.{m.name}" for m in pkgutil.iter_modules(conventions.__path__))]
    results = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(r.failed for r in results) == 0
    assert sum(r.attempted for r in results) >= 12
