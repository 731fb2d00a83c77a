# SPDX-License-Identifier: Apache-2.0
"""The three operators, `Operator` and `stamp` by value: random geometries, views, `out`, guard bytes, NaN probes, algebra."""

import copy
import dataclasses
import pickle
from itertools import product

import definition
import ml_dtypes
import numpy as np
import pytest
from definition import OPERATORS, Judge, Problem, assert_same_bits, random_problem
from test_kernels import KERNELS

import tconv

DTYPES = ("float64", "float32", "float16", ml_dtypes.bfloat16)
SEED_X = np.array([[0.0, 1.0], [2.0, 3.0]])
SEED_KERNEL = np.array([[4.0, 1.0], [2.0, 3.0]])
SEED_Y = np.array([[0.0, 4.0, 1.0], [8.0, 16.0, 6.0], [4.0, 12.0, 9.0]])

# One of each kind of layer: k < s, k = s, k > s; many and few channels; groups; long kernels; more than 64 stride phases.
LAYERS = [
    Problem((5, 6), (2, 1), (3, 2), (1, 1), ((0, 0), (0, 0)), 2, 3, 4, biased=True, seed=101),
    Problem((7, 9), (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 2, 5, 3, biased=True, seed=102),
    Problem((6, 7), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 2, 17, 19, biased=True, seed=103),
    Problem((5, 5), (3, 3), (1, 1), (2, 2), ((2, 2), (2, 2)), 1, 33, 5, seed=104),
    Problem((5, 9), (5, 3), (3, 2), (1, 3), ((-2, 7), (9, -1)), 2, 6, 8, 2, biased=True, seed=105),
    Problem((8, 8), (3, 3), (2, 2), (1, 1), ((1, 0), (1, 0)), 2, 24, 24, 24, biased=True, seed=106),
    Problem((40,), (16,), (8,), (1,), ((4, 4),), 2, 12, 7, biased=True, seed=107),
    Problem((9,), (200,), (67,), (1,), ((11, -5),), 1, 5, 2, seed=108),
    Problem((6,), (3,), (130,), (1,), ((0, -127),), 2, 3, 2, biased=True, seed=109),
    Problem((3, 4, 5), (2, 3, 4), (2, 1, 3), (1, 2, 1), ((0, 1), (1, -1), (2, 0)), 2, 4, 6, 2, biased=True, seed=110),
    Problem((1, 1), (4, 4), (1, 1), (1, 1), ((0, 0), (0, 0)), 3, 40, 30, biased=True, seed=111),
    Problem((2, 3), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), 37, 8, 9, biased=True, seed=112),
    Problem((4, 48), (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 2, 5, 7, biased=True, seed=113),
]
by_line = {"ids": lambda p: str(p).split(" | ")[0].replace(" ", "_")}
layers = pytest.mark.parametrize("problem", LAYERS, **by_line)


def both_layouts(problem):
    return [dataclasses.replace(problem, layout=layout) for layout in ("channels_first", "channels_last")]


# ------------------------------------------------------------------------------------------------------------------- by definition


@pytest.mark.parametrize("block", range(20))
def test_random_geometries(block):
    for seed in range(10_000 + block * 200, 10_000 + (block + 1) * 200):
        judge = Judge(random_problem(seed, dtypes=DTYPES, budget=600))
        for operator in OPERATORS:
            judge.check(operator, judge.run(operator, tconv))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@layers
def test_layers(problem, dtype):
    for p in both_layouts(dataclasses.replace(problem, dtype=dtype)):
        judge = Judge(p)
        for operator in OPERATORS:
            judge.check(operator, judge.run(operator, tconv))


@layers
def test_the_transpose_is_the_transpose(problem):
    """<y, A x> = <A^T y, x> through the functions and through Operator, and the gradient by the weight in the same form."""
    for p in both_layouts(dataclasses.replace(problem, biased=False)):
        judge = Judge(p)
        x, grad = p.arranged(judge.x), p.arranged(judge.grad)
        slack = float(np.sum(judge.expected("forward")[1] * np.abs(judge.grad)))
        terms = sum(p.terms.values())
        operator = tconv.Operator(judge.w, **p.words)
        for y, back in ((judge.run("forward", tconv), judge.run("grad_input", tconv)), (operator(x), operator.T(grad))):
            definition.assert_adjoint(grad, y, back, x, terms, p.dtype, p, slack)
        definition.assert_adjoint(grad, judge.run("forward", tconv), judge.run("grad_weight", tconv), judge.w, terms, p.dtype, p, slack)


@layers
def test_linearity(problem):
    """A(2x + z) = 2 A(x) + A(z), each within its own tolerance."""
    first, second = Judge(problem), Judge(dataclasses.replace(problem, seed=problem.seed + 500))
    mixed = Judge(problem, (2 * first.x + second.x, first.w, 2 * first.grad + second.grad, None))
    first = Judge(problem, (first.x, first.w, first.grad, None))
    second = Judge(problem, (second.x, first.w, second.grad, None))
    for operator in ("forward", "grad_input"):
        one, two, both = (judge.run(operator, tconv).astype(np.float64) for judge in (first, second, mixed))
        magnitude = 2 * first.expected(operator)[1] + second.expected(operator)[1]
        allowed = 4 * definition.tolerance(magnitude, problem.terms[operator], problem.dtype, magnitude)
        assert np.all(np.abs(both - (2 * one + two)) <= problem.arranged(allowed)), problem


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_the_textbook(dtype):
    """Small integers are exact in every dtype."""
    x, kernel = SEED_X.astype(dtype), SEED_KERNEL.astype(dtype)
    assert_same_bits(tconv.conv_transpose(x[None], kernel[None, None])[0], SEED_Y.astype(dtype))
    picture = np.arange(16).reshape(1, 4, 4).astype(dtype)
    weight = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 10]]).reshape(1, 1, 3, 3).astype(dtype)
    valid = tconv.conv_transpose(picture, weight, stride=2, padding="valid")
    same = tconv.conv_transpose(picture, weight, stride=2, padding="same")
    exact = definition.conv_transpose(picture[None], weight, (2, 2), (1, 1), ((0, 0), (0, 0)), 1)[0].astype(dtype)
    assert exact.shape == (1, 9, 9)
    assert_same_bits(valid, exact)
    assert_same_bits(same, np.ascontiguousarray(exact[:, :8, :8]))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_an_empty_batch(layout, dtype):
    p = Problem((4, 5), (3, 2), (2, 1), (1, 1), ((1, 0), (0, 0)), 0, 4, 6, 2, dtype, layout, biased=True)
    judge = Judge(p)
    for operator in OPERATORS:
        judge.check(operator, judge.run(operator, tconv))
    assert tconv.Operator(judge.w, **p.words)(p.arranged(judge.x)).shape == p.arranged(judge.grad).shape
    assert not judge.run("grad_weight", tconv).any()


