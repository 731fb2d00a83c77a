# SPDX-License-Identifier: Apache-2.0
"""The benchmark without its peers: geometry, judge, schedule, roofline, results that resume, tables, workers that crash."""

import doctest
import importlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import tconv
from tconv import Spec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is part of the checkout, not of the package

from bench import guard, judge, layers, measure, pool, regions, rows, schedule, store, table, words  # noqa: E402
from bench.__main__ import main  # noqa: E402

EVERY = layers.read()
BY_NAME = {layer.name: layer for layer in EVERY}


@pytest.mark.parametrize("name", ["layers", "regions", "rows", "run"])
def test_the_examples_in_the_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(f"bench.{name}"))
    assert tried and not failed


# ---------------------------------------------------------------- layers and words


def test_the_list_says_what_its_rows_say():
    assert len(EVERY) == 63 and len(BY_NAME) == 63
    assert str(BY_NAME["fsrcnn_x4"].spec) == "c56:1 i256x256 k9 s4 p4:1"
    assert str(BY_NAME["htdemucs_freq_96"].spec) == "c96:48 i128x336 k8x1 s4x1"
    layer = BY_NAME["unet2d_1024_512"]
    assert layer.spec.macs == 32 * 32 * 4 * 1024 * 512
    assert layer.bytes == 4 * (1024 * 32 * 32 + 1024 * 512 * 4 + 512 * 64 * 64)


def test_the_quick_layers_exist_and_cover_every_class_but_the_tiny():
    quick = layers.select(layers.QUICK, EVERY)
    assert len(quick) == 12
    assert {layer.kind for layer in quick} == {layer.kind for layer in EVERY} - {"tiny"}


def test_a_pattern_is_a_glob_or_a_problem():
    assert [layer.name for layer in layers.select(["lapsrn*", "lapsrn_img", "c3:8 i5 k4 s2"], EVERY)] == [
        "lapsrn_feat",
        "lapsrn_img",
        "c3:8 i5 k4 s2",
    ]
    with pytest.raises(SystemExit, match="no layer is called 'nonsense'"):
        layers.select(["nonsense"], EVERY)


@pytest.mark.parametrize("layer", EVERY, ids=lambda layer: layer.name)
def test_the_words_of_the_peers_mean_the_crop(layer):
    axes = layer.spec.axes
    padding, extra = words.torch(axes)
    assert [(p, p - e) for p, e in zip(padding, extra, strict=True)] == list(layer.spec.crop)
    begin, end, more = words.onnx(axes)
    assert [(b, e - m) for b, e, m in zip(begin, end, more, strict=True)] == list(layer.spec.crop)
    asked = words.tensorflow(axes, explicit=layer.spec.rank < 3)
    for number, axis in enumerate(axes):
        if asked.padding == "SAME":
            assert axis.lo == max(axis.full - axis.output, 0) // 2 and asked.cut is None
        elif asked.padding != "VALID":
            assert asked.padding[number + 1] == [axis.lo, axis.hi]
        elif asked.cut is None:
            assert axis.lo == 0 and asked.size[number] == axis.output
        else:
            assert asked.size[number] == axis.full and asked.cut[number] == slice(axis.lo, axis.lo + axis.output)


def test_words_that_do_not_exist():
    before = Spec.build(5, 4, stride=2, padding=((-1, 0),)).axes
    assert words.torch(before) is None and words.torch(Spec.build(5, 4, stride=2, padding=((0, 2),)).axes) is None
    for refused in (lambda: words.onnx(before), lambda: words.tensorflow(before, True), lambda: words.slices(before)):
        with pytest.raises(words.Cannot, match="zeros"):
            refused()


# ---------------------------------------------------------------- the judge


@pytest.mark.parametrize("problem", ["n2 c3:4 i5 k4 s2 p1:0", "c4:6 g2 i5x4 k3x2 s2x3 d2x1 p1:-2x0", "n2 c2:2 g2 i3x4x2 k3 s1x2x3 p1"])
def test_the_judge_agrees_with_the_reference(problem):
    layer = layers.Layer(problem, Spec.parse(problem))
    x, w = layer.arrays()
    y = tconv.reference.conv_transpose(x.astype(float), w.astype(float), stride=layer.spec.stride, padding=layer.spec.crop,
                                       dilation=layer.spec.dilation, groups=layer.spec.groups)  # fmt: skip
    positions = np.arange(y.size)
    assert judge.error(y.reshape(-1), judge.expected(layer.spec, x, w, positions)).max < 1e-14


def test_an_error_is_relative_to_the_largest_output_and_sees_nan():
    true = np.array([1.0, -4.0, 2.0, 0.0])
    assert judge.error(true, true) == (0, 0)
    assert judge.error(np.add(true, [0, 0, 0, 0.4]), true) == pytest.approx((0.1, 0.05))
    assert judge.error(true * [1, np.nan, 1, 1], true).max == np.inf


def test_a_sample_holds_both_ends_and_stays_inside():
    positions = judge.sample(Spec.parse("c1:3 i7 k3 s2"), 100)
    assert positions[0] == 0 and positions[-1] == 3 * 15 - 1 and len(set(positions)) == len(positions)


