# SPDX-License-Identifier: Apache-2.0
"""One call of the layer in Keras's words: what they mean, what goes to the core, and what to the operators of Keras's backend.

Keras has one backend in a process, and only that one is imported. On a CPU its tensors go to the core by way of `tconv.tensorflow`,
`tconv.torch` or `tconv.jax`, of which the last two serve other devices too; what is left is `by_operators`, made of `keras.ops` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
from keras import ops

from ._spec import ArgumentError, Axis, pairs
from .conventions._convention import Crop
from .conventions._keras import named_crops

Size: TypeAlias = int | None  # of an axis; None where it is not known yet


class Geometry(NamedTuple):
    """A layer's words, one number per axis; `padding` is "valid", "same" or one (lo, hi) pair per axis."""

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[Crop, ...]
    output_padding: tuple[int, ...] | None
    dilation_rate: tuple[int, ...]
    groups: int
    data_format: str

    @property
    def rank(self) -> int:
        return len(self.kernel_size)

    @property
    def last(self) -> bool:
        """Whether channels come last."""
        return self.data_format == "channels_last"

    @property
    def dilated_upsampling(self) -> bool:
        """Whether there are strides beside a dilation, on whichever axes, which Keras's layers refuse."""
        return max(self.strides) > 1 and max(self.dilation_rate) > 1

    @property
    def lacking(self) -> str | None:
        """What Keras's layer has no words for, or None."""
        if self.groups > 1:
            return f"Keras has no groups={self.groups}"
        if not isinstance(self.padding, str):
            return f"Keras has no padding={self.padding}"
        return "Keras has no strides beside a dilation_rate" if self.dilated_upsampling else None

    @property
    def crop(self) -> tuple[Crop, ...]:
        """(lo, hi) per axis of the full output: Keras's rule for words, explicit pairs less the output_padding at the end."""
        if isinstance(self.padding, str):
            axes = [Axis(1, *numbers) for numbers in zip(self.kernel_size, self.strides, self.dilation_rate, strict=True)]
            return tuple(named_crops(axes, self.padding, self.output_padding))
        extra = self.output_padding or (0,) * self.rank
        return tuple((lo, hi - more) for (lo, hi), more in zip(self.padding, extra, strict=True))

    def output_size(self, shape: Sequence[Size]) -> tuple[Size, ...]:
        """The spatial sizes of the output for an input of this shape."""
        if len(shape) != self.rank + 2:
            raise _marked(ArgumentError("inputs", tuple(shape), f"must have {self.rank + 2} axes"))
        sizes = tuple(shape[1:-1] if self.last else shape[2:])
        columns = zip(sizes, self.kernel_size, self.strides, self.dilation_rate, self.crop, strict=True)
        found = tuple(None if n is None else Axis(n, k, s, d, *crop).output for n, k, s, d, crop in columns)
        if any(size is not None and size < 1 for size in found):
            raise _marked(ArgumentError("padding", self.padding, f"leaves {found} of the output of an input of {sizes}"))
        return found


def _marked(error: ArgumentError) -> ArgumentError:
    """The error as Keras lets it pass; of one that it does not know it would make a RuntimeError."""
    error._keras_call_info_injected = True  # type: ignore[attr-defined]
    return error


def explicit(padding: Any, rank: int) -> tuple[Crop, ...] | None:
    """The pairs of a padding that is no word, None for a word."""
    return None if isinstance(padding, str) else tuple(pairs("padding", padding, rank))


def conv_transpose(geometry: Geometry, x: Any, kernel: Any, bias: Any = None) -> Any:
    """The layer on tensors of Keras's backend: on a CPU by the core, elsewhere by the backend's own operators.

    x (N, *I, Cin) or (N, Cin, *I), kernel (*k, Cout / groups, Cin), bias (Cout,) or None -> (N, *O, Cout) or (N, Cout, *O)
    """
    geometry.output_size(x.shape)
    run = _BACKENDS.get(keras.backend.backend(), by_operators)
    try:
        return run(geometry, *(None if tensor is None else ops.convert_to_tensor(tensor) for tensor in (x, kernel, bias)))
    except ArgumentError as error:  # of a dtype
        name = {"x": "inputs", "w": "kernel"}.get(error.argument, error.argument)
        raise _marked(ArgumentError(name, error.value, error.rule, error.problem)) from None


def supports_jit() -> bool:
    """Whether Keras may compile a model with this layer: not with TensorFlow's XLA on a CPU, which cannot call the core."""
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return not _is_cpu_alone(tf)


# ---------------------------------------------------------------------------------------------------- the backends


def _tensorflow(geometry: Geometry, x: Any, kernel: Any, bias: Any) -> Any:
    import tensorflow as tf

    from . import tensorflow as ours
    from .conventions._tensorflow import FORMATS

    here = "CPU" in x.device if tf.executing_eagerly() else _is_cpu_alone(tf) and not _compiles_with_xla(tf)
    if not here:
        return by_operators(geometry, x, kernel, bias)
    return ours.conv_transpose(x, kernel, bias, strides=geometry.strides, padding=geometry.crop, dilations=geometry.dilation_rate,
                               groups=geometry.groups, data_format=FORMATS[geometry.rank][not geometry.last])  # fmt: skip


