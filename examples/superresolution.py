# SPDX-License-Identifier: Apache-2.0
"""Train the networks that `tconv upscale` carries: `python examples/superresolution.py` (half an hour of one core), `--smoke` (seconds).

A network sees the brightness of a small photograph and adds detail to its bicubic interpolation: a few convolutions, and a transposed
convolution that enlarges. It has no biases and its first kernels sum to zero, so that a brighter picture, or one of more contrast, gets the
same detail in the same measure. Small pictures are large ones made smaller by Pillow's antialiased bicubic filter.
Writes x2.npz, x3.npz, x4.npz, scores.md and superresolution.png.
"""

import argparse
import random
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
import torch
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn.utils import parametrize

from tconv import upscale

TRAINING = ("astronaut", "camera", "rocket", "brick", "grass", "gravel", "coins", "immunohistochemistry", "china.jpg", "flower.jpg",
            "grace_hopper.jpg")  # fmt: skip
HELD_OUT = ("chelsea", "coffee", "stereo_motorcycle")
STEPS = {2: 16000, 3: 6000, 4: 6000}
BATCH, SIDE, CHANNELS, DEPTH, SLOPE, SEED = 16, 28, 32, 5, 0.1, 0
REACH = 2 + DEPTH + 1  # an output pixel depends on so many input pixels on every side
BRIGHTNESS = np.array([0.299, 0.587, 0.114])


class ZeroSum(nn.Module):
    """Kernels that see differences only."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w - w.mean((1, 2, 3), keepdim=True)


def network(scale: int) -> nn.Sequential:
    """(N, 1, H + 2 REACH, W + 2 REACH) -> (N, 1, H * scale, W * scale); it starts from zero detail."""
    body = [nn.Conv2d(1, CHANNELS, 5, bias=False)]
    for _ in range(DEPTH):
        body += [nn.LeakyReLU(SLOPE), nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False)]
    last = nn.ConvTranspose2d(CHANNELS, 1, 3 * scale, stride=scale, padding=2 * scale, bias=False)
    nn.init.zeros_(last.weight)
    parametrize.register_parametrization(body[0], "weight", ZeroSum())
    return nn.Sequential(*body, nn.LeakyReLU(SLOPE), last).to(memory_format=torch.channels_last)


def picture(name: str) -> Image.Image:
    """One of matplotlib's, scikit-learn's or scikit-image's; of a pair of pictures the first."""
    if name == "grace_hopper.jpg":
        return Image.open(matplotlib.get_data_path() + "/sample_data/" + name)
    found = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    return Image.fromarray(found[0] if isinstance(found, tuple) else found)


def pair(image: Image.Image, scale: int) -> tuple[Image.Image, Image.Image]:
    """A picture cropped to a multiple of the scale, and the same made smaller."""
    width, height = image.width // scale, image.height // scale
    large = image.crop((0, 0, width * scale, height * scale))
    return large.resize((width, height), Image.Resampling.BICUBIC), large


def brightness(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, np.float64) / 255
    return pixels if pixels.ndim == 2 else pixels[..., :3] @ BRIGHTNESS


def examples(scale: int, shrinks: tuple[float, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Small pictures, with REACH pixels repeated around them, and what bicubic interpolation lacks; smaller copies have finer detail."""
    found = []
    for name in TRAINING:
        image = picture(name)
        for shrink in shrinks:
            resized = image.resize((round(image.width * shrink), round(image.height * shrink)), Image.Resampling.LANCZOS)
            small, large = map(brightness, pair(resized, scale))
            lacking = large - upscale.enlarge(small, scale, "bicubic")
            found.append(tuple(torch.from_numpy(a.astype(np.float32)) for a in (np.pad(small, REACH, mode="edge"), lacking)))
    return found


def batch(data: list[tuple[torch.Tensor, torch.Tensor]], scale: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows, turned and mirrored."""
    inputs, targets = [], []
    for small, lacking in rng.choices(data, [float(lacking.numel()) for _, lacking in data], k=BATCH):
        top, left = (rng.randrange(extent - 2 * REACH - SIDE + 1) for extent in small.shape)
        window = small[top : top + SIDE + 2 * REACH, left : left + SIDE + 2 * REACH]
        target = lacking[top * scale : (top + SIDE) * scale, left * scale : (left + SIDE) * scale]
        turns, mirrored = rng.randrange(4), rng.randrange(2)
        for part, list_ in ((window, inputs), (target, targets)):
            turned = torch.rot90(part, turns)
            list_.append(turned.T if mirrored else turned)
    return torch.stack(inputs)[:, None], torch.stack(targets)[:, None]


def train(scale: int, steps: int, start: nn.Sequential | None, out: Path, shrinks: tuple[float, ...]) -> nn.Sequential:
    """One network; where another is given, from its weights, all but the last layer's."""
    torch.manual_seed(SEED + scale)
    model, data, rng = network(scale), examples(scale, shrinks), random.Random(SEED + scale)
    if start is not None:
        model[:-1].load_state_dict(start[:-1].state_dict())
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3 if start is None else 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, optimiser.param_groups[0]["lr"], total_steps=steps, pct_start=0.05)
    for step in track(range(1, steps + 1), f"x{scale}"):
        x, target = batch(data, scale, rng)
        loss = (model(x) - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 1000 == 0 or step == steps:
            save(model, out / f"x{scale}.npz")
    return model


def save(model: nn.Sequential, path: Path) -> None:
    """Weights as tconv takes them, (Cin, Cout, k, k): a convolution is the transposed one with its kernel turned by half."""
    weights = [layer.weight.detach() for layer in model if not isinstance(layer, nn.LeakyReLU)]
    turned = [w.transpose(0, 1).flip(2, 3) for w in weights[:-1]] + weights[-1:]
    np.savez_compressed(path, *(w.numpy().astype(np.float16) for w in turned), scale=last_scale, slope=SLOPE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps at x2: does it run?")
    parser.add_argument("--out", type=Path, default=Path("superresolution"), help="the folder to write into")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = None
    for scale, steps in ({2: 40} if arguments.smoke else STEPS).items():
        model = train(scale, steps, model, arguments.out, (0.5,) if arguments.smoke else (1.0, 0.75, 0.55))


if __name__ == "__main__":
    main()
