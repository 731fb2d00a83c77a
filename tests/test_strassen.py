# SPDX-License-Identifier: Apache-2.0
"""Strassen's products of quarters: values in every geometry they take, refusals with reasons, errors beside the direct kernels', bits, guards."""

import dataclasses
from itertools import product

import definition
import numpy as np
import pytest
import test_kernels
from definition import Judge, Problem, assert_same_bits
from test_winograd import check_between_fences, check_nothing_around, relative_error

import tconv
from tconv import _core

KERNELS = tuple(name for name in tconv.kernels() if name.startswith("strassen"))
BEST = KERNELS[0].split("_")[1]
OPERATORS = ("forward", "grad_input")
forced = pytest.mark.parametrize("kernel", KERNELS)


def strassen_problem(seed: int, **fixed) -> Problem:
    """A small problem that quarters take on every processor: kernels as long as their strides, any sizes, crops, groups and layout."""
    rng = np.random.default_rng([seed, 5])
    rank = int(rng.choice([1, 2, 2, 3]))
    most = {1: 30, 2: 7, 3: 4}[rank]
    size = tuple(int(v) for v in rng.integers(1, most + 1, rank))
    kernel = tuple(int(v) for v in rng.integers(1, {1: 9, 2: 4, 3: 3}[rank], rank))
    crop = tuple(definition._random_crop(rng, n, k, k, 1) for n, k in zip(size, kernel, strict=True))
    groups = int(rng.choice([1, 1, 2]))
    cin, cout = (groups * int(rng.choice([32, 64, 96])) for _ in range(2))
    words = {"batch": int(rng.choice([1, 2, 5])), "dtype": test_kernels.DTYPES[rng.integers(4)], "biased": bool(rng.random() < 0.5),
             "layout": str(rng.choice(["channels_first", "channels_last"]))}  # fmt: skip
    return Problem(size, kernel, kernel, (1,) * rank, crop, cin=cin, cout=cout, groups=groups, seed=seed, **{**words, **fixed})


def check(problem: Problem, kernel: str, **extra) -> None:
    judge = test_kernels.judge_of(problem)
    for operator in OPERATORS:
        judge.check(operator, judge.run(operator, tconv, algorithm=kernel, **extra), kernel, mixes=True)


# --------------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("block", range(2))
@forced
def test_random_geometries(kernel, block):
    for seed in range(80_000 + block * 20, 80_000 + (block + 1) * 20):
        check(strassen_problem(seed), kernel)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_rows_of_even_and_odd_length(layout):
    """Pairs and single positions at the end of a row, outputs cropped in the middle of a stamp, or that no input reaches."""
    for n, crop in product((1, 2, 3, 12, 25), ((0, 0), (1, 0), (0, 1), (2, 2), (-2, -3))):
        if 3 * n - sum(crop) >= 1:
            p = Problem((2, n), (2, 3), (2, 3), (1, 1), ((1, 0), crop), 2, 32, 64, layout=layout, biased=True, seed=n)
            check(p, f"strassen_{BEST}")


# Boxes that are cut along every axis and images together; several chunks of channels and of phases; blocks whose sums are not all held at
# once, a last one of one vector; halves of channels that are no whole vectors.
SEVERAL = (Problem((30, 31), (2, 2), (2, 2), (1, 1), ((1, 1), (0, 1)), 1, 64, 96, biased=True, seed=1),
           Problem((900,), (3,), (3,), (1,), ((1, 1),), 1, 32, 32, seed=2),
           Problem((6, 5, 9), (2, 1, 2), (2, 1, 2), (1, 1, 1), ((0, 0), (0, 0), (1, 0)), 2, 64, 160, biased=True, seed=3),
           Problem((5, 6), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), 7, 1120, 64, biased=True, seed=4),
           Problem((3, 4), (4, 4), (4, 4), (1, 1), ((0, 2), (2, 0)), 3, 96, 352, seed=5))  # fmt: skip


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("problem", SEVERAL, ids=str)
def test_several_boxes_chunks_and_blocks(problem, layout):
    check(dataclasses.replace(problem, layout=layout), f"strassen_{BEST}")
    check(dataclasses.replace(problem, layout=layout), f"strassen_{BEST}", threads=5)


def test_halves_of_few_channels():
    for cin in (2, 6, 34, 38):
        p = Problem((3, 5), (2, 2), (2, 2), (1, 1), ((0, 1), (1, 0)), 2, cin, 64, biased=True, seed=cin)
        judge = Judge(p)
        judge.check("forward", judge.run("forward", tconv, algorithm="strassen"), cin, mixes=True)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_activations_follow_the_whole_sum(activation):
    for layout, cin in product(("channels_first", "channels_last"), (64, 600)):
        p = Problem((9, 10), (2, 2), (2, 2), (1, 1), ((0, 1), (1, 0)), 2, cin, 96, layout=layout, biased=True, seed=9)
        judge = Judge(p)
        plain = judge.run("forward", tconv, algorithm="strassen")
        once = judge.run("forward", tconv, algorithm="strassen", activation=activation)
        np.testing.assert_allclose(once, np.maximum(plain, 0) if activation == "relu" else np.tanh(plain), rtol=1e-6, atol=1e-7)


