# SPDX-License-Identifier: Apache-2.0
"""The fused activation: by definition in every dtype and layout, by kernel on every float, once an element, and what it refuses."""

import dataclasses
import pickle
import re
from decimal import Decimal, localcontext
from itertools import product
from pathlib import Path

import definition
import ml_dtypes
import numpy as np
import pytest
from definition import Judge, Problem, random_problem
from test_kernels import KERNELS, LARGER
from test_operators import LAYERS, by_line, inner_views

import tconv

NAMES = ("relu", "leaky_relu", "tanh", "sigmoid")
DTYPES = ("float64", "float32", "float16", ml_dtypes.bfloat16)
ULPS = 3  # of tanh and sigmoid; see src/core/activate.h
named = pytest.mark.parametrize("name", NAMES)
forced = pytest.mark.parametrize("kernel", KERNELS)
picky = pytest.mark.parametrize("kernel", [name for name in tconv.kernels() if name not in KERNELS])


def function(name, y, slope=0.01):
    """The activation by its formula, in the precision of y."""
    if name in ("relu", "leaky_relu"):
        return np.where(y < 0, y * slope if name == "leaky_relu" else 0, y)
    if name == "tanh":
        return np.tanh(y)
    return np.where(y < 0, np.exp(np.minimum(y, 0)), 1) / (1 + np.exp(-np.abs(y)))


def words_of(name, slope=0.5):
    return {"activation": name, **({"negative_slope": slope} if name == "leaky_relu" else {})}


def assert_activated(judge, name, actual, note=""):
    """No function here is steeper than 1, so an error of the sum is at most passed on; the function adds its own, and one rounding."""
    problem = judge.problem
    sums, magnitude = judge.expected("forward")
    sums, magnitude = problem.arranged(sums), problem.arranged(magnitude)
    expected, dtype = function(name, sums, 0.5), np.dtype(problem.dtype)
    computed = definition.SUMMED_IN[dtype.name]
    allowed = definition.tolerance(magnitude, problem.terms["forward"], computed, sums)
    allowed = allowed + ULPS * 2 * definition.ROUNDOFF[computed] * np.abs(expected) + definition.SMALLEST[computed]
    if dtype.name != computed:
        allowed = allowed + definition.ROUNDOFF[dtype.name] * (np.abs(expected) + allowed) * 1.01 + definition.SMALLEST[dtype.name]
    assert (actual.dtype, actual.shape) == (dtype, expected.shape)
    assert np.all(np.abs(actual.astype(np.float64) - expected) <= allowed), f"{name} {note} {problem}"


# ------------------------------------------------------------------------------------------------------------------- by definition


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("problem", LAYERS, **by_line)
@named
def test_layers(name, problem, dtype):
    for layout in ("channels_first", "channels_last"):
        judge = Judge(dataclasses.replace(problem, dtype=dtype, layout=layout))
        x = judge.problem.arranged(judge.x)
        for algorithm in ("auto", "positions", "channels"):
            assert_activated(judge, name, judge.run("forward", tconv, algorithm=algorithm, **words_of(name)), algorithm)
        assert_activated(judge, name, judge.run("forward", tconv.reference, **words_of(name)), "reference")
        assert_activated(judge, name, tconv.Operator(judge.w, judge.bias, **judge.problem.words, **words_of(name))(x), "Operator")


@pytest.mark.parametrize("block", range(4))
def test_random_geometries(block):
    for seed in range(30_000 + block * 100, 30_000 + (block + 1) * 100):
        judge, name = Judge(random_problem(seed, dtypes=DTYPES, budget=600)), NAMES[seed % 4]
        assert_activated(judge, name, judge.run("forward", tconv, **words_of(name)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@named
def test_out_of_any_strides(name, dtype):
    for problem in (LAYERS[2], LAYERS[4], LAYERS[9]):
        judge = Judge(dataclasses.replace(problem, dtype=dtype))
        for _, view in inner_views(judge.run("forward", tconv).shape, dtype, -77.0):
            assert judge.run("forward", tconv, out=view, **words_of(name)) is view
            assert_activated(judge, name, np.ascontiguousarray(view), "out")


# ----------------------------------------------------------------------------------------------------------------------- by kernel


def assert_function_of(name, plain, actual, slope=0.5):
    """`actual` is the function of the sums in `plain`, to the bit or within ULPS of its true value."""
    wide = np.float64 if plain.dtype == np.float32 else np.longdouble
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if name in ("relu", "leaky_relu"):
            return np.testing.assert_array_equal(actual, function(name, plain, plain.dtype.type(slope)))
        expected = function(name, plain.astype(wide))
        unit = np.spacing(np.abs(expected).astype(plain.dtype)).astype(wide)
        error = np.abs(actual.astype(wide) - expected)
    finite = ~np.isnan(plain)
    np.testing.assert_array_equal(np.isnan(actual), ~finite)
    assert np.all(error[finite] <= ULPS * unit[finite]), f"{name}: {float(np.max(error[finite] / unit[finite])):.3g} units"


@pytest.mark.parametrize("problem", LARGER, **by_line)
@forced
def test_every_element_once(kernel, problem):
    """Sums are those of the plain layer, and a slope of 1/2 taken twice would be 1/4: whole strips, borders, parts of channels."""
    for layout, threads in product(["channels_first", "channels_last"], [1, 3]):
        judge = Judge(dataclasses.replace(problem, layout=layout, biased=True))
        judge._exact = judge._magnitude = {}
        plain = judge.run("forward", tconv, algorithm=kernel, threads=threads)
        for name in NAMES:
            assert_function_of(name, plain, judge.run("forward", tconv, algorithm=kernel, threads=threads, **words_of(name)))


PAIRS = [((19, 21), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1))), ((12, 9), (4, 6), (2, 2), (1, 1), ((1, 1), (2, 2))),
         ((9, 70), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))]  # fmt: skip


