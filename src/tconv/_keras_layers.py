# SPDX-License-Identifier: Apache-2.0
"""The layer as Keras's layers: their constructors, weights, configs, results and errors, and three kinds of geometry more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import layers, saving

from ._keras_call import Geometry, conv_transpose, explicit, supports_jit
from ._spec import ArgumentError, Ints, Padding, at_least_one, integer, integers


class Layer:
    """What ours have before Keras's class in their bases: a constructor that takes more geometry, and the call."""

    rank: int
    filters: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Any
    output_padding: tuple[int, ...] | None
    dilation_rate: tuple[int, ...]
    groups: int
    data_format: str
    use_bias: bool
    bias: Any
    kernel: Any
    activation: Any

    def __init__(
        self,
        filters: int,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: Padding = "valid",
        output_padding: Ints | None = None,
        data_format: str | None = None,
        dilation_rate: Ints = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        groups: int = 1,
        **kwargs: Any,
    ) -> None:
        both = _above_one(strides) and _above_one(dilation_rate)  # which Keras refuses
        super().__init__(  # type: ignore[call-arg]  # Keras's class comes next
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding if isinstance(padding, str) else "valid",
            output_padding=output_padding,
            data_format=data_format,
            dilation_rate=1 if both else dilation_rate,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self.padding = self.padding if isinstance(padding, str) else explicit(padding, self.rank)
        if both:
            self.dilation_rate = integers("dilation_rate", dilation_rate, self.rank)
            at_least_one("dilation_rate", self.dilation_rate)
        self.groups = integer("groups", groups)
        at_least_one("groups", (self.groups,))
        if filters % self.groups:
            raise ArgumentError("groups", groups, f"must divide filters={filters}")
        self.supports_jit = supports_jit()

    @property
    def geometry(self) -> Geometry:
        """The words as they are now."""
        return Geometry(self.kernel_size, self.strides, self.padding, self.output_padding, self.dilation_rate, self.groups,
                             self.data_format)  # fmt: skip

    def build(self, input_shape: Sequence[int | None]) -> None:
        """The weights as Keras makes them, but of a group's filters: kernel (*kernel_size, filters / groups, Cin), bias (filters,)."""
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        if channels is not None and channels % self.groups:
            raise ArgumentError("groups", self.groups, f"must divide the {channels} channels of the input")
        if self.groups == 1:
            super().build(input_shape)  # type: ignore[misc]
            return
        self.input_spec = layers.InputSpec(min_ndim=self.rank + 2, axes={-1 if self.data_format == "channels_last" else 1: channels})
        self.kernel = self._weight("kernel", (*self.kernel_size, self.filters // self.groups, channels))
        self.bias = self._weight("bias", (self.filters,)) if self.use_bias else None

    def _weight(self, name: str, shape: tuple[Any, ...]) -> Any:
        words = {word: getattr(self, f"{name}_{word}") for word in ("initializer", "regularizer", "constraint")}
        return self.add_weight(name=name, shape=shape, trainable=True, dtype=self.dtype, **words)  # type: ignore[attr-defined]

    def call(self, inputs: Any) -> Any:
        """inputs (N, *I, Cin) -> (N, *O, filters), or with channels first (N, Cin, *I) -> (N, filters, *O)."""
        y = conv_transpose(self.geometry, inputs, self.kernel, self.bias)
        return y if self.activation is None else self.activation(y)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of the output, None where that of the input is."""
        sizes = self.geometry.output_size(input_shape)
        return (input_shape[0], *sizes, self.filters) if self.data_format == "channels_last" else (input_shape[0], self.filters, *sizes)

    def get_config(self) -> dict[str, Any]:
        """Keras's config and `groups`."""
        return {**super().get_config(), "groups": self.groups}  # type: ignore[misc]


def _above_one(words: Any) -> bool:
    """Whether one of them is above 1, as far as they are numbers; others are Keras's to refuse."""
    values = words if isinstance(words, (list, tuple)) else (words,)
    return any(isinstance(value, int) and value > 1 for value in values)


@saving.register_keras_serializable(package="tconv")
class Conv1DTranspose(Layer, layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose`, on the CPU by tconv: same constructor, weights, config, results and errors.

    inputs (N, L, Cin) -> (N, O, filters), or with data_format="channels_first" (N, Cin, L) -> (N, filters, O);
    kernel (k, filters / groups, Cin), bias (filters,)

    `padding` may also be what is cropped from the full output: an int, or one int or (lo, hi) pair per axis, where a negative number
    appends zeros; `groups` may be above 1; `strides` and `dilation_rate` may both be. Errors are Keras's, and
    `tconv.ArgumentError` (a ValueError) where Keras has no such word.

    >>> import numpy as np, tconv.keras
    >>> tuple(tconv.keras.Conv1DTranspose(4, 3, strides=2, padding="same", groups=2)(np.ones((1, 8, 2), "float32")).shape)
    (1, 16, 4)
    """


@saving.register_keras_serializable(package="tconv")
class Conv2DTranspose(Layer, layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`, on the CPU by tconv: same constructor, weights, config, results and errors.

    inputs (N, H, W, Cin) -> (N, *O, filters), or with data_format="channels_first" (N, Cin, H, W) -> (N, filters, *O);
    kernel (kH, kW, filters / groups, Cin), bias (filters,)

    `padding`, `groups`, `dilation_rate` and errors as in `Conv1DTranspose`.

    >>> import numpy as np, tconv.keras
    >>> tuple(tconv.keras.Conv2DTranspose(4, 3, strides=2, padding=[(1, 0), (0, 1)])(np.ones((1, 8, 8, 3), "float32")).shape)
    (1, 16, 16, 4)
    """


@saving.register_keras_serializable(package="tconv")
class Conv3DTranspose(Layer, layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose`, on the CPU by tconv: same constructor, weights, config, results and errors.

    inputs (N, D, H, W, Cin) -> (N, *O, filters), or with data_format="channels_first" (N, Cin, D, H, W) -> (N, filters, *O);
    kernel (kD, kH, kW, filters / groups, Cin), bias (filters,)

    `padding`, `groups`, `dilation_rate` and errors as in `Conv1DTranspose`.

    >>> import numpy as np, tconv.keras
    >>> tuple(tconv.keras.Conv3DTranspose(4, 2, strides=2)(np.ones((1, 4, 4, 4, 3), "float32")).shape)
    (1, 8, 8, 8, 4)
    """

    def __init__(self, filters: int, kernel_size: Ints, strides: Ints = 1, padding: Padding = "valid", data_format: str | None = None,
                 output_padding: Ints | None = None, dilation_rate: Ints = 1, *words: Any, **kwargs: Any) -> None:  # fmt: skip
        # Keras's order in three dimensions: data_format comes before output_padding
        super().__init__(filters, kernel_size, strides, padding, output_padding, data_format, dilation_rate, *words, **kwargs)
