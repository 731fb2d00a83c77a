# SPDX-License-Identifier: Apache-2.0
"""`tconv.keras` on every backend, each in a process of its own: our tests in keras_layers.py, Keras's own tests on our layers, imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BACKENDS = ("tensorflow", "torch", "jax")
HERE = Path(__file__).parent


def run(backend: str, *command: str) -> subprocess.CompletedProcess[str]:
    found = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu",
                   "JAX_ENABLE_X64": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": found}  # fmt: skip
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layers(backend):
    done = run(backend, "-m", "pytest", "-q", str(HERE / "keras_layers.py"))
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_keras_own_tests_of_its_layers(backend, tmp_path):
    """All of Keras's file but one test, which wants strides beside a dilation_rate refused, where ours compute it.

    Keras's tests skip what has an output_padding of the stride and more, and on TensorFlow one layer with channels first.
    """
    (tmp_path / "substitute.py").write_text(
        "import keras.src.layers, tconv.keras\n"
        "for rank in '123':\n"
        "    setattr(keras.src.layers, f'Conv{rank}DTranspose', getattr(tconv.keras, f'Conv{rank}DTranspose'))\n"
    )
    suite = "keras.src.layers.convolutional.conv_transpose_test"
    code = f"import sys, pytest; sys.path.insert(0, {str(tmp_path)!r}); sys.exit(pytest.main(sys.argv[1:]))"
    done = run(
        backend, "-c", code, "-p", "substitute", "-c", os.devnull, "-p", "no:cacheprovider", "-q", "-rf", "--tb=short", "--pyargs", suite
    )
    failed = re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout.splitlines()[-1])}
    assert failed == ["test_bad_init_args"] and "ValueError not raised" in done.stdout, done.stdout[-20000:] + done.stderr[-2000:]
    assert counts["passed"] >= 182 and counts["skipped"] == 160 + (backend == "tensorflow"), counts


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_other_backend_comes_along(backend):
    """But for what Keras itself imports where it is installed."""

    def brought(statement):
        code = f"import sys\n{statement}\nprint('brought', *sorted({{'tensorflow', 'torch', 'jax', 'keras'}} & {{*sys.modules}}))"
        done = run(backend, "-c", code)
        assert done.returncode == 0, done.stderr[-2000:]
        return set(done.stdout.splitlines()[-1].split()[1:])

    call = "import numpy\nkeras.layers.Conv1DTranspose(2, 3)(numpy.ones((1, 4, 2), 'float32'))"
    theirs = brought(f"import keras\n{call}")
    assert brought(f"import keras, tconv.keras\n{call.replace('keras.layers.', 'tconv.keras.')}") == theirs >= {backend, "keras"}
    assert brought("import tconv.keras") == brought("import keras")
    assert brought("import tconv") == set()