def test_rank_is_inferred_and_one_number_serves_all_axes():
    judge = Judge(Problem((3, 4, 5), (3, 3, 3), (2, 2, 2), (1, 1, 1), ((1, 0),) * 3, 2, 3, 2, dtype="float64"))
    judge.check("forward", tconv.conv_transpose(judge.x, judge.w, stride=2, padding=1, output_padding=1))
    judge.check("forward", tconv.conv_transpose(judge.x, judge.w, stride=2, padding=1, output_size=(6, 8, 10)))
    judge.check("grad_input", tconv.conv_transpose_grad_input(judge.grad, judge.w, stride=2, padding=1))
    judge.check("grad_input", tconv.conv_transpose_grad_input(judge.grad, judge.w, stride=2, padding=1, output_padding=1))
    judge.check("grad_weight", tconv.conv_transpose_grad_weight(judge.x, judge.grad, 3, stride=2, padding=1))


# -------------------------------------------------------------------------------------------------------------- views and alignment


def views(array):
    """Arrays of the same values that lie in memory in other ways: spread, flipped, transposed, off by one element."""
    spread = np.full([2 * n + 1 for n in array.shape], np.nan, array.dtype)[tuple(slice(1, 2 * n + 1, 2) for n in array.shape)]
    flipped = np.empty_like(array)[tuple(slice(None, None, -1) for _ in array.shape)]
    transposed = np.empty(array.shape[::-1], array.dtype).T
    channels_last = np.moveaxis(np.empty((array.shape[0], *array.shape[2:], array.shape[1]), array.dtype), -1, 1)
    shifted = np.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
    rows = np.full((*array.shape[:-1], array.shape[-1] + 3), np.nan, array.dtype)[..., 1:-2]
    for view in (spread, flipped, transposed, channels_last, shifted, rows):
        view[...] = array
        yield view
    yield np.broadcast_to(array, array.shape)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@layers
