# SPDX-License-Identifier: Apache-2.0
"""A model's transposed convolutions made ours and back, in a clone of it: Keras's layers cannot change their class in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import keras
from keras.src.models.functional import Functional  # which Keras exports under no other name

from . import _keras_layers as ours
from ._report import Report
from ._spec import ArgumentError

Refusal: TypeAlias = Callable[[Any, str], str | None]  # of a layer and its name; None where it may be changed

MODELS = (keras.Sequential, Functional)  # whose layers Keras can clone one by one
NAMES = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
PAIRS = {getattr(keras.layers, name): getattr(ours, name) for name in NAMES}


class Swapped(NamedTuple):
    """The new model, and what became of its transposed convolutions."""

    model: Any
    report: Report


def swap(model: Any, filter_fn: Callable[[Any, str], bool] | None = None) -> Swapped:
    """A clone of a model whose transposed convolutions are ours, with the model's weights; the report says which, and which not and why.

    The model itself stays as it is. It must be Sequential or Functional; such models inside it are cloned too, and so are wrappers
    like TimeDistributed. The clone is compiled as the model was and has the state of its optimizer. Layers for which
    `filter_fn(layer, name)` is false are left out; a name is that of the layer after those of the models around it.

    Raises `ArgumentError` for a model that Keras cannot clone layer by layer, and Keras's errors for configs that it cannot read back.

    >>> import keras, tconv.keras
    >>> layers = [keras.layers.Conv2DTranspose(8, 4, strides=2, padding="same", name="up"), keras.layers.ReLU()]
    >>> model, report = tconv.keras.swap(keras.Sequential([keras.Input((8, 8, 3)), *layers]))
    >>> print(report)
    replaced 1 of 1 transposed convolutions
      up  Conv2DTranspose(8, (4, 4), strides=(2, 2), padding='same')
    """

    def refusal(layer: Any, name: str) -> str | None:
        return "filter_fn leaves it out" if filter_fn is not None and not filter_fn(layer, name) else None

    return _changed(model, "replaced", PAIRS, refusal)


def revert(model: Any) -> Swapped:
    """A clone of a model whose layers of ours are Keras's again, with its weights; those whose words Keras lacks stay ours.

    Raises `ArgumentError` as `swap` does.

    >>> import keras, tconv.keras
    >>> layers = [tconv.keras.Conv1DTranspose(4, 3, name="a"), tconv.keras.Conv1DTranspose(4, 3, groups=2, name="b")]
    >>> print(tconv.keras.revert(keras.Sequential([keras.Input((8, 2)), *layers])).report)
    reverted 1 of 2 transposed convolutions
      a  Conv1DTranspose(4, (3,), strides=(1,), padding='valid')
    skipped
      b  Keras has no groups=2
    """
    return _changed(model, "reverted", {mine: theirs for theirs, mine in PAIRS.items()}, lambda layer, _: layer.geometry.lacking)


def _changed(model: Any, action: str, table: dict[type, type], refusal: Refusal) -> Swapped:
    if not isinstance(model, MODELS):
        raise ArgumentError("model", type(model).__name__, "must be Sequential or Functional: Keras can clone the layers of no other")
    done, skipped, twins = {}, {}, {}
    for name, layer, owner in _candidates(model):
        found = _twin(layer, table)
        why = f"made by the code of {owner}, a class of its own" if owner else found if isinstance(found, str) else refusal(layer, name)
        if why is None:
            done[name], twins[id(layer)] = _line(layer), found
        else:
            skipped[name] = why
    known = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    with _uncompiled(model), keras.saving.custom_object_scope(known):
        clone = _clone(model, twins)
    if model.compiled:
        _compile(model, clone)
    _copy_state(model, clone)
    return Swapped(clone, Report(action, done, skipped))


def _candidates(model: Any) -> Iterator[tuple[str, Any, str]]:
    """The transposed convolutions of a model, each once, by its first name; and the class whose code made it, if it is out of reach."""
    seen: set[int] = set()
    for name, layer, owner in _walk(model, ""):
        if isinstance(layer, tuple(getattr(keras.layers, kind) for kind in NAMES)) and id(layer) not in seen:
            seen.add(id(layer))
            yield name, layer, owner


def _walk(layer: Any, before: str) -> Iterator[tuple[str, Any, str]]:
    if isinstance(layer, (*MODELS, keras.layers.Wrapper)):
        for inner in layer.layers if isinstance(layer, MODELS) else [layer.layer]:
            yield before + inner.name, inner, ""
            yield from _walk(inner, f"{before}{inner.name}/")
    else:
        kind = type(layer)
        for inner in layer._flatten_layers(include_self=False):
            yield before + inner.name, inner, f"{kind.__module__}.{kind.__qualname__}"


def _twin(layer: Any, table: dict[type, type]) -> type | str:
    """The class that a layer is to have, or the reason why there is none."""
    kind = type(layer)
    if kind in table.values():
        return "is already what it would become"
    return table.get(kind, f"{kind.__module__}.{kind.__qualname__} is a class of its own, whose code may do more")


def _line(layer: Any) -> str:
    """The layer as it was made, of its words those that matter."""
    words = {"strides": layer.strides, "padding": layer.padding}
    rest = {"output_padding": None, "dilation_rate": (1,) * layer.rank, "groups": 1}
    words |= {name: getattr(layer, name, usual) for name, usual in rest.items() if getattr(layer, name, usual) != usual}
    return f"{type(layer).__name__}({layer.filters}, {layer.kernel_size}, {', '.join(f'{n}={v!r}' for n, v in words.items())})"


def _clone(layer: Any, twins: dict[int, Any]) -> Any:
    """A layer or operation of the same config, or of that class of `twins`; models and wrappers with all that is in them."""
    if isinstance(layer, MODELS):
        return keras.models.clone_model(layer, clone_function=lambda inner: _clone(inner, twins), recursive=True)
    if isinstance(layer, keras.layers.Lambda):
        return layer  # it has no weights, and Keras will not read a lambda back
    config = layer.get_config()
    if isinstance(layer, keras.layers.Wrapper):
        config["layer"] = keras.saving.serialize_keras_object(_clone(layer.layer, twins))
    kind = twins.get(id(layer), type(layer))
    if kind in PAIRS:
        config.pop("groups", None)
    return kind.from_config(config)


@contextmanager
def _uncompiled(model: Any) -> Iterator[None]:
    """The model and those in it without their losses, which Keras would read back from their names and may not know by these."""
    compiled = [inner for inner in model._flatten_layers() if isinstance(inner, MODELS) and inner.compiled]
    for inner in compiled:
        inner.compiled = False
    try:
        yield
    finally:
        for inner in compiled:
            inner.compiled = True


def _compile(model: Any, clone: Any) -> None:
    """As the model was: losses and functions are shared, what has a state is made anew."""

    def fresh(word: Any) -> Any:
        stateful = isinstance(word, (keras.optimizers.Optimizer, keras.metrics.Metric))
        return type(word).from_config(word.get_config()) if stateful else word

    clone.compile(**keras.tree.map_structure(fresh, model._compile_config.config))


def _copy_state(model: Any, clone: Any) -> None:
    """Weights, the states of random numbers, and the optimizer's, if it has made a step."""
    if len(model.variables) != len(clone.variables):
        raise ArgumentError("model", model.name, "shares a layer between a wrapper and another place, which Keras's clone takes apart")
    pairs = [*zip(model.variables, clone.variables, strict=True)]
    if model.compiled and model.optimizer is not None and model.optimizer.built:
        clone.optimizer.build(clone.trainable_variables)
        pairs += zip(model.optimizer.variables, clone.optimizer.variables, strict=True)
    for old, new in pairs:
        new.assign(keras.ops.convert_to_numpy(old))  # a copy: JAX gives the memory of an array away in training
