# SPDX-License-Identifier: Apache-2.0
"""Half precision to float32 and back: every pattern of bits, on every instruction set, as NumPy and ml_dtypes convert; and whole layers."""

import ml_dtypes
import numpy as np
import pytest

import tconv
from tconv import _core

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
    np.testing.assert_array_equal(found.view(np.uint16), expected.astype(dtype).view(np.uint16))
    # The operator may take another kernel: within the rounding of the result.
    step = 2**-7 if brain(dtype) else 2**-10
    out = np.zeros_like(found)
    assert tconv.Operator(w, **words)(x, out=out) is out
    np.testing.assert_allclose(out.astype(np.float32), expected, rtol=step, atol=step * 1e-2)
    grads = tconv.conv_transpose_grads(x, w, found, **words)
    exact = tconv.conv_transpose_grads(*wide, found.astype(np.float32), **words)
    for mine, true in zip(grads, exact, strict=True):
        np.testing.assert_array_equal(mine.view(np.uint16), true.astype(dtype).view(np.uint16))


@pytest.mark.parametrize("half, wide", [
    (np.zeros(4, np.uint16), np.zeros(5, np.float32)), (np.zeros(4, np.int16), np.zeros(4, np.float32)),
    (np.zeros(4, np.uint16), np.zeros(4)), (np.zeros(8, np.uint16)[::2], np.zeros(4, np.float32)),
    (np.zeros((2, 2), np.uint16), np.zeros((2, 2), np.float32)),
])  # fmt: skip
def test_only_vectors_that_fit_are_converted(half, wide):
    for call, arguments in ((_core.widen, (half, wide)), (_core.narrow, (wide, half))):
        with pytest.raises(ValueError, match="contiguous vectors of one length"):
            call("auto_scalar", *arguments, True, 1)
