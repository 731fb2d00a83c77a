# SPDX-License-Identifier: Apache-2.0
"""A model's transposed convolutions made ours and back, in place: an object stays the same object and changes its class alone.

So weights, hooks, names, buffers, and references that others hold (optimisers, lists, other modules) stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import _torch_layers as layers
from ._report import Report

PAIRS = {getattr(nn, name): getattr(layers, name) for rank in "123" for name in (f"ConvTranspose{rank}d", f"LazyConvTranspose{rank}d")}
KINDS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def swap_(model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None = None) -> Report:
    """Make the transposed convolutions of a model ours, in place; the report says which, and which not and why.

    Weights are shared, since each module stays the same object; names, hooks and `state_dict` stay as they are. Modules for which
    `filter_fn(module, name)` is false are left out. Nothing outside the model changes; calls of `torch.nn.functional` in its code
    are not found.

    >>> import torch, tconv.torch
    >>> model = torch.nn.Sequential(torch.nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), torch.nn.ReLU())
    >>> print(tconv.torch.swap_(model))
    replaced 1 of 1 transposed convolutions
      0  ConvTranspose2d(8, 4, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1))
    """

    def refusal(module: nn.Module, name: str) -> str | None:
        return "filter_fn leaves it out" if filter_fn is not None and not filter_fn(module, name) else None

    return _change(model, "replaced", PAIRS, refusal)


def revert_(model: nn.Module) -> Report:
    """Make the layers of `swap_` PyTorch's again, in place; those with a padding that PyTorch lacks, or folded, stay ours.

    >>> import torch, tconv.torch
    >>> model = torch.nn.Sequential(tconv.torch.ConvTranspose1d(2, 2, 3), tconv.torch.ConvTranspose1d(2, 2, 3, padding="same"))
    >>> print(tconv.torch.revert_(model))
    reverted 1 of 2 transposed convolutions
      0  ConvTranspose1d(2, 2, kernel_size=(3,), stride=(1,))
    skipped
      1  PyTorch has no padding='same'
    """
    return _change(model, "reverted", {ours: theirs for theirs, ours in PAIRS.items()}, _irreversible)


def _irreversible(module: Any, name: str) -> str | None:
    if module.frozen:
        return "folded: what followed it is part of it"
    return None if layers.are_torch(module) else f"PyTorch has no padding={module.padding!r}"


def _change(model: nn.Module, action: str, table: dict[type, type], refusal: Callable[[nn.Module, str], str | None]) -> Report:
    done, skipped = {}, {}
    for name, module in candidates(model):
        found = twin(module, table)
        why = found if isinstance(found, str) else refusal(module, name)
        if why is not None:
            skipped[name] = why
            continue
        done[name] = repr(module).replace("\n", " ")
        module.__class__ = found
    return Report(action, done, skipped)


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The transposed convolutions of a model, each once, by its first name."""
    for name, module in model.named_modules():
        if isinstance(module, KINDS) or (isinstance(module, torch.jit.ScriptModule) and "ConvTranspose" in module.original_name):
            yield name, module


def twin(module: nn.Module, table: dict[type, type]) -> type | str:
    """The class that a module is to have, or the reason why there is none."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by TorchScript"
    if kind in table.values():
        return "is already what it would become"
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    if kind in table:
        return table[kind]
    base = kind.__bases__[0]
    if parametrize.is_parametrized(module) and base in table:  # PyTorch's parametrizations made a class for this object alone
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        return type(kind.__name__, (table[base],), own)
    return f"{kind.__module__}.{kind.__qualname__} is a class of its own, whose code may do more"
