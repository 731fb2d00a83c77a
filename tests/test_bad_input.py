# SPDX-License-Identifier: Apache-2.0
"""What bad input gets: one exception that names argument, value, rule and problem, at once; and the core never crashes."""

import re
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import tconv
from tconv import ArgumentError, _core, reference

X, W = np.ones((2, 4, 5, 6), "float32"), np.ones((4, 3, 3, 3), "float32")
GRAD, BIAS = np.ones((2, 3, 7, 8), "float32"), np.ones(3, "float32")
LINE = "n2 c4:3 i5x6 k3"

forward = tconv.conv_transpose
grad_input = tconv.conv_transpose_grad_input
grad_weight = tconv.conv_transpose_grad_weight


def operator(x, w, bias=None, **words):
    """The prepared form, called like the function."""
    out = words.pop("out", None)
    return tconv.Operator(w, bias, **words)(x, out=out)


# Every call with good arguments, to be spoilt one at a time: (call, positional arguments, argument names).
CALLS = {"forward": (forward, {"x": X, "w": W}), "Operator": (operator, {"x": X, "w": W}),
         "grad_input": (grad_input, {"grad": GRAD, "w": W}),
         "grad_weight": (grad_weight, {"x": X, "grad": GRAD, "kernel_size": (3, 3)})}  # fmt: skip
every_call = pytest.mark.parametrize("name", CALLS)
ARRAYS = [(name, argument) for name, (_, given) in CALLS.items() for argument in given if argument != "kernel_size"]
every_array = pytest.mark.parametrize(("name", "argument"), ARRAYS)


def call(name, **changes):
    run, given = CALLS[name]
    arrays = {k: changes.pop(k, v) for k, v in given.items()}
    return run(*arrays.values(), **changes)


def refusal(run, *arguments, **words):
    """The ArgumentError that a call raises, at once, and whose text holds its parts."""
    started = time.monotonic()
    with pytest.raises(ArgumentError) as caught:
        run(*arguments, **words)
    assert time.monotonic() - started < 2, "took long to refuse"
    error = caught.value
    where = "" if error.problem is None else f" [problem: {error.problem}]"
    assert str(error) == f"{error.argument}={error.value!r}: {error.rule}{where}"
    assert len(str(error)) < 1000, "an array's values in the message"
    return error


# ------------------------------------------------------------------------------------------------------------------------ arrays


@every_array
@pytest.mark.parametrize("value", [None, "abc", object(), {}, np.float32(3)], ids=repr)
def test_what_is_no_array(name, argument, value):
    assert refusal(call, name, **{argument: value}).argument == argument


DTYPES = ["int32", "uint8", "bool", "complex64", "complex128", "object", "longdouble", "S4", "U4", "datetime64[s]", "f4,f4",
          ml_dtypes.float8_e4m3fn, ml_dtypes.int4]  # fmt: skip


@every_call
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_a_dtype_that_no_operator_takes(name, dtype):
    arrays = {k: np.zeros(v.shape, dtype) for k, v in CALLS[name][1].items() if k != "kernel_size"}
    error = refusal(call, name, **arrays)
    assert error.argument in arrays
    for known in ("float64", "float32", "float16", "bfloat16"):
        assert known in error.rule


@every_array
@pytest.mark.parametrize("dtype", ["float64", "float16", ml_dtypes.bfloat16, "int64"], ids=lambda d: np.dtype(d).name)
def test_mixed_dtypes(name, argument, dtype):
    """The two arrays must match: nobody wants a float32 layer to turn float64 because of one constant."""
    second = {"forward": "w", "Operator": "x", "grad_input": "w", "grad_weight": "grad"}[name]  # must have the dtype of the first
    error = refusal(call, name, **{argument: CALLS[name][1][argument].astype(dtype)})
    assert error.argument == (argument if dtype == "int64" else second)


@every_array
def test_a_wrong_rank(name, argument):
    array = CALLS[name][1][argument]
    for wrong in (array.ravel(), array[0, 0], array[None, None], np.float32(1).reshape(())):
        assert refusal(call, name, **{argument: wrong}).argument == argument


