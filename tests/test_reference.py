# SPDX-License-Identifier: Apache-2.0
"""The judges judged: the definition by hand, its assertions on wrong values, and the shipped reference against the definition."""

import dataclasses
from functools import partial

import definition
import ml_dtypes
import numpy as np
import pytest
from definition import OPERATORS, Judge, Problem, random_problem

from tconv import reference
from tconv._spec import ArgumentError

DTYPES = ("float64", "float32", "float16", ml_dtypes.bfloat16)
SEED_X = np.array([[0.0, 1.0], [2.0, 3.0]])
SEED_KERNEL = np.array([[4.0, 1.0], [2.0, 3.0]])
SEED_Y = np.array([[0.0, 4.0, 1.0], [8.0, 16.0, 6.0], [4.0, 12.0, 9.0]])


# ------------------------------------------------------------------------------------------------------- the definition, by hand


def test_the_definition_gives_the_textbook_result():
    y = definition.conv_transpose(SEED_X[None, None], SEED_KERNEL[None, None], (1, 1), (1, 1), ((0, 0), (0, 0)), 1)
    np.testing.assert_array_equal(y[0, 0], SEED_Y)


def test_the_definition_by_hand_with_every_argument():
    """Stride 2, dilation 3, crop (1, -2), two groups with two outputs each, bias: 1 input channel and 2 taps a group."""
    x, w = np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.array([[[1.0, 10.0], [5.0, 7.0]], [[2.0, 3.0], [0.5, 0.25]]])
    full = np.array([[1, 0, 2, 10, 0, 20], [5, 0, 10, 7, 0, 14], [6, 0, 8, 9, 0, 12], [1.5, 0, 2, 0.75, 0, 1]])
    bias = np.array([100.0, 200.0, 300.0, 400.0])
    expected = np.concatenate([full[:, 1:], np.zeros((4, 2))], axis=1) + bias[:, None]
    np.testing.assert_array_equal(definition.conv_transpose(x, w, (2,), (3,), ((1, -2),), 2, bias)[0], expected)


def test_the_definition_of_the_gradients_by_hand():
    x, grad, w = np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0, 100.0, 1000.0]]]), np.array([[[4.0, 1.0]]])
    np.testing.assert_array_equal(definition.grad_input(grad, w, (2,), (2,), (1,), ((0, 0),), 1), [[[14.0, 1400.0]]])
    np.testing.assert_array_equal(definition.grad_weight(x, grad, (2,), (2,), (1,), ((0, 0),), 1), [[[201.0, 2010.0]]])
    np.testing.assert_array_equal(definition.grad_input(grad[..., 1:], w, (2,), (2,), (1,), ((1, 0),), 1), [[[10.0, 1400.0]]])


@pytest.mark.parametrize("seed", range(40))
def test_the_three_definitions_are_one_bilinear_form(seed):
    """sum(y * grad) is linear in x and in w: the gradients give it back. Tolerance: rounding of float64 sums."""
    judge = Judge(random_problem(seed, dtypes=("float64",)))
    p = dataclasses.replace(judge.problem, biased=False)
    forward = definition.conv_transpose(judge.x, judge.w, *p.geometry)
    terms = sum(p.terms.values()) + p.batch * p.cout * int(np.prod(p.output))
    slack = float(np.sum(definition.conv_transpose(*map(np.abs, (judge.x, judge.w)), *p.geometry) * np.abs(judge.grad)))
    check = partial(definition.assert_adjoint, judge.grad, forward, terms=terms, dtype="float64", problem=p, slack=slack)
    check(judge.expected("grad_input")[0], judge.x)
    check(judge.expected("grad_weight")[0], judge.w)


# ----------------------------------------------------------------------------------------------------- the assertions do assert


def perturbations(exact, judge, operator):
    """Wrong results that a judge must catch: one value off by 100 tolerances, a NaN, shifted by one, transposed, zero."""
    dtype, (expected, magnitude) = judge.problem.dtype, judge.expected(operator)
    at = np.unravel_index(int(np.argmax(magnitude)), exact.shape)
    allowed = definition.tolerance(magnitude, judge.problem.terms[operator], dtype, expected)[at]
    for wrong in (exact[at].astype(float) + 100 * allowed, exact[at].astype(float) - 100 * allowed, np.nan, np.inf):
        changed = exact.copy()
        changed[at] = wrong
        yield changed
    yield np.roll(exact, 1, axis=-1)
    yield np.roll(exact, 1, axis=1)
    yield np.zeros_like(exact)
    yield exact[..., :-1]
    yield exact.astype("float32" if dtype == "float64" else "float64")
    yield exact.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_wrong_result_fails(operator, dtype):
    judge = Judge(Problem((4, 5), (3, 4), (2, 1), (1, 2), ((1, 0), (-1, 2)), 2, 4, 6, 2, dtype, biased=True, seed=3))
    exact = judge.expected(operator)[0].astype(dtype)
    judge.check(operator, exact)
    for wrong in perturbations(exact, judge, operator):
        with pytest.raises(AssertionError):
            judge.check(operator, wrong)


