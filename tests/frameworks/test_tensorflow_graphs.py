# SPDX-License-Identifier: Apache-2.0
"""TensorFlow's own operators whose kernels are the core: where they run, what they refuse, and what is left to Python."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from test_tensorflow_layer import gradients, numbers, same

import tconv.tensorflow as ours
from tconv import ArgumentError, _tensorflow_ops, _tensorflow_python

OPS = _tensorflow_ops._OPS
WORDS = {"strides": [2, 2], "dilations": [1, 1], "crop": [0, 1, 1, 0], "groups": 1, "channels_last": True}
SHAPES = {"x": (2, 4, 3, 2), "w": (3, 2, 5, 2), "y": (2, 8, 5, 5)}  # that belong to them


@pytest.fixture
def no_python(monkeypatch):
    """Nothing may be left to Python."""

    def refuse(*arguments):
        raise AssertionError("left to Python")

    monkeypatch.setattr(_tensorflow_python, "conv_transpose", refuse)


def python(code, *arguments):
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_a_graph_is_made_of_operators_and_not_of_python(no_python):
    @tf.function
    def call(x, w, bias):
        return gradients(lambda *a: ours.conv_transpose(*a, strides=2, padding="same"), x, w, bias)

    arrays = numbers(1, 4, 2), numbers(3, 5, 2, seed=1), numbers(5, seed=2)
    graph = call.get_concrete_function(*arrays).graph
    types = {op.type for g in (graph, *graph._functions.values()) for op in (g.get_operations() if hasattr(g, "get_operations") else ())}
    assert {"TconvConvTransposeBias", "TconvConvTranspose", "TconvGradInput", "TconvGradWeight", "TconvGradBias"} <= types
    assert not [name for name in types if "PyFunc" in name]


def test_only_wanted_gradients_are_computed(monkeypatch):
    x, w, bias = numbers(1, 4, 2), numbers(3, 5, 2, seed=1), numbers(5, seed=2)
    called = []
    for name in ("tconv_grad_input", "tconv_grad_weight", "tconv_grad_bias"):
        one = getattr(OPS, name)
        monkeypatch.setattr(OPS, name, lambda *a, one=one, name=name, **w: called.append(name) or one(*a, **w))
    for tensor, expected in ((x, "tconv_grad_input"), (w, "tconv_grad_weight"), (bias, "tconv_grad_bias")):
        called.clear()
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            y = ours.conv_transpose(x, w, bias)
        assert tape.gradient(y, tensor) is not None and called == [expected]


class Layer(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = tf.Variable(numbers(3, 5, 2, seed=1)), tf.Variable(numbers(5, seed=2))

    @tf.function(input_signature=[tf.TensorSpec([None, None, 2], tf.float64)])
    def __call__(self, x):
        return ours.conv_transpose(x, self.weight, self.bias, strides=2, padding="same")


LOADED = """
import sys, numpy as np
{first}
import tensorflow as tf
layer = tf.saved_model.load(sys.argv[1])
x = tf.constant(np.arange(24.0).reshape(3, 4, 2))
with tf.GradientTape() as tape:
    tape.watch(x)
    y = layer(x)
    loss = tf.reduce_sum(y * y)
