# SPDX-License-Identifier: Apache-2.0
"""How much to smooth: the weight of |L x|^2 beside |A x - y|^2, chosen from the data where the user gives none.

With A = U diag(sigma) V* (and L diagonal in V, scaled to 1 below), Tikhonov's solution keeps f = sigma^2 / (sigma^2 + weight) of each
coefficient beta = U* y, so residual, size and degrees of freedom are sums over the spectrum:

    |A x - y|^2 = sum ((1 - f) beta)^2 + outside      |x|^2 = sum (f beta / sigma)^2      freedom = sum f

Rules and symbols: Hansen, "Discrete Inverse Problems", SIAM 2010, sections 5.2 (discrepancy), 5.3 (L-curve) and 5.4 (GCV).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from ._runtime import Array

_BINS = 2048  # coefficients whose singular values differ by less than 2 % are one: a picture has millions


class Coefficients(NamedTuple):
    """sigma: singular values > 0     power: sum of beta^2 for each     number: how many each stands for     outside: |y|^2 beyond U

    equations: how many values y has.
    """

    sigma: Array
    power: Array
    number: Array
    outside: float
    equations: int

    def residual(self, weight: float) -> float:
        """|A x - y|^2."""
        return float((self.power * (weight / (self.sigma**2 + weight)) ** 2).sum()) + self.outside

    def size(self, weight: float) -> float:
        """|L x|^2."""
        return float((self.power * (self.sigma / (self.sigma**2 + weight)) ** 2).sum())

    def freedom(self, weight: float) -> float:
        return float((self.number / (1 + weight / self.sigma**2)).sum())

    def gcv(self, weight: float) -> float:
        """Generalised cross-validation: the mean error of predicting each value of y from the others."""
        left = self.equations - self.number.sum() + float((self.number * (weight / (self.sigma**2 + weight))).sum())  # nothing cancels
        return self.residual(weight) / float(left) ** 2


def binned(sigma: Array, power: Array, count: Array, outside: float, equations: int) -> Coefficients:
    """The same sums over fewer terms: neighbours in the spectrum are put together, and zeros left to `outside`."""
    kept = sigma > 0
    outside += float(power[~kept].sum())
    sigma, power, count = sigma[kept], power[kept], count[kept]
    if sigma.size <= _BINS:
        return Coefficients(sigma, power, count, outside, equations)
    logs = np.log(sigma)
    bins = ((logs - logs.min()) * ((_BINS - 1) / max(float(np.ptp(logs)), 1e-12))).astype(np.intp)
    number = np.bincount(bins, count, _BINS)
    used = number > 0
    centre = np.exp(np.bincount(bins, logs * count, _BINS)[used] / number[used])
    return Coefficients(centre, np.bincount(bins, power, _BINS)[used], number[used], outside, equations)


def choose(found: Coefficients, rule: str, noise: float) -> float:
    """The weight that a rule takes; `noise` is the norm of the noise in y, which the discrepancy alone asks for."""
    if not found.sigma.size:
        return 0.0
    least, most = (2 * np.log(float(edge)) for edge in (found.sigma.min() / 1e6, found.sigma.max() * 1e3))
    if rule == "discrepancy":
        return _discrepancy(found, noise, least, most)
    logs = np.linspace(least, most, 160)
    if rule == "gcv":
        scores = [found.gcv(np.exp(log)) for log in logs]
        at = int(np.argmin(scores))
        near = logs[max(at - 1, 0)], logs[min(at + 1, len(logs) - 1)]
        return float(np.exp(minimize_scalar(lambda log: found.gcv(np.exp(log)), bounds=near, method="bounded").x))
    return _corner(found, logs)


def _discrepancy(found: Coefficients, noise: float, least: float, most: float) -> float:
    """Morozov: the residual is as large as the noise, no smaller."""

    def excess(log: float) -> float:
        return float(np.log(found.residual(np.exp(log)) + 1e-300) - 2 * np.log(noise + 1e-150))

    if excess(least) >= 0:
        return 0.0
    return float(np.exp(most if excess(most) <= 0 else brentq(excess, least, most)))


def _corner(found: Coefficients, logs: Array) -> float:
    """Where the curve of (log residual, log size) bends most, as long as some of the freedom is left."""
    logs = logs[np.array([found.freedom(weight) for weight in np.exp(logs)]) >= 0.01 * found.number.sum()]
    curve = np.log([(found.residual(weight) + 1e-300, found.size(weight) + 1e-300) for weight in np.exp(logs)])
    first = np.gradient(curve, logs, axis=0)
    second = np.gradient(first, logs, axis=0)
    bend = (first[:, 0] * second[:, 1] - second[:, 0] * first[:, 1]) / ((first**2).sum(1) + 1e-300) ** 1.5
    return float(np.exp(logs[int(np.argmax(bend[2:-2])) + 2]))
