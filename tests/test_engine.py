# SPDX-License-Identifier: Apache-2.0
"""The engine of the benchmark: words of the peers, judge, schedule, roofline, gauges, and workers that refuse, crash and hang."""

import io
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import tconv
from tconv import Spec
from tconv._bench import gauge, judge, measure, pool, progress, roofline, schedule, words
from tconv._bench.layer import Layer
from tconv._bench.measure import Setting

# ---------------------------------------------------------------- words


def test_words_that_do_not_exist():
    before = Spec.build(5, 4, stride=2, padding=((-1, 0),)).axes
    assert words.torch(before) is None and words.torch(Spec.build(5, 4, stride=2, padding=((0, 2),)).axes) is None
    for refused in (lambda: words.onnx(before), lambda: words.tensorflow(before, True), lambda: words.slices(before)):
        with pytest.raises(words.Cannot, match="zeros"):
            refused()


# ---------------------------------------------------------------- the judge


@pytest.mark.parametrize("problem", ["n2 c3:4 i5 k4 s2 p1:0", "c4:6 g2 i5x4 k3x2 s2x3 d2x1 p1:-2x0", "n2 c2:2 g2 i3x4x2 k3 s1x2x3 p1"])
def test_the_judge_agrees_with_the_reference(problem):
    layer = Layer(problem, Spec.parse(problem))
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


# ---------------------------------------------------------------- workers


@pytest.fixture
def process():
    made = pool.Process("tconv_op", 1)
    yield made
    made.stop()


SMALL = Layer("small", Spec.parse("n2 c3:8 i5x6 k4 s2 p1:0"))


def test_a_layer_is_timed_and_judged(process):
    told = []
    cell = measure.measure(SMALL, {"tconv_op": process}, Setting(2, 0.02), told.append)["tconv_op"]
    assert told == ["preparing tconv_op", "round 1 of 2", "round 2 of 2"]
    assert 0 < cell["min"] <= cell["q1"] <= cell["median"] <= cell["q3"] < 1
    assert 0 < cell["error_rms"] <= cell["error_max"] < 1e-6


def test_float64_is_timed_and_judged_as_such(process):
    cell = measure.measure(SMALL, {"tconv_op": process}, Setting(1, 0.02, "float64"))["tconv_op"]
    assert 0 < cell["error_rms"] <= cell["error_max"] < 1e-14


def test_fewer_digits_than_asked_are_a_reason():
    with measure.processes(["tconv_op:dtype=float32"], 1) as (running, _):
        cell = measure.measure(SMALL, running, Setting(1, 0.02, "float64"))["tconv_op:dtype=float32"]
    assert re.fullmatch(r"error \d\.\de-0[78], too large for float64", cell["reason"])


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


def test_a_worker_finds_our_modules_and_nothing_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    with measure.processes(["tconv"], 1) as (running, said):
        assert list(running) == ["tconv"] and said["tconv"]["version"] == tconv.__version__


# ---------------------------------------------------------------- the machine's limits


def test_the_roofline_is_the_larger_of_two_times():
    assert roofline.roofline(10**9, 10**6, gflops=100.0, gbytes=10.0) == (0.02, "multiply-adds")
    assert roofline.roofline(10**6, 10**9, gflops=100.0, gbytes=10.0) == (0.1, "bytes")


@pytest.fixture
def small_gauge(monkeypatch):
    monkeypatch.setattr(gauge, "_SIZE", 64)
    monkeypatch.setattr(gauge, "_FILL", 1 << 16)


def test_a_gauge_measures_what_it_is_asked(small_gauge):
    found = gauge.Gauge("numpy", 2).peak(["float32", "float64"])
    assert set(found) == {"gflops", "gflops_float64", "gbytes"} and all(0 < rate < 1e5 for rate in found.values())
    assert set(gauge.Gauge("numpy", 1).peak(["float64"])) == {"gflops_float64", "gbytes"}


def test_every_way_to_write_writes_all():
    for write in gauge.Numpy(1).writers():
        to, like = np.zeros(1000, np.uint8), np.ones(1000, np.uint8)
        write(to, like)
        assert (to == 1).all()


def test_avx2_counts_only_where_the_library_says_so(small_gauge, monkeypatch):
    monkeypatch.setattr(gauge, "_openblas_core", lambda: "Haswell")
    assert set(gauge.Gauge("numpy+avx2", 1).peak(["float32"])) == {"gflops_avx2"}
    for core in ("SkylakeX", None):
        monkeypatch.setattr(gauge, "_openblas_core", lambda core=core: core)
        with pytest.raises(words.Cannot, match="numpy does not say that its matrix product keeps to AVX2"):
            gauge.Gauge("numpy+avx2", 1)


def test_openblas_obeys_and_says_so():
    """In a process of its own, as in a run; a NumPy with another library must refuse instead."""
    code = "from tconv._bench import gauge; print(gauge._openblas_core())"
    told = {**os.environ, **gauge.environment("gauge:numpy+avx2", 1)}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (("Haswell", "None") if "direct_avx2" in tconv.kernels() else ("None", "NEOVERSEN1", "ARMV8"))


def test_the_shell_does_not_hold_the_gauge_to_older_kernels():
    """Whatever OpenBLAS takes by itself, it takes where the shell says otherwise, too."""
    code = "from tconv._bench import gauge; print(gauge._openblas_core())"
    shell = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    held = {**shell, "OPENBLAS_CORETYPE": "Nehalem"}
    cores = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
             for env in (shell, {**held, **gauge.environment("gauge:numpy", 1)})]  # fmt: skip
    assert cores[0] == cores[1]


def test_a_gauge_that_fails_measures_nothing():
    class Broken:
        def ask(self, limit, **request):
            raise pool.Failed("crashed")

    class Whole:
        def ask(self, limit, **request):
            return {"gflops": 2.0, "gbytes": 1.0}

    assert measure.peak({"a": Broken(), "b": Whole()}, ["float32"]) == {"gflops": 2.0, "gbytes": 1.0}


# ---------------------------------------------------------------- progress


def test_progress_in_lines_and_in_silence():
    for quiet, expected in ((False, "[1/2] one\nlater\n"), (True, "")):
        to = io.StringIO()
        with progress.Progress(2, to, quiet) as shown:
            shown.now("begin")
            shown.done("one")
            shown.line("later")
            shown.step("two")
        assert to.getvalue() == expected
        assert shown.count == 2
