# SPDX-License-Identifier: Apache-2.0
"""The applications under examples/ run from end to end, a few steps each; and their parts do what their captions say."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_docs import ROOT

from tconv import analysis

PRINTS = {
    "digits": r"drawn as wanted +\d+\.\d% \(real digits 9\d\.\d%\)\ncoverage +\d+\.\d% \(real digits 9\d\.\d%\)",
    "checkerboard": r"kernel 3: 1 to 4 products an output, uniformity 0.25\n(.*\n)+.*spectral peak \d",
    "superresolution": r"\| picture \| scale \|(.*\n)+(\| chelsea \| 2 \| 33\.93 → 34\.\d\d \|.*\n)\| coffee",
    "brain": r"transposed, (\d+) weights; IoU by seed: .*\n(.*\n)*?bilinear, \1 weights",
    "brain_keras": r"transposed, 85635 weights; IoU by seed: .*\n(.*\n)*?bilinear, 85635 weights",
}


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


@pytest.mark.parametrize("name", PRINTS)
def test_smoke(name, tmp_path):
    out = tmp_path / "figure.png"
    command = [sys.executable, f"examples/{name}.py", "--smoke", "--out", str(out)]
    environment = os.environ | {"MPLBACKEND": "Agg", "MPLCONFIGDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTS[name], done.stdout), done.stdout
    with Image.open(out) as figure:
        assert min(figure.size) > 200 and np.ptp(np.asarray(figure.convert("L"))) > 100


@pytest.mark.parametrize("name", PRINTS)
def test_the_scripts_and_their_figures_stay_small(name):
    assert len((ROOT / f"examples/{name}.py").read_text().splitlines()) <= 150
    (picture,) = (ROOT / "docs/pictures").glob(f"{name}.[jp]*")
    assert picture.stat().st_size < 150_000


def test_the_judges_of_digits_know_none_of_the_training(example):
    digits = example("digits")
    x, y, judges_x, judges_y = digits.digits()
    assert (len(x), len(judges_x)) == (1197, 600) and set(y) == set(judges_y) == set(range(10))
    assert not {p.tobytes() for p in x} & {p.tobytes() for p in judges_x}


def test_the_scores_of_digits_tell_good_from_bad(example):
    digits = example("digits")
    x, y, judges_x, judges_y = digits.digits()
    assert digits.accuracy(x, y, judges_x, judges_y) > 0.98 > 0.15 > digits.accuracy(x, (y + 1) % 10, judges_x, judges_y)
    one_each = np.stack([x[y == digit][0] for digit in range(10)] * 60)
    assert digits.coverage(x[:600], judges_x) > 0.95 > 0.1 > digits.coverage(one_each, judges_x)
    assert digits.copied(x[:300], x, judges_x) < 1e-5 and digits.copied(judges_x, x, judges_x) == pytest.approx(1)


def test_a_mended_generator_has_no_checkerboard(example):
    digits, checkerboard = example("digits"), example("checkerboard")
    torch.manual_seed(0)
    model, wanted = digits.generator(3), np.arange(600) % 10
    before = analysis.spectral_peak(digits.draw(model, wanted), stride=2)
    assert min(checkerboard.amplitudes(model)) > 0.5
    checkerboard.start_without_checkerboard(model)
    assert max(checkerboard.amplitudes(model)) < 1e-6
    assert analysis.spectral_peak(digits.draw(model, wanted), stride=2) < before / 5


def test_the_brain_is_labelled_by_its_maps_and_tested_far_from_training(example):
    brain = example("brain")
    pictures, labels = brain.volumes()
    assert pictures.shape == (189, 1, 96, 112) and labels.shape == (189, 192, 224)
    assert brain.TEST.start - (brain.TRAIN.stop - 1) == 16 and labels[brain.TEST].shape[0] == 40
    bright = pictures[brain.TEST, 0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    means = [bright[labels[brain.TEST] == tissue].mean() for tissue in range(3)]
    assert means[0] < means[1] < means[2], "white matter is brightest in a T1 picture"


def test_both_decoders_have_equally_many_weights_and_double_the_size(example):
    brain, x = example("brain"), torch.zeros(1, 5, 6, 7)
    layers = [brain.up(kind, 5, 3) for kind in brain.UPS]
    assert {sum(p.numel() for p in layer.parameters()) for layer in layers} == {5 * 3 * 16 + 3}
    assert {layer(x).shape for layer in layers} == {(1, 3, 12, 14)}
    again = [example("brain_keras").up(kind, 3) for kind in brain.UPS]
    assert {tuple(layer(x.numpy().transpose(0, 2, 3, 1)).shape) for layer in again} == {(1, 12, 14, 3)}
    assert {layer.count_params() for layer in again} == {5 * 3 * 16 + 3}


def test_overlap_of_labels(example):
    found, labels = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
    assert example("brain").overlap(found, labels) == [1, 0.5, 0.5]
