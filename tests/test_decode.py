"""Pictures of odd kinds: decoded as a person sees them, or refused by name."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from pictures import encoded
from PIL import Image, ImageOps

from dpwg.data.pictures import decode
from dpwg.data.records import Record

RED, GREEN = (220, 30, 40), (20, 200, 60)


def halves(width: int = 12, height: int = 8) -> Image.Image:
    """Red on the left, green on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


def close(found: np.ndarray, expected: tuple[int, int, int], within: int = 3) -> bool:
    return bool((np.abs(found.astype(int) - expected) <= within).all())


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_plain_picture_keeps_its_pixels(form: str) -> None:
    assert np.array_equal(decode(encoded(halves(), form)), np.asarray(halves()))


@pytest.mark.parametrize("mode", ["RGBA", "L", "1"])
def test_other_modes_become_three_channels(mode: str) -> None:
    image = halves().convert(mode)
    assert np.array_equal(decode(encoded(image)), np.asarray(image.convert("RGB")))


STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", [*STORED, "CMYK"])
def test_a_picture_is_seen_upright_and_in_its_printed_colours(orientation) -> None:
    exif, image = Image.Exif(), halves(48, 32)
    if orientation in STORED:
        exif[0x0112] = orientation
        image = image.transpose(STORED[orientation])
    else:
        image = image.convert("CMYK")
    pixels = decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert pixels.shape == (32, 48, 3)
    assert close(pixels[4:-4, 4:20], RED, 12)
    assert close(pixels[4:-4, 28:-4], GREEN, 12)


def test_a_palette_with_a_transparent_colour_lies_on_white() -> None:
    image = halves().quantize(2, dither=Image.Dither.NONE)
    hole = image.getpixel((0, 0))
    pixels = decode(encoded(image, transparency=hole))
    assert close(pixels[:, :6], (255, 255, 255))
    assert close(pixels[:, 6:], GREEN)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_white_and_half_transparent_ones_half(mode: str) -> None:
    image = Image.new(mode, (4, 4), (*(40,) * (len(mode) - 1), 0))
    image.paste((*(40,) * (len(mode) - 1), 128), (2, 0, 4, 4))
    pixels = decode(encoded(image))
    assert close(pixels[:, :2], (255, 255, 255))
    assert close(pixels[:, 2:], (147, 147, 147), 2)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut_off(form: str) -> None:
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(grey), form))
    assert np.array_equal(pixels, np.repeat((grey >> 8)[..., None], 3, axis=2))


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in (RED, GREEN)]
    pixels = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert close(pixels, RED)


@pytest.mark.parametrize(("width", "height"), [(200, 40), (40, 200), (7, 7), (1, 301), (3000, 2)])
def test_the_central_square_is_cut_out_and_resized(width: int, height: int) -> None:
    side, left, top = min(width, height), abs(width - height) // 2, 0
    if height > width:
        left, top = 0, left
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (left, top, left + side, top + side))
    pixels = decode(encoded(image), 16)
    assert pixels.shape == (16, 16, 3)
    assert close(pixels[4:12, 4:12], GREEN, 60)


def test_shrinking_averages_instead_of_picking() -> None:
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    assert close(decode(encoded(Image.fromarray(checks)), 16), (127, 127, 127), 3)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    random = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(random).resize((1536, 1536), Image.Resampling.BICUBIC)
    file = encoded(image, "JPEG", quality=95)
    whole = ImageOps.fit(Image.open(io.BytesIO(file)), (32, 32), Image.Resampling.LANCZOS)
    assert np.abs(decode(file, 32).astype(int) - np.asarray(whole).astype(int)).max() <= 4


def bomb(side: int) -> bytes:
    """A PNG of some bytes that says it is `side` pixels wide and high."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


NOISE = Image.effect_noise((64, 64), 90)
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE)


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (JPEG[:-200], "truncated"),
        (PNG[:-900], "truncated"),
        (PNG[:200] + bytes(100) + PNG[300:], ""),
        (PNG[:20], ""),
        (bomb(9_500), "at most 89 million"),
        (bomb(60_000), "at most 89 million"),
        (b"", "another kind of file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "another kind of file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "another kind of file"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "mode F"),
    ],
    ids=itertools.count(),
)
def test_what_cannot_be_shown_is_refused_by_name(content: bytes, reason: str, size) -> None:
    record = Record(image_bytes=content, captions=("x",), name="photos/7.png")
    with pytest.raises(ValueError, match=rf"^photos/7\.png is broken: .*{reason}.*\.$"):
        record.image(size)
