# SPDX-License-Identifier: Apache-2.0
"""The examples of tconv.torch, in its docstrings and in its guide; and that the package never brings PyTorch along."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
from test_docs import FLAGS, ROOT, blocks, run_session

import tconv
import tconv.torch

PAGE = "docs/guides/pytorch.md"
MODULES = sorted(m.name for m in pkgutil.iter_modules(tconv.__path__) if m.name.startswith("_torch"))


def test_python_examples_of_the_guide():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert len(blocks(text, "python")) >= 4
    results = run_session(text, PAGE)
    assert results.attempted and results.failed == 0, results


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_of(name):
    assert doctest.testmod(importlib.import_module(f"tconv.{name}"), optionflags=FLAGS).failed == 0


def test_public_names_explain_themselves():
    for name in tconv.torch.__all__:
        assert inspect.getdoc(getattr(tconv.torch, name)), f"{name} has no docstring"


def test_tconv_alone_does_not_bring_torch():
    code = "import sys, tconv; print('torch' in sys.modules); import tconv.torch; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "True"]
