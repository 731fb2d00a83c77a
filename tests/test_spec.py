# SPDX-License-Identifier: Apache-2.0
"""The geometry, held against brute force over all (input, tap) pairs, and its one-line text."""

import copy
import pickle
import time
from itertools import islice

import definition
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tconv._spec import ArgumentError, Axis, Spec, clip, integers, pairs


@st.composite
def axes(draw, most=7):
    size, kernel = draw(st.integers(1, most)), draw(st.integers(1, 6))
    stride, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    lo = draw(st.integers(-5, 20))
    full = (size - 1) * stride + dilation * (kernel - 1) + 1
    return Axis(size, kernel, stride, dilation, lo, draw(st.integers(-5 - max(lo, 0), full - lo - 1)))


@st.composite
def specs(draw):
    groups = draw(st.integers(1, 3))
    return Spec(tuple(draw(st.lists(axes(4), min_size=1, max_size=3))), draw(st.integers(0, 3)), groups * draw(st.integers(1, 3)),
                groups * draw(st.integers(1, 3)), groups)  # fmt: skip


def meetings(axis):
    """Every (input, tap, output) of one axis, by the definition."""
    hits = definition.hits((axis.size,), (axis.kernel,), (axis.stride,), (axis.dilation,), ((axis.lo, axis.hi),))
    return [(i, t, o) for (i,), (t,), (o,) in hits]


@given(axes())
def test_sizes_follow_the_definition(axis):
    assert axis.extent == max(t * axis.dilation for t in range(axis.kernel)) + 1
    last = max(i * axis.stride + t * axis.dilation for i in range(axis.size) for t in range(axis.kernel))
    assert axis.full == last + 1
    assert axis.output == axis.full - axis.lo - axis.hi >= 1


@given(axes())
def test_which_inputs_reach_an_output(axis):
    found = meetings(axis)
    for output in range(axis.output):
        assert list(axis.inputs_of(output)) == sorted(i for i, _, o in found if o == output), output
    assert not any(axis.inputs_of(output) for output in (*range(-9, 0), *range(axis.output, axis.output + 9)))


@given(axes())
def test_which_outputs_an_input_reaches(axis):
    found = meetings(axis)
    for index in range(axis.size):
        assert list(axis.outputs_of(index)) == [o for i, _, o in found if i == index], index
    assert not any(axis.outputs_of(index) for index in (*range(-9, 0), *range(axis.size, axis.size + 9)))


@given(axes(), st.data())
def test_the_inputs_that_a_block_of_outputs_needs(axis, data):
    start = data.draw(st.integers(0, axis.output - 1))
    block = range(start, data.draw(st.integers(start, axis.output)))
    reached = {i for i, _, o in meetings(axis) if o in block}
    needed = axis.inputs_for(block)
    assert reached <= set(needed)
    assert needed.start >= 0 and needed.stop <= max(axis.size, needed.start)
    if axis.dilation == 1 and axis.kernel >= axis.stride:  # without gaps between stamps the range is exact
        assert set(needed) == reached


@given(axes())
def test_phases_part_the_outputs_and_list_every_tap_once(axis):
    phases = list(axis.phases())
    assert [p.index for p in phases] == list(range(axis.stride))
    assert sorted(o for p in phases for o in p.outputs) == list(range(axis.output))
    found = set()
    for phase in phases:
        for output in phase.outputs:
            position, remainder = divmod(output + axis.lo - phase.index, axis.stride)
            assert remainder == 0
            found |= {(position - shift, tap, output) for tap, shift in phase.taps if 0 <= position - shift < axis.size}
    assert found == set(meetings(axis))


def test_a_huge_problem_is_counted_at_once():
    started = time.monotonic()
    (axis,) = Spec.parse("i5 k3 s10000000").axes
    assert [phase.taps for phase in islice(axis.phases(), 4)] == [((0, 0),), ((1, 0),), ((2, 0),), ()]
    assert axis.phase(9_999_999).outputs == range(9_999_999, axis.output, 10**7)
    assert Axis(10**9, 3, 2, lo=1, hi=1).pairs() == 3 * 10**9 - 2
    assert Axis(3, 10**9, 2, lo=1).pairs() == 3 * 10**9 - 1
    assert time.monotonic() - started < 1


@given(axes())
def test_useful_multiply_adds_of_an_axis(axis):
    assert axis.pairs() == len(meetings(axis))


@given(specs())
def test_useful_multiply_adds_of_a_problem(spec):
    hits = sum(1 for _ in definition.hits(spec.input_size, spec.kernel_size, spec.stride, spec.dilation, spec.crop))
    assert spec.macs == spec.batch * spec.in_channels * spec.out_channels // spec.groups * hits


