# SPDX-License-Identifier: Apache-2.0
"""Networks that enlarge: against the definition layer by layer, tiles against the whole, the shipped ones against photographs."""

from __future__ import annotations

import importlib.resources
import io
import re
import subprocess
import sys
from pathlib import Path

import definition
import numpy as np
import pytest
from PIL import Image

from tconv import ArgumentError, kernels
from tconv import _picture as picture
from tconv.upscale import SHIPPED, Network, bands, enlarge

PHOTO = Path(__file__).parent.parent / "examples" / "chelsea.jpg"
LUMA = np.array([0.299, 0.587, 0.114])

every_scale = pytest.mark.parametrize("scale", SHIPPED)


def weights(channels: list[int], sizes: list[int], seed: int = 5) -> list[np.ndarray]:
    """Random and so asymmetric, of a size that keeps values near 1."""
    rng = np.random.default_rng(seed)
    shapes = [(cin, cout, k, k) for cin, cout, k in zip(channels, (*channels[1:], 1), sizes, strict=True)]
    return [rng.standard_normal(shape) / np.sqrt(shape[0] * shape[2] * shape[3]) for shape in shapes]


def photo(rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
    with Image.open(PHOTO) as image:
        return np.asarray(image)[rows, columns]


def by_definition(window: np.ndarray, layers: list[np.ndarray], scale: int, slope: float) -> np.ndarray:
    """Every layer by the scatter loop, uncropped; then the outputs all of whose taps lie inside, and the activation."""
    planes = window[None, None].astype(np.float64)
    layers = [w.astype(np.float32).astype(np.float64) for w in layers]
    layers[0] = layers[0] - layers[0].mean((0, 2, 3), keepdims=True)
    for number, w in enumerate(layers, 1):
        last, k = number == len(layers), w.shape[2]
        full = definition.conv_transpose(planes, w, [scale if last else 1] * 2, (1, 1), [(0, 0)] * 2, 1)
        lacking = k - (scale if last else 1)
        planes = full[:, :, lacking : full.shape[2] - lacking, lacking : full.shape[3] - lacking]
        planes = planes if last else np.where(planes < 0, slope * planes, planes)
    return planes[0, 0]


@pytest.mark.parametrize("channels, sizes, scale", [
    ([1, 3], [3, 6], 2), ([1, 4, 3, 2], [5, 3, 1, 6], 2), ([1, 2, 5], [3, 1, 3], 1), ([1, 3, 2], [3, 3, 9], 3), ([1, 5], [5, 4], 4), ([1, 9], [3, 20], 4),
])  # fmt: skip
def test_detail_is_the_layers_by_their_definition(channels: list[int], sizes: list[int], scale: int) -> None:
    layers, slope = weights(channels, sizes), 0.3
    network = Network(layers, scale, slope)
    window = np.random.default_rng(6).standard_normal((2 * network.reach + 3, 2 * network.reach + 4)).astype(np.float32)
    expected = by_definition(window, layers, scale, slope)
    assert expected.shape == (3 * scale, 4 * scale) and expected.std() > 0.05
    for algorithm in ("auto", "positions", "channels", "auto_scalar"):
        found = network.detail(window, algorithm=algorithm)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_enlarge_adds_the_detail_of_the_repeated_border_to_bicubic_interpolation() -> None:
    layers, slope, scale = weights([1, 3, 2], [3, 3, 9]), 0.1, 3
    network = Network(layers, scale, slope)
    image = np.random.default_rng(7).random((5, 4, 3))
    parts = np.array([0.5, 0.0, -0.25])
    brightness = np.pad(image @ parts, network.reach, mode="edge")
    detail = by_definition(brightness, layers, scale, slope)
    expected = enlarge(image, scale, "bicubic") + detail[..., None] * (parts != 0)
    np.testing.assert_allclose(enlarge(image, scale, network, luma=parts), expected, rtol=0, atol=1e-5)


def test_brightness_by_the_number_of_channels() -> None:
    """RGB has that of BT.601; alpha has none and gets no detail; grey is its own; more channels are pictures of their own."""
    network, colour = Network(weights([1, 4], [3, 6]), 2), photo(slice(9), slice(8)).astype(np.float64)
    grey, alpha, bicubic = colour @ LUMA, colour[..., :1] / 2, enlarge(colour, 2, "bicubic")
    detail = enlarge(grey, 2, network) - enlarge(grey, 2, "bicubic")
    assert detail.std() > 0.2
    close = {"rtol": 0, "atol": 1e-4}
    np.testing.assert_allclose(enlarge(colour, 2, network), bicubic + detail[..., None], **close)
    both = enlarge(np.concatenate([colour, alpha], 2), 2, network)
    np.testing.assert_allclose(both[..., :3], bicubic + detail[..., None], **close)
    np.testing.assert_array_equal(both[..., 3:], enlarge(alpha, 2, "bicubic"))
    np.testing.assert_allclose(enlarge(np.stack([grey, alpha[..., 0]], 2), 2, network)[..., 0], enlarge(grey, 2, network), **close)
    five = np.concatenate([colour, colour[..., :2]], 2)
    for channel, of_it in enumerate(np.moveaxis(enlarge(five, 2, network), 2, 0)):
        np.testing.assert_allclose(of_it, enlarge(five[..., channel], 2, network), **close)


# ------------------------------------------------------------------------------------------------------------------------------- no seams


@every_scale
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_tiles_equal_the_whole(scale: int, dtype: str) -> None:
    """More than one tile a side, none of them full at the end: the bits are those of any bands."""
    image = np.resize(photo(), (149, 271, 3)).astype(dtype)
    whole = enlarge(image, scale, "net", rows=149)
    assert whole.dtype == image.dtype and whole.shape == (149 * scale, 271 * scale, 3)
    for rows in (1, 40, 64, 130):
        for first, band in bands(image, scale, "net", rows=rows):
            np.testing.assert_array_equal(band, whole[first : first + len(band)])


@pytest.mark.parametrize("algorithm", [name for name in kernels() if name.startswith(("auto", "positions", "channels"))])
def test_bands_and_threads_keep_the_bits_of_every_kernel(algorithm: str) -> None:
    image = photo(slice(70), slice(140)).astype(np.float32)
    whole = enlarge(image, 2, "net", rows=70, threads=1, algorithm=algorithm)
    np.testing.assert_array_equal(enlarge(image, 2, "net", rows=23, threads=2, algorithm=algorithm), whole)


@every_scale
def test_tiles_equal_one_window_of_the_whole_picture(scale: int) -> None:
    """The network sees the picture at once, without any tile: float32's rounding apart, the same, at every seam."""
    image = photo()[..., 1].astype(np.float64)[:150, :290] / 255
    network = Network.load(shipped(scale))
    whole = network.detail(np.pad(image - image[0, 0], network.reach, mode="edge"))
    np.testing.assert_allclose(enlarge(image, scale, "net"), enlarge(image, scale, "bicubic") + whole, rtol=0, atol=2e-6)


def shipped(scale: int) -> Path:
    return Path(str(importlib.resources.files("tconv") / "networks" / f"x{scale}.npz"))


@every_scale
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 200), (65, 2), (20, 129)])
def test_pictures_of_any_size(scale: int, shape: tuple[int, int]) -> None:
    image = np.resize(photo(), (*shape, 3))
    result = enlarge(image, scale, "net")
    assert result.shape == (shape[0] * scale, shape[1] * scale, 3) and result.dtype == np.uint8
    assert abs(result.astype(int) - enlarge(image, scale, "bicubic")).mean() < 40


