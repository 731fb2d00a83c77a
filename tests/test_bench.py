# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the checkout: its layers, results that resume, tables, memory, alternating layers, the guard."""

import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tconv
from tconv import Spec
from tconv._bench import words
from tconv._bench.layer import classify
from tconv._bench.measure import Setting
from tconv._bench.roofline import geometric_mean

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is part of the checkout, not of the package

from bench import checkout, guard, in_tensorflow, layers, memory, mixed, regions, rows, run, store, table  # noqa: E402
from bench.__main__ import default_peers, main  # noqa: E402
from bench.view import AVX2, DOUBLE, View  # noqa: E402

EVERY = layers.read()
BY_NAME = {layer.name: layer for layer in EVERY}


@pytest.mark.parametrize("name", ["regions", "run"])
def test_the_examples_in_the_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(f"bench.{name}"))
    assert tried and not failed


# ---------------------------------------------------------------- layers and words


def test_the_other_layers_are_none_of_the_list():
    lines = layers.LIST.with_name("others.txt").read_text().splitlines()
    others = layers.select(lines, EVERY)
    assert [str(layer.spec) for layer in others] == [str(Spec.parse(line)) for line in lines]
    assert not {str(layer.spec) for layer in others} & {str(layer.spec) for layer in EVERY}


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


# ---------------------------------------------------------------- results


def results(**changed):
    """A file of results with two layers: one that arithmetic limits, one that memory does."""
    cell = {"q1": 0, "q3": 0, "min": 0, "samples": 9}
    good, bad = {"error_max": 1e-6, "error_rms": 1e-7, **cell}, {"error_max": 9e-6, "error_rms": 9e-7, **cell}
    unit = {"threads": 2, "load": 0.5, "date": "2026-01-01"}
    peak = {"threads": 2, "gflops_float64": 50.0, "gflops_avx2": 100.0}
    return {
        "format": 2, "commit": "abc", "started": "2026-01-01T00:00:00", "settings": {"rounds": 7, "seconds_per_layer": 10.0},
        "machine": {"cpu": "C", "cores": 2, "memory_gib": 8, "system": "S", "python": "3"},
        "versions": {"tconv_op": "1", "torch": "2", "jax": "3"}, "notes": {"tconv_op": "a", "torch": "b", "jax": "c"},
        "absent": {"litert": "ModuleNotFoundError"},
        "peaks": [{**peak, "gflops": 100.0, "gbytes": 10.0}, {**peak, "gflops": 200.0, "gbytes": 5.0}],
        "units": [
            {"layer": "one", "problem": "c32:32 i4 k4 s2", "kind": "overlapping", "macs": 10**8, "bytes": 10**6, **unit,
             "cells": {"tconv_op": {"median": 0.002, **good}, "torch": {"median": 0.004, **bad}, "jax": {"median": 0.016, **good},
                       DOUBLE: {"median": 0.005, **good}, AVX2: {"median": 0.0025, **good}}},
            {"layer": "two", "problem": "c2:2 i8 k2 s2", "kind": "non-overlapping", "macs": 10**3, "bytes": 10**7, **unit,
             "cells": {"tconv_op": {"median": 0.004, **bad}, "torch": {"median": 0.002, **good}, "jax": {"reason": "no such layer"},
                       DOUBLE: {"median": 0.008, **good}, AVX2: {"reason": "no"}}},
        ],
        "memory": [
            {"layer": "one", "problem": "c32:32 i4 k4 s2", "call": "Operator", "threads": 2, "peak": 25 << 20, "packed": 3 << 20},
            {"layer": "one", "problem": "c32:32 i4 k4 s2", "call": "conv_transpose", "threads": 2, "peak": 4 << 20, "packed": 3 << 20},
        ],
        "mixed": [{"layer": "one", "problem": "c32:32 i4 k4 s2", "threads": 2, "mixed": 0.012, "mixed_torch": 0.006, "mixed_tconv": 0.004}],
        **changed,
    }  # fmt: skip


def test_roofline_ratios_and_means():
    one, two = rows.rows(results(), 2)
    assert one.roofline() == (0.001, "multiply-adds") and two.roofline() == (0.001, "bytes")
    assert one.roofline("gflops_avx2") == (0.002, "multiply-adds") and one.roofline("nobody measured") is None
    assert two.roofline("gflops_float64", itemsize=8) == (0.002, "bytes")
    assert (one.best(), two.best()) == ("torch", "torch")
    assert (one.share("tconv_op"), two.share("tconv_op")) == (0.5, 0.25)
    assert (one.share(AVX2, "gflops_avx2"), two.share(DOUBLE, "gflops_float64", 8)) == (0.8, 0.25)
    assert (one.ratio("jax", "tconv_op"), two.ratio("jax", "tconv_op")) == (8.0, None)
    assert (one.is_worse("tconv_op"), two.is_worse("tconv_op"), two.is_worse("tconv")) == (False, True, None)
    assert geometric_mean(row.ratio("torch", "tconv_op") for row in (one, two)) == pytest.approx(1.0)
    with pytest.raises(SystemExit, match="nothing with 3 threads"):
        rows.rows(results(), 3)


