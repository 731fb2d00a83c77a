# SPDX-License-Identifier: Apache-2.0
"""The three operators as PyTorch knows them: `tconv::conv_transpose`, `tconv::grad_input` and `tconv::grad_weight`.

Each is bilinear in two tensors, and the derivatives of each are the other two, so gradients of any order need nothing else:

    operator                   by its first tensor           by its second tensor
    conv_transpose(x, w)       grad_input(g, w)              grad_weight(x, g)
    grad_input(g, w)           conv_transpose(gg, w)         grad_weight(gg, g)
    grad_weight(x, g)          grad_input(g, gg)             conv_transpose(x, gg)

PyTorch's dispatcher takes 20 microseconds to reach an operator written in Python, and 45 with autograd. Where nobody watches (no
compiler, no transform of torch.func, no mode) `Operator.__call__` goes past it: the same functions, joined by `autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _torch_core as core
from . import _torch_native as native
from ._torch_arrays import is_last, memory_format

Backward = Callable[[Any, Tensor], tuple[Any, ...]]

PLAIN = {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}


class Operator:
    """One operator: on the CPU by the core, elsewhere by PyTorch; called directly where possible and by the dispatcher otherwise."""

    def __init__(self, run: Callable[..., Tensor], by_torch: Callable[..., Tensor], registered: Any, backward: Backward,
                 fake: Callable[..., Tensor], vmap: Callable[..., Any]) -> None:  # fmt: skip
        self._run, self._registered = run, registered
        registered.register_fake(fake)
        registered.register_autograd(backward, setup_context=_remember)
        registered.register_vmap(vmap)
        for device in ("cuda", "mps", "xpu"):
            registered.register_kernel(device)(by_torch)
        self.function = _function(forward=self._forward, backward=backward)
        self.transformed = _function(forward=run, setup_context=_remember, backward=backward, vmap=vmap)

    def __call__(self, first: Tensor, second: Tensor, *rest: Any) -> Tensor:
        found: Tensor
        if torch.compiler.is_compiling():
            found = self._registered(first, second, *rest)
        elif torch._C._functorch.peek_interpreter_stack() is not None:  # registered operators have no derivatives in torch.func
            found = self.transformed.apply(first, second, *rest)
        elif watched(first, second):
            found = self._registered(first, second, *rest)
        elif torch.is_grad_enabled():
            found = self.function.apply(first, second, *rest)
        else:
            found = self._run(first, second, *rest)
        return found

    def _forward(self, ctx: Any, *inputs: Any) -> Tensor:
        _remember(ctx, inputs, None)
        return self._run(*inputs)


def watched(first: Tensor, second: Tensor) -> bool:
    """Whether someone needs to see the operator: a transform, a mode, a tracer, a tensor that is more than a tensor."""
    return (
        type(first) not in PLAIN
        or type(second) not in PLAIN
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def _function(**methods: Callable[..., Any]) -> Any:
    """A class of autograd functions. One whose forward takes the context is four times as fast as one that torch.func can transform."""

    class Function(torch.autograd.Function):
        pass

    for name, method in methods.items():
        setattr(Function, name, staticmethod(method))
    return Function


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Two tensors, and the rest as it is: a bias, of which only its presence matters, or a size; then the geometry."""
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.geometry = inputs[3:]


# ---------------------------------------------------------------------------------------------------- registered with PyTorch


@torch.library.custom_op("tconv::conv_transpose", mutates_args=(), device_types="cpu")
def _conv_transpose(x: Tensor, w: Tensor, bias: Tensor | None, stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
                    groups: int) -> Tensor:  # fmt: skip
    return core.forward(x, w, bias, stride, crop, dilation, groups)


@torch.library.custom_op("tconv::grad_input", mutates_args=(), device_types="cpu")
def _grad_input(grad: Tensor, w: Tensor, size: Sequence[int], stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
                groups: int) -> Tensor:  # fmt: skip
    return core.grad_input(grad, w, size, stride, crop, dilation, groups)


@torch.library.custom_op("tconv::grad_weight", mutates_args=(), device_types="cpu")
def _grad_weight(x: Tensor, grad: Tensor, size: Sequence[int], stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
                 groups: int) -> Tensor:  # fmt: skip
    return core.grad_weight(x, grad, size, stride, crop, dilation, groups)


# ---------------------------------------------------------------------------------------------------- derivatives


def _backward_of_conv_transpose(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, w = ctx.saved_tensors
    by_x, by_w, by_bias = ctx.needs_input_grad[:3]
    plain = x.is_cpu and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or watched(x, w) or watched(g, w))
    if plain:  # the step of a training loop: no derivatives of these derivatives
        return (*core.gradients(x, w, g, (by_x, by_w, by_bias), *ctx.geometry), None, None, None, None)
    return (grad_input(g, w, x.shape[2:], *ctx.geometry) if by_x else None,
            grad_weight(x, g, w.shape[2:], *ctx.geometry) if by_w else None,
            g.sum((0, *range(2, g.ndim))) if by_bias else None, None, None, None, None)  # fmt: skip


def _backward_of_grad_input(ctx: Any, gg: Tensor) -> tuple[Any, ...]:
    g, w = ctx.saved_tensors
    by_g, by_w = ctx.needs_input_grad[:2]
    return (conv_transpose(gg, w, None, *ctx.geometry) if by_g else None,
            grad_weight(gg, g, w.shape[2:], *ctx.geometry) if by_w else None, None, None, None, None, None)  # fmt: skip


