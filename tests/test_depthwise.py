# SPDX-License-Identifier: Apache-2.0
"""Depthwise kernels, lanes over groups of one channel: values, sizes around vectors, arrays of any strides, fences, and what they refuse."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from definition import OPERATORS, Judge, Problem, assert_same_bits, random_problem
from test_kernels import BFLOAT16, DTYPES, WIDTHS, Fenced, check, in_a_process, judge_of
from test_operators import assert_guarded, inner_views

import tconv

KERNELS = tuple(name for name in tconv.kernels() if name.startswith("depthwise"))
BEST = KERNELS[0]
LAYOUTS = ("channels_last", "channels_first")
forced = pytest.mark.parametrize("kernel", KERNELS)


def depthwise(problem: Problem, channels: int, layout: str = "channels_last") -> Problem:
    """The same geometry with one channel a group."""
    return dataclasses.replace(problem, cin=channels, cout=channels, groups=channels, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@forced
def test_random_geometries(kernel, dtype):
    for seed in range(40_000, 40_060):
        problem = random_problem(seed, dtypes=(dtype,), budget=400)
        for layout in LAYOUTS:
            check(depthwise(problem, 2 + seed % 21, layout), kernel)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@forced
def test_channels_around_vectors(kernel, dtype):
    for channels in WIDTHS[1::2]:
        problem = Problem((3, 2), (2, 3), (1, 2), (1, 1), ((0, 0), (1, 0)), 2, dtype=dtype, biased=True, seed=channels)
        for layout in LAYOUTS:
            check(depthwise(problem, channels, layout), kernel)


@forced
def test_rows_that_are_cut_for_threads(kernel):
    long = depthwise(Problem((1000,), (5,), (2,), (1,), ((2, 1),), biased=True, seed=1), 19)
    tall = depthwise(Problem((30, 20), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 1, seed=2), 19)
    blocks = depthwise(Problem((90, 70), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 2, biased=True, seed=4), 70, "channels_first")
    for judge, operator in product((judge_of(long), judge_of(tall), judge_of(blocks)), OPERATORS):
        alone = judge.run(operator, tconv, threads=1, algorithm=kernel)
        judge.check(operator, alone, kernel)
        for threads in (2, 3, 8):
            assert_same_bits(judge.run(operator, tconv, threads=threads, algorithm=kernel), alone, f"{operator} threads={threads}")


def test_channels_that_are_not_adjacent():
    """Views of other layouts, every other channel, reversed channels, and views to write to."""
    problem = depthwise(Problem((5, 6), (3, 4), (2, 3), (1, 1), ((1, 0), (-1, 2)), 2, biased=True, seed=3), 19)
    judge = Judge(problem)
    x, words = problem.arranged(judge.x), {**problem.words, "algorithm": BEST}
    spread, reversed_ = np.repeat(x, 2, -1)[..., ::2], np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    for view in (np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 1)), 1, -1), spread, reversed_):
        assert view.strides[-1] != view.itemsize
        judge.check("forward", tconv.conv_transpose(view, judge.w, judge.bias, **words))
    shape = judge.run("forward", tconv, algorithm=BEST).shape
    for buffer, view in inner_views(shape, problem.dtype, -77.0):
        judge.check("forward", judge.run("forward", tconv, algorithm=BEST, out=view))
        assert_guarded(buffer, view, -77.0)


@forced
def test_a_weight_gradient_of_either_array_as_it_lies(kernel):
    """Channels adjacent in one array and columns in the other; long rows, whose sums are taken in parts, and more images than spans."""
    for size, channels, batch in (((5, 7), 37, 2), ((600,), 19, 1), ((3, 4), 16, 40)):
        kernel_size = (3, 4)[: len(size)]
        problem = depthwise(
            Problem(size, kernel_size, (2, 3)[: len(size)], (1,) * len(size), ((1, 0), (0, 2))[: len(size)], batch, seed=8), channels
        )
        judge = Judge(problem)
        x, grad = problem.arranged(judge.x), problem.arranged(judge.grad)
        for turned_x, turned_grad in product((False, True), repeat=2):
            views = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 1)), 1, -1) if turned else a
                     for a, turned in ((x, turned_x), (grad, turned_grad)))  # fmt: skip
            judge.check("grad_weight", tconv.conv_transpose_grad_weight(*views, problem.kernel, **problem.words, algorithm=kernel), kernel)


@pytest.mark.parametrize("layout", LAYOUTS)
@forced
def test_an_endless_input_reaches_the_taps_that_it_meets(kernel, layout):
    """The first column of a layer that is cropped by one meets no output through the first tap."""
    x, grad = np.ones((1, 3, 5, 6), "float32"), np.ones((1, 3, 9, 11), "float32")
    x[:, 1, :, 0] = np.inf
    if layout == "channels_last":
        x, grad = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, grad))
    found = tconv.conv_transpose_grad_weight(x, grad, (3, 3), stride=2, padding=((1, 1), (1, 1)), groups=3, layout=layout, algorithm=kernel)
    reached = np.zeros((3, 1, 3, 3), bool)
    reached[1, :, :, 1:] = True
    np.testing.assert_array_equal(np.isfinite(found), ~reached)


def run_between_fences() -> None:
    for kernel, channels, dtype, at_end in product(KERNELS, (3, 16, 37), ("float32", BFLOAT16), (True, False)):
        problem = depthwise(Problem((4, 9), (3, 4), (2, 2), (1, 1), ((1, 0), (1, 1)), 2, dtype=dtype, biased=True, seed=4), channels)
        judge, fenced = Judge(problem), Fenced()
        x, grad = (fenced.array(problem.arranged(a), at_end) for a in (judge.x, judge.grad))
        w, bias = (fenced.array(a, at_end) for a in (judge.w, judge.bias))
        out, words = fenced.array(np.zeros_like(grad), at_end), {**problem.words, "algorithm": kernel}
        judge.check("forward", tconv.conv_transpose(x, w, bias, **words, out=out), kernel)
        out = fenced.array(np.zeros_like(x), at_end)
        judge.check("grad_input", tconv.conv_transpose_grad_input(grad, w, problem.size, **words, out=out), kernel)
        out = fenced.array(np.zeros_like(w), at_end)
        judge.check("grad_weight", tconv.conv_transpose_grad_weight(x, grad, problem.kernel, **words, out=out), kernel)
    print("done")


def test_no_access_beyond_the_arrays():
    done = in_a_process("import test_depthwise; test_depthwise.run_between_fences()")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


@pytest.mark.parametrize("words, channels, rule", [
    ({"groups": 2, "layout": "channels_last"}, 4, "more than one input or output channel"),
    ({"groups": 1, "layout": "channels_last"}, 1, "there is one group"),
])  # fmt: skip
@forced
def test_what_it_refuses(kernel, words, channels, rule):
    x, w = np.ones((1, channels, channels), "float32"), np.ones((channels, 1, 2), "float32")
    with pytest.raises(tconv.ArgumentError, match=rule) as caught:
        tconv.conv_transpose(x, w, algorithm=kernel, **words)
    assert (caught.value.argument, caught.value.value) == ("algorithm", kernel)


def test_auto_takes_it_where_channels_are_adjacent():
    w = np.ones((64, 1, 4, 4), "float32")
    words = {"stride": 2, "padding": 1, "groups": 64}
    for algorithm in ("auto", "direct"):
        assert tconv.Operator(w, **words, layout="channels_last", algorithm=algorithm).explain((1, 16, 16, 64)).kernel == BEST
        assert tconv.Operator(w, **words, algorithm=algorithm).explain((1, 64, 64, 64)).kernel.startswith("rows")


def test_an_operator_packs_for_both_directions():
    problem = depthwise(Problem((5, 6), (3, 4), (2, 3), (1, 1), ((1, 0), (0, 2)), 2, seed=6), 21)
    judge = Judge(problem)
    operator = tconv.Operator(judge.w, **problem.words, algorithm=BEST)
    judge.check("forward", operator(problem.arranged(judge.x)))
    judge.check("grad_input", operator.T(problem.arranged(judge.grad), problem.size))