def test_rates_are_judged_where_there_is_arithmetic_and_channels_in_every_group():
    row, _ = rows.rows(results(), 2)
    assert row.is_heavy() and not row._replace(macs=10**8 - 1).is_heavy()
    for problem, heavy in (("c32:31 i4 k4 s2", False), ("c64:64 g2 i4 k4", True), ("c64:64 g4 i4 k4", False)):
        assert row._replace(problem=problem).is_heavy() is heavy


def test_the_tables_hold_the_numbers():
    data = results()
    assert "| all | 2 | 1.00x | 0.50x two | 1.00x | 8.00x | 35% |" in table.render(data, "summary")
    one, two = table.render(data, "layers").splitlines()[-2:]
    assert one == "| one | `c32:32 i4 k4 s2` | 2.00 | 1.00 m | 50% | **4.00 (2.00x)** | 16.00 (8.00x) |"
    assert two == "| two | `c2:2 i8 k2 s2` | 4.00 | 1.00 b | 25% | **2.00 (0.50x)** | - |"
    assert [line.split(" | ")[-1] for line in table.render(data, "errors").splitlines()[-2:]] == ["no |", "yes |"]
    assert table.render(data, "reasons").splitlines()[-3] == "| jax | no such layer | two |"
    assert "2 threads: 200 GFLOP/s (50 in float64, 100 by AVX2), 10.0 GB/s written" in table.render(data, "machine")
    short = table.render(data, "short").splitlines()
    assert short[0] == "|  | PyTorch | JAX | the best of them |" and short[2] == "| `Operator` | 1.0 | 8.0 | 1.00 |"
    assert short[-1] == "Against the best peer of a layer, `Operator` ranges from 0.50 to 2.0 times its speed."


def test_the_variants_have_a_table_of_their_own():
    one, two = table.render(results(), "rates").splitlines()[-2:]
    assert one == "| one | yes | 2.00 | 5.00 | 40% | 80% | 2.50 | 80% |"
    assert two == "| two | no | 4.00 | 8.00 | 50% | 25% | - | - |"
    plain = results()
    for unit in plain["units"]:
        del unit["cells"][DOUBLE], unit["cells"][AVX2]
    assert table.render(plain, "rates").endswith("was measured in this run.")


def test_memory_and_mixed_have_tables():
    text = table.render(results(), "memory")
    assert text.startswith("MiB a thread, beyond input, weight, packed weight and output; the most is 11.0, by Operator on one;")
    assert text.splitlines()[-3:] == ["| layer | packed weight, MiB | Operator, 2 threads | conv_transpose, 2 threads |",
                                      "| --- | --- | --- | --- |", "| one | 3.0 | 11.0 | 0.5 |"]  # fmt: skip
    assert table.render(results(), "mixed").splitlines()[-1] == "| one | 12.00 | 6.00 | 4.00 | 1.20 |"
    for part in ("memory", "mixed"):
        assert table.render(results(**{part: []}), part).startswith("Not measured in this run")


def targets(data):
    """(measured, met, layers that fall short) of every target."""
    return [line.strip("| ").split(" | ")[1:] for line in table.render(data, "targets").splitlines()[2:]]


def test_every_target_is_judged():
    assert targets(results()) == [
        ["1.00x", "no", "-"],
        ["1 of 2 layers", "no", "two 0.50x"],
        ["not measured", "-", "-"],
        ["1.00x", "no", "-"],
        ["0 of 1 layers", "no", "one 50%"],
        ["0 of 1 layers", "no", "two 25%"],
        ["1 of 2 layers", "no", "two 9.0e-07 (worst peer 1.0e-07)"],
        ["1 of 2 layers", "no", "one 40%"],
        ["1 of 1 layers", "yes", "-"],
        ["11.0 MiB at most", "no", "one 11.0 (Operator)"],
        ["1.20 at most", "no", "one 1.20"],
    ]


def test_the_layers_of_the_list_in_tensorflow():
    found = [Spec.parse(line) for line in in_tensorflow.listed()]
    assert len(found) == len(set(found)) > 40
    assert all(spec.groups == 1 and spec.macs <= 2e9 for spec in found)
    assert all(spec.output_size == tuple(i * s for i, s in zip(spec.input_size, spec.stride, strict=True)) for spec in found)


