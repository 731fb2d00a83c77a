# SPDX-License-Identifier: Apache-2.0
"""What the user sees meanwhile: a bar where there is a terminal and rich, plain lines or nothing otherwise.

The bar is drawn between measurements only: a thread that redraws it would run while a peer is timed.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO


class Progress:
    """`with Progress(total) as progress:` then `now` what begins, `done` what ended, `line` anything else.

    `quiet`: nothing at all where `to`, by default stdout, is no terminal.
    """

    def __init__(self, total: int, to: TextIO | None = None, quiet: bool = False) -> None:
        self.total, self.count, self.to = total, 0, to or sys.stdout
        self.quiet = quiet and not self.to.isatty()
        self._bar = _bar(total, self.to) if self.to.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def now(self, text: str) -> None:
        """What is being done."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=text)
            self._bar.refresh()

    def step(self, text: str) -> None:
        """One more of the total is done, and this begins."""
        self._advance()
        self.now(text)

    def done(self, text: str) -> None:
        """One more of the total is done, and a line that stays says so."""
        self._advance()
        self.line(f"[{self.count}/{self.total}] {text}")

    def _advance(self) -> None:
        self.count += 1
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.count)
            self._bar.refresh()

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self.quiet:
            print(text, file=self.to, flush=True)


def _bar(total: int, to: TextIO) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich
    except ImportError:
        return None
    bar = Rich(MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
               auto_refresh=False, transient=to is sys.stderr, console=Console(file=to))  # fmt: skip
    bar.add_task("", total=total)
    return bar