@pytest.mark.parametrize(("name", "changes", "argument"), [
    ("forward", {"x": X[:, :3]}, "x"), ("forward", {"x": np.moveaxis(X, 1, -1)}, "x"),
    ("forward", {"x": X, "layout": "channels_last"}, "x"),
    ("Operator", {"x": X[:, :3]}, "x"), ("grad_input", {"grad": GRAD[:, :2]}, "grad"), ("grad_weight", {"grad": GRAD[:1]}, "grad"),
    ("grad_weight", {"grad": GRAD[0]}, "grad"), ("grad_weight", {"grad": GRAD[..., 1:]}, "grad"),
])  # fmt: skip
def test_arrays_that_do_not_fit_together(name, changes, argument):
    error = refusal(call, name, **changes)
    assert error.argument == argument


@pytest.mark.parametrize(("bias", "rule"), [(np.ones(4, "float32"), "(3,)"), (np.ones((3, 1), "float32"), "(3,)"), (np.ones(3), "float32"),
                                            (np.float32(1), "(3,)"), ("abc", ""), (np.ones(3, "complex64"), "")])  # fmt: skip
@pytest.mark.parametrize("name", ["forward", "Operator"])
def test_a_wrong_bias(name, bias, rule):
    error = refusal(call, name, bias=bias)
    assert error.argument == "bias"
    assert rule in error.rule


def test_a_wrong_bias_names_the_problem():
    texts = {str(refusal(run, X, W, np.ones(4, "float32"))) for run in (forward, reference.conv_transpose)}
    assert texts == {"bias=(4,): must have the shape (3,), one value per output channel [problem: n2 c4:3 i5x6 k3]"}


@pytest.mark.parametrize("run", [forward, grad_input, reference.conv_transpose, reference.conv_transpose_grad_input])
def test_a_ragged_list(run):
    assert refusal(run, [[1.0, 2.0], [3.0]], W).argument in ("x", "grad")
    assert refusal(run, X, [[1.0, 2.0], [3.0]]).argument == "w"


# ------------------------------------------------------------------------------------------------------------------------- numbers


NUMBERS = [("stride", 0), ("stride", -1), ("stride", 1.5), ("stride", "2"), ("stride", (1, 2, 3)), ("stride", None), ("stride", np.nan),
           ("dilation", 0), ("dilation", (1, -1)), ("dilation", 2.0), ("groups", 0), ("groups", -1), ("groups", 1.0),
           ("groups", (1, 1)), ("padding", "sane"), ("padding", 1.5), ("padding", (1, 2, 3)), ("padding", [(1, 2, 3), 0]),
           ("padding", None), ("output_padding", -1), ("output_padding", 1), ("output_padding", (0, 1)), ("output_padding", 0.5),
           ("layout", "NCHW"), ("layout", None), ("threads", 0), ("threads", -2), ("threads", 1.5), ("algorithm", "fast"), ("stride", {1, 2}), ("stride", {1: 2, 2: 1}), ("padding", {0, 1}),
           ("algorithm", ["auto"]), ("layout", ["channels_first"])]  # fmt: skip


@every_call
@pytest.mark.parametrize(("argument", "value"), NUMBERS, ids=str)
def test_a_bad_number_is_named(name, argument, value):
    error = refusal(call, name, **{argument: value})
    assert error.argument == argument
    assert repr(error.value) in str(error)


@pytest.mark.parametrize("argument", ["stride", "dilation", "groups", "padding"])
@every_call
def test_a_float_is_refused_after_the_same_integer(name, argument):
    """1.0 == 1 and hash(1.0) == hash(1): a cache of plans must not let history decide."""
    value = 0 if argument == "padding" else 1
    for integer, wrong in ((value, float(value)), ((value, value), (value, float(value)))):
        call(name, **{argument: integer if argument != "groups" else 1})
        assert refusal(call, name, **{argument: wrong}).argument == argument


