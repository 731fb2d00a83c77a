# SPDX-License-Identifier: Apache-2.0
"""Draw handwritten digits with a generative adversarial network: `python examples/digits.py` (minutes; `--smoke` for seconds).

A fully connected layer makes a 4 x 4 map of noise and the wanted digit, and two transposed convolutions make it a picture of 16 x 16. The
data are scikit-learn's 1797 digits, enlarged from 8 x 8. A classifier and a measure of diversity judge the drawn digits; both know only
the 600 digits that training does not see.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from torch import nn
from torch.nn.functional import one_hot, relu
from torch.nn.utils.parametrizations import spectral_norm

from tconv import upscale
from tconv.torch import ConvTranspose2d

NOISE, BATCH, CLASSES = 32, 64, 10


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (n, 1, 16, 16) in [0, 1] and classes, 1197 to train with and 600 to judge by."""
    data = load_digits()
    large = upscale.enlarge(np.moveaxis(data.images.astype(np.float32), 0, -1) / 16, 2, "bicubic")
    pictures = np.ascontiguousarray(np.moveaxis(np.clip(large, 0, 1), -1, 0)[:, None])
    x, judges_x, y, judges_y = train_test_split(pictures, data.target, test_size=600, stratify=data.target, random_state=0)
    return x, y, judges_x, judges_y


def generator(kernel: int) -> nn.Sequential:
    """Noise and a class, one-hot, (n, 42) -> pictures (n, 1, 16, 16); padding="same" makes every kernel size double the map."""
    return nn.Sequential(
        nn.Linear(NOISE + CLASSES, 64 * 4 * 4), nn.Unflatten(1, (64, 4, 4)), nn.BatchNorm2d(64), nn.ReLU(),
        ConvTranspose2d(64, 32, kernel, stride=2, padding="same"), nn.BatchNorm2d(32), nn.ReLU(),
        ConvTranspose2d(32, 1, kernel, stride=2, padding="same"), nn.Sigmoid())  # fmt: skip


class Discriminator(nn.Module):
    """Real or drawn? Two strided convolutions, and the class by projection (Miyato and Koyama, 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            spectral_norm(nn.Conv2d(1, 32, 4, 2, 1)), nn.LeakyReLU(0.2), spectral_norm(nn.Conv2d(32, 64, 4, 2, 1)), nn.LeakyReLU(0.2),
            nn.Flatten(), spectral_norm(nn.Linear(64 * 4 * 4, 64)), nn.LeakyReLU(0.2))  # fmt: skip
        self.real, self.fits = spectral_norm(nn.Linear(64, 1)), spectral_norm(nn.Linear(CLASSES, 64, bias=False))

    def forward(self, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        features = self.body(x)
        return self.real(features)[:, 0] + (features * self.fits(wanted)).sum(1)


def training(model: nn.Module, x: np.ndarray, y: np.ndarray, steps: int, label: str) -> Iterator[tuple[int, nn.Module]]:
    """Train by the hinge loss; after every step (its number, the moving average of the generator, which draws better than the last)."""
    pictures, wanted = torch.from_numpy(x), one_hot(torch.from_numpy(y), CLASSES).float()
    judge, average = Discriminator(), copy.deepcopy(model).eval()
    drawing = torch.optim.Adam(model.parameters(), 4e-4, betas=(0.5, 0.99))
    judging = torch.optim.Adam(judge.parameters(), 8e-4, betas=(0.5, 0.99))
    for step in track(range(1, steps + 1), label):
        chosen = torch.randint(len(pictures), (BATCH,))
        real, label_of = pictures[chosen], wanted[chosen]
        drawn = model(torch.cat([torch.randn(BATCH, NOISE), label_of], 1))
        loss = relu(1 - judge(real, label_of)).mean() + relu(1 + judge(drawn.detach(), label_of)).mean()
        judging.zero_grad()
        loss.backward()
        judging.step()
        loss = -judge(drawn, label_of).mean()
        drawing.zero_grad()
        loss.backward()
        drawing.step()
        with torch.no_grad():
            for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mean.copy_(mean.lerp(now, 0.005) if mean.is_floating_point() else now)
        yield step, average


def draw(model: nn.Module, wanted: np.ndarray, seed: int = 1) -> np.ndarray:
    """Digits of the wanted classes, (n, 16, 16)."""
    noise = torch.randn(len(wanted), NOISE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(torch.cat([noise, one_hot(torch.from_numpy(wanted), CLASSES).float()], 1))[:, 0].numpy()


def accuracy(pictures: np.ndarray, classes: np.ndarray, judges_x: np.ndarray, judges_y: np.ndarray) -> float:
    """How many digits a support vector machine takes for what they should be; it has learnt from the judges' digits alone."""
    return SVC(C=10).fit(judges_x.reshape(len(judges_x), -1), judges_y).score(pictures.reshape(len(pictures), -1), classes)


def coverage(pictures: np.ndarray, judges_x: np.ndarray) -> float:
    """How many of the judges' digits have one of as many `pictures` nearer than their own fifth neighbour (Naeem et al., 2020)."""
    judges, pictures = judges_x.reshape(len(judges_x), -1), pictures.reshape(len(pictures), -1)
    reach = NearestNeighbors(n_neighbors=5).fit(judges).kneighbors()[0][:, -1]
    return float((NearestNeighbors(n_neighbors=1).fit(pictures).kneighbors(judges)[0][:, 0] < reach).mean())


def copied(pictures: np.ndarray, x: np.ndarray, judges_x: np.ndarray) -> float:
    """Median distance to the nearest training digit over that of real digits which training did not see: near 0 means copies."""
    known = NearestNeighbors(n_neighbors=1).fit(x.reshape(len(x), -1))
    near, usual = (np.median(known.kneighbors(of.reshape(len(of), -1))[0]) for of in (pictures, judges_x))
    return float(near / usual)


def save(figure: plt.Figure, path: Path) -> None:
    """As a PNG of 48 greys, which is small."""
    figure.savefig(path)
    with Image.open(path) as drawn:
        drawn.convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y, judges_x, judges_y = digits()
    *_, (_, model) = training(generator(asked.kernel), x, y, 20 if asked.smoke else asked.steps, "training")
    wanted = np.arange(600) % CLASSES
    drawn = draw(model, wanted)
    print(f"drawn as wanted    {accuracy(drawn, wanted, judges_x, judges_y):.1%} (real digits {accuracy(x, y, judges_x, judges_y):.1%})")
    print(f"coverage           {coverage(drawn, judges_x):.1%} (real digits {coverage(x[:600], judges_x):.1%})")
    print(f"distance to nearest training digit, over that of unseen real digits    {copied(drawn, x, judges_x):.2f}")
    real = np.stack([judges_x[judges_y == digit][:10, 0] for digit in range(CLASSES)], 1).reshape(100, 16, 16)
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
    for axis, title, sheet in zip(axes, ("drawn", "real"), (drawn[:100], real), strict=True):
        axis.imshow(sheet.reshape(10, 10, 16, 16).swapaxes(1, 2).reshape(160, 160), cmap="gray_r")
        axis.set(title=title, xticks=[], yticks=[])
    save(figure, asked.out)
    print(asked.out)


if __name__ == "__main__":
    main()
