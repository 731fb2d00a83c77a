# SPDX-License-Identifier: Apache-2.0
"""Whole models: swapped, reverted and folded ones compute what they computed, keep what they held, and say what was done to them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tconv.torch as ours
from tconv import ArgumentError, _torch_fold

sys.path.insert(0, str(Path(__file__).parents[2]))  # bench/ is part of the checkout, not of the package

from bench import models
from bench.networks import NETWORKS, train

COUNTS = {"dcgan": 5, "unet": 4, "hifigan": 4, "vnet": 4}


def same(found, expected, eps=2e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=eps * max(1e-3, float(expected.detach().abs().max())))


def made(name, seed=0):
    """A small network with statistics that are no identity, and its input."""
    network = NETWORKS[name]
    torch.manual_seed(seed)
    model, inputs = network.build(network.small[0]), network.inputs(*network.small)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model, inputs


# ---------------------------------------------------------------------------------------------------- swap_ and revert_


@pytest.mark.parametrize("name", NETWORKS)
def test_swapped_networks_give_the_same_outputs_and_train_alike_for_20_steps(name):
    theirs, inputs = made(name)
    mine = copy.deepcopy(theirs)
    report = ours.swap_(mine)
    assert (len(report.done), report.skipped) == (COUNTS[name], {})
    assert list(mine.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        same(mine.eval()(*inputs), theirs.eval()(*inputs))
    losses = [train(model.train(), inputs, 20) for model in (mine, theirs)]
    assert losses[1][-1] < losses[1][0], "nothing was learnt, so nothing is compared"
    torch.testing.assert_close(*losses, rtol=2e-3, atol=1e-6)
    assert len(ours.revert_(mine).done) == COUNTS[name]
    assert [type(m) for m in mine.modules()] == [type(m) for m in theirs.modules()]


def test_a_swap_keeps_objects_weights_hooks_names_and_modes():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Sequential(nn.ConvTranspose2d(3, 2, 2, 2, bias=False))).eval()
    first, second, seen = model[0], model[1][0], []
    first.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    first.extra = "mine"
    names, weight, mode = list(model.state_dict()), first.weight, [m.training for m in model.modules()]
    report = ours.swap_(model)
    assert list(report.done) == ["0", "1.0"]
    assert model[0] is first and model[1][0] is second and first.weight is weight and first.extra == "mine"
    assert isinstance(first, nn.ConvTranspose2d) and type(first) is ours.ConvTranspose2d
    assert list(model.state_dict()) == names and [m.training for m in model.modules()] == mode
    model(torch.ones(1, 2, 4, 4))
    assert seen == [(1, 3, 6, 6)]
    assert type(nn.ConvTranspose2d(1, 1, 1)) is nn.ConvTranspose2d, "something was changed globally"


class Own(nn.ConvTranspose2d):
    def forward(self, x):
        return super().forward(x) + 1


def test_the_report_says_what_was_skipped_and_why():
    patched = nn.ConvTranspose1d(2, 2, 3)
    patched.forward = lambda x: x
    model = nn.ModuleDict({"a": nn.ConvTranspose1d(2, 3, 3, groups=1), "b": Own(2, 2, 2), "c": nn.ConvTranspose3d(2, 2, 2),
                           "d": ours.ConvTranspose1d(2, 2, 2), "e": patched, "f": nn.Conv1d(1, 1, 1)})  # fmt: skip
    report = ours.swap_(model, filter_fn=lambda module, name: name != "c")
    assert str(report).splitlines() == [
        "replaced 1 of 5 transposed convolutions",
        "  a  ConvTranspose1d(2, 3, kernel_size=(3,), stride=(1,))",
        "skipped",
        f"  b  {__name__}.Own is a class of its own, whose code may do more",
        "  c  filter_fn leaves it out",
        "  d  is already what it would become",
        "  e  its forward was replaced on the object",
    ]
    same_root = nn.ConvTranspose2d(1, 1, 2)
    assert "(model)" in str(ours.swap_(same_root)) and type(same_root) is ours.ConvTranspose2d


def test_lazy_and_shared_layers_are_swapped_once():
    shared = nn.ConvTranspose1d(2, 2, 3, padding=1)
    model = nn.Sequential(shared, shared, nn.LazyConvTranspose1d(3, 2))
    report = ours.swap_(model)
    assert list(report.done) == ["0", "2"]
    model(torch.ones(1, 2, 5))
    assert type(model[2]) is ours.ConvTranspose1d and model[0] is model[1]


def test_what_torch_cannot_say_is_not_reverted():
    model = nn.Sequential(ours.ConvTranspose1d(1, 1, 3, padding="same"), ours.ConvTranspose1d(1, 1, 3, padding=[(1, 0)]))
    assert ours.revert_(model).skipped == {"0": "PyTorch has no padding='same'", "1": "PyTorch has no padding=((1, 0),)"}


# ---------------------------------------------------------------------------------------------------- fold_


@pytest.mark.parametrize(("name", "folded"), [("dcgan", 9), ("vnet", 8), ("unet", 0), ("hifigan", 0)])
def test_folded_networks_give_the_same_outputs(name, folded):
    model, inputs = made(name)
    model.eval()
    with torch.no_grad():
        expected = model(*inputs)
        report = ours.fold_(model)
        for _ in range(3):
            same(model(*inputs), expected, 1e-4)
    assert len(report.done) == COUNTS[name] and not report.skipped
    assert sum(isinstance(module, nn.Identity) for module in model.modules()) == folded
    assert not any(p.requires_grad for m in model.modules() if isinstance(m, nn.ConvTranspose2d) for p in m.parameters())


class Written(nn.Module):
    """Layers called by code, not by a Sequential; with `untraceable`, by code that a tracer cannot follow."""

    def __init__(self, groups=3, activation=None, untraceable=False):
        super().__init__()
        self.up, self.norm, self.untraceable = nn.ConvTranspose2d(6, 12, 3, 2, groups=groups), nn.BatchNorm2d(12), untraceable
        self.activation = activation or nn.LeakyReLU(0.3)
        self.tail = nn.Sequential(nn.ConvTranspose2d(12, 2, 2, bias=False), nn.BatchNorm2d(2, affine=False), nn.Sigmoid())
        for norm in (self.norm, self.tail[1]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.2, 3)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        if self.untraceable and x.sum() > 1e9:
            return x
        return self.tail(self.activation(self.norm(self.up(x))))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.Sigmoid(), nn.ELU()], ids=repr)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_chains_in_code_are_folded_for_groups_and_activations(groups, activation):
    torch.manual_seed(groups)
    model, x = Written(groups, activation).eval(), torch.randn(2, 6, 5, 4)
    with torch.no_grad():
        expected = model(x)
        report = ours.fold_(model)
        for _ in range(3):
            same(model(x), expected)
        known = ours.conv_transpose2d(x, model.up.weight, model.up.bias, 2, groups=groups)
        assert known.shape == model.up(x).shape
    last = "" if isinstance(activation, nn.ELU) else f", {type(activation).__name__} activation"
    assert report.done == {"up": f"with BatchNorm2d norm{last}", "tail.0": "with BatchNorm2d tail.1, Sigmoid tail.2"}


def test_where_no_graph_can_be_had_only_a_sequential_is_trusted():
    torch.manual_seed(0)
    model, x = Written(untraceable=True).eval(), torch.randn(2, 6, 5, 4)
    with torch.no_grad():
        expected = model(x)
        report = ours.fold_(model)
        same(model(x), expected)
    assert report.done == {"up": "alone", "tail.0": "with BatchNorm2d tail.1, Sigmoid tail.2"}


class Branch(Written):
    """The norm's output is used twice, so the activation cannot become part of the layer."""

    def forward(self, x):
        y = self.norm(self.up(x))
        return self.tail(self.activation(y) + y)


