# SPDX-License-Identifier: Apache-2.0
"""The functions and modules by values: paddings, formats, dtypes, output sizes, lazy ones, and weights that change behind a packed copy."""

from __future__ import annotations

import copy
import pickle

import definition
import pytest
import torch
from torch.nn import functional

import tconv.torch as ours
from tconv import ArgumentError, Spec, _torch_weights

OURS = {1: ours.conv_transpose1d, 2: ours.conv_transpose2d, 3: ours.conv_transpose3d}


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(found, expected, eps=1e-5):
    assert found.dtype == expected.dtype
    torch.testing.assert_close(
        found, expected, rtol=0, atol=eps * max(1.0, float(expected.detach().abs().max()) if expected.numel() else 1.0)
    )


# ---------------------------------------------------------------------------------------------------- padding and size


@pytest.mark.parametrize("padding", ["same", "valid", [(0, 1)], [(2, 0)], [(-1, 2)], [(0, -3)], [1]], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(2, 3, 1), (3, 3, 1), (4, 2, 1), (3, 2, 2)])
def test_paddings_by_definition(rank, padding, kernel, stride, dilation):
    x, w, bias = numbers(2, 4, *[5, 4, 3][:rank]), numbers(4, 3, *[kernel] * rank, seed=1), numbers(6, seed=2)
    spec = Spec.build(
        x.shape[2:], w.shape[2:], stride=stride, padding=padding, dilation=dilation, batch=2, in_channels=4, out_channels=6, groups=2
    )
    exact = definition.conv_transpose(x.double().numpy(), w.double().numpy(), spec.stride, spec.dilation, spec.crop, 2)
    exact = torch.from_numpy(exact) + bias.double().view(-1, *[1] * rank)
    same(OURS[rank](x, w, bias, stride, padding, 0, 2, dilation), exact.float())
    layer = getattr(ours, f"ConvTranspose{rank}d")(4, 6, kernel, stride, padding, groups=2, dilation=dilation)
    layer.load_state_dict({"weight": w, "bias": bias})
    with torch.no_grad():
        for _ in range(3):
            same(layer(x), exact.float())
        same(layer(x[0]), exact[0].float())


@pytest.mark.parametrize(("padding", "sizes"), [("same", (9, 10)), ("valid", (11, 12)), ([(1, 0), (-1, 0)], (10, 11))], ids=str)
def test_output_size_of_our_own_paddings(padding, sizes):
    layer, x = ours.ConvTranspose2d(2, 3, 3, stride=2, padding=padding), numbers(1, 2, 5, 5)
    for size in sizes:
        size = (size, size + 2 * (not isinstance(padding, str)))
        crop = Spec.build((5, 5), (3, 3), stride=2, padding=padding, output_size=size).crop
        exact = definition.conv_transpose(x.numpy(), layer.weight.detach().numpy(), (2, 2), (1, 1), crop, 1)
        found = layer(x, output_size=size)
        same(found.detach(), torch.from_numpy(exact).float() + layer.bias.detach().view(-1, 1, 1))
        same(layer(x, output_size=(1, 3, *size)), found)
    with pytest.raises(ArgumentError, match="output_size"):
        layer(x, output_size=(14, 14))


def test_output_size_of_torch_and_its_errors():
    mine = ours.ConvTranspose2d(2, 3, 3, stride=3, padding=1, output_padding=2)
    theirs = torch.nn.ConvTranspose2d(2, 3, 3, stride=3, padding=1, output_padding=2)
    mine.load_state_dict(theirs.state_dict())
    x = numbers(1, 2, 5, 4)
    for size in ((13, 10), (14, 12), (15, 11)):
        same(mine(x, output_size=size), theirs(x, output_size=size))
        same(mine(x[0], size), theirs(x[0], size))
    for wrong in ((16, 10), (13,), (1, 2, 3, 4, 5)):
        messages = []
        for layer in (mine, theirs):
            with pytest.raises(ValueError) as caught:
                layer(x, output_size=wrong)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_words_without_a_meaning_are_refused_by_name():
    x, w = numbers(1, 2, 5), numbers(2, 3, 3)
    with pytest.raises(ArgumentError, match="padding='full'"):
        ours.conv_transpose1d(x, w, padding="full")
    with pytest.raises(ArgumentError, match="output_padding"):
        ours.conv_transpose1d(x, w, stride=2, padding="same", output_padding=1)
    with pytest.raises(ArgumentError, match="crops the full output"):
        ours.conv_transpose1d(x, w, padding=[(5, 5)])
    with pytest.raises(ValueError, match='Only "zeros" padding mode'):
        ours.ConvTranspose1d(2, 3, 3, padding_mode="reflect")


def test_lazy_layers_become_ours_with_their_padding():
    torch.manual_seed(0)
    lazy = ours.LazyConvTranspose2d(6, 3, stride=2, padding="same", groups=2)
    assert lazy.padding == "same" and "padding=same" in repr(lazy)
    y = lazy(numbers(2, 4, 5, 6))
    assert type(lazy) is ours.ConvTranspose2d and lazy.weight.shape == (4, 3, 3, 3) and y.shape == (2, 6, 10, 12)


