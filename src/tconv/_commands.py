# SPDX-License-Identifier: Apache-2.0
"""The commands of `tconv`: their arguments (cyclopts), and what each prints, for people or as JSON."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from . import __version__
from ._runtime import config, kernel_for, show_config, thread_count
from ._spec import ArgumentError, Axis, Spec, integers
from .conventions import FRAMEWORKS
from .conventions import convert as _convert
from .upscale import SHIPPED

_SCALES = range(2, 9)
_SHOWN_PHASES = 8  # a stride of 256 has 256 phases; the JSON has them all
_MOST_PHASES = 10**6  # in the JSON

Words = Annotated[str, Parameter(allow_leading_hyphen=True)]  # a value that may be negative

app = App(name="tconv", version=__version__, help="The transposed convolutional layer: run it, size it, convert it.",
          help_format="plaintext", suppress_keyboard_interrupt=False)  # fmt: skip


def run(arguments: Sequence[str]) -> str | None:
    """Run one command line; what is wrong with it as text, if it could not be understood. Commands raise what they raise."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return f"{error} See tconv --help."
    return None


@app.command
def upscale(
    photo: Path,
    out: Path,
    /,
    *,
    scale: Words = "2",
    method: Literal["net", "bilinear", "bicubic", "lanczos"] | None = None,
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Enlarge a photograph: a network whose last layer is a transposed convolution adds detail to bicubic interpolation, which is one too.

    Parameters
    ----------
    photo
        The picture to read: whatever Pillow reads.
    out
        The file to write: .png, .jpg, .tif or .webp. Written whole or not at all.
    scale
        How many times wider and higher, a whole number from 2 to 8.
    method
        net, for 2, 3 and 4 times, or an interpolation, whose pixels are those of Pillow's resize; by default net, and beyond 4 bicubic.
    threads
        How many threads compute; by default all cores.
    json
        Print what was done as JSON.
    """
    from . import _picture

    times = _whole("scale", scale, _SCALES)
    started = time.perf_counter()
    method = method or ("net" if times in SHIPPED else "bicubic")
    picture = _picture.read(photo)
    _picture.check_target(out, photo, picture.image, times)
    with _progress(not json, "enlarging", "rows", picture.image.height * times) as advance:
        result = _picture.enlarge(picture.image, times, method, advance, threads=threads)
        computed = time.perf_counter()
        _picture.write(result, out, picture.kept)
    facts = {
        "input": str(photo), "output": str(out), "input_size": picture.image.size, "output_size": result.size, "mode": result.mode,
        "scale": times, "method": method, "notes": picture.notes, "kernel": kernel_for("auto"),
        "threads": thread_count(threads),
        "seconds": round(time.perf_counter() - started, 3), "seconds_writing": round(time.perf_counter() - computed, 3),
    }  # fmt: skip
    if json:
        return _print_json(facts)
    for note in picture.notes:
        print(f"{photo}: {note}")
    (width, height), (wide, high) = picture.image.size, result.size
    print(f"{out}: {wide} x {high} {result.mode} from {width} x {height}, {method} x{times}, {facts['seconds']:.2f} s "
          f"({facts['seconds_writing']:.2f} s writing) by {facts['kernel']} with {facts['threads']} threads")  # fmt: skip


@app.command
def deblur(
    photo: Path,
    kernel: str,
    out: Path,
    /,
    *,
    method: Literal["fourier", "tv", "richardson_lucy", "lsmr"] = "fourier",
    boundary: Literal["reflect", "replicate", "circular", "zero", "free"] = "reflect",
    noise: float | None = None,
    regularization: str | None = None,
    iterations: int | None = None,
    compare: Path | None = None,
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Sharpen a photograph whose blur is known: deconvolution, which gives values back where a transposed convolution gives a shape.

    Parameters
    ----------
    photo
        The picture to read: whatever Pillow reads.
    kernel
        What a point of light became: a picture, a .npy file, or gaussian:SIGMA, disk:RADIUS or motion:LENGTH:ANGLE in pixels and degrees.
    out
        The file to write: .png, .jpg, .tif or .webp. Written whole or not at all.
    method
        fourier is fast and smooth, tv keeps edges, richardson_lucy is for photon counts, lsmr takes every border to the letter.
    boundary
        What lies beyond the border; free: nothing is known of it.
    noise
        Its standard deviation in the picture's values; found from the picture where it is needed and not given.
    regularization
        A weight of the penalty, or gcv, lcurve or discrepancy, which choose one.
    iterations
        At most so many.
    compare
        Also write the picture before and after, side by side, into this file.
    threads
        How many threads compute; by default all cores.
    json
        Print what was done as JSON.
    """
    from . import _picture

    started = time.perf_counter()
    picture, taps = _picture.read(photo), _picture.kernel(kernel)
    targets = [out] if compare is None else [out, compare]
    for number, path in enumerate(targets, start=1):
        _picture.check_target(path, photo, picture.image, 1, wide=number)
    with _progress(not json, "deblurring", "iterations", iterations) as advance:
        result, found = _picture.sharpen(picture.image, taps, progress=lambda _: advance(1), method=method, boundary=boundary, noise=noise,
                                         regularization=_weight(regularization), iterations=iterations, threads=threads)  # fmt: skip
    computed = time.perf_counter()
    for path, image in zip(targets, (result, _picture.beside(picture.image, result)), strict=False):
        _picture.write(image, path, picture.kept)
    facts = {
        "input": str(photo), "output": [str(path) for path in targets], "size": result.size, "mode": result.mode, "kernel": kernel,
        "kernel_size": taps.shape, "method": found.method, "boundary": boundary, "regularization": found.regularization,
        "noise": found.noise, "residual": found.residual, "iterations": found.iterations, "converged": found.converged,
        "condition": found.posedness.condition, "unique": found.posedness.unique, "notes": picture.notes,
        "seconds": round(time.perf_counter() - started, 3), "seconds_writing": round(time.perf_counter() - computed, 3),
    }  # fmt: skip
    if json:
        return _print_json(facts)
    for note in picture.notes:
        print(f"{photo}: {note}")
    print(f"{out}: {result.width} x {result.height} {result.mode}, {_by(taps.shape)} kernel, {facts['seconds']:.2f} s")
    print(found)


def _weight(text: str | None) -> float | str | None:
    """A number where it is one; everything else is for `deconvolve` to judge."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


@contextlib.contextmanager
def _progress(wanted: bool, doing: str, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where a person sees it; yields what takes the number of new rows, or whatever the unit is."""
    if not wanted or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)

        def advance(done: int) -> None:
            bar.advance(task, done)
            if bar.finished:
                bar.update(task, description="writing")

        yield advance


