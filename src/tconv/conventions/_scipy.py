# SPDX-License-Identifier: Apache-2.0
"""SciPy: `scipy.signal.upfirdn`, one signal up by a factor and through one filter."""

from __future__ import annotations

from collections.abc import Iterator

from .._spec import ArgumentError, Ints, Spec, integer
from ._convention import Arguments, Convention, Framework, WeightLayout, bare_axes, settle


def scipy(*, input_size: Ints, kernel_size: Ints, up: int = 1, down: int = 1, batch: int = 1, in_channels: int = 1,
          out_channels: int = 1) -> Convention:  # fmt: skip
    """`upfirdn(h, x, up)` is the full output of a 1-D layer with one channel, h its kernel: lo = hi = 0.

    `kernel_size` is the length of h. Dilation is zeros in h. `down` keeps every down-th output, which no crop does. There are no
    channels: one call for every pair of them, added up.

    >>> scipy(input_size=8, kernel_size=4, up=2).spec.output_size
    (18,)
    """
    axes = bare_axes(input_size, kernel_size=kernel_size, up=up)
    if len(axes) != 1:
        raise ArgumentError("input_size", input_size, "must have one spatial axis")
    if integer("down", down) != 1:
        raise ArgumentError("down", down, "must be 1: no crop of the full output keeps every down-th value")
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value != 1:
            raise ArgumentError(name, value, "must be 1: upfirdn filters one signal, so call it for every pair of channels and add up")
    return settle("scipy", axes, [(0, 0)], WeightLayout("*"), "channels_first", batch=batch, in_channels=1, out_channels=1, lacks="C")


def _guesses(spec: Spec) -> Iterator[Arguments]:
    yield {"up": spec.stride[0]}


SCIPY = Framework(scipy, _guesses, "crops nothing", ranks=(1,), dilates=())