def test_the_faster_of_our_layouts_is_compared():
    data = results()
    data["units"][0]["cells"][rows.LAST] = {"median": 0.0001}
    data["units"][1]["cells"][rows.LAST] = {"median": 10.0}
    view = View(data, 2, rows.FIRST)
    one, two = (row.against_best(rows.FIRST) for row in view.rows)
    faster = data["units"][0]["cells"][rows.FIRST]["median"] / 0.0001
    assert targets(data)[2] == [f"{(one * faster * two) ** 0.5:.2f}x", "yes", "two 0.50x"]
    assert "the faster of its layouts" in table.short(view)


def test_targets_that_are_met_and_targets_that_were_not_measured():
    data = results(memory=[], mixed=[])
    data["units"] = data["units"][:1]
    data["units"][0]["cells"] |= {"tconv_op": {"median": 0.001, "error_rms": 1e-7}, DOUBLE: {"median": 0.002}, AVX2: {"reason": "no"}}
    found = targets(data)
    assert [met for _, met, _ in found] == ["yes", "yes", "-", "yes", "yes", "-", "yes", "yes", "-", "-", "-"]
    assert [measured for measured, _, _ in found if measured == "not measured"] == ["not measured"] * 5


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
    assert main(["table", str(result), "--section", "short", "--section", "mixed"]) == 0 and capsys.readouterr().out.count("## ") == 2
    with pytest.raises(SystemExit, match="no region"):
        regions.fill("nothing here", lambda section, options: "")


@pytest.mark.parametrize("name, sections", [
    ("README.md", {"short"}),
    ("docs/performance.md", set(table.SECTIONS) - {"short"}),
])  # fmt: skip
def test_one_run_fills_every_region_of_the_documents(name, sections):
    data = results()
    for part in ("peaks", "units", "memory", "mixed"):
        data[part] += [{**entry, "threads": 1} for entry in data[part]]
    seen = set()

    def render(section, options):
        seen.add(section)
        return table.render(data, section, **options)

    old = (ROOT / name).read_text(encoding="utf-8")
    new = regions.fill(old, render)
    assert seen == sections
    assert new.count("<!-- bench ") == old.count("<!-- bench ") and "Not part of the run" not in new


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


# ---------------------------------------------------------------- runs


def test_the_default_run_holds_the_variants_that_the_targets_need():
    assert DOUBLE in default_peers()
    assert (AVX2 in default_peers()) == ("direct_avx2" in tconv.kernels())


def test_a_run_can_be_resumed_and_holds_all_parts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run.gauge, "GAUGES", ())
    monkeypatch.setattr(run.gauge, "AVX2_GAUGES", ())
    monkeypatch.setattr(mixed, "LAYERS", ())
    path = tmp_path / "r.json"
    small = [layers.Layer(problem, Spec.parse(problem)) for problem in ("c2:3 i5 k4 s2", "c3:4 i4x4 k2 s2")]
    plan = run.Plan(small[:1], ["tconv_op", DOUBLE], [1], Setting(1, 0.05), run.PARTS)
    run.run(plan, store.Store(path, run.head(plan)))
    more = plan._replace(layers=small)
    run.run(more, store.Store(path, run.head(more), resume=True))
    out = capsys.readouterr().out
    assert out.count("there already") == 1 and out.splitlines()[-1] == f"results in {path}"
    data = store.load(path)
    assert [unit["layer"] for unit in data["units"]] == [layer.name for layer in small]
    assert all(set(unit["cells"]) == {"tconv_op", DOUBLE} for unit in data["units"])
    assert [(e["layer"], e["call"]) for e in data["memory"]] == [(layer.name, call) for layer in small for call in memory.CALLS]


def test_bad_arguments_of_a_run_are_refused(tmp_path):
    for words_, text in ((["--peers", "nobody"], "no peer is called 'nobody'"), (["--parts", "tables"], "no part is called 'tables'"),
                         (["--layers", "nothing"], "no layer is called 'nothing'")):  # fmt: skip
        with pytest.raises(SystemExit, match=text):
            main(words_)
    for command in ("memory", "mixed"):
        with pytest.raises(SystemExit, match="there is no"):
            main([command, "--into", str(tmp_path / "none.json")])


# ---------------------------------------------------------------- memory and alternating layers


