# SPDX-License-Identifier: Apache-2.0
"""One call of the layer, in PyTorch's words or ours: what they mean, what goes to the core, and what to PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from . import _torch_core as core
from . import _torch_native as native
from . import _torch_ops as ops
from . import conventions
from ._functional import key as hashable
from ._operator import large_enough
from ._problem import SLOPE, activation_code
from ._spec import ArgumentError, Spec, is_single
from ._torch_arrays import SUMMED, is_last

_TRACED = (FakeTensor, FunctionalTensor)


class Words(NamedTuple):
    """The arguments of PyTorch's functions, in its order; `padding` may also be a string or hold (lo, hi) pairs.

    Calls hand them on as the bare tuple, which is made ten times as fast.
    """

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

    def longer(self, more: Sequence[int]) -> Geometry:
        """With so many outputs more at the beginning and the end of each axis."""
        return self._replace(crop=tuple(n - m for n, m in zip(self.crop, more, strict=True)))


class Activation(NamedTuple):
    """A function of each element, as `fold_` makes it part of a layer."""

    name: str
    slope: float = SLOPE  # of a leaky one

    @classmethod
    def of(cls, module: torch.nn.Module) -> Activation | None:
        """What a module computes, if it is one of ours."""
        names = {torch.nn.ReLU: "relu", torch.nn.LeakyReLU: "leaky_relu", torch.nn.Tanh: "tanh", torch.nn.Sigmoid: "sigmoid"}
        name = names.get(type(module))
        return None if name is None else cls(name, getattr(module, "negative_slope", SLOPE))

    def __call__(self, y: Tensor) -> Tensor:
        """Of every element, by PyTorch."""
        if self.name == "leaky_relu":
            return torch.nn.functional.leaky_relu(y, self.slope)
        function: Callable[[Tensor], Tensor] = getattr(torch, self.name)
        return function(y)

    @property
    def code(self) -> tuple[int, float]:
        """As the core has it."""
        return activation_code(self.name, self.slope, False)


class Prepared(NamedTuple):
    """A call that nobody watches: its geometry, whether x lacks the batch, and the core's plan for a channels-first and -last x or w."""

    geometry: Geometry
    single: bool
    plans: tuple[core.Plan, core.Plan]


def functional(rank: int, x: Tensor, w: Tensor, bias: Tensor | None, *words: Any) -> Tensor:
    """`transposed` in words as a user gives them: they become words that can be looked up, without lists or a 1.0 taken for a 1."""
    if not (torch.compiler.is_compiling() or all(type(word) is int for word in words)):
        try:
            words = tuple(hashable(name, word) for name, word in zip(Words._fields, words, strict=True))
        except ArgumentError:
            if Words(*words).are_torch:
                return native.UP[rank](x, w, bias, *words)
            raise
    return transposed(rank, x, w, bias, words)


@torch.fx.wrap  # a tracer of torch.fx records the call as it is, as it does with PyTorch's functions
def transposed(rank: int, x: Tensor, w: Tensor, bias: Tensor | None, words: tuple[Any, ...], more: tuple[int, ...] | None = None,
               frozen: bool = False, activation: Activation | None = None) -> Tensor:  # fmt: skip
    """The layer: x (N, Cin, *I) or (Cin, *I), w (Cin, Cout / groups, *kernel), bias (Cout,) -> (N, Cout, *O) or (Cout, *O).

    `more` outputs at the beginning and the end of each axis add to those of the words. What the core does not compute is left to
    PyTorch, and so are errors in PyTorch's own words.
    """
    if torch.compiler.is_compiling() or ops.watched(x, w) or torch.is_autocast_enabled("cpu"):
        y = _watched(rank, x, w, bias, words, more)
    elif (prepared := _plain(rank, x, w, bias, words, more)) is None:
        y = _by_torch(rank, x, w, bias, words, more)
    else:
        batch, plan = x[None] if prepared.single else x, prepared.plans[is_last(x) or is_last(w)]
        if not torch.is_grad_enabled():
            after = (0, 0.0) if activation is None else activation.code
            y = core.run(plan, batch, w, bias, frozen, after)
            return y[0] if prepared.single else y
        y = ops.planned(batch, w, bias, plan, prepared.geometry)
        y = y[0] if prepared.single else y
    return y if activation is None else activation(y)


def _plain(rank: int, x: Tensor, w: Tensor, bias: Tensor | None, words: tuple[Any, ...], more: tuple[int, ...] | None) -> Prepared | None:
    """A call that nobody watches, prepared, or None where it is PyTorch's; what is asked here is asked in every call."""
    if not (x.is_cpu and w.is_cpu and x.layout is w.layout is torch.strided and (bias is None or bias.is_cpu)):
        return None
    kinds = (x.dtype, w.dtype) if bias is None else (x.dtype, w.dtype, bias.dtype)
    return _prepared(rank, x.shape, w.shape, None if bias is None else bias.shape, kinds, words, more, torch.get_num_threads(),
                     torch.is_grad_enabled())  # fmt: skip


@lru_cache(maxsize=512)
def _prepared(rank: int, x: tuple[int, ...], w: tuple[int, ...], bias: tuple[int, ...] | None, kinds: tuple[torch.dtype, ...],
              words: tuple[Any, ...], more: tuple[int, ...] | None, threads: int, training: bool) -> Prepared | None:  # fmt: skip
    """The call of these shapes and dtypes, or None where it is PyTorch's to compute or to refuse."""
    if len(set(kinds)) != 1 or kinds[0] not in SUMMED or len(w) != rank + 2 or len(x) - rank not in (1, 2):
        return None
    try:
        geometry = _geometry(w[2:], Words(*words), more)
        batch = (1, *x) if len(x) == rank + 1 else tuple(x)
        first, last = (core.plan(True, training, batch, tuple(w), bias, kinds[0], last, *geometry, threads) for last in (False, rank > 1))
    except ArgumentError:
        if Words(*words).are_torch:
            return None
        raise
    return Prepared(geometry, len(x) == rank + 1, (first, last))


