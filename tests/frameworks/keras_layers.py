# SPDX-License-Identifier: Apache-2.0
"""`tconv.keras` on the backend that KERAS_BACKEND names: judged by Keras's own layers, and by the definition where Keras has no words.

Keras has one backend in a process, so test_keras_layers.py runs this file in one process for each.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import json

import definition
import keras
import numpy as np
import pytest
from keras import ops
from test_docs import FLAGS, ROOT, blocks, run_session

import tconv.keras
from tconv import ArgumentError, _keras_call, _keras_layers, _keras_swap

# Keras's own variables lack NumPy 2's signature
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

PAGE = "docs/guides/keras.md"
BACKEND = keras.backend.backend()
RANDOM_LAYERS = 10 if BACKEND == "jax" else 100  # JAX compiles every shape
KINDS = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")


def numbers(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same(found, expected, eps=1e-5):
    found, expected = np.asarray(ops.convert_to_numpy(found), np.float64), np.asarray(ops.convert_to_numpy(expected), np.float64)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=eps * max(1.0, abs(expected).max(initial=0)))


@pytest.fixture
def only_core(monkeypatch):
    """Nothing may be left to the backend's operators."""

    def refuse(*arguments):
        raise AssertionError("left to the backend's operators")

    monkeypatch.setattr(_keras_call, "by_operators", refuse)
    if BACKEND == "torch":
        monkeypatch.setattr(importlib.import_module("tconv._torch_native"), "forward", refuse)
    if BACKEND != "torch":
        assert importlib.import_module(f"tconv.{BACKEND}").UNAVAILABLE is None


def words_of(rng, beyond):
    """Random words of a layer: Keras's, or with `beyond` those it lacks too; and x channels last."""
    rank = int(rng.integers(1, 4))
    each = lambda most, least=1: tuple(map(int, rng.integers(least, most + 1, rank)))  # noqa: E731
    size, kernel, strides, dilation = each(5 if rank < 3 else 3), each(4), each(4), each(3)
    if not beyond:
        strides, dilation = (strides, (1,) * rank) if rng.random() < 0.7 else ((1,) * rank, dilation)
    extra = None if rng.random() < 0.5 else tuple(int(rng.integers(s)) for s in strides)
    padding = str(rng.choice(["same", "valid"]))
    groups = int(rng.integers(1, 4)) if beyond else 1
    if beyond and rng.random() < 0.6:
        padding = tuple((int(rng.integers(-2, 3)), int(rng.integers(-2, 3))) for _ in range(rank))
    words = {"kernel_size": kernel, "strides": strides, "padding": padding, "output_padding": extra, "dilation_rate": dilation}
    words |= {"filters": groups * int(rng.integers(1, 4))} | ({"groups": groups} if beyond else {})
    return rank, words, rng.standard_normal((2, *size, groups * int(rng.integers(1, 4)))).astype(np.float32)


def built(module, rank, words, x):
    """A layer of random weights, the same for the same words; JAX would compile a random initializer for every shape."""
    layer = getattr(module, KINDS[rank - 1])(**words, kernel_initializer="zeros")
    layer.build(x.shape)
    layer.set_weights([numbers(*weight.shape, seed=seed) for seed, weight in enumerate(layer.weights)])
    return layer


def by_definition(layer, x, crop):
    kernel, bias = map(ops.convert_to_numpy, (layer.kernel, layer.bias))
    w = np.moveaxis(kernel, (-1, -2), (0, 1))
    y = definition.conv_transpose(np.moveaxis(x, -1, 1), w, layer.strides, layer.dilation_rate, crop, layer.groups, bias)
    return np.moveaxis(y, 1, -1)


def keras_refuses(words):
    """TensorFlow alone: "same", an output_padding of 0, an even kernel, on one axis."""
    axes = zip(words["kernel_size"], words["dilation_rate"], words["output_padding"] or (), strict=False)
    return BACKEND == "tensorflow" and words["padding"] == "same" and any(d * (k - 1) % 2 and not more for k, d, more in axes)