def test_large_outputs_that_go_past_the_caches():
    """Channels last, whole lines, and twice as much as goes past them; judged by the direct kernels."""
    rng = np.random.default_rng(6)
    x, w, bias = (
        rng.standard_normal((1, 128, 130, 64), np.float32),
        rng.standard_normal((64, 128, 2, 2), np.float32),
        np.ones(128, np.float32),
    )
    y, direct = (tconv.conv_transpose(x, w, bias, stride=2, layout="channels_last", algorithm=name) for name in ("strassen", "direct"))
    assert y.nbytes > 32 << 20 and np.abs(y - direct).max() < 1e-5 * np.abs(direct).max()


def test_an_empty_batch():
    check(Problem((4, 5), (2, 2), (2, 2), (1, 1), ((1, 1), (0, 1)), 0, 32, 32, biased=True), f"strassen_{BEST}")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_operator_serves_any_input_size(dtype):
    base = Problem((5, 6), (2, 3), (2, 3), (1, 1), ((1, 0), (0, 2)), 2, 64, 96, dtype=dtype, biased=True, seed=7)
    weight = Judge(base)
    operator = tconv.Operator(weight.w, weight.bias, **base.words, algorithm="strassen")
    for size, batch in product([(1, 1), (1, 40), (17, 2)], [1, 3]):
        p = dataclasses.replace(base, size=size, batch=batch)
        x, _, grad, _ = p.arrays()
        judge = Judge(p, (x, weight.w, grad, weight.bias))
        judge.check("forward", operator(x), "Operator", mixes=True)
        assert_same_bits(operator.T(grad), tconv.conv_transpose_grad_input(grad, weight.w, p.size, **p.words, algorithm="strassen"))


@pytest.mark.parametrize("problem", [*SEVERAL, *(strassen_problem(90_000 + seed, batch=7) for seed in range(6))], ids=str)
def test_no_bit_depends_on_the_number_of_threads(problem):
    judge = Judge(problem)
    for operator in OPERATORS:
        first, *others = (judge.run(operator, tconv, algorithm="strassen", threads=n) for n in (1, 2, 3, 8, 64))
        for result in others:
            assert_same_bits(result, first, problem)


def test_no_bit_depends_on_other_images():
    """Pairs are neighbours in a row: what an image holds is no matter to the next one."""
    rng = np.random.default_rng(8)
    x, w = rng.standard_normal((3, 64, 5, 7), np.float32), rng.standard_normal((64, 64, 2, 2), np.float32)
    whole = tconv.conv_transpose(x, w, stride=2, algorithm="strassen")
    for image, alone in zip(x, whole, strict=True):
        assert_same_bits(tconv.conv_transpose(image, w, stride=2, algorithm="strassen"), alone)


def test_out_is_written_and_nothing_around_it():
    check_nothing_around(map(strassen_problem, range(81_000, 81_020)), "strassen", OPERATORS)


def run_between_fences() -> None:
    check_between_fences(KERNELS, [strassen_problem(seed) for seed in range(82_000, 82_010)], OPERATORS)


def test_no_access_beyond_the_arrays():
    done = test_kernels.in_a_process("import test_strassen; test_strassen.run_between_fences()")
    assert done.returncode == 0 and done.stdout == "done\n", f"exit {done.returncode}\n{done.stderr[-2000:]}"


# --------------------------------------------------------------------------------------------------------------------------- errors


def both_errors(x, w, outputs=slice(None)) -> list[tuple[float, float]]:
    """Of the direct kernels and of Strassen's: of the layer, and of its gradient by the input, for a result like x."""
    grad = np.random.default_rng(5).standard_normal((1, w.shape[1], *(2 * n for n in x.shape[2:])), np.float32)
    forward, back = (lambda x, w, m: tconv.conv_transpose(x, w, stride=2, algorithm=m)[:, outputs],
                     lambda g, w, m: tconv.conv_transpose_grad_input(g, w, x.shape[2:], stride=2, algorithm=m))  # fmt: skip
    found = []
    for function, data in ((forward, x), (back, grad)):
        exact = function(data.astype(float), w.astype(float), "direct")
        found.append(tuple(relative_error(function(data, w, method), exact) for method in ("direct", "strassen")))
    return found


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("channels", [256, 512, 1024])
def test_the_error_stays_within_twice_that_of_the_direct_kernels(channels, positive):
    """RMS against float64, of normal numbers and of what a ReLU leaves of them."""
    rng = np.random.default_rng(channels)
    x, w = rng.standard_normal((1, channels, 6, 8), np.float32), rng.standard_normal((channels, 64, 2, 2), np.float32)
    for direct, strassen in both_errors(np.maximum(x, 0) if positive else x, w):
        assert 0 < strassen <= 2 * direct


