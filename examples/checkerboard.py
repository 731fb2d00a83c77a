# SPDX-License-Identifier: Apache-2.0
"""Where checkerboards come from, measured: `python examples/checkerboard.py` (minutes; `--smoke` for seconds).

The generator of examples/digits.py is trained four times: with kernels of 4, where all outputs get equally many products, and of 3,
where they get 1, 2 or 4; from random weights, whose phases have different sums, and from the nearest whose phases have equal sums. The
figure shows the first pictures, the last ones, and the power at the pattern's frequencies over that around them as training goes on.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from digits import CLASSES, accuracy, digits, draw, generator, plt, save, training
from torch import nn

import tconv
from tconv import analysis
from tconv.torch import ConvTranspose2d

RUNS = {"kernel 4": (4, False), "kernel 3": (3, False), "kernel 4, mended": (4, True), "kernel 3, mended": (3, True)}


def start_without_checkerboard(model: nn.Module) -> None:
    """Replace the weights of all transposed convolutions by the nearest ones that keep constants constant."""
    for layer in model.modules():
        if isinstance(layer, ConvTranspose2d):
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(analysis.checkerboard_free(layer.weight.numpy(), stride=layer.stride)))


def amplitudes(model: nn.Module) -> list[float]:
    """Of every transposed convolution: how much of what a constant input gives is a checkerboard."""
    layers = [layer for layer in model.modules() if isinstance(layer, ConvTranspose2d)]
    return [analysis.checkerboard(layer.weight.detach().numpy(), stride=layer.stride).amplitude for layer in layers]


def run(name: str, x: np.ndarray, y: np.ndarray, steps: int) -> tuple[nn.Module, np.ndarray, list[tuple[int, float]]]:
    """A trained generator, the pictures it began with, and (step, spectral peak) on the way."""
    kernel, mended = RUNS[name]
    wanted = np.arange(600) % CLASSES
    torch.manual_seed(0)
    model = generator(kernel)
    if mended:
        start_without_checkerboard(model)
    print(f"\n{name}: {analysis.overlap(tconv.Spec.build((8, 8), (kernel, kernel), stride=2, padding='same'))}")
    print("checkerboard of the layers, untrained  " + "  ".join(f"{a:.1%}" for a in amplitudes(model)))
    first = draw(model, wanted)
    model.train()
    peaks = [(0, analysis.spectral_peak(first, stride=2))]
    for step, average in training(model, x, y, steps, name):
        if step % max(1, steps // 20) == 0:
            peaks.append((step, analysis.spectral_peak(draw(average, wanted), stride=2)))
    print("checkerboard of the layers, trained    " + "  ".join(f"{a:.1%}" for a in amplitudes(average)))
    return average, first, peaks


def sheet(pictures: np.ndarray) -> np.ndarray:
    """Two rows of ten, one of each class, as one picture of the full range of grey."""
    rows = pictures[:20].reshape(2, 10, 16, 16).swapaxes(1, 2).reshape(32, 160)
    return (rows - rows.min()) / (rows.max() - rows.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("checkerboard.png"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    x, y, judges_x, judges_y = digits()
    wanted, level = np.arange(600) % CLASSES, analysis.spectral_peak(x[:600, 0], stride=2)
    figure = plt.figure(figsize=(9, 7.6), dpi=80, layout="constrained")
    places = figure.add_gridspec(5, 2, height_ratios=[1, 1, 1, 1, 2.4])
    plot = figure.add_subplot(places[4, :])
    for row, name in enumerate(RUNS):
        model, first, peaks = run(name, x, y, 4 if asked.smoke else asked.steps)
        last = draw(model, wanted)
        print(f"spectral peak {peaks[0][1]:.3g} untrained, {peaks[-1][1]:.3g} trained, {level:.3g} of real digits; "
              f"drawn as wanted {accuracy(last, wanted, judges_x, judges_y):.1%}")  # fmt: skip
        for column, (when, pictures) in enumerate((("untrained", first), ("trained", last))):
            axis = figure.add_subplot(places[row, column])
            axis.imshow(sheet(pictures), cmap="gray_r")
            axis.set(title=f"{name}, {when}", xticks=[], yticks=[])
        kernel, mended = RUNS[name]
        plot.semilogy(*zip(*peaks, strict=True), "--" if mended else "-", color="black" if kernel == 4 else "darkgray", label=name)
    plot.axhline(level, color="black", linestyle=":", label="real digits")
    plot.set(xlabel="training step", ylabel="spectral peak")
    plot.legend()
    save(figure, asked.out)
    print(asked.out)


if __name__ == "__main__":
    main()
