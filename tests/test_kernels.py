# SPDX-License-Identifier: Apache-2.0
"""Every registered kernel, forced by name: that the force took, the sizes around vector widths, and no access beyond the arrays."""

import ctypes
import dataclasses
import mmap
import os
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from definition import OPERATORS, Judge, Problem, assert_same_bits, random_problem

import tconv
from tconv import _core, _problem
from tconv._functional import core_problem
from tconv._runtime import kernel_for

ANYTHING = (
    "auto",
    "direct",
    "positions",
    "channels",
)  # methods that compute every problem; for others: test_winograd.py, test_depthwise.py, test_rows.py
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype("float32"), np.dtype("float64"), np.dtype("float16"), BFLOAT16)
KERNELS = tuple(name for name in tconv.kernels() if name.split("_")[0] in ANYTHING)
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129)
GEOMETRIES = [((2,), (3,), ((0, 0),)), ((3,), (3,), ((0, 0),)), ((4,), (2,), ((1, 1),)), ((3,), (1,), ((1, 1),)), ((5,), (2,), ((7, -6),)),
              ((2,), (2,), ((0, 0),)), ((4,), (4,), ((0, 0),)), ((5,), (5,), ((0, 0),)), ((6,), (6,), ((0, 0),)),
              ((8,), (8,), ((0, 0),)), ((17,), (17,), ((0, 0),))]  # fmt: skip
NO_ACCESS = 0  # PROT_NONE, which the mmap module does not name
forced = pytest.mark.parametrize("kernel", KERNELS)


@cache
def judge_of(problem: Problem) -> Judge:
    """One definition serves all kernels."""
    return Judge(problem)


def check(problem: Problem, kernel: str) -> None:
    judge = judge_of(problem)
    for operator in OPERATORS:
        judge.check(operator, judge.run(operator, tconv, algorithm=kernel), kernel)


# ---------------------------------------------------------------------------------------------------------------------- the registry


def test_there_is_a_kernel_for_any_machine():
    assert len(set(KERNELS)) == len(KERNELS) >= 1
    assert any(name.endswith("scalar") for name in KERNELS)


@forced
def test_the_force_takes(kernel):
    """By the name that an Operator gives, and by the method and instruction set that the core really took for these problems."""
    assert tconv.Operator(np.ones((1, 1, 2), "float32"), algorithm=kernel).kernel == kernel
    assert tconv.Operator(np.ones((1, 1, 2)), algorithm=kernel).kernel == kernel
    method, isa = kernel.split("_")
    direct = ("positions", "channels")
    methods = {"auto": (*direct, "winograd", "rowwise"), "direct": direct}.get(method, (method,))
    for channels, size, forward, last in product((1, 64), (1, 200), (True, False), (True, False)):
        problem = _core.Problem(1, channels, channels, 1, [size], [4], [2], [1], [(0, 0)], last, True)
        assert _core.Stencil(problem, forward, "float32", kernel, 1).kernel in [f"{m}_{isa}" for m in methods]


@pytest.mark.parametrize("words", [{}, {"algorithm": "auto"}])
def test_left_alone_it_chooses_the_best_kernel(words):
    assert tconv.Operator(np.ones((1, 1, 2), "float32"), **words).kernel == KERNELS[0]


@pytest.mark.parametrize(
    "method", ["auto", "direct", "positions", "channels", "depthwise", "rows", "strassen", "rowwise", "winograd", "winograd2", "winograd4"]
)
def test_a_method_alone_is_that_of_the_best_instruction_set(method):
    assert tconv.Operator(np.ones((1, 1, 2), "float32"), algorithm=method).kernel == f"{method}_{KERNELS[0].split('_')[1]}"


