# SPDX-License-Identifier: Apache-2.0
"""Processes and threads: distributed training by PyTorch's engine, workers of data loaders, and who decides on the number of threads."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import tconv.torch as ours
from tconv import _torch_core

ROOT = Path(__file__).parents[2]


def same(found, expected, eps=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=eps * max(1.0, float(expected.detach().abs().max())))


def trained(processes, steps, folder):
    out = folder / f"{processes}.pt"
    words = ["--processes", str(processes), "--steps", str(steps), "--out", str(out)]
    # One thread a process: spinning threads of two pools would hold up a busy machine of few cores for minutes.
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    done = subprocess.run([sys.executable, "examples/distributed.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.load(out)


def test_two_processes_learn_what_one_learns(tmp_path):
    steps = 12
    one, two = trained(1, steps, tmp_path), trained(2, steps, tmp_path)
    untrained = runpy.run_path(str(ROOT / "examples/distributed.py"))["network"]().state_dict()
    assert list(one) == list(two)
    for name in one:
        assert (one[name] - untrained[name]).abs().max() > 0.02, "nothing was learnt, so nothing is compared"
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)


class Enlarged(Dataset):
    """Samples that go through our layer in whatever process asks for them."""

    def __init__(self, weight):
        self.weight = weight

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = torch.arange(2 * 5 * 6).view(2, 5, 6).float().add(index).cos()
        with torch.no_grad():
            return [ours.conv_transpose2d(x, self.weight, stride=2, padding=1) for _ in range(3)][-1], os.getpid()


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")  # JAX, where another test of this process has started it
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on a machine of one core
def test_in_workers_of_a_data_loader(start):
    data = Enlarged(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    expected = [data[index][0] for index in range(len(data))]  # the pool's threads run before the fork
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=start)
    samples, processes = zip(*loader, strict=True)
    same(torch.cat(samples), torch.stack(expected))
    found = {int(process) for process in torch.cat(processes)}
    assert len(found) == 2 and os.getpid() not in found


def test_the_number_of_threads_is_that_of_torch(monkeypatch):
    asked = []
    prepare = _torch_core.prepare
    monkeypatch.setattr(_torch_core, "prepare", lambda *words, **more: asked.append(words[-1]) or prepare(*words, **more))
    before = torch.get_num_threads()
    results = []
    try:
        for number in (1, 3, 2):
            torch.set_num_threads(number)
            x, w = torch.linspace(-1, 1, 7 * 31 * 29).view(1, 7, 31, 29), torch.linspace(-2, 1, 7 * 5 * 9).view(7, 5, 3, 3)
            results.append(ours.conv_transpose2d(x, w, stride=2))
            assert asked and set(asked) == {number}
            asked.clear()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's runtimes elsewhere lack GNU's entry points")
def test_loops_run_on_the_threads_of_torch():
    """So many threads as there are after PyTorch's own loop; with a pool of ours there would be another."""
    code = """if True:
        import os, torch, tconv.torch
        from tconv import _core, _torch_team
        torch.set_num_threads(3)
        x, w = torch.randn(4, 16, 32, 32), torch.randn(16, 16, 4, 4)
        torch.nn.functional.relu(torch.randn(1 << 22))
        before = len(os.listdir("/proc/self/task"))
        expected = tconv.torch.conv_transpose2d(x, w, stride=2)
        assert len(os.listdir("/proc/self/task")) == before
        assert _torch_team.join()
        _core.use_team(0, 0)
        assert torch.equal(tconv.torch.conv_transpose2d(x, w, stride=2), expected)
        assert len(os.listdir("/proc/self/task")) == before + 2
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_threads_of_its_own():
    """PyTorch's runtime hangs in a child of a process that used it; a worker of a data loader asks for one thread and would not show it."""
    code = """if True:
        import os, torch, tconv.torch
        torch.set_num_threads(2)
        x, w = torch.randn(4, 16, 32, 32), torch.randn(16, 16, 4, 4)
        expected = tconv.torch.conv_transpose2d(x, w, stride=2).numpy()
        pid = os.fork()
        if pid == 0:
            found = tconv.torch.conv_transpose2d(x, w, stride=2).numpy()
            os._exit(0 if found.tobytes() == expected.tobytes() else 1)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as parent:
        try:
            assert parent.wait(timeout=60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)  # the child, where it hangs


def test_beside_parallel_layers_of_torch_in_other_threads():
    """Right in the worst of company; how fast is for `python -m bench models` to say."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    x, w = torch.randn(2, 16, 20, 20), torch.randn(16, 16, 4, 4)
    expected, wrong = functional.conv_transpose2d(x, w, stride=2), []

    def work():
        for _ in range(15):
            functional.conv2d(x, w, padding=2)
            found = ours.conv_transpose2d(x, w, stride=2)
            if (found - expected).abs().max() > 1e-3:
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong and not any(thread.is_alive() for thread in threads)
    finally:
        torch.set_num_threads(before)
