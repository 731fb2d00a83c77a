# SPDX-License-Identifier: Apache-2.0
"""`tconv.tensorflow.conv_transpose`, judged by TensorFlow's own operators: values and gradients of both orders, eager and in a graph."""

from __future__ import annotations

import doctest
import inspect
import os
import subprocess
import sys
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from test_docs import FLAGS, ROOT, blocks, run_session

import tconv.tensorflow as ours
from tconv import ArgumentError, _tensorflow_ops, _tensorflow_python, conventions

PAGE = "docs/guides/tensorflow.md"
FIRST = {1: "NCW", 2: "NCHW", 3: "NCDHW"}

# (kernel, strides, padding, output sizes or None): odd and even kernels below, at and above the stride; sizes that are not the usual one
LAYERS = [((3,), 2, "SAME", None), ((4,), 3, "VALID", (15,)), ((2,), 3, "SAME", None), ((3, 2), (2, 3), "SAME", (7, 8)),
          ((3, 3), 3, "VALID", None), ((2, 4), 1, "SAME", None), ((2, 3, 2), 2, "SAME", (7, 6, 4)), ((2, 3, 1), 2, "VALID", None)]  # fmt: skip


@pytest.fixture(params=["operators", "python"], autouse=True)
def way(request, monkeypatch):
    """By TensorFlow's own operators, and as where it cannot have them."""
    assert ours.UNAVAILABLE is None
    if request.param == "python":
        monkeypatch.setattr(_tensorflow_ops, "UNAVAILABLE", "a test asks for the other way")


def numbers(*shape, seed=0, dtype=tf.float64):
    return tf.cast(tf.constant(np.random.default_rng(seed).standard_normal(shape)), dtype)


def same(found, expected, eps=1e-12):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=eps * max(1.0, abs(expected).max(initial=0)))


def layer(case, dtype=tf.float64):
    """x and w, our words, TensorFlow's whole output shape."""
    kernel, strides, padding, sizes = case
    x = numbers(2, *(4, 3, 2)[: len(kernel)], 3, seed=1, dtype=dtype)
    w = numbers(*kernel, 5, 3, seed=2, dtype=dtype)
    words = {"strides": strides, "padding": padding}
    shape = ours.conv_transpose(x, w, **words).shape if sizes is None else (2, *sizes, 5)
    return x, w, words, [int(n) for n in shape]


def gradients(function, *tensors):
    """The value, its first gradients in a random direction, and the gradients of a random sum of those."""
    with tf.GradientTape() as outer:
        outer.watch(tensors)
        with tf.GradientTape() as inner:
            inner.watch(tensors)
            y = function(*tensors)
            loss = tf.reduce_sum(y * numbers(*y.shape, seed=7, dtype=y.dtype) + y * y)
        first = inner.gradient(loss, tensors)
        again = tf.add_n([tf.reduce_sum(g * numbers(*g.shape, seed=8 + i, dtype=g.dtype)) for i, g in enumerate(first)])
    return [y, *first, *outer.gradient(again, tensors)]


def test_the_textbook():
    full = [[0, 4, 1], [8, 16, 6], [4, 12, 9]]
    for dtype, answer in ((tf.float64, tf.float64), (tf.int32, tf.float64), (tf.float32, tf.float32)):
        y = ours.conv_transpose(tf.constant([[0, 1], [2, 3]], dtype), tf.constant([[4, 1], [2, 3]], dtype))
        assert isinstance(y, tf.Tensor) and y.dtype == answer and y.numpy().tolist() == full
    assert ours.conv_transpose(tf.constant([1, 2]), tf.constant([1, 10, 100]), strides=2).numpy().tolist() == [1, 10, 102, 20, 200]
    x, w = numbers(1, 4, 4, 1), numbers(3, 3, 1, 1)
    for padding, size in (("valid", 9), ("same", 8)):
        y = ours.conv_transpose(x, w, strides=2, padding=padding)
        assert y.shape == (1, size, size, 1)
        same(y, tf.nn.conv2d_transpose(x, w, (1, size, size, 1), 2, padding.upper()))


@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_values_and_gradients_of_both_orders_are_those_of_tensorflow(case, mode):
    x, w, words, shape = layer(case)

    def mine(x, w):
        return ours.conv_transpose(x, w, **words, output_shape=shape)

    expected = gradients(lambda x, w: tf.nn.conv_transpose(x, w, shape, **words), x, w)
    run = gradients if mode == "eager" else tf.function(gradients)
    for found, right in zip(run(mine, x, w), expected, strict=True):
        same(found, right)


