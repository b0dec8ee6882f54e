"""Files to pixels: the formats, orientations and damage that photographs come with."""

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from starloom.agents.stages.image import decode_image, resize
from starloom.dag import limits
from starloom.dag.errors import StageError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_TOLERANCE = 12


@pytest.fixture
def colours() -> NDArray[np.uint8]:
    """uint8 [24, 40, 3]: four plain quarters, all different, so that every turn and mirror shows."""
    made = np.zeros((24, 40, 3), np.uint8)
    made[:12, :20] = (200, 30, 40)
    made[:12, 20:] = (20, 180, 60)
    made[12:, :20] = (30, 50, 190)
    made[12:, 20:] = (220, 210, 200)
    return made


def encoded(extension: str, image: NDArray[Any], options: tuple[int, ...] = ()) -> bytes:
    """A file of an image with its channels as OpenCV has them, BGR or BGRA."""
    done, data = cv2.imencode(extension, image, options)
    assert done
    return bytes(data)


def tiff(orientation: int, order: str) -> bytes:
    """An EXIF block that says only the orientation, in byte order `<` or `>`."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def turned_jpeg(data: bytes, orientation: int, order: str = "<") -> bytes:
    block = b"Exif\0\0" + tiff(orientation, order)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def jpeg_header(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes(9)
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame


def with_orientation(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """What a camera that was held so stores of an upright scene; the tables of EXIF 2.3, 4.6.4."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


def assert_close(found: NDArray[np.uint8], expected: NDArray[np.uint8], most: int = 0) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert found.flags.c_contiguous
    difference = np.abs(found.astype(int) - expected.astype(int))
    # JPEG blurs the borders between the quarters, which most pixels are away from.
    assert np.quantile(difference, 0.75) <= most


def test_png_is_exact(colours: NDArray[np.uint8]) -> None:
    assert_close(decode_image(encoded(".png", colours[:, :, ::-1])), colours)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_jpeg_is_close(colours: NDArray[np.uint8], options: tuple[int, ...]) -> None:
    assert_close(decode_image(encoded(".jpg", colours[:, :, ::-1], options)), colours, JPEG_TOLERANCE)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_grayscale_becomes_three_equal_channels(extension: str) -> None:
    grey = np.full((16, 16), 90, np.uint8)
    assert_close(decode_image(encoded(extension, grey)), np.full((16, 16, 3), 90, np.uint8), 1)


def test_sixteen_bits_become_eight(colours: NDArray[np.uint8]) -> None:
    deep = colours[:, :, ::-1].astype(np.uint16) * 257
    assert_close(decode_image(encoded(".png", deep)), colours)


@pytest.mark.parametrize("deep", [False, True])
def test_transparency_is_laid_on_white(colours: NDArray[np.uint8], deep: bool) -> None:
    alpha = np.full((24, 40, 1), 255, np.uint8)
    alpha[:12] = 0
    layered = np.concatenate([colours[:, :, ::-1], alpha], axis=2)
    expected = colours.copy()
    expected[:12] = 255
    data = encoded(".png", layered.astype(np.uint16) * 257 if deep else layered)
    assert_close(decode_image(data), expected)


def test_half_transparency_is_blended() -> None:
    half = np.full((8, 8, 4), (0, 0, 0, 128), np.uint8)
    assert_close(decode_image(encoded(".png", half)), np.full((8, 8, 3), 127, np.uint8))


def test_grayscale_with_alpha_is_laid_on_white() -> None:
    rows = b"".join(b"\0" + bytes([40, 255, 40, 0]) for _ in range(2))
    data = PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 4, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert decode_image(data)[:, :, 0].tolist() == [[40, 255], [40, 255]]


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    rows = b"".join(b"\0" + bytes([0, 1]) for _ in range(2))
    data = PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0))
    data += chunk(b"PLTE", bytes([10, 20, 30, 200, 0, 0])) + chunk(b"tRNS", bytes([0]))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert decode_image(data)[0].tolist() == [[255, 255, 255], [200, 0, 0]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_upright(colours: NDArray[np.uint8], orientation: int, order: str) -> None:
    stored = encoded(".jpg", with_orientation(colours, orientation)[:, :, ::-1])
    assert_close(decode_image(turned_jpeg(stored, orientation, order)), colours, JPEG_TOLERANCE)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_png_is_upright_with_and_without_alpha(colours: NDArray[np.uint8], orientation: int, alpha: bool) -> None:
    stored = with_orientation(colours, orientation)[:, :, ::-1]
    if alpha:
        stored = np.concatenate([stored, np.full((*stored.shape[:2], 1), 255, np.uint8)], axis=2)
    data = encoded(".png", stored)
    end_of_header = len(PNG_SIGNATURE) + 25
    data = data[:end_of_header] + chunk(b"eXIf", tiff(orientation, ">")) + data[end_of_header:]
    assert_close(decode_image(data), colours)


@pytest.mark.parametrize("block", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"junkjunk", tiff(9, "<"), tiff(0, ">")])
def test_an_unreadable_orientation_means_upright(colours: NDArray[np.uint8], block: bytes) -> None:
    layered = np.concatenate([colours[:, :, ::-1], np.full((24, 40, 1), 255, np.uint8)], axis=2)
    data = encoded(".png", layered)
    data = data[:33] + chunk(b"eXIf", block) + data[33:]
    assert_close(decode_image(data), colours)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize(("max_side", "shape"), [(0, (96, 160)), (160, (96, 160)), (100, (60, 100)), (10, (6, 10))])
