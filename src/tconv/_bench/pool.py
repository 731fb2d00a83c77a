# SPDX-License-Identifier: Apache-2.0
"""The parent's side of a worker: start, ask with a time limit, and keep it stopped while it is not its turn."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from . import gauge

WORKER = "tconv._bench.worker"
_START = 120.0  # seconds after which a library that is being imported is said to hang
_END = 5.0  # seconds for what a killed process had written
_GROUPS = hasattr(os, "killpg")


class Failed(ChildProcessError):
    """The worker refused, crashed or hung; the text says which."""


class Process:
    """One library in a process of its own, restarted after a crash or a hang.

    Between requests the process is stopped (SIGSTOP), so that no thread of it spins while others are timed. Signals go to
    its whole group: libraries start processes of their own. `module` is what it runs: it gets the peer's name and the number
    of threads, and serves as worker.py does.
    """

    def __init__(self, peer: str, threads: int, module: str = WORKER) -> None:
        self.peer, self.threads, self.module = peer, threads, module
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._errors: Any = None

    def start(self) -> None:
        """Start the process without waiting for it."""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # lives as long as the process
        with _whole():
            self._process = subprocess.Popen(  # in a session of its own, so that Ctrl-C reaches us alone
                [sys.executable, "-P", "-m", self.module, self.peer, str(self.threads)], env=self._environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True)  # fmt: skip
            self._answers = queue.Queue()
            self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True)
            self._reader.start()

    def _environment(self) -> dict[str, str]:
        """Ours; the modules that we find, and nothing that happens to lie in the current folder."""
        told = gauge.environment(self.peer, self.threads) if self.peer.startswith("gauge:") else {}
        return {**os.environ, **told, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def hello(self) -> dict[str, Any]:
        """What the peer says of itself once its library is there."""
        return self.ask(_START, do="hello")

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """The answer to a request within `limit` seconds; a process that is not there is started first."""
        if self._process is None:
            self.start()
            if request["do"] != "hello":
                self.hello()
        self._signal("SIGCONT")
        try:
            self._send(request)
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            self.stop()
            raise Failed(f"no answer to {request['do']!r} within {limit:.0f} s") from None
        if line is None:
            raise Failed(self._crash())
        self._signal("SIGSTOP")
        answer: dict[str, Any] = json.loads(line)
        if "reason" in answer:
            raise Failed(answer["reason"])
        return answer

    def stop(self) -> None:
        """Kill the process, if there is one; the next request starts another."""
        if self._process and self._reader:
            self._signal("SIGKILL")
            self._process.wait()
            self._reader.join(_END)
            output = None if self._reader.is_alive() else self._process.stdout  # someone else holds it open
            for stream in filter(None, (self._process.stdin, output, self._errors)):
                with contextlib.suppress(BrokenPipeError):  # a request may lie unsent in the buffer
                    stream.close()
            self._process = None

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reader's None tells
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def _crash(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        last = [line.strip() for line in self._errors.read().splitlines() if line.strip()][-1:]
        self.stop()
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"crashed with {ended}{': ' + last[0][:300] if last else ''}"

    def _signal(self, name: str) -> None:
        if self._process is None:
            return
        if _GROUPS:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
                os.killpg(self._process.pid, getattr(signal, name))
        elif name == "SIGKILL":
            self._process.kill()


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Ctrl-C waits until this is over, where the system can hold it back: a process half started would be nobody's to stop."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(stream: Any, answers: queue.Queue[str | None]) -> None:
    for line in stream:
        answers.put(line)
    answers.put(None)