@pytest.mark.parametrize(("words", "argument", "text"), [
    ({"groups": 3}, "groups", "groups=3: must divide in_channels=4 [problem: n2 c4:9 g3 i5x6 k3]"),
    ({"padding": 5}, "padding", "padding=(5, 5): crops the full output of 7 to -3; at least 1 must remain [problem: n2 c4:3 i5x6 k3 p5]"),
    ({"padding": [(7, 0), 0]}, "padding",
     "padding=(7, 0): crops the full output of 7 to 0; at least 1 must remain [problem: n2 c4:3 i5x6 k3 p7:0x0]"),
    ({"stride": (2, 0)}, "stride", "stride=(2, 0): must be at least 1"),
    ({"output_padding": 1}, "output_padding",
     "output_padding=1: must be at least 0 and below max(stride, dilation) = 1 [problem: i5x6 k3]"),
    ({"output_size": (7, 9)}, "output_size", "output_size=9: must lie in [8, 8] for this stride and padding [problem: i6 k3]"),
])  # fmt: skip
def test_the_text(words, argument, text):
    assert str(refusal(call, "forward", **words)) == text
    assert refusal(call, "Operator", **words).argument == argument  # without the line: it may be refused before an input is known


def test_the_number_of_threads_for_all_calls_is_named_as_its_function_names_it():
    for n in (0, -1, 1025, 1.5, "2"):
        assert refusal(tconv.set_num_threads, n).argument == "n"


def test_a_pair_for_one_axis_goes_inside_a_list():
    error = refusal(forward, X[..., 0], W[..., 0], padding=(1, 0))
    assert error.argument == "padding"
    assert error.rule.endswith("here 1; a (lo, hi) pair goes inside a list: [(1, 0)]")
    assert "inside a list" not in refusal(forward, X, W, padding=(1, 0, 1)).rule


@pytest.mark.parametrize(("words", "argument"), [
    ({"layout": "NCHW"}, "layout"), ({"output_size": 1.5}, "output_size"), ({"output_size": (1, 2, 3)}, "output_size"),
    ({"output_size": (0, 7)}, "output_size"), ({"output_size": (13, 14), "stride": 2, "output_padding": 1}, "output_size"),
    ({"output_size": (7, 8), "stride": 0}, "stride"), ({"output_size": (7, 8), "groups": 3}, "groups"),
    ({"output_size": (7, 8), "padding": "sane"}, "padding"), ({"output_size": (7, 8), "dilation": (1, -1)}, "dilation"),
], ids=str)  # fmt: skip
def test_an_operator_refuses_wrong_words_when_it_is_made(words, argument):
    assert refusal(tconv.Operator, W, **words).argument == argument


