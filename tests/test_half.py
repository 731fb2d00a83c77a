# SPDX-License-Identifier: Apache-2.0
"""Half precision to float32 and back: every pattern of bits, on every instruction set, as NumPy and ml_dtypes convert; and whole layers."""

import ml_dtypes
import numpy as np
import pytest
from definition import Judge, Problem, assert_same_bits

import tconv
from tconv import _core
from tconv._runtime import stored

TYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
KERNELS = sorted(name for name in tconv.kernels() if name.startswith("auto_"))
PATTERNS = np.arange(1 << 16, dtype=np.uint16)


def brain(dtype):
    return dtype.kind != "f"


def assert_same_numbers(actual, expected):
    """Bits, but for those of a NaN."""
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(actual.astype(np.float32)), nan)
    bits = np.uint16 if actual.itemsize == 2 else np.uint32
    np.testing.assert_array_equal(actual.view(bits)[~nan], expected.view(bits)[~nan])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_pattern_widens(kernel, dtype):
    wide = np.empty(PATTERNS.size, np.float32)
    _core.widen(kernel, PATTERNS, wide, brain(dtype), 2)
    assert_same_numbers(wide, PATTERNS.view(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_numbers_are_rounded_to_nearest_and_ties_to_even(kernel, dtype):
    values = PATTERNS.view(dtype).astype(np.float32)
    with np.errstate(all="ignore"):
        ties = np.stack([values, np.nextafter(values, np.float32(np.inf))]).astype(np.float64).mean(axis=0).astype(np.float32)
        between = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_001, np.uint64).astype(np.uint32).view(np.float32)
    edges = np.float32([65504, 65519.99, 65520, 65536, 2**-24, 2**-25, 2**-25 * 1.0001, 2**-14, 0, -0.0, np.inf, -np.inf, np.nan])
    wide = np.concatenate([values, ties, between, np.nextafter(between, np.float32(0)), bits, edges])
    half = np.empty(wide.size, np.uint16)
    _core.narrow(kernel, wide, half, brain(dtype), 2)
    with np.errstate(all="ignore"):
        assert_same_numbers(half.view(dtype), wide.astype(dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "seen through a transpose", "every other column"])
def test_a_large_layer_gives_the_rounded_float32_result(layout, dtype):
    """To within a step of the dtype: sums of pairs of bfloat16, where a processor has them, round elsewhere than float32's."""
    rng = np.random.default_rng(1)
    last = layout == "channels_last"
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 33, 31, 8) if last else (2, 8, 33, 31), (8, 12, 5, 4)))
    if layout == "seen through a transpose":
        x = x.swapaxes(2, 3).copy().swapaxes(2, 3)
    if layout == "every other column":
        x = x[..., ::2]
    words = {"stride": (3, 2), "padding": (1, 0), "layout": "channels_last" if last else "channels_first"}
    wide = [a.astype(np.float32) for a in (x, w)]
    expected = tconv.conv_transpose(*wide, **words)
    found = tconv.conv_transpose(x, w, **words)
    out = np.zeros_like(found)
    assert tconv.Operator(w, **words)(x, out=out) is out
    grads = tconv.conv_transpose_grads(x, w, found, **words)
    exact = tconv.conv_transpose_grads(*wide, found.astype(np.float32), **words)
    step = 2**-7 if brain(dtype) else 2**-10
    for mine, true in zip((found, out, *grads), (expected, expected, *exact), strict=True):
        np.testing.assert_allclose(mine.astype(np.float32), true, rtol=step, atol=step * 1e-2)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_arrays_that_begin_at_any_byte_and_lie_anyhow(layout, dtype):
    problem = Problem((5, 6), (3, 4), (2, 2), (1, 1), ((1, 0), (0, 1)), 2, 6, 10, dtype=dtype, layout=layout, biased=True, seed=1)
    judge = Judge(problem)
    x, grad, words = problem.arranged(judge.x), problem.arranged(judge.grad), problem.words

    def odd(array):
        return np.frombuffer(b"?" + array.tobytes(), array.dtype, array.size, 1).reshape(array.shape)

    def reversed_(array):
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]

    assert not odd(x).flags.aligned and stored(odd(x)).flags.aligned  # the core may not read numbers at odd addresses
    for lay in (odd, reversed_):
        judge.check("forward", tconv.conv_transpose(lay(x), lay(judge.w), judge.bias, **words))
        judge.check("forward", tconv.Operator(lay(judge.w), judge.bias, **words)(lay(x)))
        judge.check("grad_input", tconv.conv_transpose_grad_input(lay(grad), lay(judge.w), problem.size, **words))
        judge.check("grad_weight", tconv.conv_transpose_grad_weight(lay(x), lay(grad), problem.kernel, **words))
        out = lay(np.zeros_like(grad)) if lay is reversed_ else np.frombuffer(bytearray(grad.nbytes + 1), dtype, grad.size, 1)
        judge.check("forward", tconv.conv_transpose(x, judge.w, judge.bias, **words, out=out.reshape(grad.shape)))