class Twice(Written):
    """One norm behind two layers."""

    def forward(self, x):
        return self.norm(self.up(x)).sum() + self.norm(self.up(-x)).mean()


@pytest.mark.parametrize(("kind", "up"), [(Branch, "with BatchNorm2d norm"), (Twice, "alone")])
def test_what_others_use_too_is_not_folded(kind, up):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 6, 5, 4)
    with torch.no_grad():
        expected = model(x)
        assert ours.fold_(model).done["up"] == up
        same(model(x), expected)


def test_hooks_training_statistics_and_shared_modules_stop_a_fold():
    torch.manual_seed(0)
    cases = {"its hooks would see": lambda m: m.up.register_forward_hook(lambda *_: None),
             "BatchNorm2d norm has hooks": lambda m: m.norm.register_forward_hook(lambda *_: None),
             "BatchNorm2d norm has no fixed statistics": lambda m: m.norm.train(),
             "BatchNorm2d norm is used under several names": lambda m: setattr(m, "other", m.norm)}  # fmt: skip
    for reason, change in cases.items():
        model, x = Written().eval(), torch.randn(2, 6, 5, 4)
        change(model)
        with torch.no_grad():
            expected = copy.deepcopy(model)(x)
            text = ours.fold_(model).done["up"]
            same(model(x), expected)
        assert text.startswith("alone; ") and reason in text
    with pytest.raises(ArgumentError, match="evaluation mode"):
        ours.fold_(Written())