def test_strided_inputs_and_weights(problem, dtype):
    judge = Judge(dataclasses.replace(problem, dtype=dtype))
    for x, w, grad in zip(views(judge.x), views(judge.w), views(judge.grad), strict=True):
        for array in (x, w, grad):
            array.setflags(write=False)
        viewed = Judge(judge.problem, (x, w, grad, judge.bias))
        viewed._exact, viewed._magnitude = judge._exact, judge._magnitude
        for operator in OPERATORS:
            viewed.check(operator, viewed.run(operator, tconv), "views")


def test_the_slices_that_users_write():
    rng = np.random.default_rng(3)
    big, w = rng.standard_normal((2, 6, 9, 22)).astype("float32"), rng.standard_normal((4, 3, 3, 3)).astype("float32")
    for x, weight in ((big[:, ::2, :, 1::3], w[:3]), (big[:, 4:2:-1], w[1::2]), (big[::-1, :4, ::-1, ::-2], w[:, ::-1, ::-1, ::-1]),
                      (np.broadcast_to(big[:1, :1], (2, 4, 9, 22)), w),
                      (big.transpose(0, 1, 3, 2)[:, 1:5], w.transpose(0, 1, 3, 2))):  # fmt: skip
        judge = Judge(Problem(x.shape[2:], (3, 3), (2, 2), (1, 1), ((1, 0), (0, 1)), 2, x.shape[1], 3),
                      (x, weight, rng.standard_normal((2, 3, *(2 * n for n in x.shape[2:]))).astype("float32"), None))  # fmt: skip
        for operator in OPERATORS:
            judge.check(operator, judge.run(operator, tconv))


def test_a_strided_bias():
    judge = Judge(dataclasses.replace(LAYERS[2], seed=9))
    bias = np.repeat(judge.bias, 3)[::-3][::-1]
    np.testing.assert_array_equal(bias, judge.bias)
    judge.check("forward", tconv.conv_transpose(judge.x, judge.w, bias, **judge.problem.words))
    judge.check("forward", tconv.Operator(judge.w, bias, **judge.problem.words)(judge.x))


@layers
def test_inputs_are_left_as_they_were(problem):
    judge = Judge(problem)
    arrays = [a for a in (judge.x, judge.w, judge.grad, judge.bias) if a is not None]
    before = [a.tobytes() for a in arrays]
    for operator in OPERATORS:
        judge.run(operator, tconv)
    assert [a.tobytes() for a in arrays] == before


# ---------------------------------------------------------------------------------------------------------------------- out, guards


def inner_views(shape, dtype, sentinel):
    """(buffer, view) pairs: contiguous inside a larger buffer at odd offsets, spread, reversed, transposed."""
    count = int(np.prod(shape))
    for lead in (64, 61):
        buffer = np.full(count + 128, sentinel, dtype)
        yield buffer, buffer[lead : lead + count].reshape(shape)
    buffer = np.full([n + 5 for n in shape], sentinel, dtype)
    yield buffer, buffer[tuple(slice(2, 2 + n) for n in shape)]
    buffer = np.full([2 * n + 3 for n in shape], sentinel, dtype)
    yield buffer, buffer[tuple(slice(2, 2 + 2 * n, 2) for n in shape)]
    buffer = np.full([n + 4 for n in shape[::-1]], sentinel, dtype)
    yield buffer, buffer[tuple(slice(n + 1, 1, -1) for n in shape[::-1])].T


def assert_guarded(buffer, view, sentinel):
    """Nothing but the view's elements has changed."""
    written = view.copy()
    view[...] = sentinel
    assert np.all(buffer == np.asarray(sentinel, buffer.dtype)), "bytes outside `out` were written"
    view[...] = written


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@layers
def test_out_is_written_and_nothing_around_it(problem, dtype):
    for p in both_layouts(dataclasses.replace(problem, dtype=dtype)):
        judge = Judge(p)
        for operator in OPERATORS:
            shape = judge.run(operator, tconv).shape
            for buffer, view in inner_views(shape, dtype, -77.0):
                result = judge.run(operator, tconv, out=view)
                assert result is view
                judge.check(operator, np.ascontiguousarray(view), "out")
                assert_guarded(buffer, view, -77.0)


def test_out_holds_no_memory_of_what_it_held():
    judge = Judge(LAYERS[4])
    for operator in OPERATORS:
        fresh = judge.run(operator, tconv)
        out = np.full_like(fresh, np.nan)
        judge.run(operator, tconv, out=out)
        assert_same_bits(out, fresh, operator)
        judge.run(operator, tconv, out=out)
        assert_same_bits(out, fresh, operator)


# ---------------------------------------------------------------------------------------------------------------------- NaN and Inf


