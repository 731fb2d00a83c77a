# SPDX-License-Identifier: Apache-2.0
"""Winograd's transforms along one axis, lanes over positions: values in every geometry they take, refusals, errors, bits, guards."""

import dataclasses
from itertools import product

import definition
import numpy as np
import pytest
import test_kernels
from definition import Judge, Problem, assert_same_bits
from test_winograd import check_between_fences, check_nothing_around, relative_error

import tconv

OPERATORS = ("forward", "grad_input")
KERNELS = tuple(name for name in tconv.kernels() if name.startswith("rowwise"))
BEST = KERNELS[0].split("_")[1]
# kernel, stride of the axis that has tiles: 2, 3 and 4 taps a phase, of which some lack the last one
FORMS = [(4, 2), (3, 2), (2, 1), (6, 3), (16, 8), (5, 2), (3, 1), (8, 3), (6, 2), (4, 1), (7, 2), (10, 3)]
forced = pytest.mark.parametrize("kernel", KERNELS)


def rowwise_problem(seed: int, **fixed) -> Problem:
    """A small problem that has tiles from row to row: any sizes, crops, channels, groups and layout, anything along the other axes."""
    rng = np.random.default_rng([seed, 7])
    rank = int(rng.choice([2, 2, 3]))
    kernel, stride = zip(*(FORMS[i] for i in rng.integers(len(FORMS), size=rank)), strict=True)
    dilation = tuple(1 if axis == rank - 2 else int(rng.choice([1, 1, 2])) for axis in range(rank))
    return drawn(rng, kernel, stride, dilation, fixed) or rowwise_problem(seed + 1_000_000, **fixed)


def along_problem(seed: int, **fixed) -> Problem:
    """One that has tiles along the row: of one axis, or with nothing to gain from row to row."""
    rng = np.random.default_rng([seed, 8])
    rank = int(rng.choice([1, 1, 2, 3]))
    kernel, stride = zip(*(FORMS[i] for i in rng.integers(len(FORMS), size=rank)), strict=True)
    k, s, d = ((1, 1, 1), (3, 1, 2), (2, 2, 1), (5, 1, 1), (1, 2, 1))[rng.integers(5)]  # taps from row to row: 1, dilated, 1, 5, none
    if rank > 1:
        kernel, stride = (*kernel[:-2], k, kernel[-1]), (*stride[:-2], s, stride[-1])
    dilation = (*[1] * (rank - 2), *[d] * (rank > 1), 1)
    return drawn(rng, kernel, stride, dilation, fixed) or along_problem(seed + 1_000_000, **fixed)


def drawn(rng, kernel, stride, dilation, fixed) -> Problem | None:
    """The rest of a problem, unless it comes out large."""
    seed, rank = int(rng.integers(1 << 30)), len(kernel)
    size = tuple(int(rng.integers(1, 40 if axis == rank - 1 else 8)) for axis in range(rank))
    if rank == 3:
        kernel, stride, size = (min(kernel[0], 3), *kernel[1:]), (min(stride[0], 2), *stride[1:]), (min(size[0], 3), *size[1:])
    if np.prod([n * k for n, k in zip(size, kernel, strict=True)]) > 6000:
        return None
    crop = tuple(definition._random_crop(rng, *words) for words in zip(size, kernel, stride, dilation, strict=True))
    groups = int(rng.choice([1, 1, 2]))
    cin, cout = (groups * int(rng.choice([1, 2, 3, 5, 9])) for _ in range(2))
    words = {"batch": int(rng.choice([1, 2, 5])), "dtype": test_kernels.DTYPES[rng.integers(4)], "biased": bool(rng.random() < 0.5),
             "layout": str(rng.choice(["channels_first", "channels_last"]))}  # fmt: skip
    return Problem(size, kernel, stride, dilation, crop, cin=cin, cout=cout, groups=groups, seed=seed, **{**words, **fixed})


def check(problem: Problem, kernel: str, **extra) -> None:
    judge = test_kernels.judge_of(problem)
    for operator in OPERATORS:
        judge.check(operator, judge.run(operator, tconv, algorithm=kernel, **extra), kernel, mixes=True)


