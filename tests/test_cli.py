# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: its output, its files, and one clear line for everything that goes wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tconv
from tconv import _picture as picture
from tconv import _runtime
from tconv.conventions import convert
from tconv.upscale import enlarge

PHOTO = Path(__file__).parent.parent / "examples" / "chelsea.jpg"


def run(*arguments: object, cwd: Path | None = None, prepare: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tconv", *map(str, arguments)], check=False, capture_output=True, text=True, cwd=cwd, timeout=120,
                          env={**os.environ, "COLUMNS": "200"}, preexec_fn=prepare)  # fmt: skip


def succeeds(*arguments: object, cwd: Path | None = None) -> str:
    done = run(*arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    return done.stdout


def fails(code: int, text: str, *arguments: object, **options: Any) -> str:
    """One line on stderr that contains `text`, which is returned; nothing on stdout; and the exit code."""
    done = run(*arguments, **options)
    assert text in done.stderr
    assert done.stderr.startswith("tconv: error: ") and done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (code, "")
    return done.stderr


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG file by its own definition, for what Pillow would not write."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A picture of 7 x 5 pixels in a folder of its own."""
    path = tmp_path / "small.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (5, 7, 3)).astype(np.uint8)).save(path)
    return path


# ------------------------------------------------------------------------------------------------------------------ upscale: what it does


def test_upscale_writes_the_pixels_and_says_so(tmp_path: Path) -> None:
    line = succeeds("upscale", PHOTO, "big.png", "--scale", 3, "--method", "lanczos", cwd=tmp_path)
    assert line.startswith("big.png: 1353 x 900 RGB from 451 x 300, lanczos x3, ") and line.count("\n") == 1
    with Image.open(PHOTO) as photo, Image.open(tmp_path / "big.png") as big:
        np.testing.assert_array_equal(np.asarray(big), enlarge(np.asarray(photo), 3, "lanczos"))
    assert [p.name for p in tmp_path.iterdir()] == ["big.png"]


@pytest.mark.parametrize("scale, method", [(2, "net"), (3, "net"), (4, "net"), (5, "bicubic"), (8, "bicubic")])
def test_upscale_takes_the_network_where_there_is_one(small: Path, scale: int, method: str) -> None:
    line = succeeds("upscale", small, "big.png", "--scale", scale, cwd=small.parent)
    assert f", {method} x{scale}, " in line
    with Image.open(small) as image, Image.open(small.with_name("big.png")) as big:
        np.testing.assert_array_equal(np.asarray(big), enlarge(np.asarray(image), scale, method))


def test_upscale_does_not_fall_back_from_a_network_that_was_asked_for(small: Path) -> None:
    fails(
        2,
        'scale=5: must be one of 2, 3, 4 where method="net"',
        "upscale",
        small,
        "big.png",
        "--scale",
        5,
        "--method",
        "net",
        cwd=small.parent,
    )
    assert not small.with_name("big.png").exists()


def test_upscale_json(small: Path) -> None:
    facts = json.loads(succeeds("upscale", small, small.with_name("big.webp"), "--json", "--threads", 1))
    assert facts["input_size"] == [7, 5] and facts["output_size"] == [14, 10]
    assert (facts["scale"], facts["method"], facts["mode"], facts["threads"], facts["notes"]) == (2, "net", "RGB", 1, [])
    assert facts["seconds"] >= facts["seconds_writing"] >= 0


@pytest.mark.parametrize("mode, suffix, read_as", [
    ("1", "png", "L"), ("L", "jpg", "L"), ("L", "webp", "RGB"), ("LA", "png", "LA"), ("P", "png", "RGB"), ("RGB", "jpeg", "RGB"),
    ("RGB", "tiff", "RGB"), ("RGBA", "webp", "RGBA"), ("RGBA", "png", "RGBA"), ("CMYK", "jpg", "CMYK"), ("CMYK", "tif", "CMYK"),
    ("I;16", "png", "I;16"), ("I;16", "tif", "I;16"), ("I", "tif", "I"), ("F", "tif", "F"),
])  # fmt: skip
def test_modes_and_formats(tmp_path: Path, mode: str, suffix: str, read_as: str) -> None:
    with Image.open(PHOTO) as photo:
        part = photo.crop((100, 60, 120, 75)).convert("L" if mode in ("I;16", "I", "F") else mode)
    if mode == "I;16":
        part = Image.fromarray(np.asarray(part).astype(np.uint16) * 257)
    part = part.convert(mode) if mode in ("I", "F") else part
    if mode.endswith("A"):
        part.putalpha(Image.linear_gradient("L").resize(part.size))
    source, target = tmp_path / ("in.png" if mode in ("1", "L", "LA", "P", "RGBA", "I;16") else "in.tif"), tmp_path / f"out.{suffix}"
    part.save(source)
    succeeds("upscale", source, target, "--method", "bilinear")
    numbers = part.convert({"1": "L", "P": "RGB"}.get(mode, mode))
    with Image.open(target) as out:
        assert (out.mode, out.size) == (read_as, (40, 30))
        if suffix in ("png", "tif", "tiff"):
            np.testing.assert_array_equal(np.asarray(out), np.asarray(picture.enlarge(numbers, 2, "bilinear", lambda rows: None)))


def test_transparent_palette_and_colour_key_become_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 2, 4))
    image.save(tmp_path / "palette.png", transparency=0)
    Image.new("L", (4, 4), 9).save(tmp_path / "key.png", transparency=9)
    for name, mode in (("palette", "RGBA"), ("key", "LA")):
        succeeds("upscale", tmp_path / f"{name}.png", tmp_path / f"{name}2.png", "--method", "bicubic")
        with Image.open(tmp_path / f"{name}2.png") as out:
            assert out.mode == mode and np.asarray(out)[0, -1, -1] == 0
    with Image.open(tmp_path / "palette2.png") as out:
        assert np.asarray(out)[..., 0].max() == 0, "the hidden red bled"