@pytest.mark.parametrize("seed", range(4))
def test_random_layers_give_what_keras_gives(seed, only_core):
    rng, seen = np.random.default_rng(seed), 0
    while seen < RANDOM_LAYERS:
        rank, words, x = words_of(rng, beyond=False)
        theirs, mine = built(keras.layers, rank, words, x), built(tconv.keras, rank, words, x)
        shape = tuple(theirs.compute_output_shape(x.shape))
        if min(shape) < 1:
            with pytest.raises(ArgumentError, match="padding="):
                mine(x)
            continue
        seen += 1
        assert mine.compute_output_shape(x.shape) == shape
        same(mine(x), by_definition(mine, x, mine.geometry.crop) if keras_refuses(words) else theirs(x))


@pytest.mark.parametrize("seed", range(2))
def test_random_layers_beyond_keras_give_what_the_definition_gives(seed, only_core):
    rng, seen = np.random.default_rng(100 + seed), 0
    while seen < RANDOM_LAYERS:
        rank, words, x = words_of(rng, beyond=True)
        crop = words["padding"]
        mine = built(tconv.keras, rank, words, x)
        try:
            shape = mine.compute_output_shape(x.shape)
        except ArgumentError:
            continue
        seen += 1
        if not isinstance(crop, str):
            crop = [(lo, hi - more) for (lo, hi), more in zip(crop, words["output_padding"] or (0,) * rank, strict=True)]
        expected = by_definition(mine, x, mine.geometry.crop if isinstance(crop, str) else crop)
        assert expected.shape == shape
        same(mine(x), expected)


def test_the_backends_own_operators_give_the_same():
    """What computes where the core does not: on other devices, and under TensorFlow's XLA."""
    for seed in range(RANDOM_LAYERS // 2):
        rank, words, x = words_of(np.random.default_rng(seed), beyond=seed % 2)
        mine = built(tconv.keras, rank, words, x)
        try:
            expected = by_definition(mine, x, mine.geometry.crop)
            mine.compute_output_shape(x.shape)
        except (ArgumentError, ValueError):  # an output below 1
            continue
        same(_keras_call.by_operators(mine.geometry, *map(ops.convert_to_tensor, (x, mine.kernel, mine.bias))), expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_channels_first(rank, only_core):
    words = {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"}
    x = numbers(2, *(4, 3, 2)[:rank], 3)
    last, first = (
        built(tconv.keras, rank, words, x),
        built(tconv.keras, rank, {**words, "data_format": "channels_first"}, np.moveaxis(x, -1, 1)),
    )
    y = first(np.moveaxis(x, -1, 1))
    assert first.compute_output_shape(np.moveaxis(x, -1, 1).shape) == tuple(y.shape)
    same(np.moveaxis(ops.convert_to_numpy(y), 1, -1), last(x))
    assert ops.convert_to_numpy(y).min() == 0  # the activation


def gradients(function, *arrays):
    """The gradients of a random linear function of the value."""
    loss = lambda *a: ops.sum((y := function(*a)) * ops.convert_to_tensor(numbers(*y.shape, seed=9, dtype="float64")))  # noqa: E731
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = loss(*tensors)
        return tape.gradient(value, tensors)
    if BACKEND == "torch":
        import torch

        tensors = [tensor.requires_grad_() for tensor in tensors]
        return [g.detach() for g in torch.autograd.grad(loss(*tensors), tensors)]
    import jax

    return jax.grad(loss, argnums=(0, 1, 2))(*tensors)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3,), (4, 2), (2, 3, 1)], ids=str)
def test_gradients_are_those_of_keras(kernel, padding, only_core):
    rank = len(kernel)
    geometry = _keras_call.Geometry(kernel, (2,) * rank, padding, None, (1,) * rank, 1, "channels_last")
    arrays = (numbers(2, *(4, 3, 2)[:rank], 3, dtype="float64"), numbers(*kernel, 5, 3, seed=1, dtype="float64"),
              numbers(5, seed=2, dtype="float64"))  # fmt: skip
    expected = gradients(lambda x, w, b: ops.conv_transpose(x, w, 2, padding, None, "channels_last") + b, *arrays)
    for found, right in zip(gradients(lambda *a: _keras_call.conv_transpose(geometry, *a), *arrays), expected, strict=True):
        same(found, right, 1e-12)


# ---------------------------------------------------------------------------------------------------- in models