@pytest.mark.parametrize("geometry", PAIRS, ids=str)
@picky
def test_methods_that_do_not_compute_everything(kernel, geometry):
    """Depthwise kernels want groups of one channel that are adjacent, Winograd's two or three taps a phase, Strassen's one."""
    depthwise, quarters = (kernel.startswith(names) for names in (("depthwise", "rows"), "strassen"))
    if quarters:
        size, _, stride, *others = geometry
        geometry = (size, stride, stride, *others)
    computed = 0
    for layout, dtype, threads in product(["channels_first", "channels_last"], ["float32", "float64"], [1, 3]):
        channels = (37, 37, 37) if depthwise else (20, 32 if quarters else 24, 1)
        judge = Judge(Problem(*geometry, 2, *channels, dtype, layout, biased=True, seed=5))
        try:
            plain = judge.run("forward", tconv, algorithm=kernel, threads=threads)
        except tconv.ArgumentError as error:
            assert error.argument == "algorithm"
            continue
        computed += 1
        for name in NAMES:
            assert_function_of(name, plain, judge.run("forward", tconv, algorithm=kernel, threads=threads, **words_of(name)))
    assert computed >= (4 if depthwise else 8)


@forced
def test_random_geometries_of_every_kernel(kernel):
    for seed in range(31_000, 31_200):
        judge = Judge(random_problem(seed, dtypes=("float32", "float64"), budget=400))
        name = NAMES[seed % 4]
        plain = judge.run("forward", tconv, algorithm=kernel)
        assert_function_of(name, plain, judge.run("forward", tconv, algorithm=kernel, **words_of(name)))