def _is_cpu_alone(tf: Any) -> bool:
    """Whether a graph cannot be placed anywhere else; this does not start TensorFlow, so that its settings stay open."""
    return all(device.device_type == "CPU" for device in tf.config.get_visible_devices())


def _compiles_with_xla(tf: Any) -> bool:
    """Whether the function that is being traced has jit_compile=True; TensorFlow has no public question for it."""
    from tensorflow.python.ops import control_flow_util

    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def _torch(geometry: Geometry, x: Any, kernel: Any, bias: Any) -> Any:
    """PyTorch puts channels first: a view, whose memory stays channels-last, and which is computed as it lies."""
    from . import torch as ours

    rank = geometry.rank
    call = (ours.conv_transpose1d, ours.conv_transpose2d, ours.conv_transpose3d)[rank - 1]
    y = call(x.movedim(-1, 1) if geometry.last else x, kernel.permute(rank + 1, rank, *range(rank)), bias, geometry.strides,
             geometry.crop, 0, geometry.groups, geometry.dilation_rate)  # fmt: skip
    return y.movedim(1, -1) if geometry.last else y


def _jax(geometry: Geometry, x: Any, kernel: Any, bias: Any) -> Any:
    """`tconv.jax` chooses by the device that the code is compiled for."""
    from . import jax as ours
    from .conventions._jax import SPATIAL

    spatial = SPATIAL[geometry.rank]
    data = f"N{spatial}C" if geometry.last else f"NC{spatial}"
    return ours.conv_transpose(x, kernel, geometry.strides, geometry.crop, geometry.dilation_rate, (data, f"{spatial}IO", data),
                               transpose_kernel=True, use_consistent_padding=True, bias=bias, groups=geometry.groups)  # fmt: skip


_BACKENDS: dict[str, Callable[[Geometry, Any, Any, Any], Any]] = {"tensorflow": _tensorflow, "torch": _torch, "jax": _jax}


# ---------------------------------------------------------------------------------------------------- the backend's own operators


def by_operators(geometry: Geometry, x: Any, kernel: Any, bias: Any) -> Any:
    """The layer by `keras.ops.conv_transpose`: by Keras's words where it has them, otherwise as its full output, group by group, cut."""
    y = _in_words(geometry, x, kernel) if _has_words(geometry) else _cut(geometry, _full(geometry, x, kernel))
    if bias is None:
        return y
    return y + ops.reshape(bias, (1, *[1] * geometry.rank, -1) if geometry.last else (1, -1, *[1] * geometry.rank))


def _has_words(geometry: Geometry) -> bool:
    """Whether every backend has them: TensorFlow refuses "same" with an output_padding of 0 and an even kernel."""
    return geometry.lacking is None and not (geometry.padding == "same" and 0 in (geometry.output_padding or ()))


def _in_words(geometry: Geometry, x: Any, kernel: Any) -> Any:
    return ops.conv_transpose(x, kernel, geometry.strides, geometry.padding, geometry.output_padding, geometry.data_format,
                              geometry.dilation_rate)  # fmt: skip


def _full(geometry: Geometry, x: Any, kernel: Any) -> Any:
    """The full output of every group, joined along the channels."""
    if geometry.dilated_upsampling:
        kernel = _spread(kernel, geometry.dilation_rate)
        geometry = geometry._replace(dilation_rate=(1,) * geometry.rank)
    words = geometry._replace(padding="valid", output_padding=(0,) * geometry.rank)
    axis = -1 if geometry.last else 1
    shares = zip(ops.split(x, geometry.groups, axis), ops.split(kernel, geometry.groups, -1), strict=True)
    return ops.concatenate([_in_words(words, *share) for share in shares], axis)


def _spread(kernel: Any, dilation: Sequence[int]) -> Any:
    """The kernel with d - 1 zeros between its taps: a dilation that every operator computes."""
    for axis, d in enumerate(dilation):
        *before, taps = kernel.shape[: axis + 1]
        after = kernel.shape[axis + 1 :]
        apart = ops.reshape(kernel, (*before, taps, 1, *after))
        apart = ops.pad(apart, [(0, d - 1 if i == axis + 1 else 0) for i in range(len(apart.shape))])
        kernel = ops.reshape(apart, (*before, taps * d, *after))[(slice(None),) * axis + (slice(d * (taps - 1) + 1),)]
    return kernel


def _cut(geometry: Geometry, full: Any) -> Any:
    """The full output less the crop; zeros are appended first, so that a crop may go beyond the full output."""
    y = ops.pad(full, _around(geometry, [(max(-lo, 0), max(-hi, 0)) for lo, hi in geometry.crop], (0, 0)))
    return y[tuple(_around(geometry, [slice(max(lo, 0), -hi if hi > 0 else None) for lo, hi in geometry.crop], slice(None)))]


def _around(geometry: Geometry, spatial: list[Any], rest: Any) -> list[Any]:
    """One thing per axis of the data, from those of the spatial axes and one for the others."""
    return [rest, *spatial, rest] if geometry.last else [rest, rest, *spatial]