def test_the_tolerance_is_near_the_rounding_that_happens():
    """Not so wide that errors hide in it: 577 float32 terms err by 1/500 of it at least, and it is 2e-5 of their sum at most."""
    judge = Judge(Problem((6, 6), (3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)), 1, 64, 8, seed=5))
    expected, magnitude = judge.expected("forward")
    error = np.abs(judge.run("forward", reference) - expected)
    allowed = definition.tolerance(magnitude, judge.problem.terms["forward"], "float32", expected)
    assert 0.002 < np.max(error / allowed) < 1
    assert np.max(allowed) < 2e-5 * np.max(magnitude)


def test_a_failure_prints_the_problem_and_its_seed():
    judge = Judge(Problem((4,), (3,), (2,), (1,), ((1, 0),), seed=17))
    with pytest.raises(AssertionError, match=r"n1 c1:1 g1 i4 k3 s2 d1 p1:0 \| float32 channels_first batched=True bias=False seed=17"):
        judge.check("forward", judge.expected("forward")[0].astype("float32") + 1)


def test_different_bits_fail():
    definition.assert_same_bits(np.array([0.0, np.nan]), np.array([0.0, np.nan]))
    for wrong in (np.array([-0.0, np.nan]), np.array([0.0, -np.nan]), np.array([0.0]), np.array([0, np.nan], "float32")):
        with pytest.raises(AssertionError):
            definition.assert_same_bits(wrong, np.array([0.0, np.nan]))
    with pytest.raises(AssertionError, match="1 of 3 values differ in bits, first at 1"):
        definition.assert_same_bits(np.array([1.0, np.nextafter(2, 3), 3.0]), np.array([1.0, 2.0, 3.0]))


def test_a_wrong_transpose_fails():
    with pytest.raises(AssertionError, match="allowed difference"):
        definition.assert_adjoint([1.0], [2.0], [1.0], [2.0 + 1e-12], 1, "float64", slack=4.0)
    definition.assert_adjoint([1.0], [2.0], [1.0], [2.0], 1, "float64", slack=4.0)


# ------------------------------------------------------------------------------------------------ the reference, by the definition


@pytest.mark.parametrize("block", range(10))
def test_the_reference_against_the_definition(block):
    for seed in range(block * 100, (block + 1) * 100):
        judge = Judge(random_problem(seed, dtypes=DTYPES, budget=600))
        for operator in OPERATORS:
            judge.check(operator, judge.run(operator, reference), "reference")


def test_the_textbook():
    np.testing.assert_array_equal(reference.conv_transpose(SEED_X[None], SEED_KERNEL[None, None])[0], SEED_Y)
    x = np.random.default_rng(1).standard_normal((1, 4, 4))
    w = np.random.default_rng(2).standard_normal((1, 1, 3, 3))
    full = reference.conv_transpose(x, w, stride=2, padding="valid")
    assert full.shape == (1, 9, 9)
    np.testing.assert_array_equal(reference.conv_transpose(x, w, stride=2, padding="same"), full[:, :8, :8])


def test_an_empty_batch():
    x, w = np.zeros((0, 4, 5)), np.ones((4, 3, 2))
    assert reference.conv_transpose(x, w).shape == (0, 3, 6)
    assert reference.conv_transpose_grad_input(np.zeros((0, 3, 6)), w).shape == (0, 4, 5)
    np.testing.assert_array_equal(reference.conv_transpose_grad_weight(x, np.zeros((0, 3, 6)), 2), np.zeros((4, 3, 2)))


def test_integers_are_summed_in_float64():
    y = reference.conv_transpose(SEED_X.astype(int)[None], SEED_KERNEL.astype(int)[None, None])
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y[0], SEED_Y)


@pytest.mark.parametrize(("arguments", "argument", "rule"), [
    (("abc", np.ones((1, 1, 2))), "x", "must be float64"), ((np.ones((1, 3)) * 1j, np.ones((1, 1, 2)) * 1j), "x", "must be float64"),
    ((np.ones((1, 3)), np.ones((1, 1, 2), object)), "w", "must be float64"),
    ((np.ones((1, 3)), np.ones((1, 1, 2), "float32")), "w", "dtype of x, float64"),
    ((np.ones((1, 3), np.longdouble), np.ones((1, 1, 2), np.longdouble)), "x", "must be float64"),
    ((np.ones((1, 3)), np.ones((1, 1, 2)), np.ones(2)), "bias", "must have the shape (1,)"),
    ((np.ones((1, 3)), np.ones((1, 1, 2)), np.ones((1, 1))), "bias", "must have the shape (1,)"),
    ((np.ones((1, 3)), np.ones((1, 1, 2)), [1j]), "bias", "must be float64"),
    ((np.ones((2, 3)), np.ones((1, 1, 2))), "x", "has 2 channels"),
])  # fmt: skip
def test_the_reference_refuses(arguments, argument, rule):
    with pytest.raises(ArgumentError) as caught:
        reference.conv_transpose(*arguments)
    assert caught.value.argument == argument
    assert rule in caught.value.rule


def test_arguments_are_left_as_they_were():
    judge = Judge(Problem((4, 5), (3, 2), (2, 1), (1, 2), ((1, 0), (-1, 2)), 2, 4, 6, 2, "float64", biased=True, seed=4))
    before = [a.copy() for a in (judge.x, judge.w, judge.grad, judge.bias)]
    for array in (judge.x, judge.w, judge.grad, judge.bias):
        array.setflags(write=False)
    for operator in OPERATORS:
        judge.run(operator, reference)
    for array, copy in zip((judge.x, judge.w, judge.grad, judge.bias), before, strict=True):
        np.testing.assert_array_equal(array, copy)