@app.command
def shape(*problem: str, source: Annotated[str | None, Parameter("--from")] = None, inputs_of: Words | None = None,
          outputs_of: Words | None = None, json: bool = False, **arguments: Words) -> None:  # fmt: skip
    """Sizes of a layer, its stride phases, its cost, and which inputs reach which outputs.

    The layer is one line, as in n16 c256:128 i8x8 k4 s2 p1 (batch, channels, input, kernel, stride, padding), or words:
    --input-size 8x8 --kernel-size 4 --stride 2 --padding 1, where 8x8 is one number per axis and 1:0 a (lo, hi) pair.

    Parameters
    ----------
    problem
        The layer as one line of text, quoted or not.
    source
        The framework whose words the arguments are; without it they are tconv's own.
    inputs_of
        Also list the inputs that reach this output, as in 3x4.
    outputs_of
        Also list the outputs that this input reaches.
    json
        Print the facts as JSON.
    arguments
        The layer in words.
    """
    spec = _layer(problem, source, arguments)
    reach = {}
    if inputs_of is not None:
        reach[f"inputs of output {inputs_of}"] = _reach("inputs_of", inputs_of, spec, spec.output_size, Axis.inputs_of)
    if outputs_of is not None:
        reach[f"outputs of input {outputs_of}"] = _reach("outputs_of", outputs_of, spec, spec.input_size, Axis.outputs_of)
    _print_json(_shape_facts(spec, reach)) if json else print("\n".join(_shape_lines(spec, reach)))


def _reach(name: str, text: str, spec: Spec, size: tuple[int, ...], rule: Callable[[Axis, int], range]) -> list[range]:
    position = integers(name, _value(text), spec.rank)
    if not all(0 <= p < extent for p, extent in zip(position, size, strict=True)):
        raise ArgumentError(name, text, f"must lie inside {_by(size)}, counted from 0", spec)
    return [rule(axis, p) for axis, p in zip(spec.axes, position, strict=True)]


