# SPDX-License-Identifier: Apache-2.0
"""Rounding errors of Winograd's tiles, also over positions, and of Strassen's quarters, beside those of the direct kernels:
`python -m bench.winograd` prints the tables of docs/performance.md.

RMS of the error over RMS of the result, against the direct kernel in float64, on normal random numbers.
"""

import numpy as np

import tconv

LAYERS = [("1-D k4 s2", (200,), 4, 2), ("1-D k5 s2", (200,), 5, 2), ("1-D k25 s4", (200,), 25, 4),
          ("2-D k4 s2", (17, 17), 4, 2), ("2-D k3 s2", (17, 17), 3, 2), ("2-D k5 s2", (16, 16), 5, 2), ("2-D k3 s1", (16, 16), 3, 1),
          ("2-D k6 s2", (16, 16), 6, 2), ("2-D k4 s1", (15, 15), 4, 1), ("2-D k7 s2", (16, 16), 7, 2), ("2-D k5 s1", (16, 16), 5, 1),
          ("2-D k9 s1", (16, 16), 9, 1), ("3-D k3 s2", (5, 5, 5), 3, 2), ("3-D k4 s2", (5, 5, 5), 4, 2), ("3-D k3 s1", (6, 6, 6), 3, 1),
          ("3-D k5 s1", (6, 6, 6), 5, 1)]  # fmt: skip
METHODS = ("direct", "winograd", "winograd2", "winograd4")
ROWS = [
    ((20, 24), 4, 2, 64, 3),
    ((20, 24), 4, 2, 256, 1),
    ((20, 24), 3, 1, 16, 16),
    ((20, 24), 3, 1, 64, 3),
    ((20, 24), 5, 2, 32, 32),
    ((20, 24), 7, 2, 64, 3),
    ((20, 24), 16, 8, 21, 21),
    ((480,), 3, 1, 32, 32),
    ((480,), 4, 2, 64, 32),
    ((480,), 8, 4, 48, 8),
    ((480,), 10, 5, 80, 40),
]  # size, k, s, channels, outputs
CHANNELS, IMAGES = (16, 64, 256, 1024), (1, 4, 16)  # what a sum is as long as: input channels forward, images by the weight


def forward(size: tuple[int, ...], kernel: int, stride: int, channels: int) -> list[float]:
    """Of the layer with 32 outputs and so many input channels, by every method."""
    rng = np.random.default_rng([channels, kernel, stride])
    x = rng.standard_normal((1, channels, *size), np.float32)
    w = rng.standard_normal((channels, 32, *[kernel] * len(size)), np.float32)
    exact = tconv.conv_transpose(x.astype(float), w.astype(float), stride=stride, padding=1, algorithm="direct")
    return [_error(tconv.conv_transpose(x, w, stride=stride, padding=1, algorithm=method), exact) for method in METHODS]


def by_weight(size: tuple[int, ...], kernel: int, stride: int, images: int) -> list[float]:
    """Of the weight's gradient of a layer of 32 to 32 channels, over so many images."""
    rng = np.random.default_rng([images, kernel, stride])
    x = rng.standard_normal((images, 32, *size), np.float32)
    grad = rng.standard_normal((images, 32, *[(n - 1) * stride + kernel - 2 for n in size]), np.float32)
    words = {"kernel_size": [kernel] * len(size), "stride": stride, "padding": 1}
    exact = tconv.conv_transpose_grad_weight(x.astype(float), grad.astype(float), algorithm="direct", **words)
    return [_error(tconv.conv_transpose_grad_weight(x, grad, algorithm=method, **words), exact) for method in METHODS]


def quarters(channels: int, positive: bool) -> list[float]:
    """Of a layer k2 s2 with 64 outputs, directly and by quarters; of normal numbers or what a ReLU leaves of them."""
    rng = np.random.default_rng([channels, 2])
    x, w = rng.standard_normal((1, channels, 16, 16), np.float32), rng.standard_normal((channels, 64, 2, 2), np.float32)
    x = np.maximum(x, 0) if positive else x
    exact = tconv.conv_transpose(x.astype(float), w.astype(float), stride=2, algorithm="direct")
    return [_error(tconv.conv_transpose(x, w, stride=2, algorithm=method), exact) for method in ("direct", "strassen")]


def rowwise(size: tuple[int, ...], kernel: int, stride: int, channels: int, outputs: int, positive: bool) -> list[float]:
    """Of a layer of few channels, directly and by tiles over positions; of normal numbers or what a ReLU leaves of them."""
    rng = np.random.default_rng([channels, kernel])
    x = rng.standard_normal((2, channels, *size), np.float32)
    w = rng.standard_normal((channels, outputs, *[kernel] * len(size)), np.float32)
    x = np.maximum(x, 0) if positive else x
    exact = tconv.conv_transpose(x.astype(float), w.astype(float), stride=stride, padding=1, algorithm="direct")
    return [_error(tconv.conv_transpose(x, w, stride=stride, padding=1, algorithm=method), exact) for method in ("direct", "rowwise")]


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


def main() -> None:
    for what, name, counts in ((forward, "channels", CHANNELS), (by_weight, "images", IMAGES)):
        print(f"| layer | {name} | direct | " + " | ".join(METHODS[1:]) + " |")
        print("| --- " * (2 + len(METHODS)) + "|")
        for layer, size, kernel, stride in LAYERS:
            for count in counts:
                direct, *others = what(size, kernel, stride, count)
                print(f"| {layer} | {count} | {direct:.1e} | " + " | ".join(f"{e / direct:.2f}" for e in others) + " |", flush=True)
        print()
    print("| channels | direct | strassen | after a ReLU: direct | strassen |\n" + "| --- " * 5 + "|")
    for channels in (*CHANNELS[1:], 4096):
        cells = [f"{direct:.1e} | {strassen / direct:.2f}" for direct, strassen in (quarters(channels, p) for p in (False, True))]
        print(f"| {channels} | " + " | ".join(cells) + " |")
    print("\n| layer | direct | rowwise | after a ReLU: direct | rowwise |\n" + "| --- " * 5 + "|")
    for size, kernel, stride, channels, outputs in ROWS:
        pairs = (rowwise(size, kernel, stride, channels, outputs, p) for p in (False, True))
        cells = [f"{direct:.1e} | {fewer / direct:.2f}" for direct, fewer in pairs]
        print(f"| {len(size)}-D, {channels} to {outputs}, k{kernel} s{stride} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
