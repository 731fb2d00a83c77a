# SPDX-License-Identifier: Apache-2.0
"""Enlarged pictures: against the formula, against Pillow's resize, and against themselves in other bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tconv import ArgumentError, conv_transpose, kernels
from tconv import _picture as picture
from tconv.upscale import METHODS, bands, enlarge, interpolation_kernel

PHOTO = Path(__file__).parent.parent / "examples" / "chelsea.jpg"
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
SCALES = (2, 3, 4, 5, 8)

every_method = pytest.mark.parametrize("method", FILTERS)
every_scale = pytest.mark.parametrize("scale", SCALES)


def continuous(method: str, x: float) -> float:
    """The kernels once more, from their definitions, one number at a time."""
    x = abs(x)
    if method == "bilinear":
        return max(0.0, 1 - x)
    if method == "bicubic":
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0
    if x == 0 or x >= 3:
        return float(x == 0)
    return float(3 * np.sin(np.pi * x) * np.sin(np.pi * x / 3) / (np.pi * x) ** 2)


def interpolation_matrix(size: int, scale: int, method: str) -> np.ndarray:
    """Row o holds the weights of the inputs that make output o, whose centre lies at (o + 1/2) / scale - 1/2."""
    matrix = np.array([[continuous(method, (o + 0.5) / scale - 0.5 - i) for i in range(size)] for o in range(size * scale)])
    return matrix / matrix.sum(1, keepdims=True)


def noise(dtype: str, *shape: int) -> np.ndarray:
    generator = np.random.default_rng(20)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    low, high = (-(10**6), 10**6) if dtype == "int32" else (0, np.iinfo(dtype).max)
    return generator.integers(low, high, shape, endpoint=True).astype(dtype)


def resized(image: Image.Image, scale: int, method: str) -> np.ndarray:
    return np.asarray(image.resize((image.width * scale, image.height * scale), FILTERS[method]))


@every_method
@every_scale
def test_kernel_keeps_constants_and_is_symmetric(method: str, scale: int) -> None:
    kernel = interpolation_kernel(method, scale)
    assert len(kernel) == 2 * METHODS[method].support * scale - scale % 2
    np.testing.assert_allclose(kernel, kernel[::-1], rtol=1e-14)
    np.testing.assert_allclose([kernel[phase::scale].sum() for phase in range(scale)], 1, rtol=1e-15)


@every_method
@every_scale
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (9, 7), (13, 20)])
def test_agrees_with_the_definition(method: str, scale: int, shape: tuple[int, int]) -> None:
    image = noise("float64", *shape)
    rows, columns = (interpolation_matrix(size, scale, method) for size in shape)
    np.testing.assert_allclose(enlarge(image, scale, method), rows @ image @ columns.T, rtol=0, atol=1e-13)


@every_method
def test_is_one_layer_with_the_outer_product_as_weight(method: str) -> None:
    """Inside, the two passes equal a single depthwise 2-D layer."""
    image, kernel = noise("float64", 16, 14, 3), interpolation_kernel(method, 3)
    weight = np.broadcast_to(np.outer(kernel, kernel), (3, 1, len(kernel), len(kernel)))
    whole = conv_transpose(image, weight, stride=3, padding="same", groups=3, layout="channels_last")
    inside = slice(len(kernel), -len(kernel))
    np.testing.assert_allclose(enlarge(image, 3, method)[inside, inside], whole[inside, inside], rtol=0, atol=1e-13)


@every_method
@every_scale
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_8_bit_pictures_are_those_of_pillow(method: str, scale: int, mode: str) -> None:
    """Borders included. Noise over the whole range makes every kernel overshoot, in both passes."""
    values = noise("uint8", 23, 31, len(Image.new(mode, (1, 1)).getbands()))
    image = Image.frombuffer(mode, (31, 23), values.tobytes(), "raw", mode, 0, 1)
    np.testing.assert_array_equal(np.asarray(picture.enlarge(image, scale, method, lambda rows: None)), resized(image, scale, method))


@every_method
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_photograph_is_that_of_pillow(method: str, scale: int) -> None:
    with Image.open(PHOTO) as photo:
        np.testing.assert_array_equal(enlarge(np.asarray(photo), scale, method), resized(photo, scale, method))


@every_method
@every_scale
def test_deep_pictures_agree_with_pillow_in_floating_point(method: str, scale: int) -> None:
    """16 bits against mode F (in mode I;16 Pillow lets overshoot wrap around); 32-bit integers against mode I."""
    values = noise("uint16", 23, 31)
    wide = resized(Image.fromarray(values.astype(np.float32)), scale, method)
    assert abs(enlarge(values, scale, method) - np.clip(wide, 0, 65535)).max() <= 0.51
    values = noise("int32", 23, 31)
    assert abs(enlarge(values, scale, method) - resized(Image.fromarray(values), scale, method)).max() <= 1
    values = noise("float32", 23, 31)
    np.testing.assert_allclose(enlarge(values, scale, method), resized(Image.fromarray(values), scale, method), rtol=0, atol=1e-6)


@every_method
@every_scale
@pytest.mark.parametrize("dtype, values", [("uint8", [0, 1, 127, 128, 254, 255]), ("uint16", [0, 1, 32768, 65535]),
                                           ("int32", [-(2**31), 0, 2**31 - 1]), ("float32", [0.1, -3e30])])  # fmt: skip
def test_a_constant_stays_constant_to_the_border(method: str, scale: int, dtype: str, values: list[float]) -> None:
    for value in values:
        result = enlarge(np.full((5, 4, 2), value, dtype), scale, method)
        np.testing.assert_array_equal(result, np.full((5 * scale, 4 * scale, 2), value, dtype))


@every_method
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_bands_equal_the_whole(method: str, dtype: str) -> None:
    image = noise(dtype, 17, 12, 3)
    whole = enlarge(image, 3, method, rows=17)
    assert whole.dtype == image.dtype and whole.shape == (51, 36, 3)
    for rows in (1, 2, 3, 7, 16):
        np.testing.assert_array_equal(enlarge(image, 3, method, rows=rows), whole)


@pytest.mark.parametrize("algorithm", [name for name in kernels() if name.startswith(("auto", "direct"))])
def test_bands_take_one_method(algorithm: str) -> None:
    """Left to the estimates, bands of few rows and of many would be computed by methods that round differently."""
    for channels in (1, 2, 3, 5, 9):
        image = noise("float64", 17, 12, channels)
        whole = enlarge(image, 3, "lanczos", rows=17, algorithm=algorithm)
        for rows in (1, 2, 7):
            np.testing.assert_array_equal(enlarge(image, 3, "lanczos", rows=rows, algorithm=algorithm), whole)


def test_input_may_be_a_view_and_is_not_changed() -> None:
    image = noise("uint8", 20, 30, 4)
    image.flags.writeable = False
    np.testing.assert_array_equal(enlarge(image[::-2, 1::3, :3]), enlarge(image[::-2, 1::3, :3].copy()))


@pytest.mark.parametrize(
    "image, scale, method, text",
    [
        (np.zeros((4, 4)), 0, "bicubic", "scale=0: must be at least 1"),
        (np.zeros((4, 4)), 2.5, "bicubic", "scale=2.5: must be an integer"),
        (np.zeros((4, 4)), float("nan"), "bicubic", "scale=nan: must be an integer"),
        (np.zeros((4, 4)), 2, ["bicubic"], "method=['bicubic']: must be one of bilinear, bicubic, lanczos"),
        ([[1.0], [1.0, 2.0]], 2, "bicubic", "image='list': must be an array ("),
        (np.zeros((4, 4)), 2, "nearest", "method='nearest': must be one of bilinear, bicubic, lanczos"),
        (np.zeros((4, 4), bool), 2, "bicubic", "image='bool': must hold one of uint8, uint16, int32, float32, float64"),
        (np.zeros(4), 2, "bicubic", "image=(4,): must have the axes (height, width) or (height, width, channels)"),
        (np.zeros((0, 4)), 2, "bicubic", "image=(0, 4): must have at least one pixel and one channel"),
        (np.zeros((4, 4, 0)), 2, "bicubic", "image=(4, 4, 0): must have at least one pixel and one channel"),
    ],
)
def test_bad_arguments_are_named(image: np.ndarray, scale: int, method: str, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        enlarge(image, scale, method)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("scale", [10**6, 10**9, 10**30])
def test_pictures_beyond_memory_are_refused_at_once(scale: int) -> None:
    for run in (lambda: enlarge(np.zeros((4, 4)), scale), lambda: next(bands(np.zeros((4, 4)), scale, "bicubic"))):
        with pytest.raises(ArgumentError, match=r"output shape=\(.*\): needs .* GiB, more than"):
            run()


def test_a_list_is_a_picture_and_a_misspelt_keyword_is_enlarge_s() -> None:
    for first, band in bands([[0.0, 100.0]], 2, "bilinear"):
        assert first == 0
        np.testing.assert_array_equal(band, [[0, 25, 75, 100]] * 2)
    with pytest.raises(TypeError, match="enlarge"):
        enlarge([[1.0]], 2, foo=1)


def test_hidden_colours_do_not_bleed() -> None:
    """A blue half beside a half that is red but fully transparent: wherever the result is visible, it is blue."""
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 4))
    result = np.asarray(picture.enlarge(image, 4, "lanczos", lambda rows: None))
    assert result[..., 3].min() == 0 and result[..., 3].max() == 255
    assert result[result[..., 3] > 0][:, 0].max() == 0
