# SPDX-License-Identifier: Apache-2.0
"""What the user sees meanwhile: a bar where there is a terminal and rich, plain lines otherwise.

The bar is drawn between measurements only: a thread that redraws it would run while a peer is timed.
"""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """`with Progress(total) as progress:` then `now` what begins, `done` what ended, `line` anything else."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0
        self._bar = _bar(total) if sys.stdout.isatty() else None

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

    def done(self, text: str) -> None:
        """One more of the total is done."""
        self.count += 1
        self.line(f"[{self.count}/{self.total}] {text}")
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.count)
            self._bar.refresh()

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)


def _bar(total: int) -> Any:
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich
    except ImportError:
        return None
    bar = Rich(MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
               auto_refresh=False)  # fmt: skip
    bar.add_task("", total=total)
    return bar