def network(module, size=(16, 16)):
    """An encoder with pooling and dense layers, a decoder with transposed convolutions."""
    inputs = keras.Input((*size, 2))
    h = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    h = keras.layers.MaxPooling2D()(h)
    h = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(h)
    h = keras.layers.Flatten()(keras.layers.MaxPooling2D()(h))
    h = keras.layers.Dense(16, activation="relu")(h)
    h = keras.layers.Dropout(0.1, seed=1)(h)
    h = keras.layers.Reshape((4, 4, 8))(keras.layers.Dense(128, activation="relu")(h))
    h = module.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu", name="up1")(h)
    return keras.Model(inputs, module.Conv2DTranspose(2, 4, strides=2, padding="same", name="up2")(h))


def losses(model, x, epochs, **words):
    """The loss before each of `epochs` steps."""
    if not model.compiled:
        model.compile(keras.optimizers.Adam(0.003), "mse", **words)
    return np.array(model.fit(x, x, batch_size=len(x), epochs=epochs, shuffle=False, verbose=0).history["loss"])


def pictures():
    """Smooth pictures, of which the network learns something."""
    rows, columns = np.mgrid[:16, :16] / 16
    phases = np.random.default_rng(0).uniform(0, 6, (32, 1, 1, 2))
    return np.sin(5 * rows[..., None] + 3 * columns[..., None] + phases).astype(np.float32)


def test_fifty_steps_of_training_are_those_of_keras(only_core):
    keras.utils.set_random_seed(0)
    theirs, mine, x = network(keras.layers), network(tconv.keras), pictures()
    mine.set_weights(theirs.get_weights())
    expected, found = losses(theirs, x, 50), losses(mine, x, 50)
    assert expected[-1] < 0.75 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_model_is_saved_and_loaded(tmp_path, only_core):
    inputs = keras.Input((None, None, 4))
    h = tconv.keras.Conv2DTranspose(6, (3, 4), strides=2, padding=[(1, 0), (-1, 2)], output_padding=1, groups=2, activation="relu")(inputs)
    h = tconv.keras.Conv2DTranspose(3, 3, strides=2, dilation_rate=2, use_bias=False, kernel_regularizer="l2")(h)
    model = keras.Model(inputs, h)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in loaded.layers[1:]] == [tconv.keras.Conv2DTranspose] * 2
    assert loaded.layers[1].get_config() == model.layers[1].get_config()
    for size in ((4, 5), (3, 2)):  # unknown until the model runs
        x = numbers(2, *size, 4)
        same(loaded.predict(x, verbose=0), model(x), 1e-6)
        assert loaded.compute_output_shape(x.shape) == tuple(model(x).shape)
    assert model.output_shape == (None, None, None, 3)


def test_configs_go_around():
    layer = tconv.keras.Conv1DTranspose(4, 3, padding=[(1, 2)], groups=2, dtype="mixed_bfloat16")
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert keras.saving.get_registered_name(type(again)) == "tconv>Conv1DTranspose"
    assert again.get_config() == layer.get_config() and again.padding == ((1, 2),) and again.groups == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_constructor_is_that_of_keras(kind):
    theirs, mine = getattr(keras.layers, kind), getattr(tconv.keras, kind)
    names = list(inspect.signature(theirs).parameters)
    values = {"filters": 4, "kernel_size": 3, "strides": 3, "padding": "same", "output_padding": 1, "data_format": "channels_first",
              "dilation_rate": 1, "activation": "tanh", "use_bias": False, "kernel_initializer": "he_normal", "bias_initializer": "ones",
              "kernel_regularizer": "l2", "bias_regularizer": "l1", "activity_regularizer": "l2", "kernel_constraint": "non_neg",
              "bias_constraint": "unit_norm"}  # fmt: skip
    assert names[:-1] == [n for n in names if n in values] and names[-1] == "kwargs"
    positional = [values[name] for name in names[:-1]]
    found = mine(*positional, name="up", trainable=False).get_config()
    assert found == {**theirs(*positional, name="up", trainable=False).get_config(), "groups": 1}
    assert isinstance(mine(4, 3), theirs)


