# SPDX-License-Identifier: Apache-2.0
"""Inference: what follows a transposed convolution made part of it, where that is the same function, and its weight packed for good."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from . import _torch_call as call
from . import _torch_layers as layers
from ._operator import large_enough
from ._report import Report
from ._spec import ArgumentError
from ._torch_swap import KINDS, PAIRS, candidates, twin

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Chain(NamedTuple):
    """Names of a transposed convolution, and of the BatchNorm and the activation that follow it and nothing else, if they do."""

    conv: str
    norm: str | None = None
    activation: str | None = None


class Folded(NamedTuple):
    """A layer with what followed it: weight, bias and activation."""

    weight: Tensor
    bias: Tensor | None
    activation: call.Activation | None


def fold_(model: nn.Module) -> Report:
    """Fold BatchNorm and activation into the transposed convolutions of a model in evaluation mode, in place, for inference.

    Each becomes one of our layers with a weight and a bias of its own, without gradient, which is packed once; what was folded becomes
    `torch.nn.Identity`. ReLU, LeakyReLU, Tanh and Sigmoid are folded. What follows a layer is read from the model's graph (`torch.fx`),
    or from the graphs of its parts where it has none, and from `torch.nn.Sequential`. Every fold is verified: on random input its error,
    against float64, is at most four times that of the unfolded layers, or nothing is changed. In-place operations and `load_state_dict`
    may change the weight later; writes through `.data` are not seen.

    Raises `ArgumentError` for a model in training mode, where BatchNorm is no fixed map.

    >>> import torch, tconv.torch
    >>> model = torch.nn.Sequential(torch.nn.ConvTranspose1d(2, 2, 3), torch.nn.BatchNorm1d(2), torch.nn.ReLU()).eval()
    >>> print(tconv.torch.fold_(model))
    folded 1 of 1 transposed convolutions
      0  with BatchNorm1d 1, ReLU 2
    """
    if model.training:
        raise ArgumentError("model", type(model).__name__, "must be in evaluation mode, where BatchNorm is a fixed map: call model.eval()")
    found = {chain.conv: chain for chain in _chains(model, "")}
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    done, skipped = {}, {}
    for name, module in list(candidates(model)):
        why = _refusal(module, uses)
        if why is None:
            done[name], why = _fold(model, found.get(name, Chain(name)), uses)
        if why is not None:
            done.pop(name, None)
            skipped[name] = why
    return Report("folded", done, skipped)


def _fold(model: nn.Module, chain: Chain, uses: Counter[nn.Module]) -> tuple[str, str | None]:
    """Fold one chain as far as it goes: what was done in words, and if nothing was, why."""
    conv: Any = model.get_submodule(chain.conv)
    kept, left = _foldable(model, chain, uses)
    followers = [model.get_submodule(name) for name in kept[1:] if name is not None]
    folded = _folded(conv, followers)
    why = _verified(conv, followers, folded)
    if why is not None:
        return "", why
    conv.__class__ = twin(conv, PAIRS) if type(conv) in PAIRS else type(conv)
    conv.weight = nn.Parameter(folded.weight, requires_grad=False)
    conv.bias = None if folded.bias is None else nn.Parameter(folded.bias, requires_grad=False)
    conv.activation, conv.frozen = folded.activation, True
    parts = [f"{type(part).__name__} {name}" for part, name in zip(followers, filter(None, kept[1:]), strict=True)]
    for name in filter(None, kept[1:]):
        model.set_submodule(name, nn.Identity())
    return "; ".join(filter(None, [f"with {', '.join(parts)}" if parts else "alone", left])), None


# ---------------------------------------------------------------------------------------------------- what may be folded


def _refusal(module: Any, uses: Counter[nn.Module]) -> str | None:
    """Why a transposed convolution cannot have a weight of its own."""
    if type(module) not in (*PAIRS, *PAIRS.values()):
        return (
            str(twin(module, PAIRS)) if isinstance(twin(module, PAIRS), str) else "its weight is computed: remove the parametrization first"
        )
    if uses[module] > 1:
        return "is used under several names"
    if getattr(module, "frozen", False):
        return "is folded already"
    if "weight" not in module._parameters or isinstance(module.weight, nn.UninitializedParameter):
        return "has no weight of its own: it is computed (remove weight_norm first), or not there yet"
    return None if module.weight.is_floating_point() else f"its weight is {module.weight.dtype}"


def _foldable(model: nn.Module, chain: Chain, uses: Counter[nn.Module]) -> tuple[Chain, str]:
    """The chain up to the first module that cannot be folded, and why it cannot."""
    conv, norm, activation = (None if name is None else model.get_submodule(name) for name in chain)
    if _hooked(conv) and (norm or activation):
        return Chain(chain.conv), "its hooks would see what followed it"
    for module, name, kept in ((norm, chain.norm, Chain(chain.conv)), (activation, chain.activation, Chain(chain.conv, chain.norm))):
        if module is None:
            continue
        why = _unfit(module, conv, uses)
        if why is not None:
            return kept, f"{type(module).__name__} {name} {why}"
    return chain, ""


def _unfit(module: Any, conv: Any, uses: Counter[nn.Module]) -> str | None:
    if uses[module] > 1:
        return "is used under several names"
    if _hooked(module):
        return "has hooks"
    if isinstance(module, _NORMS):
        if module.training or module.running_mean is None:
            return "has no fixed statistics"
        if module.num_features != conv.out_channels:
            return f"has {module.num_features} features for {conv.out_channels} channels"
    return None


def _hooked(module: Any) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


# ---------------------------------------------------------------------------------------------------- the arithmetic, and its proof


def _folded(conv: Any, followers: list[Any]) -> Folded:
    """In float64: w * scale and bias * scale + shift, where a scale belongs to an output channel, (groups, Cout / groups) of w."""
    weight, activation = conv.weight.detach().to(torch.float64, copy=True), None
    bias = None if conv.bias is None else conv.bias.detach().to(torch.float64, copy=True)
    for part in followers:
        if not isinstance(part, _NORMS):
            activation = call.Activation.of(part)
            continue
        scale, shift = _map(part)
        by_group = weight.unflatten(0, (conv.groups, -1)) * scale.view(conv.groups, 1, -1, *[1] * (weight.ndim - 2))
        weight, bias = by_group.flatten(0, 1), shift if bias is None else bias * scale + shift
    dtype = conv.weight.dtype
    return Folded(weight.to(dtype), None if bias is None else bias.to(dtype), activation)


def _map(norm: Any) -> tuple[Tensor, Tensor]:
    """BatchNorm as y = scale * x + shift."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _verified(conv: Any, followers: list[Any], folded: Folded) -> str | None:
    """Why the folded layer is not as good as the chain: the largest error on random input, relative to the largest output."""
    generator = torch.Generator().manual_seed(0)
    rank = len(conv.kernel_size)
    size = [n + 3 for n in large_enough(conv.padding, conv.stride, rank)]
    x = torch.randn(2, conv.in_channels, *size, generator=generator, dtype=torch.float64).to(conv.weight.device, conv.weight.dtype)
    with torch.no_grad():
        chain = nn.Sequential(conv, *followers)
        exact = copy.deepcopy(chain).double()(x.double())
        unfolded, largest = chain(x), exact.abs().max()
        y = call.transposed(rank, x, folded.weight, folded.bias, layers.words_of(conv))
        y = y if folded.activation is None else folded.activation(y)
    ours, theirs = ((each.double() - exact).abs().max() / largest for each in (y, unfolded))
    if ours <= max(4 * theirs, 16 * torch.finfo(conv.weight.dtype).eps):
        return None
    return f"folding would have an error of {ours:.1e}, where there is {theirs:.1e}"


