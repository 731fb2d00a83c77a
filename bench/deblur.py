# SPDX-License-Identifier: Apache-2.0
"""Deblurring beside scikit-image and PyLops: `python -m bench.deblur` prints the table of docs/performance.md.

The grey photograph of examples/, also enlarged, blurred by SciPy with zeros beyond the border (what scikit-image's examples do), and noise of
1/100 of white. PSNR over all pixels; milliseconds are the median of interleaved rounds. PyLops gets its own convolution and the same weights.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pylops
from PIL import Image
from pylops.optimization.cls_basic import LSQR
from pylops.optimization.cls_sparsity import SplitBregman
from scipy.signal import convolve
from skimage import restoration

from tconv import deblur, upscale

from .checkout import ROOT

KERNELS, SCALES = ("gaussian:2", "motion:9:30", "disk:4"), (1, 3)
WIENER, TIKHONOV, TV, PACE = 0.02, 0.01, 0.008, 0.05
SLOW = {"TV": 1}  # rounds


def pairs(y: np.ndarray, kernel: np.ndarray, large: bool) -> dict[str, tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """(whose, theirs, ours) by method, each with the same words."""
    zero: dict[str, Any] = {"boundary": "zero"}
    found = {
        "Wiener": ("scikit-image", lambda: restoration.wiener(y, kernel, WIENER), lambda: deblur.restore(y, kernel, regularization=WIENER, **zero)),
        "Wiener, circular": ("scikit-image", lambda: restoration.wiener(y, kernel, WIENER),
                             lambda: deblur.restore(y, kernel, regularization=WIENER, boundary="circular")),
        "weight found": ("scikit-image", lambda: restoration.unsupervised_wiener(y, kernel, rng=0)[0], lambda: deblur.restore(y, kernel, **zero)),
        "Richardson-Lucy, 20": ("scikit-image", lambda: restoration.richardson_lucy(y, kernel, 20),
                                lambda: deblur.restore(y, kernel, method="richardson_lucy", iterations=20, tolerance=0, **zero)),
    }  # fmt: skip
    if not large:
        blur = pylops.signalprocessing.Convolve2D(y.shape, kernel, offset=tuple(size // 2 for size in kernel.shape))
        found["LSQR"] = ("PyLops", lambda: LSQR(blur).solve(y.ravel(), damp=TIKHONOV**0.5, niter=2000, atol=1e-6, btol=1e-6)[0].reshape(y.shape),
                         lambda: deblur.restore(y, kernel, method="lsmr", regularization=TIKHONOV, tolerance=1e-6, **zero))  # fmt: skip
        found["TV"] = ("PyLops", lambda: bregman(blur, y), lambda: deblur.restore(y, kernel, method="tv", regularization=TV, **zero))
    return found


def bregman(blur: Any, y: np.ndarray) -> np.ndarray:
    differences = [pylops.FirstDerivative(y.shape, axis=axis, kind="forward") for axis in (0, 1)]
    x = SplitBregman(blur).solve(
        y.ravel(), differences, niter_outer=20, niter_inner=1, mu=2 * PACE**2 / TV, epsRL1s=[PACE] * 2, iter_lim=8
    )[0]
    return np.asarray(x).reshape(y.shape)


def psnr(found: Any, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((np.clip(getattr(found, "x", found), 0, 1) - truth) ** 2)))


def main() -> None:
    photo = np.asarray(Image.open(ROOT / "examples" / "chelsea.jpg").convert("L"))
    print("| picture | blur | method | theirs | their PSNR | ours | their ms | ours |")
    print("|---|---|---|---|---|---|---|---|")
    for scale in SCALES:
        truth = (photo if scale == 1 else upscale.enlarge(photo, scale)) / 255.0
        for name in KERNELS:
            kernel = deblur.kernel(name)
            y = np.clip(convolve(truth, kernel, mode="same") + 0.01 * np.random.default_rng(0).standard_normal(truth.shape), 0, None)
            for method, (whose, *runs) in pairs(y, kernel, scale > 1).items():
                quality = [psnr(run(), truth) for run in runs]
                times: list[list[float]] = [[], []]
                for _ in range(SLOW.get(method, 7)):
                    for taken, run in zip(times, runs, strict=True):
                        start = time.perf_counter()
                        run()
                        taken.append(1e3 * (time.perf_counter() - start))
                cells = (
                    f"{truth.shape[1]} x {truth.shape[0]}",
                    name,
                    method,
                    whose,
                    *(f"{q:.1f}" for q in quality),
                    *(f"{median(t):.0f}" for t in times),
                )
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
