# SPDX-License-Identifier: Apache-2.0
"""How well posed a deconvolution is: what is determined at all, and how much noise grows in what is. NumPy alone, until asked."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ._model import Model
from ._runtime import Array

if TYPE_CHECKING:
    from ._spectrum import Fourier, Spectrum

DENSE = 700  # unknowns or equations of a group up to which singular values are computed as they are: under a second
_FREQUENCIES, _WORK = 2**14, 1e7  # of an estimate, so that it costs milliseconds
_FAINT = 1e-3  # of the largest singular value: below it, noise grows a thousandfold


@dataclass(frozen=True)
class Posedness:
    """Whether y = A x has one answer, for one sample, and how sensitive it is.

    unknowns, equations: values of x and of y
    null_space: the dimension of what y says nothing about, as the minimum-norm answer leaves it out; where not `exact`, at least this
    largest, smallest: singular values; the smallest is that of what is determined
    faint: the share of determined directions whose singular value is below 1/1000 of the largest: near zeros of the kernel's spectrum
    exact: whether these are the singular values of A; otherwise they are those of its circular neighbour, at a grid of frequencies, which
        bound those of a "valid" convolution and of an uncropped transposed one, and at other borders are an estimate

    >>> import numpy as np, tconv
    >>> print(tconv.Operator(np.ones((1, 1, 2)), stride=2).posedness((1, 1, 8)))
    determined: 8 unknowns, 16 equations, condition 1 (singular values)
    """

    unknowns: int
    equations: int
    null_space: int
    largest: float
    smallest: float
    faint: float
    exact: bool

    @property
    def condition(self) -> float:
        """The largest over the smallest singular value: the factor by which relative noise may grow. What is not determined is left out."""
        return self.largest / self.smallest if self.smallest > 0 else inf

    @property
    def unique(self) -> bool | None:
        """Whether no other x gives this y; None where only an estimate says so."""
        return False if self.null_space else True if self.exact else None

    def __str__(self) -> str:
        least = "" if self.exact else "at least "
        verdict = {
            False: f"not unique: y says nothing about {least}{self.null_space} of",
            True: "determined:",
            None: "presumably determined:",
        }
        basis = "singular values" if self.exact else "estimated from the kernel's spectrum"
        faint = f", {self.faint:.1%} of directions faint" if self.faint else ""
        return (
            f"{verdict[self.unique]} {self.unknowns} unknowns, {self.equations} equations, condition {self.condition:.3g} ({basis}){faint}"
        )


def posedness(model: Model, spectrum: Spectrum | None = None) -> Posedness:
    """The facts of a model; `spectrum` is that of A itself, where somebody has it."""
    if spectrum is None and model.unknowns and max(model.unknowns, model.equations) <= DENSE:
        from ._spectrum import Dense

        spectrum = Dense(model)
    found = spectrum or neighbour(model)
    groups = model.spec.groups
    unknowns, equations = model.unknowns * groups, model.equations * groups
    kept = ~found.null()
    sigma = found.sigma[kept]
    count = np.broadcast_to(found.count, kept.shape)[kept]
    unread = model.unread() * groups
    null = unread + max(0, unknowns - unread - equations)  # from the geometry alone
    if spectrum is not None:
        null = unknowns - round(float(count.sum()))
    largest, smallest = (float(sigma.max()), float(sigma.min())) if sigma.size else (0.0, 0.0)
    faint = float(count[sigma < _FAINT * largest].sum() / count.sum()) if sigma.size else 0.0
    return Posedness(unknowns, equations, null, largest, smallest, faint, spectrum is not None)


def neighbour(model: Model) -> Fourier:
    """The spectrum of the circular convolution with the same kernel, at frequencies few enough to take no time."""
    from ._spectrum import Fourier

    spec = model.spec
    rows, columns = spec.in_channels // spec.groups, spec.out_channels // spec.groups * prod(spec.stride)
    work = spec.groups * min(rows, columns) ** 2 * max(rows, columns)
    most = max(2, int(min(_FREQUENCIES / prod(spec.stride), _WORK / work) ** (1 / spec.rank)))
    return Fourier(model, tuple(min(axis.size, most) for axis in spec.axes), np.float64, vectors=False)


def singular_values(model: Model) -> Array:
    """All singular values of A for one sample, largest first: exact where A is small or circular, otherwise its circular neighbour's."""
    from ._spectrum import Dense, Fourier

    spectrum: Any = (Dense(model) if max(model.unknowns, model.equations) <= DENSE
                     else Fourier(model, model.spec.input_size, np.float64, vectors=False) if model.circular else neighbour(model))  # fmt: skip
    count = np.broadcast_to(spectrum.count, spectrum.sigma.shape).astype(int)
    return np.sort(np.repeat(spectrum.sigma.ravel(), count.ravel()))[::-1]
