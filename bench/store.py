# SPDX-License-Identifier: Apache-2.0
"""The file of results: written whole after every layer, so that a run can be cut off at any time and resumed."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tconv._bench.layer import Layer

FORMAT = 2
FIXED = ("commit", "machine", "settings")  # what a resumed run must share with the first part


class Store:
    """Results in memory and on disk: `units` holds one entry a layer and number of threads, `memory` and `mixed` what those measure."""

    def __init__(self, path: Path, head: dict[str, Any], resume: bool = False) -> None:
        self.path = path
        if path.exists() and not resume:
            raise SystemExit(f"bench: {path} exists: give --resume to go on with it, or another --name")
        empty: dict[str, Any] = {"versions": {}, "notes": {}, "absent": {}, "peaks": [], "units": [], "memory": [], "mixed": []}
        self.data: dict[str, Any] = {"format": FORMAT, **head, "started": now(), **empty}
        if path.is_file():
            self._continue(load(path), head)

    @classmethod
    def of(cls, path: Path | None, head: dict[str, Any]) -> Store:
        """The store of an existing file, which must agree with `head`; without a file, one that is never written."""
        if path is None:
            return cls(Path(os.devnull), head, resume=True)
        load(path)
        return cls(path, head, resume=True)

    def _continue(self, old: dict[str, Any], head: dict[str, Any]) -> None:
        for key in (key for key in FIXED if key in head):
            if old[key] != json.loads(json.dumps(head[key])):
                raise SystemExit(f"bench: {self.path} was begun with another {key} ({old[key]}, now {head[key]}): one table must not mix "
                                 "them; start anew with another --name")  # fmt: skip
        self.data = old

    def done(self, layer: Layer, threads: int, peers: list[str]) -> bool:
        """Whether this layer is there with every one of these peers; a lone peer is never added to an old round."""
        return any(unit["problem"] == str(layer.spec) and unit["threads"] == threads and set(peers) <= set(unit["cells"])
                   for unit in self.data["units"])  # fmt: skip

    def say(self, said: dict[str, dict[str, Any]]) -> None:
        """Keep what the peers said of themselves."""
        for name, answer in said.items():
            if "reason" in answer:
                self.data["absent"][name] = answer["reason"]
            elif "version" in answer:
                self.data["versions"][name], self.data["notes"][name] = answer["version"], answer["note"]

    def peak(self, threads: int, measured: dict[str, Any]) -> None:
        """Keep one measurement of the machine's rates."""
        self.data["peaks"].append({"threads": threads, **measured})

    def add(self, layer: Layer, threads: int, load: float | None, cells: dict[str, Any]) -> None:
        """Keep a layer, in the place of an older measurement of it, and write the file."""
        unit = {"layer": layer.name, "problem": str(layer.spec), "kind": layer.kind, "macs": layer.spec.macs, "bytes": layer.bytes,
                "threads": threads, "date": now(), "load": load, "cells": cells}  # fmt: skip
        self.data["units"] = [u for u in self.data["units"] if (u["problem"], u["threads"]) != (unit["problem"], threads)] + [unit]
        self.save()

    def has(self, part: str, key: dict[str, Any]) -> bool:
        """Whether `memory` or `mixed` holds an entry with these values."""
        return any(_agrees(entry, key) for entry in self.data[part])

    def keep(self, part: str, key: dict[str, Any], measured: dict[str, Any]) -> None:
        """Keep an entry of `memory` or `mixed`, in the place of an older one with the same key, and write the file."""
        self.data[part] = [entry for entry in self.data[part] if not _agrees(entry, key)] + [{**key, **measured}]
        self.save()

    def save(self) -> None:
        """Write a new file and put it in the place of the old one: there is always a whole one."""
        if self.path == Path(os.devnull):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.path)


def _agrees(entry: dict[str, Any], key: dict[str, Any]) -> bool:
    return all(entry[name] == value for name, value in key.items())


def load(path: Path) -> dict[str, Any]:
    """The results in a file."""
    if not path.exists():
        raise SystemExit(f"bench: there is no {path}")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data.get("format") != FORMAT:
        raise SystemExit(f"bench: {path} has format {data.get('format')}, this program reads {FORMAT}")
    return data


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
