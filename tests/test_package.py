# SPDX-License-Identifier: Apache-2.0
"""The package as a user meets it: names, imports, version, files, and the textbook results in every door."""

import ast
import importlib.metadata
import importlib.resources
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tconv
import tconv.reference

ROOT = Path(__file__).parents[1]
NAMES = {
    "conv_transpose", "conv_transpose_grad_input", "conv_transpose_grad_weight", "conv_transpose_grads", "Gradients", "Operator", "stamp", "Spec", "Axis",
    "ArgumentError", "deconvolve", "conv_transpose_inverse", "Deconvolution", "Posedness", "conventions", "convert", "reference", "config",
    "show_config", "set_num_threads", "get_num_threads", "kernels",
}  # fmt: skip
NOT_OURS = {"extern", ".git", "build", "dist", "_build", "results", "__pycache__"}
LINKS = {"www.apache.org", "arxiv.org", "distill.pub", "keepachangelog.com", "semver.org", "numpy.org", "docs.python.org",
         "creativecommons.org"}  # fmt: skip


def test_what_is_public_is_listed_and_nothing_else_looks_public():
    assert set(tconv.__all__) == NAMES
    assert len(tconv.__all__) == len(NAMES), "a name is listed twice"
    modules = {m.name for m in pkgutil.iter_modules(tconv.__path__)}
    visible = {name for name in vars(tconv) if not name.startswith("_")} - modules - {"annotations"}
    assert visible <= NAMES, "import it as _name, or list it in __all__"


@pytest.mark.parametrize("name", sorted(NAMES - {"conventions", "reference"}))
def test_public_objects_explain_themselves(name):
    found = getattr(tconv, name)
    assert found.__module__.split(".")[0] == "tconv"
    assert inspect.getdoc(found), f"{name} has no docstring"
    assert not [p for p in inspect.signature(found).parameters if p.startswith("_")]


def test_reference_has_the_signatures_of_the_native_functions():
    for name in ("conv_transpose", "conv_transpose_grad_input", "conv_transpose_grad_weight"):
        native, plain = (inspect.signature(getattr(m, name)).parameters for m in (tconv, tconv.reference))
        assert [p for p in native if p not in ("out", "threads", "algorithm")] == list(plain)
        assert all(native[p].default == plain[p].default and native[p].kind == plain[p].kind for p in plain)


def imported_by(statement):
    """The top-level modules that a statement brings into a fresh interpreter, the standard library left out."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}} - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_brings_numpy_and_nothing_heavier():
    assert imported_by("import tconv") - imported_by("pass") == {"tconv", "numpy"}


def test_the_import_check_can_fail():
    assert {"PIL", "rich"} <= imported_by("import tconv, PIL.Image, rich") - imported_by("pass")


def test_reference_does_not_import_the_core():
    tree = ast.parse(inspect.getsource(tconv.reference))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "numpy" in found and not {"_core", "_runtime"} & found


def test_version_is_that_of_the_distribution_and_in_the_changelog():
    assert tconv.__version__ == importlib.metadata.version("tconv")
    assert f"## [{tconv.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_an_old_python_can_read_dev_py_to_be_told_so():
    ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 8))


def test_types_are_shipped():
    files = importlib.resources.files("tconv")
    assert (files / "py.typed").is_file() and (files / "_core.pyi").is_file()


X, KERNEL = np.array([[0.0, 1], [2, 3]]), np.array([[4.0, 1], [2, 3]])
FULL = [[0, 4, 1], [8, 16, 6], [4, 12, 9]]


def test_textbook_by_stamp_keeps_integers_exact():
    assert tconv.stamp(X, KERNEL).tolist() == FULL
    assert tconv.stamp(X.astype(int), KERNEL.astype(int)).tolist() == FULL


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_textbook_by_every_door(dtype):
    x, w = X[None, None].astype(dtype), KERNEL[None, None].astype(dtype)
    for y in (tconv.conv_transpose(x, w), tconv.Operator(w)(x), tconv.reference.conv_transpose(x, w)):
        assert y.dtype == dtype and y[0, 0].tolist() == FULL


def test_textbook_sizes_of_valid_and_same():
    rng = np.random.default_rng(1)
    x, kernel = rng.integers(-9, 9, (4, 4)), rng.integers(-9, 9, (3, 3))
    full = np.zeros((9, 9))
    for i, j in np.ndindex(4, 4):
        full[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += x[i, j] * kernel
    assert np.array_equal(tconv.stamp(x, kernel, stride=2, padding="valid"), full)
    assert np.array_equal(tconv.stamp(x, kernel, stride=2, padding="same"), full[:8, :8])


def sources():
    """The text files of the checkout, whether or not git is there to ask."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not any(p in NOT_OURS or p.startswith(".venv") or p.endswith(("_cache", ".egg-info")) for p in parts):
            data = path.read_bytes()
            if b"\0" not in data and ".hypothesis" not in parts:
                yield "/".join(parts), data.decode("utf-8")


def offences(text):
    """Addresses outside the list, package sources of one machine, and absolute paths of one machine."""
    hosts = {h for h in re.findall(r"https?://([^/\s\"'`)>,;\]]+)", text) if h not in LINKS}
    options = re.findall(r"--(?:extra-)?index-url|--find-links|\[global\]", text)
    return sorted(hosts) + options + re.findall(r"(?<![\w.\-}])/(?:root|home|work|opt|mnt|Users)/\S*", text)


def test_no_file_names_a_machine():
    found = {name: bad for name, text in sources() if name != "tests/test_package.py" and (bad := offences(text))}
    assert found == {}


def test_the_machine_check_can_fail():
    assert offences("see https://packages.example.com/simple and /home/me/tconv, pip --find-links x") == [
        "packages.example.com", "--find-links", "/home/me/tconv,"]  # fmt: skip


def test_every_source_says_its_licence():
    kinds = (".py", ".pyi", ".cc", ".cpp", ".h", ".hpp", ".inc")
    assert [name for name, text in sources() if name.endswith(kinds) and "SPDX-License-Identifier: Apache-2.0" not in text[:200]] == []


def test_the_library_for_tensorflow_does_nothing_without_tensorflow():
    found = [str(path) for path in Path(tconv.__file__).parent.glob("*.ops")]
    assert len(found) == (sys.platform != "win32")
    for path in found:
        subprocess.run([sys.executable, "-c", f"import ctypes, tconv; ctypes.CDLL({path!r})"], check=True)