PROBED = [Problem((5, 6), (3, 4), (2, 3), (1, 1), ((1, 0), (-1, 2)), 2, 4, 6, 2, seed=1), LAYERS[3], LAYERS[6], LAYERS[8],
          Problem((4, 19), (3, 3), (1, 2), (2, 1), ((0, 0), (1, 1)), 1, 3, 2, seed=2),
          Problem((3, 3, 4), (2, 2, 3), (1, 2, 2), (1, 1, 2), ((0, 0), (1, 0), (0, 1)), 2, 2, 2, seed=3)]  # fmt: skip


DIRECT = [name for name in KERNELS if not name.startswith("auto")]  # that may take Winograd's tiles, which mix neighbours


def reached(problem, at, channel, forward):
    """A mask of what one element reaches: outputs of an input (forward), or inputs that an output reaches (its transpose)."""
    spec = tconv.Spec.build(problem.size, problem.kernel, stride=problem.stride, dilation=problem.dilation, padding=list(problem.crop))
    ranges = [list(a.outputs_of(i)) if forward else list(a.inputs_of(i)) for a, i in zip(spec.axes, at, strict=True)]
    sizes, channels, own = (problem.output, problem.cout, problem.cin) if forward else (problem.size, problem.cin, problem.cout)
    mask = np.zeros((channels, *sizes), bool)
    per, group = channels // problem.groups, channel // (own // problem.groups)
    mask[np.ix_(range(group * per, (group + 1) * per), *ranges)] = True
    return mask


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("problem", PROBED, **by_line)
def test_a_non_finite_element_reaches_what_it_should_and_nothing_else(problem, value):
    rng = np.random.default_rng(5)
    for p in both_layouts(problem):
        judge = Judge(p)
        for operator, source in (("forward", judge.x), ("grad_input", judge.grad)):
            places = list(np.ndindex(source.shape[2:]))
            for at in [places[0], places[-1], *(places[i] for i in rng.integers(len(places), size=4))]:
                n, channel = int(rng.integers(source.shape[0])), int(rng.integers(source.shape[1]))
                kept, source[(n, channel, *at)] = source[(n, channel, *at)], value
                results = {kernel: p.canonical(judge.run(operator, tconv, algorithm=kernel)) for kernel in DIRECT}
                source[(n, channel, *at)] = kept
                for kernel, result in results.items():
                    expected = np.zeros(result.shape, bool)
                    expected[n] = reached(p, at, channel, operator == "forward")
                    np.testing.assert_array_equal(~np.isfinite(result), expected, err_msg=f"{operator} {kernel} {value} at {at} {p}")


