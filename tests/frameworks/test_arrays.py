# SPDX-License-Identifier: Apache-2.0
"""The layer on arrays of PyTorch, JAX, TensorFlow and MLX by DLPack: values, types, memory, refusals; a process for each library."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import os
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
import numpy as np, sys, tconv
from tconv import _foreign
rng = np.random.default_rng(0)
arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 9, 8), (3, 4, 4, 3), (4,))]
words = {"stride": 2, "padding": 1}
y = tconv.conv_transpose(*arrays, **words)
grad = rng.standard_normal(y.shape).astype(np.float32)

def refused(rule, call):
    try:
        call()
    except tconv.ArgumentError as error:
        assert rule in str(error), error
    else:
        raise AssertionError(f"accepted, and should say: {rule}")
"""

CHECK = """
x, w, bias = map(make, arrays)
dy = make(grad)
kind = type(x)
for result, expected in [
    (tconv.conv_transpose(x, w, bias, **words), y),
    (tconv.Operator(w, bias, **words)(x), y),
    (tconv.Operator(w, **words).T(dy, (9, 8)), tconv.conv_transpose_grad_input(grad, arrays[1], (9, 8), **words)),
    (tconv.conv_transpose_grad_input(dy, w, (9, 8), **words), tconv.conv_transpose_grad_input(grad, arrays[1], (9, 8), **words)),
    (tconv.conv_transpose_grad_weight(x, dy, (4, 3), **words), tconv.conv_transpose_grad_weight(arrays[0], grad, (4, 3), **words)),
    *zip(tconv.conv_transpose_grads(x, w, dy, **words), tconv.conv_transpose_grads(*arrays[:2], grad, **words)),
]:
    assert type(result) is kind, type(result)
    np.testing.assert_array_equal(np.from_dlpack(result), expected)
read = _foreign.read("x", x)
assert read.ctypes.data == address(x), "read where it lies"
result = _foreign.aligned((64, 1001), np.dtype(np.float32))
result[:] = 1
back = _foreign.home({"x": x}, None)(result)
assert (address(back) == result.ctypes.data) is shares, "the result's memory"
assert type(back) is kind and tuple(back.shape) == (64, 1001)
half = [_foreign._as_type(_foreign._library("x", a).namespace, make((np.frombuffer(v.astype(np.float32), np.uint32) >> 16).astype(np.uint16)
        .view(np.int16).reshape(v.shape)), "bfloat16") for a, v in ((x, arrays[0]), (w, arrays[1]))]
result = tconv.conv_transpose(*half, **words)
assert type(result) is kind and "bfloat16" in str(result.dtype)
import ml_dtypes
near = tconv.conv_transpose(*(_foreign.read("x", h) for h in half), **words)
assert near.dtype == ml_dtypes.bfloat16
np.testing.assert_array_equal(_foreign.read("y", result).astype(np.float32), near.astype(np.float32))
assert np.abs(near.astype(np.float32) - tconv.conv_transpose(*arrays[:2], **words)).max() < 0.3
refused("all arrays of a call come from one library", lambda: tconv.conv_transpose(x, arrays[1]))
refused("all arrays of a call come from one library", lambda: tconv.conv_transpose(arrays[0], arrays[1], bias))
refused("must be None for arrays of", lambda: tconv.conv_transpose(x, w, out=np.empty(y.shape, np.float32), **words))
"""

TORCH = """
import torch
make, address, shares = torch.from_numpy, lambda a: a.data_ptr(), True
""" + CHECK + """
refused("requires grad", lambda: tconv.conv_transpose(x.clone().requires_grad_(), w))
refused("requires grad", lambda: tconv.Operator(torch.nn.Parameter(w)))
refused("has no values to read", lambda: tconv.conv_transpose(x.to("meta"), w))
refused("cannot be read through DLPack", lambda: tconv.conv_transpose(x.to_sparse(), w))
last = x.to(memory_format=torch.channels_last)
assert torch.equal(tconv.conv_transpose(last, w, bias, **words), torch.from_numpy(y))
with torch.no_grad():
    assert torch.equal(tconv.conv_transpose(torch.nn.Parameter(x).detach(), w, bias, **words), torch.from_numpy(y))
assert not {"jax", "tensorflow", "mlx"} & set(sys.modules)
"""  # fmt: skip

JAX = """
import jax, jax.numpy
make, address, shares = jax.numpy.asarray, lambda a: a.unsafe_buffer_pointer(), True
""" + CHECK + """
refused("has no values to read", lambda: jax.jit(lambda x: tconv.conv_transpose(x, w))(x))
refused("has no values to read", lambda: jax.grad(lambda x: tconv.conv_transpose(x, w).sum())(x))
assert not {"torch", "tensorflow", "mlx"} & set(sys.modules)
"""  # fmt: skip

TENSORFLOW = """
import tensorflow
make, address, shares = tensorflow.constant, lambda a: np.from_dlpack(a).ctypes.data, True
""" + CHECK + """
refused("must be an array", lambda: tensorflow.function(lambda x: tconv.conv_transpose(x, x), autograph=False)(x))
for size in range(1, 12):  # results that TensorFlow slices: it ends the process where they are not aligned
    z = tconv.conv_transpose(make(np.ones((1, 1, size), np.float32)), make(np.ones((1, 1, 3), np.float32)))
    assert float(z[0, 0, 1]) == (2 if size > 1 else 1)
assert not {"torch", "mlx"} & set(sys.modules)  # TensorFlow itself looks for JAX
"""  # fmt: skip

MLX = """
import mlx.core
make, address, shares = mlx.core.array, lambda a: np.from_dlpack(a).ctypes.data, False  # it copies what it takes
""" + CHECK + """
lazy = (x + 1) - 1  # computed when it is read
np.testing.assert_allclose(np.from_dlpack(tconv.conv_transpose(lazy, w, bias, **words)), y, atol=1e-4)
assert not {"torch", "tensorflow", "jax"} & set(sys.modules)
"""  # fmt: skip


@pytest.mark.parametrize("library", ["torch", "jax", "tensorflow", "mlx"])
def test_arrays_of(library):
    code = START + {"torch": TORCH, "jax": JAX, "tensorflow": TENSORFLOW, "mlx": MLX}[library]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
