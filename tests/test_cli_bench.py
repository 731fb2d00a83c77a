# SPDX-License-Identifier: Apache-2.0
"""`tconv bench` as a user meets it, with libraries that are slow, absent, wrong, crash or hang: stand-ins called torch."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tconv
from tconv import Spec, _runtime
from tconv._bench import gauge, measure, own
from tconv._bench.measure import Setting
from tconv._bench.roofline import Roofline
from tconv.cli import main

TORCH = """
import os, time
import tconv
__version__ = "9.9"
contiguous_format = channels_last = None
set_num_threads = set_num_interop_threads = set_grad_enabled = lambda value: None
print("libraries talk on stdout")
class Tensor:
    def __init__(self, array): self.array = array
    def to(self, memory_format): return self
    def contiguous(self): return self
    def numpy(self): return self.array
from_numpy = Tensor
def conv_transpose2d(x, w, bias, stride, padding, output_padding, groups, dilation):
    BODY
class nn:
    class functional:
        conv_transpose1d = conv_transpose2d = conv_transpose2d
"""
LAYER = """return Tensor(tconv.reference.conv_transpose(x.array, w.array, stride=stride, padding=padding, output_padding=output_padding,
                                                 groups=groups, dilation=dilation))"""
SLOW = f"time.sleep(0.01); {LAYER}"
QUICK = ("--threads", "1", "--rounds", "2", "--seconds", "0.1")
LINE = "n2 c3:4 i5x6 k4 s2 p1:0"


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the body of the library's layer, or the whole library; the machine's limits are not measured."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gauge, "GAUGES", ())

    def write(body: str, whole: bool = False) -> None:
        (tmp_path / "torch.py").write_text(body if whole else TORCH.replace("BODY", body))

    return write


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["bench", *arguments, *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------- what it says


def test_a_slower_library_is_in_the_table_and_the_verdict(torch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch(SLOW)
    assert main(["bench", LINE, *QUICK, "--peers", "torch,torch_cl"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[0].startswith(f"{LINE}, float32, 1 thread of ")
    assert [line.split()[0] for line in lines[3:5]] == ["tconv.Operator", "tconv.conv_transpose"]
    assert {line.split()[0] for line in lines[5:7]} == {"torch", "torch_cl"}
    assert lines[3].split()[3] == "1.00x"
    assert lines[-1].startswith("Operator is ") and " times as fast as the best of the others, torch" in lines[-1]


def test_the_json_has_every_number(torch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch(SLOW)
    found = facts(capsys, LINE, "--peers", "torch,tconv_op:algorithm=direct_scalar")
    assert (found["problem"], found["dtype"], found["threads"], found["absent"], found["roofline"]) == (LINE, "float32", 1, {}, None)
    assert list(found["peers"]) == ["tconv_op", "tconv", "torch", "tconv_op:algorithm=direct_scalar"]
    theirs, mine = found["peers"]["torch"], found["peers"]["tconv_op"]
    assert theirs["median"] > 0.01 > mine["median"] > 0 and theirs["ratio"] == theirs["median"] / mine["median"]
    assert theirs["version"] == "9.9" and 0 < theirs["error_rms"] < 1e-6 and mine["ratio"] == 1


def test_words_of_a_framework_and_float64(torch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch(LAYER)
    words = ("--input-size", "5x6", "--kernel-size", "4", "--stride", "2", "--padding", "1", "--output-padding", "1")
    found = facts(capsys, "--from", "torch", *words, "--peers", "torch", "--dtype", "float64")
    assert found["problem"] == "c1:1 i5x6 k4 s2 p1:0" and found["dtype"] == "float64"
    assert all(0 < cell["error_rms"] < 1e-15 for cell in found["peers"].values())


def test_the_limits_of_the_machine_are_measured_in_the_same_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gauge, "GAUGES", ("gauge:numpy",))
    found = facts(capsys, LINE, "--peers", "")
    limits, cell = found["limits"], found["peers"]["tconv_op"]
    spec = Spec.parse(LINE)
    # Which of the two it is depends on what else the machine does meanwhile.
    seconds = {"bytes": 4 * (2 * 90 + 192 + 8 * 11 * 13) / limits["gbytes"] / 1e9, "multiply-adds": 2 * spec.macs / limits["gflops"] / 1e9}
    assert found["roofline"]["seconds"] == pytest.approx(max(seconds.values()))
    assert found["roofline"]["bound"] == max(seconds, key=seconds.__getitem__) and set(limits) == {"gflops", "gbytes"}
    assert cell["share"] == found["roofline"]["seconds"] / cell["median"]
    assert found["verdict"] == f"No other library was timed: Operator reaches {cell['share']:.0%} of the roofline."


def report(theirs: tuple[float, float, float] | None, roofline: Roofline | None = None) -> own.Report:
    """Our median is 2 ms with quartiles 1.9 and 2.1."""
    cells = {name: {"q1": q1, "median": m, "q3": q3, "error_rms": 1e-7}
             for name, (q1, m, q3) in {"tconv_op": (0.0019, 0.002, 0.0021), "tconv": (0.003, 0.003, 0.003)}.items()}  # fmt: skip
    if theirs:
        cells["jax"] = dict(zip(("q1", "median", "q3"), theirs, strict=True), error_rms=2e-7)
    limits = {"gflops": 100.0, "gbytes": 10.0} if roofline else {}
    return own.Report("c1:1 i5 k3", "float32", 2, {"cpu": "C"}, limits, roofline, {}, cells,
                      {"torch": "torch is not installed", "torch_cl": "torch is not installed", "litert": "broken"})  # fmt: skip


def test_verdicts() -> None:
    assert report((0.0029, 0.003, 0.0031)).verdict() == "Operator is 1.50 times as fast as the best of the others, jax."
    assert report((0.0015, 0.0016, 0.0017)).verdict() == "jax is faster here: Operator takes 1.25 times as long."
    assert (
        report((0.00195, 0.0022, 0.0023)).verdict()
        == "Operator and the best of the others, jax, are equally fast: their times overlap (1.10x)."
    )
    assert report(None).verdict() == "No other library was timed."
    assert report(None, Roofline(0.001, "bytes")).verdict() == "No other library was timed: Operator reaches 50% of the roofline."


def test_the_table() -> None:
    assert str(report((0.0029, 0.003, 0.0031), Roofline(0.001, "bytes"))).splitlines() == [
        "c1:1 i5 k3, float32, 2 threads of C",
        "roofline 1 ms, limited by bytes (this machine now: 100 GFLOP/s, 10.0 GB/s written)",
        "",
        "                      ms  quartiles  against Operator  of the roofline    error",
        "tconv.Operator         2   1.9..2.1             1.00x              50%  1.0e-07",
        "tconv.conv_transpose   3       3..3             1.50x              33%  1.0e-07",
        "jax                    3   2.9..3.1             1.50x              33%  2.0e-07",
        "",
        "not timed: torch, torch_cl (torch is not installed)",
        "not timed: litert (broken)",
        "",
        "Operator is 1.50 times as fast as the best of the others, jax.",
    ]


# ---------------------------------------------------------------- libraries that fail


@pytest.mark.parametrize("library, reason", [
    ("raise ModuleNotFoundError('no torch', name='torch')", "torch is not installed"),
    ("raise ImportError('libmkl.so: cannot open')", "ImportError: libmkl.so: cannot open"),
    ("import os; os.abort()", "crashed with signal SIGABRT"),
    ("import os; os.write(2, b'no licence\\n'); os._exit(3)", "crashed with exit code 3: no licence"),
])  # fmt: skip
def test_a_library_that_does_not_start_is_absent(torch: Any, capsys: pytest.CaptureFixture[str], library: str, reason: str) -> None:
    torch(library, whole=True)
    found = facts(capsys, LINE, "--peers", "torch")
    assert found["absent"] == {"torch": reason} and list(found["peers"]) == ["tconv_op", "tconv"]
    assert found["verdict"] == "No other library was timed."


@pytest.mark.parametrize("body, reason", [
    ("os.kill(os.getpid(), 9)", "crashed with signal SIGKILL: libraries talk on stdout"),
    ("raise NotImplementedError('no such layer')", "NotImplementedError: no such layer"),
    ("return Tensor(0 * tconv.reference.conv_transpose(x.array, w.array, stride=stride, padding=padding, output_padding=output_padding))",
     "error 1.0e+00, too large for float32"),
    ("return Tensor(x.array)", "gives the shape (2, 3, 5, 6), not (2, 4, 11, 13)"),
])  # fmt: skip
def test_a_library_that_fails_at_the_layer_has_a_reason(torch: Any, capsys: pytest.CaptureFixture[str], body: str, reason: str) -> None:
    torch(body)
    cell = facts(capsys, LINE, "--peers", "torch")["peers"]["torch"]
    assert (cell["reason"], cell["ratio"], cell["share"]) == (reason, None, None) and "median" not in cell


def test_a_library_that_lacks_the_layer_is_listed(torch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch(LAYER)
    assert main(["bench", "c2:2 i9 k4 s2", *QUICK, "--peers", "torch_cl"]) == 0
    assert "not timed: torch_cl (PyTorch: no channels_last memory format in 1-D)\n" in capsys.readouterr().out


def test_a_library_that_hangs_is_given_up(torch: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch("time.sleep(1000)")
    monkeypatch.setattr(measure, "_PREPARE", 2.0)
    assert facts(capsys, LINE, "--peers", "torch")["peers"]["torch"]["reason"] == "no answer to 'prepare' within 2 s"


def test_a_library_whose_own_processes_outlive_it_holds_nothing_up(torch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch("import os, time\nif not os.fork(): time.sleep(600)\n" + TORCH.replace("BODY", LAYER), whole=True)
    start = time.monotonic()
    assert "median" in facts(capsys, LINE, "--peers", "torch")["peers"]["torch"]
    assert time.monotonic() - start < 300


def test_where_ours_fails_the_command_fails(torch: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WRONG", {"float32": 0.0})
    assert main(["bench", LINE, *QUICK, "--peers", ""]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tconv: error: tconv.Operator could not be timed: error ") and err.count("\n") == 1


# ---------------------------------------------------------------- bad arguments, and people


@pytest.mark.parametrize("arguments, text", [
    ([], "problem=None: give either one line, or words such as --input-size 8x8 --kernel-size 4, and not both"),
    ([LINE, "--stride", "2"], "and not both"),
    (["c3:4 i5"], "problem="),
    (["--from", "nonsense", "--kernel-size", "4"], "from='nonsense': must be one of torch, onnx"),
    ([LINE, "--peers", "torch,caffe"], "peers='caffe': must be of tconv_op, tconv, torch, torch_cl, onnxruntime, openvino, tensorflow, jax, litert"),
    ([LINE, "--rounds", "0"], "rounds=0: must be at least 1"),
    ([LINE, "--seconds", "0"], "seconds=0.0: must be above 0"),
    ([LINE, "--seconds", "nan"], "seconds=nan: must be above 0"),
    ([LINE, "--threads", "0"], "threads=0: must lie in [1, 1024]"),
    ([LINE, "--dtype", "float16"], "float16"),
])  # fmt: skip
def test_bad_arguments_start_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.setattr(own, "run", lambda *everything: pytest.fail("something was started"))
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and text in err and err.startswith("tconv: error: ") and err.count("\n") == 1


def test_a_layer_too_large_for_all_processes_at_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec.parse("c1:1 i100 k1")
    for memory, refused in ((3 * 804 - 1, True), (3 * 804, False)):
        monkeypatch.setattr(_runtime, "_memory", lambda memory=memory: memory)
        if refused:
            with pytest.raises(tconv.ArgumentError, match=r"in 3 processes at once, more than this machine's memory .*name fewer peers"):
                own.check(spec, [], Setting(1, 1.0))
        else:
            own.check(spec, [], Setting(1, 1.0))


def parents() -> dict[int, int]:
    """Every process of the machine with its parent: from Linux's files, elsewhere by ps, which a small Linux may lack."""
    if not Path("/proc/self/stat").exists():
        lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
        return {int(pid): int(parent) for pid, parent in map(str.split, lines)}
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found[int(path.parent.name)] = int(path.read_text().rpartition(") ")[2].split()[1])
    return found


def children(pid: int) -> list[int]:
    return [child for child, parent in parents().items() if parent == pid]


def heed_ctrl_c() -> None:
    """A shell that starts these tests in the background has them ignore it, and what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_one_line_and_leaves_no_process() -> None:
    command = [sys.executable, "-m", "tconv", "bench", LINE, "--peers", "", "--seconds", "100", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    end = time.monotonic() + 60
    while not (started := children(process.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    started = children(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "tconv: error: interrupted\n") and process.returncode == 130
    assert started and not set(started) & set(parents())


def test_progress_is_shown_to_people(tmp_path: Path) -> None:
    """On a terminal a bar, which is gone at the end; stdout stays clean."""
    ours, theirs = pty.openpty()
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")}
    done = subprocess.run([sys.executable, "-m", "tconv", "bench", LINE, *QUICK, "--peers", "", "--json"], stdout=subprocess.PIPE, stderr=theirs,
                          check=True, timeout=120, env={**plain, "TERM": "xterm"})  # fmt: skip
    os.write(theirs, b"end")
    shown = os.read(ours, 1 << 20)
    assert b"\x1b" in shown and b"/5" in shown
    assert json.loads(done.stdout)["problem"] == LINE