@pytest.mark.parametrize("problem", PROBED, **by_line)
def test_a_nan_in_the_gradient_reaches_its_taps_and_no_other_channel(problem):
    """dw[ci, co, t] sums x[n, ci, i] grad[n, co, o]: a NaN in grad reaches the taps t with i * stride + t * dilation = o + lo.

    It may reach other taps of the same channel, where it meets the zeros beyond the border of x; the docstring says so.
    """
    rng = np.random.default_rng(6)
    for p in both_layouts(problem):
        judge = Judge(p)
        met = {}
        for _, t, o in definition.hits(p.size, p.kernel, p.stride, p.dilation, p.crop):
            met.setdefault(o, set()).add(t)
        for at in [(0,) * len(p.size), tuple(n - 1 for n in p.output), *(tuple(map(int, rng.integers(p.output))) for _ in range(4))]:
            channel, per = int(rng.integers(p.cout)), p.cout // p.groups
            kept, judge.grad[(0, channel, *at)] = judge.grad[(0, channel, *at)], np.nan
            result = judge.run("grad_weight", tconv)
            judge.grad[(0, channel, *at)] = kept
            must, may = np.zeros(result.shape, bool), np.zeros(result.shape, bool)
            group = channel // per
            rows = slice(group * p.cin // p.groups, (group + 1) * p.cin // p.groups)
            for t in met.get(at, ()):
                must[(rows, channel % per, *t)] = True
            may[rows, channel % per] = True
            assert np.all(np.isnan(result) >= must) and np.all(np.isnan(result) <= may), f"grad_weight NaN at {at} {p}"


def test_signed_zero_and_subnormals_survive():
    x = np.array([[np.finfo("float32").smallest_subnormal, np.finfo("float32").tiny]], "float32")
    y = tconv.conv_transpose(x, np.array([[[1.0, 2.0]]], "float32"), stride=2)
    np.testing.assert_array_equal(y, [[x[0, 0], 2 * x[0, 0], x[0, 1], 2 * x[0, 1]]])
    with np.errstate(over="raise"):  # what leaves float16's range becomes infinity without a warning
        assert tconv.conv_transpose(np.full((1, 3), 65504, "float16"), np.full((1, 1, 1), 2, "float16"))[0, 0] == np.inf


# ------------------------------------------------------------------------------------------------------------------ Operator, stamp


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@layers
def test_an_operator_runs_both_ways(problem, dtype):
    for p in both_layouts(dataclasses.replace(problem, dtype=dtype)):
        judge = Judge(p)
        operator = tconv.Operator(judge.w, judge.bias, **p.words)
        x, grad = p.arranged(judge.x), p.arranged(judge.grad)
        for _ in range(2):
            judge.check("forward", operator(x), "Operator")
        judge.check("grad_input", operator.T(grad), "Operator")
        out = np.full_like(operator(x), np.nan)
        assert operator(x, out=out) is out
        judge.check("forward", out, "Operator out")


def test_an_operator_serves_any_input_size_and_batch():
    weight = Judge(Problem((5, 6), (4, 3), (2, 2), (1, 1), ((1, 1), (1, 0)), 2, 13, 11, biased=True, seed=7))
    operator = tconv.Operator(weight.w, weight.bias, **weight.problem.words)
    for size, batch in product([(1, 1), (1, 40), (3, 3), (17, 2), (8, 33)], [1, 3]):
        p = dataclasses.replace(weight.problem, size=size, batch=batch)
        x, _, grad, _ = p.arrays()
        judge = Judge(p, (x, weight.w, grad, weight.bias))
        judge.check("forward", operator(judge.x), "Operator")
    judge.check("forward", operator(judge.x), "Operator")


@pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda operator: pickle.loads(pickle.dumps(operator))])
@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
def test_an_operator_survives_pickle_and_copy(remake, dtype):
    judge = Judge(dataclasses.replace(LAYERS[2], dtype=dtype))
    operator = tconv.Operator(judge.w, judge.bias, **judge.problem.words, threads=1)
    x, grad = judge.problem.arranged(judge.x), judge.problem.arranged(judge.grad)
    before = remake(operator)
    expected, back = operator(x), operator.T(grad)
    for other in (before, remake(operator), remake(remake(operator))):
        assert repr(other) == repr(operator)
        assert_same_bits(other(x), expected)
        assert_same_bits(other.T(grad), back)
        assert not other.weight.flags.writeable


def test_an_operator_honours_the_output_size_both_ways():
    """Without output_padding or output_size, 10 and 11 both come from 5: the operator asked for 11."""
    rng = np.random.default_rng(8)
    x, w, grad = rng.normal(size=(2, 3, 5)), rng.normal(size=(3, 2, 4)), rng.normal(size=(2, 2, 11))
    operator = tconv.Operator(w, stride=2, padding=1, output_size=11)
    np.testing.assert_array_equal(operator(x), tconv.conv_transpose(x, w, stride=2, padding=[(1, 0)]))
    np.testing.assert_array_equal(operator.T(grad), tconv.conv_transpose_grad_input(grad, w, 5, stride=2, padding=[(1, 0)]))
    np.testing.assert_allclose((grad * operator(x)).sum(), (operator.T(grad) * x).sum(), rtol=1e-12)
    with pytest.raises(tconv.ArgumentError, match=r"output_size=11: must equal the size of grad, \(10,\)"):
        operator.T(grad[..., 1:])


def test_an_operator_prints_what_it_is():
    text = repr(tconv.Operator(np.ones((2, 3, 4)), np.ones(3), stride=2, output_size=11, threads=3))
    assert text == ("Operator(w(2, 3, 4) float64, bias=True, stride=2, padding=0, output_padding=0, dilation=1, groups=1, "
                    f"layout='channels_first', output_size=11, activation=None, negative_slope=0.01, threads=3, "
                    f"kernel={tconv.kernels()[0]!r})")  # fmt: skip
    assert "bias=False" in repr(tconv.Operator(np.ones((2, 3, 4))))