def test_the_longer_side_is_bounded(
    colours: NDArray[np.uint8], extension: str, max_side: int, shape: tuple[int, int]
) -> None:
    big = np.repeat(np.repeat(colours, 4, axis=0), 4, axis=1)
    found = decode_image(encoded(extension, big[:, :, ::-1]), max_side)
    assert found.shape == (*shape, 3)
    assert_close(found, resize(big, shape[1], shape[0]), JPEG_TOLERANCE)


def test_a_turned_and_reduced_jpeg_is_upright(colours: NDArray[np.uint8]) -> None:
    big = np.repeat(np.repeat(colours, 16, axis=0), 16, axis=1)
    stored = encoded(".jpg", with_orientation(big, 6)[:, :, ::-1])
    assert_close(decode_image(turned_jpeg(stored, 6), 80), resize(big, 80, 48), JPEG_TOLERANCE)


def test_one_very_thin_image_keeps_a_pixel() -> None:
    data = encoded(".png", np.zeros((1, 500, 3), np.uint8))
    assert decode_image(data, 50).shape == (1, 50, 3)


@pytest.mark.parametrize("header", [png_header, jpeg_header])
def test_a_bomb_is_refused_before_any_pixel_is_decoded(header: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    head = PNG_SIGNATURE if header is png_header else b""
    tail = chunk(b"IDAT", zlib.compress(bytes(1000))) if header is png_header else b"\xff\xd9"
    with pytest.raises(StageError, match=r"60000 x 50000 = 3000000000 pixels, over IMAGE_PIXELS_MAX"):
        decode_image(head + header(60_000, 50_000) + tail)


def test_the_bound_on_pixels_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(".png", np.zeros((10, 12, 3), np.uint8))
    monkeypatch.setattr(limits, "IMAGE_PIXELS_MAX", 120)
    assert decode_image(data).shape == (10, 12, 3)
    monkeypatch.setattr(limits, "IMAGE_PIXELS_MAX", 119)
    with pytest.raises(StageError, match=r"12 x 10 = 120 pixels"):
        decode_image(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty: 0 bytes"),
        (b"GIF89a" + bytes(100), "neither a JPEG nor a PNG file; they begin with b'GIF89a"),
        (b"hello, this is text", "neither a JPEG nor a PNG"),
        (b"\xff\xd8\xff", "ends inside its header"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "ends inside its header"),
        (b"\xff\xd8\xff\xe0\x00\x04ab then no marker", "no marker at byte 8"),
        (PNG_SIGNATURE, "ends inside its header"),
        (PNG_SIGNATURE + struct.pack(">I4s", 2**31, b"IHDR"), "ends inside its header"),
        (PNG_SIGNATURE + png_header(0, 5) + chunk(b"IEND", b""), "0 x 5 pixels: the file is damaged"),
        (PNG_SIGNATURE + chunk(b"IEND", b""), "0 x 0 pixels: the file is damaged"),
        (PNG_SIGNATURE + png_header(5, 5) + chunk(b"IEND", b""), "cut off or damaged"),
        (jpeg_header(5, 5) + b"\xff\xd9", "cut off or damaged"),
        (jpeg_header(5, 0) + b"\xff\xd9", "5 x 0 pixels"),
    ],
)
def test_what_is_no_whole_image_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(StageError) as raised:
        decode_image(data)
    assert reason in str(raised.value)
    assert not raised.value.transient


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_a_file_that_is_cut_off_is_refused(example_folder: Path, extension: str, share: float) -> None:
    data = (example_folder / "photo.jpg").read_bytes()
    if extension == ".png":
        data = encoded(".png", decode_image(data, 320)[:, :, ::-1])
    with pytest.raises(StageError, match="cut off or damaged"):
        decode_image(data[: int(len(data) * share)])
