# SPDX-License-Identifier: Apache-2.0
"""One call of the layer, in PyTorch's words or ours: what they mean, what goes to the core, and what to PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from . import _torch_core as core
from . import _torch_native as native
from . import _torch_ops as ops
from . import conventions
from ._functional import key
from ._operator import large_enough
from ._spec import ArgumentError, Spec, is_single

Tensor = torch.Tensor

_TRACED = (FakeTensor, FunctionalTensor)


class Words(NamedTuple):
    """The arguments of PyTorch's functions, in its order; `padding` may also be a string or hold (lo, hi) pairs."""

    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: Any = 1
    dilation: Any = 1

    @property
    def are_torch(self) -> bool:
        """Whether PyTorch has these words, and so its own meaning and its own errors for them."""
        padding = self.padding
        return not isinstance(padding, str) and (is_single(padding) or all(map(is_single, padding)))


class Geometry(NamedTuple):
    """What words mean for a kernel: one int per axis, and lo and hi per axis in one row."""

    stride: tuple[int, ...]
    crop: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def longer(self, extra: Sequence[int]) -> Geometry:
        """With so many outputs more at the end of each axis."""
        more = [n for each in extra for n in (0, each)]
        return self._replace(crop=tuple(n - m for n, m in zip(self.crop, more, strict=True)))


@torch.fx.wrap  # a tracer of torch.fx records the call as it is, as it does with PyTorch's functions
def transposed(rank: int, x: Tensor, w: Tensor, bias: Tensor | None, words: Words, extra: Sequence[int] | None = None,
               frozen: bool = False) -> Tensor:  # fmt: skip
    """The layer: x (N, Cin, *I) or (Cin, *I), w (Cin, Cout / groups, *kernel), bias (Cout,) -> (N, Cout, *O) or (Cout, *O).

    `extra` outputs at the end take the place of output_padding. What the core does not compute is left to PyTorch, and so are errors
    in PyTorch's own words.
    """
    if torch.is_autocast_enabled("cpu"):
        x, w, bias = _autocast(x), _autocast(w), None if bias is None else _autocast(bias)
    if not _ours(rank, x, w, bias):
        return _by_torch(rank, x, w, bias, words, extra)
    single = x.ndim == rank + 1
    try:
        geometry = _meaning(w, words, extra)
        if frozen and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or ops.watched(x, w)):
            y = core.forward(x[None] if single else x, w, bias, *geometry, frozen=True)
        else:
            y = ops.conv_transpose(x[None] if single else x, w, bias, *geometry)
    except ArgumentError:
        if words.are_torch:
            return _by_torch(rank, x, w, bias, words, extra)
        raise
    return y[0] if single else y


def to_size(x: Tensor, w: Tensor, words: Words, output_size: Sequence[int]) -> Words:
    """Our own words made to give an output size, as pairs of the crop; an `output_size` may start as x.size() does."""
    rank = w.ndim - 2
    sizes, asked = tuple(int(n) for n in x.shape[-rank:]), tuple(int(n) for n in output_size[-rank:])
    spec = Spec.build(sizes, tuple(w.shape[2:]), stride=words.stride, padding=words.padding, dilation=words.dilation, output_size=asked)
    return words._replace(padding=spec.crop, output_padding=0)


def _ours(rank: int, x: Tensor, w: Tensor, bias: Tensor | None) -> bool:
    """Whether the core takes these tensors: real, dense, on the CPU, of one dtype, of fitting shapes; and derivatives backwards only."""
    if not (x.is_cpu and w.is_cpu and x.dtype is w.dtype and x.dtype in core.SUMMED and w.ndim == rank + 2):
        return False
    if x.ndim - rank not in (1, 2) or x.shape[-1 - rank] != w.shape[0]:
        return False
    if bias is not None and not (bias.is_cpu and bias.dtype is x.dtype and bias.ndim == 1):
        return False
    return torch.compiler.is_compiling() or (x.layout is torch.strided and not (ops.watched(x, w) and _foreign(x, w)))


def _foreign(x: Tensor, w: Tensor) -> bool:
    """Whether a call that is watched is beyond our operators: derivatives forwards, tensors that stand for more than themselves."""
    kinds = [key.key() for key in torch._C._functorch.get_interpreter_stack() or ()]
    if forward_ad._current_level >= 0 or torch._C._functorch.TransformType.Jvp in kinds:
        return True
    return any(type(t) not in ops.PLAIN and not isinstance(t, _TRACED) for t in (x, w))


def _autocast(tensor: Tensor) -> Tensor:
    """As PyTorch's autocast does for its convolutions: float32 goes down, float64 stays."""
    eligible = tensor.is_cpu and tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.to(torch.get_autocast_dtype("cpu")) if eligible else tensor


def _by_torch(rank: int, x: Tensor, w: Tensor, bias: Tensor | None, words: Words, extra: Sequence[int] | None) -> Tensor:
    if words.are_torch:
        stride, padding, output_padding, groups, dilation = words
        return native.UP[rank](x, w, bias, stride, padding, output_padding if extra is None else extra, groups, dilation)
    return native.forward(x, w, bias, *_meaning(w, words, extra))


def _meaning(w: Tensor, words: Words, extra: Sequence[int] | None) -> Geometry:
    if torch.compiler.is_compiling():
        geometry = _constant_geometry(tuple(int(k) for k in w.shape[2:]), *words)
    else:
        geometry = _geometry(w.shape[2:], *(key("", value) for value in words))
    return geometry if extra is None else geometry.longer(extra)


@lru_cache(maxsize=512)
def _geometry(kernel: tuple[int, ...], stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any) -> Geometry:
    """The geometry, by way of a spec of some input size, on which it does not depend; ArgumentError for words without a meaning."""
    words = Words(stride, padding, output_padding, groups, dilation)
    read = (lambda **w: conventions.torch(**w).spec) if words.are_torch else Spec.build
    spec = read(input_size=large_enough(padding, stride, len(kernel)), kernel_size=tuple(kernel), in_channels=groups, out_channels=groups,
                **words._asdict())  # fmt: skip
    return Geometry(spec.stride, tuple(n for pair in spec.crop for n in pair), spec.dilation, spec.groups)


# A compiler need not look into it: it depends on no tensor.
_constant_geometry = torch.compiler.assume_constant_result(lambda kernel, *words: _geometry(kernel, *(key("", v) for v in words)))
