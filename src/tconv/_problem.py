# SPDX-License-Identifier: Apache-2.0
"""From the shapes of arrays to a `Spec`: what `reference`, the functions and `Operator` share. No NumPy here."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

from ._spec import ArgumentError, Spec, at_least_one, integer, integers, is_single, pairs

LAYOUTS = ("channels_first", "channels_last")
ACTIVATIONS = (None, "relu", "leaky_relu", "tanh", "sigmoid")  # in the order of the core's numbers
SLOPE = 0.01
_LARGEST = {False: 3.4028234663852886e38, True: 1.7976931348623157e308}  # float32, float64


class Problem(NamedTuple):
    """A `Spec` with how its arrays hold the axes: `batched` False means the arrays lack the batch axis."""

    spec: Spec
    layout: str
    batched: bool

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._arrange(self.spec.input_shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self._arrange(self.spec.output_shape)

    def _arrange(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        batch, channels, *size = shape
        ordered = (channels, *size) if self.layout == "channels_first" else (*size, channels)
        return (batch, *ordered) if self.batched else ordered


def forward(x: Sequence[int], w: Sequence[int], *, layout: str = "channels_first", groups: int = 1, **words: Any) -> Problem:
    """The problem of `conv_transpose(x, w)`, from the two shapes and tconv's own words."""
    size, kernel, out_channels = weight_axes(w, groups)
    batch, channels, sizes, batched = _data("x", x, len(kernel), layout)
    if channels != size:
        raise ArgumentError("x", tuple(x), f"has {channels} channels where w of shape {tuple(w)} takes {size}")
    spec = Spec.build(sizes, kernel, groups=groups, batch=batch, in_channels=size, out_channels=out_channels, **words)
    return Problem(spec, layout, batched)


def grad_input(grad: Sequence[int], w: Sequence[int], input_size: Any = None, *, layout: str = "channels_first", groups: int = 1,
               **words: Any) -> Problem:  # fmt: skip
    """The problem whose output has the shape `grad`; without `input_size` the smallest input that gives it."""
    in_channels, kernel, out_channels = weight_axes(w, groups)
    batch, channels, sizes, batched = _data("grad", grad, len(kernel), layout)
    if channels != out_channels:
        raise ArgumentError("grad", tuple(grad), f"has {channels} channels where w of shape {tuple(w)} gives {out_channels}")
    if input_size is None:
        input_size = smallest_input(sizes, kernel, words)
    return Problem(_match(sizes, input_size, kernel, words, groups=groups, batch=batch, in_channels=in_channels,
                          out_channels=out_channels), layout, batched)  # fmt: skip


def grad_weight(x: Sequence[int], grad: Sequence[int], kernel_size: Any, *, layout: str = "channels_first", groups: int = 1,
                **words: Any) -> Problem:  # fmt: skip
    """The problem with input shape `x`, output shape `grad` and the given kernel size, whose length tells the spatial axes.

    A single int tells nothing, and arrays of three axes or more then count as having a batch.
    """
    rank = max(len(x) - 2, 1) if is_single(kernel_size) else len(integers("kernel_size", kernel_size))
    if not is_single(kernel_size) and not 1 <= rank <= 3:
        raise ArgumentError("kernel_size", kernel_size, "must hold one int per spatial axis, 1 to 3 in all")
    batch, in_channels, sizes, batched = _data("x", x, rank, layout)
    grad_batch, out_channels, outputs, _ = _data("grad", grad, rank, layout)
    if len(grad) != len(x) or grad_batch != batch:
        raise ArgumentError("grad", tuple(grad), f"must have the rank and batch of x, whose shape is {tuple(x)}")
    return Problem(_match(outputs, sizes, kernel_size, words, groups=groups, batch=batch, in_channels=in_channels,
                          out_channels=out_channels), layout, batched)  # fmt: skip


def gradients(x: Sequence[int], w: Sequence[int], grad: Sequence[int], *, layout: str = "channels_first", groups: int = 1,
              **words: Any) -> Problem:  # fmt: skip
    """The problem of the layer (x, w) whose output has the shape `grad`."""
    in_channels, kernel, out_channels = weight_axes(w, groups)
    if len(x) >= 2 and (channels := _data("x", x, len(kernel), layout)[1]) != in_channels:
        raise ArgumentError("x", tuple(x), f"has {channels} channels where w of shape {tuple(w)} takes {in_channels}")
    problem = grad_weight(x, grad, kernel, layout=layout, groups=groups, **words)
    if (channels := problem.spec.out_channels) != out_channels:
        raise ArgumentError("grad", tuple(grad), f"has {channels} channels where w of shape {tuple(w)} gives {out_channels}")
    return problem