def _shape_facts(spec: Spec, reach: dict[str, list[range]]) -> dict[str, Any]:
    if max(spec.stride) > _MOST_PHASES:
        raise ArgumentError("stride", max(spec.stride), f"has more phases than JSON is written for, {_MOST_PHASES}", spec)
    return {
        "problem": str(spec), "input_shape": spec.input_shape, "weight_shape": spec.weight_shape, "output_shape": spec.output_shape,
        "output_size": spec.output_size, "full_size": spec.full_size, "crop": spec.crop, "macs": spec.macs,
        "phases": [[{"index": p.index, "outputs": len(p.outputs), "first": p.outputs.start, "taps": p.taps} for p in axis.phases()]
                   for axis in spec.axes],
        **{name.replace(" ", "_"): [list(r) for r in ranges] for name, ranges in reach.items()},
    }  # fmt: skip


def _shape_lines(spec: Spec, reach: dict[str, list[range]]) -> Iterator[str]:
    yield str(spec)
    rows = {
        "input": _by(spec.input_shape), "weight": _by(spec.weight_shape), "output": _by(spec.output_shape),
        "full output": _by(spec.full_size), "crop (lo:hi)": _by(f"{lo}:{hi}" for lo, hi in spec.crop), "multiply-adds": f"{spec.macs:,}",
        **{name: _by(map(_span, ranges)) for name, ranges in reach.items()},
    }  # fmt: skip
    width = max(map(len, rows)) + 2
    yield from (f"{name:<{width}}{value}" for name, value in rows.items())
    for number, axis in enumerate(spec.axes):
        for phase in islice(axis.phases(), _SHOWN_PHASES):
            taps = " ".join(str(tap.tap) for tap in phase.taps) or "none"
            yield f"axis {number}, phase {phase.index}: outputs {_span(phase.outputs)}, taps {taps}"
        if axis.stride > _SHOWN_PHASES:
            yield f"axis {number}: {axis.stride - _SHOWN_PHASES} more phases (all of them with --json)"


def _span(positions: range) -> str:
    """A range as people write it, its last position included."""
    if len(positions) <= 1:
        return str(positions[0]) if positions else "none"
    return f"{positions[0]}..{positions[-1]}" + (f" by {positions.step}" if positions.step > 1 else "")


@app.command
def convert(*, source: Annotated[str, Parameter("--from")], target: Annotated[str, Parameter("--to")], json: bool = False,
            **arguments: Words) -> None:  # fmt: skip
    """A layer of one framework in the words of another, and what to do with its weight; or why there is none.

    tconv convert --from torch --to keras --input-size 8x8 --kernel-size 4 --stride 2 --padding 1

    Parameters
    ----------
    source
        The framework whose words the arguments are.
    target
        The framework to write the layer for.
    json
        Print the answer as JSON.
    arguments
        The layer in the source's words; 8x8 is one number per axis, 1:0 a pair, 0,1,1,0 a list.
    """
    answer = _convert(_framework("from", source), _framework("to", target), **_values(arguments))
    _print_json(answer.to_dict()) if json else print(answer)


@app.command
def bench(*problem: str, source: Annotated[str | None, Parameter("--from")] = None, threads: int | None = None, peers: str | None = None,
          rounds: int = 7, seconds: float = 10.0, dtype: Literal["float32", "float64"] = "float32", json: bool = False,
          **arguments: Words) -> None:  # fmt: skip
    """Time a layer of yours beside every library that is installed here, each in its own process, and say whether tconv is worth it.

    The layer is given as to tconv shape: tconv bench "c256:128 i32x32 k4 s2 p1". The libraries are PyTorch (torch, and torch_cl
    for channels_last), onnxruntime (with onnx), openvino, tensorflow, jax and litert (ai-edge-litert). Nothing else should run
    meanwhile.

    Parameters
    ----------
    problem
        The layer as one line of text, quoted or not.
    source
        The framework whose words the arguments are; without it they are tconv's own.
    threads
        How many threads each library may use; by default all cores.
    peers
        Names of the libraries, joined by commas; by default all.
    rounds
        In every round each library has its turn.
    seconds
        Time for all rounds of all libraries together; a slow library may take longer.
    dtype
        Of all numbers.
    json
        Print what was measured as JSON.
    arguments
        The layer in words.
    """
    from ._bench import own
    from ._bench.measure import Setting
    from ._bench.peers import PEERS
    from ._bench.progress import Progress

    spec, count, setting = _layer(problem, source, arguments), thread_count(threads), Setting(rounds, seconds, dtype)
    names = list(PEERS) if peers is None else [name for name in peers.split(",") if name]
    own.check(spec, names, setting)
    with Progress(own.steps(names, setting), sys.stderr, quiet=True) as progress:
        report = own.run(spec, names, count, setting, progress)
    _print_json(report.facts()) if json else print(report)


