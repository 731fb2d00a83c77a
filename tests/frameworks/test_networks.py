# SPDX-License-Identifier: Apache-2.0
"""Trained networks on our kernels: ours against PyTorch and against what the guide says of them, waifu2x's against ncnn."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import ncnn
import numpy as np
import pytest
import torch
from PIL import Image
from test_docs import ROOT

from tconv import upscale

MODELS = ("upconv_7_photo", "upconv_7_anime_style_art_rgb")
FILES = ("scale2.0x_model", "noise0_scale2.0x_model", "noise1_scale2.0x_model", "noise2_scale2.0x_model", "noise3_scale2.0x_model")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


# ----------------------------------------------------------------------------------------------------------------------------- our own


@pytest.mark.parametrize("scale", upscale.SHIPPED)
def test_a_saved_network_is_pytorchs(example, scale, tmp_path):
    """Random weights, so that turned or exchanged axes would show; rounded to the float16 that is saved, which both then compute with."""
    script = example("superresolution")
    torch.manual_seed(3)
    model = script.network(scale)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.copy_((torch.randn_like(layer.weight) / layer.weight[0].numel() ** 0.5).half())
    network = script.save(model, scale, tmp_path / "x.npz")
    with torch.no_grad():
        model[0].weight -= model[0].weight.mean((1, 2, 3), keepdim=True)  # as Network does
        window = torch.rand(1, 1, 2 * script.REACH + 9, 2 * script.REACH + 12)
        expected = model(window)[0, 0].numpy()
    assert network.reach == script.REACH and expected.shape == (9 * scale, 12 * scale)
    np.testing.assert_allclose(network.detail(window[0, 0].numpy()), expected, rtol=0, atol=1e-5 * expected.std())


def test_training_is_reproducible_to_the_bit_and_begins_at_bicubic_interpolation(example, tmp_path, monkeypatch):
    script = example("superresolution")
    monkeypatch.setattr(script, "TRAINING", script.TRAINING[:1])
    torch.set_num_threads(1)
    files = []
    for name in "ab":
        script.save(script.train(2, 3, None), 2, tmp_path / f"{name}.npz")
        files.append((tmp_path / f"{name}.npz").read_bytes())
    assert files[0] == files[1]
    small, large = map(np.asarray, script.pair(script.picture("chelsea"), 2))
    start = script.save(script.network(2), 2, tmp_path / "start.npz")
    bicubic = script.scores(large, upscale.enlarge(small, 2, "bicubic"), 2)
    assert script.scores(large, upscale.enlarge(small, 2, start), 2) == pytest.approx(bicubic, abs=0.02)


def test_no_held_out_picture_is_trained_on(example):
    script = example("superresolution")
    pictures = [script.picture(name) for name in (*script.TRAINING, *script.HELD_OUT)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_scores_are_their_formulas(example):
    script, rng = example("superresolution"), np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    error = (a.astype(float) - b)[2:-2, 2:-2]
    y, rgb, ssim = script.scores(a, b, 2)
    assert y == pytest.approx(10 * np.log10(255**2 / ((error @ (0.299, 0.587, 0.114)) ** 2).mean()))
    assert rgb == pytest.approx(10 * np.log10(255**2 / (error**2).mean())) and -0.1 < ssim < 0.1
    b[:2], b[:, -2:] = 0, 255
    assert script.scores(a, b, 2) == (y, rgb, ssim), "the border counts"


def test_the_guide_has_the_scores_of_the_shipped_networks(tmp_path):
    """To 0.02 dB and 0.001, for sums of float32 round in other orders on other machines."""
    command = [sys.executable, "examples/superresolution.py", "--shipped", "--out", str(tmp_path / "figure.jpg")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    measured, written = (rows(text) for text in (done.stdout, (ROOT / "docs/guides/networks.md").read_text()))
    assert len(measured) == 9
    for name, numbers in measured.items():
        assert written[name] == pytest.approx(numbers, abs=0.02) and written[name][4:] == pytest.approx(numbers[4:], abs=0.0011)
    gains = [numbers[1] - numbers[0] for (_, scale), numbers in measured.items() if scale == "2"]
    assert np.mean(gains) > 1 and min(gains) > 0.5


def rows(table):
    """{(picture, scale): numbers} of the rows of scores."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if re.match(r"\| \w+ \| \d \|", line)]
    return {(name, scale): [float(n) for pair in pairs for n in pair.split("→")] for name, scale, *pairs in cells}


# ----------------------------------------------------------------------------------------------------------------------------- waifu2x's


def by_ncnn(param, picture):
    net = ncnn.Net()
    net.opt.use_vulkan_compute = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    assert net.load_param(str(param)) == 0 and net.load_model(str(param.with_suffix(".bin"))) == 0
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(picture))
    code, found = extractor.extract(net.output_names()[0])
    assert code == 0
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file", FILES)
def test_waifu2x_is_ncnns(example, name, file):
    """The last layer is 256 to 3 channels, kernel 4, stride 2, padding 3."""
    waifu2x = example("waifu2x")
    param = waifu2x.model(name, file)
    with Image.open(ROOT / "examples/chelsea.jpg") as photo:
        picture = np.asarray(photo.crop((100, 60, 161, 113)), np.float32).transpose(2, 0, 1) / 255
    network = list(waifu2x.operators(param))
    found, expected = waifu2x.run(network, picture), by_ncnn(param, np.ascontiguousarray(picture))
    assert found.shape == expected.shape == (3, 2 * (53 - 14), 2 * (61 - 14)) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_waifu2x_in_tiles_is_the_whole(example, monkeypatch):
    waifu2x = example("waifu2x")
    network = list(waifu2x.operators(waifu2x.model()))
    pixels = np.random.default_rng(1).integers(0, 256, (37, 41, 3), dtype=np.uint8)
    whole = waifu2x.enlarge(network, pixels)
    monkeypatch.setattr(waifu2x, "TILE", 16)
    tiled = waifu2x.enlarge(network, pixels)
    assert whole.shape == (74, 82, 3) and abs(whole.astype(int) - tiled).max() <= 1 and (whole == tiled).mean() > 0.999


def test_waifu2x_enlarges_a_photograph_from_the_command_line(example, tmp_path):
    photo = ROOT / "examples/chelsea.jpg"
    with Image.open(photo) as image:
        image.crop((0, 0, 90, 70)).save(tmp_path / "small.png")
    command = [sys.executable, "examples/waifu2x.py", str(tmp_path / "small.png"), str(tmp_path / "large.png")]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
    with Image.open(tmp_path / "small.png") as small, Image.open(tmp_path / "large.png") as large:
        assert large.size == (180, 140)
        assert abs(np.asarray(large.resize(small.size, Image.Resampling.BOX), float) - np.asarray(small)).mean() < 3


@pytest.mark.parametrize("text, message", [
    ("7767518\n1 1\n", "is not a .param file of ncnn"),
    ("7767517\n2 2\nInput in 0 1 a 0=1\nPooling pool 1 1 a b 0=0\n", "has a layer of type Pooling"),
])  # fmt: skip
def test_waifu2x_refuses_other_networks(example, tmp_path, text, message):
    (tmp_path / "net.param").write_text(text)
    (tmp_path / "net.bin").write_bytes(bytes(64))
    with pytest.raises(ValueError, match=message):
        list(example("waifu2x").operators(tmp_path / "net.param"))