# Weights that are read as they lie for few positions, and not for many. Phases that a short row lacks, by the crop: those of the other axes
# count from elsewhere then, and those of a depthwise row have other taps.
SIGNED = [Problem((4, 4), (5, 5), (1, 1), (1, 1), ((2, 2), (2, 2)), cin=7, cout=64),
          Problem((3, 3, 3), (2, 4, 2), (4, 2, 20), (1, 1, 1), ((3, 0), (0, 0), (15, 0)), cin=5, cout=1),
          Problem((9, 30), (5, 2), (13, 13), (1, 1), ((24, -2), (7, 0)), cin=2, cout=1),
          Problem((3, 4), (3, 4), (2, 6), (1, 1), ((0, 0), (-2, -2)), cin=3, cout=3, groups=3),
          Problem((3, 4), (2, 6), (2, 3), (1, 2), ((0, 0), (0, 2)), cin=3, cout=3, groups=3)]  # fmt: skip


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("forward", [True, False])
def test_weights_of_one_signature_are_packed_alike(forward, layout):
    """Whoever keeps packed weights, for an operator or a PyTorch parameter, takes them for every size of the same signature."""
    rng = np.random.default_rng(7)
    for p in SIGNED + [random_problem(seed) for seed in range(70_000, 70_040)]:
        more = rng.choice([1, 4, 9, 21], 2)
        p = dataclasses.replace(p, cin=p.cin * int(more[0]), cout=p.cout * int(more[1])) if p.groups == 1 and p not in SIGNED else p
        w, found = Judge(p).w, {}
        sizes = [tuple(times * n for n in p.size) for times in (1, 3, 25)] + [(*p.size[:-1], n) for n in (1, 2, 3, 40)]
        for size, batch, pack_always, method in product(sizes, (1, 4), (True, False), ("auto", "positions", "rows", "rowwise")):
            channels = (p.cin, *size) if layout == "channels_first" else (*size, p.cin)
            try:
                core = core_problem(_problem.forward((batch, *channels), w.shape, **{**p.words, "layout": layout}))
                stencil = _core.Stencil(core, forward, "float32", kernel_for(method), 1, pack_always)
            except ValueError:  # this crop leaves nothing of so small a size; a method that refuses the problem
                continue
            packed = np.zeros(stencil.weight_elements, np.float32)
            if packed.size:
                stencil.pack(w, packed)
            kept = found.setdefault(tuple(stencil.signature), packed)
            assert_same_bits(packed, kept, p)


@pytest.mark.parametrize("name", ["direct_mmx", "", "AUTO", "direct_", "direct_avx2 ", None, 3, b"auto"])
def test_an_unknown_name_is_an_error(name):
    x, w, y = np.ones((1, 1, 3), "float32"), np.ones((1, 1, 2), "float32"), np.ones((1, 1, 4), "float32")
    for call in (lambda: tconv.conv_transpose(x, w, algorithm=name), lambda: tconv.conv_transpose_grad_input(y, w, algorithm=name),
                 lambda: tconv.conv_transpose_grad_weight(x, y, 2, algorithm=name), lambda: tconv.Operator(w, algorithm=name)):  # fmt: skip
        with pytest.raises(tconv.ArgumentError) as caught:
            call()
        assert (caught.value.argument, caught.value.value) == ("algorithm", name)
        assert all(known in caught.value.rule for known in ("auto", "direct", *tconv.kernels()))


# --------------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", range(3))
@forced
def test_random_geometries(kernel, block, dtype):
    for seed in range(20_000 + block * 100, 20_000 + (block + 1) * 100):
        check(random_problem(seed, dtypes=(dtype,), budget=400), kernel)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@forced
def test_widths_around_vectors(kernel, dtype):
    for width, (k, s, p), layout in product(WIDTHS, GEOMETRIES, ["channels_first", "channels_last"]):
        if (width - 1) * s[0] + k[0] - sum(p[0]) >= 1:
            check(Problem((width,), k, s, (1,), p, 2, 3, 5, dtype=dtype, layout=layout, biased=True, seed=width), kernel)


@forced
def test_widths_of_maps(kernel):
    for width, layout in product(WIDTHS, ["channels_first", "channels_last"]):
        check(Problem((2, width), (3, 4), (1, 2), (1, 1), ((1, 1), (1, 1)), 1, 2, 3, layout=layout, seed=width), kernel)


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16], ids=str)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@forced
def test_channels_around_vectors(kernel, layout, dtype):
    for channels in WIDTHS:
        for cin, cout, groups in ((channels, 6, 1), (5, channels, 1), (channels, channels, channels), (2 * channels, 4, 2)):
            crop = ((0, 0), (1, 0))
            check(Problem((3, 2), (2, 3), (1, 2), (1, 1), crop, 1, cin, cout, groups, dtype, layout, seed=channels), kernel)


@forced
def test_small_maps_of_many_images(kernel):
    for batch, size in product((1, 2, 7, 16, 33), ((1, 1), (1, 2), (3, 1), (4, 4))):
        check(Problem(size, (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), batch, 9, 10, biased=True, seed=batch), kernel)


