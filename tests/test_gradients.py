# SPDX-License-Identifier: Apache-2.0
"""The weight's gradient where its sums are cut into boxes and spans, and all gradients of a layer in one call."""

import dataclasses

import definition
import ml_dtypes
import numpy as np
import pytest
from definition import Judge, Problem, assert_close, assert_same_bits

import tconv
from tconv import ArgumentError

# Each is cut another way: boxes of rows and of pieces of rows, images as the longer rows, vectors along the rows, many groups at once,
# channels of both sides in several tasks, adjacent rows as one run, more shapes of boxes than are kept, boxes that no output is in.
LARGE = [
    Problem((70, 90), (3, 3), (2, 2), (1, 1), ((1, 0), (1, 0)), 1, 20, 13, seed=1),
    Problem((9, 700), (4, 3), (2, 1), (1, 2), ((1, 1), (2, 1)), 2, 33, 5, seed=2),
    Problem((5, 4), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 70, 40, 24, seed=3),
    Problem((60, 50), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 3, 3, 2, seed=4),
    Problem((20, 35), (5, 4), (3, 2), (1, 1), ((1, 1), (0, 1)), 2, 12, 12, 12, seed=5),
    Problem((6, 7), (5, 5), (2, 2), (1, 1), ((1, 1), (1, 1)), 2, 300, 130, seed=6),
    Problem((33, 41), (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 4, 18, 12, 2, seed=7),
    Problem((5000,), (16,), (8,), (1,), ((4, 4),), 1, 9, 3, seed=8),
    Problem((3000,), (9,), (1,), (250,), ((500, 300),), 1, 16, 4, seed=9),
    Problem((11, 12, 13), (3, 3, 3), (2, 2, 2), (1, 1, 1), ((1, 0),) * 3, 1, 17, 6, seed=10),
    Problem((8,), (2,), (2,), (1,), ((5, 4),), 3000, 9, 8, seed=11),
]
by_line = {"ids": lambda p: str(p).split(" | ")[0].replace(" ", "_")}


@pytest.mark.parametrize("problem", LARGE, **by_line)
def test_large_sums_by_definition_and_the_same_bits_on_any_threads(problem):
    for layout in ("channels_first", "channels_last"):
        p = dataclasses.replace(problem, layout=layout)
        judge = Judge(p)
        alone = judge.run("grad_weight", tconv, threads=1)
        judge.check("grad_weight", alone)
        for threads in (2, 5, 16):
            assert_same_bits(judge.run("grad_weight", tconv, threads=threads), alone, f"{threads} threads {p}")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("batched", [True, False])
def test_all_gradients_in_one_call(dtype, layout, batched):
    p = Problem((19, 23), (4, 3), (2, 2), (1, 1), ((1, 1), (1, 0)), 3 if batched else 1, 6, 10, 2, dtype, layout, batched, seed=3)
    judge = Judge(p)
    x, grad = p.arranged(judge.x), p.arranged(judge.grad)
    found = tconv.conv_transpose_grads(x, judge.w, grad, **p.words)
    assert_same_bits(found.input, judge.run("grad_input", tconv))
    assert_same_bits(found.weight, judge.run("grad_weight", tconv))
    exact = judge.grad.astype(np.float64)
    terms = exact[:, 0].size
    assert_close(found.bias, exact.sum((0, 2, 3)), np.abs(exact).sum((0, 2, 3)), terms, dtype, p)
    for threads in (2, 7):
        assert_same_bits(tconv.conv_transpose_grads(x, judge.w, grad, **p.words, threads=threads).bias, found.bias)


def test_the_bias_of_long_sums_rounds_like_one_addition():
    for layout in ("channels_first", "channels_last"):
        p = Problem((301, 299), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), 3, 2, 5, layout=layout, seed=4)
        x, w, grad, _ = p.arrays()
        bias = tconv.conv_transpose_grads(p.arranged(x), w, p.arranged(grad), grads=["bias"], **p.words).bias
        exact = grad.astype(np.float64).sum((0, 2, 3))
        assert np.all(np.abs(bias - exact) <= 4 * definition.ROUNDOFF["float32"] * np.abs(exact))


def test_only_what_is_asked_for():
    x, w, grad = np.ones((1, 2, 4)), np.ones((2, 3, 2)), np.ones((1, 3, 8))
    for asked in (("input",), ("weight", "bias"), ["bias"], "weight", ()):
        found = tconv.conv_transpose_grads(x, w, grad, grads=asked, stride=2)
        names = {asked} if isinstance(asked, str) else set(asked)
        assert {name for name in found._fields if getattr(found, name) is not None} == names


@pytest.mark.parametrize("bad, argument", [
    ({"grads": ("inputs",)}, "grads"), ({"grads": 3}, "grads"), ({"x": np.ones((1, 3, 4))}, "x"), ({"x": np.ones(4)}, "x"),
    ({"w": np.ones((2, 4, 2))}, "grad"), ({"w": np.ones((2, 4, 2)), "grads": ("weight",)}, "grad"),
    ({"x": np.ones((1, 3, 4)), "grads": ("bias",)}, "x"), ({"grad": np.ones((1, 3, 10))}, "grad"), ({"grad": np.ones((2, 3, 8))}, "grad"),
    ({"w": np.ones((2, 3, 2), np.float32)}, "w"), ({"threads": 0}, "threads"), ({"algorithm": "fast"}, "algorithm"),
])  # fmt: skip
def test_bad_arguments_are_named(bad, argument):
    arguments = {"x": np.ones((1, 2, 4)), "w": np.ones((2, 3, 2)), "grad": np.ones((1, 3, 8)), **bad}
    with pytest.raises(ArgumentError) as caught:
        tconv.conv_transpose_grads(arguments.pop("x"), arguments.pop("w"), arguments.pop("grad"), stride=2, **arguments)
    assert caught.value.argument == argument
