# SPDX-License-Identifier: Apache-2.0
"""What a change of a model reports, in every framework."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What was done to a model's transposed convolutions, by name, and what was left alone, with the reason; prints as a table."""

    action: str
    done: dict[str, str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.action} {len(self.done)} of {len(self.done) + len(self.skipped)} transposed convolutions"]
        width = max(map(len, [*self.done, *self.skipped]), default=0)
        lines += [f"  {name or '(model)':<{width}}  {text}" for name, text in self.done.items()]
        lines += ["skipped"] * bool(self.skipped) + [f"  {name or '(model)':<{width}}  {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)