# ---------------------------------------------------------------- the schedule


def test_turns_fill_the_share_of_a_round():
    fast = schedule.turns(estimate=1e-6, budget=1.0, rounds=5)
    assert fast.rounds == frozenset(range(5)) and fast.inner == 200 and fast.warm == 1000 and fast.repeat == 1000
    middle = schedule.turns(estimate=0.01, budget=1.0, rounds=5)
    assert (middle.inner, middle.repeat, middle.warm) == (1, 20, 1)


def test_slow_peers_come_in_fewer_rounds():
    assert schedule.turns(estimate=0.3, budget=1.0, rounds=9) == schedule.Turns(frozenset({0, 3, 6}), 0, 1, 1)
    assert schedule.turns(estimate=0.3, budget=1.0, rounds=2).rounds == {0, 1}
    assert schedule.turns(estimate=5.0, budget=1.0, rounds=9).rounds == {0}


def test_quartiles():
    assert schedule.times([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0, 4.0, 1.0, 5)
    assert schedule.times([2.0]) == (2.0, 2.0, 2.0, 2.0, 1)


# ---------------------------------------------------------------- results


def results(**changed):
    """A file of results with two layers: one that arithmetic limits, one that memory does."""
    cell = {"q1": 0, "q3": 0, "min": 0, "samples": 9}
    good, bad = {"error_max": 1e-6, "error_rms": 1e-7, **cell}, {"error_max": 9e-6, "error_rms": 9e-7, **cell}
    unit = {"threads": 2, "load": 0.5, "date": "2026-01-01"}
    return {
        "format": 1, "commit": "abc", "started": "2026-01-01T00:00:00", "settings": {"rounds": 7, "seconds_per_layer": 10.0},
        "machine": {"cpu": "C", "cores": 2, "memory_gib": 8, "system": "S", "python": "3"},
        "versions": {"tconv_op": "1", "torch": "2", "jax": "3"}, "notes": {"tconv_op": "a", "torch": "b", "jax": "c"},
        "absent": {"litert": "ModuleNotFoundError"},
        "peaks": [{"threads": 2, "gflops": 100.0, "gbytes": 10.0}, {"threads": 2, "gflops": 200.0, "gbytes": 5.0}],
        "units": [
            {"layer": "one", "problem": "c2:2 i4 k4 s2", "kind": "overlapping", "macs": 10**8, "bytes": 10**6, **unit,
             "cells": {"tconv_op": {"median": 0.002, **good}, "torch": {"median": 0.004, **bad}, "jax": {"median": 0.016, **good}}},
            {"layer": "two", "problem": "c2:2 i8 k2 s2", "kind": "non-overlapping", "macs": 10**3, "bytes": 10**7, **unit,
             "cells": {"tconv_op": {"median": 0.004, **bad}, "torch": {"median": 0.002, **good}, "jax": {"reason": "no such layer"}}},
        ], **changed,
    }  # fmt: skip


def test_roofline_ratios_and_means():
    one, two = rows.rows(results(), 2)
    assert (one.roofline, one.bound) == (0.001, "multiply-adds")
    assert (two.roofline, two.bound) == (0.001, "bytes")
    assert (one.best(), two.best()) == ("torch", "torch")
    assert (one.share("tconv_op"), two.share("tconv_op")) == (0.5, 0.25)
    assert (one.ratio("jax", "tconv_op"), two.ratio("jax", "tconv_op")) == (8.0, None)
    assert rows.geometric_mean(row.ratio("torch", "tconv_op") for row in (one, two)) == pytest.approx(1.0)
    with pytest.raises(SystemExit, match="nothing with 3 threads"):
        rows.rows(results(), 3)


def test_the_tables_hold_the_numbers():
    data = results()
    assert "| all | 2 | 1.00x | 0.50x two | 1.00x | 8.00x | 35% |" in table.render(data, "summary")
    one, two = table.render(data, "layers").splitlines()[-2:]
    assert one == "| one | `c2:2 i4 k4 s2` | 2.00 | 1.00 m | 50% | **4.00 (2.00x)** | 16.00 (8.00x) |"
    assert two == "| two | `c2:2 i8 k2 s2` | 4.00 | 1.00 b | 25% | **2.00 (0.50x)** | - |"
    assert [line.split(" | ")[-1] for line in table.render(data, "errors").splitlines()[-2:]] == ["no |", "yes |"]
    assert table.render(data, "reasons").splitlines()[-2:] == ["| jax | no such layer | two |", "| litert | ModuleNotFoundError | all |"]
    assert "2 threads: 200 GFLOP/s, 10.0 GB/s written" in table.render(data, "machine")


def test_a_document_is_renewed_and_checked(tmp_path, capsys):
    result, document = tmp_path / "r.json", tmp_path / "d.md"
    result.write_text(json.dumps(results()))
    document.write_text(
        "before\n<!-- bench summary threads=2 -->\nold\n<!-- /bench -->\nbetween\n<!-- bench reasons -->\n<!-- /bench -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="not current"):
        main(["table", str(result), "--check", str(document)])
    assert main(["table", str(result), "--write", str(document)]) == 0
    text = document.read_text()
    assert "old" not in text and "| all | 2 |" in text and "no such layer" in text
    assert (
        text.startswith("before\n<!-- bench summary threads=2 -->\n")
        and "\nbetween\n" in text
        and text.endswith("<!-- /bench -->\nafter\n")
    )
    assert main(["table", str(result), "--check", str(document)]) == 0
    assert main(["table", str(result)]) == 0 and capsys.readouterr().out.count("\n## ") == len(table.SECTIONS) - 1
    with pytest.raises(SystemExit, match="no region"):
        regions.fill("nothing here", lambda section, options: "")


HEAD = {"commit": "abc", "machine": {"cpu": "C"}, "settings": {"rounds": 7}}


def test_results_resume_where_they_stopped(tmp_path):
    path = tmp_path / "deep" / "r.json"
    one, two = BY_NAME["lapsrn_img"], BY_NAME["fsrcnn_x2"]
    first = store.Store(path, HEAD)
    first.add(one, 2, 0.1, {"tconv": {"median": 1.0}, "jax": {"reason": "no"}})
    again = store.Store(path, HEAD, resume=True)
    assert again.done(one, 2, ["tconv", "jax"])
    assert not again.done(one, 2, ["tconv", "torch"]) and not again.done(one, 1, ["tconv"]) and not again.done(two, 2, ["tconv"])
    again.add(one, 2, 0.1, {"tconv": {"median": 2.0}, "torch": {"median": 3.0}})
    assert [unit["cells"] for unit in store.load(path)["units"]] == [{"tconv": {"median": 2.0}, "torch": {"median": 3.0}}]
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_results_are_not_mixed_or_overwritten(tmp_path):
    path = tmp_path / "r.json"
    store.Store(path, HEAD).save()
    with pytest.raises(SystemExit, match="--resume"):
        store.Store(path, HEAD)
    with pytest.raises(SystemExit, match="another commit"):
        store.Store(path, {**HEAD, "commit": "other"}, resume=True)
    path.write_text('{"format": 0}')
    with pytest.raises(SystemExit, match="format 0"):
        store.load(path)


# ---------------------------------------------------------------- workers


@pytest.fixture
def process():
    made = pool.Process("tconv_op", 1)
    yield made
    made.stop()


SMALL = layers.Layer("small", Spec.parse("n2 c3:8 i5x6 k4 s2 p1:0"))


def test_a_layer_is_timed_and_judged(process):
    cell = measure.measure(SMALL, {"tconv_op": process}, rounds=2, seconds=0.02)["tconv_op"]
    assert 0 < cell["min"] <= cell["q1"] <= cell["median"] <= cell["q3"] < 1
    assert 0 < cell["error_rms"] <= cell["error_max"] < 1e-6


def test_an_idle_worker_is_stopped_and_goes_on(process):
    process.ask(60, do="hello")
    if hasattr(signal, "SIGSTOP"):  # Windows cannot
        assert os.WIFSTOPPED(os.waitpid(process._process.pid, os.WUNTRACED)[1])
    assert process.ask(60, do="prepare", problem=str(SMALL.spec))["seconds"] > 0


def test_a_crash_and_a_hang_are_reasons_and_the_worker_comes_back(process):
    process.ask(60, do="hello")
    process._process.kill()
    with pytest.raises(pool.Failed, match=r"crashed with signal SIGKILL"):
        process.ask(60, do="prepare", problem=str(SMALL.spec))
    assert process.ask(60, do="prepare", problem=str(SMALL.spec))["seconds"] > 0
    with pytest.raises(pool.Failed, match="no answer to 'time' within 0 s"):
        process.ask(0.01, do="time", warm=0, inner=1, count=10**9, within=60)
    assert process.ask(60, do="prepare", problem=str(SMALL.spec))["seconds"] > 0


def test_a_refusal_is_a_reason(process):
    with pytest.raises(pool.Failed, match=r"^ArgumentError: .*k \(k\)|^ArgumentError"):
        process.ask(60, do="prepare", problem="c3:8 i5")


def test_an_absent_peer_is_a_reason():
    with measure.processes(["nobody"], 1) as (running, said):
        assert running == {} and said["nobody"]["reason"] == "KeyError: 'nobody'"


# ---------------------------------------------------------------- the guard


def test_the_guard_fails_on_growth_and_on_what_it_does_not_know(capsys):
    assert guard.report({"a": 100, "b": 100, "c": 100}, {"a": 110, "b": 50, "c": 100}) == 0
    assert "b" in capsys.readouterr().out.split("better")[0]
    assert guard.report({"a": 100}, {"a": 120}) == 1
    assert guard.report({}, {"a": 100}) == 1


def test_the_guard_counts_every_class():
    assert {layers.classify(Spec.parse(problem)) for problem in guard.PROBLEMS} == {layer.kind for layer in EVERY} | {"tiny"}
    assert len(guard.cases()) == 2 * len(guard.PROBLEMS)