def _backward_of_grad_weight(ctx: Any, gg: Tensor) -> tuple[Any, ...]:
    x, g = ctx.saved_tensors
    by_x, by_g = ctx.needs_input_grad[:2]
    return (grad_input(g, gg, x.shape[2:], *ctx.geometry) if by_x else None,
            conv_transpose(x, gg, None, *ctx.geometry) if by_g else None, None, None, None, None, None)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the usual call


def planned(x: Tensor, w: Tensor, bias: Tensor | None, plan: core.Plan, geometry: tuple[Any, ...]) -> Tensor:
    """`conv_transpose` as it is planned already, with its derivatives, where nobody watches: every argument of a function takes time."""
    found: Tensor = _planned.apply(x, w, bias, plan, geometry)
    return found


def _forward_planned(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, plan: core.Plan, geometry: tuple[Any, ...]) -> Tensor:
    ctx.save_for_backward(x, w)
    ctx.geometry = geometry
    return core.run(plan, x, w, bias)


def _backward_planned(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return (*_backward_of_conv_transpose(ctx, g)[:3], None, None)


_planned = _function(forward=_forward_planned, backward=_backward_planned)


# ---------------------------------------------------------------------------------------------------- shapes, for tracing


def _fake_conv_transpose(x: Tensor, w: Tensor, bias: Tensor | None, stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
                         groups: int) -> Tensor:  # fmt: skip
    sizes = [(i - 1) * s + d * (k - 1) + 1 - lo - hi
             for i, k, s, d, lo, hi in zip(x.shape[2:], w.shape[2:], stride, dilation, crop[::2], crop[1::2], strict=True)]  # fmt: skip
    for size in sizes:
        torch._check(size >= 1, lambda: f"tconv::conv_transpose: the crop {crop} leaves an output of {sizes}")
    return _empty((x.shape[0], w.shape[1] * groups, *sizes), x, is_last(x) or is_last(w))


def _fake_grad_input(grad: Tensor, w: Tensor, size: Sequence[int], stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
                     groups: int) -> Tensor:  # fmt: skip
    return _empty((grad.shape[0], w.shape[0], *size), grad, is_last(grad) or is_last(w))


def _fake_grad_weight(x: Tensor, grad: Tensor, size: Sequence[int], stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
                      groups: int) -> Tensor:  # fmt: skip
    return x.new_empty((x.shape[1], grad.shape[1] // groups, *size))


def _empty(shape: tuple[int, ...], like: Tensor, last: bool) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(len(shape) - 2, last))


# ---------------------------------------------------------------------------------------------------- vmap: one call for all


def _vmap_conv_transpose(info: Any, dims: tuple[Any, ...], x: Tensor, w: Tensor, bias: Tensor | None, stride: Sequence[int],
                         crop: Sequence[int], dilation: Sequence[int], groups: int) -> tuple[Tensor, int]:  # fmt: skip
    n = info.batch_size
    if dims[1] is None and dims[2] is None:  # one weight for all: more images
        return _split(conv_transpose(_joined(x, dims[0], n, 0), w, bias, stride, crop, dilation, groups), n, 0), 0
    x, w = _joined(x, dims[0], n, 1), _joined(w, dims[1], n, 0)
    bias = None if bias is None else _joined(bias, dims[2], n, 0)
    return _split(conv_transpose(x, w, bias, stride, crop, dilation, n * groups), n, 1), 1


def _vmap_grad_input(info: Any, dims: tuple[Any, ...], grad: Tensor, w: Tensor, size: Sequence[int], stride: Sequence[int],
                     crop: Sequence[int], dilation: Sequence[int], groups: int) -> tuple[Tensor, int]:  # fmt: skip
    n = info.batch_size
    if dims[1] is None:
        return _split(grad_input(_joined(grad, dims[0], n, 0), w, size, stride, crop, dilation, groups), n, 0), 0
    grad, w = _joined(grad, dims[0], n, 1), _joined(w, dims[1], n, 0)
    return _split(grad_input(grad, w, size, stride, crop, dilation, n * groups), n, 1), 1


def _vmap_grad_weight(info: Any, dims: tuple[Any, ...], x: Tensor, grad: Tensor, size: Sequence[int], stride: Sequence[int],
                      crop: Sequence[int], dilation: Sequence[int], groups: int) -> tuple[Tensor, int]:  # fmt: skip
    n = info.batch_size
    x, grad = _joined(x, dims[0], n, 1), _joined(grad, dims[1], n, 1)
    return _split(grad_weight(x, grad, size, stride, crop, dilation, n * groups), n, 0), 0


def _joined(tensor: Tensor, dim: int | None, n: int, axis: int) -> Tensor:
    """The mapped axis joined to `axis`, before it: images of images, or groups of groups."""
    tensor = tensor.unsqueeze(0).expand(n, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def _split(tensor: Tensor, n: int, axis: int) -> Tensor:
    return tensor.unflatten(axis, (n, tensor.shape[axis] // n))


conv_transpose = Operator(core.forward, native.forward, _conv_transpose, _backward_of_conv_transpose, _fake_conv_transpose,
                          _vmap_conv_transpose)  # fmt: skip
grad_input = Operator(core.grad_input, native.grad_input, _grad_input, _backward_of_grad_input, _fake_grad_input, _vmap_grad_input)
grad_weight = Operator(core.grad_weight, native.grad_weight, _grad_weight, _backward_of_grad_weight, _fake_grad_weight,
                       _vmap_grad_weight)  # fmt: skip