np.savez(sys.argv[2], y=y, **dict(zip(("x", "w", "b"), tape.gradient(loss, [x, layer.weight, layer.bias]))))
"""


def test_a_saved_model_runs_and_is_trained_in_another_process(tmp_path, no_python):
    layer, x = Layer(), tf.constant(np.arange(24.0).reshape(3, 4, 2))
    tf.saved_model.save(layer, str(tmp_path / "model"))
    done = python(LOADED.format(first="import tconv.tensorflow"), tmp_path / "model", tmp_path / "found.npz")
    assert done.returncode == 0, done.stderr[-2000:]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y * y)
    expected = tape.gradient(loss, [x, layer.weight, layer.bias])
    found = np.load(tmp_path / "found.npz")
    for name, right in zip("yxwb", (y, *expected), strict=True):
        same(found[name], right)
    done = python(LOADED.format(first=""), tmp_path / "model", tmp_path / "none.npz")
    assert done.returncode and "TconvConvTranspose" in done.stderr


def test_tf_data_and_threads_of_the_caller(no_python):
    x, w = numbers(6, 1, 4, 3, 2), numbers(3, 2, 5, 2, seed=1)
    expected = [ours.conv_transpose(one, w, strides=2) for one in x]
    mapped = tf.data.Dataset.from_tensor_slices(x).map(lambda one: ours.conv_transpose(one, w, strides=2), num_parallel_calls=4)
    for found, right in zip(mapped, expected, strict=True):
        same(found, right)
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(lambda one: ours.conv_transpose(one, w, strides=2), x), expected, strict=True):
            same(found, right)


def test_empty_batches(no_python):
    x, w, bias = numbers(0, 4, 2), numbers(3, 5, 2, seed=1), numbers(5, seed=2)
    y, *found = gradients(lambda *a: ours.conv_transpose(*a, strides=2), x, w, bias)[:4]
    assert y.shape == (0, 9, 5) and found[0].shape == x.shape
    assert not np.any(found[1]) and not np.any(found[2]) and found[1].shape == w.shape


def test_sizes_that_the_graph_learns_when_it_runs(no_python):
    """The size that is asked for fixes the input's, and so the crop."""
    x, w = numbers(2, 4, 3, seed=1), numbers(2, 5, 3, seed=2)
    for padding, size in (("same", 11), ([(1, 0)], 10)):

        @tf.function(input_signature=[tf.TensorSpec([None, None, None], tf.float64)])
        def call(x, padding=padding, size=size):
            y = ours.conv_transpose(x, w, strides=3, padding=padding, output_shape=size)
            assert y.shape.as_list() == [None, size, 5]
            return y

        same(call(x), ours.conv_transpose(x, w, strides=3, padding=padding, output_shape=size))
        with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible"):
            call(x[:, :3])

    def cubed(x, w):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            loss = tf.reduce_sum(ours.conv_transpose(x, w, strides=2, padding=1) ** 3)
        return tape.gradient(loss, [x, w])

    anything = tf.TensorSpec([None, None, None], tf.float64)
    for found, right in zip(tf.function(cubed, input_signature=[anything, anything])(x, w), cubed(x, w), strict=True):
        same(found, right)


def operands(*names, **shapes):
    return [numbers(*(shapes | SHAPES | shapes)[name], seed=i) for i, name in enumerate(names)]


def test_the_operators_take_each_other_shapes():
    assert OPS.tconv_conv_transpose(*operands("x", "w"), **WORDS).shape == SHAPES["y"]
    assert OPS.tconv_grad_input(*operands("y", "w"), **WORDS).shape == SHAPES["x"]
    assert OPS.tconv_grad_weight(*operands("x", "y"), **WORDS).shape == SHAPES["w"]
    assert OPS.tconv_grad_bias(*operands("y"), **WORDS).shape == SHAPES["y"][-1:]


HUGE = 2**62
BAD_WORDS = [{"strides": [0, 1]}, {"strides": [2]}, {"strides": [2] * 4, "dilations": [1] * 4, "crop": [0] * 8}, {"strides": []},
             {"strides": [HUGE, HUGE]}, {"dilations": [HUGE, HUGE]}, {"dilations": [-1, 1]}, {"crop": [0, 1]}, {"crop": [HUGE] * 4},
             {"crop": [-HUGE] * 4}, {"crop": [-(2**58)] * 4}, {"crop": [99, 0, 0, 0]}, {"groups": 0}, {"groups": 3}, {"groups": -1},
             {"groups": HUGE}, {"strides": [2**40] * 2, "dilations": [2**40] * 2}]  # fmt: skip


@pytest.mark.parametrize("words", BAD_WORDS, ids=str)
def test_bad_attributes_are_errors_of_tensorflow(words):
    calls = [(OPS.tconv_conv_transpose, "x", "w"), (OPS.tconv_grad_input, "y", "w"), (OPS.tconv_grad_weight, "x", "y")]
    for op, *names in calls[:1] if words == {"crop": [99, 0, 0, 0]} else calls:  # a kernel or an input may be large
        with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError)):
            op(*operands(*names), **WORDS | words)