@pytest.mark.parametrize("seed", range(6))
def test_random_layers_against_tensorflow(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        rank = int(rng.integers(1, 4))
        size, kernel, strides, dilations = (tuple(map(int, rng.integers(1, most, rank))) for most in (6, 5, 4, 3))
        dilated = max(dilations) > 1
        strides = (1,) * rank if dilated and rank == 3 else strides
        padding = str(rng.choice(["SAME", "VALID"]))
        extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        sizes = [i * s if padding == "SAME" else (i - 1) * s + e for i, s, e in zip(size, strides, extent, strict=True)]
        sizes = [o + (-1 if padding == "SAME" else 1) * int(rng.integers(s)) for o, s in zip(sizes, strides, strict=True)]
        dtype = tf.float32 if dilated else tf.float64  # on a CPU TensorFlow has no dilation in float64
        x, w = numbers(2, *size, 2, seed=seed, dtype=dtype), numbers(*kernel, 3, 2, seed=seed + 1, dtype=dtype)
        shape = [2, *sizes, 3]
        found = ours.conv_transpose(x, w, strides=strides, padding=padding, output_shape=shape, dilations=dilations)
        same(found, tf.nn.conv_transpose(x, w, shape, strides, padding, dilations=dilations), 1e-5 if dilated else 1e-12)


@pytest.mark.parametrize("pads", [((0, 1), (0, 1)), ((2, 0), (1, 1))], ids=str)
def test_explicit_padding_is_that_of_conv2d_transpose(pads):
    x, w = numbers(2, 4, 3, 2, seed=1), numbers(4, 5, 3, 2, seed=2)
    whole = [(0, 0), *pads, (0, 0)]
    crop = conventions.tensorflow(input_size=(4, 3), kernel_size=(4, 5), output_shape=(9, 8), strides=2, padding=whole).spec.crop
    expected = gradients(lambda x, w: tf.nn.conv2d_transpose(x, w, (2, 9, 8, 3), 2, whole), x, w)
    for words in ({"padding": whole, "output_shape": (9, 8)}, {"padding": crop}):
        mine = gradients(partial(ours.conv_transpose, strides=2, **words), x, w)
        for found, right in zip(mine, expected, strict=True):
            same(found, right)


def test_negative_padding_appends_zeros():
    x, w, bias = numbers(1, 4, 2, seed=1), numbers(3, 3, 2, seed=2), numbers(3, seed=3)
    full = tf.nn.conv_transpose(x, w, (1, 9, 3), 2, "VALID")
    found = ours.conv_transpose(x, w, bias, strides=2, padding=[(1, -2)])
    same(found, tf.pad(full[:, 1:], [(0, 0), (0, 2), (0, 0)]) + bias)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_channels_first_groups_and_bias(case):
    """TensorFlow has no groups, and in float64 no channels first on a CPU: its layer on each share of the channels, transposed."""
    x, w, words, shape = layer(case)
    rank, bias = w.shape.rank - 2, numbers(10, seed=3)
    x2, w2 = tf.concat([x, 2 * x[:, ::-1]], -1), tf.concat([w, -w[::-1]], -1)
    to_first = (0, rank + 1, *range(1, rank + 1))

    def theirs(x, w, bias):
        xs, ws = tf.split(tf.transpose(x, (0, *range(2, rank + 2), 1)), 2, -1), tf.split(w, 2, -1)
        y = tf.concat([tf.nn.conv_transpose(a, b, shape, **words) for a, b in zip(xs, ws, strict=True)], -1)
        return tf.transpose(y + bias, to_first)

    def mine(x, w, bias):
        return ours.conv_transpose(x, w, bias, **words, groups=2, data_format=FIRST[rank], output_shape=shape[1:-1])

    arrays = (tf.transpose(x2, to_first), w2, bias)
    for found, right in zip(gradients(mine, *arrays), gradients(theirs, *arrays), strict=True):
        same(found, right)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_channels_first_in_float32_is_that_of_tensorflow(case):
    x, w, words, shape = layer(case, tf.float32)
    rank = w.shape.rank - 2
    x = tf.transpose(x, (0, rank + 1, *range(1, rank + 1)))
    words["data_format"], first = FIRST[rank], [shape[0], shape[-1], *shape[1:-1]]
    expected = gradients(lambda x, w: tf.nn.conv_transpose(x, w, first, **words), x, w)
    for found, right in zip(gradients(partial(ours.conv_transpose, output_shape=first, **words), x, w), expected, strict=True):
        same(found, right, 1e-5)


@pytest.mark.parametrize("padding", ["same", [(2, 0), (-1, 3)]], ids=str)
def test_gradients_are_those_of_differences(padding):
    arrays = numbers(1, 3, 3, 2, seed=1), numbers(3, 2, 3, 2, seed=2), numbers(3, seed=3)

    def value(*arrays):
        return ours.conv_transpose(*arrays, strides=2, padding=padding, dilations=(1, 2))

    for theory, numeric in zip(*tf.test.compute_gradient(value, arrays), strict=True):
        same(theory, numeric, 1e-6)


def test_shapes_unknown_until_the_graph_runs():
    x, w, words, _ = layer(((3, 2), (2, 3), "SAME", None))
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3, 3], tf.float64), tf.TensorSpec([None, None, 5, 3], tf.float64)])
    def unknown(x, w):
        seen.append(ours.conv_transpose(x, tf.ensure_shape(w, (3, 2, 5, 3)), **words).shape.as_list())
        return gradients_of_dynamic(x, w)

    def gradients_of_dynamic(x, w):
        with tf.GradientTape() as outer:
            outer.watch(w)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = ours.conv_transpose(x, w, **words)
                loss = tf.reduce_sum(y**3)
            first = inner.gradient(loss, x)
            again = tf.reduce_sum(first * first)
        return y, first, outer.gradient(again, w)

    for rows in (4, 6):
        batch = tf.concat([x, x], 1)[:1, :rows]
        for found, right in zip(unknown(batch, w), gradients_of_dynamic(batch, w), strict=True):
            same(found, right)
    assert seen == [[None, None, 9, 5]]
    with pytest.raises(ArgumentError, match="known when the function is traced"):
        tf.function(lambda x, n: ours.conv_transpose(x, w, **words, output_shape=[2, n, 9, 5]))(x, tf.constant(8))
    # the batch need not be known
    ask = tf.function(lambda x, n: ours.conv_transpose(x, w, **words, output_shape=[n, 7, 9, 5]))
    same(ask(x, tf.constant(2)), tf.nn.conv_transpose(x, w, (2, 7, 9, 5), **words))