def test_a_single_kernel_size_means_arrays_with_a_batch_axis():
    """(C, H, W) and (N, C, L) look alike; the length of kernel_size tells them apart."""
    rng = np.random.default_rng(9)
    x, grad = rng.normal(size=(2, 5, 5)), rng.normal(size=(2, 11, 11))
    as_1d, as_2d = (tconv.conv_transpose_grad_weight(x, grad, k, stride=2) for k in ((3,), (3, 3)))
    np.testing.assert_array_equal(tconv.conv_transpose_grad_weight(x, grad, 3, stride=2), as_1d)
    np.testing.assert_allclose(as_1d, np.einsum("nci,nodi->cod", x, np.stack([grad[..., t : t + 9 : 2] for t in range(3)], 2)), rtol=1e-12)
    np.testing.assert_array_equal(as_2d, tconv.conv_transpose_grad_weight(x[None], grad[None], 3, stride=2))


def test_an_operator_owns_its_weights():
    judge = Judge(LAYERS[2])
    operator = tconv.Operator(judge.w, judge.bias, **judge.problem.words)
    expected = operator(judge.x)
    judge.w[...] = np.nan
    judge.bias[...] = np.nan
    assert_same_bits(operator(judge.x), expected)
    with pytest.raises((AttributeError, TypeError)):
        operator.kernel = "other"


@pytest.mark.parametrize("x", [SEED_X, SEED_X.astype("float32"), SEED_X.astype(int), SEED_X.astype("uint8"), SEED_X.tolist(), SEED_X > 0.5])
def test_stamp(x):
    y = tconv.stamp(x, SEED_KERNEL if not isinstance(x, np.ndarray) or x.dtype != np.float32 else SEED_KERNEL.astype("float32"))
    assert y.dtype == (np.float32 if isinstance(x, np.ndarray) and x.dtype == np.float32 else np.float64)
    ones = definition.conv_transpose(np.asarray(x, float)[None, None], SEED_KERNEL[None, None], (1, 1), (1, 1), ((0, 0), (0, 0)), 1)[0, 0]
    np.testing.assert_array_equal(y, ones)


@pytest.mark.parametrize("seed", range(60))
def test_stamp_takes_the_words_of_the_layer(seed):
    p = dataclasses.replace(random_problem(seed), batch=1, cin=1, cout=1, groups=1, dtype="float64", biased=False)
    judge = Judge(p)
    y = tconv.stamp(judge.x[0, 0], judge.w[0, 0], stride=p.stride, padding=list(p.crop), dilation=p.dilation)
    expected, magnitude = judge.expected("forward")
    definition.assert_close(y, expected[0, 0], magnitude[0, 0], p.terms["forward"], "float64", p)


def test_stamp_gives_the_sizes_of_the_textbook():
    x, kernel = np.arange(16.0).reshape(4, 4), np.arange(1.0, 10.0).reshape(3, 3)
    full = tconv.stamp(x, kernel, stride=2)
    assert full.shape == (9, 9)
    np.testing.assert_array_equal(tconv.stamp(x, kernel, stride=2, padding="same"), full[:8, :8])
    np.testing.assert_array_equal(tconv.stamp(x, kernel, stride=2, padding=1, output_padding=1), full[1:9, 1:9])
    np.testing.assert_array_equal(tconv.stamp([1, 2], [1, 10, 100], stride=2), [1, 10, 102, 20, 200])


def test_sizes_that_lack_phases_have_their_own_weights():
    """A short row lacks phases, by the crop: what was packed for another size would be another order, or have other taps."""
    rng = np.random.default_rng(4)
    for kernel, cin, words, sizes in (
        ((2, 4, 2), 5, {"stride": (4, 2, 20), "padding": ((3, 0), (0, 0), (15, 0))}, ((3, 3, 3), (3, 3, 2))),
        ((5, 2), 2, {"stride": 13, "padding": ((24, -2), (7, 0))}, ((6, 30), (9, 2))),
        ((3, 4), 3, {"stride": (2, 6), "padding": ((0, 0), (-2, -2)), "groups": 3}, ((4, 1), (4, 40))),
        ((2, 6), 3, {"stride": (2, 3), "dilation": (1, 2), "padding": ((0, 0), (0, 2)), "groups": 3}, ((3, 2), (3, 1))),
        ((3, 2), 2, {"stride": (1, 20), "padding": ((0, 0), (5, 5))}, ((3, 2), (3, 5))),
    ):
        w = rng.standard_normal((cin, 1, *kernel), np.float32)
        for order in (sizes, sizes[::-1]):
            operator = tconv.Operator(w, **words)
            for size in order:
                x = rng.standard_normal((1, cin, *size), np.float32)
                expected = tconv.conv_transpose(x.astype(float), w.astype(float), **words, algorithm="positions_scalar")
                np.testing.assert_allclose(operator(x), expected, atol=1e-4)