def _watched(rank: int, x: Tensor, w: Tensor, bias: Tensor | None, words: tuple[Any, ...], more: Sequence[int] | None) -> Tensor:
    """The call by way of PyTorch's dispatcher, under a compiler, a transform, a mode or autocast."""
    if torch.is_autocast_enabled("cpu"):
        x, w, bias = _autocast(x), _autocast(w), None if bias is None else _autocast(bias)
    if not _ours(rank, x, w, bias):
        return _by_torch(rank, x, w, bias, words, more)
    geometry = _meaning(w, words, more)
    single = x.ndim == rank + 1
    y = ops.conv_transpose(x[None] if single else x, w, bias, *geometry)
    return y[0] if single else y


def longer(x: Tensor, w: Tensor, words: tuple[Any, ...], output_size: Sequence[int]) -> tuple[int, ...]:
    """The `more` by which our own words give an output size; both sizes may be symbols of a compiler."""
    kernel, more = w.shape[2:], []
    stride, crop, dilation, _ = _meaning(w, words, None)
    sizes = x.shape[-len(kernel) :], output_size[-len(kernel) :]
    for n, size, k, s, d, lo, hi in zip(*sizes, kernel, stride, dilation, crop[::2], crop[1::2], strict=True):
        full = (n - 1) * s + d * (k - 1) + 1
        if not 0 <= size - (full - lo - hi) + (s - 1 if words[1] == "same" else 0) < s:
            own = Words(*words)
            Spec.build(x.shape[-len(kernel) :], kernel, stride=own.stride, padding=own.padding, dilation=own.dilation,
                       output_size=tuple(output_size[-len(kernel) :]))  # raises what is to be said  # fmt: skip
        begin = max(full - size, 0) // 2 if words[1] == "same" else lo
        more += [lo - begin, hi - (full - size - begin)]
    return tuple(more)


def _ours(rank: int, x: Tensor, w: Tensor, bias: Tensor | None) -> bool:
    """Whether the core takes these tensors: real, dense, on the CPU, of one dtype, of fitting shapes; and derivatives backwards only."""
    if not (x.is_cpu and w.is_cpu and x.dtype is w.dtype and x.dtype in SUMMED and w.ndim == rank + 2):
        return False
    if x.ndim - rank not in (1, 2) or x.shape[-1 - rank] != w.shape[0]:
        return False
    if bias is not None and not (bias.is_cpu and bias.dtype is x.dtype and bias.ndim == 1):
        return False
    return torch.compiler.is_compiling() or (x.layout is torch.strided and not (ops.watched(x, w) and _foreign(x, w)))


def _foreign(x: Tensor, w: Tensor) -> bool:
    """Whether a call that is watched is beyond our operators: derivatives forwards, tensors that stand for more than themselves."""
    kinds = [layer.key() for layer in torch._C._functorch.get_interpreter_stack() or ()]
    if forward_ad._current_level >= 0 or torch._C._functorch.TransformType.Jvp in kinds:
        return True
    return any(type(t) not in ops.PLAIN and not isinstance(t, _TRACED) for t in (x, w))


def _autocast(tensor: Tensor) -> Tensor:
    """As PyTorch's autocast does for its convolutions: float32 goes down, float64 stays."""
    eligible = tensor.is_cpu and tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.to(torch.get_autocast_dtype("cpu")) if eligible else tensor


def _by_torch(rank: int, x: Tensor, w: Tensor, bias: Tensor | None, words: tuple[Any, ...], more: Sequence[int] | None) -> Tensor:
    if Words(*words).are_torch:
        stride, padding, output_padding, groups, dilation = words
        return native.UP[rank](x, w, bias, stride, padding, output_padding if more is None else more[1::2], groups, dilation)
    return native.forward(x, w, bias, *_meaning(w, words, more))


def _meaning(w: Tensor, words: tuple[Any, ...], more: Sequence[int] | None) -> Geometry:
    """The geometry that words mean for a weight; `more` may hold symbols of a compiler."""
    kernel = tuple(int(k) for k in w.shape[2:])
    geometry = Geometry(*_constant(kernel, *words)) if torch.compiler.is_compiling() else _geometry(kernel, Words(*words))
    return geometry if more is None else geometry.longer(more)


def _geometry(kernel: tuple[int, ...], words: Words, more: Sequence[int] | None = None) -> Geometry:
    """The geometry, by way of a spec of some input size, on which it does not depend; ArgumentError for words without a meaning."""
    read = (lambda **w: conventions.torch(**w).spec) if words.are_torch else Spec.build
    spec = read(input_size=large_enough(words.padding, words.stride, len(kernel)), kernel_size=tuple(kernel), in_channels=words.groups,
                out_channels=words.groups, **words._asdict())  # fmt: skip
    geometry = Geometry(spec.stride, tuple(n for pair in spec.crop for n in pair), spec.dilation, spec.groups)
    return geometry if more is None else geometry.longer(more)


@torch.compiler.assume_constant_result  # a compiler need not look into it: it depends on no tensor
def _constant(kernel: tuple[int, ...], *words: Any) -> tuple[Any, ...]:
    return tuple(_geometry(kernel, Words(*words)))