@pytest.mark.parametrize("policy, eps", [("mixed_float16", 2**-10), ("mixed_bfloat16", 2**-7)])
def test_mixed_precision(policy, eps, only_core):
    layer = tconv.keras.Conv2DTranspose(4, 3, strides=2, padding="same", dtype=policy)
    x = numbers(2, 4, 5, 3)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_") and layer.kernel.dtype == "float32"
    kernel = ops.convert_to_tensor(layer.kernel.value if BACKEND != "torch" else layer.kernel.value.detach())
    same(ops.cast(y, "float32"), ops.conv_transpose(x, kernel, 2, "same"), 3 * eps)  # 3: x and kernel are rounded too
    model = keras.Sequential([keras.Input((4, 5, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(2, dtype="float32")])
    model.compile("sgd", "mse")
    first, last = (model.fit(x, np.ones((2, 2)), epochs=20, verbose=0).history["loss"][i] for i in (0, -1))
    assert last < first


def test_the_model_is_compiled_as_the_backend_allows():
    model = network(tconv.keras)
    losses(model, pictures(), 1)
    assert model.jit_compile == (BACKEND == "jax")  # PyTorch's default is eager, and TensorFlow's XLA cannot call the core
    layer, x = model.get_layer("up2"), numbers(2, 8, 8, 8)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(layer, jit_compile=True)  # by TensorFlow's operator
        same(tf.function(layer)(x), layer(x))
    elif BACKEND == "torch":
        import torch

        compiled, x = torch.compile(layer, backend="aot_eager"), torch.from_numpy(x)
    else:
        import jax

        compiled = jax.jit(layer)
    same(compiled(x), layer(x))


# ---------------------------------------------------------------------------------------------------- swap


def test_swap_keeps_weights_and_training():
    theirs, x = network(keras.layers), pictures()
    losses(theirs, x, 5)
    mine, report = tconv.keras.swap(theirs)
    assert str(report) == ("replaced 2 of 2 transposed convolutions\n  up1  Conv2DTranspose(8, (3, 3), strides=(2, 2), padding='same')\n"
                           "  up2  Conv2DTranspose(2, (4, 4), strides=(2, 2), padding='same')")  # fmt: skip
    assert type(mine.get_layer("up1")) is tconv.keras.Conv2DTranspose and type(theirs.get_layer("up1")) is keras.layers.Conv2DTranspose
    same(mine(x), theirs(x))
    np.testing.assert_allclose(losses(mine, x, 5), losses(theirs, x, 5), rtol=1e-4)  # momenta and dropout go on where they were
    back, report = tconv.keras.revert(mine)
    assert len(report.done) == 2 and type(back.get_layer("up2")) is keras.layers.Conv2DTranspose
    same(back(x), mine(x))


class Own(keras.layers.Conv1DTranspose):
    """A class that is not registered, and whose code may do more."""


class Inside(keras.layers.Layer):
    def __init__(self, **words):
        super().__init__(**words)
        self.hidden = keras.layers.Conv1DTranspose(2, 3, name="hidden")

    def call(self, inputs):
        return self.hidden(inputs)


def test_swap_says_what_it_leaves_and_why():
    make, spread = keras.layers.Conv1DTranspose, keras.layers.TimeDistributed
    inner = keras.Sequential([make(2, 3, name="deep"), tconv.keras.Conv1DTranspose(2, 3, name="ours")], name="inner")
    shared, inputs = make(2, 3, padding="same", name="shared"), keras.Input((6, 2))
    h = Inside(name="own")(ops.relu(shared(shared(inner(inputs)))))
    h = keras.layers.Lambda(lambda x: 2 * x, output_shape=lambda shape: shape)(Own(2, 2, name="sub")(make(2, 2, name="left")(h)))
    h = spread(make(2, 2, strides=2, name="frames"), name="time")(keras.layers.Reshape((2, 7, 2))(h))
    model = keras.Model(inputs, h)
    model.compile("adam", loss=lambda y, p: ops.mean((y - p) ** 2))  # which Keras cannot read back
    found, report = tconv.keras.swap(model, lambda layer, name: name != "left")
    assert report.action == "replaced" and list(report.done) == ["inner/deep", "shared", "time/frames"]
    assert report.skipped.pop("own/hidden").endswith("Inside, a class of its own")
    assert report.skipped.pop("sub").endswith("Own is a class of its own, whose code may do more")
    assert report.skipped == {"inner/ours": "is already what it would become", "left": "filter_fn leaves it out"}
    x = numbers(3, 6, 2)
    same(found(x), model(x))
    assert model.compiled and found.compiled and len(found.weights) == len(model.weights)


def test_revert_leaves_what_keras_has_no_words_for():
    make = tconv.keras.Conv1DTranspose
    layers = [make(4, 3, groups=2), make(4, 3, padding=1), make(4, 3, 2, dilation_rate=2), make(4, 3, 2, "same", 1)]
    model = keras.Sequential([keras.Input((5, 2)), *layers])
    found, report = tconv.keras.revert(model)
    assert list(report.skipped.values()) == ["Keras has no groups=2", "Keras has no padding=((1, 1),)",
                                             "Keras has no strides beside a dilation_rate"]  # fmt: skip
    assert list(report.done.values()) == ["Conv1DTranspose(4, (3,), strides=(2,), padding='same', output_padding=(1,))"]
    same(found(numbers(1, 5, 2)), model(numbers(1, 5, 2)))


def test_swap_refuses_what_cannot_be_cloned():
    class Mine(keras.Model):
        pass

    with pytest.raises(ArgumentError, match="must be Sequential or Functional"):
        tconv.keras.swap(Mine())
    shared = keras.layers.Conv1DTranspose(2, 3, padding="same")
    inputs = keras.Input((4, 6, 2))
    h = keras.layers.Reshape((24, 2))(keras.layers.TimeDistributed(shared)(inputs))
    with pytest.raises(ArgumentError, match="shares a layer between a wrapper and another place"):
        tconv.keras.swap(keras.Model(inputs, shared(h)))


# ---------------------------------------------------------------------------------------------------- errors, words


@pytest.mark.parametrize("words, x, argument, text", [
    ({"groups": 3}, (1, 4, 4, 2), "groups", "must divide filters=4"),
    ({"groups": 0}, (1, 4, 4, 2), "groups", "at least 1"),
    ({"groups": 1.5}, (1, 4, 4, 2), "groups", "integer"),
    ({"groups": 4}, (1, 4, 4, 2), "groups", "must divide the 2 channels"),
    ({"padding": [(1, 2, 3)]}, (1, 4, 4, 2), "padding", "pairs"),
    ({"padding": 5}, (1, 4, 4, 2), "padding", r"leaves \(-4, -4\)"),
    ({"strides": 2, "dilation_rate": (2, -1)}, (1, 4, 4, 2), "dilation_rate", "at least 1"),
    ({"strides": 2, "dilation_rate": (2, 1, 1)}, (1, 4, 4, 2), "dilation_rate", "one int per spatial axis"),
    ({}, (1, 4, 4, 2, 2), "inputs", "must have 4 axes"),
    ({"padding": "same", "output_padding": 0, "kernel_size": 2}, (1, 1, 4, 2), "padding", r"leaves \(0, 3\)"),
])  # fmt: skip
def test_bad_input_names_the_argument(words, x, argument, text):
    for data in (np.ones(x, np.float32), keras.Input(x[1:])):
        with pytest.raises(ArgumentError, match=text) as error:
            tconv.keras.Conv2DTranspose(**{"filters": 4, "kernel_size": 3, **words})(data)
        assert error.value.argument == argument


@pytest.mark.parametrize("words", [{"filters": 0}, {"kernel_size": 0}, {"strides": (1, 2, 3)}, {"padding": "causal"}, {"output_padding": 1},
                                   {"data_format": "NHWC"}], ids=str)  # fmt: skip
def test_keras_refuses_what_it_always_refused(words):
    words = {"filters": 4, "kernel_size": 3, **words}
    with pytest.raises(ValueError) as theirs:
        keras.layers.Conv2DTranspose(**words)
    with pytest.raises(ValueError) as mine:
        tconv.keras.Conv2DTranspose(**words)
    assert str(mine.value) == str(theirs.value)


def test_examples():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert len(blocks(text, "python")) >= 3
    results = run_session(text, PAGE)
    assert results.attempted and results.failed == 0, results
    for module in (_keras_layers, _keras_swap):
        assert doctest.testmod(module, optionflags=FLAGS).failed == 0
    assert all(inspect.getdoc(getattr(tconv.keras, name)) for name in tconv.keras.__all__)
