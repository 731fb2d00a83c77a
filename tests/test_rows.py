# SPDX-License-Identifier: Apache-2.0
"""Depthwise layers with lanes along a row of output: values, sizes around vectors, crops, pieces, fences, and what the kernels refuse."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from definition import Judge, Problem, assert_same_bits
from test_depthwise import depthwise
from test_kernels import BFLOAT16, DTYPES, Fenced, in_a_process, judge_of
from test_operators import assert_guarded, inner_views

import tconv

KERNELS = tuple(name for name in tconv.kernels() if name.startswith("rows"))
BEST = KERNELS[0]
CHOOSE = tuple(name for name in KERNELS if name.endswith(("avx2", "avx512")))  # vectors that choose their inputs in registers
forced = pytest.mark.parametrize("kernel", KERNELS)
choosing = pytest.mark.parametrize("kernel", CHOOSE)


def row(size: int, taps: int, stride: int, crop: tuple[int, int], **words) -> Problem:
    """Four channels of three rows, with `taps` stride phases' worth of kernel along them."""
    return depthwise(Problem((3, size), (3, taps * stride), (2, stride), (1, 1), ((1, 0), crop), biased=True, **words), 4, "channels_first")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@forced
def test_strides_sizes_and_crops(kernel, dtype):
    for stride, taps in product((1, 2, 4, 8, 16, 32), (1, 2, 3)):
        for size, crop in product((3, 16, 33) if stride < 8 else (2, 5), ((0, 0), (1, 0), (stride // 2, stride // 2))):
            judge = judge_of(row(size, taps, stride, crop, dtype=dtype, seed=stride + size))
            judge.check("forward", judge.run("forward", tconv, algorithm=kernel), kernel)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@choosing
def test_any_stride_and_phases_that_lack_taps(kernel, dtype):
    """Kernels shorter than the stride, with a rest, and dilated ones: some phases have fewer taps than others, or none."""
    lanes = (16 if kernel.endswith("512") else 8) // (2 if np.dtype(dtype) == np.float64 else 1)
    for stride, kernel_size, dilation in product((2, 3, 4, 5, 7, 12), (1, 2, 3, 4, 5, 7), (1, 2)):
        if stride > lanes or (lanes - 1) // stride + 1 + -(-(kernel_size - 1) * dilation // stride) >= lanes:
            continue
        for size, crop in product((2, 9, 34), ((0, 0), (1, 0), (0, 1))):
            if (size - 1) * stride + dilation * (kernel_size - 1) + 1 - sum(crop) < stride:
                continue
            geometry = Problem((3, size), (3, kernel_size), (2, stride), (1, dilation), ((1, 0), crop), biased=True, dtype=dtype, seed=size)
            judge = judge_of(depthwise(geometry, 3, "channels_first"))
            judge.check("forward", judge.run("forward", tconv, algorithm=kernel), kernel)


@choosing
def test_an_endless_input_reaches_its_stamp_alone(kernel):
    """Where an output lacks a tap, nothing is multiplied by zero."""
    for endless, stride, column in product((np.inf, np.nan), (2, 4), range(40)):
        x, w = np.ones((1, 2, 3, 40), "float32"), np.ones((2, 1, 3, 3), "float32")
        x[:, :, 1, column] = endless
        found = tconv.conv_transpose(x, w, stride=(2, stride), groups=2, algorithm=kernel)
        reached = np.zeros(found.shape, bool)
        reached[:, :, 2:5, stride * column : stride * column + 3] = True
        np.testing.assert_array_equal(np.isfinite(found), ~reached)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@forced
def test_stride_1_and_its_gradient(kernel, layout):
    for kernel_size, dilation, size in product((1, 3, 5), (1, 2), ((4, 2, 7), (2, 3, 40))):
        geometry = Problem(size, (2, 3, kernel_size), (2, 1, 1), (1, 1, dilation), ((1, 0), (1, 1), (0, 1)), 2, seed=7)
        judge = judge_of(depthwise(geometry, 5, layout))
        for operator in ("forward", "grad_input"):
            judge.check(operator, judge.run(operator, tconv, algorithm=kernel), kernel)


@forced
def test_many_taps_are_added_in_parts(kernel):
    """Of 19 x 19 and of 25 x 25 taps."""
    for size in (19, 25):
        geometry = Problem((5, 30), (size, size), (1, 1), (1, 1), ((size // 2, size // 2),) * 2, seed=size)
        judge = judge_of(depthwise(geometry, 2, "channels_first"))
        judge.check("forward", judge.run("forward", tconv, algorithm=kernel), kernel)


@forced
def test_pieces_chunks_and_threads(kernel):
    long = depthwise(Problem((3000,), (8,), (4,), (1,), ((3, 1),), biased=True, seed=1), 3, "channels_first")
    tall = depthwise(Problem((60, 40), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 2, seed=2), 7, "channels_first")
    deep = depthwise(Problem((9, 8, 20), (4, 2, 4), (2, 2, 2), (1, 1, 1), ((1, 1), (0, 0), (1, 0)), 2, seed=3), 5, "channels_first")
    for judge in (judge_of(long), judge_of(tall), judge_of(deep)):
        alone = judge.run("forward", tconv, threads=1, algorithm=kernel)
        judge.check("forward", alone, kernel)
        for threads in (2, 3, 8):
            assert_same_bits(judge.run("forward", tconv, threads=threads, algorithm=kernel), alone, f"threads={threads}")


def test_an_output_past_the_caches():
    """Large outputs are stored past the caches where rows are whole lines, and not where they are not: the bits are those of small ones."""
    for columns, left, stride in ((512, 1, 2), (511, 0, 2), (352, 1, 3)):
        rng = np.random.default_rng(columns)
        x, w, bias = (rng.standard_normal(shape).astype("float32") for shape in ((1, 5, 512, columns), (5, 1, 4, 2 * stride), (5,)))
        words = {"stride": (2, stride), "padding": ((1, 1), (left, stride - 1)), "algorithm": BEST}
        whole = tconv.conv_transpose(x, w, bias, groups=5, **words)
        assert whole.nbytes >= 16 << 20
        x, w, bias = (np.concatenate([a, a]) for a in (np.moveaxis(x, 0, 1), w, bias))  # two of five, one after the other
        for c in range(5):
            two = tconv.conv_transpose(np.moveaxis(x[c : c + 2], 0, 1), w[c : c + 2], bias[c : c + 2], groups=2, **words)
            assert_same_bits(np.ascontiguousarray(whole[:, c]), np.ascontiguousarray(two[:, 0]), f"channel {c}")


def test_columns_that_are_not_adjacent():
    """Views of other layouts, every other column, and views to write to."""
    problem = row(9, 2, 2, (1, 0), seed=3)
    for judge in (Judge(problem), Judge(dataclasses.replace(problem, dtype=np.dtype("float64")))):
        x, words = judge.problem.arranged(judge.x), {**problem.words, "algorithm": BEST}
        for view in (np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1), np.repeat(x, 2, -1)[..., ::2]):
            assert view.strides[-1] != view.itemsize
            judge.check("forward", tconv.conv_transpose(view, judge.w, judge.bias, **words))
        plain = judge.run("forward", tconv, algorithm=BEST)
        for buffer, view in inner_views(plain.shape, judge.problem.dtype, -77.0):
            judge.check("forward", judge.run("forward", tconv, algorithm=BEST, out=view))
            assert_guarded(buffer, view, -77.0)


def run_between_fences() -> None:
    for kernel, stride, dtype, at_end in product(KERNELS, (1, 2, 8), ("float32", BFLOAT16), (True, False)):
        for size in (2, 9, 33):
            problem = row(size, 2, stride, (1, 1), dtype=dtype, seed=4)
            judge, fenced = Judge(problem), Fenced()
            x, w, bias = (fenced.array(a, at_end) for a in (problem.arranged(judge.x), judge.w, judge.bias))
            out = fenced.array(np.zeros_like(problem.arranged(judge.grad)), at_end)
            judge.check("forward", tconv.conv_transpose(x, w, bias, **problem.words, algorithm=kernel, out=out), kernel)
    print("done")


def run_long_rows_apart() -> None:
    """Rows that are not written as they are summed, in a process whose threads have no memory from shorter ones."""
    for stride, dtype in product((16, 4), ("float32", "float16", BFLOAT16)):
        judge = judge_of(row(400, 2, stride, (0, 0), dtype=np.dtype(dtype), seed=5))
        for kernel in KERNELS:
            active = judge.run("forward", tconv, algorithm=kernel, activation="relu")
            assert_same_bits(active, np.maximum(judge.run("forward", tconv, algorithm=kernel), 0), kernel)
            judge.check("forward", judge.run("forward", tconv, algorithm=kernel), kernel)
    print("done")


def test_long_rows_that_are_summed_apart():
    done = in_a_process("import test_rows; test_rows.run_long_rows_apart()")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


def test_no_access_beyond_the_arrays():
    done = in_a_process("import test_rows; test_rows.run_between_fences()")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


@pytest.mark.parametrize("taps, words, rule", [
    (2, {"groups": 2}, "more than one input or output channel"),
    (24, {"groups": 4, "stride": 24}, "not a power of two"),
    (128, {"groups": 4, "stride": 128}, "more than 64"),
    (33, {"groups": 4, "stride": 32}, "do not hold"),
    (3, {"groups": 4, "stride": 2, "dilation": 40}, "do not hold"),
])  # fmt: skip
@forced
def test_what_it_refuses(kernel, taps, words, rule):
    x, w = np.ones((1, 4, 5), "float32"), np.ones((4, 1, taps), "float32")
    with pytest.raises(tconv.ArgumentError, match=rule) as caught:
        tconv.conv_transpose(x, w, algorithm=kernel, **words)
    assert (caught.value.argument, caught.value.value) == ("algorithm", kernel)


def test_it_refuses_the_gradient_of_a_stride_and_endless_lists():
    w = np.ones((4, 1, 4, 4), "float32")
    with pytest.raises(tconv.ArgumentError, match="stride along a row is not 1"):
        tconv.conv_transpose_grad_input(np.ones((1, 4, 8, 8), "float32"), w, stride=2, groups=4, padding=1, algorithm=BEST)
    x = np.broadcast_to(np.ones((1, 4, 1, 1), "float32"), (0, 4, 10**6, 5))
    with pytest.raises(tconv.ArgumentError, match="too many"):
        tconv.conv_transpose(x, w, stride=2, groups=4, algorithm=BEST)
    for dilation in (10**6, 2**40):
        x = np.broadcast_to(np.ones((1, 4, 1, 1), "float32"), (0, 4, 9, 4 * dilation))
        with pytest.raises(tconv.ArgumentError, match="too far apart"):
            tconv.conv_transpose(x, w, dilation=(1, dilation), groups=4, algorithm=BEST)


def test_auto_takes_it_where_columns_are_adjacent():
    words = {"stride": 8, "padding": 4, "groups": 64}
    for algorithm in ("auto", "direct"):
        operator = tconv.Operator(np.ones((64, 1, 16, 16), "float32"), **words, algorithm=algorithm)
        assert operator.explain((1, 64, 16, 16)).kernel == BEST
        last = tconv.Operator(np.ones((64, 1, 16, 16), "float32"), **words, layout="channels_last", algorithm=algorithm)
        assert last.explain((1, 16, 16, 64)).kernel.startswith("depthwise")


def test_an_operator_packs_for_it():
    problem = row(6, 2, 2, (1, 1), seed=6)
    judge = Judge(problem)
    operator = tconv.Operator(judge.w, judge.bias, **problem.words, algorithm=BEST)
    judge.check("forward", operator(problem.arranged(judge.x)))
