# SPDX-License-Identifier: Apache-2.0
"""Picture files for the command line: read one, enlarge or sharpen it, write it whole or not at all. The only module that knows Pillow."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from . import deblur
from ._method import Deconvolution
from ._runtime import Array, check_memory
from ._spec import ArgumentError
from .upscale import bands

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
_LONGEST = {"JPEG": 65500, "WEBP": 16383}  # the formats' own limits on a side, in pixels
_DEEP = {"I;16": ("PNG", "TIFF"), "I": ("TIFF",), "F": ("TIFF",)}  # other formats would cut these to 8 bits without a word
_INTERPOLATED = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", *_DEEP)
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}  # colours times alpha, as Pillow's own resize: hidden colours do not bleed
_LUMA: dict[str, Any] = {
    "YCbCr": (1, 0, 0),
    "CMYK": np.eye(4),
}  # what a network sees: the brightness there is, or every ink as a picture of its own
_KEPT_TAGS = (270, 271, 272, 305, 306, 315, 33432, 34665, 34853)  # description, maker, model, software, date, author, rights, Exif, GPS
_PIXEL_SIZE_TAGS = (40962, 40963)  # width and height inside the Exif block: of the small picture, so dropped


@dataclass(frozen=True)
class Picture:
    """A picture ready to be enlarged: upright, in a mode whose channels may be interpolated.

    kept: what Pillow's `save` takes over (dpi, icc_profile, exif)        notes: what reading changed, for the user
    """

    image: Image.Image
    kept: dict[str, Any]
    notes: tuple[str, ...]


def read(path: Path) -> Picture:
    """The first picture of a file, turned as its orientation tag says; anything wrong with it is an ArgumentError."""
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise ArgumentError("photo", str(path), "is empty (0 bytes)")
        with _silence(), Image.open(path) as image:
            notes = tuple(_notes(image))
            upright = ImageOps.exif_transpose(image)
            return Picture(_interpolable(upright), _kept(upright), notes)
    except (ArgumentError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise whatever they met: SyntaxError, struct.error, IndexError, ...
        raise ArgumentError("photo", str(path), _complaint(error)) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing reaches stderr: Pillow warns and logs, and libtiff writes there by itself, where one line of ours is to stand."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _complaint(error: Exception) -> str:
    """What is wrong with a picture file, from the exception that reading it raised."""
    if isinstance(error, UnidentifiedImageError):
        return "is not a picture that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, Pillow's limit against decompression bombs"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    return f"is damaged or not supported ({_reason(error)})"


def _reason(error: Exception) -> str:
    """An exception's text on one line; of an operating system error only what went wrong."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _notes(image: Image.Image) -> Iterator[str]:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        yield f"the first of {frames} pictures in the file"
    if image.mode not in _DEEP and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        yield "16-bit colour read as 8-bit: Pillow has 16 bits for grey only"


def _interpolable(image: Image.Image) -> Image.Image:
    """The same picture in a mode of numbers: palettes and 1-bit pictures become colours and grey, a transparent colour an alpha."""
    image.load()
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if grey else "RGBA")
    return image if image.mode in _INTERPOLATED else image.convert("L" if grey else "RGB")


def _kept(image: Image.Image) -> dict[str, Any]:
    """Resolution, colour profile and the descriptive part of Exif; thumbnails and tags about the file's layout are left behind."""
    kept = {name: image.info[name] for name in ("dpi", "icc_profile") if image.info.get(name)}
    found, exif = image.getexif(), Image.Exif()
    for tag in _KEPT_TAGS:
        if tag in (34665, 34853):
            block = {t: v for t, v in found.get_ifd(tag).items() if t not in _PIXEL_SIZE_TAGS}
            if block:
                exif[tag] = block
        elif tag in found:
            exif[tag] = found[tag]
    return {**kept, "exif": exif.tobytes()} if len(exif) else kept