@app.command
def info(*problem: str, why: bool = False, source: Annotated[str | None, Parameter("--from")] = None,
         dtype: Literal["float32", "float64", "float16", "bfloat16"] | None = None,
         layout: Literal["channels_first", "channels_last"] | None = None, threads: int | None = None, algorithm: str | None = None,
         json: bool = False, **arguments: Words) -> None:  # fmt: skip
    """Version, machine, kernels and threads; or with --why how a layer is computed, what was refused, and why.

    tconv info --why "c256:128 i8x8 k4 s2 p1", where the layer is given as to tconv shape. Cycles are estimates for one thread. The
    limit is that of multiply-adds, two vectors of them a cycle on most processors; the memory's limit is not known without measuring:
    tconv bench.

    Parameters
    ----------
    problem
        The layer as one line of text, quoted or not.
    why
        Explain the choice of a kernel for the layer.
    source
        The framework whose words the arguments are; without it they are tconv's own.
    dtype
        Of all numbers; by default float32.
    layout
        By default channels_first.
    threads
        How many threads may be used; by default all cores.
    algorithm
        A kernel's name, as tconv info lists them; by default auto.
    json
        Print the facts as JSON.
    arguments
        The layer in words.
    """
    if not why:
        options = {"problem": " ".join(problem) or None, "from": source, "dtype": dtype, "layout": layout, "threads": threads,
                   "algorithm": algorithm, **arguments}  # fmt: skip
        for name, value in options.items():
            if value is not None:
                raise ArgumentError(name, value, "means something with --why only")
        return _print_json(config()) if json else show_config()
    from ._why import explain

    found = explain(_layer(problem, source, arguments), dtype or "float32", layout or "channels_first", threads, algorithm or "auto")
    _print_json(found.facts()) if json else print(found)


def _values(words: dict[str, str]) -> dict[str, Any]:
    """`--kernel-size 4x4` and the like as keyword arguments."""
    return {name.replace("-", "_"): _value(text) for name, text in words.items()}


def _layer(problem: Sequence[str], source: str | None, arguments: dict[str, str]) -> Spec:
    """The layer of a command that takes it as one line or in words."""
    line = " ".join(problem) if problem else None
    if (line is None) == (not arguments and source is None):
        raise ArgumentError("problem", line, "give either one line, or words such as --input-size 8x8 --kernel-size 4, and not both")
    return _spec(source, _values(arguments)) if line is None else Spec.parse(line)


def _spec(source: str | None, words: dict[str, Any]) -> Spec:
    """The layer that a framework's words mean, or tconv's own where `source` is None."""
    if source is not None:
        return FRAMEWORKS[_framework("from", source)].read(words).spec
    known = inspect.signature(Spec.build).parameters
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in words:
            raise ArgumentError(name, None, f"is missing: add --{name.replace('_', '-')}")
    for name, value in words.items():
        if name not in known:
            listed = ", ".join(f"--{word.replace('_', '-')}" for word in known)
            raise ArgumentError(name, value, f"is not a word of tconv; the words are {listed}")
    return Spec.build(**words)


def _framework(flag: str, name: str) -> str:
    if name not in FRAMEWORKS:
        raise ArgumentError(flag, name, f"must be one of {', '.join(FRAMEWORKS)}")
    return name


def _value(text: str) -> Any:
    """What a word on the command line means: an int, one int or pair per axis, True, False, None, or the text itself.

    >>> [_value(text) for text in ("4", "8x6", "1:0x2", "0,1,1,0", "same", "none", "NHWC,HWIO,NHWC")]
    [4, (8, 6), ((1, 0), 2), (0, 1, 1, 0), 'same', None, ('NHWC', 'HWIO', 'NHWC')]
    """
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    if not re.fullmatch(r"-?\d+(:-?\d+)?([x,]-?\d+(:-?\d+)?)*,?", text):
        return tuple(text.split(",")) if "," in text else text
    items = [tuple(map(int, part.split(":"))) for part in re.split("[x,]", text) if part]
    numbers = tuple(item if len(item) > 1 else item[0] for item in items)
    return numbers[0] if text.lstrip("-").isdecimal() else numbers


def _whole(name: str, text: str, allowed: range) -> int:
    if not text.isdecimal() or int(text) not in allowed:
        raise ArgumentError(name, text, f"must be a whole number from {allowed[0]} to {allowed[-1]}")
    return int(text)


def _by(sizes: Iterable[object]) -> str:
    return " x ".join(map(str, sizes))


def _print_json(facts: Any) -> None:
    import json

    print(json.dumps(facts))