# --------------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize("draw", [rowwise_problem, along_problem])
@forced
def test_random_geometries(kernel, draw, block):
    for seed in range(block * 40, (block + 1) * 40):
        check(draw(seed), kernel)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"k{f[0]}s{f[1]}")
def test_sizes_around_tiles(form, layout):
    """Maps of one row, of every number of partial tiles, cropped in the middle of a tile or padded; rows around a vector's width."""
    k, s = form
    for rows, columns, crop in product((1, 2, 3, 4, 5, 7, 12), (1, 15, 17), ((0, 0), (1, k - 1), (-3, -2), (s, 0))):
        if (rows - 1) * s + k - sum(crop) >= 1:
            check(Problem((rows, columns), (k, 3), (s, 1), (1, 1), (crop, (1, 1)), 2, 3, 4, layout=layout, biased=True, seed=rows),
                  f"rowwise_{BEST}")  # fmt: skip


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"k{f[0]}s{f[1]}")
def test_rows_around_tiles(form, layout):
    """Rows of every number of partial tiles, and of tiles around a vector's width; taps from row to row that have no tiles, or no rows."""
    k, s = form
    for columns, crop in product((1, 2, 3, 4, 5, 7, 12, 45, 61, 65), ((0, 0), (1, k - 1), (-3, -2), (s, 0))):
        if (columns - 1) * s + k - sum(crop) >= 1:
            for size, kernel in (((columns,), (k,)), ((3, columns), (2, k))):
                others, ones = len(size) - 1, (1,) * len(size)
                strides, crops = (2,) * others + (s,), ((0, 0),) * others + (crop,)
                check(Problem(size, kernel, strides, ones, crops, 2, 3, 4, layout=layout, biased=True, seed=columns), f"rowwise_{BEST}")


# Boxes that are cut along every axis and images together; several units of phases and blocks of channels, of which the last is smaller; sums
# in several parts; phases along a row and a depth that read different inputs; groups; no taps for some columns.
SEVERAL = (Problem((70, 90), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 3, 20, 29, biased=True, seed=1),
           Problem((30, 31), (16, 16), (8, 8), (1, 1), ((4, 4), (4, 4)), 1, 7, 13, seed=2),
           Problem((9, 1500), (4, 5), (2, 3), (1, 1), ((1, 1), (0, 1)), 1, 70, 3, biased=True, seed=3),
           Problem((12, 20, 21), (3, 4, 3), (2, 2, 2), (1, 1, 1), ((1, 0), (1, 1), (1, 0)), 2, 10, 2, biased=True, seed=4),
           Problem((7, 9), (4, 2), (1, 3), (1, 1), ((2, 1), (0, 0)), 9, 300, 4, 2, seed=5),
           Problem((40, 8), (7, 7), (2, 2), (1, 1), ((3, 3), (3, 3)), 4, 33, 1, seed=6),
           Problem((5, 6), (8, 80), (4, 70), (1, 1), ((2, 2), (3, 3)), 2, 4, 3, biased=True, seed=7),
           Problem((9000,), (4,), (2,), (1,), ((1, 1),), 1, 40, 33, biased=True, seed=8),
           Problem((700,), (32,), (16,), (1,), ((8, 8),), 3, 20, 3, seed=9),
           Problem((300,), (7,), (2,), (1,), ((3, 2),), 20, 150, 9, 3, biased=True, seed=10),
           Problem((5, 3, 400), (3, 1, 5), (2, 1, 2), (1, 1, 1), ((1, 0), (0, 0), (2, 1)), 2, 10, 11, biased=True, seed=11))  # fmt: skip


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("problem", SEVERAL, ids=str)
def test_several_boxes_units_and_blocks(problem, layout):
    check(dataclasses.replace(problem, layout=layout), f"rowwise_{BEST}")
    check(dataclasses.replace(problem, layout=layout), f"rowwise_{BEST}", threads=5)


