# SPDX-License-Identifier: Apache-2.0
"""A layer prepared once and run many times: weights packed, plans kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core, _problem
from ._foreign import aligned
from ._functional import Prepared, key, prepare, words_key
from ._model import Model
from ._problem import SLOPE, activation_code
from ._runtime import (
    Array,
    arrive,
    as_array,
    bias_array,
    compute_dtype,
    fresh,
    get_num_threads,
    kernel_for,
    readable,
    result,
    same_dtype,
    stored,
    thread_count,
    usable,
    write,
)
from ._spec import ArgumentError, Ints, Padding, Spec, at_least_one, integers, pairs
from ._why import Why, why

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import LinearOperator

    from ._posed import Posedness

_PLANS = 64  # input shapes whose plans an operator keeps


class Operator:
    """A transposed convolution with its weight packed for the kernel: `op(x)`, and its adjoint `op.T(y)`.

    The arguments are those of `conv_transpose`; the input's size and batch may differ from call to call. An operator is
    immutable (it keeps its own copy of `w`: changing the array afterwards changes nothing) and may be called from
    several threads at once. Results are arrays of the library of the argument, as those of `conv_transpose` are.

    >>> import numpy as np, tconv
    >>> op = tconv.Operator(np.ones((2, 3, 4, 4), np.float32), stride=2, padding=1)
    >>> op(np.ones((1, 2, 8, 8), np.float32)).shape, op.T(np.ones((1, 3, 16, 16), np.float32)).shape
    ((1, 3, 16, 16), (1, 2, 8, 8))
    >>> tconv.Operator(np.ones((1, 1, 2)), activation="relu")([[-1.0, 2.0]])
    array([[0., 1., 2.]])
    """

    def __init__(self, w: npt.ArrayLike, bias: npt.ArrayLike | None = None, *, stride: Ints = 1, padding: Padding = 0,
                 output_padding: Ints = 0, output_size: Ints | None = None, dilation: Ints = 1, groups: int = 1,
                 layout: str = "channels_first", activation: str | None = None, negative_slope: float = SLOPE,
                 threads: int | None = None, algorithm: str = "auto") -> None:  # fmt: skip
        w = as_array("w", w)
        self._dtype = compute_dtype("w", w)
        self._w = np.array(w, order="C", copy=True)
        self._words = dict(words_key(stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
                                     layout=layout))  # fmt: skip
        self._output_size = key("output_size", output_size)
        self._algorithm, self._kernel = algorithm, kernel_for(algorithm)
        self._threads = None if threads is None else thread_count(threads)
        self._activation = activation
        self._code, self._slope = activation_code(activation, negative_slope, self._dtype.itemsize == 8)
        channels = self._check(_problem.weight_axes(w.shape, groups))
        self._bias = None if bias is None else np.array(bias_array(bias, channels, w), dtype=self._dtype, order="C")
        self._w.setflags(write=False)
        self._ready: dict[Any, _Ready] = {}
        self._packed: dict[Any, Array] = {}

    def _check(self, axes: tuple[int, tuple[int, ...], int]) -> int:
        """Refuse wrong words now rather than at the first call; the number of output channels."""
        in_channels, kernel_size, out_channels = axes
        rank, geometry = len(kernel_size), dict(self._words)
        _problem.check_layout(geometry.pop("layout"))
        sizes = large_enough(geometry["padding"], geometry["stride"], rank)
        Spec.build(sizes, kernel_size, in_channels=in_channels, out_channels=out_channels, **geometry)
        if self._output_size is not None:
            at_least_one("output_size", integers("output_size", self._output_size, rank))
            if any(integers("output_padding", geometry["output_padding"], rank)):
                rule = f"cannot be given together with output_padding={geometry['output_padding']!r}"
                raise ArgumentError("output_size", self._output_size, rule)
        return out_channels

    @property
    def weight(self) -> Array:
        """The weight, (Cin, Cout / groups, *kernel_size), read-only."""
        return self._w

    @property
    def kernel(self) -> str:
        """The name of the kernel that was asked for, one of `tconv.kernels()`; `explain` says what it comes to for an input."""
        return self._kernel

    def explain(self, shape: tuple[int, ...]) -> Why:
        """Which kernel runs for inputs of a shape, what else was considered, and the size of the packed weight: facts that print well.

        >>> import numpy as np, tconv
        >>> why = tconv.Operator(np.ones((2, 3, 4), np.float32), stride=2, algorithm="winograd_scalar").explain((1, 2, 100))
        >>> why.kernel, why.weight_bytes
        ('winograd_scalar', 256)
        """
        allowed = self._threads or get_num_threads()
        return why(self._plan((tuple(shape), True, None, allowed)), self._dtype, self._w.dtype.name, allowed)

    def __call__(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """The layer, bias and activation included: x (N, Cin, *I) -> (N, Cout, *O), in the operator's layout; N may be absent."""
        return self._run(x, True, None, out)

    def T(self, grad: npt.ArrayLike, input_size: Ints | None = None, out: Array | None = None) -> Array:
        """The adjoint, without bias and activation: grad (N, Cout, *O) -> (N, Cin, *I); see `conv_transpose_grad_input`."""
        return self._run(grad, False, input_size, out)

    def as_linear_operator(self, shape: tuple[int, ...]) -> LinearOperator:
        """The layer without bias and activation as SciPy's `LinearOperator` on flat arrays, for inputs of a shape; PyLops takes it too.

        x.ravel() (N * Cin * prod(I),) -> y.ravel() (N * Cout * prod(O),); `rmatvec` is `T`. Needs SciPy: pip install "tconv[deconvolve]".

        >>> import numpy as np, tconv
        >>> tconv.Operator(np.ones((2, 3, 4)), stride=2).as_linear_operator((1, 2, 5)).shape
        (36, 10)
        """
        from ._linear import linear_operator

        problem = self._plan((tuple(shape), True, None, self._threads or get_num_threads())).problem
        linear = Operator(self._w, output_size=self._output_size, threads=self._threads, algorithm=self._algorithm, **self._words)
        adjoint = partial(linear.T, input_size=problem.spec.input_size)
        return linear_operator(linear, adjoint, problem.input_shape, problem.output_shape, self._w.dtype)

    def as_matrix(self, shape: tuple[int, ...]) -> csr_array:
        """The same as SciPy's sparse matrix, (y.size, x.size), with one entry for every product; refused where these are over 2^27.

        >>> import numpy as np, tconv
        >>> tconv.Operator(np.array([[[1.0, 2]]]), stride=2).as_matrix((1, 1, 2)).toarray()
        array([[1., 0.],
               [2., 0.],
               [0., 1.],
               [0., 2.]])
        """
        from ._linear import layer_matrix

        problem = self._plan((tuple(shape), True, None, self._threads or get_num_threads())).problem
        return layer_matrix(problem.spec, readable(self._w, self._dtype), problem.layout == "channels_last")

    def singular_values(self, shape: tuple[int, ...]) -> Array:
        """Singular values of one sample of the layer, largest first, for inputs of a shape; those of `T` are the same.

        As they are up to 700 values a group of channels; for larger inputs those of the circular convolution with the same kernel, on a grid
        of frequencies. Gray, "Toeplitz and Circulant Matrices: A Review", 2006, says how near these are.

        >>> import numpy as np, tconv
        >>> tconv.Operator(np.array([[[1.0, 2]]]), stride=2).singular_values((1, 1, 3)).round(3)
        array([2.236, 2.236, 2.236])
        """
        from ._posed import singular_values

        return singular_values(self._model(shape))

    def posedness(self, shape: tuple[int, ...]) -> Posedness:
        """Whether an input of a shape can be recovered from its output, and how noise grows in doing so: `Posedness`.

        >>> import numpy as np, tconv
        >>> tconv.Operator(np.ones((8, 1, 2)), stride=2).posedness((1, 8, 5)).null_space
        35
        """
        from ._posed import posedness

        return posedness(self._model(shape))

    def _model(self, shape: tuple[int, ...]) -> Model:
        spec = self._plan((tuple(shape), True, None, self._threads or get_num_threads())).problem.spec
        return Model(spec, self._w.astype(np.float64), transposed=True)

    def __repr__(self) -> str:
        facts = {"bias": self._bias is not None, **self._words, "output_size": self._output_size, "activation": self._activation,
                 "negative_slope": self._slope, "threads": self._threads,
                 "kernel": self._kernel}  # fmt: skip
        return f"Operator(w{self._w.shape} {self._w.dtype.name}, {', '.join(f'{k}={v!r}' for k, v in facts.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}, "_packed": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Perhaps on another machine, whose best kernel may be another."""
        self.__dict__.update(state, _kernel=kernel_for(state["_algorithm"]))
        self._w.setflags(write=False)

    def _run(self, value: Any, forward: bool, input_size: Any, out: Array | None) -> Array:
        name = "x" if forward else "grad"
        array, home = value, None
        if type(value) is not np.ndarray:
            (array,), home = arrive(out, **{name: value})
        dtype = array.dtype
        if dtype != self._w.dtype:
            same_dtype(("w", self._w), (name, array))
        if input_size is not None:
            input_size = key("input_size", input_size)
        call = (array.shape, forward, input_size, self._threads or get_num_threads())
        ready = self._ready.get(call) or self._make_ready(call)
        x = readable(array, dtype) if dtype is self._dtype else stored(array)
        if home is not None:
            out = aligned(ready.shape, dtype)
        target = fresh(ready.shape, dtype) if out is None else result(out, ready.shape, dtype, (array,), ready.problem.spec)
        if dtype is self._dtype and home is None and (out is None or usable(target, dtype)):  # the usual call: microseconds count
            ready.run(x, ready.packed, ready.bias, target, ready.activation, ready.slope)
            return target
        write(target, partial(ready.run, x, ready.packed, ready.bias, activation=ready.activation, slope=ready.slope))
        return target if home is None else home(target)

    def _plan(self, call: tuple[Any, ...]) -> Prepared:
        shape, forward, input_size, threads = call
        if forward:
            problem = _problem.forward(shape, self._w.shape, output_size=self._output_size, **self._words)
        else:
            problem = _problem.grad_input(shape, self._w.shape, input_size, output_size=self._output_size, **self._words)
        return prepare(problem, forward, self._w.dtype.name, self._kernel, threads, pack_always=False)

    def _make_ready(self, call: tuple[Any, ...]) -> _Ready:
        problem, stencil, shape = self._plan(call)
        after: tuple[Any, int, float] = (self._bias, self._code, self._slope) if call[1] else (None, 0, 0.0)
        ready = _Ready(stencil.run, self._weights(stencil, call[1]), *after, shape, problem)
        if len(self._ready) >= _PLANS:
            self._ready.clear()
        self._ready[call] = ready
        return ready

    def _weights(self, stencil: _core.Stencil, forward: bool) -> Array:
        """Packed weights; which phases exist decides their order, and only an output smaller than its stride lacks any."""
        order = (forward, *stencil.signature)
        packed = self._packed.get(order)
        if packed is None:  # two threads may both pack: the same bits, and no lock that a fork could leave locked
            packed = fresh((stencil.weight_elements,), self._dtype)
            stencil.pack(stored(self._w), packed)
            self._packed[order] = packed
        return packed


class _Ready(NamedTuple):
    """All that a call with an input of a known shape needs."""

    run: Callable[..., None]
    packed: Array
    bias: Array | None
    activation: int
    slope: float
    shape: tuple[int, ...]
    problem: _problem.Problem


def large_enough(padding: Any, stride: Any, rank: int) -> tuple[int, ...]:
    """An input size that the crop does not use up."""
    crops = [(0, 0)] * rank if isinstance(padding, str) else pairs("padding", padding, rank)
    strides = integers("stride", stride, rank)
    return tuple(1 + -(-max(0, lo + hi) // max(1, step)) for (lo, hi), step in zip(crops, strides, strict=True))
