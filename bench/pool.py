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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_STOPS = hasattr(signal, "SIGSTOP")


class Failed(Exception):
    """The worker refused, crashed or hung; the text says which."""


class Process:
    """One library in a process of its own, restarted after a crash or a hang.

    Between requests the process is stopped (SIGSTOP), so that no thread of it spins while others are timed.
    """

    def __init__(self, peer: str, threads: int, environment: dict[str, str] | None = None) -> None:
        self.peer, self.threads = peer, threads
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._errors: Any = None

    def start(self) -> None:
        """Start the process without waiting for it."""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", self.peer, str(self.threads)], cwd=ROOT, env=self._environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True)  # fmt: skip
        self._answers = queue.Queue()
        self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True)
        self._reader.start()

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """The answer to a request within `limit` seconds; a process that is not there is started first."""
        if self._process is None:
            self.start()
            if request["do"] != "hello":
                self.ask(120, do="hello")
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
            self._process.kill()
            self._process.wait()
            self._reader.join()
            for stream in filter(None, (self._process.stdin, self._process.stdout, self._errors)):
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
        if _STOPS and self._process is not None:
            os.kill(self._process.pid, getattr(signal, name))


def _read(stream: Any, answers: queue.Queue[str | None]) -> None:
    for line in stream:
        answers.put(line)
    answers.put(None)