def numbers(dtype):
    """All sizes of number: every 65537th float32; for float64 numbers from all exponents; and where the functions turn."""
    if dtype == "float32":
        spread = np.arange(0, 2**32, 65537, dtype=np.uint32).view(np.float32)
    else:
        spread = np.random.default_rng(1).integers(0, 2**64, 60_000, dtype=np.uint64).view(np.float64)
    info = np.finfo(dtype)
    edges = [0, -0.0, np.inf, -np.inf, np.nan, info.max, info.min, info.tiny, -info.tiny, info.smallest_subnormal, -info.smallest_subnormal]
    near = [np.linspace(-r, r, 5001) for r in (1e-6, 1, 25, 110, 800)]
    return np.concatenate([spread, np.array(edges, dtype), *(part.astype(dtype) for part in near)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@named
@forced
def test_the_whole_range(kernel, name, dtype):
    """A layer that copies: y = f(1 * x)."""
    x = numbers(dtype)
    y = tconv.conv_transpose(x[None, None], np.ones((1, 1, 1), dtype), algorithm=kernel, **words_of(name, 0.25))[0, 0]
    assert_function_of(name, x, y, 0.25)
    if name in ("tanh", "sigmoid"):
        assert np.all(np.abs(y[~np.isnan(y)]) <= 1)
        assert y[x == np.inf][0] == 1 and y[x == -np.inf][0] == (-1 if name == "tanh" else 0)


def test_a_slope_of_zero_makes_nan_of_minus_infinity_as_elsewhere():
    y = tconv.conv_transpose([[-np.inf, -1.0, np.inf]], [[[1.0]]], activation="leaky_relu", negative_slope=0)
    np.testing.assert_array_equal(y, [[np.nan, 0, np.inf]])


@pytest.mark.parametrize(("dtype", "count"), [("float", 6), ("double", 11)])
def test_the_coefficients_can_be_made_again(dtype, count):
    """(e^r - 1 - r) / r^2, interpolated at Chebyshev nodes by divided differences."""
    source = (Path(__file__).parents[1] / "src" / "core" / "activate.h").read_text(encoding="utf-8")
    listed = re.search(rf"struct Curve<{dtype}> {{.*?kP\[\] = {{(.*?)}}", source, re.DOTALL)[1]
    with localcontext() as context:
        context.prec = 80
        nodes = chebyshev_nodes(count)
        slopes = [Decimal(1) / 2 + sum(r**k / factorial(k + 2) for k in range(1, 60)) for r in nodes]
        for j in range(1, count):
            for i in range(count - 1, j - 1, -1):
                slopes[i] = (slopes[i] - slopes[i - 1]) / (nodes[i] - nodes[i - j])
        polynomial = [Decimal(0)] * count
        for node, slope in zip(reversed(nodes), reversed(slopes), strict=True):
            polynomial = [below - node * own for below, own in zip([Decimal(0), *polynomial[:-1]], polynomial, strict=True)]
            polynomial[0] += slope
    kind = np.float32 if dtype == "float" else np.float64
    assert [kind(text.strip().rstrip("f")) for text in listed.split(",")] == [kind(float(c)) for c in polynomial]


def chebyshev_nodes(count):
    """ln 2 / 2 * cos((2 i + 1) pi / (2 count)): Newton's method on T_count, from the cosines of float64."""
    nodes = []
    for i in range(count):
        t = Decimal(float(np.cos(np.pi * (2 * i + 1) / (2 * count))))
        for _ in range(4):
            before, value, slope_before, slope = Decimal(1), t, Decimal(0), Decimal(1)
            for _ in range(count - 1):
                before, value, slope_before, slope = value, 2 * t * value - before, slope, 2 * value + 2 * t * slope - slope_before
            t -= value / slope
        nodes.append(t * Decimal(2).ln() / 2)
    return nodes


def factorial(n):
    return Decimal(1) if n < 2 else n * factorial(n - 1)


# ------------------------------------------------------------------------------------------------------------- the rest of the layer


@named
def test_the_transpose_and_copies_of_an_operator(name):
    judge = Judge(LAYERS[2])
    p, x, grad = judge.problem, judge.problem.arranged(judge.x), judge.problem.arranged(judge.grad)
    op, plain = (tconv.Operator(judge.w, judge.bias, **p.words, **words) for words in (words_of(name), {}))
    definition.assert_same_bits(op.T(grad), plain.T(grad))
    definition.assert_same_bits(pickle.loads(pickle.dumps(op))(x), op(x))
    assert f"activation={name!r}" in repr(op)


def test_what_names_mean_is_checked():
    x, w = np.ones((1, 1, 3)), np.ones((1, 1, 2))
    half = {"x": x.astype("float16"), "w": w.astype("float16")}
    for name in ("RELU", "gelu", "", 3, 0, True, b"relu", ["relu"], np.array(["relu", "tanh"])):
        refuse("activation", name, "must be one of None, 'relu', 'leaky_relu', 'tanh', 'sigmoid'", x, w)
    for slope in (np.nan, np.inf, "0.1", None, 1j, True, [0.1], np.array([0.1, 0.2]), 10**400):
        refuse("negative_slope", slope, "must be a real number that is finite in the dtype", x, w, activation="leaky_relu")
        refuse("negative_slope", slope, "must be a real number that is finite in the dtype", x, w)
    refuse("negative_slope", 1e39, "must be a real number that is finite in the dtype", **half, activation="leaky_relu")
    refuse("negative_slope", 0.2, "means something for activation='leaky_relu' only, not for 'relu'", x, w, activation="relu")
    refuse("negative_slope", 0.2, "means something for activation='leaky_relu' only, not for None", x, w)
    for slope in (0, -1, 1e39, np.float32(0.5)):
        y = tconv.conv_transpose(-x, w, activation="leaky_relu", negative_slope=slope)
        np.testing.assert_array_equal(y, -slope * np.array([[[1.0, 2, 2, 1]]]))


def refuse(argument, value, rule, x, w, **words):
    """By the function, the reference and Operator, with the same words."""
    words = {**words, argument: value}
    for call in (lambda: tconv.conv_transpose(x, w, **words), lambda: tconv.reference.conv_transpose(x, w, **words),
                 lambda: tconv.Operator(w, **words)):  # fmt: skip
        with pytest.raises(tconv.ArgumentError) as caught:
            call()
        assert (caught.value.argument, rule in caught.value.rule) == (argument, True), caught.value
        assert caught.value.value is value