def test_the_rise_is_what_a_call_touches_at_its_peak():
    """In a process of its own, where nothing else allocates: 40 MiB touched and freed, 100 MiB asked for and not touched."""
    code = ("import numpy as np\nfrom bench import memory\nmemory.rise(lambda: np.ones(1 << 20))\n"
            "print(memory.rise(lambda: (np.empty(100 << 20, np.uint8), np.ones(40 << 20, np.uint8))[1].sum()))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 40 << 20 <= int(done.stdout) + (1 << 20) <= 44 << 20


@pytest.mark.parametrize(("call", "size", "times"), [("Operator", 32, 4), ("conv_transpose", 80, 5)])
def test_memory_of_a_layer(call, size, times):
    """The weight of 4 MiB is packed, into as much or a little more, or transformed, into 4 times as much, on maps of many positions 5 times;
    the workspace is bounded."""
    entry = memory.measure(f"c256:256 i{size}x{size} k4 s2 p1", call, 1)
    assert 4 << 20 <= entry["packed"] <= times * (4 << 20)
    assert memory.excess({**entry, "threads": 1}) < memory.LIMIT
    assert entry["peak"] > entry["packed"] // 2


@pytest.mark.parametrize(("size", "packed"), [(7, 4 << 20), (32, 16 << 20)])
def test_a_weight_that_is_read_once_is_never_packed_or_transformed_whole(size, packed):
    entry = memory.measure(f"c256:256 i{size}x{size} k4 s2 p1", "conv_transpose", 1)
    assert entry["packed"] == packed and entry["peak"] < packed // 2


def test_the_excess_is_counted_a_thread_and_never_below_nothing():
    assert memory.excess({"peak": 30, "packed": 10, "threads": 2}) == 10
    assert memory.excess({"peak": 5, "packed": 10, "threads": 1}) == 0


def test_the_memory_command_keeps_its_figures(tmp_path, capsys):
    path = tmp_path / "r.json"
    head = {"commit": checkout.commit(), "machine": run.machine.facts(), "settings": {}}
    store.Store(path, head).save()
    assert main(["memory", "--layers", "c2:3 i5 k4", "--threads", "1", "--into", str(path)]) == 0
    assert [(e["call"], e["threads"]) for e in store.load(path)["memory"]] == [("Operator", 1), ("conv_transpose", 1)]
    assert "MiB a thread: Operator 1t 0." in capsys.readouterr().out
    path.write_text(json.dumps({**store.load(path), "commit": "another"}))
    with pytest.raises(SystemExit, match="another commit"):
        main(["memory", "--layers", "c2:3 i5 k4", "--into", str(path)])


FAKE_TORCH = """
__version__ = "fake"
set_num_threads = set_grad_enabled = lambda value: None
class Tensor:
    def __init__(self, array): self.array = array
    def numpy(self): return self.array
from_numpy = Tensor
class nn:
    Conv1d = Conv2d = Conv3d = staticmethod(lambda *sizes, padding: lambda tensor: Tensor(tensor.array))
"""


def test_alternating_layers_are_measured_with_what_calls_itself_torch(tmp_path, monkeypatch, capsys):
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.syspath_prepend(tmp_path)
    words_ = ["mixed", "--layers", "c2:3 i5 k4 s2", "--threads", "1", "--rounds", "2", "--seconds-per-layer", "0.05"]
    assert main([*words_, "--limit", "1000"]) == 0 and main([*words_, "--limit", "0"]) == 1
    assert "c2:3 i5 k4 s2" in capsys.readouterr().out


def test_alternating_layers_without_torch_say_why(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match="bench: mixed: mixed: torch is not installed"):
        main(["mixed", "--layers", "c2:3 i5 k4 s2", "--threads", "1"])


# ---------------------------------------------------------------- the guard


def test_the_guard_fails_on_growth_and_on_what_it_does_not_know(capsys):
    assert guard.report({"a": 100, "b": 100, "c": 100}, {"a": 110, "b": 50, "c": 100}) == 0
    assert "b" in capsys.readouterr().out.split("better")[0]
    assert guard.report({"case  a": 1000, "b": 10}, {"case  a": 1200, "b": 11}) == 1
    assert "guard: case a: 1,200 instructions, allowed are 1,150 (1,000 committed, and 15%): 20.0% more\n" in capsys.readouterr().out
    assert guard.report({}, {"a": 100}) == 1 and "guard: a: has no committed count" in capsys.readouterr().out
    assert guard.report({"a": 1, "b": 1}, {"a": 1}) == 1 and "guard: b: is committed and no longer counted" in capsys.readouterr().out


def test_the_guard_counts_every_class():
    assert {classify(Spec.parse(problem)) for problem in guard.PROBLEMS} == {layer.kind for layer in EVERY} | {"tiny"}
    assert len(guard.cases()) == 4 * len(guard.PROBLEMS)


def test_the_guard_is_a_command_that_refuses_without_valgrind(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "dev.py", "guard"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("dev.py: the guard counts instructions with valgrind, which is missing: ") and done.stderr.count("\n") == 1
    )


def test_the_committed_counts_are_those_of_the_cases():
    assert list(json.loads(guard.BASELINE.read_text())) == list(guard.cases())