@pytest.mark.parametrize("turn", [np.s_[:, :, ::-1, ::-1], np.s_[:, ::-1], np.s_[:, :, :, ::2], np.s_[:, :, ::2]], ids=str)
def test_views_of_larger_arrays(turn):
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 6, 20, 44), np.float32)[turn], rng.standard_normal((6, 4, 4, 4), np.float32)[:, ::-1]
    expected = tconv.conv_transpose(x.copy(), w.copy(), stride=2, padding=1, algorithm="direct")
    np.testing.assert_allclose(tconv.conv_transpose(x, w, stride=2, padding=1, algorithm="rowwise"), expected, atol=2e-5)


@pytest.mark.parametrize("turn", [np.s_[:, :, ::-1], np.s_[:, ::-1], np.s_[:, :, ::2], np.s_[::2, ::3]], ids=str)
def test_views_of_longer_rows(turn):
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((2, 6, 99), np.float32)[turn], rng.standard_normal((6, 4, 4), np.float32)
    w = w[: x.shape[1]]
    expected = tconv.conv_transpose(x.copy(), w.copy(), stride=2, padding=1, algorithm="direct")
    np.testing.assert_allclose(tconv.conv_transpose(x, w, stride=2, padding=1, algorithm="rowwise"), expected, atol=2e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_activations_follow_the_whole_sum(activation):
    for layout, cin in product(("channels_first", "channels_last"), (6, 300)):
        p = Problem((9, 40), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 0)), 2, cin, 5, layout=layout, biased=True, seed=9)
        judge = Judge(p)
        plain = judge.run("forward", tconv, algorithm="rowwise")
        once = judge.run("forward", tconv, algorithm="rowwise", activation=activation)
        np.testing.assert_allclose(once, np.maximum(plain, 0) if activation == "relu" else np.tanh(plain), rtol=1e-6, atol=1e-7)


def test_large_outputs_that_go_past_the_caches():
    rng = np.random.default_rng(6)
    for columns in (256, 251):
        x, w = rng.standard_normal((8, 6, 130, columns), np.float32), rng.standard_normal((6, 16, 3, 3), np.float32)
        y, direct = (tconv.conv_transpose(x, w, np.ones(16, np.float32), algorithm=name) for name in ("rowwise", "direct"))
        assert y.nbytes > 16 << 20 and np.abs(y - direct).max() < 1e-5 * np.abs(direct).max()


def test_a_long_row_that_goes_past_the_caches():
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((1, 16, 150_001), np.float32), rng.standard_normal((16, 16, 4), np.float32)
    y, direct = (tconv.conv_transpose(x, w, np.ones(16, np.float32), stride=2, padding=1, algorithm=name) for name in ("rowwise", "direct"))
    assert y.nbytes > 16 << 20 and np.abs(y - direct).max() < 1e-5 * np.abs(direct).max()


def test_an_empty_batch():
    check(Problem((4, 5), (4, 4), (2, 2), (1, 1), ((1, 1), (0, 1)), 0, 3, 2, biased=True), f"rowwise_{BEST}")
    check(Problem((5,), (4,), (2,), (1,), ((0, 1),), 0, 3, 2, biased=True), f"rowwise_{BEST}")