def test_a_wrong_shape_that_only_the_graph_knows_is_an_error():
    call = tf.function(lambda x: ours.conv_transpose(x, tf.ones((3, 1, 2))), input_signature=[tf.TensorSpec([None, None, None])])
    with pytest.raises(tf.errors.InvalidArgumentError, match="channels"):
        call(tf.ones((1, 4, 3)))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=str)
def test_half_precision_is_summed_in_float32(dtype):
    x, w, words, shape = layer(((3, 2), (2, 3), "SAME", None), dtype)
    exact = tf.nn.conv_transpose(tf.cast(x, tf.float32), tf.cast(w, tf.float32), shape, **words)
    for call in (ours.conv_transpose, tf.function(ours.conv_transpose)):
        y = call(x, w, **words)
        assert y.dtype == dtype
        same(y, exact, 2**-8 if dtype == tf.bfloat16 else 2**-11)


def test_transforms_and_data_without_a_batch():
    x, w = numbers(2, 4, 3, seed=1), numbers(3, 5, 3, seed=2)

    def call(x):
        return ours.conv_transpose(x, w, strides=2, padding="same")

    y = call(x)
    same(call(x[0]), y[0])
    same(call(x[:0]), y[:0])
    same(tf.vectorized_map(call, x), y)
    same(tf.map_fn(call, x), y)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = call(x)
    same(tf.einsum("nlcmij,mij->nlc", tape.jacobian(value, x), x), y)  # the layer is linear
    with tf.autodiff.ForwardAccumulator(x, 2 * x) as forwards:
        value = call(x)
    same(forwards.jvp(value), 2 * y)
    for found, right in zip(gradients(call, x[0]), gradients(lambda x: call(x[None])[0], x[0]), strict=True):
        same(found, right)