@pytest.mark.parametrize("shapes, text", [
    ({"x": (2, 4, 3, 3)}, "has 3 channels where w of shape (3, 2, 5, 2) takes 2"),
    ({"x": (4,)}, "must have 4 axes"),
    ({"x": ()}, "must have 4 axes"),
    ({"x": (2, 4, 3, 2, 1)}, "must have 4 axes"),
    ({"x": (2, 0, 3, 2)}, "at least one position"),
    ({"w": (0, 2, 5, 2)}, "at least one tap"),
    ({"w": (3, 2, 2)}, "must have 4 axes"),
    ({"w": (3, 2, 0, 2)}, "channels"),
    ({"x": (2, 1, 1, 2), "w": (1, 1, 5, 2)}, "crops the full output of 1 to 0"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_errors_of_tensorflow(shapes, text):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        OPS.tconv_conv_transpose(*operands("x", "w", **shapes), **WORDS)
    assert text in error.value.message


@pytest.mark.parametrize(
    "shapes", [{"y": (2, 9, 5, 5)}, {"y": (2, 8, 5, 4)}, {"y": (8, 5)}, {"y": (2, 1, 5, 5)}, {"y": (2, 0, 5, 5)}], ids=str
)
def test_gradients_of_a_wrong_shape_are_errors_of_tensorflow(shapes):
    for op, *names in ((OPS.tconv_grad_input, "y", "w"), (OPS.tconv_grad_weight, "x", "y")):
        if shapes in ({"y": (2, 8, 5, 4)}, {"y": (2, 9, 5, 5)}) and op is OPS.tconv_grad_weight:
            continue  # of a kernel with 4 channels, or 4 taps
        with pytest.raises(tf.errors.InvalidArgumentError):
            op(*operands(*names, **shapes), **WORDS)
    for shape in ((3,), (5, 1), ()):
        with pytest.raises(tf.errors.InvalidArgumentError, match="one value per output channel"):
            OPS.tconv_conv_transpose_bias(*operands("x", "w"), numbers(*shape), **WORDS)


def test_results_beyond_memory_are_refused_before_they_are_made():
    with pytest.raises(ArgumentError, match="GiB"):
        ours.conv_transpose(tf.ones((1, 2, 2, 1)), tf.ones((1, 1, 1, 1)), strides=10**6, padding=[(0, -(10**6))] * 2)


def test_xla_says_that_it_cannot_call_the_core():
    x, w = tf.ones((1, 4, 2)), tf.ones((3, 5, 2))
    with pytest.raises(tf.errors.InvalidArgumentError, match="TconvConvTranspose"):
        tf.function(ours.conv_transpose, jit_compile=True)(x, w)


THREADS = """
import os, sys
import tensorflow as tf
import tconv.tensorflow
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
x, w = tf.ones((4, 32, 32, 64)), tf.ones((4, 4, 64, 64))
call = lambda: tconv.tensorflow.conv_transpose(x, w)
call = tf.function(call) if sys.argv[2] == "graph" else call
tconv.tensorflow.conv_transpose(x[:1, :1, :1], w[:1, :1])
tf.function(lambda: x + 1)()
before = len(os.listdir("/proc/self/task"))
call()
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("how", ["eager", "graph"])
def test_as_many_threads_as_tensorflow_says(how):
    found = [python(THREADS, n, how) for n in (1, 3)]
    assert [int(done.stdout) for done in found] == [0, 2], found[0].stderr[-2000:]


ABSENT = """
import sys
import tensorflow as tf
{patch}
import tconv.tensorflow
x, w = tf.constant([[0.0, 1], [2, 3]]), tf.constant([[4.0, 1], [2, 3]])
print(tconv.tensorflow.conv_transpose(x, w).numpy().tolist(), tf.function(tconv.tensorflow.conv_transpose)(x, w).numpy().tolist())
print(tconv.tensorflow.UNAVAILABLE)
"""


@pytest.mark.parametrize("patch, reason", [
    ("tf.sysconfig.get_lib = lambda: '/nowhere'", "is not loaded"),
    ("tf.load_op_library = lambda path: tf", "no operators"),
])  # fmt: skip
def test_where_tensorflow_cannot_have_the_operators_python_computes(patch, reason):
    done = python(ABSENT.format(patch=patch))
    values, said = done.stdout.splitlines()
    full = [[0.0, 4.0, 1.0], [8.0, 16.0, 6.0], [4.0, 12.0, 9.0]]
    assert values == f"{full} {full}" and reason in said, done.stderr[-2000:]
