# SPDX-License-Identifier: Apache-2.0
"""From one framework's words to another's: the arguments, the weight, or the reason why there are none and what to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain, combinations
from typing import Any

from .._spec import ArgumentError, Axis, Spec
from ._convention import Arguments, Convention, Framework, WeightLayout, apart, one_group, transposition


@dataclass(frozen=True, slots=True)
class Instead:
    """What to write where no arguments mean the layer: a call of the target, then slices, then zeros, then the bias.

    `arguments` are the target's. `groups` calls, each on its share of the input channels with `weight(w, group)`, give
    outputs to concatenate along the channels. `spread` says that the weight gets zeros between its taps, because the
    target cannot dilate here; `lifted` that the 1-D layer is written as one of two axes, the first of length 1. Per spatial
    axis, `slices` cut the output and `zeros` are appended to it (before, after); both are empty where the arguments crop by
    themselves.
    """

    arguments: Arguments
    groups: int = 1
    spread: bool = False
    lifted: bool = False
    slices: tuple[slice, ...] = ()
    zeros: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversion:
    """The answer of `convert`, which prints as text and gives JSON's types with `to_dict()`.

    `source` and `target` are the two conventions, `to` is the target's name; `target.spec` is what the target computes before
    `instead` crops. `arguments` are the target's, or None where none mean the layer; `reason` and `instead` then say why and
    what to write. `target` and `instead` are None too where nothing can be written. `notes` are the traps on the way.
    """

    source: Convention
    to: str
    target: Convention | None
    arguments: Arguments | None
    reason: str | None = None
    instead: Instead | None = None

    @property
    def exists(self) -> bool:
        """Whether arguments of the target mean exactly the source's layer."""
        return self.arguments is not None

    @property
    def spec(self) -> Spec:
        """The geometry of the layer."""
        return self.source.spec

    @property
    def notes(self) -> tuple[str, ...]:
        last = ("output_shape holds the batch and the channels: give batch= and out_channels=, or put yours in",)
        shape = self._written.get("output_shape") or ()
        return tuple(dict.fromkeys(self.source.notes + (self.target.notes if self.target else ()) + last * (len(shape) > self.spec.rank)))

    @property
    def _written(self) -> Arguments:
        return self.arguments or (self.instead.arguments if self.instead else {})

    def weight(self, w: Any, group: int = 0) -> Any:
        """The target's weight from the source's, an array in the source's axes; of one `group` where `instead` splits them."""
        if self.target is None:
            raise ArgumentError("to", self.to, f"has no weight for this layer: {self.reason}")
        w = self.source.weight.to_canonical(w)
        if self.instead:
            rows = w.shape[0] // self.instead.groups
            w = w[group * rows : (group + 1) * rows]
        if self.instead and self.instead.spread:
            w = _with_zeros_between(w, self.spec.dilation)
        if self.instead and self.instead.lifted:
            w = w[:, :, None]
        return self.target.weight.from_canonical(w)

    @property
    def weight_order(self) -> tuple[int, ...] | None:
        """The source's axis that each axis of the target's weight is, the argument of `transpose`; None where that is not all."""
        if self.target is None or not _only_moves(self.source.weight, self.target.weight):
            return None
        return transposition(self.source.weight.axes, self.target.weight.axes, self.spec.rank)

    @property
    def weight_text(self) -> str:
        """What happens to the weight, as one sentence."""
        if self.target is None:
            return f"none, ({self.source.weight.names})"
        held, wanted = self.source.weight, self.target.weight
        order, rank = self.weight_order, self.spec.rank
        if order is None:
            order = transposition(held.split, wanted.split, rank)
            doing = [f"reshape({apart(held.split)})"] * (apart(held.split) != held.names)
            doing += [f"transpose{order}"] * (order != tuple(range(rank + 3)))
            doing = [", ".join(doing + [f"reshape({wanted.names})"] * (apart(wanted.split) != wanted.names))]
        else:
            doing = [f"transpose{order}, ({held.names}) -> ({wanted.names})"] * (order != tuple(range(rank + 2)))
        doing += ["reverse every kernel axis"] * (held.flip != wanted.flip)
        return "; ".join(doing or [f"as it is, ({held.names})"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers."""
        instead = self.instead and {
            "arguments": self.instead.arguments, "groups": self.instead.groups, "spread": self.instead.spread,
            "lifted": self.instead.lifted, "slices": [[s.start, s.stop] for s in self.instead.slices],
            "zeros": [list(pair) for pair in self.instead.zeros], "text": list(_steps(self)),
        }  # fmt: skip
        order, target = self.weight_order, self.target
        return {
            "source": self.source.framework, "target": self.to, "problem": str(self.spec),
            "output_size": list(self.spec.output_size), "exists": self.exists, "arguments": self.arguments,
            "weight": {"text": self.weight_text, "order": order and list(order), "source": str(self.source.weight),
                       "target": target and str(target.weight), "flip": target and self.source.weight.flip != target.weight.flip},
            "layout": {"source": self.source.layout, "target": target and target.layout},
            "data": {"source": list(self.source.data), "target": target and list(target.data)},
            "reason": self.reason, "instead": instead, "notes": list(self.notes),
        }  # fmt: skip

    def __str__(self) -> str:
        size = "x".join(map(str, self.spec.output_size))
        lines = [("", f"{self.source.framework} -> {self.to}: {self.spec} -> {size}")]
        if self.arguments is not None:
            lines.append(("arguments", _call(self.arguments)))
        else:
            lines += [("arguments", "none"), ("reason", str(self.reason))]
            lines += [("" if n else "instead", step) for n, step in enumerate(_steps(self))]
        lines.append(("weight", self.weight_text))
        data = [f"({', '.join(c.data)})" for c in (self.source, self.target) if c]
        lines.append(("data", " -> ".join(dict.fromkeys(data))))
        lines += [("note", note) for note in self.notes]
        return "\n".join([lines[0][1], *(f"  {name:<11}{text}" for name, text in lines[1:])])


def _only_moves(held: WeightLayout, wanted: WeightLayout) -> bool:
    """Whether all axes of one weight are axes of the other: both have all, and groups lie along the same, or there is one."""
    return sorted(held.axes) == sorted(wanted.axes) and (held.by == wanted.by or held.groups == wanted.groups == 1)


def convert(frameworks: Mapping[str, Framework], source: str, target: str, arguments: Arguments) -> Conversion:
    """See `tconv.convert`, which brings the table."""
    for argument, name in (("source", source), ("target", target)):
        if not isinstance(name, str) or name not in frameworks:
            raise ArgumentError(argument, name, f"must be one of {', '.join(frameworks)}")
    origin = frameworks[source].read(arguments)
    reason = None
    for rewrites in chain.from_iterable(combinations(REWRITES, n) for n in range(len(REWRITES) + 1)):
        written = reduce(lambda spec, rewrite: rewrite(spec), rewrites, origin.spec)
        found = frameworks[target].fit(written)
        if isinstance(found, str):
            reason = reason or found
        elif not rewrites:
            return Conversion(origin, target, found[1], found[0])
        else:
            return Conversion(origin, target, found[1], None, reason, _instead(origin.spec, found[0], rewrites))
    return Conversion(origin, target, None, None, reason)


def spread(spec: Spec) -> Spec:
    """Dilation by zeros in the kernel."""
    return replace(spec, axes=tuple(replace(axis, kernel=axis.extent, dilation=1) for axis in spec.axes))


def full(spec: Spec) -> Spec:
    """The whole output, nothing cropped."""
    return replace(spec, axes=tuple(replace(axis, lo=0, hi=0) for axis in spec.axes))


def lift(spec: Spec) -> Spec:
    """A 1-D layer as one of two axes, the first of length 1."""
    return replace(spec, axes=(Axis(1, 1), *spec.axes)) if spec.rank == 1 else spec


# Tried alone first, then together: a target without groups or dilation needs only that undone when it has the crop.
REWRITES: tuple[Callable[[Spec], Spec], ...] = (one_group, spread, full, lift)


def _instead(spec: Spec, arguments: Arguments, rewrites: tuple[Callable[[Spec], Spec], ...]) -> Instead:
    windows = [_window(axis) for axis in spec.axes] if full in rewrites else []
    return Instead(arguments, spec.groups if one_group in rewrites else 1, spread in rewrites, lift in rewrites,
                   tuple(kept for kept, _ in windows), tuple(zeros for _, zeros in windows))  # fmt: skip


def _window(axis: Axis) -> tuple[slice, tuple[int, int]]:
    """The part of the full output that a crop keeps, and the zeros around it; a crop may lie wholly outside."""
    start = min(max(axis.lo, 0), axis.full)
    stop = max(start, min(axis.full, axis.full - axis.hi))
    before = min(max(-axis.lo, 0), axis.output - (stop - start))
    return slice(start, stop), (before, axis.output - (stop - start) - before)


def _with_zeros_between(w: Any, dilation: tuple[int, ...]) -> Any:
    """A canonical NumPy weight with dilation - 1 zeros between the taps: `repeat`, which copies, then zeros over the copies."""
    for axis, step in enumerate(dilation, start=2):
        every = (slice(None),) * axis
        w = w.repeat(step, axis)[(*every, slice(step * (w.shape[axis] - 1) + 1))]
        for offset in range(1, step):
            w[(*every, slice(offset, None, step))] = 0
    return w


def _steps(conversion: Conversion) -> Iterator[str]:
    """What to write instead, one line a step."""
    steps, target = conversion.instead, conversion.target
    if steps is None or target is None:
        return
    if steps.groups > 1:
        yield f"{steps.groups} calls, j = 0..{steps.groups - 1}, on equal shares of the input channels with weight(w, j); join their outputs"
    if steps.spread:
        yield f"a kernel with zeros between its taps, {'x'.join(map(str, target.spec.kernel_size))} in all: weight(w) has them"
    if steps.lifted:
        yield "x with an axis of length 1 before its spatial one; weight(w) has it too"
    yield f"y = {target.framework}({_call(steps.arguments)})"
    if steps.lifted:
        yield "y without that axis"
    if steps.slices:
        kept = ", ".join(f"{s.start}:{s.stop}" for s in steps.slices)
        yield f"y = y[{', '.join(kept if name == '*size' else ':' for name in target.data)}]"
    if any(map(any, steps.zeros)):
        yield f"pad y with zeros, (before, after) per axis: {', '.join(map(str, steps.zeros))}"
        yield "add the bias last"


def _call(arguments: Arguments) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
