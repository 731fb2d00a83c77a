# SPDX-License-Identifier: Apache-2.0
"""Checkerboards: counts and sums by the definition, peaks by what they must be, and weights that make none."""

from __future__ import annotations

import definition
import numpy as np
import pytest

import tconv
import tconv.upscale
from tconv import analysis

KERNELS = [  # kernel, stride, dilation: below, at and above the stride, odd and even, one to three axes
    ((3,), (2,), (1,)), ((4,), (2,), (1,)), ((1,), (2,), (1,)), ((5,), (3,), (2,)), ((4,), (2,), (2,)), ((7,), (1,), (3,)),
    ((3, 3), (2, 2), (1, 1)), ((4, 3), (2, 3), (1, 1)), ((2, 5), (3, 2), (1, 3)), ((6, 4), (4, 2), (3, 1)),
    ((2, 3, 4), (2, 2, 1), (1, 1, 2)),
]  # fmt: skip
WITH_ALL_PHASES = [case for case in KERNELS if all(np.gcd(s, d) == 1 and k >= s for k, s, d in zip(*case, strict=True))]


def weight(kernel, channels=(3, 2), seed=0):
    return np.random.default_rng(seed).standard_normal((*channels, *kernel)) + 0.25


def interior(values, kernel, stride, dilation):
    """The middle of the full output of a large input, cut to whole strides so that it starts with phase 0."""
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    starts = [-(-r // s) * s for r, s in zip(reach, stride, strict=True)]
    return values[(..., *(slice(a, a + 2 * s) for a, s in zip(starts, stride, strict=True)))]


def large(kernel, stride, dilation):
    return tuple(2 * (d * (k - 1) // s) + 6 for k, s, d in zip(kernel, stride, dilation, strict=True))


@pytest.mark.parametrize("seed", range(30))
def test_counts_are_those_of_the_definition(seed):
    p = definition.random_problem(seed, budget=500)
    expected = np.zeros(p.output, int)
    for _, _, o in definition.hits(p.size, p.kernel, p.stride, p.dilation, p.crop):
        expected[o] += 1
    spec = tconv.Spec.build(p.size, p.kernel, stride=p.stride, dilation=p.dilation, padding=list(p.crop))
    found = analysis.overlap(spec)
    assert np.array_equal(found.counts, expected) and int(found.counts.sum()) == spec.macs


@pytest.mark.parametrize("kernel, stride, dilation", KERNELS)
def test_phases_are_the_counts_away_from_the_border(kernel, stride, dilation):
    found = analysis.overlap(tconv.Spec.build(large(kernel, stride, dilation), kernel, stride=stride, dilation=dilation))
    middle = interior(found.counts, kernel, stride, dilation)
    assert np.array_equal(middle, np.tile(found.phases, [2] * len(stride)))
    assert found.uniformity == middle.min() / middle.max()


def test_overlap_of_the_usual_layers():
    score = {k: analysis.overlap(tconv.Spec.parse(f"c1:1 i8x8 k{k} s2")).uniformity for k in range(1, 7)}
    assert score == {1: 0, 2: 1, 3: 1 / 4, 4: 1, 5: 4 / 9, 6: 1}
    assert str(analysis.overlap(tconv.Spec.parse("c1:1 i8x8 k2 s3"))) == "0 to 1 products an output, uniformity 0"


@pytest.mark.parametrize("kernel, stride, dilation", KERNELS)
def test_sums_are_what_constant_inputs_give(kernel, stride, dilation):
    w, levels = weight(kernel), np.array([2.0, -1.0, 0.5])
    size = large(kernel, stride, dilation)
    x = np.broadcast_to(levels.reshape(1, 3, *[1] * len(size)), (1, 3, *size))
    y = definition.conv_transpose(x, w, stride, dilation, [(0, 0)] * len(size), 1)[0]
    found = analysis.checkerboard(w, stride=stride, dilation=dilation)
    expected = np.tile(np.tensordot(levels, found.sums, 1), [1] + [2] * len(size))
    np.testing.assert_allclose(interior(y, kernel, stride, dilation), expected, atol=1e-12)


@pytest.mark.parametrize("kernel, stride, dilation", KERNELS)
def test_amplitude_is_the_part_that_independent_constants_see_on_average(kernel, stride, dilation):
    found = analysis.checkerboard(weight(kernel), stride=stride, dilation=dilation)
    parts = np.square(np.abs(found.spectrum))
    mean = parts[(..., *[0] * len(stride))].sum()
    assert found.amplitude == pytest.approx(np.sqrt(1 - mean / parts.sum()), abs=1e-7)
    assert parts.sum() == pytest.approx(np.square(found.sums).sum() / np.prod(stride))
    levels = np.random.default_rng(1).standard_normal((20_000, 3))
    outputs = np.tensordot(levels, found.sums, 1)
    outside = outputs - outputs.mean(tuple(range(2, outputs.ndim)), keepdims=True)
    assert np.sqrt(np.square(outside).sum() / np.square(outputs).sum()) == pytest.approx(found.amplitude, abs=0.02)


def test_amplitude_of_known_kernels():
    for w, stride, expected in (([3, 1], 2, 1 / 5**0.5), ([1, 0], 2, 1 / 2**0.5), ([1, -1], 2, 1), ([1, 1, 1, 1], 2, 0), ([0, 0], 2, 0)):
        assert analysis.checkerboard(np.array([[w]], float), stride=stride).amplitude == pytest.approx(expected, abs=1e-15)
    for method in ("bilinear", "bicubic", "lanczos"):
        kernel = tconv.upscale.interpolation_kernel(method, 3)
        assert analysis.checkerboard(kernel[None, None], stride=3).amplitude < 1e-15


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel, stride, dilation", WITH_ALL_PHASES)
def test_checkerboard_free_is_the_nearest_such_weight(kernel, stride, dilation, dtype):
    w = weight(kernel).astype(dtype)
    free = analysis.checkerboard_free(w, stride=stride, dilation=dilation)
    assert free.dtype == w.dtype and free.shape == w.shape
    words = {"stride": stride, "dilation": dilation}
    before, after = analysis.checkerboard(w, **words), analysis.checkerboard(free, **words)
    axes = tuple(range(2, w.ndim))
    eps = np.finfo(dtype).eps
    assert after.amplitude < 16 * eps
    np.testing.assert_allclose(after.sums, np.broadcast_to(before.sums.mean(axes, keepdims=True), after.sums.shape), atol=32 * eps)
    # The way there is constant within each phase, so it is at right angles to all ways that leave the sums as they are.
    for tap in np.ndindex(*kernel):
        twins = [t for t in np.ndindex(*kernel) if all((a - b) * d % s == 0 for a, b, d, s in zip(t, tap, dilation, stride, strict=True))]
        for twin in twins:
            np.testing.assert_allclose((free - w)[(..., *twin)], (free - w)[(..., *tap)], atol=8 * eps)
    np.testing.assert_allclose(analysis.checkerboard_free(free, **words), free, atol=16 * eps)


@pytest.mark.parametrize("stride", [(2,), (3,), (2, 3), (2, 2, 1)])
def test_icnr_repeats_what_stride_1_gives(stride):
    rank = len(stride)
    w, rng = weight((3, 2, 2)[:rank]), np.random.default_rng(2)
    x = rng.standard_normal((2, 3, *(5, 4, 3)[:rank]))
    expected = definition.conv_transpose(x, w, [1] * rank, [1] * rank, [(0, 0)] * rank, 1)
    for axis, times in enumerate(stride, 2):
        expected = np.repeat(expected, times, axis)
    found = analysis.icnr(w, stride=stride)
    np.testing.assert_allclose(tconv.conv_transpose(x, found, stride=stride), expected, atol=1e-12)
    assert analysis.checkerboard(found, stride=stride).amplitude < 1e-15


@pytest.mark.parametrize("stride, amplitude", [((2, 1), 0.5), ((1, 2), 0.5), ((2, 1), 0.1), ((2, 1), 0.0)])
def test_peak_of_a_pattern_in_noise(stride, amplitude):
    noise = np.random.default_rng(3).standard_normal((2_000, 16, 24))
    rows, columns = np.indices((16, 24))
    pattern = (-1.0) ** (rows if stride[0] == 2 else columns)
    found = analysis.spectral_peak(noise + amplitude * pattern, stride=stride)
    assert found == pytest.approx(1 + 4 / 9 * 16 * 24 * amplitude**2, rel=0.12)


def test_peak_of_layers():
    x = np.random.default_rng(4).standard_normal((200, 1, 12, 12)) + 1
    for kernel, least, most in ((3, 20, np.inf), (4, 0, 2), (5, 5, np.inf)):
        y = tconv.conv_transpose(x, np.ones((1, 1, kernel, kernel)), stride=2, padding="same")[:, 0]
        assert least < analysis.spectral_peak(y, stride=2) < most
    free = analysis.checkerboard_free(np.ones((1, 1, 3, 3)), stride=2)
    assert analysis.spectral_peak(tconv.conv_transpose(x, free, stride=2, padding="same"), stride=2) < 2


def test_smooth_pictures_have_no_peak():
    ramp = np.add.outer(np.arange(32.0), 3 * np.arange(40.0))
    photo = np.add.outer(np.sin(np.arange(64) / 5), np.cos(np.arange(64) / 7)) ** 2
    assert max(analysis.spectral_peak(image, stride=s) for image in (ramp, photo) for s in (2, 4)) < 2
    checked = photo + 0.05 * (-1.0) ** np.indices(photo.shape).sum(0)
    assert analysis.spectral_peak(checked, stride=2) > 1e3


def test_peak_does_not_depend_on_scale_or_type_and_survives_constants():
    image = np.random.default_rng(5).integers(0, 200, (17, 19)).astype(np.uint8)
    peak = analysis.spectral_peak(image, stride=2)
    assert analysis.spectral_peak(image[:16, :18] * 0.25, stride=2) == pytest.approx(peak)
    assert analysis.spectral_peak(np.full((16, 16), 0.1), stride=2) == pytest.approx(1, rel=0.05)
    assert analysis.spectral_peak(np.zeros((16, 16)), stride=2) == 1
    assert analysis.spectral_peak(np.indices((16, 16)).sum(0) % 2, stride=2) > 1e9


W = np.ones((2, 1, 3, 3))
BAD = [
    ("w", lambda: analysis.checkerboard(np.ones((3, 3)), stride=2)),
    ("w", lambda: analysis.checkerboard(W * 1j, stride=2)),
    ("w", lambda: analysis.checkerboard(W * np.nan, stride=2)),
    ("w", lambda: analysis.icnr(np.ones((1, 0, 3)), stride=2)),
    ("w", lambda: analysis.checkerboard_free(W.astype(int), stride=2)),
    ("stride", lambda: analysis.checkerboard(W, stride=0)),
    ("stride", lambda: analysis.checkerboard(W, stride=(2, 2, 2))),
    ("stride", lambda: analysis.checkerboard(W, stride=1.5)),
    ("dilation", lambda: analysis.checkerboard(W, stride=2, dilation=0)),
    ("stride", lambda: analysis.checkerboard_free(W, stride=4)),
    ("stride", lambda: analysis.checkerboard_free(W, stride=2, dilation=2)),
    ("output shape", lambda: analysis.icnr(W, stride=10**8)),
    ("output shape", lambda: analysis.checkerboard(W, stride=10**8)),
    ("output shape", lambda: analysis.overlap(tconv.Spec.build((10**8, 10**8), 3))),
    ("images", lambda: analysis.spectral_peak(np.ones(16), stride=2)),
    ("images", lambda: analysis.spectral_peak(np.ones((0, 16, 16)), stride=2)),
    ("images", lambda: analysis.spectral_peak(np.ones((7, 16)), stride=2)),
    ("images", lambda: analysis.spectral_peak(np.full((16, 16), np.inf), stride=2)),
    ("stride", lambda: analysis.spectral_peak(np.ones((16, 16)), stride=1)),
    ("stride", lambda: analysis.spectral_peak(np.ones((16, 16)), stride=-2)),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD)))
def test_errors_name_the_argument(case):
    argument, call = BAD[case]
    with pytest.raises(tconv.ArgumentError) as caught:
        call()
    assert caught.value.argument == argument and caught.value.rule
