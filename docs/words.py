# SPDX-License-Identifier: Apache-2.0
"""The tables of guides/frameworks.md, made from the conventions themselves: run this to renew them; a test says when to."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from tconv import ArgumentError, Axis, Spec
from tconv.conventions import FRAMEWORKS, Convention, Framework, convert

PAGE = Path(__file__).parent / "guides" / "frameworks.md"
REGION = re.compile(r"(<!-- words (\w+) -->\n).*?(<!-- /words -->)", re.DOTALL)

# Layers that everybody writes, in PyTorch's words or, where it has none, in TensorFlow's; 8 x 8, two channels to four.
LAYERS = {
    "k4 s2 p1": ("torch", {"kernel_size": 4, "stride": 2, "padding": 1}),
    "k3 s2 p1 and output_padding 1": ("torch", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}),
    "k3 s2 same": ("tensorflow", {"kernel_size": 3, "strides": 2, "output_shape": (1, 16, 16, 4), "padding": "SAME"}),
    "k3 s1 d2 p2 in two groups": ("torch", {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2}),
}


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def sentence(part: object) -> str:
    """The first line of a docstring, without whose words they are."""
    return re.sub(r"^\S+ (words|parameters by name): ", "", (inspect.getdoc(part) or "").splitlines()[0].rstrip("."))


def example(framework: Framework) -> Convention:
    """A layer of the framework, of two groups where it has them, in 2-D where it has that."""
    axis = Axis(8, 4, 2)
    groups = 2 if framework.groups else 1
    channels = 1 if framework.name == "scipy" else 2 * groups
    found = framework.fit(Spec((axis,) * min(2, max(framework.ranks)), 1, channels, channels, groups))
    assert not isinstance(found, str), found
    return found[1]


def axes() -> str:
    """How weight and data lie, and what a framework lacks."""
    rows = []
    for framework in FRAMEWORKS.values():
        layer = example(framework)
        lacks = ["groups"] * (not framework.groups) + ["dilation"] * (not framework.dilates)
        lacks += [f"{rank}-D" for rank in (1, 2, 3) if rank not in framework.ranks]
        lacks += [f"dilation in {rank}-D" for rank in framework.ranks if framework.dilates and rank not in framework.dilates]
        names = f"`({layer.weight.names})`" + (", reversed" if layer.weight.flip else "")
        rows.append([framework.name, sentence(inspect.getmodule(framework.words)), names,
                     f"`({', '.join(layer.data)})`", ", ".join(lacks)])  # fmt: skip
    return table(["name", "what", "weight", "data", "lacks"], rows)


def crops() -> str:
    """What the words mean, and which crops they can say."""
    rows = ([f.name, sentence(f.words), f.rule[0].upper() + f.rule[1:]] for f in FRAMEWORKS.values())
    return table(["name", "what its words mean", "what it can write"], rows)


def layers() -> str:
    """What to write for a layer, or why there is nothing."""
    parts = []
    for title, (source, words) in LAYERS.items():
        rows = []
        for target in FRAMEWORKS:
            answer = convert(
                source, target, input_size=(8, 8), in_channels=2, **({"out_channels": 4} if source == "torch" else {}), **words
            )
            said = f"`{', '.join(f'{name}={value!r}' for name, value in answer.arguments.items())}`" if answer.arguments else answer.reason
            rows.append([target, said if answer.arguments else f"none: {(said or '').split('; ')[0]}"])
        parts.append(f"**{title}**\n\n{table(['', 'arguments, or why there are none'], rows)}")
    return "\n\n".join(parts)


def shares() -> str:
    """The part of a framework's layers which another has words for, over all small geometries, both axes alike."""
    axes = (Axis(5, *numbers) for numbers in product(range(1, 5), range(1, 4), (1, 2), range(-1, 4), range(-1, 4)))
    writers = [f for f in FRAMEWORKS.values() if 2 in f.ranks]
    held: dict[str, set[Axis]] = {framework.name: set() for framework in writers}
    for axis in axes:
        try:
            spec = Spec((axis, axis))
        except ArgumentError:  # nothing remains
            continue
        for framework in writers:
            if not isinstance(framework.fit(spec), str):
                held[framework.name].add(axis)
    rows = ([name, str(len(mine)), *(_share(mine, other) for other in held.values())] for name, mine in held.items())
    return table(["of the layers of", "", *(f"in {name}" for name in held)], rows)


def _share(mine: set[Axis], other: set[Axis]) -> str:
    common = len(mine & other) / len(mine)
    return "all" if common == 1 else f"{100 * common:.0f} %"


SECTIONS = {"axes": axes, "crops": crops, "layers": layers, "shares": shares}


def renewed(text: str) -> str:
    """The page with every table made anew."""
    return REGION.sub(lambda match: f"{match[1]}{SECTIONS[match[2]]()}\n{match[3]}", text)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(renewed(page), encoding="utf-8")
    print("renewed" if renewed(page) != page else "was current", PAGE.name, file=sys.stderr)
