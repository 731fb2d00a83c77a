# SPDX-License-Identifier: Apache-2.0
"""Winograd's transforms: values in every geometry they take, refusals with reasons, errors beside the direct kernels', bits, guards."""

import dataclasses
from itertools import product

import definition
import numpy as np
import pytest
import test_kernels
from definition import OPERATORS, Judge, Problem, assert_same_bits

import tconv
from tconv import _core

KERNELS = tuple(name for name in tconv.kernels() if name.startswith("winograd"))
BEST = KERNELS[0].split("_")[1]
# kernel, stride; the last ones are too large for two axes
FORMS = [(4, 2), (3, 2), (5, 2), (6, 2), (3, 1), (2, 1), (4, 1), (7, 2), (1, 1), (2, 2), (6, 3), (7, 3), (9, 3), (8, 4),
         (5, 1), (6, 1), (7, 1), (9, 2), (14, 3), (9, 4), (16, 8), (25, 4), (11, 1)]  # fmt: skip
forced = pytest.mark.parametrize("kernel", KERNELS)


def winograd_problem(seed: int, **fixed) -> Problem:
    """A small problem that the transforms take: any sizes, crops, channels, groups and layout."""
    rng = np.random.default_rng([seed, 3])
    rank = int(rng.choice([1, 2, 2, 3]))
    most = {1: 30, 2: 8, 3: 4}[rank]
    while True:
        size = tuple(int(v) for v in rng.integers(1, most + 1, rank))
        forms = [FORMS[i] for i in rng.integers(len(FORMS) - 4 * (rank > 1), size=rank)]
        taps = [-(-k // s) for k, s in forms]
        refused = max(taps) == 1 or (rank == 3 and min(taps) > 1 and taps.count(4) > 1)
        if not refused and np.prod([n * k for n, (k, _) in zip(size, forms, strict=True)]) <= 1500:
            break
    crop = tuple(definition._random_crop(rng, n, k, s, 1) for n, (k, s) in zip(size, forms, strict=True))
    groups = int(rng.choice([1, 1, 1, 2]))
    cin, cout = (groups * int(rng.choice([1, 3, 8, 17, 35])) for _ in range(2))
    words = {"batch": int(rng.choice([1, 2, 5])), "dtype": test_kernels.DTYPES[rng.integers(4)], "biased": bool(rng.random() < 0.5),
             "layout": str(rng.choice(["channels_first", "channels_last"]))}  # fmt: skip
    kernel, stride = zip(*forms, strict=True)
    return Problem(size, kernel, stride, (1,) * rank, crop, cin=cin, cout=cout, groups=groups, seed=seed, **{**words, **fixed})


def check(problem: Problem, kernel: str, **extra) -> None:
    judge = test_kernels.judge_of(problem)
    for operator in OPERATORS:
        judge.check(operator, judge.run(operator, tconv, algorithm=kernel, **extra), kernel, mixes=True)


# --------------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("block", range(3))
@forced
def test_random_geometries(kernel, block):
    for seed in range(30_000 + block * 40, 30_000 + (block + 1) * 40):
        check(winograd_problem(seed), kernel)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("form", FORMS[:8], ids=lambda f: f"k{f[0]}s{f[1]}")
def test_sizes_around_tiles(form, layout):
    """Maps of one row, of one column, of every number of partial tiles."""
    (k, s), crop = form, (1, 1) if form[0] > 2 else (0, 1)
    for size in [(1, n) for n in range(1, 9)] + [(n, 1) for n in range(2, 9)] + [(2, 3), (7, 7)]:
        if all((n - 1) * s + k - sum(crop) >= 1 for n in size):
            check(
                Problem(size, (k, k), (s, s), (1, 1), (crop, crop), 2, 5, 7, layout=layout, biased=True, seed=size[1]), f"winograd_{BEST}"
            )


def test_several_boxes_and_blocks():
    for p in (Problem((40, 43), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 2, 70, 80, biased=True, seed=1),
              Problem((33, 20), (3, 3), (2, 2), (1, 1), ((1, 0), (0, 1)), 1, 300, 70, seed=2),
              Problem((2000,), (5,), (2,), (1,), ((2, 1),), 1, 40, 33, biased=True, seed=3),
              Problem((33, 20), (5, 9), (1, 2), (1, 1), ((2, 2), (4, 3)), 1, 100, 70, biased=True, seed=5),
              Problem((9, 10, 11), (3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1),) * 3, 1, 20, 24, 2, seed=4)):  # fmt: skip
        check(p, f"winograd_{BEST}")
        check(dataclasses.replace(p, layout="channels_last"), f"winograd_{BEST}")


# Many weights and few positions: several families, phases and pieces, axes, images, groups, a last block of one vector, parts of sums that
# divide no number of channels, fewer channels than parts go by phases.
BY_BLOCKS = (Problem((5, 6), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 2, 70, 144, biased=True, seed=1),
             Problem((5, 4), (3, 5), (2, 2), (1, 1), ((1, 0), (2, 1)), 1, 101, 160, seed=2),
             Problem((40,), (20,), (10,), (1,), ((5, 5),), 1, 72, 130, biased=True, seed=3),
             Problem((6, 7), (5, 3), (1, 1), (1, 1), ((2, 2), (1, 1)), 1, 80, 90, biased=True, seed=4),
             Problem((3, 2, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1), ((1, 0),) * 3, 3, 66, 128, 2, seed=5),
             Problem((6, 6), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1, 48, 256, dtype="float64", seed=6))  # fmt: skip


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("problem", BY_BLOCKS, ids=str)
def test_a_call_that_transforms_its_weights_has_the_bits_of_an_operator(problem, layout):
    p = dataclasses.replace(problem, layout=layout)
    judge = Judge(p)
    operator = tconv.Operator(judge.w, judge.bias, **p.words, algorithm="winograd")
    for threads in (1, 2, 5):
        for name, kept in (("forward", operator(p.arranged(judge.x))), ("grad_input", operator.T(p.arranged(judge.grad)))):
            once = judge.run(name, tconv, algorithm="winograd", threads=threads)
            judge.check(name, once, f"{threads} threads", mixes=True)
            assert_same_bits(once, kept, p)


def test_an_empty_batch():
    check(Problem((4, 5), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 0, 4, 6, biased=True), f"winograd_{BEST}")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_operator_serves_any_input_size(dtype):
    base = Problem((5, 6), (4, 3), (2, 2), (1, 1), ((1, 1), (1, 0)), 2, 33, 18, dtype=dtype, biased=True, seed=7)
    weight = Judge(base)
    operator = tconv.Operator(weight.w, weight.bias, **base.words, algorithm="winograd")
    for size, batch in product([(1, 1), (1, 40), (3, 3), (17, 2), (6, 6), (5, 6)], [1, 3]):  # 6: phases of their own
        p = dataclasses.replace(base, size=size, batch=batch)
        x, _, grad, _ = p.arrays()
        judge = Judge(p, (x, weight.w, grad, weight.bias))
        judge.check("forward", operator(x), "Operator", mixes=True)
        assert_same_bits(operator.T(grad), tconv.conv_transpose_grad_input(grad, weight.w, p.size, **p.words, algorithm="winograd"))


@pytest.mark.parametrize("seed", range(8))
def test_no_bit_depends_on_the_number_of_threads(seed):
    p = winograd_problem(40_000 + seed, batch=7)
    judge = Judge(p)
    for operator in OPERATORS:
        results = [judge.run(operator, tconv, algorithm="winograd", threads=n) for n in (1, 2, 3, 8)]
        for result in results[1:]:
            assert_same_bits(result, results[0], p)


def check_nothing_around(problems, algorithm: str, operators) -> None:
    """`out` is a part of a larger array, of which nothing else is written."""
    for p in problems:
        judge = Judge(p)
        for operator in operators:
            shape = judge.run(operator, tconv, algorithm=algorithm).shape
            buffer = np.full([n + 5 for n in shape], -77.0, p.dtype)
            view = buffer[tuple(slice(2, 2 + n) for n in shape)]
            judge.check(operator, np.ascontiguousarray(judge.run(operator, tconv, algorithm=algorithm, out=view)), "out", mixes=True)
            view[...] = -77.0
            assert np.all(buffer == -77.0), p


def test_out_is_written_and_nothing_around_it():
    check_nothing_around(map(winograd_problem, range(50_000, 50_030)), "winograd", OPERATORS)


def check_between_fences(kernels, problems, operators) -> None:
    """Every array ends, then begins, at an unreadable page."""
    for kernel, p, at_end in product(kernels, problems, (True, False)):
        fenced, plain = test_kernels.Fenced(), Judge(p)
        x, grad, w = (fenced.array(a, at_end) for a in (p.arranged(plain.x), p.arranged(plain.grad), plain.w))
        out, back, by_w = (fenced.array(np.zeros_like(a), at_end) for a in (grad, x, plain.w))
        bias = None if plain.bias is None else fenced.array(plain.bias, at_end)
        words = {**p.words, "algorithm": kernel, "threads": 2}
        plain.check("forward", tconv.conv_transpose(x, w, bias, **words, out=out), kernel, mixes=True)
        if "grad_input" in operators:
            plain.check("grad_input", tconv.conv_transpose_grad_input(grad, w, p.size, **words, out=back), kernel, mixes=True)
        if "grad_weight" in operators:
            plain.check("grad_weight", tconv.conv_transpose_grad_weight(x, grad, p.kernel, **words, out=by_w), kernel, mixes=True)
    print("done")


def run_between_fences() -> None:
    check_between_fences(KERNELS, [winograd_problem(seed) for seed in range(60_000, 60_012)], OPERATORS)


def test_no_access_beyond_the_arrays():
    done = test_kernels.in_a_process("import test_winograd; test_winograd.run_between_fences()")
    assert done.returncode == 0 and done.stdout == "done\n", f"exit {done.returncode}\n{done.stderr[-2000:]}"


# --------------------------------------------------------------------------------------------------------------------------- errors


def relative_error(result, exact) -> float:
    return float(np.sqrt(np.mean((result - exact) ** 2) / np.mean(exact**2)))


@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize("form", [(4, 2, (9, 9)), (3, 2, (9, 9)), (5, 2, (8, 8)), (3, 1, (8, 8)), (6, 2, (8, 8)), (4, 1, (15, 15)), (7, 2, (8, 8)), (8, 4, (40,)), (3, 2, (3, 3, 3)),
                                  (4, 2, (5, 5, 5)), (3, 1, (6, 6, 6)), (5, 1, (9, 9)), (7, 1, (12, 12)), (9, 2, (9, 9)), (25, 4, (40,)), (5, 1, (6, 6, 6))],
                         ids=lambda f: f"k{f[0]}s{f[1]}-{len(f[2])}d")  # fmt: skip
def test_the_error_stays_within_twice_that_of_the_direct_kernels(form, channels):
    """RMS against float64; the same bound holds for the tiles that "auto" may choose."""
    k, s, size = form
    rank = len(size)
    p = Problem(size, (k,) * rank, (s,) * rank, (1,) * rank, ((1, 1),) * rank, 1, channels, 32, seed=channels)
    rng = np.random.default_rng(channels)
    x, w = rng.standard_normal((1, channels, *size), np.float32), rng.standard_normal((channels, 32, *p.kernel), np.float32)
    exact = tconv.conv_transpose(x.astype(float), w.astype(float), **p.words, algorithm="direct")
    errors = {name: relative_error(tconv.conv_transpose(x, w, **p.words, algorithm=name), exact) for name in ("direct", "winograd")}
    assert errors["winograd"] <= 2 * errors["direct"], errors
    grad = rng.standard_normal(exact.shape, np.float32)
    exact = tconv.conv_transpose_grad_weight(x.astype(float), grad.astype(float), p.kernel, **p.words, algorithm="direct")
    errors = {
        name: relative_error(tconv.conv_transpose_grad_weight(x, grad, p.kernel, **p.words, algorithm=name), exact) for name in errors
    }
    assert errors["winograd"] <= 2 * errors["direct"], errors


# ----------------------------------------------------------------------------------------------------------------- choice and refusal


@pytest.mark.parametrize(("kernel", "words", "method", "reason"), [
    ((3, 3), {"stride": 2, "dilation": 2}, "winograd", "its taps are dilated"),
    ((2, 4), {"stride": (3, 2)}, "winograd", "a kernel smaller than its stride leaves phases without taps"),
    ((9, 12), {"stride": 1}, "winograd", "a stride phase has more than 9 pieces of 3 taps"),
    ((4, 4, 2), {"stride": 1}, "winograd", "4 taps along two of three axes would round too much"),
    ((2, 2), {"stride": 2}, "winograd4", "no stride phase has more than 1 tap along an axis"),
    ((130,), {"stride": 65}, "winograd2", "its strides are longer than 64"),
])  # fmt: skip
def test_a_refusal_says_why(kernel, words, method, reason):
    x, w = np.ones((1, 2, *(4 for _ in kernel)), np.float32), np.ones((2, 3, *kernel), np.float32)
    y = tconv.conv_transpose(x, w, **words)
    for call in (lambda: tconv.conv_transpose(x, w, **words, algorithm=method), lambda: tconv.Operator(w, **words, algorithm=method)(x),
                 lambda: tconv.conv_transpose_grad_input(y, w, **words, algorithm=f"{method}_{BEST}"),
                 lambda: tconv.conv_transpose_grad_weight(x, y, kernel, **words, algorithm=method),
                 lambda: tconv.conv_transpose_grads(x, w, y, grads="weight", **words, algorithm=method)):  # fmt: skip
        with pytest.raises(tconv.ArgumentError, match=reason) as caught:
            call()
        assert (caught.value.argument, caught.value.value) == ("algorithm", f"{method}_{BEST}")


def test_auto_takes_it_where_it_wins_and_direct_never():
    rng = np.random.default_rng(1)
    w = rng.standard_normal((256, 128, 4, 4), np.float32)
    shape = (4, 256, 32, 32)
    assert tconv.Operator(w, stride=2, padding=1).explain(shape).kernel == f"winograd_{BEST}"
    assert not tconv.Operator(w, stride=2, padding=1, algorithm="direct").explain(shape).kernel.startswith("winograd")
    assert not tconv.Operator(w[:8, :8], stride=2, padding=1).explain((4, 8, 32, 32)).kernel.startswith("winograd")
    kept = 4 * 4 * 16 * 256 * 128  # four phases of 16 points
    assert tconv.Operator(w, stride=2, padding=1, algorithm="winograd").explain(shape).weight_bytes == kept


def test_maps_of_few_positions_have_tiles_that_fit():
    """Of 4 and of 6 positions a crop of 1 makes 5 and 7 that phases of k4 s2 share: phases of their own fill 2 tiles of 2, and of 3. Many
    positions take tiles of 4, which have 5 points: on both of two axes, on one of three, and not where sums are short."""
    w = np.ones((256, 64, 4, 4), np.float32)
    operator = tconv.Operator(w, stride=2, padding=1, algorithm="winograd")
    for size, points in ((63, 5), (6, 4), (4, 3)):
        assert operator.explain((1, 256, size, size)).weight_bytes == 4 * 4 * points**2 * 256 * 64, size
    few = tconv.Operator(w[:64], stride=2, padding=1, algorithm="winograd")
    assert few.explain((1, 64, 63, 63)).weight_bytes == 4 * 4 * 16 * 64 * 64
    deep = tconv.Operator(np.ones((256, 64, 4, 4, 4), np.float32), stride=2, padding=1, algorithm="winograd")
    assert deep.explain((1, 256, 31, 31, 31)).weight_bytes == 4 * 8 * 5 * 4 * 4 * 256 * 64
    five, six = (_core.Stencil(_core.Problem(16, 64, 32, 1, [n, n], [4, 4], [2, 2], [1, 1], [(1, 1), (1, 1)], False, True), True, "float32",
                               f"winograd_{BEST}", 1, False).candidates[-1][1] for n in (5, 6))  # fmt: skip
    assert six < 1.35 * five  # as many tiles, where 7 positions would take 9 for 4


def test_auto_takes_it_for_the_weight_where_it_wins_and_direct_never():
    """Told by the bits: sums in another order round differently."""
    rng = np.random.default_rng(2)
    for channels, size, wins in ((64, 33, True), (64, 4, True), (64, 2, False), (8, 33, False)):
        x, grad = rng.standard_normal((4, channels, size, size), np.float32), rng.standard_normal((4, 32, 2 * size, 2 * size), np.float32)
        auto, direct, winograd = (tconv.conv_transpose_grad_weight(x, grad, (4, 4), stride=2, padding=1, algorithm=name)
                                  for name in ("auto", "direct", "winograd"))  # fmt: skip
        assert not np.array_equal(direct, winograd)
        assert_same_bits(auto, winograd if wins else direct)


def test_auto_leaves_short_sums_of_the_weight_that_four_taps_would_round_worse():
    rng = np.random.default_rng(3)
    for size, wins in ((13, False), (24, True)):  # below 200 positions and above
        x, grad = rng.standard_normal((1, 64, size, size), np.float32), rng.standard_normal((1, 64, size + 1, size + 1), np.float32)
        auto, direct, winograd = (tconv.conv_transpose_grad_weight(x, grad, (4, 4), padding=1, algorithm=name)
                                  for name in ("auto", "direct", "winograd"))  # fmt: skip
        assert_same_bits(auto, winograd if wins else direct)
        assert not np.array_equal(direct, winograd)


def test_sums_of_the_weight_in_spans_and_chunks():
    """Many boxes, whose sums are cut; more channels on both sides than a task takes; a weight in any order; phases that no output reaches."""
    for p in (Problem((9000,), (4,), (2,), (1,), ((1, 1),), 1, 20, 18, seed=1),
              Problem((9, 5), (3, 3), (2, 2), (1, 1), ((1, 0), (0, 1)), 2, 300, 70, seed=2),
              Problem((12,), (128,), (64,), (1,), ((32, 32),), 2, 16, 16, seed=3),
              Problem((3, 2), (8, 8), (4, 4), (1, 1), ((0, 13), (5, 0)), 2, 20, 17, 1, seed=4)):  # fmt: skip
        for layout in ("channels_first", "channels_last"):
            judge = Judge(dataclasses.replace(p, layout=layout))
            alone = judge.run("grad_weight", tconv, algorithm="winograd", threads=1)
            judge.check("grad_weight", alone, layout, mixes=True)
            assert_same_bits(judge.run("grad_weight", tconv, algorithm="winograd", threads=7), alone, p)
            for axes in ((-2, -1), (-1, -2)):  # TensorFlow's order of a weight's axes, and JAX's
                inside, outside, *kernel = alone.shape
                turned = np.empty((*kernel, *((inside, outside) if axes == (-2, -1) else (outside, inside))), alone.dtype)
                out = np.moveaxis(turned, axes, (0, 1))
                assert_same_bits(judge.run("grad_weight", tconv, algorithm="winograd", out=out), alone, p)


def test_weights_transformed_for_one_call_count():
    """Large weights and a small map: an Operator may keep transformed weights that a single call would not pay for."""
    problem = _core.Problem(1, 512, 512, 1, [4, 4], [3, 3], [1, 1], [1, 1], [(1, 1), (1, 1)], False, True)
    once, always = (_core.Stencil(problem, True, "float32", f"auto_{BEST}", 1, pack_always) for pack_always in (False, True))
    assert once.candidates[-1][1] < always.candidates[-1][1]
    assert not always.kernel.startswith("winograd")
