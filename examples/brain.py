# SPDX-License-Identifier: Apache-2.0
"""Label tissue finer than the picture: `python examples/brain.py` (minutes; `--smoke` for seconds).

A U-Net reads axial slices of the MNI152 magnetic resonance template at 2 mm and labels grey and white matter at 1 mm, as the template's
tissue maps do. Its encoder pools, its decoder is transposed convolutions, one more than there are poolings. The same network with
bilinear enlargement and ordinary convolutions of as many weights in their place is the baseline.

Training sees the slices 30 to 79 mm above the bottom of the volume, the score those of 95 to 134: no training slice is nearer than
16 mm. Left and right halves would not do: this template is symmetric.
"""

import argparse
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.progress import track
from torch import nn
from torch.nn.functional import cross_entropy

from tconv.torch import ConvTranspose2d

TISSUES, TRAIN, TEST = ("other", "grey matter", "white matter"), slice(30, 80), slice(95, 135)
UPS = ("transposed", "bilinear")


def volumes() -> tuple[torch.Tensor, torch.Tensor]:
    """Slices (n, 1, 96, 112), the mean of 2 x 2 pixels of 1 mm, and labels (n, 192, 224): the most probable of `TISSUES`."""
    data = files("nilearn") / "datasets" / "data"
    t1, grey, white = (nibabel.load(str(data / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")).get_fdata(dtype=np.float32)
                       [2:194, 5:229].transpose(2, 0, 1) / 255 for name in ("t1", "gm", "wm"))  # fmt: skip
    labels = np.stack([1 - grey - white, grey, white]).argmax(0)
    pictures = t1.reshape(-1, 1, 96, 2, 112, 2).mean((3, 5))
    return torch.from_numpy(pictures), torch.from_numpy(labels)


def up(kind: str, channels: int, result: int) -> nn.Module:
    """Twice the size: the layer, or the baseline of equally many weights."""
    if kind == "transposed":
        return ConvTranspose2d(channels, result, 4, stride=2, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(channels, result, 4))


def block(channels: int, result: int) -> nn.Sequential:
    """Two convolutions of 3 x 3."""
    layers = ((nn.Conv2d(a, result, 3, padding=1, bias=False), nn.BatchNorm2d(result), nn.ReLU()) for a in (channels, result))
    return nn.Sequential(*(layer for three in layers for layer in three))


class UNet(nn.Module):
    """Ronneberger, Fischer and Brox, 2015, with two poolings: (n, 1, h, w) -> scores of the tissues (n, 3, 2 h, 2 w)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(1, 12), block(12, 24), block(24, 48)])
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList([up(kind, 48, 24), up(kind, 24, 12)])
        self.join = nn.ModuleList([block(48, 24), block(24, 12)])
        self.finer = nn.Sequential(up(kind, 12, 12), nn.ReLU(), nn.Conv2d(12, len(TISSUES), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down[0](x)
        middle = self.down[1](self.pool(fine))
        x = self.down[2](self.pool(middle))
        for enlarge, join, skipped in zip(self.up, self.join, (middle, fine), strict=True):
            x = join(torch.cat([enlarge(x), skipped], 1))
        return self.finer(x)


def train(kind: str, seed: int, pictures: torch.Tensor, labels: torch.Tensor, steps: int) -> nn.Module:
    """A network that has seen `steps` batches of four slices."""
    torch.manual_seed(seed)
    model = UNet(kind)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, steps)
    for _ in track(range(steps), f"{kind}, seed {seed}"):
        chosen = torch.randint(len(pictures), (4,))
        loss = cross_entropy(model(pictures[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def labelled(model: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """The likeliest tissue of every pixel, slice by slice."""
    with torch.no_grad():
        return torch.cat([model(picture[None]).argmax(1) for picture in pictures])


def overlap(found: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Intersection over union of each tissue, over all pixels of all slices."""
    pairs = ((found == tissue, labels == tissue) for tissue in range(len(TISSUES)))
    return [((a & b).sum() / (a | b).sum()).item() for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("brain.png"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pictures, labels = volumes()
    test = (pictures[TEST], labels[TEST]) if not asked.smoke else (pictures[TEST][::20], labels[TEST][::20])
    sheet = {"picture, 2 mm": test[0][0, 0], "labels, 1 mm": test[1][0]}
    for kind in UPS:
        scores = []
        for seed in range(1 if asked.smoke else asked.seeds):
            model = train(kind, seed, pictures[TRAIN], labels[TRAIN], 2 if asked.smoke else asked.steps)
            found = labelled(model, test[0])
            scores.append(overlap(found, test[1]))
        sheet[kind] = found[0]
        weights = sum(p.numel() for p in model.parameters())
        print(
            f"{kind}, {weights} weights; IoU by seed: "
            + "; ".join(
                f"{name} {' '.join(f'{value:.3f}' for value in values)}"
                for name, values in zip(TISSUES, zip(*scores, strict=True), strict=True)
            )
        )
    figure, axes = plt.subplots(1, len(sheet), figsize=(10, 3), layout="constrained")
    for axis, (title, values) in zip(axes, sheet.items(), strict=True):
        axis.imshow(np.rot90(values.numpy()), cmap="gray", interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
    figure.savefig(asked.out, dpi=90)
    print(asked.out)


if __name__ == "__main__":
    main()
