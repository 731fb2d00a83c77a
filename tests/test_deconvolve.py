# SPDX-License-Identifier: Apache-2.0
"""Deconvolution against the definition's own matrix: its dense least-squares answer, its singular values, and the values that were there."""

import pickle
import warnings

import definition
import numpy as np
import pytest

import tconv

MODES = {"zero": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
LINEAR = ("dense", "lsmr", "lsqr", "cg")

# (size of y, kernel, stride, dilation, Cin, Cout, groups, crop)
TALL = [  # full column rank: more values of y than of x
    ((20,), (3,), (2,), (1,), 6, 2, 1, ((0, 0),)),
    ((12,), (4,), (1,), (2,), 2, 1, 1, ((3, 3),)),
    ((15,), (5,), (3,), (1,), 12, 4, 2, ((1, 1),)),
    ((8, 7), (3, 3), (1, 1), (1, 1), 3, 2, 1, ((1, 1), (1, 1))),
    ((6, 5), (3, 2), (2, 2), (1, 1), 12, 2, 1, ((1, 0), (0, 0))),
    ((5, 6), (2, 3), (2, 1), (1, 2), 12, 4, 2, ((0, 0), (2, 2))),
    ((3, 4, 3), (2, 2, 2), (2, 2, 2), (1, 1, 1), 16, 1, 1, ((0, 0),) * 3),
    ((4, 3, 4), (3, 3, 2), (1, 1, 1), (1, 1, 1), 3, 1, 1, ((1, 1), (1, 1), (0, 1))),
]
WIDE = [  # the stride loses information, or there are fewer channels
    ((9,), (3,), (2,), (1,), 1, 1, 1, ((1, 0),)),
    ((7,), (5,), (1,), (1,), 1, 1, 1, ((0, 0),)),
    ((4, 5), (3, 3), (2, 2), (1, 1), 3, 1, 1, ((1, 0), (1, 0))),
    ((4, 4), (2, 2), (3, 3), (1, 1), 2, 2, 2, ((0, 0), (0, 0))),
    ((4, 3), (3, 3), (1, 1), (1, 1), 2, 3, 1, ((1, 1), (1, 1))),
    ((2, 3, 2), (3, 2, 3), (2, 2, 2), (1, 1, 1), 2, 1, 1, ((0, 0),) * 3),
]


def matrix(case, w, boundary="zero", transposed=False):
    """A by the definition, for one sample: columns are what unit arrays become."""
    size, kernel, stride, dilation, cin, cout, groups, crop = case
    if transposed:
        units = np.eye(cin * int(np.prod(size))).reshape(-1, cin, *size)
        return definition.conv_transpose(units, w, stride, dilation, crop, groups).reshape(len(units), -1).T
    outputs = definition.output_size(size, kernel, stride, dilation, crop)
    units = np.eye(cout * int(np.prod(outputs))).reshape(-1, cout, *outputs)
    if boundary != "zero":
        units, crop = np.pad(units, [(0, 0), (0, 0), *crop], mode=MODES[boundary]), ((0, 0),) * len(size)
    return definition.grad_input(units, w, size, stride, dilation, crop, groups).reshape(len(units), -1).T


def setting(case, seed, boundary="zero", transposed=False, samples=2):
    """(words, w, A, x, y) with random values."""
    size, kernel, stride, dilation, cin, cout, groups, crop = case
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((cin, cout // groups, *kernel))
    outputs = definition.output_size(size, kernel, stride, dilation, crop)
    x = rng.standard_normal((samples, cin, *size) if transposed else (samples, cout, *outputs))
    shape = (samples, cout, *outputs) if transposed else (samples, cin, *size)
    a = matrix(case, w, boundary, transposed)
    words = {"stride": stride, "dilation": dilation, "padding": crop, "groups": groups}
    return words, w, a, x, (x.reshape(samples, -1) @ a.T).reshape(shape)


def apart(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("case", TALL, ids=str)
def test_a_convolution_of_full_column_rank_is_undone(case, method):
    words, w, a, x, y = setting(case, 1)
    assert np.linalg.matrix_rank(a) == a.shape[1] and np.linalg.cond(a) < 1e3, "the problem is not as the test means it"
    found = tconv.deconvolve(y, w, method=method, **words)
    assert apart(found.x, x) < 1e-8
    assert found.converged and found.residual < 1e-8 and found.posedness.unique
    assert found.posedness.condition == pytest.approx(np.linalg.cond(a), rel=1e-6)


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_an_answer_that_is_not_unique_is_that_of_minimum_norm(case, method):
    words, w, a, x, y = setting(case, 2)
    found = tconv.deconvolve(y, w, method=method, **words)
    expected = np.linalg.lstsq(a, y.reshape(2, -1).T, rcond=None)[0].T.reshape(x.shape)
    assert apart(found.x, expected) < 1e-8 and found.residual < 1e-8
    assert found.posedness.unique is False and "not unique" in str(found)
    assert found.posedness.null_space == a.shape[1] - np.linalg.matrix_rank(a) > 0


@pytest.mark.parametrize("boundary", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("method", ["dense", "lsmr"])
def test_what_lies_beyond_the_border_is_part_of_the_problem(boundary, method):
    for case in (((9,), (4,), (1,), (1,), 2, 1, 1, ((2, 1),)), ((6, 5), (3, 3), (1, 1), (1, 1), 3, 2, 1, ((1, 1), (1, 1))),
                 ((4, 4), (3, 4), (2, 2), (1, 1), 6, 1, 1, ((1, 0), (1, 1)))):  # fmt: skip
        words, w, a, x, y = setting(case, 3, boundary)
        found = tconv.deconvolve(y, w, boundary=boundary, method=method, **words)
        expected = np.linalg.lstsq(a, y.reshape(2, -1).T, rcond=None)[0].T.reshape(x.shape)
        assert apart(found.x, expected) < 1e-8, case


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("case", [
    ((12,), (3,), (1,), (1,), 1, 1, 1, ((1, 1),)), ((6, 9), (3, 2), (1, 1), (1, 1), 2, 2, 2, ((1, 1), (0, 1))),
    ((5, 4), (3, 3), (2, 3), (1, 1), 2, 3, 1, ((1, 0), (0, 0))), ((4, 3, 5), (2, 2, 2), (1, 1, 1), (1, 2, 1), 3, 2, 1, ((0, 1), (1, 1), (1, 0))),
], ids=str)  # fmt: skip
def test_fourier_is_the_least_squares_answer_of_a_circular_problem(case, weight):
    words, w, a, x, y = setting(case, 4, "circular")
    y += 0.1 * np.random.default_rng(5).standard_normal(y.shape)
    found = tconv.deconvolve(y, w, boundary="circular", method="fourier", regularization=weight, **words)
    stacked = np.vstack([a, np.sqrt(weight) * np.eye(a.shape[1])])
    right = np.hstack([y.reshape(2, -1), np.zeros((2, a.shape[1]))]).T
    expected = np.linalg.lstsq(stacked, right, rcond=None)[0].T.reshape(x.shape)
    assert apart(found.x, expected) < 1e-8
    for method in ("dense", "lsmr", "lsqr", "cg"):
        other = tconv.deconvolve(y, w, boundary="circular", method=method, regularization=weight, **words)
        assert apart(other.x, expected) < 1e-7, method
    assert found.posedness.null_space == a.shape[1] - np.linalg.matrix_rank(a)


@pytest.mark.parametrize("case", [c for c in TALL + WIDE if c[4] * np.prod(c[0]) < 300], ids=str)
def test_a_transposed_convolution_is_undone(case):
    words, w, a, x, y = setting(case, 6, transposed=True)
    for method in ("dense", "lsmr"):
        found = tconv.conv_transpose_inverse(y, w, case[0], method=method, **words)
        expected = np.linalg.lstsq(a, y.reshape(2, -1).T, rcond=None)[0].T.reshape(x.shape)
        assert apart(found.x, expected) < 1e-8, method
        rank = np.linalg.matrix_rank(a)
        assert found.posedness.null_space == a.shape[1] - rank
        if rank == a.shape[1]:
            assert apart(found.x, x) < 1e-8


def test_layouts_batches_and_plain_arrays_are_the_same_problem():
    words, w, _, _, y = setting(TALL[3], 7)
    found = tconv.deconvolve(y, w, **words).x
    last = tconv.deconvolve(np.moveaxis(y, 1, -1), w, layout="channels_last", **words).x
    assert np.allclose(np.moveaxis(last, -1, 1), found, atol=1e-12)
    assert np.allclose(tconv.deconvolve(y[1], w, **words).x, found[1], atol=1e-12)
    plain = tconv.deconvolve(y[0, 0], w[0, 0], padding=1).x
    assert plain.shape == (8, 7) and np.array_equal(plain, tconv.deconvolve(y[:1, :1], w[:1, :1], padding=1).x[0, 0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_answer_has_the_dtype_of_y(dtype):
    words, w, _, x, y = setting(TALL[0], 8)
    found = tconv.deconvolve(y.astype(dtype), w.astype(dtype), **words)
    assert found.x.dtype == dtype and apart(found.x.astype(float), x) < 300 * np.finfo(dtype).eps


# ---------------------------------------------------------------- noise


def noisy(seed=9, deviation=0.01):
    """A smooth signal, badly blurred, with noise: A has a condition of millions."""
    rng = np.random.default_rng(seed)
    at = np.linspace(-3, 3, 25)
    kernel = np.exp(-(at**2) / 2)
    x = np.clip(np.sin(np.arange(300) / 15) + (np.arange(300) // 50) % 2, 0, None)
    clean = np.convolve(np.pad(x, 12, mode="wrap"), kernel / kernel.sum(), "valid")
    return x, clean + deviation * rng.standard_normal(300), kernel / kernel.sum()


@pytest.mark.parametrize("method, rule", [*((method, rule) for method in ("dense", "fourier", "lsmr") for rule in ("discrepancy", "gcv")),
                                          ("dense", "lcurve"), ("fourier", "lcurve")])  # fmt: skip
def test_the_weight_that_a_rule_chooses_is_near_the_best(method, rule):
    x, y, kernel = noisy()
    run = lambda weight: tconv.deconvolve(y, kernel, padding=12, boundary="circular", method=method, regularization=weight, noise=0.01)  # noqa: E731
    errors = [apart(run(float(weight)).x, x) for weight in np.logspace(-6, 1, 15)]
    found = run(rule)
    assert apart(found.x, x) < 1.5 * min(errors) < 0.3
    if rule == "discrepancy":
        assert found.residual * np.linalg.norm(y) == pytest.approx(0.01 * np.sqrt(300), rel=0.05)


def test_without_a_word_noise_is_held_back_and_with_weight_0_it_is_announced():
    x, y, kernel = noisy()
    found = tconv.deconvolve(y, kernel, padding=12, boundary="circular")
    assert found.regularization > 0 and apart(found.x, x) < 0.3 and found.posedness.condition > 1e4
    with pytest.warns(RuntimeWarning, match="mostly noise"):
        amplified = tconv.deconvolve(y, kernel, padding=12, boundary="circular", regularization=0)
    assert apart(amplified.x, x) > 10


def test_an_iteration_that_is_cut_off_says_so():
    words, w, _, _, y = setting(TALL[3], 1)
    with pytest.warns(RuntimeWarning, match="did not converge in 3 iterations"):
        found = tconv.deconvolve(y, w, method="lsmr", iterations=3, **words)
    assert not found.converged and found.iterations == 3 and "not converged" in str(found)


def test_progress_is_told_of_every_iteration():
    words, w, _, _, y = setting(TALL[3], 1)
    told = []
    found = tconv.deconvolve(y, w, method="lsqr", progress=told.append, **words)
    assert told == list(range(1, len(told) + 1)) and len(told) >= found.iterations > 3


# ---------------------------------------------------------------- what is not least squares


def spikes():
    rng = np.random.default_rng(11)
    x = np.zeros(200)
    x[rng.choice(200, 8, replace=False)] = rng.uniform(1, 3, 8)
    kernel = np.array([0.1, 0.3, 1.0, 0.4, 0.2])
    return x, np.correlate(x, kernel, "valid") + 0.005 * rng.standard_normal(196), kernel


def test_l1_meets_the_conditions_of_its_minimum():
    """2 A*(y - A x) is weight * sign(x) where x is not 0, and nowhere larger than weight (Beck and Teboulle, 2009)."""
    x, y, kernel = spikes()
    found = tconv.deconvolve(y, kernel, method="l1", regularization=0.05, iterations=20000, tolerance=1e-12)
    a = matrix(((196,), (5,), (1,), (1,), 1, 1, 1, ((0, 0),)), kernel[None, None])
    slope = 2 * a.T @ (y - a @ found.x)
    used = abs(found.x) > 1e-6
    assert np.allclose(slope[used], 0.05 * np.sign(found.x[used]), atol=1e-5) and abs(slope).max() < 0.05 + 1e-5
    assert set(np.flatnonzero(x)) <= set(np.flatnonzero(used)) and used.sum() < 40
    sparse, plain = (apart(tconv.deconvolve(y, kernel, method=method).x, x) for method in ("l1", "auto"))
    assert sparse < 0.6 * plain


def test_total_variation_is_at_a_minimum():
    rng = np.random.default_rng(12)
    x = np.repeat(rng.uniform(0, 5, 8), 20)
    kernel = np.array([1.0, 2, 3, 2, 1]) / 9
    y = np.convolve(x, kernel, "valid") + 0.02 * rng.standard_normal(156)
    found = tconv.deconvolve(y, kernel, method="tv", regularization=0.1, iterations=20000, tolerance=1e-10)
    cost = lambda x: ((np.correlate(x, kernel, "valid") - y) ** 2).sum() + 0.1 * abs(np.diff(x)).sum()  # noqa: E731
    least = cost(found.x)
    for scale in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            assert cost(found.x + scale * rng.standard_normal(160)) > least
            assert cost(found.x + scale * np.repeat(rng.standard_normal(8), 20)) > least - 1e-9
    free = tconv.deconvolve(y, kernel, method="tv", noise=0.02)
    assert free.residual * np.linalg.norm(y) == pytest.approx(0.02 * np.sqrt(156), rel=0.1)
    assert apart(free.x, x) < 0.6 * apart(tconv.deconvolve(y, kernel, noise=0.02).x, x)


def test_richardson_lucy_keeps_light_and_sign_and_is_its_formula():
    rng = np.random.default_rng(13)
    x, kernel = rng.uniform(0, 1, 40), np.array([1.0, 3, 2]) / 6
    a = matrix(((40,), (3,), (1,), (1,), 1, 1, 1, ((1, 1),)), kernel[None, None])
    y = rng.poisson(1000 * a @ x) / 1000.0
    found = tconv.deconvolve(y, kernel, padding=1, method="richardson_lucy", iterations=25, tolerance=0)
    expected = np.full(40, y.mean() * 40 / a.sum())
    for _ in range(25):
        expected = expected * (a.T @ (y / (a @ expected))) / a.sum(0)
    assert apart(found.x, expected) < 1e-12 and found.iterations == 25 and found.x.min() >= 0
    assert (a @ found.x).sum() == pytest.approx(y.sum(), rel=1e-12)
    stopped = tconv.deconvolve(y, kernel, padding=1, method="richardson_lucy", iterations=500, noise=0.02)
    assert stopped.converged and stopped.iterations < 500 and stopped.residual * np.linalg.norm(y) <= 0.02 * np.sqrt(40)


# ---------------------------------------------------------------- evidence


def test_geometry_says_how_much_a_stride_loses():
    """2 x 2 positions of x for every one of y: three quarters are lost, whatever the kernel."""
    found = tconv.deconvolve(np.ones((1, 1, 40, 40)), np.ones((1, 1, 2, 2)), stride=2)
    assert (found.posedness.null_space, found.posedness.unknowns, found.posedness.exact) == (4800, 6400, False)
    assert found.posedness.unique is False and "at least 4800 of 6400" in str(found)


def test_zeros_of_the_spectrum_are_counted():
    """A mean of 4 on a circle of 12 has zeros at 3 of 12 frequencies: those 4 divides, and not 0."""
    y = np.random.default_rng(1).standard_normal(12)
    found = tconv.deconvolve(y, np.ones(4) / 4, padding=[(1, 2)], boundary="circular")
    assert found.method == "fourier" and found.posedness.null_space == 3 and not found.posedness.unique


# ---------------------------------------------------------------- errors

Y, W = np.ones((1, 2, 8)), np.ones((2, 1, 3))


@pytest.mark.parametrize("argument, words", [
    ("method", {"method": "magic"}), ("boundary", {"boundary": "mirror"}), ("regularization", {"regularization": "best"}),
    ("regularization", {"regularization": -1.0}), ("regularization", {"regularization": float("nan")}), ("noise", {"noise": -0.1}),
    ("noise", {"regularization": "discrepancy"}), ("iterations", {"iterations": 0}), ("tolerance", {"tolerance": "small"}),
    ("penalty", {"penalty": "gradient"}), ("penalty", {"penalty": "laplacian"}), ("stride", {"stride": 0}), ("padding", {"padding": 9}),
    ("layout", {"layout": "NCHW"}), ("regularization", {"method": "richardson_lucy", "regularization": 1.0}),
    ("regularization", {"method": "tv", "regularization": 0}), ("method", {"method": "fourier", "stride": 2}), ("threads", {"threads": 0}),
    ("output_size", {"output_size": 99}), ("regularization", {"method": "lsmr", "regularization": "lcurve"}),
], ids=str)  # fmt: skip
def test_a_bad_argument_is_named(argument, words):
    with pytest.raises(tconv.ArgumentError) as error:
        tconv.deconvolve(Y, W, **words)
    assert error.value.argument == argument


@pytest.mark.parametrize("argument, y, w, words", [
    ("y", Y[:, :1], W, {}), ("kernel", Y, W[0, 0, 0], {}), ("y", np.full_like(Y, np.nan), W, {}), ("kernel", Y, W * np.inf, {}),
    ("y", -Y, W, {"method": "richardson_lucy"}), ("kernel", Y, -W, {"method": "richardson_lucy"}), ("y", Y.astype(int), W.astype(int), {}),
    ("kernel", Y, W.astype(np.float32), {}), ("y", Y[:0], W, {}),
], ids=range(9))  # fmt: skip
def test_a_bad_array_is_named(argument, y, w, words):
    with pytest.raises(tconv.ArgumentError) as error:
        tconv.deconvolve(y, w, **words)
    assert error.value.argument == argument


def test_the_inverse_names_its_arguments():
    for argument, call in (("y", lambda: tconv.conv_transpose_inverse(Y[:, :, :2, None], W)), ("method", lambda: tconv.conv_transpose_inverse(
            Y[:, :1], W, method="fourier")), ("w", lambda: tconv.conv_transpose_inverse(Y, W[0]))):  # fmt: skip
        with pytest.raises(tconv.ArgumentError) as error:
            call()
        assert error.value.argument == argument


def test_nothing_is_said_where_all_is_well():
    words, w, _, _, y = setting(TALL[0], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tconv.deconvolve(y, w, **words)


def test_evidence_is_of_the_call_whatever_becomes_of_its_arrays():
    rng = np.random.default_rng(5)
    y, kernel = rng.standard_normal((9, 8)), rng.standard_normal((3, 2))
    found, again = (tconv.deconvolve(y, kernel, padding=1, regularization=0.1) for _ in range(2))
    expected = again.residual
    kept = pickle.loads(pickle.dumps(found))
    found.x[:], y[:], kernel[:] = 0, 0, 0
    assert 0 < found.residual == expected == kept.residual < 1
    assert kept.posedness == again.posedness
