# SPDX-License-Identifier: Apache-2.0
"""The three operators on PyTorch's CPU tensors: no autograd, no other device, no copies but for half precision.

Shapes are those of a batch, (N, C, *size). The geometry is `stride` and `dilation`, one int per spatial axis, and `crop`, lo and hi
per spatial axis in one row: (lo0, hi0, lo1, hi1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _core, _problem, _torch_team, _torch_weights
from ._functional import core_problem, prepare
from ._problem import Problem
from ._runtime import check_memory, kernel_for
from ._spec import ArgumentError, Spec
from ._torch_arrays import SUMMED, array, batch, is_last, memory_format

_torch_team.join()

_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Plan(NamedTuple):
    """A call of the layer or of its input gradient, planned: everything that depends on shapes, dtype and format alone."""

    stencil: _core.Stencil
    order: str  # what the order of the packed weight depends on
    shape: tuple[int, ...]  # of the result
    dtype: torch.dtype  # of the arrays
    last: bool  # channels last


def forward(x: Tensor, w: Tensor, bias: Tensor | None, stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
            groups: int) -> Tensor:  # fmt: skip
    """The layer: x (N, Cin, *I), w (Cin, Cout / groups, *k), bias (Cout,) -> (N, Cout, *O), channels-last where x or w is."""
    chosen = plan(True, True, x.shape, w.shape, None if bias is None else bias.shape, x.dtype, is_last(x) or is_last(w), tuple(stride),
                  tuple(crop), tuple(dilation), groups, torch.get_num_threads())  # fmt: skip
    return run(chosen, x, w, bias)


def grad_input(grad: Tensor, w: Tensor, size: Sequence[int], stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
               groups: int) -> Tensor:  # fmt: skip
    """The gradient by x: grad (N, Cout, *O), w (Cin, Cout / groups, *k) -> (N, Cin, *size)."""
    shape = (grad.shape[0], w.shape[0], *size)
    chosen = plan(False, True, shape, w.shape, None, grad.dtype, is_last(grad) or is_last(w), tuple(stride), tuple(crop), tuple(dilation), groups,
                  torch.get_num_threads())  # fmt: skip
    return run(chosen, grad, w, None)


def grad_weight(x: Tensor, grad: Tensor, size: Sequence[int], stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
                groups: int) -> Tensor:  # fmt: skip
    """The gradient by w: x (N, Cin, *I), grad (N, Cout, *O) -> (Cin, Cout / groups, *size)."""
    last, dtype = is_last(x) or is_last(grad), SUMMED[x.dtype]
    shape = (x.shape[1], grad.shape[1] // groups, *size)
    core = _weight_problem(x.shape, shape, dtype, last, tuple(stride), tuple(crop), tuple(dilation), groups)
    w = torch.empty(shape, dtype=dtype, device=x.device)
    _core.grad_weight(core, kernel_for("auto"), batch(x.to(dtype), last), batch(grad.to(dtype), last), w.numpy(), torch.get_num_threads())
    return w.to(x.dtype)


def gradients(x: Tensor, w: Tensor, grad: Tensor, asked: Sequence[bool], *geometry: Any) -> tuple[Tensor | None, ...]:
    """The gradients of the layer by x, w and bias, those that are asked for; half precision is widened once for the last two."""
    by_x = grad_input(grad, w, x.shape[2:], *geometry) if asked[0] else None
    dtype, summed = x.dtype, SUMMED[x.dtype]
    if any(asked[1:]):
        x, grad = x.to(summed), grad.to(summed)
    return (by_x, grad_weight(x, grad, w.shape[2:], *geometry).to(dtype) if asked[1] else None,
            grad.sum((0, *range(2, grad.ndim))).to(dtype) if asked[2] else None)  # fmt: skip


def run(plan: Plan, source: Tensor, w: Tensor, bias: Tensor | None, frozen: bool = False, after: tuple[int, float] = (0, 0.0)) -> Tensor:
    """One planned call, with an activation in the core's numbers.

    `frozen`: nobody writes to w behind PyTorch's back, so its packed copy need not be compared with it.
    """
    dtype, last = plan.dtype, plan.last
    if dtype is torch.float32 and not last:  # the quickest way to the same
        target = source.new_empty(plan.shape)
        data, out = source.numpy(force=True), target.numpy()
    else:
        target = torch.empty(plan.shape, dtype=dtype, device=source.device, memory_format=memory_format(source.ndim - 2, last))
        data, out = batch(source, last), batch(target, last)
    if bias is None:
        add = None
    elif dtype is torch.float32 and bias.is_contiguous():
        add = bias.numpy(force=True)
    else:
        add = array(bias.to(SUMMED[dtype]).contiguous())
    packed = _torch_weights.packed(w, plan, frozen)
    if packed is None:
        plan.stencil.apply(data, array(w), add, out, *after)
    else:
        plan.stencil.run(data, packed, add, out, *after)
    return target


@lru_cache(maxsize=512)
def plan(is_forward: bool, pack_always: bool, x: tuple[int, ...], w: tuple[int, ...], bias: tuple[int, ...] | None, dtype: torch.dtype, last: bool,
         stride: tuple[int, ...], crop: tuple[int, ...], dilation: tuple[int, ...], groups: int, threads: int) -> Plan:  # fmt: skip
    """The plan for the shapes of the layer's input, weight and bias; ArgumentError where they do not fit.

    `pack_always` where the weight changes from call to call, as in training: what packing costs then has a part in the choice of a kernel.
    """
    problem = _problem_of(x, w, last, stride, crop, dilation, groups)
    if bias is not None:
        _problem.check_bias(bias, problem.spec.out_channels, problem.spec)
    stencil = prepare(problem, is_forward, _NAMES[dtype], kernel_for("auto"), threads, pack_always=pack_always).stencil
    shape = problem.spec.output_shape if is_forward else problem.spec.input_shape
    order = repr((is_forward, pack_always, *stencil.signature, tuple(w), dtype, stride, crop, dilation, groups))  # text remembers its hash
    return Plan(stencil, order, shape, dtype, last)


@lru_cache(maxsize=512)
def _weight_problem(x: tuple[int, ...], w: tuple[int, ...], dtype: torch.dtype, last: bool, stride: tuple[int, ...], crop: tuple[int, ...],
                    dilation: tuple[int, ...], groups: int) -> _core.Problem:  # fmt: skip
    problem = _problem_of(x, w, last, stride, crop, dilation, groups)
    check_memory(w, dtype.itemsize, problem.spec)
    return core_problem(problem)


def _problem_of(x: tuple[int, ...], w: tuple[int, ...], last: bool, stride: tuple[int, ...], crop: tuple[int, ...],
                dilation: tuple[int, ...], groups: int) -> Problem:  # fmt: skip
    """From the shapes of a batch and a weight; ArgumentError where they do not fit."""
    in_channels, kernel, out_channels = _problem.weight_axes(w, groups)
    if len(x) != len(w) or x[1] != in_channels:
        raise ArgumentError("x", x, f"must be a batch (N, {in_channels}, *size) of {len(kernel)} spatial axes for w of shape {tuple(w)}")
    pairs = list(zip(crop[::2], crop[1::2], strict=True))
    spec = Spec.build(x[2:], kernel, stride=stride, padding=pairs, dilation=dilation, groups=groups, batch=x[0], in_channels=in_channels,
                      out_channels=out_channels)  # fmt: skip
    return Problem(spec, "channels_last" if last else "channels_first", True)
