# SPDX-License-Identifier: Apache-2.0
"""From array shapes to a problem: the three operators agree on it, and shapes that do not fit are refused by name."""

import definition
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tconv import _problem
from tconv._spec import ArgumentError, Spec

seeds = st.integers(0, 100_000)


def shapes(problem):
    """The shapes of x, w and grad as the operators get them."""
    x, w, grad, _ = problem.arrays()
    return problem.arranged(x).shape, w.shape, problem.arranged(grad).shape


@given(seeds)
def test_forward_is_the_problem_that_the_line_describes(seed):
    problem = definition.random_problem(seed)
    x, w, grad = shapes(problem)
    found = _problem.forward(x, w, **problem.words)
    assert found.spec == Spec.parse(str(problem).split(" | ")[0])
    assert (found.layout, found.batched) == (problem.layout, problem.batched)
    assert (found.input_shape, found.output_shape, found.spec.weight_shape) == (x, grad, w)


@given(seeds)
def test_the_gradients_find_the_same_problem(seed):
    problem = definition.random_problem(seed)
    x, w, grad = shapes(problem)
    forward = _problem.forward(x, w, **problem.words)
    assert _problem.grad_input(grad, w, problem.size, **problem.words) == forward
    assert _problem.grad_weight(x, grad, problem.kernel, **problem.words) == forward
    assert _problem.grad_input(grad, w, list(problem.size), output_size=problem.output, **problem.words) == forward


@given(seeds)
def test_without_a_size_the_gradient_takes_the_smallest_input(seed):
    problem = definition.random_problem(seed)
    _, w, grad = shapes(problem)
    found = _problem.grad_input(grad, w, **problem.words)
    assert found.output_shape == grad
    assert all(a <= b for a, b in zip(found.spec.input_size, problem.size, strict=True))
    smaller = tuple(max(size - 1, 1) for size in found.spec.input_size)
    if all(size > 1 for size in found.spec.input_size):
        with pytest.raises(ArgumentError, match="grad="):
            _problem.grad_input(grad, w, smaller, **problem.words)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))
def test_every_output_padding_leads_back_to_the_same_size(size, kernel, stride, dilation, padding, extra):
    words = {"stride": stride, "dilation": dilation, "padding": padding}
    if extra >= max(stride, dilation) or (size - 1) * stride + dilation * (kernel - 1) + 1 - 2 * padding + extra < 1:
        return
    spec = Spec.build(size, kernel, **words, output_padding=extra)
    found = _problem.grad_input((1, 1, *spec.output_size), (1, 1, kernel), size, **words, output_padding=extra)
    assert found.spec == spec
    if extra < stride:  # then the size alone says it
        assert _problem.grad_input((1, 1, *spec.output_size), (1, 1, kernel), size, **words).spec == spec
        assert _problem.grad_input((1, 1, *spec.output_size), (1, 1, kernel), **words).spec.input_size == (size,)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
def test_same_leads_back(size, kernel, stride):
    found = _problem.grad_input((1, 1, size * stride), (1, 1, kernel), stride=stride, padding="same")
    assert found.spec == Spec.build(size, kernel, stride=stride, padding="same")


def test_kernel_size_as_any_integer():
    expected = _problem.grad_weight((1, 3, 5, 5), (1, 4, 7, 7), (3, 3))
    for size in (3, np.int64(3), np.array(3), [3, 3], np.array([3, 3])):
        assert _problem.grad_weight((1, 3, 5, 5), (1, 4, 7, 7), size) == expected


FORWARD, INPUT, WEIGHT = _problem.forward, _problem.grad_input, _problem.grad_weight


