# SPDX-License-Identifier: Apache-2.0
"""The same bits for any number of threads, from several Python threads at once, and in forked children."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from definition import OPERATORS, Judge, Problem, assert_same_bits, random_problem
from test_kernels import KERNELS

import tconv

LAYERS = [
    Problem((24, 25), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 3, 40, 34, biased=True, seed=1),
    Problem((4, 4), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 16, 96, 64, seed=2),
    Problem((80, 90), (3, 3), (2, 2), (1, 1), ((1, 0), (1, 0)), 1, 5, 1, biased=True, seed=3),
    Problem((64, 64), (2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 2, 16, 16, seed=4),
    Problem((50, 50), (3, 3), (2, 2), (1, 1), ((1, 0), (1, 0)), 2, 32, 32, 32, biased=True, seed=5),
    Problem((2000,), (16,), (8,), (1,), ((4, 4),), 2, 16, 8, seed=6),
    Problem((100,), (256,), (64,), (1,), ((128, 128),), 1, 65, 1, seed=7),
    Problem((6, 10, 11), (4, 3, 3), (2, 1, 2), (1, 1, 1), ((1, 1), (1, 1), (1, 0)), 2, 8, 12, 2, seed=8),
    Problem((1,), (1,), (1,), (1,), ((0, 0),), 1, 1, 1, seed=9),
    Problem((2, 2), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), 5, 140, 150, seed=10),  # more weights than inputs
]
layers = pytest.mark.parametrize("problem", LAYERS, ids=lambda p: str(p).split(" | ")[0].replace(" ", "_"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@layers
def test_the_same_bits_for_any_number_of_threads(problem, layout, dtype):
    p = dataclasses.replace(problem, layout=layout, dtype=dtype)
    judge = Judge(p)
    for operator in OPERATORS:
        alone = judge.run(operator, tconv, threads=1)
        for threads in (2, 3, 8):
            assert_same_bits(judge.run(operator, tconv, threads=threads), alone, f"{operator} threads={threads} {p}")
    alone, shared = (tconv.Operator(judge.w, judge.bias, **p.words, threads=threads) for threads in (1, 3))
    assert_same_bits(shared(p.arranged(judge.x)), alone(p.arranged(judge.x)), f"Operator {p}")
    assert_same_bits(shared.T(p.arranged(judge.grad)), alone.T(p.arranged(judge.grad)), f"Operator.T {p}")


def test_more_threads_than_tasks_and_than_shares():
    judge = Judge(LAYERS[4])
    for operator in OPERATORS:
        assert_same_bits(judge.run(operator, tconv, threads=100), judge.run(operator, tconv, threads=1), operator)


def test_the_same_bits_on_random_geometries():
    for seed in range(30_000, 30_150):
        judge = Judge(random_problem(seed, dtypes=("float32", "float64"), budget=600))
        for operator in OPERATORS:
            alone = judge.run(operator, tconv, threads=1)
            for threads in (2, 3, 8):
                assert_same_bits(judge.run(operator, tconv, threads=threads), alone, f"{operator} threads={threads} {judge.problem}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_from_every_kernel(kernel):
    for judge in map(Judge, (*LAYERS[:2], *LAYERS[6:8], LAYERS[9])):
        for operator in OPERATORS:
            alone = judge.run(operator, tconv, threads=1, algorithm=kernel)
            for threads in (2, 3, 8):
                found = judge.run(operator, tconv, threads=threads, algorithm=kernel)
                assert_same_bits(found, alone, f"{operator} {kernel} threads={threads} {judge.problem}")


@pytest.fixture
def thread_setting():
    yield
    tconv.set_num_threads(None)


@pytest.mark.usefixtures("thread_setting")
def test_the_setting_for_all_calls():
    judge = Judge(LAYERS[0])
    results = []
    for threads in (1, 2, 3, 8):
        tconv.set_num_threads(threads)
        assert tconv.get_num_threads() == threads
        results.append(judge.run("forward", tconv))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.usefixtures("thread_setting")
@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_a_thread_count_is_a_positive_integer(threads):
    before = tconv.get_num_threads()
    with pytest.raises(tconv.ArgumentError) as caught:
        tconv.set_num_threads(threads)
    assert caught.value.value == threads
    assert tconv.get_num_threads() == before
    judge = Judge(LAYERS[8])
    for operator in OPERATORS:
        with pytest.raises(tconv.ArgumentError) as caught:
            judge.run(operator, tconv, threads=threads)
        assert caught.value.argument == "threads"


def test_concurrent_calls_give_the_same_bits():
    """Eight Python threads at once, each with its own order of layers and thread counts; Operators are shared."""
    judges = [Judge(p) for p in LAYERS]
    operators = [tconv.Operator(j.w, j.bias, **j.problem.words) for j in judges]
    expected = [[j.run(name, tconv, threads=1) for name in OPERATORS] for j in judges]
    prepared = [operator(j.x) for operator, j in zip(operators, judges, strict=True)]
    start = threading.Barrier(8)

    def work(number):
        rng = np.random.default_rng(number)
        start.wait(timeout=60)
        for _ in range(3):
            for i in map(int, rng.permutation(len(judges))):
                for name, exact in zip(OPERATORS, expected[i], strict=True):
                    assert_same_bits(judges[i].run(name, tconv, threads=int(rng.choice([1, 2, 3]))), exact, f"{name} {judges[i].problem}")
                assert_same_bits(operators[i](judges[i].x), prepared[i], f"Operator {judges[i].problem}")

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(8)]:
            done.result(timeout=120)


# -------------------------------------------------------------------------------------------------------------------------- forks


def fork(child) -> int:
    """Runs child() in a fork and returns its process number; the child exits 0, or 1 where child() raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in a process with threads: our subject
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)
    return pid


