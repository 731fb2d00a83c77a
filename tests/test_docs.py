# SPDX-License-Identifier: Apache-2.0
"""Every code block of README.md and docs/ runs: `python` blocks as doctests, `console` blocks as commands.

One page is one session: its `python` blocks share their names. A `sh` block holds commands of dev.py, which must exist;
a `text` block is a drawing. A block of any other kind fails, because nobody runs it.
"""

import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tconv

ROOT = Path(__file__).parents[1]
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if "_build" not in p.parts)
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
GUESTS = {"docs/guides/pytorch.md", "docs/guides/tensorflow.md"}  # their examples need a framework: tests/frameworks runs them
APART = {"torch", "tensorflow", "keras", "jax", "core", "main"}  # need a framework, or hold no examples
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(tconv.__path__, "tconv.") if m.name.split(".")[1].lstrip("_").split("_")[0] not in APART
)
COMMANDS = runpy.run_path(str(ROOT / "dev.py"))["COMMANDS"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text: str, kind: str) -> list[tuple[int, str]]:
    """(first line, body) of every fenced block of one kind."""
    return [(text.count("\n", 0, m.start(3)), m[3]) for m in FENCE.finditer(text) if m[2].strip() == kind]


def session(text: str) -> str:
    """A page with all but its `python` blocks blanked, so that doctest reports the page's own line numbers."""
    lines = [""] * (text.count("\n") + 1)
    for first, body in blocks(text, "python"):
        lines[first : first + body.count("\n")] = body.splitlines()
    return "\n".join(lines) + "\n"


def run_session(text: str, name: str) -> doctest.TestResults:
    test = doctest.DocTestParser().get_doctest(session(text), {"__name__": "__main__"}, name, name, 0)
    return doctest.DocTestRunner(optionflags=FLAGS).run(test)


def commands(body: str) -> list[tuple[str, str]]:
    """(command, expected output) of a `console` block."""
    return [(head, tail) for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:] for head, _, tail in [part.partition("\n")]]


def printed(command: list[str], folder: Path) -> str:
    """What a command prints, errors last."""
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GUESTS])
def test_python_examples_of(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / page).read_text(encoding="utf-8")
    for _, body in blocks(text, "python"):
        assert body.startswith(">>> "), f"{page}: a python block without a prompt is not run: {body}"
    results = run_session(text, page)
    assert results.failed == 0, results


@pytest.mark.parametrize("page", PAGES)
def test_commands_of(page, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line, body in blocks((ROOT / page).read_text(encoding="utf-8"), "console"):
        for command, expected in commands(body):
            program, *words = shlex.split(command)
            assert program == "tconv", f"{page}:{line}: {command}"
            found = printed([sys.executable, "-m", "tconv", *words], tmp_path)
            assert doctest.OutputChecker().check_output(expected, found, FLAGS), f"{page}:{line}: {command}\n{found}"


@pytest.mark.parametrize("page", PAGES)
def test_kinds_of_blocks_of(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert {m[2].strip() for m in FENCE.finditer(text)} <= {"python", "console", "sh", "text", "{toctree}"}
    assert text.count("```") == 2 * len(FENCE.findall(text)), "a fence is not closed"
    for _, body in blocks(text, "sh"):
        for line in body.splitlines():
            found = re.match(r"python3 dev.py (\w+)", line)
            assert found and found[1] in COMMANDS, line


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_of(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert doctest.testmod(importlib.import_module(name), optionflags=FLAGS).failed == 0


def test_the_runner_sees_a_wrong_example():
    page = "# page\n\n```python\n>>> 1 + 1\n3\n```\n\n```text\n>>> 1 + 1\n4\n```\n"
    assert run_session(page, "wrong example, on purpose") == doctest.TestResults(failed=1, attempted=1)
    assert session(page).splitlines().index(">>> 1 + 1") == page.splitlines().index(">>> 1 + 1")
    assert commands("$ tconv a\nb\n$ tconv c\n") == [("tconv a", "b\n"), ("tconv c", "")]


def test_tables_of_the_frameworks_are_current():
    renewed = runpy.run_path(str(ROOT / "docs" / "words.py"))["renewed"]
    page = (ROOT / "docs" / "guides" / "frameworks.md").read_text(encoding="utf-8")
    assert page.count("<!-- words ") == page.count("<!-- /words -->") == 4
    assert renewed(page) == page, "run docs/words.py with the Python that has tconv"
    assert renewed("<!-- words axes -->\nold\n<!-- /words -->") != "<!-- words axes -->\nold\n<!-- /words -->"