def test_an_operator_is_made_where_a_large_crop_leaves_something():
    """The crop alone does not tell that the output would be too large: a single input may be meant."""
    words = {"stride": 10**12, "padding": [(1, 10**12 - 3)]}
    y = tconv.Operator(np.array([[[5.0, 7.0]]]), **words)(np.array([[2.0, 3.0]]))
    np.testing.assert_array_equal(y, [[14.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("kernel_size", [W.shape, (), (3,) * 4])
def test_a_kernel_size_of_a_wrong_length(kernel_size):
    assert refusal(grad_weight, X, GRAD, kernel_size).argument == "kernel_size"


@pytest.mark.parametrize("name", ["forward", "Operator", "grad_weight"])
def test_groups_that_do_not_divide(name):
    error = refusal(call, name, groups=3)
    assert (error.argument, error.rule) == ("groups", "must divide in_channels=4")


@pytest.mark.parametrize("shape", [(2, 4, 0, 6), (2, 4, 5, 0), (0, 4, 0, 6)])
def test_a_size_of_zero(shape):
    assert refusal(forward, np.ones(shape, "float32"), W).argument == "input_size"
    assert refusal(forward, X, np.ones((4, 3, 0, 3), "float32")).argument == "kernel_size"
    assert refusal(tconv.Operator, np.ones((4, 3, 0, 3), "float32")).argument in ("kernel_size", "w")
    assert refusal(grad_input, GRAD, W, (0, 6)).argument == "input_size"
    assert refusal(grad_weight, X, GRAD, (0, 3)).argument == "kernel_size"


def test_no_channels():
    assert refusal(forward, X[:, :0], W[:0]).argument in ("in_channels", "w", "x")
    assert refusal(forward, X, W[:, :0]).argument in ("out_channels", "w")


@pytest.mark.parametrize("misspelt", ["strides", "pad", "data_format"])
@every_call
def test_a_misspelt_keyword_is_pythons_own_error(name, misspelt):
    with pytest.raises(TypeError):
        call(name, **{misspelt: 1})


def test_geometry_is_keyword_only():
    calls = [(forward, X, W, None), (grad_input, GRAD, W, None), (grad_weight, X, GRAD, 3), (tconv.Operator, W, None)]
    for run, *arguments in calls:
        with pytest.raises(TypeError):
            run(*arguments, 2)


# ------------------------------------------------------------------------------------------------------------------------ too large


SMALL, ONE = np.ones((1, 1, 2, 2), "float32"), np.ones((1, 1, 2, 2), "float32")


@pytest.mark.parametrize("words", [{"stride": 10**9}, {"stride": 10**7}, {"stride": 2**31}, {"stride": 2**62}, {"dilation": 10**9},
                                   {"dilation": 2**63}, {"padding": -(10**9)}, {"padding": [(0, -(2**62)), 0]}, {"stride": 10**30},
                                   {"stride": 10**9, "output_padding": 10**9 - 1}, {"padding": -(10**40)}], ids=str)  # fmt: skip
@pytest.mark.parametrize("run", [forward, operator])
def test_sizes_beyond_memory_are_refused_before_allocation(run, words):
    error = refusal(run, SMALL, ONE, **words)
    assert re.search("memory|64 bits", error.rule)


def test_a_huge_stride_whose_output_is_small_is_computed():
    """The size of the result decides, not the number of stride phases that the crop leaves empty."""
    x, w = np.array([[2.0, 3.0]]), np.array([[[5.0, 7.0]]])
    for stride in (10**6, 10**9, 10**12):
        started = time.monotonic()
        y = forward(x, w, stride=stride, padding=[(1, stride - 3)])
        np.testing.assert_array_equal(y, [[14.0, 0.0, 0.0, 0.0]])
        dx = grad_input(np.array([[1.0, 10.0, 100.0, 1000.0]]), w, 2, stride=stride, padding=[(1, stride - 3)])
        np.testing.assert_array_equal(dx, [[7.0, 0.0]])
        dw = grad_weight(x, np.array([[1.0, 10.0, 100.0, 1000.0]]), 2, stride=stride, padding=[(1, stride - 3)])
        np.testing.assert_array_equal(dw, [[[0.0, 2.0]]])
        assert time.monotonic() - started < 2


def test_gradients_beyond_memory():
    assert re.search("memory|64 bits|lie in", refusal(grad_input, SMALL, ONE, (10**8, 10**8), padding=10**8).rule)
    assert re.search("memory|64 bits", refusal(grad_input, SMALL, ONE, 10**9, padding=[(0, 10**9 - 1)] * 2).rule)
    assert re.search("memory|64 bits", refusal(grad_weight, SMALL, SMALL, 10**9, padding=[(0, 10**9 - 1)] * 2).rule)
    assert refusal(grad_input, SMALL, ONE, 2**70).argument in ("input_size", "grad", "input shape")
    assert refusal(grad_weight, SMALL, SMALL, 2**70).argument in ("kernel_size", "grad", "weight shape", "input_size")


def test_an_output_that_a_broadcast_view_makes_too_large():
    """A view can name terabytes that do not exist; what it would give cannot be allocated."""
    huge = np.broadcast_to(np.float32(1), (1, 1, 2**22, 2**22))
    assert re.search("memory|64 bits", refusal(forward, huge, ONE).rule)
    assert re.search("memory|64 bits", refusal(grad_weight, SMALL, huge, (2**22 - 1, 2**22 - 1)).rule)


# ------------------------------------------------------------------------------------------------------------------------------ out


SHAPES = {"forward": GRAD.shape, "Operator": GRAD.shape, "grad_input": X.shape, "grad_weight": W.shape}


@every_call
def test_out_that_does_not_fit(name):
    shape = SHAPES[name]
    for out in (np.zeros(shape[::-1], "float32"), np.zeros(shape[1:], "float32"), np.zeros((*shape, 1), "float32"), np.zeros((), "float32"),
                np.zeros((shape[0] + 1, *shape[1:]), "float32"), np.zeros(shape), np.zeros(shape, "float16"), np.zeros(shape, ">f4"),
                np.zeros(shape, "float32").tolist(), "out", 3):  # fmt: skip
        assert refusal(call, name, out=out).argument == "out"
    right = np.zeros(shape, "float32")
    right.setflags(write=False)
    error = refusal(call, name, out=right)
    assert error.argument == "out"
    assert re.search("read-only|writ", error.rule)
    assert not right.any()


@every_call
def test_the_message_about_out_names_the_problem(name):
    error = refusal(call, name, out=np.zeros((1, 2, 3), "float32"))
    assert error.problem == LINE
    assert str(SHAPES[name]) in error.rule


@pytest.mark.parametrize(("name", "argument"), [a for a in ARRAYS if a != ("Operator", "w")])  # an Operator keeps a copy of w
def test_out_that_overlaps_an_input(name, argument):
    """Through the same memory, shifted by some elements, and through a reversed view."""
    array, shape = CALLS[name][1][argument], SHAPES[name]
    need = max(array.size, int(np.prod(shape)))
    pool = np.ones(2 * need, "float32")
    given = pool[: array.size].reshape(array.shape)
    for start in (0, 5, array.size - 1):
        out = pool[start : start + int(np.prod(shape))].reshape(shape)
        for view in (out, out[..., ::-1]):
            error = refusal(call, name, **{argument: given}, out=view)
            assert error.argument == "out"
            assert "overlap" in error.rule
    apart = pool[array.size : array.size + int(np.prod(shape))].reshape(shape)
    assert call(name, **{argument: given}, out=apart) is apart


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_out_of_an_empty_batch(layout):
    """An array without elements overlaps nothing, whatever its strides."""
    x, grad = (np.ascontiguousarray(np.moveaxis(a[:0], 1, -1)) if layout == "channels_last" else a[:0] for a in (X, GRAD))
    op = tconv.Operator(W, BIAS, layout=layout)
    for run in (lambda out: forward(x, W, BIAS, layout=layout, out=out), lambda out: op(x, out=out)):
        out = np.empty(grad.shape, "float32")
        assert run(out) is out
    for run in (lambda out: grad_input(grad, W, layout=layout, out=out), lambda out: op.T(grad, out=out)):
        out = np.empty(x.shape, "float32")
        assert run(out) is out
    dw = np.full(W.shape, np.nan, "float32")
    assert grad_weight(x, grad, (3, 3), layout=layout, out=dw) is dw
    np.testing.assert_array_equal(dw, np.zeros(W.shape))


def test_out_that_overlaps_the_bias():
    pool = np.ones(GRAD.size, "float32")
    out = pool.reshape(GRAD.shape)
    assert refusal(forward, X, W, pool[3:6], out=out).argument == "out"


@every_call
def test_out_that_overlaps_itself(name):
    shape = SHAPES[name]
    base = np.zeros(int(np.prod(shape)), "float32")
    contiguous = np.zeros(shape, "float32").strides
    for strides in ((0, *contiguous[1:]), (*contiguous[:-1], 0), (4,) * len(shape), (*contiguous[:-2], 4, 4)):
        out = as_strided(base, shape, strides)
        error = refusal(call, name, out=out)
        assert error.argument == "out"
        assert re.search("overlap|itself|once", error.rule)
        assert not base.any()


# --------------------------------------------------------------------------------------------------------------- odd but legitimate


def test_unaligned_and_byte_swapped_arrays_are_right_or_refused():
    packed = np.zeros(X.size, dtype=[("flag", "i1"), ("value", "f4")])["value"].reshape(X.shape)
    packed[...] = X
    shifted = np.frombuffer(b"\0" + X.tobytes(), "i1")[1:].view("i1")[: X.nbytes].copy()
    odd = np.zeros(X.nbytes + 1, "i1")[1:].view("float32").reshape(X.shape)
    odd[...] = shifted.view("float32").reshape(X.shape)
    for x in (packed, odd, X.astype(">f4")):
        try:
            y = forward(x, W)
        except ArgumentError as error:
            assert error.argument == "x"
        else:
            np.testing.assert_array_equal(y, forward(X, W))


WORDS = st.one_of(st.integers(-3, 4), st.none(), st.floats(), st.text(max_size=3), st.lists(st.integers(-2, 3), max_size=3),
                  st.lists(st.lists(st.integers(-4, 4), max_size=3), max_size=3),
                  st.sampled_from(["same", "valid", 1.0, 10**9, -(10**12)]))  # fmt: skip
NAMES = st.sampled_from(["stride", "padding", "output_padding", "dilation", "groups", "layout", "threads"])


@settings(max_examples=300)
@given(st.dictionaries(NAMES, WORDS, max_size=3), st.sampled_from(sorted(CALLS)), st.one_of(WORDS, st.just((3, 3))), WORDS)
def test_any_words_give_the_reference_or_an_argument_error(words, name, kernel_size, input_size):
    extra = {"kernel_size": kernel_size} if name == "grad_weight" else {"input_size": input_size} if name == "grad_input" else {}
    try:
        result = call(name, **words, **extra)
    except ArgumentError:
        return
    words.pop("threads", None)
    run = {"forward": reference.conv_transpose, "Operator": reference.conv_transpose, "grad_input": reference.conv_transpose_grad_input,
           "grad_weight": reference.conv_transpose_grad_weight}[name]  # fmt: skip
    arrays = {k: extra.pop(k, v) for k, v in CALLS[name][1].items()}
    # The reference holds the full output, which a dilation of 10**9 makes larger than any memory; the core only what the crop leaves.
    assume(words.get("dilation") != 10**9)
    np.testing.assert_allclose(result, run(*arrays.values(), **words, **extra), rtol=1e-5)


def test_a_dilation_beyond_any_memory_with_the_same_padding():
    """Only the middle tap of an odd kernel reaches an output of the input's size."""
    y = tconv.conv_transpose(X, W, dilation=10**9, padding="same")
    np.testing.assert_allclose(y, np.einsum("nihw,io->nohw", X, W[:, :, 1, 1]), rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- the core, directly


def problem(**changes):
    """Good arguments of the core's own `Problem` (X, W, GRAD above), with some of them spoilt."""
    return _core.Problem(**{"batch": 2, "in_channels": 4, "out_channels": 3, "groups": 1, "size": [5, 6], "kernel": [3, 3],
                            "stride": [1, 1], "dilation": [1, 1], "crop": [(0, 0), (0, 0)], "channels_last": False,
                            "batched": True} | changes)  # fmt: skip


REFUSED = (ValueError, TypeError, OverflowError, MemoryError)
KERNEL = tconv.kernels()[0]


@pytest.mark.parametrize("changes", [
    {"batch": -1}, {"in_channels": 0}, {"out_channels": -1}, {"groups": 0}, {"groups": 2}, {"groups": -1}, {"size": [5]}, {"size": []},
    {"size": [5, 6, 7]}, {"size": [0, 6]}, {"kernel": [3]}, {"kernel": [3, -3]}, {"stride": [0, 1]}, {"stride": []}, {"dilation": [1, 0]},
    {"crop": [(0, 0)]}, {"crop": [(7, 0), (0, 0)]}, {"crop": [(2**62, -(2**62)), (0, 0)]}, {"crop": [(-(2**62), 0), (0, 0)]},
    {"stride": [2**62, 1]}, {"stride": [2**40, 2**40]}, {"dilation": [2**62, 2**62]}, {"size": [2**40, 2**40]}, {"batch": 2**62},
    {"kernel": [2**40, 2**40]}, {"in_channels": 2**40, "out_channels": 2**40}, {"size": [2**64, 1]}, {"crop": [(-(2**60),) * 2] * 2},
    {"size": "ab"}, {"batch": None}, {"batched": False}, {"size": [1] * 4, "kernel": [1] * 4, "stride": [1] * 4, "dilation": [1] * 4},
], ids=str)  # fmt: skip
def test_the_core_refuses_a_meaningless_problem(changes):
    with pytest.raises(REFUSED):
        problem(**changes)


@pytest.mark.parametrize(
    "name", ["", "avx9000", "auto", "direct", "direct_", "direct_AVX2", "fast_" + KERNEL.split("_")[1], "_", "x" * 10_000]
)
def test_the_core_refuses_an_unknown_kernel(name):
    w = W.copy()
    for run in (lambda: _core.Stencil(problem(), True, "float32", name, 1), lambda: _core.grad_weight(problem(), name, X, GRAD, w, 1)):
        with pytest.raises(REFUSED):
            run()


def spoilt(array):
    """Arrays that are not what the core was promised."""
    yield from (array[:-1], array[..., :-1], array[None], array.astype("float64"), array.astype("int32"), None, "abc", 3.0,
                array.tolist(), array[:0], np.float32(1), array.astype("float16"))  # fmt: skip
    if array.ndim > 1:
        yield from (array.T, array[0], array.ravel())


def test_the_core_refuses_arrays_that_do_not_fit():
    for is_forward, source, target in ((True, X, GRAD), (False, GRAD, X)):
        stencil = _core.Stencil(problem(), is_forward, "float32", KERNEL, 1)
        packed = np.zeros(stencil.weight_elements, "float32")
        stencil.pack(W, packed)
        read_only = target.copy()
        read_only.setflags(write=False)
        good = {"x": source, "packed": packed, "bias": None, "out": target.copy()}
        stencil.run(**good)
        for name, array in (("x", source), ("packed", packed), ("out", target)):
            for wrong in (*spoilt(array), *([read_only] if name == "out" else [])):
                with pytest.raises(REFUSED):
                    stencil.run(**{**good, name: wrong})
        for wrong in (*spoilt(BIAS), BIAS[::-1], *([] if is_forward else [BIAS])):
            if wrong is not None:
                with pytest.raises(REFUSED):
                    stencil.run(**{**good, "bias": wrong})
        for weight, to in (*((wrong, packed) for wrong in spoilt(W)), *((W, wrong) for wrong in spoilt(packed)), (W, packed[::-1])):
            with pytest.raises(REFUSED):
                stencil.pack(weight, to)


def test_the_core_refuses_gradients_that_do_not_fit():
    good = {"problem": problem(), "kernel": KERNEL, "x": X, "dy": GRAD, "grad": W.copy(), "threads": 1}
    _core.grad_weight(**good)
    read_only = W.copy()
    read_only.setflags(write=False)
    for name, array in (("x", X), ("dy", GRAD), ("grad", W)):
        for wrong in (*spoilt(array), *([read_only] if name == "grad" else [])):
            with pytest.raises(REFUSED):
                _core.grad_weight(**{**good, name: wrong})
    with pytest.raises(REFUSED):
        _core.grad_weight(**{**good, "problem": problem(crop=[(1, 0), (0, 0)])})


def test_the_core_takes_any_number_of_threads():
    expected = forward(X, W, threads=1)
    for threads in (-(2**31), -1, 0, 1, 64):
        stencil = _core.Stencil(problem(), True, "float32", KERNEL, threads)
        packed, out = np.zeros(stencil.weight_elements, "float32"), np.zeros_like(GRAD)
        stencil.pack(W, packed)
        stencil.run(X, packed, None, out)
        np.testing.assert_array_equal(out, expected)