def join(pid: int, seconds: float = 30) -> int:
    """The child's exit status; a child that hangs is killed and reported."""
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a forked child was still running after {seconds} s")


def check_all(judges, expected):
    for judge, results in zip(judges, expected, strict=True):
        for name, exact in zip(OPERATORS, results, strict=True):
            assert_same_bits(judge.run(name, tconv, threads=3), exact, f"in a child: {name} {judge.problem}")


@pytest.fixture(scope="module")
def work():
    judges = [Judge(p) for p in LAYERS[:3]]
    return judges, [[j.run(name, tconv, threads=3) for name in OPERATORS] for j in judges]


def test_a_fork_after_the_parent_used_threads(work):
    for _ in range(3):
        assert join(fork(lambda: check_all(*work))) == 0
        check_all(*work)


def test_children_of_children_and_several_at_once(work):
    def child():
        check_all(*work)
        assert join(fork(lambda: check_all(*work)), 20) == 0

    assert [join(pid) for pid in [fork(child) for _ in range(3)]] == [0, 0, 0]
    check_all(*work)


def test_forks_while_another_thread_is_in_a_call(work):
    judges, expected = work
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            judges[0].run("forward", tconv, threads=2)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for _ in range(12):
            assert join(fork(lambda: check_all(judges, expected))) == 0
    finally:
        stop.set()
        busy.join(timeout=60)
    assert not busy.is_alive()
    check_all(judges, expected)


def _forward(seed: int) -> bytes:
    return Judge(dataclasses.replace(LAYERS[0], seed=seed)).run("forward", tconv, threads=2).tobytes()


def test_workers_of_multiprocessing(work):
    """What a data loader does."""
    check_all(*work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(_forward, range(6)).get(timeout=60)
    assert found == [_forward(seed) for seed in range(6)]


def test_a_failing_child_is_seen():
    """The helper above can fail: for an exception, and for a child that hangs."""

    def wrong():
        os.close(2)
        raise AssertionError

    assert join(fork(wrong)) == 1
    with pytest.raises(AssertionError, match="still running"):
        join(fork(lambda: time.sleep(60)), 0.2)
