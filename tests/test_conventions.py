# SPDX-License-Identifier: Apache-2.0
"""The words of the frameworks without the frameworks: formulas, ways back, what to write instead, error texts."""

import doctest
import importlib
import json
import pkgutil

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
        with pytest.raises(ArgumentError, match="must be one of torch, onnx, tensorflow, keras, jax"):
            convert(*words, input_size=5)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_to_three_axes(framework, rank):
    words = {"tensorflow": {"strides": 1, "output_shape": 5}, "jax": {"strides": 1, "padding": "SAME"}}.get(framework, {})
    with pytest.raises(ArgumentError, match="1, 2 or 3 spatial axes"):
        getattr(conventions, framework)(input_size=(5,) * rank, **{FRAMEWORKS[framework].kernel: 3}, **words)


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
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 10, spec.input_shape).astype(float), rng.integers(-9, 10, spec.weight_shape).astype(float)
    steps = answer.instead or conventions.Instead({})
    weights = [answer.target.weight.to_canonical(answer.weight(w, j)) for j in range(steps.groups)]
    shares = np.split(x, steps.groups, axis=1)
    y = np.concatenate([compute(share, weight, answer.target.spec) for share, weight in zip(shares, weights, strict=True)], axis=1)
    if steps.slices:
        y = np.pad(y[(..., *steps.slices)], [(0, 0), (0, 0), *steps.zeros])
    np.testing.assert_array_equal(y, compute(x, w, spec))
    assert answer.exists == (answer.reason is None) == (answer.instead is None)
    facts = {"input_size": spec.input_size, FRAMEWORKS[target].kernel: answer.target.spec.kernel_size, "batch": spec.batch,
             "in_channels": answer.target.spec.in_channels, "out_channels": answer.target.spec.out_channels}  # fmt: skip
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
])  # fmt: skip
def test_simplest_words(source, arguments, target, expected):
    answer = convert(source, target, input_size=5, **arguments)
    assert answer.arguments == expected
    assert convert(target, source, input_size=5, **({"kernel_size": answer.spec.kernel_size} | expected if target in ("tensorflow", "jax")
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


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_answer_survives_json(target):
    for words in ({"kernel_size": 4, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": 3, "dilation": 4, "output_padding": 3}):
        answer = convert("torch", target, input_size=(5, 6), **words)
        read = json.loads(json.dumps(answer.to_dict()))
        assert (read["exists"], read["problem"], read["target"]) == (answer.exists, str(answer.spec), target)
        assert read["notes"] == list(answer.notes)
        assert (read["instead"] is None) == answer.exists


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
