# SPDX-License-Identifier: Apache-2.0
"""Geometry of a transposed convolution: sizes, stride phases, and which element reaches which.

Plain integers only: this module imports neither NumPy nor anything else of tconv, and everything that
needs a size (layers, conversions, command line, kernels' tests) asks it here.

Canonical form, per spatial axis, with K = dilation * (kernel - 1) + 1:

    full[o] = sum over i, t with i * stride + t * dilation = o of x[i] * w[t]      0 <= o < F      (1)
    F       = (size - 1) * stride + K                                                              (2)
    y       = full[lo : F - hi]; a negative lo or hi adds that many zeros instead                  (3)
    O       = F - lo - hi                                                                          (4)
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from math import gcd, prod
from typing import Any, NamedTuple, TypeAlias

Ints: TypeAlias = int | Sequence[int]  # one, or one per spatial axis
Padding: TypeAlias = str | int | Sequence[int | Sequence[int]]  # "valid", "same", one, or per axis one or a (lo, hi) pair

_LIMIT = 2**59  # of a size or crop: sums and products of a few of them are 64-bit signed integers in the core


class ArgumentError(ValueError):
    """A bad argument, said once: which one, its value, the rule it breaks, and the problem it belongs to."""

    def __init__(self, argument: str, value: object, rule: str, problem: object = None) -> None:
        self.argument, self.value, self.rule = argument, value, rule
        self.problem = None if problem is None else str(problem)
        where = "" if problem is None else f" [problem: {problem}]"
        super().__init__(f"{argument}={value!r}: {rule}{where}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.argument, self.value, self.rule, self.problem)


class Tap(NamedTuple):
    """One kernel tap of a phase: output position q of the phase reads input q - shift with weight `tap`."""

    tap: int
    shift: int


class Phase(NamedTuple):
    """The outputs o with (o + lo) mod stride = index; position q = (o + lo - index) / stride."""

    index: int  # type: ignore[assignment]  # the field hides tuple.index, which nobody calls on a phase
    outputs: range
    taps: tuple[Tap, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis in canonical form: `size` inputs, `kernel` taps, and the crop (lo, hi) of the full output.

    A plain record of integers: nothing is checked before the axis becomes part of a `Spec`.

    >>> axis = Axis(size=4, kernel=3, stride=2)
    >>> axis.extent, axis.full, axis.output
    (3, 9, 9)
    >>> axis.inputs_of(2), axis.outputs_of(1)
    (range(0, 2), range(2, 5))
    """

    size: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    lo: int = 0
    hi: int = 0

    @property
    def extent(self) -> int:
        """K, the kernel's reach in outputs."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def full(self) -> int:
        """F, the output's size before the crop: equation (2)."""
        return (self.size - 1) * self.stride + self.extent

    @property
    def output(self) -> int:
        """O, the output's size: equation (4)."""
        return self.full - self.lo - self.hi

    def inputs_of(self, output: int) -> range:
        """The inputs that reach one output: the i of equation (1), an arithmetic progression; empty beyond the output."""
        at = output + self.lo
        common = gcd(self.stride, self.dilation)
        if at % common or not 0 <= output < self.output:
            return range(0)
        step = self.dilation // common
        # i * (stride / common) = at / common  (mod step), and 0 <= tap < kernel bounds i on both sides
        residue = (at // common) * pow(self.stride // common, -1, step) % step
        first = max(0, -((self.dilation * (self.kernel - 1) - at) // self.stride))
        first += (residue - first) % step
        return range(first, max(first, min(self.size - 1, at // self.stride) + 1), step)

    def outputs_of(self, input: int) -> range:
        """The outputs that one input reaches: its stamp, clipped by the crop; empty beyond the input."""
        if not 0 <= input < self.size:
            return range(0)
        start = input * self.stride - self.lo
        return clip(range(start, start + self.extent, self.dilation), self.output)

    def inputs_for(self, outputs: range) -> range:
        """The smallest contiguous range of inputs that a block of consecutive outputs needs."""
        if not outputs:
            return range(0)
        first = -((self.extent - 1 - outputs[0] - self.lo) // self.stride)
        last = (outputs[-1] + self.lo) // self.stride
        first, last = max(first, 0), min(last, self.size - 1)
        return range(first, max(first, last + 1))

    def phase(self, index: int) -> Phase:
        """One stride phase, 0 <= index < stride: all its outputs read the same taps at the same shifts."""
        outputs = range((index - self.lo) % self.stride, self.output, self.stride)
        common = gcd(self.stride, self.dilation)
        if index % common:
            return Phase(index, outputs, ())
        step = self.stride // common  # tap * dilation = index  (mod stride)
        first = (index // common) * pow(self.dilation // common, -1, step) % step
        taps = (Tap(tap, (tap * self.dilation - index) // self.stride) for tap in range(first, self.kernel, step))
        return Phase(index, outputs, tuple(taps))

    def phases(self) -> Iterator[Phase]:
        """The stride phases in order, `stride` of them, which part the outputs."""
        return map(self.phase, range(self.stride))

    def pairs(self) -> int:
        """How many (input, tap) pairs land inside the output: the useful multiply-adds of this axis."""
        (few, step), (many, stride) = sorted([(self.size, self.stride), (self.kernel, self.dilation)])  # equation (1) is symmetric
        starts = (at * step - self.lo for at in range(few))
        return sum(len(clip(range(start, start + (many - 1) * stride + 1, stride), self.output)) for start in starts)


def clip(positions: range, size: int) -> range:
    """The part of an increasing range that lies in [0, size).

    >>> clip(range(-3, 9, 2), 6)
    range(1, 7, 2)
    """
    start, step = positions.start, positions.step
    if start < 0:
        start += -(start // step) * step
    return range(start, max(start, min(positions.stop, size + (start - size) % step)), step)


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole problem: channels, batch, and one `Axis` per spatial dimension.

    `str(spec)` is one line that `Spec.parse` reads back; the letters are n batch, c channels in:out, g groups,
    i input size, k kernel, s stride, d dilation, p crop (lo:hi where they differ). What has its default is left
    out, and a value equal on all axes is written once.

    >>> spec = Spec.build((8, 8), 4, stride=2, padding=1, batch=16, in_channels=256, out_channels=128)
    >>> str(spec)
    'n16 c256:128 i8x8 k4 s2 p1'
    >>> spec.output_size
    (16, 16)
    >>> Spec.parse(str(spec)) == spec
    True
    """

    axes: tuple[Axis, ...]
    batch: int = 1
    in_channels: int = 1
    out_channels: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def build(
        cls,
        input_size: Ints,
        kernel_size: Ints,
        *,
        stride: Ints = 1,
        padding: Padding = 0,
        output_padding: Ints = 0,
        output_size: Ints | None = None,
        dilation: Ints = 1,
        groups: int = 1,
        batch: int = 1,
        in_channels: int = 1,
        out_channels: int = 1,
    ) -> Spec:
        """The geometry that tconv's own arguments mean (the words of `tconv.conv_transpose`).

        `input_size` and `kernel_size` hold one number per spatial axis (an int means one axis). `padding` is the
        crop of the full output: an int, one int per axis, one (lo, hi) pair per axis, "valid" (no crop) or "same"
        (output = input * stride, lo = max(K - stride, 0) // 2, the rule of TensorFlow, Keras, JAX and ONNX's
        SAME_UPPER). `output_padding` extends the output at the end (PyTorch's rule: below max(stride, dilation));
        `output_size` asks for a size instead, up to stride - 1 above the smallest.

        >>> Spec.build(4, 3, stride=2, padding="same").output_size
        (8,)
        """
        sizes = integers("input_size", input_size)
        words = {"input_size": sizes}
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
            words[name] = integers(name, value, len(sizes))
        for name, values in words.items():
            at_least_one(name, values)
        bare = tuple(Axis(*numbers) for numbers in zip(*words.values(), strict=True))
        crops = _crops(bare, padding, output_padding, output_size)
        axes = tuple(Axis(a.size, a.kernel, a.stride, a.dilation, lo, hi) for a, (lo, hi) in zip(bare, crops, strict=True))
        return cls(axes, *(integer(n, v) for n, v in (("batch", batch), ("in_channels", in_channels),
                                                      ("out_channels", out_channels), ("groups", groups))))  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read the one-line form back; the letters may come in any order.

        >>> Spec.parse("c3:8 i5 k4 s2 p1:0").output_size
        (11,)
        """
        return _parse(text)

    def __str__(self) -> str:
        fields = [("n", str(self.batch), "1"), ("c", f"{self.in_channels}:{self.out_channels}", ""), ("g", str(self.groups), "1")]
        return f"{_fields(fields)} {axes_line(self.axes)}"

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.axes)

    @property
    def input_size(self) -> tuple[int, ...]:
        return tuple(a.size for a in self.axes)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return tuple(a.kernel for a in self.axes)

    @property
    def stride(self) -> tuple[int, ...]:
        return tuple(a.stride for a in self.axes)

    @property
    def dilation(self) -> tuple[int, ...]:
        return tuple(a.dilation for a in self.axes)

    @property
    def crop(self) -> tuple[tuple[int, int], ...]:
        """(lo, hi) per axis: what is cut from the full output; negative adds zeros."""
        return tuple((a.lo, a.hi) for a in self.axes)

    @property
    def full_size(self) -> tuple[int, ...]:
        """F per axis, before the crop."""
        return tuple(a.full for a in self.axes)

    @property
    def output_size(self) -> tuple[int, ...]:
        """O per axis."""
        return tuple(a.output for a in self.axes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(batch, in_channels, *input_size)."""
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(batch, out_channels, *output_size)."""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(in_channels, out_channels / groups, *kernel_size)."""
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    @property
    def macs(self) -> int:
        """Useful multiply-adds: those whose output the crop keeps."""
        return self.batch * self.in_channels * (self.out_channels // self.groups) * prod(a.pairs() for a in self.axes)


def _check(spec: Spec) -> None:
    """Refuse a problem that has no meaning, naming the first argument at fault."""
    if not 1 <= spec.rank <= 3:
        raise ArgumentError("input_size", spec.input_size, "must have 1, 2 or 3 spatial axes")
    for axis in spec.axes:
        for name, value in zip(("input_size", "kernel_size", "stride", "dilation", "padding", "padding"), astuple(axis), strict=True):
            integer(name, value)
    line = str(spec)
    for name, value, least in (("batch", spec.batch, 0), ("in_channels", spec.in_channels, 1),
                               ("out_channels", spec.out_channels, 1), ("groups", spec.groups, 1)):  # fmt: skip
        if integer(name, value) < least:
            raise ArgumentError(name, value, f"must be at least {least}", line)
    for name in ("in_channels", "out_channels"):
        if getattr(spec, name) % spec.groups:
            raise ArgumentError("groups", spec.groups, f"must divide {name}={getattr(spec, name)}", line)
    for name in ("input_size", "kernel_size", "stride", "dilation"):
        at_least_one(name, getattr(spec, name), line)
    for axis in spec.axes:
        if axis.output < 1:
            raise ArgumentError("padding", (axis.lo, axis.hi), f"crops the full output of {axis.full} to {axis.output}; "
                                "at least 1 must remain", line)  # fmt: skip
        for name, value in (("output size", axis.output), ("full output size", axis.full), ("padding", axis.lo), ("padding", axis.hi)):
            if abs(value) >= _LIMIT:
                raise ArgumentError(name, value, "is beyond 64 bits", line)
    for name, shape in (("input", spec.input_shape), ("weight", spec.weight_shape), ("output", spec.output_shape)):
        if prod(max(extent, 1) for extent in shape) * 8 >= 2**62:
            raise ArgumentError(f"{name} shape", shape, "needs more bytes than 64 bits can count", line)


def _crops(axes: Sequence[Axis], padding: Any, output_padding: Any, output_size: Any) -> list[tuple[int, int]]:
    """Our own words for the crop, `padding`, `output_padding` and `output_size`, as (lo, hi) per axis."""
    rank = len(axes)
    extra = integers("output_padding", output_padding, rank)
    for axis, value in zip(axes, extra, strict=True):
        if not 0 <= value < max(axis.stride, axis.dilation, 1):
            raise ArgumentError("output_padding", value, "must be at least 0 and below max(stride, dilation) = "
                                f"{max(axis.stride, axis.dilation)}", axes_line(axes))  # fmt: skip
    sizes = None if output_size is None else integers("output_size", output_size, rank)
    if sizes is not None and any(extra):
        raise ArgumentError("output_size", output_size, f"cannot be given together with output_padding={output_padding!r}",
                            axes_line(axes))  # fmt: skip
    if isinstance(padding, str):
        return _named_crops(axes, padding, extra, sizes)
    crops = [(lo, hi - more) for (lo, hi), more in zip(pairs("padding", padding, rank), extra, strict=True)]
    return crops if sizes is None else [_to_size(a, *c, size) for a, c, size in zip(axes, crops, sizes, strict=True)]


def _named_crops(axes: Sequence[Axis], padding: str, extra: Sequence[int], sizes: Sequence[int] | None) -> list[tuple[int, int]]:
    if padding == "valid":
        return _crops(axes, 0, extra, sizes)
    if padding != "same":
        raise ArgumentError("padding", padding, 'must be "valid", "same", an int, one int per axis, or one (lo, hi) pair per axis')
    if any(extra):
        raise ArgumentError("output_padding", tuple(extra), 'must be 0 with padding="same", which fixes the output size')
    crops = []
    for axis, size in zip(axes, sizes or [a.size * a.stride for a in axes], strict=True):
        if -(-size // axis.stride) != axis.size:
            raise ArgumentError("output_size", size, f'must lie in ({axis.size - 1} * stride, {axis.size} * stride] with padding="same"',
                                axes_line(axes))  # fmt: skip
        lo = max(axis.full - size, 0) // 2
        crops.append((lo, axis.full - lo - size))
    return crops


def _to_size(axis: Axis, lo: int, hi: int, size: int) -> tuple[int, int]:
    """The crop that gives an asked size: PyTorch's rule, from the smallest size to stride - 1 above it."""
    least = axis.full - lo - hi
    if not least <= size < least + axis.stride:
        raise ArgumentError("output_size", size, f"must lie in [{least}, {least + axis.stride - 1}] for this stride and padding",
                            axes_line([axis]))  # fmt: skip
    return lo, hi - (size - least)


def axes_line(axes: Sequence[Axis]) -> str:
    """The problem line of axes alone, for errors raised before a whole `Spec` exists too."""
    return _fields([("i", "x".join(str(a.size) for a in axes), ""), ("k", _join(a.kernel for a in axes), ""),
                    ("s", _join(a.stride for a in axes), "1"), ("d", _join(a.dilation for a in axes), "1"),
                    ("p", _join(f"{a.lo}" if a.lo == a.hi else f"{a.lo}:{a.hi}" for a in axes), "0")])  # fmt: skip


def _fields(fields: Iterable[tuple[str, str, str]]) -> str:
    """(letter, value, default) as words, without what has its default."""
    return " ".join(letter + value for letter, value, default in fields if value != default)


def _join(values: Iterable[object]) -> str:
    """Per-axis values as text, written once where all are equal."""
    texts = [str(v) for v in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


_FIELD = re.compile(r"([ncgiksdp])(N(?::N)?(?:xN(?::N)?)*)".replace("N", r"-?\d{1,19}"))
_NAMES = {"n": "batch", "c": "channels", "g": "groups", "i": "input_size", "k": "kernel_size", "s": "stride", "d": "dilation",
          "p": "padding"}  # fmt: skip


def _parse(text: str) -> Spec:
    if not isinstance(text, str):
        raise ArgumentError("problem", text, 'must be text, as "n16 c256:128 i8x8 k4 s2 p1"')
    fields: dict[str, list[tuple[int, ...]]] = {}
    for word in text.split():
        match = _FIELD.fullmatch(word)
        if match is None:
            raise ArgumentError("problem", text, f'has the word {word!r}; a word is a letter of "n c g i k s d p" and numbers, '
                                'as in "n16 c256:128 i8x8 k4 s2 p1"')  # fmt: skip
        letter, numbers = match.groups()
        if letter in fields:
            raise ArgumentError("problem", text, f"gives {_NAMES[letter]} ({letter}) twice")
        fields[letter] = [tuple(int(n) for n in part.split(":")) for part in numbers.split("x")]
    for letter in "ik":
        if letter not in fields:
            raise ArgumentError("problem", text, f"lacks {_NAMES[letter]} ({letter})")
    for letter, values in fields.items():
        if (letter not in "cp" and any(len(v) > 1 for v in values)) or (letter in "ncg" and len(values) > 1):
            raise ArgumentError("problem", text, f"{_NAMES[letter]} ({letter}) takes {'one number' if letter in 'ng' else 'no pairs'}")
    rank = len(fields["i"])
    single = {letter: _spread(text, letter, fields.get(letter, [(1,)]), rank) for letter in "iksd"}
    channels = fields.get("c", [(1, 1)])[0]
    if len(channels) != 2:
        raise ArgumentError("problem", text, "channels (c) takes in:out, as in c256:128")
    crop = [(v[0], v[-1]) for v in _spread(text, "p", fields.get("p", [(0,)]), rank)]
    return Spec.build(tuple(v[0] for v in single["i"]), tuple(v[0] for v in single["k"]), stride=tuple(v[0] for v in single["s"]),
                      dilation=tuple(v[0] for v in single["d"]), padding=crop, batch=fields.get("n", [(1,)])[0][0],
                      in_channels=channels[0], out_channels=channels[1], groups=fields.get("g", [(1,)])[0][0])  # fmt: skip


def _spread(text: str, letter: str, values: list[tuple[int, ...]], rank: int) -> list[tuple[int, ...]]:
    if len(values) not in (1, rank):
        raise ArgumentError("problem", text, f"{_NAMES[letter]} ({letter}) has {len(values)} axes where input_size (i) has {rank}")
    return values * rank if len(values) == 1 else values


def integer(name: str, value: Any) -> int:
    """One integer (anything with __index__), or an error that names the argument."""
    try:
        return operator.index(value)
    except TypeError:
        raise ArgumentError(name, value, "must be an integer") from None


def is_single(value: Any) -> bool:
    """Neither a sequence nor an array with axes: text and sets, which have no order of axes, are for `integer` to refuse."""
    return isinstance(value, (str, bytes)) or not (isinstance(value, Sequence) or getattr(value, "ndim", None))


def integers(name: str, value: Any, rank: int | None = None) -> tuple[int, ...]:
    """One integer per axis from an int or a sequence; without a rank the sequence sets it.

    >>> integers("stride", 2, rank=3)
    (2, 2, 2)
    """
    if is_single(value):
        return (integer(name, value),) * (1 if rank is None else rank)
    found = tuple(integer(name, v) for v in value)
    if rank is not None and len(found) == 1:
        found *= rank
    if rank is not None and len(found) != rank:
        raise ArgumentError(name, value, f"must be an int or hold one int per spatial axis, here {rank}")
    return found


def pairs(name: str, value: Any, rank: int) -> list[tuple[int, int]]:
    """One (lo, hi) pair per axis from an int, one int per axis, or one pair per axis.

    >>> pairs("padding", [(1, 0), 2], rank=2)
    [(1, 0), (2, 2)]
    """
    if is_single(value):
        one = integer(name, value)
        return [(one, one)] * rank
    items = list(value)
    if len(items) == 1:
        items *= rank
    if len(items) != rank:
        pair = f"; a (lo, hi) pair goes inside a list: {[tuple(value)]}" if len(items) == 2 and all(map(is_single, items)) else ""
        raise ArgumentError(name, value, f"must hold one int or one (lo, hi) pair per spatial axis, here {rank}{pair}")
    found = [integers(name, item) * (2 if is_single(item) else 1) for item in items]
    if any(len(pair) != 2 for pair in found):
        raise ArgumentError(name, value, "must hold ints or (lo, hi) pairs")
    return [(lo, hi) for lo, hi in found]


def at_least_one(name: str, values: Sequence[int], problem: object = None) -> None:
    """Sizes, kernels, strides and dilations are at least 1."""
    if any(v < 1 for v in values):
        raise ArgumentError(name, tuple(values) if len(values) > 1 else values[0], "must be at least 1", problem)