def test_modules_are_copied_and_pickled():
    layer = ours.ConvTranspose2d(2, 3, 3, padding=[(1, 0), (0, 2)])
    x = numbers(1, 2, 5, 4)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is ours.ConvTranspose2d and twin.padding == ((1, 0), (0, 2))
        assert torch.equal(twin(x), layer(x))


# ---------------------------------------------------------------------------------------------------- formats and dtypes


@pytest.mark.parametrize(("rank", "form"), [(2, torch.channels_last), (3, torch.channels_last_3d)], ids=str)
def test_channels_last_stays_so_and_nothing_is_copied(rank, form, monkeypatch):
    from tconv import _torch_arrays, _torch_core

    mine, theirs = (getattr(m, f"ConvTranspose{rank}d")(8, 6, 4, stride=2, padding=1) for m in (ours, torch.nn))
    theirs.load_state_dict(mine.state_dict())
    x = numbers(2, 8, *[5, 6, 3][:rank]).to(memory_format=form).requires_grad_()
    handed = []
    take = _torch_arrays.array
    for module in (_torch_arrays, _torch_core):
        monkeypatch.setattr(module, "array", lambda tensor: handed.append((tensor, take(tensor))) or handed[-1][1])
    found, expected = mine(x), theirs(x)
    same(found, expected)
    assert found.stride() == expected.stride() and found.is_contiguous(memory_format=form)
    g = numbers(*found.shape, seed=1).to(memory_format=form)
    by_us, by_torch = (torch.autograd.grad(y, (x, *m.parameters()), g) for y, m in ((found, mine), (expected, theirs)))
    for a, b in zip(by_us, by_torch, strict=True):
        same(a, b)
    assert by_us[0].is_contiguous(memory_format=form)
    assert len(handed) >= 6 and all(tensor.data_ptr() == array.ctypes.data for tensor, array in handed)
    last = copy.deepcopy(mine).to(memory_format=form)  # a weight that lies channels-last makes the output so, as in PyTorch
    with torch.no_grad():
        for _ in range(3):
            y = last(x.detach().contiguous())
            same(y, expected.detach())
            assert y.is_contiguous(memory_format=form)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_single_and_rounded_once(dtype):
    x, w, bias = numbers(2, 64, 5, 6, dtype=dtype), numbers(64, 3, 4, 4, seed=1, dtype=dtype), numbers(3, seed=2, dtype=dtype)
    exact = functional.conv_transpose2d(x.double(), w.double(), bias.double(), 2, 1)
    for _ in range(3):
        found = ours.conv_transpose2d(x, w, bias, 2, 1)
        assert found.dtype is dtype
        ulp = torch.finfo(dtype).eps * exact.abs()
        assert ((found.double() - exact).abs() <= 0.51 * ulp + 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_in_and_out(dtype):
    mine, theirs = ours.ConvTranspose2d(8, 3, 4, 2, 1), torch.nn.ConvTranspose2d(8, 3, 4, 2, 1)
    theirs.load_state_dict(mine.state_dict())
    x = numbers(2, 8, 5, 6)
    grads = []
    for layer in (mine, theirs):
        with torch.autocast("cpu", dtype):
            y = layer(x)
            assert y.dtype is dtype
        y.float().square().sum().backward()
        grads.append((y.detach().float(), layer.weight.grad, layer.bias.grad))
    for a, b in zip(*grads, strict=True):
        same(a, b, 8 * torch.finfo(dtype).eps)


def test_odd_views_are_read_as_they_lie():
    base = numbers(3, 9, 8, 7)
    w = numbers(4, 3, 3, 3, seed=1)
    views = [base[:, ::2][:, :4], base.transpose(2, 3)[:, 1:5], base[:1, :4].expand(2, 4, 8, 7), base[:, :4, ::2, 1::3], base[:0, :4],
             torch.complex(base, base).conj().imag[:, :4]]  # fmt: skip
    for x in views:
        same(ours.conv_transpose2d(x, w, stride=2, padding=1), functional.conv_transpose2d(x, w, stride=2, padding=1))
    wide = numbers(4, 6, 3, 3, seed=2)[:, ::2]
    bias = numbers(6, seed=3)[::2]
    same(ours.conv_transpose2d(base[:, :4], wide, bias), functional.conv_transpose2d(base[:, :4], wide, bias))


# ---------------------------------------------------------------------------------------------------- weights that change


def through_data(w):
    w.data.mul_(-1.25)


def in_place(w):
    with torch.no_grad():
        w.add_(0.5)


def one_element(w):
    w.data.view(-1)[-1] += 1


def through_numpy(w):
    w.detach().numpy()[1] += 2


def new_storage(w):
    w.data = torch.randn(w.shape, generator=torch.Generator().manual_seed(3))


def by_vector(w):
    torch.nn.utils.vector_to_parameters(torch.arange(w.numel()) / w.numel(), [w])


def turned(w):
    w.data = w.data.transpose(2, 3)  # the same bytes in the same place, read otherwise


WRITES = [through_data, in_place, one_element, through_numpy, new_storage, by_vector, turned]


@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_packed_weights_are_never_stale(write):
    layer, x = ours.ConvTranspose2d(16, 8, 4, 2, 1), numbers(1, 16, 5, 6)
    with torch.no_grad():
        for step in range(4):
            for _ in range(1 + step):
                same(layer(x), functional.conv_transpose2d(x, layer.weight, layer.bias, 2, 1))
            before = layer.weight.clone()
            write(layer.weight)
            assert not torch.equal(layer.weight, before) or write in (new_storage, by_vector)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_packed_weights_see_every_optimiser(kind, options):
    layer, x = ours.ConvTranspose2d(16, 8, 4, 2, 1), numbers(1, 16, 5, 6)
    optimiser = getattr(torch.optim, kind)(layer.parameters(), lr=0.1, **options)
    for _ in range(3):
        with torch.no_grad():
            for _ in range(3):
                same(layer(x), functional.conv_transpose2d(x, layer.weight, layer.bias, 2, 1))
        optimiser.zero_grad()
        layer(x).square().sum().backward()
        optimiser.step()


def test_frozen_weights_are_packed_once_and_training_keeps_nothing():
    layer, x = ours.ConvTranspose2d(16, 8, 4, 2, 1), numbers(1, 16, 5, 6)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x).square().sum().backward()
        optimiser.step()
    kept = _torch_weights._weights[id(layer.weight)]
    assert not kept.copies and not any(packed is not None for packed in kept.packed.values())
    with torch.no_grad():
        for _ in range(2):
            layer(x)
        kept = _torch_weights._weights[id(layer.weight)]
        (packed,) = [p for p in kept.packed.values() if p is not None]
        for n in (1, 2, 9):
            layer(numbers(n, 16, 5, 6))
        assert next(p for p in kept.packed.values() if p is not None) is packed
    key = id(layer.weight)
    del layer, optimiser
    assert key not in _torch_weights._weights, "packed weights outlive their tensor"