@pytest.mark.parametrize("base", [Problem((5, 6), (5, 3), (2, 2), (1, 1), ((1, 0), (0, 2)), 2, 6, 9, biased=True, seed=7),
                                  Problem((5, 6), (1, 5), (1, 2), (1, 1), ((0, 0), (1, 2)), 2, 6, 9, biased=True, seed=7)], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_operator_serves_any_input_size(dtype, base):
    base = dataclasses.replace(base, dtype=dtype)
    weight = Judge(base)
    operator = tconv.Operator(weight.w, weight.bias, **base.words, algorithm="rowwise")
    for size, batch in product([(1, 1), (1, 40), (17, 2), (4, 30)], [1, 3]):
        p = dataclasses.replace(base, size=size, batch=batch)
        x, _, grad, _ = p.arrays()
        judge = Judge(p, (x, weight.w, grad, weight.bias))
        judge.check("forward", operator(x), "Operator", mixes=True)
        assert_same_bits(operator(x), tconv.conv_transpose(x, weight.w, weight.bias, **p.words, algorithm="rowwise"))
        judge.check("grad_input", operator.T(grad), "Operator.T", mixes=True)


@pytest.mark.parametrize("problem", [*SEVERAL, *(draw(10_000 + seed, batch=7) for seed in range(6) for draw in (rowwise_problem, along_problem))],
                         ids=str)  # fmt: skip
def test_no_bit_depends_on_the_number_of_threads(problem):
    judge = Judge(problem)
    for operator in OPERATORS:
        first, *others = (judge.run(operator, tconv, algorithm="rowwise", threads=n) for n in (1, 2, 3, 8, 64))
        for result in others:
            assert_same_bits(result, first, problem)


@pytest.mark.parametrize("problem", [SEVERAL[0], SEVERAL[-2]], ids=str)
def test_no_bit_depends_on_other_images(problem):
    judge = Judge(problem)
    whole = judge.run("forward", tconv, algorithm="rowwise")
    for image, alone in zip(judge.x, whole, strict=True):
        assert_same_bits(tconv.conv_transpose(image, judge.w, judge.bias, **problem.words, algorithm="rowwise"), alone)


def test_out_is_written_and_nothing_around_it():
    check_nothing_around(map(rowwise_problem, range(20_000, 20_030)), "rowwise", OPERATORS)
    check_nothing_around(map(along_problem, range(20_000, 20_030)), "rowwise", OPERATORS)


def run_between_fences() -> None:
    check_between_fences(KERNELS, [draw(seed) for seed in range(30_000, 30_012) for draw in (rowwise_problem, along_problem)], OPERATORS)


def test_no_access_beyond_the_arrays():
    done = test_kernels.in_a_process("import test_rowwise; test_rowwise.run_between_fences()")
    assert done.returncode == 0 and done.stdout == "done\n", f"exit {done.returncode}\n{done.stderr[-2000:]}"


# --------------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("form", [(3, 1, 16, 16), (4, 2, 64, 3), (4, 2, 512, 1), (7, 2, 64, 3), (7, 2, 256, 1), (5, 2, 32, 32), (9, 4, 56, 1),
                                  (16, 8, 21, 21), (4, 1, 128, 1), (4, 1, 8, 8)], ids=str)  # fmt: skip
def test_the_error_stays_within_twice_that_of_the_direct_kernels(form, positive):
    """RMS against float64, of normal numbers and of what a ReLU leaves of them."""
    k, s, cin, cout = form
    rng = np.random.default_rng(cin)
    check_error(rng.standard_normal((1, cin, 20, 24), np.float32), rng.standard_normal((cin, cout, k, k), np.float32), s, positive)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("form", [(3, 1, 32, 16), (4, 2, 64, 32), (4, 2, 512, 1), (8, 4, 48, 8), (7, 2, 256, 5), (5, 2, 32, 32), (4, 1, 128, 1),
                                  (10, 5, 80, 40), (4, 2, 1024, 16)], ids=str)  # fmt: skip
def test_the_error_along_a_row_too(form, positive):
    k, s, cin, cout = form
    rng = np.random.default_rng(cin)
    check_error(rng.standard_normal((1, cin, 480), np.float32), rng.standard_normal((cin, cout, k), np.float32), s, positive)


@pytest.mark.parametrize("form", [((44, 1, 5, 5), (6, 2000), (1, 4)), ((44, 2, 5, 3), (6, 2000), (1, 2)), ((32, 2, 4, 1), (7, 400), (2, 1)),
                                  ((32, 2, 3, 1), (7, 400), (2, 1)), ((17, 8, 6, 6), (4, 436), (2, 2)), ((51, 1, 2, 5), (19, 153), (1, 1)),
                                  ((9, 16, 4, 4), (4, 376), (1, 1)), ((48, 16, 3), (2000,), (2,)), ((56, 24, 5), (2000,), (3,))], ids=str)  # fmt: skip
