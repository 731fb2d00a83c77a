# SPDX-License-Identifier: Apache-2.0
"""Our operators in PyTorch's machinery: derivatives of any order, compilers, exporters, transforms, modes; judged by PyTorch's own layer."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import tconv.torch as ours

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # PyTorch's own use of it

OPS = torch.ops.tconv
OURS = {1: ours.conv_transpose1d, 2: ours.conv_transpose2d, 3: ours.conv_transpose3d}
THEIRS = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}

# (spatial axes, groups, stride, padding, output_padding, dilation): torn kernels, crops beyond the kernel, gaps, dilated
LAYERS = [(1, 2, 3, 1, 1, 1), (2, 1, 2, 1, 1, 1), (2, 3, (2, 3), (0, 2), (1, 0), (1, 2)), (3, 1, 2, 0, 0, 1)]


def numbers(*shape, seed=0, dtype=torch.float64, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, **options)


def layer(case, dtype=torch.float64):
    """(x, w, bias) with gradients, and the words."""
    rank, groups, *words = case
    x = numbers(2, 2 * groups, *[4, 3, 2][:rank], seed=1, dtype=dtype, requires_grad=True)
    w = numbers(2 * groups, 3, *[3, 2, 3][:rank], seed=2, dtype=dtype, requires_grad=True)
    return (x, w, numbers(3 * groups, seed=3, dtype=dtype, requires_grad=True)), dict(
        zip(("stride", "padding", "output_padding", "dilation"), words, strict=True), groups=groups)  # fmt: skip


def same(found, expected, eps=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=eps * max(1.0, float(expected.detach().abs().max())))


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_gradients_of_both_orders_are_those_of_differences(case):
    arrays, words = layer(case)
    call = partial(OURS[case[0]], **words)
    assert gradcheck(call, arrays)
    assert gradgradcheck(call, arrays)


@pytest.mark.parametrize("padding", ["same", "valid", [(2, 0), (-1, 3)]], ids=str)
def test_gradients_of_our_own_paddings(padding):
    (x, w, bias), _ = layer((2, 1, 2, 0, 0, 1))
    call = partial(ours.conv_transpose2d, stride=2, padding=padding)
    assert gradcheck(call, (x, w, bias))
    assert gradgradcheck(call, (x, w, bias))


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_opcheck(case):
    (x, w, bias), words = layer(case)
    rank = case[0]
    y = THEIRS[rank](x, w, bias, **words).detach().requires_grad_()

    def each(value):
        return [value] * rank if isinstance(value, int) else list(value)

    crop = [n for p, more in zip(each(words["padding"]), each(words["output_padding"]), strict=True) for n in (p, p - more)]
    geometry = each(words["stride"]), crop, each(words["dilation"]), words["groups"]
    torch.library.opcheck(OPS.conv_transpose.default, (x, w, bias, *geometry))
    torch.library.opcheck(OPS.conv_transpose.default, (x, w.detach(), None, *geometry))
    torch.library.opcheck(OPS.grad_input.default, (y, w, list(x.shape[2:]), *geometry))
    torch.library.opcheck(OPS.grad_weight.default, (x, y, list(w.shape[2:]), *geometry))


def test_opcheck_of_channels_last():
    (x, w, bias), _ = layer((2, 1, 2, 1, 0, 1))
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(OPS.conv_transpose.default, (last, w, bias, [2, 2], [1, 1, 1, 1], [1, 1], 1))


def pair(rank=2, dtype=torch.float32, **words):
    """A layer of ours and PyTorch's with the same weights."""
    words = {"stride": 2, "padding": 1, **words}
    theirs = getattr(torch.nn, f"ConvTranspose{rank}d")(4, 6, 4, groups=2, dtype=dtype, **words)
    mine = getattr(ours, f"ConvTranspose{rank}d")(4, 6, 4, groups=2, dtype=dtype, **words)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def test_compiled_in_one_graph_with_gradients_and_dynamic_shapes():
    mine, theirs = pair()
    model = torch.nn.Sequential(mine, torch.nn.Tanh())  # PyTorch's own convolutions are compiled anew for every size
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for height, width in ((5, 6), (7, 4), (9, 11), (12, 5)):
        x = numbers(2, 4, height, width, dtype=torch.float32, requires_grad=True)
        expected = theirs(x).tanh()
        same(compiled(x), expected, 1e-5)
        wanted = (x, mine.weight, mine.bias)
        found = torch.autograd.grad(compiled(x).square().sum(), wanted)
        by_torch = torch.autograd.grad(expected.square().sum(), (x, theirs.weight, theirs.bias))
        for a, b in zip(found, by_torch, strict=True):
            same(a, b, 1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("words", [{"padding": "same"}, {"padding": [(1, 0), (0, 2)]}, {"output_padding": 1}], ids=str)
def test_compiled_with_every_kind_of_padding_and_output_size(words):
    mine = ours.ConvTranspose2d(4, 6, 3, **{"stride": 2, **words})
    compiled = torch.compile(mine, fullgraph=True)
    x = numbers(2, 4, 5, 6, dtype=torch.float32)
    with torch.no_grad():
        same(compiled(x), mine(x), 1e-6)
        size = [n + (-1 if words.get("padding") == "same" else 0 if "output_padding" in words else 1) for n in mine(x).shape[2:]]
        same(compiled(x, output_size=size), mine(x, output_size=size), 1e-6)
        assert list(compiled(x, output_size=size).shape[2:]) == size


def test_compiled_inference_packs_frozen_weights_once_and_sees_updates():
    mine, _ = pair()
    compiled = torch.compile(mine, fullgraph=True)
    x = numbers(2, 4, 5, 6, dtype=torch.float32)
    with torch.no_grad():
        for step in range(4):
            for _ in range(3):
                same(compiled(x), functional.conv_transpose2d(x, mine.weight, mine.bias, 2, 1, 0, 2), 1e-5)
            (mine.weight if step % 2 else mine.weight.data).mul_(1.5)


def test_a_weight_seen_at_several_sizes_is_packed_for_each():
    """Of few positions a weight is read as it lies, of many it is packed: what is kept for one must not serve the other."""
    torch.manual_seed(0)
    w = torch.randn(7, 64, 5, 5, dtype=torch.float32)
    for size in (4, 4, 128, 128, 4):
        x, g = torch.randn(1, 7, size, size, requires_grad=True), torch.randn(1, 64, size, size)
        mine, theirs = (torch.autograd.grad(f(x, w, padding=2), x, g)[0] for f in (ours.conv_transpose2d, functional.conv_transpose2d))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_compiled_under_autocast():
    mine, theirs = pair()
    x = numbers(2, 4, 5, 6, dtype=torch.float32)
    compiled = torch.compile(mine, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, expected = compiled(x), theirs(x)
    assert found.dtype == torch.bfloat16
    same(found.float(), expected.float(), 1e-2)


def test_exported_with_a_dynamic_batch_and_size():
    mine, theirs = pair()
    x = numbers(2, 4, 5, 6, dtype=torch.float32)
    batch, height = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("height", min=2, max=64)
    program = torch.export.export(mine, (x,), dynamic_shapes=({0: batch, 2: height},))
    assert "tconv.conv_transpose" in str(program.graph)
    other = numbers(3, 4, 9, 6, dtype=torch.float32)
    same(program.module()(other), theirs(other), 1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are looked at, as PyTorch's modules do
def test_traced_by_fx_and_by_jit():
    mine, theirs = pair()
    x = numbers(2, 4, 5, 6, dtype=torch.float32)
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(mine, torch.nn.Tanh()))
    assert "transposed" in str(graph.graph)
    same(graph(x), theirs(x).tanh(), 1e-5)
    same(torch.jit.trace(mine, x)(x * 2), theirs(x * 2), 1e-5)


@pytest.mark.parametrize("dims", [(0, None, None), (1, None, None), (None, 0, None), (0, 1, 0), (2, 0, None), (None, None, 0)], ids=str)
def test_vmap(dims):
    shapes = [(2, 4, 5, 3), (4, 2, 3, 2), (4,)]
    arrays = [numbers(*shape[: d or 0], *([3] if d is not None else []), *shape[d or 0 :], seed=s)
              for s, (d, shape) in enumerate(zip(dims, shapes, strict=True))]  # fmt: skip
    mine, theirs = (vmap(lambda x, w, b, f=f: f(x, w, b, stride=2, padding=1, groups=2), dims)(*arrays)
                    for f in (ours.conv_transpose2d, functional.conv_transpose2d))  # fmt: skip
    same(mine, theirs)


def test_gradients_of_single_samples_by_vmap_over_grad():
    mine, theirs = pair(dtype=torch.float64)
    x = numbers(5, 4, 5, 3)

    def loss(module, parameters, sample):
        return functional_call(module, parameters, (sample[None],)).square().sum()

    found, expected = (vmap(grad(partial(loss, m)), (None, 0))(dict(m.named_parameters()), x) for m in (mine, theirs))
    for name in expected:
        same(found[name], expected[name])


def test_second_derivatives_by_transforms_and_forward_mode():
    w, x, t = numbers(2, 3, 3, seed=4), numbers(1, 2, 4, seed=5), numbers(1, 2, 4, seed=6)

    def loss(f, x):
        return f(x, w, stride=2, padding=1).pow(3).sum()

    mine, theirs = partial(loss, ours.conv_transpose1d), partial(loss, functional.conv_transpose1d)
    for transform in (jacrev, hessian, lambda f: jacrev(jacrev(f)), lambda f: lambda x: jvp(f, (x,), (t,))[1]):
        same(transform(mine)(x), transform(theirs)(x))
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(f(forward_ad.make_dual(x, t))).tangent for f in (mine, theirs)]
    same(*tangents)


def test_checkpointed():
    mine, theirs = pair(dtype=torch.float64)
    x = numbers(2, 4, 5, 6, requires_grad=True)
    for reentrant in (True, False):
        found = torch.autograd.grad(checkpoint(mine, x, use_reentrant=reentrant).square().sum(), mine.weight) if not reentrant else None
        if reentrant:
            mine.zero_grad()
            checkpoint(mine, x, use_reentrant=True).square().sum().backward()
            found = (mine.weight.grad,)
        same(found[0], torch.autograd.grad(theirs(x).square().sum(), theirs.weight)[0])


def test_inference_mode_and_tensors_made_in_it():
    mine, theirs = pair()
    x = numbers(2, 4, 5, 6, dtype=torch.float32)
    with torch.inference_mode():
        for _ in range(3):
            same(mine(x), theirs(x), 1e-5)
        made = numbers(4, 3, 4, 4, dtype=torch.float32)  # an inference tensor, whose writes nobody counts
        for _ in range(4):
            same(ours.conv_transpose2d(x, made, stride=2, groups=2), functional.conv_transpose2d(x, made, stride=2, groups=2), 1e-5)
            made.mul_(-1.5)


def test_called_by_many_threads_at_once():
    """As `nn.DataParallel` does: replicas, forward and backward, each in its thread."""
    mine, theirs = pair(dtype=torch.float64)
    results: list[list[torch.Tensor]] = [[] for _ in range(6)]

    def work(number):
        for step in range(8):
            x = numbers(2, 4, 4 + number, 5, seed=step)
            results[number].append(torch.autograd.grad(mine(x).square().sum(), mine.weight)[0])
            with torch.no_grad():
                results[number].append(mine(x))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, found in enumerate(results):
        assert len(found) == 16
        for step in range(8):
            x = numbers(2, 4, 4 + number, 5, seed=step)
            same(found[2 * step], torch.autograd.grad(theirs(x).square().sum(), theirs.weight)[0])
            same(found[2 * step + 1], theirs(x))


def test_modes_see_the_operators_and_default_devices_do_no_harm():
    mine, theirs = pair()
    x = numbers(2, 4, 5, 6, dtype=torch.float32)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        mine(x).sum().backward()
    assert {"tconv.conv_transpose.default", "tconv.grad_weight.default"} <= set(seen)
    with torch.device("meta"):
        same(mine(x), theirs(x), 1e-5)


def test_meta_and_fake_tensors_have_the_shapes():
    mine, theirs = pair()
    x = torch.empty(2, 4, 5, 6, device="meta")
    assert mine.to("meta")(x).shape == theirs.to("meta")(x).shape
    assert ours.conv_transpose2d(x, mine.weight, padding=[(1, 0), (-1, 2)], groups=2).shape == (2, 6, 7, 8)
    with torch._subclasses.FakeTensorMode():
        w, x = torch.empty(4, 3, 4, 4), torch.empty(2, 4, 5, 6)
        assert ours.conv_transpose2d(x, w, stride=2, padding="same", groups=2).shape == (2, 6, 10, 12)


def test_what_is_not_ours_goes_to_torch_and_moves_between_devices():
    """A device that is no CPU, here the meta device, and complex numbers: PyTorch's operator, also for crops that it has no words for."""
    from tconv import _torch_native as native

    (x, w, bias), _ = layer((2, 1, 2, 0, 0, 1))
    for crop in ((1, 0, 2, 1), (0, 3, -2, 1), (-1, -1, 2, 2), (1, 1, 1, 1)):
        geometry = (2, 2), crop, (1, 1), 1
        y = OPS.conv_transpose(x, w, bias, *geometry)
        g = torch.randn_like(y)
        same(native.forward(x, w, bias, *geometry), y)
        same(native.grad_input(g, w, x.shape[2:], *geometry), OPS.grad_input(g, w, x.shape[2:], *geometry))
        same(native.grad_weight(x, g, w.shape[2:], *geometry), OPS.grad_weight(x, g, w.shape[2:], *geometry))
    z, v = torch.complex(x, x.flip(0)), torch.complex(w, w.flip(0))
    same(ours.conv_transpose2d(z, v, stride=2, padding="same").real.abs(),
         functional.conv_transpose2d(z, v, stride=2)[..., :-1, :].real.abs()[..., :8, :6])  # fmt: skip
