# SPDX-License-Identifier: Apache-2.0
"""A layer as SciPy's and PyLops' linear map and as a sparse matrix, against the definition and the dot test."""

import definition
import numpy as np
import pylops
import pylops.utils
import pytest
import scipy.sparse.linalg

import tconv


def operator(words, shape_last=False):
    rng = np.random.default_rng(0)
    spec = tconv.Spec.parse(words)
    w = rng.standard_normal(spec.weight_shape)
    op = tconv.Operator(w, rng.standard_normal(spec.out_channels), stride=spec.stride, padding=spec.crop, dilation=spec.dilation,
                        groups=spec.groups, activation="relu", layout="channels_last" if shape_last else "channels_first")  # fmt: skip
    shape = (spec.batch, *spec.input_size, spec.in_channels) if shape_last else spec.input_shape
    return spec, w, op, shape


LINES = ["n2 c3:4 i7 k4 s2 p1", "c4:6 g2 i5x4 k3x2 s2x1 d1x2 p1", "n2 c2:2 i3x4x2 k2 s2", "c1:1 i6 k3 s5 p-1:2", "c3:3 g3 i4x4 k3 s1 p1"]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("line", LINES)
def test_matrix_and_operator_are_the_definition(line, last):
    spec, w, op, shape = operator(line, last)
    x = np.random.default_rng(1).standard_normal(shape)
    first = np.moveaxis(x, -1, 1) if last else x
    expected = definition.conv_transpose(first, w, spec.stride, spec.dilation, spec.crop, spec.groups)
    expected = (np.moveaxis(expected, 1, -1) if last else expected).ravel()
    matrix, linear = op.as_matrix(shape), op.as_linear_operator(shape)
    assert matrix.shape == linear.shape == (expected.size, x.size)
    assert np.allclose(matrix @ x.ravel(), expected, atol=1e-12) and np.allclose(linear @ x.ravel(), expected, atol=1e-12)
    y = np.random.default_rng(2).standard_normal(expected.size)
    assert np.allclose(matrix.T @ y, linear.rmatvec(y), atol=1e-12)


@pytest.mark.parametrize("line", LINES)
def test_pylops_takes_it_and_its_dot_test_passes(line):
    _, _, op, shape = operator(line)
    linear = pylops.aslinearoperator(op.as_linear_operator(shape))
    assert pylops.utils.dottest(linear, *linear.shape, rtol=1e-12)


def test_scipy_solves_with_it():
    rng = np.random.default_rng(3)
    op = tconv.Operator(rng.standard_normal((3, 5, 4, 4)), stride=2)
    x = rng.standard_normal((2, 3, 6, 5))
    found = scipy.sparse.linalg.lsqr(op.as_linear_operator(x.shape), op(x).ravel(), atol=1e-14, btol=1e-14)[0]
    assert np.allclose(found, x.ravel(), atol=1e-9)


@pytest.mark.parametrize("line", LINES)
def test_singular_values_are_those_of_the_matrix(line):
    _, _, op, shape = operator(line)
    one = (1, *shape[1:])
    exact = np.linalg.svd(op.as_matrix(one).toarray(), compute_uv=False)
    found = op.singular_values(one)
    assert np.allclose(found[: len(exact)], exact[: len(found)], atol=1e-10)
    posed = op.posedness(shape)
    rank = np.linalg.matrix_rank(op.as_matrix(one).toarray())
    assert posed.null_space == int(np.prod(one)) - rank
    assert posed.condition == pytest.approx(exact[0] / exact[rank - 1], rel=1e-8)


def test_an_estimate_bounds_an_uncropped_layer_and_says_that_it_is_one():
    """Without a crop T is a part of a circular map's columns: no singular value lies beyond that map's."""
    rng = np.random.default_rng(4)
    op = tconv.Operator(rng.standard_normal((2, 2, 3, 3)), stride=2)
    large = op.posedness((1, 2, 40, 40))
    exact = np.linalg.svd(op.as_matrix((1, 2, 12, 12)).toarray(), compute_uv=False)
    assert not large.exact and large.unique is None and "presumably" in str(large)
    assert large.smallest <= exact[-1] * 1.01 and large.largest >= exact[0] * 0.99


def test_a_matrix_too_large_is_refused():
    with pytest.raises(tconv.ArgumentError, match="products, too many for a matrix") as error:
        tconv.Operator(np.ones((64, 64, 5, 5))).as_matrix((1, 64, 512, 512))
    assert error.value.argument == "shape"
