# SPDX-License-Identifier: Apache-2.0
"""A photograph blurred, made noisy and restored: beside scikit-image and PyLops, in bounded memory, and on the command line."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pylops
import pytest
from PIL import Image
from pylops.optimization.cls_sparsity import SplitBregman
from scipy.signal import convolve
from skimage import restoration

import tconv
from tconv import deblur
from tconv.cli import main

PHOTO = Path(__file__).parents[1] / "examples" / "chelsea.jpg"
GREY = np.asarray(Image.open(PHOTO).convert("L")) / 255.0
COLOUR = np.asarray(Image.open(PHOTO).convert("RGB"))
KERNELS = ["gaussian:1.5", "motion:9:30", "disk:3"]


def psnr(found, true):
    return -10 * np.log10(np.mean((np.clip(found, 0, 1) - true) ** 2))


def blurred(picture, kernel, boundary="reflect", noise=0.01):
    """By SciPy's convolution, not by ours; the kernel's middle is at (size - 1) // 2."""
    if boundary == "zero":
        clean = convolve(picture, kernel, mode="same")
    else:
        pads = [((size - 1) // 2 + (size + 1) % 2, (size - 1) // 2) for size in kernel.shape]
        clean = convolve(np.pad(picture, pads, mode={"reflect": "reflect", "circular": "wrap"}[boundary]), kernel, mode="valid")
    return np.clip(clean + noise * np.random.default_rng(0).standard_normal(picture.shape), 0, None)


@pytest.mark.parametrize("boundary", ["reflect", "circular", "zero"])
@pytest.mark.parametrize("shape", [(5, 7), (4, 6), (1, 3)])
def test_a_clean_blur_of_any_kernel_is_undone(boundary, shape):
    rng = np.random.default_rng(1)
    picture, kernel = GREY[100:130, 200:240], rng.uniform(0, 1, shape)
    kernel[shape[0] // 2 - (shape[0] + 1) % 2, (shape[1] - 1) // 2] += 2 * kernel.sum()  # most light stays: well conditioned
    kernel /= kernel.sum()
    found = deblur.restore(blurred(picture, kernel, boundary, 0), 7 * kernel, boundary=boundary, method="lsmr")
    assert abs(found.x - picture).max() < 1e-8


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("boundary", ["reflect", "zero"])
def test_at_least_as_near_as_scikit_image(name, boundary):
    kernel = deblur.kernel(name)
    y = blurred(GREY, kernel, boundary)
    ours = {method: psnr(deblur.restore(y, kernel, boundary=boundary, **words).x, GREY) for method, words in {
        "wiener": {"regularization": 0.02}, "unsupervised": {}, "richardson_lucy": {"method": "richardson_lucy", "iterations": 20}}.items()}  # fmt: skip
    theirs = {"wiener": restoration.wiener(y, kernel, 0.02), "richardson_lucy": restoration.richardson_lucy(y, kernel, 20),
              "unsupervised": restoration.unsupervised_wiener(y, kernel, rng=0)[0]}  # fmt: skip
    before = psnr(y, GREY)
    for method, picture in theirs.items():
        assert ours[method] >= psnr(picture, GREY), method
        assert ours[method] > before + 0.5, f"{method}: {ours[method]:.2f} dB from {before:.2f}"


def test_on_a_circle_wiener_is_that_of_scikit_image():
    """The same formula where both assume the same: scikit-image knows no border but this one."""
    kernel = deblur.kernel("motion:9:30")
    y = blurred(GREY, kernel, "circular")
    ours = deblur.restore(y, kernel, boundary="circular", regularization=0.02).x
    theirs = restoration.wiener(y, kernel, 0.02, clip=False)
    assert np.abs(ours - theirs).max() < 1e-9


def test_total_variation_is_as_near_as_that_of_pylops():
    """PyLops' split Bregman with its own convolution, at the same weight, which it sees as eps^2 / mu."""
    truth, kernel, weight, pace = GREY[60:188, 100:228], deblur.kernel("gaussian:1.5"), 0.01, 0.05
    y = blurred(truth, kernel, "zero")
    blur = pylops.signalprocessing.Convolve2D(truth.shape, kernel, offset=(kernel.shape[0] // 2, kernel.shape[1] // 2))
    differences = [pylops.FirstDerivative(truth.shape, axis=axis, kind="forward") for axis in (0, 1)]
    theirs = SplitBregman(blur).solve(y.ravel(), differences, niter_outer=15, niter_inner=1, mu=2 * pace**2 / weight, epsRL1s=[pace] * 2,
                                      iter_lim=10)[0].reshape(truth.shape)  # fmt: skip
    ours = deblur.restore(y, kernel, method="tv", boundary="zero", regularization=weight).x
    assert psnr(ours, truth) >= psnr(theirs, truth) and psnr(ours, truth) > psnr(y, truth) + 1
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < 0.02  # their TV adds the axes up, ours takes lengths


def test_every_channel_of_a_colour_picture_is_treated_alike():
    kernel = deblur.kernel("disk:2")
    found = deblur.restore(COLOUR, kernel, regularization=0.01)
    assert found.x.dtype == np.uint8 and found.x.shape == COLOUR.shape
    for channel in range(3):
        one = deblur.restore(COLOUR[..., channel], kernel, regularization=0.01).x
        assert abs(one.astype(int) - found.x[..., channel]).max() <= 1


def test_beyond_a_free_border_nothing_is_assumed():
    """A photograph cut out of a larger one: what lies beyond is neither its mirror image nor 0."""
    kernel, inside = deblur.kernel("disk:4"), (slice(60, 200), slice(100, 300))
    y = blurred(GREY, kernel, noise=0.005)[inside]
    free, zero = (psnr(deblur.restore(y, kernel, method="tv", noise=0.005, boundary=b).x, GREY[inside]) for b in ("free", "zero"))
    assert free > zero + 3 and free > psnr(y, GREY[inside]) + 1


@pytest.mark.parametrize("method, iterations", [("fourier", None), ("richardson_lucy", 2), ("tv", 2), ("lsmr", 2)])
@pytest.mark.filterwarnings("ignore:lsmr did not converge")
def test_a_large_picture_takes_bounded_memory(method, iterations):
    picture = np.random.default_rng(0).integers(0, 256, (2048, 2048), np.uint8)
    words = {} if method == "richardson_lucy" else {"regularization": 0.1}
    tracemalloc.start()
    found = deblur.restore(picture, deblur.kernel("gaussian:2"), method=method, iterations=iterations, **words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.x.shape == picture.shape and peak < 24 * 4 * picture.size, f"{peak / 2**20:.0f} MiB"


def test_kernels_are_centred_and_sum_to_one():
    for name in ("gaussian:1", "disk:0.5", "disk:3.5", "motion:1", "motion:7", "motion:8:45", "motion:12.5:-120"):
        taps = deblur.kernel(name)
        centre = [(np.arange(n) * taps.sum(1 - axis)).sum() for axis, n in enumerate(taps.shape)]
        assert taps.sum() == pytest.approx(1) and taps.min() >= 0
        assert np.allclose(centre, [(n - 1) / 2 for n in taps.shape], atol=1e-9), name
    up = deblur.kernel("motion:9:45")
    assert up[0, -1] > 0 and up[0, 0] == 0, "45 degrees go up to the right"


@pytest.mark.parametrize("argument, call", [
    ("kernel", lambda: deblur.restore(COLOUR, np.zeros((3, 3)))), ("kernel", lambda: deblur.restore(COLOUR, np.ones(3))),
    ("kernel", lambda: deblur.kernel("box:3")), ("kernel", lambda: deblur.kernel("gaussian:-1")), ("kernel", lambda: deblur.kernel("motion:nan")),
    ("kernel", lambda: deblur.kernel("disk:9999")), ("method", lambda: deblur.restore(COLOUR, np.ones((3, 3)), method="dense")),
    ("boundary", lambda: deblur.restore(COLOUR, np.ones((3, 3)), boundary="wrap")), ("image", lambda: deblur.restore(COLOUR[0, 0], np.ones((3, 3)))),
])  # fmt: skip
def test_bad_arguments_are_named(argument, call):
    with pytest.raises(tconv.ArgumentError) as error:
        call()
    assert error.value.argument == argument


# ---------------------------------------------------------------- command line


@pytest.fixture
def blurry(tmp_path):
    kernel = deblur.kernel("disk:2")
    planes = [blurred(COLOUR[..., c] / 255.0, kernel, noise=0.003) for c in range(3)]
    Image.fromarray(np.rint(255 * np.clip(np.stack(planes, -1), 0, 1)).astype(np.uint8)).save(tmp_path / "blurry.png")
    return tmp_path, kernel


def test_the_command_sharpens_by_every_kind_of_kernel(blurry, capsys):
    folder, kernel = blurry
    np.save(folder / "kernel.npy", kernel)
    Image.fromarray(np.rint(65535 * kernel / kernel.max()).astype(np.uint16)).save(folder / "kernel.png")
    photo = str(folder / "blurry.png")
    for name in ("disk:2", str(folder / "kernel.npy"), str(folder / "kernel.png")):
        out, both = folder / "out.png", folder / "both.png"
        assert main(["deblur", photo, name, str(out), "--compare", str(both), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["method"] == "fourier" and facts["regularization"] > 0 and facts["kernel_size"] == [5, 5]
        result, before = np.asarray(Image.open(out)), np.asarray(Image.open(photo))
        assert psnr(result / 255, COLOUR / 255) > psnr(before / 255, COLOUR / 255) + 2
        assert np.array_equal(np.asarray(Image.open(both)), np.concatenate([before, result], axis=1))


def test_the_command_prints_the_evidence(blurry, capsys):
    folder, _ = blurry
    assert main(["deblur", str(folder / "blurry.png"), "disk:2", str(folder / "out.png"), "--method", "tv", "--iterations", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("s") and "5 x 5 kernel" in lines[0]
    assert lines[1].startswith("tv: residual") and "3 iterations, not converged" in lines[1] and "unknowns" in lines[2]


@pytest.mark.parametrize("kernel, words, named", [
    ("disk:x", [], "kernel='disk:x'"), ("none.npy", [], "kernel='none.npy'"), ("none.png", [], "kernel='none.png'"),
    ("disk:2", ["--regularization", "best"], "regularization='best'"), ("disk:2", ["--compare", "x.gif"], "out='x.gif'"),
    ("disk:2", ["--iterations", "0"], "iterations=0"),
])  # fmt: skip
def test_what_is_wrong_with_a_command_is_one_line_and_nothing_is_written(blurry, capsys, monkeypatch, kernel, words, named):
    folder, _ = blurry
    monkeypatch.chdir(folder)
    assert main(["deblur", "blurry.png", kernel, "out.png", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error and not (folder / "out.png").exists()
