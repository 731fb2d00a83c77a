# SPDX-License-Identifier: Apache-2.0
"""What a framework's convention is made of: its words for the geometry, the order of the weight's axes, of the data's axes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from .._spec import ArgumentError, Axis, Ints, Spec, at_least_one, axes_line, integer, integers

Arguments: TypeAlias = dict[str, Any]
Crop: TypeAlias = tuple[int, int]

CHANNELS = {"channels_first": ("N", "C", "*size"), "channels_last": ("N", "*size", "C")}


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """How a framework holds the weight, told from the canonical `(Cin, Cout / groups, *k)` with its kernel not flipped.

    `axes` names its axes in order: `I` and `O` for the channels, `*` for all axes of the kernel, `G` for an axis of the
    groups; an axis that is missing has length 1 and is dropped. `by` names the one that holds all `groups`, one after the other:
    `I` is Cin and `O` is Cout / groups by default, but Cin / groups and Cout by `O`. With `flip` the kernel is reversed along
    every spatial axis. Both methods take any array with `transpose(axes)`, `reshape`, `ndim` and slicing, of the canonical
    shape or the framework's; they return views where the array does.

    >>> layout = WeightLayout("*OI")
    >>> layout.order(rank=2), str(layout)
    ((2, 3, 1, 0), '(*k, Cout/groups, Cin)')
    >>> print(WeightLayout("O*I", groups=2, by="O"))
    (Cout, *k, Cin/groups)
    """

    axes: str = "IO*"
    flip: bool = False
    groups: int = 1
    by: str = "I"

    def order(self, rank: int) -> tuple[int, ...]:
        """The canonical axis that each of the framework's axes is, for `rank` spatial axes and groups held as canonically, or one."""
        places: dict[str, Iterable[int]] = {"I": (0,), "O": (1,), "*": range(2, rank + 2)}
        return tuple(axis for letter in self.axes for axis in places[letter])

    def from_canonical(self, w: Any) -> Any:
        """The framework's weight, from the canonical one."""
        w = _reversed(w, self.flip)
        if self._moved_only():
            return w.transpose(self.order(w.ndim - 2))
        sizes = {"G": (self.groups,), "I": (w.shape[0] // self.groups,), "O": w.shape[1:2], "*": w.shape[2:]}
        split = w.reshape(sum((sizes[letter] for letter in SPLIT), ()))
        return split.transpose(transposition(SPLIT, self.split, w.ndim - 2)).reshape(self._joined(sizes))

    def to_canonical(self, w: Any) -> Any:
        """The canonical weight, from the framework's."""
        rank = w.ndim - len(self.axes) + 1
        if self._moved_only():
            order = self.order(rank)
            return _reversed(w.transpose(tuple(order.index(axis) for axis in range(w.ndim))), self.flip)
        sizes: dict[str, tuple[int, ...]] = {"G": (self.groups,), "I": (1,), "O": (1,)}
        left = tuple(w.shape)
        for letter in self.axes:
            count = rank if letter == "*" else 1
            sizes[letter], left = left[:count], left[count:]
        if self.by != "G":
            sizes[self.by] = (sizes[self.by][0] // self.groups,)
        split = w.reshape(sum((sizes[letter] for letter in self.split), ())).transpose(transposition(self.split, SPLIT, rank))
        return _reversed(split.reshape(self.groups * sizes["I"][0], *sizes["O"], *sizes["*"]), self.flip)

    @property
    def split(self) -> str:
        """The axes with the groups apart; those that are missing come first."""
        missing = "".join(letter for letter in SPLIT if letter not in self.axes and letter != "G")
        held = self.axes if self.by in ("G", *missing) else self.axes.replace(self.by, f"G{self.by}")
        return missing + (held if "G" in held else f"G{held}")

    def _moved_only(self) -> bool:
        return sorted(self.axes) == sorted("IO*") and (self.by == "I" or self.groups == 1)

    def _joined(self, sizes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the framework's weight."""
        joined = {**sizes, self.by: (self.groups * sizes[self.by][0],)} if self.by != "G" else sizes
        return sum((joined[letter] for letter in self.axes), ())

    @property
    def names(self) -> str:
        """The axes by name."""
        return ", ".join(
            {"I": "Cin", "O": "Cout"}[letter] if letter == self.by and letter != "G" else APART[letter] for letter in self.axes
        )

    def __str__(self) -> str:
        return f"({self.names})" + (", kernel reversed" if self.flip else "")


SPLIT = "GIO*"  # the canonical axes with the groups apart
APART = {"G": "groups", "I": "Cin/groups", "O": "Cout/groups", "*": "*k"}


def apart(axes: str) -> str:
    """Axes with the groups apart, by name."""
    return ", ".join(APART[letter] for letter in axes)


def transposition(held: str, wanted: str, rank: int) -> tuple[int, ...]:
    """The argument of `transpose` that brings axes named by letters, `*` for `rank` of them, into another order.

    >>> transposition("GIO*", "GO*I", 2)
    (0, 2, 3, 4, 1)
    """
    places, at = {}, 0
    for letter in held:
        places[letter] = range(at, at + (rank if letter == "*" else 1))
        at = places[letter].stop
    return tuple(axis for letter in wanted for axis in places[letter])


def _reversed(w: Any, flip: bool) -> Any:
    return w[(slice(None),) * 2 + (slice(None, None, -1),) * (w.ndim - 2)] if flip else w


@dataclass(frozen=True, slots=True)
class Convention:
    """What one framework's arguments mean: the geometry, and how its weight and data hold their axes.

    `spec` is the geometry for the given batch and channels (1, and one channel per group, where they were not given),
    `layout` is "channels_first" or "channels_last", `notes` are the traps that these very arguments step into. `lacks`
    names the axes of the data that the framework's arrays do not have: "N" where it takes one sample, "C" where there are no channels.
    """

    framework: str
    spec: Spec
    weight: WeightLayout
    layout: str
    notes: tuple[str, ...] = ()
    lacks: str = ""

    @property
    def data(self) -> tuple[str, ...]:
        """The axes of the framework's data by name."""
        return tuple(name for name in CHANNELS[self.layout] if name not in self.lacks)

    def __str__(self) -> str:
        size = "x".join(map(str, self.spec.output_size))
        lines = [f"{self.framework}: {self.spec} -> {size}", f"  weight  {self.weight}", f"  data    ({', '.join(self.data)})"]
        return "\n".join(lines + [f"  note    {note}" for note in self.notes])


@dataclass(frozen=True, slots=True)
class Framework:
    """One entry of the table: the map from a framework's words to a `Convention`, and guesses for the way back.

    `words` is the map, a function of the framework's own keyword arguments. `guesses` yields, for a geometry, the
    arguments that may mean it, simplest first; `fit` keeps the first that `words` maps to that geometry, so that a
    guess can be wrong but an answer cannot. `rule` says in a clause which crops the framework can write. `kernel` is
    its word for the kernel's size, where one word says it; `groups` whether it has groups at all; `grouped_by_weight` says that
    the weight's shape tells them, not an argument; `ranks` are the numbers of spatial axes that it has, `dilates` those in
    which it has a dilation.
    """

    words: Callable[..., Convention]
    guesses: Callable[[Spec], Iterable[Arguments]]
    rule: str
    kernel: str | None = "kernel_size"
    groups: bool = False
    grouped_by_weight: bool = False
    ranks: tuple[int, ...] = (1, 2, 3)
    dilates: tuple[int, ...] = (1, 2, 3)

    @property
    def name(self) -> str:
        return self.words.__name__

    def read(self, arguments: Arguments) -> Convention:
        """The convention of the framework's arguments, unknown and missing words refused."""
        known = inspect.signature(self.words).parameters
        for name, value in arguments.items():
            if name not in known:
                raise ArgumentError(name, value, f"is no argument of {self.name}; those are {', '.join(known)}")
        for name, parameter in known.items():
            if parameter.default is parameter.empty and name not in arguments:
                raise ArgumentError(name, None, f"is missing; {self.name} needs it")
        return self.words(**arguments)

    def fit(self, spec: Spec) -> tuple[Arguments, Convention] | str:
        """The simplest arguments that mean `spec` with their convention, or the reason why there are none."""
        if spec.groups > 1 and not self.groups:
            alone = self.fit(one_group(spec))
            return f"{self.name} has no groups, and the layer has {spec.groups}" + (f"; {alone}" if isinstance(alone, str) else "")
        if spec.rank not in self.ranks:
            return f"{self.name} has {' and '.join(f'{rank}-D' for rank in self.ranks)} alone, and the layer is {spec.rank}-D"
        if max(spec.dilation) > 1 and spec.rank not in self.dilates:
            return f"{self.name} has no dilation{f' in {spec.rank}-D' * bool(self.dilates)}, and the layer has {plain(spec.dilation)}"
        tried = []
        for guess in self.guesses(spec):
            try:
                found = self.words(**{**self.facts(spec), **guess})
            except ArgumentError as error:
                tried.append(f"{error.argument}={error.value!r} {error.rule}")
                continue
            if found.spec == spec:
                return self._short(guess), found
            tried.append(f"{', '.join(f'{n}={guess[n]!r}' for n in guess if 'padding' in n)} crops {crops(found.spec)}")
        return "; ".join([f"{self.name} {self.rule}, so it cannot crop {crops(spec)}", *dict.fromkeys(tried)])

    def facts(self, spec: Spec) -> Arguments:
        """What the arrays of a layer tell, as `words` takes it."""
        kernel = {self.kernel: spec.kernel_size} if self.kernel else {}
        groups = {"groups": spec.groups} if self.grouped_by_weight else {}
        return {"input_size": spec.input_size, **kernel, **groups, "batch": spec.batch, "in_channels": spec.in_channels,
                "out_channels": spec.out_channels}  # fmt: skip

    def _short(self, arguments: Arguments) -> Arguments:
        """Arguments without those that are the framework's defaults; words ("same") always stay."""
        known = inspect.signature(self.words).parameters
        return {name: value for name, value in arguments.items() if isinstance(value, str) or value != known[name].default}


def bare_axes(input_size: Ints, **words: Ints) -> tuple[Axis, ...]:
    """Uncropped axes from the input size and the framework's words for kernel, stride and dilation, in this order.

    >>> bare_axes((5, 4), kernel_shape=(3, 2), strides=2, dilations=1)[1]
    Axis(size=4, kernel=2, stride=2, dilation=1, lo=0, hi=0)
    """
    sizes = integers("input_size", input_size)
    if not 1 <= len(sizes) <= 3:
        raise ArgumentError("input_size", input_size, "must have 1, 2 or 3 spatial axes")
    columns = {"input_size": sizes} | {name: integers(name, value, len(sizes)) for name, value in words.items()}
    for name, values in columns.items():
        at_least_one(name, values)
    return tuple(Axis(*numbers) for numbers in zip(*columns.values(), strict=True))


def lettered(words: Arguments, name: str, rank: int) -> tuple[int, ...]:
    """One int per spatial axis from words of one axis each, "stride_{}" with d, h, w; what is None is as for w.

    >>> lettered({"stride_d": 9, "stride_h": None, "stride_w": 2}, "stride_{}", 2)
    (2, 2)
    """
    last = integer(name.format("w"), words[name.format("w")])
    found = {letter: words[name.format(letter)] for letter in "dhw"[-rank:]}
    return tuple(last if value is None else integer(name.format(letter), value) for letter, value in found.items())


def settle(framework: str, axes: Sequence[Axis], crop: Iterable[Crop], weight: WeightLayout, layout: str, *, batch: int,
           in_channels: int | None, out_channels: int | None, groups: int = 1, notes: Iterable[str] = (),
           lacks: str = "") -> Convention:  # fmt: skip
    """The convention of axes and their crops; channels that were not given are one per group."""
    placed = tuple(replace(axis, lo=lo, hi=hi) for axis, (lo, hi) in zip(axes, crop, strict=True))
    known = {"batch": batch, "in_channels": in_channels, "out_channels": out_channels, "groups": groups}
    counts = (max(groups, 1) if value is None else integer(name, value) for name, value in known.items())
    return Convention(framework, Spec(placed, *counts), weight, layout, tuple(notes), lacks)


def non_negative(name: str, value: Ints, count: int) -> tuple[int, ...]:
    """`count` integers of at least 0."""
    found = integers(name, value, count)
    if min(found, default=0) < 0:
        raise ArgumentError(name, value, "must be at least 0")
    return found


def below(name: str, values: Sequence[int], axes: Sequence[Axis], *limits: str) -> None:
    """Every value lies in [0, the greatest of the axis's `limits`)."""
    for axis, value in zip(axes, values, strict=True):
        limit = max(getattr(axis, word) for word in limits)
        if not 0 <= value < limit:
            word = limits[0] if len(limits) == 1 else f"max({', '.join(limits)})"
            raise ArgumentError(name, value, f"must be at least 0 and below {word}={limit}", axes_line(axes))


def from_pads(axis: Axis, before: int, after: int) -> Crop:
    """The crop that a convolution of the stride-dilated input, padded by (before, after), gives: K - 1 less the pad."""
    return axis.extent - 1 - before, axis.extent - 1 - after


def same_pads(axis: Axis, total: int) -> Crop:
    """How `same` splits its padding of the dilated input: the larger half, but at most K - 1, goes before."""
    before = min(-(-total // 2), axis.extent - 1)
    return before, total - before


def plain(values: Iterable[int]) -> int | tuple[int, ...]:
    """One int where all axes agree.

    >>> plain((2, 2)), plain((2, 1))
    (2, (2, 1))
    """
    found = tuple(values)
    return found[0] if len(set(found)) == 1 else found


def unless_one(values: Sequence[int]) -> int | Sequence[int]:
    """A list of one int per axis, or 1, the default, where all are 1."""
    return values if max(values) > 1 else 1


def one_group(spec: Spec) -> Spec:
    """The share of one group."""
    return replace(spec, in_channels=spec.in_channels // spec.groups, out_channels=spec.out_channels // spec.groups, groups=1)


def crops(spec: Spec) -> str:
    """The crop of every axis as lo:hi, as the problem line writes it."""
    return "x".join(f"{lo}:{hi}" for lo, hi in spec.crop)