def test_the_core_takes_dense_bits_alone():
    problem = _core.Problem(1, 2, 2, 1, [4], [2], [2], [1], [(0, 0)], False, True)
    with pytest.raises(ValueError, match="no such dtype"):
        _core.Stencil(problem, True, "float8", KERNELS[0], 1)
    stencil = _core.Stencil(problem, True, "bfloat16", KERNELS[0], 1)
    x, w, y = np.zeros((1, 2, 4), np.uint16), np.zeros((2, 2, 2), np.uint16), np.zeros((1, 2, 8), np.uint16)
    stencil.apply(x, w, None, y, activation=0, slope=0.0)
    twice = np.zeros((1, 2, 16), np.uint16)[..., ::2]
    for arrays, name in (((twice[..., ::2], w, None, y), "input"), ((x, w[:, ::-1], None, y), "weight"), ((x, w, None, twice), "output")):
        with pytest.raises(ValueError, match=f"{name}: must be dense"):
            stencil.apply(*arrays, activation=0, slope=0.0)
    for wrong in (x.view(np.float16), np.zeros((1, 2, 4), np.float32)):
        with pytest.raises((TypeError, ValueError)):
            stencil.apply(wrong, w, None, y, activation=0, slope=0.0)


@pytest.mark.parametrize("half, wide", [
    (np.zeros(4, np.uint16), np.zeros(5, np.float32)), (np.zeros(4, np.int16), np.zeros(4, np.float32)),
    (np.zeros(4, np.uint16), np.zeros(4)), (np.zeros(8, np.uint16)[::2], np.zeros(4, np.float32)),
    (np.zeros((2, 2), np.uint16), np.zeros((2, 2), np.float32)),
])  # fmt: skip
def test_only_vectors_that_fit_are_converted(half, wide):
    for call, arguments in ((_core.widen, (half, wide)), (_core.narrow, (wide, half))):
        with pytest.raises(ValueError, match="contiguous vectors of one length"):
            call("auto_scalar", *arguments, True, 1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_images_that_are_computed_some_at_a_time(dtype, layout):
    """More than 8 MiB of words: three images, one at a time, have the bits of each alone."""
    rng = np.random.default_rng(3)
    shape = (3, 15, 310, 310) if layout == "channels_first" else (3, 310, 310, 15)
    x, w = rng.standard_normal(shape).astype(dtype), rng.standard_normal((15, 2, 2, 2)).astype(dtype)
    words = {"layout": layout, "algorithm": "positions"}  # by itself another method may be chosen for one image than for three
    whole = tconv.conv_transpose(x, w, **words)
    back = tconv.conv_transpose_grad_input(whole, w, **words)
    for n in range(3):
        alone = tconv.conv_transpose(x[n : n + 1], w, **words)
        assert_same_bits(whole[n : n + 1], alone, f"image {n}")
        assert_same_bits(back[n : n + 1], tconv.conv_transpose_grad_input(alone, w, **words), f"gradient of image {n}")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_a_nan_reaches_the_outputs_of_its_stamp_alone(dtype, layout):
    """Whatever multiplies: neighbours in a tile, zeros around the input and channels that fill up a block must not spread it."""
    rng = np.random.default_rng(4)
    words = {"stride": (2, 3), "padding": (1, 2), "layout": layout, "algorithm": "direct"}
    weight = rng.uniform(1, 2, (40, 24, 4, 5)).astype(dtype)
    for at in ((0, 3, 0, 0), (1, 39, 8, 6), (1, 0, 4, 3)):
        x = rng.standard_normal((2, 40, 9, 7)).astype(dtype)
        stamp = np.zeros(x.shape)
        x[at], stamp[at] = np.nan, 1
        if layout == "channels_last":
            x, stamp = np.moveaxis(x, 1, -1).copy(), np.moveaxis(stamp, 1, -1).copy()
        reached = tconv.conv_transpose(stamp, np.ones(weight.shape), **words) > 0
        np.testing.assert_array_equal(np.isnan(tconv.conv_transpose(x, weight, **words).astype(np.float32)), reached)