def test_a_fold_that_is_not_the_same_function_is_refused(monkeypatch):
    torch.manual_seed(0)
    true = _torch_fold._map
    monkeypatch.setattr(_torch_fold, "_map", lambda norm: (true(norm)[0] * (1 + 1e-5), true(norm)[1]))
    model, x = Written().eval(), torch.randn(2, 6, 5, 4)
    expected = model(x)
    report = ours.fold_(model)
    assert not report.done and all("folding would have an error of" in why for why in report.skipped.values())
    assert isinstance(model.norm, nn.BatchNorm2d) and torch.equal(model(x), expected)


def test_folded_layers_see_new_weights():
    torch.manual_seed(0)
    model, other = (nn.Sequential(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.BatchNorm2d(3), nn.ReLU()).eval() for _ in range(2))
    x = torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        expected = other(x)
        ours.fold_(model), ours.fold_(other)
        for _ in range(3):
            model(x)
        model.load_state_dict(other.state_dict())
        for _ in range(3):
            same(model(x), expected)
        model[0].weight.mul_(0)
        same(model(x), model[0].bias.relu().view(1, 3, 1, 1).expand_as(expected))
    y = model(x.requires_grad_())
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    assert ours.revert_(model).skipped == {"0": "folded: what followed it is part of it"}
    assert ours.fold_(model).skipped == {"0": "is folded already"}


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # PyTorch's own use of it
def test_a_compiled_model_follows_a_swap_and_a_fold():
    torch.manual_seed(0)
    model, x = Written().eval(), torch.randn(2, 6, 5, 4)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        expected = model(x)
        same(compiled(x), expected)
        ours.swap_(model)
        same(compiled(x), expected)
        ours.fold_(model)
        same(compiled(x), expected)


def test_the_report_on_networks_can_be_made():
    before = torch.get_num_threads()
    try:
        data = models.run(models.Settings(["dcgan", "vnet"], ["eager"], 1, 2, 1, True))
    finally:
        torch.set_num_threads(before)
    assert {(row["network"], row["what"]) for row in data["networks"]} == {
        (n, w) for n in ("dcgan", "vnet") for w in ("inference", "training step")
    }
    assert all(seconds > 0 for row in data["networks"] for seconds in row["seconds"].values())
    layers = {what: [layer for row in data["networks"] if row["what"] == what for layer in row["layers"]] for what in models.VARIANTS}
    assert all(len(found) == 9 and all(min(layer["seconds"].values()) > 0 for layer in found) for found in layers.values())
    tables = [section(data) for section in models.SECTIONS.values()]
    assert tables[1].count("\n") == 5 and "| vnet | eager | training step |" in tables[1] and "| all layers | 9 |" in tables[2]
