# SPDX-License-Identifier: Apache-2.0
"""A layer prepared once and run many times: weights packed, plans kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _problem
from ._functional import Prepared, into, key, prepare, words_key
from ._runtime import Array, as_array, check_bias, compute_dtype, get_num_threads, kernel_for, readable, result, same_dtype, thread_count
from ._spec import Spec, pairs

_PLANS = 64  # input shapes whose plans an operator keeps


class Operator:
    """A transposed convolution with its weight packed for the kernel: `op(x)`, and its adjoint `op.T(y)`.

    The arguments are those of `conv_transpose`; the input's size and batch may differ from call to call. An operator is
    immutable (it keeps its own copy of `w`: changing the array afterwards changes nothing) and may be called from
    several threads at once.

    >>> import numpy as np, tconv
    >>> op = tconv.Operator(np.ones((2, 3, 4, 4), np.float32), stride=2, padding=1)
    >>> op(np.ones((1, 2, 8, 8), np.float32)).shape, op.T(np.ones((1, 3, 16, 16), np.float32)).shape
    ((1, 3, 16, 16), (1, 2, 8, 8))
    """

    def __init__(self, w: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, output_size: Any = None,
                 dilation: Any = 1, groups: int = 1, layout: str = "channels_first", threads: int | None = None,
                 algorithm: str = "auto") -> None:  # fmt: skip
        w = as_array("w", w)
        self._dtype = compute_dtype("w", w)
        self._w = np.array(w, order="C", copy=True)
        self._words = dict(words_key(stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
                                     layout=layout))  # fmt: skip
        self._output_size = key("output_size", output_size)
        self._kernel, self._threads = kernel_for(algorithm), None if threads is None else thread_count(threads)
        _, kernel_size, channels = _problem.weight_axes(w.shape, groups)
        self._bias = None if bias is None else np.array(check_bias(bias, channels, w), dtype=self._dtype, order="C")
        self._w.setflags(write=False)
        self._plans: dict[Any, Prepared] = {}
        self._packed: dict[Any, Array] = {}
        if output_size is None:  # wrong words are refused now rather than at the first call
            geometry = {k: v for k, v in self._words.items() if k != "layout"}
            Spec.build(_large_enough(padding, len(kernel_size)), kernel_size, in_channels=w.shape[0], out_channels=channels, **geometry)

    @property
    def weight(self) -> Array:
        """The weight, (Cin, Cout / groups, *kernel_size), read-only."""
        return self._w

    @property
    def kernel(self) -> str:
        """The name of the kernel that runs, one of `tconv.kernels()`."""
        return self._kernel

    def __call__(self, x: Any, out: Array | None = None) -> Array:
        """The layer: x (N, Cin, *I) -> (N, Cout, *O), in the operator's layout; N may be absent."""
        return self._run(x, True, None, out)

    def T(self, grad: Any, input_size: Any = None, out: Array | None = None) -> Array:
        """The adjoint, without bias: grad (N, Cout, *O) -> (N, Cin, *I); see `conv_transpose_grad_input`."""
        return self._run(grad, False, input_size, out)

    def __repr__(self) -> str:
        words = ", ".join(f"{k}={v!r}" for k, v in self._words.items())
        return f"Operator(w{self._w.shape} {self._w.dtype.name}, {words}, kernel={self._kernel!r})"

    def _run(self, value: Any, forward: bool, input_size: Any, out: Array | None) -> Array:
        name = "x" if forward else "grad"
        array = value if type(value) is np.ndarray else as_array(name, value)
        if array.dtype != self._w.dtype:
            same_dtype(("w", self._w), (name, array))
        call = (array.shape, forward, key("input_size", input_size), self._threads or get_num_threads())
        prepared = self._plans.get(call) or self._plan(call)
        target = result(out, prepared.shape, array.dtype, [array], prepared.problem.spec)
        packed, bias = self._weights(prepared, forward), self._bias if forward else None
        x = readable(array, self._dtype)
        if out is None and array.dtype == self._dtype:
            prepared.stencil.run(x, packed, bias, target)
            return target
        return into(target, self._dtype, lambda to: prepared.stencil.run(x, packed, bias, to))

    def _plan(self, call: tuple[Any, ...]) -> Prepared:
        shape, forward, input_size, threads = call
        if forward:
            problem = _problem.forward(shape, self._w.shape, output_size=self._output_size, **self._words)
        else:
            problem = _problem.grad_input(shape, self._w.shape, input_size, **self._words)
        prepared = prepare(problem, forward, self._dtype, self._kernel, threads)
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        self._plans[call] = prepared
        return prepared

    def _weights(self, prepared: Prepared, forward: bool) -> Array:
        """Packed weights; which phases exist decides their order, and only an output smaller than its stride lacks any."""
        order = (forward, *prepared.stencil.signature)
        packed = self._packed.get(order)
        if packed is None:  # two threads may both pack: the same bits, and no lock that a fork could leave locked
            packed = np.empty(prepared.stencil.weight_elements, self._dtype)
            prepared.stencil.pack(readable(self._w, self._dtype), packed)
            self._packed[order] = packed
        return packed


def _large_enough(padding: Any, rank: int) -> tuple[int, ...]:
    """An input size that no legal crop uses up."""
    crops = [(0, 0)] * rank if isinstance(padding, str) else pairs("padding", padding, rank)
    return tuple(1 + abs(lo) + abs(hi) for lo, hi in crops)
