# SPDX-License-Identifier: Apache-2.0
"""Train the networks that `tconv upscale` carries: `python examples/superresolution.py` (minutes of one core; `--smoke` for seconds).

A network sees the brightness of a small photograph and finds what its bicubic interpolation lacks: some convolutions, and a transposed
one that enlarges. It has no biases and its first kernels sum to zero, so that a picture of more contrast gets the same detail, as much
stronger. Small pictures are large ones made smaller by Pillow's bicubic filter. `--shipped` scores what tconv carries.
"""

import argparse
import itertools
import random
from pathlib import Path

import numpy as np
import skimage
import torch
from matplotlib import pyplot as plt
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_sample_image
from torch import nn

from tconv import upscale

TRAINING = ("astronaut", "camera", "rocket", "brick", "grass", "gravel", "coins", "immunohistochemistry", "retina", "hubble_deep_field",
            "china.jpg", "flower.jpg")  # fmt: skip
HELD_OUT = ("chelsea", "coffee", "stereo_motorcycle")
SIZES = (1.4, 1.0, 0.7, 0.5)  # of the training pictures: enlarged ones are soft, as many photographs are, small ones are sharp
STEPS = {2: 8000, 3: 4000, 4: 4000}
BATCH, SIDE, CHANNELS, DEPTH, SLOPE, SEED = 16, 28, 32, 5, 0.1, 0
REACH = 2 + DEPTH + 1  # an output pixel depends on so many input pixels on every side


def network(scale: int) -> nn.Sequential:
    """(N, 1, H + 2 REACH, W + 2 REACH) -> (N, 1, H * scale, W * scale); it starts from zero detail."""
    body = [nn.Conv2d(1, CHANNELS, 5, bias=False)]
    for _ in range(DEPTH):
        body += [nn.LeakyReLU(SLOPE), nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False)]
    body += [nn.LeakyReLU(SLOPE), nn.ConvTranspose2d(CHANNELS, 1, 3 * scale, stride=scale, padding=2 * scale, bias=False)]
    nn.init.zeros_(body[-1].weight)
    return nn.Sequential(*body).to(memory_format=torch.channels_last)


def picture(name: str) -> Image.Image:
    """One of scikit-learn's or scikit-image's; of a stereo pair the left one."""
    found = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    return Image.fromarray(found[0] if isinstance(found, tuple) else found)


def pair(image: Image.Image, scale: int) -> tuple[Image.Image, Image.Image]:
    """The same picture small and large; the large one loses what the scale does not divide."""
    width, height = image.width // scale, image.height // scale
    large = image.crop((0, 0, width * scale, height * scale))
    return large.resize((width, height), Image.Resampling.BICUBIC), large


def brightness(pixels: np.ndarray) -> np.ndarray:
    return pixels @ (0.299, 0.587, 0.114) if pixels.ndim == 3 else pixels.astype(float)