# ---------------------------------------------------------------------------------------------------- what follows what


class _Tracer(fx.Tracer):
    """Layers and all that may be folded into them stay whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, KINDS) or super().is_leaf_module(m, module_qualified_name)


def _chains(module: nn.Module, prefix: str) -> Iterator[Chain]:
    """From the graph of a module; of one that cannot be traced, from those of its parts, and from the order of a Sequential."""
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever the model's own code raises when it meets a tracer
        if type(module) is nn.Sequential:
            yield from _in_order(module, prefix)
        for name, child in module.named_children():
            yield from _chains(child, f"{prefix}{name}.")
        return
    yield from _in_graph(module, graph, prefix)


def _in_order(module: nn.Sequential, prefix: str) -> Iterator[Chain]:
    names, parts = zip(*module.named_children(), strict=True) if len(module) else ((), ())
    for at, part in enumerate(parts):
        if isinstance(part, KINDS):
            yield _chain([prefix + name for name in names[at : at + 3]], list(parts[at : at + 3]))


def _in_graph(module: nn.Module, graph: fx.Graph, prefix: str) -> Iterator[Chain]:
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(module.get_submodule(node.target), KINDS):
            run = [node]
            while len(run) < 3 and len(run[-1].users) == 1 and calls[run[-1].target] == 1:
                (user,) = run[-1].users
                if user.op != "call_module" or user.args != (run[-1],) or user.kwargs or calls[user.target] > 1:
                    break
                run.append(user)
            yield _chain([prefix + each.target for each in run], [module.get_submodule(each.target) for each in run])


def _chain(names: list[str], parts: list[nn.Module]) -> Chain:
    """The first of the names, and of the next two a BatchNorm, then an activation, if that is what they are."""
    norm = names[1] if len(parts) > 1 and type(parts[1]) in _NORMS else None
    rest = 2 if norm else 1
    activation = names[rest] if len(parts) > rest and call.Activation.of(parts[rest]) else None
    return Chain(names[0], norm, activation)
