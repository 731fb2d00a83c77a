# SPDX-License-Identifier: Apache-2.0
"""Every convention against its framework, by values: what arguments mean, which are legal, and conversions between all of them.

Arrays hold small integers, so every sum is exact in float32 and in float64, in any order: the bound on the error is 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import definition
import numpy as np
import pytest
from guests import GUESTS, Draw, Guest, axes

from tconv import conventions
from tconv._spec import ArgumentError

CONVERTED = 50  # layers of every guest that are converted to every guest, or a twentieth of the target's own


@dataclass(frozen=True)
class Layer:
    """A drawn layer: arguments, canonical arrays, and how we read the arguments, or the error by which we refuse them."""

    facts: dict[str, Any]
    arguments: dict[str, Any]
    x: np.ndarray
    w: np.ndarray
    reading: Any
    groups: int = 1

    def __str__(self) -> str:
        return f"{self.facts} {self.arguments}\n{self.reading}"

    @property
    def legal(self) -> bool:
        return isinstance(self.reading, conventions.Convention)

    @property
    def expected(self) -> np.ndarray:
        """The output by definition, for our reading."""
        spec = self.reading.spec
        return definition.conv_transpose(self.x, self.w, spec.stride, spec.dilation, spec.crop, spec.groups)


def draw(guest: Guest, seed: int) -> Layer:
    layer = Draw(seed, guest.ranks)
    facts, arguments = guest.draw(layer)
    x = layer.rng.integers(-9, 10, (layer.batch, layer.channels[0], *layer.size)).astype(float)
    w = layer.rng.integers(-9, 10, (layer.channels[0], layer.channels[1] // layer.groups, *layer.kernel)).astype(float)
    try:
        return Layer(facts, arguments, x, w, conventions.FRAMEWORKS[guest.framework].read(facts | arguments), layer.groups)
    except ArgumentError as error:
        return Layer(facts, arguments, x, w, error, layer.groups)


def run(guest: Guest, calls: list[tuple[Any, Any, dict[str, Any]]]) -> list[Any]:
    """The guest's results for (x, its own weight, its own arguments), with x and the results as (N, C, *size)."""
    firsts = [axes(guest.framework, arguments)[-1] for _, _, arguments in calls]
    cases = [(x if first else np.moveaxis(x, 1, -1), np.ascontiguousarray(w), a) for (x, w, a), first in zip(calls, firsts, strict=True)]
    return [y if first or isinstance(y, str) else np.moveaxis(y, -1, 1) for y, first in zip(guest.run(cases), firsts, strict=True)]


@cache
def layers(guest: Guest) -> list[tuple[Layer, Any]]:
    """The guest's layers with its results. Where we refuse, the weight's axes are such that a refusal is for the arguments."""
    drawn = [draw(guest, seed) for seed in range(guest.cases)]
    calls = []
    for layer in drawn:
        letters, by, _ = axes(guest.framework, layer.arguments, layer.groups)
        weight = layer.reading.weight if layer.legal else conventions.WeightLayout(letters, groups=layer.groups, by=by)
        calls.append((layer.x, weight.from_canonical(layer.w), layer.arguments))
    return list(zip(drawn, run(guest, calls), strict=True))


# A guest, what a note of ours says, what the guest then raises.
REFUSALS = (
    ("onnx", "onnxruntime refuses output_padding >= stride", "inconsistent"),
    ("tensorflow", "TensorFlow refuses dilations", "do not yet support dilation"),
    ("keras-tensorflow", "the TensorFlow backend refuses", ""),
)


# What a framework computes and we refuse: a piece of our rule, and what it does.
ACCEPTED = {
    "onnx": {"where runtimes differ": "size above the largest"},
    "flax": {"wraps the output around": "no crop", "in capitals": "small letters are another padding to lax"},
    "mlx": {"computes something else": "padding above K - 1"},
    "openvino": {"drops its pads": "no pads beside output_shape", "without a shift": "no shift of one tap"},
    "ncnn": {"so must the other pads": "pads below 0 are set aside"},
    "tflite": {"must be the input's": "a size of its own"},
    "scipy": {"every down-th": "no crop"},
}


