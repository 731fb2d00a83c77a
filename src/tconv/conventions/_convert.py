# SPDX-License-Identifier: Apache-2.0
"""From one framework's words to another's: the arguments, the weight, or the reason why there are none and what to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain, combinations
from typing import Any

from .._spec import ArgumentError, Axis, Spec
from ._convention import CHANNELS, LETTERS, Arguments, Convention, Framework, one_group


@dataclass(frozen=True, slots=True)
class Instead:
    """What to write where no arguments mean the layer: a call of the target, then slices, then zeros, then the bias.

    `arguments` are the target's. `groups` calls, each on its share of the input channels with `weight(w, group)`, give
    outputs to concatenate along the channels. `spread` says that the weight gets zeros between its taps, because the
    target cannot dilate here. Per spatial axis, `slices` cut the output and `zeros` are appended to it (before, after);
    both are empty where the arguments crop by themselves.
    """

    arguments: Arguments
    groups: int = 1
    spread: bool = False
    slices: tuple[slice, ...] = ()
    zeros: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversion:
    """The answer of `convert`, which prints as text and gives JSON's types with `to_dict()`.

    `source` and `target` are the two conventions; `target.spec` is what the target computes before `instead` crops.
    `arguments` are the target's, or None where none mean the layer; `reason` and `instead` then say why and what to
    write. `notes` are the traps on the way.
    """

    source: Convention
    target: Convention
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
        written = self.arguments or (self.instead.arguments if self.instead else {})
        return tuple(dict.fromkeys(self.source.notes + self.target.notes + last * ("output_shape" in written)))

    def weight(self, w: Any, group: int = 0) -> Any:
        """The target's weight from the source's, an array in the source's axes; of one `group` where `instead` splits them."""
        w = self.source.weight.to_canonical(w)
        if self.instead:
            rows = w.shape[0] // self.instead.groups
            w = w[group * rows : (group + 1) * rows]
        if self.instead and self.instead.spread:
            w = _with_zeros_between(w, self.spec.dilation)
        return self.target.weight.from_canonical(w)

    @property
    def weight_order(self) -> tuple[int, ...]:
        """The source's axis that each axis of the target's weight is: the argument of `transpose`."""
        held = self.source.weight.order(self.spec.rank)
        return tuple(held.index(axis) for axis in self.target.weight.order(self.spec.rank))

    @property
    def weight_text(self) -> str:
        """What happens to the weight, as one sentence."""
        flip = self.source.weight.flip != self.target.weight.flip
        moved = self.weight_order != tuple(range(self.spec.rank + 2))
        names = ["({})".format(", ".join(map(LETTERS.__getitem__, c.weight.axes))) for c in (self.source, self.target)]
        doing = [f"transpose{self.weight_order}, {names[0]} -> {names[1]}"] * moved + ["reverse every kernel axis"] * flip
        return "; ".join(doing or [f"as it is, {names[0]}"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers."""
        instead = self.instead and {
            "arguments": self.instead.arguments, "groups": self.instead.groups, "spread": self.instead.spread,
            "slices": [[s.start, s.stop] for s in self.instead.slices], "zeros": [list(pair) for pair in self.instead.zeros],
            "text": list(_steps(self)),
        }  # fmt: skip
        return {
            "source": self.source.framework, "target": self.target.framework, "problem": str(self.spec),
            "output_size": list(self.spec.output_size), "exists": self.exists, "arguments": self.arguments,
            "weight": {"text": self.weight_text, "order": list(self.weight_order), "source": str(self.source.weight),
                       "target": str(self.target.weight), "flip": self.source.weight.flip != self.target.weight.flip},
            "layout": {"source": self.source.layout, "target": self.target.layout},
            "reason": self.reason, "instead": instead, "notes": list(self.notes),
        }  # fmt: skip

    def __str__(self) -> str:
        size = "x".join(map(str, self.spec.output_size))
        lines = [("", f"{self.source.framework} -> {self.target.framework}: {self.spec} -> {size}")]
        if self.arguments is not None:
            lines.append(("arguments", _call(self.arguments)))
        else:
            lines += [("arguments", "none"), ("reason", str(self.reason))]
            lines += [("" if n else "instead", step) for n, step in enumerate(_steps(self))]
        lines.append(("weight", self.weight_text))
        data = [f"({CHANNELS[c.layout]})" for c in (self.source, self.target)]
        lines.append(("data", " -> ".join(dict.fromkeys(data))))
        lines += [("note", note) for note in self.notes]
        return "\n".join([lines[0][1], *(f"  {name:<11}{text}" for name, text in lines[1:])])


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
            return Conversion(origin, found[1], found[0])
        else:
            return Conversion(origin, found[1], None, reason, _instead(origin.spec, found[0], rewrites))
    raise AssertionError(f"{target} writes no full output: {reason}")


def spread(spec: Spec) -> Spec:
    """Dilation by zeros in the kernel."""
    return replace(spec, axes=tuple(replace(axis, kernel=axis.extent, dilation=1) for axis in spec.axes))


def full(spec: Spec) -> Spec:
    """The whole output, nothing cropped."""
    return replace(spec, axes=tuple(replace(axis, lo=0, hi=0) for axis in spec.axes))


# Tried alone first, then together: a target without groups or dilation needs only that undone when it has the crop.
REWRITES: tuple[Callable[[Spec], Spec], ...] = (one_group, spread, full)


def _instead(spec: Spec, arguments: Arguments, rewrites: tuple[Callable[[Spec], Spec], ...]) -> Instead:
    windows = [_window(axis) for axis in spec.axes] if full in rewrites else []
    return Instead(arguments, spec.groups if one_group in rewrites else 1, spread in rewrites,
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
    steps = conversion.instead
    if steps is None:
        return
    if steps.groups > 1:
        yield f"{steps.groups} calls, j = 0..{steps.groups - 1}, on equal shares of the input channels with weight(w, j); join their outputs"
    if steps.spread:
        yield f"a kernel with zeros between its taps, {'x'.join(map(str, conversion.target.spec.kernel_size))} in all: weight(w) has them"
    yield f"y = {conversion.target.framework}({_call(steps.arguments)})"
    if steps.slices:
        kept = [f"{s.start}:{s.stop}" for s in steps.slices]
        first = conversion.target.layout == "channels_first"
        yield f"y = y[{', '.join([':', ':', *kept] if first else [':', *kept, ':'])}]"
    if any(map(any, steps.zeros)):
        yield f"pad y with zeros, (before, after) per axis: {', '.join(map(str, steps.zeros))}"
        yield "add the bias last"


def _call(arguments: Arguments) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
