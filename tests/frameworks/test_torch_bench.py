# SPDX-License-Identifier: Apache-2.0
"""`python -m bench torch`: gradients and half precision beside PyTorch, in which a wrong result is not timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import tconv

sys.path.insert(0, str(Path(__file__).parents[2]))  # bench/ is part of the checkout, not of the package

from bench import in_torch

LAYERS = ["n2 c4:6 i5x6 k3 s2 p1:0 g2", "c3:2 i9 k4 s2", "c2:3 i3x4x3 k2 s1"]


@pytest.fixture(autouse=True)
def threads():
    kept = torch.get_num_threads(), tconv.get_num_threads()
    yield
    torch.set_num_threads(kept[0])
    tconv.set_num_threads(kept[1])


@pytest.mark.parametrize(("what", "columns", "goals"), [("gradients", 16, 6), ("bfloat16", 10, 4), ("float16", 10, 4)])
def test_a_line_for_every_layer_and_every_goal(what, columns, goals, capsys):
    assert in_torch.main([what, "--layers", *LAYERS, "--rounds", "1", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads, _, *rows = lines[: 2 + len(LAYERS)]
    assert all(line.count("|") == columns + 1 for line in (heads, *rows))
    assert [row.split("|")[1].strip() for row in rows] == [str(tconv.Spec.parse(line)) for line in LAYERS]
    assert len(lines) == 2 + len(LAYERS) + goals and all(" of 3 below 1" in line for line in lines[2 + len(LAYERS) :])


@pytest.mark.parametrize("side", ["conv_transpose_grad_input", "conv_transpose_grad_weight", "conv_transpose_grads"])
def test_a_wrong_gradient_is_refused(side, monkeypatch, capsys):
    right = getattr(tconv, side)
    monkeypatch.setattr(tconv, side, lambda *a, **k: type(found := right(*a, **k))(*(v * 1.01 if v is not None else v for v in found))
                        if side.endswith("grads") else right(*a, **k) * 1.01)  # fmt: skip
    with pytest.raises(SystemExit, match="errors of"):
        in_torch.main(["gradients", "--layers", LAYERS[0], "--rounds", "1"])
