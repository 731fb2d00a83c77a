# SPDX-License-Identifier: Apache-2.0
"""Traps of the libraries on JAX and of the runtimes, as in test_traps.py: what each does, and that we know it; Core ML by shapes."""

from __future__ import annotations

import numpy as np
import pytest
from calls_runtimes import coreml
from draw import Draw, draw_coreml
from guests import GUESTS, MORE, attempt, process

from tconv import conventions
from tconv._spec import ArgumentError
from tconv.conventions import convert

GUEST = {guest.name: guest for guest in GUESTS}
X = np.array([[[1.0, 2.0, 3.0, 4.0]]])
K3 = np.array([[[1.0, 10.0, 100.0]]])
FULL = [1, 10, 102, 20, 203, 30, 304, 40, 400]  # X with K3 at stride 2


def run(name: str, x, w, **arguments):
    """The guest's one result, flat, or the text of its refusal; x and w are as the guest holds them."""
    (y,) = GUEST[name].run([(x, w, arguments)])
    return y if isinstance(y, str) else y.ravel().tolist()


def refused(framework: str, rule: str, **arguments) -> None:
    with pytest.raises(ArgumentError, match=rule):
        getattr(conventions, framework)(input_size=4, **arguments)


def last(array):
    """(N, C, size) as (N, size, C)."""
    return np.ascontiguousarray(array.transpose(0, 2, 1))


@pytest.mark.parametrize("guest", ["flax-linen", "flax-nnx"])
def test_an_int_for_the_kernel_makes_flax_a_layer_of_one_axis(guest):
    x, w = np.ones((1, 2, 4, 1)), np.ones((3, 1, 1))
    assert len(run(guest, x, w, kernel_size=3, padding="VALID")) == 2 * 6  # two rows apart, each of 4 + 2
    with pytest.raises(ArgumentError, match="to Flax, an int is a layer of one axis"):
        conventions.flax(input_size=(2, 4), kernel_size=3)


def test_flax_wraps_around_where_no_crop_does():
    y = run("flax-linen", last(X), K3.transpose(2, 1, 0), kernel_size=(3,), strides=2, padding="CIRCULAR", transpose_kernel=True)
    assert y == [10, 102, 20, 203, 30, 304, 40, 400 + 1], "the first value of the full output is added to the last but one"
    refused("flax", "wraps the output around", kernel_size=3, strides=2, padding="CIRCULAR")


def test_small_letters_are_another_padding_to_lax():
    words = {"strides": (1,), "transpose_kernel": True}
    w = K3[..., :2].transpose(2, 1, 0)
    upper, lower = (run("jax", last(X), w, padding=padding, **words) for padding in ("SAME", "same"))
    assert upper == [1, 12, 23, 34] and lower == [12, 23, 34, 40]


def test_haiku_has_the_axes_of_tensorflow_and_the_kernel_of_jax():
    w = np.arange(1.0, 7.0).reshape(3, 2, 1)
    x = np.array([[[1.0], [0.0]]])
    y = run("haiku", x, w, kernel_shape=3, stride=2, padding="VALID")
    assert y == [*w[::-1].ravel().tolist(), 0, 0, 0, 0]
    assert conventions.haiku(input_size=2, kernel_shape=3).weight == conventions.WeightLayout("*OI", flip=True)


def test_equinox_same_appends_zeros_below_the_stride():
    flipped = K3[..., ::-1]
    assert run("equinox", X, flipped, kernel_size=3, stride=2, padding="SAME") == FULL[:-1]
    assert run("equinox", X, flipped, kernel_size=3, stride=2, padding="SAME_LOWER") == FULL[1:]
    assert run("equinox", X, flipped[..., 1:], kernel_size=2, stride=3, padding="SAME") == [1, 10, 0, 2, 20, 0, 3, 30, 0, 4, 40, 0]


def test_mlx_computes_something_else_above_the_kernel():
    assert run("mlx", last(X), last(K3), stride=2, padding=2) == FULL[2:-2]
    assert run("mlx", last(X), last(K3), stride=2, padding=3) != FULL[3:-3]
    refused("mlx", "more than K - 1 = 2", kernel_size=3, stride=2, padding=3)
    answer = convert("torch", "mlx", input_size=4, kernel_size=3, stride=2, padding=3)
    assert not answer.exists and answer.instead.slices == (slice(3, 6),)