@pytest.mark.parametrize(("call", "arguments", "words", "argument", "rule"), [
    (FORWARD, ((2, 3, 5, 5), (3, 4)), {}, "w", "3 to 5 in all"), (FORWARD, ((2, 3, 5), (3, 4, 2, 2, 2, 2)), {}, "w", "3 to 5 in all"),
    (FORWARD, ((), (3, 4, 2)), {}, "x", "(batch, channels, *size), or 2 without the batch"),
    (FORWARD, ((5,), (3, 4, 2)), {}, "x", "must have 3 axes"), (FORWARD, ((1, 1, 3, 5), (3, 4, 2)), {}, "x", "must have 3 axes"),
    (FORWARD, ((5, 2), (3, 4, 2)), {"layout": "channels_last"}, "x", "has 2 channels where w of shape (3, 4, 2) takes 3"),
    (FORWARD, ((2, 5), (3, 4, 2)), {}, "x", "has 2 channels"), (FORWARD, ((3, 5), (3, 4, 2)), {"layout": "NHWC"}, "layout", "one of"),
    (FORWARD, ((3, 5), (3, 4, 2)), {"layout": None}, "layout", "one of"),
    (FORWARD, ((3, 5), (3, 4, 2)), {"groups": 0}, "groups", "at least 1"), (FORWARD, ((3, 5),
    (3, 4, 2)), {"groups": -3}, "groups", "at least 1"),
    (FORWARD, ((3, 5), (3, 4, 2)), {"groups": 2}, "groups", "must divide in_channels=3"),
    (FORWARD, ((3, 5), (3, 4, 2)), {"groups": (1, 1)}, "groups", "integer"), (FORWARD, ((3, 5),
    (3, 4, 2)), {"groups": 1.0}, "groups", "integer"),
    (FORWARD, ((0, 5), (0, 4, 2)), {}, "in_channels", "at least 1"), (FORWARD, ((3, 0), (3, 4, 2)), {}, "input_size", "at least 1"),
    (FORWARD, ((3, 5), (3, 0, 2)), {}, "out_channels", "at least 1"), (FORWARD, ((3, 5), (3, 4, 0)), {}, "kernel_size", "at least 1"),
    (FORWARD, ((3, 5), (3, 4, 2)), {"stride": 0}, "stride", "at least 1"),
    (INPUT, ((1, 3, 5), (3, 4, 2)), {}, "grad", "has 3 channels where w of shape (3, 4, 2) gives 4"),
    (INPUT, ((4, 5), (3, 4, 2)), {"stride": 0}, "stride", "at least 1"), (INPUT, ((4, 5),
    (3, 4, 2)), {"stride": -2}, "stride", "at least 1"),
    (INPUT, ((4, 5), (3, 4, 2)), {"padding": "sane"}, "padding", '"valid", "same"'),
    (INPUT, ((4, 5), (3, 4, 2)), {"dilation": 0}, "dilation", "at least 1"), (INPUT, ((4, 1), (3, 4, 3)), {}, "grad", "must lie in [3, 3]"),
    (INPUT, ((4, 0), (3, 4, 3)), {}, "grad", "must lie in"), (INPUT, ((4, 0), (3, 4, 3)), {"padding": "same"}, "grad", "must lie in"),
    (INPUT, ((4, 5), (3, 4, 2), 3), {}, "grad", "must lie in [4, 4]"), (INPUT, ((4, 5), (3, 4, 2), 0), {}, "input_size", "at least 1"),
    (INPUT, ((4, 5), (3, 4, 2), (2, 2)), {}, "input_size", "here 1"), (INPUT, ((4, 5), (3, 4, 2), 1.5), {}, "input_size", "integer"),
    (INPUT, ((4, 5), (3, 4, 2), 4), {"output_size": 6}, "output_size", "must equal the size of grad, (5,)"),
    (INPUT, ((4, 9), (3, 4, 2), 4), {"stride": 2, "output_padding": 2}, "output_padding", "below max"),
    (INPUT, ((4, 8), (3, 4, 2), 4), {"stride": 2, "output_padding": 1}, "grad", "must have the spatial size (9,)"),
    (WEIGHT, ((2, 3, 5), (1, 4, 6), 2), {}, "grad", "rank and batch of x"), (WEIGHT, ((1, 3, 5),
    (4, 6), 2), {}, "grad", "rank and batch of x"),
    (WEIGHT, ((1, 3, 5), (1, 4, 7), 2), {}, "grad", "must lie in [6, 6]"), (WEIGHT, ((1, 3, 5),
    (1, 4, 6), 0), {}, "kernel_size", "at least 1"),
    (WEIGHT, ((1, 3, 5), (1, 4, 6), "2"), {}, "kernel_size", "integer"), (WEIGHT, ((2, 3, 5, 5), (2, 4, 6, 6),
    (2,)), {}, "x", "must have 3 axes"),
    (WEIGHT, ((1, 3, 5), (1, 4, 6), 2), {"groups": 3}, "groups", "must divide out_channels=4"),
    (WEIGHT, ((1, 3, 5), (1, 4, 6), 2), {"groups": 0}, "groups", "at least 1"), (WEIGHT, ((3,), (4,), 2), {}, "x", "must have 3 axes"),
])  # fmt: skip
def test_shapes_that_do_not_fit(call, arguments, words, argument, rule):
    with pytest.raises(ArgumentError) as caught:
        call(*arguments, **words)
    assert caught.value.argument == argument
    assert rule in caught.value.rule
