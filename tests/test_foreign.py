# SPDX-License-Identifier: Apache-2.0
"""Arrays of another library, by DLPack: which library is none of NumPy's business, so one of ours stands for all of them here."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

import tconv
from tconv import _foreign


class Array:
    """An array of a library that has no NumPy in it: memory, a device, and its namespace."""

    requires_grad = False

    def __init__(self, memory, device=(1, 0)):
        self.memory, self.device, self.dtype = memory, device, memory.dtype

    def __dlpack__(self, **words):
        return self.memory.__dlpack__(**words)

    def __dlpack_device__(self):
        if isinstance(self.device, Exception):
            raise self.device
        return self.device

    def __array_namespace__(self):
        return LIBRARY


class Other(Array):
    def __array_namespace__(self):
        return SimpleNamespace(__name__="other", from_dlpack=Other)


LIBRARY = SimpleNamespace(__name__="library.arrays", from_dlpack=Array)

RNG = np.random.default_rng(0)
X, W, BIAS = RNG.standard_normal((2, 3, 5, 4)), RNG.standard_normal((3, 2, 4, 3)), RNG.standard_normal(2)
WORDS = {"stride": 2, "padding": (1, 0)}
Y = tconv.conv_transpose(X, W, **WORDS)
GRAD = RNG.standard_normal(Y.shape)


def same(result, expected):
    assert type(result) is Array
    np.testing.assert_array_equal(result.memory, expected)
    assert result.memory.ctypes.data % 64 == 0, "else JAX copies it, and TensorFlow ends the process"


def test_the_layer_and_its_gradients_come_back_as_they_went():
    x, w, bias, grad = map(Array, (X, W, BIAS, GRAD))
    same(tconv.conv_transpose(x, w, bias, **WORDS), tconv.conv_transpose(X, W, BIAS, **WORDS))
    same(tconv.conv_transpose(x, w, activation="tanh", **WORDS), tconv.conv_transpose(X, W, activation="tanh", **WORDS))
    same(tconv.conv_transpose_grad_input(grad, w, (5, 4), **WORDS), tconv.conv_transpose_grad_input(GRAD, W, (5, 4), **WORDS))
    same(tconv.conv_transpose_grad_weight(x, grad, (4, 3), **WORDS), tconv.conv_transpose_grad_weight(X, GRAD, (4, 3), **WORDS))
    found, expected = (tconv.conv_transpose_grads(*a, **WORDS) for a in ((x, w, grad), (X, W, GRAD)))
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)
    assert tconv.conv_transpose_grads(x, w, grad, grads=("bias",), **WORDS).input is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_dtype(dtype):
    x, w = X.astype(dtype), W.astype(dtype)
    result = tconv.conv_transpose(Array(x), Array(w), **WORDS)
    same(result, tconv.conv_transpose(x, w, **WORDS))
    assert result.memory.dtype == dtype


def test_an_operator_answers_in_the_language_it_is_asked_in():
    for op in (tconv.Operator(W, BIAS, **WORDS), tconv.Operator(Array(W), Array(BIAS), **WORDS)):
        expected = tconv.conv_transpose(X, W, BIAS, **WORDS)
        same(op(Array(X)), expected)
        same(op.T(Array(GRAD), (5, 4)), tconv.conv_transpose_grad_input(GRAD, W, (5, 4), **WORDS))
        assert type(op(X)) is np.ndarray and np.array_equal(op(X), expected)


def test_memory_is_read_where_it_lies_with_strides_and_read_only():
    x = np.asfortranarray(X)[:, :, ::-1]
    assert np.shares_memory(_foreign.read("x", Array(x)), x)
    same(tconv.conv_transpose(Array(x), Array(W), **WORDS), tconv.conv_transpose(x, W, **WORDS))
    result = _foreign.aligned((3, 4), np.dtype(np.float32))
    assert np.shares_memory(_foreign.home({"x": Array(X)}, None)(result).memory, result)


def test_results_are_aligned_whatever_their_size():
    for shape in ((), (0,), (1,), (7, 3), (1000, 33)):
        for dtype in (np.float32, np.float64, np.float16):
            array = _foreign.aligned(shape, np.dtype(dtype))
            assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable
            assert array.size == 0 or array.ctypes.data % 64 == 0


def test_a_call_asks_for_the_memory_of_its_result_once():
    """What comes from the system anew each time begins at a large page."""
    x, w = np.ones((1, 4, 128, 128), np.float32), np.ones((4, 16, 2, 2), np.float32)
    for call in (lambda: tconv.conv_transpose(x, w, stride=2), lambda: tconv.Operator(w, stride=2)(x)):
        call()
        tracemalloc.start()
        size = call().nbytes
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size <= peak < 1.1 * size
    assert _foreign.aligned((32 << 20,), np.dtype(np.uint8)).ctypes.data % (2 << 20) == 0


@pytest.mark.parametrize(
    ("device", "where"), [((2, 0), "cuda:0"), ((2, 3), "cuda:3"), ((8, 0), "metal:0"), ((99, 1), "DLPack device 99:1")]
)
def test_an_array_on_another_device_is_refused_by_the_name_of_it(device, where):
    array = Array(X, device)
    for call in (lambda: tconv.conv_transpose(array, Array(W)), lambda: tconv.Operator(array), lambda: tconv.Operator(W)(array),
                 lambda: tconv.conv_transpose_grad_weight(Array(X), array, 3)):  # fmt: skip
        with pytest.raises(tconv.ArgumentError, match=rf"^\w+='test_foreign.Array on {where}': must lie in the CPU's memory"):
            call()


def test_pinned_memory_is_the_cpus():
    same(tconv.conv_transpose(Array(X, (3, 0)), Array(W), **WORDS), Y)


def test_a_tensor_that_requires_grad_is_refused_and_told_where_to_go():
    x = Array(X)
    x.requires_grad = True
    for call in (lambda: tconv.conv_transpose(x, Array(W)), lambda: tconv.Operator(W, **WORDS)(x), lambda: tconv.Operator(x)):
        with pytest.raises(tconv.ArgumentError, match=r"requires grad, and gradients would be lost here: use tconv.torch"):
            call()


@pytest.mark.parametrize(("arrays", "blamed"), [
    ((Array(X), W, None), "w"), ((X, Array(W), None), "x"), ((X, W, Array(BIAS)), "x"), ((Array(X), Array(W), BIAS), "bias"),
    ((Array(X), Other(W), None), "w"), ((Array(X), W.tolist(), None), "w"),
])  # fmt: skip
def test_a_mixture_of_libraries_is_refused(arrays, blamed):
    with pytest.raises(tconv.ArgumentError, match=r"must be an array of library, as \w+ is: all arrays of a call come from one") as caught:
        tconv.conv_transpose(*arrays, **WORDS)
    assert caught.value.argument == blamed


def test_what_cannot_be_read_is_refused_with_the_librarys_words():
    with pytest.raises(tconv.ArgumentError, match=r"x='test_foreign.Array': has no values to read: it is traced"):
        tconv.conv_transpose(Array(X, RuntimeError("it is traced\nand more")), Array(W))
    broken = Array(X)
    broken.__class__ = type("Broken", (Array,), {"__dlpack__": lambda self, **words: 1 / 0})
    with pytest.raises(tconv.ArgumentError, match="cannot be read through DLPack: division by zero"):
        tconv.conv_transpose(broken, Array(W))
    with pytest.raises(tconv.ArgumentError, match="must be None for arrays of library, whose results are new arrays"):
        tconv.conv_transpose(Array(X), Array(W), out=np.empty(Y.shape), **WORDS)
    with pytest.raises(tconv.ArgumentError, match="must be an array of float32"):
        tconv.conv_transpose(Array(X.astype(int)), Array(W.astype(int)))


def test_a_library_that_takes_nothing_back_is_refused():
    lonely = type(
        "Lonely", (), {"__dlpack__": Array.__dlpack__, "__dlpack_device__": Array.__dlpack_device__, "memory": X, "device": (1, 0)}
    )()
    with pytest.raises(tconv.ArgumentError, match="is an array of test_foreign, which has no from_dlpack to take the result back"):
        tconv.conv_transpose(lonely, lonely)


def test_numpy_and_lists_are_as_before():
    out = np.empty_like(Y)
    assert tconv.conv_transpose(X, W, out=out, **WORDS) is out
    assert type(tconv.conv_transpose(X.tolist(), W.tolist(), BIAS.tolist(), **WORDS)) is np.ndarray
    assert type(tconv.conv_transpose(X.view(type("Sub", (np.ndarray,), {})), W)) is np.ndarray