def test_litert_writes_a_size_of_its_own_for_valid_in_two_dimensions():
    x, w = last(X)[:, None], last(K3)[None]
    assert run("tflite", x, w, output_shape=(1, 1, 9, 1), padding="VALID", stride_w=2) == FULL
    assert run("tflite", x, w, output_shape=(1, 1, 8, 1), padding="VALID", stride_w=2) == [*FULL, 0]
    with pytest.raises(ArgumentError, match="must be the input's 4"):
        conventions.tflite(input_size=(1, 4), kernel_size=(1, 3), output_shape=(1, 8), padding="VALID", stride_w=2)


def test_openvino_splits_an_odd_total_the_other_way_round_than_onnx():
    words = {"strides": [2], "output_shape": [8]}
    for auto_pad, upper, lower in (("same_upper", FULL[1:], FULL[:-1]), ("same_lower", FULL[:-1], FULL[1:])):
        assert run("openvino", X, K3, auto_pad=auto_pad, **words) == upper
        assert run("onnx", X, K3, auto_pad=auto_pad.upper(), **words) == lower
        layer = conventions.openvino(input_size=4, kernel_size=3, auto_pad=auto_pad, **words)
        assert any("other way round" in note for note in layer.notes)


def test_openvino_same_without_output_shape_crops_nothing():
    assert run("openvino", X, K3, strides=[2], auto_pad="same_upper") == FULL
    layer = conventions.openvino(input_size=4, kernel_size=3, strides=2, auto_pad="same_upper")
    assert layer.spec.crop == ((0, 0),) and any("crops nothing" in note for note in layer.notes)


def test_groups_of_openvino_drop_their_pads_beside_output_shape():
    words = {"strides": [2], "pads_begin": [1], "pads_end": [1], "output_shape": [7]}
    assert run("openvino", X, K3, **words) == FULL[1:-1]
    assert run("openvino", X, K3[None], **words) == FULL[:-2], "one group, by the function for groups"
    refused("openvino", "drops its pads", kernel_size=3, groups=2, **words)


def test_openvino_forgets_to_shift_one_tap_at_stride_one():
    one = K3[..., 1:2]
    words = {"pads_begin": [1], "output_padding": [1]}
    assert run("openvino", X, one, strides=[1], **words) == [10, 20, 30, 40]
    assert run("openvino", X, one, strides=[1], pads_begin=[1], output_padding=[2]) == [20, 30, 40, 0, 0], "another size: it shifts"
    refused("openvino", "takes for a matrix product", kernel_size=1, strides=1, **words)
    answer = convert("onnx", "openvino", input_size=4, kernel_shape=1, strides=2, pads=[1, 0])
    assert answer.exists, "another stride"
    assert not convert("equinox", "openvino", input_size=4, kernel_size=1, padding=[(1, -1)]).exists


def test_ncnn_reads_output_sizes_only_beside_its_marks():
    words = {"kernel_w": 3, "stride_w": 2, "output_w": 8}
    assert "fails with -100" in run("ncnn", X, K3, **words)
    assert run("ncnn", X, K3, pad_left=-233, **words) == FULL[:-1]
    assert run("ncnn", X, K3, pad_left=-234, **words) == FULL[1:]
    assert run("ncnn", X, K3, pad_left=-233, kernel_w=3, stride_w=2) == FULL, "without sizes, the mark crops nothing"
    refused("ncnn", "beside pad_left=-233", **words)
    refused("ncnn", "at least 1 where pads", kernel_w=3, stride_w=2, pad_left=-233)


def test_upfirdn_is_the_full_output():
    assert run("scipy", X, K3[0, 0], up=2) == FULL
    answer = convert("torch", "scipy", input_size=4, kernel_size=3, stride=2, dilation=2)
    assert answer.instead.spread and answer.weight(K3).tolist() == [1, 0, 10, 0, 100]


def test_shapes_that_coremltools_infers():
    """All that can be judged of Core ML here; no value of it has been seen."""
    drawn = []
    for seed in range(500 * MORE):
        layer = Draw(seed)
        facts, words = draw_coreml(layer)
        try:
            reading = conventions.coreml(**facts, **words)
        except ArgumentError as error:
            assert "at least 1 must remain" in error.rule, error
            continue
        x, w = (np.zeros(shape) for shape in (reading.spec.input_shape, reading.spec.weight_shape))
        if words["pad_type"] == "same":
            words["output_shape"] = list(reading.spec.output_shape)
            assert conventions.coreml(**facts, **words) == reading
        drawn.append((reading, (x, w, words)))
    for (reading, (_, _, words)), y in zip(drawn, process((("TCONV_GUEST", "coreml"),)).submit(attempt, coreml, [c for _, c in drawn]).result(),
                                           strict=True):  # fmt: skip
        assert not isinstance(y, str), f"{words}: {y}"
        assert y.shape == reading.spec.output_shape, f"{words}\n{reading}"
    assert len(drawn) > 250