def check_target(path: Path, photo: Path, image: Image.Image, scale: int, wide: int = 1) -> None:
    """Refuse, before any work, a target that could not be written or must not be; `wide`: so many pictures side by side."""
    size = image.width * scale * wide, image.height * scale
    rule = _objection(path, photo, image.mode, size)
    if rule:
        raise ArgumentError("out", str(path), rule)
    check_memory(size[::-1], 1 if image.mode == "L" else 4, None)  # Pillow holds a pixel of several channels in 4 bytes


def _objection(path: Path, photo: Path, mode: str, size: tuple[int, int]) -> str | None:
    folder, format = path.resolve().parent, FORMATS.get(path.suffix.lower())
    if format is None:
        return f"has the unknown type {path.suffix!r}; use one of {', '.join(FORMATS)}"
    if path.exists() and not path.is_file():
        return "exists and is not a regular file"
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return f"cannot be written: the folder {folder} {'is read-only' if folder.is_dir() else 'does not exist'}"
    if path.exists() and path.samefile(photo):
        return "is the input itself; choose another name"
    if format not in _DEEP.get(mode, (format,)):
        return f"cannot hold a picture of mode {mode} as {format}; use {' or '.join(_DEEP[mode])}"
    if max(size) > _LONGEST.get(format, max(size)):
        return f"would be {size[0]} x {size[1]} pixels; {format} holds at most {_LONGEST[format]} a side"
    try:
        Image.new(mode, (1, 1)).save(io.BytesIO(), format)
    except (OSError, KeyError) as error:
        return f"cannot be written: {_reason(error)}"
    return None


def enlarge(image: Image.Image, scale: int, method: str, advance: Callable[[int], None], **options: Any) -> Image.Image:
    """`upscale.bands` on a Pillow image; `advance` is told of every band how many output rows it added."""
    mode = _PREMULTIPLIED.get(image.mode, image.mode)
    result = Image.new(image.mode, (image.width * scale, image.height * scale))
    for top, band in bands(np.asarray(image.convert(mode)), scale, method, luma=_LUMA.get(mode), **options):
        rows = Image.frombuffer(mode, (result.width, len(band)), np.ascontiguousarray(band), "raw", mode, 0, 1)
        result.paste(rows.convert(image.mode), (0, top))
        advance(len(band))
    return result


def kernel(text: str) -> Array:
    """A blur kernel from a .npy file, a picture in which it is drawn, or a name: `deblur.kernel`."""
    path = Path(text)
    if path.suffix.lower() == ".npy":
        try:
            return deblur.point(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise (
                error if isinstance(error, ArgumentError) else ArgumentError("kernel", text, f"cannot be read ({_reason(error)})")
            ) from None
    if path.suffix.lower() not in Image.registered_extensions():
        return deblur.kernel(text)
    try:
        drawn = read(path).image
    except ArgumentError as error:
        raise ArgumentError("kernel", text, error.rule) from None
    return deblur.point(np.asarray(drawn if drawn.mode in _DEEP else drawn.convert("L")))


def sharpen(image: Image.Image, taps: Array, **options: Any) -> tuple[Image.Image, Deconvolution]:
    """`deblur.restore` on a Pillow image, and its evidence."""
    mode = _PREMULTIPLIED.get(image.mode, image.mode)
    found = deblur.restore(np.asarray(image.convert(mode)), taps, **options)
    data = np.ascontiguousarray(found.x)
    return Image.frombuffer(mode, image.size, data, "raw", mode, 0, 1).convert(image.mode), found


def beside(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two pictures of one size side by side."""
    both = Image.new(before.mode, (before.width * 2, before.height))
    both.paste(before, (0, 0))
    both.paste(after, (before.width, 0))
    return both


def write(image: Image.Image, path: Path, kept: dict[str, Any]) -> None:
    """Encode into the file `path`, which holds the whole picture afterwards, or, on any error, what it held before.

    Raises OSError.
    """
    format = FORMATS[path.suffix.lower()]
    try:
        with _replacing(path.resolve()) as file:
            image.save(file, format, **_OPTIONS.get(format, {}), **kept)
    except Exception as error:  # encoders, like decoders, raise whatever they met
        raise OSError(f"{path}: could not be written ({_reason(error)})") from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file in the same folder, which takes the place of `path` when the block ends well and vanishes when not."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(draft, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, draft)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