def test_the_error_where_direct_sums_are_short(form):
    """Few outputs, phases that lack a tap, maps of few rows: on average over some draws."""
    shape, size, stride = form
    rng, squares = np.random.default_rng(5), np.zeros(2)
    for _ in range(4):
        x, w = np.maximum(rng.standard_normal((1, shape[0], *size), np.float32), 0), rng.standard_normal(shape, np.float32)
        exact = tconv.conv_transpose(x.astype(float), w.astype(float), stride=stride, algorithm="direct")
        squares += [relative_error(tconv.conv_transpose(x, w, stride=stride, algorithm=name), exact) ** 2 for name in ("rowwise", "direct")]
    assert 0 < squares[0] <= 4 * squares[1]


def check_error(x, w, s, positive):
    x = np.maximum(x, 0) if positive else x
    direct, rowwise, exact = (tconv.conv_transpose(x.astype(t), w.astype(t), stride=s, padding=1, algorithm=name)
                              for name, t in (("direct", np.float32), ("rowwise", np.float32), ("direct", np.float64)))  # fmt: skip
    assert 0 < relative_error(rowwise, exact) <= 2 * relative_error(direct, exact)


# ----------------------------------------------------------------------------------------------------------------- choice and refusal


@pytest.mark.parametrize(("kernel", "words", "reason"), [
    ((3, 3), {"stride": 2, "dilation": 2}, "it is dilated from row to row"),
    ((2, 2), {"stride": 2}, "no stride phase has two taps from row to row"),
    ((9, 9), {"stride": 2}, "a stride phase has 5 taps from row to row; transforms take 2 to 4"),
    ((1, 2), {"stride": 2}, "no stride phase has two taps along a row"),
    ((4,), {"stride": 4}, "no stride phase has two taps along a row"),
    ((9,), {"stride": 2}, "a stride phase has 5 taps along a row; transforms take 2 to 4"),
    ((4,), {"dilation": 2}, "it is dilated along a row"),
    ((34,), {"stride": 17}, "its stride along a row is over 16"),
])  # fmt: skip
def test_a_refusal_says_why(kernel, words, reason):
    x, w = np.ones((1, 2, *(4 for _ in kernel)), np.float32), np.ones((2, 3, *kernel), np.float32)
    for call in (
        lambda: tconv.conv_transpose(x, w, **words, algorithm="rowwise"),
        lambda: tconv.Operator(w, **words, algorithm="rowwise")(x),
    ):
        with pytest.raises(tconv.ArgumentError, match=reason) as caught:
            call()
        assert (caught.value.argument, caught.value.value) == ("algorithm", f"rowwise_{BEST}")


def test_auto_takes_it_along_a_row_too():
    w = np.ones((128, 8, 16), np.float32)
    assert tconv.Operator(w, stride=8).explain((1, 128, 12000)).kernel.startswith("rowwise")
    assert tconv.Operator(w[:, :, None], stride=(1, 8)).explain((1, 128, 3, 12000)).kernel.startswith("rowwise")


def test_the_weight_counts_not_how_often_it_is_packed():
    found = tconv.Operator(np.ones((900, 1, 25, 4), np.float32)).explain((1, 900, 40, 40))
    assert "4 MiB" not in next(c.refused for c in found.candidates if c.method == "rowwise")


def test_auto_takes_it_where_it_wins_and_direct_never():
    for cin, cout, size, words, wins in ((24, 24, 56, {"padding": 1}, True), (128, 128, 28, {"padding": 1}, False)):
        w = np.ones((cin, cout, 3, 3), np.float32)
        taken, direct = (tconv.Operator(w, **words, algorithm=name).explain((1, cin, size, size)).kernel for name in ("auto", "direct"))
        assert taken.startswith("rowwise") == wins and not direct.startswith("rowwise")


def test_auto_leaves_large_weights_and_short_sums_to_others():
    for shape, words, why in (((21, 21, 64, 64), {"stride": 32}, "larger than 4 MiB"), ((8, 4, 4), {"stride": 2}, "fewer than 64 terms"),
                              ((64, 64, 4), {"stride": 2}, "both sides have 64 channels")):  # fmt: skip
        found = tconv.Operator(np.ones(shape, np.float32), **words).explain((1, shape[0], *(9 for _ in shape[2:])))
        assert why in next(c.refused for c in found.candidates if c.method == "rowwise")
