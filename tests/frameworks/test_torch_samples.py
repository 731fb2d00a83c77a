# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own samples of its six modules and three functions: ours give the same values, the same gradients, and the same errors."""

from __future__ import annotations

import re

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import tconv.torch as ours
from tconv.torch import conv_transpose1d, conv_transpose2d, conv_transpose3d

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
FUNCTIONS = {f.__name__: f for f in (conv_transpose1d, conv_transpose2d, conv_transpose3d)}
OPS = {op.name.rpartition(".")[2]: op for op in op_db if op.name.rpartition(".")[2] in FUNCTIONS}
MODULES = {m.module_cls.__name__: m for m in module_db if "ConvTranspose" in m.name}


def close(found, expected, terms):
    """Sums of `terms` products of numbers of ordinary size, rounded in their own dtype."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    eps = torch.finfo(expected.dtype).eps if expected.dtype.is_floating_point or expected.dtype.is_complex else 0
    scale = expected.detach().abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * eps * max(scale, 1) * terms**0.5)


def leaves(*values):
    return [v for v in values if isinstance(v, torch.Tensor) and v.requires_grad]


def test_the_samples_are_there():
    assert set(OPS) == set(FUNCTIONS)
    assert len(MODULES) == 6


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.complex64, torch.int64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples_of_the_functions(name, dtype):
    op, differentiable = OPS[name], dtype.is_floating_point
    torch.manual_seed(0)
    count = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=differentiable):
        arguments = [sample.input, *sample.args]
        expected, found = op.op(*arguments, **sample.kwargs), FUNCTIONS[name](*arguments, **sample.kwargs)
        close(found, expected, terms=arguments[1].numel())
        if differentiable:
            wanted = leaves(*arguments, *sample.kwargs.values())
            g = torch.randn_like(expected)
            pairs = zip(torch.autograd.grad(found, wanted, g), torch.autograd.grad(expected, wanted, g), strict=True)
            for by_us, by_torch in pairs:
                close(by_us, by_torch, terms=g.numel())
        count += 1
    assert count >= 10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_samples_of_the_modules(name, dtype):
    info, count = MODULES[name], 0
    for training in (True, False):
        torch.manual_seed(1)
        for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
            made = sample.constructor_input
            theirs = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
            mine = getattr(ours, name)(*made.args, **made.kwargs).to(dtype).train(training)
            call = sample.forward_input
            if "Lazy" in name:
                theirs(*call.args, **call.kwargs)
            mine.load_state_dict(theirs.state_dict())
            expected, found = theirs(*call.args, **call.kwargs), mine(*call.args, **call.kwargs)
            close(found, expected, terms=theirs.weight.numel())
            assert type(mine) is getattr(ours, name.removeprefix("Lazy")) and list(mine.state_dict()) == list(theirs.state_dict())
            g = torch.randn_like(expected)
            by_us, by_torch = (torch.autograd.grad(y, list(m.parameters()), g) for y, m in ((found, mine), (expected, theirs)))
            for mine_grad, their_grad in zip(by_us, by_torch, strict=True):
                close(mine_grad, their_grad, terms=g.numel())
            count += 1
    assert count >= 2


BAD = [
    ({"stride": 0}, None), ({"stride": (1, 2, 3)}, None), ({"stride": 1.5}, None), ({"padding": -1}, None), ({"output_padding": 2}, None),
    ({"padding": 40}, None), ({"dilation": 0}, None), ({"groups": 0}, None), ({"groups": 3}, None), ({"bias": torch.zeros(3)}, None),
    ({}, torch.zeros(1, 3, 5, 5)), ({}, torch.zeros(5, 5)), ({}, torch.zeros(1, 4, 5, 5, dtype=torch.float64)),
    ({"stride": [2, 2.0]}, None), ({"output_padding": -1}, None), ({}, torch.zeros(1, 4, 0, 5)),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD)))
def test_errors_are_those_of_torch(case):
    words, x = BAD[case]
    x = torch.zeros(1, 4, 5, 5) if x is None else x
    w = torch.zeros(4, 2, 3, 3)

    def outcome(function):
        try:
            return function(x, w, **words).shape
        except (RuntimeError, TypeError, ValueError) as error:
            return type(error), re.sub(r" \(position \d+\)", "", str(error))  # of an argument, which depends on how it was handed on

    expected = outcome(torch.nn.functional.conv_transpose2d)
    assert isinstance(expected[0], type), "PyTorch takes it after all"
    assert outcome(conv_transpose2d) == expected


def test_the_judge_sees_a_wrong_value():
    y = torch.ones(3, 4)
    with pytest.raises(AssertionError):
        close(y * (1 + 1e-3), y, terms=9)
    with pytest.raises(AssertionError):
        close(y.double(), y, terms=9)