@given(st.integers(-9, 20), st.integers(-9, 20), st.integers(1, 5), st.integers(0, 12))
def test_clip_keeps_what_lies_inside(start, stop, step, size):
    clipped = clip(range(start, stop, step), size)
    assert list(clipped) == [v for v in range(start, stop, step) if 0 <= v < size]
    assert clipped.start >= 0


@given(specs())
def test_the_line_parses_back(spec):
    assert Spec.parse(str(spec)) == spec
    assert str(Spec.parse(str(spec))) == str(spec)


@pytest.mark.parametrize(("spec", "line"), [
    (Spec.build(4, 3), "c1:1 i4 k3"),
    (Spec.build((8, 8), 4, stride=2, padding=1, batch=16, in_channels=256, out_channels=128), "n16 c256:128 i8x8 k4 s2 p1"),
    (Spec.build((8, 9), (4, 3), stride=(2, 1), padding=[(1, 0), 2]), "c1:1 i8x9 k4x3 s2x1 p1:0x2"),
    (Spec.build((8, 8), 4, stride=2, padding=1, output_padding=1, in_channels=4, out_channels=8, groups=4), "c4:8 g4 i8x8 k4 s2 p1:0"),
    (Spec.build((2, 3, 4), 2, dilation=3, padding=-1, batch=0), "n0 c1:1 i2x3x4 k2 d3 p-1"),
])  # fmt: skip
def test_the_line_of_known_problems(spec, line):
    assert str(spec) == line
    assert Spec.parse(line) == spec
    assert Spec.parse(" ".join(reversed(line.split()))) == spec


@pytest.mark.parametrize(("line", "words"), [
    ("i8", "lacks kernel_size (k)"), ("k3", "lacks input_size (i)"), ("", "lacks input_size (i)"),
    ("i8 k3 i8", "input_size (i) twice"), ("i8 k3 q4", "the word 'q4'"), ("i8 k", "the word 'k'"), ("i8k3", "the word 'i8k3'"),
    ("i8 k3x3", "2 axes where input_size (i) has 1"), ("i8:1 k3", "no pairs"), ("i8 k3 n1x2", "one number"), ("i8 k3 c3", "in:out"),
    ("i8 k3 s0", "stride=0: must be at least 1"), ("i0 k3", "input_size=0: must be at least 1"), ("i8 k-3", "kernel_size=-3"),
    ("i8 k3 g2", "groups=2: must divide in_channels=1"), ("i8 k3 p5", "crops the full output of 10 to 0"),
    ("i8 k3 c0:1", "in_channels=0"), ("i1x1x1x1 k3", "1, 2 or 3 spatial axes"), ("i" + "9" * 5000 + " k1", "problem="),
])  # fmt: skip
def test_a_bad_line_says_which_word(line, words):
    with pytest.raises(ArgumentError) as caught:
        Spec.parse(line)
    assert words in str(caught.value)


@given(st.text(st.sampled_from("ncgiksdp0123456789x:- "), max_size=30))
def test_any_text_parses_or_is_refused(text):
    try:
        spec = Spec.parse(text)
    except ArgumentError:
        return
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(("arguments", "crop"), [
    ({"padding": 1}, ((1, 1), (1, 1))), ({"padding": (1, 2)}, ((1, 1), (2, 2))), ({"padding": [(1, 2), (3, -4)]}, ((1, 2), (3, -4))),
    ({"padding": [(1, 2)]}, ((1, 2), (1, 2))), ({"padding": [1, (0, 2)]}, ((1, 1), (0, 2))), ({"padding": "valid"}, ((0, 0), (0, 0))),
    ({"padding": "same"}, ((1, 2), (1, 2))), ({"padding": 1, "output_padding": (1, 0)}, ((1, 0), (1, 1))),
    ({"padding": "valid", "output_padding": 1}, ((0, -1), (0, -1))), ({"padding": 1, "output_size": (13, 14)}, ((1, 1), (1, 0))),
    ({"padding": 1, "output_size": (14, 13)}, ((1, 0), (1, 1))), ({"padding": "same", "output_size": (12, 11)}, ((1, 2), (2, 2))),
])  # fmt: skip
def test_the_words_for_the_crop(arguments, crop):
    """Worked by hand: on both axes 6 inputs, stride 2 and a reach of 5 (on the second by dilation), so a full output of 15."""
    assert Spec.build((6, 6), (5, 3), stride=2, dilation=(1, 2), **arguments).crop == crop


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_same_gives_input_times_stride_with_the_smaller_half_first(size, kernel, stride, dilation):
    (axis,) = Spec.build(size, kernel, stride=stride, dilation=dilation, padding="same").axes
    assert axis.output == size * stride
    assert axis.lo == max(axis.extent - stride, 0) // 2