def test_variables_are_trained():
    x, w, words, shape = layer(((3, 2), (2, 3), "SAME", None))
    goal = tf.nn.conv_transpose(x, w, shape, **words)
    weight = tf.Variable(tf.zeros_like(w))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((ours.conv_transpose(x, weight, **words) - goal) ** 2)
        weight.assign_sub(10 * tape.gradient(loss, weight))
        return loss

    losses = [float(step()) for _ in range(400)]
    assert losses[-1] < 1e-3 * losses[0]


def test_eager_results_are_handed_over_without_a_copy():
    array = _tensorflow_python._empty((3, 5), np.dtype(np.float32))
    array[...] = 1
    assert array.ctypes.data % 64 == 0
    assert np.shares_memory(np.asarray(_tensorflow_python._tensor(array)), array)
    x = numbers(4, 5)
    assert np.shares_memory(np.asarray(x), np.asarray(x))


@pytest.mark.parametrize("words, argument, text", [
    ({"strides": 0}, "strides", "at least 1"),
    ({"strides": [2, 2, 2, 1]}, "strides", "1 along batch and channels"),
    ({"dilations": 1.5}, "dilations", "integer"),
    ({"padding": "full"}, "padding", '"valid", "same"'),
    ({"padding": [(0, 1), (0, 0), (0, 0), (0, 0)]}, "padding", "batch and channels"),
    ({"output_shape": 5}, "output_shape", "must lie in"),
    ({"output_shape": [3, 6, 5, 3]}, "output_shape", "the batch of x"),
    ({"data_format": "NWC"}, "data_format", "NHWC or NCHW"),
    ({"groups": 3}, "groups", "divide"),
    ({"bias": tf.ones(4)}, "bias", "one value per output channel"),
    ({"bias": tf.ones(3, tf.float64)}, "bias", "dtype of x"),
    ({"x": tf.ones((1, 4, 4, 3))}, "x", "has 3 channels"),
    ({"x": tf.ones((4, 4))}, "x", "must have 4 axes"),
    ({"x": tf.ones((1, 4, 4, 2), tf.int32)}, "x", "float32, float64"),
    ({"w": tf.ones((1, 1, 1, 1, 2, 2))}, "w", "3 to 5"),
    ({"x": tf.ragged.constant([[1.0], [1.0, 2.0]])}, "x", "dense"),
    ({"x": tf.ones(3), "w": tf.ones((2, 2))}, "x", "as many axes"),
])  # fmt: skip
def test_bad_input_names_the_argument(words, argument, text):
    words = {"x": tf.ones((1, 4, 4, 2)), "w": tf.ones((3, 2, 3, 2)), **words}
    calls = [ours.conv_transpose, tf.function(ours.conv_transpose)]
    for call in calls:
        with pytest.raises(ArgumentError, match=text) as error:
            call(words["x"], words["w"], **{name: word for name, word in words.items() if name not in "xw"})
        assert error.value.argument == argument


def test_examples():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert len(blocks(text, "python")) >= 3
    results = run_session(text, PAGE)
    assert results.attempted and results.failed == 0, results
    assert doctest.testmod(ours, optionflags=FLAGS).failed == 0
    assert all(inspect.getdoc(getattr(ours, name)) for name in ours.__all__ if name != "UNAVAILABLE")


def test_no_other_framework_comes_along():
    """But for what TensorFlow itself imports where it is installed."""

    def brought(statement):
        code = f"import sys\n{statement}\nprint(*{{'tensorflow', 'keras', 'torch', 'jax'}} & {{*sys.modules}})"
        return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())

    assert brought("import tconv") == set()
    assert brought("import tconv.tensorflow") == brought("import tensorflow") >= {"tensorflow"}


@pytest.mark.parametrize("large", [2**40, 2**59, 2**62, 2**63, 10**30])
def test_strides_of_one_input_and_dilations_of_one_tap_may_be_any_number(large):
    one, three = numbers(1, 1, 2, seed=1), numbers(1, 3, 2, seed=1)
    same(ours.conv_transpose(one, numbers(3, 4, 2), strides=large), ours.conv_transpose(one, numbers(3, 4, 2)))
    same(ours.conv_transpose(three, numbers(1, 4, 2), dilations=large), ours.conv_transpose(three, numbers(1, 4, 2)))
    with pytest.raises(ArgumentError):
        ours.conv_transpose(three, numbers(3, 4, 2), strides=large)
    with pytest.raises(ArgumentError):
        ours.conv_transpose(three, numbers(3, 4, 2), padding=large)