@pytest.mark.parametrize("scale", [10, 1000, 1e20, "lognormal", 0])
def test_channels_of_other_scales_do_not_disturb_one_another(scale):
    """Channels whose inputs are large and weights small, and outputs that are small beside others: what halves would mix."""
    rng = np.random.default_rng(11)
    x, w = rng.standard_normal((1, 512, 6, 8), np.float32), rng.standard_normal((512, 128, 2, 2), np.float32)
    factor = np.exp(rng.standard_normal(512)) if scale == "lognormal" else np.where(np.arange(512) < 256, scale or 1.0, 1.0)
    factor = factor.astype(np.float32)[:, None, None]
    for direct, strassen in both_errors(x * factor, w / factor[..., None]):
        assert strassen <= 2 * direct
    large = w * np.where(np.arange(128) < 64, 1, 0 if scale == 0 else factor[0, 0, 0]).astype(np.float32)[:, None, None]
    for direct, strassen in both_errors(x, large, slice(0, 64)):
        assert strassen <= 2 * direct


@pytest.mark.parametrize("words", [{"dilation": 2}, {}, {"layout": "channels_last"}])
def test_auto_on_long_sums_of_odd_words_and_views(words):
    """What "auto" takes is right for dilated kernels, and for arrays that run backwards."""
    rng = np.random.default_rng(12)
    x, w = rng.standard_normal((2, 16, 18, 512), np.float32), rng.standard_normal((512, 64, 2, 2), np.float32)
    x = x if words.get("layout") else np.moveaxis(x, -1, 1)
    direct = tconv.conv_transpose(np.ascontiguousarray(x[:, ::-1, ::-1]), w, stride=2, algorithm="direct", **words)
    out = np.zeros_like(direct)[:, ::-1, ::-1]
    for result in (
        tconv.conv_transpose(x[:, ::-1, ::-1], w, stride=2, **words),
        tconv.conv_transpose(x[:, ::-1, ::-1], w, stride=2, out=out, **words),
    ):
        np.testing.assert_allclose(result, direct, rtol=0, atol=1e-5 * np.abs(direct).max())
    grad = np.asarray(direct)[:, :, ::-1]
    back = [tconv.conv_transpose_grad_input(grad, w, (16, 18), stride=2, algorithm=name, **words) for name in ("auto", "direct")]
    np.testing.assert_allclose(*back, rtol=0, atol=1e-5 * np.abs(back[1]).max())


# ----------------------------------------------------------------------------------------------------------------- choice and refusal


@pytest.mark.parametrize(("kernel", "stride", "channels", "reason"), [
    ((3, 3), 2, (64, 64), "its kernels overlap or leave gaps"), ((2, 2), 3, (64, 64), "its kernels overlap or leave gaps"),
    ((2, 2), {"stride": 2, "dilation": 2}, (64, 64), "its kernels overlap or leave gaps"),
    ((2, 2), 2, (65, 64), "an odd number of channels has no halves"),
    ((2, 2), 2, (64, 65), "half the channels that a group writes are not whole vectors"),
])  # fmt: skip
def test_a_refusal_says_why(kernel, stride, channels, reason):
    x, w = np.ones((1, channels[0], 4, 4), np.float32), np.ones((*channels, *kernel), np.float32)
    words = stride if isinstance(stride, dict) else {"stride": stride}
    for call in (lambda: tconv.conv_transpose(x, w, **words, algorithm="strassen"),
                 lambda: tconv.Operator(w, **words, algorithm="strassen")(x)):  # fmt: skip
        with pytest.raises(tconv.ArgumentError, match=reason) as caught:
            call()
        assert (caught.value.argument, caught.value.value) == ("algorithm", f"strassen_{BEST}")


def test_auto_takes_it_for_long_sums_alone_and_direct_never():
    def chosen(channels, method="auto"):
        problem = _core.Problem(4, channels, channels // 2, 1, [64, 64], [2, 2], [2, 2], [1, 1], [(0, 0), (0, 0)], False, True)
        return _core.Stencil(problem, True, "float32", f"{method}_{BEST}", 1)

    assert chosen(512).kernel == f"strassen_{BEST}" or BEST not in ("avx512", "avx2")
    assert not chosen(512, "direct").kernel.startswith("strassen")
    assert not chosen(128).kernel.startswith("strassen")
    assert any("fewer than 256 terms" in why for name, _, why in chosen(128).candidates if name.startswith("strassen"))
    assert chosen(512, "strassen").weight_elements == 7 * 512 * 256 * 4 // 4 + 512 + 256  # and a scale of every channel
