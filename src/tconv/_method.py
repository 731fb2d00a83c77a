# SPDX-License-Identifier: Apache-2.0
"""What may be asked of a deconvolution, and what it answers: words and records, without SciPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

from ._posed import Posedness
from ._runtime import Array
from ._spec import ArgumentError, Spec, at_least_one, integer

LINEAR = ("dense", "fourier", "lsmr", "lsqr", "cg")
METHODS = ("auto", *LINEAR, "richardson_lucy", "tv", "l1")
RULES = ("discrepancy", "gcv", "lcurve")
PENALTIES = ("identity", "laplacian")


@dataclass
class Evidence:
    """What is known of an answer: computed when it is first asked for, as it may take as long as a filter does."""

    measure: Callable[[], float]
    examine: Callable[[], Posedness]
    posed: Posedness | None = None  # where a choice needed it already

    @cached_property
    def residual(self) -> float:
        return self.measure()

    @cached_property
    def posedness(self) -> Posedness:
        return self.posed or self.examine()


@dataclass(frozen=True)
class Deconvolution:
    """An estimate with its evidence.

    x: the estimate, in the layout and dtype of y
    iterations, converged: of the method; without iterations it has converged
    method: what `method` came to     regularization: the weight that was used     noise: its standard deviation in y, given or estimated
    evidence: what `residual` and `posedness` are read from
    """

    x: Array
    iterations: int
    converged: bool
    method: str
    regularization: float
    noise: float | None
    evidence: Evidence = field(repr=False, compare=False)

    @property
    def residual(self) -> float:
        """|A x - y| / |y| over all samples, with A the layer as it is; computed when it is first read."""
        return self.evidence.residual

    @property
    def posedness(self) -> Posedness:
        """Whether y has one answer, and how sensitive it is (`Posedness`); computed when it is first read, if no choice needed it."""
        return self.evidence.posedness

    def __str__(self) -> str:
        how = f"{self.iterations} iterations, {'converged' if self.converged else 'not converged'}" if self.iterations else "solved at once"
        facts = [f"residual {self.residual:.3g}", how, f"regularization {self.regularization:.3g}"]
        if self.noise is not None:
            facts.append(f"noise {self.noise:.3g}")
        return f"{self.method}: {', '.join(facts)}\n{self.posedness}"


@dataclass(frozen=True)
class Wish:
    """The words of a call that say how to solve."""

    method: str
    regularization: Any
    penalty: str
    noise: Any
    iterations: Any
    tolerance: Any
    threads: int | None
    progress: Callable[[int], None] | None

    @property
    def undecided(self) -> bool:
        """Whether the condition decides how much to regularize."""
        return self.regularization is None and self.noise is None

    @property
    def double(self) -> bool:
        """Whether to compute in float64 whatever y holds."""
        return self.method == "auto" or (self.method in LINEAR and self.method != "fourier")

    def check(self, spec: Spec) -> None:
        for name, value, known in (("method", self.method, METHODS), ("penalty", self.penalty, PENALTIES)):
            if value not in known:
                raise ArgumentError(name, value, f"must be one of {', '.join(known)}")
        rule = self.regularization
        if isinstance(rule, str) and rule not in RULES:
            raise ArgumentError("regularization", rule, f"must be a number or one of {', '.join(RULES)}")
        number = None if isinstance(rule, str) else rule
        for name, given in (("regularization", number), ("noise", self.noise), ("tolerance", self.tolerance)):
            if given is not None and not (_is_real(given) and given >= 0):
                raise ArgumentError(name, given, "must be a finite number of at least 0, or None")
        if self.iterations is not None:
            at_least_one("iterations", [integer("iterations", self.iterations)])
        if self.method == "richardson_lucy" and rule is not None:
            raise ArgumentError("regularization", rule, "means nothing to richardson_lucy: fewer `iterations` smooth more")
        if self.method in ("tv", "l1") and (isinstance(rule, str) or rule == 0):
            raise ArgumentError("regularization", rule, f"must be a number above 0 for {self.method}, or None: chosen by the noise")
        if self.penalty == "laplacian" and (self.method != "fourier" or set(spec.stride) != {1} or spec.out_channels != spec.groups):
            raise ArgumentError("penalty", self.penalty, "is for method='fourier' with stride 1 and one channel of x a group", spec)
        if rule == "discrepancy" and self.noise is None:
            raise ArgumentError("noise", None, "is needed by regularization='discrepancy': the standard deviation of the noise in y")


def _is_real(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float, np.integer, np.floating)) and isfinite(value)