def test_orientation_profile_resolution_and_exif_are_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Maker"  # turned by a quarter; who made the camera
    exif[34665] = {36867: "2020:01:02 03:04:05", 40962: 451, 40963: 300}
    with Image.open(PHOTO) as photo:
        photo.save(tmp_path / "turned.jpg", exif=exif, dpi=(300, 300), icc_profile=b"profile " * 40)
        upright = photo.rotate(-90, expand=True)
    for suffix in ("png", "jpg", "tif", "webp"):
        target = tmp_path / f"out.{suffix}"
        succeeds("upscale", tmp_path / "turned.jpg", target)
        with Image.open(target) as out:
            assert out.size == (600, 902)
            assert abs(np.asarray(out.convert("RGB").resize(upright.size)).astype(float) - upright).mean() < 4
            assert out.info["icc_profile"] == b"profile " * 40
            assert suffix == "webp" or round(out.info["dpi"][0]) == 300  # WebP has no field for it
            assert 274 not in out.getexif() and out.getexif()[271] == "Maker"
            assert dict(out.getexif().get_ifd(34665)) == {36867: "2020:01:02 03:04:05"}


def test_what_reading_changes_is_said(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(png(2, 1, 16, 2, b"\0" + bytes(range(12))))
    assert "deep.png: 16-bit colour read as 8-bit" in succeeds("upscale", "deep.png", "out.png", cwd=tmp_path)
    frames = [Image.new("L", (3, 3), v) for v in (0, 255)]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    assert "two.tif: the first of 2 pictures in the file" in succeeds("upscale", "two.tif", "out.png", cwd=tmp_path)


# ------------------------------------------------------------------------------------------------------- upscale: bad input, bad luck


@pytest.mark.parametrize("scale", ["0", "-1", "1", "9", "2.5", "nan", "inf", "1e1", "two", "", "99999999999999999999"])
def test_bad_scales(small: Path, scale: str) -> None:
    fails(2, f"scale={scale!r}: must be a whole number from 2 to 8", "upscale", small, "out.png", "--scale", scale, cwd=small.parent)


@pytest.mark.parametrize("name, content, text", [
    ("empty.png", b"", "photo='empty.png': is empty (0 bytes)"),
    ("text.png", b"not a picture", "photo='text.png': is not a picture that Pillow can read"),
    ("cut.jpg", PHOTO.read_bytes()[:20000], "photo='cut.jpg': is damaged or not supported (image file is truncated"),
    ("cut.png", png(300, 300, 8, 0, bytes(90300))[:70], "photo='cut.png': is "),
    ("flat.png", png(0, 3, 8, 0, b""), "photo='flat.png': "),
    ("bomb.png", png(20000, 20000, 8, 0, b""), "claims more than 178956970 pixels, Pillow's limit against decompression bombs"),
], ids=["empty", "text", "cut-jpg", "cut-png", "flat", "bomb"])  # fmt: skip
def test_bad_pictures(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    fails(2, text, "upscale", name, "out.png", cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_every_cut_of_a_picture_is_one_line_or_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tconv.cli import main

    whole = PHOTO.read_bytes()
    for length in [*range(0, 700, 23), *range(700, len(whole), 9001)]:
        (tmp_path / "cut.jpg").write_bytes(whole[:length])
        assert main(["upscale", str(tmp_path / "cut.jpg"), str(tmp_path / "out.png")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_libtiff_does_not_speak_for_us(tmp_path: Path) -> None:
    """Its messages on damaged strips go to the process's stderr, past Python."""
    with Image.open(PHOTO) as photo:
        photo.save(tmp_path / "zip.tif", compression="tiff_deflate")
    data = bytearray((tmp_path / "zip.tif").read_bytes())
    data[100:200] = bytes(100)
    (tmp_path / "zip.tif").write_bytes(data)
    fails(2, "photo='zip.tif': is damaged or not supported", "upscale", "zip.tif", "out.png", cwd=tmp_path)


def test_missing_and_odd_paths(small: Path) -> None:
    folder = small.parent
    for photo, target, text in [
        ("none.png", "out.png", "photo='none.png': cannot be opened (No such file or directory)"),
        (".", "out.png", "photo='.': cannot be opened (Is a directory)"),
        ("small.png", "out.xyz", "out='out.xyz': has the unknown type '.xyz'; use one of .png, .jpg, .jpeg, .tif, .tiff, .webp"),
        ("small.png", "out", "out='out': has the unknown type ''; use one of"),
        ("small.png", "no/out.png", "out='no/out.png': cannot be written: the folder "),
        ("small.png", "small.png", "out='small.png': is the input itself; choose another name"),
        ("small.png", "link.png", "out='link.png': is the input itself; choose another name"),
        ("small.png", "dir.png", "out='dir.png': exists and is not a regular file"),
    ]:
        (folder / "dir.png").mkdir(exist_ok=True)
        if target == "link.png":
            (folder / "link.png").symlink_to(small)
        before = small.read_bytes()
        fails(2, text, "upscale", photo, target, cwd=folder)
        assert small.read_bytes() == before


@pytest.mark.parametrize("mode, suffix, text", [
    ("RGBA", "jpg", "cannot be written: cannot write mode RGBA as JPEG"),
    ("CMYK", "png", "cannot be written: cannot write mode CMYK as PNG"),
    ("I;16", "jpg", "cannot hold a picture of mode I;16 as JPEG; use PNG or TIFF"),
    ("F", "webp", "cannot hold a picture of mode F as WEBP; use TIFF"),
])  # fmt: skip
def test_formats_that_cannot_hold_the_picture(tmp_path: Path, mode: str, suffix: str, text: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "in.tif")
    fails(2, text, "upscale", "in.tif", f"out.{suffix}", cwd=tmp_path)


def test_results_too_large_for_the_format(tmp_path: Path) -> None:
    Image.new("L", (9000, 1)).save(tmp_path / "long.png")
    fails(2, "would be 18000 x 2 pixels; WEBP holds at most 16383 a side", "upscale", "long.png", "out.webp", cwd=tmp_path)
    fails(2, "would be 72000 x 8 pixels; JPEG holds at most 65500 a side", "upscale", "long.png", "out.jpg", "--scale", 8, cwd=tmp_path)


def test_results_too_large_for_the_memory(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime, "_memory", lambda: 14 * 10 * 4 - 1)
    with Image.open(small) as image, pytest.raises(tconv.ArgumentError, match=r"output shape=\(10, 14\): needs .* GiB, more than"):
        picture.check_target(small.with_name("out.png"), small, image, 2)


def only_a_kilobyte() -> None:
    """For the child: writing beyond 1000 bytes of any file fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_failed_write_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    for name in ("out.png", "out.jpg", "out.tif", "out.webp"):
        (tmp_path / name).write_bytes(b"before")
        fails(1, f"{name}: could not be written (", "upscale", PHOTO, name, cwd=tmp_path, prepare=only_a_kilobyte)
        assert (tmp_path / name).read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_written_file_has_ordinary_permissions_and_keeps_those_of_its_predecessor(small: Path) -> None:
    new, old = small.with_name("new.png"), small.with_name("old.png")
    old.touch(0o600)
    for target in (new, old):
        succeeds("upscale", small, target)
    assert (new.stat().st_mode & 0o777, old.stat().st_mode & 0o777) == (small.stat().st_mode & 0o777, 0o600)


@pytest.mark.parametrize("variables, colourful", [({}, True), ({"NO_COLOR": "1"}, False)])
def test_progress_is_shown_to_people_only(small: Path, variables: dict[str, str], colourful: bool) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tconv", "upscale", str(small), str(small.with_name("out.png"))]
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")}
    for words, expected in (([], colourful), (["--json"], False)):
        done = subprocess.run([*command, *words], stdout=subprocess.PIPE, stderr=theirs, timeout=120, check=True,
                              env={**plain, "TERM": "xterm", **variables})  # fmt: skip
        os.write(theirs, b"end")
        shown = os.read(ours, 100000)
        assert (b"\x1b" in shown) == (not words)
        assert bool(re.search(rb"\x1b\[[\d;]*?\b(3[0-8]|9[0-7])[;m]", shown)) == expected, "colour, or the lack of it"
        assert b"\x1b" not in done.stdout


# ------------------------------------------------------------------------------------------------------------------ shape, convert, info


def test_shape_of_a_line(small: Path) -> None:
    assert succeeds("shape", "n16 c256:128 i8x8 k4 s2 p1", "--inputs-of", "3x4", "--outputs-of", "0x7").splitlines() == [
        "n16 c256:128 i8x8 k4 s2 p1",
        "input                 16 x 256 x 8 x 8",
        "weight                256 x 128 x 4 x 4",
        "output                16 x 128 x 16 x 16",
        "full output           18 x 18",
        "crop (lo:hi)          1:1 x 1:1",
        "multiply-adds         471,859,200",
        "inputs of output 3x4  1..2 x 1..2",
        "outputs of input 0x7  0..2 x 13..15",
        "axis 0, phase 0: outputs 1..15 by 2, taps 0 2",
        "axis 0, phase 1: outputs 0..14 by 2, taps 1 3",
        "axis 1, phase 0: outputs 1..15 by 2, taps 0 2",
        "axis 1, phase 1: outputs 0..14 by 2, taps 1 3",
    ]


def test_shape_of_words_as_json() -> None:
    facts = json.loads(succeeds("shape", "--input-size", "5", "--kernel-size", "4", "--stride=2", "--padding", "-1:0", "--inputs-of", "0",
                                "--json"))  # fmt: skip
    spec = tconv.Spec.build(5, 4, stride=2, padding=[(-1, 0)])
    assert facts["problem"] == str(spec) == "c1:1 i5 k4 s2 p-1:0"
    assert (facts["output_size"], facts["full_size"], facts["macs"], facts["crop"]) == ([13], [12], 20, [[-1, 0]])
    assert facts["inputs_of_output_0"] == [[]]
    assert facts["phases"][0][0] == {"index": 0, "outputs": 6, "first": 1, "taps": [[0, 0], [2, 1]]}


def test_shape_of_a_framework_s_words() -> None:
    words = ("--input-size", "8x8", "--kernel-size", "3", "--strides", "2", "--padding", "same")
    assert succeeds("shape", "--from", "keras", *words).splitlines()[0] == "c1:1 i8x8 k3 s2 p0:1"
    fails(2, "from='caffe': must be one of torch, onnx, tensorflow, keras, jax", "shape", "--from", "caffe", *words)
    fails(2, "strides=2: is no argument of torch", "shape", "--from", "torch", *words)


def test_shape_of_many_phases_is_short() -> None:
    lines = succeeds("shape", "i5 k1024 s256").splitlines()
    assert len(lines) < 20 and lines[-1] == "axis 0: 248 more phases (all of them with --json)"
    assert succeeds("shape", "i5 k3 s10000000").splitlines()[-1] == "axis 0: 9999992 more phases (all of them with --json)"
    fails(2, "stride=10000000: has more phases than JSON is written for, 1000000", "shape", "i5 k3 s10000000", "--json")


def test_shape_of_a_line_without_quotes() -> None:
    line = "n16 c256:128 i8x8 k4 s2 p1:-1"
    assert succeeds("shape", *line.split(), "--inputs-of", "3x4") == succeeds("shape", line, "--inputs-of", "3x4")
    assert succeeds("shape", *line.split()).splitlines()[0] == line


@pytest.mark.parametrize("arguments, text", [
    ([], "problem=None: give either one line, or words"),
    (["i8 k4", "--stride", "2"], "problem='i8 k4': give either one line, or words"),
    (["i8"], "problem='i8': lacks kernel_size (k)"),
    (["i8 k4 q1"], "has the word 'q1'"),
    (["--stride", "2"], "input_size=None: is missing: add --input-size"),
    (["--input-size", "8", "--kernel-size", "2.5"], "kernel_size='2.5': must be an integer"),
    (["--input-size", "8", "--kernel-size", "0"], "kernel_size=0: must be at least 1"),
    (["--input-size", "8", "--kernel-size", "4", "--colour", "3"], "colour=3: is not a word of tconv; the words are --input-size"),
    (["i8 k4", "--inputs-of", "11"], "inputs_of='11': must lie inside 11, counted from 0"),
    (["i8x8 k4", "--outputs-of", "1x2x3"], "outputs_of=(1, 2, 3): must be an int or hold one int per spatial axis, here 2"),
])  # fmt: skip
def test_bad_shapes(arguments: list[str], text: str) -> None:
    fails(2, text, "shape", *arguments)


def test_convert_is_that_of_the_library() -> None:
    words = ("--kernel-size", "4", "--stride", "2", "--padding", "1", "--input-size", "8x8")
    answer = convert("torch", "keras", kernel_size=4, stride=2, padding=1, input_size=(8, 8))
    assert succeeds("convert", "--from", "torch", "--to", "keras", *words).rstrip("\n") == str(answer)
    assert json.loads(succeeds("convert", "--from", "torch", "--to", "keras", *words, "--json")) == json.loads(json.dumps(answer.to_dict()))
    fails(2, "from='nonsense': must be one of torch, onnx", "convert", "--from", "nonsense", "--to", "keras", *words)
    fails(2, "to='nonsense': must be one of torch, onnx", "convert", "--from", "torch", "--to", "nonsense", *words)


def test_info() -> None:
    text = succeeds("info")
    assert tconv.__version__ in text and all(name in text for name in tconv.kernels())
    assert json.loads(succeeds("info", "--json"))["tconv"] == tconv.__version__


def test_why_a_kernel_was_chosen() -> None:
    line = "c64:32 i8x8 k4 s2 p1"
    facts = json.loads(succeeds("info", "--why", line, "--threads", "2", "--json"))
    positions, channels, depthwise, rows, strassen, rowwise, winograd = facts["candidates"]
    assert all(c["refused"].startswith("it is not depthwise") for c in (depthwise, rows)) and winograd["method"] == "winograd"
    assert (strassen["method"], strassen["refused"]) == ("strassen", "its kernels overlap or leave gaps")
    assert (facts["problem"], facts["dtype"], facts["layout"]) == (line, "float32", "channels_first")
    assert (positions["method"], channels["method"], positions["refused"], channels["refused"]) == ("positions", "channels", "", "")
    least = min((positions, channels, rowwise, winograd), key=lambda candidate: candidate["cycles"])
    method, isa = facts["kernel"].split("_")
    assert method == least["method"] and f"auto_{isa}" == tconv.kernels()[0]
    assert facts["macs"] == tconv.Spec.parse(line).macs
    text = succeeds("info", "--why", *line.split(), "--threads", "2").splitlines()
    halved = isa == "avx512" and any("; one vector of 16 a cycle" in row for row in text)  # a Zen 4
    assert facts["limit_cycles"] == facts["macs"] / ((1 if halved else 2) * facts["lanes"])
    scalar = json.loads(succeeds("info", "--why", line, "--algorithm", "direct_scalar", "--json"))
    assert scalar["limit_cycles"] == facts["macs"] / 2
    assert all(
        c["of_limit"] == pytest.approx(facts["limit_cycles"] / c["cycles"]) and c["of_limit"] > 0
        for c in facts["candidates"]
        if c["cycles"]
    )
    assert facts["threads_allowed"] == 2 and 1 <= facts["threads"] <= 2 and facts["workspace_bytes"] > 0
    assert text[0] == f"{line}, float32, channels_first" and f"{'kernel':<15}{facts['kernel']}" in text
    expected = f"{positions['cycles']:,.0f} cycles of one thread, {positions['of_limit']:.0%} of the multiply-add limit (estimates)"
    assert f"{'positions':<15}{expected}" in text


def test_why_a_method_was_refused() -> None:
    words = ("--from", "torch", "--input-size", "8x8", "--kernel-size", "4", "--stride", "2")
    scalar = json.loads(succeeds("info", "--why", *words, "--algorithm", "channels_scalar", "--dtype", "float64", "--json"))
    assert (scalar["kernel"], scalar["lanes"], scalar["dtype"]) == ("channels_scalar", 1, "float64")
    assert scalar["candidates"][0] == {"method": "positions", "cycles": None, "of_limit": None,
                                       "refused": "another method was asked for by name"}  # fmt: skip
    for line, reason in (("c8:7 i8 k4", "fewer than 8 channels"), ("c8:8 i900000 k4", "these axes are too long")):
        assert re.search(rf"^channels +refused: .*{reason}", succeeds("info", "--why", line, "--layout", "channels_last"), re.MULTILINE)
    assert json.loads(succeeds("info", "--why", "n0 c8:8 i8 k4", "--json"))["macs"] == 0


@pytest.mark.parametrize("arguments, text", [
    (["i8 k4"], "problem='i8 k4': means something with --why only"),
    (["--threads", "2"], "threads=2: means something with --why only"),
    (["--from", "torch"], "from='torch': means something with --why only"),
    (["--stride", "2"], "stride='2': means something with --why only"),
    (["--why"], "problem=None: give either one line, or words"),
    (["--why", "i8"], "problem='i8': lacks kernel_size (k)"),
    (["--why", "i8 k4", "--threads", "0"], "threads=0: must lie in [1, 1024]"),
    (["--why", "i8 k4", "--algorithm", "fast"], "algorithm='fast': is not known"),
    (["--why", "i8 k4", "--layout", "nchw"], "--layout"),
    (["--why", "i1000000x1000000 k4"], "more than this machine's memory"),
])  # fmt: skip
def test_bad_questions(arguments: list[str], text: str) -> None:
    fails(2, text, "info", *arguments)


# ------------------------------------------------------------------------------------------------------------------ the command itself


def test_version_and_help() -> None:
    assert succeeds("--version") == tconv.__version__ + "\n"
    for words in (
        [],
        ["--help"],
        ["upscale", "--help"],
        ["shape", "--help"],
        ["convert", "--help"],
        ["bench", "--help"],
        ["info", "--help"],
    ):
        assert succeeds(*words).startswith("Usage: tconv")


@pytest.mark.parametrize("arguments, words", [
    (["enlarge"], ["Unknown command", "enlarge"]),
    (["upscale"], ["PHOTO", "requires an argument"]),
    (["upscale", "a.png"], ["OUT", "requires an argument"]),
    (["upscale", "a.png", "b.png", "c.png"], ["Unused", "c.png"]),
    (["upscale", "a.png", "b.png", "--method", "nearest"], ["--method", "nearest", "net", "bilinear", "bicubic", "lanczos"]),
    (["upscale", "a.png", "b.png", "--sclae", "3"], ["Unknown option", "--sclae"]),
    (["upscale", "a.png", "b.png", "--threads", "many"], ["--threads", "many"]),
    (["convert", "--from", "torch"], ["--to", "requires an argument"]),
])  # fmt: skip
def test_bad_command_lines(arguments: list[str], words: list[str]) -> None:
    """The sentences are cyclopts's own, so only what they must name is asked."""
    error = fails(2, "See tconv --help.", *arguments)
    assert all(word in error for word in words)


@pytest.mark.parametrize("module, arguments", [("cyclopts", ["info"]), ("rich", ["--help"]), ("PIL", ["upscale", "a.png", "b.png"])])
def test_a_missing_extra_is_one_line(module: str, arguments: list[str]) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from tconv.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True, timeout=120)
    assert done.stderr == f'tconv: error: the command line needs {module}; install it with: pip install "tconv[cli]"\n'
    assert done.returncode == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f'"{sys.executable}" -m tconv shape "i5000 k4096 s4096" --json | head -c 10'
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and done.stdout == '{"problem"'