@pytest.mark.parametrize(("arguments", "argument", "rule"), [
    ({"stride": 0}, "stride", "at least 1"), ({"stride": -1}, "stride", "at least 1"), ({"dilation": 0}, "dilation", "at least 1"),
    ({"stride": 1.5}, "stride", "must be an integer"), ({"stride": "2"}, "stride", "must be an integer"),
    ({"stride": (1, 2, 3)}, "stride", "one int per spatial axis"), ({"stride": None}, "stride", "must be an integer"),
    ({"output_padding": -1}, "output_padding", "below max(stride, dilation) = 2"),
    ({"stride": 3, "output_padding": 3}, "output_padding", "below max(stride, dilation) = 3"),
    ({"output_padding": (0, 2)}, "output_padding", "below max(stride, dilation) = 2"),
    ({"padding": "sane"}, "padding", '"valid", "same"'), ({"padding": [1, 2, 3]}, "padding", "pair per spatial axis"),
    ({"padding": [(1, 2, 3), 1]}, "padding", "pairs"), ({"padding": 9}, "padding", "at least 1 must remain"),
    ({"padding": "same", "output_padding": 1}, "output_padding", "same"), ({"padding": "same", "output_size": 99}, "output_size", "lie in"),
    ({"output_size": 99}, "output_size", "must lie in ["), ({"output_size": 7}, "output_size", "must lie in ["),
    ({"output_size": 8, "output_padding": 1}, "output_size", "together with output_padding"),
    ({"batch": -1}, "batch", "at least 0"), ({"in_channels": 0}, "in_channels", "at least 1"), ({"groups": 0}, "groups", "at least 1"),
    ({"groups": 2}, "groups", "must divide in_channels=3"), ({"groups": 3}, "groups", "must divide out_channels=4"),
    ({"stride": 2**62}, "output size", "beyond 64 bits"), ({"stride": 2**70}, "output size", "beyond 64 bits"),
    ({"stride": 2**70, "padding": [(0, 3 * 2**70)]}, "full output size", "64 bits"), ({"stride": 10**10}, "output shape", "64 bits"),
    ({"padding": -(10**10)}, "output shape", "64 bits"), ({"in_channels": 2**62}, "input shape", "64 bits"),
])  # fmt: skip
def test_a_bad_argument_is_named(arguments, argument, rule):
    words = {"dilation": 2, "in_channels": 3, "out_channels": 4} | arguments
    if "in_channels" in arguments or "groups" not in arguments:
        words["groups"] = 1
    with pytest.raises(ArgumentError) as caught:
        Spec.build((4, 4), 3, **words)
    assert caught.value.argument == argument
    assert rule in caught.value.rule
    assert str(caught.value).startswith(f"{argument}=")


def test_an_error_holds_its_parts():
    with pytest.raises(ArgumentError) as caught:
        Spec.build((8, 8), 4, in_channels=6, out_channels=4, groups=4)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.argument, caught.value.value, caught.value.rule) == ("groups", 4, "must divide in_channels=6")
    assert caught.value.problem == "c6:4 g4 i8x8 k4"
    assert str(caught.value) == "groups=4: must divide in_channels=6 [problem: c6:4 g4 i8x8 k4]"


def test_an_error_survives_pickle_and_copy():
    for error in (ArgumentError("stride", 0, "must be at least 1", Spec.build(4, 3)), ArgumentError("w", (1, 2), "is odd")):
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(other) is ArgumentError
            assert (str(other), vars(other)) == (str(error), vars(error))


@pytest.mark.parametrize(("make", "argument"), [
    (lambda: Spec.parse(None), "problem"), (lambda: Spec.parse(["i8", "k4"]), "problem"), (lambda: Spec((Axis(5, 3, 0),)), "stride"),
    (lambda: Spec((Axis(5.5, 3),)), "input_size"), (lambda: Spec((Axis(5, 3, lo=0.5),)), "padding"),
    (lambda: Spec((Axis(5, 3),), 1.0), "batch"), (lambda: Spec((Axis(5, 3),), groups="1"), "groups"),
    (lambda: Spec.build({5, 6}, 3), "input_size"), (lambda: Spec.build((5, 6), {3: 4}), "kernel_size"),
])  # fmt: skip
def test_what_is_no_integer_or_text_is_refused(make, argument):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.argument == argument


def test_numbers_of_other_types_are_integers():
    import numpy as np

    assert integers("stride", np.int32(2), 2) == (2, 2)
    assert integers("stride", np.array([2, 3]), 2) == (2, 3)
    assert integers("stride", np.array(2), 2) == (2, 2)
    assert pairs("padding", np.array(1), 2) == [(1, 1), (1, 1)]
    assert pairs("padding", np.array([[1, 2], [3, 4]]), 2) == [(1, 2), (3, 4)]