def test_the_same_call_gives_the_same_bits_whether_its_weight_is_kept_or_not():
    layer, x = ours.ConvTranspose2d(32, 24, 4, 2, 1), numbers(2, 32, 16, 16)
    with torch.no_grad():
        first = layer(x)
        assert all(torch.equal(layer(x), first) for _ in range(3))
        layer.weight.data = layer.weight.data.clone()
        assert torch.equal(layer(x), first)


def test_one_weight_in_many_layers():
    """Strides, dilations, crops and groups each have their packed form of it; more of them than are kept."""
    x, w = numbers(2, 6, 5, 6), numbers(6, 4, 3, 3, seed=1)
    words = [(s, p, 0, g, d) for s in (1, 2, 3) for p in (0, 1, 2) for g in (1, 2, 3) for d in (1, 2)]
    for _ in range(4):
        for each in words:
            same(ours.conv_transpose2d(x, w, None, *each), functional.conv_transpose2d(x, w, None, *each))
    for form in (x[:, :, :1, :1], x[:, :, :2], x):
        for _ in range(3):
            same(ours.conv_transpose2d(form, w, stride=4, padding=1), functional.conv_transpose2d(form, w, stride=4, padding=1))


def test_a_weight_of_another_layer_in_the_same_place():
    x = numbers(1, 16, 5, 6)
    for seed in range(20):  # freed memory and identities come again
        w = numbers(16, 8, 4, 4, seed=seed)
        for _ in range(3):
            same(ours.conv_transpose2d(x, w, stride=2, padding=1), functional.conv_transpose2d(x, w, stride=2, padding=1))
        del w


@pytest.mark.parametrize("computed", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm,
                                      torch.nn.utils.parametrizations.spectral_norm], ids=lambda f: f"{f.__module__}.{f.__name__}")  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_computed_weights(computed):
    theirs, mine = (computed(torch.nn.ConvTranspose1d(4, 6, 4, 2, 1)).eval() for _ in range(2))
    mine.load_state_dict(theirs.state_dict())
    assert len(ours.swap_(mine).done) == 1
    x = numbers(2, 4, 9)
    for _ in range(3):
        found, expected = mine(x), theirs(x)
        same(found, expected)
        wanted = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((found, mine), (expected, theirs))]
        for a, b in zip(*wanted, strict=True):
            same(a, b, 1e-4)
        with torch.no_grad():
            for parameters in zip(mine.parameters(), theirs.parameters(), strict=True):
                for p in parameters:
                    p.mul_(1.1)
    if hasattr(mine, "parametrizations"):
        torch.nn.utils.parametrize.remove_parametrizations(mine, "weight")
        assert type(mine) is ours.ConvTranspose1d
    assert len(ours.revert_(mine).done) == 1
    same(mine(x), theirs(x))
