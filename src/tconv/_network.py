# SPDX-License-Identifier: Apache-2.0
"""Networks that see a small picture and find the detail its interpolation lacks: convolutions, then a transposed one that enlarges.

A convolution is the transposed one of stride 1 with its kernel turned by half, so the core's kernels run every layer. Each is cropped to
the outputs that have all of their taps, which takes `reach` input pixels from every side of a window; around the picture the pixels of
its border are repeated. So windows that overlap by twice that find what the whole picture finds, without seams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._operator import Operator
from ._problem import SLOPE
from ._runtime import Array, as_array
from ._spec import ArgumentError, at_least_one, integer

SHIPPED = (2, 3, 4)  # the scales that have a network in networks/
_TILE = 64, 128  # rows and columns: 32 channels of them lie near a second-level cache, and the overlap costs two fifths


class Network:
    """A network for `upscale.enlarge` and `bands`: layers without bias, leaky_relu between them, the last one enlarging by `scale`.

    weights: (Cin, Cout, k, k) each, as `conv_transpose` takes them; the first takes one channel and the last gives one. All but the last
        have stride 1 and an odd k; the last has stride `scale` and k an odd number of times that. Computed in float32.
    slope: what leaky_relu multiplies negative values by.

    The mean of every first kernel is taken off. So a constant has no detail, and a * picture + b with a > 0 has a times the detail of the
    picture (Mohan et al., arXiv:1906.05478, for layers without bias), whatever the range of its values.

    Raises `ArgumentError`.

    >>> rng = np.random.default_rng(0)
    >>> network = Network([rng.standard_normal((1, 4, 3, 3)), rng.standard_normal((4, 1, 6, 6))], scale=2)
    >>> network
    Network(x2, 1-4-1 channels, kernels 3 6, reach 2)
    >>> network.detail(rng.random((9, 8))).shape
    (10, 8)
    """

    def __init__(self, weights: Sequence[npt.ArrayLike], scale: int, slope: float = SLOPE) -> None:
        self.scale = integer("scale", scale)
        at_least_one("scale", [self.scale])
        self._slope = _finite("slope", slope)
        self._weights = [_weight(w) for w in weights]
        self._check()
        self._weights[0] -= self._weights[0].mean(axis=(0, 2, 3), keepdims=True)
        *first, last = (w.shape[2] for w in self._weights)
        self.reach = sum(k // 2 for k in first) + last // scale // 2
        self._operators: dict[tuple[int | None, str], tuple[Operator, ...]] = {}

    def _check(self) -> None:
        shapes = [w.shape for w in self._weights]
        if len(shapes) < 2 or any(len(s) != 4 or s[2] != s[3] or not min(s) for s in shapes):
            raise ArgumentError("weights", shapes, "must be two or more arrays (Cin, Cout, k, k)")
        channels = [(s[0], s[1]) for s in shapes]
        if channels[0][0] != 1 or channels[-1][1] != 1 or any(a[1] != b[0] for a, b in pairwise(channels)):
            raise ArgumentError("weights", shapes, "must go from one channel to one, each layer taking those of the one before")
        *first, last = (s[2] for s in shapes)
        if any(k % 2 == 0 for k in first) or last % self.scale or last // self.scale % 2 == 0:
            raise ArgumentError("weights", shapes, f"must have odd kernels, and the last one an odd number of times the scale {self.scale}")

    @classmethod
    def load(cls, file: str | PathLike[str]) -> Network:
        """A network from a NumPy archive of `arr_0`, `arr_1`, ..., the weights in any precision, `scale` and `slope`.

        Raises `ArgumentError` for what is no such archive.
        """
        try:
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as held:  # of a bad file np.load itself keeps a handle
                layers = sum(name.startswith("arr_") for name in held)
                return cls([held[f"arr_{n}"] for n in range(layers)], int(held["scale"]), float(held["slope"]))
        except ArgumentError:
            raise
        except Exception as error:  # of zipfile, zlib, NumPy's header, the file system
            raise ArgumentError("file", str(file), f"is no network ({' '.join(str(error).split())})") from None

    def detail(self, window: npt.ArrayLike, *, threads: int | None = None, algorithm: str = "auto") -> Array:
        """What interpolation lacks inside a window: (H + 2 reach, W + 2 reach) -> (H scale, W scale), float32.

        `threads` and `algorithm` are those of `conv_transpose`. Raises `ArgumentError`.
        """
        held = as_array("window", window)
        if held.dtype.kind not in "fiu":
            raise ArgumentError("window", held.dtype.name, "must hold real numbers")
        if held.ndim != 2 or min(held.shape) <= 2 * self.reach:
            raise ArgumentError("window", held.shape, f"must be (height, width), each more than twice the reach of {self.reach}")
        planes: Array = held.astype(np.float32)[None]
        for operator in self._operators.get((threads, algorithm)) or self._prepare(threads, algorithm):
            planes = operator(planes)
        found: Array = planes[0]
        return found

    def _prepare(self, threads: int | None, algorithm: str) -> tuple[Operator, ...]:
        """The layers packed; of two threads that both pack, one does so in vain."""
        *first, last = self._weights
        common: dict[str, Any] = {"threads": threads, "algorithm": algorithm}
        leaky: dict[str, Any] = {"activation": "leaky_relu", "negative_slope": self._slope}
        layers = [Operator(w, padding=w.shape[2] - 1, **leaky, **common) for w in first]
        ready = (*layers, Operator(last, stride=self.scale, padding=last.shape[2] - self.scale, **common))
        self._operators[threads, algorithm] = ready
        return ready

    def __repr__(self) -> str:
        channels = "-".join(str(w.shape[0]) for w in self._weights) + "-1"
        kernels = " ".join(str(w.shape[2]) for w in self._weights)
        return f"Network(x{self.scale}, {channels} channels, kernels {kernels}, reach {self.reach})"


def _finite(name: str, value: Any) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ArgumentError(name, value, "must be a finite real number")
    return float(value)


def _weight(value: npt.ArrayLike) -> Array:
    array = as_array("weights", value)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ArgumentError("weights", array.dtype.name, "must be finite real numbers")
    return array.astype(np.float32)


@lru_cache(maxsize=len(SHIPPED))
def shipped(scale: int) -> Network:
    """The network of a scale that this package carries; docs/guides/networks.md says what it was trained on."""
    if scale not in SHIPPED:
        raise ArgumentError("scale", scale, f'must be one of {", ".join(map(str, SHIPPED))} where method="net"')
    return Network.load(Path(__file__).with_name("networks") / f"x{scale}.npz")


class Detail:
    """What a network adds to a picture, strip by strip: pixels (height, width, channels), luma (n, channels), n pictures that it sees.

    Windows lie on one grid wherever a caller's bands begin, for a kernel's sums may depend on where in a window an output lies.
    """

    def __init__(self, network: Network, pixels: Array, luma: Array, **options: Any) -> None:
        self._network, self._pixels, self._luma, self._options = network, pixels, luma, options
        self._first = pixels[:1, :1]
        self._strips: dict[int, Array] = {}

    def add(self, large: Array, held: range) -> None:
        """Add the detail of the input rows `held` to their interpolation, (len(held) * scale, width * scale, channels)."""
        scale, rows = self._network.scale, _TILE[0]
        for top in range(held.start // rows * rows, held.stop, rows):
            strip = self._strips.get(top)
            if strip is None:
                self._strips = {top: self._strip(top)}  # the last one, of which the next band may want the rest
                strip = self._strips[top]
            begin, end = (min(max(row, top), top + strip.shape[1] // scale) for row in (held.start, held.stop))
            target = large[(begin - held.start) * scale : (end - held.start) * scale]
            for parts, found in zip(self._luma, strip[:, (begin - top) * scale : (end - top) * scale], strict=True):
                for channel in np.flatnonzero(parts):
                    target[..., channel] += found

    def _strip(self, top: int) -> Array:
        """The detail of a row of tiles, (n, height * scale, width * scale)."""
        height, width = self._pixels.shape[:2]
        rows = self._repeated(top, min(top + _TILE[0], height), height)
        planes = [_brightness(self._pixels[rows], parts) - _brightness(self._first, parts) for parts in self._luma]  # a constant is zero
        strips = []
        for left in range(0, width, _TILE[1]):
            columns = self._repeated(left, min(left + _TILE[1], width), width)
            strips.append([self._network.detail(plane[:, columns], **self._options) for plane in planes])
        return np.concatenate(strips, axis=2)

    def _repeated(self, begin: int, end: int, size: int) -> Array:
        """Positions from `begin` to `end`, with the network's reach on both sides; beyond the border that of the border."""
        reach = self._network.reach
        return np.clip(np.arange(begin - reach, end + reach), 0, size - 1)


def _brightness(pixels: Array, parts: Array) -> Array:
    """Term by term: in a matrix product the order of sums would depend on where a pixel lies."""
    terms = (parts[channel] * pixels[..., channel] for channel in np.flatnonzero(parts))
    return sum(terms, np.zeros(pixels.shape[:2]))
