# SPDX-License-Identifier: Apache-2.0
"""Rounding errors of Winograd's tiles beside those of the direct kernels: `python -m bench.winograd` prints the table of docs/performance.md.

RMS of the error over RMS of the result, against the direct kernel in float64, on normal random numbers.
"""

import numpy as np

import tconv

LAYERS = [("1-D k4 s2", (200,), 4, 2), ("1-D k5 s2", (200,), 5, 2), ("2-D k4 s2", (17, 17), 4, 2), ("2-D k3 s2", (17, 17), 3, 2),
          ("2-D k5 s2", (16, 16), 5, 2), ("2-D k3 s1", (16, 16), 3, 1), ("2-D k6 s2", (16, 16), 6, 2), ("3-D k3 s2", (5, 5, 5), 3, 2),
          ("3-D k4 s2", (5, 5, 5), 4, 2), ("3-D k3 s1", (6, 6, 6), 3, 1)]  # fmt: skip
METHODS = ("direct", "winograd", "winograd2", "winograd4")
CHANNELS = (16, 64, 256, 1024)


def error(size: tuple[int, ...], kernel: int, stride: int, channels: int, method: str) -> float:
    rng = np.random.default_rng([channels, kernel, stride])
    x = rng.standard_normal((1, channels, *size), np.float32)
    w = rng.standard_normal((channels, 32, *[kernel] * len(size)), np.float32)
    exact = tconv.conv_transpose(x.astype(float), w.astype(float), stride=stride, padding=1, algorithm="direct")
    found = tconv.conv_transpose(x, w, stride=stride, padding=1, algorithm=method)
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


def main() -> None:
    print("| layer | channels | direct | " + " | ".join(METHODS[1:]) + " |")
    print("|---" * (2 + len(METHODS)) + "|")
    for name, size, kernel, stride in LAYERS:
        for channels in CHANNELS:
            direct, *others = (error(size, kernel, stride, channels, method) for method in METHODS)
            print(f"| {name} | {channels} | {direct:.1e} | " + " | ".join(f"{e / direct:.2f}" for e in others) + " |", flush=True)


if __name__ == "__main__":
    main()