def weight_axes(shape: Sequence[int], groups: int) -> tuple[int, tuple[int, ...], int]:
    """(in_channels, kernel_size, out_channels) of a weight (Cin, Cout / groups, *kernel_size)."""
    if not 3 <= len(shape) <= 5:
        raise ArgumentError("w", tuple(shape), "must have the axes (in_channels, out_channels / groups, *kernel_size), 3 to 5 in all")
    groups = integer("groups", groups)
    at_least_one("groups", [groups])
    return shape[0], tuple(shape[2:]), shape[1] * groups


def check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ArgumentError("layout", layout, f"must be one of {LAYOUTS}")


def check_bias(shape: Sequence[int], channels: int, problem: object = None) -> None:
    if tuple(shape) != (channels,):
        raise ArgumentError("bias", tuple(shape), f"must have the shape ({channels},), one value per output channel", problem)


def activation_code(activation: Any, negative_slope: Any, double: bool) -> tuple[int, float]:
    """What follows the bias, as the core has it: a number, and the slope of leaky_relu."""
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        raise ArgumentError("activation", activation, f"must be one of {', '.join(map(repr, ACTIVATIONS))}")
    try:
        real = isinstance(negative_slope, Real) and not isinstance(negative_slope, bool)
        slope = float(negative_slope) if real else float("nan")
    except OverflowError:
        slope = float("inf")
    if not abs(slope) <= _LARGEST[double]:
        raise ArgumentError("negative_slope", negative_slope, "must be a real number that is finite in the dtype of the computation")
    if activation != "leaky_relu" and slope != SLOPE:
        raise ArgumentError("negative_slope", negative_slope, f"means something for activation='leaky_relu' only, not for {activation!r}")
    return ACTIVATIONS.index(activation), slope


def _data(name: str, shape: Sequence[int], rank: int, layout: str) -> tuple[int, int, tuple[int, ...], bool]:
    """(batch, channels, sizes, batched) of a data array."""
    check_layout(layout)
    if len(shape) not in (rank + 1, rank + 2):
        axes = "(batch, channels, *size)" if layout == "channels_first" else "(batch, *size, channels)"
        raise ArgumentError(name, tuple(shape), f"must have {rank + 2} axes {axes}, or {rank + 1} without the batch")
    batched = len(shape) == rank + 2
    batch, *rest = shape if batched else (1, *shape)
    channels, *size = rest if layout == "channels_first" else (rest[-1], *rest[:-1])
    return batch, channels, tuple(size), batched


def _match(outputs: Sequence[int], input_size: Any, kernel: Any, words: dict[str, Any], **channels: int) -> Spec:
    """The spec whose output size is `outputs`; the size fixes what output_padding may leave open."""
    words = dict(words)
    asked = words.pop("output_size", None)
    if asked is not None and integers("output_size", asked, len(outputs)) != tuple(outputs):
        raise ArgumentError("output_size", asked, f"must equal the size of grad, {tuple(outputs)}")
    sizes = integers("input_size", input_size, len(outputs))
    if any(integers("output_padding", words.get("output_padding", 0), len(outputs))):
        spec = Spec.build(sizes, kernel, **words, **channels)
        if spec.output_size != tuple(outputs):
            raise ArgumentError("grad", tuple(outputs), f"must have the spatial size {spec.output_size} that this problem gives", spec)
        return spec
    words.pop("output_padding", None)
    try:
        return Spec.build(sizes, kernel, output_size=outputs, **words, **channels)
    except ArgumentError as error:
        if error.argument != "output_size":
            raise
        raise ArgumentError("grad", tuple(outputs), f"its spatial size {error.rule}", error.problem) from None


def smallest_input(outputs: Sequence[int], kernel: Sequence[int], words: dict[str, Any]) -> tuple[int, ...]:
    """The size a forward convolution would give: floor((O + lo + hi - K) / stride) + 1; `same`: ceil(O / stride).

    At least 1, so that a gradient too small for one stamp is refused by its own size.
    """
    rank, padding = len(outputs), words.get("padding", 0)
    stride, dilation, extra = (integers(n, words.get(n, d), rank) for n, d in (("stride", 1), ("dilation", 1), ("output_padding", 0)))
    at_least_one("stride", stride)
    if isinstance(padding, str) and padding == "same":
        return tuple(max(1, -(-o // s)) for o, s in zip(outputs, stride, strict=True))
    crops = pairs("padding", 0 if isinstance(padding, str) else padding, rank)
    return tuple(max(1, (o - e + lo + hi - d * (k - 1) - 1) // s + 1)
                 for o, e, (lo, hi), k, s, d in zip(outputs, extra, crops, kernel, stride, dilation, strict=True))  # fmt: skip