def examples(scale: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Small pictures, their border repeated REACH times, and what their bicubic interpolation lacks."""
    found = []
    for image, size in itertools.product(map(picture, TRAINING), SIZES):
        resized = image.resize((round(image.width * size), round(image.height * size)), Image.Resampling.LANCZOS)
        small, large = (brightness(np.asarray(part)) / 255 for part in pair(resized, scale))
        both = np.pad(small, REACH, mode="edge"), large - upscale.enlarge(small, scale, "bicubic")
        found.append(tuple(torch.from_numpy(part.astype(np.float32)) for part in both))
    return found


def batch(data: list[tuple[torch.Tensor, torch.Tensor]], scale: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows, turned and mirrored."""
    windows = [], []
    for both in rng.choices(data, k=BATCH):
        corner = [rng.randrange(extent - 2 * REACH - SIDE + 1) for extent in both[0].shape]
        turns, mirrored = rng.randrange(4), rng.randrange(2)
        for part, into, unit, border in zip(both, windows, (1, scale), (2 * REACH, 0), strict=True):
            window = part[tuple(slice(first * unit, (first + SIDE) * unit + border) for first in corner)].rot90(turns)
            into.append(window.T if mirrored else window)
    return torch.stack(windows[0])[:, None], torch.stack(windows[1])[:, None]


def train(scale: int, steps: int, start: nn.Sequential | None) -> nn.Sequential:
    """One network; where another is given, from its weights, all but the last layer's."""
    torch.manual_seed(SEED + scale)
    model, data, rng = network(scale), examples(scale), random.Random(SEED + scale)
    model[:-1].load_state_dict((start or model)[:-1].state_dict())
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3 if start else 2e-3, total_steps=steps, pct_start=0.05)
    for _ in track(range(steps), f"x{scale}"):
        x, target = batch(data, scale, rng)
        loss = (model(x) - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model[0].weight -= model[0].weight.mean((1, 2, 3), keepdim=True)  # it sees differences only
    return model


def save(model: nn.Sequential, scale: int, path: Path) -> upscale.Network:
    """Weights as tconv takes them, (Cin, Cout, k, k): a convolution is the transposed one with its kernel turned by half."""
    *convolutions, last = (layer.weight.detach().half().numpy() for layer in model[::2])
    np.savez_compressed(path, *(w.swapaxes(0, 1)[:, :, ::-1, ::-1] for w in convolutions), last, scale=scale, slope=SLOPE)
    return upscale.Network.load(path)


def scores(large: np.ndarray, found: np.ndarray, scale: int) -> tuple[float, float, float]:
    """PSNR of the brightness, of red, green and blue together, and SSIM (Wang et al., 2004) of the brightness; no border of `scale`."""
    large, found = (part[scale:-scale, scale:-scale].astype(float) for part in (large, found))
    y, found_y = brightness(large), brightness(found)
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    psnr = (skimage.metrics.peak_signal_noise_ratio(*both, data_range=255) for both in ((y, found_y), (large, found)))
    return *psnr, skimage.metrics.structural_similarity(y, found_y, **wang)


def judge(networks: dict[int, upscale.Network | str], out: Path) -> None:
    """The table of scores, and a figure of the first held-out picture."""
    figure, axes = plt.subplots(len(networks), 3, figsize=(9, 3.1 * len(networks)), layout="constrained", squeeze=False)
    print("| picture | scale | PSNR of Y | PSNR of RGB | SSIM of Y |\n| --- | --- | --- | --- | --- |")
    for row, (scale, method) in zip(axes, networks.items(), strict=True):
        for name in HELD_OUT:
            small, large = map(np.asarray, pair(picture(name), scale))
            results = [upscale.enlarge(small, scale, way) for way in ("bicubic", method)]
            (y, rgb, ssim), net = (scores(large, result, scale) for result in results)
            print(f"| {name} | {scale} | {y:.2f} → {net[0]:.2f} | {rgb:.2f} → {net[1]:.2f} | {ssim:.3f} → {net[2]:.3f} |")
            if name == HELD_OUT[0]:
                for axis, title, shown in zip(row, (f"bicubic x{scale}", f"net x{scale}", "original"), (*results, large), strict=True):
                    axis.imshow(shown[60:180, 110:250])
                    axis.set(title=title, xticks=[], yticks=[])
    figure.savefig(out, dpi=80, pil_kwargs={"quality": 90})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shipped", action="store_true", help="no training: score the networks that tconv carries")
    parser.add_argument("--smoke", action="store_true", help="a few steps at x2, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("superresolution.jpg"), help="the figure; x2.npz, ... go beside it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, networks = None, dict.fromkeys(upscale.SHIPPED, "net") if asked.shipped else {}
    for scale, steps in ({} if asked.shipped else {2: 40} if asked.smoke else STEPS).items():
        networks[scale] = save(model := train(scale, steps, model), scale, asked.out.with_name(f"x{scale}.npz"))
    judge(networks, asked.out)


if __name__ == "__main__":
    main()
