# SPDX-License-Identifier: Apache-2.0
"""`tconv.jax.conv_transpose` judged by `jax.lax.conv_transpose` and by the definition: values of thousands of geometries, dtypes, errors."""

from __future__ import annotations

import doctest
import inspect
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from definition import Judge, random_problem
from jax import lax
from jax import numpy as jnp
from test_docs import FLAGS, ROOT, blocks, run_session

import tconv
import tconv.jax as ours
from tconv import ArgumentError, _jax_ops

PAGE = "docs/guides/jax.md"
BATCH = 50  # geometries that are compiled together: a compilation of its own takes longer than all their arithmetic

jax.config.update("jax_enable_x64", True)


def numbers(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def same(found, expected, eps=1e-12, note=""):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, note
    np.testing.assert_allclose(found, expected, rtol=0, atol=eps * max(1.0, abs(expected).max(initial=0)), err_msg=str(note))


# ------------------------------------------------------------------------------------------------------------------------ against lax


def drawn(seed):
    """x, w and lax's own words of a random layer."""
    rng = np.random.default_rng([seed, 11])
    rank = int(rng.choice([1, 1, 2, 2, 3]))
    size, kernel, strides, dilation = (rng.integers(1, top + 1, rank).tolist() for top in ({1: 9, 2: 5, 3: 3}[rank], 5, 4, 3))
    into, out = (int(v) for v in rng.integers(1, 4, 2))
    transposed = bool(rng.random() < 0.5)
    words = {"strides": strides, "rhs_dilation": dilation, "transpose_kernel": transposed}
    words["padding"] = str(rng.choice(["SAME", "VALID"])) if rng.random() < 0.6 else drawn_pads(rng, size, kernel, strides, dilation)
    if not isinstance(words["padding"], str) and rng.random() < 0.5:
        words["use_consistent_padding"] = True
        extents = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        words["padding"] = [(e - a, e - b) for e, (a, b) in zip(extents, words["padding"], strict=True)]
    shapes = {"N": int(rng.integers(1, 3)), "C": into, "I": out if transposed else into, "O": into if transposed else out}
    letters = "HWD"[:rank]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    if rng.random() < 0.4:
        numbers = tuple("".join(rng.permutation(list(text))) for text in numbers)
        words["dimension_numbers"] = numbers
        letters = [letter for letter in numbers[1] if letter not in "IO"]  # the order that strides and the like have
    shapes_x = shapes | dict(zip(letters, size, strict=True))
    shapes_w = shapes | dict(zip(letters, kernel, strict=True))
    x, w = (jnp.asarray(rng.standard_normal([s[letter] for letter in text])) for s, text in zip((shapes_x, shapes_w), numbers[:2], strict=True))
    return x, w, words


def drawn_pads(rng, size, kernel, strides, dilation):
    """Pairs that leave an output, from crops of nearly everything to zeros on both sides."""
    pads = []
    for i, k, s, d in zip(size, kernel, strides, dilation, strict=True):
        reach = d * (k - 1) + 1
        a = int(rng.integers(-2, reach + 3))
        least = 1 - ((i - 1) * s + 1 + a - (reach - 1))  # where one output is left
        pads.append((a, max(least, int(rng.integers(-2, reach + 3)))))
    return pads


def together(function, cases):
    return jax.jit(lambda arrays: [function(*pair, **words) for pair, (_, _, words) in zip(arrays, cases, strict=True)])(
        [case[:2] for case in cases])  # fmt: skip


@pytest.mark.parametrize("part", range(22))
def test_lax_agrees_on_random_layers(part):
    cases = [drawn(seed) for seed in range(part * BATCH, (part + 1) * BATCH)]
    for found, expected, (x, w, words) in zip(together(ours.conv_transpose, cases), together(lax.conv_transpose, cases), cases, strict=True):
        assert found.dtype == expected.dtype
        same(found, expected, note=f"{x.shape} {w.shape} {words}")


def test_lax_own_documented_cases():
    """The geometries of JAX's own tests of conv_transpose, and of the bug report that brought use_consistent_padding."""
    cases = []
    for kernel, strides, transposed in itertools.product((2, 3, 4), ((1, 1), (1, 2), (2, 2), (3, 3)), (False, True)):
        for padding in ("VALID", "SAME", [(1, 1), (1, 1)], [(0, 2), (1, 0)]):
            w = numbers(kernel, kernel, *((5, 3) if transposed else (3, 5)), seed=1)
            cases.append((numbers(2, 4, 3, 3), w, {"strides": strides, "padding": padding, "transpose_kernel": transposed}))
    for case, found, expected in zip(cases, together(ours.conv_transpose, cases), together(lax.conv_transpose, cases), strict=True):
        same(found, expected, note=case[2])
    x, w = numbers(1, 5, 5, 1), numbers(3, 3, 1, 1, seed=1)
    words = {"strides": (2, 2), "padding": [(1, 1), (1, 1)]}
    assert ours.conv_transpose(x, w, **words).shape == lax.conv_transpose(x, w, **words).shape == (1, 9, 9, 1)
    assert ours.conv_transpose(x, w, **words, use_consistent_padding=True).shape == (1, 9, 9, 1)
    words = {"strides": (2, 2), "padding": [(0, 0), (0, 0)]}
    assert ours.conv_transpose(x, w, **words).shape == lax.conv_transpose(x, w, **words).shape == (1, 7, 7, 1)
    assert ours.conv_transpose(x, w, **words, use_consistent_padding=True).shape == (1, 11, 11, 1)


def test_positional_arguments_are_those_of_lax():
    theirs, mine = (list(inspect.signature(f).parameters)[2:] for f in (lax.conv_transpose, ours.conv_transpose))
    assert mine[: len(theirs)] == theirs


@pytest.mark.parametrize("dtype, preferred", [("bfloat16", "float32"), ("float16", "float64"), ("float32", "float64"), ("float32", "bfloat16")])
def test_preferred_element_type(dtype, preferred):
    x, w = numbers(1, 5, 3, dtype=dtype), numbers(4, 3, 2, seed=1, dtype=dtype)
    found = ours.conv_transpose(x, w, (2,), "SAME", preferred_element_type=preferred)
    assert found.dtype == preferred
    eps = 2 * float(jnp.finfo(preferred).eps)
    same(found, lax.conv_transpose(x.astype("float64"), w.astype("float64"), (2,), "SAME"), eps)


@pytest.mark.parametrize("words", [{"padding": "SAME", "output_size": 7}, {"padding": "VALID", "output_size": (10,)},
                                   {"padding": [(2, 1)], "output_size": 9}])  # fmt: skip
def test_output_size_moves_the_end_alone(words):
    x, w = numbers(1, 4, 2), numbers(3, 2, 3, seed=1)
    found = ours.conv_transpose(x, w, 2, **words)
    full = np.pad(lax.conv_transpose(x, w, (2,), [(2, 2)]), ((0, 0), (0, 9), (0, 0)))  # nothing cropped, then zeros
    lo = {"SAME": 1, "VALID": 0}.get(str(words["padding"]), 0)
    size = np.ravel(words["output_size"])[0]
    same(found, full[:, lo : lo + size])


# ----------------------------------------------------------------------------------------------------------------- against the definition


def arranged(problem):
    """Our words for a problem of the definition, and a function from canonical weights to those words'."""
    letters = "HWD"[: len(problem.size)]
    data = f"N{letters}C" if problem.layout == "channels_last" else f"NC{letters}"
    transposed = problem.seed % 2 == 0
    order = ["IO*", "*IO", "OI*", "*OI"][problem.seed // 2 % 4]
    words = {"strides": problem.stride, "padding": problem.crop, "rhs_dilation": problem.dilation, "use_consistent_padding": True,
             "groups": problem.groups, "transpose_kernel": transposed, "dimension_numbers": (data, order.replace("*", letters), data)}  # fmt: skip

    def weight(w):
        if not transposed:  # (Cin / groups, Cout), reversed
            w = np.flip(w, range(2, w.ndim)).reshape(problem.groups, -1, *w.shape[1:])
            w = np.concatenate(list(w), axis=1)
        spatial = list(range(2, w.ndim))
        axes = {"I": [1 if transposed else 0], "O": [0 if transposed else 1], "*": spatial}
        return w.transpose([axis for letter in order for axis in axes[letter]])

    return words, weight


@pytest.mark.parametrize("part", range(20))
def test_the_definition_agrees_with_values_and_gradients(part):
    judges = [Judge(random_problem(seed, budget=400, dtypes=("float32", "float64"))) for seed in range(part * BATCH, (part + 1) * BATCH)]
    given, layers = [], []
    for judge in judges:
        words, weight = arranged(judge.problem)
        arrays = [judge.problem.arranged(judge.x), weight(judge.w), judge.problem.arranged(judge.grad)]
        given.append([*map(jnp.asarray, arrays), None if judge.bias is None else jnp.asarray(judge.bias)])
        layers.append((words, weight))

    def step(words, x, w, grad, bias):
        y, back = jax.vjp(lambda *by: ours.conv_transpose(by[0], by[1], **words, bias=by[2] if bias is not None else None), x, w, bias)
        return y, *back(grad)

    results = jax.jit(lambda all: [step(words, *a) for (words, _), a in zip(layers, all, strict=True)])(given)
    for judge, (words, weight), (y, dx, dw, db) in zip(judges, layers, results, strict=True):
        judge.check("forward", np.asarray(y), words)
        judge.check("grad_input", np.asarray(dx), words)
        for bound in (judge.expected("grad_weight"),):
            allowed = judge.problem.terms["grad_weight"] * np.finfo(judge.problem.dtype).eps * weight(bound[1]) + 1e-300
            assert (abs(np.asarray(dw) - weight(bound[0])) <= allowed).all(), judge.problem
        if judge.bias is not None:
            same(db, judge.grad.astype(np.float64).sum((0, *range(2, judge.grad.ndim))), 1e-5 if dw.dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32_and_rounded_once(dtype):
    for seed in range(20):
        judge = Judge(random_problem(seed, budget=200, dtypes=(jnp.dtype(dtype),)))
        words, weight = arranged(judge.problem)
        x, bias = judge.problem.arranged(judge.x), None if judge.bias is None else jnp.asarray(judge.bias)
        y = ours.conv_transpose(jnp.asarray(x), jnp.asarray(weight(judge.w)), **words, bias=bias)
        judge.check("forward", np.asarray(y), words)


def test_the_lax_operators_of_other_devices_agree_with_the_definition():
    for seed in range(60):
        judge = Judge(random_problem(seed, budget=200, dtypes=("float64",)))
        p = judge.problem
        if not p.batched:
            continue
        geometry = _jax_ops.Geometry(p.stride, p.dilation, p.crop, p.groups, p.layout == "channels_last", (0, 1, *range(2, 2 + len(p.size))),
                                     False)  # fmt: skip
        x, grad = jnp.asarray(p.arranged(judge.x)), jnp.asarray(p.arranged(judge.grad))
        bias = [] if judge.bias is None else [jnp.asarray(judge.bias)]
        judge.check("forward", np.asarray(_jax_ops._layer_lax(x, jnp.asarray(judge.w), *bias, geometry=geometry)))
        judge.check("grad_input", np.asarray(_jax_ops._by_input_lax(grad, jnp.asarray(judge.w), geometry=geometry, size=p.size)))
        judge.check("grad_weight", np.asarray(_jax_ops._by_weight_lax(x, grad, geometry=geometry, size=p.kernel)))


# --------------------------------------------------------------------------------------------------------- what runs where, and errors


def test_the_core_computes_on_a_cpu_and_lax_elsewhere():
    assert ours.UNAVAILABLE is None
    x, w = numbers(1, 4, 4, 2, dtype=np.float32), numbers(3, 3, 2, 3, seed=1, dtype=np.float32)
    traced = jax.jit(jax.grad(lambda x, w: jnp.sum(ours.conv_transpose(x, w, 2, "SAME") ** 2), (0, 1))).trace(x, w)
    here, there = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu"))
    assert "tconv_grad_weight" in here and "stablehlo.convolution" not in here
    assert "tconv_grad_weight" not in there and "stablehlo.convolution" in there


def test_a_reversed_or_transposed_weight_is_read_where_it_lies():
    x, w = numbers(1, 4, 4, 2, dtype=np.float32), numbers(3, 2, 3, 3, seed=1, dtype=np.float32)
    call = jax.jit(lambda x, w: ours.conv_transpose(x, w, 2, "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"), transpose_kernel=False))
    text = call.lower(x, w).compile().as_text()
    assert "custom-call" in text
    assert not {"transpose(", "reverse(", "copy("} & {word for word in ("transpose(", "reverse(", "copy(") if word in text}


def test_where_xla_refuses_the_functions_lax_computes():
    code = """
import jax, numpy as np
def refuse(*arguments, **words): raise RuntimeError("an interface of another age")
jax.ffi.register_ffi_target = refuse
import tconv.jax
from jax import numpy as jnp
x, w = jnp.ones((1, 4, 1)), jnp.ones((3, 1, 1))
call = jax.jit(lambda x, w: tconv.jax.conv_transpose(x, w, 2, "VALID"))
print(tconv.jax.UNAVAILABLE, "custom_call" in call.lower(x, w).as_text(), *np.ravel(call(x, w)))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "an interface of another age False 1.0 1.0 2.0 1.0 2.0 1.0 2.0 1.0 1.0\n"


def test_threads_are_tconvs_and_change_no_bit():
    x, w = numbers(2, 40, 40, 16, dtype=np.float32), numbers(4, 4, 16, 8, seed=1, dtype=np.float32)
    call = jax.jit(lambda x, w: ours.conv_transpose(x, w, 2, "SAME"))
    try:
        found = []
        for threads in (1, 2, 3):
            tconv.set_num_threads(threads)
            found.append(np.asarray(call(x, w)))
    finally:
        tconv.set_num_threads(None)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


def test_an_empty_batch_has_an_empty_result_and_zero_gradients():
    x, w = jnp.zeros((0, 4, 2)), numbers(3, 2, 3)
    y, back = jax.vjp(lambda x, w, b: ours.conv_transpose(x, w, 2, "SAME", bias=b), x, w, jnp.ones(3))
    assert y.shape == (0, 8, 3)
    dx, dw, db = back(y)
    assert dx.shape == x.shape and not np.any(dw) and not np.any(db) and dw.shape == w.shape


@pytest.mark.parametrize("words, argument, text", [
    ({"strides": 0}, "strides", "at least 1"),
    ({"strides": (2, 2, 2)}, "strides", "one int per spatial axis"),
    ({"strides": 1.5}, "strides", "integer"),
    ({"rhs_dilation": 0}, "rhs_dilation", "at least 1"),
    ({"padding": "same"}, "padding", "capitals"),
    ({"padding": [(0, 0)]}, "padding", "pair per spatial axis"),
    ({"padding": [(-9, 0), (0, 0)]}, "padding", "at least 1 must remain"),
    ({"output_size": 5}, "output_size", "must lie in"),
    ({"dimension_numbers": ("NHWC", "HWI", "NHWC")}, "dimension_numbers", "must be as"),
    ({"groups": 3}, "groups", "divide in_channels"),
    ({"groups": 0}, "groups", "at least 1"),
    ({"bias": np.ones(4)}, "bias", "one value per output channel"),
    ({"bias": np.ones(3, np.float32)}, "bias", "dtype of x"),
    ({"precision": "best"}, "precision", "lax.Precision"),
    ({"preferred_element_type": "int8"}, "preferred_element_type", "must be one of"),
    ({"x": np.ones((1, 4, 4, 3))}, "x", "takes 2"),
    ({"x": np.ones((4, 4))}, "x", "must have 4 axes"),
    ({"x": np.ones((1, 4, 4, 2), np.int32)}, "x", "float32, float64"),
    ({"w": np.ones((3, 3))}, "w", "one to three spatial axes"),
    ({"x": "x"}, "x", "must be an array"),
])  # fmt: skip
def test_bad_input_names_the_argument(words, argument, text):
    words = {"x": np.ones((1, 4, 4, 2)), "w": np.ones((3, 2, 2, 3)), "strides": 2, "padding": "SAME"} | words
    with pytest.raises(ArgumentError, match=text) as error:
        ours.conv_transpose(**words)
    assert error.value.argument == argument


def test_examples():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert len(blocks(text, "python")) >= 3
    with jax.enable_x64(False):
        results = run_session(text, PAGE)
        assert results.attempted and results.failed == 0, results
        import tconv.equinox
        import tconv.flax
        import tconv.haiku

        for module in (ours, tconv.flax, tconv.equinox, tconv.haiku):
            assert doctest.testmod(module, optionflags=FLAGS).failed == 0
            assert all(inspect.getdoc(getattr(module, name)) for name in module.__all__)


@pytest.mark.parametrize("module, brings", [("tconv", set()), ("tconv.jax", {"jax"}), ("tconv.flax", {"jax", "flax"}),
                                            ("tconv.equinox", {"jax", "equinox"}), ("tconv.haiku", {"jax", "haiku"})])  # fmt: skip
def test_a_framework_brings_no_other(module, brings):
    """But for what it imports by itself where it is installed."""

    def brought(*modules):
        names = "{'tensorflow', 'keras', 'torch', 'jax', 'flax', 'equinox', 'haiku'}"
        code = f"import sys, {', '.join(modules)}\nprint(*{names} & {{*sys.modules}})"
        return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())

    assert brought(module) == (brought(*sorted(brings)) if brings else set()) >= brings
