# SPDX-License-Identifier: Apache-2.0
"""Settings of the documentation site; its examples run in tests/test_docs.py, as those of the README do."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
from PIL import Image

import tconv
from tconv import deblur

project = "tconv"
copyright = "the tconv authors"
release = version = installed_version("tconv")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"tconv {release}"
highlight_language = "text"
smartquotes = False  # quotes in the text are Python's
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# Gigabytes, for a few signatures; _jax_ops registers its rules with JAX when it is imported.
autodoc_mock_imports = ["equinox", "flax", "haiku", "jax", "keras", "tensorflow", "torch", "tconv._jax_ops"]


def as_plain_text(app, what, name, obj, options, lines):
    """Docstrings are plain text, not reStructuredText: keep `*`, show `code` as code, indented blocks and tables as they stand."""
    found, example, block = [], False, False
    for line in lines:
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        indented = line.startswith("    ") and bool(line.strip()) and not example
        if indented and not block:
            found += ["", "::", ""]
        if block and line.strip() and not indented:
            found.append("")
        block = indented or (block and not line.strip())
        text = line if example or block else as_paragraph(line)
        if found and found[-1] and text and text.startswith("| ") != found[-1].startswith("| "):
            found.append("")
        found.append(text)
    lines[:] = found


def as_paragraph(line):
    text = re.sub(r"`([^`]+)`", r"``\1``", line)
    text = re.sub(r"(``.*?``)|([*|_\\])", lambda m: m[1] or "\\" + m[2], text)
    return ("| " if re.match(r"\w+(, \w+)*: ", text) else "") + text


def draw_deconvolution(app):
    """The picture of guides/deconvolution.md: blurred, blurred again by the transpose, restored."""
    photo = np.asarray(Image.open(Path(app.srcdir).parent / "examples" / "chelsea.jpg")) / 255
    kernel = deblur.kernel("motion:9:30")
    blur = tconv.Operator(kernel[::-1, ::-1][None, None])
    y = blur.T(np.pad(np.moveaxis(photo, -1, 0)[:, None], [(0, 0), (0, 0), (3, 3), (4, 4)], mode="reflect"))
    y += 0.01 * np.random.default_rng(0).standard_normal(y.shape)
    blurred, again = (np.moveaxis(planes[:, 0], 0, -1) for planes in (y, blur(y)[:, :, 3:-3, 4:-4]))
    row = np.concatenate([blurred, again, deblur.restore(blurred, kernel).x], axis=1)
    folder = Path(app.srcdir) / "_build" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * np.clip(row, 0, 1)).astype(np.uint8)).save(folder / "deconvolution.png")


def setup(app):
    app.connect("builder-inited", draw_deconvolution)
    app.connect("autodoc-process-docstring", as_plain_text)