LARGER = [Problem((16, 20), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 2, 80, 70, biased=True, seed=1),
          Problem((70, 90), (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 1, 6, 4, seed=2),
          Problem((60, 65), (3, 3), (2, 2), (1, 1), ((1, 0), (1, 0)), 1, 3, 1, biased=True, seed=3),
          Problem((3000,), (16,), (8,), (1,), ((4, 4),), 1, 9, 5, seed=4),
          Problem((60,), (256,), (64,), (1,), ((128, 128),), 1, 33, 1, seed=5),
          Problem((12, 13), (3, 3), (1, 1), (2, 3), ((2, 2), (3, 3)), 1, 600, 3, seed=6),
          Problem((6, 7, 8), (4, 4, 4), (2, 2, 2), (1, 1, 1), ((1, 1),) * 3, 1, 8, 12, biased=True, seed=7),
          Problem((4, 40), (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 2, 520, 21, biased=True, seed=9),  # four goes of sums
          Problem((3, 43), (4, 4), (4, 4), (1, 1), ((0, 0), (0, 0)), 1, 200, 5, biased=True, seed=10),
          Problem((2, 50), (1, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 1, 70, 3, biased=True, seed=11),  # rows of the bias alone
          Problem((2500,), (8,), (4,), (1,), ((0, 0),), 1, 70, 9, biased=True, seed=12),
          Problem((3, 35), (2, 2), (2, 2), (1, 1), ((0, 1), (0, 1)), 1, 9, 6, biased=True, seed=13),  # the last positions lack outputs
          Problem((700,), (4,), (2,), (1,), ((1, 1),), 1, 70, 9, biased=True, seed=14),  # as do the first and the last one of a long row
          Problem((50,), (600,), (2,), (1,), ((200, 300),), 1, 3, 4, seed=15),  # more taps than one go
          Problem((2, 3), (4, 3), (2, 2), (1, 1), ((1, 1), (1, 0)), 3, 140, 150, biased=True, seed=16),  # tasks pack what they read
          Problem((2,), (5,), (2,), (1,), ((1, 1),), 2, 140, 270, 2, biased=True, seed=17),  # so do those of two groups
          Problem((40,), (90,), (3,), (1,), ((40, 44),), 1, 70, 40, biased=True, seed=18)]  # all outputs are near a border  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16], ids=str)
@pytest.mark.parametrize("problem", LARGER, ids=lambda p: str(p).split(" | ")[0].replace(" ", "_"))
@forced
def test_layers_that_need_several_blocks(kernel, problem, dtype):
    for layout in ("channels_first", "channels_last"):
        check(dataclasses.replace(problem, layout=layout, dtype=dtype), kernel)


@pytest.mark.parametrize("order", [(2, 3, 1, 0), (2, 3, 0, 1)], ids=["inputs_adjacent", "outputs_adjacent"])
@pytest.mark.parametrize(("size", "channels"), [((7, 9), 36), ((2, 1), 136)], ids=["map", "more_weights_than_inputs"])
@forced
def test_weights_in_the_order_of_other_frameworks(kernel, size, channels, order):
    """Axes of w that lie in memory as TensorFlow's or Flax's do: the bits are those of the same weight in our own order."""
    problem = Problem(size, (3, 4), (2, 2), (1, 1), ((1, 0), (1, 1)), 2, channels + 1, channels - 1, seed=9)
    judge = judge_of(problem)
    back = tuple(np.argsort(order))
    w = np.ascontiguousarray(judge.w.transpose(order)).transpose(back)
    for call, first in ((tconv.conv_transpose, judge.x), (tconv.conv_transpose_grad_input, judge.grad)):
        words = problem.words | ({"input_size": problem.size} if first is judge.grad else {})
        expected = call(first, judge.w, algorithm=kernel, **words)
        assert np.array_equal(call(first, w, algorithm=kernel, **words), expected)
    core, found = core_problem(_problem.gradients(judge.x.shape, w.shape, judge.grad.shape, **problem.words)), np.full_like(w, np.nan)
    _core.grad_weight(core, kernel, judge.x, judge.grad, found, 2)
    judge.check("grad_weight", found, kernel)


@pytest.mark.parametrize("size", [(180, 183), (172, 192)], ids=["rows_begin_anywhere", "rows_are_whole_lines"])  # 16.9 MB of output
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@forced
def test_a_large_output_is_the_same_at_any_address(kernel, layout, size):
    """It is written past the caches where it begins at a whole line, and must not be elsewhere; the sums are taken in two parts."""
    problem = Problem(size, (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 1, 130, 32, layout=layout, biased=True, seed=8)
    judge = judge_of(problem)
    expected = judge.run("forward", tconv, algorithm=kernel)
    judge.check("forward", expected, kernel)
    x = judge.x if layout == "channels_first" else np.moveaxis(judge.x, 1, -1)
    memory = np.empty(expected.nbytes + 128, np.uint8)
    for offset in (0, 4, 32):
        start = -memory.ctypes.data % 64 + offset
        out = memory[start : start + expected.nbytes].view(expected.dtype).reshape(expected.shape)
        memory[:] = 0xAB
        tconv.conv_transpose(x, judge.w, judge.bias, stride=2, layout=layout, algorithm=kernel, out=out)
        assert np.array_equal(out.view(np.uint32), expected.view(np.uint32))
        assert np.all(memory[:start] == 0xAB)
        assert np.all(memory[start + expected.nbytes :] == 0xAB)


# ---------------------------------------------------------------------------------------------------------------------- page guards


class Fenced:
    """Arrays that end (or begin) exactly where an unreadable page begins (or ends): any access beyond them kills the process."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._maps = []

    def array(self, values: np.ndarray, at_end: bool) -> np.ndarray:
        page, inner = mmap.PAGESIZE, -(-max(values.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        region = mmap.mmap(-1, inner + 2 * page)
        self._maps.append(region)
        start = ctypes.addressof(ctypes.c_char.from_buffer(region))
        for fence in (start, start + page + inner):
            if self._libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        offset = page + (inner - values.nbytes if at_end else 0)
        array = np.frombuffer(region, values.dtype, values.size, offset).reshape(values.shape)
        array[...] = values
        return array


def run_between_fences() -> None:
    """All operators of all kernels with every array fenced at its end, then at its beginning; prints each kernel before it runs."""
    for kernel in KERNELS:
        print(kernel, flush=True)
        calls = sum(_run_fenced(p, kernel, at_end) for p in fenced_problems() for at_end in (True, False))
        print(calls, flush=True)


def fenced_problems() -> list[Problem]:
    found, sizes = [], [(1,), (3,), (17,), (65,), (3, 31), (2, 3, 9)]
    forms = [(3, 2, (1, 0), 3, 2, 1), (4, 2, (1, 1), 2, 17, 1), (2, 2, (0, 0), 8, 4, 4), (3, 1, (0, -1), 1, 1, 1)]
    layouts = ["channels_first", "channels_last"]
    for size, form, dtype, layout in product(sizes, forms, DTYPES, layouts):
        k, s, crop, *channels = form
        if all((n - 1) * s + k - sum(crop) >= 1 for n in size):
            axes = ((v,) * len(size) for v in (k, s, 1, crop))
            found.append(Problem(size, *axes, 2, *channels, dtype, layout, biased=True, seed=len(found)))
    # Inputs that are read where they lie, were it not for the end of the array, and rows of most of a vector that are transposed.
    found += [Problem((65,), (2,), (2,), (1,), ((0, 1),), 1, 8, 1, dtype=dtype, biased=True) for dtype in DTYPES]
    return found + [Problem((size,), (3,), (1,), (1,), ((1, 1),), 1, cin, 13, dtype=dtype, layout=layout, biased=True)
                    for size, cin, dtype, layout in product((13, 16), (13, 16), DTYPES, layouts)]  # fmt: skip


def _run_fenced(p: Problem, kernel: str, at_end: bool) -> int:
    fenced, plain = Fenced(), judge_of(p)
    x, grad = (fenced.array(p.arranged(a), at_end) for a in (plain.x, plain.grad))
    w, bias = (fenced.array(a, at_end) for a in (plain.w, plain.bias))
    words = {**p.words, "algorithm": kernel, "threads": 2}
    out = {name: fenced.array(np.zeros_like(a), at_end) for name, a in (("forward", grad), ("grad_input", x), ("grad_weight", w))}
    plain.check("forward", tconv.conv_transpose(x, w, bias, **words, out=out["forward"]), kernel)
    plain.check("forward", tconv.Operator(w, bias, **words)(x, out=out["forward"]), kernel)
    plain.check("grad_input", tconv.conv_transpose_grad_input(grad, w, p.size, **words, out=out["grad_input"]), kernel)
    plain.check("grad_weight", tconv.conv_transpose_grad_weight(x, grad, p.kernel, **words, out=out["grad_weight"]), kernel)
    return 4


def in_a_process(code: str) -> subprocess.CompletedProcess:
    """A fence that is touched must fail a test, not kill the run."""
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *(p for p in sys.path if p)])
    return subprocess.run([sys.executable, "-c", code], cwd=here, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip


def test_the_fence_is_sharp():
    """One byte beyond either end kills the process: otherwise the test below proves nothing."""
    for at_end, reach in ((True, 8), (False, -1)):
        code = "import ctypes, numpy, test_kernels as t; f = t.Fenced(); a = f.array(numpy.ones(1), {}); "
        touch = "print(ctypes.c_ubyte.from_address(a.ctypes.data + {}).value)"
        inside, beyond = in_a_process(code.format(at_end) + touch.format(0)), in_a_process(code.format(at_end) + touch.format(reach))
        assert inside.returncode == 0, inside.stderr
        assert beyond.returncode != 0, beyond.stdout


def test_no_access_beyond_the_arrays():
    done = in_a_process("import test_kernels; test_kernels.run_between_fences()")
    said = done.stdout.split()
    assert done.returncode == 0, f"{said[-1:]}: exit {done.returncode} (negative: killed by that signal)\n{done.stderr[-2000:]}"
    assert said[::2] == list(KERNELS)
    assert all(int(calls) > 1000 for calls in said[1::2])