def trap(guest: Guest, layer: Layer, y: Any) -> str | None:
    """The name of a known difference between what we and the guest accept."""
    if not layer.legal and not isinstance(y, str):
        if y.size == 0:
            return "it returns an empty array"
        for rule, name in ACCEPTED.get(guest.framework, {}).items():
            if rule in layer.reading.rule:
                return name
    if layer.legal and isinstance(y, str):
        for name, words, raised in REFUSALS:
            if guest.name == name and any(words in note for note in layer.reading.notes) and raised in y:
                return f"a note says that {words}"
    return None


@pytest.mark.parametrize("guest", GUESTS, ids=str)
def test_arguments_mean_what_the_framework_computes(guest):
    seen: Counter[str] = Counter()
    for layer, y in layers(guest):
        refused = isinstance(y, str)
        if layer.legal and not refused:
            np.testing.assert_array_equal(y, layer.expected, err_msg=f"{guest}: {layer}", strict=False)
            seen["equal"] += 1
        elif not layer.legal and refused:
            seen["refused by both"] += 1
        else:
            name = trap(guest, layer, y)
            assert name, f"{guest}: {layer}\nbut the framework gives {y if refused else y.shape}"
            seen[name] += 1
    print(f"{guest}: {dict(seen)}")
    assert seen["equal"] > guest.cases // 2
    assert sum(not layer.legal for layer, _ in layers(guest)) > guest.cases // 100


@pytest.mark.parametrize("target", GUESTS, ids=str)
@pytest.mark.parametrize("source", GUESTS, ids=str)
def test_conversion_computes_the_same(source, target):
    chosen = [layer for layer, y in layers(source) if layer.legal and not isinstance(y, str) and writable(target, layer.reading.spec)]
    chosen = chosen[: min(CONVERTED, target.cases // 20)]
    assert len(chosen) >= (10 if target.framework != "scipy" else 1 in source.ranks)
    answers = [conventions.convert(source.framework, target.framework, **layer.facts, **layer.arguments) for layer in chosen]
    calls = [call for layer, answer in zip(chosen, answers, strict=True) for call in written(layer, answer)]
    results = iter(run(target, calls))
    for layer, answer in zip(chosen, answers, strict=True):
        parts = [next(results) for _ in written(layer, answer)]
        if trap(target, Layer({}, {}, layer.x, layer.w, answer.target), parts[0]):
            continue
        assert not any(isinstance(part, str) for part in parts), f"{layer}\n{answer}\n{parts}"
        np.testing.assert_array_equal(finished(answer, parts), layer.expected, err_msg=f"{layer}\n{answer}")


def writable(target: Guest, spec: Any) -> bool:
    """Whether there is anything to write: SciPy has one axis and one channel."""
    return target.framework != "scipy" or (spec.rank == spec.in_channels == spec.out_channels == 1)


def written(layer: Layer, answer: conventions.Conversion) -> list[tuple[Any, Any, dict[str, Any]]]:
    """The calls that an answer says to write, with its weight made from the source's."""
    w = layer.reading.weight.from_canonical(layer.w)
    if answer.exists:
        return [(layer.x, answer.weight(w), answer.arguments)]
    steps = answer.instead
    x = layer.x[:, :, None] if steps.lifted else layer.x
    return [(x, answer.weight(w, j), steps.arguments) for j, x in enumerate(np.split(x, steps.groups, axis=1))]


def finished(answer: conventions.Conversion, parts: list[np.ndarray]) -> np.ndarray:
    """Join, slice and append zeros, as the answer says."""
    y = np.concatenate(parts, axis=1)
    if answer.instead and answer.instead.lifted:
        y = y.squeeze(axis=2)
    if answer.instead and answer.instead.slices:
        y = np.pad(y[(..., *answer.instead.slices)], [(0, 0), (0, 0), *answer.instead.zeros])
    return y