# ------------------------------------------------------------------------------------------------------------------- the shipped networks


@every_scale
def test_the_files_are_small_and_load(scale: int) -> None:
    assert shipped(scale).stat().st_size < 200_000
    assert Network.load(shipped(scale)).scale == scale


def psnr(a: np.ndarray, b: np.ndarray, scale: int) -> float:
    error = (a.astype(float) - b)[scale:-scale, scale:-scale] @ LUMA
    return float(10 * np.log10(255**2 / np.mean(error**2)))


@pytest.mark.parametrize("scale, gain", [(2, 1.0), (3, 0.5), (4, 0.4)])
def test_the_photograph_made_smaller_comes_back_better_than_by_bicubic(scale: int, gain: float) -> None:
    """Of a picture held out of training; what docs/guides/networks.md says of it is a few tenths more."""
    with Image.open(PHOTO) as image:
        large = image.crop((0, 0, image.width // scale * scale, image.height // scale * scale))
    small = np.asarray(large.resize((large.width // scale, large.height // scale), Image.Resampling.BICUBIC))
    net, bicubic = (psnr(enlarge(small, scale, method), np.asarray(large), scale) for method in ("net", "bicubic"))
    assert net - bicubic > gain


@every_scale
@pytest.mark.parametrize("dtype, value", [("uint8", 255), ("uint16", 1), ("int32", -7), ("float32", -3e30), ("float64", 0.1)])
def test_a_constant_stays_constant(scale: int, dtype: str, value: float) -> None:
    result = enlarge(np.full((5, 70), value, dtype), scale, "net")
    np.testing.assert_allclose(result, np.full((5 * scale, 70 * scale), value, dtype), rtol=1e-6)


@every_scale
def test_a_large_offset_costs_no_digits(scale: int) -> None:
    """The layers are of float32, so they see what is left of a picture when its first pixel is taken off."""
    image = np.random.default_rng(4).random((40, 30))
    expected = enlarge(image, scale, "net") - enlarge(image, scale, "bicubic")
    assert expected.std() > 0.01
    found = enlarge(image + 1e6, scale, "net") - enlarge(image + 1e6, scale, "bicubic")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@every_scale
def test_more_contrast_gets_as_much_more_detail_whatever_the_range(scale: int) -> None:
    image = photo(slice(40), slice(50)).astype(np.float64)
    expected = 257 * enlarge(image, scale, "net") - 1000
    np.testing.assert_allclose(enlarge(257 * image - 1000, scale, "net"), expected, rtol=0, atol=0.05)
    deep = enlarge(photo(slice(40), slice(50)).astype(np.uint16) * 257, scale, "net")
    np.testing.assert_allclose(deep, np.clip(np.rint(expected + 1000), 0, 65535), rtol=0, atol=1)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_of_picture(mode: str) -> None:
    with Image.open(PHOTO) as image:
        part = image.crop((100, 60, 160, 120))
    if mode in ("I;16", "I", "F"):
        deep = np.asarray(part.convert("L")).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        part = Image.fromarray(deep * 200)
    part = Image.merge(mode, [*part.split(), part.getchannel(0)]) if mode == "CMYK" else part.convert(mode)
    if mode.endswith("A"):
        part.putalpha(Image.linear_gradient("L").resize(part.size))
    net, bicubic = (picture.enlarge(part, 2, method, lambda rows: None) for method in ("net", "bicubic"))
    assert (net.mode, net.size) == (mode, (120, 120))
    changed = [abs(np.asarray(a, float) - np.asarray(b, float)).max() for a, b in zip(net.split(), bicubic.split(), strict=True)]
    still = {"LA": [1], "RGBA": [3], "YCbCr": [1, 2]}.get(mode, [])  # but that Pillow's bicubic rounds between its passes
    assert all((most <= 1) == (channel in still) for channel, most in enumerate(changed)), changed


def test_a_megapixel_takes_little_memory(tmp_path: Path) -> None:
    """Of the whole command, libraries included. Not ru_maxrss, which begins with the memory of this process."""
    with Image.open(PHOTO) as image:
        image.resize((1200, 834)).save(tmp_path / "photo.png")
    code = "from tconv.cli import main; main(['upscale', 'photo.png', 'large.jpg', '--json']); print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    with Image.open(tmp_path / "large.jpg") as large:
        assert large.size == (2400, 1668)
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert int(peak) < 300_000


def test_hidden_colours_make_no_difference() -> None:
    """Colours times alpha are what the network sees."""
    hidden = Image.new("RGBA", (20, 12), (255, 0, 0, 0))
    hidden.paste((0, 90, 255, 255), (4, 2, 12, 10))
    hidden.paste((90, 0, 255, 99), (8, 4, 16, 10))
    clean = np.asarray(hidden) * (np.asarray(hidden)[..., 3:] > 0)
    results = [np.asarray(picture.enlarge(image, 3, "net", lambda rows: None)) for image in (hidden, Image.fromarray(clean))]
    visible = results[0][..., 3] > 0
    np.testing.assert_array_equal(results[0][..., 3], results[1][..., 3])
    np.testing.assert_array_equal(results[0][visible], results[1][visible])
    assert visible.mean() > 0.1


# ------------------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("layers, scale, slope, text", [
    ([], 2, 0.1, "weights=[]: must be two or more arrays (Cin, Cout, k, k)"),
    ([np.ones((1, 1, 6, 6))], 2, 0.1, "weights=[(1, 1, 6, 6)]: must be two or more arrays (Cin, Cout, k, k)"),
    ([np.ones((1, 2, 3)), np.ones((2, 1, 6, 6))], 2, 0.1, "weights=[(1, 2, 3), (2, 1, 6, 6)]: must be two or more arrays (Cin, Cout, k, k)"),
    (weights([1, 3], [3, 6])[::-1], 2, 0.1, "weights=[(3, 1, 6, 6), (1, 3, 3, 3)]: must go from one channel to one"),
    ([np.ones((1, 2, 3, 3)), np.ones((3, 1, 6, 6))], 2, 0.1, "weights=[(1, 2, 3, 3), (3, 1, 6, 6)]: must go from one channel to one"),
    (weights([1, 3], [4, 6]), 2, 0.1, "weights=[(1, 3, 4, 4), (3, 1, 6, 6)]: must have odd kernels, and the last one an odd number of times"),
    (weights([1, 3], [3, 4]), 2, 0.1, "weights=[(1, 3, 3, 3), (3, 1, 4, 4)]: must have odd kernels, and the last one an odd number of times"),
    (weights([1, 3], [3, 6]), 0, 0.1, "scale=0: must be at least 1"),
    (weights([1, 3], [3, 6]), 2.0, 0.1, "scale=2.0: must be an integer"),
    (weights([1, 3], [3, 6]), 2, float("nan"), "slope=nan: must be a finite real number"),
    (weights([1, 3], [3, 6]), 2, "0.1", "slope='0.1': must be a finite real number"),
    ([np.full((1, 2, 3, 3), np.inf), np.ones((2, 1, 6, 6))], 2, 0.1, "weights='float64': must be finite real numbers"),
    ([np.ones((1, 2, 3, 3), complex), np.ones((2, 1, 6, 6))], 2, 0.1, "weights='complex128': must be finite real numbers"),
    ([np.full((1, 2, 3, 3), "a"), np.ones((2, 1, 6, 6))], 2, 0.1, "weights='str32': must be finite real numbers"),
])  # fmt: skip
def test_bad_networks_are_named(layers: list[np.ndarray], scale: int, slope: float, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Network(layers, scale, slope)
    assert str(caught.value).startswith(text)


def archive(**members: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


GOOD = {"arr_0": np.ones((1, 2, 3, 3)), "arr_1": np.ones((2, 1, 6, 6)), "scale": 2, "slope": 0.1}


def test_a_good_file_loads(tmp_path: Path) -> None:
    (tmp_path / "good.npz").write_bytes(archive(**GOOD))
    assert repr(Network.load(tmp_path / "good.npz")) == "Network(x2, 1-2-1 channels, kernels 3 6, reach 2)"


@pytest.mark.parametrize("content, rule", [
    (None, "is no network ("), (b"", "is no network ("), (b"PK\3\4 and then nothing", "is no network ("), (archive(**GOOD)[:300], "is no network ("),
    (archive(arr_0=1), "is no network ("), (archive(**{**GOOD, "scale": [2, 2]}), "is no network ("),
    (archive(**{**GOOD, "arr_0": np.array([None])}), "is no network ("), (archive(**{**GOOD, "arr_1": np.ones(3)}), "must be two or more arrays"),
    (archive(**{**GOOD, "scale": 0}), "must be at least 1"), (archive(**{**GOOD, "slope": np.nan}), "must be a finite real number"),
])  # fmt: skip
def test_bad_files_are_one_clear_error(tmp_path: Path, content: bytes | None, rule: str) -> None:
    if content is not None:
        (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ArgumentError) as caught:
        Network.load(tmp_path / "bad.npz")
    assert rule in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_files_are_one_clear_error(tmp_path: Path) -> None:
    """One byte after another inverted: some change nothing that is read, most are found, none raises anything else."""
    content, refused = shipped(2).read_bytes(), 0
    places = [*range(0, len(content), len(content) // 60), *range(len(content) - 400, len(content), 13)]
    for place in places:
        (tmp_path / "bad.npz").write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            Network.load(tmp_path / "bad.npz")
        except ArgumentError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(places) / 2


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (9,), (9, 9, 1)])
def test_windows_have_to_hold_more_than_the_reach(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"window=\(.*\): must be \(height, width\), each more than twice the reach of 2"):
        Network(weights([1, 3], [3, 6]), 2).detail(np.ones(shape))


def test_windows_hold_real_numbers() -> None:
    for dtype in (complex, str, object):
        with pytest.raises(ArgumentError, match=r"window='\w+': must hold real numbers"):
            Network(weights([1, 3], [3, 6]), 2).detail(np.ones((9, 9)).astype(dtype))


@pytest.mark.parametrize("arguments, options, text", [
    ((2, "nets"), {}, "method='nets': must be one of bilinear, bicubic, lanczos, net, or a Network"),
    ((5, "net"), {}, "scale=5: must be one of 2, 3, 4 where method=\"net\""),
    ((3, Network(weights([1, 3], [3, 6]), 2)), {}, "scale=3: must be that of the network, 2"),
    ((2, "net"), {"luma": [1, 0]}, "luma=[1, 0]: must be finite numbers, one for each of 3 channels, or rows of these"),
    ((2, "net"), {"luma": [1, 0, np.nan]}, "luma=[1, 0, nan]: must be finite numbers"),
    ((2, "net"), {"luma": "grey"}, "luma='grey': must be finite numbers"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments: tuple[object, ...], options: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        enlarge(np.ones((4, 4, 3)), *arguments, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(text)
